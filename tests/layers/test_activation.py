"""FRN, TLU, EvoNorm-S0 and Dynamic Tanh as layers: the formulas' outputs and gradients, state, errors."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from bnlearn.functional import dynamic_tanh, evonorm_s0, filter_response_norm, thresholded_linear_unit
from bnlearn.gradcheck import check_layer
from bnlearn.layers import DynamicTanh, EvoNormS0, FilterResponseNorm, Linear, Sequential, ThresholdedLinearUnit

CASES = {
    "frn": (lambda **o: FilterResponseNorm(4, **o), ["weight", "bias"]),
    "frn, eps learned": (lambda **o: FilterResponseNorm(4, 1e-2, learn_eps=True, **o), ["weight", "bias", "eps"]),
    "frn, plain": (lambda **o: FilterResponseNorm(4, affine=False, **o), []),
    "tlu": (lambda **o: ThresholdedLinearUnit(4, **o), ["tau"]),
    "evonorm": (lambda **o: EvoNormS0(2, 4, **o), ["weight", "bias", "v"]),
    "evonorm, plain": (lambda **o: EvoNormS0(2, 4, affine=False, **o), ["v"]),
    "dyt": (lambda **o: DynamicTanh(3, **o), ["alpha", "weight", "bias"]),
    "dyt, two axes": (lambda **o: DynamicTanh((4, 3), alpha_init_value=0.8, **o), ["alpha", "weight", "bias"]),
    "dyt, channels": (lambda **o: DynamicTanh(4, channels_last=False, **o), ["alpha", "weight", "bias"]),
    "dyt, plain": (lambda **o: DynamicTanh([4, 3], elementwise_affine=False, **o), ["alpha"]),
}
EVERY = pytest.mark.parametrize("case", CASES)


def made(case, rng, dtype=np.float64):
    layer = CASES[case][0](dtype=dtype)
    for name, array in layer.parameters().items():
        array[...] = rng.uniform(0.5, 2.0, array.shape) * rng.choice([-1, 1], array.shape)
        if name == "tau":
            array[...] = rng.uniform(-0.5, 0.5, array.shape)
    return layer


def formula(layer, x):
    """What the layer should give."""
    if isinstance(layer, FilterResponseNorm):
        return filter_response_norm(x, layer.weight, layer.bias, eps=layer.eps)[0]
    if isinstance(layer, ThresholdedLinearUnit):
        return thresholded_linear_unit(x, layer.tau)[0]
    if isinstance(layer, EvoNormS0):
        return evonorm_s0(x, layer.weight, layer.bias, layer.v, groups=2)[0]
    axes = range(x.ndim - len(layer.normalized_shape), x.ndim) if layer.channels_last else (1,)
    return dynamic_tanh(x, layer.alpha, layer.weight, layer.bias, axes=axes)[0]


@EVERY
def test_outputs_gradients_and_names(case, rng):
    layer, x = made(case, rng), 0.3 + rng.standard_normal((2, 4, 3))
    np.testing.assert_allclose(layer(x), formula(layer, x), rtol=1e-13)
    assert list(layer.parameters()) == CASES[case][1]
    assert layer.buffers() == {}
    errors = check_layer(layer, x, rng)
    assert list(errors) == ["x", *CASES[case][1]]
    assert max(errors.values()) < 1e-6


@EVERY
def test_state_copies_and_dtypes(case, rng):
    layer, x = made(case, rng, np.float32), rng.standard_normal((2, 4, 3)).astype(np.float32)
    other = CASES[case][0](dtype=np.float64)
    other.load_state_dict(layer.state_dict())
    y = layer(x)
    np.testing.assert_allclose(other(x), y, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(copy.deepcopy(layer)(x), y)
    dx = layer.backward(y)
    assert {y.dtype, dx.dtype, *(g.dtype for g in layer.grads.values())} == {np.dtype("float32")}
    assert {n: g.shape for n, g in layer.grads.items()} == {n: a.shape for n, a in layer.parameters().items()}


def test_starting_values_are_the_papers(rng):
    x = rng.standard_normal((3, 4, 5))
    np.testing.assert_array_equal(ThresholdedLinearUnit(4)(x), np.maximum(x, 0))
    np.testing.assert_array_equal(FilterResponseNorm(4)(x), filter_response_norm(x, eps=1e-6)[0])
    np.testing.assert_array_equal(FilterResponseNorm(4, 1e-4, learn_eps=True).eps, np.float32(1e-4))
    np.testing.assert_array_equal(EvoNormS0(2, 4)(x), evonorm_s0(x, groups=2, eps=1e-5)[0])
    np.testing.assert_array_equal(DynamicTanh(5)(x), np.tanh(0.5 * x))


def test_a_vector_alone_and_sequences(rng):
    layer = made("dyt", rng)
    x = rng.standard_normal(3)
    np.testing.assert_array_equal(layer(x), layer(x[None])[0])
    assert layer.backward(x[None]).shape == (1, 3)
    model = Sequential(Linear(5, 4, rng=rng), FilterResponseNorm(4, learn_eps=True), ThresholdedLinearUnit(4))
    assert list(model.state_dict())[2:] == ["1.weight", "1.bias", "1.eps", "2.tau"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("frn", "FilterResponseNorm(4, eps=1e-06, affine=True, learn_eps=False)"),
        ("frn, eps learned", "FilterResponseNorm(4, affine=True, learn_eps=True)"),
        ("tlu", "ThresholdedLinearUnit(4)"),
        ("evonorm, plain", "EvoNormS0(2, 4, eps=1e-05, affine=False)"),
        (
            "dyt, two axes",
            "DynamicTanh((4, 3), channels_last=True, alpha_init_value=0.8, elementwise_affine=True)",
        ),
    ],
)
def test_repr(case, expected):
    assert repr(CASES[case][0]()) == expected


class TestErrors:
    @pytest.mark.parametrize("case", ["frn", "tlu", "evonorm", "dyt, channels"])
    def test_channels(self, case):
        with pytest.raises(RuntimeError, match=r"expected 4 channels on axis 1, got 3 in input size \[2, 3\]"):
            CASES[case][0]()(np.zeros((2, 3)))
        with pytest.raises(RuntimeError, match="Expected at least 2 dimensions for input tensor but received 1"):
            CASES[case][0]()(np.zeros(4))

    @EVERY
    def test_floats_and_order(self, case):
        with pytest.raises(TypeError, match="expected floating-point numbers, got int64"):
            CASES[case][0]()(np.zeros((2, 4, 3), np.int64))
        layer = CASES[case][0]()
        with pytest.raises(RuntimeError, match=f"forward pass before {type(layer).__name__}"):
            layer.backward(np.zeros((2, 4, 3)))
        layer(np.ones((2, 4, 3)))
        with pytest.raises(ValueError, match=r"expected dy of the shape of x, .*, got \((5, 4|20), 3\)"):
            layer.backward(np.ones((5, 4, 3)))

    def test_arguments(self):
        with pytest.raises(ValueError, match=re.escape("num_channels (4) must be divisible by num_groups (3)")):
            EvoNormS0(3, 4)
        with pytest.raises(ValueError, match=r"one number of channels with channels_last=False, .*shape=\(4, 3\)"):
            DynamicTanh((4, 3), channels_last=False)
        with pytest.raises(RuntimeError, match=r"Given normalized_shape=\[3\], .* size \[2, 4\]"):
            DynamicTanh(3)(np.zeros((2, 4)))
