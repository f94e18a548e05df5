"""The layers of :mod:`bnlearn.layers` as units: they have PyTorch's layout already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnlearn.convert._units import BATCH_NORM, Array, Change, Unit, number, plain, unsupported
from bnlearn.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, Conv2d, Layer, Linear

__all__ = ["units"]


def units(model: Layer) -> list[Unit]:
    """Every layer of ``model`` that has state, in order."""
    return [_unit(name, layer) for name, layer in _leaves("", model) if layer.state_dict()]


def _leaves(name: str, layer: Layer) -> list[tuple[str, Layer]]:
    children = layer.children()
    if not children:
        return [(name or type(layer).__name__, layer)]
    return [leaf for key, child in children.items() for leaf in _leaves(f"{name}.{key}" if name else key, child)]


def _unit(name: str, layer: Layer) -> Unit:
    fixed: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    remarks: dict[str, Any] = {}
    if isinstance(layer, Linear):
        kind, size = "linear", layer.weight.shape
    elif isinstance(layer, Conv2d):
        kind, size, remarks = "conv2d", layer.weight.shape, {"padding": layer.padding}
        fixed = {"stride": layer.stride, "dilation": (1, 1), "groups": 1, "padding mode": "zeros"}
    elif isinstance(layer, (BatchNorm1d, BatchNorm2d, BatchNorm3d)):
        kind, size, carried = BATCH_NORM, (layer.num_features,), {"eps": layer.eps, "momentum": layer.momentum}
    else:
        return unsupported(name, type(layer).__name__, "no rule here moves its state")

    def changes(arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> list[Change]:
        return [_array(layer, key, value) for key, value in arrays.items()] + [
            number(layer, key, value) for key, value in numbers.items()
        ]

    arrays = {
        key: None if getattr(layer, key) is None else plain(getattr(layer, key))
        for key in layer.parameter_names + layer.buffer_names
    }
    return Unit(name, type(layer).__name__, kind, size, arrays, fixed, carried, remarks, changes=changes)


def _array(layer: Layer, name: str, value: Array) -> Change:
    own: Array = getattr(layer, name)

    def put(new: Array) -> None:
        own[...] = new

    return Change((id(own), name), value.astype(own.dtype), put, own.copy())
