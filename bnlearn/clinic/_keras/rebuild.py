"""A graph of layers built again with some of them changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

from bnlearn.clinic._keras.layers import graph
from bnlearn.clinic._keras.state import same_randomness

__all__ = ["rebuild", "require_graph"]


def require_graph(model: Any, what: str) -> None:
    """Refuse a model whose ``call`` is somebody's own.

    Raises
    ------
    TypeError
        If ``model`` is neither a functional nor a Sequential model.
    """
    if graph(model) is None:
        raise TypeError(
            f"expected a functional or Sequential model, got {type(model).__name__}, whose call is its own: which "
            f"layer feeds which is not written down there, and it cannot be {what}"
        )


def rebuild(model: Any, change: Callable[[Any], Any]) -> tuple[Any, dict[int, Any]]:
    """A copy of ``model`` that shares nothing with it.

    Parameters
    ----------
    model : keras.Model
        Functional or Sequential, built; those in it are built again too.
    change : callable
        Given a layer, it returns a new one to stand for it, not built; None for a copy; or False to leave it out, so
        that its first input goes on in its place.

    Returns
    -------
    model : keras.Model
        Not compiled.
    made : dict of int to keras.Layer
        The new layers by the old ones' id, those left out excepted.
    """
    builder = _Builder(change)
    with same_randomness():
        new = builder.model(model)
        for old, copy in builder.copies:
            _copy_variables(old, copy)
    return new, builder.made


class _Builder:
    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change
        self.made: dict[int, Any] = {}
        self.skipped: set[int] = set()  # by the old ones' id
        self.changed: set[int] = set()  # by the new ones' id
        self.copies: list[tuple[Any, Any]] = []

    def model(self, model: Any) -> Any:
        if isinstance(model, keras.Sequential):
            new = self._sequential(model)
        else:
            inputs = keras.tree.map_structure(_input, model.input)
            calls = {"clone_function": self._layer, "call_function": self._call}
            new = keras.models.clone_model(model, input_tensors=inputs, **calls)
        new._trainable = model._trainable  # the layers have theirs already
        return new

    def _sequential(self, model: Any) -> Any:
        layers = [self._layer(layer) for layer in model.layers]
        kept = [layer for layer in layers if id(layer) not in self.skipped]
        return keras.Sequential([_input(model.inputs[0]), *(kept or [keras.layers.Identity()])], name=model.name)

    def _layer(self, layer: Any) -> Any:
        """What stands for a layer, which may be called several times."""
        if id(layer) not in self.made:
            changed = self.change(layer) if isinstance(layer, keras.Layer) else None
            if changed is False:
                self.skipped.add(id(layer))
                return layer
            if changed is None:
                self.made[id(layer)] = self._copy(layer)
            else:
                self.made[id(layer)] = changed
                self.changed.add(id(changed))
        return self.made[id(layer)]

    def _copy(self, layer: Any) -> Any:
        if graph(layer) is not None:
            return self.model(layer)
        try:
            copy = type(layer).from_config(layer.get_config())
        except Exception as error:
            raise TypeError(
                f"expected layers that can be made again from their configuration, got {type(layer).__name__} "
                f"{layer.name!r}, which cannot: {error}"
            ) from error
        if isinstance(layer, keras.Layer):
            self.copies.append((layer, copy))
        return copy

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if id(layer) in self.skipped:
            return args[0]
        if id(layer) in self.changed:  # the old layer's call may take more
            takes = inspect.signature(layer.call).parameters
            kwargs = {name: value for name, value in kwargs.items() if name in takes}
        return layer(*args, **kwargs)


def _input(tensor: Any) -> Any:
    layer = tensor._keras_history.operation
    return type(layer).from_config(layer.get_config()).output


def _copy_variables(old: Any, new: Any) -> None:
    for mine, theirs in zip(old.variables, new.variables, strict=True):
        theirs.assign(mine.value)
        if theirs.trainable != mine.trainable:
            theirs.trainable = mine.trainable
