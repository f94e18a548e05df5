"""The measures of the claims about initialisation and depth, on numbers whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bnlearn.claims import SMOKE, Scale, depth
from bnlearn.lab import MLP, BatchNorm, Data, Outcome, Pass, ResidualMLP


def outcome(test, validation):
    """At the rates 0.1, 1, 10: accuracy of shape (rates, seeds, times)."""
    points = ({"lr": 0.1}, {"lr": 1.0}, {"lr": 10.0})
    test, validation = (np.array(values, dtype=np.float32) for values in (test, validation))
    return Outcome(points, tuple(range(test.shape[1])), {"test": test, "validation": validation})


def test_the_best_rate_is_chosen_on_the_validation_part_at_each_time():
    given = outcome(
        [[[0.2, 0.3], [0.4, 0.3]], [[0.5, 0.6], [0.5, 0.7]], [[0.9, 0.1], [0.8, 0.2]]],
        [[[0.9, 0.2], [0.9, 0.2]], [[0.3, 0.4], [0.1, 0.8]], [[0.2, 0.9], [0.1, 0.1]]],
    )
    assert depth._at_best(given) == pytest.approx([0.6, 0.7])
    assert depth._rate(given) == 1.0
    assert depth._at_best(given, 0) == pytest.approx([0.2, 0.4])
    assert depth._rate(given, 0) == 0.1


def test_the_last_loss_is_a_median_over_seeds_in_which_what_diverged_is_large():
    given = outcome([[[0.9], [0.9], [0.9]], [[0.1], [0.1], [0.1]]], [[[0.9], [0.9], [0.9]], [[0.1], [0.1], [0.1]]])
    loss = np.ones((2, 3, 20))
    loss[:, :, :10] = 50  # not of the last ten steps
    loss[0, 1, -10:] = 3
    loss[0, 2, -1] = np.nan
    assert depth._last_loss(replace(given, values={**given.values, "loss": loss})) == 3
    loss[0, 1, -1] = np.inf
    assert depth._last_loss(replace(given, values={**given.values, "loss": loss})) == 99


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_the_exponent_is_that_of_what_the_blocks_add(power):
    added = 3.0 * np.arange(65) ** power
    variances = np.stack([7 + added, 0.1 + 5 * added])
    assert depth._exponent(variances) == pytest.approx([power, power])


def test_growth_is_a_factor_per_block():
    assert depth._growth(np.stack([3 * 2.0 ** np.arange(65), 1.1 ** np.arange(65)])) == pytest.approx([2, 1.1])


def test_variances_are_those_of_the_stream_after_each_block_over_samples_and_features():
    network = ResidualMLP(width=6, depth=3, norm=BatchNorm(), last_gamma=1.0)
    found = depth._variances(network, Scale(3))
    assert found.shape == (3, 4)

    generator = torch.Generator().manual_seed(2)
    p = network.parameters(generator, {})
    x = Data().load().train.x
    x = x[torch.randperm(len(x), generator=generator)[:128]]
    stream = x @ p["stem.weight"].T
    assert found[2, 0] == pytest.approx(float(stream.square().mean() - stream.mean() ** 2), rel=1e-4)
    # Without the last block the others are as they were.
    cut = ResidualMLP(width=6, depth=2, norm=BatchNorm(), last_gamma=1.0)
    trace = {}
    cut(p, x, Pass(True, {}, {}, network.buffers(), trace))
    assert found[2, 2] == pytest.approx(float(trace["1.out"].var(correction=0)), rel=1e-4)


@pytest.fixture
def table(monkeypatch):
    """Accuracy (rates, scales, seeds); the numbers of the two arms and of the two optimisers differ."""
    rng = np.random.default_rng(0)
    rates = (0.001, 0.01, 0.1, 1.0)
    tables = {}
    for key in [("sgd", True), ("sgd", False), ("adam", True)]:
        tables[key] = rates, *rng.uniform(0.1, 1, (2, 4, len(depth.SCALES), 5))
    monkeypatch.setattr(depth, "_scales", lambda scale, optimizer, normalised: tables[optimizer, normalised])
    return tables


def test_spread_is_the_loss_at_the_worst_scale_at_one_rate(table):
    rates, test, validation = table["sgd", True]
    validation[2] += 1  # 0.1 suits best on average,
    validation[3, 1] += 3  # though one scale would rather have another rate
    validation[2, 4] -= 0.9
    validation[2, 0] += 0.9
    found = depth._spread(SMOKE, "sgd", 0)
    np.testing.assert_allclose(found.effect, test[2, 4] - test[2, 0])
    assert (found.details["rate"], found.details["best scale"], found.details["worst scale"]) == (0.1, 1e-4, 0.25)
    assert list(found.arms) == ["0.0001", "0.001", "0.01", "0.1", "0.25", "1"]
    np.testing.assert_allclose(found.arms["0.25"], test[2, 4])

    validation[1, 3] += 0.9
    validation[1, 5] -= 0.9
    below = depth._spread(SMOKE, "sgd", 1)
    assert (below.details["rate"], below.details["rate that suits all scales"]) == (rates[1], rates[2])
    np.testing.assert_allclose(below.effect, test[1, 5] - test[1, 3])


def test_a_fixed_rate_is_fixed_whatever_suits(table):
    table["adam", True][2][3] += 1
    found = depth._spread(SMOKE, "adam", None)
    assert (found.details["rate"], found.details["rate that suits all scales"]) == (0.001, 1.0)


def test_gain_compares_each_arm_at_its_own_worst_scale_and_rates(table):
    for (_, normalised), at in zip([("sgd", True), ("sgd", False)], [2, 5], strict=True):
        _, test, validation = table["sgd", normalised]
        validation[np.arange(6) % 4, np.arange(6)] += 1  # the best rate differs from scale to scale
        test[at % 4, at] *= 0.01
    found = depth._gain(SMOKE)
    np.testing.assert_allclose(found.effect, table["sgd", True][1][2, 2] - table["sgd", False][1][1, 5])
    assert found.details["rates, BN"] == [0.001, 0.01, 0.1, 1.0, 0.001, 0.01]


def test_every_scale_gets_its_own_initial_weights():
    network = MLP((64, 32, 32, 10), init=1.0)
    stds = [
        float(network.parameters(torch.Generator().manual_seed(0), {"init_scale": scale})["1.weight"].std())
        for scale in depth.SCALES
    ]
    assert np.array(stds) / np.array(depth.SCALES) == pytest.approx(stds[-1])
    assert stds[4] == pytest.approx((2 / 32) ** 0.5, rel=0.1)
