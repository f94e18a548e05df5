"""Speed and rates: what is counted, and which way each effect points."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn.claims import QUICK, SMOKE, speed
from bnlearn.lab import Outcome

AT = speed.times(QUICK)
RATES = 12
SEEDS = 5


def outcome(steps: dict[int, float], ends: dict[int, float]) -> Outcome:
    """An arm that, at the rates named, rises to 0.96 over so many steps, or ends at another accuracy."""
    accuracy = np.full((RATES, SEEDS, len(AT)), 0.1, dtype=np.float32)
    for rate, needed in steps.items():
        accuracy[rate] = np.minimum(0.1 + 0.86 * np.array(AT) / needed, 0.96)
    for rate, end in ends.items():
        accuracy[rate, :, -1] = end
    points = tuple({"lr": float(rate)} for rate in range(RATES))
    return Outcome(points, tuple(range(SEEDS)), {"validation": accuracy, "test": accuracy})


@pytest.fixture
def swept(monkeypatch):
    """Without BN rate 5 is best and 2 (a tenth) slow; with BN rate 5 is as good as without and 7 twice as fast."""
    none = outcome({2: 390, 4: 250, 5: 200}, {6: 0.2})
    bn = outcome({2: 390, 5: 200, 6: 150, 7: 100, 8: 120}, {9: 0.92, 2: 0.93})
    monkeypatch.setattr(speed, "sweep", lambda regime, scale: {"none": none, "bn": bn})


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ([0.1, 0.5, 0.9, 0.9], 15.0),  # between two looks
        ([0.1, 0.7, 0.2, 0.9], 10.0),  # the first time counts
        ([0.1, 0.2, 0.3, 0.4], 40.0),  # never
        ([0.1, 0.1, 0.7, 0.7], 20.0),  # the target itself counts, in float32 too
        ([0.8, 0.8, 0.8, 0.8], 1.0),  # from the start: no step is no number of steps to divide by
    ],
)
def test_steps_to(accuracy, expected):
    found = speed.steps_to(np.array([[accuracy]], dtype=np.float32), [0, 10, 20, 40], 0.7)
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(expected, abs=1e-4)


def test_the_fastest_rate_is_chosen_by_validation_and_the_geometric_mean():
    at = (0, 10, 110)
    uneven = [[0.0, 1.0, 1.0], [0.0, 0.0, 0.5]]  # 9 steps and never: 31 in the geometric mean, 60 in the arithmetic
    even = [[0.0, 0.85, 0.975], [0.0, 0.85, 0.975]]  # 50 steps, twice
    validation, test = (np.array(pair, dtype=np.float32) for pair in ([even, uneven], [uneven, even]))
    arm = Outcome(({}, {}), (0, 1), {"validation": validation, "test": test})
    assert speed.fastest(arm, at, 0.9) == 1


def test_the_largest_rate_that_trains():
    rates = (0.1, 1.0, 10.0)
    accuracy = [[0.95, 0.95, 0.3, 0.5], [0.1, 0.9, 0.95, 0.5], [0.1, 0.89, 0.95, 0.5]]
    assert speed.largest_trained(accuracy, rates, tuned=1).tolist() == [0.1, 1.0, 10.0, 1.0]


def test_the_width_counts_good_rates_wherever_they_lie():
    last = np.full((RATES, 2), 0.1, dtype=np.float32)
    last[3:6, 0] = [0.94, 0.96, 0.935]
    last[3:6, 1] = [0.90, 0.95, 0.90]
    last[8, :] = 0.95
    values = last[:, :, None]
    arm = Outcome(tuple({} for _ in range(RATES)), (0, 1), {"validation": values, "test": values})
    assert arm.best("validation") == 4
    assert speed.width(arm) == pytest.approx([4 / 3, 2 / 3])


def test_times_end_where_training_ends():
    assert speed.times(QUICK)[0] == 0
    assert speed.times(QUICK)[-1] == speed.STEPS
    assert speed.times(SMOKE) == (0, 3)


def test_rates_are_three_to_the_decade():
    rates = speed.REGIMES["ReLU, SGD"].rates
    assert rates[0] == 0.01
    assert rates[3] == 0.1
    assert rates[6] == 1.0
    assert speed.REGIMES["ReLU, Adam"].rates[1] == 0.001


def test_fewer_steps_means_more_than_one(swept):
    measured = speed.fewer_steps(QUICK)
    for one in measured.values():
        assert one.effect == pytest.approx(2.0, rel=0.02)
        assert one.details["rate"]["bn"] > one.details["rate"]["none"]
        assert one.arms["none"].shape == (SEEDS, len(AT))


def test_larger_rates_are_a_ratio(swept):
    one = speed.larger_rates(QUICK)["ReLU, SGD"]
    rates = speed.REGIMES["ReLU, SGD"].rates
    assert one.effect == pytest.approx(rates[9] / rates[5])
    assert one.details["runs that train at the last rate"] == 0
    assert one.arms["bn"].shape == (SEEDS, RATES)
    assert one.arms["bn"][0, 9] == np.float32(0.92)


def test_the_gain_at_the_same_small_rate_counts_against(swept):
    measured = speed.gain_from_rate(QUICK)
    rates = speed.REGIMES["ReLU, SGD"].rates
    same, own = (measured[f"ReLU, SGD: {what}"] for what in ("the same small rate", "its own larger rate"))
    assert same.details["rate"] == rates[2]
    assert same.effect == pytest.approx(0.03, abs=1e-6)  # 0.96 without, 0.93 with
    assert own.details["rates"] == {"none": rates[5], "bn": rates[7]}
    assert own.effect == pytest.approx(2.0, rel=0.02)


def test_decades_with_and_without(swept):
    with_bn, more = speed.no_tuning(QUICK)["ReLU, SGD"], speed.less_tuning(QUICK)["ReLU, SGD"]
    assert with_bn.effect == pytest.approx(5 / 3)  # 2 (0.93), 5, 6, 7, 8
    assert more.effect == pytest.approx(5 / 3 - 3 / 3)
    assert with_bn.details["decades"]["none"] == [1.0] * SEEDS
