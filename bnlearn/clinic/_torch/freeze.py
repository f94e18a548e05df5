"""Freezing BN layers in PyTorch so that ``model.train()`` does not wake them."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from bnlearn.clinic._torch.data import unwrap
from torch import nn

from bnlearn.clinic._repair import Repair
from bnlearn.clinic._torch.select import chosen

__all__ = ["Frozen", "freeze"]


class Frozen(nn.Module):
    """Mixed in before a BN class: :meth:`train` leaves it in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made here and has no place that pickle could import it from: it is told by what it was made of.
        return _revived, (type(self).__mro__[2],), self.__dict__.copy()


@cache
def _frozen(kind: type[nn.Module]) -> type[Frozen]:
    return type(f"Frozen{kind.__name__}", (Frozen, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _revived(kind: type[nn.Module]) -> nn.Module:
    made = _frozen(kind)
    return made.__new__(made)


def freeze(model: nn.Module, affine: bool = True, *, layers: Collection[str] | None = None) -> Repair:
    """See :func:`bnlearn.freeze`."""
    model = unwrap(model)
    norms = chosen(model, layers)
    left = {name: "it is frozen already" for name, bn in norms.items() if isinstance(bn, Frozen)}
    taken = {name: bn for name, bn in norms.items() if name not in left}
    modes = {name: (bn.training, bn.training == model.training) for name, bn in taken.items()}
    parameters = [p for bn in taken.values() for p in (bn.weight, bn.bias) if p is not None] if affine else []
    saved = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]

    def undo() -> nn.Module:
        for name, bn in taken.items():
            bn.__class__ = type(bn).__mro__[2]
            mode, as_the_model = modes[name]
            bn.train(model.training if as_the_model else mode)
        for parameter, required, grad in saved:
            parameter.requires_grad_(required)
            parameter.grad = grad
        return model

    for bn in taken.values():
        bn.__class__ = _frozen(type(bn))
        bn.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
        # Without a gradient an optimizer passes a parameter by; an old one would keep momentum and decay going.
        parameter.grad = None
    return Repair("frozen", model, tuple(taken), left, undo)
