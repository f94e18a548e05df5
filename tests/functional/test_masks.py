"""Batch normalisation with a mask: padding neither enters the statistics nor gets a gradient, whatever it holds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from bnlearn.functional import batch_norm, batch_norm_backward, update_running
from bnlearn.gradcheck import numerical_gradient, relative_error

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")
    strict = pytest.importorskip("array_api_strict")

jax.config.update("jax_enable_x64", True)

SHAPES = [(9, 3), (4, 3, 7), (3, 2, 4, 5)]
SHAPED = pytest.mark.parametrize("shape", SHAPES)
TO = {
    "numpy": np.asarray,
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
}


def made(rng, shape, padding=np.nan):
    channels = shape[1]
    mask = rng.random((shape[0], *shape[2:])) < 0.6
    everywhere = np.broadcast_to(mask[:, None], shape)
    return {
        "x": np.where(everywhere, 2 + 3 * rng.standard_normal(shape), padding),
        "dy": np.where(everywhere, rng.standard_normal(shape), padding),
        "gamma": rng.uniform(0.5, 2.0, channels) * rng.choice([-1, 1], channels),
        "beta": rng.standard_normal(channels),
        "mask": mask,
    }


def compressed(a, mask):
    """The real positions alone, as (n, C)."""
    return np.moveaxis(a, 1, -1)[mask]


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


def run(d, **options):
    y, cache = batch_norm(d["x"], d["gamma"], d["beta"], mask=d["mask"], **options)
    return [y, *batch_norm_backward(d["dy"], cache)]


@SHAPED
@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30, 0.0])
def test_it_is_batch_norm_of_the_compressed_data(rng, shape, padding):
    d = made(rng, shape, padding)
    y, cache = batch_norm(d["x"], d["gamma"], d["beta"], mask=d["mask"], eps=1e-3)
    dx, dgamma, dbeta = batch_norm_backward(d["dy"], cache)
    real, real_cache = batch_norm(compressed(d["x"], d["mask"]), d["gamma"], d["beta"], eps=1e-3)
    real_dx, real_dgamma, real_dbeta = batch_norm_backward(compressed(d["dy"], d["mask"]), real_cache)
    close(compressed(y, d["mask"]), real)
    close(compressed(dx, d["mask"]), real_dx)
    close([dgamma, dbeta], [real_dgamma, real_dbeta])
    close([cache.mean, cache.var], [real_cache.mean, real_cache.var])
    assert int(cache.n) == d["mask"].sum()
    np.testing.assert_array_equal(compressed(y, ~d["mask"]), 0)
    np.testing.assert_array_equal(compressed(dx, ~d["mask"]), 0)


@SHAPED
def test_in_the_inference_form_too(rng, shape):
    d = made(rng, shape)
    given = {"mean": rng.standard_normal(shape[1]), "var": rng.uniform(0.5, 2, shape[1])}
    y, dx, *_ = run(d, **given)
    real, cache = batch_norm(compressed(d["x"], d["mask"]), d["gamma"], d["beta"], **given)
    close(compressed(y, d["mask"]), real)
    close(compressed(dx, d["mask"]), batch_norm_backward(compressed(d["dy"], d["mask"]), cache)[0])
    np.testing.assert_array_equal(compressed(y, ~d["mask"]), 0)
    np.testing.assert_array_equal(compressed(dx, ~d["mask"]), 0)


@SHAPED
@pytest.mark.parametrize("library", [name for name in TO if name not in {"numpy", "jax"}])  # JAX is below, compiled
def test_every_library_in_float64(rng, shape, library):
    d = made(rng, shape)
    there = run({name: TO[library](value) for name, value in d.items()})
    for ours, theirs in zip(there, run(d), strict=True):
        assert type(ours) is type(TO[library](d["x"]))
        close(ours, theirs)


@SHAPED
def test_nothing_masked_is_no_mask(rng, shape):
    d = made(rng, shape, 0.5)
    d["mask"] = np.ones_like(d["mask"])
    y, cache = batch_norm(d["x"], d["gamma"], d["beta"])
    for ours, plain in zip(run(d), [y, *batch_norm_backward(d["dy"], cache)], strict=True):
        close(ours, plain, 1e-12)


@SHAPED
def test_backward_is_torch_autograd(rng, shape):
    """Also through NaN in the padding, which a multiplication by the mask would not stop."""
    d = {name: torch.tensor(value) for name, value in made(rng, shape).items()}
    d["dy"] = torch.nan_to_num(d["dy"])
    inputs = [d[name].requires_grad_() for name in ("x", "gamma", "beta")]
    y, cache = batch_norm(*inputs, mask=d["mask"])
    found = torch.autograd.grad(y, inputs, d["dy"])
    with torch.no_grad():
        for ours, theirs in zip(batch_norm_backward(d["dy"], cache), found, strict=True):
            close(ours, theirs, 1e-9)


def test_backward_is_jax_grad(rng):
    d = {name: jax.numpy.asarray(np.nan_to_num(value)) for name, value in made(rng, SHAPES[1]).items()}
    d["mask"] = d["mask"].astype(bool)

    @jax.jit
    def both(x, gamma, beta, mask):
        _, pull = jax.vjp(lambda *a: batch_norm(*a, mask=mask)[0], x, gamma, beta)
        return run({**d, "x": x, "mask": mask})[1:], pull(d["dy"])

    found = both(d["x"], d["gamma"], d["beta"], d["mask"])
    numpy = run({name: np.asarray(value) for name, value in d.items()})[1:]
    for ours, theirs, eager in zip(*found, numpy, strict=True):
        close(ours, theirs, 1e-9)
        close(ours, eager)


@SHAPED
def test_backward_is_finite_differences(rng, shape):
    d = made(rng, shape, 0.5)
    inputs = [d["x"], d["gamma"], d["beta"]]
    for i, ours in enumerate(run(d)[1:]):

        def loss(a, i=i):
            return (d["dy"] * batch_norm(*inputs[:i], a, *inputs[i + 1 :], mask=d["mask"])[0]).sum()

        assert relative_error(ours, numerical_gradient(loss, inputs[i])) < 1e-6


# -- Keras


@SHAPED
def test_keras_channels_last_where_unmasked(rng, shape):
    """Keras divides by the count plus its own 1e-7, and leaves numbers in the padding; ours are zero there."""
    d = made(rng, shape)
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, dtype="float64")
    layer.build((*shape[:1], *shape[2:], shape[1]))
    mean, var = rng.standard_normal(shape[1]), rng.uniform(0.5, 2, shape[1])
    layer.set_weights([d["gamma"], d["beta"], mean, var])
    x, dy = (np.moveaxis(np.nan_to_num(d[name]), 1, -1) for name in ("x", "dy"))
    x = tf.Variable(x)
    with tf.GradientTape() as tape:
        theirs = layer(x, training=True, mask=tf.constant(d["mask"]))
    gradients = tape.gradient(theirs, [x, layer.gamma.value, layer.beta.value], dy)

    y, cache = batch_norm(d["x"], d["gamma"], d["beta"], mask=d["mask"], eps=1e-3)
    dx, *rest = batch_norm_backward(d["dy"], cache)
    running = update_running(mean, var, cache.mean, cache.var, cache.n, momentum=0.1, unbiased=False)
    tolerance = 1e-6  # that 1e-7
    close(compressed(y, d["mask"]), np.asarray(theirs)[d["mask"]], tolerance)
    close(compressed(dx, d["mask"]), np.asarray(gradients[0])[d["mask"]], tolerance)
    for ours, other in zip([*rest, *running], [*gradients[1:], layer.moving_mean, layer.moving_variance], strict=True):
        close(ours, other, tolerance)
    assert np.abs(np.asarray(theirs)[~d["mask"]]).min() > 0


def test_kerass_fully_masked_batch_is_not_ours():
    layer = keras.layers.BatchNormalization(momentum=0.9)
    x, mask = np.full((4, 3), 5.0, "f"), np.zeros(4, bool)
    layer.build(x.shape)
    layer.moving_mean.assign(np.full(3, 2.0))
    layer(x, training=True, mask=mask)
    np.testing.assert_allclose(layer.moving_mean, 1.8, rtol=1e-6)  # dragged towards zero by nothing at all
    _, cache = batch_norm(x, mask=mask)
    mean, _ = update_running(np.full(3, 2.0), np.ones(3), cache.mean, cache.var, cache.n)
    np.testing.assert_array_equal(mean, 2)


# -- a batch that is all padding


def step(x, mask, mean, var, unbiased=True):
    y, cache = batch_norm(x, mask=mask)
    return [y, *update_running(mean, var, cache.mean, cache.var, cache.n, unbiased=unbiased)]


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("how", [*TO, "jax.jit", "tf.function"])
def test_a_fully_masked_batch_leaves_the_running_statistics(rng, how, unbiased):
    mean, var = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
    arrays = [np.full((4, 3, 2), np.nan), np.zeros((4, 2), bool), mean, var]
    to = TO["jax" if how == "jax.jit" else "keras.ops on TensorFlow" if how == "tf.function" else how]
    wrap = {"jax.jit": lambda f: jax.jit(f, static_argnums=4), "tf.function": tf.function}.get(how, lambda f: f)
    y, *running = wrap(step)(*(to(a) for a in arrays), unbiased)
    np.testing.assert_array_equal(np.asarray(y), 0)
    for ours, before in zip(running, [mean, var], strict=True):
        np.testing.assert_array_equal(np.asarray(ours), before)


@pytest.mark.parametrize("how", ["jax.jit", "tf.function"])
def test_traced_counts_count(rng, how):
    d = made(rng, (6, 3, 4))
    mean, var = rng.standard_normal(3), rng.uniform(0.5, 2, 3)
    to, wrap = (jax.numpy.asarray, jax.jit) if how == "jax.jit" else (tf.constant, tf.function)
    there = wrap(lambda *a: step(*a))(*(to(a) for a in (d["x"], d["mask"], mean, var)))
    for ours, eager in zip(there, step(d["x"], d["mask"], mean, var), strict=True):
        close(ours, eager)


def test_one_real_value_gives_beta_and_has_no_unbiased_variance(rng):
    d = made(rng, (4, 3, 2))
    d["mask"] = np.zeros((4, 2), bool)
    d["mask"][2, 1] = True
    d["x"][2, :, 1] = 7.0
    y, cache = batch_norm(d["x"], d["gamma"], d["beta"], mask=d["mask"])
    np.testing.assert_array_equal(y[2, :, 1], d["beta"])
    with pytest.raises(ValueError, match="expected n > 1 values per channel for an unbiased variance, got n = 1"):
        update_running(np.zeros(3), np.ones(3), cache.mean, cache.var, cache.n)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
def test_empty_batches(shape):
    y, cache = batch_norm(np.empty(shape), mask=np.ones((shape[0], *shape[2:]), bool))
    assert y.shape == shape
    assert int(cache.n) == 0


# -- errors


@pytest.mark.parametrize("library", TO)
def test_a_mask_of_another_kind(library):
    to = TO[library]
    with pytest.raises(TypeError, match=r"expected mask of dtype bool, True where x is real, got .*float64.*mask > 0"):
        batch_norm(to(np.zeros((4, 3))), mask=to(np.ones(4)))


@pytest.mark.parametrize("wrong", [(4, 3), (4,), (2, 4), (4, 2, 1)])
def test_a_mask_of_another_shape(wrong):
    with pytest.raises(
        ValueError, match=r"expected mask of shape \(4, 2\), \(N, \*spatial\) for x with shape \(4, 3, 2\)"
    ):
        batch_norm(np.zeros((4, 3, 2)), mask=np.ones(wrong, bool))


def test_under_torch_compile_the_count_stays_a_tensor(rng, monkeypatch):
    """Asking for its value would break the graph."""
    d = {name: torch.tensor(value) for name, value in made(rng, (6, 3, 4)).items()}
    _, cache = batch_norm(d["x"], mask=d["mask"])
    given = (torch.zeros(3).double(), torch.ones(3).double(), cache.mean, cache.var, cache.n)
    eager = update_running(*given)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.Tensor, "__index__", lambda self: pytest.fail("asked for"))
    for ours, expected in zip(update_running(*given), eager, strict=True):
        close(ours, expected)
