"""In which order a Keras model's features leave a Flatten: a dense layer after it depends on that.

PyTorch flattens (C, H, W), Keras (H, W, C), so that the same image gives the same numbers in another order, and the
inputs of the next dense layer have to be permuted. Where the model is a graph (Sequential or functional), the order is
followed through it; where it is not, or where it cannot be told, the layer is marked, and nothing is guessed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from bnlearn.convert._units import Array

__all__ = ["UNCLEAR", "Order", "Orders", "flat_orders", "images_order"]

Order: TypeAlias = Any
"""A permutation p (Keras's feature k is PyTorch's p[k]), None where the orders agree, or :data:`UNCLEAR`."""

UNCLEAR = "unclear"
LAST, FIRST, SAME = "channels last", "channels first", "the same in both"
# What a tensor of three axes or more is: one of these three, or UNCLEAR.

L = keras.layers
ELEMENTWISE = (
    *(L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.PReLU, L.Softmax, L.Identity, L.Rescaling, L.ActivityRegularization),
    *(L.Dropout, L.GaussianNoise, L.GaussianDropout, L.AlphaDropout, L.BatchNormalization, L.LayerNormalization),
    *(L.RMSNormalization, L.UnitNormalization),
)
MERGES = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
SEQUENCES = (L.Embedding, L.RNN, L.Bidirectional, L.MultiHeadAttention)
MOVES_AXES = {"Permute", "Transpose", "Reshape", "Moveaxis", "Swapaxes", "Einsum", "RepeatVector"}


def images_order(shape: Sequence[int], layout: str = LAST, *, moved: bool = False) -> Order:
    """The order for features that PyTorch flattens from ``shape``, (C, *spatial), and Keras from ``layout``.

    ``moved`` stands for ``Flatten(data_format="channels_first")``, which takes axis 1 to the end before it flattens.
    """
    index = np.arange(int(np.prod(shape))).reshape(tuple(shape))
    if layout == LAST:
        index = np.moveaxis(index, 0, -1)
    if moved:
        index = np.moveaxis(index, 0, -1)
    order = index.ravel()
    return None if np.array_equal(order, np.arange(order.size)) else order


class Orders:
    """What is known of the features of each layer, by the layer's id.

    Attributes
    ----------
    inputs : dict
        The order of its input features; absent where they have but one axis.
    outputs : dict
        The order of its output features, where these are made into images.
    """

    def __init__(self) -> None:
        self.inputs: dict[int, Order] = {}
        self.outputs: dict[int, Order] = {}
        self.reached: set[int] = set()
        self.makers: dict[int, list[Any]] = {}  # by tensor: the dense layer behind it, and what came after
        self.uses: Counter[int] = Counter()


def flat_orders(model: Any, leaves: Sequence[tuple[str, Any]], stated: Mapping[str, Any]) -> Orders:
    """The orders of all layers' features.

    ``stated`` gives them by the name of a layer: the shape (C, *spatial) that PyTorch flattens, or None.
    """
    orders = Orders()
    if _graph(model) is not None:
        _follow(model, None, orders)
    _guess_nothing([layer for _, layer in leaves if id(layer) not in orders.reached], orders)
    by_name = dict(leaves)
    for name, shape in stated.items():
        if name not in by_name:
            raise ValueError(f"expected flatten to name layers of the Keras model, got {name!r}; it has {[*by_name]}")
        layer = by_name[name]
        width = layer.weights[0].shape[0 if isinstance(layer, L.Dense) else -1]
        if shape is not None and math.prod(shape) != width:
            raise ValueError(
                f"expected flatten[{name!r}] to be the shape (C, *spatial) that PyTorch flattens, got {tuple(shape)}, "
                f"which has {math.prod(shape)} elements; the layer has {width} features"
            )
        orders.inputs[id(layer)] = None if shape is None else images_order(shape)
        orders.outputs.pop(id(layer), None)
    return orders


def _graph(model: Any) -> Any:
    """The functional model behind ``model``, or None."""
    functional = getattr(model, "_functional", model)  # a Sequential has one inside
    return functional if hasattr(functional, "_nodes_by_depth") else None


def _follow(model: Any, given: list[Any] | None, orders: Orders) -> list[Any]:
    """What each output of ``model`` is, from what its inputs are; fills ``orders`` on the way."""
    graph = _graph(model)
    known: dict[int, Any] = {}
    last = keras.config.image_data_format() == "channels_last"
    for index, tensor in enumerate(graph.inputs):
        images = (LAST if last else FIRST) if len(tensor.shape) > 3 else UNCLEAR
        known[id(tensor)] = given[index] if given else (images if len(tensor.shape) > 2 else None)
    nodes = [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]]
    nodes = [node for node in nodes if not node.is_input]
    orders.uses.update(id(tensor) for node in nodes for tensor in node.input_tensors)
    for node in nodes:
        layer, tensors = node.operation, node.input_tensors
        states = [known.get(id(tensor), UNCLEAR) for tensor in tensors]
        orders.reached.add(id(layer))
        inner = _graph(layer)
        if inner is not None:
            for outside, inside in zip(tensors, inner.inputs, strict=True):
                orders.makers[id(inside)] = orders.makers.get(id(outside), [])
            found = _follow(layer, states, orders)
            for outside, inside in zip(node.output_tensors, inner.outputs, strict=True):
                orders.makers[id(outside)] = orders.makers.get(id(inside), [])
        else:
            found = [_after(layer, states, tensors, out) for out in node.output_tensors]
            _note(orders.inputs, layer, states[0] if len(tensors[0].shape) == 2 else None)
            if isinstance(layer, L.Dense):
                orders.makers[id(node.output_tensors[0])] = [layer]
            elif isinstance(layer, ELEMENTWISE):
                orders.makers[id(node.output_tensors[0])] = [*orders.makers.get(id(tensors[0]), []), layer]
            if len(tensors[0].shape) == 2 and len(node.output_tensors[0].shape) > 2 and isinstance(layer, L.Reshape):
                _unfold(orders, tensors[0], node.output_tensors[0].shape[1:], states[0])
        known.update({id(out): state for out, state in zip(node.output_tensors, found, strict=True)})
    return [known[id(tensor)] for tensor in graph.outputs]


def _unfold(orders: Orders, tensor: Any, shape: Sequence[int], before: Order) -> None:
    """Features become images: a dense layer's output channels must be in the order that this makes of them."""
    if shape.count(1) >= len(shape) - 1:
        return
    makers = orders.makers.get(id(tensor), [])
    clear = len(shape) > 2 and before is None and orders.uses[id(tensor)] == 1
    order = images_order((shape[-1], *shape[:-1])) if clear else UNCLEAR
    for layer in makers:
        _note(orders.outputs if isinstance(layer, L.Dense) else orders.inputs, layer, order, over=True)


def _note(orders: dict[int, Order], layer: Any, order: Order, over: bool = False) -> None:
    """Write down the order of a layer's features; a layer that is used twice, with two orders, has none."""
    before = order if over else orders.get(id(layer), order)
    orders[id(layer)] = order if _same(before, order) else UNCLEAR


def _same(one: Order, other: Order) -> bool:
    return one is other or (not isinstance(one, str) and not isinstance(other, str) and np.array_equal(one, other))


def _after(layer: Any, inputs: list[Any], tensors: Sequence[Any], out: Any) -> Any:
    """What the output of ``layer`` is: a layout if it has three axes or more, else an order."""
    ranks = [len(tensor.shape) for tensor in tensors]
    rank = len(out.shape)
    if rank > 2:
        if isinstance(layer, SEQUENCES):
            return SAME
        if hasattr(layer, "data_format"):
            return LAST if layer.data_format == "channels_last" else FIRST
        if rank != ranks[0]:
            return LAST if isinstance(layer, L.Reshape) and rank > 3 else UNCLEAR
        if type(layer).__name__ in MOVES_AXES:
            return UNCLEAR
        return inputs[0] if all(_same(state, inputs[0]) for state in inputs) else UNCLEAR
    if ranks[0] > 2:
        if isinstance(layer, (L.Flatten, L.Reshape)):
            return _flattened(layer, inputs[0], tensors[0].shape[1:])
        pooled = type(layer).__name__.startswith("Global") or isinstance(layer, SEQUENCES)
        return None if pooled else UNCLEAR
    if isinstance(layer, L.Dense) or all(state is None for state in inputs):
        return None
    if isinstance(layer, (*ELEMENTWISE, L.Flatten)):
        return inputs[0]
    if isinstance(layer, MERGES) and all(_same(state, inputs[0]) for state in inputs):
        return inputs[0]
    if isinstance(layer, L.Concatenate) and not any(isinstance(state, str) for state in inputs):
        return _joined(inputs, [tensor.shape[1] for tensor in tensors])
    return UNCLEAR


def _flattened(layer: Any, layout: str, shape: Sequence[int | None]) -> Order:
    if None in shape or sum(length != 1 for length in shape) <= 1 or layout == SAME:
        return None
    if layout == UNCLEAR:
        return UNCLEAR
    moved = getattr(layer, "data_format", "channels_last") == "channels_first"
    first = (shape[-1], *shape[:-1]) if layout == LAST else shape
    return images_order([int(length or 0) for length in first], layout, moved=moved)


def _joined(inputs: Sequence[Order], widths: Sequence[int]) -> Array:
    starts = np.cumsum([0, *widths[:-1]])
    parts = [np.arange(n) if order is None else order for order, n in zip(inputs, widths, strict=True)]
    return np.concatenate([start + part for start, part in zip(starts, parts, strict=True)])


def _guess_nothing(layers: Sequence[Any], orders: Orders) -> None:
    """Outside a graph: what comes after a Flatten, or is wider than the convolution before it, is unclear."""
    width, flattened = None, False
    dense: Any = None
    for layer in layers:
        if isinstance(layer, L.Reshape) and len(layer.target_shape) > 1:
            if dense is not None:
                orders.outputs[id(dense)] = UNCLEAR
        elif isinstance(layer, (L.Flatten, L.Reshape)):
            flattened = True
        elif layer.built and hasattr(layer, "kernel_size"):
            multiplier = getattr(layer, "depth_multiplier", 0)
            width = getattr(layer, "filters", None) or layer.kernel.shape[-2] * multiplier
            flattened = False
        elif layer.built and layer.weights and isinstance(layer, (L.Dense, *ELEMENTWISE)):
            features = layer.weights[0].shape[0 if isinstance(layer, L.Dense) else -1]
            if (flattened or width is not None) and features != width:
                orders.inputs[id(layer)] = UNCLEAR
            if isinstance(layer, L.Dense):
                width, flattened, dense = None, False, layer
