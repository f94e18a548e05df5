r"""Sweeps: every arm at every point of a grid with every seed, in tasks that the engine runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bnlearn.lab.data import Data, Order, shuffled
from bnlearn.lab.engine import Arm, Probe, Task, rehearse, train
from bnlearn.lab.store import Store, fingerprint

__all__ = ["Outcome", "Sweep", "run"]

Point = tuple[tuple[str, float], ...]
Result = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Sweep:
    """What to run.

    Attributes
    ----------
    arms : tuple of Arm
        Their names differ.
    grid : mapping of str to values
        Knobs, each with the values it takes; every combination is a point.
    seeds : tuple of int
        Every point is run with each; they pair the arms.
    steps, batch_size : int
    probes : tuple of Probe
    data : Data
    order : callable
        See :class:`bnlearn.lab.Order`.
    at_once : int
        Replicas in one task, at most: what one process trains at once, and what is lost when it is killed.
    """

    arms: tuple[Arm, ...]
    grid: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    steps: int
    batch_size: int = 64
    probes: tuple[Probe, ...] = ()
    data: Data = field(default_factory=Data)
    order: Order = shuffled
    at_once: int = 60

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected arms with different names, at least one, got {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"expected seeds that differ, at least one, none negative, got {self.seeds}")
        for name, value in (("steps", self.steps), ("batch_size", self.batch_size), ("at_once", self.at_once)):
            if value < 1:
                raise ValueError(f"expected {name} to be at least 1, got {value}")
        watched = [probe.name for probe in self.probes]
        if "loss" in watched or len(set(watched)) < len(watched):
            raise ValueError(f"expected probes with different names, none of them 'loss' (every step's), got {watched}")
        empty = [name for name, values in self.grid.items() if not len(values)]
        if empty:
            raise ValueError(f"expected at least one value for each knob of the grid, got none for {', '.join(empty)}")

    @property
    def points(self) -> tuple[Point, ...]:
        """Every combination of the grid's values, the last knob changing fastest."""
        return tuple(tuple(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))

    def tasks(self, arm: Arm) -> tuple[Task, ...]:
        """The replicas of ``arm``, point by point and seed by seed, in tasks of at most ``at_once``."""
        replicas: Iterator[tuple[int, Point]] = ((seed, point) for point in self.points for seed in self.seeds)
        chunks = iter(lambda: tuple(islice(replicas, self.at_once)), ())
        return tuple(
            Task(self.data, arm, chunk, self.steps, self.batch_size, self.probes, self.order) for chunk in chunks
        )


@dataclass(frozen=True)
class Outcome:
    """What one arm did.

    Attributes
    ----------
    points : tuple of dict
        The grid's points.
    seeds : tuple of int
    values : dict of str to array
        ``"loss"``, shape (points, seeds, steps), and each probe's values, (points, seeds, times, ...).
    """

    points: tuple[dict[str, float], ...]
    seeds: tuple[int, ...]
    values: Mapping[str, NDArray[np.float32]]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self.values:
            raise KeyError(f"expected a record among {', '.join(self.values)}, got {name!r}")
        return self.values[name]

    def where(self, **knobs: float) -> int:
        """The place of the point at which the grid's knobs have these values."""
        found = [i for i, point in enumerate(self.points) if all(point.get(k) == v for k, v in knobs.items())]
        if len(found) != 1:
            raise ValueError(f"expected knobs of exactly one point, got {knobs}, which fits {len(found)}")
        return found[0]

    def best(self, name: str = "validation", *, largest: bool = True, among: Mapping[str, float] | None = None) -> int:
        """The place of the point with the best last value of ``name``, by the mean over seeds: how an arm is tuned.

        What is not finite counts as worst. ``among`` restricts the choice to points with these knobs.
        """
        if self[name].ndim != 3:
            raise ValueError(f"expected a record of one number at each time, got {name!r} of shape {self[name].shape}")
        last = self[name][:, :, -1].astype(np.float64)
        sign = 1.0 if largest else -1.0
        score = np.where(np.isfinite(last), sign * last, -1e9).mean(1)
        if among:
            fits = [all(point.get(k) == v for k, v in among.items()) for point in self.points]
            if not any(fits):
                raise ValueError(f"expected knobs of at least one point, got {dict(among)}; there are {self.points}")
            score = np.where(fits, score, -np.inf)
        return int(score.argmax())


def run(sweep: Sweep, store: str | os.PathLike[str] | None = None, *, progress: bool = False) -> dict[str, Outcome]:
    """Run ``sweep``, and give what each arm did, by its name.

    The tasks go through joblib, so that ``joblib.parallel_config`` decides where they run: ``n_jobs=2`` for two
    processes, ``backend="dask"`` for a cluster. Each uses one thread, so that the numbers do not depend on where.

    Parameters
    ----------
    sweep : Sweep
    store : path, optional
        A folder in which each task's result is kept as soon as it is done. What is there already is not run again, so
        that a run that was interrupted, or killed, goes on where it stopped; see ``bnlearn.lab.store``.
    progress : bool
        Whether to show a bar with the time left.

    Raises
    ------
    ValueError, KeyError
        If the sweep cannot be run as it stands. Every arm is rehearsed first (``bnlearn.lab.engine.rehearse``), so
        that this shows before anything is trained.
    OSError
        If ``store`` cannot be written.
    """
    kept = None if store is None else Store(store)
    tasks = [task for arm in sweep.arms for task in sweep.tasks(arm)]
    names = [] if kept is None else [fingerprint(task) for task in tasks]
    results: list[Result | None] = [None] * len(tasks) if kept is None else [kept.load(name) for name in names]
    waiting = [place for place, result in enumerate(results) if result is None]
    with _one_thread():
        if waiting:
            _rehearse(sweep)
        try:
            with _bar(tasks, waiting, progress) as bar:
                for place, result in _trained(tasks, waiting):
                    if kept is not None:
                        kept.save(names[place], result)
                    results[place] = result
                    bar.update(len(tasks[place].replicas))
        except BaseException as error:
            if kept is not None:
                done = sum(result is not None for result in results)
                error.add_note(
                    f"{done} of {len(tasks)} tasks are kept in {kept.folder}; the same call goes on from there"
                )
            raise
    return _gathered(sweep, tasks, [result for result in results if result is not None])


def _rehearse(sweep: Sweep) -> None:
    """Make sure that every arm can be trained and probed, and that every knob is a knob of something."""
    asked: set[str] = set()
    for arm in sweep.arms:
        try:
            asked |= rehearse(sweep.tasks(arm)[0])
        except Exception as error:
            error.add_note(f"in the arm {arm.name!r}; nothing was trained")
            raise
    given = dict.fromkeys([*sweep.grid, *(name for arm in sweep.arms for name, _ in arm.knobs)])
    unknown = [name for name in given if name not in asked]
    if unknown:
        raise ValueError(
            "expected knobs that the optimizer, the network or a probe of some arm asks for, got "
            f"{', '.join(unknown)}, which none does; they ask for {', '.join(sorted(asked))}"
        )


def _trained(tasks: list[Task], waiting: list[int]) -> Iterator[tuple[int, Result]]:
    """The results of the tasks that wait, each with its place, as they are done."""
    import joblib

    calls = (joblib.delayed(_in_place)(place, tasks[place]) for place in waiting)
    done: Iterator[tuple[int, Result]] = joblib.Parallel(return_as="generator_unordered", batch_size=1)(calls)
    return done


def _in_place(place: int, task: Task) -> tuple[int, Result]:
    with _one_thread():
        return place, train(task)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more threads, and rounding would depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bar(tasks: list[Task], waiting: list[int], progress: bool) -> Any:
    from tqdm import tqdm

    sizes = [len(task.replicas) for task in tasks]
    left = sum(sizes[place] for place in waiting)
    return tqdm(total=sum(sizes), initial=sum(sizes) - left, unit="run", disable=not progress)


def _gathered(sweep: Sweep, tasks: list[Task], results: list[Result]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for arm in sweep.arms:
        parts = [part for task, part in zip(tasks, results, strict=True) if task.arm.name == arm.name]
        shape = (len(sweep.points), len(sweep.seeds))
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        values = {key: value.reshape(*shape, *value.shape[1:]) for key, value in values.items()}
        outcomes[arm.name] = Outcome(tuple(dict(point) for point in sweep.points), sweep.seeds, values)
    return outcomes
