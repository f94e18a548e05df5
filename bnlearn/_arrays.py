"""Which library does this array belong to?

The formulas in :mod:`bnlearn.functional` use the names of the Python Array API standard. ``array_api_compat`` gives
those names for NumPy, PyTorch, JAX, CuPy, Dask and any library that implements the standard. TensorFlow implements
neither the standard nor a compatible set of names, so its tensors (and Keras's symbolic ones) go through the small
:class:`KerasNamespace` below, which says the same with ``keras.ops``.

No framework is imported here before an array of that framework has arrived.
"""

from __future__ import annotations

import operator
import sys
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

import array_api_compat

__all__ = [
    "Array",
    "Namespace",
    "channel_axes",
    "full_shape",
    "namespace",
    "per_channel",
    "static_size",
    "stop_gradient",
    "whole_number",
    "widen",
]

Array: TypeAlias = Any
"""An array of any supported library. There is no common static type for these, hence ``Any``."""

Namespace: TypeAlias = Any
"""A module (or object) with the functions of the Array API standard that the formulas use."""


_SAME_IN_KERAS = (
    *("abs", "clip", "exp", "isfinite", "linalg", "log", "matmul", "max", "maximum", "mean", "minimum"),
    *("ones_like", "reshape", "shape", "sign", "sqrt", "square", "stack", "stop_gradient", "sum", "take", "tanh"),
    *("tril", "triu", "where", "zeros_like"),
)
_OTHER_IN_KERAS = {"astype": "cast", "concat": "concatenate", "cumulative_sum": "cumsum", "permute_dims": "transpose"}


class KerasNamespace:
    """The functions of the Array API standard that the formulas use, spelled with ``keras.ops``."""

    def __init__(self) -> None:
        import keras
        import ml_dtypes  # comes with TensorFlow; its finfo knows bfloat16, NumPy's does not

        self._name = keras.backend.standardize_dtype
        self._finfo = ml_dtypes.finfo
        ops = keras.ops
        self.float32, self.int32 = "float32", "int32"
        for name in _SAME_IN_KERAS:
            setattr(self, name, getattr(ops, name))
        for name, theirs in _OTHER_IN_KERAS.items():
            setattr(self, name, getattr(ops, theirs))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the formulas' Keras namespace has no {name!r}; add it to the tables above the class")

    def isdtype(self, dtype: Any, kind: str) -> bool:
        """Whether ``dtype`` is of this kind: ``"real floating"`` or ``"bool"``."""
        return {"real floating": "float", "bool": "bool"}[kind] in self._name(dtype)

    def finfo(self, dtype: Any) -> Any:
        """The limits of a floating-point dtype."""
        return self._finfo(self._name(dtype))


@cache
def _keras_namespace() -> KerasNamespace:
    return KerasNamespace()


def _library(array: Array) -> str:
    return type(array).__module__.partition(".")[0]


def _is_keras_tensor(array: Array) -> bool:
    """Whether ``array`` is a TensorFlow tensor or variable, a Keras variable or a symbolic Keras tensor."""
    return _library(array) in {"tensorflow", "keras"} and hasattr(array, "dtype")


def _refuse_other_backend() -> None:
    """Raise unless ``keras.ops`` computes with TensorFlow: it would turn the tensors into others, without gradients."""
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise TypeError(
            f"expected Keras on its TensorFlow backend for TensorFlow tensors, got the backend {backend!r}; set "
            "KERAS_BACKEND=tensorflow before Keras is imported, or pass that backend's own tensors"
        )


def namespace(*arrays: Array | None) -> Namespace:
    """The namespace that all ``arrays`` share; ``None`` stands for an argument that was not given.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or one of them to none that is supported.
    """
    present = [array for array in arrays if array is not None]
    # First: torch.compile cannot follow the questions below about a Parameter's class.
    torch = sys.modules.get("torch")
    if torch is not None and present and all(isinstance(array, torch.Tensor) for array in present):
        # Asked for by name, not looked up: torch.compile warns about the cache that the look-up keeps.
        import array_api_compat.torch as torch_namespace

        return torch_namespace
    if present and all(map(_is_keras_tensor, present)):
        if "tensorflow" in map(_library, present):
            _refuse_other_backend()
        return _keras_namespace()
    try:
        if not all(hasattr(array, "shape") for array in present):
            raise TypeError("a number or a list, which array_api_compat passes over")
        return array_api_compat.array_namespace(*present)
    except TypeError as error:
        kinds = list(dict.fromkeys(f"{_library(array)}.{type(array).__qualname__}" for array in present)) or ["None"]
        cure = "convert it to one of their arrays" if len(kinds) == 1 else f"convert them all to {kinds[0]}"
        raise TypeError(
            "expected arrays of one library (NumPy, PyTorch, JAX, TensorFlow or another that follows the Array API "
            f"standard), got {', '.join(kinds)}; {cure}"
        ) from error


def widen(xp: Namespace, x: Array, name: str = "x") -> Array:
    """``x`` in the precision to compute in: float32 for half precision, unchanged for float32 and float64.

    Raises
    ------
    TypeError
        If ``x`` does not hold real floating-point numbers.
    """
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"expected {name} of a real floating-point dtype, got {x.dtype}; convert it, e.g. to float32")
    return x if xp.finfo(x.dtype).bits >= 32 else xp.astype(x, xp.float32)


def channel_axes(x: Array) -> tuple[int, ...]:
    """The axes that a per-channel statistic of ``x``, shape (N, C, *spatial), is taken over: all but axis 1."""
    return (0, *range(2, len(x.shape)))


def per_channel(xp: Namespace, vector: Array, like: Array) -> Array:
    """``vector`` of shape (C,) as (1, C, 1, ...), to meet ``like`` of shape (N, C, *spatial)."""
    return xp.reshape(vector, (1, -1) + (1,) * (len(like.shape) - 2))


def whole_number(value: Any, name: str) -> int | None:
    """``value`` as an int, or None where it is only known when a traced function runs.

    Raises
    ------
    TypeError
        If it is a number that is not whole by its type.
    ValueError
        If it is negative.
    """
    if len(getattr(value, "shape", ())) and "int" in str(value.dtype):
        return None  # a number per channel, whose values stay where they are
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and torch.compiler.is_compiling():
        return None  # asking for it would break the graph
    try:
        number = operator.index(value)
    except TypeError as error:
        if hasattr(value, "dtype") and "int" in str(value.dtype):
            return None
        raise TypeError(f"expected {name} to be a whole number, got {value!r}") from error
    if number < 0:
        raise ValueError(f"expected {name} >= 0, got {number}")
    return number


def static_size(x: Array) -> int | None:
    """How many elements ``x`` has, or None where a dimension is not known yet (inside ``tf.function``, say)."""
    size = 1
    for dimension in x.shape:
        if not isinstance(dimension, int):
            return None
        size *= dimension
    return size


def full_shape(xp: Namespace, x: Array) -> tuple[Any, ...]:
    """The shape of ``x`` with no dimension missing: inside ``tf.function``, an unknown one is a tensor."""
    return tuple(xp.shape(x)) if isinstance(xp, KerasNamespace) else tuple(x.shape)


def stop_gradient(xp: Namespace, x: Array) -> Array:
    """``x`` as a constant: no gradient flows back through it, in a library that differentiates."""
    if hasattr(x, "detach"):
        return x.detach()
    if _library(x) in {"jax", "jaxlib"}:
        return import_module("jax").lax.stop_gradient(x)
    return xp.stop_gradient(x) if isinstance(xp, KerasNamespace) else x
