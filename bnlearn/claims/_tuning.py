"""Two arms, each at its own best rate: how most claims compare."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnlearn.claims._claim import Measurement
from bnlearn.lab import Outcome, Probe, probes

VALIDATION = Probe("validation", probes.accuracy, options=(("part", "validation"),))
"""Accuracy on the part that an arm is tuned by."""
TEST = Probe("test", probes.accuracy)
"""Accuracy on the part that it is judged by."""


def tuned(outcome: Outcome, name: str = "test") -> NDArray[np.float64]:
    """The last value of ``name`` at the point that is best on the validation part: (seeds,)."""
    values: NDArray[np.float64] = outcome[name][outcome.best("validation")][:, -1].astype(np.float64)
    return values


def difference(outcomes: Mapping[str, Outcome], first: str, second: str, name: str = "test") -> Measurement:
    """The last value of ``name`` of the first arm minus that of the second, each tuned; with the knobs it took."""
    arms = {arm: tuned(outcomes[arm], name) for arm in (first, second)}
    knobs = {arm: dict(outcomes[arm].points[outcomes[arm].best("validation")]) for arm in arms}
    return Measurement(arms[first] - arms[second], arms, {"knobs": knobs})
