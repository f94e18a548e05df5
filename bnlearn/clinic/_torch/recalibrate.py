"""Exact population statistics for the BN layers of a PyTorch model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from bnlearn.clinic._observe import double
from bnlearn.clinic._progress import bar
from bnlearn.clinic._repair import Repair
from bnlearn.clinic._torch.data import check_data, inputs, iterating, no_batches, unwrap
from bnlearn.clinic._torch.freeze import Frozen
from bnlearn.clinic._torch.select import chosen
from bnlearn.clinic._torch.state import generators, random_states, untouched
from bnlearn.functional import Moments, merge_moments, moments
from bnlearn.torch import MaskedBatchNorm

__all__ = ["recalibrate"]

AGREES = 1e-6
"""How far the statistics of a layer that is called more than once may lie from those that they lead to: the mean in
standard deviations, the variance relative."""

Seen = Mapping[str, tuple[Moments, int]]
"""By layer: what arrived, and in how many batches."""

Take = Callable[[str, torch.Tensor, list[Any]], None]
"""Told of each call: the layer, what arrives at it, and what else it is called with."""

OWN_WAY = "it is called with more than its input, so what it counts is not known"


class _Enough(BaseException):
    """All that a pass is to see has been seen, and the rest need not run. (No Exception: a model may catch those.)"""


@dataclass(frozen=True)
class _Statistics:
    """What a layer is to have: shape (C,), float64; ``var`` as PyTorch keeps it, over n - 1."""

    mean: torch.Tensor
    var: torch.Tensor
    batches: int


def recalibrate(
    model: nn.Module,
    data: Any,
    *,
    layers: Collection[str] | None = None,
    one_pass: bool = False,
    progress: bool = True,
) -> Repair:
    """See :func:`bnlearn.recalibrate`."""
    model = unwrap(model)
    norms = chosen(model, layers)
    check_data(data)
    if not one_pass and isinstance(data, Iterator):
        raise ValueError(
            f"expected data that can be read once per layer, got a {type(data).__name__}, which gives its batches "
            "once; pass a list or a DataLoader, or one_pass=True"
        )
    with untouched(model) as state:
        left = _obstacles(model, norms, named=layers is not None)
        state.reset()
        taken = {name: bn for name, bn in norms.items() if name not in left}
        find = _at_once if one_pass else _in_order
        found, unfit = find(_Passes(model, data), taken, progress)
    left |= unfit
    old = {name: _held(bn) for name, bn in norms.items() if name in found}
    new = {name: _as_held(name, found[name], old[name]) for name in old}
    _write(norms, new)

    def undo() -> nn.Module:
        _write(norms, old)
        return model

    return Repair("recalibrated", model, tuple(old), left, undo)


def _obstacles(model: nn.Module, norms: Mapping[str, _BatchNorm], *, named: bool) -> dict[str, str]:
    """Layers to leave alone, with the reason; a frozen one is taken if it was ``named``. Leaves the model training."""
    by_hand = {name for name, bn in norms.items() if model.training and not bn.training}
    model.train()
    return {name: why for name, bn in norms.items() if (why := _obstacle(bn, name in by_hand, named))}


def _obstacle(bn: _BatchNorm, by_hand: bool, named: bool) -> str:
    if bn.running_mean is None or bn.running_var is None:
        return "it keeps no running mean and variance"
    if bn.running_mean.shape != (bn.num_features,) or bn.running_var.shape != (bn.num_features,):
        return "its statistics are not a mean and a variance for each channel"
    if named:
        return ""
    if isinstance(bn, Frozen) or not bn.training:
        return "it is frozen: model.train() leaves it in evaluation mode"
    return "it is frozen: it is in evaluation mode in a model that trains" if by_hand else ""


class _Passes:
    """Readings of the data, each with the same random state and the same batches."""

    def __init__(self, model: nn.Module, data: Any) -> None:
        self.model, self.data = model, data
        self.left: dict[str, str] = {}
        self._random = [*random_states(model), *generators(model.modules())]

    def batches(self) -> Iterator[Callable[[], None]]:
        """For each batch, what runs the model on it."""
        for restore in self._random:
            restore()
        found = False
        with iterating(self.data) as iterator:
            for batch in iterator:
                found = True
                yield self._runner(batch)
        if not found:
            raise no_batches(self.data)

    def _runner(self, batch: Any) -> Callable[[], None]:
        args, kwargs = inputs(batch, self.model)

        def run() -> None:
            with torch.no_grad():
                self.model(*args, **kwargs)

        return run

    def see(self, norms: Mapping[str, _BatchNorm], *, until: bool = False) -> Seen:
        """What arrives at layers over all the data; ``until``: each forward pass ends at the first call of one."""
        found: dict[str, tuple[Moments, int]] = {}
        for run in self.batches():
            arrived: dict[str, Moments] = {}

            def take(name: str, x: torch.Tensor, others: list[Any], arrived: dict[str, Moments] = arrived) -> None:
                arrived[name] = _merge(arrived.get(name), moments(double(x), self._mask(name, norms[name], others)))
                if until:
                    raise _Enough

            with _watching(norms, take):
                _run(run)
            for name, part in arrived.items():
                before, batches = found.get(name, (None, 0))
                found[name] = _merge(before, part), batches + 1
        return found

    def order(self, norms: Mapping[str, _BatchNorm]) -> dict[str, int]:
        """Layers in the order in which the first batch calls them, then the others; each with its number of calls."""
        calls: Counter[str] = Counter()

        def count(name: str, x: torch.Tensor, others: list[Any]) -> None:
            calls[name] += 1
            self._mask(name, norms[name], others)

        first = self.batches()
        with _watching(norms, count):
            next(first)()
        first.close()  # type: ignore[attr-defined]
        return {**calls, **{name: 0 for name in norms if name not in calls}}

    def _mask(self, name: str, norm: _BatchNorm, others: list[Any]) -> torch.Tensor | None:
        """What else a layer is called with: for ours a mask; for another, who knows."""
        if not others:
            return None
        if isinstance(norm, MaskedBatchNorm):
            return cast(torch.Tensor, others[0])
        self.left[name] = OWN_WAY
        return None


def _run(run: Callable[[], None]) -> None:
    with suppress(_Enough):
        run()


@contextmanager
def _watching(norms: Mapping[str, _BatchNorm], take: Take) -> Iterator[None]:
    """Tell ``take`` the name of each layer and what arrives at it."""
    handles = []
    for name, bn in norms.items():

        def hook(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            x, *others = tree_leaves((args, kwargs))
            take(name, x, [value for value in others if value is not None])

        handles.append(bn.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _merge(*parts: Moments | None) -> Moments:
    return merge_moments(*(part for part in parts if part is not None))


def _in_order(
    passes: _Passes, norms: Mapping[str, _BatchNorm], progress: bool
) -> tuple[dict[str, _Statistics], dict[str, str]]:
    """One layer after the other, each under the new statistics of those before it."""
    passes.model.eval()
    found: dict[str, _Statistics] = {}
    calls, left = passes.order(norms), passes.left
    for name in bar([name for name in calls if name not in left], "recalibrate", "layer", progress):
        bn = norms[name]
        seen = passes.see({name: bn}, until=calls[name] == 1)
        if name not in seen:
            left[name] = "the data do not reach it"
            continue
        before = _held(bn)
        found[name] = _statistics(name, *seen[name])
        _write(norms, {name: _as_held(name, found[name], before)})
        if calls[name] > 1 and not _agree(found[name], _statistics(name, *passes.see({name: bn})[name])):
            _write(norms, {name: before})
            del found[name]
            left[name] = f"it is called {calls[name]} times, and what arrives depends on its own statistics"
    return found, left


def _at_once(
    passes: _Passes, norms: Mapping[str, _BatchNorm], progress: bool
) -> tuple[dict[str, _Statistics], dict[str, str]]:
    """All layers in one reading, those before each in training mode."""
    passes.model.eval()
    for bn in norms.values():
        bn.training = True
    seen, left = passes.see(norms), passes.left
    found = {name: _statistics(name, *seen[name]) for name in norms if name in seen and name not in left}
    return found, {name: left.get(name, "the data do not reach it") for name in norms if name not in found}


def _statistics(name: str, seen: Moments, batches: int) -> _Statistics:
    n = int(seen.n)
    if n < 2:
        raise ValueError(f"expected at least 2 values per channel at {name!r}, got {n}; nothing was changed")
    return _Statistics(seen.mean, seen.m2 / (n - 1), batches)


def _agree(one: _Statistics, other: _Statistics) -> bool:
    apart = (one.mean - other.mean).abs() <= AGREES * one.var.sqrt()
    return bool((apart & ((one.var - other.var).abs() <= AGREES * one.var)).all())


Held = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _buffers(bn: _BatchNorm) -> Held:
    return cast(torch.Tensor, bn.running_mean), cast(torch.Tensor, bn.running_var), bn.num_batches_tracked


def _held(bn: _BatchNorm) -> Held:
    """A copy of what a layer has."""
    mean, var, batches = _buffers(bn)
    return mean.clone(), var.clone(), None if batches is None else batches.clone()


def _as_held(name: str, new: _Statistics, like: Held) -> Held:
    """The new statistics in the precision and on the device of the old."""
    mean, var = new.mean.to(like[0]), new.var.to(like[1])
    if not bool((mean.isfinite() & var.isfinite()).all()):
        raise ValueError(
            f"expected finite statistics at {name!r}, got NaN or infinite ones in {like[0].dtype}: look for them in "
            "the data; nothing was changed"
        )
    return mean, var, None if like[2] is None else torch.full_like(like[2], new.batches)


def _write(norms: Mapping[str, _BatchNorm], values: Mapping[str, Held]) -> None:
    for name, held in values.items():
        for buffer, value in zip(_buffers(norms[name]), held, strict=True):
            if buffer is not None:
                buffer.copy_(cast(torch.Tensor, value))
