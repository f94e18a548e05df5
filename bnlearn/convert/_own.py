"""The layers that this package adds, under one name for each in all three libraries."""

from __future__ import annotations

from typing import Any

__all__ = ["ARRAYS", "own_fixed", "own_kind", "own_numbers"]

IN_KERAS = {
    "DecorrelatedBatchNormalization": "DecorrelatedBatchNorm",
    "FilterResponseNormalization": "FilterResponseNorm",
    "FullNormalization": "FullNorm",
    "GhostBatchNormalization": "GhostBatchNorm",
    "IterativeNormalization": "IterNorm",
}
KINDS = {*IN_KERAS.values(), "BatchRenorm", "DynamicTanh", "EvoNormS0", "ExampleWeighing", "ThresholdedLinearUnit"}
ARRAYS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_matrix": "running_matrix",
    "batches_seen": "num_batches_tracked",
    "epsilon": "eps",
}
"""Keras's names of the arrays to PyTorch's; the others are the same."""
FIXED = {"ghost_size": "ghost size", "num_groups": "groups", "groups": "groups", "iterations": "iterations"}


def own_kind(layer: Any) -> str | None:
    """The name of the layer's class in PyTorch, or None if it is not one of ours."""
    kind = type(layer)
    name = IN_KERAS.get(kind.__name__, kind.__name__)
    return name if kind.__module__.startswith("bnlearn.") and name in KINDS else None


def own_fixed(layer: Any) -> dict[str, Any]:
    """What no assignment changes."""
    return {word: getattr(layer, name) for name, word in FIXED.items() if hasattr(layer, name)}


def own_numbers(layer: Any) -> dict[str, Any]:
    """``eps``, where it is not learnt, and ``momentum``, for a layer of PyTorch's conventions."""
    found = {name: getattr(layer, name) for name in ("eps", "momentum") if hasattr(layer, name)}
    return {name: value for name, value in found.items() if value is None or isinstance(value, float)}
