"""The formulas on NumPy: values, gradients, identities, precision, errors, and arrays of every shape and layout.

Agreement with PyTorch, JAX, Keras, TensorFlow and ONNX is in test_functional_agreement.py.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnlearn.functional import batch_norm, batch_norm_backward, batch_norm_backward_staged, update_running

SHAPES = [(4, 2), (64, 5), (8, 3, 7), (4, 3, 5, 6), (2, 3, 4, 3, 5)]


def axes_of(x):
    return (0, *range(2, x.ndim))


def column(vector, ndim):
    return np.asarray(vector).reshape(1, -1, *[1] * (ndim - 2))


def textbook(x, gamma, beta, eps=1e-5):
    """The four formulas in float64, written as in the paper: the oracle for values."""
    x = x.astype(np.float64)
    mean = x.mean(axis=axes_of(x), keepdims=True)
    var = ((x - mean) ** 2).mean(axis=axes_of(x), keepdims=True)
    x_hat = (x - mean) / np.sqrt(var + eps)
    return column(gamma, x.ndim) * x_hat + column(beta, x.ndim)


def made(rng, shape, dtype=np.float64, mean=0.0, std=1.0):
    """Data, scale and shift, and an upstream gradient, none of them at a special value."""
    channels = shape[1]
    x = (mean + std * rng.standard_normal(shape)).astype(dtype)
    gamma = rng.uniform(0.5, 2.0, channels).astype(dtype) * rng.choice([-1, 1], channels).astype(dtype)
    beta = rng.standard_normal(channels).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    return x, gamma, beta, dy


class TestForward:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_training_form_is_the_textbook_formula(self, rng, shape):
        x, gamma, beta, _ = made(rng, shape, mean=3.0, std=2.0)
        y, _ = batch_norm(x, gamma, beta)
        np.testing.assert_allclose(y, textbook(x, gamma, beta), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("eps", [1e-3, 1e-5, 0.5])
    def test_output_variance_is_var_over_var_plus_eps(self, rng, eps):
        x = rng.standard_normal((50, 3)) * np.array([1e-3, 1.0, 30.0])
        y, cache = batch_norm(x, eps=eps)
        np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-13)
        np.testing.assert_allclose(y.var(axis=0), cache.var / (cache.var + eps), rtol=1e-12)

    def test_gamma_and_beta_can_undo_it(self, rng):
        x, *_ = made(rng, (20, 4), mean=5.0, std=3.0)
        _, cache = batch_norm(x)
        y, _ = batch_norm(x, np.sqrt(cache.var + 1e-5), cache.mean)
        np.testing.assert_allclose(y, x, rtol=1e-12)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_cache_holds_the_batch_statistics_biased(self, rng, shape):
        x, gamma, beta, _ = made(rng, shape)
        _, cache = batch_norm(x, gamma, beta, eps=0.25)
        np.testing.assert_allclose(cache.mean, x.mean(axis=axes_of(x)), atol=1e-14)
        np.testing.assert_allclose(cache.var, x.var(axis=axes_of(x)), rtol=1e-13)
        np.testing.assert_allclose(cache.inv_std, 1 / np.sqrt(x.var(axis=axes_of(x)) + 0.25), rtol=1e-13)
        assert cache.gamma is gamma

    @pytest.mark.parametrize("shape", SHAPES)
    def test_inference_form_uses_the_given_statistics(self, rng, shape):
        x, gamma, beta, _ = made(rng, shape)
        mean, var = rng.standard_normal(shape[1]), rng.uniform(0.5, 2, shape[1])
        y, cache = batch_norm(x, gamma, beta, mean=mean, var=var, eps=1e-3)
        scale = gamma / np.sqrt(var + 1e-3)
        np.testing.assert_allclose(
            y, x * column(scale, x.ndim) + column(beta - mean * scale, x.ndim), rtol=1e-11, atol=1e-12
        )
        assert cache.mean is None
        assert cache.var is None

    def test_inference_form_treats_each_sample_alone(self, rng):
        x, gamma, beta, _ = made(rng, (6, 3, 4))
        mean, var = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
        whole, _ = batch_norm(x, gamma, beta, mean=mean, var=var)
        alone = [batch_norm(x[i : i + 1], gamma, beta, mean=mean, var=var)[0] for i in range(6)]
        np.testing.assert_array_equal(whole, np.concatenate(alone))

    def test_training_form_does_not(self, rng):
        x, *_ = made(rng, (6, 3))
        other_mates = np.concatenate([x[:1], 2 * x[1:] + 1])
        assert np.abs(batch_norm(x)[0][0] - batch_norm(other_mates)[0][0]).min() > 1e-3

    def test_one_value_per_channel_gives_beta(self, rng):
        y, cache = batch_norm(np.array([[3.0, -2.0]]), np.array([2.0, 3.0]), np.array([0.5, 0.25]))
        np.testing.assert_array_equal(y, [[0.5, 0.25]])
        dx, dgamma, dbeta = batch_norm_backward(np.array([[1.0, 2.0]]), cache)
        np.testing.assert_array_equal(dx, [[0.0, 0.0]])
        np.testing.assert_array_equal(dgamma, [0.0, 0.0])
        np.testing.assert_array_equal(dbeta, [1.0, 2.0])

    @pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
    def test_empty_batch_is_empty_and_silent(self, shape):
        y, cache = batch_norm(np.empty(shape), np.ones(3), np.zeros(3))
        assert y.shape == shape
        assert np.isnan(cache.mean).all()
        assert np.isnan(cache.var).all()
        dx, dgamma, dbeta = batch_norm_backward(np.empty(shape), cache)
        assert dx.shape == shape
        np.testing.assert_array_equal(dgamma, 0)
        np.testing.assert_array_equal(dbeta, 0)

    def test_constant_feature_gives_beta_exactly(self, rng):
        x = np.full((7, 2), 0.1, dtype=np.float32)
        y, cache = batch_norm(x, np.array([3, 4], np.float32), np.array([1, -2], np.float32))
        np.testing.assert_array_equal(y, np.tile(np.array([1, -2], np.float32), (7, 1)))
        np.testing.assert_array_equal(cache.var, 0)

    def test_half_precision_is_computed_in_float32(self, rng):
        x, gamma, beta, dy = made(rng, (40, 3), np.float32, mean=30.0, std=0.5)
        half, cache = batch_norm(x.astype(np.float16), gamma, beta)
        exact = textbook(x.astype(np.float16), gamma, beta)
        assert half.dtype == np.float16
        assert cache.x_hat.dtype == cache.mean.dtype == np.float32
        np.testing.assert_allclose(half, exact, atol=4e-3)  # float16's own rounding at |y| < 8
        for (dx, dgamma, _), *_ in (
            [batch_norm_backward(dy.astype(np.float16), cache)],
            batch_norm_backward_staged(dy.astype(np.float16), cache),
        ):
            assert dx.dtype == np.float16
            assert dgamma.dtype == np.float32

    def test_dtype_follows_x_whatever_the_parameters(self, rng):
        x, gamma, beta, _ = made(rng, (5, 3), np.float32)
        y, _ = batch_norm(x, gamma.astype(np.float64), beta.astype(np.float64))
        assert y.dtype == np.float32
        y, cache = batch_norm(x, mean=np.zeros(3), var=np.ones(3), eps=np.float64(1e-5))
        assert y.dtype == cache.x_hat.dtype == np.float32


class TestPrecision:
    """float32 against float64, at a mean far from zero: where E[x^2] - E[x]^2 and a plain mean both lose."""

    @pytest.mark.parametrize("shape", [(64, 5), (1000, 5), (100_000, 2), (16, 3, 20, 20)])
    def test_float32_at_mean_1e3_std_01(self, rng, shape):
        x, gamma, beta, dy = made(rng, shape, np.float32, mean=1e3, std=0.1)
        y, cache = batch_norm(x, gamma, beta)
        _, exact = batch_norm(x.astype(np.float64), gamma.astype(np.float64), beta.astype(np.float64))
        # NumPy adds a column up term by term: the variance of a long one is off by a few more units in the last place.
        longest = x.size // x.shape[1]
        np.testing.assert_allclose(y, textbook(x, gamma, beta), rtol=1e-6 * np.sqrt(longest), atol=2e-5)
        np.testing.assert_allclose(cache.mean, exact.mean, rtol=np.finfo(np.float32).eps)
        np.testing.assert_allclose(cache.var, exact.var, rtol=1e-4)
        dx, *_ = batch_norm_backward(dy, cache)
        dx_exact, *_ = batch_norm_backward(dy.astype(np.float64), exact)
        np.testing.assert_allclose(dx, dx_exact, atol=1e-4 * np.abs(dx_exact).max())

    def test_the_plain_mean_would_not_pass(self, rng):
        """The measurement behind the correction: without it the error is a thousand times larger."""
        x = (1e3 + 0.1 * rng.standard_normal((1000, 5))).astype(np.float32)
        plain = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + np.float32(1e-5))
        exact = textbook(x, np.ones(5), np.zeros(5))
        ours = np.abs(batch_norm(x)[0] - exact).max()
        assert np.abs(plain - exact).max() > 100 * ours

    @pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e15])
    def test_scale_of_the_data_does_not_matter(self, rng, scale):
        x = rng.standard_normal((32, 4))
        y, _ = batch_norm(x, eps=0.0)
        scaled, _ = batch_norm(x * scale, eps=0.0)
        np.testing.assert_allclose(scaled, y, rtol=1e-12, atol=1e-13)


class TestBackward:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("form", ["training", "inference"])
    def test_finite_differences(self, rng, shape, form):
        x, gamma, beta, dy = made(rng, shape)
        given = {}
        if form == "inference":
            given = {"mean": rng.standard_normal(shape[1]), "var": rng.uniform(0.5, 2, shape[1])}
        _, cache = batch_norm(x, gamma, beta, **given)
        gradients = batch_norm_backward(dy, cache)

        step = 1e-6
        for index, analytic in enumerate(gradients):
            arguments = [x, gamma, beta]
            numeric = np.empty_like(arguments[index])
            for position in np.ndindex(numeric.shape):
                ends = []
                for sign in (1, -1):
                    moved = [a.copy() for a in arguments]
                    moved[index][position] += sign * step
                    ends.append((batch_norm(*moved, **given)[0] * dy).sum())
                numeric[position] = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_dx_sums_to_zero_and_is_orthogonal_to_x_hat(self, rng, shape):
        x, gamma, beta, dy = made(rng, shape, mean=2.0)
        _, cache = batch_norm(x, gamma, beta, eps=0.0)
        dx, *_ = batch_norm_backward(dy, cache)
        np.testing.assert_allclose(dx.sum(axis=axes_of(x)), 0, atol=1e-12)
        np.testing.assert_allclose((dx * cache.x_hat).sum(axis=axes_of(x)), 0, atol=1e-11)

    def test_with_eps_the_second_identity_is_off_by_eps_over_var_plus_eps(self, rng):
        x, gamma, beta, dy = made(rng, (12, 3))
        eps = 0.3
        _, cache = batch_norm(x, gamma, beta, eps=eps)
        dx, dgamma, _ = batch_norm_backward(dy, cache)
        expected = gamma * cache.inv_std * dgamma * eps / (cache.var + eps)
        np.testing.assert_allclose((dx * cache.x_hat).sum(axis=0), expected, rtol=1e-12)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("with_gamma", [True, False])
    def test_staged_equals_closed_form(self, rng, shape, with_gamma):
        x, gamma, beta, dy = made(rng, shape)
        _, cache = batch_norm(x, gamma if with_gamma else None, beta)
        staged, stages = batch_norm_backward_staged(dy, cache)
        for ours, closed in zip(staged, batch_norm_backward(dy, cache), strict=True):
            np.testing.assert_allclose(ours, closed, rtol=1e-11, atol=1e-12)
        np.testing.assert_array_equal(stages["x"], staged[0])
        np.testing.assert_array_equal(stages["y"], dy)
        np.testing.assert_allclose(stages["x via centred"] + stages["x via mean"], stages["x"])
        np.testing.assert_allclose(stages["centred via x_hat"] + stages["centred via square"], stages["centred"])
        for name in ("square", "x_hat", "scaled", "centred", "x via mean"):
            assert stages[name].shape == shape, name
        for name in ("mean", "var", "inv_std", "gamma", "beta"):
            assert stages[name].shape == (shape[1],), name

    def test_stages_are_the_gradients_of_their_nodes(self, rng):
        """Each node is moved by hand in the rest of the graph, and the loss with it."""
        x, gamma, beta, dy = made(rng, (5, 2))
        eps = 1e-2
        _, cache = batch_norm(x, gamma, beta, eps=eps)
        _, stages = batch_norm_backward_staged(dy, cache)
        mean = x.mean(axis=0)
        centred = x - mean
        square = centred**2
        var = square.mean(axis=0)
        inv_std = (var + eps) ** -0.5

        def loss_of(name, value):
            c = {"mean": lambda: x - value, "centred": lambda: value}.get(name, lambda: centred)()
            v = {"var": lambda: value, "square": lambda: value.mean(axis=0)}.get(name, lambda: (c**2).mean(axis=0))()
            i = value if name == "inv_std" else (v + eps) ** -0.5
            h = value if name == "x_hat" else c * i
            return ((gamma * h + beta) * dy).sum()

        nodes = {
            "mean": mean,
            "centred": centred,
            "square": square,
            "var": var,
            "inv_std": inv_std,
            "x_hat": centred * inv_std,
        }
        for name, node in nodes.items():
            numeric = np.empty_like(node)
            for position in np.ndindex(node.shape):
                moved = [node.copy(), node.copy()]
                moved[0][position] += 1e-6
                moved[1][position] -= 1e-6
                numeric[position] = (loss_of(name, moved[0]) - loss_of(name, moved[1])) / 2e-6
            np.testing.assert_allclose(stages[name], numeric, rtol=1e-6, atol=1e-7, err_msg=name)

    def test_without_gamma_the_gradients_are_those_at_ones(self, rng):
        x, _, _, dy = made(rng, (9, 3))
        bare = batch_norm_backward(dy, batch_norm(x)[1])
        ones = batch_norm_backward(dy, batch_norm(x, np.ones(3), np.zeros(3))[1])
        for left, right in zip(bare, ones, strict=True):
            np.testing.assert_array_equal(left, right)

    def test_bias_before_the_layer_has_no_gradient(self, rng):
        x, gamma, beta, dy = made(rng, (16, 4))
        _, cache = batch_norm(x + 0.7, gamma, beta)
        np.testing.assert_allclose(batch_norm_backward(dy, cache)[0].sum(axis=0), 0, atol=1e-13)


class TestUpdateRunning:
    def test_pytorch_defaults(self, rng):
        running = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
        batch = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
        mean, var = update_running(*running, *batch, n=5)
        np.testing.assert_allclose(mean, 0.9 * running[0] + 0.1 * batch[0])
        np.testing.assert_allclose(var, 0.9 * running[1] + 0.1 * 1.25 * batch[1])

    def test_keras_convention(self, rng):
        running = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
        batch = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
        mean, var = update_running(*running, *batch, n=5, momentum=1 - 0.99, unbiased=False)
        np.testing.assert_allclose(mean, 0.99 * running[0] + 0.01 * batch[0])
        np.testing.assert_allclose(var, 0.99 * running[1] + 0.01 * batch[1])

    def test_momentum_one_replaces_and_zero_keeps(self, rng):
        running = rng.standard_normal(2), rng.uniform(0.5, 2, 2)
        batch = rng.standard_normal(2), rng.uniform(0.5, 2, 2)
        replaced = update_running(*running, *batch, n=3, momentum=1.0)
        np.testing.assert_array_equal(replaced[0], batch[0])
        np.testing.assert_array_equal(replaced[1], 1.5 * batch[1])
        kept = update_running(*running, *batch, n=3, momentum=0.0)
        np.testing.assert_array_equal(kept, running)

    def test_an_empty_batch_changes_nothing(self):
        nan = np.full(2, np.nan)
        mean, var = update_running(np.array([1.0, 2.0]), np.array([3.0, 4.0]), nan, nan, n=0)
        np.testing.assert_array_equal(mean, [1, 2])
        np.testing.assert_array_equal(var, [3, 4])

    def test_one_value_is_enough_for_the_biased_variance(self):
        mean, var = update_running(
            np.zeros(1), np.ones(1), np.array([2.0]), np.zeros(1), n=1, momentum=0.5, unbiased=False
        )
        assert (mean[0], var[0]) == (1.0, 0.5)

    @pytest.mark.parametrize("n", [4, np.int64(4), np.array(4)], ids=["int", "scalar", "array"])
    def test_a_count_of_any_kind_keeps_the_dtype(self, n):
        mean, var = update_running(
            np.zeros(2, np.float32), np.ones(2, np.float32), np.ones(2), np.full(2, 3.0), n, momentum=np.float64(0.5)
        )
        assert mean.dtype == var.dtype == np.float32
        np.testing.assert_array_equal(mean, 0.5)
        np.testing.assert_array_equal(var, 2.5)

    def test_half_precision_does_not_overflow_on_the_way(self):
        half = np.zeros(1, np.float16), np.ones(1, np.float16)
        _, var = update_running(*half, np.zeros(1, np.float32), np.array([90_000.0], np.float32), n=100)
        assert var.dtype == np.float16
        np.testing.assert_allclose(var, 0.9 + 0.1 * 90_000 * 100 / 99, rtol=1e-3)

    @pytest.mark.parametrize(
        ("n", "error", "message"),
        [
            (-5, ValueError, "expected n >= 0, got -5"),
            (2.5, TypeError, r"expected n to be a whole number, got 2\.5"),
            (np.float64(4), TypeError, r"expected n to be a whole number, got np\.float64\(4\.0\)"),
        ],
    )
    def test_counts_that_are_none(self, n, error, message):
        with pytest.raises(error, match=message):
            update_running(np.zeros(1), np.ones(1), np.zeros(1), np.ones(1), n)

    def test_inputs_are_not_changed_and_dtype_is_kept(self, rng):
        running_mean, running_var = np.zeros(2, np.float32), np.ones(2, np.float32)
        mean, var = update_running(running_mean, running_var, rng.standard_normal(2), rng.uniform(1, 2, 2), n=4)
        assert mean.dtype == var.dtype == np.float32
        np.testing.assert_array_equal(running_mean, 0)
        np.testing.assert_array_equal(running_var, 1)

    @pytest.mark.parametrize("momentum", [-0.1, 1.5])
    def test_momentum_outside(self, momentum):
        with pytest.raises(ValueError, match=rf"momentum.*from 0 to 1, got {momentum}"):
            update_running(np.zeros(1), np.ones(1), np.zeros(1), np.ones(1), n=2, momentum=momentum)

    @pytest.mark.parametrize("wrong", ["running_var", "mean", "var"])
    def test_shapes(self, wrong):
        given = {"running_mean": np.zeros(3), "running_var": np.ones(3), "mean": np.zeros(3), "var": np.ones(3)}
        given[wrong] = np.ones(2)
        with pytest.raises(ValueError, match=rf"expected {wrong} of the shape of running_mean, \(3,\), got \(2,\)"):
            update_running(**given, n=4)

    def test_one_value_has_no_unbiased_variance(self):
        with pytest.raises(ValueError, match=r"n > 1 values per channel .* got n = 1; use a larger batch"):
            update_running(np.zeros(1), np.ones(1), np.zeros(1), np.ones(1), n=1)


class TestErrors:
    @pytest.mark.parametrize("shape", [(), (4,)])
    def test_too_few_axes(self, shape):
        with pytest.raises(ValueError, match=r"\(N, C, \*spatial\), at least 2D, got shape " + re.escape(str(shape))):
            batch_norm(np.zeros(shape))

    @pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var"])
    @pytest.mark.parametrize("shape", [(2,), (1, 3), ()])
    def test_vector_of_the_wrong_shape(self, name, shape):
        given = {"mean": np.zeros(3), "var": np.ones(3), name: np.ones(shape)}
        with pytest.raises(
            ValueError, match=rf"expected {name} of shape \(3,\), .* x with shape \(4, 3, 5\), got shape"
        ):
            batch_norm(np.zeros((4, 3, 5)), **given)

    def test_only_one_statistic(self):
        with pytest.raises(ValueError, match="both mean and var or neither, got mean without var"):
            batch_norm(np.zeros((4, 3)), mean=np.zeros(3))
        with pytest.raises(ValueError, match="both mean and var or neither, got var without mean"):
            batch_norm(np.zeros((4, 3)), var=np.ones(3))

    def test_negative_eps(self):
        with pytest.raises(ValueError, match=r"expected eps >= 0, got -0\.1"):
            batch_norm(np.zeros((4, 3)), eps=-0.1)
        with pytest.raises(ValueError, match="expected eps >= 0, got nan"):
            batch_norm(np.zeros((4, 3)), eps=np.nan)

    @pytest.mark.parametrize("dtype", ["int64", "bool", "complex128"])
    def test_not_floating_point(self, dtype):
        with pytest.raises(TypeError, match=rf"expected x of a real floating-point dtype, got {dtype}; convert"):
            batch_norm(np.zeros((4, 3), dtype=dtype))

    def test_not_an_array(self):
        with pytest.raises(TypeError, match=r"arrays of one library .* got builtins\.list; convert it to one of"):
            batch_norm([[1.0, 2.0]])
        with pytest.raises(TypeError, match=r"got numpy\.ndarray, builtins\.float; convert them all to numpy\.ndarray"):
            batch_norm(np.zeros((4, 3)), 2.0)
        with pytest.raises(TypeError, match="got None; convert it"):
            batch_norm(None)

    def test_dy_of_the_wrong_shape(self, rng):
        _, cache = batch_norm(rng.standard_normal((4, 3)))
        for backward in (batch_norm_backward, batch_norm_backward_staged):
            with pytest.raises(ValueError, match=r"expected dy of the shape of x, \(4, 3\), got \(4, 2\)"):
                backward(np.zeros((4, 2)), cache)

    def test_dy_not_floating_point(self, rng):
        _, cache = batch_norm(rng.standard_normal((4, 3)))
        with pytest.raises(TypeError, match="expected dy of a real floating-point dtype, got int64"):
            batch_norm_backward(np.ones((4, 3), dtype=np.int64), cache)

    def test_staged_wants_the_training_form(self, rng):
        _, cache = batch_norm(rng.standard_normal((4, 3)), mean=np.zeros(3), var=np.ones(3))
        with pytest.raises(ValueError, match="without a mask, got one of the inference form; use batch_norm_backward"):
            batch_norm_backward_staged(np.ones((4, 3)), cache)
        _, cache = batch_norm(rng.standard_normal((4, 3)), mask=np.array([True, True, False, True]))
        with pytest.raises(ValueError, match="without a mask, got one of the masked form; use batch_norm_backward"):
            batch_norm_backward_staged(np.ones((4, 3)), cache)


# -- Any shape, dtype and memory layout ------------------------------------------------------------------------------


def shapes():
    return hnp.array_shapes(min_dims=2, max_dims=5, min_side=1, max_side=6)


def values(dtype):
    bound = 100
    return st.floats(-bound, bound, width=32 if dtype == np.float32 else 64, allow_subnormal=False)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "channels last in memory": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]), layout=st.sampled_from(sorted(LAYOUTS)))
def test_any_shape_dtype_and_layout(data, dtype, layout):
    shape = data.draw(shapes())
    x = data.draw(hnp.arrays(dtype, shape, elements=values(dtype)))
    seed = data.draw(st.integers(0, 2**31))
    _, gamma, beta, dy = made(np.random.default_rng(seed), shape, dtype)

    laid = LAYOUTS[layout](x)
    np.testing.assert_array_equal(laid, x)
    laid.flags.writeable = False
    before = laid.copy()
    y, cache = batch_norm(laid, gamma, beta)
    dx, dgamma, dbeta = batch_norm_backward(dy, cache)

    assert y.shape == dx.shape == shape
    assert y.dtype == dx.dtype == dtype
    assert dgamma.shape == dbeta.shape == (shape[1],)
    np.testing.assert_array_equal(laid, before)
    # The error of y is that of x (one rounding of values up to 100) over the standard deviation, at least sqrt(eps).
    tolerance = 1e-3 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(y, textbook(x, gamma, beta), rtol=tolerance, atol=tolerance)
    slack = 50 * np.finfo(dtype).eps * (1 + np.abs(dx).max()) * x.size
    np.testing.assert_allclose(dx.sum(axis=axes_of(x)), 0, atol=slack)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_shift_and_scale_of_the_input_do_not_matter(data, shift, scale):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=6))
    x = np.random.default_rng(data.draw(st.integers(0, 2**31))).standard_normal(shape)
    y, _ = batch_norm(x, eps=0.0)
    moved, _ = batch_norm(scale * x + shift, eps=0.0)
    np.testing.assert_allclose(moved, y, rtol=1e-9, atol=1e-9)


def test_without_channels_there_are_no_values_per_channel():
    y, cache = batch_norm(np.zeros((4, 0)))
    assert y.shape == (4, 0)
    assert cache.n == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_order_of_the_samples_does_not_matter(data):
    shape = data.draw(shapes())
    generator = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    x, gamma, beta, dy = made(generator, shape)
    order = generator.permutation(shape[0])
    y, cache = batch_norm(x, gamma, beta)
    shuffled, shuffled_cache = batch_norm(x[order], gamma, beta)
    np.testing.assert_allclose(shuffled, y[order], rtol=1e-10, atol=1e-10)
    dx = batch_norm_backward(dy, cache)[0]
    np.testing.assert_allclose(batch_norm_backward(dy[order], shuffled_cache)[0], dx[order], rtol=1e-8, atol=1e-8)
