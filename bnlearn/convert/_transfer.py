"""Whole-model state from one framework to another: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnlearn.convert._match import Pair, match
from bnlearn.convert._models import Model, open_model
from bnlearn.convert._units import BATCH_NORM, Array, Change, Unit

__all__ = ["Moved", "Report", "transfer"]


@dataclass(frozen=True)
class Moved:
    """One layer's move.

    Attributes
    ----------
    source, target : str
        The layer's name on both sides.
    kind : str
        What it computes.
    arrays : tuple of str
        Which arrays it took, by PyTorch's names.
    notes : tuple of str
        What was set besides, made up or left.
    """

    source: str
    target: str
    kind: str
    arrays: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What :func:`transfer` did. ``print(report)`` lists it.

    Attributes
    ----------
    moved : tuple of Moved
        One per layer with state, in the order of the source.
    notes : tuple of str
        What concerns the whole.
    max_difference : float or None
        Largest absolute difference of the two models' outputs on the example; None if there was none.
    """

    moved: tuple[Moved, ...]
    notes: tuple[str, ...]
    max_difference: float | None

    def __str__(self) -> str:
        width = max((len(move.source) for move in self.moved), default=0)
        lines = [f"{len(self.moved)} layer{'s' * (len(self.moved) != 1)} moved"]
        for move in self.moved:
            lines.append(f"  {move.source:{width}} -> {move.target}  ({move.kind}: {', '.join(move.arrays)})")
            lines += [f"  {'':{width}}    {note}" for note in move.notes]
        compared = self.max_difference is not None
        said = (
            f"outputs differ by at most {self.max_difference:.1e}" if compared else "outputs NOT compared: no example"
        )
        return "\n".join([*lines, *self.notes, said])


def transfer(
    source: Model,
    target: Model,
    *,
    names: Mapping[str, str] | None = None,
    skip: Collection[str] = (),
    n: int | Mapping[str, int] | None = None,
    flatten: Mapping[str, Sequence[int] | None] | None = None,
    example: Any = None,
    tolerance: float = 1e-4,
) -> Report:
    r"""Give ``target`` the state of ``source``, which may be of another framework, so that both compute the same.

    Parameters and running statistics move, converted in layout and meaning, and so do ``eps`` and ``momentum``. It
    happens entirely or, where anything does not fit, not at all.

    Parameters
    ----------
    source, target : torch.nn.Module, keras.Model or bnlearn.layers.Layer
        Any two. Neither is compiled, moved to another device or switched between training and evaluation.
    names : mapping of str to str, optional
        The source's name of a layer to the target's, for layers that would not find each other. Without, layers with
        state are matched by name if all names agree (``layer1.0.bn``, ``layer1/0/bn`` and ``layer1_0_bn`` do), else in
        order of definition, by kind and size.
    skip : collection of str
        Layers of either side to leave alone (a new head, say), or what they are inside of.
    n : int or mapping of str to int, optional
        Values per channel in the source's training batches (N times the positions), of all batch normalisations or by
        the name of the layer on either side: PyTorch keeps the UNBIASED running variance, Keras the biased one, and
        ``n`` turns one into the other (see :func:`values_per_channel`). Without, the variance stays as it is, which is
        what keeps the outputs equal.
    flatten : mapping of str to (int, ...) or None, optional
        For a Keras layer after a Flatten: the shape (C, \*spatial) that PyTorch flattens, or None where both flatten
        alike. Needed only where the Keras model does not tell.
    example : array or pair of arrays, optional
        An input of the source, on which both are run in evaluation mode, and compared. Images get their channels moved;
        for other inputs that differ give the pair (source's, target's).
    tolerance : float
        Largest difference of the outputs on the example, relative to the largest output (or to 1).

    Returns
    -------
    Report
        Which layer went where, and what had to be set, made up or left.

    Raises
    ------
    TypeError
        If a model is of no supported kind.
    ValueError
        If layers lack a counterpart, differ in shape, kind or geometry, or could be confused; if a weight has no
        place; or if the outputs differ on the example. The message names the layers on both sides. Nothing has been
        changed.

    Notes
    -----
    What moves: linear layers, convolutions (1 to 3 axes; grouped, transposed, depthwise, separable), embeddings, PReLU,
    LSTM, GRU and simple recurrent layers, batch, layer, RMS, group and instance normalisation, and most layers that
    :mod:`bnlearn.torch`, :mod:`bnlearn.keras` and :mod:`bnlearn.layers` add (their variance as it is). A subclass of
    a known layer is unknown: it may compute something else.

    Without an example, layers of the same kind and size that stand in another order on both sides are only found out
    where others around them betray it, and what has no state (activations, padding, pooling) is not looked at. Give
    one.

    A layer that lacks a bias (or gamma) computes as with 0 (or 1): the target gets these, or is refused if it is the
    one that lacks a place for other values. Arrays keep the target's dtype.

    Examples
    --------
    >>> import torch
    >>> from bnlearn import layers
    >>> rng = np.random.default_rng(0)
    >>> ours = layers.Sequential(layers.Linear(4, 3, rng=rng), layers.BatchNorm1d(3), layers.ReLU())
    >>> theirs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3, eps=1e-3), torch.nn.ReLU())
    >>> print(transfer(ours, theirs))
    2 layers moved
      0 -> 0  (linear: weight, bias)
      1 -> 1  (batch norm: weight, bias, running_mean, running_var, num_batches_tracked)
           eps 0.001 -> 1e-05
    outputs NOT compared: no example
    """
    here, there = open_model(source, "source"), open_model(target, "target")
    if flatten and here.is_keras == there.is_keras:
        number = 2 if here.is_keras else 0
        raise ValueError(f"expected flatten only where one side is a Keras model, got {number} of them")
    ours, theirs = here.units(flatten), there.units(flatten)
    pairs, problems = match(ours, theirs, names or {}, skip, compared=example is not None)
    counts = _counts(n, pairs, problems)
    plans = [] if problems else [_plan(*pair, counts.get(pair[1].name), problems) for pair in pairs]
    changes = [change for _, made, _ in plans for change in made]
    corrections = [change for _, _, made in plans for change in made]
    _check_tied(changes, problems)
    if problems:
        raise ValueError("the models do not fit, nothing was changed:\n- " + "\n- ".join(problems))
    difference = _apply(changes, corrections, here, there, example, tolerance)
    return Report(tuple(move for move, _, _ in plans), tuple(_left_out(skip)), difference)


def _left_out(skip: Collection[str]) -> list[str]:
    return [f"left alone: {', '.join(skip)}"] if skip else []


def _counts(n: int | Mapping[str, int] | None, pairs: Sequence[Pair], problems: list[str]) -> dict[str, int]:
    """Values per channel, by the target's names."""
    if n is None:
        return {}
    norms = [(ours.name, theirs.name) for ours, theirs in pairs if ours.kind == BATCH_NORM]
    stated = dict(n) if isinstance(n, Mapping) else dict.fromkeys((name for _, name in norms), n)
    unknown = set(stated) - {name for pair in norms for name in pair}
    if unknown and not problems:
        problems.append(f"n has {', '.join(map(repr, sorted(unknown)))}, which is no batch normalisation")
    problems += [f"expected n > 1 values per channel, got n = {count}" for count in {*stated.values()} if count < 2]
    return {theirs: stated[key] for ours, theirs in norms for key in (ours, theirs) if key in stated}


def _plan(source: Unit, target: Unit, n: int | None, problems: list[str]) -> tuple[Moved, list[Change], list[Change]]:
    """What to say about it, what to assign to ``target``, and what after the outputs were compared."""
    where = f"source layer {source} and target layer {target}"
    arrays: dict[str, Array] = {}
    corrected: dict[str, Array] = {}
    notes: list[str] = []
    for key in {**target.arrays, **source.arrays}:
        own, given = target.arrays.get(key), source.arrays.get(key)
        neutral = {"weight": 1.0, "bias": 0.0}.get(key)
        if key == "num_batches_tracked" and (own is None or given is None):
            continue
        if own is None and given is not None:
            if neutral is None or np.any(given != neutral):
                problems.append(f"{where}: the target has no place for {key}")
        elif own is not None and given is not None:
            if own.shape != given.shape:
                problems.append(f"{where} differ in the shape of {key}: {given.shape} and {own.shape}")
            arrays[key] = given
        elif own is not None:
            if neutral is None:
                problems.append(f"{where}: the source has no {key}")
            else:
                arrays[key] = np.full_like(own, neutral)
                notes.append(f"{key}: {neutral:g} everywhere, as the source has none")
    if "running_var" in arrays and source.biased != target.biased:
        if n is None:
            notes.append(f"running_var as it was, {'biased' if source.biased else 'unbiased'}: no n was stated")
        else:
            factor = n / (n - 1) if source.biased else (n - 1) / n
            corrected["running_var"] = arrays["running_var"] * factor
            notes.append(f"running_var times {factor:.6g}, for n = {n}")
    numbers = {}
    for key, value in source.carried.items():
        if key not in target.carried or value == target.carried[key]:
            continue
        if value is None:
            notes.append(f"momentum stays {target.carried[key]:g}: the source averages over all batches")
        else:
            numbers[key] = value
            notes.append(f"{key} {_short(target.carried[key])} -> {_short(value)}")
    if _pads_differently(source, target):
        notes.append(
            f"padding {source.remarks['padding']} and {target.remarks['padding']} with stride {source.fixed['stride']}"
            " may not be the same: compare with an example"
        )
    move = Moved(source.name, target.name, source.kind, tuple(arrays), tuple(notes))
    if problems:
        return move, [], []
    return move, target.changes(arrays, numbers), target.changes(corrected, {})


def _short(number: float | None) -> str:
    return "None" if number is None else f"{number:g}"


def _pads_differently(source: Unit, target: Unit) -> bool:
    """Whether one side pads by the input's size ("same"), with a stride, and the other does not."""
    same = [unit.remarks.get("padding") == "same" for unit in (source, target)]
    return same[0] != same[1] and max(source.fixed["stride"]) > 1


def _check_tied(changes: Sequence[Change], problems: list[str]) -> None:
    """Two layers of the target that share one array must be given the same."""
    seen: dict[tuple[int, str], Any] = {}
    for change in changes:
        first = seen.setdefault(change.place, change.value)
        if first is not change.value and not bool((first == change.value).all()):
            problems.append(
                "two layers of the target share one array, and their counterparts in the source differ; untie them"
            )


def _apply(
    changes: Sequence[Change], corrections: Sequence[Change], here: Any, there: Any, example: Any, tolerance: float
) -> float | None:
    """Assign, compare, and take everything back if anything is wrong.

    The corrected variance comes last: it makes the target what training there would have left, which is not quite what
    the source computes.
    """
    done: list[Change] = []
    try:
        for change in changes:
            done.append(change)
            change.put(change.value)
        there.forget_traces()
        difference = None if example is None else _compare(here, there, example, tolerance)
        for change in corrections:
            done.append(change)
            change.put(change.value)
    except BaseException:
        for change in reversed(done):
            with suppress(Exception):  # what failed to be put fails to be taken back; the others shall be
                change.put(change.before)
        there.forget_traces()
        raise
    return difference


def _compare(here: Any, there: Any, example: Any, tolerance: float) -> float:
    x, twin = example if isinstance(example, (tuple, list)) else (example, None)
    x = np.asarray(x)
    channels = _move(x, here.last) if x.ndim > 2 and here.last != there.last else None
    if twin is None:
        twin = x if channels is None or (x.ndim == 3 and not here.channelled) else channels
    twin = np.asarray(twin)
    moved = channels is not None and np.array_equal(twin, channels)
    ours, theirs = here.run(x), there.run(twin)
    if moved and theirs.ndim == x.ndim:
        theirs = _move(theirs, there.last)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"on the example the outputs have the shapes {ours.shape} and {theirs.shape}: the models do not compute "
            "the same; nothing was changed"
        )
    difference = float(np.abs(ours - theirs).max(initial=0.0))
    largest = max(1.0, float(np.abs(ours).max(initial=0.0)))
    if not difference <= tolerance * largest:
        raise ValueError(
            f"on the example the outputs differ by {difference:.3g}, more than {tolerance:g} of the largest, "
            f"{largest:.3g}: the models do not compute the same (activations, padding, an order of layers?); nothing "
            "was changed"
        )
    return difference


def _move(x: Array, last: bool) -> Array:
    """From channels last to channels first, or back."""
    return np.moveaxis(x, -1, 1) if last else np.moveaxis(x, 1, -1)
