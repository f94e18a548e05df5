"""The layers for single samples on TensorFlow: the formulas' outputs, configuration, saving, precision, errors."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from bnlearn import functional

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")

from bnlearn.keras import (
    AdaptiveInstanceNormalization,
    DynamicTanh,
    EvoNormS0,
    FilterResponseNormalization,
    InstanceNormalization,
    ThresholdedLinearUnit,
)


def formula(layer, x, w):
    """What a layer should give for x of shape (N, C, *spatial) and its weights by name."""
    gamma, beta = w.get("gamma"), w.get("beta")
    if isinstance(layer, FilterResponseNormalization):
        return functional.filter_response_norm(x, gamma, beta, eps=w.get("epsilon", layer.epsilon))[0]
    if isinstance(layer, ThresholdedLinearUnit):
        return functional.thresholded_linear_unit(x, w["tau"])[0]
    if isinstance(layer, EvoNormS0):
        return functional.evonorm_s0(x, gamma, beta, w["v"], groups=layer.groups, eps=layer.epsilon)[0]
    if isinstance(layer, InstanceNormalization):
        return functional.instance_norm(x, gamma, beta, eps=layer.epsilon)[0]
    return functional.dynamic_tanh(x, w["alpha"], gamma, beta)[0]


CASES = {
    "instance": (lambda **o: InstanceNormalization(epsilon=0.1, **o), ["gamma", "beta"]),
    "frn": (lambda **o: FilterResponseNormalization(**o), ["gamma", "beta"]),
    "frn, eps learned": (
        lambda **o: FilterResponseNormalization(learn_epsilon=True, scale=False, epsilon=0.2, **o),
        ["beta", "epsilon"],
    ),
    "tlu": (lambda **o: ThresholdedLinearUnit(tau_regularizer="l2", tau_constraint="max_norm", **o), ["tau"]),
    "evonorm": (lambda **o: EvoNormS0(2, v_initializer="zeros", **o), ["gamma", "beta", "v"]),
    "evonorm, plain": (lambda **o: EvoNormS0(groups=4, center=False, scale=False, epsilon=0.1, **o), ["v"]),
    "dyt": (lambda **o: DynamicTanh(alpha_init_value=0.8, gamma_initializer="zeros", **o), ["alpha", "gamma", "beta"]),
}
EVERY = pytest.mark.parametrize("case", CASES)


def made(case, rng, shape, **options):
    layer = CASES[case][0](**options)
    layer.build(shape)
    layer.set_weights([rng.uniform(0.3, 1.5, w.shape) for w in layer.weights])
    return layer


@EVERY
@pytest.mark.parametrize(("axis", "shape"), [(-1, (3, 5, 4)), (1, (3, 4, 5)), (2, (2, 3, 4, 5))])
def test_it_is_the_formula(case, axis, shape, rng):
    layer, x = made(case, rng, shape, axis=axis, dtype="float64"), rng.standard_normal(shape)
    weights = {w.name: np.asarray(w) for w in layer.weights}
    assert list(weights) == CASES[case][1]
    assert all(w.trainable for w in layer.weights)
    expected = np.moveaxis(formula(layer, np.moveaxis(x, axis, 1), weights), 1, axis)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, when it saves
@EVERY
def test_configuration_saving_and_training(case, rng, tmp_path):
    layer = CASES[case][0]()
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    model = keras.Sequential([keras.Input((None, 4)), layer])
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    model.compile("sgd", "mse", run_eagerly=True)
    before = [w.copy() for w in layer.get_weights()]
    model.train_on_batch(x, x)
    moved = [np.abs(a - b).max() > 0 for a, b in zip(before, layer.get_weights(), strict=True)]
    assert any(moved)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.layers[-1].get_config() == config


@EVERY
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(case, policy, rng):
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    half = made(case, np.random.default_rng(1), x.shape, dtype=policy)
    full = made(case, np.random.default_rng(1), x.shape)
    y = half(x)
    assert f"mixed_{y.dtype.name}" == policy
    assert all(w.dtype == "float32" for w in half.weights)
    np.testing.assert_allclose(np.asarray(y, np.float32), full(x), rtol=3e-2, atol=3e-2)


@EVERY
def test_sizes_not_known_in_tf_function(case, rng):
    layer, x = made(case, rng, (None, None, None, 4)), rng.standard_normal((3, 5, 2, 4)).astype(np.float32)
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 4), tf.float32)])
    np.testing.assert_allclose(traced(x), layer(x), rtol=1e-6, atol=1e-6)
    assert layer.compute_output_shape((None, None, None, 4)) == (None, None, None, 4)


def test_defaults_are_the_papers(rng):
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    first = np.moveaxis(x, -1, 1)
    np.testing.assert_allclose(ThresholdedLinearUnit()(x), np.maximum(x, 0))
    np.testing.assert_allclose(DynamicTanh()(x), np.tanh(0.5 * x), rtol=1e-5)
    for layer, y in [
        (FilterResponseNormalization(), functional.filter_response_norm(first, eps=1e-6)[0]),
        (EvoNormS0(4), functional.evonorm_s0(first, groups=4, eps=1e-5)[0]),
    ]:
        np.testing.assert_allclose(layer(x), np.moveaxis(y, 1, -1), rtol=1e-5, atol=1e-6)
    learned = FilterResponseNormalization(learn_epsilon=True, epsilon=1e-4)
    learned.build(x.shape)
    np.testing.assert_array_equal(learned.learned_epsilon, np.float32(1e-4))
    assert EvoNormS0().groups == 32


class TestAdaptiveInstanceNormalization:
    @pytest.mark.parametrize("axis", [1, -1])
    def test_the_formula(self, axis, rng):
        content, style = rng.standard_normal((2, 3, 4, 5)), 3 + 2 * rng.standard_normal((2, 3, 7))
        layer = AdaptiveInstanceNormalization(axis=axis, epsilon=0.1, dtype="float64")
        expected, _ = functional.adaptive_instance_norm(content, style, eps=0.1)
        y = layer([np.moveaxis(content, 1, axis), np.moveaxis(style, 1, axis)])
        np.testing.assert_allclose(y, np.moveaxis(expected, 1, axis), rtol=1e-10, atol=1e-10)
        assert layer.get_config()["epsilon"] == 0.1
        assert not layer.weights

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
    def test_in_a_model_with_sizes_not_known(self, rng, tmp_path):
        content, style = keras.Input((None, None, 3)), keras.Input((None, 3))
        model = keras.Model([content, style], AdaptiveInstanceNormalization()([content, style]))
        assert model.output_shape == (None, None, None, 3)
        model.save(tmp_path / "model.keras")
        x = [rng.standard_normal(s).astype(np.float32) for s in [(2, 4, 5, 3), (2, 6, 3)]]
        y = keras.models.load_model(tmp_path / "model.keras")(x)
        np.testing.assert_allclose(np.asarray(y).mean(axis=(1, 2)), x[1].mean(axis=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.asarray(y).std(axis=(1, 2)), x[1].std(axis=1), rtol=1e-3)

    def test_mixed_precision(self, rng):
        x = [rng.standard_normal((2, 5, 3)).astype(np.float32) for _ in range(2)]
        y = AdaptiveInstanceNormalization(dtype="mixed_bfloat16")(x)
        assert y.dtype == tf.bfloat16
        np.testing.assert_allclose(np.asarray(y, np.float32), AdaptiveInstanceNormalization()(x), rtol=5e-2, atol=5e-2)

    def test_errors(self):
        images = np.ones((2, 4, 3), np.float32)
        with pytest.raises(ValueError, match="expected epsilon > 0, got epsilon=0"):
            AdaptiveInstanceNormalization(epsilon=0)
        for inputs in (images, [images] * 3, [images]):
            with pytest.raises(ValueError, match=r"expected two inputs, \[content, style\], got input of shape"):
                AdaptiveInstanceNormalization()(inputs)
        for axis in (0, 3, -3):
            with pytest.raises(ValueError, match=f"from 1 to 2 or negative, got axis={axis}"):
                AdaptiveInstanceNormalization(axis=axis)([images, images])
        with pytest.raises(ValueError, match=re.escape("samples and channels as content, (2, 3), got (1, 3)")):
            AdaptiveInstanceNormalization()([images, images[:1]])


@pytest.mark.parametrize("groups", [3, 0])
def test_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match=f"expected groups to divide the 4 channels, got groups={groups}"):
        EvoNormS0(groups).build((None, 5, 4))


@EVERY
def test_axis(case):
    with pytest.raises(ValueError, match="from 1 to 2 or negative, got axis=3"):
        CASES[case][0](axis=3).build((None, 5, 4))
    with pytest.raises(ValueError, match=r"known number of channels on axis -1, got shape \(None, 5, None\)"):
        CASES[case][0]().build((None, 5, None))
