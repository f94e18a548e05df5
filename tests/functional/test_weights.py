"""The normalisers of the weights: one formula on every library, and PyTorch's own where it has one."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    batch_norm,
    rms_norm,
    spectral_norm,
    spectral_norm_backward,
    weight_norm,
    weight_norm_backward,
    weight_standardization,
    weight_standardization_backward,
)
from bnlearn.gradcheck import numerical_gradient, relative_error

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")
    strict = pytest.importorskip("array_api_strict")

jax.config.update("jax_enable_x64", True)

SHAPES = [(4, 3), (4, 3, 3, 2)]
TO = {
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
}


def made(rng, shape, dim=0, mean=0.3):
    kept = [] if dim is None else [axis % len(shape) for axis in np.atleast_1d(dim)]
    lengths = tuple(shape[axis] for axis in sorted(kept))
    rest = int(np.prod([length for axis, length in enumerate(shape) if axis not in kept]))
    return {
        "w": mean + rng.standard_normal(shape),
        "gain": np.asarray(rng.uniform(0.5, 2.0, lengths) * rng.choice([-1, 1], lengths)),
        "dw_hat": rng.standard_normal(shape),
        "u": rng.standard_normal(int(np.prod(lengths))),
        "v": rng.standard_normal(rest),
    }


# Each: the outputs and gradients, and what to differentiate by.


def run_weight_norm(d, dim=0, **options):
    w, cache = weight_norm(d["w"], d["gain"], dim=dim, **options)
    dv, dg = weight_norm_backward(d["dw_hat"], cache)
    return {"w_hat": w, "dw": dv, "dgain": dg}


def run_standardization(d, dim=0, scaled=False, **options):
    w, cache = weight_standardization(d["w"], d["gain"], dim=dim, scaled=scaled, **options)
    dw, dgain = weight_standardization_backward(d["dw_hat"], cache)
    return {"w_hat": w, "dw": dw, "dgain": dgain}


def run_scaled(d, dim=0):
    return run_standardization(d, dim, scaled=True)


def run_spectral(d, dim=0, iterations=2, start="v"):
    w, cache = spectral_norm(d["w"], d["u"], d["v"] if start == "v" else None, dim=dim, iterations=iterations)
    dw = spectral_norm_backward(d["dw_hat"], cache)
    return {"w_hat": w, "dw": dw, "sigma": cache.sigma, "u": cache.u, "v": cache.v}


def run_spectral_from_u(d, dim=0):
    return run_spectral(d, dim, start="u")


RUNS = {
    "weight norm": run_weight_norm,
    "standardization": run_standardization,
    "scaled standardization": run_scaled,
    "spectral norm": run_spectral,
    "spectral norm from u": run_spectral_from_u,
}
EACH = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def assert_agree(ours, theirs, tolerance):
    for name, value in theirs.items():
        found = np.asarray(ours[name])
        assert found.shape == value.shape, name
        np.testing.assert_allclose(
            found, value, rtol=tolerance, atol=tolerance * max(1, np.abs(value).max()), err_msg=name
        )


# -- one formula, every library


@pytest.mark.parametrize("library", TO)
@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 0), ((3, 2, 4, 5), -1), ((4, 3, 2), 1)])
@EACH
def test_same_as_numpy_in_float64(run, shape, dim, library, rng):
    d = made(rng, shape, dim)
    there = run({name: TO[library](value) for name, value in d.items()}, dim)
    assert {type(value) for value in there.values()} == {type(TO[library](d["w"]))}
    assert_agree(there, run(d, dim), 1e-10)


@pytest.mark.parametrize("library", TO)
@EACH
def test_float32_stays_float32_with_parameters_of_another_width(run, library, rng):
    d = {name: TO[library](value.astype(np.float32)) for name, value in made(rng, (4, 3, 2)).items()}
    d["gain"], d["u"], d["v"] = (TO[library](np.asarray(d[name], np.float64)) for name in ("gain", "u", "v"))
    found = run(d)
    assert all("float32" in str(found[name].dtype) for name in ("w_hat", "dw"))


@EACH
def test_half_precision_is_computed_in_float32(run, rng):
    d = {name: value.astype(np.float32) for name, value in made(rng, (4, 3, 5)).items()}
    half = {name: torch.tensor(value).bfloat16() for name, value in d.items()}
    found, expected = run(half), run({name: value.float() for name, value in half.items()})
    for name in ("w_hat", "dw"):
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name], expected[name].bfloat16(), rtol=0, atol=0)
    for name in set(found) - {"w_hat", "dw"}:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


# -- the gradients


@pytest.mark.parametrize("shape", SHAPES)
@EACH
def test_backward_equals_autograd_and_jax_grad(run, shape, rng):
    d = made(rng, shape)
    hand_written = run(d)

    t = {name: torch.tensor(value) for name, value in d.items()}
    for name in ("w", "gain", "u", "v"):
        t[name].requires_grad_()
    (run({**t, "dw_hat": t["dw_hat"]})["w_hat"] * t["dw_hat"]).sum().backward()
    assert_agree({"dw": t["w"].grad}, {"dw": hand_written["dw"]}, 1e-9)
    if "dgain" in hand_written:
        assert_agree({"dgain": t["gain"].grad}, {"dgain": hand_written["dgain"]}, 1e-9)
    else:
        assert t["u"].grad is None
        assert t["v"].grad is None

    def loss(w, gain):
        return (run({**d, "w": w, "gain": gain, **there})["w_hat"] * d["dw_hat"]).sum()

    there = {name: jax.numpy.asarray(d[name]) for name in ("dw_hat", "u", "v")}
    dw, dgain = jax.grad(loss, argnums=(0, 1))(jax.numpy.asarray(d["w"]), jax.numpy.asarray(d["gain"]))
    assert_agree({"dw": dw}, {"dw": hand_written["dw"]}, 1e-9)
    if "dgain" in hand_written:
        assert_agree({"dgain": dgain}, {"dgain": hand_written["dgain"]}, 1e-9)


@EACH
def test_backward_equals_tensorflow_s_tape_which_the_vectors_do_not_enter(run, rng):
    d = made(rng, (4, 3, 2))
    t = {name: tf.constant(value) for name, value in d.items()}
    with tf.GradientTape() as tape:
        tape.watch([t[name] for name in ("w", "u", "v")])
        loss = tf.reduce_sum(run(t)["w_hat"] * t["dw_hat"])
    dw, du, dv = tape.gradient(loss, [t[name] for name in ("w", "u", "v")])
    assert_agree({"dw": dw}, {"dw": run(d)["dw"]}, 1e-9)
    assert du is None
    assert dv is None


@pytest.mark.parametrize("run", [run_weight_norm, run_standardization, run_scaled])
@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 0), ((3, 2, 4), -1), ((2, 3, 4), (0, 1)), ((3, 4), None)])
def test_backward_by_finite_differences(run, shape, dim, rng):
    d = made(rng, shape, dim)
    found = run(d, dim)
    for name in ("w", "gain"):
        numerical = numerical_gradient(lambda a, n=name: (run({**d, n: a}, dim)["w_hat"] * d["dw_hat"]).sum(), d[name])
        assert relative_error(found[f"d{name}"], numerical) < 1e-8, name


@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 0), ((3, 2, 4), -1), ((2, 3, 2), 1)])
def test_spectral_backward_by_finite_differences_at_constant_vectors(shape, dim, rng):
    d = made(rng, shape, dim)
    found = run_spectral(d, dim, iterations=0)
    numerical = numerical_gradient(
        lambda w: (run_spectral({**d, "w": w}, dim, iterations=0)["w_hat"] * d["dw_hat"]).sum(), d["w"]
    )
    assert relative_error(found["dw"], numerical) < 1e-8


def test_spectral_backward_is_the_singular_value_s_own_once_converged(rng):
    """At convergence u and v may be held constant: how they turn does not change sigma to first order."""
    d = made(rng, (4, 3))
    found = run_spectral(d, iterations=300)
    numerical = numerical_gradient(lambda w: (w / np.linalg.svd(w, compute_uv=False)[0] * d["dw_hat"]).sum(), d["w"])
    assert relative_error(found["dw"], numerical) < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_identities(shape, rng):
    d = made(rng, shape)
    fan_in = tuple(range(1, len(shape)))
    size = np.abs(d["w"]).max()
    assert np.abs((run_weight_norm(d)["dw"] * d["w"]).sum(axis=fan_in)).max() < 1e-13 * size
    for scaled in (False, True):
        dw = run_standardization(d, scaled=scaled, eps=0.0)["dw"]
        assert np.abs(dw.sum(axis=fan_in)).max() < 1e-13 * size
        assert np.abs((dw * d["w"]).sum(axis=fan_in)).max() < 1e-13 * size
    assert abs((run_spectral(d)["dw"] * d["w"]).sum()) < 1e-13 * size


# -- what each is


@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 0), ((3, 2, 4, 5), -1), ((2, 3, 2), (0, 2)), ((3, 4), None)])
def test_weight_norm_gives_every_filter_its_length(shape, dim, rng):
    d = made(rng, shape, dim)
    w = run_weight_norm(d, dim)["w_hat"]
    kept = () if dim is None else [axis % len(shape) for axis in np.atleast_1d(dim)]
    axes = tuple(axis for axis in range(len(shape)) if axis not in kept)
    np.testing.assert_allclose(np.sqrt((w * w).sum(axis=axes)), np.abs(d["gain"]), rtol=1e-13)
    ratio = w / d["w"]
    np.testing.assert_allclose(ratio, ratio.mean(axis=axes, keepdims=True) + 0 * ratio, rtol=1e-12)


def test_weight_norm_is_rms_norm_of_the_filters(rng):
    d = made(rng, (4, 9))
    expected, _ = rms_norm(d["w"], eps=0.0)
    np.testing.assert_allclose(run_weight_norm(d)["w_hat"], expected / 3 * d["gain"][:, None], rtol=1e-14)


def test_weight_norm_forgets_the_length_of_v(rng):
    d = made(rng, (4, 3, 2))
    longer = {**d, "w": d["w"] * np.array([2.0, 0.1, 7.0, 1e6])[:, None, None]}
    np.testing.assert_allclose(run_weight_norm(longer)["w_hat"], run_weight_norm(d)["w_hat"], rtol=1e-13)


def test_standardization_is_batch_norm_of_the_fan_in(rng):
    """The filters as channels, their weights as the batch."""
    d = made(rng, (4, 3, 2, 2))
    expected, _ = batch_norm(d["w"].reshape(4, -1).T, d["gain"], eps=1e-3)
    found = run_standardization(d, eps=1e-3)["w_hat"]
    np.testing.assert_allclose(found.reshape(4, -1).T, expected, rtol=1e-12)


def test_default_eps_and_no_gain(rng):
    w = rng.standard_normal((3, 4)) * 1e-3
    found, cache = weight_standardization(w)
    variance = w.var(axis=1, keepdims=True)
    np.testing.assert_allclose(found, (w - w.mean(axis=1, keepdims=True)) / np.sqrt(variance + 1e-6), rtol=1e-12)
    dw_hat = rng.standard_normal((3, 4))
    dw, dgain = weight_standardization_backward(dw_hat, cache)
    ones, cache = weight_standardization(w, np.ones((3, 1)))
    expected_dw, expected_dgain = weight_standardization_backward(dw_hat, cache)
    np.testing.assert_array_equal(found, ones)
    np.testing.assert_allclose(dw, expected_dw, rtol=1e-14)
    assert dgain.shape == (3, 1)
    np.testing.assert_array_equal(dgain, expected_dgain)


@pytest.mark.parametrize("fan_in", [4, 400])
def test_scaled_standardization_keeps_the_variance_of_its_input(fan_in, rng):
    w, _ = weight_standardization(rng.standard_normal((3, fan_in)) + 5, scaled=True, eps=0.0)
    np.testing.assert_allclose(w.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose((w * w).sum(axis=1), 1)  # the variance of w @ x, for x of independent unit variances


@pytest.mark.parametrize("start", ["u", "v"])
@pytest.mark.parametrize(("shape", "dim"), [((4, 3), 0), ((3, 2, 4), -1), ((2, 3, 2, 2), 1)])
def test_spectral_norm_is_the_largest_singular_value(shape, dim, start, rng):
    d = made(rng, shape, dim)
    found = run_spectral(d, dim, iterations=500, start=start)
    matrix = np.moveaxis(d["w"], dim, 0).reshape(shape[dim], -1)
    left, values, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(found["sigma"], values[0], rtol=1e-12)
    np.testing.assert_allclose(found["w_hat"], d["w"] / values[0], rtol=1e-12)
    np.testing.assert_allclose(np.abs(found["u"] @ left[:, 0]), 1, rtol=1e-12)
    np.testing.assert_allclose(np.abs(found["v"] @ right[0]), 1, rtol=1e-12)


def test_spectral_norm_approaches_from_below_and_the_state_goes_on(rng):
    d = made(rng, (6, 5), mean=0.0)
    largest = np.linalg.svd(d["w"], compute_uv=False)[0]
    sigmas, u, v = [], d["u"], d["v"]
    for _ in range(20):
        _, cache = spectral_norm(d["w"], u, v)
        sigmas.append(cache.sigma)
        u, v = cache.u, cache.v
    assert (np.diff(sigmas) >= -1e-14).all()
    assert 0.3 * largest < sigmas[0] < 0.999 * largest
    assert sigmas[-1] <= largest * (1 + 1e-14)
    at_once = spectral_norm(d["w"], d["u"], d["v"], iterations=20)[1]
    np.testing.assert_allclose(at_once.sigma, sigmas[-1], rtol=1e-13)
    np.testing.assert_allclose(at_once.u, u, rtol=1e-12)


def test_spectral_norm_from_u_enters_the_same_chain_elsewhere(rng):
    """The paper's v from u, u from v is PyTorch's with the v that one half round makes."""
    d = made(rng, (4, 3))
    v = d["w"].T @ d["u"]
    _, theirs = spectral_norm(d["w"], d["u"], v / np.linalg.norm(v), iterations=3)
    _, ours = spectral_norm(d["w"], d["u"], iterations=3)
    np.testing.assert_allclose(ours.u, theirs.u, rtol=1e-13)
    _, none = spectral_norm(d["w"], d["u"], iterations=0)
    np.testing.assert_allclose(none.v, v / np.linalg.norm(v), rtol=1e-14)
    np.testing.assert_array_equal(none.u, d["u"])


def test_spectral_norm_without_iterations_uses_the_vectors_as_they_are(rng):
    d = made(rng, (4, 3, 2))
    found = run_spectral(d, iterations=0)
    np.testing.assert_allclose(found["sigma"], d["u"] @ d["w"].reshape(4, 6) @ d["v"], rtol=1e-13)
    np.testing.assert_array_equal(found["u"], d["u"])
    np.testing.assert_array_equal(found["v"], d["v"])


def test_eps_bounds_what_a_short_vector_is_divided_by():
    w = np.array([[2e-3, 0.0], [0.0, 1e-3]])
    _, cache = spectral_norm(w, np.ones(2), np.array([1.0, 0.0]), eps=0.1)
    np.testing.assert_allclose(cache.u, [0.02, 0.0])
    np.testing.assert_allclose(cache.v, [4e-4, 0.0])
    _, default = spectral_norm(w * 1e-9, np.ones(2), np.array([1.0, 0.0]))  # u is 2e-12 long, v is not
    np.testing.assert_allclose(default.u, [1.0, 0.0])
    _, shorter = spectral_norm(w * 1e-10, np.ones(2), np.array([1.0, 0.0]))
    np.testing.assert_allclose(shorter.u, [0.2, 0.0])


def test_the_first_axis_from_the_end(rng):
    d = made(rng, (4, 3))
    for run in RUNS.values():
        assert_agree(run(d, -2), run(d, 0), 1e-15)


# -- PyTorch's own


def parametrized(module, normalise, **options):
    return getattr(torch.nn.utils.parametrizations, normalise)(module, **options).double()


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_weight_norm_as_torch(dim, rng):
    d = made(rng, (4, 3, 5), dim)
    theirs = parametrized(torch.nn.Conv1d(3, 4, 5), "weight_norm", dim=dim)
    g, v = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    with torch.no_grad():
        v[...] = torch.tensor(d["w"])
        g[...] = torch.tensor(d["gain"]).reshape(g.shape)
    theirs.weight.backward(torch.tensor(d["dw_hat"]))
    expected = {"w_hat": theirs.weight.detach().numpy(), "dw": v.grad.numpy(), "dgain": g.grad.numpy()}
    assert_agree(run_weight_norm({**d, "gain": g.detach().numpy()}, dim), expected, 1e-10)


def test_torch_s_dim_of_minus_one_is_our_none(rng):
    """It stands for one length there, and for the last axis here."""
    theirs = parametrized(torch.nn.Linear(3, 4), "weight_norm", dim=-1)
    assert theirs.parametrizations.weight.original0.shape == ()
    w = theirs.weight.detach().numpy()
    with torch.no_grad():
        theirs.parametrizations.weight.original0[...] = 2.0
    ours, _ = weight_norm(w, np.array(2.0), dim=None)
    np.testing.assert_allclose(ours, theirs.weight.detach().numpy(), rtol=1e-12)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_filter_of_zeros_is_nan_as_in_torch(rng):
    d = made(rng, (3, 4))
    d["w"][1] = 0
    theirs = torch._weight_norm(torch.tensor(d["w"]), torch.tensor(d["gain"][:, None]), 0)
    np.testing.assert_allclose(run_weight_norm(d)["w_hat"], theirs.numpy(), rtol=1e-12)
    assert np.isnan(theirs.numpy()[1]).all()
    w_hat, _ = spectral_norm(np.zeros((2, 3)), np.ones(2), np.ones(3))
    assert np.isnan(w_hat).all()


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("module", "dim"), [(torch.nn.Conv2d, 0), (torch.nn.ConvTranspose2d, 1)])
def test_spectral_norm_as_torch(module, dim, iterations, rng):
    theirs = parametrized(module(3, 4, 2), "spectral_norm", n_power_iterations=iterations)
    theirs.parametrizations.weight[0].eps = 1e-12
    state = theirs.parametrizations.weight[0]
    raw = theirs.parametrizations.weight.original
    d = made(rng, tuple(raw.shape), dim)
    with torch.no_grad():
        raw[...] = torch.tensor(d["w"])
        state._u[...] = torch.tensor(d["u"] / np.linalg.norm(d["u"]))
        state._v[...] = torch.tensor(d["v"] / np.linalg.norm(d["v"]))
    u, v = state._u.numpy().copy(), state._v.numpy().copy()
    for training in (True, True, False):
        theirs.train(training)
        raw.grad = None
        weight = theirs.weight
        weight.backward(torch.tensor(d["dw_hat"]))
        ours, cache = spectral_norm(d["w"], u, v, dim=dim, iterations=iterations if training else 0)
        assert (not training) == np.array_equal(cache.u, u)
        u, v = cache.u, cache.v
        found = {"w_hat": ours, "dw": spectral_norm_backward(d["dw_hat"], cache), "u": u, "v": v}
        expected = {"w_hat": weight.detach(), "dw": raw.grad, "u": state._u, "v": state._v}
        assert_agree(found, {name: value.numpy() for name, value in expected.items()}, 1e-10)


@pytest.mark.parametrize("scaled", [False, True])
def test_standardization_as_the_batch_norm_that_libraries_use(scaled, rng):
    """How weight-standardised convolutions are written in PyTorch: batch norm of (1, out, fan-in), in training."""
    d = made(rng, (4, 3, 2, 2))
    t = {name: torch.tensor(value, requires_grad=True) for name, value in d.items()}
    gain = t["gain"] * (12**-0.5 if scaled else 1.0)
    theirs = torch.nn.functional.batch_norm(
        t["w"].reshape(1, 4, -1), None, None, weight=gain, training=True, momentum=0.0, eps=1e-6
    ).reshape_as(t["w"])
    theirs.backward(t["dw_hat"])
    expected = {"w_hat": theirs.detach().numpy(), "dw": t["w"].grad.numpy(), "dgain": t["gain"].grad.numpy()}
    assert_agree(run_standardization(d, scaled=scaled), expected, 1e-10)


# -- Keras's own


@pytest.mark.parametrize("iterations", [1, 2])
def test_spectral_norm_as_keras_which_overwrites_the_kernel(iterations, rng):
    """Keras starts from u, as the paper; and stores the quotient, so that the next step divides what was divided."""
    layer = keras.layers.SpectralNormalization(
        keras.layers.Conv2D(4, 2, dtype="float64"), power_iterations=iterations, dtype="float64"
    )
    layer.build((None, 5, 5, 3))
    kernel, u = rng.standard_normal((2, 2, 3, 4)), rng.standard_normal(4)
    layer.kernel.assign(kernel), layer.vector_u.assign(u[None])
    for _ in range(2):
        layer(np.zeros((1, 5, 5, 3)), training=True)
        kernel, cache = spectral_norm(kernel, u, dim=-1, iterations=iterations)
        u = cache.u
        np.testing.assert_allclose(layer.kernel.numpy(), kernel, rtol=1e-10)
        np.testing.assert_allclose(layer.vector_u.numpy()[0], u, rtol=1e-10)
    layer(np.zeros((1, 5, 5, 3)), training=False)
    np.testing.assert_allclose(layer.kernel.numpy(), kernel, rtol=1e-10)


# -- errors


@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 4), 2), ((3, 4), -3), ((3, 4), (0, 0)), ((3, 4), (0, -2)), ((3, 4), (0, 1)), ((3,), 0)]
)
def test_dim_that_does_not_fit(shape, dim):
    message = re.escape(f"leave one or more to normalise over, got dim={dim} for shape {shape}")
    with pytest.raises(ValueError, match=message):
        weight_norm(np.ones(shape), np.ones(()), dim=dim)
    with pytest.raises(ValueError, match=message):
        weight_standardization(np.ones(shape), dim=dim)


@pytest.mark.parametrize("shape", [(3,), (1, 4), (4, 1), (2, 2), ()])
def test_gain_that_does_not_fit(shape):
    text = r"of shape \(4, 1, 1\) or \(4,\), one value per filter of the weight with shape \(4, 2, 3\), got shape "
    message = text + re.escape(str(shape))
    with pytest.raises(ValueError, match="expected g " + message):
        weight_norm(np.ones((4, 2, 3)), np.ones(shape))
    with pytest.raises(ValueError, match="expected gain " + message):
        weight_standardization(np.ones((4, 2, 3)), np.ones(shape))


def test_spectral_norm_errors():
    w = np.ones((4, 2, 3))
    with pytest.raises(ValueError, match=r"expected u of shape \(4,\) .*shape \(4, 2, 3\) and dim=0, got shape \(3,\)"):
        spectral_norm(w, np.ones(3))
    with pytest.raises(ValueError, match=r"expected v of shape \(8,\) .* and dim=2, got shape \(6,\)"):
        spectral_norm(w, np.ones(3), np.ones(6), dim=-1)
    for shape, dim in (((4, 2), 2), ((4, 2), -3), ((4,), 0)):
        with pytest.raises(
            ValueError, match=rf"two or more axes and dim one of them, got dim={dim} for shape \({shape[0]},"
        ):
            spectral_norm(np.ones(shape), np.ones(4), dim=dim)
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"expected eps > 0, got {eps}"):
            spectral_norm(w, np.ones(4), eps=eps)
    with pytest.raises(ValueError, match="expected iterations >= 0, got -1"):
        spectral_norm(w, np.ones(4), iterations=-1)
    for iterations in (1.0, np.array([1, 2])):
        with pytest.raises(TypeError, match="expected iterations to be a whole number, got "):
            spectral_norm(w, np.ones(4), iterations=iterations)


def test_other_errors():
    w = np.ones((4, 2))
    for eps in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"expected eps >= 0, got {eps}"):
            weight_standardization(w, eps=eps)
    for function, vector, name in (
        (weight_norm, np.ones(4), "the weight"),
        (weight_standardization, np.ones(4), "the weight"),
        (spectral_norm, np.ones(4), "the weight"),
    ):
        with pytest.raises(TypeError, match=f"expected {name} of a real floating-point dtype, got int64"):
            function(w.astype(np.int64), vector)
        with pytest.raises(TypeError, match=r"arrays of one library .* got numpy.ndarray, torch.Tensor"):
            function(w, torch.ones(4))
    with pytest.raises(TypeError, match=r"arrays of one library .* got numpy.ndarray, torch.Tensor"):
        spectral_norm(w, np.ones(4), torch.ones(2))
    with pytest.raises(TypeError, match="expected u of a real floating-point dtype, got int64"):
        spectral_norm(w, np.ones(4, int))
    with pytest.raises(TypeError, match="expected v of a real floating-point dtype, got int64"):
        spectral_norm(w, np.ones(4), np.ones(2, int))


def test_backward_errors():
    w = np.arange(8.0).reshape(4, 2)
    with pytest.raises(ValueError, match=r"expected dw of the shape of x, \(4, 2\), got \(2, 4\)"):
        weight_norm_backward(w.T, weight_norm(w, np.ones(4))[1])
    with pytest.raises(ValueError, match=r"expected dw_hat of the shape of x, \(4, 2\), got \(2, 4\)"):
        weight_standardization_backward(w.T, weight_standardization(w)[1])
    _, cache = spectral_norm(w, np.ones(4))
    message = r"4 outputs on axis 0 and a fan-in of 2, got "
    for shape in ((2, 4), (4, 3), (5, 2), ()):
        with pytest.raises(ValueError, match=message + re.escape(str(shape))):
            spectral_norm_backward(np.ones(shape), cache)
    with pytest.raises(TypeError, match="expected dw_hat of a real floating-point dtype, got int64"):
        spectral_norm_backward(w.astype(np.int64), cache)
    with pytest.raises(TypeError, match="arrays of one library"):
        spectral_norm_backward(torch.ones(4, 2), cache)
