r"""Sweeps: every arm at every point of a grid with every seed, in tasks that the engine runs.

The tasks go through joblib, so ``joblib.parallel_config`` decides where they run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnlearn.lab.data import Data, Order, shuffled
from bnlearn.lab.engine import Arm, Probe, Task, train

__all__ = ["Outcome", "Sweep", "run"]

Point = tuple[tuple[str, float], ...]


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
            raise ValueError(f"expected arms with different names, got {names}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected seeds that differ, at least one, got {self.seeds}")
        if self.steps < 1:
            raise ValueError(f"expected at least one step, got {self.steps}")
        empty = [name for name, values in self.grid.items() if not len(values)]
        if empty:
            raise ValueError(f"expected at least one value for each knob of the grid, got none for {', '.join(empty)}")

    @property
    def points(self) -> tuple[Point, ...]:
        """Every combination of the grid's values, the last knob changing fastest."""
        return tuple(tuple(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))

    def tasks(self, arm: Arm) -> tuple[Task, ...]:
        """The replicas of ``arm``, point by point and seed by seed, in tasks of at most :attr:`at_once`."""
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
        last = self[name][:, :, -1].astype(np.float64)
        sign = 1.0 if largest else -1.0
        score = np.where(np.isfinite(last), sign * last, -1e9).mean(1)
        if among:
            fits = [all(point.get(k) == v for k, v in among.items()) for point in self.points]
            score = np.where(fits, score, -np.inf)
        return int(score.argmax())


def run(sweep: Sweep, *, progress: bool = False) -> dict[str, Outcome]:
    """Run ``sweep``, and give what each arm did, by its name."""
    import joblib

    tasks = [(arm.name, task) for arm in sweep.arms for task in sweep.tasks(arm)]
    done = joblib.Parallel()(joblib.delayed(train)(task) for _, task in tasks)
    outcomes: dict[str, Outcome] = {}
    for arm in sweep.arms:
        parts: list[dict[str, Any]] = [part for (name, _), part in zip(tasks, done, strict=True) if name == arm.name]
        shape = (len(sweep.points), len(sweep.seeds))
        values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        values = {key: value.reshape(*shape, *value.shape[1:]) for key, value in values.items()}
        outcomes[arm.name] = Outcome(tuple(dict(point) for point in sweep.points), sweep.seeds, values)
    return outcomes
