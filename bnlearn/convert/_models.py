"""A model of any of the three libraries, with what a move needs of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from bnlearn.convert._units import Array, Unit
from bnlearn.layers import Layer

__all__ = ["Model", "Opened", "evaluating", "is_keras", "is_torch", "open_model"]

Model: TypeAlias = Any
"""A ``torch.nn.Module``, a ``keras.Model`` (or layer), or a :class:`bnlearn.layers.Layer`."""

Flatten: TypeAlias = Mapping[str, Sequence[int] | None] | None


def is_keras(model: Any) -> bool:
    """Whether ``model`` is Keras's; on Keras's PyTorch backend it is a torch module too."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Layer)


def is_torch(model: Any) -> bool:
    """Whether ``model`` is a PyTorch module, and not one of Keras's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module) and not is_keras(model)


def open_model(model: Model, role: str) -> Opened:
    """The wrapper that suits ``model``."""
    if is_keras(model):
        return OfKeras(model)
    if is_torch(model):
        return OfTorch(model)
    if isinstance(model, Layer):
        return Opened(model)
    raise TypeError(
        f"expected the {role} to be a torch.nn.Module, a keras.Model or a layer of bnlearn.layers, got "
        f"{type(model).__name__}"
    )


class Opened:
    """A model of NumPy layers; its subclasses are for the frameworks."""

    is_keras = False
    last = False  # whether channels come last

    def __init__(self, model: Model) -> None:
        self.model = model
        self.convolves = False

    def units(self, flatten: Flatten) -> list[Unit]:
        """See :mod:`bnlearn.convert._units`."""
        found = self.read(flatten)
        self.convolves = any("conv" in unit.kind for unit in found)
        return found

    def read(self, flatten: Flatten) -> list[Unit]:
        """The units."""
        from bnlearn.convert import _numpy

        return _numpy.units(self.model)

    def forget_traces(self) -> None:
        """Make a framework that traces do it anew."""

    def run(self, x: Array) -> Array:
        """The output in evaluation mode, in float64; modes and statistics stay."""
        with evaluating(self.model):
            return np.asarray(self.model(x), dtype=np.float64)
