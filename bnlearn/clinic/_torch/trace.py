"""Which layer's output reaches which BN layer, and what else becomes of it: seen by running the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Linked", "Met", "plain", "trace"]

_INPUT = "the model's input"

# What asks a tensor about itself, and leaves its values alone.
_QUESTIONS = frozenset(
    [
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "names",
        "requires_grad",
        "is_leaf",
        "is_cuda",
        "is_sparse",
        "is_meta",
        "is_quantized",
        "is_mkldnn",
        "is_nested",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "dim",
        "size",
        "numel",
        "nelement",
        "stride",
        "element_size",
        "storage_offset",
        "get_device",
        "type",
        "__len__",
        "__hash__",
    ]
)

# What gives the same values in the same order in another shape, and what moves axes.
_RESHAPES = frozenset(
    ["flatten", "reshape", "reshape_as", "unflatten", "view", "view_as", "squeeze", "unsqueeze", "contiguous", "detach"]
)
_MOVES = frozenset(["transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "T", "mT"])

_AS = frozenset(["reshape_as", "view_as", "expand_as", "type_as"])
"""What asks its second argument for no more than a shape or a type."""


@dataclass
class Linked:
    """A linear or convolutional layer, as it was met.

    Attributes
    ----------
    name : str
    module : torch.nn.Module
    calls : int
    uses : list of str
        What took its output, in the order in which it did: ``"batch_norm of <name>"``, a function's name, or
        ``"the model's output"``. To be reshaped, or have its axes moved, is no use.
    weight_elsewhere : bool
        Whether something else used its parameters.
    """

    name: str
    module: nn.Module
    calls: int = 0
    uses: list[str] = field(default_factory=list)
    weight_elsewhere: bool = False


@dataclass
class Met:
    """A BN layer, as it was met: how often, what made the tensor that arrived last, and whether the channels agree."""

    name: str
    module: nn.Module
    calls: int = 0
    source: Linked | str = _INPUT
    aligned: bool = False


@dataclass(frozen=True)
class _Origin:
    """Where a tensor's values come from.

    ``channels``, of the tensor's shape: which output channel of ``made`` each value is.
    """

    made: Linked | str
    channels: torch.Tensor | None = None


def _channels_of(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Of a linear layer the channels come last; of a convolution first, behind the samples if there are any."""
    axis = -1 if isinstance(layer, nn.Linear) else int(output.ndim == cast(torch.Tensor, layer.weight).ndim)
    numbers = torch.arange(output.shape[axis])
    return numbers.expand(output.movedim(axis, -1).shape).movedim(-1, axis)


def trace(model: nn.Module, call: Callable[[], Any], kinds: tuple[type[nn.Module], ...]) -> dict[str, Met]:
    """Run ``call`` once and watch.

    Parameters
    ----------
    model : torch.nn.Module
        Left without the hooks that this needs, whatever happens.
    call : callable
        Runs the model on an example, and returns what it returns.
    kinds : tuple of type
        Which layers to watch besides those of BN.

    Returns
    -------
    dict of str to Met
        The BN layers by name, in the order of registration, each with the watched layer that feeds it.
    """
    watch = _Watch(model, kinds)
    handles = watch.install()
    try:
        with torch.no_grad(), watch:
            output = call()
    finally:
        for handle in handles:
            handle.remove()
    for leaf in tree_leaves(plain(output)):
        made = watch.source(leaf)
        if isinstance(made, Linked):
            made.uses.append("the model's output")
    return watch.norms


def plain(output: Any) -> Any:
    """What a model returned, in containers that the tree functions of torch know, also where dataclasses are nested."""
    if isinstance(output, Mapping):
        return {key: plain(value) for key, value in output.items()}
    if is_dataclass(output) and not isinstance(output, type):
        return {one.name: plain(getattr(output, one.name)) for one in fields(output)}
    return [plain(value) for value in output] if isinstance(output, list | tuple) else output


class _Watch(TorchFunctionMode):
    """Notes every function of torch that takes a watched layer's output."""

    def __init__(self, model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        modules = list(model.named_modules())
        self.norms = {name: Met(name, module) for name, module in modules if isinstance(module, _BatchNorm)}
        self.linked = {name: Linked(name, module) for name, module in modules if isinstance(module, kinds)}
        self.owners = {
            id(parameter): linked
            for linked in self.linked.values()
            for parameter in linked.module.parameters(recurse=False)
        }
        self.inside: list[Linked | Met] = []
        self.origins: Any = WeakTensorKeyDictionary()

    def origin(self, leaf: Any) -> _Origin:
        found: _Origin = self.origins.get(leaf, _FROM_OUTSIDE) if isinstance(leaf, torch.Tensor) else _FROM_OUTSIDE
        return found

    def source(self, leaf: Any) -> Linked | str:
        """What made a tensor."""
        return self.origin(leaf).made

    def install(self) -> list[Any]:
        """Hooks that tell inside which layer we are."""
        handles: list[Any] = []
        mets: list[Linked | Met] = [*self.norms.values(), *self.linked.values()]
        for met in mets:
            handles.append(met.module.register_forward_pre_hook(self._entering(met), with_kwargs=True))
            handles.append(met.module.register_forward_hook(self._leaving(met), always_call=True))
        return handles

    def _entering(self, met: Linked | Met) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            met.calls += 1
            self.inside.append(met)
            if isinstance(met, Met):
                arrived = next(iter(tree_leaves((args, kwargs))), None)
                origin = self.origin(arrived)
                met.source, met.aligned = origin.made, _aligned(origin.channels)

        return hook

    def _leaving(self, met: Linked | Met) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self.inside.pop()
            if isinstance(met, Linked) and isinstance(output, torch.Tensor) and output.ndim:
                with torch._C.DisableTorchFunction():
                    self.origins[output] = _Origin(met, _channels_of(met.module, output))

        return hook

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        output = func(*args, **(kwargs or {}))
        if name in _QUESTIONS:
            return output
        moved = self._moved(name, func, args, kwargs or {}, output)
        if moved is not None:
            self.origins[output] = moved
            return output
        here = self.inside[-1] if self.inside else None
        for leaf in tree_leaves((args[:1] if name in _AS else args, kwargs)):
            made = self.source(leaf)
            if isinstance(made, Linked):
                made.uses.append(f"{name} of {here.name}" if isinstance(here, Met) else name)
            owner = self.owners.get(id(leaf))
            if owner is not None and owner is not here:
                owner.weight_elsewhere = True
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.origins[leaf] = _Origin(name)
        return output

    def _moved(self, name: str, func: Any, args: Any, kwargs: dict[str, Any], output: Any) -> _Origin | None:
        """Where the output comes from if it is a watched layer's, in another shape or with its axes moved."""
        origin = self.origin(args[0] if args else None)
        if origin.channels is None or not isinstance(output, torch.Tensor):
            return None
        if name in _RESHAPES and output.dtype == args[0].dtype:
            return _Origin(origin.made, origin.channels.reshape(output.shape))
        if name in _MOVES:
            return _Origin(origin.made, func(origin.channels, *args[1:], **kwargs))
        return None


_FROM_OUTSIDE = _Origin(_INPUT)


def _aligned(channels: torch.Tensor | None) -> bool:
    """Whether all that lies at one place of axis 1 is of the channel of that number."""
    if channels is None or channels.ndim < 2:
        return False
    expected = torch.arange(channels.shape[1]).reshape(-1, *[1] * (channels.ndim - 2))
    return bool((channels == expected).all())
