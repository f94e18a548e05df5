"""Exact population statistics for the BN layers of a Keras model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from bnlearn.clinic._facts import Vector
from bnlearn.clinic._keras.data import batches, inputs_of, repeatable, samples_of
from bnlearn.clinic._keras.freeze import is_held
from bnlearn.clinic._keras.layers import every_layer, require_built, selected
from bnlearn.clinic._keras.listen import Arrival, listening, patched, run_eagerly, symbolic, tell
from bnlearn.clinic._keras.outputs import array
from bnlearn.clinic._keras.state import kept, same_randomness, snapshot, untouched
from bnlearn.clinic._observe import Observer
from bnlearn.clinic._progress import bar
from bnlearn.clinic._repair import Repair

__all__ = ["recalibrate"]

AGREES = 1e-6
"""How far the statistics of a layer that is called more than once may lie from those that they lead to: the mean in
standard deviations, the variance relative."""

FROZEN = "it is frozen: training leaves it in inference mode"

Statistics = tuple[Vector, Vector]
"""Mean and biased variance, shape (C,)."""


class _Enough(BaseException):
    """All that a pass is to see has been seen: the rest need not run. No error, for a model may catch those."""


def recalibrate(
    model: Any,
    data: Any,
    *,
    layers: Collection[str] | None = None,
    one_pass: bool = False,
    progress: bool = True,
) -> Repair:
    """See :func:`bnlearn.recalibrate`; what Keras's own mask leaves out does not count.

    Raises
    ------
    ValueError
        If ``model`` is not built; ``data`` is empty, has no end, or can be read only once; a name in ``layers`` is not
        that of a BN layer; or what arrives at a layer is not finite. Nothing is changed then.
    TypeError
        If ``data`` is no iterable of batches.
    """
    require_built(model)
    norms = selected(model, layers)
    if not one_pass:
        repeatable(data)
    with untouched(model):
        left = _obstacles(norms, named=layers is not None)
        taken = {name: layer for name, layer in norms.items() if name not in left}
        find = _at_once if one_pass else _in_order
        found, unfit = find(_Passes(model, data), taken, layers is not None, progress)
    undo = snapshot([v for name in found for v in _variables(norms[name])])
    try:
        for name, statistics in found.items():
            _assign(norms[name], statistics)
    except BaseException:
        undo()
        raise

    def back() -> Any:
        undo()
        return model

    return Repair("recalibrated", model, tuple(found), left | unfit, back)


def _obstacles(norms: Mapping[str, Any], *, named: bool) -> dict[str, str]:
    """Layers to leave alone, with the reason; a frozen one is taken if it was ``named``."""
    left = {name: "it was never called, and has no weights" for name, layer in norms.items() if not layer.built}
    frozen = {name: FROZEN for name, layer in norms.items() if not layer.trainable or is_held(layer)}
    return left if named else frozen | left


class _Passes:
    """Readings of the data, each with the same random state."""

    def __init__(self, model: Any, data: Any) -> None:
        self.model, self.data = model, data
        self.calls: Counter[str] = Counter()
        self.weights = list({id(v): v for layer in every_layer(model) for v in layer.weights}.values())

    def batches(self) -> Iterator[Any]:
        """What the model is called with, batch by batch."""
        with same_randomness():
            for batch in batches(self.data):
                yield inputs_of(batch)

    def run(self, inputs: Any, norms: Mapping[str, Any], arrives: Callable[[Arrival], None], training: bool) -> None:
        """One batch, until ``arrives`` has seen enough."""
        with run_eagerly(), listening(norms, arrives), suppress(_Enough):
            self.model(inputs, training=training)

    def order(self, norms: Mapping[str, Any], *, named: bool) -> dict[str, str]:
        """Count the calls of each layer for the first batch, and tell which layers sleep in training."""
        first = self.batches()

        def count(arrival: Arrival) -> None:
            self.calls[arrival.name] += 1

        inputs = next(first)
        self.run(inputs, norms, count, False)
        left = {} if named else self.asleep(inputs, norms)
        first.close()  # type: ignore[attr-defined]
        return left

    def asleep(self, inputs: Any, norms: Mapping[str, Any]) -> dict[str, str]:
        """Layers that the model calls with ``training=False`` when it trains."""
        modes: dict[str, bool] = {}

        def note(arrival: Arrival) -> None:
            modes[arrival.name] = modes.get(arrival.name, False) or arrival.training

        with kept(self.weights):
            self.run(inputs, norms, note, True)
        return {name: FROZEN for name, trains in modes.items() if not trains}

    def see(self, name: str, layer: Any) -> Statistics:
        """The statistics of what arrives at a layer over all the data, in evaluation mode."""
        observer = Observer()
        for inputs in self.batches():
            samples = samples_of(inputs)

            def take(arrival: Arrival, samples: int = samples) -> None:
                _take(observer, arrival, samples)
                if self.calls[name] == 1:
                    raise _Enough

            self.run(inputs, {name: layer}, take, False)
            observer.commit()
        return _statistics(name, observer)


def _take(observer: Observer, arrival: Arrival, samples: int) -> None:
    if symbolic(arrival.x):
        raise ValueError(
            f"expected a model that runs eagerly, got one that calls {arrival.name!r} inside a compiled function, "
            "where nothing can be observed; nothing was changed"
        )
    tell(observer, arrival, samples)


def _statistics(name: str, observer: Observer) -> Statistics:
    whole = observer.whole()
    if whole is None or not observer.finite:
        raise ValueError(
            f"expected finite values at {name!r}, got NaN or infinite ones: look for them in the data; nothing was "
            "changed"
        )
    return whole.mean, whole.var


def _in_order(
    passes: _Passes, norms: Mapping[str, Any], named: bool, progress: bool
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """One layer after the other, each under the new statistics of those before it."""
    left = passes.order(norms, named=named)
    left |= {name: "the data do not reach it" for name in norms if name not in passes.calls}
    found: dict[str, Statistics] = {}
    names = [name for name in passes.calls if name not in left]
    for name in bar(names, "recalibrate", "layer", progress):
        layer, back = norms[name], snapshot(_variables(norms[name]))
        statistics = passes.see(name, layer)
        _assign(layer, statistics)
        if passes.calls[name] > 1 and not _agree(statistics, passes.see(name, layer)):
            back()
            left[name] = f"it is called {passes.calls[name]} times, and what arrives depends on its own statistics"
        else:
            found[name] = statistics
    return found, left


def _at_once(
    passes: _Passes, norms: Mapping[str, Any], named: bool, progress: bool
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """All layers in one reading, those before each in training mode."""
    observers = {name: Observer() for name in norms}
    left: dict[str, str] = {}

    def train(name: str, layer: Any, call: Any, args: Any, kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": name not in left})

    for number, inputs in enumerate(passes.batches()):
        if not number and not named:
            left |= passes.asleep(inputs, norms)
        samples = samples_of(inputs)

        def take(arrival: Arrival, samples: int = samples) -> None:
            _take(observers[arrival.name], arrival, samples)

        with kept(passes.weights), patched(norms, train):
            passes.run(inputs, norms, take, False)
        for observer in observers.values():
            observer.commit()
    left |= {name: "the data do not reach it" for name, observer in observers.items() if not observer.seen}
    return {name: _statistics(name, observers[name]) for name in norms if name not in left}, left


def _agree(one: Statistics, other: Statistics) -> bool:
    apart = np.abs(one[0] - other[0]) <= AGREES * np.sqrt(one[1])
    return bool((apart & (np.abs(one[1] - other[1]) <= AGREES * one[1])).all())


def _variables(layer: Any) -> list[Any]:
    """The statistics, those of batch renormalisation too."""
    names = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


def _assign(layer: Any, statistics: Statistics) -> None:
    mean, var = statistics
    std = np.sqrt(var + layer.epsilon)  # as Keras's batch renormalisation keeps it
    for variable, value in zip(_variables(layer), (mean, var, std, mean, std), strict=False):
        variable.assign(value)
        if not np.isfinite(array(variable).astype(np.float64)).all():
            raise ValueError(
                f"expected statistics that fit into {variable.dtype} at {layer.name!r}, got infinite ones; nothing was "
                "changed"
            )
