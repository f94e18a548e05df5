"""What the tests of the conversion share: twins of one network in every library, with random state."""

from __future__ import annotations

import warnings
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest

with warnings.catch_warnings(), suppress(ImportError):  # then each module skips itself
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    import tensorflow  # noqa: F401
    import torch


def randomise(model, seed: int):
    """No gamma of one, no bias of zero, no fresh statistics: these would hide a mistake."""
    rng = np.random.default_rng(seed)
    named = {"running_var": (0.5, 2.0), "moving_variance": (0.5, 2.0), "gamma": (0.5, 1.5), "scale": (0.5, 1.5)}

    def draw(name, shape):
        if name in named or (name == "weight" and len(shape) == 1):
            return rng.uniform(*named.get(name, (0.5, 1.5)), shape)
        scale = 0.1 if len(shape) < 2 else (2 * shape[0] / np.prod(shape)) ** 0.5
        return scale * rng.standard_normal(shape)

    if isinstance(model, torch.nn.Module):
        for name, array in model.state_dict().items():
            if array.is_floating_point():
                array.copy_(torch.tensor(draw(name.rpartition(".")[2], tuple(array.shape))))
        return model
    for weight in model.weights:
        shape = tuple(weight.shape)
        if "depthwise" in weight.path and len(shape) > 1:  # its last axis but one are groups, not inputs
            weight.assign(rng.standard_normal(shape) * (2 / np.prod(shape[:-2])) ** 0.5)
            continue
        flipped = (shape[-1], *shape[:-1]) if len(shape) > 1 else shape  # the number of outputs first
        weight.assign(np.moveaxis(draw(weight.name, flipped), 0, -1))
    return model


def keras_state(model) -> list:
    """Everything that a transfer may change, bit by bit."""
    numbers = [
        (layer.epsilon, getattr(layer, "momentum", None))
        for layer in model._flatten_layers()
        if hasattr(layer, "epsilon")
    ]
    return [weight.numpy().tobytes() for weight in model.weights] + numbers


def torch_state(model) -> list:
    numbers = [
        (module.eps, getattr(module, "momentum", None), module.training)
        for module in model.modules()
        if hasattr(module, "eps")
    ]
    return [array.numpy().tobytes() for array in model.state_dict().values()] + numbers


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    return SimpleNamespace(randomise=randomise, keras_state=keras_state, torch_state=torch_state)
