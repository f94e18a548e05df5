"""Names of layers, and listening at them on whichever backend."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from bnlearn.clinic._keras import listen  # noqa: E402
from bnlearn.clinic._keras.layers import batch_norms, every_layer, named_layers  # noqa: E402

L = keras.layers


def test_a_layer_has_one_name_wherever_it_is():
    bn = L.BatchNormalization(name="bn")
    inner = keras.Sequential([keras.Input((3,), name="x"), bn], name="inner")
    x = keras.Input((3,), name="y")
    model = keras.Model(x, bn(inner(x)))
    assert [*named_layers(model)] == ["y", "inner", "inner/x", "inner/bn"] or [*batch_norms(model)] == ["bn"]
    assert len(batch_norms(model)) == 1
    assert len(every_layer(model)) == len({id(layer) for layer in every_layer(model)}) == 5


def test_a_layer_by_itself_and_two_of_one_name():
    bn = L.BatchNormalization(name="bn")
    assert batch_norms(bn) == {"bn": bn}
    model = keras.Model()
    model.one, model.other = bn, L.BatchNormalization(name="bn")
    model.third = L.BatchNormalization(name="bn")
    assert [*batch_norms(model)] == ["bn", "bn#2", "bn#3"]


def test_other_backends(monkeypatch):
    monkeypatch.setattr(listen.keras.backend, "backend", lambda: "jax")
    assert listen.symbolic(type("DynamicJaxprTracer", (), {})())
    assert not listen.symbolic(np.ones(2))
    with listen.run_eagerly():
        assert not tf.config.functions_run_eagerly()


def test_tensorflow_runs_eagerly_for_a_while():
    with listen.run_eagerly():
        assert tf.config.functions_run_eagerly()
    assert not tf.config.functions_run_eagerly()


def test_patches_go_even_if_one_cannot_be_made():
    bn = L.BatchNormalization()
    with pytest.raises(AttributeError), listen.patched({"bn": bn, "no": SimpleNamespace()}, print):
        pass
    assert "call" not in vars(bn)
