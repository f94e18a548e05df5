"""What is drawn of a record is what is in it."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from bnlearn import viz
from bnlearn.claims import QUICK, Claim, Criterion, Measurement, draw, draw_arms
from bnlearn.claims._records import make


@pytest.fixture(autouse=True)
def no_trace():
    with mpl.rc_context():
        mpl.use("agg")
        yield
        plt.close("all")


EFFECTS = {
    "better": np.array([2.0, 3, 4, 2.5, 6]),
    "worse": np.array([0.5, 0.1, 0.2, 0.3, 0.25]),
    "unclear": np.array([0.1, 3, 2.5, 0.2, 0.5]),
    "exact": np.array([0.0, 1e-16, 3e-14]),
}
CLAIM = Claim(
    id="B2",
    statement="Rates can be larger.",
    sources=("P",),
    theme="Rates",
    setting="Digits.",
    criteria=(
        Criterion("better", "difference of rates", 2, 1),
        Criterion("worse", "ratio of rates", 2, 1, scale="log"),
        Criterion(
            "unclear", "a rather long effect, told in so many words that one line of the figure cannot hold them all", 2
        ),
        Criterion("exact", "largest error", 1e-12, exact=True),
    ),
    run=lambda scale: {},
)


@pytest.fixture
def record(rng):
    curves = {name: rng.normal(size=(5, 4)) for name in ("with", "without")}
    arms = {"better": {"with": rng.normal(size=5), "without": rng.normal(size=5)}, "worse": curves}
    details = {"worse": {"steps": [0, 10, 20, 50]}}
    measured = {
        name: Measurement(effect, arms.get(name, {}), details.get(name, {})) for name, effect in EFFECTS.items()
    }
    return make(CLAIM, measured, QUICK, seconds=1, digest="abc")


def drawn(ax, gid):
    return [np.asarray(line.get_xdata()) for line in ax.get_lines() if line.get_gid() == gid]


def texts(ax):
    return [text.get_text() for text in ax.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]


def size(figure):
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).size


def test_every_criterion_has_its_runs_its_interval_and_its_lines(record):
    figure = draw(record)
    assert len(figure.axes) == 4
    for ax, (name, result) in zip(figure.axes, record.criteria.items(), strict=True):
        (runs,), (span,), (estimate,) = (drawn(ax, gid) for gid in ("runs", "interval", "estimate"))
        np.testing.assert_array_equal(runs, np.maximum(result.effect, 1e-18 if name == "exact" else -np.inf))
        assert span.tolist() == [result.low, result.high]
        assert estimate.tolist() == [result.estimate]
        lines = {line.get_xdata()[0] for line in ax.get_lines() if line.get_gid() is None}
        assert lines == {result.criterion.support, result.criterion.refute}
        assert ax.get_title(loc="left").replace("\n", " ") == f"{name}: {result.verdict}"
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log", "linear", "log"]


def test_it_says_what_is_measured_and_what_the_lines_are(record):
    remarks = [ax.texts[0].get_text() for ax in draw(record).axes]
    assert remarks[0] == "difference of rates; supports from 2, refutes below 1 (dashed)"
    *effect, lines = remarks[2].split("\n")
    assert " ".join(effect) == CLAIM.criteria[2].effect
    assert [len(line) > 30 for line in effect] == [True, True], "none has the last word only"
    assert lines == "supports from 2, refutes below it (dashed)"
    assert remarks[3] == "largest error; tolerance 1e-12 (dashed)"


@pytest.mark.parametrize(("factor", "plain"), [(1, True), (1e-4, False), (1e5, False)])
def test_ratios_of_a_sensible_size_are_written_in_full(record, factor, plain):
    effects = {**record.effects, "worse": np.array([0.5, 1, 2, 3, 4]) * factor}
    ax = draw(replace(record, effects=effects)).axes[1]
    ax.figure.draw_without_rendering()
    ticks = [label.get_text() for label in ax.get_xticklabels(which="both")]
    assert ("1" in ticks) == plain
    assert any("10^" in tick for tick in ticks) != plain


def test_a_wide_range_has_no_numbers_between(record):
    effects = {**record.effects, "worse": np.array([0.01, 1, 2, 3, 900])}
    ax = draw(replace(record, effects=effects)).axes[1]
    ax.figure.draw_without_rendering()
    assert {label.get_text() for label in ax.get_xticklabels(minor=True)} == {""}


@pytest.mark.parametrize(
    ("name", "effects", "line", "expected"),
    [
        ("worse", [1.9, 2.0, 2.1, 1.8, 1.95], 1.1, ["1.2", "1.4", "1.6", "1.8", "2"]),
        ("worse", [1.02, 1.04, 1.03, 1.05, 1.02], 1.01, ["1.01", "1.02", "1.03", "1.04", "1.05"]),
        ("worse", [1.2e-5, 1.5e-5, 2e-5, 3e-5, 1.4e-5], 1e-5, ["1e-05", "2e-05"]),
        ("exact", [3e-13, 5e-13, 6e-13], 2e-13, ["2e-13", "5e-13"]),
    ],
)
def test_a_narrow_logarithmic_axis_has_two_numbers_or_more(record, name, effects, line, expected):
    declared = tuple(
        replace(criterion, support=line, refute=line) if criterion.name == name else criterion
        for criterion in CLAIM.criteria
    )
    changed = replace(record, declared=declared, effects={**record.effects, name: np.array(effects)})
    ax = draw(changed).axes[list(EFFECTS).index(name)]
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    shown = {label.get_text(): label.get_position()[0] for label in ax.get_xticklabels(which="both")}
    shown = {text: at for text, at in shown.items() if text and low <= at <= high}
    assert list(shown) == expected
    assert list(shown.values()) == pytest.approx([float(text) for text in expected])


def test_words_can_be_read_on_a_phone(record):
    """At least 8 pixels where the figure is 350 wide."""
    for figure in (draw(record), draw_arms(record, "better"), draw_arms(record, "worse")):
        figure.draw_without_rendering()
        shown = [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip() and text.get_visible()]
        assert len(shown) > 5
        assert min(text.get_fontsize() for text in shown) * 350 / (72 * figure.get_figwidth()) >= 8


def test_the_colour_is_that_of_the_verdict(record):
    colours = []
    for ax in draw(record).axes:
        (span,) = (line for line in ax.get_lines() if line.get_gid() == "interval")
        colours.append(span.get_color())
    names = ["bn", "ln", "none", "bn"]
    assert colours == [viz.COLOURS[name] for name in names]


def test_an_error_of_nothing_has_a_place(record):
    effects = {**record.effects, "exact": np.zeros(3)}
    ax = draw(replace(record, effects=effects)).axes[-1]
    assert (drawn(ax, "estimate")[0] > 0).all()
    assert (drawn(ax, "runs")[0] > 0).all()


def test_it_is_as_wide_as_the_other_figures_and_needs_no_style_to_be_set(record):
    before = dict(mpl.rcParams)
    figure = draw(record)
    assert dict(mpl.rcParams) == before
    assert figure.get_figwidth() == viz.WIDTH
    assert size(figure)[0] == int(viz.WIDTH * figure.dpi)


def test_no_words_leave_the_figure_or_meet(record):
    figure = draw(record)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for ax in figure.axes:
        boxes = [text.get_window_extent() for text in (ax.title, ax._left_title, *ax.texts) if text.get_text()]
        assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
        heading, *lines = boxes
        assert not any(heading.overlaps(line) for line in lines)


def test_curves_are_drawn_over_their_steps(record):
    figure = draw_arms(record, "worse", xlabel="step")
    (ax,) = figure.axes
    runs = [line for line in ax.get_lines() if line.get_gid() == "runs"]
    means = {line.get_label(): line for line in ax.get_lines() if line.get_gid() == "mean"}
    assert len(runs) == 10
    for name, arm in record.arms["worse"].items():
        np.testing.assert_allclose(means[name].get_ydata(), arm.mean(axis=0))
        np.testing.assert_array_equal(means[name].get_xdata(), [0, 10, 20, 50])
        assert means[name].get_color() == viz.COLOURS[{"with": "bn", "without": "none"}[name]]
    assert ax.get_xlabel() == "step"
    assert {"with", "without", "B2, worse"} <= set(texts(ax))


@pytest.mark.parametrize(("x", "expected"), [([1, 2, 4, 8], [1, 2, 4, 8]), ([1, 2], [0, 1, 2, 3])])
def test_where_curves_have_their_values(record, x, expected):
    """Given, or counted where what is given is of another length."""
    (ax,) = draw_arms(record, "worse", x=x).axes
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), expected)


def test_curves_without_steps_are_counted(record):
    (ax,) = draw_arms(replace(record, details={"worse": {}}), "worse").axes
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), range(4))


def test_runs_that_diverged_leave_gaps(record):
    arms = {"better": {"with": np.array([1, np.nan, 3, 4, 4])}}
    (ax,) = draw_arms(replace(record, arms=arms), "better").axes
    assert drawn(ax, "mean")[0].tolist() == [3]


def test_arms_of_one_number_are_rows(record):
    (ax,) = draw_arms(record, "better").axes
    for found, mean, arm in zip(drawn(ax, "runs"), drawn(ax, "mean"), record.arms["better"].values(), strict=True):
        np.testing.assert_array_equal(found, arm)
        assert mean == pytest.approx(arm.mean())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["with", "without"]


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("best", r"claim B2: expected one of the criteria \['better', 'worse', 'unclear', 'exact'\], got 'best'"),
        ("unclear", "claim B2: expected arms of 'unclear' to draw, its record keeps none"),
    ],
)
def test_arms_that_are_not_there(record, criterion, message):
    with pytest.raises(ValueError, match=message):
        draw_arms(record, criterion)
