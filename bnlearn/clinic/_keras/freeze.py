"""Freezing BN layers in Keras so that nothing wakes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Hashable
from functools import cache
from typing import Any, cast

import keras
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

from bnlearn.clinic._keras.layers import require_built, selected
from bnlearn.clinic._repair import Repair

__all__ = ["forget_traces", "freeze", "is_held"]


def is_held(layer: Any) -> bool:
    """Whether :func:`freeze` holds it."""
    return hasattr(type(layer), "_bnlearn_held")


@cache
def _frozen(kind: Any, affine: bool) -> type[Any]:
    """A subclass of ``kind`` that stays in inference mode, and with ``affine`` not trainable.

    It has the name and the module of ``kind``, so that a saved model holds the plain layer and needs nothing from here
    to be loaded.
    """
    own, signature = kind.call, inspect.signature(kind.call)

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.arguments["training"] = False
        return own(*given.args, **given.kwargs)

    space: dict[str, Any] = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    space |= {"call": call, "_bnlearn_held": kind}
    if affine:
        space["trainable"] = property(lambda self: False, lambda self, value: None)
    frozen = type(kind.__name__, (kind,), space)
    if kind in GLOBAL_CUSTOM_NAMES:
        GLOBAL_CUSTOM_NAMES[frozen] = GLOBAL_CUSTOM_NAMES[kind]
    return frozen


def freeze(model: Any, affine: bool = True, *, layers: Collection[str] | None = None) -> Repair:
    """See :func:`bnlearn.freeze`; ``model`` is a ``keras.Model`` or layer.

    The layers stay in inference mode whatever ``trainable`` is set to afterwards, in :meth:`fit` too: what Keras has
    compiled of ``model`` is forgotten, so that it is compiled anew. A model around ``model`` that has been trained must
    be compiled again by hand, and so must one that was trained while frozen, once it no longer is: an optimizer knows
    only the variables that it was built for. A saved or copied model holds plain layers, with ``trainable=False`` if
    ``affine``: freeze what you load.

    Raises
    ------
    ValueError
        If ``model`` is not built, or a name in ``layers`` is not one of its batch norms'.
    """
    require_built(model)
    chosen = selected(model, layers)
    left = {name: "it is frozen already" for name, layer in chosen.items() if is_held(layer)}
    left |= {name: "it has no weights yet: it was never called" for name, x in chosen.items() if not x.built}
    taken = {name: layer for name, layer in chosen.items() if name not in left}
    before = [(layer, type(layer), layer._trainable) for layer in taken.values()]
    flags = [(v, v.trainable) for layer in taken.values() for v in (layer.gamma, layer.beta) if v is not None]

    def undo() -> Any:
        for layer, kind, trainable in before:
            layer.__class__ = kind
            layer._trainable = trainable
        for variable, trainable in flags:
            variable.trainable = trainable
        forget_traces(model)
        return model

    for layer in taken.values():
        if affine:
            layer.trainable = False
        layer.__class__ = _frozen(cast(Hashable, type(layer)), affine)
    forget_traces(model)
    return Repair("frozen", model, tuple(taken), left, undo)


def forget_traces(model: Any) -> None:
    """Let Keras compile its steps anew: what it has compiled knows the layers as they were."""
    if isinstance(model, keras.Model):
        model.train_function = model.test_function = model.predict_function = None
