"""Every figure of the book, in one style that suits light and dark pages.

Figures are drawn dark on opaque white, 7.2 inches wide at 144 dots per inch, with text of 11 points or more, so that
they can be read on a phone too. On a dark page the book's style sheet turns them over with
``filter: invert(.93) hue-rotate(180deg)``: white becomes near black and a hue stays the hue it was. :data:`COLOURS` are
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
from typing import TYPE_CHECKING, Any, TypeAlias

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
    "shared_statistics",
    "signal_through_depth",
    "training_curves",
    "use_style",
]

Floats: TypeAlias = NDArray[np.float64]

WIDTH = 7.2
"""Width of a figure in inches (1,036 pixels)."""

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
"""Colours of what recurs, by name. No normalisation (grey), batch (blue), layer (orange), group (green), instance
(purple) and RMS normalisation (red); ``ink`` for text and whatever is the target."""

_CYCLE = ("bn", "ln", "gn", "in", "rms", "none")

_ALSO_CALLED: Mapping[str, str] = MappingProxyType(
    {
        "no normalisation": "none",
        "plain": "none",
        "without": "none",
        "without batch norm": "none",
        "without bn": "none",
        "batch norm": "bn",
        "with": "bn",
        "with batch norm": "bn",
        "with bn": "bn",
        "layer norm": "ln",
        "group norm": "gn",
        "instance norm": "in",
        "rms norm": "rms",
        "target": "ink",
    }
)

_GRID = "#dde1e6"

_SMALL = 11  # points

_STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": COLOURS["none"],
        "axes.facecolor": "white",
        "axes.formatter.use_mathtext": True,
        "axes.grid": True,
        "axes.labelcolor": COLOURS["ink"],
        "axes.labelsize": 12,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": COLOURS["ink"],
        "axes.titlelocation": "left",
        "axes.titlesize": 13,
        "axes.titleweight": "bold",
        "figure.constrained_layout.use": True,
        "figure.dpi": 144,
        "figure.facecolor": "white",
        "figure.figsize": (WIDTH, 4.0),
        "figure.titlesize": 14,
        "figure.titleweight": "bold",
        "font.family": "DejaVu Sans",
        "font.size": 12,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
        "image.cmap": "viridis",
        "legend.fontsize": 11,
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
        "xtick.labelsize": 11,
        "ytick.color": COLOURS["none"],
        "ytick.labelcolor": COLOURS["ink"],
        "ytick.labelsize": 11,
    }
)


def _matplotlib(module: str = "matplotlib.pyplot") -> Any:
    """Matplotlib's ``module``, imported when first needed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            "bnlearn.viz draws with matplotlib, which is not installed; install it (pip install matplotlib), or this "
            "package with its extra: pip install -e '.[viz]'"
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


def _subplots(plt: Any, height: float, rows: int = 1, columns: int = 1) -> list[Axes]:
    """The axes of a new figure, row by row."""
    figure = plt.figure(figsize=(WIDTH, height))
    axes: list[Axes] = list(figure.subplots(rows, columns, sharex=True, sharey=columns > 1, squeeze=False).flat)
    for ax in axes:
        # Ticks are made when they are drawn, in the settings of then: these must be the axes' own.
        for axis, name in ((ax.xaxis, "xtick"), (ax.yaxis, "ytick")):
            rc = {key: plt.rcParams[f"{name}.{key}"] for key in ("color", "labelcolor", "labelsize")}
            grid = {f"grid_{key}": plt.rcParams[f"grid.{key}"] for key in ("color", "linewidth", "linestyle", "alpha")}
            axis.set_tick_params(which="both", **rc, **grid)
    return axes


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
    names, given = list(names), given or {}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"expected colours for {', '.join(names)}, got one for {', '.join(unknown)}")
    known: dict[str, str] = {}
    for name in names:
        key = given.get(name, name.lower())
        key = _ALSO_CALLED.get(key, key)
        if key in COLOURS or name in given:
            known[name] = COLOURS.get(key, key)
    free = [COLOURS[key] for key in _CYCLE if COLOURS[key] not in known.values()] or [COLOURS[key] for key in _CYCLE]
    rest = [name for name in names if name not in known]
    return {**known, **{name: free[i % len(free)] for i, name in enumerate(rest)}}


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as can be to ``wanted`` (least squares), in their order, ``gap`` apart or more, in bounds.

    Where the bounds leave too little room, the upper one gives way.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Less rank * gap, the positions need only not decrease: isotonic regression, by pooling adjacent violators.
    blocks: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        value, count = wanted[i] - rank * gap, 1
        while blocks and blocks[-1][0] > value:
            before, many = blocks.pop()
            value, count = (value * count + before * many) / (count + many), count + many
        blocks.append((value, count))
    top = max(high - (len(wanted) - 1) * gap, low)
    ranked = [min(max(value, low), top) for value, count in blocks for _ in range(count)]
    return [ranked[rank] + rank * gap for rank in np.argsort(order)]


_LINE_LABEL = "bnlearn.viz.label_lines"


def label_lines(ax: Axes, *, size: float = 11) -> None:
    """Write each line's label at its right end, in its colour, instead of a legend.

    Call it last: labels that would overlap are moved apart as the axes are then. Called again, it writes all of them
    anew. Lines without a label are passed over.

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
    named = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    if not named:
        raise ValueError("expected lines drawn with label=..., got axes without any")
    ends: list[tuple[Any, float]] = []
    for line in named:
        data = np.asarray(line.get_ydata(), dtype=np.float64)
        finite = data[np.isfinite(data)]
        if finite.size:  # a line that is all gaps has no end to write at
            ends.append((line, float(finite[-1])))
    for text in [text for text in ax.texts if text.get_gid() == _LINE_LABEL]:
        text.remove()
    figure: Any = ax.figure.figure  # the whole figure, also where the axes are in a part of it
    figure.draw_without_rendering()  # constrained layout decides only now how high the axes are
    points = 72 / figure.dpi
    low, high = (float(edge) * points for edge in ax.get_window_extent().intervaly)
    heights = [float(ax.transData.transform((ax.get_xlim()[0], y))[1]) * points for _, y in ends]
    places = _spread([min(max(at, low), high) for at in heights], 1.2 * size, low + size / 2, high)
    for (line, y), height, place in zip(ends, heights, places, strict=True):
        ax.annotate(
            str(line.get_label()),
            (1, y),
            xycoords=ax.get_yaxis_transform(),
            xytext=(6, place - height),
            textcoords="offset points",
            color=line.get_color(),
            size=size,
            va="center",
            annotation_clip=False,
            gid=_LINE_LABEL,
        )


def _beside(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **kwargs: Any) -> None:
    """Small text next to the axes, at a place in fractions of them and an offset in points."""
    ax.annotate(
        text, at, xytext=offset, textcoords="offset points", annotation_clip=False,
        **{"xycoords": "axes fraction", "size": _SMALL, "color": COLOURS["none"], **kwargs},
    )  # fmt: skip


def _headings(ax: Axes, title: str | None, remarks: Sequence[str]) -> None:
    """A title, and under it in small type how to read what is drawn."""
    if remarks:
        _beside(ax, ", ".join(remarks), (0, 1), (0, 6))
    if title is not None:
        ax.set_title(title, pad=24 if remarks else 8)


def _vertical(ax: Axes, *, log: bool, limits: tuple[float, float] | None) -> None:
    """Set up the vertical axis; a logarithmic one of few decades has plain numbers instead of powers of ten."""
    if log:
        ax.set_yscale("log")
    if limits is not None:
        ax.set_ylim(limits)
    low, high = ax.get_ylim()
    if log and low >= 5e-4 and high <= 2e4:
        formatter = _matplotlib("matplotlib.ticker").FuncFormatter
        between = {"2", "5"} if high / low < 100 else set()
        ax.yaxis.set_major_formatter(formatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in between else ""))


def _seed_arrays(name: str, mapping: Mapping[str, ArrayLike], columns: str) -> dict[str, Floats]:
    """Each entry as (seeds, columns), with NaN for whatever is not finite."""
    arms: dict[str, Floats] = {}
    for key, value in mapping.items():
        array = np.atleast_1d(_numbers(f"{name}[{key!r}]", value))
        if array.ndim > 2:
            raise ValueError(f"expected {name}[{key!r}] of shape (seeds, {columns}) or ({columns},), got {array.shape}")
        array = array[None] if array.ndim == 1 else array
        arms[key] = np.where(np.isfinite(array), array, np.nan)
    return arms


def _draw_band(ax: Axes, x: Floats, array: Floats, *, label: str, colour: str, **line: Any) -> None:
    """The median of ``array``, shape (seeds, len(x)), and the band between its quartiles."""
    quartiles = np.quantile(array, [0.25, 0.5, 0.75], axis=0)  # NaN where any seed is
    if len(array) > 1:
        ax.fill_between(x, quartiles[0], quartiles[2], color=colour, alpha=0.22, linewidth=0)
    ax.plot(x, quartiles[1], color=colour, label=label, **line)


def _seeds_remark(arms: Mapping[str, Floats]) -> list[str]:
    seeds = sorted({len(array) for array in arms.values()})
    if seeds == [1]:
        return []
    return [f"median and quartiles of {seeds[0] if len(seeds) == 1 else f'{seeds[0]} to {seeds[-1]}'} seeds"]


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
    if smooth < 1:
        raise ValueError(f"expected smooth >= 1, got {smooth}")
    at = None if x is None else _numbers("x", x)
    arms = _seed_arrays("curves", _mapping("curves", curves, "arrays"), "steps")
    for name, array in arms.items():
        if at is not None and at.shape != array.shape[1:]:
            raise ValueError(f"expected x of shape {array.shape[1:]}, one per step of curves[{name!r}], got {at.shape}")
        if smooth > array.shape[1]:
            raise ValueError(f"expected smooth <= {array.shape[1]}, the steps of curves[{name!r}], got {smooth}")
    palette = _colours(arms, colours)

    with _styled() as plt:
        axes = _subplots(plt, 4.0)[0] if ax is None else ax
        for name, array in arms.items():
            steps = np.arange(1.0, array.shape[1] + 1) if at is None else at
            means = np.lib.stride_tricks.sliding_window_view(array, smooth, axis=1).mean(axis=-1)
            _draw_band(axes, steps[smooth - 1 :], means, label=name, colour=palette[name])
        axes.margins(x=0)
        _vertical(axes, log=logy, limits=ylim)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _headings(axes, title, _seeds_remark(arms) + ([f"mean of {smooth} steps"] if smooth > 1 else []))
        label_lines(axes)
    return axes


Layers: TypeAlias = Mapping[str, ArrayLike]
"""What each layer holds, in order of depth."""


def signal_through_depth(
    values: Mapping[str, Layers | ArrayLike],
    *,
    ax: Axes | None = None,
    xlabel: str = "layer",
    ylabel: str = "standard deviation",
    title: str | None = None,
    logy: bool = True,
    ylim: tuple[float, float] | None = None,
    colours: Mapping[str, str] | None = None,
) -> Axes:
    """How large the signal (or its gradient) is at each layer: one line per arm.

    Parameters
    ----------
    values : mapping of str to (mapping of str to array), or to array of shape (seeds, layers) or (layers,)
        By arm: each layer's activations or gradients, of which the standard deviation over all values is drawn; or that
        number, already known, with seeds drawn as in :func:`training_curves`.
    ax, xlabel, ylabel, title, ylim, colours
        As in :func:`training_curves`.
    logy : bool
        Logarithmic vertical axis; a standard deviation of 0 is then a gap.

    Returns
    -------
    matplotlib Axes
        Layers are numbered from 1; they are named where all arms name them alike and there are at most eight.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError, ValueError
        If ``values`` or one of its entries is empty or of no shape as above; the message names the entry.
    """
    measured: dict[str, ArrayLike] = {}
    names: set[tuple[str, ...]] = set()
    for arm, value in _mapping("values", values, "layers or arrays").items():
        if isinstance(value, Mapping):
            layers = _mapping(f"values[{arm!r}]", value, "arrays")
            measured[arm] = [float(_numbers(f"values[{arm!r}][{key!r}]", array).std()) for key, array in layers.items()]
            names.add(tuple(layers))
        else:
            measured[arm] = value
            names.add(())
    arms = _seed_arrays("values", measured, "layers")
    if logy:
        arms = {name: np.where(array > 0, array, np.nan) for name, array in arms.items()}
    palette = _colours(arms, colours)

    with _styled() as plt:
        axes = _subplots(plt, 4.0)[0] if ax is None else ax
        for name, array in arms.items():
            depth = np.arange(1.0, array.shape[1] + 1)
            _draw_band(axes, depth, array, label=name, colour=palette[name], marker="o", markersize=4)
        ticks = next(iter(names)) if len(names) == 1 else ()
        if 0 < len(ticks) <= 8:
            axes.set_xticks(range(1, len(ticks) + 1), ticks)
        else:
            axes.xaxis.set_major_locator(_matplotlib("matplotlib.ticker").MaxNLocator(integer=True))
        _vertical(axes, log=logy, limits=ylim)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _headings(axes, title, _seeds_remark(arms))
        label_lines(axes)
    return axes


def _columns(values: Mapping[str, ArrayLike] | Mapping[str, Layers]) -> dict[str, dict[str, Floats]]:
    """Arm -> layer -> its values, flat and finite; without arms there is one, called ``""``."""
    values = _mapping("values", values, "arrays, or to such mappings")
    nested = [isinstance(value, Mapping) for value in values.values()]
    if any(nested) and not all(nested):
        odd = next(key for key, is_mapping in zip(values, nested, strict=True) if not is_mapping)
        raise TypeError(f"expected values to map to arrays or to mappings, not both: values[{odd!r}] is an array")
    columns: dict[str, dict[str, Floats]] = {}
    for arm, layers in values.items() if all(nested) else [("", values)]:
        place = f"values[{arm!r}]" if all(nested) else "values"
        columns[arm] = {}
        for key, value in _mapping(place, layers, "arrays").items():
            array = _numbers(f"{place}[{key!r}]", value)
            bad = int(array.size - np.isfinite(array).sum())
            if bad:
                raise ValueError(
                    f"expected {place}[{key!r}] to be finite, got {bad} NaN or infinite among {array.size} values of "
                    f"shape {array.shape}; leave this layer out, or those values"
                )
            columns[arm][key] = array.ravel()
    if len(columns) > 3:
        raise ValueError(f"expected at most 3 arms side by side, got {len(columns)}: {', '.join(columns)}")
    if len({tuple(layers) for layers in columns.values()}) > 1:
        raise ValueError(
            "expected the same layers in every arm, got "
            + "; ".join(f"{arm}: {', '.join(layers)}" for arm, layers in columns.items())
        )
    return columns


def layer_histograms(
    values: Mapping[str, ArrayLike] | Mapping[str, Layers],
    *,
    xlabel: str = "activation",
    title: str | None = None,
    bins: int = 60,
    value_range: tuple[float, float] | None = None,
    magnitude: bool = False,
    log_counts: bool = False,
    saturation: tuple[float, float] | None = None,
    colour: str = "none",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """A histogram of each layer's activations or gradients, from the input at the top to the output at the bottom.

    All rows share one horizontal axis. A row's height is its own largest bin, so that a collapsed layer shows as one
    tall bin. The number at the right of a row is its standard deviation.

    Parameters
    ----------
    values : mapping of str to array of any shape, or of str to such mappings
        By layer; or by arm and layer, at most three arms, which are drawn side by side.
    xlabel, title : str
        Texts.
    bins : int
        How many, over the common range.
    value_range : (float, float), optional
        Range of the bins, if not from the smallest value to the largest; values outside are counted in the outermost
        bins.
    magnitude : bool
        Draw ``|value|`` on a logarithmic axis, for gradients that differ by orders of magnitude. Zeros have no place
        there: their share is given at the right.
    log_counts : bool
        Heights are ``log(1 + count)``, which shows the tails.
    saturation : (float, float), optional
        Values at or below the first, or at or above the second, are where the activation is flat: their bins are red
        and their share is given at the right. Not together with ``magnitude``.
    colour : str
        Without arms: a key of :data:`COLOURS` or a colour of matplotlib's.
    colours : mapping of str to str, optional
        With arms: as in :func:`training_curves`.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError, ValueError
        If an entry is empty, not numeric or not finite (the message names it), the arms have different layers, or a
        range is not increasing.
    """
    columns = _columns(values)
    if bins < 1:
        raise ValueError(f"expected bins >= 1, got {bins}")
    if magnitude and saturation is not None:
        raise ValueError("expected magnitude or saturation, got both: a magnitude has no sign to saturate at")
    for name, pair in (("value_range", value_range), ("saturation", saturation)):
        if pair is not None and not pair[0] < pair[1]:
            raise ValueError(f"expected {name} as (low, high) with low < high, got {pair}")
    shown = {
        arm: {key: np.abs(array[array != 0]) if magnitude else array for key, array in layers.items()}
        for arm, layers in columns.items()
    }
    edges = _edges([array for layers in shown.values() for array in layers.values()], bins, value_range, magnitude)
    palette = {"": COLOURS.get(colour, colour)} if list(columns) == [""] else _colours(columns, colours)
    zeros = any(shown[arm][key].size < array.size for arm, layers in columns.items() for key, array in layers.items())
    names = list(next(iter(columns.values())))
    rows = np.arange(len(names))

    with _styled() as plt:
        height = 1.2 + len(names) * min(max(4.0 / len(names), 0.28), 0.6)
        panels = _subplots(plt, height, columns=len(columns))
        for panel, (arm, layers) in zip(panels, columns.items(), strict=True):
            for row, (key, array) in enumerate(layers.items()):
                inside = np.clip(shown[arm][key], edges[0], edges[-1])
                counts = np.histogram(inside, edges)[0].astype(np.float64)
                heights = np.log1p(counts) if log_counts else counts
                heights *= -0.86 / max(heights.max(), 1)  # upwards: the vertical axis points down
                panel.stairs(heights + row, edges, baseline=row, fill=True, color=palette[arm], label=key)
                panel.axhline(row, color=palette[arm], linewidth=0.8)
                remarks = {"std": _short(float(array.std()))}
                if saturation is not None:
                    centres = (edges[1:] + edges[:-1]) / 2
                    flat = (centres <= saturation[0]) | (centres >= saturation[1])
                    panel.stairs(np.where(flat, heights, 0) + row, edges, baseline=row, fill=True, color=COLOURS["rms"])
                    remarks["flat"] = f"{np.mean((array <= saturation[0]) | (array >= saturation[1])):.0%}"
                elif zeros:
                    remarks["zero"] = f"{np.mean(array == 0):.0%}"
                right = {"xycoords": panel.get_yaxis_transform(), "color": COLOURS["ink"], "va": "center"}
                for i, (heading, text) in enumerate(remarks.items()):
                    _beside(panel, text, (1, row - 0.3), (6 + 48 * i, 0), **right)
                    if row == 0:
                        colour_of = COLOURS["rms"] if heading == "flat" else COLOURS["none"]
                        _beside(panel, heading, (1, 1), (6 + 48 * i, 4), color=colour_of)
            panel.set_title(arm, color=palette[arm])
            panel.set(xlabel=xlabel, xlim=(edges[0], edges[-1]))
            if magnitude:
                panel.set_xscale("log")
            panel.spines["left"].set_visible(False)
            panel.grid(visible=False, axis="y")
            panel.tick_params(axis="y", length=0)
        panels[0].set_yticks(rows - 0.3, names)
        panels[0].set_ylim(len(names) - 0.9, -1)
        figure: Figure = plt.gcf()
        if title is not None:
            figure.suptitle(title, x=0.01, ha="left")
    return figure


def _short(value: float) -> str:
    """Two significant digits in little room: 0.086, 12, 1.3e-5."""
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:#.2g}".rstrip(".") if abs(value) < 100 else f"{value:.0f}"


def _edges(arrays: Sequence[Floats], bins: int, given: tuple[float, float] | None, magnitude: bool) -> Floats:
    """Edges of ``bins`` bins over all that is in ``arrays``, or over the range that was given."""
    full = [array for array in arrays if array.size]
    low, high = given or (min(a.min() for a in full), max(a.max() for a in full)) if given or full else (0.1, 1.0)
    if magnitude and low <= 0:
        raise ValueError(f"expected value_range above 0 with magnitude, got {given}")
    if low == high:  # one value only, all over
        low, high = (low / 2, high * 2) if magnitude else (low - 0.5, high + 0.5)
    return np.geomspace(low, high, bins + 1) if magnitude else np.linspace(low, high, bins + 1)


def running_statistics(
    history: Mapping[str, ArrayLike],
    *,
    target: Mapping[str, ArrayLike] | None = None,
    batch: Mapping[str, ArrayLike] | None = None,
    channels: Sequence[int] | None = None,
    x: ArrayLike | None = None,
    xlabel: str = "step",
    title: str | None = None,
) -> Figure:
    """Running statistics over time, one panel per statistic and one line per channel.

    Parameters
    ----------
    history : mapping of str to array, shape (steps, C)
        By statistic, such as ``running_mean`` and ``running_var``: its value after each step.
    target : mapping of str to array, shape (C,), optional
        What a statistic should come to, drawn dashed.
    batch : mapping of str to array, shape (steps, C), optional
        The same statistic of each batch, drawn as dots.
    channels : sequence of int, optional
        Which channels to draw; by default six at most, evenly spread over all.
    x : array, shape (steps,), optional
        Where the steps are, if not at 1, 2, 3, ...
    xlabel, title : str
        Texts.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError, ValueError
        If an entry is not of the shape above, or a channel does not exist; the message names the entry.
    """
    lines = {key: _numbers(f"history[{key!r}]", v) for key, v in _mapping("history", history, "arrays").items()}
    steps, count = next(iter(lines.values())).shape if next(iter(lines.values())).ndim == 2 else (0, 0)
    at = np.arange(1.0, steps + 1) if x is None else _numbers("x", x)
    goals = {key: _numbers(f"target[{key!r}]", value) for key, value in (target or {}).items()}
    dots = {key: _numbers(f"batch[{key!r}]", value) for key, value in (batch or {}).items()}
    first = next(iter(lines))
    shaped: list[tuple[str, Mapping[str, Floats], tuple[int, ...], str]] = [
        ("history", lines, (steps, count), "(steps, C)"),
        ("batch", dots, (steps, count), "(steps, C)"),
        ("target", goals, (count,), "(C,)"),
    ]
    for name, arrays, shape, meaning in shaped:
        for key, array in arrays.items():
            if key not in lines:
                raise ValueError(f"expected {name} to have keys among {', '.join(lines)}, got {key!r}")
            if array.shape != shape or not steps:
                as_first = f" = {shape}, like history[{first!r}]" if steps else ""
                raise ValueError(f"expected {name}[{key!r}] of shape {meaning}{as_first}, got {array.shape}")
    if at.shape != (steps,):
        raise ValueError(f"expected x of shape ({steps},), one per step of history[{first!r}], got {at.shape}")
    if channels is None:
        channels = sorted({int(c) for c in np.linspace(0, count - 1, 6).round()})
    if len(channels) == 0:
        raise ValueError("expected channels to name at least one channel, got none")
    for c in channels:
        if not 0 <= c < count:
            raise ValueError(f"expected channels from 0 to {count - 1}, got {c}")

    with _styled() as plt:
        panels = _subplots(plt, 0.6 + 2.3 * len(lines), rows=len(lines))
        said: list[str] = []
        for panel, (key, array) in zip(panels, lines.items(), strict=True):
            for i, c in enumerate(channels):
                colour = COLOURS[_CYCLE[i % len(_CYCLE)]]
                if key in dots:
                    panel.plot(at, dots[key][:, c], ".", color=colour, alpha=0.35, markersize=4, zorder=1.5)
                if key in goals:
                    panel.axhline(goals[key][c], color=colour, linestyle=(0, (4, 2)), linewidth=1.2)
                panel.plot(at, array[:, c], color=colour, label=f"channel {c}")
            remarks = ["dots: each batch"] if key in dots else []
            remarks += ["dashed: target"] if key in goals else []
            remarks += [f"{len(channels)} of {count} channels"] if len(channels) < count else []
            _headings(panel, key, remarks if remarks != said else [])
            said = remarks
            panel.margins(x=0)
        panels[-1].set_xlabel(xlabel)
        figure: Figure = plt.gcf()
        if title is not None:
            figure.suptitle(title, x=0.01, ha="left")
        for panel in panels:
            label_lines(panel)
    return figure


def _footprints(value: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.bool_]]:
    """Each entry as (N, C, positions), all of one shape."""
    found: dict[str, NDArray[np.bool_]] = {}
    for key, entry in _mapping("footprints", value, "boolean arrays").items():
        array = np.asarray(entry)
        if array.dtype != np.bool_ or array.ndim < 2 or array.size == 0:
            raise ValueError(
                f"expected footprints[{key!r}] to be boolean, of shape (N, C, *spatial), got {array.dtype} of shape "
                f"{array.shape}"
            )
        found[key] = array.reshape(*array.shape[:2], -1)
    shapes = {key: array.shape for key, array in found.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected footprints of one shape, got {shapes}")
    return found


def shared_statistics(
    footprints: Mapping[str, ArrayLike],
    *,
    at: Sequence[int] | None = None,
    remarks: Mapping[str, str] | None = None,
    columns: int = 2,
    title: str | None = None,
) -> Figure:
    r"""Which values share a statistic with one of them: a panel per method, a row per sample, a block per channel.

    Within a block, the squares are the channel's positions. What shares a statistic with the value that has a dot is
    dark, all else is pale, which can be told apart without seeing colours.

    Parameters
    ----------
    footprints : mapping of str to array of bool, shape (N, C, \*spatial)
        By method, as ``bnlearn.family.footprint`` finds them.
    at : tuple of int, optional
        Where in the array the value itself is; by default at half the length of each axis.
    remarks : mapping of str to str, optional
        What to write behind a method's name.
    columns : int
        How many panels stand side by side.
    title : str
        Text.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    TypeError, ValueError
        If an entry is not of the shape above, or the value is not among its own (the message names the entry).
    """
    arrays = _footprints(footprints)
    samples, channels, positions = next(iter(arrays.values())).shape
    spatial = np.shape(next(iter(footprints.values())))[2:]
    if at is None:
        at = (samples // 2, channels // 2, *(size // 2 for size in spatial))
    try:
        place = int(np.ravel_multi_index(tuple(at), (samples, channels, *spatial)))
    except ValueError:
        raise ValueError(f"expected at as an index of shape {(samples, channels, *spatial)}, got {tuple(at)}") from None
    for key, array in arrays.items():
        if not array.flat[place]:
            raise ValueError(f"expected footprints[{key!r}] to hold the value itself, at {tuple(at)}, got False there")
    rows = -(-len(arrays) // columns)
    gap = 0.7  # between channels, in squares
    left = np.arange(channels)[:, None] * (positions + gap) + np.arange(positions)

    with _styled() as plt:
        patches, collections = _matplotlib("matplotlib.patches"), _matplotlib("matplotlib.collections")
        figure: Figure = plt.figure(figsize=(WIDTH, 0.75 + rows * (0.55 + 0.22 * samples)))
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel in panels[len(arrays) :]:
            panel.remove()
        for panel, (key, array) in zip(panels, arrays.items(), strict=False):
            squares = [patches.Rectangle((x, n * 1.25), 0.86, 0.98) for n in range(samples) for x in left.ravel()]
            colours = [COLOURS["bn"] if shared else _GRID for shared in array.ravel()]
            colours[place] = COLOURS["ink"]
            panel.add_collection(collections.PatchCollection(squares, facecolors=colours, edgecolors="none"))
            own = squares[place]
            centre = (own.get_x() + own.get_width() / 2, own.get_y() + own.get_height() / 2)
            panel.plot(*centre, "o", color="white", markersize=4)
            panel.set(xlim=(-0.3, left.max() + 1.2), ylim=(samples * 1.25, -0.3))
            panel.set_xticks(left.mean(axis=1) + 0.43, [str(c) for c in range(channels)])
            panel.set_yticks([n * 1.25 + 0.49 for n in range(samples)], [str(n) for n in range(samples)])
            panel.tick_params(length=0, labelcolor=COLOURS["none"], labelsize=_SMALL, pad=1)
            panel.grid(visible=False)
            panel.spines[["left", "bottom"]].set_visible(False)
            remark = (remarks or {}).get(key, "")
            panel.set_title(key, fontsize=12, pad=4)
            if remark:
                _beside(panel, remark, (1, 1), (0, 5), ha="right")
        for panel in panels[0::columns]:
            if panel in figure.axes:
                panel.set_ylabel("sample", fontsize=_SMALL, labelpad=2)
        for panel in panels[max(len(arrays) - columns, 0) : len(arrays)]:
            panel.set_xlabel("channel, its positions within", fontsize=_SMALL, labelpad=2)
        if title is not None:
            figure.suptitle(title, x=0.01, ha="left")
    return figure
