"""The formulas against everybody else's: PyTorch, JAX, Keras, TensorFlow and Array API strict."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnlearn.functional import batch_norm, batch_norm_backward, batch_norm_backward_staged, update_running

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")
    strict = pytest.importorskip("array_api_strict")

jax.config.update("jax_enable_x64", True)

SHAPES = [(6, 3), (5, 4, 7), (4, 3, 5, 6), (2, 3, 4, 3, 5)]
TO = {
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
}


def made(rng, shape, dtype=np.float64, mean=0.0, std=1.0):
    channels = shape[1]
    return {
        "x": (mean + std * rng.standard_normal(shape)).astype(dtype),
        "gamma": (rng.uniform(0.5, 2.0, channels) * rng.choice([-1, 1], channels)).astype(dtype),
        "beta": rng.standard_normal(channels).astype(dtype),
        "dy": rng.standard_normal(shape).astype(dtype),
        "running_mean": (mean + std * rng.standard_normal(channels)).astype(dtype),
        "running_var": (std**2 * rng.uniform(0.5, 2.0, channels)).astype(dtype),
    }


def run(d, *, training=True, momentum=0.1, eps=1e-5):
    """Everything there is to compare, from our functions, on arrays of any library."""
    given = {} if training else {"mean": d["running_mean"], "var": d["running_var"]}
    y, cache = batch_norm(d["x"], d["gamma"], d["beta"], eps=eps, **given)
    dx, dgamma, dbeta = batch_norm_backward(d["dy"], cache)
    mean, var = d["running_mean"], d["running_var"]
    if training:
        n = int(np.prod(d["x"].shape)) // d["x"].shape[1]
        mean, var = update_running(mean, var, cache.mean, cache.var, n, momentum=momentum)
    return {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta, "running_mean": mean, "running_var": var}


def run_torch(d, *, training=True, momentum=0.1, eps=1e-5):
    """The same from PyTorch's own batch norm and autograd."""
    t = {name: torch.tensor(value) for name, value in d.items()}
    for name in ("x", "gamma", "beta"):
        t[name].requires_grad_()
    y = torch.nn.functional.batch_norm(
        t["x"], t["running_mean"], t["running_var"], t["gamma"], t["beta"], training, momentum, eps
    )
    y.backward(t["dy"])
    grads = {"dx": t["x"].grad, "dgamma": t["gamma"].grad, "dbeta": t["beta"].grad}
    found = {"y": y.detach(), **grads, "running_mean": t["running_mean"], "running_var": t["running_var"]}
    return {name: value.numpy() for name, value in found.items()}


def assert_agree(ours, theirs, tolerance):
    for name, value in theirs.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(np.asarray(ours[name]), value, rtol=tolerance, atol=tolerance * scale, err_msg=name)


class TestPyTorch:
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_float64_to_1e_10(self, rng, shape, training):
        d = made(rng, shape)
        assert_agree(run(d, training=training), run_torch(d, training=training), 1e-10)

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_float64_at_mean_1e3_std_01_to_1e_8(self, rng, shape, training):
        d = made(rng, shape, mean=1e3, std=0.1)
        assert_agree(run(d, training=training), run_torch(d, training=training), 1e-8)

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_float32_to_1e_5(self, rng, shape, training):
        d = made(rng, shape, np.float32)
        assert_agree(run(d, training=training), run_torch(d, training=training), 1e-5)

    @pytest.mark.parametrize("shape", [(64, 5), (1000, 5), (16, 5, 20, 20)])
    def test_float32_at_mean_1e3_is_no_less_accurate_than_torch(self, rng, shape):
        d = made(rng, shape, np.float32, mean=1e3, std=0.1)
        exact = run({name: value.astype(np.float64) for name, value in d.items()})
        ours, theirs = run(d), run_torch(d)
        for name in ("y", "dx", "dgamma"):
            assert np.abs(ours[name] - exact[name]).max() <= np.abs(theirs[name] - exact[name]).max(), name

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_autograd_through_our_forward_equals_our_backward(self, rng, shape, training):
        d = {name: torch.tensor(value) for name, value in made(rng, shape).items()}
        for name in ("x", "gamma", "beta"):
            d[name].requires_grad_()
        given = {} if training else {"mean": d["running_mean"], "var": d["running_var"]}
        y, cache = batch_norm(d["x"], d["gamma"], d["beta"], **given)
        y.backward(d["dy"])
        with torch.no_grad():
            hand_written = batch_norm_backward(d["dy"], cache)
        for ours, name in zip(hand_written, ("x", "gamma", "beta"), strict=True):
            torch.testing.assert_close(ours, d[name].grad, rtol=1e-10, atol=1e-10)

    def test_running_statistics_leave_the_graph(self, rng):
        """Otherwise every batch's graph would live as long as the running statistics, and a second backward fail."""
        d = {name: torch.tensor(value) for name, value in made(rng, (6, 3)).items()}
        mean, var = d["running_mean"], d["running_var"]
        d["x"].requires_grad_()
        for _ in range(2):
            y, cache = batch_norm(d["x"], d["gamma"])
            mean, var = update_running(mean, var, cache.mean, cache.var, n=6)
            (y * d["dy"] + batch_norm(d["x"], mean=mean, var=var)[0]).sum().backward()
        assert not mean.requires_grad
        assert not var.requires_grad

    def test_half_precision_staged(self, rng):
        d = made(rng, (8, 3), np.float32)
        _, cache = batch_norm(torch.tensor(d["x"]).bfloat16(), torch.tensor(d["gamma"]))
        (dx, _, _), _ = batch_norm_backward_staged(torch.tensor(d["dy"]).bfloat16(), cache)
        assert dx.dtype == torch.bfloat16

    def test_second_derivatives(self, rng):
        """``gradgradcheck`` differentiates our forward twice: nothing in it blocks the graph."""
        x = torch.tensor(rng.standard_normal((5, 3)), requires_grad=True)
        gamma = torch.tensor(rng.uniform(0.5, 2, 3), requires_grad=True)
        assert torch.autograd.gradgradcheck(lambda *a: batch_norm(*a)[0], (x, gamma))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("shape", [(6, 3), (3, 3, 4)])
    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
    def test_nan_and_infinity_pass_through_as_in_torch(self, rng, shape, bad, training):
        d = made(rng, shape)
        d["x"][(2, 1, *[0] * (len(shape) - 2))] = bad
        ours, theirs = run(d, training=training), run_torch(d, training=training)
        for name in ("y", "dx", "running_mean", "running_var", "dgamma", "dbeta"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-10, atol=1e-10, err_msg=name)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_as_torch_with_float32_parameters(self, rng, dtype):
        d = made(rng, (32, 3), np.float32, mean=2.0)
        x = torch.tensor(d["x"]).to(dtype)
        gamma, beta = torch.tensor(d["gamma"]), torch.tensor(d["beta"])
        ours, _ = batch_norm(x, gamma, beta)
        theirs = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True)
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]), training=st.booleans())
    def test_any_shape(self, data, dtype, training):
        shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=5, min_side=1, max_side=5))
        if training and np.prod(shape) == shape[1]:
            return  # one value per channel, which PyTorch refuses
        d = made(np.random.default_rng(data.draw(st.integers(0, 2**31))), shape, dtype)
        # Two values close together make dx large and ill-conditioned: the tolerance is relative to that.
        assert_agree(run(d, training=training), run_torch(d, training=training), 1e-9 if dtype == np.float64 else 3e-4)


@pytest.mark.parametrize("library", TO)
class TestOneFormulaEveryLibrary:
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_same_as_numpy_in_float64(self, rng, library, shape, training):
        d = made(rng, shape)
        there = run({name: TO[library](value) for name, value in d.items()}, training=training)
        assert {type(value) for value in there.values()} == {type(TO[library](d["x"]))}
        assert_agree(there, run(d, training=training), 1e-12)

    def test_float32_stays_float32(self, rng, library):
        d = {name: TO[library](value) for name, value in made(rng, (6, 3), np.float32).items()}
        for name, value in run(d, momentum=np.float64(0.1), eps=np.float64(1e-5)).items():
            assert "float32" in str(value.dtype), name

    def test_parameters_of_another_width(self, rng, library):
        """TensorFlow refuses to mix them, others would widen: here everything takes the width of x."""
        d = made(rng, (6, 3, 4), np.float32)
        wide = {name: TO[library](value.astype(np.float64)) for name, value in d.items()}
        x, dy = TO[library](d["x"]), TO[library](d["dy"])
        for statistics in ({}, {"mean": wide["running_mean"], "var": wide["running_var"]}):
            y, cache = batch_norm(x, wide["gamma"], wide["beta"], **statistics)
            dx, dgamma, _ = batch_norm_backward(dy, cache)
            assert all("float32" in str(array.dtype) for array in (y, cache.x_hat, dx, dgamma))
        (staged, *_), _ = batch_norm_backward_staged(dy, batch_norm(x, wide["gamma"])[1])
        closed, *_ = batch_norm_backward(d["dy"], batch_norm(d["x"], d["gamma"])[1])
        np.testing.assert_allclose(np.asarray(staged), closed, rtol=1e-4, atol=1e-5)

    def test_staged_backward(self, rng, library):
        d = made(rng, (5, 3, 4))
        t = {name: TO[library](value) for name, value in d.items()}
        staged, _ = batch_norm_backward_staged(t["dy"], batch_norm(t["x"], t["gamma"], t["beta"])[1])
        closed = batch_norm_backward(d["dy"], batch_norm(d["x"], d["gamma"], d["beta"])[1])
        for ours, theirs in zip(staged, closed, strict=True):
            np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-10, atol=1e-10)

    def test_errors_are_the_same_everywhere(self, library):
        to = TO[library]
        with pytest.raises(ValueError, match=r"expected gamma of shape \(3,\)"):
            batch_norm(to(np.zeros((4, 3))), to(np.ones(2)))
        with pytest.raises(TypeError, match="expected x of a real floating-point dtype"):
            batch_norm(to(np.zeros((4, 3), dtype=np.int32)))

    def test_empty_batch(self, library):
        y, cache = batch_norm(TO[library](np.empty((0, 3))))
        assert tuple(y.shape) == (0, 3)
        assert np.isnan(np.asarray(cache.mean)).all()


class TestJax:
    def test_running_statistics_with_a_traced_count(self):
        step = jax.jit(lambda n: update_running(*(jax.numpy.ones(2),) * 4, n)[1])
        np.testing.assert_allclose(step(5), 0.9 + 0.1 * 1.25)

    def test_grad_and_jit(self, rng):
        d = {name: jax.numpy.asarray(value) for name, value in made(rng, (5, 3, 4)).items()}
        y, pull = jax.vjp(lambda x, gamma, beta: batch_norm(x, gamma, beta)[0], d["x"], d["gamma"], d["beta"])
        compiled, cache = jax.jit(batch_norm)(d["x"], d["gamma"], d["beta"])
        np.testing.assert_allclose(compiled, y, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(jax.jit(batch_norm_backward)(d["dy"], cache), pull(d["dy"]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


class TestKerasAndTensorFlow:
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_keras_layer_after_the_convention_is_converted(self, rng, shape, training):
        """Keras: channels last, eps 1e-3, momentum the weight of the OLD, running variance biased."""
        d = made(rng, shape)
        layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, dtype="float64")
        channels_last = np.moveaxis(d["x"], 1, -1)
        layer.build(channels_last.shape)
        layer.set_weights([d["gamma"], d["beta"], d["running_mean"], d["running_var"]])
        x = tf.Variable(channels_last)
        with tf.GradientTape() as tape:
            y = layer(x, training=training)
        dx, dgamma, dbeta = tape.gradient(
            y, [x, layer.gamma.value, layer.beta.value], output_gradients=np.moveaxis(d["dy"], 1, -1)
        )

        given = {} if training else {"mean": d["running_mean"], "var": d["running_var"]}
        ours, cache = batch_norm(d["x"], d["gamma"], d["beta"], eps=1e-3, **given)
        mean, var = d["running_mean"], d["running_var"]
        if training:
            n = d["x"].size // shape[1]
            mean, var = update_running(mean, var, cache.mean, cache.var, n, momentum=1 - 0.9, unbiased=False)
        ours_dx, ours_dgamma, ours_dbeta = batch_norm_backward(d["dy"], cache)
        pairs = {
            "y": (np.moveaxis(ours, 1, -1), y),
            "dx": (np.moveaxis(ours_dx, 1, -1), dx),
            "dgamma": (ours_dgamma, dgamma),
            "dbeta": (ours_dbeta, dbeta),
            "mean": (mean, layer.moving_mean),
            "var": (var, layer.moving_variance),
        }
        for name, (left, right) in pairs.items():
            np.testing.assert_allclose(left, np.asarray(right), rtol=1e-10, atol=1e-10, err_msg=name)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_tf_nn_batch_normalization(self, rng, shape):
        d = made(rng, shape)
        channels_last = np.moveaxis(d["x"], 1, -1)
        mean, var = tf.nn.moments(tf.constant(channels_last), axes=range(channels_last.ndim - 1))
        theirs = tf.nn.batch_normalization(channels_last, mean, var, d["beta"], d["gamma"], 1e-5)
        ours, _ = batch_norm(d["x"], d["gamma"], d["beta"])
        np.testing.assert_allclose(np.moveaxis(ours, 1, -1), theirs, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("unbiased", [True, False])
    def test_running_statistics_inside_tf_function(self, rng, unbiased):
        d = made(rng, (6, 3), np.float32)

        @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32)])
        def step(x):
            _, cache = batch_norm(x)
            n = tf.shape(x)[0]
            return update_running(tf.zeros(3), tf.ones(3), cache.mean, cache.var, n, unbiased=unbiased)

        _, cache = batch_norm(d["x"])
        ours = update_running(np.zeros(3, "f"), np.ones(3, "f"), cache.mean, cache.var, 6, unbiased=unbiased)
        for left, right in zip(ours, step(d["x"]), strict=True):
            np.testing.assert_allclose(right, left, rtol=1e-5, atol=1e-6)

    def test_channels_that_are_not_known_yet(self):
        traced = tf.function(
            lambda x, gamma: batch_norm_backward_staged(x, batch_norm(x, gamma)[1])[0],
            input_signature=[tf.TensorSpec((None, None), tf.float64), tf.TensorSpec((3,), tf.float64)],
        )
        x, gamma = np.random.default_rng(0).standard_normal((5, 3)), np.array([1.0, -2.0, 0.5])
        closed = batch_norm_backward(x, batch_norm(x, gamma)[1])
        for ours, there in zip(closed, traced(x, gamma), strict=True):
            np.testing.assert_allclose(there, ours, rtol=1e-10, atol=1e-10)

    def test_tensorflow_tensors_need_keras_on_tensorflow(self, monkeypatch):
        monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
        with pytest.raises(
            TypeError, match="TensorFlow backend for TensorFlow tensors, got the backend 'torch'; set KERAS"
        ):
            batch_norm(tf.zeros((4, 3)))

    def test_inside_tf_function_with_an_unknown_batch_size(self, rng):
        d = made(rng, (6, 3, 4))
        traced = tf.function(
            lambda x, dy: batch_norm_backward(dy, batch_norm(x)[1]),
            input_signature=[tf.TensorSpec((None, 3, 4), tf.float64)] * 2,
        )
        for ours, there in zip(
            batch_norm_backward(d["dy"], batch_norm(d["x"])[1]), traced(d["x"], d["dy"]), strict=True
        ):
            np.testing.assert_allclose(there, ours, rtol=1e-10, atol=1e-10)

    def test_keras_variables_and_symbolic_tensors(self, rng):
        d = made(rng, (6, 3), np.float32)
        y, _ = batch_norm(tf.constant(d["x"]), keras.Variable(d["gamma"]), keras.Variable(d["beta"]))
        np.testing.assert_allclose(y, batch_norm(d["x"], d["gamma"], d["beta"])[0], rtol=1e-5, atol=1e-5)
        symbolic, _ = batch_norm(keras.KerasTensor((None, 3), dtype="float32"))
        assert symbolic.shape == (None, 3)

    def test_bfloat16(self, rng):
        y, cache = batch_norm(tf.cast(tf.constant(rng.standard_normal((8, 3))), tf.bfloat16))
        assert (y.dtype, cache.x_hat.dtype) == (tf.bfloat16, tf.float32)
