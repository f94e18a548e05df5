"""The normalisers that Keras lacks, as layers with Keras's names, arguments, defaults and channel axis.

Each calls its formula in :mod:`bnlearn.functional` on the tensors of Keras's backend (TensorFlow, JAX or PyTorch).
Importing this module imports Keras.
"""

from __future__ import annotations

from bnlearn.keras._base import InstanceNormalization
from bnlearn.keras.weights import WeightNormalization, WeightStandardization
from bnlearn.keras.whitening import DecorrelatedBatchNormalization, IterativeNormalization

__all__ = [
    "DecorrelatedBatchNormalization",
    "InstanceNormalization",
    "IterativeNormalization",
    "WeightNormalization",
    "WeightStandardization",
]
