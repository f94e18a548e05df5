"""What a claim must declare, what a measurement must hold, and the verdict that follows: computed, never typed."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bnlearn.claims import (
    FULL,
    QUICK,
    SMOKE,
    Claim,
    Criterion,
    Measurement,
    Scale,
    Verdict,
    interval,
    judge,
    overall,
)

RATIO = Criterion("ReLU", "ratio of rates", support=2, refute=1)
EXACT = Criterion("formula", "largest error", support=1e-10, exact=True)


def claim(run=None, **changes):
    values = {
        "id": "B2",
        "statement": "Rates can be larger.",
        "sources": ("P",),
        "theme": "Rates",
        "setting": "Digits.",
        "criteria": (RATIO, EXACT),
        "run": run or (lambda scale: {}),
    }
    return Claim(**values | changes)


# --- scales ---------------------------------------------------------------------------------------------------------


def test_scales():
    assert (FULL.seeds, FULL.steps_at_most, FULL.quick) == (20, None, False)
    assert (QUICK.seeds, QUICK.steps_at_most, QUICK.quick) == (5, None, True)
    assert (SMOKE.seeds, SMOKE.steps(400), SMOKE.steps(1)) == (2, 3, 1)
    assert FULL.steps(10_000) == 10_000


@pytest.mark.parametrize("seeds", [1, 0, -3])
def test_a_scale_has_two_seeds_or_more(seeds):
    with pytest.raises(ValueError, match=f"expected at least 2 seeds, .*, got {seeds}$"):
        Scale(seeds)


def test_a_scale_runs_a_step_or_more():
    with pytest.raises(ValueError, match="expected steps_at_most to be at least 1, or None, got 0"):
        Scale(2, steps_at_most=0)


# --- declarations ---------------------------------------------------------------------------------------------------


def test_without_a_line_for_refuting_it_is_that_for_supporting():
    assert Criterion("a", "b", 3.0).refute == 3.0
    assert (RATIO.support, RATIO.refute) == (2, 1)
    assert EXACT.refute == EXACT.support


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "expected a name and an effect, got '' and 'ratio of rates'"),
        ({"effect": ""}, "expected a name and an effect, got 'ReLU' and ''"),
        ({"refute": 2.5}, "criterion 'ReLU': expected finite refute <= support, got 2.5 and 2"),
        ({"support": math.inf}, "expected finite refute <= support, got 1 and inf"),
        ({"refute": -math.inf}, "expected finite refute <= support, got -inf and 2"),
        ({"support": math.nan}, "expected finite refute <= support, got 1 and nan"),
        ({"statistic": "mode"}, "criterion 'ReLU': expected one of mean, median, got 'mode'"),
        ({"scale": "sqrt"}, "expected one of linear, log, got 'sqrt'"),
        ({"scale": "log", "refute": 0.0}, "expected refute > 0 on a log scale, got 0.0"),
        ({"exact": True}, "expected one tolerance >= 0 of an exact check, got support=2 and refute=1"),
        ({"exact": True, "support": -1, "refute": -1}, "expected one tolerance >= 0 .* got support=-1 and refute=-1"),
    ],
)
def test_a_criterion_that_cannot_be_decided_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RATIO, **changes)


@pytest.mark.parametrize("name", ["b2", "B", "2B", "B123", "B2 ", ""])
def test_identifiers(name):
    with pytest.raises(ValueError, match=f"expected an identifier such as 'B2', .*, got {re.escape(repr(name))}"):
        claim(id=name)


@pytest.mark.parametrize("field", ["statement", "sources", "theme", "setting", "criteria"])
def test_a_claim_leaves_nothing_out(field):
    with pytest.raises(ValueError, match=rf"claim B2: expected {field}, got (''|\(\))"):
        claim(**{field: () if field in {"sources", "criteria"} else ""})


def test_sources_are_a_tuple():
    with pytest.raises(ValueError, match="claim B2: expected a tuple of sources, got the str 'P'"):
        claim(sources="P")


def test_criteria_have_names_of_their_own():
    with pytest.raises(ValueError, match="claim B2: expected criteria of different names, got ReLU, ReLU"):
        claim(criteria=(RATIO, RATIO))


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_interval_is_scipy_s(rng):
    effect = rng.exponential(size=20)
    found = interval(effect, seed=3)
    theirs = stats.bootstrap((effect,), np.mean, rng=np.random.default_rng(3)).confidence_interval
    assert found == (effect.mean(), theirs.low, theirs.high)
    assert interval(effect, seed=3) == found
    assert interval(effect, seed=4) != found


def test_the_interval_covers_the_mean_about_as_often_as_it_says(rng):
    """95 % in the long run; at 20 values, bias-corrected and accelerated, a little less."""
    hits = [low <= 0 <= high for _, low, high in (interval(rng.normal(size=20)) for _ in range(100))]
    assert 0.88 <= np.mean(hits) <= 0.99


@pytest.mark.parametrize("seeds", [5, 20, 21])
def test_the_interval_of_the_median_is_of_percentiles(rng, seeds):
    effect = rng.exponential(size=seeds)
    found = interval(effect, statistic="median")
    theirs = stats.bootstrap((effect,), np.median, method="percentile", rng=np.random.default_rng(0))
    assert found == (np.median(effect), *theirs.confidence_interval)


def test_on_a_log_scale_it_is_the_geometric_mean(rng):
    effect = rng.lognormal(1, 2, size=20)
    found, logs = interval(effect, scale="log"), interval(np.log(effect))
    np.testing.assert_allclose(found, np.exp(logs))
    assert interval(1 / effect, scale="log").estimate == pytest.approx(1 / found.estimate)
    assert interval([2.0, 3.0], scale="log")[1:] == (2.0, 3.0)  # exp(log(3)) is a little more


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e300])
def test_equal_effects_have_an_interval_of_no_width(value):
    assert interval(np.full(7, value)) == (value,) * 3
    assert interval(np.full(7, value), statistic="median") == (value,) * 3


def test_nearly_equal_effects_have_an_interval(rng):
    for effect in ([1.0] * 19 + [np.nextafter(1, 2)], [0.0, 1.0], [0.0] * 19 + [1.0], [1e-300] * 4 + [2e-300]):
        found = interval(effect)
        assert np.isfinite(found).all()
        assert min(effect) <= found.low <= found.high <= max(effect)


def test_where_the_acceleration_is_not_defined_it_is_of_percentiles(monkeypatch):
    calls = []
    bootstrap = stats.bootstrap

    def spy(*args, method, **kwargs):
        calls.append(method)
        found = bootstrap(*args, method="percentile", **kwargs)
        if method == "BCa":
            found.confidence_interval = type(found.confidence_interval)(np.nan, np.nan)
        return found

    monkeypatch.setattr(stats, "bootstrap", spy)
    assert np.isfinite(interval([1.0, 2.0, 4.0])).all()
    assert calls == ["BCa", "percentile"]


@pytest.mark.parametrize(
    ("effect", "options", "message"),
    [
        ([1.0], {}, r"expected effects of shape \(seeds,\), with at least 2 seeds, got shape \(1,\)"),
        ([], {}, r"got shape \(0,\)"),
        ([[1.0, 2.0]], {}, r"got shape \(1, 2\)"),
        ([1.0, np.nan, np.inf], {}, r"expected finite effects, got \[nan inf\]"),
        ([1.0, 0.0, -2.0], {"scale": "log"}, r"expected positive effects on a log scale, got \[ 0. -2.\]"),
    ],
)
def test_what_has_no_interval_is_refused(effect, options, message):
    with pytest.raises(ValueError, match=message):
        interval(effect, **options)


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([2.0, 2.0], Verdict.SUPPORTED),  # at the line
        ([2.1, 9.0, 4.0, 3.0], Verdict.SUPPORTED),
        ([1.0, 1.0], Verdict.NOT_SHOWN),  # at the other line
        ([1.5, 1.6], Verdict.NOT_SHOWN),
        ([0.0, 5.0, 0.0, 5.0], Verdict.NOT_SHOWN),
        ([0.1, 0.9, 0.3], Verdict.REFUTED),
        ([-7.0, -8.0], Verdict.REFUTED),
        ([0.0, 0.0, 0.5, 1.5], Verdict.NOT_SHOWN),  # the estimate alone refutes nothing
    ],
)
def test_a_criterion_is_decided_by_the_whole_interval(values, verdict):
    result = judge("B2", RATIO, values)
    assert result.verdict == verdict
    assert result.low <= result.estimate <= result.high
    assert result.estimate == pytest.approx(np.mean(values))


def test_an_estimate_beyond_the_line_is_not_enough():
    result = judge("B2", RATIO, [1.0, 1.5, 2.0, 9.0])
    assert result.estimate > 2 > result.low
    assert result.verdict == Verdict.NOT_SHOWN


def test_the_statistic_and_the_scale_are_those_declared():
    values = [1.0, 1.0, 4.0, 100.0, 4.0]
    assert judge("B2", RATIO, values).estimate == pytest.approx(22)
    assert judge("B2", replace(RATIO, statistic="median"), values).estimate == 4
    assert judge("B2", replace(RATIO, scale="log"), values).estimate == pytest.approx(1600 ** (1 / 5))


@pytest.mark.parametrize(("largest", "verdict"), [(1e-10, Verdict.SUPPORTED), (1.1e-10, Verdict.REFUTED)])
def test_an_exact_check_is_decided_by_its_largest_error(largest, verdict):
    result = judge("A1", EXACT, [0.0, largest, 1e-16])
    assert (result.estimate, result.low, result.high) == (largest,) * 3
    assert result.verdict == verdict
    assert judge("A1", EXACT, [largest]).verdict == verdict  # one check is a check


def test_the_interval_depends_on_claim_and_criterion_alone(rng):
    effect = rng.normal(size=20)
    first = judge("B2", RATIO, effect)
    again = judge("B2", RATIO, effect.copy())
    assert (first.low, first.high) == (again.low, again.high)
    assert first.low != judge("B3", RATIO, effect).low
    assert first.low != judge("B2", replace(RATIO, name="tanh"), effect).low


@pytest.mark.parametrize(
    ("criterion", "effect", "message"),
    [
        (RATIO, [1.0, np.nan, 2.0, np.nan], r"expected finite effects .* got \[nan nan\] at seeds 1, 3"),
        (RATIO, [1.0, 2.0, -np.inf], r"expected finite .* got \[-inf\] at seeds 2"),
        (replace(RATIO, scale="log"), [1.0, 0.0], r"expected positive effects on a log scale, got \[0.\] at seeds 1"),
        (EXACT, [-1e-12], r"expected sizes of errors, which are not negative, got \[-1.e-12\] at checks 0"),
        (EXACT, [np.nan], r"expected finite effects .* at checks 0"),
        (RATIO, [1.0], r"expected effects of shape \(seeds,\), 2 or more, got shape \(1,\)"),
        (EXACT, [], r"expected effects of shape \(checks,\), 1 or more, got shape \(0,\)"),
        (EXACT, 1.0, r"expected .* got shape \(\)"),
    ],
)
def test_effects_that_say_nothing_are_refused_by_name(criterion, effect, message):
    with pytest.raises(ValueError, match=f"claim C4, criterion '{criterion.name}': {message}"):
        judge("C4", criterion, effect)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("ss", "supported"),
        ("rr", "refuted"),
        ("nn", "not shown here"),
        ("s", "supported"),
        ("sr", "depends"),
        ("sn", "depends"),
        ("nr", "not shown here"),
        ("srn", "depends"),
    ],
)
def test_the_verdict_on_a_claim(verdicts, expected):
    by_letter = {"s": Verdict.SUPPORTED, "r": Verdict.REFUTED, "n": Verdict.NOT_SHOWN}
    assert overall(by_letter[letter] for letter in verdicts) == expected


# --- runs -----------------------------------------------------------------------------------------------------------


def measurements(scale=QUICK, **changes):
    effect = np.linspace(3, 4, scale.seeds)
    found = {
        "formula": Measurement(np.array([1e-16])),
        "ReLU": Measurement(effect, {"with": effect, "curves": np.ones((scale.seeds, 7))}, {"rate": 0.1}),
    }
    return {**found, **changes}


def test_measuring_gives_what_was_declared_in_its_order():
    found = claim(measurements).measure(QUICK)
    assert list(found) == ["ReLU", "formula"]
    results = claim(measurements).judge(found)
    assert [results[name].verdict for name in results] == [Verdict.SUPPORTED] * 2
    assert results["ReLU"].criterion is RATIO


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tanh": Measurement(np.ones(5))}, r"claim B2: expected the criteria \['ReLU', 'formula'\], got \['formula'"),
        (
            {"ReLU": Measurement(np.ones(4))},
            r"claim B2, criterion 'ReLU': expected effects of shape \(5,\), got \(4,\)",
        ),
        ({"ReLU": Measurement(np.array([1, 2, 3, 4, np.nan]))}, "expected finite effects .* at seeds 4"),
        ({"formula": Measurement(np.array([[1.0]]))}, r"criterion 'formula': expected effects of shape \(checks,\)"),
        (
            {"ReLU": Measurement(np.ones(5), {"with": np.ones(4)})},
            r"claim B2, criterion 'ReLU', arm 'with': expected shape \(5,\) or \(5, times\), got \(4,\)",
        ),
        ({"ReLU": Measurement(np.ones(5), {"with": np.ones((5, 1, 1))})}, r"got \(5, 1, 1\)"),
        ({"ReLU": Measurement(np.ones(5), {"with": np.ones(())})}, r"got \(\)"),
    ],
)
def test_a_measurement_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        claim(lambda scale: measurements(scale, **changes)).measure(QUICK)


def test_a_criterion_that_is_not_measured_is_missed():
    with pytest.raises(ValueError, match=r"expected the criteria \['ReLU', 'formula'\], got \['ReLU'\]"):
        claim(lambda scale: {"ReLU": Measurement(np.ones(scale.seeds))}).measure(QUICK)


def test_arms_may_diverge_and_those_of_exact_checks_are_of_any_number():
    changes = {
        "ReLU": Measurement(np.ones(5), {"loss": np.full((5, 2), np.inf)}),
        "formula": Measurement(np.zeros(3), {"sizes": np.ones(3)}),
    }
    found = claim(lambda scale: measurements(scale, **changes)).measure(QUICK)
    assert np.isinf(found["ReLU"].arms["loss"]).all()
