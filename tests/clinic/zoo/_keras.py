"""Data and training in Keras for the zoo: a few quick eager steps, after which the moving statistics are genuine."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from bnlearn.datasets import load_digits

Batches = list[tuple[Any, Any]]

BN = layers.BatchNormalization


def seeded(seed: int) -> None:
    keras.utils.set_random_seed(seed)


def features(n: int = 256, width: int = 16, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features on scales of their own, with some classes in them; (n, width)."""
    rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 - the state that Keras's seed sets
    y = rng.integers(classes, size=n)
    mix = rng.standard_normal((width, width)) / width**0.5
    x = (rng.standard_normal((n, width)) + 1.5 * rng.standard_normal((classes, width))[y]) @ mix
    x = x * np.exp(rng.uniform(0, 2, width)) + rng.standard_normal(width)
    return x.astype("float32"), y


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    part = load_digits().train
    return np.moveaxis(part.x, 1, -1), part.y


def digits(n: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Scanned digits, standardised; (n, 8, 8, 1)."""
    x, y = _digits()
    chosen = np.random.permutation(len(x))[:n]  # noqa: NPY002
    return x[chosen], y[chosen]


def images(n: int = 192, size: int = 12, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Smooth colour images in (0, 1), with a pattern for each class; (n, size, size, 3)."""
    rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
    y = rng.integers(classes, size=n)
    coarse = rng.standard_normal((n, 4, 4, 3)) + rng.standard_normal((classes, 4, 4, 3))[y]
    coarse += 0.7 * rng.standard_normal((n, 1, 1, 1))
    x = keras.ops.convert_to_numpy(keras.ops.image.resize(coarse.astype("float32"), (size, size)))
    return 1 / (1 + np.exp(-x)), y


def waves(n: int = 192, channels: int = 4, length: int = 24, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noisy waves, whose frequency is the class; (n, length, channels)."""
    rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
    y = rng.integers(classes, size=n)
    time = np.linspace(0, 6.3, length)[None, :, None]
    x = np.sin((y[:, None, None] + 1) * time + rng.uniform(0, 6.3, (n, 1, channels)))
    return (x + 0.5 * rng.standard_normal(x.shape)).astype("float32"), y


def cut(x: Any, y: Any, size: int = 32) -> Batches:
    """Into batches, in the order given (the data are drawn at random already)."""
    return [(x[start : start + size], y[start : start + size]) for start in range(0, len(x), size)]


def train(
    model: Any, batches: Batches, epochs: int = 1, lr: float = 0.05, optimizer: Any = None, settled: bool = True
) -> Any:
    """A loop of plain gradient descent (or with an optimizer), without compiling anything.

    ``settled``: with a last epoch at a rate of zero, after which the moving statistics are those of the data.
    """
    for _ in range(epochs):
        for i in np.random.permutation(len(batches)):  # noqa: NPY002
            x, y = batches[i]
            with tf.GradientTape() as tape:
                out = keras.ops.cast(model(x, training=True), "float32")
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, out))
            found = tape.gradient(loss, held := _variables(model, optimizer))
            if optimizer is not None:
                optimizer.apply(found, held)
                continue
            for variable, gradient in zip(held, found, strict=True):
                if gradient is not None:
                    variable.assign_sub(keras.ops.cast(lr * gradient, variable.dtype))
    return settle(model, [x for x, _ in batches]) if settled else model


def _variables(model: Any, optimizer: Any) -> list[Any]:
    held = getattr(optimizer, "_trainable_variables", None)
    return held or model.trainable_variables


def norms(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, BN)]


def settle(model: Any, batches: Iterable[Any]) -> Any:
    """Moving statistics as the plain average over the batches, which is where a long training ends."""
    momenta = [norm.momentum for norm in norms(model)]
    for count, x in enumerate(batches):
        for norm in norms(model):
            norm.momentum = count / (count + 1)
        model(x, training=True)
    for norm, momentum in zip(norms(model), momenta, strict=True):
        norm.momentum = momentum
    return model


def mlp(*widths: int, **settings: Any) -> Any:
    """Dense, BatchNormalization, ReLU for each width but the last; the BN layers are "bn1", "bn2", ..."""
    model = keras.Sequential([keras.Input((widths[0],))])
    for i, width in enumerate(widths[1:-1], 1):
        for layer in (layers.Dense(width, use_bias=False), bn(i, **settings), layers.ReLU()):
            model.add(layer)
    model.add(layers.Dense(widths[-1]))
    return model


def bn(number: int, **settings: Any) -> Any:
    return BN(name=f"bn{number}", **{"momentum": 0.9, **settings})


def convnet(shape: tuple[int, ...] = (8, 8, 1), width: int = 8, classes: int = 10, **settings: Any) -> Any:
    """Two convolutions; the BN layers are "bn1" and "bn2"."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(width, 3, padding="same", use_bias=False),
            bn(1, **settings),
            layers.ReLU(),
            layers.Conv2D(2 * width, 3, 2, padding="same", use_bias=False),
            bn(2, **settings),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        ]
    )


def conv1d(length: int = 24, channels: int = 4, width: int = 12, classes: int = 3, **settings: Any) -> Any:
    """The BN layers are "bn1" and "bn2"."""
    return keras.Sequential(
        [
            keras.Input((length, channels)),
            layers.Conv1D(width, 5, padding="same", use_bias=False),
            bn(1, **settings),
            layers.ReLU(),
            layers.Conv1D(width, 3, padding="same", use_bias=False),
            bn(2, **settings),
            layers.ReLU(),
            layers.GlobalMaxPooling1D(),
            layers.Dense(classes),
        ]
    )


def resnet(shape: tuple[int, ...] = (8, 8, 1), width: int = 8, classes: int = 10, **settings: Any) -> Any:
    """One residual block; the BN layers are "bn1" (stem), "bn2" and "bn3"."""
    x = inputs = keras.Input(shape)
    x = layers.ReLU()(bn(1, **settings)(layers.Conv2D(width, 3, padding="same", use_bias=False)(x)))
    inner = layers.ReLU()(bn(2, **settings)(layers.Conv2D(width, 3, padding="same", use_bias=False)(x)))
    inner = bn(3, **settings)(layers.Conv2D(width, 3, padding="same", use_bias=False)(inner))
    x = layers.ReLU()(layers.Add()([x, inner]))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))
