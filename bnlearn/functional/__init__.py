r"""The formulas: pure functions ``forward(x, ...) -> (y, cache)`` and ``backward(dy, cache) -> gradients``.

Shapes, here and everywhere in the book: ``x`` is (N, C, \*spatial), N samples of C channels (features), each channel
holding zero or more spatial axes. A statistic *per channel* is taken over N and all spatial axes and has shape (C,).

Every function takes arrays of any one library: NumPy, PyTorch (and is differentiable there), JAX, TensorFlow through
``keras.ops``, or another that follows the Python Array API standard. Nothing is changed in place and nothing is
remembered: what the backward pass needs is in the ``cache`` that the forward pass returns.

Half precision is computed in float32, and comes back only where it came in: in ``y``, ``dx``, the running statistics.

Under ``jax.jit``, numbers such as ``eps`` and ``momentum`` are to be static: they are checked before anything runs.
"""

from __future__ import annotations

from bnlearn.functional.activation import (
    DynamicTanhCache,
    EvoNormCache,
    ThresholdCache,
    dynamic_tanh,
    dynamic_tanh_backward,
    evonorm_s0,
    evonorm_s0_backward,
    thresholded_linear_unit,
    thresholded_linear_unit_backward,
)
from bnlearn.functional.axes import (
    NormCache,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from bnlearn.functional.batch import (
    BatchNormCache,
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_staged,
    update_running,
)
from bnlearn.functional.batch_layer import (
    BatchLayerNormCache,
    batch_layer_norm,
    batch_layer_norm_backward,
)
from bnlearn.functional.ghost import (
    GhostBatchNormCache,
    GhostStatistics,
    ghost_batch_norm,
    ghost_batch_norm_backward,
    update_running_ghosts,
)
from bnlearn.functional.inference import (
    ExampleWeighingCache,
    adapt_statistics,
    example_weighing,
    example_weighing_backward,
)
from bnlearn.functional.recurrent import (
    RecurrentCache,
    RecurrentGradients,
    batch_norm_lstm,
    batch_norm_lstm_backward,
    batch_norm_rnn,
    batch_norm_rnn_backward,
    layer_norm_lstm,
    layer_norm_lstm_backward,
    lstm,
    lstm_backward,
    rnn,
    rnn_backward,
)
from bnlearn.functional.repairs import (
    BatchRenormCache,
    batch_renorm,
    batch_renorm_backward,
    full_norm,
    full_norm_backward,
    renorm_limits,
)
from bnlearn.functional.sample import (
    AdaptiveInstanceNormCache,
    FilterResponseNormCache,
    UnitNormCache,
    adaptive_instance_norm,
    adaptive_instance_norm_backward,
    filter_response_norm,
    filter_response_norm_backward,
    unit_norm,
    unit_norm_backward,
)
from bnlearn.functional.shards import (
    Moments,
    SyncBatchNormCache,
    merge_moments,
    moments,
    sync_batch_norm,
    sync_batch_norm_backward,
)
from bnlearn.functional.steps import StepStatistics, update_running_steps
from bnlearn.functional.weights import (
    SpectralNormCache,
    WeightNormCache,
    spectral_norm,
    spectral_norm_backward,
    weight_norm,
    weight_norm_backward,
    weight_standardization,
    weight_standardization_backward,
)
from bnlearn.functional.whitening import WhitenCache, update_whitening, whiten, whiten_backward
from bnlearn.functional.whitening_iterative import IterNormCache, iter_norm, iter_norm_backward

__all__ = [
    "AdaptiveInstanceNormCache",
    "BatchLayerNormCache",
    "BatchNormCache",
    "BatchRenormCache",
    "DynamicTanhCache",
    "EvoNormCache",
    "ExampleWeighingCache",
    "FilterResponseNormCache",
    "GhostBatchNormCache",
    "GhostStatistics",
    "IterNormCache",
    "Moments",
    "NormCache",
    "RecurrentCache",
    "RecurrentGradients",
    "SpectralNormCache",
    "StepStatistics",
    "SyncBatchNormCache",
    "ThresholdCache",
    "UnitNormCache",
    "WeightNormCache",
    "WhitenCache",
    "adapt_statistics",
    "adaptive_instance_norm",
    "adaptive_instance_norm_backward",
    "batch_layer_norm",
    "batch_layer_norm_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_staged",
    "batch_norm_lstm",
    "batch_norm_lstm_backward",
    "batch_norm_rnn",
    "batch_norm_rnn_backward",
    "batch_renorm",
    "batch_renorm_backward",
    "dynamic_tanh",
    "dynamic_tanh_backward",
    "evonorm_s0",
    "evonorm_s0_backward",
    "example_weighing",
    "example_weighing_backward",
    "filter_response_norm",
    "filter_response_norm_backward",
    "full_norm",
    "full_norm_backward",
    "ghost_batch_norm",
    "ghost_batch_norm_backward",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "iter_norm",
    "iter_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_lstm",
    "layer_norm_lstm_backward",
    "lstm",
    "lstm_backward",
    "merge_moments",
    "moments",
    "renorm_limits",
    "rms_norm",
    "rms_norm_backward",
    "rnn",
    "rnn_backward",
    "spectral_norm",
    "spectral_norm_backward",
    "sync_batch_norm",
    "sync_batch_norm_backward",
    "thresholded_linear_unit",
    "thresholded_linear_unit_backward",
    "unit_norm",
    "unit_norm_backward",
    "update_running",
    "update_running_ghosts",
    "update_running_steps",
    "update_whitening",
    "weight_norm",
    "weight_norm_backward",
    "weight_standardization",
    "weight_standardization_backward",
    "whiten",
    "whiten_backward",
]
