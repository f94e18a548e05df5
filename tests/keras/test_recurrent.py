"""The recurrent Keras layers: Keras's own LSTM, masks, moving statistics, saving, unknown sizes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")

from bnlearn.functional import (
    batch_norm_lstm,
    batch_norm_rnn,
    layer_norm_lstm,
    update_running_steps,
)
from bnlearn.keras import BatchNormLSTM, BatchNormSimpleRNN, LayerNormLSTMCell

N, L, F, H = 6, 4, 3, 2
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
MAKE = {
    "LayerNormLSTMCell": lambda **kw: keras.layers.RNN(
        LayerNormLSTMCell(H, **{k: v for k, v in kw.items() if "return" not in k}),
        **{k: v for k, v in kw.items() if "return" in k or k == "dtype"},
    ),
    "BatchNormLSTM": lambda **kw: BatchNormLSTM(H, max_length=5, **kw),
    "BatchNormLSTM shared": lambda **kw: BatchNormLSTM(H, per_step=False, **kw),
    "BatchNormSimpleRNN": lambda **kw: BatchNormSimpleRNN(H, max_length=5, **kw),
    "BatchNormSimpleRNN shared": lambda **kw: BatchNormSimpleRNN(H, per_step=False, **kw),
}
BY_BATCH = [name for name in MAKE if name.startswith("Batch")]


def make(name, rng, **kw):
    """Built, with random weights."""
    layer = MAKE[name](**{"return_sequences": True, "dtype": "float64", **kw})
    layer.build((None, L, F))
    randomise(layer, rng)
    return layer


def randomise(layer, rng):
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape) if "moving" in weight.name else rng.normal(size=weight.shape))
        if "tracked" in weight.name:
            weight.assign(np.zeros(weight.shape))


def numpy_of(layer, x, mask=None, statistics=None):
    """The same from the formula, on NumPy arrays."""
    owner = getattr(layer, "cell", layer)
    arguments = {"weight_ih": owner.kernel.numpy().T, "weight_hh": owner.recurrent_kernel.numpy().T, "eps": 1e-3}
    arguments |= {f"gamma_{site}": gamma.numpy() for site, gamma in owner.gammas.items()}
    arguments |= {"bias": owner.bias.numpy()} | ({"beta_c": owner.beta_c.numpy()} if "c" in owner.gammas else {})
    if isinstance(owner, LayerNormLSTMCell):
        return layer_norm_lstm(x, mask=mask, **arguments)
    function = batch_norm_rnn if isinstance(owner, BatchNormSimpleRNN) else batch_norm_lstm
    return function(x, mask=mask, per_step=owner.per_step, statistics=statistics, **arguments)


@pytest.mark.parametrize("name", MAKE)
class TestEveryLayer:
    @pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
    def test_training_is_the_formula(self, rng, name, masked):
        layer, mask = make(name, rng), MASK if masked else None
        x = rng.standard_normal((N, L, F))
        y = layer(x, mask=None if mask is None else tf.constant(mask), training=True)
        expected, _ = numpy_of(layer, x, mask)
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)

    def test_masking_layer(self, rng, name):
        """Keras's own mask arrives, and what stands in the padding does not matter."""
        x = np.where(MASK[:, :, None], rng.standard_normal((N, L, F)), 0.0)
        layer = make(name, rng, return_sequences=False)
        inputs = keras.Input((L, F), dtype="float64")
        model = keras.Model(inputs, layer(keras.layers.Masking(dtype="float64")(inputs)))
        started = MASK[:, 0]  # keras.layers.RNN puts out zeros until a sequence starts
        expected, _ = numpy_of(layer, x, MASK)
        np.testing.assert_allclose(
            model(x, training=True).numpy()[started], expected[started, -1], rtol=1e-10, atol=1e-12
        )
        assert np.abs(layer(x, training=True) - expected[:, -1]).max() > 1e-3

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own saving
    def test_save_and_load(self, rng, name, tmp_path):
        model = keras.Sequential([keras.Input((L, F)), MAKE[name](return_sequences=False), keras.layers.Dense(1)])
        randomise(model, rng)
        x = tf.constant(rng.standard_normal((N, L, F)), tf.float32)
        model(x, training=True)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)
        for ours, theirs in zip(loaded.weights, model.weights, strict=True):
            assert ours.name == theirs.name
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy())

    def test_unknown_number_of_sequences_and_training(self, rng, name):
        model = keras.Sequential([keras.Input((L, F)), MAKE[name](return_sequences=False), keras.layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=False)
        x = rng.standard_normal((7, L, F))
        before = model.layers[0].get_weights()
        model.fit(x, rng.standard_normal((7, 1)), batch_size=4, verbose=0)
        for weight, old in zip(model.layers[0].weights, before, strict=True):
            assert np.isfinite(weight.numpy()).all()
            assert not np.array_equal(weight.numpy(), old), weight.name
        assert model.predict(x, verbose=0).shape == (7, 1)

    def test_mixed_precision(self, rng, name):
        layer = MAKE[name](return_sequences=True, dtype="mixed_float16")
        y = layer(rng.standard_normal((N, L, F)).astype(np.float32), training=True)
        assert y.dtype == tf.float16
        assert all(w.dtype in ("float32", "int32") for w in layer.weights)

    def test_arguments(self, rng, name):
        with pytest.raises(ValueError, match="expected units >= 1, got units=0"):
            type(getattr(MAKE[name](), "cell", MAKE[name]()))(0)
        for epsilon in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=f"expected epsilon > 0, got epsilon={epsilon}"):
                MAKE[name](epsilon=epsilon)


class TestAsKerasLSTM:
    def test_first_weights_and_shapes(self):
        theirs = keras.layers.LSTM(H)
        theirs.build((None, L, F))
        for ours in (BatchNormLSTM(H), LayerNormLSTMCell(H)):
            ours.build((None, L, F))
            np.testing.assert_array_equal(ours.bias, theirs.cell.bias)
            assert ours.kernel.shape == theirs.cell.kernel.shape
            assert ours.recurrent_kernel.shape == theirs.cell.recurrent_kernel.shape
        plain = BatchNormLSTM(H, unit_forget_bias=False)
        plain.build((None, L, F))
        assert not np.any(plain.bias)
        rnn = BatchNormSimpleRNN(H, use_bias=False)
        rnn.build((None, L, F))
        assert rnn.bias is None
        assert rnn(np.zeros((N, L, F), np.float32)).shape == (N, H)

    def test_without_normalisation_it_is_keras_lstm(self, rng):
        """Statistics that normalise nothing: mean 0, variance 1 - epsilon. Gate order and kernels are Keras's."""
        ours, theirs = make("BatchNormLSTM", rng), keras.layers.LSTM(H, return_sequences=True, dtype="float64")
        theirs.build((None, L, F))
        theirs.set_weights([w.numpy() for w in (ours.kernel, ours.recurrent_kernel, ours.bias)])
        for mean, variance, _ in ours.moving.values():
            mean.assign(np.zeros(mean.shape))
            variance.assign(np.full(variance.shape, 1 - 1e-3))
        for gamma in ours.gammas.values():
            gamma.assign(np.ones(gamma.shape))
        ours.beta_c.assign(np.zeros(H))
        x = rng.standard_normal((N, L, F))
        started = np.cumsum(MASK, axis=1) > 0
        np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-10)
        np.testing.assert_allclose(
            np.array(ours(x, mask=tf.constant(MASK)))[started], np.array(theirs(x, mask=MASK))[started], rtol=1e-10
        )

    @pytest.mark.parametrize(("cls", "states"), [(BatchNormLSTM, 2), (BatchNormSimpleRNN, 1)])
    @pytest.mark.parametrize("return_sequences", [False, True])
    def test_states(self, rng, cls, states, return_sequences):
        """return_state, initial_state and masks as keras.layers.LSTM has them."""
        theirs = (keras.layers.LSTM if states == 2 else keras.layers.SimpleRNN)(
            H, return_sequences=return_sequences, return_state=True
        )
        layer = cls(H, per_step=False, return_sequences=return_sequences, return_state=True)
        x = rng.standard_normal((N, L, F)).astype(np.float32)
        results, expected = layer(x), theirs(x)
        assert [tuple(r.shape) for r in results] == [tuple(r.shape) for r in expected]
        assert layer.compute_output_shape((None, L, F)) == [
            (None, L, H) if return_sequences else (None, H),
            *[(None, H)] * states,
        ]
        np.testing.assert_array_equal(results[0][:, -1] if return_sequences else results[0], results[1])
        first = layer(x[:, :2])
        np.testing.assert_allclose(layer(x[:, 2:], initial_state=first[1:])[1], results[1], rtol=1e-5, atol=1e-6)
        mask = tf.constant(MASK)
        assert layer.compute_mask(x, mask) == [mask if return_sequences else None] + [None] * states
        layer.return_state = False
        assert layer.compute_mask(x, mask) is (mask if return_sequences else None)
        assert layer.compute_output_shape((None, L, F)) == ((None, L, H) if return_sequences else (None, H))


@pytest.mark.parametrize("name", BY_BATCH)
class TestMovingStatistics:
    def test_training_then_inference(self, rng, name):
        layer, x = make(name, rng), rng.standard_normal((N, L, F))
        old = {site: [v.numpy() for v in variables] for site, variables in layer.moving.items()}
        layer(x, mask=tf.constant(MASK), training=True)
        _, cache = numpy_of(layer, x, MASK)
        statistics = {}
        for site, variables in layer.moving.items():
            new = update_running_steps(*old[site], cache.statistics[site], momentum=0.01, unbiased=False)
            for variable, value in zip(variables, new, strict=True):
                np.testing.assert_allclose(variable, value, rtol=1e-10)
            statistics[site] = new[:2]
        expected, _ = numpy_of(layer, x, statistics=statistics)
        before = layer.get_weights()
        np.testing.assert_allclose(layer(x), expected, rtol=1e-10)
        layer.trainable = False
        np.testing.assert_allclose(layer(x, training=True), expected, rtol=1e-10)
        for ours, theirs in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_first_gamma(self, name):
        layer = MAKE[name]()
        layer.build((None, L, F))
        assert {float(g[0]) for g in layer.gammas.values()} == {1.0 if "shared" in name else float(np.float32(0.1))}
        other = type(layer).from_config(layer.get_config())
        assert other.get_config() == layer.get_config()
        other.build((None, L, F))
        assert [w.shape for w in other.weights] == [w.shape for w in layer.weights]

    def test_errors(self, name):
        cls = type(MAKE[name]())
        for shape in [(None, None, F), (None, L, None), (None, F)]:
            with pytest.raises(ValueError, match=r"known number of steps and features, got \(None, "):
                cls(H).build(shape)
        with pytest.raises(ValueError, match=r"the weight of the old statistics, from 0 to 1, got 1\.5"):
            cls(H, momentum=1.5)
        for bad in ({"max_length": 0}, {"max_length": 3, "per_step": False}):
            with pytest.raises(ValueError, match=f"got max_length={bad['max_length']} and per_step"):
                cls(H, **bad)


def test_longer_than_max_length(rng):
    layer = make("BatchNormLSTM", rng)
    x = rng.standard_normal((N, 6, F))
    with pytest.raises(ValueError, match="at most max_length=5 time steps in training, got 6; set max_length"):
        layer(x, training=True)
    assert layer(x).shape == (N, 6, H)
    assert make("BatchNormLSTM shared", rng)(x, training=True).shape == (N, 6, H)
    default = BatchNormLSTM(H)
    default.build((None, L, F))
    assert default.moving["c"][0].shape == (L, H)


def test_layer_norm_cell_with_any_number_of_steps(rng):
    """keras.layers.RNN loops over a length that is not known when the function is traced."""
    layer = make("LayerNormLSTMCell", rng)
    model = tf.function(layer, input_signature=[tf.TensorSpec((None, None, F), tf.float64)], autograph=False)
    for length in (2, 5):
        x = rng.standard_normal((N, length, F))
        np.testing.assert_allclose(model(x), numpy_of(layer, x)[0], rtol=1e-10)
