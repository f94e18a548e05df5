"""Other normalisers in the place of BN, with what can be kept."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

import bnlearn.keras as own  # noqa: E402
from bnlearn.clinic._keras.freeze import freeze  # noqa: E402
from bnlearn.clinic._keras.replace import NORMALISERS, replace  # noqa: E402

L = keras.layers
X = np.random.default_rng(0).normal(1, 2, (4, 5, 6)).astype("float32")
SETTINGS = {"ghost": {"ghost_size": 2}, "example_weighing": {"example_weight": 0.5}}
KINDS = {
    "group": L.GroupNormalization,
    "layer": L.GroupNormalization,
    "instance": L.GroupNormalization,
    "renorm": L.BatchNormalization,
    "ghost": own.GhostBatchNormalization,
    "sync": L.BatchNormalization,
    "example_weighing": own.ExampleWeighing,
    "filter_response": own.FilterResponseNormalization,
}


@pytest.fixture
def model(scramble):
    x = keras.Input((5, 6), name="x")
    inner = keras.Sequential([keras.Input((5, 6)), L.Conv1D(8, 2), L.BatchNormalization(name="deep")], name="inner")
    y = L.BatchNormalization(name="bn", momentum=0.8, epsilon=0.01)(L.Conv1D(8, 2, name="conv")(x))
    bare = L.BatchNormalization(name="bare", center=False, scale=False)
    model = scramble(keras.Model(x, L.Dropout(0.5)(bare(L.ReLU()(y) + inner(x)))))
    model.get_layer("bn").gamma.trainable = False
    return model


@pytest.mark.parametrize("to", NORMALISERS)
def test_what_can_be_kept_is_kept(model, portrait, to):
    before = portrait(model)
    done = replace(model, to, **SETTINGS.get(to, {}))
    assert portrait(model) == before
    assert repr(done).startswith(f"3 replaced by {to}: ")
    assert set(done.layers) == {"bn", "inner/deep", "bare"}
    new, old = done.model.get_layer("bn"), model.get_layer("bn")
    assert type(new) is KINDS[to]
    assert [layer.name for layer in done.model.layers] == [layer.name for layer in model.layers]
    assert new.gamma.numpy().tolist() == old.gamma.numpy().tolist()
    assert new.beta.numpy().tolist() == old.beta.numpy().tolist()
    assert new.gamma is not old.gamma
    assert not new.gamma.trainable
    assert done.model.get_layer("bare").gamma is None
    if to != "filter_response":
        assert new.epsilon == 0.01
    if hasattr(new, "moving_mean"):
        assert new.momentum == 0.8
        assert new.moving_mean.numpy().tolist() == old.moving_mean.numpy().tolist()
        assert new.moving_variance.numpy().tolist() == old.moving_variance.numpy().tolist()
    conv = done.model.get_layer("conv").kernel.numpy()
    np.testing.assert_array_equal(conv, model.get_layer("conv").kernel.numpy())
    assert np.isfinite(done.model(X, training=True)).all()
    assert done.undo() is model


def test_with_statistics_the_function_is_the_same(model):
    for to in ("renorm", "ghost", "sync"):
        np.testing.assert_allclose(replace(model, to, **SETTINGS.get(to, {})).model(X), model(X), rtol=1e-4, atol=1e-5)


def test_renormalisation_trains_on_from_the_statistics(model):
    new, old = replace(model, "renorm").model.get_layer("bn"), model.get_layer("bn")
    np.testing.assert_allclose(new.renorm_stddev, np.sqrt(old.moving_variance.numpy() + old.epsilon), rtol=1e-6)
    np.testing.assert_array_equal(new.moving_stddev, new.renorm_stddev)
    np.testing.assert_array_equal(new.renorm_mean, old.moving_mean)
    new.renorm_mean.assign(new.renorm_mean + 1)
    again = keras.Sequential([keras.Input((4, 8)), new])
    np.testing.assert_array_equal(replace(again, "renorm").model.layers[0].renorm_mean, new.renorm_mean)


@pytest.mark.parametrize(("groups", "fitting"), [(32, 8), (3, 2), (4, 4)])
def test_groups_that_divide_the_channels(model, groups, fitting):
    assert replace(model, "group", groups=groups).model.get_layer("bn").groups == fitting


def test_layer_and_instance_are_groups(model):
    assert replace(model, "layer").model.get_layer("bn").groups == 1
    assert replace(model, "instance").model.get_layer("bn").groups in (-1, 8)


def test_yours(model):
    done = replace(model, lambda bn: L.LayerNormalization(name=bn.name), layers=["bn"])
    assert done.what == "replaced by yours"
    assert done.layers == ("bn",)
    assert type(done.model.get_layer("bn")) is L.LayerNormalization
    assert type(done.model.get_layer("bare")) is L.BatchNormalization
    assert done.model.get_layer("bn").gamma.numpy().tolist() == model.get_layer("bn").gamma.numpy().tolist()


@pytest.mark.parametrize(
    ("to", "settings", "error", "words"),
    [
        ("batch", {}, ValueError, "among group, layer.*, got 'batch'"),
        ("group", {"groups": 0}, ValueError, "groups >= 1, got 0"),
        ("ghost", {}, TypeError, "settings that 'ghost' takes, got {}: .*ghost_size"),
        ("layer", {"size": 3}, TypeError, "settings that 'layer' takes, got {'size': 3}"),
    ],
)
def test_what_does_not_fit(model, portrait, to, settings, error, words):
    before = portrait(model)
    with pytest.raises(error, match=words):
        replace(model, to, **settings)
    assert portrait(model) == before


class Own(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


@keras.saving.register_keras_serializable(package="tests")
class Block(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bn = L.BatchNormalization(name="inside")

    def build(self, shape):
        self.bn.build(shape)

    def call(self, x, training=None):
        return self.bn(x, training=training)


@pytest.mark.filterwarnings("ignore:Layer 'flatten")
def test_which_are_left(scramble):
    tokens = keras.Input((4,), dtype="int32")
    x = L.BatchNormalization(name="masked")(L.Embedding(9, 3, mask_zero=True)(tokens))
    y = Own(name="own")(Block(name="block")(L.Flatten()(x)))
    held = L.BatchNormalization(name="held")
    model = scramble(keras.Model(tokens, held(held(y))))
    freeze(model, layers=["held"])
    done = replace(model, "layer")
    assert done.layers == ()
    assert done.left == {
        "masked": "a mask reaches it, which the new layer would not heed",
        "own": "Own has a call of its own, which may do more than batch norm",
        "block/inside": "no graph of layers calls it",
        "held": "it is frozen: undo that first",
    }
    ids = np.array([[1, 2, 0, 0], [3, 4, 5, 6]])
    np.testing.assert_array_equal(done.model(ids), model(ids))
    renormed = replace(model, "renorm", layers=["masked"])
    assert renormed.layers == ("masked",)
    np.testing.assert_allclose(renormed.model(ids), model(ids), rtol=1e-5)


def test_a_model_with_a_call_of_its_own_is_refused():
    block = Block()
    block(np.ones((2, 3)))
    with pytest.raises(TypeError, match="functional or Sequential model, got Block"):
        replace(block, "group")
