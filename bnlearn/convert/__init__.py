"""Move a model between PyTorch, Keras and the NumPy layers of :mod:`bnlearn.layers`, and out to ONNX.

:func:`transfer` moves the state of a whole model to a twin of another framework, converted in names, axis order, kernel
layout and meaning (``momentum``, ``eps``, the variance that is kept). :func:`to_onnx` writes a model for other
runtimes, and checks what it wrote. No framework is imported before a model of it has arrived.
"""

from __future__ import annotations

from bnlearn.convert._onnx import Exported, to_onnx
from bnlearn.convert._sync import sync_batch_norm, unsync_batch_norm, values_per_channel
from bnlearn.convert._transfer import Moved, Report, transfer

__all__ = [
    "Exported",
    "Moved",
    "Report",
    "sync_batch_norm",
    "to_onnx",
    "transfer",
    "unsync_batch_norm",
    "values_per_channel",
]
