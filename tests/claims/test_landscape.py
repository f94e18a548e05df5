"""The landscape: how far one looks along the gradient, what is measured there, and which way the effects point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from bnlearn.claims import Scale, landscape, shift
from bnlearn.lab import MLP, Moment, Part, Parts


@pytest.fixture
def moment():
    generator = torch.Generator().manual_seed(3)
    network = MLP(sizes=(6, 5, 3), activation="tanh")
    parameters = network.parameters(generator, {})
    parameters |= {name: torch.randn(len(parameters[name]), generator=generator) for name in ("0.bias", "1.bias")}
    batch = Part(torch.randn(32, 6, generator=generator), torch.randint(0, 3, (32,), generator=generator))
    knobs = {"lr": torch.tensor(0.8)}
    return Moment(network, parameters, {}, knobs, {}, batch, Parts(*[batch] * 3), 0.5, tuple(parameters))


def flat(values):
    return torch.cat([values[name].flatten() for name in sorted(values)])


def loss_and_gradient(moment, parameters):
    p = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    x, y = moment.batch
    loss = nnf.cross_entropy(torch.tanh(x @ p["0.weight"].T + p["0.bias"]) @ p["1.weight"].T + p["1.bias"], y)
    gradients = torch.autograd.grad(loss, tuple(p.values()))
    return float(loss.detach()), dict(zip(p, gradients, strict=True))


def test_own_steps_are_multiples_of_the_rate_of_that_step(moment):
    assert [float(length) for length in landscape.own_step(moment, torch.tensor(9.0))] == pytest.approx(
        [0.2, 0.4, 0.8, 1.6]
    )


def test_same_distances_are_shares_of_the_length_of_the_weights(moment):
    _, gradient = loss_and_gradient(moment, moment.parameters)
    norm = flat(gradient).norm()
    weights = float(flat({name: moment.parameters[name] for name in ("0.weight", "1.weight")}).norm())
    lengths = landscape.same_distance(moment, norm)
    assert [float(length * norm) / weights for length in lengths] == pytest.approx([0.005, 0.01, 0.02, 0.04])


@pytest.mark.parametrize("rise", [False, True])
def test_what_is_measured_along_the_gradient(moment, rise):
    lengths = (0.5, 40.0, 2.0) if rise else (0.1, 0.2, 0.3)
    found = landscape.along_gradient(moment, lambda moment, norm: [torch.tensor(length) for length in lengths])
    start, gradient = loss_and_gradient(moment, moment.parameters)
    norm = flat(gradient).norm()
    losses, changes = [start], []
    for length in lengths:
        there = {name: value - length * gradient[name] for name, value in moment.parameters.items()}
        loss, other = loss_and_gradient(moment, there)
        losses.append(loss)
        changes.append(float((flat(other) - flat(gradient)).norm() / norm))
    assert (max(losses) > start) is rise
    assert found["losses"].numpy() == pytest.approx(losses, rel=1e-4)
    assert float(found["loss"]) == pytest.approx(max(losses) - min(losses), rel=1e-3)
    assert float(found["gradient"]) == pytest.approx(max(changes), rel=1e-3)


def test_a_network_without_a_gradient_has_no_change(moment):
    y = torch.zeros(32, dtype=torch.int64)
    dead = {name: torch.zeros_like(value) for name, value in moment.parameters.items()}
    dead["1.bias"] = torch.tensor([200.0, 0.0, 0.0])
    still = Moment(moment.network, dead, {}, moment.knobs, {}, (moment.batch[0], y), moment.data, 1.0, tuple(dead))
    found = landscape.along_gradient(still, landscape.same_distance)
    assert float(found["loss"]) == 0
    assert float(found["gradient"]) == 0


def test_each_arm_is_looked_at_where_its_own_training_leads(monkeypatch):
    rates = {"none": 0.1, "BN": 0.3}
    monkeypatch.setattr(landscape, "tuned_rates", lambda name, scale: rates)
    monkeypatch.setitem(shift.NETWORKS, "3 sigmoid layers", MLP(sizes=(64, 8, 10)))
    asked = []
    real = landscape.train
    monkeypatch.setattr(landscape, "train", lambda task: asked.append(task) or real(task))
    scale = Scale(2, steps_at_most=3)
    for arm in rates:
        found = landscape.measured("3 sigmoid layers", arm, scale)
        assert set(found) == {f"{how}.{what}" for how in landscape.STEPPED for what in ("loss", "gradient")}
        assert all(value.shape == (2, 2) for value in found.values())  # before steps 0 and 2
        assert all((value > 1e-6).all() for value in found.values())
    landscape.measured.cache_clear()
    assert [{dict(knobs)["lr"] for _, knobs in task.replicas} for task in asked] == [{0.1}, {0.3}]
    assert [task.arm.network.norm is None for task in asked] == [True, False]
    assert [{dict(knobs).get("noise") for _, knobs in task.replicas} for task in asked] == [{None}, {0.0}]


def test_effects_are_larger_the_less_changes_with_bn(monkeypatch):
    looks = np.array([[8.0, 1.0, 2.0, 9.0], [4.0, 2.0, 3.0, 3.0]])

    def measured(name, arm, scale):
        return {
            f"{how}.{what}": looks * factor * (1 if arm == "none" else 0.5)
            for how in landscape.STEPPED
            for what, factor in (("loss", 1.0), ("gradient", looks))
        }

    monkeypatch.setattr(landscape, "measured", measured)
    monkeypatch.setattr(landscape, "tuned_rates", lambda name, scale: {"none": 0.1, "BN": 0.2, "noise": 0.3})
    found = landscape.run_b14(Scale(2))
    assert len(found) == len(landscape.CLAIMS[0].criteria)
    for one in found.values():
        assert one.effect == pytest.approx([2.0, 2.0])
    first = found["8 ReLU layers, own step: gradient"]
    assert first.details == {"rate": {"none": 0.1, "BN": 0.2}, "steps": [0, 2, 6, 15, 35, 70]}
    monkeypatch.setattr(
        landscape,
        "measured",
        lambda name, arm, scale: (
            measured(name, "none", scale)
            if arm == "none"
            else {key: np.ones((2, 4)) for key in measured(name, arm, scale)}
        ),
    )
    found = landscape.run_b14(Scale(2))
    assert found["8 ReLU layers, own step: loss"].effect == pytest.approx([2.0, 3.0])  # medians after the start
    assert found["3 sigmoid layers, same distance: gradient"].effect == pytest.approx([4.0, 9.0])
    assert found["8 ReLU layers, same distance, before training: loss"].effect == pytest.approx([8.0, 4.0])
