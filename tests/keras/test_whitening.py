"""The Keras layers that whiten: as the formulas, and at home in Keras. Other backends: test_backends.py."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from bnlearn.functional import iter_norm, iter_norm_backward, whiten, whiten_backward

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")

from bnlearn.keras import DecorrelatedBatchNormalization, IterativeNormalization

FORMULAS = {
    DecorrelatedBatchNormalization: (whiten, whiten_backward),
    IterativeNormalization: (iter_norm, iter_norm_backward),
}
KINDS = pytest.mark.parametrize("kind", FORMULAS)


def randomised(layer, shape, rng):
    if not layer.built:
        layer.build(shape)
    layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.weights])
    return layer


@KINDS
@pytest.mark.parametrize(("shape", "axis"), [((12, 6), -1), ((4, 5, 6), -1), ((3, 6, 4, 2), 1)])
def test_training_and_inference_are_the_formulas(rng, kind, shape, axis):
    forward, backward = FORMULAS[kind]
    layer = randomised(kind(groups=2, axis=axis, momentum=0.8, epsilon=0.01, dtype="float64"), shape, rng)
    gamma, beta, mean, matrix = layer.get_weights()
    assert [w.name for w in layer.weights] == ["gamma", "beta", "moving_mean", "moving_matrix"]
    assert len(layer.trainable_weights) == 2
    x, dy = 2 + rng.standard_normal(shape), rng.standard_normal(shape)
    leaf = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(leaf)
        y = layer(leaf, training=True)
    dx, dgamma, dbeta = tape.gradient(y, [leaf, layer.gamma.value, layer.beta.value], output_gradients=dy)
    expected, cache = forward(np.moveaxis(x, axis, 1), gamma, beta, groups=2, eps=0.01)
    grads = backward(np.moveaxis(dy, axis, 1), cache)
    np.testing.assert_allclose(np.moveaxis(y, axis, 1), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.moveaxis(dx, axis, 1), grads[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dgamma, grads[1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dbeta, grads[2], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(layer.moving_mean, 0.8 * mean + 0.2 * cache.mean, rtol=1e-10)
    np.testing.assert_allclose(layer.moving_matrix, 0.8 * matrix + 0.2 * cache.matrix, rtol=1e-10)

    mean, matrix = layer.get_weights()[2:]
    expected, _ = forward(np.moveaxis(x, axis, 1), gamma, beta, groups=2, mean=mean, matrix=matrix)
    for options in ({"training": False}, {}):
        np.testing.assert_allclose(np.moveaxis(layer(x, **options), axis, 1), expected, rtol=1e-10, atol=1e-10)
    layer.trainable = False
    np.testing.assert_allclose(np.moveaxis(layer(x, training=True), axis, 1), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(layer.get_weights()[3], matrix)


@KINDS
def test_new_layer_infers_the_identity(rng, kind):
    x = rng.standard_normal((5, 4)).astype("float32")
    np.testing.assert_array_equal(kind(groups=2)(x), x)


@KINDS
def test_already_white_input(rng, kind):
    """All eigenvalues the same: where differentiating an eigendecomposition divides by zero."""
    forward, backward = FORMULAS[kind]
    x, _ = whiten(rng.standard_normal((20, 5)), eps=0.0)
    dy, leaf = rng.standard_normal(x.shape), tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(leaf)
        y = kind(dtype="float64")(leaf, training=True)
    dx = backward(dy, forward(x, eps=1e-3)[1])[0]
    np.testing.assert_allclose(tape.gradient(y, leaf, output_gradients=dy), dx, rtol=1e-9, atol=1e-9)


@KINDS
def test_mixed_precision(rng, kind):
    layer = kind(dtype="mixed_float16")
    x = rng.standard_normal((32, 4)).astype("float32")
    y = layer(x, training=True)
    assert y.dtype == tf.float16
    assert {w.dtype for w in layer.weights} == {"float32"}
    np.testing.assert_allclose(y, FORMULAS[kind][0](x, eps=1e-3)[0], atol=1e-2)


@KINDS
def test_unknown_batch_and_spatial_sizes(rng, kind):
    layer = kind(groups=2, dtype="float64")
    layer.build((None, None, 4))
    traced = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, None, 4), tf.float64)]
    )
    x = rng.standard_normal((5, 3, 4))
    expected, cache = FORMULAS[kind][0](np.moveaxis(x, -1, 1), groups=2, eps=1e-3)
    np.testing.assert_allclose(np.moveaxis(traced(x), -1, 1), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(layer.moving_mean, 0.01 * cache.mean, rtol=1e-10)


@KINDS
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own saving
def test_configuration_and_saving(rng, kind, tmp_path):
    options = {"groups": 2, "momentum": 0.7, "epsilon": 0.02, "center": False, "moving_mean_initializer": "ones"}
    layer = kind(**options, **({"iterations": 3} if kind is IterativeNormalization else {}))
    twin = kind.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    assert {name: getattr(twin, name) for name in ("groups", "momentum", "epsilon", "center")} == {
        name: options[name] for name in ("groups", "momentum", "epsilon", "center")
    }
    assert getattr(twin, "iterations", 3) == 3
    twin.build((None, 4))
    np.testing.assert_array_equal(twin.get_weights()[1], np.ones(4))

    model = keras.Sequential([keras.Input((5, 4)), layer])
    randomised(layer, (None, 5, 4), rng)
    model.save(tmp_path / "model.keras")
    x = rng.standard_normal((3, 5, 4)).astype("float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x).numpy(), model(x).numpy())
    assert model.output_shape == (None, 5, 4)


@KINDS
def test_fit(rng, kind):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6), kind(groups=2), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x = rng.standard_normal((64, 4)).astype("float32")
    history = model.fit(x, x[:, :1], batch_size=16, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert not np.allclose(model.layers[1].moving_matrix[0], np.eye(3))


@KINDS
def test_errors(kind):
    with pytest.raises(ValueError, match="expected groups >= 1, got groups=0"):
        kind(groups=0)
    with pytest.raises(ValueError, match=r"the weight of the old statistics, from 0 to 1, got 1\.2"):
        kind(momentum=1.2)
    with pytest.raises(ValueError, match="expected groups to divide the 4 channels, got groups=3"):
        kind(groups=3).build((None, 4))
    with pytest.raises(ValueError, match="expected epsilon > 0, got epsilon=0"):
        kind(epsilon=0)


def test_iterations(rng):
    with pytest.raises(ValueError, match="expected iterations >= 0, got -1"):
        IterativeNormalization(iterations=-1)
    x = rng.standard_normal((30, 4)) * np.arange(1, 5)
    for iterations in (0, 7):
        layer = IterativeNormalization(iterations=iterations, epsilon=1e-3, dtype="float64")
        expected, _ = iter_norm(x, iterations=iterations, eps=1e-3)
        np.testing.assert_allclose(layer(x, training=True), expected, rtol=1e-10, atol=1e-10)


def test_subclasses_say_what_they_do():
    from bnlearn.keras.whitening import _Whitening

    with pytest.raises(NotImplementedError):
        _Whitening()(np.ones((3, 2), "float32"), training=True)
