"""Records as pictures: each criterion's effect and interval over all runs, and what each arm gave."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnlearn import viz
from bnlearn.claims._claim import Result, Verdict
from bnlearn.claims._records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {Verdict.SUPPORTED: "bn", Verdict.REFUTED: "ln", Verdict.NOT_SHOWN: "none"}
_FLOOR = 1e-18
"""Where errors of exactly zero are drawn."""
_TEXT = 12
"""Points: a figure is shrunk to the width of a phone, and its smallest words must still be read there."""
_LETTERS = 58
"""In a bold line as wide as the figure."""
_SMALL_LETTERS = 80
"""In a line of what is measured."""


def draw(record: Record) -> Figure:
    """Draw the effect of each criterion with its interval, every run faint behind, and the lines that were declared.

    Parameters
    ----------
    record : Record
        From :func:`bnlearn.claims.record`.

    Returns
    -------
    matplotlib Figure
        One panel for each criterion, on its own scale; as wide as the other figures of the book.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    results = list(record.criteria.values())
    heads = [_head(result) for result in results]
    heights = [0.75 + 0.235 * (title.count("\n") + text.count("\n") + 2) for title, text in heads]
    with viz._styled() as plt:
        figure = plt.figure(figsize=(viz.WIDTH, sum(heights) + 0.1))
        panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, result, (title, text) in zip(panels, results, heads, strict=True):
            ax.set_title(title, fontsize=_TEXT + 1, pad=18 * (text.count("\n") + 1) + 6)
            viz._beside(ax, text, (0, 1), (0, 5), size=_TEXT, va="bottom", linespacing=1.25)
            _panel(ax, result)
    return _figure(figure)


def _figure(figure: Any) -> Figure:
    drawn: Figure = figure
    return drawn


def _head(result: Result) -> tuple[str, str]:
    """What stands over a panel: criterion and verdict, then what is measured and the lines."""
    criterion = result.criterion
    below = "it" if criterion.refute == criterion.support else f"{criterion.refute:g}"
    lines = f"supports from {criterion.support:g}, refutes below {below} (dashed)"
    if criterion.exact:
        lines = f"tolerance {criterion.support:g} (dashed)"
    title = _even(f"{criterion.name}: {result.verdict}", _LETTERS)
    text = f"{criterion.effect}; {lines}"
    if len(text) > _SMALL_LETTERS:
        text = _even(criterion.effect, _SMALL_LETTERS) + f"\n{lines}"
    return title, text


def _even(text: str, letters: int) -> str:
    """The text in as few lines of at most so many letters as will do, none much shorter than the others."""

    def lines(width: int) -> list[str]:
        return textwrap.wrap(text, width, break_long_words=False)

    few = len(lines(letters))
    return "\n".join(next(found for width in range(1, letters + 1) if len(found := lines(width)) <= few))


def _panel(ax: Axes, result: Result) -> None:
    criterion, colour = result.criterion, viz.COLOURS[_COLOURS[result.verdict]]
    effect, low, estimate, high = result.effect, result.low, result.estimate, result.high
    lines = {criterion.support, criterion.refute}
    if criterion.exact:
        effect = np.maximum(effect, _FLOOR)
        low, estimate, high = (max(value, _FLOOR) for value in (low, estimate, high))
        lines = {max(criterion.support, _FLOOR)}
    for place in lines:
        ax.axvline(place, color=viz.COLOURS["ink"], linewidth=1, dashes=(4, 3))
    ax.plot(effect, _apart(len(effect)), "o", color=colour, alpha=0.3, markersize=5, markeredgewidth=0, gid="runs")
    ax.plot([low, high], [0, 0], color=colour, linewidth=5, gid="interval")
    ax.plot(
        [estimate], [0], "o", color="white", markeredgecolor=colour, markeredgewidth=2, markersize=8, gid="estimate"
    )
    ax.margins(x=0.05)
    if criterion.exact or criterion.scale == "log":
        ax.set_xscale("log")
        _number(ax, plain=not criterion.exact)
    else:
        ax.locator_params(axis="x", nbins=7)
    ax.tick_params(labelsize=_TEXT)
    ax.set_ylim(-1.3, 1.3)
    ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    ax.spines[["left"]].set_visible(False)


def _number(ax: Axes, *, plain: bool) -> None:
    """Number a logarithmic axis at two places or more; numbers of a sensible size are written in full if ``plain``."""
    low, high = ax.get_xlim()
    decades = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    if not (plain and low > 1e-3 and high < 1e4) and sum(low <= decade <= high for decade in decades) > 1:
        return
    digits = (1, 2, 5) if high / low < 100 else (1,)
    places = [digit * decade for decade in decades for digit in digits if low <= digit * decade <= high]
    ticker = viz._matplotlib("matplotlib.ticker")
    if len(places) < 2:
        even = ticker.MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
        places = [float(place) for place in even if low <= place <= high]
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _apart(count: int) -> NDArray[np.float64]:
    """Heights that keep neighbouring runs apart, the same whenever they are drawn."""
    return np.asarray(np.resize([0.45, -0.75, 0.85, -0.35, 0.65, -0.95, 0.25, -0.55], count), dtype=np.float64)


def draw_arms(record: Record, criterion: str, *, x: ArrayLike | None = None, xlabel: str = "step") -> Figure:
    """Draw what each arm gave: each run faint, the mean over the seeds strong.

    Parameters
    ----------
    record : Record
        From :func:`bnlearn.claims.record`.
    criterion : str
        The name of one of its criteria.
    x : array, shape (times,), optional
        Where the curves of arms of shape (seeds, times) have their values; by default ``details["steps"]`` of the
        criterion, or 0, 1, ...
    xlabel : str
        What that is.

    Returns
    -------
    matplotlib Figure
        Curves, if an arm is of shape (seeds, times); otherwise a row of runs for each arm.

    Raises
    ------
    ValueError
        If there is no such criterion, or nothing is kept of its arms.
    """
    if criterion not in record.arms:
        raise ValueError(f"claim {record.id}: expected one of the criteria {list(record.arms)}, got {criterion!r}")
    arms = record.arms[criterion]
    if not arms:
        raise ValueError(f"claim {record.id}: expected arms of {criterion!r} to draw, its record keeps none")
    curves = {name: arm for name, arm in arms.items() if arm.ndim == 2}
    steps = record.details[criterion].get("steps") if x is None else x
    with viz._styled() as plt:
        figure = plt.figure(figsize=(viz.WIDTH, 3.6 if curves else 0.9 + 0.55 * len(arms)))
        ax = figure.subplots()
        title = textwrap.fill(f"{record.id}, {criterion}", _LETTERS - 10)
        ax.set_title(title, fontsize=_TEXT + 1)
        ax.tick_params(labelsize=_TEXT)
        if curves:
            _curves(ax, curves, None if steps is None else np.asarray(steps, dtype=np.float64))
            ax.set_xlabel(xlabel)
            viz.label_lines(ax, size=_TEXT)
        else:
            _rows(ax, arms)
    return _figure(figure)


def _curves(ax: Axes, arms: dict[str, NDArray[np.float64]], steps: NDArray[np.float64] | None) -> None:
    colours = viz._colours(arms, None)
    for name, arm in arms.items():
        at = np.arange(arm.shape[1]) if steps is None or len(steps) != arm.shape[1] else steps
        ax.plot(at, arm.T, color=colours[name], alpha=0.2, linewidth=0.8, gid="runs")
        ax.plot(at, arm.mean(axis=0), color=colours[name], label=name, gid="mean")


def _rows(ax: Axes, arms: Any) -> None:
    colours = viz._colours(arms, None)
    for row, (name, arm) in enumerate(arms.items()):
        place = -row + 0.25 * _apart(len(arm))
        ax.plot(arm, place, "o", color=colours[name], alpha=0.3, markersize=5, markeredgewidth=0, gid="runs")
        ax.plot([np.nanmean(arm)], [-row], "|", color=colours[name], markersize=18, markeredgewidth=3, gid="mean")
    ax.set_yticks([-row for row in range(len(arms))], [textwrap.fill(name, 18) for name in arms])
    ax.set_ylim(-len(arms) + 0.5, 0.5)
    ax.grid(visible=False, axis="y")
