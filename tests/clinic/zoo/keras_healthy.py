"""Healthy Keras models: plain ones, real architectures, and odd ways to train and feed them that are all right."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import layers

from ._case import Case, Entry, register
from ._keras import (
    BN,
    bn,
    conv1d,
    convnet,
    cut,
    digits,
    features,
    images,
    mlp,
    norms,
    resnet,
    seeded,
    settle,
    train,
    waves,
)

ENTRIES: list[Entry] = []
healthy = register(ENTRIES, "keras", seeded)


def stack(shape: tuple[int, ...], *parts: Any) -> Any:
    model = keras.Sequential([keras.Input(shape)])
    for part in parts:
        model.add(part)
    return model


@healthy()
def perceptron(seed: int) -> Case:
    data = cut(*features())
    return Case(train(mlp(16, 32, 32, 4), data, 2), data)


@healthy()
def moving_average_of_an_ordinary_training(seed: int) -> Case:
    """With Keras's own momentum rule at 0.9, and a rate that goes to zero."""
    data = cut(*features())
    model = train(mlp(16, 32, 32, 4), data, settled=False)
    for lr in (0.02, 0.005, 0.0, 0.0, 0.0):
        train(model, data, lr=lr, settled=False)
    return Case(model, data)


@healthy()
def fresh(seed: int) -> Case:
    """About to be trained: that its statistics are new is no more than an info."""
    return Case(convnet(), cut(*digits()))


@healthy()
def convnet_on_digits(seed: int) -> Case:
    data = cut(*digits())
    return Case(train(convnet(momentum=0.99), data, 2), data)


@healthy()
def residual(seed: int) -> Case:
    data = cut(*digits())
    return Case(train(resnet(), data), data)


@healthy()
def residual_with_gamma_zero(seed: int) -> Case:
    data = cut(*images())
    model = resnet((12, 12, 3), classes=4)
    model.get_layer("bn3").gamma.assign(np.zeros(8))
    return Case(train(model, data), data)


@healthy()
def one_dimension(seed: int) -> Case:
    data = cut(*waves())
    return Case(train(conv1d(), data), data)


@healthy()
def channels_first(seed: int) -> Case:
    """Positions last, as data from elsewhere may have them, and ``axis=1`` to match."""
    x, y = features(256, 24)
    data = cut(x.reshape(-1, 4, 6), y)
    model = stack((4, 6), bn(1, axis=1), layers.Flatten(), layers.Dense(16, "relu"), layers.Dense(4))
    return Case(train(model, data), data)


@healthy()
def depthwise_separable(seed: int) -> Case:
    parts: list[Any] = [layers.Conv2D(8, 3, use_bias=False), bn(1), layers.ReLU(6.0)]
    parts += [layers.DepthwiseConv2D(3, padding="same", use_bias=False), bn(2), layers.ReLU(6.0)]
    parts += [layers.Conv2D(12, 1, use_bias=False), bn(3), layers.GlobalAveragePooling2D(), layers.Dense(4)]
    data = cut(*images())
    return Case(train(stack((12, 12, 3), *parts), data), data)


@healthy()
def norm_at_the_input(seed: int) -> Case:
    data = cut(*features())
    return Case(train(stack((16,), bn(1), layers.Dense(24, "relu"), layers.Dense(4)), data), data)


@healthy()
def norm_after_the_activation(seed: int) -> Case:
    data = cut(*features())
    parts = (layers.Dense(24, "relu"), bn(1), layers.Dense(24, "relu"), bn(2), layers.Dense(4))
    return Case(train(stack((16,), *parts), data), data)


@healthy()
def without_center_and_scale(seed: int) -> Case:
    data = cut(*digits())
    return Case(train(convnet(center=False, scale=False), data), data)


@healthy()
def frozen_backbone(seed: int) -> Case:
    """``trainable=False`` on other data than those that it was trained on."""
    x, y = digits()
    backbone = keras.Sequential(train(convnet(), cut(x, y)).layers[:-1])
    backbone.trainable = False
    data = cut(2 * x + 1, y)
    return Case(train(stack((8, 8, 1), backbone, layers.Dense(10)), data, settled=False), data)


@healthy()
def frozen_layers_only(seed: int) -> Case:
    x, y = features()
    model = train(mlp(16, 32, 32, 4), cut(x, y))
    for norm in norms(model):
        norm.trainable = False
    data = cut(1.5 * x, y)
    return Case(train(model, data, lr=0.01, settled=False), data)


@healthy()
def called_in_inference_mode(seed: int) -> Case:
    """``training=False`` where the backbone is called, as Keras's guide to transfer learning has it."""

    class Tuned(keras.Model):
        def __init__(self, backbone: Any) -> None:
            super().__init__()
            self.backbone, self.head = backbone, layers.Dense(10)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.head(self.backbone(x, training=False))

    x, y = digits()
    model = Tuned(keras.Sequential(train(convnet(), cut(x, y)).layers[:-1]))
    data = cut(2 * x, y)
    return Case(train(model, data, settled=False), data)


@healthy()
def dropout_after_the_last_layer(seed: int) -> Case:
    model = mlp(16, 32, 4)
    parts = (*model.layers[:-1], layers.Dropout(0.5), layers.Dense(4))
    data = cut(*features())
    return Case(train(stack((16,), *parts), data), data)


@healthy()
def little_dropout_before(seed: int) -> Case:
    data = cut(*features())
    parts = (layers.Dense(32, "relu"), layers.Dropout(0.1), layers.Dense(32, use_bias=False), bn(1), layers.ReLU())
    return Case(train(stack((16,), *parts, layers.Dense(4)), data), data)


@healthy()
def groups_and_layers(seed: int) -> Case:
    """No BatchNormalization at all."""
    parts = (layers.Conv2D(8, 3), layers.GroupNormalization(4), layers.Flatten(), layers.LayerNormalization())
    data = cut(*digits())
    return Case(train(stack((8, 8, 1), *parts, layers.Dense(10)), data, settled=False), data)


@healthy()
def recurrent_head(seed: int) -> Case:
    x, y = waves(192, length=6)
    data = cut(x, y)
    return Case(train(stack((6, 4), bn(1), layers.SimpleRNN(16), bn(2), layers.Dense(3)), data), data)


@healthy()
def same_layer_at_each_step(seed: int) -> Case:
    """TimeDistributed: one network for all frames, which are alike."""
    x, y = images(96)
    frames = np.stack([x, x[:, ::-1], x[:, :, ::-1]], 1)
    each = layers.TimeDistributed(keras.Sequential([layers.Conv2D(6, 3, use_bias=False), bn(1), layers.ReLU()]))
    data = cut(frames, y, 16)
    return Case(train(stack((3, 12, 12, 3), each, layers.Flatten(), layers.Dense(4)), data), data)


@healthy()
def siamese(seed: int) -> Case:
    """Two views of one image through one network."""
    inputs, tower = keras.Input((8, 8, 1)), convnet(classes=8)
    other = layers.Lambda(lambda x: x[:, :, ::-1])(inputs)
    model = keras.Model(inputs, layers.Dense(10)(layers.Concatenate()([tower(inputs), tower(other)])))
    data = cut(*digits())
    return Case(train(model, data), data)


@healthy()
def two_inputs(seed: int) -> Case:
    (picture, y), (numbers, _) = digits(), features()
    first, second = keras.Input((8, 8, 1)), keras.Input((16,))
    image = layers.GlobalAveragePooling2D()(layers.ReLU()(bn(1)(layers.Conv2D(8, 3, use_bias=False)(first))))
    both = layers.Concatenate()([image, bn(2)(layers.Dense(8, use_bias=False)(second))])
    model = keras.Model([first, second], layers.Dense(10)(both))
    data = [([a, b], label) for (a, label), (b, _) in zip(cut(picture, y), cut(numbers, y), strict=True)]
    return Case(train(model, data), data)


@healthy()
def mask_that_reaches_the_layer(seed: int) -> Case:
    """Keras's own mask, made by ``Masking``, leaves the padding out."""
    x, y = waves(192)
    real = np.arange(24) < np.random.default_rng(seed).integers(8, 25, (192, 1))
    data = cut(np.where(real[..., None], x, 0).astype("float32"), y)
    model = stack((24, 4), layers.Masking(), bn(1), layers.GlobalAveragePooling1D(), layers.Dense(3))
    return Case(train(model, data), data)


@healthy()
def mixed_precision(seed: int) -> Case:
    """Activations in bfloat16, statistics in float32."""
    parts = (layers.Dense(32, use_bias=False, dtype="mixed_bfloat16"), bn(1, dtype="mixed_bfloat16"), layers.ReLU())
    data = cut(*features())
    return Case(train(stack((16,), *parts, layers.Dense(4)), data), data)


@healthy()
def decay_without_gamma_and_beta(seed: int) -> Case:
    data, model = cut(*features()), mlp(16, 32, 4)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.05)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"])
    optimizer.build(model.trainable_variables)
    return Case(train(model, data, optimizer=optimizer), data, "", optimizer)


@healthy()
def a_dataset_that_shuffles(seed: int) -> Case:
    import tensorflow as tf

    x, y = images()
    model = train(convnet((12, 12, 3), classes=4), cut(x, y))
    return Case(model, tf.data.Dataset.from_tensor_slices((x, y)).shuffle(192, seed=seed).batch(32))


@healthy()
def batches_of_unequal_size(seed: int) -> Case:
    x, y = digits(240)
    ends = np.cumsum([48, 16, 40, 64, 24, 48])
    data = list(zip(np.split(x, ends[:-1]), np.split(y, ends[:-1]), strict=True))
    return Case(train(convnet(), data), data)


@healthy()
def two_batches(seed: int) -> Case:
    data = cut(*digits())
    return Case(train(convnet(), data), data[:2])


@healthy()
def one_batch(seed: int) -> Case:
    data = cut(*waves())
    return Case(train(conv1d(), data), data[:1])


class Model(keras.Model):
    """Subclassed, and its statistics are nested deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.body = keras.Sequential([layers.Dense(24, use_bias=False), bn(1), layers.ReLU()])
        self.norm, self.head = BN(momentum=0.9), layers.Dense(4)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.body(x, training=training)
        return {"logits": self.head(self.norm(x, training=training)), "features": x}


@healthy()
def subclassed(seed: int) -> Case:
    data, model = cut(*features()), Model()
    return Case(settle(model, [x for x, _ in data]), data)


@healthy()
def recalibrated_from_pytorch(seed: int) -> Case:
    """PyTorch's epsilon and momentum."""
    data = cut(*digits())
    return Case(train(convnet(epsilon=1e-5, momentum=0.9), data), data)


def _application(name: str, seed: int, **settings: Any) -> Case:
    """Random weights, gamma and beta as a checkpoint would bring them, and the statistics of the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a size that no weights are published for
        model = getattr(keras.applications, name)(weights=None, classes=4, input_shape=(32, 32, 3), **settings)
    rng = np.random.default_rng(seed)
    for norm in norms(model):
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(0.2 * rng.standard_normal(norm.beta.shape))
    x, y = images(96, 32)
    data = cut(2 * x - 1, y)
    return Case(settle(model, [x for x, _ in data]), data)


@healthy()
def mobilenet(seed: int) -> Case:
    return _application("MobileNet", seed, alpha=0.25)


@healthy()
def mobilenet_v2(seed: int) -> Case:
    return _application("MobileNetV2", seed, alpha=0.35)
