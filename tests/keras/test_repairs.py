"""The repairs as Keras layers: as the formulas, at home in Keras; and Keras's own renorm held against ours.

Other backends: test_backends.py. Keras's masks: tests/functional/test_masks.py.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    batch_layer_norm,
    batch_layer_norm_backward,
    batch_norm,
    batch_norm_backward,
    batch_renorm,
    batch_renorm_backward,
    example_weighing,
    full_norm,
    full_norm_backward,
    ghost_batch_norm,
    ghost_batch_norm_backward,
    update_running,
    update_running_ghosts,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")

from bnlearn.keras import (
    BatchLayerNormalization,
    ExampleWeighing,
    FullNormalization,
    GhostBatchNormalization,
    adapt_batch_normalization,
)

KINDS = {
    "GhostBatchNormalization": lambda **options: GhostBatchNormalization(ghost_size=4, **options),
    "FullNormalization": lambda **options: FullNormalization(**options),
    "ExampleWeighing": lambda **options: ExampleWeighing(example_weight=0.3, **options),
}
ALL = {**KINDS, "BatchLayerNormalization": lambda **options: BatchLayerNormalization(batch_size=4, **options)}
EACH = pytest.mark.parametrize("kind", KINDS)
EVERY = pytest.mark.parametrize("kind", ALL)
SHAPED = pytest.mark.parametrize(("shape", "axis"), [((6, 3), -1), ((6, 5, 3), -1), ((6, 3, 4, 2), 1)])


def randomised(layer, shape, rng):
    if not layer.built:
        layer.build(shape)
    layer.set_weights([rng.uniform(0.5, 2, w.shape).astype(w.dtype) for w in layer.weights])
    return layer


def close(actual, expected, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


def run(layer, x, dy, **options):
    """Output and the gradients of input, gamma and beta, by TensorFlow's tape."""
    leaf = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(leaf)
        y = layer(leaf, training=True, **options)
    return [y, *tape.gradient(y, [leaf, layer.gamma.value, layer.beta.value], output_gradients=tf.constant(dy))]


def formula(kind, x, gamma, beta, mean, var):
    """Output, gradients and new statistics of training, by the formulas."""
    if kind == "GhostBatchNormalization":
        y, cache = ghost_batch_norm(x, gamma, beta, ghost_size=4, eps=0.01)
        new = update_running_ghosts(mean, var, cache, momentum=0.2, unbiased=False)
        return y, cache, ghost_batch_norm_backward, new
    if kind == "FullNormalization":
        y, cache = full_norm(x, gamma, beta, mean=mean, var=var, momentum=1 / 3, eps=0.01)
        return y, cache, full_norm_backward, (cache.mean, cache.var)
    y, cache = batch_norm(x, gamma, beta, eps=0.01)
    new = update_running(mean, var, cache.mean, cache.var, cache.n, momentum=0.2, unbiased=False)
    return y, cache, batch_norm_backward, new


@EACH
@SHAPED
def test_training_and_inference_are_the_formulas(rng, kind, shape, axis):
    layer = randomised(KINDS[kind](axis=axis, momentum=0.8, epsilon=0.01, dtype="float64"), shape, rng)
    if kind == "FullNormalization":
        layer.batches_seen.assign(2.0)
    gamma, beta, mean, var = (w.numpy() for w in layer.weights[:4])
    assert [w.name for w in layer.weights[:4]] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert len(layer.trainable_weights) == 2
    x, dy = 2 + rng.standard_normal(shape), rng.standard_normal(shape)
    y, dx, dgamma, dbeta = run(layer, x, dy)
    expected, cache, backward, new = formula(kind, np.moveaxis(x, axis, 1), gamma, beta, mean, var)
    grads = backward(np.moveaxis(dy, axis, 1), cache)
    close(np.moveaxis(y, axis, 1), expected)
    close(np.moveaxis(dx, axis, 1), grads[0], 1e-9)
    close([dgamma, dbeta], grads[1:], 1e-9)
    close([layer.moving_mean, layer.moving_variance], new)

    given = {"mean": new[0], "var": new[1], "eps": 0.01}
    first = np.moveaxis(x, axis, 1)
    if kind == "ExampleWeighing":
        expected, _ = example_weighing(first, gamma, beta, weight=0.3, **given)
    else:
        expected, _ = batch_norm(first, gamma, beta, **given)
    for options in ({"training": False}, {}):
        close(np.moveaxis(layer(x, **options), axis, 1), expected)
    layer.trainable = False
    close(np.moveaxis(layer(x, training=True), axis, 1), expected)
    close([layer.moving_mean, layer.moving_variance], new)


def test_full_normalizations_first_batches_weigh_more(rng):
    layer = FullNormalization(momentum=0.7, dtype="float64")
    mean, var = np.zeros(3), np.ones(3)
    for share in (1, 0.5, 1 / 3, 0.3, 0.3):
        x = rng.standard_normal((6, 3))
        expected, cache = full_norm(x, mean=mean, var=var, momentum=share, eps=1e-3)
        mean, var = cache.mean, cache.var
        close(layer(x, training=True), expected, 1e-7)


@SHAPED
@pytest.mark.parametrize("running", [(), ("batch_mean", "batch_var"), ("batch_mean", "feature_mean", "feature_var")])
@pytest.mark.parametrize("momentum", [None, 0.8])
def test_batch_layer_normalization(rng, shape, axis, running, momentum):
    layer = BatchLayerNormalization(
        batch_size=8, axis=axis, running=running, momentum=momentum, epsilon=0.01, dtype="float64"
    )
    randomised(layer, shape, rng)
    layer.batches_seen.assign(4.0)
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()

    def moving():
        arrays = {name: getattr(layer, f"moving_{name}").numpy()[None] for name in NAMES}
        return {name: np.moveaxis(array, axis, 1)[0] for name, array in arrays.items()}

    old = moving()
    x, dy = 2 + rng.standard_normal(shape), rng.standard_normal(shape)
    y, dx, dgamma, dbeta = run(layer, x, dy)
    expected, cache = batch_layer_norm(np.moveaxis(x, axis, 1), gamma, beta, batch_size=8, eps=0.01)
    grads = batch_layer_norm_backward(np.moveaxis(dy, axis, 1), cache)
    close(np.moveaxis(y, axis, 1), expected)
    close(np.moveaxis(dx, axis, 1), grads[0], 1e-9)
    close([dgamma, dbeta], grads[1:], 1e-9)
    share = 0.2 if momentum else 1 / 5
    for name in NAMES:
        own = getattr(cache, name) * (6 / 5 if name.endswith("var") else 1)
        close(moving()[name], (1 - share) * old[name] + share * own)
    given = {name: moving()[name] for name in running}
    expected, _ = batch_layer_norm(np.moveaxis(x, axis, 1), gamma, beta, batch_size=8, eps=0.01, **given)
    close(np.moveaxis(layer(x), axis, 1), expected)
    layer.trainable = False
    close(np.moveaxis(layer(x, training=True), axis, 1), expected)

    layer.trainable = True
    layer.reset_moving_statistics()
    assert [float(moving()[name].sum()) for name in NAMES] == [0, moving()["batch_var"].size, 0, np.prod(shape) / 18]
    assert layer.batches_seen == 0
    alone = np.take(x, [0], axis=0)
    layer(alone, training=True)  # one sample has no unbiased variance
    close(moving()["feature_var"], np.moveaxis(alone, axis, 1).var(1) * (1 if momentum is None else 0.2) + (
        0 if momentum is None else 0.8
    ))  # fmt: skip


NAMES = ("batch_mean", "batch_var", "feature_mean", "feature_var")


@EVERY
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's own saving
def test_from_config_and_saving(rng, kind, tmp_path):
    options = {"axis": 1, "epsilon": 0.02, "center": False, "momentum": 0.7, "gamma_initializer": "zeros"}
    layer = ALL[kind](**options)
    config = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)).get_config()
    assert config == layer.get_config()
    assert {config["axis"], config["epsilon"], config["momentum"]} == {1, 0.02, 0.7}
    model = keras.Sequential([keras.Input((3, 4)), ALL[kind](axis=1)])
    randomised(model.layers[0], (None, 3, 4), rng)
    path = tmp_path / "model.keras"
    model.save(path)
    x = rng.standard_normal((6, 3, 4)).astype("float32")
    loaded = keras.saving.load_model(path)
    assert type(loaded.layers[0]) is type(model.layers[0])
    np.testing.assert_array_equal(loaded(x), model(x))


@EVERY
def test_mixed_precision_keeps_its_weights_in_float32(rng, kind):
    layer = randomised(ALL[kind](dtype="mixed_float16"), (6, 3), rng)
    wide = ALL[kind]()
    wide.build((6, 3))
    wide.set_weights(layer.get_weights())
    x = rng.standard_normal((6, 3)).astype("float32")
    for training in (True, False):
        y = layer(x, training=training)
        assert y.dtype == tf.float16
        close(y, wide(x, training=training), 1e-2)
    assert {str(w.dtype) for w in layer.weights} == {"float32"}


@EVERY
def test_inside_tf_function_with_unknown_sizes(rng, kind):
    sizes = (None, 5) if kind == "BatchLayerNormalization" else (None, None)
    layer = randomised(ALL[kind](momentum=0.8), (None, 5, 3), rng)
    eager = randomised(ALL[kind](momentum=0.8), (None, 5, 3), rng)
    eager.set_weights(layer.get_weights())
    traced = tf.function(lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((*sizes, 3), tf.float32)])
    for samples in (6, 3, 8):
        x = rng.standard_normal((samples, 5, 3)).astype("float32")
        close(traced(x), eager(x, training=True), 1e-5)
    for ours, theirs in zip(layer.get_weights(), eager.get_weights(), strict=True):
        close(ours, theirs, 1e-5)


@EVERY
def test_in_a_model_that_is_fitted(rng, kind):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), ALL[kind](), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = [w.numpy() for w in model.layers[1].weights]
    model.fit(rng.standard_normal((18, 5)), rng.standard_normal((18, 1)), batch_size=8, verbose=0)
    assert all(not np.array_equal(w, old) for w, old in zip(model.layers[1].weights, before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GhostBatchNormalization(ghost_size=0), "expected ghost_size >= 1 samples, got 0"),
        (lambda: ExampleWeighing(example_weight=2), "expected example_weight from 0 to 1, got 2"),
        (lambda: BatchLayerNormalization(batch_size=0), "expected batch_size >= 1, got 0"),
        (lambda: BatchLayerNormalization(batch_size=4, momentum=2), "expected momentum, .* got 2"),
        (lambda: BatchLayerNormalization(batch_size=4, running=["mean"]), "to name some of batch_mean, .*, got mean"),
        (
            lambda: BatchLayerNormalization(batch_size=4).build((None, None, 3)),
            r"expected known sizes but for the batch's, got shape \(None, None, 3\)",
        ),
        (lambda: FullNormalization(momentum=-1), "expected momentum, .* got -1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- Keras's own batch renormalisation


def keras_renorm(shape, rng, clipping, **options):
    layer = keras.layers.BatchNormalization(
        renorm=True,
        renorm_clipping=clipping,
        momentum=0.9,
        renorm_momentum=0.7,
        epsilon=0.01,
        dtype="float64",
        **options,
    )
    return randomised(layer, shape, rng)


class TestKerasRenorm:
    """What differs from the paper and from ours, as run.

    Keras corrects by statistics of their own (``renorm_mean``, ``renorm_stddev``, ``renorm_momentum``), not by those of
    inference; averages the standard deviation, as the paper does; has constant limits, none by default and no warm-up;
    and its lower limit of r is 0 unless ``rmin`` is given, where the paper's is ``1 / rmax``.
    """

    @SHAPED
    @pytest.mark.parametrize("limits", [(1.2, 0.3), (math.inf, math.inf)])
    def test_is_ours_with_its_own_statistics(self, rng, shape, axis, limits):
        r_max, d_max = limits
        clipping = {"rmax": r_max, "rmin": 1 / r_max, "dmax": d_max} if r_max < math.inf else None
        layer = keras_renorm(shape, rng, clipping, axis=axis)
        gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
        mean, std = layer.renorm_mean.numpy(), layer.renorm_stddev.numpy()
        x, dy = 2 + 2 * rng.standard_normal(shape), rng.standard_normal(shape)
        theirs = run(layer, x, dy)
        y, cache = batch_renorm(
            np.moveaxis(x, axis, 1), gamma, beta, mean=mean, var=std**2 - 0.01, r_max=r_max, d_max=d_max, eps=0.01
        )
        dx, dgamma, dbeta = batch_renorm_backward(np.moveaxis(dy, axis, 1), cache)
        for ours, other in zip([y, dx], theirs[:2], strict=True):
            close(ours, np.moveaxis(other, axis, 1), 1e-9)
        close([dgamma, dbeta], theirs[2:], 1e-9)
        batch_std = np.sqrt(cache.batch.var + 0.01)
        close(layer.renorm_mean, 0.7 * mean + 0.3 * cache.batch.mean)
        close(layer.renorm_stddev, 0.7 * std + 0.3 * batch_std)

    def test_its_inference_statistics_are_others_and_average_the_standard_deviation(self, rng):
        layer = keras_renorm((6, 3), rng, None)
        std, x = layer.moving_stddev.numpy(), rng.standard_normal((6, 3))
        layer(x, training=True)
        new = 0.9 * std + 0.1 * np.sqrt(x.var(0) + 0.01)
        close(layer.moving_stddev, new)
        close(layer.moving_variance, new**2 - 0.01)
        assert np.abs(layer.moving_mean.numpy() - layer.renorm_mean.numpy()).min() > 1e-3

    def test_its_lower_limit_is_not_one_over_rmax(self, rng):
        layer = keras_renorm((50, 3), rng, {"rmax": 2.0, "dmax": 0.0})
        layer.renorm_stddev.assign(np.full(3, 100.0))
        x = rng.standard_normal((50, 3))
        theirs = layer(x, training=True)
        given = {"mean": np.zeros(3), "var": np.full(3, 100.0**2), "d_max": 0, "eps": 0.01}
        ours, _ = batch_renorm(x, layer.gamma.numpy(), layer.beta.numpy(), r_max=2, **given)
        free, _ = batch_renorm(x, layer.gamma.numpy(), layer.beta.numpy(), r_max=math.inf, **given)
        close(theirs, free, 1e-5)
        assert np.abs(np.asarray(theirs) - ours).max() > 0.1

    def test_by_default_its_first_batch_is_hardly_normalised(self, rng):
        """The correction is complete at once, towards statistics that have seen nothing: mean 0 and variance 1."""
        x = 7 + 3 * rng.standard_normal((64, 3))
        y = keras.layers.BatchNormalization(renorm=True, epsilon=1e-9, dtype="float64")(x, training=True)
        close(y, x, 1e-8)


# -- adapting a model


def network(rng):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), GhostBatchNormalization(ghost_size=4)]),
        ]
    )
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.weights])
    return model


def statistics(layer):
    return [layer.moving_mean.numpy(), layer.moving_variance.numpy()]


class TestAdaptation:
    def test_on_one_batch_inference_is_what_training_computes(self, rng):
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(4),
                keras.layers.BatchNormalization(),
            ]
        )
        x = 3 + 2 * rng.standard_normal((30, 5)).astype("float32")
        assert adapt_batch_normalization(model, [x]) is model
        close(model(x), model(x, training=True), 1e-4)

    def test_over_several_batches_the_first_layer_is_exact(self, rng):
        x = np.arange(1, 31)[:, None, None] * rng.standard_normal((30, 7, 2)).astype("float32")
        model = keras.Sequential([keras.Input((7, 2)), keras.layers.BatchNormalization(axis=1)])
        adapt_batch_normalization(model, tf.data.Dataset.from_tensor_slices((x, x)).batch(13))
        close(statistics(model.layers[0]), [x.mean((0, 2)), x.var((0, 2))], 1e-5)

    def test_the_prior(self, rng):
        x = 3 + 2 * rng.standard_normal((30, 5)).astype("float32")
        source = network(rng)
        weights = source.get_weights()
        target, mixed, kept = (network(rng) for _ in range(3))
        for model in (target, mixed, kept):
            model.set_weights(weights)
        adapt_batch_normalization(target, [x])
        adapt_batch_normalization(mixed, [x[:20], x[20:]], prior=10)
        adapt_batch_normalization(kept, [x], prior=math.inf)
        close(
            statistics(mixed.layers[1]),
            0.25 * np.array(statistics(source.layers[1])) + 0.75 * np.array(statistics(target.layers[1])),
            1e-5,
        )
        changed = [not np.array_equal(a, b) for a, b in zip(weights, target.get_weights(), strict=True)]
        assert [w.path.split("/")[-1] for w, c in zip(source.weights, changed, strict=True) if c] == [
            "moving_mean", "moving_variance"
        ] * 2  # fmt: skip
        for old, new in zip(weights, kept.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_padding_does_not_count(self, rng):
        model = keras.Sequential(
            [keras.Input((6, 2)), keras.layers.Masking(mask_value=9.0), keras.layers.BatchNormalization()]
        )
        x = rng.standard_normal((5, 6, 2)).astype("float32")
        x[:, 4:] = 9.0
        adapt_batch_normalization(model, [np.full_like(x, 9.0), x[:2], x[2:]])
        close(statistics(model.layers[-1]), [x[:, :4].mean((0, 1)), x[:, :4].var((0, 1))], 1e-5)

    @pytest.mark.parametrize(
        ("batches", "error", "message"),
        [([], ValueError, "expected data for layer 'batch_normalization.*', got none"), ([0, 1], Exception, "shape")],
    )
    def test_a_failure_leaves_it_as_it_was(self, rng, batches, error, message):
        model = network(rng)
        before = model.get_weights()
        with pytest.raises(error, match=message):
            adapt_batch_normalization(model, [np.ones((8, 5 + wrong), "float32") for wrong in batches])
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        assert not any("call" in vars(layer) for layer in model._flatten_layers())

    def test_nothing_to_adapt(self, rng):
        with pytest.raises(ValueError, match="expected a model with batch normalisation, got Sequential without"):
            adapt_batch_normalization(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), [])
        with pytest.raises(ValueError, match="expected a built model, got layer 'mine' without weights; call"):
            adapt_batch_normalization(keras.layers.BatchNormalization(name="mine"), [])
        with pytest.raises(ValueError, match=r"expected prior, .*, got -1"):
            adapt_batch_normalization(network(rng), [], prior=-1)
