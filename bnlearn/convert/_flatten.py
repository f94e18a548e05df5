"""In which order a Keras model's features leave a Flatten: a dense layer after it depends on that.

PyTorch flattens (C, H, W), Keras (H, W, C), so that the same image gives the same numbers in another order, and the
inputs of the next dense layer have to be permuted. Where the model is a graph (Sequential or functional), the order is
followed through it; where it is not, or where it cannot be told, the layer is marked, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from bnlearn.convert._units import Array

__all__ = ["UNCLEAR", "Order", "flat_orders", "images_order"]

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


def flat_orders(model: Any, leaves: Sequence[tuple[str, Any]], stated: Mapping[str, Any]) -> dict[int, Order]:
    """The order of each layer's input features, by the layer's id; absent where they have but one axis or agree.

    ``stated`` gives it by the name of the layer: the shape (C, *spatial) that PyTorch flattens, or None.
    """
    orders: dict[int, Order] = {}
    reached: set[int] = set()
    if _graph(model) is not None:
        _follow(model, None, orders, reached)
    _guess_nothing([layer for _, layer in leaves if id(layer) not in reached], orders)
    by_name = dict(leaves)
    for name, shape in stated.items():
        if name not in by_name:
            raise ValueError(f"expected flatten to name layers of the Keras model, got {name!r}; it has {[*by_name]}")
        orders[id(by_name[name])] = None if shape is None else images_order(shape)
    return orders


def _graph(model: Any) -> Any:
    """The functional model behind ``model``, or None."""
    functional = getattr(model, "_functional", model)  # a Sequential has one inside
    return functional if hasattr(functional, "_nodes_by_depth") else None


def _follow(model: Any, given: list[Any] | None, orders: dict[int, Order], reached: set[int]) -> list[Any]:
    """What each output of ``model`` is, from what its inputs are; fills ``orders`` on the way."""
    graph = _graph(model)
    known: dict[int, Any] = {}
    last = keras.config.image_data_format() == "channels_last"
    for index, tensor in enumerate(graph.inputs):
        images = (LAST if last else FIRST) if len(tensor.shape) > 3 else UNCLEAR
        known[id(tensor)] = given[index] if given else (images if len(tensor.shape) > 2 else None)
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.is_input:
                continue
            operation = node.operation
            inputs = [known.get(id(tensor), UNCLEAR) for tensor in node.input_tensors]
            reached.add(id(operation))
            if _graph(operation) is not None:
                found = _follow(operation, inputs, orders, reached)
            else:
                found = [_after(operation, inputs, node.input_tensors, out) for out in node.output_tensors]
                _note(orders, operation, inputs[0] if len(node.input_tensors[0].shape) == 2 else None)
            known.update({id(out): state for out, state in zip(node.output_tensors, found, strict=True)})
    return [known[id(tensor)] for tensor in graph.outputs]


def _note(orders: dict[int, Order], layer: Any, order: Order) -> None:
    """Write down the order of a layer's input; a layer that is used twice, with two orders, has none."""
    before = orders.get(id(layer), order)
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
            return _unfolded(out.shape, inputs[0])
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


def _unfolded(shape: Sequence[int | None], before: Any) -> Any:
    """Features made into images: only where each has one position does the order not matter."""
    lengths = shape[1:]
    return LAST if before is None and lengths.count(1) >= len(lengths) - 1 else UNCLEAR


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


def _guess_nothing(layers: Sequence[Any], orders: dict[int, Order]) -> None:
    """Outside a graph: what comes after a Flatten, or is wider than the convolution before it, is unclear."""
    width, flattened = None, False
    for layer in layers:
        if isinstance(layer, (L.Flatten, L.Reshape)):
            flattened = True
        elif layer.built and hasattr(layer, "kernel_size"):
            multiplier = getattr(layer, "depth_multiplier", 0)
            width = getattr(layer, "filters", None) or layer.kernel.shape[-2] * multiplier
            flattened = False
        elif layer.built and layer.weights and isinstance(layer, (L.Dense, *ELEMENTWISE)):
            dense = isinstance(layer, L.Dense)
            features = layer.weights[0].shape[0 if dense else -1]
            if (flattened or width is not None) and features != width:
                orders[id(layer)] = UNCLEAR
            if dense:
                width, flattened = None, False
