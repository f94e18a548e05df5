r"""A small neural network in NumPy, with PyTorch's names and semantics: layers that own state and call the formulas.

Every layer maps ``x`` to ``y = layer(x)``, and then the gradient of a loss with respect to ``y`` to the one with
respect to ``x``: ``dx = layer.backward(dy)``. There is no automatic differentiation: :class:`Sequential` calls its
layers forwards and then backwards. The formulas of batch normalisation live in :mod:`bnlearn.functional`; here is what
PyTorch wraps around them.

Shapes are (N, C, \*spatial): N samples, C channels (features), zero or more spatial axes.
"""

from __future__ import annotations

from bnlearn.layers._base import Layer
from bnlearn.layers.activation import DynamicTanh, EvoNormS0, FilterResponseNorm, ThresholdedLinearUnit
from bnlearn.layers.basic import Conv2d, Flatten, Linear, ReLU, Sigmoid, Tanh
from bnlearn.layers.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnlearn.layers.batch_layer import (
    BatchLayerNorm,
)
from bnlearn.layers.instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from bnlearn.layers.recurrent import LSTM, BatchNormLSTM, BatchNormRNN, LayerNormLSTM
from bnlearn.layers.repairs import (
    BatchRenorm,
    ExampleWeighing,
    FullNorm,
    GhostBatchNorm,
)
from bnlearn.layers.sample import GroupNorm, LayerNorm, RMSNorm, UnitNorm
from bnlearn.layers.sequential import Sequential
from bnlearn.layers.weights import SpectralNorm, WeightNorm, WeightStandardization
from bnlearn.layers.whitening import DecorrelatedBatchNorm, IterNorm

__all__ = [
    "LSTM",
    "BatchLayerNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormLSTM",
    "BatchNormRNN",
    "BatchRenorm",
    "Conv2d",
    "DecorrelatedBatchNorm",
    "DynamicTanh",
    "EvoNormS0",
    "ExampleWeighing",
    "FilterResponseNorm",
    "Flatten",
    "FullNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "IterNorm",
    "Layer",
    "LayerNorm",
    "LayerNormLSTM",
    "Linear",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SpectralNorm",
    "Tanh",
    "ThresholdedLinearUnit",
    "UnitNorm",
    "WeightNorm",
    "WeightStandardization",
]
