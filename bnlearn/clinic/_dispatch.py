"""Which framework a model is of, and the part of the clinic for it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["framework", "part"]


def framework(model: Any) -> str | None:
    """The framework of a model.

    Parameters
    ----------
    model : object

    Returns
    -------
    str or None
        ``"torch"``, ``"keras"``, or None for what is no model of either. No framework is imported for it.
    """
    from bnlearn.convert._models import is_keras, is_torch

    return "keras" if is_keras(model) else "torch" if is_torch(model) else None


def part(model: Any, name: str) -> ModuleType:
    """The module ``name`` of the clinic for the model's framework.

    Raises
    ------
    TypeError
        If the model is of neither framework.
    """
    found = framework(model)
    if found is None:
        raise TypeError(f"expected a torch.nn.Module or a keras.Model, got {type(model).__name__}")
    return import_module(f"bnlearn.clinic._{found}.{name}")
