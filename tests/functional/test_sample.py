"""Unit length, filter responses, adaptive instances: PyTorch's and Keras's own, the oracles, identities."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    adaptive_instance_norm,
    adaptive_instance_norm_backward,
    filter_response_norm,
    filter_response_norm_backward,
    instance_norm,
    rms_norm,
    unit_norm,
    unit_norm_backward,
)

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")

jax.config.update("jax_enable_x64", True)

BY_ORDER = pytest.mark.parametrize("p", [1, 2])


def vectors(rng, channels):
    return rng.uniform(0.5, 2.0, channels) * rng.choice([-1, 1], channels), rng.standard_normal(channels)


class TestUnitNorm:
    @BY_ORDER
    @pytest.mark.parametrize("axes", [(1,), (-1,), None])
    def test_everywhere_the_same(self, hold_against_oracle, rng, p, axes):
        arrays = {"x": rng.standard_normal((3, 4, 2))}
        hold_against_oracle(
            lambda x: unit_norm(x, p=p, axes=axes), unit_norm_backward, arrays, rng.standard_normal((3, 4, 2))
        )

    @BY_ORDER
    def test_below_eps(self, hold_against_oracle, rng, p):
        """Half of the vectors are shorter than eps: they are divided by it, and eps has no gradient to give."""
        arrays = {"x": rng.standard_normal((4, 3)) * np.array([[1e-3], [3.0], [1e-2], [5.0]])}
        hold_against_oracle(
            lambda x: unit_norm(x, p=p, eps=0.5), unit_norm_backward, arrays, rng.standard_normal((4, 3))
        )

    @BY_ORDER
    @pytest.mark.parametrize("axes", [(1,), (-1,), (1, 2)])
    @pytest.mark.parametrize("scale", [1.0, 1e-14])
    def test_torch_normalize(self, rng, p, axes, scale):
        x, dy = scale * rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
        leaf = torch.tensor(x, requires_grad=True)
        theirs = torch.nn.functional.normalize(leaf, p=p, dim=axes)
        theirs.backward(torch.tensor(dy))
        ours, cache = unit_norm(x, p=p, axes=axes)
        np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(unit_norm_backward(dy, cache), leaf.grad, rtol=1e-10, atol=1e-10)

    def test_at_zero_the_gradient_is_finite_as_in_torch(self):
        leaves = [torch.zeros(2, 3, requires_grad=True) for _ in range(2)]
        torch.nn.functional.normalize(leaves[0]).sum().backward()
        y, cache = unit_norm(leaves[1])
        y.sum().backward()
        assert (leaves[0].grad == leaves[1].grad).all()
        assert (unit_norm_backward(torch.ones(2, 3), cache) == leaves[0].grad).all()

    @pytest.mark.parametrize("size", [1.0, 1e-5, 1e-10])
    def test_keras_unit_normalization(self, rng, size):
        x = (size * rng.standard_normal((3, 4, 5))).astype(np.float32)
        theirs = keras.layers.UnitNormalization()(x)
        np.testing.assert_allclose(unit_norm(x, axes=(-1,))[0], theirs, rtol=1e-6, atol=1e-6)

    def test_it_is_rms_norm_over_the_root_of_the_count(self, rng):
        x = rng.standard_normal((3, 4, 5))
        np.testing.assert_allclose(
            unit_norm(x, axes=None)[0] * np.sqrt(20), rms_norm(x, eps=0.0)[0], rtol=1e-12, atol=1e-12
        )

    @BY_ORDER
    def test_length_one_and_a_gradient_that_leaves_it(self, rng, p):
        x, dy = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
        y, cache = unit_norm(x, p=p)
        np.testing.assert_allclose((np.abs(y) ** p).sum(axis=1), 1, rtol=1e-12)
        # A longer x of the same direction gives the same y.
        np.testing.assert_allclose((unit_norm_backward(dy, cache) * x).sum(axis=1), 0, atol=1e-12)

    def test_half_precision_and_errors(self, rng):
        y, cache = unit_norm(np.full((2, 3), 300, np.float16))  # whose squares overflow in float16
        assert (y.dtype, cache.x_hat.dtype) == (np.float16, np.float32)
        np.testing.assert_allclose(y, 3**-0.5, rtol=1e-3)
        assert unit_norm_backward(y, cache).dtype == np.float16
        with pytest.raises(ValueError, match="order of the norm, to be 1 or 2, got 3"):
            unit_norm(np.ones((2, 3)), p=3)
        for eps in (0.0, -1.0, np.nan):
            with pytest.raises(ValueError, match=f"expected eps > 0, the least norm to divide by, got {eps}"):
                unit_norm(np.ones((2, 3)), eps=eps)
        with pytest.raises(ValueError, match=re.escape("got axes=(2,)")):
            unit_norm(np.ones((2, 3)), axes=(2,))
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 3\), got \(3, 2\)"):
            unit_norm_backward(np.ones((3, 2)), cache)


class TestFilterResponseNorm:
    @pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3, 2)])
    @pytest.mark.parametrize("eps", ["number", "per channel", "scalar"])
    def test_everywhere_the_same(self, hold_against_oracle, rng, shape, eps):
        gamma, beta = vectors(rng, 4)
        arrays = {"x": rng.standard_normal(shape), "gamma": gamma, "beta": beta}
        backward = filter_response_norm_backward
        if eps == "number":
            hold_against_oracle(
                lambda **a: filter_response_norm(**a, eps=0.3),
                lambda dy, cache: backward(dy, cache)[:3],
                arrays,
                rng.standard_normal(shape),
            )
        else:
            learned = np.array(-0.2) if eps == "scalar" else np.array([0.1, -0.5, 0.3, -0.02])
            hold_against_oracle(filter_response_norm, backward, {**arrays, "eps": learned}, rng.standard_normal(shape))

    def test_the_papers_formula(self, rng):
        x, (gamma, beta) = rng.standard_normal((3, 4, 5, 6)), vectors(rng, 4)
        eps = rng.uniform(-0.1, 0.1, 4)
        nu2 = np.mean(np.square(x), axis=(2, 3), keepdims=True)
        column = (4, 1, 1)
        expected = gamma.reshape(column) * x / np.sqrt(nu2 + np.abs(eps).reshape(column)) + beta.reshape(column)
        np.testing.assert_allclose(filter_response_norm(x, gamma, beta, eps=eps)[0], expected, rtol=1e-12, atol=1e-12)

    def test_it_is_rms_norm_over_the_axes_of_instance_norm(self, rng):
        x = rng.standard_normal((3, 4, 5, 6))
        ours, _ = filter_response_norm(x)
        np.testing.assert_allclose(ours, rms_norm(x, axes=(2, 3))[0], rtol=1e-12, atol=1e-12)
        centred = x - x.mean(axis=(2, 3), keepdims=True)
        np.testing.assert_allclose(
            filter_response_norm(centred, eps=1e-5)[0], instance_norm(x)[0], rtol=1e-12, atol=1e-12
        )

    def test_without_positions_it_is_almost_the_sign(self, rng):
        x = rng.standard_normal((5, 3))
        np.testing.assert_allclose(filter_response_norm(x, eps=1e-12)[0], np.sign(x), rtol=1e-6)
        np.testing.assert_allclose(filter_response_norm(x, eps=np.full(3, 2.0))[0], x / np.sqrt(x**2 + 2), rtol=1e-12)

    def test_the_gradient_is_orthogonal_to_x_and_keeps_its_sum(self, rng):
        x, dy = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
        dx, *_ = filter_response_norm_backward(dy, filter_response_norm(x, eps=0.0)[1])
        np.testing.assert_allclose((dx * x).sum(axis=2), 0, atol=1e-12)
        assert np.abs(dx.sum(axis=2)).min() > 1e-4

    def test_a_learned_eps_of_zero_has_the_gradient_zero(self, rng):
        """Its absolute value is what counts: there its two slopes meet."""
        x, dy = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
        *_, deps = filter_response_norm_backward(dy, filter_response_norm(x, eps=np.array([0.0, 0.1, 0.0]))[1])
        np.testing.assert_array_equal(deps == 0, [True, False, True])

    def test_each_sample_and_each_channel_is_alone(self, rng):
        x = rng.standard_normal((3, 4, 5))
        y, _ = filter_response_norm(x)
        np.testing.assert_array_equal(y[1:2, 2:3], filter_response_norm(x[1:2, 2:3])[0])

    def test_without_gamma_and_beta_they_are_ones_and_zeros(self, rng):
        x, dy = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
        bare, full = filter_response_norm(x), filter_response_norm(x, np.ones(4), np.zeros(4))
        np.testing.assert_array_equal(bare[0], full[0])
        for left, right in zip(
            filter_response_norm_backward(dy, bare[1]), filter_response_norm_backward(dy, full[1]), strict=True
        ):
            np.testing.assert_array_equal(left, right)

    def test_kinds_of_eps(self, rng):
        """A NumPy number is a number, does not widen float32, and has a gradient of shape ()."""
        x = rng.standard_normal((3, 4, 5)).astype(np.float32)
        y, cache = filter_response_norm(x, eps=np.float64(1e-3))
        assert y.dtype == cache.x_hat.dtype == np.float32
        assert cache.eps is None
        deps = filter_response_norm_backward(x, cache)[3]
        learned = filter_response_norm(x, eps=np.array(-1e-3))
        np.testing.assert_array_equal(learned[0], y)
        assert deps.shape == ()
        np.testing.assert_allclose(-filter_response_norm_backward(x, learned[1])[3], deps)

    def test_half_precision_and_empty(self):
        y, cache = filter_response_norm(np.full((2, 3, 4), 300, np.float16))
        assert (y.dtype, cache.x_hat.dtype) == (np.float16, np.float32)
        np.testing.assert_allclose(y, 1, rtol=1e-3)
        assert filter_response_norm_backward(y, cache)[0].dtype == np.float16
        for shape in [(0, 3, 4), (2, 3, 0), (0, 3)]:
            y, cache = filter_response_norm(np.empty(shape))
            dx, dgamma, *_ = filter_response_norm_backward(np.empty(shape), cache)
            assert y.shape == dx.shape == shape
            np.testing.assert_array_equal(dgamma, 0)

    def test_under_jit_and_in_tf_function(self, rng):
        x, dy = rng.standard_normal((2, 3, 4, 4))[:, :, 0], rng.standard_normal((2, 3, 4))
        expected = filter_response_norm_backward(dy, filter_response_norm(x, eps=1e-3)[1])
        _, cache = jax.jit(lambda x: filter_response_norm(x, eps=1e-3))(jax.numpy.asarray(x))
        there = jax.jit(filter_response_norm_backward)(jax.numpy.asarray(dy), cache)
        traced = tf.function(
            lambda x, dy: filter_response_norm_backward(dy, filter_response_norm(x, eps=1e-3)[1]),
            input_signature=[tf.TensorSpec((None, 3, None), tf.float64)] * 2,
        )
        for found in (there, traced(x, dy)):
            for theirs, ours in zip(found, expected, strict=True):
                np.testing.assert_allclose(theirs, ours, rtol=1e-10, atol=1e-10)

    def test_errors(self):
        x = np.ones((2, 3, 4))
        with pytest.raises(ValueError, match=r"expected eps >= 0, got -0\.1"):
            filter_response_norm(x, eps=-0.1)
        for name in ("gamma", "beta", "eps"):
            with pytest.raises(ValueError, match=rf"expected {name} of shape \(3,\).*got shape \(4,\)"):
                filter_response_norm(x, **{name: np.ones(4)})
        with pytest.raises(ValueError, match=r"at least 2D, got shape \(3,\)"):
            filter_response_norm(np.ones(3))
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 3, 4\), got \(2, 3\)"):
            filter_response_norm_backward(np.ones((2, 3)), filter_response_norm(x)[1])


class TestAdaptiveInstanceNorm:
    @pytest.mark.parametrize(
        ("content", "style"), [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (2, 3, 3, 2)), ((2, 3, 2, 2), (2, 3, 5))]
    )
    def test_everywhere_the_same(self, hold_against_oracle, rng, content, style):
        arrays = {"content": rng.standard_normal(content), "style": 2 + 3 * rng.standard_normal(style)}
        hold_against_oracle(
            adaptive_instance_norm, adaptive_instance_norm_backward, arrays, rng.standard_normal(content)
        )

    def test_it_is_instance_norm_with_the_statistics_of_the_style(self, rng):
        content, style = rng.standard_normal((3, 4, 5, 6)), 3 + 2 * rng.standard_normal((3, 4, 7, 2))
        y, _ = adaptive_instance_norm(content, style, eps=0.1)
        normalised, _ = instance_norm(content, eps=0.1)
        scale = np.sqrt(style.var(axis=(2, 3), keepdims=True) + 0.1)
        np.testing.assert_allclose(y, normalised * scale + style.mean(axis=(2, 3), keepdims=True), rtol=1e-12)

    def test_it_takes_the_statistics_of_the_style_and_keeps_its_own_style(self, rng):
        content, style = rng.standard_normal((2, 3, 50)), 3 + 2 * rng.standard_normal((2, 3, 40))
        y, _ = adaptive_instance_norm(content, style, eps=0.0)
        np.testing.assert_allclose(y.mean(axis=2), style.mean(axis=2), rtol=1e-12)
        np.testing.assert_allclose(y.std(axis=2), style.std(axis=2), rtol=1e-12)
        np.testing.assert_allclose(adaptive_instance_norm(style, style)[0], style, rtol=1e-12)

    def test_what_the_gradients_are_orthogonal_to(self, rng):
        content, style = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 3, 5))
        dy = rng.standard_normal((2, 3, 6))
        y, cache = adaptive_instance_norm(content, style, eps=0.0)
        dcontent, dstyle = adaptive_instance_norm_backward(dy, cache)
        np.testing.assert_allclose(dcontent.sum(axis=2), 0, atol=1e-12)
        np.testing.assert_allclose((dcontent * cache.content_hat).sum(axis=2), 0, atol=1e-11)
        # A brighter style makes y brighter by as much; one with more contrast gives y more of it.
        np.testing.assert_allclose(dstyle.sum(axis=2), dy.sum(axis=2), rtol=1e-11)
        np.testing.assert_allclose((dstyle * style).sum(axis=2), (dy * y).sum(axis=2), rtol=1e-11)

    def test_dtypes(self, rng):
        content = rng.standard_normal((2, 3, 4)).astype(np.float16)
        y, cache = adaptive_instance_norm(content, rng.standard_normal((2, 3, 5)))
        assert (y.dtype, cache.content_hat.dtype, cache.style_hat.dtype) == (np.float16, np.float32, np.float32)
        assert [a.dtype for a in adaptive_instance_norm_backward(y, cache)] == [np.float16] * 2

    def test_with_sizes_not_known(self, rng):
        content, style = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((2, 3, 5))
        traced = tf.function(
            lambda c, s: adaptive_instance_norm_backward(c, adaptive_instance_norm(c, s)[1]),
            input_signature=[
                tf.TensorSpec((None, 3, None, None), tf.float64),
                tf.TensorSpec((None, 3, None), tf.float64),
            ],
        )
        expected = adaptive_instance_norm_backward(content, adaptive_instance_norm(content, style)[1])
        for theirs, ours in zip(traced(content, style), expected, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 1), (2, 3, 1, 1)])
    def test_one_position_is_too_few(self, shape):
        images = np.ones((2, 3, 4))
        for arguments, name in [((np.ones(shape), images), "content"), ((images, np.ones(shape)), "style")]:
            message = rf"expected {name} of shape .* more than 1 position, got shape {re.escape(str(shape))}"
            with pytest.raises(ValueError, match=message):
                adaptive_instance_norm(*arguments)

    def test_errors(self):
        x = np.ones((2, 3, 4))
        for shape in [(1, 3, 4), (2, 4, 4)]:
            message = f"as many samples and channels as content, (2, 3), got {shape[:2]}"
            with pytest.raises(ValueError, match=re.escape(message)):
                adaptive_instance_norm(x, np.ones(shape))
        with pytest.raises(ValueError, match="expected eps >= 0, got -1"):
            adaptive_instance_norm(x, x, eps=-1)
        with pytest.raises(TypeError, match="expected style of a real floating-point dtype, got int64"):
            adaptive_instance_norm(x, x.astype(np.int64))
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 3, 4\), got \(2, 3\)"):
            adaptive_instance_norm_backward(np.ones((2, 3)), adaptive_instance_norm(x, x)[1])
