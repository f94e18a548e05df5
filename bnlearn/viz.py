"""Every figure of the book, in one style that suits light and dark pages.

Figures are drawn dark on opaque white, 7.2 inches wide at 144 dots per inch, with no text below 10 points, so that they
can be read on a phone too. On a dark page the book's style sheet turns them over with
``filter: invert(.92) hue-rotate(180deg)``: white becomes near black and a hue stays the hue it was. :data:`COLOURS` are
chosen so that on either page each has a contrast of at least 4.5 to 1 (as WCAG asks of text) and each pair can be told
apart, also with protanopia, deuteranopia and tritanopia. Lines carry their names; there is no legend to look up.

The functions take plain NumPy arrays (or what converts to them) and return the figure or the axes they drew on. They
import matplotlib when called, draw in this style whatever the current settings are, and leave those as they were: only
:func:`use_style` changes them, so that figures of your own match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "WIDTH",
    "label_lines",
    "layer_histograms",
    "running_statistics",
    "signal_through_depth",
    "training_curves",
    "use_style",
]

Floats: TypeAlias = NDArray[np.float64]

WIDTH = 7.2
"""Width of a figure in inches (1,037 pixels)."""

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "none": "#616d78",
        "bn": "#0856b6",
        "ln": "#ba5200",
        "gn": "#008540",
        "in": "#81428d",
        "rms": "#902b39",
        "ink": "#1b1f27",
    }
)
"""Colours of what recurs, by name. No normalisation (grey), batch (blue), layer (orange), group (green), instance (purple) and
RMS normalisation (red); ``ink`` for text and whatever is the target."""

_CYCLE = ("bn", "ln", "gn", "in", "rms", "none")

_GRID = "#dde1e6"

_STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": COLOURS["none"],
        "axes.facecolor": "white",
        "axes.formatter.use_mathtext": True,
        "axes.grid": True,
        "axes.labelcolor": COLOURS["ink"],
        "axes.labelsize": 11,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": COLOURS["ink"],
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "figure.constrained_layout.use": True,
        "figure.dpi": 144,
        "figure.facecolor": "white",
        "figure.figsize": (WIDTH, 4.0),
        "figure.titlesize": 13,
        "figure.titleweight": "bold",
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
        "image.cmap": "viridis",
        "legend.fontsize": 10.5,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "mathtext.fontset": "dejavusans",
        "savefig.bbox": None,
        "savefig.dpi": "figure",
        "savefig.facecolor": "white",
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["none"],
        "xtick.labelcolor": COLOURS["ink"],
        "xtick.labelsize": 10.5,
        "ytick.color": COLOURS["none"],
        "ytick.labelcolor": COLOURS["ink"],
        "ytick.labelsize": 10.5,
    }
)


def _matplotlib(module: str = "matplotlib.pyplot") -> Any:
    """Matplotlib's ``module``, imported when first needed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            "bnlearn.viz draws with matplotlib, which is not installed; install the extra: "
            "pip install 'batchnorm-learn[viz]'"
        ) from error


def _rc() -> dict[str, Any]:
    cycler = _matplotlib("cycler").cycler
    return {**_STYLE, "axes.prop_cycle": cycler(color=[COLOURS[key] for key in _CYCLE])}


@contextmanager
def _styled() -> Iterator[Any]:
    """``matplotlib.pyplot``, with the style as long as the block lasts."""
    plt = _matplotlib()
    with plt.rc_context(_rc()):
        yield plt


def use_style() -> None:
    """Draw all further figures in the book's style: the one function here that changes global settings.

    In IPython and Jupyter it also makes inline figures PNG of exactly the size they were given (by default, inline
    figures are cropped to what is drawn, so that two of the same size come out different).

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    plt = _matplotlib()
    plt.rcParams.update(_rc())
    try:
        shell = import_module("IPython").get_ipython()
        config = import_module("matplotlib_inline.config")
    except ModuleNotFoundError:
        return
    if shell is not None:
        inline = config.InlineBackend.instance(parent=shell)
        inline.shell = shell
        inline.print_figure_kwargs = {"bbox_inches": None}
        inline.figure_formats = {"png"}


def _numbers(name: str, value: ArrayLike) -> Floats:
    """``value`` as float64, or an error that says which argument it is."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected {name} to be an array of real numbers, got {type(value).__name__}: {error}"
        ) from None
    if array.size == 0:
        raise ValueError(f"expected {name} to hold at least one value, got shape {array.shape}")
    return array


def _mapping(name: str, value: Any, of: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected {name} to be a mapping from names to {of}, got {type(value).__name__}")
    if not value:
        raise ValueError(f"expected {name} to hold at least one entry, got an empty mapping")
    return value


def _colours(names: Iterable[str], given: Mapping[str, str] | None) -> dict[str, str]:
    """A colour for each name: the one given, that of :data:`COLOURS`, or the next that is free."""
    names = list(names)
    given = given or {}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"expected colours for {', '.join(names)}, got one for {', '.join(unknown)}")
    known = {name: given.get(name, name.lower()) for name in names}
    known = {name: COLOURS.get(colour, colour if name in given else "") for name, colour in known.items()}
    free = [COLOURS[key] for key in _CYCLE if COLOURS[key] not in known.values()] or [COLOURS[key] for key in _CYCLE]
    rest = [name for name in names if not known[name]]
    return {**known, **{name: free[i % len(free)] for i, name in enumerate(rest)}}


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions as near as can be to ``wanted`` (least squares) in their order, at least ``gap`` apart."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Pool adjacent violators: blocks of labels that touch, each at the mean of where its members want to be.
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, count = blocks.pop()
            before, many = blocks[-1]
            blocks[-1] = [(value * count + before * many) / (count + many), count + many]
    flat = [value for value, count in blocks for _ in range(int(count))]
    positions = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        positions[i] = flat[rank] + rank * gap
    return positions


def label_lines(ax: Axes, *, size: float = 10.5) -> None:
    """Write each line's label at its right end, in its colour, instead of a legend.

    Call it last: labels that would overlap are moved apart as the axes are then. Lines without a label are passed over.

    Parameters
    ----------
    ax : matplotlib Axes
        Holds lines drawn with ``label=...``.
    size : float
        In points, at least 10.

    Raises
    ------
    ValueError
        If no line has a label.
    """
    ends: list[tuple[Any, float]] = []
    for line in ax.get_lines():
        y = np.asarray(line.get_ydata(), dtype=np.float64)
        finite = np.flatnonzero(np.isfinite(y))
        if not str(line.get_label()).startswith("_") and finite.size:
            ends.append((line, float(y[finite[-1]])))
    if not ends:
        raise ValueError("expected lines drawn with label=..., got axes without any")
    figure: Any = ax.figure
    figure.draw_without_rendering()  # constrained layout decides only now how high the axes are
    to_points = 72 / figure.dpi
    at = [float(ax.transData.transform((ax.get_xlim()[0], y))[1]) * to_points for _, y in ends]
    low, high = (float(v) * to_points for v in ax.get_window_extent().intervaly)
    wanted = [min(max(v, low), high) for v in at]
    for (line, y), here, there in zip(ends, at, _spread(wanted, 1.2 * size), strict=True):
        ax.annotate(
            str(line.get_label()),
            (1, y),
            xycoords=ax.get_yaxis_transform(),
            xytext=(6, there - here),
            textcoords="offset points",
            color=line.get_color(),
            size=size,
            va="center",
            annotation_clip=False,
        )


def _note(ax: Axes, text: str) -> None:
    """A remark on what is drawn, above the axes on the right."""
    ax.set_title(text, loc="right", size=10, weight="normal", color=COLOURS["none"])


def training_curves(
    curves: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    x: ArrayLike | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
    title: str | None = None,
    logy: bool = False,
    ylim: tuple[float, float] | None = None,
    smooth: int = 1,
    colours: Mapping[str, str] | None = None,
) -> Axes:
    """Curves over training: the median over seeds as a line, the interquartile range as a band around it.

    Median and quartiles, because one seed that diverges moves a mean and its interval without bound. Where any seed is
    NaN or infinite the line and the band have a gap. With one seed there is no band.

    Parameters
    ----------
    curves : mapping of str to array, shape (seeds, steps) or (steps,)
        What was measured, by arm. Arms may have different numbers of seeds and steps.
    ax : matplotlib Axes, optional
        To draw on; else a new figure is made.
    x : array, shape (steps,), optional
        Where the steps are, if not at 1, 2, 3, ...; then all arms have this many steps.
    xlabel, ylabel, title : str
        Texts.
    logy : bool
        Logarithmic vertical axis.
    ylim : (float, float), optional
        Limits of the vertical axis; set here, so that the labels find their places.
    smooth : int
        Average each seed over this many steps (up to and including the one drawn) before the statistics over seeds.
    colours : mapping of str to str, optional
        Colour of an arm: a key of :data:`COLOURS` or a colour of matplotlib's. An arm named like such a key has its
        colour anyway; the others take those that are free.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError, ValueError
        If ``curves`` is empty or an entry is not of a shape as above; the message names the entry.
    """
    arms: dict[str, Floats] = {}
    if smooth < 1:
        raise ValueError(f"expected smooth >= 1, got {smooth}")
    at = None if x is None else _numbers("x", x)
    for name, value in _mapping("curves", curves, "arrays").items():
        array = np.atleast_1d(_numbers(f"curves[{name!r}]", value))
        if array.ndim > 2:
            raise ValueError(f"expected curves[{name!r}] of shape (seeds, steps) or (steps,), got {array.shape}")
        array = array[None] if array.ndim == 1 else array
        if at is not None and at.shape != array.shape[1:]:
            raise ValueError(f"expected x of shape {array.shape[1:]}, one per step of curves[{name!r}], got {at.shape}")
        if smooth > array.shape[1]:
            raise ValueError(f"expected smooth <= {array.shape[1]}, the steps of curves[{name!r}], got {smooth}")
        arms[name] = array
    palette = _colours(arms, colours)

    with _styled() as plt:
        axes: Axes = plt.subplots()[1] if ax is None else ax
        for name, array in arms.items():
            steps = np.arange(1.0, array.shape[1] + 1) if at is None else at
            if smooth > 1:
                array = np.lib.stride_tricks.sliding_window_view(array, smooth, axis=1).mean(axis=-1)
                steps = steps[smooth - 1 :]
            known = np.isfinite(array).all(axis=0)
            low, middle, high = np.full((3, array.shape[1]), np.nan)
            low[known], middle[known], high[known] = np.quantile(array[:, known], [0.25, 0.5, 0.75], axis=0)
            if len(array) > 1:
                axes.fill_between(steps, low, high, color=palette[name], alpha=0.22, linewidth=0)
            axes.plot(steps, middle, color=palette[name], label=name)
        if logy:
            axes.set_yscale("log")
        if ylim is not None:
            axes.set_ylim(ylim)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(x=0)
        if title is not None:
            axes.set_title(title)
        seeds = sorted({len(array) for array in arms.values()})
        remarks = []
        if seeds[-1] > 1:
            count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
            remarks.append(f"median and quartiles of {count} seeds")
        if smooth > 1:
            remarks.append(f"mean of {smooth} steps")
        if remarks:
            _note(axes, ", ".join(remarks))
        label_lines(axes)
    return axes
