r"""Speed and learning rates: fewer steps, larger rates, where the gain comes from, and how much tuning is left.

All claims read one sweep: four kinds of network, with batch normalisation (BN) and without, at a dozen rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.lab import MLP, Arm, BatchNorm, Outcome, Probe, Sweep, probes, run

THEME = "Speed and rates"
CHAPTER = "notebooks/51_speed_and_rates"
STEPS = 400
BATCH_SIZE = 32
TIMES = (0, 4, 6, 8, 11, 14, 18, 22, 27, 33, 40, 48, 58, 70, 85, 100, 120, 145, 170, 200, 240, 280, 320, 360, 400)
POINTS_PER_DECADE = 3
TRAINED = 0.9
"""Test accuracy from which a network counts as trained."""
AS_GOOD = 0.03
"""How much less accuracy than at the tuned rate still makes a rate a good one."""

RELU = MLP(sizes=(64, 32, 32, 32, 32, 10))
SIGMOID = MLP(sizes=(64, 32, 32, 32, 10), activation="sigmoid", init="lecun")


@dataclass(frozen=True)
class Regime:
    """A network without BN, and how it is trained.

    Attributes
    ----------
    network : MLP
    optimizer : str
        As :class:`bnlearn.lab.Arm` has it.
    lowest : int
        The smallest rate is 10 to the power of a third of this.
    init_scale : float
        Of the initial weights.
    """

    network: MLP
    optimizer: str = "sgd"
    lowest: int = -6
    init_scale: float = 1.0

    @property
    def rates(self) -> tuple[float, ...]:
        """Twelve rates, three to the decade."""
        return tuple(float(f"{10 ** ((self.lowest + k) / POINTS_PER_DECADE):.3g}") for k in range(12))


REGIMES: Mapping[str, Regime] = {
    "ReLU, SGD": Regime(RELU),
    "ReLU, Adam": Regime(RELU, optimizer="adam", lowest=-10),
    "sigmoid, small weights": Regime(SIGMOID),
    "sigmoid, larger weights": Regime(SIGMOID, init_scale=4.0),
}

NETWORKS = (
    "Handwritten digits in batches of 32 for 400 steps. Layers of 32: four with ReLU and He initialisation, "
    "three with sigmoid and weights of variance 1 / fan-in (small) or four times that standard deviation (larger). "
    "Twelve rates from 0.01 to 46 (Adam: from 0.00046 to 2.2), three to the decade; no momentum, decay or schedule."
)


@lru_cache(maxsize=8)
def sweep(regime: str, scale: Scale) -> dict[str, Outcome]:
    """The arms ``"none"`` and ``"bn"`` of a regime at every rate, with accuracy over the steps, and ``"times"``."""
    kind = REGIMES[regime]
    steps = scale.steps(STEPS)
    seen = times(scale)
    knobs = (("init_scale", kind.init_scale),)
    arms = tuple(
        Arm(name, replace(kind.network, norm=norm), kind.optimizer, knobs)
        for name, norm in (("none", None), ("bn", BatchNorm()))
    )
    looks = tuple(Probe(p, probes.accuracy, seen, (("part", p),)) for p in ("validation", "test"))
    return run(Sweep(arms, {"lr": kind.rates}, tuple(range(scale.seeds)), steps, BATCH_SIZE, looks))


def times(scale: Scale) -> tuple[int, ...]:
    """The steps before which accuracy is taken; the last is the end."""
    steps = scale.steps(STEPS)
    return (*(time for time in TIMES if time < steps), steps)


def steps_to(accuracy: ArrayLike, at: ArrayLike, target: float) -> NDArray[np.float64]:
    """The step at which accuracy first reaches ``target``, between two looks by linear interpolation.

    Parameters
    ----------
    accuracy : array, shape (..., times)
    at : array, shape (times,)
        The steps.
    target : float

    Returns
    -------
    array, shape (...)
        At least 1; the last of ``at`` where the target is never reached, which flatters what is slow.

    Examples
    --------
    >>> steps_to([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3]], [0, 10, 20], 0.7).tolist()
    [15.0, 20.0]
    """
    seen, step = np.asarray(accuracy), np.asarray(at, dtype=np.float64)
    reached = seen >= target  # in the precision of accuracy: 0.9 in float32 is less than 0.9 in float64
    values = seen.astype(np.float64)
    after = reached.argmax(-1)
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(values, i[..., None], -1)[..., 0] for i in (before, after))
    share = np.divide(target - low, high - low, out=np.ones_like(low), where=high > low)
    found: NDArray[np.float64] = np.where(
        reached.any(-1), step[before] + share * (step[after] - step[before]), step[-1]
    )
    return np.maximum(found, 1.0)


def fastest(outcome: Outcome, at: tuple[int, ...], target: float) -> int:
    """The place of the rate at which ``target`` is reached first on the validation part: the mean of log steps."""
    return int(np.log(steps_to(outcome["validation"], at, target)).mean(1).argmin())


def largest_trained(accuracy: ArrayLike, rates: ArrayLike, tuned: int) -> NDArray[np.float64]:
    """For each seed the largest rate at which it ends with accuracy of at least :data:`TRAINED`.

    Parameters
    ----------
    accuracy : array, shape (rates, seeds)
    rates : array, shape (rates,)
        Growing.
    tuned : int
        The place of the rate that counts where none trains.

    Returns
    -------
    array, shape (seeds,)
    """
    trains = np.asarray(accuracy) >= TRAINED
    most: NDArray[np.float64] = np.where(trains, np.asarray(rates, dtype=np.float64)[:, None], 0.0).max(0)
    return np.where(most > 0, most, float(np.asarray(rates)[tuned]))


def width(outcome: Outcome) -> NDArray[np.float64]:
    """Decades of rates that are good: at most :data:`AS_GOOD` below the test accuracy at the tuned rate; (seeds,).

    Each rate of the grid stands for the third of a decade around it.
    """
    last = outcome["test"][:, :, -1]
    good: NDArray[np.float64] = (last >= last[outcome.best("validation")] - np.float32(AS_GOOD)).sum(0)
    return good / POINTS_PER_DECADE


def _over_rates(outcome: Outcome) -> NDArray[np.float32]:
    """Test accuracy at the end, shape (seeds, rates), as a measurement keeps it."""
    return outcome["test"][:, :, -1].T


B1 = {
    "ReLU, SGD, to 0.90": ("ReLU, SGD", 0.90),
    "ReLU, SGD, to 0.95": ("ReLU, SGD", 0.95),
    "ReLU, Adam, to 0.90": ("ReLU, Adam", 0.90),
    "ReLU, Adam, to 0.95": ("ReLU, Adam", 0.95),
    "sigmoid, small weights, to 0.90": ("sigmoid, small weights", 0.90),
    "sigmoid, larger weights, to 0.90": ("sigmoid, larger weights", 0.90),
}


def fewer_steps(scale: Scale) -> dict[str, Measurement]:
    """B1: steps without BN over steps with it, each arm at the rate that gets there first."""
    measured = {}
    for name, (regime, target) in B1.items():
        outcomes, at = sweep(regime, scale), times(scale)
        best = {arm: fastest(outcome, at, target) for arm, outcome in outcomes.items()}
        curves = {arm: outcome["test"][best[arm]] for arm, outcome in outcomes.items()}
        steps = {arm: steps_to(curve, at, target) for arm, curve in curves.items()}
        details = {
            "steps": list(at),
            "target": target,
            "rate": {arm: REGIMES[regime].rates[place] for arm, place in best.items()},
            "steps to target": {arm: np.round(values, 1).tolist() for arm, values in steps.items()},
        }
        measured[name] = Measurement(steps["none"] / steps["bn"], curves, details)
    return measured


def larger_rates(scale: Scale) -> dict[str, Measurement]:
    """B2: the largest rate that trains with BN over that without."""
    measured = {}
    for name, regime in REGIMES.items():
        outcomes, rates = sweep(name, scale), regime.rates
        last = {arm: outcome["test"][:, :, -1] for arm, outcome in outcomes.items()}
        most = {arm: largest_trained(values, rates, outcomes[arm].best("validation")) for arm, values in last.items()}
        details = {
            "rates": list(rates),
            "largest": {arm: values.tolist() for arm, values in most.items()},
            "runs that train at the last rate": int(sum((values[-1] >= TRAINED).sum() for values in last.values())),
        }
        arms = {arm: _over_rates(outcome) for arm, outcome in outcomes.items()}
        measured[name] = Measurement(most["bn"] / most["none"], arms, details)
    return measured


B3 = ("ReLU, SGD", "ReLU, Adam", "sigmoid, small weights")


def gain_from_rate(scale: Scale) -> dict[str, Measurement]:
    """B3: what BN gives at the same small rate, and what a larger rate then gives a network with BN."""
    measured = {}
    for regime in B3:
        outcomes, at, rates = sweep(regime, scale), times(scale), REGIMES[regime].rates
        own = {arm: fastest(outcome, at, TRAINED) for arm, outcome in outcomes.items()}
        small = max(own["none"] - POINTS_PER_DECADE, 0)
        same = {arm: outcome["test"][small] for arm, outcome in outcomes.items()}
        gain = same["bn"][:, -1] - same["none"][:, -1]
        details = {"steps": list(at), "rate": rates[small]}
        measured[f"{regime}: the same small rate"] = Measurement(-gain.astype(np.float64), same, details)
        curves = {
            "bn, rate best without": outcomes["bn"]["test"][own["none"]],
            "bn, its own best rate": outcomes["bn"]["test"][own["bn"]],
        }
        slow, fast = (steps_to(curve, at, TRAINED) for curve in curves.values())
        details = {"steps": list(at), "rates": {arm: rates[place] for arm, place in own.items()}}
        measured[f"{regime}: its own larger rate"] = Measurement(slow / fast, curves, details)
    return measured


def _widths(scale: Scale) -> dict[str, tuple[dict[str, NDArray[np.float64]], Measurement]]:
    found = {}
    for name, regime in REGIMES.items():
        outcomes = sweep(name, scale)
        decades = {arm: width(outcome) for arm, outcome in outcomes.items()}
        details = {
            "rates": list(regime.rates),
            "tuned rate": {arm: regime.rates[outcome.best("validation")] for arm, outcome in outcomes.items()},
            "decades": {arm: np.round(values, 2).tolist() for arm, values in decades.items()},
        }
        arms = {arm: _over_rates(outcome) for arm, outcome in outcomes.items()}
        found[name] = decades, Measurement(decades["bn"], arms, details)
    return found


def no_tuning(scale: Scale) -> dict[str, Measurement]:
    """B4: how many decades of rates are good with BN."""
    return {name: measurement for name, (_, measurement) in _widths(scale).items()}


def less_tuning(scale: Scale) -> dict[str, Measurement]:
    """B22: how many more decades of rates are good with BN than without."""
    return {
        name: replace(measurement, effect=decades["bn"] - decades["none"])
        for name, (decades, measurement) in _widths(scale).items()
    }


CLAIMS = (
    Claim(
        id="B1",
        statement="With batch normalisation a network reaches a given accuracy in fewer steps.",
        sources=("P", "ioffe2015batch"),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{NETWORKS} Each arm has the rate that reaches the accuracy first on the validation part. Steps are "
        "counted on the test part; a run that does not get there in time counts as 400.",
        criteria=tuple(
            Criterion(name, "steps without BN over steps with BN", support=1.25, refute=1.1, scale="log") for name in B1
        ),
        run=fewer_steps,
        note="Steps, not seconds: a step with BN takes longer.",
    ),
    Claim(
        id="B2",
        statement="Batch normalisation allows larger learning rates.",
        sources=("P", "ioffe2015batch", "bjorck2018understanding"),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{NETWORKS} A rate trains if the run ends with a test accuracy of at least 0.9; where none does, "
        "the rate tuned on the validation part counts.",
        criteria=tuple(
            Criterion(name, "largest rate that trains, with BN over without", support=2.0, refute=1.25, scale="log")
            for name in REGIMES
        ),
        run=larger_rates,
        note="That a rate can be used does not mean that it is the best one.",
    ),
    Claim(
        id="B3",
        statement="The gain comes from the larger rate: at the same small rate batch normalisation brings none.",
        sources=("bjorck2018understanding",),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{NETWORKS} The rate best without BN, and BN's own, are those that reach 0.9 first on the validation "
        "part. The same small rate, for both arms, is a tenth of the one best without BN: the claim is about an "
        "untuned rate.",
        criteria=tuple(
            criterion
            for name in B3
            for criterion in (
                Criterion(
                    f"{name}: the same small rate",
                    "test accuracy after 400 steps, without BN minus with BN",
                    support=-0.02,
                    refute=-0.05,
                ),
                Criterion(
                    f"{name}: its own larger rate",
                    "steps to 0.9 with BN, at the rate best without BN over those at its own best",
                    support=1.25,
                    refute=1.1,
                    scale="log",
                ),
            )
        ),
        run=gain_from_rate,
        note="The weights of the sigmoid network start too small for it to learn well without BN.",
    ),
    Claim(
        id="B4",
        statement="Batch normalisation removes the need to tune the learning rate.",
        sources=("P",),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{NETWORKS} A rate is good if the test accuracy after 400 steps is at most 0.03 below that at the "
        "rate tuned on the validation part.",
        criteria=tuple(Criterion(name, "decades of good rates, with BN", support=3.0, refute=2.0) for name in REGIMES),
        run=no_tuning,
        note="More steps make small rates good, with BN and without.",
    ),
    Claim(
        id="B22",
        statement="With batch normalisation the learning rate needs less tuning: more rates are good.",
        sources=("P", "arora2019theoretical"),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{NETWORKS} A rate is good if the test accuracy after 400 steps is at most 0.03 below that at the "
        "rate tuned on the validation part, arm by arm.",
        criteria=tuple(
            Criterion(name, "decades of good rates, with BN minus without", support=0.5, refute=0.25)
            for name in REGIMES
        ),
        run=less_tuning,
        note="Each arm is measured against its own best.",
    ),
)
