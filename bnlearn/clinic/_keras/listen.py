"""Listening at layers while the model is run eagerly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np

from bnlearn.clinic._keras.outputs import array
from bnlearn.clinic._observe import Observer

__all__ = ["Arrival", "listening", "patched", "run_eagerly", "symbolic", "tell"]

Around = Callable[[str, Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What a patched layer does instead of ``call``: name, layer, its own ``call``, and the arguments."""


class Arrival(NamedTuple):
    """One call of a BN layer.

    Attributes
    ----------
    name : str
    layer : keras.layers.Layer
    x : tensor
        As it arrived, with its channels where the layer has them.
    training : bool
        The mode that arrived.
    mask : tensor or None
        Keras's own, which arrived with it.
    """

    name: str
    layer: Any
    x: Any
    training: bool
    mask: Any


@contextmanager
def patched(layers: Mapping[str, Any], around: Around) -> Iterator[None]:
    """Let ``around`` stand for ``call`` of these layers; at the end all are as before, whatever happens."""
    own = [(layer, "call" in vars(layer), vars(layer).get("call")) for layer in layers.values()]
    try:
        for name, layer in layers.items():
            # Past Keras's own __setattr__, which would keep track of it.
            object.__setattr__(layer, "call", _wrapped(name, layer, layer.call, around))
        yield
    finally:
        for layer, had, call in own:
            vars(layer).pop("call", None)
            if had:
                object.__setattr__(layer, "call", call)


def _wrapped(name: str, layer: Any, call: Callable[..., Any], around: Around) -> Callable[..., Any]:
    @functools.wraps(call)
    def heard(*args: Any, **kwargs: Any) -> Any:
        return around(name, layer, call, args, kwargs)

    return heard


@contextmanager
def listening(layers: Mapping[str, Any], hear: Callable[[Arrival], None]) -> Iterator[None]:
    """Call ``hear`` with what arrives at the BN layers, before they see it."""
    signatures = {name: inspect.signature(layer.call) for name, layer in layers.items()}

    def around(name: str, layer: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        given = signatures[name].bind(*args, **kwargs).arguments
        x = next(iter(given.values()))
        hear(Arrival(name, layer, x, bool(given.get("training")), given.get("mask")))
        return call(*args, **kwargs)

    with patched(layers, around):
        yield


def symbolic(x: Any) -> bool:
    """Whether ``x`` has no values yet, because a function is being traced."""
    if keras.backend.backend() != "tensorflow":
        return type(x).__name__.endswith("Tracer")
    return not hasattr(x, "numpy")


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run what a user's model has compiled with ``tf.function`` eagerly too, for a while."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def tell(observer: Observer, arrival: Arrival, samples: int, mask: Any = None, source: str | None = None) -> None:
    """Let an observer see what arrived. What Keras's own mask leaves out does not count, as in the layer."""
    x = np.moveaxis(array(arrival.x), arrival.layer.axis, 1)
    if arrival.mask is not None:
        counts = array(arrival.mask).astype(bool)
        # One row of what counts: these are no samples any more. Is all of it real?
        x = np.moveaxis(x, 1, -1)[counts].T[None]
        mask = mask[counts][None] if mask is not None and mask.shape == counts.shape else None
    observer.see(x, samples=samples, mask=mask, source=source)
