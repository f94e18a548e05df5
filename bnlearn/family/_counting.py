"""Arrays that count the arithmetic done with them: what a formula costs, found by running it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import array_api_compat.numpy as xnp
import numpy as np

from bnlearn.family._trees import convert

FREE = {"astype", "broadcast_to", "concat", "expand_dims", "eye", "full_like", "isdtype", "finfo", "matrix_transpose"}
FREE |= {"ones", "ones_like", "permute_dims", "reshape", "shape", "split", "squeeze", "stack", "zeros", "zeros_like"}
"""What moves or makes numbers without arithmetic."""

REDUCTIONS = {"all", "any", "max", "mean", "min", "prod", "std", "sum", "var", "vector_norm"}

CUBIC = {"cholesky", "eigh", "inv", "qr", "solve", "svd", "svdvals"}


class Tally:
    """How much was done, in elements: an element-wise operation counts one for each element of its result.

    A sum or a mean counts one for each element that goes in, a product of an (m, k) with a (k, n) matrix 2 m k n, a
    decomposition of an (m, m) matrix m^3. ``reductions`` counts the elements that were reduced: divided by those of x,
    the times that the formula has to see all of x before it can go on.
    """

    def __init__(self) -> None:
        self.operations = 0
        self.reduced = 0
        self.namespace = CountingNamespace(self)

    def wrap(self, value: Any) -> Any:
        """Arrays in ``value``, counted from now on."""

        def count(leaf: Any) -> Any:
            return Counted(np.asarray(leaf), self) if isinstance(leaf, np.ndarray | np.generic) else leaf

        return convert(count, value)

    def run(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of ``function`` on what the counted arrays hold, counted."""
        bare = unwrap(args)
        result = function(*bare, **unwrap(kwargs))
        inputs = [np.size(value) for value in bare if isinstance(value, np.ndarray)]
        first = np.asarray(result[0] if isinstance(result, tuple) and result else result)
        if name in REDUCTIONS:
            self.operations += max(inputs)
            self.reduced += max(inputs)
        elif name in ("matmul", "tensordot", "vecdot"):
            self.operations += 2 * first.size * bare[0].shape[-1]
        elif name in CUBIC:
            self.operations += bare[0].size * bare[0].shape[-1]
        elif name not in FREE and isinstance(result, np.ndarray | np.generic):
            self.operations += first.size
        return self.wrap(result)


def unwrap(value: Any) -> Any:
    """What the counted arrays in ``value`` hold."""
    return convert(lambda leaf: leaf.value if isinstance(leaf, Counted) else leaf, value)


class CountingNamespace(SimpleNamespace):
    """NumPy's functions under their names in the standard, each of them counted."""

    def __init__(self, tally: Tally, module: Any = xnp) -> None:
        super().__init__(_tally=tally, _module=module)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name == "linalg":
            return CountingNamespace(self._tally, found)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *args, **kwargs: self._tally.run(name, found, *args, **kwargs)


class Counted:
    """A NumPy array whose arithmetic is counted."""

    def __init__(self, value: np.ndarray[Any, Any], tally: Tally) -> None:
        self.value, self.tally = value, tally

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self.tally.namespace

    def __getitem__(self, key: Any) -> Any:
        return Counted(np.asarray(self.value[unwrap(key)]), self.tally)


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *others: self.tally.run(name, function, self, *others)


def _reflected(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tally.run(name, function, other, self)


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "mod", "floordiv"):
    setattr(Counted, f"__{_name}__", _counted(_name, getattr(operator, _name)))
    setattr(Counted, f"__r{_name}__", _reflected(_name, getattr(operator, _name)))
for _name in ("neg", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne", "and_", "or_", "xor"):
    setattr(Counted, f"__{_name.rstrip('_')}__", _counted(_name, getattr(operator, _name)))
