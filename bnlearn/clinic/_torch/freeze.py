"""Freezing BN layers in PyTorch so that ``model.train()`` does not wake them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrize

from bnlearn.clinic._repair import Repair
from bnlearn.clinic._torch.data import unwrap
from bnlearn.clinic._torch.select import chosen

__all__ = ["Frozen", "freeze"]


class Frozen(nn.Module):
    """Mixed in before a BN class: :meth:`train` leaves it in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode, whatever ``mode`` says."""
        return super().train(False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made here and has no place that pickle could import it from: it is told by what it was made of.
        return _revived, (type(self).__mro__[2],), cast(Any, self).__getstate__()


def _made(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Frozen{kind.__name__}", (Frozen, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


_frozen = cast("Callable[[type[nn.Module]], Any]", cache(_made))
"""The class that ``kind`` is swapped for: the same each time, so that the types of two frozen layers compare."""


def _revived(kind: type[nn.Module]) -> Any:
    frozen = _frozen(kind)
    return frozen.__new__(frozen)


def freeze(model: nn.Module, affine: bool = True, *, layers: Collection[str] | None = None) -> Repair:
    """See :func:`bnlearn.freeze`."""
    if affine:
        _refuse_waiting(model)
    model = unwrap(model)
    norms = chosen(model, layers)
    left = {name: why for name, bn in norms.items() if (why := _obstacle(bn))}
    taken = {bn: (type(bn), _frozen(type(bn))) for name, bn in norms.items() if name not in left}
    modules = [module for bn in taken for module in bn.modules()]
    modes = [(module, module.training, module is not model and module.training == model.training) for module in modules]
    parameters = [p for bn in taken for p in (bn.weight, bn.bias) if p is not None] if affine else []
    saved = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]

    def undo() -> nn.Module:
        for bn, (kind, _) in taken.items():
            bn.__class__ = kind
        for module, mode, as_the_model in modes:
            # Where it went along with the model, it does so again, should that have changed its mode since.
            module.training = model.training if as_the_model else mode
        for parameter, required, grad in saved:
            parameter.requires_grad_(required)
            parameter.grad = grad
        return model

    for bn, (_, frozen) in taken.items():
        bn.__class__ = frozen
        bn.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
        # Without a gradient an optimizer passes a parameter by; an old one would keep momentum and decay going.
        parameter.grad = None
    return Repair("frozen", model, tuple(name for name in norms if name not in left), left, undo)


def _refuse_waiting(model: nn.Module) -> None:
    """Raise for a wrapper that waits for the gradients of all the parameters that it was made with."""
    parallel = nn.parallel.DistributedDataParallel
    if any(isinstance(module, parallel) and not module.find_unused_parameters for module in model.modules()):
        raise ValueError(
            "expected a model that is not in DistributedDataParallel yet, which would wait in vain for the gradients "
            "of gamma and beta; freeze first and wrap then, wrap with find_unused_parameters=True, or freeze with "
            "affine=False"
        )


def _obstacle(bn: nn.Module) -> str:
    if isinstance(bn, Frozen):
        return "it is frozen already"
    # torch swaps classes for these too, and takes the first base for the class to go back to.
    return "its weights are parametrised" if parametrize.is_parametrized(bn) else ""
