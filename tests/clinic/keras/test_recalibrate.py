"""The statistics of all the data, layer by layer, or nothing at all."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from bnlearn.clinic._keras.freeze import freeze  # noqa: E402
from bnlearn.clinic._keras.recalibrate import recalibrate as public  # noqa: E402

L = keras.layers


def recalibrate(*args, **options):
    return public(*args, progress=False, **options)


def data(seed=0, shape=(5, 6), sizes=(7, 4, 1), dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.normal(3, 2, (n, *shape)).astype(dtype) for n in sizes]


@pytest.fixture(scope="module")
def wide():
    """A model in float64, with dropout."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        layers = [
            keras.Input((5, 6), dtype="float64"),
            L.Conv1D(4, 3),
            L.BatchNormalization(name="a"),
            L.Dropout(0.5),
            L.ReLU(),
        ]
        return keras.Sequential([*layers, L.Conv1D(3, 2), L.BatchNormalization(name="b", axis=-1), L.Flatten()])
    finally:
        keras.config.set_dtype_policy(before)


@pytest.fixture
def model(wide, scramble):
    return scramble(wide)


def bn(model, name):
    return model.get_layer(name)


def statistics(layer):
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def at(model, name, x):
    """What arrives at a layer at inference."""
    for layer in model.layers:
        if layer.name == name:
            return np.asarray(x)
        x = layer(x, training=False) if layer._call_has_training_arg else layer(x)
    raise AssertionError


@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_they_are_those_of_the_whole_set_at_once(wide, scramble, sizes, seed):
    model = scramble(wide, seed)
    batches = data(seed, sizes=sizes)
    done = recalibrate(model, batches)
    assert done.layers == ("a", "b")
    for name in ("a", "b"):
        x = at(model, name, np.concatenate(batches))
        mean, var = statistics(bn(model, name))
        np.testing.assert_allclose(mean, x.mean(axis=(0, 1)), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(var, x.var(axis=(0, 1)), rtol=1e-9)


def test_undo_gives_the_bits_back_and_nothing_else_moves(model, portrait):
    before = portrait(model)
    with recalibrate(model, data()) as done:
        assert portrait(model) != before
        assert done.model is model
    assert portrait(model) == before


def test_one_pass_normalises_each_batch_by_itself(model):
    batches = data()
    done = recalibrate(model, (x for x in batches), one_pass=True)
    x = np.concatenate(batches)
    mean, _ = statistics(bn(model, "a"))
    np.testing.assert_allclose(mean, at(model, "a", x).mean(axis=(0, 1)), rtol=1e-9)
    quick = statistics(bn(model, "b"))[0]
    assert recalibrate(model, batches).layers == done.layers == ("a", "b")
    assert 1e-3 < np.abs(statistics(bn(model, "b"))[0] - quick).max() < 1


def test_only_those_that_are_named(model):
    before = statistics(bn(model, "a"))
    assert recalibrate(model, data(), layers=["b"]).layers == ("b",)
    np.testing.assert_array_equal(statistics(bn(model, "a")), before)


@pytest.mark.parametrize("one_pass", [False, True])
def test_the_frozen_are_left_unless_named(model, one_pass):
    with freeze(model, layers=["a"]):
        before = statistics(bn(model, "a"))
        done = recalibrate(model, data(), one_pass=one_pass)
        assert done.layers == ("b",)
        assert done.left == {"a": "it is frozen: training leaves it in inference mode"}
        np.testing.assert_array_equal(statistics(bn(model, "a")), before)
        assert recalibrate(model, data(), layers=["a"], one_pass=one_pass).layers == ("a",)
    bn(model, "b").trainable = False
    assert recalibrate(model, data(), one_pass=one_pass).layers == ("a",)
    bn(model, "b").trainable = True


class Sub(keras.Model):
    """Calls one layer in inference mode always, one twice, one not at all, and one that has no weights."""

    def __init__(self):
        super().__init__()
        self.held, self.twice = L.BatchNormalization(name="held"), L.BatchNormalization(name="twice")
        self.unused, self.lazy = L.BatchNormalization(name="unused"), L.BatchNormalization(name="lazy")
        self.again = L.BatchNormalization(name="again")

    def build(self, shape):
        for layer in (self.held, self.twice, self.unused, self.again):
            layer.build(shape)

    def call(self, x, training=None):
        y = self.held(x, training=False)
        y = self.again(self.again(y, training=training), training=training)
        return self.twice(y, training=training) + self.twice(2 * y, training=training)


@pytest.mark.parametrize("one_pass", [False, True])
def test_which_are_left(scramble, one_pass):
    model = Sub()
    model(np.ones((2, 3)))
    scramble(model)
    done = recalibrate(model, data(shape=(3,), sizes=(9, 7), dtype="float32"), one_pass=one_pass)
    left = {
        "held": "it is frozen: training leaves it in inference mode",
        "unused": "the data do not reach it",
        "lazy": "it was never called, and has no weights",
    }
    again = {"again": "it is called 2 times, and what arrives depends on its own statistics"}
    assert done.left == left | ({} if one_pass else again)
    assert done.layers == (("twice", "again") if one_pass else ("twice",))


def test_a_layer_called_twice_has_what_both_calls_get(scramble):
    x = keras.Input((3,))
    bn = L.BatchNormalization(name="bn")
    model = scramble(keras.Model(x, bn(x) + bn(3 * x)))
    batches = data(shape=(3,), dtype="float32")
    recalibrate(model, batches)
    whole = np.concatenate(batches).astype("float64")
    np.testing.assert_allclose(bn.moving_mean, np.concatenate([whole, 3 * whole]).mean(axis=0), rtol=1e-5)


def test_a_mask_of_keras_counts(scramble):
    layers = [keras.Input((4,), dtype="int32"), L.Embedding(9, 3, mask_zero=True), L.BatchNormalization(name="bn")]
    model = scramble(keras.Sequential(layers))
    tokens = [np.array([[1, 2, 0, 0], [3, 4, 5, 0]]), np.array([[6, 0, 0, 0]])]
    recalibrate(model, tokens)
    real = np.concatenate([model.layers[0].embeddings.numpy()[t[t > 0]] for t in tokens])
    np.testing.assert_allclose(model.layers[1].moving_mean, real.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.layers[1].moving_variance, real.var(axis=0), rtol=1e-5)


def test_renormalisation_has_all_its_statistics_set():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(renorm=True)])
    batches = data(shape=(3,), dtype="float32")
    recalibrate(model, batches)
    bn, x = model.layers[0], np.concatenate(batches)
    std = np.sqrt(x.var(axis=0) + bn.epsilon)
    for variable, value in ((bn.renorm_mean, x.mean(axis=0)), (bn.renorm_stddev, std), (bn.moving_stddev, std)):
        np.testing.assert_allclose(variable, value, rtol=1e-5)


class Raises:
    def __init__(self, error, at):
        self.error, self.at, self.reading = error, at, 0

    def __iter__(self):
        self.reading += 1
        yield data()[0]
        if self.reading == self.at:
            raise self.error
        yield data()[1]


NAN = [*data(), np.full((2, 5, 6), np.nan)]


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        (Raises(KeyboardInterrupt, 3), KeyboardInterrupt, None),
        (Raises(OSError("disk"), 2), OSError, "disk"),
        (NAN, ValueError, "finite values at 'a'.*nothing was changed"),
        ([np.full((2, 5, 6), np.nan)], ValueError, "finite values at 'a'"),
        ([], ValueError, "at least one batch"),
        (iter(data()), ValueError, "once per layer, got a list_iterator"),
        (data()[0], TypeError, "got one array"),
    ],
)
def test_an_error_changes_nothing(model, portrait, batches, error, words):
    before = portrait(model)
    with pytest.raises(error, match=words):
        recalibrate(model, batches)
    assert portrait(model) == before


def test_statistics_that_do_not_fit_into_half_precision(portrait):
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(dtype="float16", name="half")])
    before = portrait(model)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="fit into float16 at 'half'"):
        recalibrate(model, [np.array([[1e3] * 3, [-1e3] * 3])])
    assert portrait(model) == before


def test_an_error_while_they_are_written_changes_nothing(model, portrait, monkeypatch):
    from bnlearn.clinic._keras import recalibrate as module

    before, assign, calls = portrait(model), module._assign, []

    def failing(*args):
        calls.append(args)
        assign(*args)
        if len(calls) == 3:  # two in the passes
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_assign", failing)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, data())
    assert portrait(model) == before


class Augmented:
    def __iter__(self):
        for x in data():
            yield x + np.random.default_rng(random.getrandbits(30)).normal(size=x.shape)


def test_each_reading_has_the_same_random_state(model):
    state = random.getstate()
    recalibrate(model, Augmented())
    assert random.getstate() == state
    seen = np.concatenate(list(Augmented()))
    np.testing.assert_allclose(statistics(bn(model, "b"))[0], at(model, "b", seen).mean(axis=(0, 1)), rtol=1e-9)


def test_other_sources_of_data(model):
    batches = data()
    first = recalibrate(model, batches) and statistics(bn(model, "b"))
    recalibrate(
        model, tf.data.Dataset.from_generator(lambda: batches, output_signature=tf.TensorSpec((None, 5, 6), tf.float64))
    )
    np.testing.assert_array_equal(statistics(bn(model, "b")), first)


class Compiled(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.bn = L.BatchNormalization(name="bn")

    def build(self, shape):
        self.bn.build(shape)

    def call(self, x):
        return tf.map_fn(self.bn, x[None])[0]


class Traced(Compiled):
    def call(self, x):
        return tf.data.Dataset.from_tensors(x).map(self.bn).get_single_element()


def test_a_compiled_function_is_run_eagerly():
    layer = Compiled()
    layer(np.zeros((2, 3), "float32"))
    layer.call = tf.function(layer.call)
    assert recalibrate(layer, [np.array([[1.0] * 3, [3.0] * 3])]).layers == ("bn",)
    assert layer.bn.moving_mean.numpy().tolist() == [2.0] * 3


@pytest.mark.filterwarnings("ignore:Even though")
def test_what_cannot_be_observed_is_refused():
    layer = Traced()
    layer.build((None, 3))
    with pytest.raises(ValueError, match="runs eagerly, got one that calls 'bn' inside a compiled function"):
        recalibrate(layer, [np.ones((2, 3), "float32")])
