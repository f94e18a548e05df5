"""The BN layers of a PyTorch model, all of them or those that are named."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from bnlearn.clinic._named import named

__all__ = ["chosen", "has_hooks", "norms"]


def norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """By name, in the order of registration; one that is registered twice has its first name.

    Raises
    ------
    ValueError
        If a lazy layer has not been built.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, module in model.named_modules():
        state = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(isinstance(tensor, UninitializedParameter | UninitializedBuffer) for tensor in state):
            raise ValueError(
                f"expected a model whose layers are built, got {type(module).__name__} at {name!r}, which takes its "
                "size from the first batch; run one batch through the model first"
            )
    return found


def chosen(model: nn.Module, layers: Collection[str] | None) -> dict[str, _BatchNorm]:
    """All BN layers, or those in ``layers``.

    Raises
    ------
    ValueError
        If a name is of no BN layer.
    """
    return named(norms(model), layers)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to it."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
