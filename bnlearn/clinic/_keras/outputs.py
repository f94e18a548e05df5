"""What a Keras model returned, and how far two such things lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

__all__ = ["Outputs", "Wide", "array", "floating", "gap"]

Wide: TypeAlias = NDArray[np.float64]
Outputs: TypeAlias = Mapping[tuple[Any, ...], tuple[str, Wide]]
"""By place: the dtype that it had, and the array in float64."""


def array(x: Any) -> NDArray[Any]:
    """A tensor or variable as a NumPy array of its own dtype, but for bfloat16, which NumPy has not: float32."""
    value = x.value if isinstance(x, keras.Variable) else x
    if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
        value = keras.ops.cast(value, "float32")
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.copy(value) if value is not x else value))


def floating(output: Any) -> dict[tuple[Any, ...], tuple[str, Wide]]:
    """The floating-point tensors that have an axis of samples, each with its place."""
    leaves = [(path, x) for path, x in keras.tree.flatten_with_path(output) if len(getattr(x, "shape", ()))]
    found = [(tuple(path), keras.backend.standardize_dtype(x.dtype), x) for path, x in leaves]
    return {path: (dtype, array(x).astype(np.float64)) for path, dtype, x in found if "float" in dtype}


def gap(reference: Outputs, outputs: Outputs) -> float | None:
    """How far the outputs lie apart, in standard deviations of the reference over its samples; None without spread."""
    difference = spread = 0.0
    for place, (_, a) in reference.items():
        if place in outputs and outputs[place][1].shape == a.shape:
            with np.errstate(all="ignore"):
                difference += float(np.sum((a - outputs[place][1]) ** 2))
            spread += float(np.sum(np.var(a, axis=0))) * len(a)
    if not spread > 0:
        return None
    return float(np.sqrt(difference / spread)) if np.isfinite(difference) else float("inf")
