"""The repairs as NumPy layers: against the formulas, PyTorch's layer, finite differences, and their own rules."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

from bnlearn.functional import (
    batch_layer_norm,
    batch_norm,
    batch_renorm,
    example_weighing,
    full_norm,
    ghost_batch_norm,
    renorm_limits,
    update_running,
)
from bnlearn.gradcheck import check_layer
from bnlearn.layers import BatchLayerNorm, BatchNorm1d, BatchRenorm, ExampleWeighing, FullNorm, GhostBatchNorm
from bnlearn.layers.batch_layer import STATISTICS

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

SHAPES = [(6, 3), (5, 3, 4), (4, 3, 2, 3), (2, 3, 2, 2, 2, 2)]
SHAPED = pytest.mark.parametrize("shape", SHAPES)
LIKE_BATCH_NORM = {
    "BatchRenorm": lambda **options: BatchRenorm(3, **options),
    "GhostBatchNorm": lambda **options: GhostBatchNorm(3, 2, **options),
    "FullNorm": lambda **options: FullNorm(3, **options),
    "ExampleWeighing": lambda **options: ExampleWeighing(3, 0.3, **options),
}
EACH = pytest.mark.parametrize("name", LIKE_BATCH_NORM)


def randomise(layer, rng):
    for name, array in layer._state().items():
        if name == "num_batches_tracked":
            array[...] = rng.integers(2, 6)
        elif "var" in name:
            array[...] = rng.uniform(0.5, 2.0, array.shape)
        elif name == "weight":
            array[...] = rng.uniform(0.5, 2.0, array.shape) * rng.choice([-1, 1], array.shape)
        else:
            array[...] = rng.standard_normal(array.shape)
    return layer


def made(rng, shape):
    return 0.5 + 1.5 * rng.standard_normal(shape), rng.standard_normal(shape)


def assert_close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# -- all of them


@EACH
@SHAPED
def test_evaluation_is_that_of_torchs_batch_norm(rng, name, shape):
    layer = randomise(LIKE_BATCH_NORM[name](dtype=np.float64), rng).eval()
    if name == "ExampleWeighing":
        layer.example_weight = 0.0
    x, dy = made(rng, shape)
    theirs = torch.nn.BatchNorm2d(3).double().eval()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in layer.state_dict().items()})
    theirs._check_input_dim = lambda input: None
    t = torch.tensor(x, requires_grad=True)
    y = theirs(t)
    y.backward(torch.tensor(dy))
    assert_close(layer(x), y.detach().numpy())
    assert_close(layer.backward(dy), t.grad.numpy())
    assert_close(layer.grads["weight"], theirs.weight.grad.numpy())
    assert_close(layer.grads["bias"], theirs.bias.grad.numpy())


@pytest.mark.parametrize("name", ["GhostBatchNorm", "ExampleWeighing"])
@pytest.mark.parametrize("training", [True, False])
def test_backward_is_finite_differences(rng, name, training):
    layer = randomise(LIKE_BATCH_NORM[name](dtype=np.float64), rng).train(training)
    assert max(check_layer(layer, made(rng, (6, 3, 2))[0], rng).values()) < 1e-6


@EACH
@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_running_statistics_are_used_by_evaluation_and_only_training_changes_them(rng, name, momentum):
    layer = LIKE_BATCH_NORM[name](momentum=momentum)
    x, _ = made(rng, (8, 3, 4))
    for _ in range(60):
        layer(x)
    before = layer.state_dict()
    assert not np.allclose(before["running_mean"], 0)
    y = layer.eval()(x)
    np.testing.assert_allclose(y.mean(axis=(0, 2)), 0, atol=0.3)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@EACH
def test_state_is_batch_norms_both_ways(rng, name):
    layer, plain = LIKE_BATCH_NORM[name](), randomise(BatchNorm1d(3), rng)
    assert layer.load_state_dict(plain.state_dict()) == ([], [])
    assert BatchNorm1d(3).load_state_dict(layer.state_dict()) == ([], [])
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, plain.state_dict()[key])


@EACH
@pytest.mark.parametrize(("affine", "bias"), [(True, False), (False, True)])
def test_without_parameters(rng, name, affine, bias):
    layer = LIKE_BATCH_NORM[name](affine=affine, bias=bias)
    x, dy = made(rng, (6, 3))
    for training in (True, False):
        layer.train(training)(x)
        layer.backward(dy)
        assert list(layer.grads) == (["weight"] if affine else [])


@EACH
def test_copies_and_pickles(rng, name):
    layer = randomise(LIKE_BATCH_NORM[name](), rng)
    x, _ = made(rng, (6, 3))
    expected = copy.deepcopy(layer)(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(x), expected)


@EACH
def test_an_empty_batch_leaves_the_statistics(rng, name):
    layer = randomise(LIKE_BATCH_NORM[name](), rng)
    before = layer.state_dict()
    assert layer(np.empty((0, 3, 4), np.float32)).shape == (0, 3, 4)
    assert layer.backward(np.empty((0, 3, 4), np.float32)).shape == (0, 3, 4)
    for key in ("running_mean", "running_var"):
        np.testing.assert_array_equal(layer.state_dict()[key], before[key])


@EACH
def test_errors(rng, name):
    layer = LIKE_BATCH_NORM[name]()
    before = layer.state_dict()
    for x, error, message in (
        (np.zeros(3), ValueError, r"at least 2D input \(got 1D input\)"),
        (np.zeros((4, 2)), ValueError, r"expected 3 channels on axis 1 \(got 2 in input size \(4, 2\)\)"),
        (
            np.zeros((1, 3)),
            ValueError,
            r"Expected more than 1 value per channel when training, got input size \(1, 3\)",
        ),
        (np.zeros((4, 3), int), TypeError, "expected floating-point numbers, got int64"),
    ):
        with pytest.raises(error, match=message):
            layer(x)
    with pytest.raises(RuntimeError, match=f"expected a forward pass before {name}.backward, got none"):
        layer.backward(np.zeros((4, 3)))
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            BatchRenorm(3, r_max=2.0),
            "BatchRenorm(3, eps=1e-05, momentum=0.1, affine=True, warmup=5000, r_end=40000, d_end=25000, r_max=2.0, "
            "d_max=5.0)",
        ),
        (
            GhostBatchNorm(3, 8),
            "GhostBatchNorm(3, ghost_size=8, eps=1e-05, momentum=0.1, affine=True, bias=True, "
            "track_running_stats=True)",
        ),
        (
            ExampleWeighing(3, 0.25),
            "ExampleWeighing(3, example_weight=0.25, eps=1e-05, momentum=0.1, affine=True, bias=True, "
            "track_running_stats=True)",
        ),
        (
            BatchLayerNorm((3, 4), 8),
            "BatchLayerNorm((3, 4), batch_size=8, eps=0.001, momentum=None, affine=True, "
            "running=('batch_mean', 'batch_var'))",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_representation(layer, text):
    assert repr(layer) == text


# -- each of them in training


@SHAPED
def test_batch_renorm_follows_its_schedule(rng, shape):
    limits = {"warmup": 2, "r_end": 6, "d_end": 4, "r_max": 1.5, "d_max": 0.4}
    layer = BatchRenorm(3, dtype=np.float64, momentum=0.3, **limits)
    randomise(layer, rng).num_batches_tracked[...] = 0
    running = layer.running_mean.copy(), layer.running_var.copy()
    for step in range(8):
        x, dy = made(rng, shape)
        r_max, d_max = renorm_limits(step, **limits)
        expected, cache = batch_renorm(
            x, layer.weight, layer.bias, mean=running[0], var=running[1], r_max=r_max, d_max=d_max
        )
        assert_close(layer(x), expected)
        np.testing.assert_allclose(layer.backward(dy).sum(axis=(0, *range(2, x.ndim))), 0, atol=1e-10)
        if step <= 2:
            assert_close(expected, batch_norm(x, layer.weight, layer.bias)[0])
        running = update_running(*running, cache.batch.mean, cache.batch.var, cache.batch.n, momentum=0.3)
        assert_close([layer.running_mean, layer.running_var], running)
    assert layer.num_batches_tracked == 8


def test_batch_renorm_unclipped_trains_on_what_evaluation_computes(rng):
    layer = randomise(BatchRenorm(3, r_max=math.inf, d_max=math.inf, warmup=0, r_end=0, d_end=0, dtype=float), rng)
    x, _ = made(rng, (6, 3))
    assert_close(copy.deepcopy(layer)(x), layer.eval()(x))


def test_batch_renorm_has_the_papers_limits_and_refuses_them_out_of_order():
    assert "r_max=3.0, d_max=5.0" in repr(BatchRenorm(3))
    with pytest.raises(ValueError, match="got warmup=50000"):
        BatchRenorm(3, warmup=50_000)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("samples", [4, 7])
def test_ghosts_are_batches_in_turn(rng, momentum, samples):
    layer = randomise(GhostBatchNorm(3, 2, momentum=momentum, dtype=np.float64), rng)
    plain = BatchNorm1d(3, momentum=momentum, dtype=np.float64)
    plain.load_state_dict(layer.state_dict())
    x, dy = made(rng, (samples, 3, 5))
    y, dx = layer(x), layer.backward(dy)
    pieces = [slice(start, start + 2) for start in range(0, samples, 2)]
    assert_close(y, np.concatenate([plain(x[piece]) for piece in pieces]))
    for key, value in plain.state_dict().items():
        assert_close(layer.state_dict()[key], value)
    dxs, dweight = [], 0
    for piece in pieces:
        plain(x[piece])
        dxs.append(plain.backward(dy[piece]))
        dweight = dweight + plain.grads["weight"]
    assert_close(dx, np.concatenate(dxs))
    assert_close(layer.grads["weight"], dweight)


def test_ghosts_without_running_statistics_evaluate_in_ghosts(rng):
    layer = GhostBatchNorm(3, 2, track_running_stats=False, dtype=np.float64)
    x, _ = made(rng, (4, 3, 2))
    for training in (True, False):
        assert_close(layer.train(training)(x), ghost_batch_norm(x, ghost_size=2)[0])


def test_ghosts_refuse_a_last_one_of_one_value():
    for x, size in ((np.zeros((5, 3)), 2), (np.zeros((4, 3)), 1)):
        with pytest.raises(ValueError, match=rf"in each ghost when training, .* in ghosts of {size}: drop"):
            GhostBatchNorm(3, size)(x)
    GhostBatchNorm(3, 1)(np.ones((5, 3, 2)))
    with pytest.raises(ValueError, match="expected ghost_size >= 1 samples, got 0"):
        GhostBatchNorm(3, 0)


@pytest.mark.parametrize(("momentum", "shares"), [(0.3, [1, 0.5, 1 / 3, 0.3, 0.3]), (None, [1, 0.5, 1 / 3, 0.25, 0.2])])
def test_full_norms_first_batches_weigh_more(rng, momentum, shares):
    layer = FullNorm(3, momentum=momentum, dtype=np.float64)
    layer.weight[...], layer.bias[...] = rng.standard_normal((2, 3))
    estimate = {"mean": np.full(3, 9.0), "var": np.full(3, 9.0)}  # forgotten at once
    for share in shares:
        x, dy = made(rng, (4, 3, 2))
        expected, cache = full_norm(x, layer.weight, layer.bias, **estimate, momentum=share)
        estimate = {"mean": cache.mean, "var": cache.var}
        assert_close(layer(x), expected)
        assert_close(layer.backward(dy), batch_norm_like_backward(dy, cache))
        assert_close([layer.running_mean, layer.running_var], [cache.mean, cache.var])


def batch_norm_like_backward(dy, cache):
    g = dy * cache.gamma.reshape(1, -1, 1)
    mean = g.mean(axis=(0, 2), keepdims=True)
    along = (g * cache.x_hat).mean(axis=(0, 2), keepdims=True)
    return cache.inv_std.reshape(1, -1, 1) * (g - mean - cache.x_hat * along)


def test_full_norm_with_all_the_weight_is_batch_norm(rng):
    layer, plain = FullNorm(3, momentum=1.0, dtype=np.float64), BatchNorm1d(3, dtype=np.float64)
    for _ in range(3):
        x, dy = made(rng, (6, 3))
        assert_close(layer(x), plain(x))
        assert_close(layer.backward(dy), plain.backward(dy))


def test_example_weighing_trains_as_batch_norm_and_evaluates_as_the_formula(rng):
    layer, plain = ExampleWeighing(3, 0.3, dtype=np.float64), BatchNorm1d(3, dtype=np.float64)
    x, dy = made(rng, (6, 3, 4))
    assert_close(layer(x), plain(x))
    assert_close(layer.backward(dy), plain.backward(dy))
    for key, value in plain.state_dict().items():
        assert_close(layer.state_dict()[key], value)
    expected, _ = example_weighing(x, mean=layer.running_mean, var=layer.running_var, weight=0.3)
    assert_close(layer.eval()(x), expected)
    for wrong in (1.5, -0.5):
        with pytest.raises(ValueError, match=rf"expected example_weight from 0 to 1, got {wrong}"):
            ExampleWeighing(3, wrong)
    assert [layer.example_weight for layer in (ExampleWeighing(3), ExampleWeighing(3, 0), ExampleWeighing(3, 1))] == [
        *(0, 0, 1)
    ]


# -- batch layer normalisation


class TestBatchLayerNorm:
    def test_an_epochs_average(self, rng):
        layer = BatchLayerNorm((3, 4), 5, dtype=np.float64)
        for _ in range(2):
            layer.reset_running_stats()
            for name, value in BatchLayerNorm((3, 4), 5).state_dict().items():
                np.testing.assert_array_equal(layer.state_dict()[name], value)
            batches = [made(rng, (5, 3, 4))[0] for _ in range(3)]
            for x in batches:
                assert_close(layer(x), batch_layer_norm(x)[0])
            assert layer.num_batches_tracked == 3
            expected = {
                "batch_mean": np.mean([x.mean(0) for x in batches], axis=0),
                "batch_var": np.mean([x.var(0) for x in batches], axis=0) * 5 / 4,
                "feature_mean": np.mean([x.mean((0, 1), keepdims=True)[0] for x in batches], axis=0),
                "feature_var": np.mean([x.var(1).mean(0, keepdims=True) for x in batches], axis=0) * 5 / 4,
            }
            for name, value in expected.items():
                assert_close(layer.state_dict()[f"running_{name}"], value)

    @pytest.mark.parametrize("running", [(), ("batch_mean",), ("batch_mean", "batch_var"), STATISTICS])
    def test_evaluation(self, rng, running):
        layer = randomise(BatchLayerNorm((3, 4), 8, running=running, dtype=np.float64), rng).eval()
        x, _ = made(rng, (5, 3, 4))
        given = {name: layer.state_dict()[f"running_{name}"] for name in running}
        assert_close(layer(x), batch_layer_norm(x, layer.weight, layer.bias, batch_size=8, **given)[0])

    @pytest.mark.parametrize("training", [True, False])
    def test_backward_is_finite_differences(self, rng, training):
        layer = randomise(BatchLayerNorm((3, 4), 8, running=["batch_mean", "feature_var"], dtype=float), rng)
        assert max(check_layer(layer.train(training), made(rng, (5, 3, 4))[0], rng).values()) < 1e-6

    def test_momentum_and_a_batch_of_one(self, rng):
        layer = randomise(BatchLayerNorm(3, 8, momentum=0.3, affine=False, dtype=np.float64), rng)
        before = layer.state_dict()
        x, dy = made(rng, (1, 3))
        layer(x)
        layer.backward(dy)
        assert layer.grads == {}
        assert_close(layer.running_batch_mean, 0.7 * before["running_batch_mean"] + 0.3 * x[0])
        assert_close(layer.running_batch_var, 0.7 * before["running_batch_var"])
        assert_close(layer.running_feature_var, 0.7 * before["running_feature_var"] + 0.3 * x.var())

    def test_a_batch_of_two_is_corrected_by_two(self, rng):
        layer = BatchLayerNorm(3, 1, momentum=1.0, dtype=np.float64)
        x, _ = made(rng, (2, 3))
        layer(x)
        assert_close(layer.running_batch_var, 2 * x.var(axis=0))

    def test_an_empty_batch_leaves_the_statistics(self, rng):
        layer = randomise(BatchLayerNorm(3, 8), rng)
        before = layer.state_dict()
        for training in (True, False):
            assert layer.train(training)(np.empty((0, 3))).shape == (0, 3)
        for name in STATISTICS:
            np.testing.assert_array_equal(layer.state_dict()[f"running_{name}"], before[f"running_{name}"])

    def test_errors(self):
        with pytest.raises(ValueError, match=r"expected x of shape .* \('N', 3, 4\), got \(2, 3, 5\)"):
            BatchLayerNorm((3, 4), 8)(np.zeros((2, 3, 5)))
        with pytest.raises(ValueError, match=r"of lengths >= 1, got \(3, 0\)"):
            BatchLayerNorm((3, 0), 8)
        with pytest.raises(ValueError, match=r"of lengths >= 1, got \(\)"):
            BatchLayerNorm((), 8)
        with pytest.raises(ValueError, match="expected batch_size >= 1, got 0"):
            BatchLayerNorm(3, 0)
        with pytest.raises(ValueError, match=r"expected running to name some of batch_mean, .*, got mean"):
            BatchLayerNorm(3, 8, running=["mean"])
