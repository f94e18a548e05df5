"""Data run through a Keras model that is being watched: what arrives at its BN layers, and what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnlearn.clinic._facts import OutputFacts, SeenFacts, Vector
from bnlearn.clinic._keras.axis import problem
from bnlearn.clinic._keras.data import batches, inputs_of, mask_of, samples_of
from bnlearn.clinic._keras.freeze import is_held
from bnlearn.clinic._keras.layers import every_layer, named_layers
from bnlearn.clinic._keras.listen import Arrival, listening, patched, run_eagerly, symbolic, tell
from bnlearn.clinic._keras.origins import Origins
from bnlearn.clinic._keras.outputs import Outputs, floating, gap
from bnlearn.clinic._keras.state import kept, same_randomness
from bnlearn.clinic._observe import Observer, variance_ratio
from bnlearn.functional import Moments

__all__ = ["Look", "look"]


@dataclass
class Look:
    """What running the data showed.

    Attributes
    ----------
    order : list of str
        The BN layers in the order of their first calls.
    seen : dict of str to SeenFacts
        By layer, of those that something arrived at.
    trained, batch_at_inference : dict of str to bool
        Whether ``training=True`` ever arrived when the model trained, and when it did not.
    problems : dict of int to str
        What is wrong with a layer's axis, by its id.
    output : OutputFacts or None
        None where there was nothing to compare.
    completed : int
        Batches that went through.
    masked : bool
        Whether a mask fitted any layer.
    single : list of str
        Layers that a batch with one value per channel arrived at.
    notes : list of str
    """

    order: list[str] = field(default_factory=list)
    seen: dict[str, SeenFacts] = field(default_factory=dict)
    trained: dict[str, bool] = field(default_factory=dict)
    batch_at_inference: dict[str, bool] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    output: OutputFacts | None = None
    completed: int = 0
    masked: bool = False
    single: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, note: str) -> None:
        """Say something once."""
        if note not in self.notes:
            self.notes.append(note)


def look(model: Any, norms: Mapping[str, Any], data: Any, mask: Any) -> Look:
    """Run each batch once in training mode, and two of them in evaluation mode too.

    No batch is run more than three times: the first of two samples or more once as the model stands and once with the
    statistics of the data, the second once with its own statistics, all others only in training.

    Parameters
    ----------
    model : keras.Model or keras.Layer
        Built, and within :func:`bnlearn.clinic._keras.state.untouched`.
    norms : mapping of str to layer
        The BN layers to watch.
    data, mask : object
        See :func:`bnlearn.audit`.
    """
    watch = _Watch(model, norms)
    for batch in batches(data):
        watch.train_on(batch, mask)
    watch.compare()
    for name, observer in watch.observers.items():
        seen = observer.facts(evaluation_ratio=(watch.ratios or {}).get(name))
        if seen is not None:
            watch.found.seen[name] = seen
    watch.found.masked = any(seen.real_mean is not None for seen in watch.found.seen.values())
    return watch.found


@dataclass
class _Kept:
    """The one batch that is kept and run again, and what it gave in training."""

    inputs: Any
    samples: int
    outputs: Outputs


class _Watch:
    """The observers of a model's BN layers, and what the passes leave."""

    def __init__(self, model: Any, norms: Mapping[str, Any]) -> None:
        self.model, self.norms = model, norms
        self.found = Look()
        self.observers = {name: Observer() for name in norms}
        self.weights = list({id(v): v for layer in every_layer(model) for v in layer.weights}.values())
        self.makers = {n: layer for n, layer in named_layers(model).items() if isinstance(layer, Origins.KINDS)}
        self.kept: _Kept | None = None
        self.ratios: dict[str, Vector] | None = None
        self._samples = 0
        self._mask: Any = None
        self._single: list[str] = []
        self._origins = Origins()

    def train_on(self, batch: Any, mask: Any) -> None:
        """One pass in training mode, which counts unless a layer gets a single value per channel."""
        inputs = inputs_of(batch)
        self._samples, self._mask = samples_of(inputs), mask_of(mask, batch)
        self._single, self._origins = [], Origins()
        outputs = self._pass(inputs, True, self._arrives)
        if self._single:
            self.found.single += [name for name in self._single if name not in self.found.single]
            for observer in self.observers.values():
                observer.discard()
            return
        moments = {name: observer.commit() for name, observer in self.observers.items()}
        self.found.completed += 1
        if self.ratios is not None or self._samples < 2 or not all(np.isfinite(x).all() for _, x in outputs.values()):
            return
        if self.kept is None:
            self.kept = _Kept(inputs, self._samples, outputs)
        else:
            with same_randomness():
                self.ratios = self._ratios(inputs, moments)

    def _pass(self, inputs: Any, training: bool, arrives: Callable[[Arrival], None]) -> Outputs:
        """The outputs; weights and statistics are as before."""
        with ExitStack() as stack:
            stack.enter_context(kept(self.weights))
            if training:
                stack.enter_context(patched(self.makers, self._origins.around))
            stack.enter_context(listening(self.norms, arrives))
            stack.enter_context(run_eagerly())
            return floating(self.model(inputs, training=training))

    def _arrives(self, arrival: Arrival) -> None:
        """Something arrives in training."""
        name, layer, x, found = arrival.name, arrival.layer, arrival.x, self.found
        if name not in found.order:
            found.order.append(name)
        found.trained[name] = found.trained.get(name, False) or arrival.training
        if symbolic(x):
            found.note(f"{name}: called inside a compiled function, where nothing can be observed")
            return
        origin = self._origins.of(x)
        wrong = problem(layer, len(x.shape), origin.channels)
        if wrong is not None:
            found.problems[id(layer)] = wrong
        if self._learns(name) and int(np.prod(x.shape)) == int(x.shape[layer.axis]):
            self._single.append(name)
        tell(self.observers[name], arrival, self._samples, self._mask_at(arrival), origin.biased)

    def _learns(self, name: str) -> bool:
        layer = self.norms[name]
        return self.found.trained.get(name, False) and layer.trainable and not is_held(layer)

    def _mask_at(self, arrival: Arrival) -> Any:
        """Which positions are real: the user's word, or the model's own mask where it does not reach the layer."""
        if arrival.mask is not None:
            self.found.note(f"{arrival.name}: Keras's own mask reaches it, and what that leaves out does not count")
            return self._mask
        if self._mask is not None:
            return self._mask
        shape = list(arrival.x.shape)
        del shape[arrival.layer.axis]
        own = self._origins.mask(shape)
        if own is not None:
            self.found.note(f"{arrival.name}: the model makes a mask, which does not reach it")
        return own

    def compare(self) -> None:
        """Run the kept batch in evaluation mode: as the model stands, and with the statistics of the data."""
        if self.kept is None:
            self.found.note("no batch of two samples or more gave finite outputs: training and evaluation not compared")
            return
        as_it_stands = self._pass(self.kept.inputs, False, self._at_inference)
        with kept(self.weights):
            self._pretend()
            recalibrated = self._pass(self.kept.inputs, False, lambda arrival: None)
        before, left = (gap(self.kept.outputs, outputs) for outputs in (as_it_stands, recalibrated))
        moved = gap(recalibrated, as_it_stands)
        if before is None or left is None or moved is None:
            self.found.note("nothing in the outputs to compare training and evaluation by")
        else:
            self.found.output = OutputFacts(before, left, moved, self.kept.samples)

    def _ratios(self, inputs: Any, reference: Mapping[str, Moments | None]) -> dict[str, Vector]:
        """The variance at inference over that in training, where all that differs is what is random in training.

        The layers use the batch's own statistics in both passes, so that the draw of the batch makes no difference.
        """
        observers = {name: Observer() for name in self.norms}
        learning = {name: layer for name, layer in self.norms.items() if self._learns(name)}

        def arrives(arrival: Arrival) -> None:
            if not symbolic(arrival.x):
                tell(observers[arrival.name], arrival, self._samples)

        with patched(learning, _in_training):
            self._pass(inputs, False, arrives)
        pairs = {name: (observer.commit(), reference[name]) for name, observer in observers.items()}
        return {name: variance_ratio(a.var, b.var) for name, (a, b) in pairs.items() if a is not None and b is not None}

    def _at_inference(self, arrival: Arrival) -> None:
        found = self.found.batch_at_inference
        found[arrival.name] = found.get(arrival.name, False) or arrival.training

    def _pretend(self) -> None:
        """Give the layers that train the statistics of the data, the variance biased as Keras keeps it."""
        for name, observer in self.observers.items():
            whole, layer = observer.whole(), self.norms[name]
            if whole is not None and self._learns(name):
                layer.moving_mean.assign(whole.mean)
                layer.moving_variance.assign(whole.var)


def _in_training(name: str, layer: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a layer as in training."""
    given = inspect.signature(call).bind(*args, **kwargs)
    given.arguments["training"] = True
    return call(*given.args, **given.kwargs)
