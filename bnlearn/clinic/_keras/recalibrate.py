"""Exact population statistics for the BN layers of a Keras model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
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
        passes = _Passes(model, data)
        left = passes.obstacles(norms, named=layers is not None)
        taken = {name: layer for name, layer in norms.items() if name not in left}
        found, unfit = (_at_once if one_pass else _in_order)(passes, taken, progress)
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


class _Passes:
    """Readings of the data, each with the same random state."""

    def __init__(self, model: Any, data: Any) -> None:
        self.model, self.data = model, data
        self.calls: Counter[str] = Counter()

    def batches(self) -> Iterator[Any]:
        """What the model is called with, batch by batch."""
        with same_randomness():
            for batch in batches(self.data):
                yield inputs_of(batch)

    def run(self, inputs: Any, norms: Mapping[str, Any], arrives: Callable[[Arrival], None], training: bool) -> None:
        """One batch, until ``arrives`` has seen enough."""
        with run_eagerly(), listening(norms, arrives):
            try:
                self.model(inputs, training=training)
            except _Enough:
                pass

    def obstacles(self, norms: Mapping[str, Any], *, named: bool) -> dict[str, str]:
        """Layers to leave alone, with the reason; a frozen one is taken if it was ``named``."""
        left = {name: "it was never called, and has no weights" for name, x in norms.items() if not x.built}
        frozen = {name for name, x in norms.items() if name not in left and (not x.trainable or is_held(x))}
        left |= {} if named else dict.fromkeys(frozen, "it is frozen: training leaves it in inference mode")
        return left

    def order(self, norms: Mapping[str, Any]) -> None:
        """Count the calls of each layer for the first batch, in the order of the first ones."""
        first = self.batches()

        def count(arrival: Arrival) -> None:
            self.calls[arrival.name] += 1

        self.run(next(first), norms, count, False)
        first.close()  # type: ignore[attr-defined]

    def see(self, name: str, layer: Any) -> Statistics | None:
        """The statistics of what arrives at a layer over all the data, in evaluation mode; None if nothing does."""
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
            f"expected a model that runs eagerly, got one that calls {arrival.name!r} inside a compiled function, where "
            "nothing can be observed; nothing was changed"
        )
    tell(observer, arrival, samples)


def _statistics(name: str, observer: Observer) -> Statistics | None:
    if not observer.seen:
        return None
    whole = observer.whole()
    if whole is None or not observer.finite:
        raise ValueError(
            f"expected finite values at {name!r}, got NaN or infinite ones: look for them in the data; nothing was changed"
        )
    return whole.mean, whole.var


def _in_order(
    passes: _Passes, norms: Mapping[str, Any], progress: bool
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """One layer after the other, each under the new statistics of those before it."""
    passes.order(norms)
    left = {name: "the data do not reach it" for name in norms if name not in passes.calls}
    found: dict[str, Statistics] = {}
    for name in bar(list(passes.calls), "recalibrate", "layer", progress):
        layer, back = norms[name], snapshot(_variables(norms[name]))
        statistics = passes.see(name, layer)
        assert statistics is not None
        _assign(layer, statistics)
        if passes.calls[name] > 1 and not _agree(statistics, passes.see(name, layer)):
            back()
            left[name] = f"it is called {passes.calls[name]} times, and what arrives depends on its own statistics"
        else:
            found[name] = statistics
    return found, left


def _at_once(passes: _Passes, norms: Mapping[str, Any], progress: bool) -> tuple[dict[str, Statistics], dict[str, str]]:
    """All layers in one reading, those before each in training mode."""
    observers = {name: Observer() for name in norms}

    def train(name: str, layer: Any, call: Any, args: Any, kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": True})

    weights = [v for layer in every_layer(passes.model) for v in layer.weights]
    with patched(norms, train):
        for inputs in passes.batches():
            samples = samples_of(inputs)
            with kept(weights):
                passes.run(inputs, norms, lambda a, n=samples: _take(observers[a.name], a, n), False)
            for observer in observers.values():
                observer.commit()
    every = {name: _statistics(name, observer) for name, observer in observers.items()}
    found = {name: statistics for name, statistics in every.items() if statistics is not None}
    return found, {name: "the data do not reach it" for name in norms if name not in found}


def _agree(one: Statistics, other: Statistics | None) -> bool:
    assert other is not None
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
