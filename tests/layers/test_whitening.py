"""The NumPy layers that whiten: training, evaluation, running statistics, gradients, state."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from bnlearn.functional import iter_norm, whiten
from bnlearn.gradcheck import check_layer
from bnlearn.layers import BatchNorm2d, DecorrelatedBatchNorm, IterNorm

KINDS = pytest.mark.parametrize(("kind", "formula"), [(DecorrelatedBatchNorm, whiten), (IterNorm, iter_norm)])


def randomise(layer, rng):
    for array in (layer.weight, layer.bias, layer.running_mean, layer.running_matrix):
        array[...] = rng.uniform(0.5, 2, array.shape)
    return layer


@KINDS
class TestForward:
    @pytest.mark.parametrize("shape", [(12, 6), (4, 6, 5), (3, 6, 4, 2)])
    def test_training_and_evaluation_are_the_formulas(self, rng, kind, formula, shape):
        layer = randomise(kind(6, num_groups=2, eps=0.01, dtype=np.float64), rng)
        mean, matrix = layer.running_mean.copy(), layer.running_matrix.copy()
        x = 2 + rng.standard_normal(shape)
        expected, cache = formula(x, layer.weight, layer.bias, groups=2, eps=0.01)
        np.testing.assert_array_equal(layer(x), expected)
        np.testing.assert_allclose(layer.running_mean, 0.9 * mean + 0.1 * cache.mean, rtol=1e-12)
        np.testing.assert_allclose(layer.running_matrix, 0.9 * matrix + 0.1 * cache.matrix, rtol=1e-12)
        assert layer.num_batches_tracked == 1
        before = layer.state_dict()
        expected, _ = formula(
            x, layer.weight, layer.bias, groups=2, mean=layer.running_mean, matrix=layer.running_matrix
        )
        np.testing.assert_array_equal(layer.eval()(x), expected)
        for name, array in layer.state_dict().items():
            np.testing.assert_array_equal(array, before[name])

    def test_new_layer_evaluates_to_the_identity(self, rng, kind, formula):
        x = rng.standard_normal((5, 6))
        np.testing.assert_array_equal(kind(6, num_groups=3).eval()(x), x)

    def test_momentum_none_averages_all_batches(self, rng, kind, formula):
        layer = kind(3, momentum=None, dtype=np.float64)
        batches = [rng.standard_normal((9, 3)) for _ in range(3)]
        for x in batches:
            layer(x)
        np.testing.assert_allclose(layer.running_mean, np.mean(batches, axis=(0, 1)), rtol=1e-11)
        matrices = [formula(x)[1].matrix for x in batches]
        np.testing.assert_allclose(layer.running_matrix, np.mean(matrices, axis=0), rtol=1e-11)

    def test_without_running_statistics_the_batch_always(self, rng, kind, formula):
        layer = kind(3, track_running_stats=False)
        x = 5 + rng.standard_normal((9, 3))
        np.testing.assert_array_equal(layer(x), layer.eval()(x))
        np.testing.assert_array_equal(layer(x), formula(x, np.ones(3), np.zeros(3))[0])
        assert list(layer.state_dict()) == ["weight", "bias"]

    def test_without_parameters(self, rng, kind, formula):
        layer = kind(3, affine=False)
        x = rng.standard_normal((9, 3))
        np.testing.assert_array_equal(layer(x), formula(x)[0])
        layer.backward(x)
        assert layer.grads == {}


@KINDS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients(rng, kind, formula, training):
    layer = randomise(kind(4, num_groups=2, eps=0.01, dtype=np.float64), rng).train(training)
    errors = check_layer(layer, 2 + rng.standard_normal((7, 4, 3)), rng)
    assert sorted(errors) == ["bias", "weight", "x"]
    assert max(errors.values()) < 1e-6


@KINDS
def test_state_copies_and_representation(rng, kind, formula):
    layer = randomise(kind(6, num_groups=2), rng)
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_matrix", "num_batches_tracked"]
    x = rng.standard_normal((4, 6)).astype(np.float32)
    expected = layer.eval()(x)
    other = kind(6, num_groups=2)
    other.load_state_dict(layer.state_dict())
    for twin in (other.eval(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(twin(x), expected)
    assert expected.dtype == layer.running_matrix.dtype == np.float32
    assert repr(layer).startswith(f"{kind.__name__}(6, eps=1e-05, momentum=0.1, affine=True, ")
    assert "track_running_stats=True, num_groups=2" in repr(layer)
    assert ("iterations=5" in repr(layer)) == (kind is IterNorm)


@KINDS
def test_as_many_groups_as_channels_is_batch_normalisation(rng, kind, formula):
    """In training; and the running matrix averages 1 / sqrt(var + eps) where the other averages the variance."""
    ours, theirs = kind(3, num_groups=3, dtype=np.float64), BatchNorm2d(3, dtype=np.float64)
    x = 2 + rng.standard_normal((4, 3, 5, 5))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.backward(x**2), theirs.backward(x**2), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(ours.running_mean, theirs.running_mean, rtol=1e-12)
    inverse = 1 / np.sqrt(x.var(axis=(0, 2, 3)) + 1e-5)
    np.testing.assert_allclose(ours.running_matrix[:, 0, 0], 0.9 + 0.1 * inverse, rtol=1e-12)


def test_iterations_are_passed_on(rng):
    x = rng.standard_normal((30, 4)) * np.arange(1, 5)
    for iterations in (0, 7):
        layer = IterNorm(4, iterations=iterations, affine=False, eps=1e-3)
        np.testing.assert_array_equal(layer(x), iter_norm(x, iterations=iterations, eps=1e-3)[0])


@KINDS
class TestErrors:
    def test_shapes(self, rng, kind, formula):
        layer = kind(4)
        with pytest.raises(ValueError, match=r"at least 2D input \(got 1D input\)"):
            layer(np.ones(4))
        with pytest.raises(ValueError, match=r"expected 4 channels on axis 1 \(got 3 in input size \(5, 3\)\)"):
            layer(np.ones((5, 3)))
        for shape in [(1, 4), (0, 4), (3, 4, 0)]:
            with pytest.raises(ValueError, match=rf"more than 1 value per channel when training, .* \({shape[0]}, 4"):
                layer(np.ones(shape))
        assert layer.num_batches_tracked == 0
        assert layer.eval()(np.ones((1, 4))).shape == (1, 4)

    def test_arguments(self, kind, formula):
        with pytest.raises(ValueError, match="num_features >= 1, the number of channels, got 0"):
            kind(0)
        for groups in (4, 0):
            with pytest.raises(ValueError, match=rf"num_features \(6\) must be divisible by num_groups \({groups}\)"):
                kind(6, num_groups=groups)
        with pytest.raises(TypeError, match="got int64"):
            kind(2)(np.ones((4, 2), np.int64))

    def test_a_failed_pass_changes_nothing(self, rng, kind, formula):
        layer = kind(3, momentum=2.0)
        before = layer.state_dict()
        with pytest.raises(ValueError, match=r"from 0 to 1, got 2\.0"):
            layer(rng.standard_normal((9, 3)))
        for name, array in layer.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
