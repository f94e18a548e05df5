"""Whitening: what it makes of data, its gradients against everybody's, every library, and what it refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    batch_norm,
    batch_norm_backward,
    iter_norm,
    iter_norm_backward,
    update_whitening,
    whiten,
    whiten_backward,
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

TO = {
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
}
BOTH = pytest.mark.parametrize(
    ("forward", "backward"), [(whiten, whiten_backward), (iter_norm, iter_norm_backward)], ids=["whiten", "iter_norm"]
)
SHAPES = pytest.mark.parametrize(
    ("shape", "groups"), [((9, 4), 1), ((6, 4, 5), 2), ((3, 6, 4, 3), 3), ((2, 4, 2, 3, 2), 4), ((3, 4), 1)]
)
FEW_SHAPES = pytest.mark.parametrize(("shape", "groups"), [((9, 4), 1), ((3, 6, 4, 3), 3)])


def correlated(rng, shape):
    """Channels that are mixed by a random matrix, far from zero, on different scales."""
    x = rng.standard_normal(shape)
    mixing = rng.standard_normal((shape[1], shape[1])) + 2 * np.eye(shape[1])
    return 3 + np.moveaxis(np.tensordot(mixing, x, axes=(1, 1)), 0, 1)


def made(rng, shape, groups):
    channels, own = shape[1], shape[1] // groups
    return {
        "x": correlated(rng, shape),
        "gamma": rng.uniform(0.5, 2.0, channels) * rng.choice([-1, 1], channels),
        "beta": rng.standard_normal(channels),
        "dy": rng.standard_normal(shape),
        "mean": rng.standard_normal(channels),
        "matrix": rng.standard_normal((groups, own, own)),
    }


def columns(x):
    """The channels of x in rows, all its values in columns."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def covariance(x):
    return np.cov(columns(x), bias=True).reshape(x.shape[1], x.shape[1])


def textbook_root(cov, eps):
    values, vectors = np.linalg.eigh(cov + eps * np.eye(len(cov)))
    return vectors @ np.diag(values**-0.5) @ vectors.T


def textbook_newton(cov, eps, iterations):
    """The iteration as the paper writes it."""
    shifted = cov + eps * np.eye(len(cov))
    p = np.eye(len(cov))
    for _ in range(iterations):
        p = (3 * p - p @ p @ p @ (shifted / np.trace(shifted))) / 2
    return p / np.sqrt(np.trace(shifted))


class TestForward:
    @pytest.mark.parametrize(
        ("forward", "root"),
        [(whiten, textbook_root), (iter_norm, lambda cov, eps: textbook_newton(cov, eps, 5))],
        ids=["whiten", "iter_norm"],
    )
    @SHAPES
    def test_it_is_the_textbook_formula(self, rng, shape, groups, forward, root):
        d, own = made(rng, shape, groups), shape[1] // groups
        y, cache = forward(d["x"], d["gamma"], d["beta"], groups=groups, eps=0.05)
        for group in range(groups):
            mine = slice(group * own, (group + 1) * own)
            matrix = root(covariance(d["x"])[mine, mine], 0.05)
            centred = columns(d["x"])[mine] - columns(d["x"])[mine].mean(axis=1, keepdims=True)
            expected = d["gamma"][mine, None] * (matrix @ centred) + d["beta"][mine, None]
            np.testing.assert_allclose(columns(y)[mine], expected, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(cache.matrix[group], matrix, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(cache.cov[group], covariance(d["x"])[mine, mine], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(cache.mean, columns(d["x"]).mean(axis=1), rtol=1e-12)
        assert cache.n == d["x"].size // shape[1]
        assert y.shape == shape

    @BOTH
    @SHAPES
    def test_inference_form(self, rng, shape, groups, forward, backward):
        d, own = made(rng, shape, groups), shape[1] // groups
        y, cache = forward(d["x"], d["gamma"], d["beta"], groups=groups, mean=d["mean"], matrix=d["matrix"])
        centred = columns(d["x"]) - d["mean"][:, None]
        expected = np.concatenate([d["matrix"][g] @ centred[g * own : (g + 1) * own] for g in range(groups)])
        np.testing.assert_allclose(columns(y), d["gamma"][:, None] * expected + d["beta"][:, None], atol=1e-12)
        assert cache.mean is None
        assert cache.cov is None
        assert cache.n is None
        dx, dgamma, dbeta = backward(d["dy"], cache)

        def loss(x=d["x"], gamma=d["gamma"], beta=d["beta"]):
            return (d["dy"] * forward(x, gamma, beta, groups=groups, mean=d["mean"], matrix=d["matrix"])[0]).sum()

        assert relative_error(dx, numerical_gradient(lambda x: loss(x=x), d["x"])) < 1e-7
        assert relative_error(dgamma, numerical_gradient(lambda v: loss(gamma=v), d["gamma"])) < 1e-7
        assert relative_error(dbeta, numerical_gradient(lambda v: loss(beta=v), d["beta"])) < 1e-7

    def test_covariance_of_the_output_is_the_identity(self, rng):
        for shape in [(50, 5), (8, 5, 6, 7)]:
            y, _ = whiten(correlated(rng, shape), eps=0.0)
            np.testing.assert_allclose(covariance(y), np.eye(5), atol=1e-11)
            np.testing.assert_allclose(columns(y).mean(axis=1), 0, atol=1e-12)

    def test_between_groups_correlations_stay(self, rng):
        cov = covariance(whiten(correlated(rng, (50, 6)), groups=2, eps=0.0)[0])
        np.testing.assert_allclose(cov[:3, :3], np.eye(3), atol=1e-11)
        np.testing.assert_allclose(cov[3:, 3:], np.eye(3), atol=1e-11)
        assert np.abs(cov[:3, 3:]).max() > 0.1

    @BOTH
    @pytest.mark.parametrize("shape", [(9, 4), (5, 4, 3, 2)])
    def test_one_channel_per_group_is_batch_normalisation(self, rng, shape, forward, backward):
        d = made(rng, shape, 4)
        ours, cache = forward(d["x"], d["gamma"], d["beta"], groups=4, eps=0.01)
        theirs, theirs_cache = batch_norm(d["x"], d["gamma"], d["beta"], eps=0.01)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
        for a, b in zip(backward(d["dy"], cache), batch_norm_backward(d["dy"], theirs_cache), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)

    def test_iter_norm_approaches_zca(self, rng):
        x = correlated(rng, (60, 4))
        exact, _ = whiten(x, eps=0.0)
        errors = [np.abs(iter_norm(x, iterations=t, eps=0.0)[0] - exact).max() for t in (2, 5, 8, 11, 30)]
        assert all(np.diff(errors) < 0)
        assert errors[-1] < 1e-10

    def test_iter_norm_stretches_the_main_direction_first(self, rng):
        x = rng.standard_normal((200, 2)) * np.array([10.0, 0.1])
        y, _ = iter_norm(x, iterations=5, eps=0.0)
        np.testing.assert_allclose(y[:, 0].var(), 1, rtol=1e-3)
        bound = 1.5**5 * x[:, 1].std() / np.sqrt(x.var(axis=0).sum())
        assert 0.9 * bound < y[:, 1].std() < bound

    def test_no_iteration_divides_the_group_by_one_number(self, rng):
        x = correlated(rng, (20, 3))
        y, cache = iter_norm(x, iterations=0, eps=0.5)
        np.testing.assert_allclose(y, (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).sum() + 1.5), rtol=1e-12)
        dy = rng.standard_normal(y.shape)
        by_hand = numerical_gradient(lambda x: (dy * iter_norm(x, iterations=0, eps=0.5)[0]).sum(), x)
        assert relative_error(iter_norm_backward(dy, cache)[0], by_hand) < 1e-7

    def test_zca_is_the_closest_of_all_whitenings(self, rng):
        x = correlated(rng, (40, 4))
        centred, (white, _) = x - x.mean(axis=0), whiten(x, eps=0.0)
        closest = ((white - centred) ** 2).sum()
        for _ in range(20):
            rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
            other = white @ rotation.T  # every whitening of x is a rotation of this one
            np.testing.assert_allclose(covariance(other), np.eye(4), atol=1e-11)
            assert ((other - centred) ** 2).sum() > closest

    @BOTH
    def test_it_turns_with_the_data(self, rng, forward, backward):
        x, dy = correlated(rng, (30, 4)), rng.standard_normal((30, 4))
        rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
        (y, cache), (turned, turned_cache) = forward(x), forward(x @ rotation.T)
        np.testing.assert_allclose(turned, y @ rotation.T, rtol=1e-10, atol=1e-10)
        dx, turned_dx = backward(dy, cache)[0], backward(dy @ rotation.T, turned_cache)[0]
        np.testing.assert_allclose(turned_dx, dx @ rotation.T, rtol=1e-9, atol=1e-9)

    def test_a_small_batch_becomes_a_simplex_whatever_it_holds(self, rng):
        """As many samples as channels or fewer: all that is left is that they are different."""
        for n in (2, 3, 4):
            y, _ = whiten(correlated(rng, (n, 4)), eps=1e-13)
            distances = ((y[:, None] - y[None]) ** 2).sum(axis=2)
            np.testing.assert_allclose(distances[~np.eye(n, dtype=bool)], 2 * n, rtol=1e-6)

    def test_rounding_below_zero_is_no_eigenvalue(self, rng):
        """Two signals in six channels: four eigenvalues are zero, and computed as rounding error of either sign."""
        x = 1e3 * (rng.standard_normal((64, 2)) @ rng.standard_normal((2, 6))).astype(np.float32)
        assert np.linalg.eigvalsh(whiten(x)[1].cov).min() < -1e-3
        y, cache = whiten(x, eps=1e-5)
        assert np.isfinite(y).all()
        assert np.isfinite(whiten_backward(y, cache)[0]).all()

    def test_many_newton_steps_in_float32_do_no_harm(self, rng):
        x = (rng.standard_normal((500, 3)) * np.array([5.0, 1.0, 0.5])).astype(np.float32)
        y, cache = iter_norm(x, iterations=40)
        np.testing.assert_allclose(covariance(y), np.eye(3), atol=1e-3)
        dy = rng.standard_normal(y.shape).astype(np.float32)
        exact = whiten_backward(dy.astype(float), whiten(x.astype(float))[1])[0]
        np.testing.assert_allclose(iter_norm_backward(dy, cache)[0], exact, atol=1e-3)

    def test_a_large_mean_in_float32_costs_no_precision(self, rng):
        x = (1e3 + 0.1 * correlated(rng, (300, 3))).astype(np.float32)
        y, _ = whiten(x, eps=0.0)
        np.testing.assert_allclose(y, whiten(x.astype(np.float64), eps=0.0)[0], atol=2e-3)
        assert y.dtype == np.float32

    @BOTH
    def test_half_precision_is_computed_in_float32(self, rng, forward, backward):
        x = correlated(rng, (64, 3)).astype(np.float16)
        y, cache = forward(x, np.ones(3), np.zeros(3))
        assert y.dtype == np.float16
        assert cache.matrix.dtype == np.float32
        np.testing.assert_allclose(y, forward(x.astype(np.float64))[0], atol=5e-3)
        dx, dgamma, _ = backward(y, cache)
        assert (dx.dtype, dgamma.dtype) == (np.float16, np.float32)

    @BOTH
    def test_one_value_per_channel_gives_beta(self, forward, backward):
        y, cache = forward(np.array([[3.0, -2.0]]), np.array([2.0, 3.0]), np.array([0.5, 0.25]))
        np.testing.assert_array_equal(y, [[0.5, 0.25]])
        np.testing.assert_allclose(backward(np.array([[1.0, 2.0]]), cache)[0], 0, atol=1e-12)


class TestBackward:
    @BOTH
    @SHAPES
    def test_against_finite_differences(self, rng, shape, groups, forward, backward):
        d = made(rng, shape, groups)

        def loss(x=d["x"], gamma=d["gamma"], beta=d["beta"]):
            return (d["dy"] * forward(x, gamma, beta, groups=groups, eps=0.02)[0]).sum()

        dx, dgamma, dbeta = backward(d["dy"], forward(d["x"], d["gamma"], d["beta"], groups=groups, eps=0.02)[1])
        assert relative_error(dx, numerical_gradient(lambda x: loss(x=x), d["x"])) < 1e-6
        assert relative_error(dgamma, numerical_gradient(lambda v: loss(gamma=v), d["gamma"])) < 1e-7
        assert relative_error(dbeta, numerical_gradient(lambda v: loss(beta=v), d["beta"])) < 1e-7

    @BOTH
    @FEW_SHAPES
    def test_against_torch_jax_and_tensorflow(self, rng, shape, groups, forward, backward):
        d = made(rng, shape, groups)
        names = ("x", "gamma", "beta")

        def run(*arrays):
            return forward(*arrays, groups=groups, eps=0.02)[0]

        ours = backward(d["dy"], forward(*(d[name] for name in names), groups=groups, eps=0.02)[1])
        leaves = [torch.tensor(d[name], requires_grad=True) for name in names]
        run(*leaves).backward(torch.tensor(d["dy"]))
        _, pull = jax.vjp(run, *(jax.numpy.asarray(d[name]) for name in names))
        variables = [tf.Variable(d[name]) for name in names]
        with tf.GradientTape() as tape:
            y = run(*variables)
        there = {
            "torch": [leaf.grad.numpy() for leaf in leaves],
            "jax": pull(jax.numpy.asarray(d["dy"])),
            "tensorflow": tape.gradient(y, variables, output_gradients=d["dy"]),
        }
        for library, grads in there.items():
            for a, b in zip(ours, grads, strict=True):
                np.testing.assert_allclose(np.asarray(b), a, rtol=1e-9, atol=1e-9, err_msg=library)

    @BOTH
    @pytest.mark.parametrize("repeats", [2, 4])
    def test_repeated_eigenvalues(self, rng, forward, backward, repeats):
        """There the gradient of an eigendecomposition divides by zero."""
        white, _ = whiten(correlated(rng, (12, 4)), eps=0.0)
        x = white * np.where(np.arange(4) < repeats, 1.0, np.arange(4) + 1.0)
        gaps = np.diff(np.linalg.eigvalsh(covariance(x)))
        assert np.sort(gaps)[repeats - 2] < 1e-12
        dy = rng.standard_normal(x.shape)
        dx = backward(dy, forward(x)[1])[0]
        assert relative_error(dx, numerical_gradient(lambda x: (dy * forward(x)[0]).sum(), x)) < 1e-6
        leaf = torch.tensor(x, requires_grad=True)
        forward(leaf)[0].backward(torch.tensor(dy))
        np.testing.assert_allclose(leaf.grad, dx, rtol=1e-9, atol=1e-9)
        _, pull = jax.vjp(lambda x: forward(x)[0], jax.numpy.asarray(x))
        np.testing.assert_allclose(pull(jax.numpy.asarray(dy))[0], dx, rtol=1e-9, atol=1e-9)
        variable = tf.Variable(x)
        with tf.GradientTape() as tape:
            y = forward(variable)[0]
        np.testing.assert_allclose(tape.gradient(y, variable, output_gradients=dy), dx, rtol=1e-9, atol=1e-9)

    def test_torch_own_eigendecomposition_fails_there(self, rng):
        """What the formulation is for."""
        leaf = torch.eye(3, dtype=torch.float64).requires_grad_()
        values, vectors = torch.linalg.eigh(leaf)
        ((vectors / values.sqrt()) @ vectors.T * torch.tensor(rng.standard_normal((3, 3)))).sum().backward()
        assert not torch.isfinite(leaf.grad).all()

    @BOTH
    def test_second_derivatives_at_repeated_eigenvalues_too(self, rng, forward, backward):
        for x in (correlated(rng, (7, 3)), whiten(correlated(rng, (7, 3)), eps=0.0)[0]):
            leaf = torch.tensor(x, requires_grad=True)
            assert torch.autograd.gradgradcheck(lambda x: forward(x, eps=0.01)[0], (leaf,))

    @BOTH
    @SHAPES
    def test_identities(self, rng, shape, groups, forward, backward):
        d = made(rng, shape, groups)
        eps = 0.0 if d["x"].size // shape[1] > shape[1] // groups else 0.02
        dx = backward(d["dy"], forward(d["x"], d["gamma"], d["beta"], groups=groups, eps=eps)[1])[0]
        scale = np.abs(dx).max()
        np.testing.assert_allclose(columns(dx).sum(axis=1), 0, atol=1e-11 * scale)
        if eps == 0:
            per_channel = (columns(dx) * columns(d["x"])).sum(axis=1)
            np.testing.assert_allclose(per_channel.reshape(groups, -1).sum(axis=1), 0, atol=1e-9 * scale)

    @BOTH
    def test_wrong_upstream_is_refused(self, forward, backward):
        _, cache = forward(np.arange(12.0).reshape(6, 2) ** 2)
        with pytest.raises(ValueError, match=r"expected dy of the shape of x, \(6, 2\), got \(5, 2\)"):
            backward(np.ones((5, 2)), cache)


@pytest.mark.parametrize("library", TO)
class TestOneFormulaEveryLibrary:
    @BOTH
    @FEW_SHAPES
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_same_as_numpy_in_float64(self, rng, library, shape, groups, forward, backward, training):
        d = made(rng, shape, groups)

        def run(d):
            given = {} if training else {"mean": d["mean"], "matrix": d["matrix"]}
            y, cache = forward(d["x"], d["gamma"], d["beta"], groups=groups, eps=0.01, **given)
            tracked = update_whitening(d["mean"], d["matrix"], cache) if training else ()
            return [y, *backward(d["dy"], cache), *tracked]

        there = run({name: TO[library](value) for name, value in d.items()})
        assert {type(value) for value in there} == {type(TO[library](d["x"]))}
        for a, b in zip(there, run(d), strict=True):
            np.testing.assert_allclose(np.asarray(a), b, rtol=1e-10, atol=1e-10)

    @BOTH
    def test_float32_stays_float32(self, rng, library, forward, backward):
        d = {name: TO[library](value.astype(np.float32)) for name, value in made(rng, (9, 4, 3), 2).items()}
        y, cache = forward(d["x"], d["gamma"], groups=2, eps=np.float64(1e-5))
        tracked = update_whitening(d["mean"], d["matrix"], cache, momentum=np.float64(0.3))
        for value in (y, *backward(d["dy"], cache), *tracked):
            assert "float32" in str(value.dtype)


class TestTracing:
    @BOTH
    def test_jit(self, rng, forward, backward):
        x, dy = (jax.numpy.asarray(a) for a in (correlated(rng, (9, 4)), rng.standard_normal((9, 4))))
        y, cache = jax.jit(lambda x: forward(x, groups=2))(x)
        np.testing.assert_allclose(y, forward(np.asarray(x), groups=2)[0], rtol=1e-10, atol=1e-10)
        expected = backward(np.asarray(dy), forward(np.asarray(x), groups=2)[1])[0]
        np.testing.assert_allclose(jax.jit(backward)(dy, cache)[0], expected, rtol=1e-10, atol=1e-10)

    @BOTH
    def test_tf_function_with_unknown_batch_and_spatial_sizes(self, rng, forward, backward):
        @tf.function(input_signature=[tf.TensorSpec((None, 4, None), tf.float64)] * 2)
        def traced(x, dy):
            y, cache = forward(x, groups=2, eps=0.0)
            return y, backward(dy, cache)[0], *update_whitening(tf.zeros(4), tf.zeros((2, 2, 2)), cache)

        x, dy = correlated(rng, (5, 4, 3)), rng.standard_normal((5, 4, 3))
        y, cache = forward(x, groups=2, eps=0.0)
        expected = [y, backward(dy, cache)[0], 0.1 * cache.mean, 0.1 * cache.matrix]
        for there, here, tolerance in zip(traced(x, dy), expected, (1e-10, 1e-10, 1e-6, 1e-6), strict=True):
            np.testing.assert_allclose(there, here, rtol=tolerance, atol=tolerance)

    @BOTH
    def test_keras_symbolic_tensors(self, forward, backward):
        assert forward(keras.KerasTensor((None, 4, None), dtype="float32"))[0].shape == (None, 4, None)
        with pytest.raises(ValueError, match=r"known number of channels, .*, got shape \(2, None\)"):
            forward(keras.KerasTensor((2, None), dtype="float32"))


class TestRunningStatistics:
    @BOTH
    def test_the_matrix_is_averaged(self, rng, forward, backward):
        d = made(rng, (9, 4), 2)
        _, cache = forward(d["x"], groups=2)
        mean, matrix = update_whitening(d["mean"], d["matrix"], cache, momentum=0.3)
        np.testing.assert_allclose(mean, 0.7 * d["mean"] + 0.3 * d["x"].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(matrix, 0.7 * d["matrix"] + 0.3 * cache.matrix, rtol=1e-12)

    def test_one_value_per_channel_is_enough(self):
        """No variance is corrected here, which one value could not be."""
        _, cache = whiten(np.array([[3.0, -2.0]]))
        mean, _ = update_whitening(np.zeros(2), np.zeros((1, 2, 2)), cache, momentum=0.5)
        np.testing.assert_array_equal(mean, [1.5, -1])

    def test_they_leave_the_graph(self, rng):
        x = torch.tensor(correlated(rng, (9, 4)), requires_grad=True)
        mean, matrix = update_whitening(torch.zeros(4), torch.zeros((1, 4, 4)), whiten(x)[1])
        assert not mean.requires_grad
        assert not matrix.requires_grad

    def test_errors(self, rng):
        x = correlated(rng, (9, 4))
        with pytest.raises(ValueError, match=r"running_matrix of shape \(2, 2, 2\), the batch's, got \(1, 4, 4\)"):
            update_whitening(np.zeros(4), np.zeros((1, 4, 4)), whiten(x, groups=2)[1])
        cache = whiten(x, mean=np.zeros(4), matrix=np.eye(4)[None])[1]
        with pytest.raises(ValueError, match="training form, got one of the inference form"):
            update_whitening(np.zeros(4), np.zeros((1, 4, 4)), cache)
        with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
            update_whitening(np.zeros(4), np.zeros((1, 4, 4)), whiten(x)[1], momentum=1.5)
        with pytest.raises(ValueError, match=r"expected mean of the shape of running_mean, \(3,\), got \(4,\)"):
            update_whitening(np.zeros(3), np.zeros((1, 4, 4)), whiten(x)[1])


@BOTH
class TestErrors:
    def test_shapes(self, forward, backward):
        x = np.arange(24.0).reshape(6, 4) ** 2
        with pytest.raises(ValueError, match=r"expected x of shape \(N, C, \*spatial\), at least 2D, got shape \(4,\)"):
            forward(np.ones(4))
        with pytest.raises(ValueError, match=r"expected gamma of shape \(4,\)"):
            forward(x, np.ones(3))
        for groups in (3, 0, -2):
            with pytest.raises(ValueError, match=rf"the 4 channels of x with shape \(6, 4\), got groups={groups}"):
                forward(x, groups=groups)
        with pytest.raises(ValueError, match="expected both mean and matrix or neither, got mean without matrix"):
            forward(x, mean=np.zeros(4))
        with pytest.raises(ValueError, match="expected both mean and matrix or neither, got matrix without mean"):
            forward(x, matrix=np.eye(4)[None])
        with pytest.raises(ValueError, match=r"matrix of shape \(2, 2, 2\), .*, got \(1, 4, 4\)"):
            forward(x, groups=2, mean=np.zeros(4), matrix=np.eye(4)[None])

    @pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
    def test_nothing_to_whiten_by(self, forward, backward, shape):
        with pytest.raises(ValueError, match=rf"at least one value per channel .* shape \({shape[0]}, 3"):
            forward(np.empty(shape))
        y, cache = forward(np.empty(shape), mean=np.zeros(3), matrix=np.eye(3)[None])
        assert y.shape == backward(y, cache)[0].shape == shape

    def test_too_few_values_without_eps(self, rng, forward, backward):
        with pytest.raises(ValueError, match=r"more than 4 values per channel for .* 4 channels, or eps > 0, got 4"):
            forward(rng.standard_normal((4, 4)), eps=0.0)
        assert np.isfinite(forward(rng.standard_normal((5, 4)), eps=0.0)[0]).all()
        assert np.isfinite(forward(rng.standard_normal((4, 4)), groups=2, eps=0.0)[0]).all()

    def test_values(self, forward, backward):
        with pytest.raises(ValueError, match=r"expected eps >= 0, got -0\.1"):
            forward(np.eye(3), eps=-0.1)
        with pytest.raises(TypeError, match="expected x of a real floating-point dtype, got int64"):
            forward(np.eye(3, dtype=np.int64))
        with pytest.raises(TypeError, match=r"numpy\.ndarray, torch\.Tensor"):
            forward(np.eye(3), torch.ones(3))


def test_iterations():
    x = np.arange(12.0).reshape(6, 2) ** 2
    with pytest.raises(ValueError, match="expected iterations >= 0, got -1"):
        iter_norm(x, iterations=-1)
    with pytest.raises(TypeError, match=r"expected iterations to be a whole number, got 2\.5"):
        iter_norm(x, iterations=2.5)
    with pytest.raises(TypeError, match="expected iterations to be a Python int, got array"):
        iter_norm(x, iterations=np.array([3, 3]))


def test_nan(rng):
    """As the docstrings say."""
    x = correlated(rng, (9, 4))
    x[0, 0] = np.nan
    y, _ = iter_norm(x, groups=2)
    assert np.isnan(y[:, :2]).all()
    assert np.isfinite(y[:, 2:]).all()
    with pytest.raises(np.linalg.LinAlgError):
        whiten(x)
    with pytest.raises(torch.linalg.LinAlgError):
        whiten(torch.tensor(x))
    with pytest.raises(tf.errors.InvalidArgumentError):
        whiten(tf.constant(x))
    assert np.isnan(whiten(jax.numpy.asarray(x))[0]).all()
