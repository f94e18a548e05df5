"""TLU, EvoNorm-S0, Dynamic Tanh: the oracles, identities, precision, errors."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    dynamic_tanh,
    dynamic_tanh_backward,
    evonorm_s0,
    evonorm_s0_backward,
    group_norm,
    thresholded_linear_unit,
    thresholded_linear_unit_backward,
)

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")

jax.config.update("jax_enable_x64", True)


def made(rng, shape, parameters=None):
    parameters = shape[1:2] if parameters is None else parameters
    return {
        "x": 0.3 + rng.standard_normal(shape),
        "gamma": rng.uniform(0.5, 2.0, parameters) * rng.choice([-1, 1], parameters),
        "beta": rng.standard_normal(parameters),
    }


class TestThresholdedLinearUnit:
    @pytest.mark.parametrize("shape", [(5, 3), (3, 3, 2, 2)])
    def test_everywhere_the_same(self, hold_against_oracle, rng, shape):
        arrays = {"x": rng.standard_normal(shape), "tau": np.array([-0.5, 0.1, 0.7])}
        dy = rng.standard_normal(shape)
        hold_against_oracle(thresholded_linear_unit, thresholded_linear_unit_backward, arrays, dy)

    def test_at_zero_it_is_relu_and_elsewhere_a_shifted_one(self, rng):
        x, tau = rng.standard_normal((4, 3, 5)), rng.standard_normal(3)
        np.testing.assert_array_equal(thresholded_linear_unit(x, np.zeros(3))[0], np.maximum(x, 0))
        shift = tau.reshape(3, 1)
        np.testing.assert_allclose(
            thresholded_linear_unit(x, tau)[0], np.maximum(x - shift, 0) + shift, rtol=1e-12, atol=1e-15
        )

    def test_a_tie_goes_to_the_threshold_and_the_gradient_is_shared_out_whole(self, rng):
        _, cache = thresholded_linear_unit(np.array([[1.0], [2.0], [3.0]]), np.array([2.0]))
        dx, dtau = thresholded_linear_unit_backward(np.array([[10.0], [20.0], [30.0]]), cache)
        np.testing.assert_array_equal(dx, [[0], [0], [30]])
        np.testing.assert_array_equal(dtau, [30])

    def test_nan_passes_and_dtypes_stay(self):
        x = np.array([[np.nan], [1.0]], np.float16)
        y, cache = thresholded_linear_unit(x, np.array([2.0], np.float32))
        np.testing.assert_array_equal(y, [[np.nan], [2]])
        dx, dtau = thresholded_linear_unit_backward(x, cache)
        assert (y.dtype, dx.dtype, dtau.dtype) == (np.float16, np.float16, np.float32)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"expected tau of shape \(3,\).*got shape \(\)"):
            thresholded_linear_unit(np.ones((2, 3)), np.array(1.0))
        with pytest.raises(TypeError, match="floating-point dtype, got int64"):
            thresholded_linear_unit(np.ones((2, 3), np.int64), np.ones(3))
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 3\), got \(3,\)"):
            thresholded_linear_unit_backward(np.ones(3), thresholded_linear_unit(np.ones((2, 3)), np.ones(3))[1])


class TestEvoNorm:
    @pytest.mark.parametrize("shape", [(3, 6), (2, 6, 3, 2)])
    @pytest.mark.parametrize("groups", [1, 3])
    def test_everywhere_the_same(self, hold_against_oracle, rng, shape, groups):
        arrays = {**made(rng, shape), "v": rng.uniform(0.5, 2, 6) * rng.choice([-1, 1], 6)}
        hold_against_oracle(
            lambda **a: evonorm_s0(**a, groups=groups, eps=1e-2),
            evonorm_s0_backward,
            arrays,
            rng.standard_normal(shape),
        )

    def test_the_papers_formula(self, rng):
        arrays = {**made(rng, (3, 6, 5)), "v": rng.standard_normal(6)}
        x, gamma, beta, v = (a if a.ndim == 3 else a.reshape(6, 1) for a in arrays.values())
        var = x.reshape(3, 2, 15).var(axis=2).repeat(3, axis=1)[..., None]
        expected = x / (1 + np.exp(-v * x)) / np.sqrt(var + 1e-5) * gamma + beta
        np.testing.assert_allclose(evonorm_s0(**arrays, groups=2)[0], expected, rtol=1e-11, atol=1e-12)

    def test_with_an_open_gate_and_no_mean_it_is_group_norm(self, rng):
        """v = 0 halves: the gate stands at one half everywhere. The mean stays in the numerator."""
        x = rng.standard_normal((3, 6, 5))
        x = x - x.reshape(3, 2, 15).mean(axis=2).repeat(3, axis=1)[..., None]
        ours, _ = evonorm_s0(x, v=np.zeros(6), groups=2)
        np.testing.assert_allclose(2 * ours, group_norm(x, groups=2)[0], rtol=1e-11, atol=1e-12)

    def test_defaults_are_ones_zeros_and_ones(self, rng):
        x, dy = rng.standard_normal((3, 6, 5)), rng.standard_normal((3, 6, 5))
        bare, full = evonorm_s0(x, groups=2), evonorm_s0(x, np.ones(6), np.zeros(6), np.ones(6), groups=2)
        np.testing.assert_array_equal(bare[0], full[0])
        for left, right in zip(evonorm_s0_backward(dy, bare[1]), evonorm_s0_backward(dy, full[1]), strict=True):
            np.testing.assert_array_equal(left, right)
        one = x[:, :1]  # groups=32 by default
        np.testing.assert_array_equal(evonorm_s0(one.repeat(32, 1))[0], evonorm_s0(one, groups=1)[0].repeat(32, 1))

    def test_the_gate_does_not_overflow(self):
        y, cache = evonorm_s0(np.array([[-1e4, 1e4]]), groups=1, eps=0.0)
        np.testing.assert_allclose(y, [[0, 1]], atol=1e-12)
        assert np.isfinite(np.concatenate([a.ravel() for a in evonorm_s0_backward(y, cache)])).all()

    def test_each_sample_is_alone(self, rng):
        x = rng.standard_normal((3, 6, 5))
        np.testing.assert_array_equal(evonorm_s0(x, groups=2)[0][1:2], evonorm_s0(x[1:2], groups=2)[0])

    def test_float32_at_mean_1e3_std_01(self, rng):
        x = (1e3 + 0.1 * rng.standard_normal((4, 6, 40))).astype(np.float32)
        y, cache = evonorm_s0(x, groups=2)
        exact, exact_cache = evonorm_s0(x.astype(np.float64), groups=2)
        np.testing.assert_allclose(y, exact, rtol=1e-5)
        dy = rng.standard_normal(x.shape).astype(np.float32)
        dx, dx_exact = evonorm_s0_backward(dy, cache)[0], evonorm_s0_backward(dy.astype(np.float64), exact_cache)[0]
        np.testing.assert_allclose(dx, dx_exact, atol=1e-4 * np.abs(dx_exact).max())

    def test_half_precision_and_empty(self):
        y, cache = evonorm_s0(np.array([[300, -300], [3, 1]], np.float16), groups=1)
        assert (y.dtype, cache.x.dtype) == (np.float16, np.float32)
        np.testing.assert_allclose(y[0], [1, 0], atol=1e-3)
        assert evonorm_s0_backward(y, cache)[0].dtype == np.float16
        for shape in [(0, 4, 5), (2, 4, 0)]:
            y, cache = evonorm_s0(np.empty(shape), groups=2)
            dx, *vectors = evonorm_s0_backward(np.empty(shape), cache)
            assert y.shape == dx.shape == shape
            np.testing.assert_array_equal(vectors, 0)

    def test_under_jit_and_in_tf_function(self, rng):
        x, dy = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 3))
        expected = evonorm_s0_backward(dy, evonorm_s0(x, groups=2)[1])
        _, cache = jax.jit(lambda x: evonorm_s0(x, groups=2))(jax.numpy.asarray(x))
        there = jax.jit(evonorm_s0_backward)(jax.numpy.asarray(dy), cache)
        traced = tf.function(
            lambda x, dy: evonorm_s0_backward(dy, evonorm_s0(x, groups=2)[1]),
            input_signature=[tf.TensorSpec((None, 4, None), tf.float64)] * 2,
        )
        for found in (there, traced(x, dy)):
            for theirs, ours in zip(found, expected, strict=True):
                np.testing.assert_allclose(theirs, ours, rtol=1e-10, atol=1e-10)

    def test_errors(self):
        x = np.ones((2, 4, 3))
        with pytest.raises(ValueError, match=r"divide the 4 channels of x with shape \(2, 4, 3\), got groups=32"):
            evonorm_s0(x)
        with pytest.raises(ValueError, match="got groups=0"):
            evonorm_s0(x, groups=0)
        for name in ("gamma", "beta", "v"):
            with pytest.raises(ValueError, match=rf"expected {name} of shape \(4,\).*got shape \(5,\)"):
                evonorm_s0(x, **{name: np.ones(5)}, groups=2)
        with pytest.raises(ValueError, match=r"expected eps >= 0, got -0\.1"):
            evonorm_s0(x, groups=2, eps=-0.1)
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 4, 3\), got \(2, 4\)"):
            evonorm_s0_backward(np.ones((2, 4)), evonorm_s0(x, groups=2)[1])


class TestDynamicTanh:
    @pytest.mark.parametrize("alpha", [np.array(0.7), np.array([-0.4])], ids=["()", "(1,)"])
    @pytest.mark.parametrize("axes", [(1,), (-1,), (1, 2)])
    def test_everywhere_the_same(self, hold_against_oracle, rng, alpha, axes):
        shape = (3, 4, 2)
        a = made(rng, shape, [shape[axis] for axis in axes])
        arrays = {"x": a["x"], "alpha": alpha, "gamma": a["gamma"], "beta": a["beta"]}
        hold_against_oracle(
            lambda **a: dynamic_tanh(**a, axes=axes), dynamic_tanh_backward, arrays, rng.standard_normal(shape)
        )

    def test_the_papers_formula(self, rng):
        a = made(rng, (5, 3, 2))
        y, _ = dynamic_tanh(a["x"], 0.7, a["gamma"], a["beta"])
        np.testing.assert_allclose(
            y, np.tanh(0.7 * a["x"]) * a["gamma"].reshape(3, 1) + a["beta"].reshape(3, 1), rtol=1e-13
        )

    def test_a_number_for_alpha(self, rng):
        a = made(rng, (5, 3))
        dy = rng.standard_normal((5, 3))
        number, array = dynamic_tanh(**a, alpha=np.float64(0.3)), dynamic_tanh(**a, alpha=np.array([0.3]))
        np.testing.assert_array_equal(number[0], array[0])
        ours, theirs = dynamic_tanh_backward(dy, number[1]), dynamic_tanh_backward(dy, array[1])
        assert (ours[1].shape, theirs[1].shape) == ((), (1,))
        for left, right in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(left, np.reshape(right, left.shape))
        np.testing.assert_array_equal(dynamic_tanh(a["x"])[0], np.tanh(0.5 * a["x"]))
        np.testing.assert_array_equal(dynamic_tanh(a["x"], 2)[0], np.tanh(2 * a["x"]))

    def test_without_gamma_and_beta_they_are_ones_and_zeros(self, rng):
        x, dy = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
        bare, full = dynamic_tanh(x), dynamic_tanh(x, 0.5, np.ones(3), np.zeros(3))
        for left, right in zip(dynamic_tanh_backward(dy, bare[1]), dynamic_tanh_backward(dy, full[1]), strict=True):
            np.testing.assert_array_equal(left, right)

    def test_it_holds_large_values_and_passes_small_ones(self):
        y, cache = dynamic_tanh(np.array([[1e9, -1e9, 1e-6]]), 0.5)
        np.testing.assert_allclose(y, [[1, -1, 0.5e-6]], rtol=1e-9)
        np.testing.assert_allclose(dynamic_tanh_backward(np.ones((1, 3)), cache)[0], [[0, 0, 0.5]], atol=1e-9)

    def test_dtypes(self, rng):
        x = rng.standard_normal((4, 3)).astype(np.float16)
        y, cache = dynamic_tanh(x, np.array(0.5), np.ones(3), np.zeros(3))
        dx, *rest = dynamic_tanh_backward(x, cache)
        assert y.dtype == dx.dtype == np.float16
        assert {a.dtype for a in (cache.x, cache.bent, *rest)} == {np.dtype("float32")}

    def test_in_tf_function_with_sizes_not_known(self, rng):
        a, dy = made(rng, (5, 3)), rng.standard_normal((5, 3))

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float64)] * 2)
        def run(x, dy):
            y, cache = dynamic_tanh(x, tf.constant([0.3], tf.float64), tf.constant(a["gamma"]), tf.constant(a["beta"]))
            return y, *dynamic_tanh_backward(dy, cache)

        y, cache = dynamic_tanh(**a, alpha=np.array([0.3]))
        for there, here in zip(run(a["x"], dy), (y, *dynamic_tanh_backward(dy, cache)), strict=True):
            np.testing.assert_allclose(there, here, rtol=1e-10, atol=1e-10)

    def test_under_jit(self, rng):
        x, dy = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 3))
        _, cache = jax.jit(dynamic_tanh)(jax.numpy.asarray(x), jax.numpy.asarray(0.3))
        there = jax.jit(dynamic_tanh_backward)(jax.numpy.asarray(dy), cache)
        for theirs, ours in zip(there, dynamic_tanh_backward(dy, dynamic_tanh(x, np.array(0.3))[1]), strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-10, atol=1e-10)

    def test_errors(self):
        x = np.ones((2, 3, 4))
        with pytest.raises(ValueError, match=re.escape("alpha to be a number or to have one element, got shape (3,)")):
            dynamic_tanh(x, np.ones(3))
        for name in ("gamma", "beta"):
            with pytest.raises(ValueError, match=rf"expected {name} of shape \(4,\) for x with shape \(2, 3, 4\)"):
                dynamic_tanh(x, **{name: np.ones(3)}, axes=(-1,))
        with pytest.raises(ValueError, match=r"got axes=\(3,\)"):
            dynamic_tanh(x, axes=(3,))
        with pytest.raises(TypeError, match="floating-point dtype, got int64"):
            dynamic_tanh(x.astype(np.int64))
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 3, 4\), got \(2, 3\)"):
            dynamic_tanh_backward(np.ones((2, 3)), dynamic_tanh(x)[1])
