"""Batches of whatever kind, as the arguments of a call of a PyTorch model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset, IterableDataset

from bnlearn.clinic._observe import to_numpy
from bnlearn.clinic._torch.state import generators, unwrap

__all__ = ["check_data", "copied", "device_of", "inputs", "iterating", "mask_of", "no_batches", "samples_in", "unwrap"]

LABELS = frozenset({"label", "labels"})
"""Entries of a batch that is a mapping which are not passed on: with them, the models of transformers add a loss."""


def check_data(data: Any) -> None:
    """Raise unless ``data`` looks like batches to iterate over.

    Raises
    ------
    TypeError
        If it is one batch, single samples, a string, or nothing that can be iterated over.
    """
    if isinstance(data, torch.Tensor | np.ndarray):
        raise TypeError(
            f"expected data to be batches, got one {type(data).__name__} of shape {tuple(data.shape)}; pass a list of "
            "batches, [data] if this is one"
        )
    if isinstance(data, Mapping) or (isinstance(data, tuple) and any(map(_is_array, data))):
        # Tensors of one shape may be batches, or one batch of an image and its target: the two cannot be told apart.
        several = ", or list(data) if it holds several, as Tensor.split gives them" if isinstance(data, tuple) else ""
        raise TypeError(
            f"expected data to be batches, got a {type(data).__name__}, which looks like one; pass [data]{several}"
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(f"expected data to be batches, got single samples, of {type(data).__name__}; pass a DataLoader")
    if isinstance(data, str | bytes) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise TypeError(
            f"expected data to be batches, got {data!r:.60}; pass a DataLoader, or a list (or a generator) of batches"
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


def no_batches(data: Any) -> ValueError:
    """The error for data with no batch in it."""
    return ValueError(
        f"expected at least one batch, got none from the {type(data).__name__}; a generator gives its batches once, "
        "and a loader with drop_last=True none where the data are fewer than a batch"
    )


@contextmanager
def iterating(data: Any) -> Iterator[Iterator[Any]]:
    """One iteration over ``data``, after which the random generators that it owns are where they were.

    The global random states are the matter of :func:`bnlearn.clinic._torch.state.untouched`.

    Raises
    ------
    TypeError
        See :func:`check_data`.
    """
    check_data(data)
    owners, level = [data], [data]
    while level:
        names = ("sampler", "batch_sampler", "dataset")
        level = [getattr(thing, name) for thing in level for name in names if getattr(thing, name, None) is not None]
        level = [thing for thing in level if not any(thing is owner for owner in owners)]
        owners += level
    restores = generators(owners)
    try:
        yield iter(data)
    finally:
        for restore in restores:
            restore()


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter lies (or else the first buffer); the CPU for a model without either."""
    first = _first(model)
    return torch.device("cpu") if first is None else first.device


def _first(model: nn.Module) -> torch.Tensor | None:
    return next(iter(model.parameters()), next(iter(model.buffers()), None))


def inputs(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call ``model`` with.

    Parameters
    ----------
    batch : Tensor, array, tuple or list, mapping, or an object with ``to``
        Of a tuple (or list) ``(x, y, ...)`` the first element is passed, and as many as ``model.forward`` cannot do
        without; a mapping is passed as keyword arguments where ``forward`` takes them, without its labels.
    model : torch.nn.Module
        Unwrapped.

    Returns
    -------
    args, kwargs
        On the model's device. Tensors are copies, so that what the model does to its inputs in place stays inside;
        NumPy's floating-point arrays have the model's dtype.

    Raises
    ------
    TypeError
        If the batch is of another kind, or empty.
    """

    def convert(leaf: Any) -> Any:
        return _converted(leaf, model)

    def movable(value: Any) -> bool:
        return hasattr(value, "to")  # a PackedSequence is a tuple too, and knows which part of it is to be moved

    converted: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(convert, _arguments(batch, model), is_leaf=movable)
    return converted


def _arguments(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        named = {name: value for name, value in batch.items() if name not in LABELS}
        return ((), named) if _fits(model, **named) else ((dict(named),), {})
    if _is_array(batch) or hasattr(batch, "to"):
        return (batch,), {}
    if isinstance(batch, tuple | list) and batch:
        elements = tuple(batch[: max(1, _required(model))])
        if len(elements) > 1:
            return elements, {}
        first = elements[0]
        if isinstance(first, Mapping):
            return _arguments(first, model)
        if isinstance(first, tuple | list) and not hasattr(first, "to"):
            return (tuple(first), {}) if _fits(model, *first) else ((first,), {})
        if _is_array(first) or hasattr(first, "to"):
            return (first,), {}
        batch = first
    raise TypeError(
        "expected a batch to be a tensor, an array, a tuple whose first element is the input, or a mapping of keyword "
        f"arguments, got {batch!r:.60} of type {type(batch).__name__}"
    )


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # of a builtin
        return None


def _fits(model: nn.Module, *args: Any, **kwargs: Any) -> bool:
    signature = _signature(model)
    if signature is None:
        return False
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _required(model: nn.Module) -> int:
    """How many positional arguments ``forward`` cannot do without."""
    signature = _signature(model)
    parameters = [] if signature is None else signature.parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _converted(leaf: Any, model: nn.Module) -> Any:
    if isinstance(leaf, np.ndarray):
        first = next((p for p in model.parameters() if p.is_floating_point()), None)
        tensor = torch.from_numpy(leaf.copy())
        if first is not None and tensor.is_floating_point():
            tensor = tensor.to(first.dtype)
        return tensor.to(device_of(model))
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().to(device_of(model), copy=True)
    return leaf.to(device_of(model)) if hasattr(leaf, "to") else leaf


def copied(arguments: Any) -> Any:
    """The arguments with copies of their tensors."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, arguments)


def samples_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The length of the first tensor's first axis; 0 where there is no tensor with an axis."""
    leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim())
    return next((leaf.shape[0] for leaf in leaves), 0)


def mask_of(batch: Any, mask: Callable[[Any], Any] | Any) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    r"""The mask of a batch, shape (N, \*spatial), True where the batch is real.

    Parameters
    ----------
    batch : object
        As the data gave it.
    mask : callable, key or index, or None
        What takes the batch to its mask: a function, or the place of the mask in the batch.

    Raises
    ------
    TypeError
        If what comes out is neither boolean nor whole numbers.
    """
    if mask is None:
        return None
    found = to_numpy(mask(batch) if callable(mask) else batch[mask])
    if found.dtype.kind not in "biu":
        raise TypeError(f"expected a mask of booleans, True where the batch is real, got dtype {found.dtype}")
    return found.astype(bool)
