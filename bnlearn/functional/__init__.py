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

__all__ = [
    "BatchNormCache",
    "NormCache",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_staged",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
    "update_running",
]
