"""What `bnlearn.viz` draws is the data; its style can be read on light and dark pages; and it leaves no trace."""

import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.colors
import numpy as np
import pytest
from PIL import Image

from bnlearn import viz

mpl.use("agg")
import matplotlib.pyplot as plt

# What the pages do to figures when they are dark: read, so that the style is judged by what readers get.
STYLE_SHEET = (Path(__file__).parents[1] / "book" / "_static" / "book.css").read_text("utf-8")
INVERT = float(re.search(r"filter: invert\(([\d.]+)\) hue-rotate\(180deg\)", STYLE_SHEET)[1])


@pytest.fixture(autouse=True)
def no_trace():
    """Every test starts from matplotlib's defaults and leaves no figure."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("agg")
        yield
        plt.close("all")


def texts(artist):
    """All that is written, in an axes or a figure."""
    return [text.get_text() for text in artist.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]


def png(figure):
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def line_labels(axes):
    """Text -> annotation, for the labels at the ends of the lines."""
    return {text.get_text(): text for text in axes.texts if text.get_gid() == viz._LINE_LABEL}


# --- the style ------------------------------------------------------------------------------------------------------


def luminance(rgb):
    """Relative luminance of sRGB, WCAG 2.2."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def on_a_dark_page(rgb):
    """The filter of the book's style sheet, by the matrices of the Filter Effects specification."""
    inverted = INVERT - rgb * (2 * INVERT - 1)
    weights = np.array([[0.213, 0.715, 0.072]] * 3)
    cosine = np.array([[0.787, -0.715, -0.072], [-0.213, 0.285, -0.072], [-0.213, -0.715, 0.928]])
    return np.clip((weights - cosine) @ inverted, 0, 1)


def oklab(rgb):
    """Perceptual coordinates (Ottosson 2020); equal distances look about equally different."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    axes = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(axes) @ np.cbrt(np.array(cones) @ linear)


COLOUR_BLINDNESS = {  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen_with(blindness, rgb):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(COLOUR_BLINDNESS[blindness]) @ linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def rgb(colour):
    return np.array(mpl.colors.to_rgb(colour))


PAGES = {"light": lambda colour: colour, "dark": on_a_dark_page}
WHITE = np.ones(3)


def test_the_filter_keeps_hues_and_turns_white_over():
    np.testing.assert_allclose(on_a_dark_page(WHITE), 1 - INVERT, atol=1e-12)
    np.testing.assert_allclose(on_a_dark_page(np.zeros(3)), INVERT, atol=1e-12)
    blue = on_a_dark_page(rgb(viz.COLOURS["bn"]))
    assert blue.argmax() == 2
    assert contrast(np.zeros(3), WHITE) == pytest.approx(21)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", viz.COLOURS)
def test_every_colour_can_be_read_as_text_on_either_page(page, name):
    turned = PAGES[page]
    assert contrast(turned(rgb(viz.COLOURS[name])), turned(WHITE)) >= 4.5


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("blindness", COLOUR_BLINDNESS)
def test_every_two_colours_differ_on_either_page_for_everyone(page, blindness):
    seen = {name: oklab(seen_with(blindness, PAGES[page](rgb(value)))) for name, value in viz.COLOURS.items()}
    for one, other in itertools.combinations(seen, 2):
        # A just noticeable difference is about 0.02 in these units.
        assert np.linalg.norm(seen[one] - seen[other]) > 0.06, (one, other)


def test_the_style_is_opaque_white_without_spines_and_nothing_small():
    viz.use_style()
    rc = mpl.rcParams
    assert mpl.colors.to_rgba(rc["figure.facecolor"]) == (1, 1, 1, 1)
    assert mpl.colors.to_rgba(rc["savefig.facecolor"]) == (1, 1, 1, 1)
    assert (rc["axes.spines.top"], rc["axes.spines.right"], rc["axes.grid"]) == (False, False, True)
    sizes = ("font.size", "axes.labelsize", "axes.titlesize", "figure.titlesize", "legend.fontsize", "xtick.labelsize")
    assert min(rc[key] for key in (*sizes, "ytick.labelsize")) >= 11
    for key in ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "axes.titlecolor"):
        assert contrast(on_a_dark_page(rgb(rc[key])), on_a_dark_page(WHITE)) >= 4.5
    cycle = [entry["color"] for entry in rc["axes.prop_cycle"]]
    assert cycle[0] == viz.COLOURS["bn"]
    assert len(set(cycle)) == 6


def test_figures_have_the_size_they_were_given_whatever_is_in_them():
    viz.use_style()
    figure, axes = plt.subplots()
    assert png(figure).size == (1036, 576)
    axes.set_xlabel("a label")
    axes.plot([0, 1], label="a very long label indeed, which needs much room")
    viz.label_lines(axes)
    image = png(figure)
    assert image.size == (1036, 576)
    assert np.asarray(image.convert("RGBA"))[..., 3].min() == 255  # opaque
    # Nothing is cut off at the right: the outermost pixels are background.
    assert np.asarray(image.convert("RGB"))[:, -2:].min() == 255


def drawings():
    """One call of each function, with all its options' worth of ink."""
    rng = np.random.default_rng(0)
    layers = {f"layer {i}": np.tanh(rng.normal(0, i, (20, 3))) for i in range(1, 6)}
    curves = {"none": rng.uniform(1, 2, (4, 9)), "bn": rng.uniform(1, 2, (4, 9))}
    history = {"running_mean": rng.normal(size=(9, 8)), "running_var": rng.uniform(1, 2, (9, 8))}
    target = {"running_mean": rng.normal(size=8), "running_var": rng.uniform(1, 2, 8)}
    return {
        "curves": lambda: viz.training_curves(curves, title="t", smooth=2, logy=True).figure,
        "depth": lambda: viz.signal_through_depth({"none": layers, "bn": layers}, title="t").figure,
        "histograms": lambda: viz.layer_histograms({"none": layers, "bn": layers}, saturation=(-0.9, 0.9), title="t"),
        "magnitudes": lambda: viz.layer_histograms({k: v.round(1) for k, v in layers.items()}, magnitude=True),
        "statistics": lambda: viz.running_statistics(history, target=target, batch=history, title="t"),
        "shared": lambda: viz.shared_statistics(footprints(), remarks={"channel": "over N, L"}, title="t"),
    }


def footprints():
    """Which values share a statistic with (2, 3, 2): those of its channel, of its sample, of its group, itself."""
    shape = (4, 6, 5)
    drawn = {name: np.zeros(shape, dtype=bool) for name in ("channel", "one sample", "group", "itself")}
    drawn["channel"][:, 3] = drawn["one sample"][2] = drawn["group"][2, 3:] = drawn["itself"][2, 3, 2] = True
    return drawn


@pytest.mark.parametrize("name", drawings())
def test_all_that_is_written_is_legible_on_either_page_and_on_a_phone(name):
    figure = drawings()[name]()
    figure.draw_without_rendering()
    assert figure.get_figwidth() == viz.WIDTH
    assert png(figure).width == 1036
    for text in figure.findobj(mpl.text.Text):
        if text.get_visible() and text.get_text():
            assert text.get_fontsize() >= 11, text
            for turned in PAGES.values():
                assert contrast(turned(rgb(text.get_color())), turned(WHITE)) >= 4.5, text


@pytest.mark.parametrize("name", sorted(set(drawings()) - {"shared"}))
def test_lines_and_bars_stand_out_on_either_page(name):
    figure = drawings()[name]()
    drawn = 0
    for axes in figure.axes:
        for line in lines(axes).values():
            drawn += 1
            assert line.get_linewidth() == 2
            for turned in PAGES.values():
                assert contrast(turned(rgb(line.get_color())), turned(WHITE)) >= 3
        for patch in axes.patches:
            drawn += 1
            for turned in PAGES.values():
                assert contrast(turned(rgb(patch.get_facecolor())), turned(WHITE)) >= 3
    assert drawn >= 2


def written(figure):
    """What can be seen of the texts: text -> box in pixels; ticks beyond the limits are not drawn."""
    figure.draw_without_rendering()
    unseen = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not min(limits) <= tick.get_loc() <= max(limits):
                    unseen |= {tick.label1, tick.label2}
    found = figure.findobj(lambda artist: isinstance(artist, mpl.text.Text) and artist not in unseen)
    return [(t.get_text(), t.get_window_extent()) for t in found if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("name", drawings())
def test_nothing_written_overlaps_or_leaves_the_figure(name):
    figure = drawings()[name]()
    boxes = written(figure)
    assert len(boxes) > 8
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= height + 1, text
    for (one, box), (other, another) in itertools.combinations(boxes, 2):
        across = min(box.x1, another.x1) - max(box.x0, another.x0)
        along = min(box.y1, another.y1) - max(box.y0, another.y0)
        assert across <= 1 or along <= 3, (one, other)  # boxes reserve room for ascenders: a touch is no overlap


@pytest.mark.parametrize("name", drawings())
def test_drawing_changes_no_setting(name):
    before = dict(mpl.rcParams)
    drawings()[name]()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", drawings())
def test_drawings_look_the_same_whatever_the_settings(name):
    viz.use_style()
    styled = np.asarray(png(drawings()[name]()))
    mpl.rcdefaults()
    mpl.rcParams.update({"font.size": 20, "xtick.labelsize": 5, "grid.color": "red", "ytick.color": "red"})
    np.testing.assert_array_equal(styled, np.asarray(png(drawings()[name]())))


def test_importing_viz_loads_no_matplotlib():
    code = (
        "import sys, bnlearn.viz; found = {'matplotlib', 'IPython', 'sklearn', 'torch'} & set(sys.modules);"
        "assert not found, found; assert bnlearn.viz.COLOURS['bn'].startswith('#')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", drawings())
def test_without_matplotlib_the_error_names_the_extra(monkeypatch, name):
    call = drawings()[name]
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for function in (call, viz.use_style):
        with pytest.raises(ImportError, match=r"matplotlib.*pip install matplotlib"):
            function()


def test_use_style_without_ipython(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    viz.use_style()
    assert mpl.rcParams["figure.dpi"] == 144


def test_inline_figures_in_ipython_keep_their_size():
    code = """
import io, base64
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
shell = InteractiveShell.instance()
from matplotlib_inline import backend_inline
import bnlearn.viz as viz
viz.use_style()
import matplotlib.pyplot as plt
backend_inline.configure_inline_support(shell, "module://matplotlib_inline.backend_inline")
figure, axes = plt.subplots()
axes.plot([1, 2])
data, _ = shell.display_formatter.format(figure, include={"image/png"})
image = data["image/png"]
image = base64.b64decode(image) if isinstance(image, str) else image
print(Image.open(io.BytesIO(image)).size)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(1036, 576)"


# --- colours and labels ---------------------------------------------------------------------------------------------


def test_arms_have_the_colours_of_their_names_and_others_what_is_free():
    colours = viz._colours(["tanh", "BN", "Without batch norm", "ReLU", "layer norm"], None)
    expected = {"BN": "bn", "Without batch norm": "none", "layer norm": "ln", "tanh": "gn", "ReLU": "in"}
    assert colours == {name: viz.COLOURS[key] for name, key in expected.items()}
    assert viz._colours(["a", "b"], {"b": "bn", "a": "#123456"}) == {"a": "#123456", "b": viz.COLOURS["bn"]}
    assert len(set(viz._colours(list("abcdef"), None).values())) == 6
    assert len(viz._colours([*list("abcdefgh"), *viz._CYCLE], None)) == 14  # more than there are: they repeat


def test_a_colour_for_an_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="expected colours for a, b, got one for c"):
        viz.training_curves({"a": [1, 2], "b": [1, 2]}, colours={"c": "bn"})


@pytest.mark.parametrize("seed", range(20))
def test_spread_keeps_order_gap_and_bounds_and_moves_no_more_than_needed(seed):
    rng = np.random.default_rng(seed)
    wanted = list(rng.uniform(0, 100, rng.integers(1, 7)))
    places = viz._spread(wanted, 12, 0, 100)
    order = np.argsort(wanted)
    assert np.all(np.diff(np.array(places)[order]) >= 12 - 1e-9)
    assert min(places) >= -1e-9
    assert max(places) <= 100 + 1e-9
    # No better places on a grid of alternatives: least squares, so no single label may go nearer to where it wants.
    cost = np.sum((np.array(places) - wanted) ** 2)
    for shift in rng.normal(0, 3, (200, len(wanted))):
        other = np.array(places) + shift
        if np.all(np.diff(other[order]) >= 12) and other.min() >= 0 and other.max() <= 100:
            assert np.sum((other - wanted) ** 2) >= cost - 1e-9


def test_spread_leaves_alone_what_does_not_touch():
    assert viz._spread([50.0, 10.0, 90.0], 12, 0, 100) == pytest.approx([50, 10, 90])
    assert viz._spread([50.0, 50.0], 12, 0, 100) == pytest.approx([44, 56])
    assert viz._spread([1.0, 2.0, 3.0], 12, 0, 20) == pytest.approx([0, 12, 24])  # no room: the upper bound gives way


def test_labels_stand_at_the_ends_of_the_lines_in_their_colours_without_overlap():
    figure, axes = plt.subplots()
    ends = {"a": 1.0, "b": 1.001, "c": 1.002, "far": 3.0}
    for name, end in ends.items():
        axes.plot([0, 1, 2], [0, end, np.nan], label=name)
    axes.plot([0, 1], [0, 1])  # without a label
    viz.label_lines(axes)
    viz.label_lines(axes)  # a second time changes nothing
    labels = line_labels(axes)
    assert list(labels) == list(ends)
    assert len(axes.texts) == 4
    figure.draw_without_rendering()
    boxes = {name: label.get_window_extent() for name, label in labels.items()}
    for name, line in lines(axes).items():
        assert labels[name].get_color() == line.get_color()
        assert labels[name].xy == (1, ends[name])
        assert boxes[name].x0 > axes.get_window_extent().x1
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(other)
    far = axes.transData.transform((0, 3.0))[1]
    assert (boxes["far"].y0 + boxes["far"].y1) / 2 == pytest.approx(far, abs=1.5)


@pytest.mark.parametrize("limits", [(0, 1), (-1, 0)], ids=["at the bottom", "at the top"])
def test_labels_that_pile_up_at_an_edge_stay_beside_the_axes(limits):
    figure, axes = plt.subplots()
    for name in "abcd":
        axes.plot([0, 1], [0.5, 0], label=name)
    axes.set_ylim(*limits)
    viz.label_lines(axes)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    for label in line_labels(axes).values():
        box = label.get_window_extent()
        assert frame.y0 - 3 <= box.y0  # clear of the numbers of the horizontal axis
        assert (box.y0 + box.y1) / 2 <= frame.y1 + 1


def test_label_lines_refuses_axes_without_labelled_lines():
    axes = plt.subplots()[1]
    axes.plot([1, 2])
    with pytest.raises(ValueError, match="lines drawn with label"):
        viz.label_lines(axes)


def test_a_line_that_is_all_gaps_is_drawn_without_a_label():
    axes = viz.training_curves({"diverged": np.full((2, 4), np.nan)})
    assert list(line_labels(axes)) == []
    assert [line.get_label() for line in axes.get_lines()][:1] == ["diverged"]


def test_label_lines_in_a_part_of_a_figure():
    part = plt.figure(layout="constrained").subfigures(1, 2)[1]
    axes = part.subplots()
    axes.plot([1, 2], label="here")
    viz.label_lines(axes)
    assert list(line_labels(axes)) == ["here"]


# --- training curves ------------------------------------------------------------------------------------------------


def test_curves_are_the_median_and_the_quartiles_over_seeds():
    rng = np.random.default_rng(1)
    curves = {"bn": rng.normal(size=(7, 20)), "one seed": rng.normal(size=20), "gn": rng.normal(size=(3, 10))}
    axes = viz.training_curves(curves, ylabel="accuracy", xlabel="epoch", title="a title")
    drawn = lines(axes)
    assert list(drawn) == list(curves)
    for name, values in curves.items():
        values = np.atleast_2d(values)
        np.testing.assert_array_equal(drawn[name].get_xdata(), np.arange(1, values.shape[1] + 1))
        np.testing.assert_allclose(drawn[name].get_ydata(), np.median(values, axis=0), rtol=1e-15)
    assert len(axes.collections) == 2  # one seed has no band
    for name, band in zip(["bn", "gn"], axes.collections, strict=True):
        assert rgb(band.get_facecolor()[0, :3]) == pytest.approx(rgb(viz.COLOURS[name]))
        at, edge = band.get_paths()[0].vertices.T
        for step, (low, high) in enumerate(np.quantile(curves[name], [0.25, 0.75], axis=0).T, 1):
            assert edge[at == step].min() == pytest.approx(low)
            assert edge[at == step].max() == pytest.approx(high)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("epoch", "accuracy", "a title")
    assert "median and quartiles of 1 to 7 seeds" in texts(axes)
    assert list(line_labels(axes)) == list(curves)


def test_curves_of_one_seed_say_nothing_of_seeds():
    axes = viz.training_curves({"bn": [3, 2, 1]})
    assert not any("seeds" in text for text in texts(axes))
    assert axes.get_title("left") == ""


def test_curves_smoothed_over_steps():
    values = np.random.default_rng(2).normal(size=(5, 12))
    axes = viz.training_curves({"bn": values}, smooth=4)
    means = np.stack([np.convolve(row, np.full(4, 0.25), mode="valid") for row in values])
    np.testing.assert_allclose(lines(axes)["bn"].get_ydata(), np.median(means, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(lines(axes)["bn"].get_xdata(), np.arange(4, 13))
    assert "median and quartiles of 5 seeds, mean of 4 steps" in texts(axes)


def test_curves_have_a_gap_where_a_seed_diverged():
    values = np.ones((3, 5))
    values[1, 3], values[2, 4] = np.inf, np.nan
    axes = viz.training_curves({"bn": values})
    np.testing.assert_array_equal(lines(axes)["bn"].get_ydata(), [1, 1, 1, np.nan, np.nan])


def test_curves_on_given_axes_and_places_with_a_log_axis_and_limits():
    figure, (left, right) = plt.subplots(1, 2)
    returned = viz.training_curves({"bn": [1, 2, 4]}, ax=right, x=[10, 20, 40], logy=True, ylim=(0.5, 8))
    assert returned is right
    assert left.get_lines() == []
    assert len(plt.get_fignums()) == 1
    np.testing.assert_array_equal(lines(right)["bn"].get_xdata(), [10, 20, 40])
    assert (right.get_yscale(), right.get_ylim(), right.get_xlim()) == ("log", (0.5, 8), (10, 40))
    figure.draw_without_rendering()
    shown = [label.get_text() for label in (*right.get_yticklabels(), *right.get_yticklabels(minor=True))]
    assert {"1", "2", "5"} <= set(shown)  # plain numbers, and some between the powers of ten
    assert "3" not in shown


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"curves": {}}, ValueError, "curves to hold at least one entry"),
        ({"curves": [1, 2]}, TypeError, "curves to be a mapping from names to arrays, got list"),
        ({"curves": {"bn": np.ones((2, 3, 4))}}, ValueError, r"curves\['bn'\] of shape .*, got \(2, 3, 4\)"),
        (
            {"curves": {"a": [1.0], "bn": []}},
            ValueError,
            r"curves\['bn'\] to hold at least one value, got shape \(0,\)",
        ),
        ({"curves": {"bn": ["x"]}}, TypeError, r"curves\['bn'\] to be an array of real numbers, got list"),
        ({"curves": {"bn": [1, 2]}, "x": [1, 2, 3]}, ValueError, r"x of shape \(2,\).*curves\['bn'\], got \(3,\)"),
        ({"curves": {"bn": [1, 2]}, "smooth": 3}, ValueError, r"smooth <= 2, the steps of curves\['bn'\], got 3"),
        ({"curves": {"bn": [1, 2]}, "smooth": 0}, ValueError, "smooth >= 1, got 0"),
    ],
)
def test_curves_refuse_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        viz.training_curves(**arguments)
    assert plt.get_fignums() == []


# --- signal through depth -------------------------------------------------------------------------------------------


def test_signal_is_the_standard_deviation_per_layer():
    rng = np.random.default_rng(3)
    layers = {f"fc{i}": rng.normal(5, 0.5**i, (30, 4)) for i in range(6)}
    axes = viz.signal_through_depth({"none": layers, "bn": {k: v * 3 for k, v in layers.items()}})
    np.testing.assert_array_equal(lines(axes)["none"].get_xdata(), np.arange(1, 7))
    np.testing.assert_allclose(lines(axes)["none"].get_ydata(), [v.std() for v in layers.values()], rtol=1e-15)
    np.testing.assert_allclose(lines(axes)["bn"].get_ydata(), [3 * v.std() for v in layers.values()], rtol=1e-14)
    assert axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == list(layers)
    assert list(line_labels(axes)) == ["none", "bn"]


def test_signal_of_known_numbers_over_seeds():
    values = np.random.default_rng(4).uniform(1, 2, (5, 12))
    axes = viz.signal_through_depth({"bn": values}, logy=False, ylim=(0, 3))
    np.testing.assert_allclose(lines(axes)["bn"].get_ydata(), np.median(values, axis=0), rtol=1e-15)
    assert (axes.get_yscale(), axes.get_ylim(), len(axes.collections)) == ("linear", (0, 3), 1)
    assert "median and quartiles of 5 seeds" in texts(axes)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_signal_that_died_is_a_gap_on_a_log_axis():
    axes = viz.signal_through_depth({"none": [1.0, 0.1, 0.0, 0.0]})
    np.testing.assert_array_equal(lines(axes)["none"].get_ydata(), [1, 0.1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, ValueError, "values to hold at least one entry"),
        ({"bn": {}}, ValueError, r"values\['bn'\] to hold at least one entry"),
        ({"bn": {"fc": []}}, ValueError, r"values\['bn'\]\['fc'\] to hold at least one value"),
        ({"bn": np.ones((2, 2, 2))}, ValueError, r"values\['bn'\] of shape \(seeds, layers\).*got \(2, 2, 2\)"),
    ],
)
def test_signal_refuses_what_does_not_fit(values, error, message):
    with pytest.raises(error, match=message):
        viz.signal_through_depth(values)


# --- histograms -----------------------------------------------------------------------------------------------------


def heights(patch, row):
    """Heights of a row's bars, 1 for the highest, and the edges of the bins."""
    values, edges, baseline = patch.get_data()
    assert baseline == row
    drawn = row - values  # upwards, on an axis that points down
    return drawn / 0.86, edges


def test_histograms_count_every_value_in_every_layer():
    rng = np.random.default_rng(5)
    values = {"input": rng.normal(size=(40, 3)), "hidden": rng.normal(1, 0.1, (40, 2, 2)), "output": np.zeros(10)}
    figure = viz.layer_histograms(values, bins=25, xlabel="gradient", title="a title")
    (axes,) = figure.axes
    pooled = np.concatenate([v.ravel() for v in values.values()])
    for row, ((name, array), patch) in enumerate(zip(values.items(), axes.patches, strict=True)):
        counts, edges = np.histogram(array, 25, (pooled.min(), pooled.max()))
        assert counts.sum() == array.size
        drawn, at = heights(patch, row)
        np.testing.assert_allclose(at, edges)
        np.testing.assert_allclose(drawn, counts / counts.max(), atol=1e-12)
        assert patch.get_label() == name
    assert [label.get_text() for label in axes.get_yticklabels()] == list(values)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first layer is at the top
    assert {"gradient", "a title", "std"} <= set(texts(figure))
    assert {f"{values['input'].std():.2f}", f"{values['hidden'].std():.2f}", "0.0"} <= set(texts(figure))


def test_histograms_gather_what_is_out_of_range_in_the_outermost_bins():
    figure = viz.layer_histograms({"a": [-9, -1, 0.1, 0.2, 0.3, 9, 9]}, value_range=(-2, 2), bins=4)
    drawn, edges = heights(figure.axes[0].patches[0], 0)
    np.testing.assert_array_equal(edges, [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(drawn, np.array([1, 1, 3, 2]) / 3, atol=1e-12)


def test_histograms_with_log_counts():
    figure = viz.layer_histograms({"a": [0.0] * 99 + [1.0]}, bins=2, log_counts=True)
    drawn, _ = heights(figure.axes[0].patches[0], 0)
    np.testing.assert_allclose(drawn, [1, np.log(2) / np.log(100)], atol=1e-12)


def test_histograms_of_magnitudes():
    values = {"a": [1e-4, -1e-4, 1e-1, 0, 0], "b": [-1e-6, 1.0, 1.0, 1.0, 1.0]}
    figure = viz.layer_histograms(values, bins=3, magnitude=True)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    drawn, edges = heights(axes.patches[0], 0)
    np.testing.assert_allclose(edges, [1e-6, 1e-4, 1e-2, 1], rtol=1e-12)
    assert drawn.sum() == pytest.approx(1.5)  # two alike and one: the zeros are not among them
    np.testing.assert_allclose(heights(axes.patches[1], 1)[0], [0.25, 0, 1], atol=1e-12)
    assert {"zero", "40%", "0%"} <= set(texts(figure))
    assert "zero" not in texts(viz.layer_histograms({"a": [1.0, 2.0]}, magnitude=True))


def test_histograms_of_nothing_but_one_value():
    drawn, edges = heights(viz.layer_histograms({"a": [3.0, 3.0]}, bins=2).axes[0].patches[0], 0)
    np.testing.assert_array_equal(edges, [2.5, 3, 3.5])
    np.testing.assert_allclose(drawn, [0, 1], atol=1e-12)
    figure = viz.layer_histograms({"a": [0.0, 0.0]}, magnitude=True)
    assert heights(figure.axes[0].patches[0], 0)[0].max() == 0
    assert "100%" in texts(figure)
    edges = heights(viz.layer_histograms({"a": [4.0]}, magnitude=True, bins=2).axes[0].patches[0], 0)[1]
    np.testing.assert_allclose(edges, [2, 4, 8])


def test_histograms_show_saturation():
    array = np.array([-1, -0.95, -0.9, 0.0, 0.1, 0.5, 0.89, 1.0, 1.0, 1.0])
    figure = viz.layer_histograms({"tanh": array}, bins=20, value_range=(-1, 1), saturation=(-0.9, 0.9))
    whole, flat = figure.axes[0].patches
    counts, edges = np.histogram(array, 20, (-1, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(heights(flat, 0)[0], np.where(np.abs(centres) > 0.9, counts, 0) / 3, atol=1e-12)
    np.testing.assert_allclose(heights(whole, 0)[0], counts / 3, atol=1e-12)
    assert rgb(flat.get_facecolor()) == pytest.approx(rgb(viz.COLOURS["rms"]))
    assert {"flat", "60%"} <= set(texts(figure))


def test_histograms_of_two_arms_side_by_side_share_bins_and_layers():
    rng = np.random.default_rng(6)
    values = {"none": {"a": rng.normal(size=30), "b": rng.normal(size=30)}, "bn": {"a": [9.0, 0.0], "b": [-9.0, 1.0]}}
    figure = viz.layer_histograms(values, bins=6)
    assert [axes.get_title("left") for axes in figure.axes] == ["none", "bn"]
    for axes, (arm, layers) in zip(figure.axes, values.items(), strict=True):
        assert axes.get_xlim() == (-9, 9)
        for row, (patch, array) in enumerate(zip(axes.patches, layers.values(), strict=True)):
            counts, _ = np.histogram(array, 6, (-9, 9))
            np.testing.assert_allclose(heights(patch, row)[0], counts / counts.max(), atol=1e-12)
            assert rgb(patch.get_facecolor()) == pytest.approx(rgb(viz.COLOURS[arm]))


@pytest.mark.parametrize("count", [1, 5, 30])
def test_histograms_have_room_for_each_row(count):
    figure = viz.layer_histograms({f"layer {i}": np.arange(9.0) for i in range(count)})
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == count
    for above, below in itertools.pairwise(boxes):
        assert above.y0 > below.y1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"values": {}}, ValueError, "values to hold at least one entry"),
        ({"values": np.ones(3)}, TypeError, "values to be a mapping .*, got ndarray"),
        ({"values": {"a": {}}}, ValueError, r"values\['a'\] to hold at least one entry"),
        ({"values": {"a": [1], "b": {"c": [1]}}}, TypeError, r"not both: values\['a'\] is an array"),
        (
            {"values": {"fc": [1.0, np.nan, np.inf]}},
            ValueError,
            r"values\['fc'\].*got 2 NaN or infinite among 3 .*\(3,\)",
        ),
        ({"values": {"bn": {"fc": ["x"]}}}, TypeError, r"values\['bn'\]\['fc'\] to be an array of real numbers"),
        ({"values": {arm: {"a": [1]} for arm in "wxyz"}}, ValueError, "at most 3 arms side by side, got 4: w, x, y, z"),
        ({"values": {"x": {"a": [1]}, "y": {"b": [1]}}}, ValueError, "same layers in every arm, got x: a; y: b"),
        ({"values": {"a": [1]}, "bins": 0}, ValueError, "bins >= 1, got 0"),
        ({"values": {"a": [1]}, "value_range": (1, 1)}, ValueError, r"value_range as .*low < high, got \(1, 1\)"),
        ({"values": {"a": [1]}, "saturation": (1, -1)}, ValueError, r"saturation as .*got \(1, -1\)"),
        ({"values": {"a": [1]}, "saturation": (0, 1), "magnitude": True}, ValueError, "got both"),
        ({"values": {"a": [1]}, "value_range": (0, 1), "magnitude": True}, ValueError, r"above 0 .*got \(0, 1\)"),
    ],
)
def test_histograms_refuse_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        viz.layer_histograms(**arguments)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0"), (0.0864, "0.086"), (0.1, "0.10"), (1.0, "1.0"), (12.3, "12"), (123.4, "123"), (0.000123, "1.2e-4"),
     (3.21e-12, "3.2e-12"), (54321.0, "5.4e4"), (0.999, "1.0")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert viz._short(value) == text


# --- running statistics ---------------------------------------------------------------------------------------------


def test_running_statistics_draw_each_channel_its_target_and_its_batches():
    rng = np.random.default_rng(7)
    history = {"running_mean": rng.normal(size=(15, 3)), "running_var": rng.uniform(1, 2, (15, 3))}
    batch = {key: value + rng.normal(size=value.shape) for key, value in history.items()}
    target = {"running_mean": rng.normal(size=3)}
    figure = viz.running_statistics(history, target=target, batch=batch, xlabel="update", title="a title")
    assert [axes.get_title("left") for axes in figure.axes] == list(history)
    for axes, key in zip(figure.axes, history, strict=True):
        named = lines(axes)
        assert list(named) == ["channel 0", "channel 1", "channel 2"]
        assert set(line_labels(axes)) == set(named)
        others = [line for line in axes.get_lines() if line not in named.values()]
        dots = [line for line in others if line.get_marker() == "."]
        dashed = [line for line in others if line.get_linestyle() == "--"]
        assert len(dots) == 3
        assert len(dashed) == (3 if key in target else 0)
        for c, (line, dot) in enumerate(zip(named.values(), dots, strict=True)):
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 16))
            np.testing.assert_array_equal(line.get_ydata(), history[key][:, c])
            np.testing.assert_array_equal(dot.get_ydata(), batch[key][:, c])
            assert line.get_color() == dot.get_color()
            if dashed:
                assert dashed[c].get_ydata() == [target[key][c]] * 2
                assert dashed[c].get_color() == line.get_color()
    assert "dots: each batch, dashed: target" in texts(figure.axes[0])
    assert "dots: each batch" in texts(figure.axes[1])
    assert {"update", "a title"} <= set(texts(figure))


def test_running_statistics_choose_six_channels_and_say_so():
    figure = viz.running_statistics({"running_mean": np.random.default_rng(8).normal(size=(5, 64))})
    assert [int(name.split()[1]) for name in lines(figure.axes[0])] == [0, 13, 25, 38, 50, 63]
    assert "6 of 64 channels" in texts(figure)


def test_running_statistics_of_chosen_channels_at_given_steps():
    values = np.random.default_rng(9).normal(size=(4, 9))
    figure = viz.running_statistics({"running_mean": values}, channels=[8, 2], x=[0, 10, 20, 30])
    assert list(lines(figure.axes[0])) == ["channel 8", "channel 2"]
    np.testing.assert_array_equal(lines(figure.axes[0])["channel 8"].get_ydata(), values[:, 8])
    np.testing.assert_array_equal(lines(figure.axes[0])["channel 8"].get_xdata(), [0, 10, 20, 30])
    assert "2 of 9 channels" in texts(figure)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"history": {}}, ValueError, "history to hold at least one entry"),
        ({"history": {"m": np.ones(3)}}, ValueError, r"history\['m'\] of shape \(steps, C\), got \(3,\)"),
        ({"history": {"m": np.ones((3, 2)), "v": np.ones((3, 4))}}, ValueError,
         r"history\['v'\] of shape \(steps, C\) = \(3, 2\), like history\['m'\], got \(3, 4\)"),
        ({"target": {"m": np.ones(3)}}, ValueError, r"target\['m'\] of shape \(C,\) = \(2,\), .*got \(3,\)"),
        ({"target": {"w": np.ones(2)}}, ValueError, "target to have keys among m, got 'w'"),
        ({"batch": {"m": np.ones((2, 2))}}, ValueError, r"batch\['m'\] of shape .* = \(3, 2\), .*got \(2, 2\)"),
        ({"channels": [0, 2]}, ValueError, "channels from 0 to 1, got 2"),
        ({"channels": []}, ValueError, "channels to name at least one"),
        ({"x": [1, 2]}, ValueError, r"x of shape \(3,\), one per step of history\['m'\], got \(2,\)"),
    ],
)  # fmt: skip
def test_running_statistics_refuse_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        viz.running_statistics(**{"history": {"m": np.ones((3, 2))}, **arguments})
    assert plt.get_fignums() == []


# --- shared statistics ----------------------------------------------------------------------------------------------


def squares(axes):
    """Corner -> colour of all that is drawn, in reading order: from the top, then from the left."""
    (collection,) = axes.collections
    corners = [path.vertices[:, :2].min(axis=0) for path in collection.get_paths()]
    colours = collection.get_facecolors()
    found = {(round(float(y), 6), round(float(x), 6)): c for (x, y), c in zip(corners, colours, strict=True)}
    return [mpl.colors.to_hex(found[key]) for key in sorted(found)]


def test_shared_statistics_draw_the_footprints():
    given = footprints()
    figure = viz.shared_statistics(given, remarks={"group": "over half of C"}, title="a title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(given)
    for axes, (name, footprint) in zip(figure.axes, given.items(), strict=True):
        drawn = np.array(squares(axes)).reshape(footprint.shape)
        np.testing.assert_array_equal(drawn != viz._GRID, footprint, err_msg=name)
        assert np.argwhere(drawn == viz.COLOURS["ink"]).tolist() == [[2, 3, 2]]
        assert set(drawn[footprint]) <= {viz.COLOURS["ink"], viz.COLOURS["bn"]}
        assert ("over half of C" in texts(axes)) == (name == "group")
        (dot,) = axes.get_lines()
        (x,), (y,) = dot.get_data()
        row, channel = axes.get_yticks()[2], axes.get_xticks()[3]
        assert (axes.yaxis_inverted(), axes.xaxis_inverted()) == (True, False)  # sample 0 at the top, channel 0 left
        assert (x, y) == pytest.approx((channel, row), abs=0.05)
    assert figure.get_suptitle() == "a title"
    assert texts(figure).count("sample") == 2


def test_shared_statistics_of_images_elsewhere_and_of_features():
    image = np.zeros((2, 3, 2, 2), dtype=bool)
    image[1, :, 0, 1] = True
    figure = viz.shared_statistics({"position": image}, at=(1, 2, 0, 1), columns=1)
    drawn = np.array(squares(figure.axes[0])).reshape(image.shape)
    np.testing.assert_array_equal(drawn != viz._GRID, image)
    assert drawn[1, 2, 0, 1] == viz.COLOURS["ink"]
    odd = viz.shared_statistics(dict.fromkeys("abc", np.ones((2, 3), dtype=bool)))
    assert len(odd.axes) == 3


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("blindness", COLOUR_BLINDNESS)
def test_what_is_shared_is_told_apart_by_its_lightness(page, blindness):
    """Contrast, not hue, for everyone and on either page: the shared from the rest, and the dot from its square."""
    tones = [viz._GRID, viz.COLOURS["bn"], viz.COLOURS["ink"], "#ffffff"]
    pale, shared, own, dot = (np.clip(seen_with(blindness, PAGES[page](rgb(tone))), 0, 1) for tone in tones)
    assert contrast(pale, shared) > 3
    assert contrast(dot, own) > 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"footprints": {"m": np.ones((2, 3))}}, r"footprints\['m'\] to be boolean, .* got float64 of shape \(2, 3\)"),
        ({"footprints": {"m": np.ones(3, dtype=bool)}}, r"shape \(N, C, \*spatial\), got bool of shape \(3,\)"),
        ({"footprints": {"a": np.ones((1, 2), bool), "b": np.ones((1, 3), bool)}}, r"of one shape, got .*'b': \(1, 3"),
        ({"at": (5, 0)}, r"at as an index of shape \(2, 3\), got \(5, 0\)"),
        ({"footprints": {"m": np.zeros((2, 3), dtype=bool)}}, r"\['m'\] to hold the value itself, at \(1, 1\)"),
        ({"footprints": {}}, "footprints to hold at least one entry"),
    ],
)
def test_shared_statistics_refuse_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        viz.shared_statistics(**{"footprints": {"m": np.ones((2, 3), dtype=bool)}, **arguments})
