"""Which layers a Keras model has, by which names, and who calls whom where that is written down."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

import keras
from keras.src.models import Functional

from bnlearn.clinic._named import named
from bnlearn.keras._base import StatisticsNormalization

__all__ = [
    "KINDS",
    "batch_norms",
    "every_layer",
    "graph",
    "named_layers",
    "nodes",
    "own_kind",
    "require_built",
    "selected",
]

KINDS = (keras.layers.BatchNormalization, StatisticsNormalization)
"""What counts as batch normalisation: Keras's own layer, and those here that keep the same moving statistics."""

BACKENDS = ("tensorflow", "jax", "torch")


def named_layers(model: Any) -> dict[str, Any]:
    """Every layer inside ``model`` once, by its path: the names of the layers that it is in, and its own."""
    found: dict[str, Any] = {}
    _name(model, "", found, {id(model)})
    return found


def _name(parent: Any, prefix: str, found: dict[str, Any], seen: set[int]) -> None:
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        name, count = f"{prefix}{layer.name}", 1
        while name in found:  # only a graph makes sure that names differ
            count += 1
            name = f"{prefix}{layer.name}#{count}"
        found[name] = layer
        _name(layer, f"{name}/", found, seen)


def every_layer(model: Any) -> list[Any]:
    """The model itself, and every layer inside."""
    return [model, *named_layers(model).values()]


def batch_norms(model: Any) -> dict[str, Any]:
    """The BN layers by name, in the order of registration; the model itself may be one."""
    if isinstance(model, KINDS):
        return {model.name: model}
    return {name: layer for name, layer in named_layers(model).items() if isinstance(layer, KINDS)}


def selected(model: Any, layers: Collection[str] | None) -> dict[str, Any]:
    """The BN layers of these names, or all.

    Raises
    ------
    ValueError
        If a name is of no BN layer.
    """
    return named(batch_norms(model), layers)


def require_built(model: Any) -> None:
    """Refuse what cannot be run yet, and a backend on which nothing is run layer by layer.

    Raises
    ------
    ValueError
        If the model, or a layer that holds all others, has no weights yet.
    RuntimeError
        If Keras runs on another backend than TensorFlow, JAX or PyTorch.
    """
    if keras.backend.backend() not in BACKENDS:
        raise RuntimeError(
            f"expected Keras on one of the backends {', '.join(BACKENDS)}, got {keras.backend.backend()}; "
            "set KERAS_BACKEND before keras is imported"
        )
    if not model.built:
        raise ValueError(
            f"expected a built model, got {type(model).__name__} {model.name!r} without weights; "
            "run one batch through it first"
        )


def graph(model: Any) -> Any:
    """The functional model behind ``model`` (a Sequential has one inside), or None where ``call`` is somebody's own."""
    if getattr(type(model), "call", None) not in (Functional.call, keras.Sequential.call):
        return None
    return getattr(model, "_functional", model)


def nodes(functional: Any) -> Iterator[Any]:
    """The calls of a functional model, in an order in which they can be made, without its inputs."""
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def own_kind(layer: Any) -> type[Any]:
    """The layer's class, or the one that it had before it was frozen."""
    found: type[Any] = getattr(type(layer), "_bnlearn_held", type(layer))
    return found


def told_inference(model: Any) -> set[int]:
    """The ids of the BN layers that a graph calls with ``training=False``, themselves or what they are in."""
    found: set[int] = set()
    for layer in every_layer(model):
        for node in nodes(graph(layer)) if graph(layer) is not None else ():
            if _explicit(node):
                found |= {id(bn) for bn in batch_norms(node.operation).values()}
    return found


def _explicit(node: Any) -> bool:
    """Whether somebody wrote ``training=False``: where the layer's own default is None, Keras does not."""
    layer = node.operation
    if not isinstance(layer, keras.Layer) or node.arguments.kwargs.get("training") is not False:
        return False
    parameter = inspect.signature(layer.call).parameters.get("training")
    return parameter is not None and parameter.default is None
