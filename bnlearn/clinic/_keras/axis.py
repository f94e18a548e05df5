"""Where the channels are that arrive at a BN layer, as far as the layers before it tell; nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from bnlearn.clinic._keras.layers import KINDS, graph, nodes

__all__ = ["CONVOLUTIONS", "SHAPELESS", "Channels", "after", "problem", "problems"]

L = keras.layers
CONVOLUTIONS = (
    *(L.Conv1D, L.Conv2D, L.Conv3D, L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose),
    *(L.DepthwiseConv1D, L.DepthwiseConv2D, L.SeparableConv1D, L.SeparableConv2D),
)
SHAPELESS = (
    *(L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.PReLU, L.Identity, L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D),
    *(L.SpatialDropout3D, L.GaussianNoise, L.GaussianDropout, L.AlphaDropout, L.LayerNormalization, *KINDS),
    *(L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum, L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D),
    *(L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D, L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D),
)
"""Layers that leave each axis what it was."""


class Channels(NamedTuple):
    """On which axis a layer put them, and its name."""

    axis: int
    layer: str


def after(layer: Any, ndim: int, given: Sequence[Channels | None]) -> Channels | None:
    """Where the channels are in the output, of ``ndim`` axes, of a layer with these inputs."""
    if isinstance(layer, CONVOLUTIONS):
        return Channels(1 if layer.data_format == "channels_first" else ndim - 1, layer.name)
    if type(layer) is L.Dense:
        return Channels(ndim - 1, layer.name)
    known = [channels for channels in given if channels is not None]
    if isinstance(layer, SHAPELESS) and known and len({channels.axis for channels in known}) == 1:
        return known[0]
    return None


def problem(layer: Any, ndim: int, channels: Channels | None) -> str | None:
    """What is wrong with a BN layer's axis for an input of ``ndim`` axes, or None."""
    if channels is None or layer.axis % ndim == channels.axis:
        return None
    return (
        f"axis={layer.axis} keeps axis {layer.axis % ndim} of {ndim}, and {channels.layer!r} puts its channels on axis "
        f"{channels.axis}"
    )


def problems(model: Any) -> dict[int, str]:
    """The problems that a graph of layers tells without data, by the BN layer's id."""
    found: dict[int, str] = {}
    if graph(model) is not None:
        _follow(graph(model), [None] * len(graph(model).inputs), found)
    return found


def _asked(functional: Any) -> dict[int, Channels]:
    """On which axis a convolution further on reads its channels, by the tensor's id."""
    asked: dict[int, Channels] = {}
    for node in reversed(list(nodes(functional))):
        layer, ndim = node.operation, len(node.outputs[0].shape)
        if isinstance(layer, CONVOLUTIONS):
            axis = 1 if layer.data_format == "channels_first" else ndim - 1
            asked[id(node.input_tensors[0])] = Channels(axis, layer.name)
        elif isinstance(layer, SHAPELESS) and id(node.outputs[0]) in asked:
            asked.update({id(tensor): asked[id(node.outputs[0])] for tensor in node.input_tensors})
    return asked


def _unheard(layer: Any, ndim: int, asked: Channels | None) -> str | None:
    """What is wrong with the axis of a BN layer on images of unknown origin, by what a convolution makes of them."""
    if asked is None or ndim < 4 or layer.axis % ndim == asked.axis:
        return None
    return f"axis={layer.axis} keeps axis {layer.axis % ndim} of {ndim}, and {asked.layer!r} reads axis {asked.axis}"


def _follow(functional: Any, given: list[Channels | None], found: dict[int, str]) -> list[Channels | None]:
    known = dict(zip(map(id, functional.inputs), given, strict=True))
    asked = _asked(functional)
    for node in nodes(functional):
        layer, inputs = node.operation, [known.get(id(tensor)) for tensor in node.input_tensors]
        if graph(layer) is not None and len(inputs) == len(graph(layer).inputs):
            outputs = _follow(graph(layer), inputs, found)
        else:
            outputs = [after(layer, len(tensor.shape), inputs) for tensor in node.outputs]
        known.update(zip(map(id, node.outputs), outputs, strict=False))
        if isinstance(layer, KINDS):
            ndim, output = len(node.outputs[0].shape), id(node.outputs[0])
            wrong = problem(layer, ndim, inputs[0]) if inputs[0] else _unheard(layer, ndim, asked.get(output))
            found.update({} if wrong is None else {id(layer): wrong})
    return [known.get(id(tensor)) for tensor in functional.outputs]
