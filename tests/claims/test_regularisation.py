"""Regularisation: data, ghosts, tuning, and which way each effect points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnlearn import datasets, functional
from bnlearn.claims import SMOKE, Scale, _overfitting, regularisation
from bnlearn.claims._overfitting import REGIMES, Best, GhostBatchNorm, Regime, at_best, best_of
from bnlearn.lab import MLP, Arm, BatchNorm, Data, Pass, Sweep, run, shuffled

# The data


def test_the_larger_test_part_is_made_of_training_samples_and_the_rest_stays():
    whole, split = datasets.load_digits(flat=True), _overfitting.digits()
    assert [len(part.y) for part in (split.train, split.validation, split.test)] == [897, 300, 600]
    for i in range(2):
        assert np.array_equal(np.concatenate([split.train[i], split.test[i][300:]]), whole.train[i])
        assert np.array_equal(split.test[i][:300], whole.test[i])
        assert np.array_equal(split.validation[i], whole.validation[i])


def test_a_fifth_of_the_training_labels_is_wrong_and_no_other():
    right, wrong = _overfitting.digits(), _overfitting.wrong_labels()
    assert (right.train.y != wrong.train.y).sum() == round(0.2 * 897)
    assert set(wrong.train.y) == set(range(10))
    assert np.array_equal(right.train.x, wrong.train.x)
    for part in ("validation", "test"):
        assert np.array_equal(getattr(right, part).y, getattr(wrong, part).y)


def test_each_seed_draws_few_samples_of_its_own_and_shows_all_of_them():
    drawn = [_overfitting.few(np.zeros(897, np.int64), 48, 6, np.random.default_rng(seed)) for seed in (0, 1)]
    for rows in drawn:
        assert rows.shape == (6, 48)
        assert set(rows[:3].flat) == set(rows[3:].flat)  # an epoch
        assert len(set(rows[:3].flat)) == _overfitting.FEW
    assert set(drawn[0].flat) != set(drawn[1].flat)
    assert max(drawn[0].max(), drawn[1].max()) > 800  # from all of them


# Ghosts


def test_ghosts_have_statistics_of_their_own_and_running_ones_for_evaluation():
    generator = torch.Generator().manual_seed(0)
    x, gamma, beta, mean, var = (torch.rand(shape, generator=generator) + 0.5 for shape in ((12, 3), *[(3,)] * 4))
    norm = GhostBatchNorm(ghost_size=4, eps=0.1)
    p = {"n.gamma": gamma, "n.beta": beta}
    buffers = {"n.running_mean": mean, "n.running_var": var}
    run_ = Pass(True, {}, {}, dict(buffers))
    y = norm(x, p, "n.", run_)
    expected_mean, expected_var = mean, var
    for ghost in (slice(4), slice(4, 8), slice(8, 12)):
        expected, cache = functional.batch_norm(x[ghost], gamma, beta, eps=0.1)
        assert torch.allclose(y[ghost], expected, atol=1e-6)
        expected_mean, expected_var = functional.update_running(
            expected_mean, expected_var, cache.mean, cache.var, 4, momentum=0.1
        )
    assert torch.allclose(run_.buffers["n.running_mean"], expected_mean, atol=1e-6)
    assert torch.allclose(run_.buffers["n.running_var"], expected_var, atol=1e-6)
    still = Pass(False, {}, {}, dict(buffers))
    expected = functional.batch_norm(x, gamma, beta, mean=mean, var=var, eps=0.1)[0]
    assert torch.allclose(norm(x, p, "n.", still), expected)
    assert torch.equal(still.buffers["n.running_mean"], mean)


# Tuning


def test_an_arm_at_its_best_is_what_all_seeds_give_there():
    """Chosen with the first seeds; those of the tuning and the others joined in their order."""
    scale, regime = Scale(4, quick=True), Regime(Data(_overfitting.digits), shuffled, 32, 8)
    arm, grid = Arm("bn", MLP((64, 8, 10), BatchNorm())), {"lr": (0.001, 0.5)}
    found = at_best(arm, grid, regime, scale)
    assert found.knobs == {"lr": 0.5}
    everything = run(
        Sweep((arm,), {"lr": (0.5,)}, (0, 1, 2, 3), 8, 32, _overfitting.PROBES, data=regime.data, order=regime.order)
    )["bn"]
    assert np.allclose(found.test, everything["test"][0, :, -1], atol=2 / 600)
    assert np.allclose(found.train, everything["seen"][0].mean(1), atol=2 / 96)
    assert found.validation == pytest.approx(everything["validation"][0, :2, -1].mean(), abs=2 / 300)
    assert found.test.dtype == np.float64


def test_what_is_seen_are_the_labels_of_the_training_batch():
    """A network that has learnt wrong labels by heart is right about them, and about few of the true ones."""
    regime = Regime(REGIMES["wrong labels"].data, _overfitting.few, 48, 150)
    found = at_best(Arm("bn", MLP((64, 64, 10), BatchNorm())), {"lr": (0.5,)}, regime, Scale(2))
    assert (found.train > 0.95).all()
    assert (found.test < 0.85).all()


def test_the_best_is_best_on_the_validation_part_and_the_first_of_equals():
    best = [
        Best(np.full(2, test), np.zeros(2), validation, {}) for test, validation in ((0.9, 0.5), (0.1, 0.6), (0, 0.6))
    ]
    assert best_of(*best) is best[1]


# Which way the effects point

CACHED = (regularisation.plain, regularisation.with_dropout, regularisation.with_decay)


@pytest.fixture
def given(monkeypatch):
    """Accuracies by a part of what the arm is called and by the knobs of its grid."""

    def give(values):
        def instead(arm, grid, regime, scale):
            key = " ".join([arm.name, *[knob for knob in grid if knob != "lr"], str(regime.batch_size)])
            test, train = next((one for name, one in values.items() if name in key), (0.5, 0.5))
            return Best(np.full(scale.seeds, test), np.full(scale.seeds, train), test, {})

        for one in CACHED:
            one.cache_clear()
        monkeypatch.setattr(regularisation, "at_best", instead)

    yield give
    for one in CACHED:
        one.cache_clear()


def effects(measured, ending):
    return [float(one.effect[0]) for name, one in measured.items() if name.endswith(ending)]


def test_noise_that_helps_and_narrows_the_gap_counts_for_the_claim(given):
    given({"ghosts of 8": (0.8, 0.9), "bn": (0.7, 1.0)})
    measured = regularisation.noise(Scale(3))
    assert effects(measured, "test accuracy") == pytest.approx([0.1] * 3)
    assert effects(measured, "gap at one rate") == pytest.approx([0.2] * 3)
    assert measured["few samples: test accuracy"].details["chosen"] == ["ghosts of 8"]


@pytest.mark.parametrize(
    ("what", "knob", "claim"),
    [("dropout", "dropout", regularisation.replaces_dropout), ("decay", "weight_decay", regularisation.replaces_decay)],
)
def test_what_bn_alone_gains_counts_for_replacing(given, what, knob, claim):
    given({f"none {knob}": (0.6, 1), "none": (0.5, 1), f"bn {knob}": (0.9, 1), "bn": (0.7, 1)})
    measured = claim(SMOKE)
    assert effects(measured, f"instead of {what}") == pytest.approx([0.1] * 3)
    assert effects(measured, f"{what} beside it") == pytest.approx([-0.2] * 3)


def test_a_knob_that_only_hurts_is_left_at_zero(given):
    given({"bn dropout": (0.2, 1), "bn": (0.7, 1)})
    assert effects(regularisation.replaces_dropout(SMOKE), "dropout beside it") == [0.0] * 3


def test_ghosts_that_help_count_for_the_claim(given):
    given({"ghosts of 8 256": (0.8, 1), "bn 256": (0.7, 1), "bn 32": (0.9, 1)})
    measured = regularisation.ghosts(SMOKE)
    assert effects(measured, "against the whole batch") == pytest.approx([0.1] * 2)
    assert effects(measured, "against small batches") == pytest.approx([-0.1] * 2)


# The theorem


def test_decay_is_a_growing_rate_in_double_precision():
    """No other exponent will do, and none but the weights before BN may take part."""
    functions, norms = regularisation.decay_as_rate(0, 10)
    assert 0 < functions < 1e-12
    assert 0 <= norms < 1e-14
