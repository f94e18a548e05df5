"""Data run through a PyTorch model that is being watched: what arrives at its BN layers, and what comes out."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from bnlearn.clinic._facts import OutputFacts, SeenFacts, Vector
from bnlearn.clinic._observe import Observer, double, to_numpy, variance_ratio
from bnlearn.clinic._torch.data import copied, inputs, iterating, mask_of, no_batches, samples_in
from bnlearn.clinic._torch.state import Untouched, unnoticed
from bnlearn.functional import Moments
from bnlearn.torch import MaskedBatchNorm

__all__ = ["Run", "run", "uses_batch"]

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class _SingleValueReached(BaseException):
    """One value per channel is about to be normalised; no ``except Exception`` in a model is to swallow that."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass
class Run:
    """What :func:`run` saw.

    Attributes
    ----------
    seen : dict of str to SeenFacts
        By layer, of those that something arrived at, in the order of their first calls.
    output : OutputFacts or None
        None where there was nothing to compare, for the reason in ``notes``.
    single : tuple of str
        Layers that a batch with one value per channel arrived at.
    completed : int
        Batches that went through.
    left : dict of str to str
        Layers of which the hooks do not tell what they normalise by, each with the reason.
    masked : bool
        Whether a mask fitted any layer.
    notes : list of str
    """

    seen: dict[str, SeenFacts]
    output: OutputFacts | None
    single: tuple[str, ...]
    completed: int
    left: dict[str, str]
    masked: bool
    notes: list[str]


def uses_batch(layer: _BatchNorm) -> bool:
    """Whether it normalises by the statistics of the batch, as it stands."""
    return layer.training or (layer.running_mean is None and layer.running_var is None)


def run(
    model: nn.Module,
    layers: Mapping[str, _BatchNorm],
    trains: Mapping[str, bool],
    state: Untouched,
    data: Any,
    mask: Any,
) -> Run:
    """Run ``data`` once through the model in training mode, and two batches of it in evaluation mode too.

    No batch is run more than three times: the first of two samples or more once as the model stands and once with the
    statistics of the data, the second once with its own statistics, all others only in training.

    Parameters
    ----------
    model : torch.nn.Module
        Unwrapped, within :func:`bnlearn.clinic._torch.state.untouched`, whose ``state`` this is.
    layers : mapping of str to layer
        The BN layers to watch.
    trains : mapping of str to bool
        Which of them use the batch's statistics in training; the others are set to evaluation for all passes.
    data, mask : object
        See :func:`bnlearn.audit`.

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        If there is no batch.
    """
    watch = _Watch(model, layers, trains)
    with _eager():
        watch.to_training()
        _train(watch, data, mask)
        found = {name: observer for name, observer in watch.observers.items() if observer.seen}
        output, notes = _evaluate(watch, {name: found[name] for name in found if trains[name]}, state)
    order, ratios = sorted(found, key=watch.order.index), watch.ratios or {}
    seen = {name: found[name].facts(evaluation_ratio=ratios.get(name)) for name in order}
    return Run(
        seen={name: facts for name, facts in seen.items() if facts is not None},
        output=output,
        single=tuple(watch.single),
        completed=watch.completed,
        left=watch.left,
        masked=any(facts is not None and facts.real_mean is not None for facts in seen.values()),
        notes=[*watch.notes, *notes],
    )


def _eager() -> AbstractContextManager[Any]:
    """Parts that ``torch.compile`` has made run as they are written: a compiled part does not see our hooks."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _train(watch: _Watch, data: Any, mask: Any) -> None:
    number = 0
    before = {name: _running_mean(layer) for name, layer in watch.layers.items()}
    with iterating(data) as batches, watch.listening():
        for batch in batches:
            number += 1
            watch.train_on(batch, mask)
            del batch  # before the next one is made
    if not number:
        raise no_batches(data)
    for name, layer in watch.layers.items():
        mean, old = layer.running_mean, before[name]
        if name not in watch.order and mean is not None and old is not None and not torch.equal(mean, old):
            watch.left[name] = "its statistics move without its being called"


def _running_mean(layer: _BatchNorm) -> torch.Tensor | None:
    return None if layer.running_mean is None else layer.running_mean.clone()


def _evaluate(
    watch: _Watch, population: Mapping[str, Observer], state: Untouched
) -> tuple[OutputFacts | None, list[str]]:
    kept = watch.kept
    if kept is None:
        return None, ["no batch of at least two samples gave finite outputs: training and evaluation not compared"]
    state.reset()
    watch.model.eval()
    as_it_stands = watch.forward(*copied((kept.args, kept.kwargs)))
    state.reset()
    watch.model.eval()
    _pretend(watch.layers, population)
    recalibrated = watch.forward(*copied((kept.args, kept.kwargs)))
    gap, left = (_gap(kept.outputs, outputs) for outputs in (as_it_stands, recalibrated))
    moved = _gap(recalibrated, as_it_stands)
    if gap is None or left is None or moved is None:
        return None, ["nothing in the outputs to compare training and evaluation by"]
    return OutputFacts(gap, left, moved, kept.samples), []


def _pretend(layers: Mapping[str, _BatchNorm], population: Mapping[str, Observer]) -> None:
    """Give the layers the statistics of the data, the variance unbiased as PyTorch keeps it."""
    for name, observer in population.items():
        whole, mean, var = observer.whole(), layers[name].running_mean, layers[name].running_var
        if whole is not None and whole.n > 1 and mean is not None and var is not None:
            with torch.no_grad():
                mean.copy_(torch.from_numpy(whole.mean))
                var.copy_(torch.from_numpy(whole.m2 / (whole.n - 1)))


@dataclass
class _Kept:
    """The one batch that is kept and run again, and what it gave in training."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int
    outputs: dict[tuple[Any, ...], torch.Tensor]


class _Watch:
    """The observers of a model's BN layers, and what the passes leave."""

    def __init__(self, model: nn.Module, layers: Mapping[str, _BatchNorm], trains: Mapping[str, bool]) -> None:
        self.model, self.layers, self.trains = model, layers, trains
        self.observers = {name: Observer() for name in layers}
        self.order: list[str] = []
        self.single: dict[str, None] = {}
        self.left: dict[str, str] = {}
        self.notes: dict[str, None] = {}
        self.kept: _Kept | None = None
        self.ratios: dict[str, Vector] | None = None
        self.completed = 0
        self._hearing = self.observers
        self._samples = 0
        self._mask: Mask | None = None
        # Which biased layer made a tensor: by identity, as long as the tensor lives and nothing is written into it.
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], int, str]] = {}

    def to_training(self) -> None:
        """Set the model to training, but for the layers that are frozen."""
        self.model.train()
        for name, layer in self.layers.items():
            layer.train(self.trains[name])

    def train_on(self, batch: Any, mask: Any) -> None:
        """One pass in training mode, which counts unless a layer cannot normalise its input."""
        given = inputs(batch, self.model)
        self._samples, self._mask = samples_in(*given), mask_of(batch, mask)
        candidate = self.kept is None and self._samples > 1
        try:
            outputs = self.forward(*(copied(given) if candidate else given))
        except _SingleValueReached as reached:
            self.single[reached.name] = None
            for observer in self.observers.values():
                observer.discard()
            return
        moments = {name: observer.commit() for name, observer in self.observers.items()}
        self.completed += 1
        if self.ratios is not None or self._samples < 2 or not all(map(_is_finite, outputs.values())):
            return
        if candidate:
            self.kept = _Kept(*given, self._samples, outputs)
        else:
            del given, outputs  # before the batch is run again
            self.ratios = self._ratios(batch, moments)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[tuple[Any, ...], torch.Tensor]:
        """The floating-point outputs; the model may write into what it gets."""
        self._made.clear()
        with torch.no_grad():
            return dict(_tensors(self.model(*args, **kwargs)))

    def _ratios(self, batch: Any, reference: Mapping[str, Moments | None]) -> dict[str, Vector]:
        """The variance at inference over that in training, where all that differs is what is random in training.

        The layers use the batch's own statistics in both passes, so that the draw of the batch makes no difference.
        The passes in training go on afterwards as if nothing had been in between.
        """
        self._hearing = {name: Observer() for name in self.layers}
        with unnoticed(self.model):
            self.model.eval()
            for name, layer in self.layers.items():
                if self.trains[name] and self.observers[name].seen:
                    layer.train()
            try:
                self.forward(*inputs(batch, self.model))
            except _SingleValueReached:  # on a path that only evaluation takes
                return {}
            finally:
                heard, self._hearing = self._hearing, self.observers
                self.to_training()
        pairs = {name: (observer.commit(), reference[name]) for name, observer in heard.items()}
        return {name: variance_ratio(a.var, b.var) for name, (a, b) in pairs.items() if a is not None and b is not None}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the observers see what arrives, from hooks that are taken away at the end."""
        handles = [
            layer.register_forward_pre_hook(self._hook(name), with_kwargs=True) for name, layer in self.layers.items()
        ]
        try:
            handles += [
                module.register_forward_hook(self._remember(name))
                for name, module in self.model.named_modules()
                if isinstance(module, nn.Linear | _ConvNd) and module.bias is not None
            ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def arrives(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (*args, *kwargs.values())
            if not given or not isinstance(given[0], torch.Tensor) or given[0].dim() < 2:
                return  # the layer itself will say what is wrong
            x = given[0]
            if self._hearing is self.observers and name not in self.order:
                self.order.append(name)
            source, mask = self._maker_of(x), self._mask
            others = [value for value in given[1:] if value is not None]
            if others and _masks(layer, x, others[0]):
                # One row of what counts: these are no samples any more. Is all of it real?
                counts = to_numpy(others[0])
                x = x.movedim(1, -1)[others[0]].T[None]
                mask = mask[counts][None] if mask is not None and mask.shape == counts.shape else None
                self.notes[f"{name}: a mask reaches it, and what that leaves out does not count"] = None
            elif others:
                self.left[name] = "it is called with more than its input"
            if x.numel() == x.shape[1] and uses_batch(layer):
                raise _SingleValueReached(name)
            self._hearing[name].see(x, samples=self._samples, mask=mask, source=source)

        return arrives

    def _remember(self, name: str) -> Callable[..., None]:
        def returns(module: Any, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not output.is_inference():
                self._made[id(output)] = weakref.ref(output), output._version, name

        return returns

    def _maker_of(self, x: torch.Tensor) -> str | None:
        reference, version, name = self._made.get(id(x), (None, 0, ""))
        return name if reference is not None and reference() is x and x._version == version else None


def _masks(layer: _BatchNorm, x: torch.Tensor, mask: Any) -> bool:
    """Whether the layer takes the mask it is called with as ours does; if it is none, the layer itself will say so."""
    fits = isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.shape == (x.shape[0], *x.shape[2:])
    return isinstance(layer, MaskedBatchNorm) and fits


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _tensors(output: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """The floating-point tensors in what a model returned that have an axis of samples, each with its place."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point() and output.dim():
            yield path, output.detach()
        return
    if isinstance(output, Mapping):
        parts = list(output.items())
    elif isinstance(output, tuple | list):
        parts = list(enumerate(output))
    elif is_dataclass(output):
        parts = [(field.name, getattr(output, field.name)) for field in fields(output)]
    else:
        return
    for key, part in parts:
        yield from _tensors(part, (*path, key))


def _gap(
    reference: Mapping[tuple[Any, ...], torch.Tensor], outputs: Mapping[tuple[Any, ...], torch.Tensor]
) -> float | None:
    """How far the outputs lie apart, in standard deviations of the reference over its samples."""
    difference = spread = 0.0
    for place, tensor in reference.items():
        if place in outputs and outputs[place].shape == tensor.shape:
            a, b = to_numpy(double(tensor)), to_numpy(double(outputs[place]))
            with np.errstate(all="ignore"):
                difference += float(np.sum((a - b) ** 2))
            spread += float(np.sum(np.var(a, axis=0))) * len(a)
    if not spread > 0:
        return None
    return float(np.sqrt(difference / spread)) if np.isfinite(difference) else float("inf")
