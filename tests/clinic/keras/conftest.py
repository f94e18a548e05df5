"""A portrait of a model and of the random states: what must be the same, bit by bit, after the clinic has looked."""

from __future__ import annotations

import random

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")


def _bytes(variable):
    value = variable.numpy()
    return variable.path, str(value.dtype), value.shape, value.tobytes()


def _layer(layer):
    plain = (bool, float, int, str, type(None))
    attributes = {name: value for name, value in vars(layer).items() if isinstance(value, plain)}
    return {
        "class": type(layer),
        "names": sorted(vars(layer)),
        "attributes": attributes,
        "trainable": layer.trainable,
        "losses": list(map(id, layer._losses)),
        "variables": [(id(v), v.trainable, _bytes(v)) for v in layer.variables],
        "nodes": len(layer._inbound_nodes),
    }


def take(model):
    """All there is to compare."""
    from keras.src.backend.common import global_state
    from tensorflow.python.eager import context

    generator = global_state.get_global_attribute("global_seed_generator")
    rng = getattr(context.context(), "_rng", None)
    optimizer = getattr(model, "optimizer", None)
    return {
        "layers": [_layer(layer) for layer in model._flatten_layers()],
        "optimizer": None if optimizer is None else [(id(v), _bytes(v)) for v in optimizer.variables],
        "steps": [getattr(model, f"{step}_function", None) for step in ("train", "test", "predict")],
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
        "keras": None if generator is None else (id(generator), _bytes(generator.state)),
        "tensorflow": None if rng is None else rng.getstate(),
        "eager": tf.config.functions_run_eagerly(),
    }


@pytest.fixture(scope="session")
def portrait():
    """A function that takes a model to all there is to compare."""
    return take


def scramble(model, seed=0):
    """Random gamma, beta and statistics, for all that have them; and random biases."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for weight in layer.weights:
            if weight.name in ("gamma", "moving_variance"):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif weight.name in ("beta", "moving_mean", "bias"):
                weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


@pytest.fixture(name="scramble", scope="session")
def _scramble():
    return scramble
