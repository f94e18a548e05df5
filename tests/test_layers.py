"""The layers against PyTorch's, their errors, their state, and the mistakes that others' layers make."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnlearn import layers
from bnlearn.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
)

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

SHAPES = [
    (BatchNorm1d, (6, 3)),
    (BatchNorm1d, (5, 4, 7)),
    (BatchNorm2d, (4, 3, 5, 6)),
    (BatchNorm3d, (3, 3, 4, 3, 5)),
]
BY_SHAPE = pytest.mark.parametrize(
    ("cls", "shape"), SHAPES, ids=lambda v: str(v) if isinstance(v, tuple) else v.__name__
)
BUFFERS = ["running_mean", "running_var", "num_batches_tracked"]


def randomise(layer, rng, mean=0.0, std=1.0):
    """Nothing left at the 1 and 0 that hide mistakes."""
    for name, array in layer._state().items():
        kind = name.split(".")[-1]
        if kind == "running_mean":
            array[...] = mean + std * rng.standard_normal(array.shape)
        elif kind == "running_var":
            array[...] = std**2 * rng.uniform(0.5, 2.0, array.shape)
        elif kind == "num_batches_tracked":
            array[...] = rng.integers(1, 5)
        elif kind == "weight" and array.ndim == 1:
            array[...] = rng.uniform(0.5, 2.0, array.shape) * rng.choice([-1, 1], array.shape)
        else:
            array[...] = rng.standard_normal(array.shape)
    return layer


def tensors(state):
    return {name: torch.from_numpy(array) for name, array in state.items()}


def pair(cls, channels, rng, dtype=np.float64, mean=0.0, std=1.0, **options):
    """Our layer with random state, and PyTorch's with the same."""
    ours = randomise(cls(channels, dtype=dtype, **options), rng, mean, std)
    theirs = getattr(torch.nn, cls.__name__)(channels, **options).to(tensors({"": np.zeros(1, dtype)})[""].dtype)
    theirs.load_state_dict(tensors(ours.state_dict()))
    return ours, theirs


def run_ours(layer, x, dy):
    y, dx = layer(x), layer.backward(dy)
    return {"y": y, "dx": dx, **{f"grad of {k}": v for k, v in layer.grads.items()}, **layer.state_dict()}


def run_torch(module, x, dy):
    x = torch.tensor(x.copy(), requires_grad=True)
    module.zero_grad()
    y = module(x)
    y.backward(torch.tensor(dy.copy()))
    return {
        "y": y.detach().numpy(),
        "dx": x.grad.numpy(),
        **{f"grad of {name}": p.grad.numpy() for name, p in module.named_parameters()},
        **{name: t.numpy().copy() for name, t in module.state_dict().items()},
    }


def error(actual, expected, floor=0.0):
    """Largest difference, relative to the largest number expected (or to ``floor`` where that may be rounding)."""
    if not expected.size:
        return 0.0
    return float(np.abs(actual - expected).max() / (max(np.abs(expected).max(), floor) or 1))


def assert_agree(ours, theirs, tolerance, floor=0.0):
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert ours[name].dtype == expected.dtype, name
        assert error(ours[name], expected, floor) <= tolerance, name


# -- agreement with PyTorch


@BY_SHAPE
@pytest.mark.parametrize(
    ("dtype", "mean", "std", "tolerance"),
    [(np.float64, 0.0, 1.0, 1e-10), (np.float64, 1e3, 0.1, 1e-8), (np.float32, 0.0, 1.0, 1e-5)],
    ids=["float64 to 1e-10", "float64 at mean 1e3, std 0.1 to 1e-8", "float32 to 1e-5"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_agrees_with_torch(cls, shape, dtype, mean, std, tolerance, training, rng):
    ours, theirs = pair(cls, shape[1], rng, dtype, mean, std)
    ours.train(training), theirs.train(training)
    for _ in range(3):
        x = (mean + std * rng.standard_normal(shape)).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), tolerance)


@BY_SHAPE
def test_float32_at_mean_1e3_std_01_is_at_least_as_accurate_as_torch(cls, shape, rng):
    shape = (shape[0] * 50, *shape[1:])
    ours, theirs = pair(cls, shape[1], rng, np.float32, 1e3, 0.1)
    _, exact = pair(cls, shape[1], rng, np.float64)
    exact.load_state_dict(theirs.state_dict())
    x, dy = (1e3 + 0.1 * rng.standard_normal(shape)).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    truth = run_torch(exact, x.astype(np.float64), dy.astype(np.float64))
    ours, theirs = run_ours(ours, x, dy), run_torch(theirs, x, dy)
    for name, bound in {"y": 1e-5, "dx": 1e-5, "running_var": 1e-5, "running_mean": 1e-6}.items():
        assert error(ours[name], truth[name]) <= bound, name
        assert error(ours[name], truth[name]) <= max(error(theirs[name], truth[name]), 1e-6), name


@BY_SHAPE
@pytest.mark.parametrize("track_running_stats", [True, False])
@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("momentum", [None, 0, 0.3, 1.0])
def test_every_argument_agrees_with_torch_over_training_and_evaluation(
    cls, shape, momentum, affine, bias, track_running_stats, rng
):
    options = {"eps": 0.1, "momentum": momentum, "affine": affine, "track_running_stats": track_running_stats}
    ours, theirs = pair(cls, shape[1], rng, bias=bias, **options)
    for training in [True, True, False, True, False]:
        ours.train(training), theirs.train(training)
        x, dy = 2 + 3 * rng.standard_normal(shape), rng.standard_normal(shape)
        assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), 1e-10)


def test_momentum_none_averages_all_batches(rng):
    layer, batches = BatchNorm1d(2, momentum=None, dtype=np.float64), rng.standard_normal((4, 5, 2))
    for x in batches:
        layer(x)
    np.testing.assert_allclose(layer.running_mean, batches.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, batches.var(axis=1, ddof=1).mean(axis=0), rtol=1e-12)


def test_momentum_none_is_not_affected_by_what_the_statistics_were(rng):
    x = rng.standard_normal((5, 2))
    layer = BatchNorm1d(2, momentum=None, dtype=np.float64)
    layer.running_mean[...], layer.running_var[...] = 7, 7
    layer(x)
    np.testing.assert_allclose(layer.running_mean, x.mean(axis=0), rtol=1e-12)


def test_momentum_zero_keeps_the_statistics_and_counts(rng):
    layer = randomise(BatchNorm1d(3, momentum=0), rng)
    before = layer.state_dict()
    layer(rng.standard_normal((4, 3)))
    np.testing.assert_array_equal(layer.running_mean, before["running_mean"])
    np.testing.assert_array_equal(layer.running_var, before["running_var"])
    assert layer.num_batches_tracked == before["num_batches_tracked"] + 1


def test_switching_tracking_off_later_agrees_with_torch(rng):
    # track_running_stats = False on a layer that has buffers: training leaves them alone, evaluation still uses them
    ours, theirs = pair(BatchNorm1d, 3, rng)
    ours.track_running_stats = theirs.track_running_stats = False
    for training in [True, False]:
        ours.train(training), theirs.train(training)
        x, dy = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
        assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), 1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("cls", "shape"),
    [
        (BatchNorm1d, (0, 3)),
        (BatchNorm1d, (0, 3, 5)),
        (BatchNorm1d, (1, 3, 0)),
        (BatchNorm2d, (2, 3, 0, 4)),
        (BatchNorm3d, (0, 3, 1, 2, 2)),
    ],
)
def test_empty_batch_as_torch(cls, shape, training, options, rng):
    ours, theirs = pair(cls, 3, rng, np.float32, **options)
    before = ours.state_dict()
    ours.train(training), theirs.train(training)
    empty = np.zeros(shape, np.float32)
    result = run_ours(ours, empty, empty)
    assert_agree(result, run_torch(theirs, empty, empty), 0)
    assert result["dx"].shape == shape
    if ours.running_mean is not None:
        np.testing.assert_array_equal(ours.running_mean, before["running_mean"])
        np.testing.assert_array_equal(ours.running_var, before["running_var"])
        assert ours.num_batches_tracked == before["num_batches_tracked"] + training


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_pass_through_as_in_torch(bad, training, rng):
    ours, theirs = pair(BatchNorm2d, 3, rng)
    ours.train(training), theirs.train(training)
    x, dy = rng.standard_normal((4, 3, 2, 2)), rng.standard_normal((4, 3, 2, 2))
    x[1, 2, 0, 1] = bad
    with np.errstate(invalid="ignore"):
        actual = run_ours(ours, x, dy)
    expected = run_torch(theirs, x, dy)
    for name in ["y", "dx", "grad of weight", "grad of bias", *BUFFERS]:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
    assert np.isfinite(actual["y"][:, :2]).all()  # the other channels do not notice


def test_nan_and_infinity_in_the_running_statistics_as_in_torch(rng):
    ours, theirs = pair(BatchNorm1d, 4, rng)
    ours.running_mean[:2], ours.running_var[1:3] = [np.nan, np.inf], [np.nan, np.inf]
    theirs.load_state_dict(tensors(ours.state_dict()))
    x, dy = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
    for training in [False, True]:
        ours.train(training), theirs.train(training)
        with np.errstate(invalid="ignore"):
            actual = run_ours(ours, x, dy)
        for name, expected in run_torch(theirs, x, dy).items():
            np.testing.assert_allclose(actual[name], expected, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_half_precision_as_torch(training, rng):
    ours, theirs = pair(BatchNorm2d, 3, rng, np.float32)
    ours.train(training), theirs.train(training)
    x, dy = rng.standard_normal((2, 6, 3, 4, 4)).astype(np.float16)
    actual, expected = run_ours(ours, x, dy), run_torch(theirs, x, dy)
    assert {name: array.dtype for name, array in actual.items()} == {
        name: array.dtype for name, array in expected.items()
    }
    for name in ["y", "dx", "grad of weight", "grad of bias"]:
        assert error(actual[name].astype(np.float64), expected[name].astype(np.float64)) < 2e-3, name
    for name in BUFFERS:
        assert error(actual[name], expected[name]) < 1e-5, name


@pytest.mark.parametrize("x_dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dtypes_follow_x_and_the_parameters(x_dtype, dtype, training, rng):
    layer = randomise(BatchNorm1d(3, dtype=dtype), rng).train(training)
    kept = {name: array.dtype for name, array in layer.state_dict().items()}
    assert kept == {**dict.fromkeys(["weight", "bias", *BUFFERS], np.dtype(dtype)), "num_batches_tracked": np.int64}
    x = rng.standard_normal((5, 3)).astype(x_dtype)
    y = layer(x)
    assert y.dtype == x_dtype
    assert layer.backward(y).dtype == x_dtype
    assert {name: array.dtype for name, array in layer.state_dict().items()} == kept
    assert {name: array.dtype for name, array in layer.grads.items()} == {"weight": dtype, "bias": dtype}


def test_float64_input_to_a_float32_layer_is_computed_in_float64(rng):
    single = randomise(BatchNorm1d(3), rng)
    double = BatchNorm1d(3, dtype=np.float64)
    double.load_state_dict(single.state_dict())
    x = rng.standard_normal((5, 3))
    np.testing.assert_array_equal(single(x), double(x))


LAYOUTS = {
    "contiguous": lambda a: np.ascontiguousarray(a),
    "fortran": lambda a: np.asfortranarray(a),
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


@st.composite
def cases(draw):
    cls, spatial = draw(st.sampled_from([(BatchNorm1d, 0), (BatchNorm1d, 1), (BatchNorm2d, 2), (BatchNorm3d, 3)]))
    shape = draw(hnp.array_shapes(min_dims=2 + spatial, max_dims=2 + spatial, min_side=1, max_side=5))
    if np.prod(shape) == shape[1]:
        shape = (2, *shape[1:])
    return cls, shape, draw(st.sampled_from(sorted(LAYOUTS))), draw(st.sampled_from([np.float32, np.float64]))


@settings(max_examples=80, deadline=None)
@given(cases(), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_shape_dtype_and_layout_agrees_with_torch(case, training, constant, seed):
    cls, shape, layout, dtype = case
    rng = np.random.default_rng(seed)
    ours, theirs = pair(cls, shape[1], rng, dtype)
    ours.train(training), theirs.train(training)
    plain, dy = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    if constant:
        plain[:, 0] = 2.5
    x, dy_laid = LAYOUTS[layout](plain), LAYOUTS[layout](dy)
    actual = run_ours(ours, x, dy_laid)
    np.testing.assert_array_equal(x, plain)  # inputs are not changed
    np.testing.assert_array_equal(dy_laid, dy)
    tolerance = 1e-4 if dtype == np.float32 else 1e-9  # two values close together are ill-conditioned: eps saves us
    for name, expected in run_torch(theirs, plain, dy).items():
        # a gradient that is zero on paper is noise of the size of its terms: 1 / sqrt(eps) at most
        scale = max(np.abs(expected).max(), 300 if name == "dx" else 1)
        assert np.abs(actual[name] - expected).max() <= tolerance * scale, name


def test_outputs_are_new_arrays(rng):
    x = rng.standard_normal((4, 3))
    for training in [True, False]:
        layer = BatchNorm1d(3, affine=False).train(training)
        y = layer(x)
        expected = layer.backward(x)
        y[...] = np.nan  # what a caller does to y must not reach the cache
        np.testing.assert_array_equal(layer.backward(x), expected)


# -- errors


@pytest.mark.parametrize(
    ("cls", "shape", "message"),
    [
        (BatchNorm1d, (3,), "expected 2D or 3D input (got 1D input): BatchNorm1d takes x of shape (N, C) or (N, C, L)"),
        (BatchNorm1d, (2, 3, 4, 4), "expected 2D or 3D input (got 4D input): BatchNorm1d takes x of shape (N, C) or"),
        (BatchNorm2d, (2, 3, 4), "expected 4D input (got 3D input): BatchNorm2d takes x of shape (N, C, H, W)"),
        (BatchNorm3d, (2, 3, 4, 4), "expected 5D input (got 4D input): BatchNorm3d takes x of shape (N, C, D, H, W)"),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_wrong_number_of_dimensions(cls, shape, message, training):
    theirs = getattr(torch.nn, cls.__name__)(3).train(training)
    with pytest.raises(ValueError, match=re.escape(message)):
        cls(3).train(training)(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=re.escape(message.split(":")[0])):
        theirs(torch.zeros(shape))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"affine": False, "track_running_stats": False}], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_wrong_number_of_channels(training, options):
    with pytest.raises(
        ValueError, match=re.escape("expected 3 channels on axis 1 (got 5 in input size (4, 5)): change num_features")
    ):
        BatchNorm1d(3, **options).train(training)(np.zeros((4, 5), np.float32))


@pytest.mark.parametrize(
    ("cls", "shape"), [(BatchNorm1d, (1, 3)), (BatchNorm1d, (1, 3, 1)), (BatchNorm2d, (1, 3, 1, 1))]
)
def test_one_value_per_channel_in_training(cls, shape):
    layer, theirs = cls(3), getattr(torch.nn, cls.__name__)(3)
    message = f"Expected more than 1 value per channel when training, got input size {shape}: use a larger batch"
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=re.escape("Expected more than 1 value per channel when training, got input")):
        theirs(torch.zeros(shape))


def test_one_value_per_channel_is_fine_in_evaluation_by_running_statistics_only():
    x = np.full((1, 3), 2, np.float32)
    np.testing.assert_allclose(BatchNorm1d(3).eval()(x), x, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"Expected more than 1 value per channel when training, got input size \(1, 3"
    ):
        BatchNorm1d(3, track_running_stats=False).eval()(x)


@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_eps_must_be_positive_when_training(eps):
    message = f"batch_norm eps must be positive during training, but got {eps}"
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchNorm1d(2, eps=eps)(np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.nn.BatchNorm1d(2, eps=eps)(torch.eye(2))
    np.testing.assert_array_equal(BatchNorm1d(2, eps=0.0).eval()(np.eye(2)), np.eye(2))  # harmless by given statistics


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0, 2.0]], "expected a NumPy array, got list; convert it"),
        (torch.zeros(2, 2), "expected a NumPy array, got Tensor; convert it"),
        (np.zeros((2, 2), np.int64), "expected floating-point numbers, got int64; convert them"),
        (np.zeros((2, 2), complex), "expected floating-point numbers, got complex128; convert them"),
    ],
    ids=["list", "torch", "int64", "complex128"],
)
def test_what_is_not_an_array_of_floats(x, message, rng):
    for layer in [BatchNorm1d(2), Linear(2, 2, rng=rng), Conv2d(2, 2, 1, rng=rng)]:
        with pytest.raises(TypeError, match=re.escape(message)):
            layer(x)


@pytest.mark.parametrize(
    ("options", "x"),
    [
        ({}, np.zeros((1, 3))),
        ({}, np.zeros((4, 5))),
        ({}, np.zeros((4, 3, 2, 2))),
        ({}, np.zeros((4, 3), int)),
        ({"eps": 0.0}, np.zeros((4, 3))),
        ({"momentum": 1.5}, np.ones((4, 3))),
        ({"momentum": -0.1}, np.ones((4, 3))),
    ],
    ids=["one value", "channels", "dimensions", "dtype", "eps", "momentum 1.5", "momentum -0.1"],
)
def test_a_failing_forward_changes_nothing(options, x, rng):
    layer = randomise(BatchNorm1d(3, **options), rng)
    before = layer.state_dict()
    with pytest.raises((ValueError, TypeError)):
        layer(x)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("num_features", [0, -1])
def test_num_features_must_be_positive(num_features):
    with pytest.raises(ValueError, match=f"expected num_features >= 1, the number of channels, got {num_features}"):
        BatchNorm2d(num_features)


def every_layer(rng):
    """One of each, with the shape of an input."""
    return [
        (BatchNorm1d(3), (4, 3)),
        (BatchNorm2d(3), (4, 3, 2, 2)),
        (BatchNorm3d(3), (4, 3, 2, 2, 2)),
        (Linear(3, 2, rng=rng), (4, 3)),
        (Conv2d(3, 2, 2, rng=rng), (4, 3, 5, 5)),
        (ReLU(), (4, 3)),
        (Sigmoid(), (4, 3)),
        (Tanh(), (4, 3)),
        (Flatten(), (4, 3, 2)),
        (Sequential(Linear(3, 3, rng=rng), BatchNorm1d(3), ReLU()), (4, 3)),
    ]


def test_backward_before_forward(rng):
    for layer, _ in every_layer(rng):
        name = "ReLU" if isinstance(layer, Sequential) else type(layer).__name__
        with pytest.raises(
            RuntimeError, match=f"expected a forward pass before {name}.backward, got none; call it first"
        ):
            layer.backward(np.zeros((4, 3)))


def test_dy_of_another_shape(rng):
    for layer, shape in every_layer(rng):
        y = layer(np.ones(shape) * rng.standard_normal(shape))
        wrong = np.zeros((*y.shape[:-1], y.shape[-1] + 1))
        with pytest.raises(ValueError, match=re.escape(f"{y.shape}, got {wrong.shape}")):
            layer.backward(wrong)


# -- modes


def test_train_and_eval_return_the_layer_and_reach_everything_inside(rng):
    inner = Sequential(BatchNorm1d(3), ReLU())
    model = Sequential(Linear(3, 3, rng=rng), inner)
    assert model.training
    assert model.eval() is model
    assert [module.training for module in model.modules()] == [False] * 5
    assert model.train() is model
    assert [module.training for module in model.modules()] == [True] * 5
    assert inner[0].eval() is inner[0]
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_train_takes_a_truth_value_as_in_torch():
    message = "training mode is expected to be boolean"
    with pytest.raises(ValueError, match=f"{message}, got str; to train on data: training.fit"):
        BatchNorm1d(3).train("digits")
    with pytest.raises(ValueError, match=message):
        torch.nn.BatchNorm1d(3).train("digits")


def test_backward_follows_the_mode_of_the_forward(rng):
    ours, theirs = pair(BatchNorm1d, 3, rng)
    x, dy = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    y = ours(x)
    expected = run_torch(theirs, x, dy)
    ours.eval()  # too late for the pass that was made in training mode
    np.testing.assert_allclose(y, expected["y"], rtol=1e-10)
    np.testing.assert_allclose(ours.backward(dy), expected["dx"], rtol=1e-10)


def test_grads_are_overwritten_not_accumulated(rng):
    layer, x, dy = BatchNorm1d(3), rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    layer(x), layer.backward(dy)
    first = dict(layer.grads)
    layer.backward(dy)
    for name in ["weight", "bias"]:
        np.testing.assert_array_equal(layer.grads[name], first[name])
    assert np.abs(first["bias"]).min() > 0


# -- state


def test_names_as_in_torch(rng):
    for options in [{}, {"affine": False}, {"track_running_stats": False}, {"bias": False}]:
        ours, theirs = pair(BatchNorm2d, 3, rng, **options)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert list(ours.parameters()) == [name for name, _ in theirs.named_parameters()]
        assert list(ours.buffers()) == [name for name, _ in theirs.named_buffers()]
    assert BatchNorm1d(3, affine=False).weight is None
    assert BatchNorm1d(3, affine=False).bias is None
    assert [getattr(BatchNorm1d(3, track_running_stats=False), name) for name in BUFFERS] == [None] * 3


def model_pair(rng, dtype=np.float64):
    """The same network, ours and PyTorch's: nested, convolutional, with everything in it."""
    ours = Sequential(
        Conv2d(1, 4, 3, stride=2, padding=1, bias=False, rng=rng, dtype=dtype),
        Sequential(BatchNorm2d(4, dtype=dtype), ReLU()),
        Flatten(),
        Linear(4 * 4 * 4, 6, rng=rng, dtype=dtype),
        BatchNorm1d(6, momentum=None, dtype=dtype),
        Tanh(),
        Linear(6, 3, rng=rng, dtype=dtype),
        Sigmoid(),
    )
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),
        torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.ReLU()),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 4 * 4, 6),
        torch.nn.BatchNorm1d(6, momentum=None),
        torch.nn.Tanh(),
        torch.nn.Linear(6, 3),
        torch.nn.Sigmoid(),
    ).double()
    return randomise(ours, rng), theirs


def test_a_network_agrees_with_torch_in_training_and_evaluation(rng):
    ours, theirs = model_pair(rng)
    theirs.load_state_dict(tensors(ours.state_dict()))
    for training in [True, True, False]:
        ours.train(training), theirs.train(training)
        x, dy = rng.standard_normal((5, 1, 8, 8)), rng.standard_normal((5, 3))
        # the bias in front of a batch normalisation has a gradient of zero, up to rounding: hence the floor
        assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), 1e-9, floor=1e-3)


def test_state_dict_round_trip_to_torch_and_back(rng):
    ours, theirs = model_pair(rng)
    theirs.load_state_dict(tensors(ours.state_dict()))  # strict: names, shapes
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), ours.state_dict()[name], err_msg=name)
    theirs(torch.tensor(rng.standard_normal((5, 1, 8, 8))))
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], tensor.numpy(), err_msg=name)
    assert ours[4].num_batches_tracked.dtype == np.int64
    assert int(theirs[4].num_batches_tracked) == int(ours[4].num_batches_tracked)


def test_state_dict_round_trip_through_a_file(rng, tmp_path):
    ours, _ = model_pair(rng)
    np.savez(tmp_path / "model.npz", **ours.state_dict())
    other = model_pair(rng)[0]
    x = rng.standard_normal((5, 1, 8, 8))
    assert not np.array_equal(other.eval()(x), ours.eval()(x))
    with np.load(tmp_path / "model.npz") as state:
        other.load_state_dict(state)
    np.testing.assert_array_equal(other(x), ours(x))


def test_state_dict_is_a_copy_and_parameters_are_live(rng):
    layer = BatchNorm1d(3)
    kept, buffers = layer.state_dict(), layer.buffers()
    layer(rng.standard_normal((5, 3)))
    layer.parameters()["weight"][...] = 7
    np.testing.assert_array_equal(kept["running_mean"], np.zeros(3))
    np.testing.assert_array_equal(kept["weight"], np.ones(3))
    assert (kept["num_batches_tracked"], layer.num_batches_tracked) == (0, 1)
    np.testing.assert_array_equal(layer.weight, [7, 7, 7])
    assert buffers["running_mean"] is layer.running_mean  # updated in place: whoever holds it sees it
    assert buffers["num_batches_tracked"] is layer.num_batches_tracked
    kept["weight"][...] = 9
    np.testing.assert_array_equal(layer.weight, [7, 7, 7])


def test_load_state_dict_names_every_problem_and_changes_nothing(rng):
    model = randomise(Sequential(Linear(2, 3, rng=rng), BatchNorm1d(3)), rng)
    before, state = model.state_dict(), {name: a + 1 for name, a in model.state_dict().items()}
    del state["1.weight"]
    state["0.bias"] = np.zeros(4)
    state["typo"] = np.zeros(1)
    message = (
        "the state does not fit this Sequential, nothing was loaded: missing '1.weight'; unexpected 'typo'; "
        "'0.bias' has shape (4,), expected (3,)"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=re.escape("nothing was loaded: '0.bias' has shape (4,), expected (3,)")):
        model.load_state_dict(state, strict=False)
    state["0.bias"] = np.array(["a", "b", "c"])
    with pytest.raises(ValueError, match="could not convert"):
        model.load_state_dict(state, strict=False)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_load_state_dict_refuses_a_transposed_weight(rng):
    layer, other = Linear(2, 3, rng=rng), Linear(3, 2, rng=rng)
    with pytest.raises(RuntimeError, match=re.escape("'weight' has shape (2, 3), expected (3, 2)")):
        layer.load_state_dict({**layer.state_dict(), "weight": other.weight})


def test_load_state_dict_not_strict_loads_what_there_is(rng):
    layer = randomise(BatchNorm1d(3), rng)
    before = layer.state_dict()
    result = layer.load_state_dict({"weight": np.array([1, 2, 3]), "gamma": np.zeros(3)}, strict=False)
    assert result == (["bias", *BUFFERS], ["gamma"])
    assert result.missing_keys == ["bias", *BUFFERS]
    assert result.unexpected_keys == ["gamma"]
    np.testing.assert_array_equal(layer.weight, [1, 2, 3])
    assert layer.weight.dtype == np.float32
    np.testing.assert_array_equal(layer.running_mean, before["running_mean"])


def test_pickle_and_deepcopy_are_independent_and_leave_the_forward_pass_behind(rng):
    for layer, shape in every_layer(rng):
        randomise(layer, rng)
        x = rng.standard_normal(shape)
        dy = layer(x)
        layer.backward(dy)
        for twin in [pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)]:
            assert repr(twin) == repr(layer)
            assert twin.training == layer.training
            before = layer.state_dict()
            assert list(twin.grads) == list(layer.grads)
            with pytest.raises(RuntimeError, match="expected a forward pass before"):
                twin.backward(dy)
            for name, array in twin._state().items():
                np.testing.assert_array_equal(array, before[name])
                array += 1
            for name, array in layer.state_dict().items():
                np.testing.assert_array_equal(array, before[name])
        np.testing.assert_array_equal(layer.backward(dy), layer.backward(dy))  # ours is still there


def test_copy_shares_the_arrays(rng):
    layer = BatchNorm1d(3)
    layer(rng.standard_normal((4, 3)))
    twin = copy.copy(layer)
    assert twin.weight is layer.weight
    with pytest.raises(RuntimeError, match=r"expected a forward pass before BatchNorm1d\.backward"):
        twin.backward(np.zeros((4, 3)))


def test_pickle_does_not_grow_with_the_batch(rng):
    layer = BatchNorm1d(3)
    before = len(pickle.dumps(layer))
    layer(rng.standard_normal((1000, 3)))
    assert len(pickle.dumps(layer)) == before


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3, "momentum": None}, {"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize("cls", [BatchNorm1d, BatchNorm2d, BatchNorm3d])
def test_repr_of_batch_norm_as_torch(cls, options):
    assert repr(cls(3, **options)) == repr(getattr(torch.nn, cls.__name__)(3, **options))


def test_repr_of_a_network_as_torch(rng):
    ours, theirs = model_pair(rng)
    assert repr(ours) == repr(theirs)
    assert repr(Sequential()) == repr(torch.nn.Sequential())
    assert repr(Linear(2, 3, bias=False, rng=rng)) == repr(torch.nn.Linear(2, 3, bias=False))
    for padding in [0, (0, 1), (1, 0)]:
        theirs = torch.nn.Conv2d(2, 3, (1, 2), padding=padding)
        assert repr(Conv2d(2, 3, (1, 2), padding=padding, rng=rng)) == repr(theirs)


# -- Linear, Conv2d, activations


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (3,), (0, 3)])
def test_linear_agrees_with_torch(shape, bias, rng):
    ours = randomise(Linear(3, 4, bias, rng=rng, dtype=np.float64), rng)
    theirs = torch.nn.Linear(3, 4, bias).double()
    theirs.load_state_dict(tensors(ours.state_dict()))
    x, dy = rng.standard_normal(shape), rng.standard_normal((*shape[:-1], 4))
    assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), 1e-10)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4), (), (4, 3, 2)])
def test_linear_refuses_other_widths(shape, rng):
    with pytest.raises(
        ValueError, match=re.escape(f"expected x of shape (N, 3), got {shape}; put Flatten() before it")
    ):
        Linear(3, 2, rng=rng)(np.zeros(shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        (3, 1, 0, (6, 7)),
        (3, 1, 1, (6, 7)),
        (3, 2, 1, (8, 7)),  # the last column and row are not used by every kernel place
        ((2, 3), (3, 2), (0, 2), (7, 6)),
        (1, 1, 0, (3, 3)),
        (1, 2, 0, (4, 5)),
        (2, 3, 0, (7, 8)),  # stride larger than the kernel: pixels nobody sees
        (4, 1, 0, (4, 4)),
    ],
    ids=str,
)
def test_conv2d_agrees_with_torch(kernel, stride, padding, size, bias, rng):
    ours = randomise(Conv2d(3, 4, kernel, stride, padding, bias, rng=rng, dtype=np.float64), rng)
    theirs = torch.nn.Conv2d(3, 4, kernel, stride, padding, bias=bias).double()
    theirs.load_state_dict(tensors(ours.state_dict()))
    x = rng.standard_normal((2, 3, *size))
    dy = rng.standard_normal(tuple(theirs(torch.tensor(x)).shape))
    assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), 1e-10)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(3, 6)] * 2),
    *[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2,
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from(sorted(LAYOUTS)),
)
def test_conv2d_any_size_and_layout_agrees_with_torch(sizes, kernel, stride, padding, layout):
    n, channels, out, height, width = sizes
    rng = np.random.default_rng(0)
    ours = randomise(Conv2d(channels, out, kernel, stride, padding, rng=rng, dtype=np.float64), rng)
    theirs = torch.nn.Conv2d(channels, out, kernel, stride, padding).double()
    theirs.load_state_dict(tensors(ours.state_dict()))
    plain = rng.standard_normal((n, channels, height, width))
    x = LAYOUTS[layout](plain)
    dy = LAYOUTS[layout](rng.standard_normal(tuple(theirs(torch.tensor(plain)).shape)))
    assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), 1e-10)
    np.testing.assert_array_equal(x, plain)


def test_conv2d_empty_batch(rng):
    ours, theirs = Conv2d(2, 3, 2, rng=rng), torch.nn.Conv2d(2, 3, 2)
    theirs.load_state_dict(tensors(ours.state_dict()))
    x, dy = np.zeros((0, 2, 4, 4), np.float32), np.zeros((0, 3, 3, 3), np.float32)
    assert_agree(run_ours(ours, x, dy), run_torch(theirs, x, dy), 0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3, 5), "expected x of shape (N, 3, H, W), got (4, 3, 5)"),
        ((4, 2, 5, 5), "expected x of shape (N, 3, H, W), got (4, 2, 5, 5)"),
        ((4, 3, 2, 5), "at least as large as the kernel (5, 4), got (4, 5); use a smaller kernel or more padding"),
        ((4, 3, 5, 3), "at least as large as the kernel (5, 4), got (7, 3); use a smaller kernel or more padding"),
    ],
)
def test_conv2d_refuses_other_shapes(shape, message, rng):
    with pytest.raises(ValueError, match=re.escape(message)):
        Conv2d(3, 2, (5, 4), padding=(1, 0), rng=rng)(np.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, "expected kernel_size to be a whole number >= 1, or two of them, got 0"),
        ({"kernel_size": (1, 2, 3)}, "expected kernel_size to be a whole number >= 1, or two of them, got (1, 2, 3)"),
        ({"stride": (1, 0)}, "expected stride to be a whole number >= 1, or two of them, got (1, 0)"),
        ({"padding": -1}, "expected padding to be a whole number >= 0, or two of them, got -1"),
        ({"padding": "same"}, "expected padding to be a whole number >= 0, or two of them, got 'same'"),
        ({"kernel_size": 2.5}, "expected kernel_size to be a whole number >= 1, or two of them, got 2.5"),
    ],
)
def test_conv2d_refuses_other_options(options, message, rng):
    with pytest.raises(ValueError, match=re.escape(message)):
        Conv2d(1, 1, **{"kernel_size": 3, **options}, rng=rng)


def test_conv2d_takes_numpy_integers(rng):
    assert Conv2d(1, 1, np.int64(3), rng=rng).weight.shape == (1, 1, 3, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cls", [ReLU, Sigmoid, Tanh, Flatten])
def test_activations_agree_with_torch(cls, dtype, rng):
    ours, theirs = cls(), getattr(torch.nn, cls.__name__)()
    x = np.concatenate([3 * rng.standard_normal(60), [0.0, -0.0, 50.0, -50.0, 1e30, -1e30, np.inf, -np.inf]])
    x = np.stack([x, x[::-1]]).reshape(2, 4, 17).astype(dtype)
    y_shape = (2, 68) if cls is Flatten else x.shape
    dy = rng.standard_normal(y_shape).astype(dtype)
    actual, expected = run_ours(ours, x, dy), run_torch(theirs, x, dy)
    rtol = 2e-6 if dtype == np.float32 else 1e-13
    for name in ["y", "dx"]:
        assert actual[name].dtype == dtype
        np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, atol=rtol, err_msg=name)
    assert not ours.grads


@pytest.mark.parametrize("cls", [ReLU, Sigmoid, Tanh])
def test_activations_pass_nan_as_torch(cls):
    x, dy = np.array([np.nan, 1.0, -1.0]), np.array([2.0, np.nan, np.nan])
    expected = run_torch(getattr(torch.nn, cls.__name__)(), x, dy)
    for name, array in run_ours(cls(), x, dy).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-12, err_msg=name)


def test_sigmoid_is_accurate_far_out():
    np.testing.assert_allclose(Sigmoid()(np.array([-700.0, -40.0])), np.exp([-700.0, -40.0]), rtol=1e-12)
    assert Sigmoid()(np.array([-1000.0, 1000.0])).tolist() == [
        0,
        1,
    ]  # no overflow warning, which would be an error here


def test_flatten_of_an_empty_batch():
    layer = Flatten()
    assert layer(np.zeros((0, 3, 4))).shape == (0, 12)
    assert layer.backward(np.zeros((0, 12))).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("init", "variance"), [("he", 2 / 400), ("lecun", 1 / 400), ("glorot", 2 / 700), (0.25, 1 / 16)]
)
def test_init(init, variance):
    rng = np.random.default_rng(3)
    for layer in [Linear(400, 300, rng=rng, init=init), Conv2d(100, 75, 2, rng=rng, init=init)]:
        weight = layer.weight.astype(np.float64)
        n = weight.size
        assert abs(weight.mean()) < 5 * (variance / n) ** 0.5
        assert abs(weight.var() / variance - 1) < 5 * (2 / n) ** 0.5
        np.testing.assert_array_equal(layer.bias, np.zeros(len(weight)))
    assert not Linear(4, 3, rng=rng, init=0.0).weight.any()


def test_init_is_by_the_generator_alone():
    def weights(seed):
        return Linear(3, 2, rng=np.random.default_rng(seed)).weight

    np.random.seed(0)  # noqa: NPY002 - to show that the global state is not used
    first = weights(1)
    np.testing.assert_array_equal(first, weights(1))
    assert not np.array_equal(first, weights(2))


@pytest.mark.parametrize("init", ["xavier", -1.0, float("nan")])
def test_init_unknown(init, rng):
    with pytest.raises(ValueError, match=re.escape(f"'glorot' or a standard deviation >= 0, got {init!r}")):
        Linear(3, 2, rng=rng, init=init)


def test_init_needs_a_generator():
    with pytest.raises(TypeError, match=re.escape("expected rng=np.random.default_rng(seed), got int")):
        Linear(3, 2, rng=0)


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0), (2, -1)])
def test_sizes_must_be_positive(sizes, rng):
    with pytest.raises(ValueError, match=re.escape(f"inputs and outputs >= 1, got weights of shape {sizes[::-1]}")):
        Linear(*sizes, rng=rng)


# -- Sequential


def small(rng):
    return randomise(
        Sequential(Linear(3, 4, rng=rng, dtype=np.float64), BatchNorm1d(4, dtype=np.float64), Sequential(Tanh())), rng
    )


def test_sequential_is_a_sequence(rng):
    model = small(rng)
    assert len(model) == 3
    assert [type(layer) for layer in model] == [Linear, BatchNorm1d, Sequential]
    assert model[1] is list(model)[1]
    assert model[-1] is model[2]
    head = model[:2]
    assert isinstance(head, Sequential)
    assert list(head) == [model[0], model[1]]
    with pytest.raises(IndexError):
        model[3]


def test_sequential_names(rng):
    model = Sequential(small(rng), BatchNorm1d(4))
    assert list(model.parameters()) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight", "1.bias"]
    assert list(model.buffers()) == [f"{prefix}.{name}" for prefix in ["0.1", "1"] for name in BUFFERS]
    assert model.parameters()["0.1.weight"] is model[0][1].weight
    y = model(rng.standard_normal((5, 3)))
    model.backward(rng.standard_normal(y.shape))
    assert {name: grad.shape for name, grad in model.grads.items()} == {
        name: parameter.shape for name, parameter in model.parameters().items()
    }
    np.testing.assert_array_equal(model.grads["0.1.weight"], model[0][1].grads["weight"])


def test_sequential_refuses_what_is_not_a_layer(rng):
    with pytest.raises(TypeError, match=re.escape("expected layers, got list; write Sequential(first, second, ...)")):
        Sequential([ReLU(), ReLU()])


def test_sequential_refuses_a_layer_twice():
    relu = ReLU()
    for layers_ in [(relu, relu), (relu, Sequential(relu))]:
        with pytest.raises(
            ValueError, match=re.escape("expected every layer once, got ReLU() twice; make a second one")
        ):
            Sequential(*layers_)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_activations_are_those_of_the_forward_and_change_nothing(training, rng):
    model = small(rng).train(training)
    x, other = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    dy = model(other)
    before, dx = model.state_dict(), model.backward(dy)
    activations = model.activations(x)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    np.testing.assert_array_equal(model.backward(dy), dx)  # the cache is that of the caller's own pass
    assert list(activations) == ["0.Linear", "1.BatchNorm1d", "2.Sequential"]
    for stop, array in enumerate(activations.values(), start=1):
        np.testing.assert_array_equal(array, copy.deepcopy(model)[:stop](x))
    changed = int(model[1].num_batches_tracked)
    model(x)
    assert model[1].num_batches_tracked == changed + training


def test_gradients_are_those_of_the_outputs(rng):
    model, x = small(rng), rng.standard_normal((5, 3))
    dy = rng.standard_normal(model(x).shape)
    model.backward(dy)
    expected = dict(model.grads)
    gradients = model.gradients(dy)
    assert list(gradients) == ["0.Linear", "1.BatchNorm1d", "2.Sequential"]
    np.testing.assert_array_equal(gradients["2.Sequential"], dy)
    np.testing.assert_array_equal(gradients["1.BatchNorm1d"], model[2].backward(dy))
    np.testing.assert_array_equal(gradients["0.Linear"], model[1].backward(model[2].backward(dy)))
    for name, grad in model.grads.items():
        np.testing.assert_array_equal(grad, expected[name], err_msg=name)


def test_empty_sequential_is_the_identity(rng):
    x = rng.standard_normal((2, 3))
    assert Sequential()(x) is x
    assert Sequential().backward(x) is x
    assert Sequential().activations(x) == Sequential().gradients(x) == {}


class Residual(Layer):
    """What a reader might write: a layer made of layers."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def children(self):
        return {"body": self.body}

    def forward(self, x):
        return x + self.body(x)

    def backward(self, dy):
        return dy + self.body.backward(dy)


def test_a_layer_of_ones_own_takes_part_in_everything(rng):
    body = Sequential(Linear(3, 3, rng=rng), BatchNorm1d(3))
    model = Sequential(Residual(body), Linear(3, 2, rng=rng))
    assert list(model.parameters())[:2] == ["0.body.0.weight", "0.body.0.bias"]
    assert "0.body.1.running_mean" in model.state_dict()
    assert not model.eval()[0].body[1].training
    model.train()
    y = model(rng.standard_normal((5, 3)))
    model.backward(y)
    assert list(model.grads) == list(model.parameters())
    assert body[1].num_batches_tracked == 1


class Scale(Layer):
    """What a reader might write: a layer with a parameter."""

    parameter_names = ("scale",)

    def __init__(self):
        super().__init__()
        self.scale = np.array([3.0])

    def forward(self, x):
        self._cache = x
        return self.scale * x

    def backward(self, dy):
        self.grads["scale"] = np.array([(dy * self._saved()).sum()])
        return self.scale * dy


def test_a_layer_of_ones_own_writes_its_gradients(rng):
    x = rng.standard_normal((4, 2))
    model = Sequential(Scale(), ReLU())
    model(x), model.backward(np.ones((4, 2)))
    np.testing.assert_allclose(model.grads["0.scale"], [x[x > 0].sum()])


def test_every_public_layer_is_listed():
    public = {name for name, value in vars(layers).items() if isinstance(value, type) and issubclass(value, Layer)}
    assert {name for name in public if not name.startswith("_")} == set(layers.__all__)


# -- the mistakes of well-known teaching code


def test_mistake_moving_statistics_missing_from_the_state_dict(rng):
    layer = BatchNorm1d(3)
    layer(5 + rng.standard_normal((8, 3)))
    other = BatchNorm1d(3)
    other.load_state_dict(pickle.loads(pickle.dumps(layer.state_dict())))
    x = rng.standard_normal((1, 3))
    np.testing.assert_array_equal(other.eval()(x), layer.eval()(x))
    assert not np.allclose(layer(x), BatchNorm1d(3).eval()(x))


def test_mistake_eval_does_nothing(rng):
    layer, x = randomise(BatchNorm1d(3), rng), 5 + rng.standard_normal((8, 3))
    by_batch = layer(x)
    before = layer.state_dict()
    by_running = layer.eval()(x)
    assert not np.allclose(by_batch, by_running)
    np.testing.assert_allclose(by_running[:2], layer(x[:2]), rtol=1e-12)  # a sample does not depend on its batch
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_mistake_variance_as_mean_of_squares_minus_square_of_mean(rng):
    x = (1e4 + rng.standard_normal((4096, 2))).astype(np.float32)
    np.testing.assert_allclose(BatchNorm1d(2)(x).std(axis=0), 1, rtol=1e-3)


def test_mistake_the_history_of_the_average_is_kept(rng):
    layer, sizes = BatchNorm1d(3), []
    for _ in range(3):
        layer(rng.standard_normal((8, 3)))
        sizes.append(len(pickle.dumps(copy.deepcopy(layer))))
    assert sizes[0] == sizes[1] == sizes[2]


def test_mistake_gradient_does_not_go_through_the_statistics(rng):
    ours, theirs = pair(BatchNorm1d, 3, rng)
    x, dy = rng.standard_normal((8, 3)), rng.standard_normal((8, 3))
    ours(x)
    dx = ours.backward(dy)
    np.testing.assert_allclose(dx, run_torch(theirs, x, dy)["dx"], rtol=1e-10)
    np.testing.assert_allclose(dx.sum(axis=0), 0, atol=1e-12)
    without = ours.weight * dy / np.sqrt(x.var(axis=0) + ours.eps)
    assert error(without, dx) > 0.03


def test_mistake_normalising_by_the_unbiased_variance(rng):
    x = rng.standard_normal((4, 3))
    y = BatchNorm1d(3, eps=1e-12, dtype=np.float64)(x)
    np.testing.assert_allclose(y.var(axis=0), 1, rtol=1e-9)


def test_mistake_running_variance_is_biased(rng):
    layer, x = BatchNorm2d(3, momentum=1.0, dtype=np.float64), rng.standard_normal((2, 3, 1, 2))
    layer(x)
    np.testing.assert_allclose(layer.running_var, x.var(axis=(0, 2, 3), ddof=1), rtol=1e-12)


def test_mistake_debiased_average_that_starts_the_variance_at_one(rng):
    layer, x = BatchNorm1d(3, momentum=0.01), rng.standard_normal((4096, 3))
    layer(x)
    np.testing.assert_allclose(layer.running_var, 1, rtol=0.1)
    np.testing.assert_allclose(layer.eval()(x).std(axis=0), 1, rtol=0.1)


def test_statistics_taken_away_are_not_tracked_as_in_torch(rng):
    ours, theirs = layers.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    x = rng.standard_normal((6, 3)).astype(np.float32)
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = None
    for training in (True, False):
        y = theirs.train(training)(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(ours.train(training)(x), y, rtol=1e-5, atol=1e-5)


def test_relu_s_output_may_be_changed_before_backward(rng):
    layer, x = layers.ReLU(), rng.standard_normal((4, 3))
    layer(x)[...] = 7.0
    np.testing.assert_array_equal(layer.backward(np.ones((4, 3))), x > 0)
