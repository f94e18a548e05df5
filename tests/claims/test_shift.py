"""Covariate shift: the noise after BN, the two measures, and which way each effect points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bnlearn.claims import Scale, shift
from bnlearn.lab import MLP, Arm, BatchNorm, Moment, Outcome, Part, Parts, Pass, Probe, Sweep, probes, run

NOISE = {"n.noise": torch.tensor([[0.0, 0.5, 0.75], [0.25, 0.5, 1.0]])}


@pytest.fixture
def x():
    return 3 + 2 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def p():
    return {"n.gamma": torch.tensor([0.5, 2.0, -1.0]), "n.beta": torch.tensor([0.3, -0.2, 0.1])}


def apply(norm, x, p, *, training, dose):
    buffers = {f"n.{name}": value for name, value in BatchNorm().buffers(3).items()}
    run = Pass(training, {"noise": torch.tensor(dose)}, NOISE if training else {}, buffers)
    return norm(x, p, "n.", run), run.buffers


def test_noise_scales_and_moves_each_unit_the_same_for_all_samples(x, p):
    clean, kept = apply(BatchNorm(), x, p, training=True, dose=0.0)
    noised, also_kept = apply(shift.NoisyBatchNorm(), x, p, training=True, dose=2.0)
    scale = torch.tensor([1.25**-2, 1.0, 1.25])
    mean = torch.tensor([-0.5, 0.0, 1.0])
    torch.testing.assert_close(noised, clean * scale + mean)
    assert all(torch.equal(kept[name], also_kept[name]) for name in kept)


@pytest.mark.parametrize(("training", "dose"), [(False, 2.0), (True, 0.0)])
def test_without_a_dose_and_in_evaluation_it_is_batch_normalisation(x, p, training, dose):
    clean, _ = apply(BatchNorm(), x, p, training=training, dose=0.0)
    assert torch.equal(apply(shift.NoisyBatchNorm(), x, p, training=training, dose=dose)[0], clean)


def test_every_hidden_unit_has_two_draws():
    assert shift.NoisyMLP(sizes=(4, 5, 6, 2)).noise(9) == {"0.norm.noise": (2, 5), "1.norm.noise": (2, 6)}


def moment_of(network, lr, noise=(), knobs=()):
    generator = torch.Generator().manual_seed(1)
    parameters = network.parameters(generator, {})
    batch = Part(torch.randn(32, 6, generator=generator), torch.randint(0, 3, (32,), generator=generator))
    every = {"lr": torch.tensor(lr), **{name: torch.tensor(value) for name, value in knobs}}
    trains = tuple(parameters)
    return Moment(network, parameters, network.buffers(), every, dict(noise), batch, Parts(*[batch] * 3), 0.5, trains)


def test_shift_of_the_inputs_is_the_distance_of_sorted_values_in_standard_deviations():
    moment = moment_of(MLP(sizes=(6, 5, 4, 3), activation="tanh"), lr=0.8)
    layers = []
    for rate in (0.0, 0.4):  # the rate times the schedule's factor
        p = {name: moment.parameters[name] - rate * g for name, g in moment.gradients().items()}
        hidden = torch.tanh(moment.batch[0] @ p["0.weight"].T + p["0.bias"])
        layers.append((hidden.numpy(), torch.tanh(hidden @ p["1.weight"].T + p["1.bias"]).numpy()))
    expected = [
        np.sqrt(((np.sort(before, axis=0) - np.sort(after, axis=0)) ** 2).mean() / before.var(0).mean())
        for before, after in zip(*layers, strict=True)
    ]
    found = shift.input_shift(moment)
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-4)
    assert not shift.input_shift(moment_of(moment.network, lr=0.0)).any()


def test_noise_alone_shifts_the_inputs_by_the_difference_of_two_draws():
    network = shift.NoisyMLP(sizes=(6, 5, 3), activation="linear")
    draws = torch.stack([torch.full((5,), 0.5), torch.tensor([0.0, 1.0, 0.5, 0.5, 0.25])])  # the mean only
    moment = moment_of(network, lr=0.0, noise={"0.norm.noise": draws}.items(), knobs=[("noise", 1.0)])
    means = draws[1] - 0.5
    expected = (means - means.roll(1)).square().mean().sqrt()  # the outputs have unit variance
    assert float(shift.input_shift(moment)) == pytest.approx(float(expected), rel=1e-3)


def test_each_arm_has_the_rate_that_is_best_on_the_validation_part_through_training(monkeypatch):
    rates = shift.RATES
    best = {"none": 1, "BN": 3, "noise": 0, "strong noise": 4}
    seen = []

    def fake(sweep):
        seen.append(sweep)
        (arm,) = sweep.arms
        labels = ["none"] if arm.name == "none" else ["BN", "noise", "strong noise"]
        values = np.full((len(labels) * len(rates), len(sweep.seeds), 10), 0.5)
        for place, label in enumerate(labels):
            values[place * len(rates) + best[label]] += 0.1
            values[place * len(rates) + 2, :, -1] += 0.4  # best at the end only
        return {arm.name: Outcome(tuple(map(dict, sweep.points)), sweep.seeds, {"validation": values})}

    monkeypatch.setattr(shift, "run", fake)
    found = shift.tuned_rates("8 ReLU layers", Scale(7))
    assert found == {label: rates[place] for label, place in best.items()}
    assert [dict(sweep.grid) for sweep in seen] == [{"lr": rates}, {"noise": (0.0, 1.0, 2.0), "lr": rates}]
    assert not set(seen[0].seeds) & set(range(7))
    assert len(seen[0].seeds) == 5
    assert seen[1].probes[0].steps(80) == tuple(range(8, 81, 8))
    shift.tuned_rates.cache_clear()


def test_what_is_measured_is_each_arm_at_its_own_rate(monkeypatch):
    rates = {"none": 0.1, "BN": 0.3, "noise": 1.0, "strong noise": 0.03}
    monkeypatch.setattr(shift, "tuned_rates", lambda name, scale: rates)
    monkeypatch.setattr(shift, "NETWORKS", {"8 ReLU layers": MLP(sizes=(64, 8, 8, 10))})
    scale = Scale(2, steps_at_most=3)
    found = shift.measured("8 ReLU layers", scale)
    shift.measured.cache_clear()
    assert list(found) == list(rates)
    looks = (Probe("test", probes.accuracy, at=(0, 1, 2, 3)), Probe("gradient", probes.covariate_shift, at=(2,)))
    plain = shift.NETWORKS["8 ReLU layers"]
    arms = (Arm("none", plain), Arm("BN", replace(plain, norm=BatchNorm())))
    for arm in arms:
        alone = run(Sweep((arm,), {"lr": (rates[arm.name],)}, (0, 1), 3, 64, looks))[arm.name]
        assert found[arm.name]["loss"] == pytest.approx(alone["loss"][0].astype(np.float64), rel=1e-4)
        assert found[arm.name]["gradient.distance"] == pytest.approx(alone["gradient.distance"][0], rel=1e-3)
    strong = Arm("x", shift.NoisyMLP(sizes=plain.sizes), knobs=(("noise", 2.0), ("lr", 0.03)))
    alone = run(Sweep((strong,), {}, (0, 1), 3, 64))["x"]
    assert found["strong noise"]["loss"] == pytest.approx(alone["loss"][0].astype(np.float64), rel=1e-4)


@pytest.fixture
def given(monkeypatch):
    """What the claims would see: two seeds, three looks, three layers."""

    def arm(level, accuracy, gradient=1.0):
        distribution = level * np.array([[[1.0, 2.0, 3.0]] * 3, [[2.0, 2.0, 2.0]] * 3])
        distribution[0, 0] = np.nan
        shifts = np.array([[[1e9, gradient, gradient]] * 3] * 2)
        return {"distribution": distribution, "gradient.distance": shifts, "test": np.array([[0.1, accuracy]] * 2)}

    arms = {
        "none": arm(3.0, 0.5, 4.0),
        "BN": arm(1.0, 0.9, 8.0),
        "noise": arm(6.0, 0.8),
        "strong noise": arm(12.0, 0.6),
    }
    monkeypatch.setattr(shift, "measured", lambda name, scale: arms)
    monkeypatch.setattr(shift, "tuned_rates", lambda name, scale: dict.fromkeys(arms, 0.1))
    return Scale(2)


def test_a_typical_step_is_the_median_over_looks_of_the_mean_over_layers(given):
    typical, looks = shift.typical("8 ReLU layers", "none", given, "distribution")
    assert typical == pytest.approx([6.0, 6.0])
    assert looks[0] == pytest.approx([1e6, 6.0, 6.0])
    assert shift.typical("8 ReLU layers", "BN", given, "gradient.distance")[0] == pytest.approx([8.0, 8.0])


def test_effects_of_b12_are_larger_the_more_bn_lessens_and_the_more_noise_takes_away(given):
    found = shift.run_b12(given)
    for name in shift.NETWORKS:
        assert found[f"{name}: distribution"].effect == pytest.approx([3.0, 3.0])
        assert found[f"{name}: gradient"].effect == pytest.approx([0.5, 0.5])
    assert found["8 ReLU layers: taken away"].effect == pytest.approx([0.25, 0.25])
    assert found["3 sigmoid layers: taken away"].effect == pytest.approx([0.75, 0.75])
    assert "3 sigmoid layers, small start: taken away" not in found


def test_effects_of_b13_are_larger_the_more_noise_shifts_and_the_less_it_costs(given):
    found = shift.run_b13(given)
    assert found["8 ReLU layers: shift"].effect == pytest.approx([2.0, 2.0])
    assert found["3 sigmoid layers: shift"].effect == pytest.approx([4.0, 4.0])
    for name in shift.LEAST:
        assert found[f"{name}, noise"].effect == pytest.approx([-0.1, -0.1])
        assert found[f"{name}, strong noise"].effect == pytest.approx([-0.3, -0.3])


def test_a_lead_that_is_none_does_not_divide_by_nothing(given, monkeypatch):
    arms = shift.measured("8 ReLU layers", given)
    monkeypatch.setattr(shift, "measured", lambda name, scale: {**arms, "none": arms["BN"]})
    assert shift.run_b12(given)["8 ReLU layers: taken away"].effect == pytest.approx([5.0, 5.0])
