"""The normalisers that Keras lacks, as layers with Keras's names, arguments, defaults and channel axis.

Each calls its formula in :mod:`bnlearn.functional` on the tensors of Keras's backend (TensorFlow, JAX or PyTorch).
Importing this module imports Keras.
"""

from __future__ import annotations

from bnlearn.keras._base import InstanceNormalization
from bnlearn.keras.batch_layer import (
    BatchLayerNormalization,
)
from bnlearn.keras.inference import (
    adapt_batch_normalization,
)
from bnlearn.keras.recurrent import BatchNormLSTM, BatchNormSimpleRNN, LayerNormLSTMCell
from bnlearn.keras.repairs import (
    ExampleWeighing,
    FullNormalization,
    GhostBatchNormalization,
)
from bnlearn.keras.sample import (
    AdaptiveInstanceNormalization,
    DynamicTanh,
    EvoNormS0,
    FilterResponseNormalization,
    ThresholdedLinearUnit,
)
from bnlearn.keras.weights import WeightNormalization, WeightStandardization
from bnlearn.keras.whitening import DecorrelatedBatchNormalization, IterativeNormalization

__all__ = [
    "AdaptiveInstanceNormalization",
    "BatchLayerNormalization",
    "BatchNormLSTM",
    "BatchNormSimpleRNN",
    "DecorrelatedBatchNormalization",
    "DynamicTanh",
    "EvoNormS0",
    "ExampleWeighing",
    "FilterResponseNormalization",
    "FullNormalization",
    "GhostBatchNormalization",
    "InstanceNormalization",
    "IterativeNormalization",
    "LayerNormLSTMCell",
    "ThresholdedLinearUnit",
    "WeightNormalization",
    "WeightStandardization",
    "adapt_batch_normalization",
]
