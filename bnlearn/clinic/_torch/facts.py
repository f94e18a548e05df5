"""The facts of a PyTorch model that the rules of the audit read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from bnlearn.clinic._facts import Facts, LayerFacts, OptimizerFacts, SeenFacts, Vector
from bnlearn.clinic._observe import double, to_numpy
from bnlearn.clinic._torch.data import check_data, unwrap
from bnlearn.clinic._torch.freeze import Frozen
from bnlearn.clinic._torch.select import norms
from bnlearn.clinic._torch.state import Untouched, untouched
from bnlearn.clinic._torch.watch import Run, run, uses_batch

__all__ = ["facts"]


def facts(model: nn.Module, data: Any = None, *, optimizer: Any = None, mask: Any = None) -> Facts:
    """Look at ``model``, which is the same afterwards, bit by bit, whatever happens.

    Parameters
    ----------
    model : torch.nn.Module
        Also wrapped, by DistributedDataParallel or ``torch.compile``: the model inside is looked at.
    data : iterable of batches, optional
        Gone through once; see :func:`bnlearn.clinic._torch.data.inputs` for what a batch may be.
    optimizer : torch.optim.Optimizer, optional
    mask : callable, key or index, optional
        What takes a batch to its mask; see :func:`bnlearn.clinic._torch.data.mask_of`.

    Returns
    -------
    Facts

    Raises
    ------
    TypeError
        If ``data`` are no batches, or ``optimizer`` is no optimizer.
    ValueError
        If a lazy layer has not been built, or there is no batch.
    """
    inner = unwrap(model)
    held = None if optimizer is None else _groups(optimizer)
    if data is not None:
        check_data(data)
    found = norms(inner)
    layers = {name: layer for name, layer in found.items() if _per_channel(layer)}
    notes = list(_notes(inner, found))
    watched: Run | None = None
    with untouched(inner) as state:
        static = {name: _static(layer) for name, layer in layers.items()}
        modes = _modes(inner, layers, state)
        if data is not None and layers:
            # A model that stands in training mode is trained as it stands: what was frozen by hand stays so.
            trains = {name: mode["trains"] and not mode["frozen_by_hand"] for name, mode in modes.items()}
            watched = run(inner, layers, trains, state, data, mask)
    if watched is not None:
        notes += watched.notes + [f"{name}: not looked at, for {why}" for name, why in watched.left.items()]
        static = {name: known for name, known in static.items() if name not in watched.left}
    seen = {} if watched is None else watched.seen
    ran = watched is not None and watched.completed > 0
    return Facts(
        framework="torch",
        model=type(inner).__name__,
        training_now=inner.training,
        layers=_ordered(static, modes, seen),
        distributed=_is_distributed(model),
        optimizer=None if held is None else {name: _held(layers[name], held) for name in static},
        output=None if watched is None else watched.output,
        data_run=ran,
        masked=watched is not None and watched.masked,
        single=() if watched is None else watched.single,
        notes=tuple(notes),
        source=_source(type(inner)),
    )


def _ordered(
    static: Mapping[str, dict[str, Any]], modes: Mapping[str, dict[str, Any]], seen: Mapping[str, SeenFacts]
) -> tuple[LayerFacts, ...]:
    """In the order of their calls; those that were not called come last, as they are registered."""
    names = [*(name for name in seen if name in static), *(name for name in static if name not in seen)]
    return tuple(
        LayerFacts(name=name, order=order, seen=seen.get(name), **static[name], **modes[name])
        for order, name in enumerate(names)
    )


def _per_channel(layer: _BatchNorm) -> bool:
    """Whether its statistics are a mean and a variance for each channel: not by time step, and no matrices."""
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        return mean is None and var is None and not any("matrix" in name for name, _ in layer.named_buffers())
    return tuple(mean.shape) == tuple(var.shape) == (layer.num_features,)


def _notes(model: nn.Module, found: Mapping[str, _BatchNorm]) -> Iterator[str]:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if name in found and not _per_channel(found[name]):
            yield f"{name} ({kind}): not looked at, for its statistics are not a mean and a variance for each channel"
        elif not isinstance(module, _NormBase) and {"running_mean", "running_var"} <= set(_own_buffers(module)):
            yield f"{name} ({kind}): not looked at, for it is none of PyTorch's batch normalisation layers"


def _own_buffers(module: nn.Module) -> Iterator[str]:
    return (name for name, _ in module.named_buffers(recurse=False))


def _vector(tensor: torch.Tensor | None) -> Vector | None:
    return None if tensor is None else np.array(to_numpy(double(tensor)))


def _static(layer: _BatchNorm) -> dict[str, Any]:
    """What can be read without a call."""
    parameters = [parameter for parameter in layer.parameters() if parameter.is_floating_point()]
    typed = next((t for t in (layer.running_var, layer.weight, layer.bias) if t is not None), None)
    batches = layer.num_batches_tracked
    return {
        "kind": type(layer).__name__,
        "channels": layer.num_features,
        "eps": float(layer.eps),
        "momentum": None if layer.momentum is None else float(layer.momentum),
        "dtype": str(torch.float32 if typed is None else typed.dtype).removeprefix("torch."),
        "running_mean": _vector(layer.running_mean),
        "running_var": _vector(layer.running_var),
        "batches_seen": None if batches is None else int(batches),
        "gamma": _vector(layer.weight),
        "beta": _vector(layer.bias),
        "affine_trainable": any(parameter.requires_grad for parameter in parameters) if parameters else None,
        "updates": bool(layer.track_running_stats),
        "held": isinstance(layer, Frozen),
    }


def _modes(model: nn.Module, layers: Mapping[str, _BatchNorm], state: Untouched) -> dict[str, dict[str, Any]]:
    """How the layers stand, and how ``model.train()`` and ``model.eval()`` would set them: found by calling these."""
    if not layers:
        return {}
    training = model.training
    flags = {name: layer.training for name, layer in layers.items()}
    now = {name: uses_batch(layer) for name, layer in layers.items()}
    model.train()
    woken = {name: layer.training for name, layer in layers.items()}
    trains = {name: uses_batch(layer) for name, layer in layers.items()}
    state.reset()
    model.eval()
    evaluates = {name: not uses_batch(layer) for name, layer in layers.items()}
    state.reset()
    return {
        name: {
            "training_now": now[name],
            "trains": trains[name],
            "evaluates": evaluates[name],
            "frozen_by_hand": training and not flags[name] and woken[name],
        }
        for name in layers
    }


def _is_distributed(model: nn.Module) -> bool:
    """Whether DistributedDataParallel or DataParallel is around it, or around a wrapper's inside."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while not isinstance(model, parallel):
        inner = vars(model).get("_modules", {}).get("_orig_mod")
        if inner is None:
            return False
        model = inner
    return True


def _groups(optimizer: Any) -> dict[int, float]:
    """The weight decay that each parameter has, by its identity."""
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        raise TypeError(
            f"expected optimizer to be a torch.optim.Optimizer, with param_groups, got {type(optimizer).__name__}"
        )
    found: dict[int, float] = {}
    for group in groups:
        for parameter in group["params"]:
            found[id(parameter)] = max(found.get(id(parameter), 0.0), float(group.get("weight_decay") or 0.0))
    return found


def _held(layer: _BatchNorm, held: Mapping[int, float]) -> OptimizerFacts:
    decays = [held[id(parameter)] for parameter in layer.parameters() if id(parameter) in held]
    return OptimizerFacts(holds=bool(decays), decay=max(decays, default=0.0))


def _source(kind: type) -> tuple[str, int] | None:
    """Where the class is written; None where nobody can tell, and for PyTorch's own."""
    if kind.__module__.partition(".")[0] == "torch":
        return None
    try:
        path, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return None
    return None if path is None else (path, line)
