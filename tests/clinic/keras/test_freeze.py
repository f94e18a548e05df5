"""What is frozen stays so, whatever is set afterwards, and comes back bit by bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from bnlearn.clinic._keras.freeze import freeze, is_held  # noqa: E402
from bnlearn.keras import GhostBatchNormalization  # noqa: E402

L = keras.layers
X = np.random.default_rng(0).normal(3, 2, (16, 4)).astype("float32")
Y = np.ones((16, 2), "float32")


@pytest.fixture
def model(scramble):
    base = keras.Sequential([keras.Input((4,)), L.Dense(3), L.BatchNormalization(name="bn")], name="base")
    layers = [keras.Input((4,)), base, GhostBatchNormalization(ghost_size=2, name="ghost"), L.Dense(2)]
    model = scramble(keras.Sequential(layers))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def statistics(model):
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_mean")]
    return [v.numpy().tolist() for bn in layers for v in (bn.moving_mean, bn.moving_variance)]


def affine(model):
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_mean")]
    return [v.numpy().tolist() for bn in layers for v in (bn.gamma, bn.beta)]


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_moves_through_fit(model, trained):
    if trained:  # the compiled step knows the layers as they were
        model.fit(X, Y, verbose=0)
    done = freeze(model)
    assert done.layers == ("base/bn", "ghost")
    assert done.left == {}
    before = statistics(model), affine(model), model.layers[-1].kernel.numpy().tolist()
    model.trainable = True
    model.get_layer("base").layers[1].trainable = True
    model.fit(X, Y, verbose=0)
    model(X, training=True)
    assert (statistics(model), affine(model)) == before[:2]
    assert model.layers[-1].kernel.numpy().tolist() != before[2]
    assert len(model.trainable_variables) == 4


def test_gamma_and_beta_may_go_on(model):
    freeze(model, affine=False)
    before = statistics(model), affine(model)
    model.fit(X, Y, verbose=0)
    assert statistics(model) == before[0]
    assert affine(model) != before[1]
    model.trainable = False
    assert model.trainable_variables == []


@pytest.mark.parametrize("with_affine", [True, False])
def test_undo_gives_every_bit_back(model, portrait, with_affine):
    bn = model.get_layer("base").layers[1]
    bn.gamma.trainable = False
    model.get_layer("ghost").trainable = False
    before = portrait(model)
    with freeze(model, with_affine) as done:
        assert [is_held(layer) for layer in (bn, model.get_layer("ghost"), model.layers[-1])] == [True, True, False]
        model.trainable = True
        model.trainable = False
        model.trainable = True
    assert done.model is model
    after = portrait(model)
    assert [layer["class"] for layer in after["layers"]] == [layer["class"] for layer in before["layers"]]
    assert after["layers"][3:5] == before["layers"][3:5]
    model.fit(X, Y, verbose=0)


def test_after_undo_the_statistics_move_again(model):
    model.fit(X, Y, verbose=0)
    freeze(model).undo()
    before = statistics(model)
    model.fit(X, Y, verbose=0)
    assert statistics(model) != before


def test_only_those_that_are_named_and_only_once(model):
    first = freeze(model, layers=["ghost"])
    assert first.layers == ("ghost",)
    second = freeze(model)
    assert second.layers == ("base/bn",)
    assert second.left == {"ghost": "it is frozen already"}
    second.undo()
    assert is_held(model.get_layer("ghost"))
    first.undo()
    assert not is_held(model.get_layer("ghost"))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["base/bm"], r"got 'base/bm'; the model has 'base/bn'"),
        (["x"], "got 'x'; the model has 'base/bn', 'ghost'"),
        ("base/bn", r"write \['base/bn'\]"),
    ],
)
def test_names_that_are_wrong(model, layers, words):
    with pytest.raises(ValueError, match=words):
        freeze(model, layers=layers)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras's own, while it saves
def test_a_saved_model_holds_plain_layers(model, tmp_path):
    freeze(model)
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for found in (loaded, copy.deepcopy(model)):
        bn = found.get_layer("base").layers[1]
        assert type(bn) is L.BatchNormalization
        assert not bn.trainable
        np.testing.assert_array_equal(found(X), model(X))
    copied = keras.models.clone_model(model)
    assert is_held(copied.get_layer("ghost"))


class Lazy(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.unused = L.Dense(3), L.BatchNormalization(name="unused")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def test_a_layer_that_was_never_called_is_left():
    model = Lazy()
    model(X)
    assert freeze(model).left == {"unused": "it has no weights yet: it was never called"}


def test_a_single_layer_and_one_without_gamma_and_beta():
    bn = L.BatchNormalization(center=False, scale=False, name="bn")
    bn.build((None, 4))
    with freeze(bn) as done:
        assert done.layers == ("bn",)
        bn(X, training=True)
        assert bn.moving_mean.numpy().tolist() == [0] * 4
    bn(X, training=True)
    assert bn.moving_mean.numpy().tolist() != [0] * 4
