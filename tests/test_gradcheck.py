"""Finite differences: right about right gradients, and about wrong ones."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bnlearn.gradcheck import check_layer, numerical_gradient, relative_error
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
from bnlearn.training import softmax_cross_entropy


def test_numerical_gradient_of_known_functions(rng):
    x = rng.standard_normal((2, 3))
    matrix = rng.standard_normal((3, 3))
    for f, expected in [
        (lambda x: np.sin(x).sum(), np.cos(x)),
        (lambda x: (x @ matrix @ x.T).trace(), x @ (matrix + matrix.T)),
        (lambda x: np.array([[x[0, 0] ** 3]]), np.where(np.arange(6).reshape(2, 3) == 0, 3 * x**2, 0)),
    ]:
        np.testing.assert_allclose(numerical_gradient(f, x), expected, rtol=1e-7, atol=1e-8)


def test_numerical_gradient_is_central():
    # exact for a parabola whatever the step; a one-sided difference would be off by eps
    assert numerical_gradient(lambda x: x.item() ** 2, np.array(3.0), eps=0.5) == 6


def test_numerical_gradient_leaves_x_alone_and_takes_any_layout(rng):
    x = np.broadcast_to(rng.standard_normal((3, 1)), (3, 2)).T  # read-only, transposed, overlapping
    before = x.copy()
    np.testing.assert_allclose(numerical_gradient(lambda x: (x**2).sum(), x), 2 * x, atol=1e-8)
    np.testing.assert_array_equal(x, before)
    assert numerical_gradient(lambda x: x.sum(), np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    ("x", "kind"), [(np.zeros(2, np.float32), "float32"), (np.zeros(2, int), "int64"), ([1.0], "list")]
)
def test_numerical_gradient_needs_float64(x, kind):
    with pytest.raises(TypeError, match=f"expected x to be a NumPy array of float64, got {kind}; finite"):
        numerical_gradient(lambda x: x.sum(), x)


@pytest.mark.parametrize("eps", [0, -1e-6, float("nan")])
def test_numerical_gradient_needs_a_step(eps):
    with pytest.raises(ValueError, match=f"expected eps > 0, got {eps}"):
        numerical_gradient(lambda x: x.sum(), np.zeros(2), eps)


def test_numerical_gradient_needs_a_scalar():
    with pytest.raises(ValueError, match=re.escape("expected f to return one number, got shape (2,); sum it")):
        numerical_gradient(lambda x: x, np.zeros(2))


def test_relative_error():
    a = np.array([1.0, -4.0])
    assert relative_error(a, a) == 0
    assert relative_error(a, a + np.array([0, 0.5])) == 0.125
    assert relative_error(a + np.array([0, 0.5]), a) == 0.125
    assert relative_error(np.array([-8.0]), np.array([8.0])) == 2
    assert relative_error(np.array([1e-9]), np.array([-1e-9])) == pytest.approx(2e-6)  # against the floor of 1e-3
    assert relative_error(np.array([1e-9]), np.array([-1e-9]), floor=1e-9) == pytest.approx(2)
    assert relative_error(np.zeros((0, 2)), np.zeros((0, 2))) == 0
    assert np.isnan(relative_error(np.array([np.nan, 1]), np.array([1.0, 1])))
    assert np.isnan(relative_error(np.array([1.0, 1]), np.array([1, np.nan])))


def test_relative_error_needs_one_shape():
    with pytest.raises(ValueError, match=re.escape("expected two arrays of one shape, got (2,) and (2, 1)")):
        relative_error(np.zeros(2), np.zeros((2, 1)))


def randomised(layer, rng):
    for name, array in layer._state().items():
        if not name.endswith("num_batches_tracked"):
            array[...] = rng.uniform(0.5, 2, array.shape) * (1 if "var" in name else rng.choice([-1, 1], array.shape))
    return layer


def layers_of_every_kind(rng):
    double = {"dtype": np.float64}
    yield BatchNorm1d(3, **double), (4, 3)
    yield BatchNorm1d(3, affine=False, **double), (4, 3, 2)
    yield BatchNorm1d(3, bias=False, track_running_stats=False, **double), (4, 3)
    yield BatchNorm2d(2, momentum=None, **double), (3, 2, 2, 3)
    yield BatchNorm3d(2, eps=0.1, **double), (3, 2, 2, 1, 2)
    yield Linear(3, 2, rng=rng, **double), (4, 3)
    yield Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), rng=rng, **double), (2, 2, 4, 5)
    yield ReLU(), (4, 3)
    yield Sigmoid(), (4, 3)
    yield Tanh(), (4, 3)
    yield Flatten(), (3, 2, 2)
    yield (
        Sequential(Conv2d(1, 2, 3, rng=rng, **double), BatchNorm2d(2, **double), Tanh(), Flatten()),
        (3, 1, 4, 4),
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_layer_passes(training, rng):
    for layer, shape in layers_of_every_kind(rng):
        randomised(layer, rng).train(training)
        x = rng.uniform(0.1, 2, shape) * rng.choice([-1, 1], shape)  # away from ReLU's kink
        before = layer.state_dict()
        errors = check_layer(layer, x, rng)
        assert list(errors) == ["x", *layer.parameters()]
        assert max(errors.values()) < 1e-6, (layer, errors)
        for name, array in layer.state_dict().items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        assert not layer.grads


def test_a_bias_in_front_of_batch_normalisation_passes_with_its_gradient_of_zero(rng):
    model = Sequential(Linear(3, 4, rng=rng, dtype=np.float64), BatchNorm1d(4, dtype=np.float64))
    assert max(check_layer(model, rng.standard_normal((5, 3)), rng).values()) < 1e-6


class Broken(BatchNorm1d):
    """Gradients wrong by a factor, one at a time."""

    def __init__(self, broken):
        super().__init__(3, dtype=np.float64)
        self.broken = broken

    def backward(self, dy):
        dx = super().backward(dy)
        if self.broken == "x":
            return 1.001 * dx
        self.grads  # noqa: B018 - a property without effect
        self._grads[self.broken] = 1.001 * self._grads[self.broken]
        return dx


@pytest.mark.parametrize("broken", ["x", "weight", "bias"])
def test_a_gradient_that_is_wrong_by_a_thousandth_is_found(broken, rng):
    errors = check_layer(randomised(Broken(broken), rng), rng.standard_normal((5, 3)), rng)
    assert {name for name, error in errors.items() if error > 1e-4} == {broken}
    assert {name for name, error in errors.items() if error < 1e-6} == {"x", "weight", "bias"} - {broken}


class WithoutStatistics(BatchNorm1d):
    """The well-known mistake: the batch's statistics taken as constants in the backward pass."""

    def backward(self, dy):
        super().backward(dy)
        return dy * (self.weight * self._saved().inv_std)


def test_the_mistake_of_constant_statistics_is_found(rng):
    layer = randomised(WithoutStatistics(3, dtype=np.float64), rng)
    errors = check_layer(layer, rng.standard_normal((5, 3)), rng)
    assert errors["x"] > 0.01
    assert max(errors["weight"], errors["bias"]) < 1e-6


def test_check_layer_needs_float64_parameters(rng):
    with pytest.raises(
        TypeError, match=re.escape("expected float64 parameters, got float32 for 0.weight; use dtype=np")
    ):
        check_layer(Sequential(BatchNorm1d(3)), rng.standard_normal((4, 3)), rng)
    with pytest.raises(TypeError, match="expected x to be a NumPy array of float64, got float32"):
        check_layer(BatchNorm1d(3, dtype=np.float64), np.eye(4, 3, dtype=np.float32), rng)


def test_the_loss_passes_too(rng):
    logits, labels = rng.standard_normal((4, 3)), np.array([0, 2, 1, 2])
    _, dlogits = softmax_cross_entropy(logits, labels)
    numerical = numerical_gradient(lambda logits: softmax_cross_entropy(logits, labels)[0], logits)
    assert relative_error(dlogits, numerical) < 1e-8


def test_a_layer_without_a_gradient_for_a_parameter_is_an_error(rng):
    class Forgetful(Layer):
        parameter_names = ("weight",)
        weight = np.ones(1)

        def forward(self, x):
            return self.weight * x

        def backward(self, dy):
            return self.weight * dy

    with pytest.raises(KeyError, match="weight"):
        check_layer(Forgetful(), np.ones((2, 1)), rng)
