"""What a claim declares before it is run, what a run gives, and the verdict that follows from the two."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Literal["mean", "median"]
ScaleOfEffect = Literal["linear", "log"]

CONFIDENCE = 0.95
RESAMPLES = 9999


class Verdict(StrEnum):
    """What the interval of an effect, or those of all of a claim's criteria, say."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    DEPENDS = "depends"
    NOT_SHOWN = "not shown here"


@dataclass(frozen=True)
class Scale:
    """How much a claim is run.

    Attributes
    ----------
    seeds : int
        Runs per arm, paired by seed; at least 2.
    steps_at_most : int or None
        Where training is cut short; None: nowhere.
    quick : bool
        Whether coarser grids will do.

    Examples
    --------
    >>> FULL.steps(400), SMOKE.steps(400)
    (400, 3)
    """

    seeds: int
    steps_at_most: int | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"expected at least 2 seeds, without which no effect has an interval, got {self.seeds}")
        if self.steps_at_most is not None and self.steps_at_most < 1:
            raise ValueError(f"expected steps_at_most to be at least 1, or None, got {self.steps_at_most}")

    def steps(self, steps: int) -> int:
        """These many steps, or as many as the scale allows."""
        return steps if self.steps_at_most is None else min(steps, self.steps_at_most)


FULL = Scale(20)
"""What the records are made with."""
QUICK = Scale(5, quick=True)
"""A first look."""
SMOKE = Scale(2, steps_at_most=3, quick=True)
"""Whether the code runs at all; its verdicts mean nothing."""


@dataclass(frozen=True)
class Criterion:
    """What would support a claim in one regime, and what would refute it: declared before the run.

    Attributes
    ----------
    name : str
        The regime, such as ``"ReLU, 4 layers"``; unique within the claim.
    effect : str
        What the number is, with its unit. Effects are signed so that larger means more as claimed.
    support : float
        The whole interval at or above this line supports. If ``exact``: the tolerance.
    refute : float
        The whole interval below this line refutes; not above ``support``. Left out, it is ``support``.
    statistic : {"mean", "median"}
        Of the effect over the seeds.
    scale : {"linear", "log"}
        ``"log"`` for ratios: the statistic and its interval are those of the logarithm.
    exact : bool
        Whether the claim is a theorem, to be checked in float64: the effects are then sizes of errors (not negative),
        and it is supported if the largest is at most ``support``, otherwise refuted.
    """

    name: str
    effect: str
    support: float
    refute: float = math.nan
    statistic: Statistic = "mean"
    scale: ScaleOfEffect = "linear"
    exact: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.refute):
            object.__setattr__(self, "refute", self.support)
        where = f"criterion {self.name!r}"
        if not self.name or not self.effect:
            raise ValueError(f"expected a name and an effect, got {self.name!r} and {self.effect!r}")
        if not -math.inf < self.refute <= self.support < math.inf:
            raise ValueError(f"{where}: expected finite refute <= support, got {self.refute} and {self.support}")
        for value, known in ((self.statistic, ("mean", "median")), (self.scale, ("linear", "log"))):
            if value not in known:
                raise ValueError(f"{where}: expected one of {', '.join(known)}, got {value!r}")
        if self.scale == "log" and self.refute <= 0:
            raise ValueError(f"{where}: expected refute > 0 on a log scale, got {self.refute}")
        if self.exact and (self.support < 0 or self.refute != self.support):
            raise ValueError(
                f"{where}: expected one tolerance >= 0 of an exact check, got support={self.support} and "
                f"refute={self.refute}; leave refute out"
            )


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


def interval(
    effect: ArrayLike, *, statistic: Statistic = "mean", scale: ScaleOfEffect = "linear", seed: int = 0
) -> Interval:
    """The mean or median of an effect over seeds, with its 95 % bootstrap interval.

    The interval is SciPy's: bias-corrected and accelerated (Efron 1987) for the mean, of percentiles for the median,
    whose jackknife values say nothing, and wherever the acceleration is not defined. Equal effects have an interval of
    no width. The arms of a comparison are paired by seed, so the effect is already their difference or ratio.

    Parameters
    ----------
    effect : array, shape (seeds,)
        At least two finite values.
    statistic, scale
        As :class:`Criterion` has them.
    seed : int
        Of the resampling: the same effect always has the same interval.

    Raises
    ------
    ValueError
        If there are fewer than two values, or one is not finite, or not positive on a log scale.

    Examples
    --------
    >>> interval([2.0, 2.0, 2.0])
    Interval(estimate=2.0, low=2.0, high=2.0)
    """
    values = np.asarray(effect, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"expected effects of shape (seeds,), with at least 2 seeds, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite effects, got {values[~np.isfinite(values)]}")
    if scale == "log" and (values <= 0).any():
        raise ValueError(f"expected positive effects on a log scale, got {values[values <= 0]}")
    if np.ptp(values) == 0:
        return Interval(*[float(values[0])] * 3)
    seen = np.log(values) if scale == "log" else values
    of = np.mean if statistic == "mean" else np.median
    low, high = _bootstrap(seen, of, seed, "BCa" if statistic == "mean" else "percentile")
    if math.isnan(low) or math.isnan(high):
        low, high = _bootstrap(seen, of, seed, "percentile")
    ends = np.array([of(seen), low, high])
    # Rounding may not carry them out of the range of the effects, nor an effect that is at the line beyond it.
    found = np.clip(np.exp(ends) if scale == "log" else ends, values.min(), values.max())
    return Interval(*map(float, found))


def _bootstrap(
    values: NDArray[np.float64], of: Callable[..., Any], seed: int, method: Literal["BCa", "percentile"]
) -> tuple[float, float]:
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(all="ignore"):  # what is not defined is NaN, and the caller sees it
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        ends = stats.bootstrap(
            (values,),
            of,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(ends.low), float(ends.high)


@dataclass(frozen=True)
class Measurement:
    """What a run of a claim gives for one criterion.

    Attributes
    ----------
    effect : array, shape (seeds,)
        Paired by seed. A run that diverged has a finite value too, which the claim chooses. If the criterion is exact:
        shape (checks,), sizes of errors.
    arms : mapping of str to array
        What each arm gave, raw: shape (seeds,) or (seeds, times); here a run that diverged may have NaN or infinity.
    details : mapping of str
        Whatever else is to be kept, as JSON has it: the rates that were chosen, the steps of the curves.
    """

    effect: NDArray[Any]
    arms: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A criterion with the effects that were measured, their interval, and what it says."""

    criterion: Criterion
    effect: NDArray[np.float64]
    estimate: float
    low: float
    high: float
    verdict: Verdict


def judge(claim: str, criterion: Criterion, effect: ArrayLike) -> Result:
    """The verdict on one criterion, from the raw effects.

    Parameters
    ----------
    claim : str
        The identifier of the claim; the resampling is seeded with it, and the errors name it.
    criterion : Criterion
        What was declared.
    effect : array, shape (seeds,)
        What was measured; (checks,) of an exact one.

    Raises
    ------
    ValueError
        If the effects are not finite, or not as the criterion needs them: the message names the seeds.
    """
    values = _checked(claim, criterion, effect)
    if criterion.exact:
        largest = float(values.max())
        verdict = Verdict.SUPPORTED if largest <= criterion.support else Verdict.REFUTED
        return Result(criterion, values, largest, largest, largest, verdict)
    seed = crc32(f"{claim} {criterion.name}".encode())
    found = interval(values, statistic=criterion.statistic, scale=criterion.scale, seed=seed)
    verdict = Verdict.NOT_SHOWN
    if found.low >= criterion.support:
        verdict = Verdict.SUPPORTED
    elif found.high < criterion.refute:
        verdict = Verdict.REFUTED
    return Result(criterion, values, *found, verdict)


def _checked(claim: str, criterion: Criterion, effect: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(effect, dtype=np.float64)
    where = f"claim {claim}, criterion {criterion.name!r}"
    expected, least = ("(checks,)", 1) if criterion.exact else ("(seeds,)", 2)
    if values.ndim != 1 or len(values) < least:
        raise ValueError(f"{where}: expected effects of shape {expected}, {least} or more, got shape {values.shape}")
    wrong, wanted = ~np.isfinite(values), "finite effects (a run that diverged needs a finite value too)"
    if not wrong.any() and criterion.exact:
        wrong, wanted = values < 0, "sizes of errors, which are not negative"
    elif not wrong.any() and criterion.scale == "log":
        wrong, wanted = values <= 0, "positive effects on a log scale"
    if wrong.any():
        seeds = ", ".join(map(str, np.flatnonzero(wrong)))
        what = "checks" if criterion.exact else "seeds"
        raise ValueError(f"{where}: expected {wanted}, got {values[wrong]} at {what} {seeds}")
    return values


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim, from those on its criteria.

    Where all agree, it is theirs. Where some support the claim and others do not, it depends. Where none supports it
    and not all refute it, it is not shown.

    Examples
    --------
    >>> str(overall([Verdict.SUPPORTED, Verdict.NOT_SHOWN]))
    'depends'
    >>> str(overall([Verdict.REFUTED, Verdict.NOT_SHOWN]))
    'not shown here'
    """
    found = set(verdicts)
    if len(found) == 1:
        return found.pop()
    return Verdict.DEPENDS if Verdict.SUPPORTED in found else Verdict.NOT_SHOWN


@dataclass(frozen=True, kw_only=True)
class Claim:
    r"""Something that is said of batch normalisation, and how it is put to the test.

    Attributes
    ----------
    id : str
        A letter and a number, such as ``"B2"``.
    statement : str
        As people repeat it.
    sources : tuple of str
        Keys of the book's bibliography; ``"P"`` stands for popular introductions, ``"-"`` for nobody in particular.
    theme : str
        Title of the theme, such as ``"Speed and rates"``.
    setting : str
        One or two sentences: data, network, grid, and how both arms are tuned, or why they are not.
    criteria : tuple of Criterion
        Declared before the run.
    run : callable
        ``run(scale)``: a :class:`Measurement` for each criterion, by its name.
    chapter : str
        The chapter of the book, such as ``"notebooks/51_speed_and_rates"``.
    note : str
        What the verdict does not say.
    data : str
        What it runs on, in a few words; the setting says it where this is left out.
    """

    id: str
    statement: str
    sources: tuple[str, ...]
    theme: str
    setting: str
    criteria: tuple[Criterion, ...]
    run: Callable[[Scale], Mapping[str, Measurement]]
    chapter: str = ""
    note: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z][0-9]{1,2}", self.id):
            raise ValueError(f"expected an identifier such as 'B2', a capital letter and a number, got {self.id!r}")
        for name in ("statement", "sources", "theme", "setting", "criteria"):
            if not getattr(self, name):
                raise ValueError(f"claim {self.id}: expected {name}, got {getattr(self, name)!r}")
        if isinstance(self.sources, str):
            raise ValueError(f"claim {self.id}: expected a tuple of sources, got the str {self.sources!r}")
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"claim {self.id}: expected criteria of different names, got {', '.join(names)}")

    def measure(self, scale: Scale) -> dict[str, Measurement]:
        """Run the claim, and check that what comes is what was declared.

        Parameters
        ----------
        scale : Scale
            How much: ``FULL``, ``QUICK``, ``SMOKE``, or your own.

        Returns
        -------
        dict of str to Measurement
            By the names of the criteria, in their order.

        Raises
        ------
        ValueError
            If a criterion was not measured, or one that was not declared; if effects or arms do not fit the number of
            seeds, or effects are not finite.
        """
        measured = self.run(scale)
        names = [criterion.name for criterion in self.criteria]
        if set(measured) != set(names):
            raise ValueError(f"claim {self.id}: expected the criteria {names}, got {list(measured)}")
        for criterion in self.criteria:
            one = measured[criterion.name]
            where = f"claim {self.id}, criterion {criterion.name!r}"
            if not criterion.exact and np.shape(one.effect) != (scale.seeds,):
                raise ValueError(f"{where}: expected effects of shape ({scale.seeds},), got {np.shape(one.effect)}")
            _checked(self.id, criterion, one.effect)
            for name, arm in one.arms.items():
                self._check_arm(f"{where}, arm {name!r}", np.asarray(arm), scale.seeds, criterion.exact)
        return {name: measured[name] for name in names}

    @staticmethod
    def _check_arm(where: str, arm: NDArray[Any], seeds: int, exact: bool) -> None:
        if arm.ndim not in (1, 2) or (len(arm) != seeds and not exact):
            raise ValueError(f"{where}: expected shape ({seeds},) or ({seeds}, times), got {arm.shape}")

    def judge(self, measured: Mapping[str, Measurement]) -> dict[str, Result]:
        """The result of each criterion."""
        return {c.name: judge(self.id, c, measured[c.name].effect) for c in self.criteria}
