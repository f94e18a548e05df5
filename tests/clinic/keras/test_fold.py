"""Folding: the same function with fewer layers, and nothing folded that must not be."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from bnlearn.clinic._keras import fold as fold_module  # noqa: E402
from bnlearn.clinic._keras.fold import fold  # noqa: E402
from bnlearn.clinic._keras.freeze import freeze  # noqa: E402

L = keras.layers
LINEAR = {
    "dense": (lambda: L.Dense(4), (6,)),
    "dense of a sequence": (lambda: L.Dense(4, use_bias=False), (5, 6)),
    "conv1d": (lambda: L.Conv1D(4, 3), (7, 6)),
    "conv2d": (lambda: L.Conv2D(4, 3, strides=2, padding="same", use_bias=False), (7, 7, 6)),
    "grouped": (lambda: L.Conv2D(4, 3, groups=2), (7, 7, 6)),
    "conv3d": (lambda: L.Conv3D(4, 2), (3, 3, 3, 2)),
    "transposed 1d": (lambda: L.Conv1DTranspose(4, 3), (7, 6)),
    "transposed 2d": (lambda: L.Conv2DTranspose(4, 3, strides=2, use_bias=False), (5, 5, 6)),
    "transposed 3d": (lambda: L.Conv3DTranspose(4, 2), (3, 3, 3, 2)),
    "depthwise 1d": (lambda: L.DepthwiseConv1D(3, depth_multiplier=2), (7, 2)),
    "depthwise 2d": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), (7, 7, 2)),
    "separable 1d": (lambda: L.SeparableConv1D(4, 3), (7, 6)),
    "separable 2d": (lambda: L.SeparableConv2D(4, 3, use_bias=False), (7, 7, 6)),
}


def example(shape, n=3):
    return np.random.default_rng(1).normal(size=(n, *shape)).astype("float32")


def values(model):
    return [weight.numpy().tobytes() for weight in model.weights]


def agree(one, other, x, tolerance=1e-4):
    a, b = np.asarray(one(x)), np.asarray(other(x))
    assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("kind", LINEAR)
def test_every_kind_of_layer(scramble, kind, center, scale):
    make, shape = LINEAR[kind]
    if kind != "dense" and not (center and scale):
        return
    model = scramble(
        keras.Sequential([keras.Input(shape), make(), L.BatchNormalization(center=center, scale=scale), L.ReLU()])
    )
    x, before = example(shape), values(model)
    folded = fold(model, x)
    assert [type(layer) for layer in folded.layers] == [type(model.layers[0]), L.ReLU]
    assert len(folded.folding.folded) == 1
    assert folded.folding.left == {}
    assert folded.folding.error <= 1e-6
    agree(model, folded, x)
    assert values(model) == before
    assert not {id(v) for v in folded.variables} & {id(v) for v in model.variables}
    assert [layer.name for layer in folded.layers] == [model.layers[0].name, model.layers[2].name]


def test_double_precision(scramble):
    model = keras.Sequential([keras.Input((6,), dtype="float64"), L.Dense(4, dtype="float64")])
    model.add(L.BatchNormalization(dtype="float64"))
    folded = fold(scramble(model), example((6,)).astype("float64"))
    assert folded.folding.error < 1e-13


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(scramble, policy):
    model = keras.Sequential([keras.Input((6,)), L.Dense(4, dtype=policy), L.BatchNormalization(dtype=policy)])
    folded = fold(scramble(model), example((6,)))
    assert folded.layers[0].dtype_policy.name == policy
    assert 0 < folded.folding.error < 0.1


def nested(scramble):
    inner = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()], name="inner")
    x = keras.Input((6, 6, 3), name="image")
    y = L.Conv2D(4, 3, name="c")(x)
    y = L.BatchNormalization(name="bn")(y) + inner(x) * inner(-x)
    z = L.GlobalAveragePooling2D()(y)
    model = keras.Model({"image": x}, [z, L.Dense(2, name="head")(z)], name="outer")
    return scramble(model)


def test_a_graph_in_a_graph_which_is_called_twice(scramble):
    model = nested(scramble)
    x = {"image": example((6, 6, 3))}
    folded = fold(model, x)
    conv, bn, _ = (layer.name for layer in model.get_layer("inner").layers)
    assert set(folded.folding.folded) == {("c", "bn"), (f"inner/{conv}", f"inner/{bn}")}
    assert folded.folding.error < 1e-6
    assert folded.name == "outer"
    assert folded.get_layer("inner") is not model.get_layer("inner")
    assert [tuple(y.shape) for y in folded(x)] == [(3, 4), (3, 2)]


class Own(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


@keras.saving.register_keras_serializable(package="tests")
class Block(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn = L.Dense(4), L.BatchNormalization(name="inside")

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((*shape[:-1], 4))

    def call(self, x, training=None):
        return self.bn(self.dense(x), training=training)


def functional(f, shape=(6,)):
    x = keras.Input(shape)
    return keras.Model(x, f(x))


def shared_norm(x):
    bn = L.BatchNormalization(name="bn")
    return bn(L.Dense(4)(x)) + bn(L.Dense(4)(x))


def shared_dense(x):
    dense = L.Dense(6, name="d")
    return L.BatchNormalization(name="bn")(dense(dense(x)))


def used_elsewhere(x):
    y = L.Dense(4, name="d")(x)
    return L.ReLU(name="other")(y) + L.BatchNormalization(name="bn")(y)


def used_as_output(x):
    y = L.Dense(4, name="d")(x)
    return [y, L.BatchNormalization(name="bn")(y)]


def used_twice_by_an_addition(x):
    y = L.Dense(4, name="d")(x)
    return L.BatchNormalization(name="bn")(y) + y


LEFT = {
    "input": (lambda x: L.BatchNormalization(name="bn")(x), "what arrives is the model's input"),
    "relu": (lambda x: L.BatchNormalization(name="bn")(L.ReLU(name="r")(L.Dense(4)(x))), r"comes from r \(ReLU\), not"),
    "activation": (
        lambda x: L.BatchNormalization(name="bn")(L.Dense(4, activation="tanh", name="d")(x)),
        "d has an activation, tanh",
    ),
    "shared norm": (shared_norm, "the graph calls it 2 times"),
    "shared dense": (shared_dense, "d is called 2 times"),
    "elsewhere": (used_elsewhere, "the output of d is also used by other"),
    "output": (used_as_output, "the output of d is also used by the model's output"),
    "added": (used_twice_by_an_addition, "the output of d is also used by add"),
    "own class": (lambda x: Own(name="bn")(L.Dense(4)(x)), "Own has a call of its own"),
    "training": (
        lambda x: L.BatchNormalization(name="bn")(L.Dense(4)(x), training=True),
        "called with training=True",
    ),
    "opaque": (lambda x: Block(name="block")(x), "no graph of layers calls it"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_must_not_be_folded(scramble, case):
    make, why = LEFT[case]
    model = scramble(functional(make))
    with keras.saving.custom_object_scope({"Own": Own}):
        folded = fold(model, example((6,), 8))
    assert folded.folding.folded == ()
    ((name, reason),) = folded.folding.left.items()
    assert name in ("bn", "block/inside")
    assert __import__("re").search(why, reason), reason
    for a, b in zip(keras.tree.flatten(model(example((6,)))), keras.tree.flatten(folded(example((6,)))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_layer_itself_twice(scramble):
    def f(x):
        y = L.Dense(4, name="d")(x)
        return L.Add()([L.BatchNormalization(name="bn")(y), L.BatchNormalization(name="again")(y)])

    left = fold(scramble(functional(f)), example((6,))).folding.left
    assert left == {
        "bn": "the output of d is also used by again",
        "again": "the output of d is also used by bn",
    }


def test_another_axis(scramble):
    model = functional(lambda x: L.BatchNormalization(axis=1, name="bn")(L.Conv1D(4, 1, name="c")(x)), (4, 6))
    assert fold(scramble(model), example((4, 6))).folding.left == {"bn": "the channels of c are not on its axis 1"}


def test_quantised_or_lora(scramble):
    model = functional(lambda x: L.BatchNormalization(name="bn")(L.Dense(4, name="d")(x)))
    model.get_layer("d").enable_lora(2)
    assert fold(scramble(model), example((6,))).folding.left == {"bn": "d is quantised, or has LoRA weights"}


def test_a_frozen_norm_is_folded_and_a_frozen_one_left_stays_frozen(scramble):
    model = scramble(functional(lambda x: L.BatchNormalization()(L.ReLU()(L.BatchNormalization()(L.Dense(4)(x))))))
    freeze(model)
    folded = fold(model, example((6,)))
    assert len(folded.folding.folded) == 1
    folded.trainable = True
    assert not folded.layers[-1].trainable
    agree(model, folded, example((6,)))


def test_a_sequential_model_of_one_norm_becomes_the_identity():
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="bn")])
    model = keras.Sequential([keras.Input((6,)), L.Dense(4), inner])
    folded = fold(model, example((6,)))  # the graph inside does not tell what feeds it
    assert folded.folding.left == {f"{inner.name}/bn": "what arrives is the model's input"}


def test_no_norm_at_all():
    model = keras.Sequential([keras.Input((6,)), L.Dense(4), L.Dropout(0.5), L.Dense(1, trainable=False)])
    model.trainable = False
    folded = fold(model, example((6,)))
    assert folded.folding.folded == ()
    assert not folded.trainable
    assert folded.trainable_variables == []
    agree(model, folded, example((6,)), 0)


def test_a_layer_in_two_graphs_stays_one_and_flags_stay(scramble):
    dense = L.Dense(6, name="d")
    inner = keras.Sequential([keras.Input((6,)), dense, L.BatchNormalization(name="bn")], name="inner")
    model = scramble(functional(lambda x: L.Dense(2, name="last")(inner(dense(x)))))
    model.get_layer("last").bias.trainable = False
    folded = fold(model, example((6,)))
    assert folded.folding.left == {"inner/bn": "d is called 2 times"}
    assert folded.get_layer("d") is folded.get_layer("inner").layers[0]
    assert not folded.get_layer("last").bias.trainable
    assert folded.get_layer("last").kernel.trainable


class Sub(keras.Model):
    def __init__(self):
        super().__init__()
        self.bn = L.BatchNormalization()

    def call(self, x, training=None):
        return self.bn(x, training=training)


def test_a_model_with_a_call_of_its_own_is_refused():
    model = Sub()
    model(np.ones((2, 3)))
    with pytest.raises(TypeError, match=r"functional or Sequential model, got Sub.* cannot be folded"):
        fold(model, np.ones((2, 3)))


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="built model, got Sequential 'late' without weights"):
        fold(keras.Sequential([L.Dense(3), L.BatchNormalization()], name="late"), np.ones((2, 3)))


class Nameless(L.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def test_a_layer_that_cannot_be_made_again_is_named():
    model = functional(lambda x: Nameless(lambda y: 2 * y)(x))
    with pytest.raises(TypeError, match="made again from their configuration, got Nameless 'nameless"):
        fold(model, example((6,)))


@pytest.mark.parametrize(("make", "words"), [(lambda x: x * np.nan, "NaN or inf"), (lambda x: x > 0, "none that are")])
def test_outputs_that_cannot_be_compared(make, words):
    model = functional(lambda x: make(L.BatchNormalization()(L.Dense(3)(x))))
    with pytest.raises(ValueError, match=words):
        fold(model, example((6,)))


def test_a_folding_that_changes_the_function_is_refused(scramble, monkeypatch):
    monkeypatch.setattr(fold_module, "_fold_pair", lambda *_: None)
    model = scramble(functional(lambda x: L.BatchNormalization(name="bn")(L.Dense(4, name="d")(x))))
    with pytest.raises(RuntimeError, match=r"to 0\.0001, relative, got .*bn into d; the given model is"):
        fold(model, example((6,)))


def test_outputs_of_zero(scramble):
    model = scramble(functional(lambda x: 0 * L.BatchNormalization()(L.Dense(4)(x))))
    assert fold(model, example((6,))).folding.error == 0


def test_nothing_else_changes(scramble, portrait):
    model = nested(scramble)
    x = {"image": example((6, 6, 3))}
    before = portrait(model)
    fold(model, x)
    assert portrait(model) == before


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_real_architectures(scramble, name):
    model = scramble(getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3))
    folded = fold(model, example((32, 32, 3), 2))
    assert len(folded.folding.folded) == sum(isinstance(layer, L.BatchNormalization) for layer in model.layers)
    assert folded.folding.error < 1e-4
