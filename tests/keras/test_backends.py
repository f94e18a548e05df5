"""Every layer of bnlearn.keras on Keras's other two backends: outputs and weights as on TensorFlow.

A backend is chosen when Keras is imported, so each of the others has a process of its own, in which this file runs as a
script: ``KERAS_BACKEND=jax python test_backends.py results.npz``.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    if __name__ != "__main__":
        pytest.importorskip("tensorflow")

import bnlearn.keras as ours

IMAGES, SEQUENCES, FEATURES = (4, 5, 6, 8), (4, 7, 8), (6, 8)


def exercise(layer: Any, rng: np.random.Generator, *shapes: tuple[int, ...]) -> Iterator[Any]:
    """Outputs and weights of a layer with random weights, after training and inference calls, and a step of SGD.

    The layer takes one input per shape; two or more are passed as a list. What is yielded is compared.
    """
    arrays = [2 + rng.standard_normal(shape).astype("float32") for shape in shapes]
    inputs = arrays[0] if len(arrays) == 1 else arrays
    layer(inputs)
    layer.set_weights([rng.uniform(0.5, 2, w.shape).astype(w.dtype) for w in layer.weights])
    takes_training = "training" in inspect.signature(layer.call).parameters
    for options in [{"training": True}, {"training": False}] if takes_training else [{}]:
        y = keras.ops.convert_to_numpy(layer(inputs, **options))
        yield y
        yield from layer.get_weights()

    symbolic = [keras.Input(batch_shape=(None, *shape[1:])) for shape in shapes]
    model = keras.Model(symbolic, layer(symbolic[0] if len(symbolic) == 1 else symbolic))
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    if layer.trainable_weights:  # the gradient, through the backend's own differentiation
        model.train_on_batch(inputs, rng.standard_normal(y.shape).astype("float32"))
        yield from layer.get_weights()
    else:
        yield model.predict_on_batch(inputs)


def adapted(rng: np.random.Generator) -> Iterator[Any]:
    """The weights of a model adapted to other data, with a layer of Keras's and one of ours."""
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.BatchNormalization(), keras.layers.Dense(3), ours.FullNormalization()]
    )
    model.set_weights([rng.uniform(0.5, 2, w.shape).astype(w.dtype) for w in model.weights])
    batches = [rng.standard_normal((size, 8)).astype("float32") for size in (6, 3)]
    yield from ours.adapt_batch_normalization(model, batches, prior=2).get_weights()


# What to run for each exported name: a function that yields arrays.
CASES: dict[str, Callable[[np.random.Generator], Iterator[Any]]] = {
    "BatchNormLSTM": lambda rng: exercise(ours.BatchNormLSTM(3, max_length=4), rng, (4, 3, 8)),
    "BatchNormSimpleRNN": lambda rng: exercise(
        ours.BatchNormSimpleRNN(3, per_step=False, return_sequences=True), rng, (4, 3, 8)
    ),
    "LayerNormLSTMCell": lambda rng: exercise(keras.layers.RNN(ours.LayerNormLSTMCell(3)), rng, (4, 3, 8)),
    "DecorrelatedBatchNormalization": lambda rng: exercise(ours.DecorrelatedBatchNormalization(groups=2), rng, IMAGES),
    "AdaptiveInstanceNormalization": lambda rng: exercise(ours.AdaptiveInstanceNormalization(), rng, IMAGES, SEQUENCES),
    "DynamicTanh": lambda rng: exercise(ours.DynamicTanh(), rng, SEQUENCES),
    "EvoNormS0": lambda rng: exercise(ours.EvoNormS0(2), rng, IMAGES),
    "FilterResponseNormalization": lambda rng: exercise(
        ours.FilterResponseNormalization(learn_epsilon=True), rng, IMAGES
    ),
    "InstanceNormalization": lambda rng: exercise(ours.InstanceNormalization(), rng, IMAGES),
    "ThresholdedLinearUnit": lambda rng: exercise(ours.ThresholdedLinearUnit(), rng, IMAGES),
    "IterativeNormalization": lambda rng: exercise(ours.IterativeNormalization(groups=2, iterations=4), rng, IMAGES),
    "WeightNormalization": lambda rng: exercise(ours.WeightNormalization(keras.layers.Conv2D(3, 2)), rng, IMAGES),
    "WeightStandardization": lambda rng: exercise(
        ours.WeightStandardization(keras.layers.Dense(4), scaled=True, gain=True), rng, FEATURES
    ),
    "BatchLayerNormalization": lambda rng: exercise(ours.BatchLayerNormalization(batch_size=4), rng, IMAGES),
    "ExampleWeighing": lambda rng: exercise(ours.ExampleWeighing(example_weight=0.3), rng, IMAGES),
    "FullNormalization": lambda rng: exercise(ours.FullNormalization(axis=1), rng, SEQUENCES),
    "GhostBatchNormalization": lambda rng: exercise(ours.GhostBatchNormalization(ghost_size=4), rng, FEATURES),
    "adapt_batch_normalization": adapted,
}


def results(name: str) -> list[np.ndarray]:
    """What a case yields on the backend of this process."""
    keras.utils.set_random_seed(0)
    return [np.asarray(array) for array in CASES[name](np.random.default_rng(7))]


def test_every_exported_layer_has_a_case():
    assert sorted(CASES) == sorted(ours.__all__)


@pytest.fixture(scope="module")
def on_tensorflow():
    assert keras.backend.backend() == "tensorflow"
    return {name: results(name) for name in CASES}


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_as_on_tensorflow(backend, on_tensorflow, tmp_path):
    pytest.importorskip(backend)
    path = tmp_path / "results.npz"
    command = [sys.executable, str(Path(__file__)), str(path)]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    failed = []
    with np.load(path) as there:
        for name, arrays in on_tensorflow.items():
            if f"{name} failed" in there:
                failed.append(f"{name}: {there[f'{name} failed']}")
                continue
            assert f"{name} {len(arrays)}" not in there, f"{name} yields more on {backend}"
            for i, array in enumerate(arrays):
                try:
                    np.testing.assert_allclose(there[f"{name} {i}"], array, rtol=1e-5, atol=1e-5)
                except AssertionError as error:
                    failed.append(f"{name}, array {i}: {error}")
    assert not failed, "\n".join(failed)


if __name__ == "__main__":
    collected: dict[str, Any] = {}
    for case in CASES:
        try:
            collected.update({f"{case} {i}": array for i, array in enumerate(results(case))})
        except Exception:
            collected[f"{case} failed"] = traceback.format_exc()
    np.savez(sys.argv[1], **collected)
