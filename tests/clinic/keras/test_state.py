"""Nothing that is done to a model within ``untouched`` is left behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from bnlearn.clinic._keras import state as state_module  # noqa: E402
from bnlearn.clinic._keras.state import same_randomness, snapshot, untouched  # noqa: E402

L = keras.layers


@pytest.fixture(scope="module")
def everything():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(3, activity_regularizer="l2"),
            L.BatchNormalization(),
            L.Dropout(0.5, seed=3),
            L.Dense(2),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


def overwrite(model):
    for variable in model.variables:
        variable.assign(variable + 1)


def metrics(model):
    for variable in (*model.metrics_variables, *model.optimizer.variables):
        variable.assign(keras.ops.zeros_like(variable))


def losses(model):
    model(np.ones((2, 4)), training=True)
    model.layers[0]._losses.append(keras.ops.ones(()))
    model.layers[0]._loss_ids.add(1)


def draw(model):
    random.random(), np.random.rand(), keras.random.normal((2,)), tf.random.normal((2,))  # noqa: NPY002
    tf.random.get_global_generator().normal((2,))
    model(np.ones((2, 4)), training=True)


def seed(model):
    keras.utils.set_random_seed(17)


DEEDS = (overwrite, metrics, losses, draw, seed)


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(st.sampled_from(DEEDS), max_size=4),
    st.sampled_from([None, RuntimeError, KeyboardInterrupt]),
    st.sampled_from(["seeded", "fresh"]),
)
def test_all_is_as_before(portrait, everything, deeds, error, start):
    if start == "seeded":
        keras.utils.set_random_seed(1)
        keras.random.normal((1,))
    model = everything
    before = portrait(model)
    try:
        with untouched(model):
            for deed in deeds:
                deed(model)
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert portrait(model) == before


def test_a_generator_of_tensorflow_goes_on_where_it_was():
    generator = tf.random.Generator.from_seed(3)
    tf.random.set_global_generator(generator)
    before = generator.state.numpy().tolist()
    with same_randomness():
        tf.random.get_global_generator().normal((2,))
        tf.random.set_global_generator(tf.random.Generator.from_seed(4))
    assert tf.random.get_global_generator() is generator
    assert generator.state.numpy().tolist() == before


def test_without_tensorflow_the_rest_is_set_back(monkeypatch):
    monkeypatch.setattr(state_module, "sys", type("sys", (), {"modules": {}}))
    before = random.getstate()
    with same_randomness():
        random.random()
    assert random.getstate() == before


def test_a_tensorflow_that_was_never_seeded(monkeypatch):
    from tensorflow.python.eager import context
    from tensorflow.python.ops import stateful_random_ops

    monkeypatch.delattr(context.context(), "_rng", raising=False)
    monkeypatch.setattr(stateful_random_ops, "global_generator", None)
    with same_randomness():
        tf.random.get_global_generator()
    assert stateful_random_ops.global_generator is None


def bits(variable):
    return variable.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "bool"])
def test_a_snapshot_gives_the_bits_back(dtype):
    values = np.array([0.0, -0.0, np.nan, np.inf, 7.25])
    start = keras.ops.cast(values, dtype)
    variable = keras.Variable(start, dtype=dtype, trainable=False)
    before = bits(variable)
    restore = snapshot([variable])
    variable.assign(keras.ops.zeros_like(variable))
    assert bits(variable) != before
    restore()
    assert bits(variable) == before


class Late(keras.Model):
    """Has a layer that only training calls."""

    def __init__(self):
        super().__init__()
        self.first, self.bn = L.Dense(3), L.BatchNormalization(name="late")

    def build(self, shape):
        self.first.build(shape)

    def call(self, x, training=False):
        return self.bn(self.first(x)) if training else self.first(x)


def test_what_is_not_built_stays_so(portrait):
    model = Late()
    model(np.ones((2, 4)))
    before = portrait(model)
    with pytest.raises(ValueError, match=r"calls 'late', which takes its size.* with training=True"), untouched(model):
        model(np.ones((2, 4)), training=True)
    assert portrait(model) == before
    assert not model.bn.built
    model(np.ones((2, 4)), training=True)
    assert model.bn.built
