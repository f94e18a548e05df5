"""Another normaliser in the place of BN, in Keras."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np

import bnlearn.keras as own
from bnlearn.clinic._keras.freeze import is_held
from bnlearn.clinic._keras.layers import batch_norms, graph, nodes, require_built, selected
from bnlearn.clinic._keras.outputs import array
from bnlearn.clinic._keras.rebuild import rebuild, require_graph
from bnlearn.clinic._repair import Repair

__all__ = ["NORMALISERS", "replace"]

Made = Callable[..., Any]
L = keras.layers
ARGUMENTS = (
    *("name", "dtype", "axis", "epsilon", "center", "scale"),
    *("beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint"),
)


def _common(bn: Any) -> dict[str, Any]:
    """The arguments that every normaliser here takes."""
    config = bn.get_config()
    return {**{key: config[key] for key in ARGUMENTS}, "trainable": bn._trainable}


def _grouped(bn: Any, groups: int) -> Any:
    return L.GroupNormalization(groups, **_common(bn))


def _group(bn: Any, *, groups: int | None = None) -> Any:
    if groups is not None and groups < 1:
        raise ValueError(f"expected groups >= 1, got {groups}")
    channels = int(bn.moving_mean.shape[0])
    # Wu and He's 32, but of eight channels or more: where a channel has one value, as after a dense layer, a group of
    # one channel is one value, of which beta is all that is left.
    most = min(32, max(channels // 8, 1)) if groups is None else min(groups, channels)
    fitting = next(number for number in range(most, 0, -1) if channels % number == 0)
    return _grouped(bn, fitting)


def _layer(bn: Any) -> Any:
    return _grouped(bn, 1)


def _instance(bn: Any) -> Any:
    return _grouped(bn, -1)


def _renorm(bn: Any, **settings: Any) -> Any:
    return L.BatchNormalization(momentum=bn.momentum, renorm=True, **_common(bn), **settings)


def _ghost(bn: Any, *, ghost_size: int) -> Any:
    return own.GhostBatchNormalization(ghost_size=ghost_size, momentum=bn.momentum, **_common(bn))


def _sync(bn: Any) -> Any:
    return L.BatchNormalization(momentum=bn.momentum, synchronized=True, **_common(bn))


def _example_weighing(bn: Any, *, example_weight: float) -> Any:
    return own.ExampleWeighing(example_weight=example_weight, momentum=bn.momentum, **_common(bn))


def _filter_response(bn: Any, **settings: Any) -> Any:
    common = _common(bn)
    del common["epsilon"]  # another quantity's
    return own.FilterResponseNormalization(**common, **settings)


NORMALISERS: Mapping[str, Made] = {
    "group": _group,
    "layer": _layer,
    "instance": _instance,
    "renorm": _renorm,
    "ghost": _ghost,
    "sync": _sync,
    "example_weighing": _example_weighing,
    "filter_response": _filter_response,
}

HEED_MASKS = ("renorm", "sync")
"""Those that leave out of their statistics what a mask leaves out."""


def replace(
    model: Any,
    to: str | Callable[[Any], Any],
    *,
    layers: Collection[str] | None = None,
    **settings: Any,
) -> Repair:
    """See :func:`bnlearn.replace`.

    A functional or Sequential model is built again, with those inside it: ``Repair.model`` is new, not compiled, and
    has copies of all weights; the given model is untouched, and ``undo`` returns it. Layers keep their names.

    Raises
    ------
    TypeError
        If ``model`` is of another kind, a layer in it cannot be made again from its configuration, or the normaliser
        does not take ``settings``.
    ValueError
        If ``model`` is not built, there is no such normaliser, a setting has no valid value, or a name in ``layers`` is
        not that of a BN layer.
    """
    require_built(model)
    require_graph(model, "built again with other layers")
    make = _maker(to)
    norms = selected(model, layers)
    reached = _reached(graph(model), {})
    left = {name: why for name, bn in norms.items() if (why := _obstacle(bn, reached, to))}
    taken = {id(bn): bn for name, bn in norms.items() if name not in left}

    def change(layer: Any) -> Any:
        if id(layer) not in taken:
            return None
        try:
            return make(layer, **settings)
        except TypeError as error:
            raise TypeError(f"expected the settings that {to!r} takes, got {settings}: {error}") from error

    new, made = rebuild(model, change)
    for key, bn in taken.items():
        _carry(bn, made[key])
    names = tuple(name for name in batch_norms(model) if name in norms and name not in left)
    return Repair(f"replaced by {to if isinstance(to, str) else 'yours'}", new, names, left, lambda: model)


def _maker(to: str | Callable[[Any], Any]) -> Made:
    if callable(to):
        return to
    if to not in NORMALISERS:
        known = ", ".join(NORMALISERS)
        raise ValueError(f"expected a normaliser among {known}, or a function from the old layer to a new, got {to!r}")
    return NORMALISERS[to]


def _reached(functional: Any, found: dict[int, bool]) -> dict[int, bool]:
    """The layers that are called in a graph, and in those inside it; and whether a mask goes with the input."""
    for node in nodes(functional):
        masked = node.arguments.kwargs.get("mask") is not None
        if id(node.operation) not in found and graph(node.operation) is not None:
            _reached(graph(node.operation), found)
        found[id(node.operation)] = masked or found.get(id(node.operation), False)
    return found


def _obstacle(bn: Any, reached: dict[int, bool], to: Any) -> str:
    if is_held(bn):
        return "it is frozen: undo that first"
    if type(bn).call is not L.BatchNormalization.call:
        return f"{type(bn).__name__} has a call of its own, which may do more than batch norm"
    if id(bn) not in reached:
        return "no graph of layers calls it"
    if reached[id(bn)] and isinstance(to, str) and to not in HEED_MASKS:
        return "a mask reaches it, which the new layer would not heed"
    return ""


def _carry(bn: Any, new: Any) -> None:
    """Give a new layer what the old one has and the new one has room for."""
    for variable in new.variables:
        old = next((v for v in bn.variables if v.name == variable.name and v.shape == variable.shape), None)
        if old is not None:
            variable.assign(old.value)
            variable.trainable = old.trainable
    if getattr(new, "renorm", False) and not bn.renorm:
        std = np.sqrt(array(bn.moving_variance).astype(np.float64) + bn.epsilon)  # as Keras keeps it
        new.renorm_mean.assign(bn.moving_mean.value)
        new.renorm_stddev.assign(std)
        new.moving_stddev.assign(std)
