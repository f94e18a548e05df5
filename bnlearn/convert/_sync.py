"""Batch normalisation to synchronised batch normalisation and back, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["sync_batch_norm", "unsync_batch_norm", "values_per_channel"]


def sync_batch_norm(model: nn.Module, process_group: Any = None, *, layer: type[nn.Module] | None = None) -> nn.Module:
    """Replace every BatchNorm of ``model`` by a synchronised one with the same parameters and statistics.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` does so for PyTorch's own; this takes any ``layer``, and can be
    undone by :func:`unsync_batch_norm`.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, except where it is a BatchNorm itself. The parameters stay the same objects, so that an
        optimizer that knows them goes on; hooks on the replaced layers are lost.
    process_group
        As for ``torch.nn.SyncBatchNorm``.
    layer : type, optional
        What to put in its place: by default ``torch.nn.SyncBatchNorm``, which needs a GPU.
        :class:`bnlearn.torch.SyncBatchNorm` works on any backend of ``torch.distributed``.

    Returns
    -------
    torch.nn.Module
        ``model``.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    >>> sync_batch_norm(model)[1]
    SyncBatchNorm(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    from torch import nn

    made = layer or nn.SyncBatchNorm
    kinds = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}

    def replace(module: Any) -> Any:
        if type(module) not in kinds:
            return None
        new: Any = made(
            module.num_features,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
            process_group=process_group,
        )
        new._unsynchronised = type(module)
        return new

    return _replace(model, replace)


def unsync_batch_norm(model: nn.Module, *, dims: int | None = None) -> nn.Module:
    """Replace every synchronised BatchNorm of ``model`` by a plain one: PyTorch has no way back of its own.

    Parameters
    ----------
    model : torch.nn.Module
        As for :func:`sync_batch_norm`.
    dims : int, optional
        1, 2 or 3, for BatchNorm1d, 2d or 3d: which one a layer was, if :func:`sync_batch_norm` did not make it.

    Returns
    -------
    torch.nn.Module
        ``model``.

    Raises
    ------
    ValueError
        If ``dims`` is none of the three, or needed and not given. Nothing has been changed.

    Examples
    --------
    >>> import torch
    >>> unsync_batch_norm(torch.nn.SyncBatchNorm(4), dims=2)
    BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    from torch import nn

    plain = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    if dims is not None and dims not in plain:
        raise ValueError(f"expected dims, the number of spatial axes (1 also for none), to be 1, 2 or 3, got {dims!r}")
    for name, module in model.named_modules():
        if _is_synchronised(module) and dims is None and not hasattr(module, "_unsynchronised"):
            raise ValueError(
                f"expected dims for {name or 'the model'!r}, which PyTorch made synchronised: 1, 2 or 3, for "
                "BatchNorm1d, BatchNorm2d or BatchNorm3d; nothing was changed"
            )

    def replace(module: Any) -> Any:
        if not _is_synchronised(module):
            return None
        kind = getattr(module, "_unsynchronised", None) or plain[dims or 2]
        return kind(
            module.num_features,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
        )

    return _replace(model, replace)


def _is_synchronised(module: Any) -> bool:
    """PyTorch's own, or one that has its name and base class."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm) and type(module).__name__ == "SyncBatchNorm"


def _replace(model: nn.Module, replacement: Any) -> nn.Module:
    """``model`` with what ``replacement`` gives (None: stay) in the places of its modules, each made once."""
    made = {module: new for module in [*model.modules()] if (new := replacement(module)) is not None}
    return exchange(model, {module: adopt(new, module) for module, new in made.items()})


def adopt(new: Any, old: nn.Module) -> Any:
    """``new`` with those parameters and buffers of ``old`` that it has a place for, the same objects, and its mode."""
    for store in ("_parameters", "_buffers"):
        places = getattr(new, store)
        places.update({name: tensor for name, tensor in getattr(old, store).items() if name in places})
    new.training = old.training
    return new


def exchange(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """``model`` with modules in the places of others, wherever they stand; it may be one of them itself."""
    for module in [*model.modules()]:
        for name, child in [*module._modules.items()]:  # also where one module stands in two places
            if child is not None and child in new:
                setattr(module, name, new[child])
    return new.get(model, model)


def values_per_channel(model: nn.Module, batch: Any) -> dict[str, int]:
    """How many values each BatchNorm of ``model`` averages over, per channel, on a batch of training size.

    Parameters
    ----------
    model : torch.nn.Module
        Run in evaluation mode, without gradients; modes and statistics stay.
    batch : tensor
        What the model takes, of the size of the TRAINING batches: their N counts.

    Returns
    -------
    dict of str to int
        By the layer's name; the argument ``n`` of :func:`transfer`.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    >>> values_per_channel(model, torch.zeros(32, 1, 8, 8))
    {'1': 1152}
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from bnlearn.convert._models import evaluating

    found: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):

            def count(module: Any, args: Any, name: str = name) -> None:
                found[name] = args[0].numel() // args[0].shape[1]

            handles.append(module.register_forward_pre_hook(count))
    try:
        with evaluating(model), torch.no_grad():
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
