"""A model of any of the three libraries, with what a move needs of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from bnlearn.convert._units import BATCH_NORM, Array, Unit
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
        self.channelled = False  # whether three axes are (N, C, L) or (N, L, C), and not the same on both sides

    def units(self, flatten: Flatten) -> list[Unit]:
        """See :mod:`bnlearn.convert._units`."""
        found = self.read(flatten)
        kinds = [unit.kind for unit in found]
        self.channelled = any("conv" in kind for kind in kinds) or kinds[:1] in ([BATCH_NORM], ["group norm"])
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


class OfTorch(Opened):
    """A PyTorch module."""

    def read(self, flatten: Flatten) -> list[Unit]:
        """The units."""
        from bnlearn.convert import _torch

        return _torch.units(self.model)

    def run(self, x: Array) -> Array:
        """The output in evaluation mode, in float64; modes and statistics stay."""
        import torch

        like = next(self.model.parameters(), torch.zeros(()))
        given = torch.tensor(x).to(like.device)
        with evaluating(self.model), torch.no_grad():
            y = self.model(given.to(like.dtype) if given.is_floating_point() else given)
        found: Array = _first(y).double().cpu().numpy()
        return found


class OfKeras(Opened):
    """A Keras model."""

    is_keras = True

    def __init__(self, model: Model) -> None:
        from bnlearn.convert import _keras

        super().__init__(model)
        self.last = _keras.channels_last(model)

    def read(self, flatten: Flatten) -> list[Unit]:
        """The units."""
        from bnlearn.convert import _keras

        return _keras.units(self.model, flatten)

    def forget_traces(self) -> None:
        """A compiled ``predict`` keeps the epsilon that it was traced with."""
        self.model.train_function = self.model.test_function = self.model.predict_function = None

    def run(self, x: Array) -> Array:
        """The output in evaluation mode, in float64."""
        import keras

        y = _first(self.model(keras.ops.convert_to_tensor(x), training=False))
        return np.asarray(keras.ops.convert_to_numpy(y), dtype=np.float64)


def _first(y: Any) -> Any:
    """The first output: a recurrent module gives its states too."""
    return y[0] if isinstance(y, (tuple, list)) else y


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for a while; each module gets the mode back that it had."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
