"""What every layer does with the arguments that most of them have: ``eps``, ``dtype``, and sizes down to one."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.layers import Conv2d, Linear

C, L = 4, 5
SHAPES = {"InstanceNorm1d": (3, C, L), "BatchNorm2d": (3, C, L, 2), "BatchNorm3d": (3, C, L, 2, 2)}
SHAPES |= {"InstanceNorm2d": (3, C, L, 2), "InstanceNorm3d": (3, C, L, 2, 2), "Conv2d": (3, C, 4, 3)}
SHAPES |= dict.fromkeys(("LSTM", "LayerNormLSTM", "BatchNormLSTM", "BatchNormRNN"), (3, L, C))


def make(name, channels=C, **options):
    """A small layer for x of ``SHAPES``, by default (3, C)."""
    rng = np.random.default_rng(5)
    cls = getattr(layers, name)
    dtype = {"dtype": options.pop("dtype")} if "dtype" in options else {}
    if name in {"WeightNorm", "WeightStandardization", "SpectralNorm"}:
        return cls(Linear(channels, 3, rng=rng, **dtype), **options, **({"rng": rng} if "Spectral" in name else {}))
    options |= dtype
    if name in {"LSTM", "LayerNormLSTM", "Linear"}:
        return cls(channels, 3, rng=rng, **options)
    if name in {"BatchNormLSTM", "BatchNormRNN"}:
        return cls(channels, 3, max_length=L, rng=rng, **options)
    if name == "Conv2d":
        return Conv2d(channels, 3, 2, rng=rng, **options)
    if name.startswith("InstanceNorm"):
        options = {"affine": True, "track_running_stats": True, **options}
    if name == "BatchLayerNorm":
        return cls(channels, 3, **options)
    if name in {"GroupNorm", "EvoNormS0"}:
        return cls(1, channels, **options)
    if name == "GhostBatchNorm":
        return cls(channels, 3, **options)
    if name == "ExampleWeighing":
        return cls(channels, 0.3, **options)
    return cls(**options) if name == "UnitNorm" else cls(channels, **options)


NAMES = [
    name for name in layers.__all__ if inspect.signature(getattr(layers, name)).parameters and name != "Sequential"
]


def having(*arguments):
    taken = {name: inspect.signature(getattr(layers, name)).parameters for name in NAMES}
    return pytest.mark.parametrize("name", [name for name in NAMES if any(a in taken[name] for a in arguments)])


def x_of(name, channels=C, dtype=np.float64):
    shape = SHAPES.get(name, (3, C))
    axis = -1 if shape == (3, L, C) else 1
    shape = tuple(channels if i == axis % len(shape) else size for i, size in enumerate(shape))
    return (0.5 + np.random.default_rng(6).standard_normal(shape)).astype(dtype)


@having("eps")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_eps_reaches_the_formula(name, training):
    """In both modes: with a large one, the output is another. Of what whitens, only a batch's matrix knows eps."""
    x = x_of(name)
    kept = name in {"DecorrelatedBatchNorm", "IterNorm"} and not training
    small, large = (make(name, eps=eps).train(training)(x) for eps in (1e-6, 5.0))
    assert (np.abs(small - large).max() > 1e-3) != kept


@having("dtype")
@pytest.mark.parametrize("dtype", [None, np.float32, np.float64], ids=str)
def test_dtype_is_that_of_the_state_and_float32_without(name, dtype):
    layer = make(name, **({} if dtype is None else {"dtype": dtype}))
    state = layer.state_dict()
    assert state
    for key, array in state.items():
        assert array.dtype == (np.int64 if "num_batches" in key else dtype or np.float32), key


@having("affine", "elementwise_affine")
def test_gamma_starts_from_ones_and_beta_from_zeros(name):
    start = {"weight": 1, "bias": 0} if name != "RMSNorm" else {"weight": 1}
    found = make(name).parameters()
    for key, value in start.items():
        np.testing.assert_array_equal(found[key], value)
    argument = "affine" if "affine" in inspect.signature(getattr(layers, name)).parameters else "elementwise_affine"
    assert not start.keys() & make(name, **{argument: False}).parameters().keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_float32_stays_float32(name, training):
    layer, x = make(name), x_of(name, dtype=np.float32)
    y = layer.train(training)(x)
    found = {"y": y, "dx": layer.backward(np.ones_like(y)), **layer.grads}
    assert {key: array.dtype for key, array in found.items()} == dict.fromkeys(found, np.dtype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_one_channel_is_enough(name):
    layer, x = make(name, channels=1), x_of(name, channels=1)
    if name in {"GroupNorm", "InstanceNorm1d"}:
        x = np.concatenate([x, 2 * x])
    y = layer(x)
    assert np.isfinite(y).all()
    assert layer.backward(np.ones_like(y)).shape == x.shape
