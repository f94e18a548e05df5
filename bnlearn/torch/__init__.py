r"""The normalisers that PyTorch lacks, as modules with PyTorch's names, arguments, defaults and shapes.

Each calls its formula in :mod:`bnlearn.functional` on PyTorch's tensors, so autograd, ``torch.compile``, other devices
and half precision (with statistics in float32) work as they do there. Shapes are (N, C, \*spatial); a module with
running statistics takes its parameters and buffers, and the rules for them, from ``torch.nn.BatchNorm2d``.
"""

from __future__ import annotations

from bnlearn.torch.distributed import SyncBatchNorm
from bnlearn.torch.launch import torchrun
from bnlearn.torch.recurrent import BatchNormLSTM, BatchNormRNN, LayerNormLSTM
from bnlearn.torch.weights import WeightStandardization, weight_standardization
from bnlearn.torch.whitening import DecorrelatedBatchNorm, IterNorm

__all__ = [
    "BatchNormLSTM",
    "BatchNormRNN",
    "DecorrelatedBatchNorm",
    "IterNorm",
    "LayerNormLSTM",
    "SyncBatchNorm",
    "WeightStandardization",
    "torchrun",
    "weight_standardization",
]
