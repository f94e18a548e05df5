"""The layers of :mod:`bnlearn.layers` as units: they have PyTorch's layout already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnlearn.convert._own import own_fixed, own_kind, own_numbers
from bnlearn.convert._units import BATCH_NORM, Array, Change, State, Unit, number, plain, unsupported
from bnlearn.layers import (
    LSTM,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv2d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    Layer,
    LayerNorm,
    Linear,
    RMSNorm,
)

__all__ = ["units"]


BATCH_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
INSTANCE_NORMS = (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, LayerNorm, RMSNorm, GroupNorm)


def units(model: Layer) -> list[Unit]:
    """Every layer of ``model`` that has state, in order."""
    return [_unit(name, layer) for name, layer in _leaves("", model) if layer.state_dict() or type(layer) in NORMS]


def _leaves(name: str, layer: Layer) -> list[tuple[str, Layer]]:
    children = layer.children()
    itself = [(name or type(layer).__name__, layer)]
    if not children or type(layer) is LSTM:
        return itself
    kept = layer._named(layer.parameter_names + layer.buffer_names)
    inner = [leaf for key, child in children.items() for leaf in _leaves(f"{name}.{key}" if name else key, child)]
    return [*itself, *inner] if kept else inner


def _unit(name: str, layer: Layer) -> Unit:
    fixed: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    remarks: dict[str, Any] = {}
    names = layer.parameter_names + layer.buffer_names
    made: Any = layer
    kind = type(layer)  # exactly: a subclass may compute something else with the same names
    if kind is Linear:
        word, size = "linear", made.weight.shape
    elif kind is Conv2d:
        word, size, remarks = "conv2d", made.weight.shape, {"padding": made.padding}
        fixed = {"stride": made.stride, "dilation": (1, 1), "groups": 1, "padding mode": "zeros"}
    elif kind in BATCH_NORMS:
        word, size, carried = BATCH_NORM, (made.num_features,), {"eps": made.eps, "momentum": made.momentum}
    elif kind in (LayerNorm, RMSNorm):
        word, size = "layer norm" if kind is LayerNorm else "rms norm", made.normalized_shape
        carried = {"eps": float(np.finfo(np.float32).eps) if made.eps is None else made.eps}
    elif kind is GroupNorm:
        word, size, fixed, carried = "group norm", (made.num_channels,), {"groups": made.num_groups}, {"eps": made.eps}
    elif kind in INSTANCE_NORMS and made.running_mean is None:
        word, size, names = "group norm", (made.num_features,), ("weight", "bias")
        fixed, carried = {"groups": made.num_features}, {"eps": made.eps}
    elif kind is LSTM:
        return _lstm(name, made)
    elif (own := own_kind(layer)) is not None:
        word, size, fixed, carried = (
            own,
            next(iter(layer.state_dict().values())).shape,
            own_fixed(made),
            own_numbers(made),
        )
    else:
        return unsupported(name, kind.__name__, "no rule here moves its state")

    def changes(arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> list[Change]:
        return [_array(layer, key, value) for key, value in arrays.items()] + [
            number(layer, key, value) for key, value in numbers.items()
        ]

    arrays = {key: None if getattr(layer, key) is None else plain(getattr(layer, key)) for key in names}
    return Unit(name, kind.__name__, word, size, arrays, fixed, carried, remarks, changes=changes)


def _lstm(name: str, layer: LSTM) -> Unit:
    """As PyTorch's ``name:l0``, whose two biases are one here."""
    own = {"weight_ih": "weight_ih_l0", "weight_hh": "weight_hh_l0", "bias": "bias_l0"}

    def changes(arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> list[Change]:
        one = {key: value.sum(axis=0) if key == "bias" else value for key, value in arrays.items()}
        return [_array(layer, own[key], value) for key, value in one.items()]

    bias = layer.bias_l0
    arrays: State = {key: plain(getattr(layer, own[key])) for key in ("weight_ih", "weight_hh")}
    arrays["bias"] = None if bias is None else plain(np.stack([bias, np.zeros_like(bias)]))
    fixed = {"activation": "tanh", "reverse": False}
    return Unit(f"{name}:l0", "LSTM", "lstm", layer.weight_ih_l0.shape, arrays, fixed, changes=changes)


def _array(layer: Layer, name: str, value: Array) -> Change:
    own: Array = getattr(layer, name)

    def put(new: Array) -> None:
        own[...] = new

    return Change((id(own), name), value.astype(own.dtype), put, own.copy())
