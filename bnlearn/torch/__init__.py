r"""The normalisers that PyTorch lacks, as modules with PyTorch's names, arguments, defaults and shapes.

Each calls its formula in :mod:`bnlearn.functional` on PyTorch's tensors, so autograd, ``torch.compile``, other devices
and half precision (with statistics in float32) work as they do there. Shapes are (N, C, \*spatial); a module with
running statistics takes its parameters and buffers, and the rules for them, from ``torch.nn.BatchNorm2d``.
"""

from __future__ import annotations

from bnlearn.torch.batch_layer import (
    BatchLayerNorm,
)
from bnlearn.torch.distributed import SyncBatchNorm
from bnlearn.torch.inference import (
    ExampleWeighing,
    adapt_batch_norm,
)
from bnlearn.torch.launch import torchrun
from bnlearn.torch.recurrent import BatchNormLSTM, BatchNormRNN, LayerNormLSTM
from bnlearn.torch.repairs import (
    BatchRenorm,
    FullNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
)
from bnlearn.torch.sample import (
    AdaptiveInstanceNorm,
    DynamicTanh,
    EvoNormS0,
    FilterResponseNorm,
    ThresholdedLinearUnit,
    UnitNorm,
)
from bnlearn.torch.weights import WeightStandardization, weight_standardization
from bnlearn.torch.whitening import DecorrelatedBatchNorm, IterNorm

__all__ = [
    "AdaptiveInstanceNorm",
    "BatchLayerNorm",
    "BatchNormLSTM",
    "BatchNormRNN",
    "BatchRenorm",
    "DecorrelatedBatchNorm",
    "DynamicTanh",
    "EvoNormS0",
    "ExampleWeighing",
    "FilterResponseNorm",
    "FullNorm",
    "GhostBatchNorm",
    "IterNorm",
    "LayerNormLSTM",
    "MaskedBatchNorm",
    "SyncBatchNorm",
    "ThresholdedLinearUnit",
    "UnitNorm",
    "WeightStandardization",
    "adapt_batch_norm",
    "torchrun",
    "weight_standardization",
]
