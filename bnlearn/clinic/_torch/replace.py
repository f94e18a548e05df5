"""Another normaliser in the place of BN, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.utils import parametrize

from bnlearn import torch as own
from bnlearn.clinic._repair import Repair
from bnlearn.clinic._torch.data import unwrap
from bnlearn.clinic._torch.freeze import Frozen
from bnlearn.clinic._torch.select import chosen, has_hooks

__all__ = ["NORMALISERS", "replace"]

Made = Callable[..., nn.Module]


def _group(bn: _BatchNorm, *, groups: int | None = None) -> nn.Module:
    if groups is not None and groups < 1:
        raise ValueError(f"expected groups >= 1, got {groups}")
    # Wu and He's 32, but of eight channels or more: where a channel has one value, as after a linear layer, a group of
    # one channel is one value, of which beta is all that is left.
    most = min(32, max(bn.num_features // 8, 1)) if groups is None else min(groups, bn.num_features)
    fitting = next(number for number in range(most, 0, -1) if bn.num_features % number == 0)
    return nn.GroupNorm(fitting, bn.num_features, eps=bn.eps, affine=bn.affine)


def _layer(bn: _BatchNorm) -> nn.Module:
    return nn.GroupNorm(1, bn.num_features, eps=bn.eps, affine=bn.affine)


def _instance(bn: _BatchNorm) -> nn.Module:
    # nn.InstanceNorm1d would take (N, C) for one sample of shape (C, L), and say nothing.
    return nn.GroupNorm(bn.num_features, bn.num_features, eps=bn.eps, affine=bn.affine)


def _with_statistics(kind: Made, bn: _BatchNorm, settings: Mapping[str, Any]) -> nn.Module:
    return kind(bn.num_features, eps=bn.eps, momentum=bn.momentum, affine=bn.affine, **settings)


def _renorm(bn: _BatchNorm, **settings: Any) -> nn.Module:
    return _with_statistics(own.BatchRenorm, bn, settings)


def _ghost(bn: _BatchNorm, *, ghost_size: int) -> nn.Module:
    keeps = {"ghost_size": ghost_size, "track_running_stats": bn.track_running_stats}
    return _with_statistics(own.GhostBatchNorm, bn, keeps)


def _sync(bn: _BatchNorm, *, process_group: Any = None) -> nn.Module:
    state = _state(bn)
    # PyTorch's own needs a GPU.
    kind = SyncBatchNorm if state is not None and state.is_cuda else own.SyncBatchNorm
    return _with_statistics(kind, bn, {"process_group": process_group, "track_running_stats": bn.track_running_stats})


def _example_weighing(bn: _BatchNorm, *, example_weight: float) -> nn.Module:
    return _with_statistics(own.ExampleWeighing, bn, {"example_weight": example_weight})


def _filter_response(bn: _BatchNorm, **settings: Any) -> nn.Module:
    return own.FilterResponseNorm(bn.num_features, affine=bn.affine, **settings)


NORMALISERS: Mapping[str, Made] = {
    "group": _group,
    "layer": _layer,
    "instance": _instance,
    "renorm": _renorm,
    "ghost": _ghost,
    "sync": _sync,
    "example_weighing": _example_weighing,
    "filter_response": _filter_response,
}


def replace(
    model: nn.Module,
    to: str | Callable[[Any], nn.Module],
    *,
    layers: Collection[str] | None = None,
    **settings: Any,
) -> Repair:
    """See :func:`bnlearn.replace`."""
    model = unwrap(model)
    make = _maker(to)
    norms = chosen(model, layers)
    left = {name: why for name, bn in norms.items() if (why := _obstacle(bn))}
    made: dict[str, nn.Module] = {}
    for name, bn in norms.items():
        if name not in left:
            new = make(bn, settings)
            if new is bn:
                left[name] = "the function gave it back"
            else:
                made[name] = _like(new, bn)
    new_of: dict[Any, nn.Module] = {norms[name]: new for name, new in made.items()}
    modules = list(model.modules())
    places = [(module, name, child) for module in modules for name, child in module._modules.items() if child in new_of]

    def undo() -> nn.Module:
        for module, name, old in places:
            setattr(module, name, old)
        return model

    for module, name, old in places:
        setattr(module, name, new_of[old])
    replaced = new_of.get(model, model)
    return Repair(f"replaced by {to if isinstance(to, str) else 'yours'}", replaced, tuple(made), left, undo)


def _maker(to: str | Callable[[Any], nn.Module]) -> Callable[[_BatchNorm, Mapping[str, Any]], nn.Module]:
    """What makes the new layer from the old one and the settings."""
    if not callable(to) and to not in NORMALISERS:
        known = ", ".join(NORMALISERS)
        raise ValueError(f"expected a normaliser among {known}, or a function from the old layer to a new, got {to!r}")

    def yours(bn: _BatchNorm, settings: Mapping[str, Any]) -> nn.Module:
        new = cast(Made, to)(bn, **settings)
        if not isinstance(new, nn.Module):
            raise TypeError(f"expected the function to give a torch.nn.Module, got {new!r} for {bn}")
        return new

    def known_one(bn: _BatchNorm, settings: Mapping[str, Any]) -> nn.Module:
        try:
            new = NORMALISERS[cast(str, to)](bn, **settings)
        except TypeError as error:
            raise TypeError(f"expected the settings that {to!r} takes, got {dict(settings)}: {error}") from error
        if bn.bias is None:
            new.register_parameter("bias", None)
        return new

    return yours if callable(to) else known_one


def _obstacle(bn: _BatchNorm) -> str:
    if isinstance(bn, Frozen):
        return "it is frozen: undo that first"
    if type(bn).forward not in (_BatchNorm.forward, SyncBatchNorm.forward):
        return f"{type(bn).__name__} has a forward of its own, which may do more than batch norm"
    if parametrize.is_parametrized(bn):
        return "its weights are parametrised"
    return "it has hooks, which would be lost" if has_hooks(bn) else ""


def _like(new: nn.Module, bn: _BatchNorm) -> nn.Module:
    """``new`` on the device and in the precision of ``bn``, in its mode, with its parameters and statistics.

    The very tensors: an optimizer goes on with them, and after undo the old layer has what was learned in between.
    Only where the new layer has some of that shape: what a user's own function makes may call others by these names.
    """
    state = _state(bn)
    new = new.train(bn.training) if state is None else new.train(bn.training).to(device=state.device, dtype=state.dtype)
    for store in ("_parameters", "_buffers"):
        places = getattr(new, store)
        for name, old in getattr(bn, store).items():
            if old is not None and places.get(name) is not None and places[name].shape == old.shape:
                places[name] = old
    return new


def _state(bn: _BatchNorm) -> torch.Tensor | None:
    return next((tensor for tensor in (bn.weight, bn.running_mean) if tensor is not None), None)
