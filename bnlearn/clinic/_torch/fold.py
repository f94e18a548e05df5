"""Folding BN into the linear or convolutional layer before it, in PyTorch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map

from bnlearn.clinic._folding import Folding, agreed
from bnlearn.clinic._torch.data import copied, unwrap
from bnlearn.clinic._torch.select import has_hooks
from bnlearn.clinic._torch.state import untouched
from bnlearn.clinic._torch.trace import Linked, Met, plain, trace
from bnlearn.functional import batch_norm

__all__ = ["fold"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
# A few times what the type resolves; for float32 what deployment asks for.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def fold(model: nn.Module, example: Any) -> nn.Module:
    """See :func:`bnlearn.fold`."""
    model = unwrap(model)
    modes = {name: module.training for name, module in model.named_modules()}
    with untouched(model):
        model.eval()
        fresh = copied(example)
        norms = trace(model, lambda: _call(model, fresh), LINEAR)
        before = _outputs(model, example)
        nudged = _outputs(model, _nudged(example))
    shared = _shared_parameters(model)
    left = {name: why for name, met in norms.items() if (why := _obstacle(met, shared, modes[name]))}
    folded = copy.deepcopy(model)
    pairs = tuple((cast(Linked, met.source).name, name) for name, met in norms.items() if name not in left)
    for layer, bn in pairs:
        _fold_pair(folded, layer, bn)
    with untouched(folded):
        folded.eval()
        after = _outputs(folded, example)
    error = agreed(map(_difference, before, after, nudged), pairs)
    folded.folding = Folding(pairs, left, error)  # type: ignore[assignment]
    return folded


def _call(model: nn.Module, example: Any) -> Any:
    with torch.no_grad():
        if isinstance(example, Mapping):
            return model(**example)
        return model(*example) if isinstance(example, tuple) else model(example)


def _outputs(model: nn.Module, example: Any) -> list[torch.Tensor]:
    leaves = tree_leaves(plain(_call(model, copied(example))))  # a first layer may work in place
    found = [leaf.detach().clone() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    if not found or not all(bool(torch.isfinite(leaf).all()) for leaf in found):
        state = "none that are floating-point" if not found else "NaN or infinite ones"
        raise ValueError(f"expected finite outputs for the example, to compare before and after, got {state}")
    return found


def _nudged(example: Any) -> Any:
    """The example, changed in its last bit."""

    def nudge(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf * (1 + torch.finfo(leaf.dtype).eps)

    return tree_map(nudge, example)


def _difference(old: torch.Tensor, new: torch.Tensor, nudged: torch.Tensor) -> tuple[float, float, float]:
    """See :func:`bnlearn.clinic._folding.agreed`."""
    return _apart(old, new), TOLERANCE.get(old.dtype, 1e-4), _apart(old, nudged)


def _apart(old: torch.Tensor, new: torch.Tensor) -> float:
    """The largest difference, over the largest value."""
    scale = float(old.double().abs().max()) if old.numel() else 0.0
    return float((old.double() - new.double()).abs().max()) / scale if scale else 0.0


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that more than one module holds."""
    times = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {key for key, count in times.items() if count > 1}


def _obstacle(met: Met, shared: set[int], training: bool) -> str:
    """Why a BN layer must stay; empty if nothing stands in the way."""
    return _of_the_norm(met, training) or _of_the_source(met, shared)


def _of_the_norm(met: Met, training: bool) -> str:
    bn = cast(_BatchNorm, met.module)
    if met.calls != 1:
        return f"the example calls it {met.calls} times" if met.calls else "the example does not reach it"
    if bn.running_mean is None or bn.running_var is None:
        return "it keeps no running statistics, and uses those of the batch"
    if training:
        return "it is in training mode, and uses the statistics of the batch: call model.eval() first"
    if type(bn).forward not in (_BatchNorm.forward, SyncBatchNorm.forward):
        return f"{type(bn).__name__} has a forward of its own, which may do more than batch norm"
    return _hooked(bn)


def _hooked(module: nn.Module) -> str:
    if has_hooks(module):
        return f"{type(module).__name__} has hooks, which would see other values"
    if parametrize.is_parametrized(module):
        return f"{type(module).__name__} has parametrised weights"
    return ""


def _of_the_source(met: Met, shared: set[int]) -> str:
    linked = met.source
    if not isinstance(linked, Linked):
        return f"what arrives comes from {linked}, not from a linear or convolutional layer"
    layer, name = linked.module, linked.name
    if type(layer).forward not in {kind.forward for kind in LINEAR}:
        return f"{name} is a {type(layer).__name__} with a forward of its own"
    if linked.calls != 1:
        return f"{name} is called {linked.calls} times"
    others = [use for use in linked.uses if use != f"batch_norm of {met.name}"]
    if others or len(linked.uses) != 1:
        return f"the output of {name} is also used by {', '.join(dict.fromkeys(others)) or 'the layer itself, again'}"
    if linked.weight_elsewhere or any(id(parameter) in shared for parameter in layer.parameters()):
        return f"the weight of {name} is used elsewhere too"
    if not met.aligned:
        return f"the channels of the output of {name} are not those of the batch norm"
    return _hooked(layer)


def _fold_pair(model: nn.Module, layer: str, bn: str) -> None:
    """Put one BN layer into the layer before it, in place, computed in float64."""
    norm, linear = cast(_BatchNorm, model.get_submodule(bn)), cast(Any, model.get_submodule(layer))
    wide = {
        name: None if tensor is None else tensor.detach().double()
        for name, tensor in (
            ("weight", norm.weight),
            ("bias", norm.bias),
            ("mean", norm.running_mean),
            ("var", norm.running_var),
        )
    }
    weight = linear.weight.detach()
    outputs = _outputs_last(weight.double(), linear)
    nothing = torch.zeros_like(cast(torch.Tensor, wide["mean"]))
    # At inference BN is affine: of the columns it takes the slope alone, of the bias everything.
    columns, _ = batch_norm(outputs, wide["weight"], nothing, mean=nothing, var=wide["var"], eps=norm.eps)
    bias = nothing if linear.bias is None else linear.bias.detach().double()
    shift, _ = batch_norm(bias[None], wide["weight"], wide["bias"], mean=wide["mean"], var=wide["var"], eps=norm.eps)
    new = _outputs_back(columns, linear, weight.shape).to(weight.dtype).contiguous()
    linear.weight = nn.Parameter(new, requires_grad=linear.weight.requires_grad)
    linear.bias = nn.Parameter(shift[0].to(weight.dtype), requires_grad=linear.weight.requires_grad)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is norm:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.Identity())


def _outputs_last(weight: torch.Tensor, layer: Any) -> torch.Tensor:
    """The weight as (values per output channel, output channels)."""
    if isinstance(layer, TRANSPOSED):
        # (in, out / groups, ...): the group is told by the input channel.
        split = weight.reshape(layer.groups, layer.in_channels // layer.groups, layer.out_channels // layer.groups, -1)
        return split.permute(1, 3, 0, 2).reshape(-1, layer.out_channels)
    return weight.reshape(weight.shape[0], -1).T


def _outputs_back(columns: torch.Tensor, layer: Any, shape: torch.Size) -> torch.Tensor:
    """Undo :func:`_outputs_last`."""
    if isinstance(layer, TRANSPOSED):
        rows = layer.in_channels // layer.groups
        split = columns.reshape(rows, -1, layer.groups, layer.out_channels // layer.groups)
        return split.permute(2, 0, 3, 1).reshape(shape)
    return columns.T.reshape(shape)
