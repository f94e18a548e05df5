"""Keras's layers as units: their weights in PyTorch's layout, and back.

A dense kernel is (in, out) in Keras and (out, in) in PyTorch. A convolution's is (*kernel, in / groups, out) against
(out, in / groups, *kernel); a transposed one's (*kernel, out, in) against (in, out, *kernel). No kernel is flipped.
The gates of a GRU come as z, r, h against r, z, n; an LSTM's in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from bnlearn.convert._flatten import Order, flat_orders
from bnlearn.convert._own import ARRAYS, own_fixed, own_kind
from bnlearn.convert._units import BATCH_NORM, Array, Change, Unit, number, plain, unsupported
from bnlearn.keras import InstanceNormalization

__all__ = ["channels_last", "units"]

L = keras.layers
DEPTHWISE = {L.DepthwiseConv1D: "conv1d", L.DepthwiseConv2D: "conv2d"}
CONVOLUTIONS = {L.Conv1D: "conv1d", L.Conv2D: "conv2d", L.Conv3D: "conv3d"}
TRANSPOSED = {
    L.Conv1DTranspose: "transposed conv1d",
    L.Conv2DTranspose: "transposed conv2d",
    L.Conv3DTranspose: "transposed conv3d",
}
SEPARABLE = {L.SeparableConv1D: "conv1d", L.SeparableConv2D: "conv2d"}
RECURRENT = {L.LSTM: "lstm", L.GRU: "gru", L.SimpleRNN: "rnn"}
NORMALISERS = {
    L.BatchNormalization: BATCH_NORM,
    L.LayerNormalization: "layer norm",
    L.RMSNormalization: "rms norm",
    L.GroupNormalization: "group norm",
    InstanceNormalization: "group norm",
}


class Slot(NamedTuple):
    """A variable, its array in PyTorch's layout, and the way back."""

    variable: Any
    read: Callable[[Array], Array] = lambda array: array
    write: Callable[[Array], Array] = lambda array: array


def units(model: Any, flatten: Mapping[str, Sequence[int] | None] | None = None) -> list[Unit]:
    """Every layer of ``model`` that has weights, in the order of ``model.layers``."""
    leaves = list(_leaves("", model, set()))
    orders = flat_orders(model, leaves, flatten or {})
    return [
        unit
        for name, layer in leaves
        for unit in _units(name, layer, orders.inputs.get(id(layer)), orders.outputs.get(id(layer)))
    ]


def _leaves(name: str, layer: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Each layer once that has weights of its own, or no layers inside."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    children = [] if type(layer) in RECURRENT else list(layer._flatten_layers(include_self=False, recursive=False))
    inside = {id(weight) for child in children for weight in child.weights}
    if not children or any(id(weight) not in inside for weight in layer.weights):
        yield name or layer.name, layer
    for child in children:
        yield from _leaves(f"{name}/{child.name}" if name else child.name, child, seen)


def channels_last(model: Any) -> bool:
    """Whether the model's convolutions have their channels last, or, if it has none, whether Keras does."""
    found = [layer.data_format for _, layer in _leaves("", model, set()) if hasattr(layer, "data_format")]
    return bool([*found, keras.config.image_data_format()][0] == "channels_last")


def _units(name: str, layer: Any, order: Order, after: Order) -> Iterator[Unit]:
    kind, word = type(layer), type(layer).__name__
    if not layer.built:
        yield unsupported(name, word, "it is not built; call the model on one example first")
    elif not layer.weights and kind not in NORMALISERS:
        return
    elif getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        yield unsupported(name, word, "it is quantised, or has LoRA weights")
    elif isinstance(order, str):
        yield unsupported(
            name,
            word,
            "its input was flattened in an order that cannot be told from the model; state flatten={"
            f"{name!r}: (C, *spatial)}}, the shape that PyTorch flattens, or None where both flatten alike",
        )
    elif isinstance(after, str):
        yield unsupported(
            name,
            word,
            "its output is made into something of more axes, in an order that cannot be told from the model; state "
            f"flatten={{{name!r}: None}} where both do it alike",
        )
    elif kind is L.Dense:
        weight = _permuted(_permuted(_moved(layer.kernel, (1, 0)), order, -1), after, 0)
        yield _unit(name, layer, "linear", {"weight": weight, "bias": _permuted(Slot(layer.bias), after, 0)})
    elif kind is L.Embedding:
        yield _unit(name, layer, "embedding", {"weight": Slot(layer.embeddings)})
    elif kind in CONVOLUTIONS or kind in TRANSPOSED or kind in DEPTHWISE:
        yield _convolution(name, layer)
    elif kind in SEPARABLE:
        yield from _separable(name, layer)
    elif kind is L.PReLU and max(layer.alpha.shape) == np.prod(layer.alpha.shape):
        shape = tuple(layer.alpha.shape)
        alpha = Slot(layer.alpha, np.ravel, lambda array: array.reshape(shape))
        yield _unit(name, layer, "prelu", {"weight": _permuted(alpha, order, 0)})
    elif kind in RECURRENT:
        yield _recurrent(name, layer)
    elif kind in NORMALISERS:
        yield _normaliser(name, layer, order)
    elif (own := own_kind(layer)) is not None and order is None:
        slots = {ARRAYS.get(weight.name, weight.name): Slot(weight) for weight in layer.weights}
        yield _unit(name, layer, own, slots, fixed=own_fixed(layer))
    else:
        yield unsupported(name, word, f"no rule here moves its {', '.join(weight.name for weight in layer.weights)}")


def _unit(
    name: str,
    layer: Any,
    kind: str,
    slots: Mapping[str, Slot],
    size: tuple[int, ...] = (),
    fixed: Mapping[str, Any] | None = None,
    remarks: Mapping[str, Any] | None = None,
) -> Unit:
    arrays = {key: None if slot.variable is None else slot.read(_values(slot.variable)) for key, slot in slots.items()}
    numbers: dict[str, Any] = {}
    if hasattr(layer, "epsilon") and "eps" not in slots:
        numbers["eps"] = float(layer.epsilon)
    if hasattr(layer, "momentum"):
        numbers["momentum"] = _other(layer.momentum)

    def changes(values: Mapping[str, Array], carried: Mapping[str, Any]) -> list[Change]:
        made = []
        for key, value in values.items():
            variable, _, write = slots[key]
            made.append(Change((id(variable), ""), write(value), variable.assign, _values(variable, exact=True)))
        if "eps" in carried:
            made.append(number(layer, "epsilon", carried["eps"]))
        if "momentum" in carried:
            made.append(number(layer, "momentum", _other(carried["momentum"])))
        return made

    shape = size or next(array.shape for array in arrays.values() if array is not None)
    word, biased = type(layer).__name__, kind == BATCH_NORM
    return Unit(name, word, kind, shape, arrays, fixed or {}, numbers, remarks or {}, biased, changes)


def _other(momentum: float) -> float:
    """The weight of the new batch from that of the old, or back; 1 - 0.99 shall be 0.01."""
    return round(1 - momentum, 12)


def _values(variable: Any, exact: bool = False) -> Array:
    values = np.array(variable.numpy())
    return values if exact else plain(values)


def _moved(variable: Any, axes: Sequence[int]) -> Slot:
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Slot(variable, lambda array: array.transpose(axes), lambda array: array.transpose(back))


def _permuted(slot: Slot, order: Order, axis: int) -> Slot:
    """With the features along ``axis`` in PyTorch's order."""
    if order is None:
        return slot
    back = np.argsort(order)
    return Slot(
        slot.variable,
        lambda array: slot.read(array).take(back, axis),
        lambda array: slot.write(array.take(order, axis)),
    )


def _kernel(variable: Any) -> Slot:
    ndim = len(variable.shape)
    return _moved(variable, (ndim - 1, ndim - 2, *range(ndim - 2)))


def _depthwise(variable: Any) -> Slot:
    """(*kernel, in, multiplier) as a convolution in ``in`` groups: (in * multiplier, 1, *kernel)."""
    *kernel, channels, multiplier = variable.shape
    moved = _moved(variable, (len(kernel), len(kernel) + 1, *range(len(kernel))))
    return Slot(
        variable,
        lambda array: moved.read(array).reshape(channels * multiplier, 1, *kernel),
        lambda array: moved.write(array.reshape(channels, multiplier, *kernel)),
    )


def _geometry(layer: Any, groups: int) -> tuple[dict[str, Any], dict[str, Any]]:
    fixed = {"stride": tuple(layer.strides), "dilation": tuple(layer.dilation_rate), "groups": groups}
    return {**fixed, "padding mode": "zeros"}, {"padding": layer.padding}


def _convolution(name: str, layer: Any) -> Unit:
    if type(layer) in DEPTHWISE:
        kind, weight, groups = DEPTHWISE[type(layer)], _depthwise(layer.kernel), layer.kernel.shape[-2]
    else:
        kind = {**CONVOLUTIONS, **TRANSPOSED}[type(layer)]
        weight, groups = _kernel(layer.kernel), getattr(layer, "groups", 1)
    fixed, remarks = _geometry(layer, groups)
    return _unit(name, layer, kind, {"weight": weight, "bias": Slot(layer.bias)}, fixed=fixed, remarks=remarks)


def _separable(name: str, layer: Any) -> Iterator[Unit]:
    """The two convolutions that it is made of: ``name:depthwise``, then ``name:pointwise`` with the bias."""
    kind, ones = SEPARABLE[type(layer)], (1,) * (len(layer.pointwise_kernel.shape) - 2)
    fixed, remarks = _geometry(layer, layer.depthwise_kernel.shape[-2])
    depthwise = {"weight": _depthwise(layer.depthwise_kernel), "bias": Slot(None)}
    yield _unit(f"{name}:depthwise", layer, kind, depthwise, fixed=fixed, remarks=remarks)
    fixed = {"stride": ones, "dilation": ones, "groups": 1, "padding mode": "zeros"}
    pointwise = {"weight": _kernel(layer.pointwise_kernel), "bias": Slot(layer.bias)}
    yield _unit(f"{name}:pointwise", layer, kind, pointwise, fixed=fixed, remarks={"padding": "valid"})


def _recurrent(name: str, layer: Any) -> Unit:
    kind, cell = RECURRENT[type(layer)], layer.cell
    activation = keras.activations.serialize(cell.activation)
    odd = kind != "rnn" and (activation, keras.activations.serialize(cell.recurrent_activation)) != ("tanh", "sigmoid")
    if odd or (kind == "gru" and not cell.reset_after):
        why = "PyTorch's has tanh and sigmoid, and for a GRU reset_after=True"
        return unsupported(name, type(layer).__name__, why)

    def gates(array: Array) -> Array:
        """Along axis 0, the first two blocks of a GRU change places; its own inverse."""
        if kind != "gru":
            return array
        update, reset, new = np.split(array, 3)
        return np.concatenate([reset, update, new])

    def matrix(variable: Any) -> Slot:
        return Slot(variable, lambda array: gates(array.T), lambda array: gates(array).T)

    bias = Slot(cell.bias)
    if kind == "gru":  # one row for the input, one for the state, as PyTorch has for all three
        bias = Slot(cell.bias, lambda rows: np.stack([*map(gates, rows)]), lambda rows: np.stack([*map(gates, rows)]))
    else:  # PyTorch adds up two
        bias = Slot(cell.bias, lambda row: np.stack([row, np.zeros_like(row)]), lambda rows: rows.sum(axis=0))
    slots = {"weight_ih": matrix(cell.kernel), "weight_hh": matrix(cell.recurrent_kernel), "bias": bias}
    fixed = {"activation": activation, "reverse": layer.go_backwards}
    return _unit(name, layer, kind, slots, fixed=fixed)


def _normaliser(name: str, layer: Any, order: Order) -> Unit:
    kind = NORMALISERS[type(layer)]
    if getattr(layer, "renorm", False):
        return unsupported(name, type(layer).__name__, "renorm=True keeps statistics that PyTorch's has no place for")
    axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) and len(layer.axis) == 1 else layer.axis
    if not isinstance(axis, int):
        return unsupported(name, type(layer).__name__, f"it normalises several axes at once, {axis}")
    gamma, beta = (getattr(layer, key, None) for key in ("gamma", "beta"))
    slots = {"weight": Slot(gamma if kind != "rms norm" else layer.scale), "bias": Slot(beta)}
    if kind == "rms norm":
        del slots["bias"]
    if kind == BATCH_NORM:
        slots |= {"running_mean": Slot(layer.moving_mean), "running_var": Slot(layer.moving_variance)}
    variable = next((slot.variable for slot in slots.values() if slot.variable is not None), None)
    if variable is None:
        return unsupported(name, type(layer).__name__, "it has no weights, so nothing tells how many channels it has")
    channels = variable.shape[0]
    fixed = {}
    if kind == "group norm":
        fixed = {"groups": getattr(layer, "groups", channels)}
    slots = {key: _permuted(slot, order, 0) for key, slot in slots.items()}
    return _unit(name, layer, kind, slots, (channels,), fixed)
