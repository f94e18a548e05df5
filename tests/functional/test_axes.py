"""Layer, instance, group and RMS normalisation: the frameworks' own, the oracles, identities, precision, errors."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    batch_norm,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")

jax.config.update("jax_enable_x64", True)
F = torch.nn.functional

# Each: forward, backward, and the axes of x that gamma and beta have ("gamma" alone for RMS).
MEMBERS = {
    "layer": (layer_norm, layer_norm_backward, lambda shape: shape[1:]),
    "layer, last axis": (lambda **a: layer_norm(**a, axes=(-1,)), layer_norm_backward, lambda shape: shape[-1:]),
    "layer, channels": (lambda **a: layer_norm(**a, axes=(1,)), layer_norm_backward, lambda shape: shape[1:2]),
    "rms": (rms_norm, rms_norm_backward, lambda shape: shape[1:]),
    "rms, last axis": (lambda **a: rms_norm(**a, axes=[-1]), rms_norm_backward, lambda shape: shape[-1:]),
    "instance": (instance_norm, instance_norm_backward, lambda shape: shape[1:2]),
    "2 groups": (lambda **a: group_norm(**a, groups=2), group_norm_backward, lambda shape: shape[1:2]),
    "4 groups": (lambda **a: group_norm(**a, groups=4), group_norm_backward, lambda shape: shape[1:2]),
}
SHAPES = [(3, 4, 3), (2, 4, 3, 2), (2, 4, 2, 3, 2)]
EVERY = pytest.mark.parametrize("member", MEMBERS)


def made(rng, shape, parameters, dtype=np.float64, mean=0.3, std=1.0):
    """Data, scale and shift, and an upstream gradient, none of them at a special value."""
    arrays = {
        "x": mean + std * rng.standard_normal(shape),
        "gamma": rng.uniform(0.5, 2.0, parameters) * rng.choice([-1, 1], parameters),
        "beta": rng.standard_normal(parameters),
    }
    return {name: a.astype(dtype) for name, a in arrays.items()}, rng.standard_normal(shape).astype(dtype)


def made_for(member, rng, shape, **options):
    """The same for a member, with what of it the member takes."""
    forward, backward, parameters = MEMBERS[member]
    arrays, dy = made(rng, shape, parameters(shape), **options)
    if member.startswith("rms"):
        del arrays["beta"]
    return forward, backward, arrays, dy


def normalised_axes(member, ndim):
    """What is averaged in an (N, groups, C / groups, *spatial) or (N, C, *spatial) array."""
    if "last" in member:
        return (-1,)
    if "channels" in member:
        return (1,)
    return tuple(range(1 if member in ("layer", "rms") else 2, ndim))


class TestOracles:
    @EVERY
    def test_everywhere_the_same(self, hold_against_oracle, rng, member):
        hold_against_oracle(*made_for(member, rng, (2, 4, 3, 2)))

    @pytest.mark.parametrize("member", ["layer", "rms", "2 groups"])
    def test_features_without_positions(self, hold_against_oracle, rng, member):
        hold_against_oracle(*made_for(member, rng, (3, 6)))

    @pytest.mark.parametrize("member", ["layer", "rms", "instance", "2 groups"])
    def test_under_jit_the_cache_stays_usable(self, rng, member):
        """jax.jit makes an array of every number that a function returns, but not of the axes in the cache."""
        forward, backward, arrays, dy = made_for(member, rng, (3, 4, 5))
        y, cache = jax.jit(forward)(**{name: jax.numpy.asarray(a) for name, a in arrays.items()})
        ours, ours_cache = forward(**arrays)
        np.testing.assert_allclose(y, ours, rtol=1e-10, atol=1e-10)
        found = jax.jit(backward)(jax.numpy.asarray(dy), cache)
        for there, here in zip(found, backward(dy, ours_cache), strict=True):
            np.testing.assert_allclose(there, here, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("member", ["instance", "2 groups"])
    def test_inside_tf_function_with_sizes_not_known(self, rng, member):
        forward, backward, arrays, dy = made_for(member, rng, (3, 4, 5, 2))

        @tf.function(
            input_signature=[tf.TensorSpec((None, 4, None, None), tf.float64)] * 2
            + [tf.TensorSpec((4,), tf.float64)] * 2
        )
        def traced(x, dy, gamma, beta):
            return backward(dy, forward(x=x, gamma=gamma, beta=beta)[1])

        there = traced(arrays["x"], dy, arrays["gamma"], arrays["beta"])
        for theirs, ours in zip(there, backward(dy, forward(**arrays)[1]), strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("spatial", [(5,), (None,)])
    def test_symbolic_tensors(self, spatial):
        symbol = keras.KerasTensor((None, 4, *spatial), dtype="float32")
        assert group_norm(symbol, groups=2)[0].shape == (None, 4, *spatial)
        assert instance_norm(symbol)[0].shape == (None, 4, *spatial)
        gamma = keras.KerasTensor((4, 7), dtype="float32")
        if spatial == (None,):  # whether gamma fits is seen when it runs
            assert layer_norm(symbol, gamma)[0].shape[0] is None
        else:
            with pytest.raises(ValueError, match=r"expected gamma of shape \(4, 5\)"):
                layer_norm(symbol, gamma)


class TestTorch:
    """Outputs and gradients of PyTorch's own."""

    @staticmethod
    def compare(member, theirs, rng, shape, dtype=np.float64, tolerance=1e-10, **options):
        forward, backward, arrays, dy = made_for(member, rng, shape, dtype=dtype, **options)
        leaves = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
        expected = theirs(*leaves.values())
        expected.backward(torch.tensor(dy))
        y, cache = forward(**arrays)
        gradients = backward(dy, cache)
        pairs = {
            "y": (y, expected.detach()),
            **{n: (g, leaves[n].grad) for n, g in zip(arrays, gradients, strict=True)},
        }
        for name, (ours, other) in pairs.items():
            scale = max(1.0, float(other.abs().max()))
            assert ours.dtype == dtype, name
            np.testing.assert_allclose(ours, other, rtol=tolerance, atol=tolerance * scale, err_msg=name)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-5)])
    def test_layer_norm(self, rng, shape, dtype, tolerance):
        self.compare("layer", lambda x, g, b: F.layer_norm(x, shape[1:], g, b), rng, shape, dtype, tolerance)
        self.compare(
            "layer, last axis", lambda x, g, b: F.layer_norm(x, shape[-1:], g, b), rng, shape, dtype, tolerance
        )

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-5)])
    def test_rms_norm(self, rng, shape, dtype, tolerance):
        self.compare("rms", lambda x, g: F.rms_norm(x, shape[1:], g, 1e-6), rng, shape, dtype, tolerance)
        self.compare("rms, last axis", lambda x, g: F.rms_norm(x, shape[-1:], g, 1e-6), rng, shape, dtype, tolerance)

    @pytest.mark.parametrize("shape", [(3, 4), *SHAPES])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-5)])
    @pytest.mark.parametrize("groups", [2, 4])
    def test_group_norm(self, rng, shape, dtype, tolerance, groups):
        if groups < np.prod(shape[1:]):
            own = f"{groups} groups"
            self.compare(own, lambda x, g, b: F.group_norm(x, groups, g, b), rng, shape, dtype, tolerance)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-5)])
    def test_instance_norm(self, rng, shape, dtype, tolerance):
        self.compare("instance", lambda x, g, b: F.instance_norm(x, None, None, g, b), rng, shape, dtype, tolerance)

    @pytest.mark.parametrize("member", ["layer", "rms", "instance", "2 groups"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
    def test_a_bad_value_spoils_its_own_sample_alone(self, rng, member, bad):
        forward, _, arrays, _ = made_for(member, rng, (3, 4, 5))
        before, _ = forward(**arrays)
        arrays["x"][1, 0, 0] = bad
        after, _ = forward(**arrays)
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
        theirs = {
            "layer": lambda x, g, b: F.layer_norm(x, (4, 5), g, b),
            "rms": lambda x, g: F.rms_norm(x, (4, 5), g, 1e-6),
            "instance": lambda x, g, b: F.instance_norm(x, None, None, g, b),
            "2 groups": lambda x, g, b: F.group_norm(x, 2, g, b),
        }[member](*map(torch.tensor, arrays.values()))
        np.testing.assert_allclose(after, theirs, rtol=1e-10, atol=1e-10)


class TestKeras:
    """Keras: channels last, epsilon 1e-3 but for RMS, its gamma and beta where ours are."""

    @staticmethod
    def run(layer, x, *weights):
        layer.build(x.shape)
        layer.set_weights(weights)
        return np.asarray(layer(x))

    @pytest.mark.parametrize("shape", [(3, 6), *SHAPES])
    def test_layer_normalization(self, rng, shape):
        arrays, _ = made(rng, shape, shape[1:])
        layer = keras.layers.LayerNormalization(axis=list(range(1, len(shape))), dtype="float64")
        theirs = self.run(layer, arrays["x"], arrays["gamma"], arrays["beta"])
        np.testing.assert_allclose(layer_norm(**arrays, eps=1e-3)[0], theirs, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("shape", [(3, 6), *SHAPES])
    def test_rms_normalization(self, rng, shape):
        arrays, _ = made(rng, shape, shape[-1:])
        theirs = self.run(keras.layers.RMSNormalization(dtype="float64"), arrays["x"], arrays["gamma"])
        ours, _ = rms_norm(arrays["x"], arrays["gamma"], axes=(-1,))
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("groups", [1, 2, -1])
    def test_group_normalization(self, rng, shape, groups):
        arrays, _ = made(rng, shape, shape[1:2])
        layer = keras.layers.GroupNormalization(groups=groups, dtype="float64")
        theirs = self.run(layer, np.moveaxis(arrays["x"], 1, -1), arrays["gamma"], arrays["beta"])
        ours, _ = instance_norm(**arrays, eps=1e-3) if groups == -1 else group_norm(**arrays, groups=groups, eps=1e-3)
        np.testing.assert_allclose(np.moveaxis(ours, 1, -1), theirs, rtol=1e-10, atol=1e-10)


class TestIdentities:
    @pytest.mark.parametrize("shape", [(3, 4), *SHAPES])
    def test_one_group_is_layer_norm(self, rng, shape):
        (x, *_), dy = made(rng, shape, ())[0].values(), rng.standard_normal(shape)
        ours, cache = group_norm(x, groups=1)
        layer, layer_cache = layer_norm(x)
        np.testing.assert_allclose(ours, layer, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            group_norm_backward(dy, cache)[0], layer_norm_backward(dy, layer_cache)[0], rtol=1e-11, atol=1e-12
        )

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_group_per_channel_is_instance_norm(self, rng, shape):
        arrays, dy = made(rng, shape, shape[1:2])
        ours, cache = group_norm(**arrays, groups=shape[1])
        instance, instance_cache = instance_norm(**arrays)
        np.testing.assert_allclose(ours, instance, rtol=1e-12, atol=1e-12)
        for left, right in zip(group_norm_backward(dy, cache), instance_norm_backward(dy, instance_cache), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-11, atol=1e-12)

    def test_instance_norm_is_batch_norm_of_each_sample(self, rng):
        arrays, _ = made(rng, (3, 4, 5), (4,))
        x, gamma, beta = arrays.values()
        alone = [batch_norm(x[i : i + 1], gamma, beta)[0] for i in range(3)]
        np.testing.assert_allclose(instance_norm(x, gamma, beta)[0], np.concatenate(alone), rtol=1e-12, atol=1e-12)

    def test_layer_norm_is_batch_norm_of_the_transpose(self, rng):
        x = rng.standard_normal((5, 7))
        np.testing.assert_allclose(layer_norm(x)[0], batch_norm(x.T)[0].T, rtol=1e-12, atol=1e-12)

    def test_rms_norm_of_what_has_mean_zero_is_layer_norm(self, rng):
        x = rng.standard_normal((3, 4, 5))
        x = x - x.mean(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(rms_norm(x, eps=1e-5)[0], layer_norm(x)[0], rtol=1e-12, atol=1e-12)
        assert np.abs(rms_norm(x + 1, eps=1e-5)[0] - layer_norm(x + 1)[0]).max() > 0.1

    @EVERY
    def test_each_sample_is_alone(self, rng, member):
        forward, backward, arrays, dy = made_for(member, rng, (3, 4, 5))
        y, cache = forward(**arrays)
        dx = backward(dy, cache)[0]
        for i in range(3):
            alone, cache = forward(**{**arrays, "x": arrays["x"][i : i + 1]})
            np.testing.assert_allclose(alone, y[i : i + 1], rtol=1e-13, atol=1e-13)
            np.testing.assert_allclose(backward(dy[i : i + 1], cache)[0], dx[i : i + 1], rtol=1e-12, atol=1e-12)

    @EVERY
    @pytest.mark.parametrize("shape", SHAPES)
    def test_what_the_gradient_is_orthogonal_to(self, rng, member, shape):
        """To ones, where the mean was taken off, and to x_hat: the two directions the forward pass takes out."""
        forward, backward, arrays, dy = made_for(member, rng, shape)
        _, cache = forward(**arrays, eps=0.0)
        dx, x_hat = backward(dy, cache)[0], cache.x_hat
        if "groups" in member:
            grouped = (shape[0], int(member[0]), -1, *shape[2:])
            dx, x_hat = dx.reshape(grouped), x_hat.reshape(grouped)
        axes = normalised_axes(member, dx.ndim)
        np.testing.assert_allclose((dx * x_hat).sum(axis=axes), 0, atol=1e-11)
        if member.startswith("rms"):
            assert np.abs(dx.sum(axis=axes)).max() > 1e-3
        else:
            np.testing.assert_allclose(dx.sum(axis=axes), 0, atol=1e-11)
            np.testing.assert_allclose(x_hat.mean(axis=axes), 0, atol=1e-13)
        np.testing.assert_allclose((x_hat**2).mean(axis=axes), 1, rtol=1e-12)

    @EVERY
    def test_without_gamma_and_beta_they_are_ones_and_zeros(self, rng, member):
        forward, backward, arrays, dy = made_for(member, rng, (3, 4, 5))
        bare, bare_cache = forward(x=arrays["x"])
        neutral = {n: np.ones_like(a) if n == "gamma" else np.zeros_like(a) for n, a in arrays.items() if n != "x"}
        full, full_cache = forward(x=arrays["x"], **neutral)
        np.testing.assert_array_equal(bare, full)
        for left, right in zip(backward(dy, bare_cache), backward(dy, full_cache), strict=True):
            np.testing.assert_array_equal(left, right)

    def test_the_cache_holds_the_statistics(self, rng):
        x = 3 + 2 * rng.standard_normal((3, 4, 5))
        _, cache = instance_norm(x, eps=0.25)
        np.testing.assert_allclose(cache.mean, x.mean(axis=2, keepdims=True), rtol=1e-12)
        np.testing.assert_allclose(cache.var, x.var(axis=2, keepdims=True), rtol=1e-12)
        np.testing.assert_allclose(cache.inv_std, (x.var(axis=2, keepdims=True) + 0.25) ** -0.5, rtol=1e-12)
        _, cache = rms_norm(x, eps=0.25)
        assert cache.mean is None
        np.testing.assert_allclose(cache.var, (x**2).mean(axis=(1, 2), keepdims=True), rtol=1e-12)

    def test_one_value_to_normalise_gives_beta(self):
        """Layer norm of one feature, groups of one channel without positions: the input is gone."""
        x, gamma, beta = np.array([[3.0], [-7.0]]), np.array([2.0]), np.array([0.5])
        np.testing.assert_array_equal(layer_norm(x, gamma, beta)[0], 0.5)
        np.testing.assert_array_equal(group_norm(x.T, np.ones(2), np.full(2, 0.5), groups=2)[0], 0.5)
        np.testing.assert_allclose(rms_norm(x, gamma)[0], [[2.0], [-2.0]], rtol=1e-6)


class TestPrecision:
    @pytest.mark.parametrize("member", ["layer", "layer, last axis", "rms", "instance", "2 groups"])
    @pytest.mark.parametrize("shape", [(4, 8, 50), (2, 4, 40, 40)])
    def test_float32_at_mean_1e3_std_01(self, rng, member, shape):
        forward, backward, arrays, dy = made_for(member, rng, shape, dtype=np.float32, mean=1e3, std=0.1)
        wide = {name: a.astype(np.float64) for name, a in arrays.items()}
        y, cache = forward(**arrays)
        exact, exact_cache = forward(**wide)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, exact, rtol=3e-5, atol=3e-5)
        dx, *_ = backward(dy, cache)
        dx_exact, *_ = backward(dy.astype(np.float64), exact_cache)
        np.testing.assert_allclose(dx, dx_exact, atol=1e-4 * np.abs(dx_exact).max())

    @EVERY
    def test_half_precision_is_computed_in_float32(self, rng, member):
        forward, backward, arrays, dy = made_for(member, rng, (3, 4, 5), dtype=np.float32, mean=30.0)
        half = arrays["x"].astype(np.float16)
        y, cache = forward(**{**arrays, "x": half})
        exact, _ = forward(**{**arrays, "x": half.astype(np.float64)})
        assert (y.dtype, cache.x_hat.dtype) == (np.float16, np.float32)
        np.testing.assert_allclose(y, exact, rtol=2e-3, atol=2e-3)
        dx, dgamma, *_ = backward(dy.astype(np.float16), cache)
        assert (dx.dtype, dgamma.dtype) == (np.float16, np.float32)

    @pytest.mark.parametrize("member", ["layer", "rms", "instance", "2 groups"])
    @pytest.mark.parametrize("shape", [(0, 4, 5), (2, 4, 0)])
    def test_empty_is_empty_and_silent(self, member, shape):
        forward, backward, _ = MEMBERS[member]
        y, cache = forward(x=np.empty(shape))
        dx, dgamma, *_ = backward(np.empty(shape), cache)
        assert y.shape == dx.shape == shape
        np.testing.assert_array_equal(dgamma, 0)
        assert np.isnan(cache.var).all()
        assert len(cache.var) == shape[0]


class TestErrors:
    @pytest.mark.parametrize("forward", [layer_norm, rms_norm, instance_norm, lambda x: group_norm(x, groups=1)])
    @pytest.mark.parametrize("shape", [(), (4,)])
    def test_too_few_axes(self, forward, shape):
        with pytest.raises(ValueError, match=r"at least 2D, got shape " + re.escape(str(shape))):
            forward(np.zeros(shape))

    @pytest.mark.parametrize("axes", [(), (3,), (-4,), (1, 1), (1, -2)])
    def test_axes(self, axes):
        for forward in (layer_norm, rms_norm):
            message = f"expected different axes of x with shape (2, 3, 4), got axes={axes}"
            with pytest.raises(ValueError, match=re.escape(message)):
                forward(np.zeros((2, 3, 4)), axes=axes)

    def test_axes_from_the_end(self, rng):
        x = rng.standard_normal((2, 3, 4))
        for negative, positive in (((-3,), (0,)), ((-1, -3), (0, 2))):
            np.testing.assert_array_equal(layer_norm(x, axes=negative)[0], layer_norm(x, axes=positive)[0])

    @EVERY
    @pytest.mark.parametrize("name", ["gamma", "beta"])
    def test_parameters_of_the_wrong_shape(self, member, name):
        forward, _, parameters = MEMBERS[member]
        if member.startswith("rms") and name == "beta":
            with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
                forward(x=np.zeros((2, 4, 3)), beta=np.zeros(4))
            return
        expected = re.escape(f"expected {name} of shape {parameters((2, 4, 3))}")
        which = "" if member.startswith(("layer", "rms")) else ", one value per channel of x with"
        with pytest.raises(ValueError, match=expected + (which or " for x with") + r" shape \(2, 4, 3\)"):
            forward(x=np.zeros((2, 4, 3)), **{name: np.zeros(7)})

    @pytest.mark.parametrize("groups", [0, -1, 3, 8])
    def test_groups(self, groups):
        message = f"groups to divide the 4 channels of x with shape (2, 4, 3), got groups={groups}"
        with pytest.raises(ValueError, match=re.escape(message)):
            group_norm(np.zeros((2, 4, 3)), groups=groups)

    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 1, 1)])
    def test_instance_norm_without_positions(self, shape):
        message = rf"more than 1 spatial element.*, got shape {re.escape(str(shape))}; for features .* use layer_norm"
        with pytest.raises(ValueError, match=message):
            instance_norm(np.zeros(shape))

    @EVERY
    def test_eps_dtype_and_dy(self, member):
        forward, backward, _ = MEMBERS[member]
        with pytest.raises(ValueError, match=r"expected eps >= 0, got -0\.5"):
            forward(x=np.zeros((2, 4, 3)), eps=-0.5)
        with pytest.raises(TypeError, match="real floating-point dtype, got int64"):
            forward(x=np.zeros((2, 4, 3), np.int64))
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 4, 3\), got \(2, 4\)"):
            backward(np.zeros((2, 4)), forward(x=np.ones((2, 4, 3)))[1])
