"""A PyTorch model that is left exactly as it was found, whatever is done to it and however that ends."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["Untouched", "generators", "random_states", "unbuilt", "unnoticed", "untouched", "unwrap"]

Restore = Callable[[], None]

CONTAINERS = (dict, OrderedDict, list, set, deque)
"""Attributes of exactly these types get their entries back (hooks, parameters, buffers and submodules are in dicts)."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside: of ``torch.compile``, of DistributedDataParallel and DataParallel, of an averaged model.

    Parameters
    ----------
    model : torch.nn.Module
        Possibly wrapped, more than once too.

    Returns
    -------
    torch.nn.Module
        The model itself where nothing is wrapped around it.
    """
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.optim.swa_utils.AveragedModel)
    while True:
        inner = model.module if isinstance(model, wrappers) else vars(model).get("_modules", {}).get("_orig_mod")
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def untouched(model: nn.Module) -> Iterator[Untouched]:
    """Within it do what you like with ``model``; when it ends, however it ends, all is as it was, bit by bit.

    That is: the modules' attributes (``training`` among them), classes, hooks, submodules and the entries of their
    containers; the buffers, which are the same tensors, never written to (inside, copies stand in for them, so that a
    graph recorded earlier still differentiates); the parameters' values, ``requires_grad`` and ``grad`` (set aside
    inside); the states of ``torch.Generator`` and the like that hang on modules; the random states of PyTorch (the CPU
    and the model's accelerator), NumPy and ``random``; and whether gradients are recorded.

    The memory it takes is a second copy of the parameters and two of the buffers.

    Parameters
    ----------
    model : torch.nn.Module
        Not wrapped by ``torch.compile`` and the like; see :func:`unwrap`.

    Yields
    ------
    Untouched
        Whose ``reset()`` gives all that back at once and keeps the guard up.

    Raises
    ------
    ValueError
        If a layer is lazy and has not been built; the model is not touched.
    """
    missing = unbuilt(model)
    if missing:
        raise ValueError(
            f"expected a model whose layers are built, got {type(model).__name__} where {missing[0]!r} has no values "
            "yet; run one batch through the model first"
        )
    state = Untouched(model)
    try:
        state.stand_in()
        yield state
    finally:
        state.restore()


@contextmanager
def unnoticed(model: nn.Module) -> Iterator[None]:
    """Within it run ``model`` as you like: the values of its buffers and the random states are as before afterwards.

    Modes are not looked after, and nothing else that :func:`untouched` gives back in the end.
    """
    restores = [_Values(buffer).restore for buffer in model.buffers()]
    restores += [*random_states(model), *generators(model.modules())]
    try:
        yield
    finally:
        for restore in restores:
            restore()


def unbuilt(model: nn.Module) -> list[str]:
    """Names of the tensors of ``model`` that hold no values yet: lazy, or on the meta device."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if is_lazy(tensor) or tensor.is_meta]


class Untouched:
    """What a model was; see :func:`untouched`, which makes it."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._parameters = [_Parameter(parameter) for parameter in model.parameters()]
        self._modules = [_Attributes(module) for module in modules]
        tensors = list(_tensors_to_replace(modules))
        self._fixed = [_Values(tensor) for tensor in _fixed_buffers(modules)]
        self._values = [_Values(tensor) for tensor in tensors]
        self._copies = {id(tensor): tensor.detach().clone() for tensor in tensors}
        self._grad_mode = torch.is_grad_enabled()
        self._random = [*random_states(model), *generators(modules)]

    def stand_in(self) -> None:
        """Put copies in the place of the buffers, and set the gradients aside."""
        for parameter in self._parameters:
            parameter.parameter.grad = None
        for attributes in self._modules:
            attributes.replace_tensors(self._copies)

    def restore(self) -> None:
        """Give everything back."""
        for attributes in self._modules:
            attributes.restore()
        for kept in (*self._parameters, *self._values, *self._fixed):
            kept.restore()
        for restore in self._random:
            restore()
        torch.set_grad_enabled(self._grad_mode)

    def reset(self) -> None:
        """Give everything back, as far as the inside can see: the copies of the buffers have the values again."""
        self.restore()
        with torch.no_grad():
            for values in self._values:
                self._copies[id(values.tensor)] = values.tensor.detach().clone()
        self.stand_in()


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _plain_tensors(entries: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (entry for entry in entries if isinstance(entry, torch.Tensor) and not isinstance(entry, nn.Parameter))


def _tensors_to_replace(modules: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    """Buffers, and tensors that are mere attributes, each once."""
    found: dict[int, torch.Tensor] = {}
    for module in modules:
        if not _is_script(module):
            found |= {id(tensor): tensor for tensor in _plain_tensors(module._buffers.values())}
            found |= {id(tensor): tensor for tensor in _plain_tensors(vars(module).values())}
    return iter(found.values())


def _fixed_buffers(modules: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    """Buffers that cannot be replaced: TorchScript holds them."""
    for module in modules:
        if _is_script(module):
            yield from module.buffers(recurse=False)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    flat = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)


class _Values:
    """The values of a tensor, which are written back only if they have changed: writing leaves a mark on a graph."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._data = tensor.data
        self._copy = tensor.detach().clone()

    def restore(self) -> None:
        if self.tensor.layout != torch.strided or self.tensor.is_quantized:
            return  # a stand-in took what was written
        if not self.tensor.is_set_to(self._data):
            self.tensor.data = self._data  # something was put in the place of its storage
        if not _same_bits(self._data, self._copy):
            with torch.no_grad():
                self.tensor.copy_(self._copy)


class _Parameter(_Values):
    """The same of a parameter, with its flag and its gradient."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__(parameter)
        self.parameter = parameter
        self._requires_grad, self._grad = parameter.requires_grad, parameter.grad

    def restore(self) -> None:
        super().restore()
        self.parameter.requires_grad_(self._requires_grad)
        if self.parameter.grad is not self._grad:
            self.parameter.grad = self._grad


class _Attributes:
    """The class and the attributes of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._class, self._training = type(module), module.training
        self._attributes = dict(vars(module))
        self._entries = [(value, copy.copy(value)) for value in self._attributes.values() if type(value) in CONTAINERS]

    def replace_tensors(self, copies: dict[int, torch.Tensor]) -> None:
        if _is_script(self.module):
            return
        for entries in (self.module._buffers, vars(self.module)):
            for name, value in entries.items():
                if isinstance(value, torch.Tensor) and id(value) in copies:
                    entries[name] = copies[id(value)]

    def restore(self) -> None:
        if type(self.module) is not self._class:
            self.module.__class__ = self._class
        _put_back(vars(self.module), self._attributes)
        for container, entries in self._entries:
            _put_back(container, entries)
        if self.module.training != self._training:
            self.module.training = self._training  # of TorchScript, whose flag is no attribute


def _put_back(container: Any, entries: Any) -> None:
    """The very entries, in their order; a container that has them is not written to."""
    if isinstance(container, dict):
        # Not emptied first: a second Ctrl-C in between would leave a module without attributes.
        container.update(entries)
        for name in container.keys() - entries.keys():
            del container[name]
    if _identities(container) != _identities(entries):
        container.clear()
        (container.update if hasattr(container, "update") else container.extend)(entries)


def _identities(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    return [id(value) for value in container]


def random_states(model: nn.Module) -> list[Restore]:
    """What restores the global random states: of ``random``, NumPy, PyTorch's CPU and the model's accelerator."""
    states = [
        _later(random.setstate, random.getstate()),
        _later(np.random.set_state, np.random.get_state(legacy=False)),  # noqa: NPY002 - other people's code uses it
        _later(torch.set_rng_state, torch.get_rng_state()),
    ]
    kinds = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} - {"cpu"}
    for kind in sorted(kinds):
        device = torch.get_device_module(kind)
        suffix = "_all" if hasattr(device, "get_rng_state_all") else ""
        states.append(_later(getattr(device, f"set_rng_state{suffix}"), getattr(device, f"get_rng_state{suffix}")()))
    return states


def generators(objects: Iterable[Any]) -> list[Restore]:
    """What restores the random generators that are attributes of ``objects``."""
    found = {id(value): value for thing in objects for value in getattr(thing, "__dict__", {}).values()}
    return [restore for value in found.values() for restore in _of_generator(value)]


def _of_generator(value: Any) -> Iterator[Restore]:
    if isinstance(value, torch.Generator):
        yield _later(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        yield _later(value.setstate, value.getstate())
    elif isinstance(value, np.random.Generator):
        yield _later(lambda state: setattr(value.bit_generator, "state", state), value.bit_generator.state)
    elif isinstance(value, np.random.RandomState):
        yield _later(value.set_state, value.get_state(legacy=False))


def _later(set_state: Callable[[Any], Any], state: Any) -> Restore:
    def restore() -> None:
        set_state(state)

    return restore
