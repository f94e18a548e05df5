"""What is found out about a model, and that looking changes nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from bnlearn.clinic._keras import layers as layers_module  # noqa: E402
from bnlearn.clinic._keras import look as look_module  # noqa: E402
from bnlearn.clinic._keras.facts import facts  # noqa: E402
from bnlearn.clinic._keras.freeze import freeze  # noqa: E402
from bnlearn.clinic._keras.outputs import gap  # noqa: E402

L = keras.layers


def data(shape=(6,), sizes=(8, 8, 8, 5), seed=0, shift=1.0):
    rng = np.random.default_rng(seed)
    return [rng.normal(shift, 2, (n, *shape)).astype("float32") for n in sizes]


def functional(f, shape=(6,), **options):
    x = keras.Input(shape, **options)
    return keras.Model(x, f(x))


def layer(found, name="bn"):
    return next(known for known in found.layers if known.name == name)


@pytest.fixture(scope="module")
def plain(scramble):
    layers = [keras.Input((6,)), L.Dense(4, name="first"), L.BatchNormalization(momentum=0.9, name="bn"), L.ReLU()]
    layers += [L.Dropout(0.5), L.Dense(4, use_bias=False), L.BatchNormalization(name="last", scale=False)]
    return scramble(keras.Sequential(layers, name="plain"))


def test_without_data(plain):
    found = facts(plain)
    assert (found.framework, found.model, found.training_now, found.data_run) == ("keras", "Sequential", False, False)
    assert [known.name for known in found.layers] == ["bn", "last"]
    assert (found.optimizer, found.output, found.source, found.distributed) == (None, None, None, False)
    bn = found.layers[0]
    assert (bn.kind, bn.channels, bn.eps, bn.dtype) == ("BatchNormalization", 4, 0.001, "float32")
    assert bn.momentum == 0.1
    assert (bn.batches_seen, bn.affine_trainable, bn.training_now, bn.trains, bn.evaluates) == (
        None,
        True,
        False,
        True,
        True,
    )
    assert (bn.frozen_by_hand, bn.held, bn.axis_problem, bn.overruled, bn.stale, bn.seen) == (
        False,
        False,
        None,
        False,
        False,
        None,
    )
    np.testing.assert_array_equal(bn.running_var, plain.get_layer("bn").moving_variance.numpy().astype(float))
    assert bn.gamma.dtype == np.float64
    assert found.layers[1].gamma is None


def test_what_arrives(plain):
    batches = data()
    found = facts(plain, [(x, 0) for x in batches])
    x = np.concatenate([np.asarray(plain.layers[0](x)) for x in batches]).astype(float)
    seen = found.layers[0].seen
    np.testing.assert_allclose(seen.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(seen.var, x.var(axis=0), rtol=1e-6)
    assert (seen.calls, seen.fewest, seen.n, seen.batches, seen.samples, seen.finite) == (1, 5, 29, 4, 29, True)
    assert seen.bias_from == "first"
    assert found.layers[1].seen.bias_from is None
    np.testing.assert_allclose(seen.evaluation_ratio, 1, rtol=1e-5)
    assert not np.allclose(found.layers[1].seen.evaluation_ratio, 1, rtol=1e-2)  # dropout
    assert found.data_run
    assert found.output.samples == 8
    assert found.output.gap > found.output.recalibrated_gap > 0
    assert found.output.moved > 0
    assert (found.single, found.notes, found.masked) == ((), (), False)


def test_no_batch_is_run_more_than_three_times_and_all_but_two_once():
    runs = []
    model = functional(lambda x: L.BatchNormalization()(L.Lambda(lambda y: runs.append(tuple(y.shape)) or y)(x)))
    runs.clear()
    found = facts(model, (x for x in data(sizes=(1, 4, 1, 3, 5))))
    assert [n for n, _ in runs] == [1, 4, 1, 3, 3, 5, 4, 4]
    np.testing.assert_allclose(found.layers[0].seen.evaluation_ratio, 1, rtol=1e-5)
    assert facts(model, data(sizes=(4,))).layers[0].seen.evaluation_ratio is None


def test_training_goes_on_as_if_nothing_had_been_in_between(monkeypatch):
    model = functional(lambda x: L.BatchNormalization(name="bn")(L.Lambda(lambda y: y + np.random.rand())(x)))  # noqa: NPY002
    given = data()

    def seen():
        np.random.seed(0)  # noqa: NPY002
        return facts(model, given).layers[0].seen

    usual = seen()
    monkeypatch.setattr(look_module._Watch, "_ratios", lambda *_: {})
    without = seen()
    assert (usual.evaluation_ratio is None, without.evaluation_ratio is None) == (False, True)
    np.testing.assert_array_equal(usual.mean, without.mean)


def test_batches_with_one_value_per_channel_are_left_out(plain):
    found = facts(plain, data(sizes=(1, 4, 1)))
    assert found.single == ("bn", "last")
    assert found.layers[0].seen.batches == 1
    only = facts(plain, data(sizes=(1,)))
    assert (only.single, only.data_run, only.output) == (("bn", "last"), False, None)
    assert "no batch of two samples or more" in only.notes[0]
    with freeze(plain):
        assert facts(plain, data(sizes=(1,))).single == ()


def test_frozen_in_every_way(plain):
    with freeze(plain, affine=False):
        found = facts(plain, data())
        assert [(k.held, k.trains, k.affine_trainable) for k in found.layers] == [(True, False, True)] * 2
    bn = plain.get_layer("bn")
    bn.trainable = False
    assert (layer(facts(plain)).trains, layer(facts(plain)).affine_trainable) == (False, False)
    bn.trainable = True
    bn.gamma.trainable = bn.beta.trainable = False
    assert (layer(facts(plain)).trains, layer(facts(plain)).affine_trainable) == (True, False)
    bn.gamma.trainable = bn.beta.trainable = True
    bare = functional(lambda x: L.BatchNormalization(center=False, scale=False, name="bn")(x))
    assert layer(facts(bare)).affine_trainable is None


class Sub(keras.Model):
    """A model with a call of its own, in which every layer is called in another way."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)
        self.held, self.always = L.BatchNormalization(name="bn"), L.BatchNormalization(name="bn")
        self.unused, self.lazy = L.BatchNormalization(name="unused"), L.BatchNormalization(name="lazy")

    def build(self, shape):
        self.dense.build(shape)
        for bn in (self.held, self.always, self.unused):
            bn.build((*shape[:-1], 3))

    def call(self, x, training=None):
        return self.always(self.held(self.dense(x), training=False), training=True)


@pytest.fixture
def sub(scramble):
    model = Sub()
    model(np.ones((2, 6)))
    return scramble(model)


def test_the_mode_that_arrives_counts(sub):
    found = facts(sub, data())
    assert [known.name for known in found.layers] == ["bn", "bn#2", "unused", "lazy"]
    assert [known.trains for known in found.layers] == [False, True, True, True]
    assert [known.evaluates for known in found.layers] == [True, False, True, True]
    assert [known.training_now for known in found.layers] == [False, True, False, False]
    assert [known.seen is None for known in found.layers] == [False, False, True, True]
    assert (found.layers[3].channels, found.layers[3].running_mean, found.layers[3].dtype) == (0, None, "float32")
    path, line = found.source
    assert path.endswith("test_facts.py")
    assert line > 100
    assert found.layers[0].seen.bias_from == "dense" or found.layers[0].seen.bias_from.startswith("dense")


def test_a_class_without_a_file(sub):
    made = type("Made", (Sub,), {"__module__": "nowhere"})
    model = made()
    model(np.ones((2, 6)))
    assert facts(model).source is None


def test_in_a_graph_training_overrides_the_false_that_was_written():
    base = keras.Sequential([keras.Input((6,)), L.Dense(3), L.BatchNormalization(name="bn")], name="base")
    model = functional(lambda x: L.LSTM(2)(L.Reshape((3, 1))(base(x, training=False))))
    before = base.layers[1].moving_mean.numpy().tolist()
    known = layer(facts(model, data()), "base/bn")
    assert (known.trains, known.overruled) == (True, True)
    model(data()[0], training=True)
    assert base.layers[1].moving_mean.numpy().tolist() != before
    base.trainable = False
    known = layer(facts(model), "base/bn")
    assert (known.trains, known.overruled) == (False, False)


@keras.saving.register_keras_serializable(package="tests")
class Anything(L.Layer):
    def call(self, x, **options):
        return x


def test_only_what_somebody_wrote_is_overruled():
    model = functional(lambda x: L.BatchNormalization(name="bn")(Anything()(L.Dropout(0.1)(x), training=False) * 2))
    assert not layer(facts(model)).overruled


@pytest.mark.parametrize(
    ("make", "shape", "wrong"),
    [
        (lambda x: L.BatchNormalization(axis=1, name="bn")(L.Conv2D(4, 3, name="c")(x)), (6, 6, 3), True),
        (lambda x: L.BatchNormalization(axis=3, name="bn")(L.Conv2D(4, 3, name="c")(x)), (6, 6, 3), False),
        (lambda x: L.BatchNormalization(axis=1, name="bn")(L.ReLU()(L.Dense(4, name="c")(x))), (5, 3), True),
        (lambda x: L.BatchNormalization(axis=1, name="bn")(L.Dense(4, name="c")(x)), (3,), False),
        (lambda x: L.BatchNormalization(axis=1, name="bn")(x), (6, 6, 3), False),
        (lambda x: L.BatchNormalization(axis=1, name="bn")(L.Permute((2, 1))(L.Dense(4, name="c")(x))), (5, 3), False),
        (
            lambda x: L.BatchNormalization(axis=1, name="bn")(L.Add()([L.Dense(4, name="c")(x), L.Dense(4)(x)])),
            (5, 3),
            True,
        ),
        (
            lambda x: keras.Sequential(
                [keras.Input((5, 4)), L.ReLU(), L.BatchNormalization(axis=1, name="bn")], name="s"
            )(L.Dense(4, name="c")(x)),
            (5, 3),
            True,
        ),
    ],
)
@pytest.mark.parametrize("run", [False, True])
def test_an_axis_that_is_not_the_channels(make, shape, wrong, run):
    model = functional(make, shape)
    known = facts(model, data(shape, sizes=(2,)) if run else None).layers[0]
    assert (known.axis_problem is not None) == wrong
    if wrong:
        assert known.axis_problem.startswith("axis=1 keeps axis 1 of ")
        assert "'c' puts its channels on axis" in known.axis_problem


def test_channels_first():
    x = keras.Input((3, 6, 6))
    y = L.Conv2D(4, 3, data_format="channels_first", name="c")(x)
    model = keras.Model(x, L.BatchNormalization(name="bn")(y))
    assert layer(facts(model)).axis_problem == "axis=-1 keeps axis 3 of 4, and 'c' puts its channels on axis 1"


@pytest.mark.parametrize(
    ("layers", "wrong"),
    [
        ([L.BatchNormalization(axis=1, name="bn"), L.Conv2D(4, 3, name="c")], True),
        ([L.BatchNormalization(axis=1, name="bn"), L.ReLU(), L.DepthwiseConv2D(3, name="c")], True),
        ([L.BatchNormalization(axis=3, name="bn"), L.Conv2D(4, 3, name="c")], False),
        ([L.BatchNormalization(axis=1, name="bn"), L.Conv2D(4, 3, data_format="channels_first", name="c")], False),
        ([L.BatchNormalization(axis=1, name="bn"), L.Permute((2, 3, 1)), L.Conv2D(4, 3, name="c")], False),
        ([L.BatchNormalization(axis=1, name="bn"), L.Flatten(), L.Dense(4, name="c")], False),
    ],
    ids=["conv", "behind a relu", "right", "channels first", "permuted", "no convolution"],
)
def test_of_images_that_come_from_no_layer_the_next_convolution_tells_the_axis(layers, wrong):
    model = keras.Sequential([keras.Input((6, 6, 6)), *layers])
    expected = "axis=1 keeps axis 1 of 4, and 'c' reads axis 3" if wrong else None
    assert layer(facts(model)).axis_problem == expected


def test_a_time_step_may_be_normalised_by_itself():
    model = keras.Sequential([keras.Input((6, 3)), L.BatchNormalization(axis=1, name="bn"), L.Conv1D(4, 3)])
    assert layer(facts(model)).axis_problem is None


class Axis(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.bn = L.Dense(4, name="c"), L.BatchNormalization(axis=1, name="bn")

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((*shape[:-1], 4))

    def call(self, x, training=None):
        return self.bn(self.dense(x), training=training)


def test_without_a_graph_the_data_tell_the_axis():
    model = Axis()
    model(np.ones((2, 5, 3)))
    assert layer(facts(model)).axis_problem is None
    assert "axis=1 keeps axis 1 of 3" in layer(facts(model, data((5, 3)))).axis_problem


TOKENS = [np.array([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 3]]), np.array([[1, 0, 0, 0], [2, 3, 0, 0]])]


def embedded(mask_zero, f):
    x = keras.Input((4,), dtype="int32")
    return keras.Model(x, f(L.Embedding(9, 3, mask_zero=mask_zero, name="e")(x)))


def real(model):
    return np.concatenate([model.get_layer("e").embeddings.numpy()[t[t > 0]] for t in TOKENS]).astype(float)


def test_a_mask_that_reaches_the_layer():
    model = embedded(True, L.BatchNormalization(name="bn"))
    found = facts(model, TOKENS)
    seen = layer(found).seen
    np.testing.assert_allclose(seen.mean, real(model).mean(axis=0), rtol=1e-6)
    assert (seen.fewest, seen.n, seen.real_mean, found.masked) == (3, 12, None, False)
    assert found.notes == ("bn: Keras's own mask reaches it, and what that leaves out does not count",)
    found = facts(model, TOKENS, mask=lambda tokens: tokens > 0)
    assert found.masked
    np.testing.assert_allclose(layer(found).seen.real_mean, seen.mean, rtol=1e-12)
    found = facts(model, TOKENS, mask=lambda tokens: tokens == 3)  # Keras's mask lets more through
    e = model.get_layer("e").embeddings.numpy()
    np.testing.assert_allclose(layer(found).seen.real_mean, e[3], rtol=1e-6)
    assert not facts(model, TOKENS, mask=lambda tokens: tokens[:, :2] > 0).masked


@pytest.mark.filterwarnings("ignore:Layer 'conv'")
def test_a_mask_that_is_lost_on_the_way():
    def f(x):
        return L.BatchNormalization(name="short")(
            L.Conv1D(2, 2)(L.BatchNormalization(name="bn")(L.Conv1D(3, 1, name="conv")(x)))
        )

    model = embedded(True, f)
    found = facts(model, TOKENS)
    seen = layer(found).seen
    assert seen.n == 20
    assert found.masked
    values = np.asarray(model.get_layer("conv")(real(model)[None].astype("float32")))[0]
    np.testing.assert_allclose(seen.real_mean, values.mean(axis=0), rtol=1e-4, atol=1e-6)
    assert found.notes == ("bn: the model makes a mask, which does not reach it",)
    assert layer(found, "short").seen.real_mean is None


@pytest.mark.parametrize("mask", [lambda batch: np.asarray(batch[0]) > 0, 1])
def test_a_mask_that_is_given(mask):
    model = embedded(False, L.BatchNormalization(name="bn"))
    found = facts(model, [(t, t > 0) for t in TOKENS], mask=mask)
    np.testing.assert_allclose(layer(found).seen.real_mean, real(model).mean(axis=0), rtol=1e-6)
    assert layer(found).seen.n == 20
    assert found.masked


def test_masking_by_a_value():
    x = keras.Input((4, 2))
    model = keras.Model(x, L.BatchNormalization(name="bn")(L.Masking(7.0)(x)))
    batch = np.ones((3, 4, 2), "float32")
    batch[:, 2:] = 7
    assert layer(facts(model, [batch])).seen.n == 6


def test_time_distributed_and_recurrent_layers_are_heard():
    inner = keras.Sequential([keras.Input((6,)), L.Dense(4), L.BatchNormalization(name="bn")], name="inner")
    model = functional(lambda x: L.TimeDistributed(inner, name="t")(x), (5, 6))
    seen = facts(model, data((5, 6), sizes=(4,))).layers[0].seen
    assert (seen.calls, seen.n) == (5, 20)
    assert seen.apart.shape == (5, 4)

    class Cell(L.Layer):
        state_size = 4

        def __init__(self):
            super().__init__()
            self.dense, self.bn = L.Dense(4), L.BatchNormalization(name="bn")

        def build(self, shape):
            self.dense.build(shape)
            self.bn.build((None, 4))

        def call(self, x, states, training=None):
            y = self.bn(self.dense(x), training=training)
            return y, [y]

    seen = facts(functional(lambda x: L.RNN(Cell())(x), (5, 6)), data((5, 6), sizes=(4,))).layers[0].seen
    assert (seen.calls, seen.n) == (6, 24)  # Keras runs the first step once more, to see what comes out


class Traced(L.Layer):
    def __init__(self):
        super().__init__()
        self.bn, self.dense = L.BatchNormalization(name="bn"), L.Dense(3)

    def build(self, shape):
        self.bn.build(shape)
        self.dense.build(shape)

    def call(self, x, training=None):
        data = tf.data.Dataset.from_tensors(x).map(lambda y: self.bn(self.dense(y), training=training))
        return data.get_single_element()


@pytest.mark.filterwarnings("ignore:Even though")
def test_what_is_traced_is_said_not_to_be_seen():
    model = Traced()
    model.build((None, 3))
    found = facts(model, [np.random.default_rng(0).normal(size=(4, 3)).astype("float32")])
    assert found.notes[0] == "bn: called inside a compiled function, where nothing can be observed"
    assert found.layers[0].seen is None


def test_a_function_of_tensorflow_is_run_eagerly(sub):
    sub.call = tf.function(sub.call)
    assert facts(sub, data()).layers[0].seen.n == 29


def test_outputs_that_cannot_be_compared():
    found = facts(functional(lambda x: 0 * L.BatchNormalization(name="bn")(x)), data())
    assert found.output is None
    assert found.notes == ("nothing in the outputs to compare training and evaluation by",)
    ones = {(): ("float32", np.array([[0.0], [1.0]]))}
    assert gap(ones, {(): ("float32", np.array([[np.inf], [1.0]]))}) == np.inf
    assert gap(ones, {(): ("float32", np.array([[1.0], [0.0]]))}) == 2
    assert gap(ones, {(): ("float32", np.zeros((3, 1)))}) is None


def test_no_batch_norm(plain):
    model = functional(lambda x: L.Dense(2)(x))
    found = facts(model, data())
    assert found.layers == ()
    assert found.output.gap == 0


def test_nan_arrives(plain):
    batches = [*data(), np.full((3, 6), np.nan, "float32")]
    found = facts(plain, batches)
    assert not found.layers[0].seen.finite
    only = facts(plain, [np.full((3, 6), np.nan, "float32")])
    assert (only.output, only.layers[0].seen.finite) == (None, False)


def compiled(optimizer, **options):
    layers = [keras.Input((6,)), L.BatchNormalization(name="bn"), L.Dense(2), L.BatchNormalization(name="head")]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse", **options)
    return model


def test_the_optimizer_that_a_model_was_compiled_with():
    model = compiled(keras.optimizers.AdamW(weight_decay=0.01))
    held = facts(model).optimizer
    assert (held["bn"].holds, held["bn"].decay) == (True, 0.01)
    model.get_layer("bn").trainable = False
    assert (facts(model).optimizer["bn"].holds, facts(model).optimizer["bn"].decay) == (False, 0)


def test_decay_may_leave_them_out():
    model = compiled("sgd")
    optimizer = keras.optimizers.AdamW(weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"])
    found = facts(model, optimizer=optimizer).optimizer["bn"]
    assert (found.holds, found.decay) == (True, 0)
    assert "_exclude_from_weight_decay_cache" not in vars(optimizer) or optimizer._exclude_from_weight_decay_cache == {}
    optimizer.exclude_from_weight_decay(
        var_list=[model.layers[0].gamma, model.layers[0].beta, *model.layers[2].weights]
    )
    assert facts(model, optimizer=optimizer).optimizer["bn"].decay == 0


def test_an_optimizer_that_scales_the_loss_and_one_that_holds_less():
    model = compiled("sgd")
    inner = keras.optimizers.SGD(weight_decay=0.1)
    optimizer = keras.optimizers.LossScaleOptimizer(inner)
    optimizer.build(model.layers[0].trainable_variables)
    held = facts(model, optimizer=optimizer).optimizer
    assert [(held[name].holds, held[name].decay) for name in ("bn", "head")] == [(True, 0.1), (False, 0)]
    with pytest.raises(TypeError, match="Keras optimizer, got str"):
        facts(model, optimizer="sgd")


def test_trainable_changed_after_training_had_begun():
    model = compiled("sgd")
    batch = data(sizes=(8,))[0], np.ones((8, 2))
    model.get_layer("bn").trainable = False
    assert not layer(facts(model)).stale  # nothing was compiled yet
    model.fit(*batch, verbose=0)
    assert [known.stale for known in facts(model).layers] == [False, False]
    model.get_layer("bn").trainable = True
    before = model.get_layer("bn").moving_mean.numpy().tolist()
    model.fit(*batch, verbose=0)
    assert model.get_layer("bn").moving_mean.numpy().tolist() == before
    assert [known.stale for known in facts(model).layers] == [True, False]
    model.run_eagerly = True
    assert not layer(facts(model)).stale
    model.compile("sgd", "mse")
    assert not layer(facts(model)).stale


def test_several_replicas_and_synchronised_layers():
    model = functional(lambda x: L.BatchNormalization(name="bn", synchronized=True)(x))
    assert layer(facts(model)).kind == "BatchNormalization (synchronized)"
    model._distribute_strategy = type("Strategy", (), {"num_replicas_in_sync": 4})()
    assert facts(model).distributed


def test_what_is_not_built_and_a_backend_that_is_not_known(monkeypatch):
    with pytest.raises(ValueError, match="built model, got Sequential 'raw' without weights"):
        facts(keras.Sequential([L.Dense(2), L.BatchNormalization()], name="raw"))
    monkeypatch.setattr(layers_module.keras.backend, "backend", lambda: "openvino")
    with pytest.raises(RuntimeError, match="tensorflow, jax, torch, got openvino"):
        facts(functional(lambda x: x * 2))


class Trap:
    """Batches, in the middle of which something happens."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield data()[0]
        random.random(), np.random.rand(), keras.random.normal((1,)), tf.random.normal((1,))  # noqa: NPY002
        if self.error is not None:
            raise self.error
        yield data()[1]


class Interrupted(L.Layer):
    armed = False

    def call(self, x):
        if self.armed:
            raise KeyboardInterrupt
        return x


def shared():
    x = keras.Input((6,))
    bn = L.BatchNormalization(name="bn")
    model = keras.Model(x, bn(x) + bn(2 * x))
    model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


def mixed():
    layers = [
        keras.Input((6,)),
        L.Dense(4, dtype="mixed_float16"),
        L.BatchNormalization(dtype="mixed_float16", name="bn"),
    ]
    return keras.Sequential([*layers, L.SpectralNormalization(L.Dense(3)), L.GaussianNoise(0.3)])


def with_losses():
    layers = [
        keras.Input((6,)),
        L.Dense(4, activity_regularizer="l2"),
        L.BatchNormalization(renorm=True),
        L.Dropout(0.5),
    ]
    model = keras.Sequential(layers)
    model(np.ones((2, 6)), training=True)
    return model


def interrupted():
    return keras.Sequential([keras.Input((6,)), L.BatchNormalization(), Interrupted(), L.BatchNormalization()])


@pytest.fixture(scope="module")
def zoo(scramble):
    frozen = functional(lambda x: L.BatchNormalization(trainable=False)(L.Dense(2)(x)))
    none = functional(lambda x: L.Dropout(0.5)(L.Dense(2)(x)))
    return {
        "shared": scramble(shared()),
        "mixed": scramble(mixed()),
        "losses": scramble(with_losses()),
        "interrupted": scramble(interrupted()),
        "frozen": frozen,
        "none": none,
    }


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["shared", "mixed", "losses", "interrupted", "frozen", "none"]),
    st.sampled_from(["good", "nan", "empty", "raises", "interrupts", "stops inside"]),
)
def test_whatever_happens_all_is_as_before(zoo, portrait, name, event):
    keras.utils.set_random_seed(3)
    keras.random.normal((1,))
    model = zoo[name]
    given = {
        "good": Trap(None),
        "nan": [np.full((3, 6), np.nan, "float32")],
        "empty": tf.data.Dataset.from_tensor_slices(np.ones((3, 6), "float32")).batch(2).take(0),
        "raises": Trap(RuntimeError("disk")),
        "interrupts": Trap(KeyboardInterrupt()),
        "stops inside": Trap(None),
    }[event]
    before = portrait(model)
    Interrupted.armed, stopped = event == "stops inside", False
    try:
        facts(model, given)
    except (RuntimeError, KeyboardInterrupt, ValueError):
        stopped = True
    finally:
        Interrupted.armed = False
    assert stopped == (event in ("empty", "raises", "interrupts") or (event, name) == ("stops inside", "interrupted"))
    assert portrait(model) == before


def test_a_patch_of_somebody_else_stays(plain, portrait):
    bn = plain.get_layer("bn")
    calls, call = [], bn.call

    def patch(*args, **kwargs):
        calls.append(1)
        return call(*args, **kwargs)

    object.__setattr__(bn, "call", patch)
    try:
        facts(plain, data())
        assert bn.call is patch
        assert len(calls) == 7
    finally:
        object.__delattr__(bn, "call")


def test_a_single_layer():
    bn = L.BatchNormalization(name="bn")
    bn.build((None, 6))
    found = facts(bn, data())
    assert found.layers[0].seen.n == 29
