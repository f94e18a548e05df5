"""An arm at its best point: the grid with a few seeds first, then the point it chose with the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnlearn.claims._claim import Scale
from bnlearn.lab.engine import Arm, Probe
from bnlearn.lab.probes import accuracy
from bnlearn.lab.sweep import Sweep, run

PROBES = (Probe("test", accuracy), Probe("validation", accuracy, options=(("part", "validation"),)))


def tuned(
    arm: Arm, grid: Mapping[str, tuple[float, ...]], scale: Scale, *, steps: int, batch_size: int, tuning: int = 3
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Test accuracy at the point of a grid that is best on the validation part.

    Parameters
    ----------
    arm : Arm
    grid : mapping of str to values
        Knobs. A quick scale keeps every second rate.
    scale : Scale
    steps, batch_size : int
        Of each training.
    tuning : int
        Seeds that the point is chosen with; one, if the scale is quick. They are among those that are reported.

    Returns
    -------
    accuracy : array, shape (seeds,)
    point : dict
        The knobs that were chosen.
    """
    first = tuning
    if scale.quick:
        first, grid = 1, {**grid, "lr": grid["lr"][::2]}
    sweep = Sweep((arm,), grid, tuple(range(first)), scale.steps(steps), batch_size, PROBES, at_once=100)
    outcome = run(sweep)[arm.name]
    best = outcome.best()
    point = outcome.points[best]
    fixed = replace(arm, knobs=(*arm.knobs, *point.items()))
    others = run(replace(sweep, arms=(fixed,), grid={}, seeds=tuple(range(first, scale.seeds))))[arm.name]
    values = np.concatenate([outcome["test"][best, :, -1], others["test"][0, :, -1]])
    return values.astype(np.float64), point
