"""The repairs that stay with the batch, and the statistics at inference: values, gradients, identities."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    adapt_statistics,
    batch_layer_norm,
    batch_layer_norm_backward,
    batch_norm,
    batch_norm_backward,
    batch_renorm,
    batch_renorm_backward,
    example_weighing,
    example_weighing_backward,
    full_norm,
    full_norm_backward,
    ghost_batch_norm,
    ghost_batch_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    merge_moments,
    moments,
    renorm_limits,
    update_running,
    update_running_ghosts,
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

SHAPES = [(7, 3), (5, 4, 6), (5, 3, 2, 4)]
TO = {
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
}


def statistics(d):
    return {"mean": d["mean"], "var": d["var"]}


def bln_statistics(d, names):
    return {name: d[name] for name in names}


# name: (forward, backward); of the dictionary made below, in any library
MEMBERS = {
    "batch_renorm": (
        lambda d, x, g, b: batch_renorm(x, g, b, **statistics(d), r_max=1.2, d_max=0.3),
        batch_renorm_backward,
    ),
    "batch_renorm, free": (
        lambda d, x, g, b: batch_renorm(x, g, b, **statistics(d), r_max=math.inf, d_max=math.inf),
        batch_renorm_backward,
    ),
    "ghost_batch_norm": (lambda d, x, g, b: ghost_batch_norm(x, g, b, ghost_size=2), ghost_batch_norm_backward),
    "ghost_batch_norm, short only": (
        lambda d, x, g, b: ghost_batch_norm(x, g, b, ghost_size=100),
        ghost_batch_norm_backward,
    ),
    "full_norm": (lambda d, x, g, b: full_norm(x, g, b, **statistics(d), momentum=0.3), full_norm_backward),
    "example_weighing": (
        lambda d, x, g, b: example_weighing(x, g, b, **statistics(d), weight=0.3),
        example_weighing_backward,
    ),
    "batch_layer_norm": (lambda d, x, g, b: batch_layer_norm(x, g, b), batch_layer_norm_backward),
    "batch_layer_norm, m given": (
        lambda d, x, g, b: batch_layer_norm(x, g, b, batch_size=3),
        batch_layer_norm_backward,
    ),
    "batch_layer_norm, batch given": (
        lambda d, x, g, b: batch_layer_norm(x, g, b, **bln_statistics(d, ["batch_mean", "batch_var"])),
        batch_layer_norm_backward,
    ),
    "batch_layer_norm, means given": (
        lambda d, x, g, b: batch_layer_norm(x, g, b, **bln_statistics(d, ["batch_mean", "feature_mean"])),
        batch_layer_norm_backward,
    ),
    "batch_layer_norm, variances given": (
        lambda d, x, g, b: batch_layer_norm(x, g, b, **bln_statistics(d, ["batch_var", "feature_var"])),
        batch_layer_norm_backward,
    ),
}
EACH = pytest.mark.parametrize("member", MEMBERS)
SHAPED = pytest.mark.parametrize("shape", SHAPES)


def made(rng, shape, dtype=np.float64):
    channels = shape[1]
    d = {
        "x": 0.5 + 1.5 * rng.standard_normal(shape),
        "dy": rng.standard_normal(shape),
        "gamma": rng.uniform(0.5, 2.0, channels) * rng.choice([-1, 1], channels),
        "beta": rng.standard_normal(channels),
        "mean": rng.standard_normal(channels),
        "var": rng.uniform(0.5, 2.0, channels),
        "batch_mean": rng.standard_normal(shape[1:]),
        "batch_var": rng.uniform(0.5, 2.0, shape[1:]),
        "feature_mean": rng.standard_normal((1, *shape[2:])),
        "feature_var": rng.uniform(0.5, 2.0, (1, *shape[2:])),
    }
    return {name: np.asarray(value, dtype) for name, value in d.items()}


def run(member, d):
    """Output and gradients, by our two functions."""
    forward, backward = MEMBERS[member]
    y, cache = forward(d, d["x"], d["gamma"], d["beta"])
    return [y, *backward(d["dy"], cache)]


def close(actual, expected, tolerance=1e-10):
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=tolerance, atol=tolerance)


# -- every library, every kind of differentiation


@EACH
@SHAPED
@pytest.mark.parametrize("library", [name for name in TO if name != "jax"])  # that is below, compiled
def test_same_as_numpy_in_float64(rng, member, shape, library):
    d = made(rng, shape)
    there = run(member, {name: TO[library](value) for name, value in d.items()})
    assert all(isinstance(value, type(TO[library](d["x"]))) for value in there)
    close(there, run(member, d))


@EACH
@SHAPED
def test_backward_is_torch_autograd(rng, member, shape):
    d = {name: torch.tensor(value) for name, value in made(rng, shape).items()}
    inputs = [d[name].requires_grad_() for name in ("x", "gamma", "beta")]
    y, cache = MEMBERS[member][0](d, *inputs)
    found = torch.autograd.grad(y, inputs, d["dy"])
    with torch.no_grad():
        close(MEMBERS[member][1](d["dy"], cache), found, 1e-9)


@EACH
def test_jax_compiled_is_numpy_and_its_grad(rng, member):
    d = made(rng, SHAPES[1])

    @jax.jit
    def both(there):
        inputs = [there[name] for name in ("x", "gamma", "beta")]
        _, pull = jax.vjp(lambda *a: MEMBERS[member][0](there, *a)[0], *inputs)
        return run(member, there), pull(there["dy"])

    ours, theirs = both({name: jax.numpy.asarray(value) for name, value in d.items()})
    close(ours, run(member, d))
    close(ours[1:], theirs, 1e-9)


@EACH
def test_backward_is_the_gradient_tapes(rng, member):
    d = {name: tf.constant(value) for name, value in made(rng, SHAPES[1]).items()}
    inputs = [d[name] for name in ("x", "gamma", "beta")]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y, cache = MEMBERS[member][0](d, *inputs)
    close(MEMBERS[member][1](d["dy"], cache), tape.gradient(y, inputs, d["dy"]), 1e-9)


def loss_of(member, d, fixed):
    """The loss whose finite differences the gradients are: what the paper holds constant is held constant."""
    if member.startswith("batch_renorm"):
        return lambda x, g, b: (
            d["dy"] * (column(g, x) * (batch_norm(x)[1].x_hat * column(fixed.r, x) + column(fixed.d, x)) + column(b, x))
        )
    if member == "full_norm":
        # The composition: the statistics move with the batch's, from where the estimate is.
        start_mean, start_square = batch_moments(d["x"])

        def composed(x, g, b):
            mean, square = batch_moments(x)
            mean = fixed.mean + (mean - start_mean)
            square = fixed.var + fixed.mean**2 + (square - start_square)
            x_hat = (x - column(mean, x)) / np.sqrt(column(square - mean**2, x) + 1e-5)
            return d["dy"] * (column(g, x) * x_hat + column(b, x))

        return composed
    return lambda x, g, b: d["dy"] * MEMBERS[member][0](d, x, g, b)[0]


def column(vector, x):
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def batch_moments(x):
    axes = (0, *range(2, x.ndim))
    return x.mean(axis=axes), (x**2).mean(axis=axes)


@EACH
@SHAPED
def test_backward_is_finite_differences(rng, member, shape):
    d = made(rng, shape)
    inputs = [d["x"], d["gamma"], d["beta"]]
    forward, backward = MEMBERS[member]
    _, cache = forward(d, *inputs)
    loss = loss_of(member, d, cache)
    for i, ours in enumerate(backward(d["dy"], cache)):
        numerical = numerical_gradient(lambda a, i=i: loss(*inputs[:i], a, *inputs[i + 1 :]).sum(), inputs[i])
        assert relative_error(ours, numerical) < 1e-6


@EACH
@pytest.mark.parametrize("library", TO)
def test_float32_stays_and_half_precision_is_computed_in_it(rng, member, library):
    d = made(rng, (4, 3, 5), np.float32)
    there = {name: TO[library](value) for name, value in d.items()}
    traced = jax.eval_shape(lambda t: run(member, t), there) if library == "jax" else run(member, there)
    assert all("float32" in str(value.dtype) for value in traced)
    if library in {"torch", "keras.ops on TensorFlow"}:
        half = torch.float16 if library == "torch" else tf.float16
        to_half = (lambda t: t.to(half)) if library == "torch" else (lambda t: tf.cast(t, half))
        y, dx, dgamma, _ = run(member, {**there, "x": to_half(there["x"]), "dy": to_half(there["dy"])})
        assert (y.dtype, dx.dtype) == (half, half)
        assert "float32" in str(dgamma.dtype)
        close([y], [run(member, d)[0]], 2e-2)


@EACH
def test_parameters_are_optional_and_their_gradients_are_not(rng, member):
    d = made(rng, (5, 3, 4))
    forward, backward = MEMBERS[member]
    bare, cache = forward(d, d["x"], None, None)
    gradients = backward(d["dy"], cache)
    ones, zeros = np.ones(3), np.zeros(3)
    close(
        [bare, *gradients], [forward(d, d["x"], ones, zeros)[0], *backward(d["dy"], forward(d, d["x"], ones, zeros)[1])]
    )


@EACH
def test_empty_batches(member):
    d = made(np.random.default_rng(0), (0, 3, 4))
    y, dx, dgamma, dbeta = run(member, d)
    assert y.shape == dx.shape == (0, 3, 4)
    np.testing.assert_array_equal([dgamma, dbeta], np.zeros((2, 3)))


@EACH
def test_upstream_shape(rng, member):
    forward, backward = MEMBERS[member]
    d = made(rng, (4, 3))
    _, cache = forward(d, d["x"], d["gamma"], d["beta"])
    with pytest.raises(ValueError, match=r"expected dy of the shape of x, \(4, 3\), got \(4, 2\)"):
        backward(d["dy"][:, :2], cache)


@EACH
def test_shapes_and_eps_are_refused(rng, member):
    forward, _ = MEMBERS[member]
    d = made(rng, (4, 3))
    with pytest.raises(ValueError, match=r"expected gamma of shape \(3,\), one value per channel .* got shape \(2,\)"):
        forward(d, d["x"], np.ones(2), None)
    with pytest.raises(ValueError, match=r"at least 2D, got shape \(3,\)"):
        forward(d, np.zeros(3), None, None)


def test_eps_reaches_the_formula_and_is_checked(rng):
    d = made(rng, (6, 3))
    s = statistics(d)
    for call in (
        lambda eps: batch_renorm(d["x"], **s, eps=eps),
        lambda eps: ghost_batch_norm(d["x"], ghost_size=3, eps=eps),
        lambda eps: full_norm(d["x"], **s, eps=eps),
        lambda eps: example_weighing(d["x"], **s, weight=0.2, eps=eps),
        lambda eps: batch_layer_norm(d["x"], eps=eps),
    ):
        assert np.abs(call(1.0)[0]).sum() < np.abs(call(1e-5)[0]).sum()
        with pytest.raises(ValueError, match=r"expected eps >= 0, got -0\.1"):
            call(-0.1)


# -- batch renormalisation


class TestBatchRenorm:
    @SHAPED
    def test_without_correction_it_is_batch_norm(self, rng, shape):
        d = made(rng, shape)
        y, cache = batch_renorm(d["x"], d["gamma"], d["beta"], **statistics(d), r_max=1, d_max=0)
        plain, plain_cache = batch_norm(d["x"], d["gamma"], d["beta"])
        close([y, *batch_renorm_backward(d["dy"], cache)], [plain, *batch_norm_backward(d["dy"], plain_cache)])
        np.testing.assert_array_equal([cache.r, cache.d], [np.ones(shape[1]), np.zeros(shape[1])])

    @SHAPED
    def test_unclipped_its_training_output_is_the_inference_output(self, rng, shape):
        d = made(rng, shape)
        free = {"r_max": math.inf, "d_max": math.inf}
        y, cache = batch_renorm(d["x"], d["gamma"], d["beta"], **statistics(d), **free, eps=1e-3)
        inference, _ = batch_norm(d["x"], d["gamma"], d["beta"], **statistics(d), eps=1e-3)
        close([y], [inference])
        # ... and its gradient is not: it knows that the batch's statistics move with x.
        dx, *_ = batch_renorm_backward(d["dy"], cache)
        np.testing.assert_allclose(dx.sum(axis=(0, *range(2, dx.ndim))), 0, atol=1e-10)

    def test_the_limits(self, rng):
        x = rng.standard_normal((50, 4)) * np.array([10.0, 0.1, 1.0, 1.0]) + np.array([0.0, 0.0, 100.0, -100.0])
        _, cache = batch_renorm(x, mean=np.zeros(4), var=np.ones(4), r_max=3, d_max=5)
        np.testing.assert_array_equal(cache.r[:2], [3, 1 / 3])
        np.testing.assert_array_equal(cache.d[2:], [5, -5])
        assert np.all((cache.r[2:] > 1 / 3) & (cache.r[2:] < 3))

    def test_the_limits_it_has_by_default(self, rng):
        x = 20 * rng.standard_normal((9, 2)) + np.array([50.0, -50.0])
        _, cache = batch_renorm(x, mean=np.zeros(2), var=np.ones(2))
        np.testing.assert_array_equal([cache.r, cache.d], [[3, 3], [5, -5]])

    def test_limits_as_arrays(self, rng):
        """Also of one per channel, and of another dtype, which does not become that of what is kept."""
        d = {name: torch.tensor(value) for name, value in made(rng, (6, 3)).items()}
        limits = {"r_max": torch.tensor(1.2), "d_max": torch.tensor(0.3)}
        y, _ = batch_renorm(d["x"], **statistics(d), **limits)
        close([y], [batch_renorm(d["x"], **statistics(d), r_max=1.2, d_max=0.3)[0]], 1e-7)
        d = made(rng, (6, 3), np.float32)
        limits = {"r_max": np.full(3, 1.2), "d_max": np.full(3, 0.3)}
        y, cache = batch_renorm(d["x"], **statistics(d), **limits)
        close([y], [batch_renorm(d["x"], **statistics(d), r_max=1.2, d_max=0.3)[0]], 1e-6)
        assert cache.r.dtype == cache.d.dtype == np.float32

    def test_an_empty_batch_is_not_corrected(self):
        _, cache = batch_renorm(np.empty((0, 3)), mean=np.ones(3), var=np.full(3, 4.0))
        np.testing.assert_array_equal([cache.r, cache.d], [np.ones(3), np.zeros(3)])
        assert cache.r.dtype == cache.d.dtype == np.float64

    def test_its_batch_statistics_are_for_the_running_ones(self, rng):
        d = made(rng, (6, 3, 4))
        _, cache = batch_renorm(d["x"], **statistics(d))
        _, plain = batch_norm(d["x"])
        assert cache.batch.n == 24
        close([cache.batch.mean, cache.batch.var], [plain.mean, plain.var])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"r_max": 0.5}, r"expected r_max >= 1, got 0\.5"),
            ({"d_max": -0.1}, r"expected d_max >= 0, got -0\.1"),
            ({"mean": np.zeros(2)}, r"expected mean of shape \(3,\)"),
        ],
    )
    def test_errors(self, options, message):
        given = {"mean": np.zeros(3), "var": np.ones(3), **options}
        with pytest.raises(ValueError, match=message):
            batch_renorm(np.zeros((4, 3)), **given)


class TestRenormLimits:
    def test_the_papers_schedule(self):
        assert renorm_limits(0) == renorm_limits(5_000) == (1, 0)
        assert renorm_limits(25_000)[1] == 5
        assert renorm_limits(25_000)[0] < 3
        assert renorm_limits(40_000) == renorm_limits(10**9) == (3, 5)
        np.testing.assert_allclose(renorm_limits(15_000), (1 + 2 * 10 / 35, 5 * 10 / 20))

    def test_every_argument(self):
        assert renorm_limits(3, warmup=2, r_end=4, d_end=6, r_max=5, d_max=8) == (3, 2)
        assert renorm_limits(0, warmup=0, r_end=0, d_end=0) == (1, 0)
        assert renorm_limits(1, warmup=0, r_end=0, d_end=0) == (3, 5)
        assert renorm_limits(10**6, r_max=1, d_max=0) == (1, 0)

    @pytest.mark.parametrize("library", TO)
    @pytest.mark.parametrize("step", [0, 4_999, 12_345, 30_000, 10**6])
    def test_arrays(self, library, step):
        r_max, d_max = renorm_limits(TO[library](np.asarray(step)))
        np.testing.assert_allclose([float(r_max), float(d_max)], renorm_limits(step), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"warmup": 50_000}, r"0 <= warmup <= r_end and d_end, got warmup=50000, r_end=40000, d_end=25000 steps"),
            ({"warmup": -1}, "got warmup=-1"),
            ({"r_max": 0.5}, r"expected r_max >= 1 and d_max >= 0, got 0\.5 and 5"),
            ({"d_max": -1}, "got 3.0 and -1"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            renorm_limits(1, **options)


# -- ghosts


class TestGhosts:
    @SHAPED
    @pytest.mark.parametrize("ghost_size", ["N", 1000])
    def test_one_ghost_is_batch_norm(self, rng, shape, ghost_size):
        d = made(rng, shape)
        size = shape[0] if ghost_size == "N" else ghost_size
        y, cache = ghost_batch_norm(d["x"], d["gamma"], d["beta"], ghost_size=size)
        plain, plain_cache = batch_norm(d["x"], d["gamma"], d["beta"])
        close([y, *ghost_batch_norm_backward(d["dy"], cache)], [plain, *batch_norm_backward(d["dy"], plain_cache)])

    @SHAPED
    @pytest.mark.parametrize("ghost_size", [2, 3, 4])
    @pytest.mark.parametrize("unbiased", [True, False])
    def test_it_is_batch_norm_chunk_by_chunk(self, rng, shape, ghost_size, unbiased):
        d = made(rng, shape)
        if shape[0] % ghost_size == 1 and len(shape) == 2:
            d["x"], d["dy"] = d["x"][:-1], d["dy"][:-1]
        y, cache = ghost_batch_norm(d["x"], d["gamma"], d["beta"], ghost_size=ghost_size)
        ys, dxs, running = [], [], (d["mean"], d["var"])
        for start in range(0, len(d["x"]), ghost_size):
            chunk = slice(start, start + ghost_size)
            one, own = batch_norm(d["x"][chunk], d["gamma"], d["beta"])
            ys.append(one)
            dxs.append(batch_norm_backward(d["dy"][chunk], own)[0])
            running = update_running(*running, own.mean, own.var, own.n, momentum=0.3, unbiased=unbiased)
        close([y, ghost_batch_norm_backward(d["dy"], cache)[0]], [np.concatenate(ys), np.concatenate(dxs)])
        close(update_running_ghosts(d["mean"], d["var"], cache, momentum=0.3, unbiased=unbiased), running)

    def test_a_momentum_of_zero_keeps_the_running_statistics(self, rng):
        d = made(rng, (6, 3))
        _, cache = ghost_batch_norm(d["x"], ghost_size=2)
        assert [type(of_a_size.n) for of_a_size in cache.statistics] == [int]
        kept = update_running_ghosts(d["mean"], d["var"], cache, momentum=0)
        np.testing.assert_array_equal(kept, [d["mean"], d["var"]])
        for name in ("mean", "var"):
            mixed = {**d, name: torch.tensor(d[name])}
            with pytest.raises(TypeError, match="arrays of one library"):
                update_running_ghosts(mixed["mean"], mixed["var"], cache)

    def test_each_ghost_in_turn(self, rng):
        d = made(rng, (7, 3, 2))
        _, cache = ghost_batch_norm(d["x"], ghost_size=2)
        each = [ghost for part in cache.statistics for ghost in part.each()]
        assert [n for *_, n in each] == [4, 4, 4, 2]
        np.testing.assert_allclose(each[3][0], d["x"][6].mean(axis=1))
        np.testing.assert_allclose(each[1][1], d["x"][2:4].var(axis=(0, 2)))

    def test_a_short_last_ghost_of_one_value_gives_beta(self, rng):
        d = made(rng, (5, 3))
        y, cache = ghost_batch_norm(d["x"], d["gamma"], d["beta"], ghost_size=2)
        np.testing.assert_array_equal(y[4], d["beta"])
        with pytest.raises(
            ValueError, match=r"expected n > 1 values per channel in each ghost .* got a ghost of one value"
        ):
            update_running_ghosts(d["mean"], d["var"], cache)
        np.testing.assert_allclose(
            update_running_ghosts(d["mean"], d["var"], cache, momentum=1, unbiased=False), [d["x"][4], np.zeros(3)]
        )

    def test_running_statistics_leave_the_graph_and_keep_their_dtype(self, rng):
        d = {name: torch.tensor(value) for name, value in made(rng, (6, 3)).items()}
        d["x"].requires_grad_()
        _, cache = ghost_batch_norm(d["x"], ghost_size=2)
        new = update_running_ghosts(d["mean"].float(), d["var"].float(), cache)
        assert not any(value.requires_grad for value in new)
        assert {value.dtype for value in new} == {torch.float32}

    @pytest.mark.parametrize("samples", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("unbiased", [True, False])
    def test_inside_tf_function_with_unknown_sizes(self, rng, samples, unbiased):
        d = made(rng, (samples, 3, 4))

        @tf.function(input_signature=[tf.TensorSpec((None, 3, None), tf.float64)] * 2)
        def traced(x, dy):
            y, cache = ghost_batch_norm(x, tf.constant(d["gamma"]), ghost_size=2)
            running = update_running_ghosts(tf.constant(d["mean"]), tf.constant(d["var"]), cache, unbiased=unbiased)
            return [y, ghost_batch_norm_backward(dy, cache)[0], tf.gradients(y, x, dy)[0], *running]

        y, cache = ghost_batch_norm(d["x"], d["gamma"], ghost_size=2)
        dx, *_ = ghost_batch_norm_backward(d["dy"], cache)
        running = update_running_ghosts(d["mean"], d["var"], cache, unbiased=unbiased)
        close(traced(d["x"], d["dy"]), [y, dx, dx, *running])

    def test_errors(self, rng):
        x = np.zeros((4, 3))
        with pytest.raises(ValueError, match="expected ghost_size >= 1 samples, got 0"):
            ghost_batch_norm(x, ghost_size=0)
        with pytest.raises(TypeError, match=r"expected ghost_size to be a whole number, got 2\.5"):
            ghost_batch_norm(x, ghost_size=2.5)
        _, cache = ghost_batch_norm(x, ghost_size=2)
        with pytest.raises(ValueError, match=r"expected momentum, .* from 0 to 1, got 1\.5"):
            update_running_ghosts(np.zeros(3), np.ones(3), cache, momentum=1.5)


# -- full normalisation


class TestFullNorm:
    @SHAPED
    def test_with_all_the_weight_on_the_new_it_is_batch_norm(self, rng, shape):
        d = made(rng, shape)
        y, cache = full_norm(d["x"], d["gamma"], d["beta"], **statistics(d), momentum=1)
        plain, plain_cache = batch_norm(d["x"], d["gamma"], d["beta"])
        close([y, *full_norm_backward(d["dy"], cache)], [plain, *batch_norm_backward(d["dy"], plain_cache)])
        close([cache.mean, cache.var], [plain_cache.mean, plain_cache.var])
        assert cache.n == d["x"].size // shape[1]

    @SHAPED
    @pytest.mark.parametrize("momentum", [0, 0.3])
    def test_with_the_whole_set_as_the_batch_it_is_batch_norm(self, rng, shape, momentum):
        d = made(rng, shape)
        plain, plain_cache = batch_norm(d["x"], d["gamma"], d["beta"])
        known = {"mean": plain_cache.mean, "var": plain_cache.var}
        y, cache = full_norm(d["x"], d["gamma"], d["beta"], **known, momentum=momentum)
        close([y, *full_norm_backward(d["dy"], cache)], [plain, *batch_norm_backward(d["dy"], plain_cache)])
        close([cache.mean, cache.var], known.values())

    def test_an_empty_batch_leaves_the_estimate(self):
        _, cache = full_norm(np.empty((0, 3)), mean=np.full(3, 2.0), var=np.full(3, 3.0), eps=1.0)
        np.testing.assert_array_equal([cache.mean, cache.var, cache.inv_std], [[2.0] * 3, [3.0] * 3, [0.5] * 3])

    def test_inside_tf_function_the_number_of_values_is_counted(self, rng):
        d = made(rng, (6, 3, 4))

        @tf.function(input_signature=[tf.TensorSpec([None, 3, None], tf.float64)])
        def run(x):
            y, cache = full_norm(x, **{name: tf.constant(value) for name, value in statistics(d).items()})
            return y, cache.n

        y, n = run(d["x"])
        close([y], [full_norm(d["x"], **statistics(d))[0]])
        assert int(n) == 24

    def test_the_weight_as_an_array_does_not_widen(self, rng):
        d = made(rng, (6, 3, 4), np.float32)
        y, cache = full_norm(d["x"], **statistics(d), momentum=np.array(0.3))
        close([y], [full_norm(d["x"], **statistics(d), momentum=0.3)[0]], 1e-6)
        assert {a.dtype for a in (y, cache.x_hat, cache.mean, cache.var, cache.inv_std)} == {np.dtype(np.float32)}

    def test_the_estimate_is_that_of_the_mean_square(self, rng):
        d = made(rng, (6, 3, 4))
        _, cache = full_norm(d["x"], **statistics(d), momentum=0.3)
        mean, square = batch_moments(d["x"])
        new_mean = 0.7 * d["mean"] + 0.3 * mean
        new_square = 0.7 * (d["var"] + d["mean"] ** 2) + 0.3 * square
        close([cache.mean, cache.var], [new_mean, new_square - new_mean**2])

    def test_repeated_on_the_whole_set_it_becomes_batch_norm(self, rng):
        d = made(rng, (9, 3))
        estimate = statistics(d)
        for _ in range(80):
            y, cache = full_norm(d["x"], **estimate, momentum=0.4)
            estimate = {"mean": cache.mean, "var": cache.var}
        close([y], [batch_norm(d["x"])[0]])

    def test_at_the_true_statistics_the_direct_part_is_that_of_all_the_data(self, rng):
        """Averaged over the batches, the two means of the backward pass are those over all the data."""
        d = made(rng, (12, 3))
        _, whole = batch_norm(d["x"])
        parts = []
        for start in range(0, 12, 4):
            batch = slice(start, start + 4)
            _, cache = full_norm(d["x"][batch], mean=whole.mean, var=whole.var, momentum=0)
            parts.append([d["dy"][batch].mean(0), (d["dy"][batch] * cache.x_hat).mean(0)])
        close(np.mean(parts, axis=0), [d["dy"].mean(0), (d["dy"] * whole.x_hat).mean(0)])

    def test_a_weight_that_is_an_array(self, rng):
        d = {name: torch.tensor(value) for name, value in made(rng, (6, 3)).items()}
        y, _ = full_norm(d["x"], **statistics(d), momentum=torch.tensor(0.3, dtype=torch.float64))
        close([y], [full_norm(d["x"], **statistics(d), momentum=np.float64(0.3))[0]])

    def test_precision_at_a_large_mean(self, rng):
        x = (1e4 + rng.standard_normal((64, 2))).astype(np.float32)
        _, cache = full_norm(x, mean=x.mean(0), var=np.ones(2, "f"), momentum=0.5)
        np.testing.assert_allclose(cache.var, 0.5 + 0.5 * x.astype(float).var(0), rtol=1e-3)

    def test_the_estimate_leaves_the_graph(self, rng):
        d = {name: torch.tensor(value) for name, value in made(rng, (6, 3)).items()}
        estimate = statistics(d)
        d["x"].requires_grad_()
        for _ in range(2):
            y, cache = full_norm(d["x"], **estimate)
            estimate = {"mean": cache.mean, "var": cache.var}
            assert not any(value.requires_grad for value in estimate.values())
            y.sum().backward()

    def test_an_empty_batch_is_no_news(self):
        _, cache = full_norm(np.empty((0, 2)), mean=np.array([1.0, 2.0]), var=np.array([3.0, 4.0]))
        np.testing.assert_array_equal([cache.mean, cache.var], [[1, 2], [3, 4]])

    def test_errors(self):
        with pytest.raises(ValueError, match=r"expected momentum, the weight of the new batch, from 0 to 1, got 1\.1"):
            full_norm(np.zeros((4, 3)), mean=np.zeros(3), var=np.ones(3), momentum=1.1)


# -- batch layer normalisation


class TestBatchLayerNorm:
    @SHAPED
    def test_it_is_the_authors_formula(self, rng, shape):
        """Channels last, as their code has it."""
        d = made(rng, shape)
        x = np.moveaxis(d["x"], 1, -1)
        m, features = x.shape[0], x.shape[-1]
        x_f = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.001)
        x_b = (x - x.mean(0, keepdims=True)) / np.sqrt(x.var(0, keepdims=True) + 0.001)
        numerator = x_f * ((1 / m) - 0.0001) + x_b * (1 - ((1 / m) + 0.0001))
        theirs = d["gamma"] * (numerator / np.sqrt(features)) + d["beta"]
        close([np.moveaxis(batch_layer_norm(d["x"], d["gamma"], d["beta"])[0], 1, -1)], [theirs])

    @pytest.mark.parametrize(
        "names", [(), ("batch_mean",), ("feature_var",), ("batch_mean", "batch_var", "feature_mean")]
    )
    def test_given_statistics(self, rng, names):
        d = made(rng, (5, 3, 4))
        x = d["x"]
        used = {
            "batch_mean": x.mean(0),
            "batch_var": x.var(0),
            "feature_mean": x.mean(1, keepdims=True),
            "feature_var": x.var(1, keepdims=True),
        } | {name: d[name] for name in names}
        x_f = (x - used["feature_mean"]) / np.sqrt(used["feature_var"] + 1e-3)
        x_b = (x - used["batch_mean"]) / np.sqrt(used["batch_var"] + 1e-3)
        expected = ((1 / 8 - 1e-4) * x_f + (7 / 8 - 1e-4) * x_b) / np.sqrt(3)
        close([batch_layer_norm(x, batch_size=8, **bln_statistics(d, names))[0]], [expected])

    def test_the_ends(self, rng):
        d = made(rng, (1, 3, 4))
        alone, _ = batch_layer_norm(d["x"])
        close([alone], [layer_norm(d["x"], axes=(1,), eps=1e-3)[0] * (1 - 1e-4) / np.sqrt(3)])
        many = rng.standard_normal((5, 1))
        by_batch, _ = batch_layer_norm(many, batch_size=10**9)
        close([by_batch], [batch_norm(many, eps=1e-3)[0] * (1 - 1e-4)], 1e-8)

    def test_its_own_statistics_are_for_the_average_over_an_epoch(self, rng):
        d = made(rng, (5, 3, 4))
        _, cache = batch_layer_norm(d["x"])
        close([cache.batch_mean, cache.batch_var], [d["x"].mean(0), d["x"].var(0)])
        close(
            [cache.feature_mean, cache.feature_var],
            [d["x"].mean((0, 1))[None], d["x"].var(1).mean(0)[None]],
        )
        _, inference = batch_layer_norm(d["x"], batch_mean=d["batch_mean"], batch_var=d["batch_var"])
        close([inference.batch_mean], [cache.batch_mean])

    def test_inside_tf_function_with_unknown_sizes(self, rng):
        d = made(rng, (5, 3, 4))
        traced = tf.function(
            lambda x, dy: batch_layer_norm_backward(dy, batch_layer_norm(x)[1])[0],
            input_signature=[tf.TensorSpec((None, 3, None), tf.float64)] * 2,
        )
        close([traced(d["x"], d["dy"])], [batch_layer_norm_backward(d["dy"], batch_layer_norm(d["x"])[1])[0]])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
            ({"batch_size": -2}, "expected batch_size >= 0, got -2"),
            ({"batch_mean": np.zeros(3)}, r"expected batch_mean of shape \(3, 5\) .* got shape \(3,\)"),
            ({"feature_var": np.zeros(5)}, r"expected feature_var of shape \(1, 5\) .* got shape \(5,\)"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            batch_layer_norm(np.zeros((4, 3, 5)), **options)


# -- inference


class TestExampleWeighing:
    @SHAPED
    def test_without_weight_it_is_plain_inference(self, rng, shape):
        d = made(rng, shape)
        y, cache = example_weighing(d["x"], d["gamma"], d["beta"], **statistics(d), weight=0)
        plain, plain_cache = batch_norm(d["x"], d["gamma"], d["beta"], **statistics(d))
        close([y, *example_weighing_backward(d["dy"], cache)], [plain, *batch_norm_backward(d["dy"], plain_cache)])

    def test_with_all_the_weight_it_is_instance_norm(self, rng):
        d = made(rng, (5, 3, 4))
        y, cache = example_weighing(d["x"], d["gamma"], d["beta"], **statistics(d), weight=1)
        own, own_cache = instance_norm(d["x"], d["gamma"], d["beta"])
        close([y, *example_weighing_backward(d["dy"], cache)], [own, *instance_norm_backward(d["dy"], own_cache)])

    @SHAPED
    def test_it_is_the_papers_formula(self, rng, shape):
        d = made(rng, shape)
        x, a = d["x"], 0.3
        axes = tuple(range(2, x.ndim))
        own_mean = x.mean(axis=axes, keepdims=True) if axes else x
        own_square = (x**2).mean(axis=axes, keepdims=True) if axes else x**2
        mean = a * own_mean + (1 - a) * column(d["mean"], x)
        var = a * own_square + (1 - a) * column(d["var"] + d["mean"] ** 2, x) - mean**2
        y, _ = example_weighing(x, **statistics(d), weight=a)
        close([y], [(x - mean) / np.sqrt(var + 1e-5)])

    def test_each_example_is_alone(self, rng):
        d = made(rng, (5, 3, 4))
        whole, _ = example_weighing(d["x"], **statistics(d), weight=0.3)
        alone = [example_weighing(d["x"][i : i + 1], **statistics(d), weight=0.3)[0] for i in range(5)]
        np.testing.assert_array_equal(whole, np.concatenate(alone))

    def test_errors(self):
        with pytest.raises(ValueError, match=r"expected weight, the share of the example, from 0 to 1, got -0\.5"):
            example_weighing(np.zeros((4, 3)), mean=np.zeros(3), var=np.ones(3), weight=-0.5)


class TestAdaptStatistics:
    def test_no_prior_takes_the_targets_and_an_infinite_one_the_sources(self, rng):
        source, target = (made(rng, (4, 3)) for _ in range(2))
        given = (source["mean"], source["var"], target["mean"], target["var"])
        np.testing.assert_array_equal(adapt_statistics(*given, 5), [target["mean"], target["var"]])
        np.testing.assert_array_equal(adapt_statistics(*given, 5, prior=math.inf), [source["mean"], source["var"]])
        np.testing.assert_array_equal(adapt_statistics(*given, 0), [source["mean"], source["var"]])
        lost = np.full(3, np.nan)
        np.testing.assert_array_equal(adapt_statistics(lost, lost, *given[2:], 5), [target["mean"], target["var"]])

    @pytest.mark.parametrize("library", TO)
    def test_the_mix(self, rng, library):
        source, target = ({k: TO[library](v) for k, v in made(rng, (4, 3)).items()} for _ in range(2))
        mean, var = adapt_statistics(source["mean"], source["var"], target["mean"], target["var"], 6, prior=2)
        expected = [0.25 * np.asarray(source[name]) + 0.75 * np.asarray(target[name]) for name in ("mean", "var")]
        close([mean, var], expected)

    def test_over_several_batches_it_is_exact(self, rng):
        x = 3 + 2 * rng.standard_normal((11, 3, 4))
        merged = merge_moments(moments(x[:2]), moments(x[2:9]), moments(x[9:]))
        mean, var = adapt_statistics(np.zeros(3, "f"), np.ones(3, "f"), merged.mean, merged.var, 11)
        np.testing.assert_allclose(mean, x.mean((0, 2)), rtol=1e-6)
        np.testing.assert_allclose(var, x.var((0, 2)), rtol=1e-6)
        assert mean.dtype == var.dtype == np.float32

    def test_errors(self):
        ones = np.ones(3)
        with pytest.raises(ValueError, match=r"expected var of the shape of source_mean, \(3,\), got \(2,\)"):
            adapt_statistics(ones, ones, ones, np.ones(2), 4)
        with pytest.raises(ValueError, match="expected prior, the samples that the source counts for, >= 0, got -1"):
            adapt_statistics(ones, ones, ones, ones, 4, prior=-1)
        with pytest.raises(ValueError, match="expected n >= 0 samples of the target, got -2"):
            adapt_statistics(ones, ones, ones, ones, -2)
        for name, given in (("source_mean", (np.ones(3, int), ones)), ("source_var", (ones, np.ones(3, int)))):
            with pytest.raises(TypeError, match=f"expected {name} of a real floating-point dtype, got int64"):
                adapt_statistics(*given, ones, ones, 4)
