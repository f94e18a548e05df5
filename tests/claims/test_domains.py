"""Claims about other data: adapted and weighed statistics, pre-trained networks, attacks and scenes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from bnlearn import datasets, functional
from bnlearn.claims import domains, robustness
from bnlearn.lab import MLP, BatchNorm, Data, Moment, Pass

C = 6


def moment_of(net):
    generator, data = torch.Generator().manual_seed(0), Data().load()
    p = net.parameters(generator, {})
    batch = (data.train.x[:16], data.train.y[:16])
    return Moment(net, p, net.buffers(), {"lr": torch.tensor(0.1)}, {}, batch, data, 1.0, tuple(p))


def normed(norm, x, buffers, knobs=(), training=False):
    p = {f"n.{name}": value for name, value in norm.parameters(C).items()}
    run = Pass(training, dict(knobs), {}, {f"n.{name}": value for name, value in buffers.items()})
    return norm(x, p, "n.", run)


def test_adapted_statistics_are_those_of_the_first_samples(rng):
    x = torch.from_numpy(rng.normal(3, 2, (20, C)).astype(np.float32))
    stored = BatchNorm().buffers(C)
    plain = normed(domains.AdaptableNorm(), x, stored)
    torch.testing.assert_close(plain, normed(BatchNorm(), x, stored))
    adapted = normed(domains.AdaptableNorm(target=8), x, stored)
    expected = (x - x[:8].mean(0)) / torch.sqrt(x[:8].var(0, correction=0) + 1e-5)
    torch.testing.assert_close(adapted, expected)
    in_training = normed(domains.AdaptableNorm(target=8), x, stored, training=True)
    torch.testing.assert_close(in_training, normed(BatchNorm(), x, stored, training=True))


def test_other_data_is_seen_with_its_own_statistics():
    net = replace(domains.NET, norm=domains.AdaptableNorm())
    found = domains.on_other_data(moment_of(net))
    assert set(found) == {"same", "light", "noise", *(f"{s}, {n}" for s in ("light", "noise") for n in (300, 32, 4))}
    x, _ = Data().load().test
    again = domains.another_noise(x)
    torch.testing.assert_close(domains.another_noise(x), again)
    assert abs(float((again - x).std()) - 1) < 0.05


def test_a_weighed_example_leans_on_itself(rng):
    x = torch.from_numpy(rng.normal(3, 2, (4, C, 3, 3)).astype(np.float32))
    stored, norm = BatchNorm().buffers(C), domains.WeighingNorm()
    nothing, none = normed(norm, x, stored, {"own_weight": torch.tensor(0.0)}.items()), normed(norm, x, stored)
    torch.testing.assert_close(nothing, none)
    y = normed(norm, x, stored, {"own_weight": torch.tensor(0.3)}.items())
    mean, var = stored["running_mean"], stored["running_var"]
    expected = functional.example_weighing(x, mean=mean, var=var, weight=0.3)[0]
    torch.testing.assert_close(y, expected)
    assert y.mean().abs() < none.mean().abs()


def test_frozen_statistics_stand_among_the_parameters(rng):
    x = torch.from_numpy(rng.normal(3, 2, (9, C)).astype(np.float32))
    mean, var = torch.full((C,), 2.0), torch.full((C,), 4.0)
    p = {"n.gamma": torch.full((C,), 3.0), "n.beta": torch.ones(C), "n.frozen_mean": mean, "n.frozen_var": var}
    for training in (True, False):
        y = domains.FrozenNorm()(x, p, "n.", Pass(training, {}, {}, {}))
        torch.testing.assert_close(y, 3 * (x - 2) / (4 + 1e-5) ** 0.5 + 1)


def test_a_seed_chooses_its_pre_trained_network():
    state = domains.pretrained(2, 3)
    net = domains.Pretrained(domains.NET.sizes, BatchNorm(), seeds=2, steps_before=3)
    for seed in (0, 1):
        p = net.parameters(torch.Generator().manual_seed(seed), {})
        assert (p["0.weight"] == state["0.weight"][seed]).all()
        assert (p["0.norm.frozen_var"] == state["0.norm.running_var"][seed]).all()
    assert not (state["0.weight"][0] == state["0.weight"][1]).all()
    start = domains.NET.parameters(torch.Generator().manual_seed(0), {})["0.weight"]
    assert not (state["0.weight"][0] == start).all()


def test_turned_digits():
    turned, digits = domains.other_digits(flat=True), datasets.load_digits()
    back = np.rot90((turned.train.x.reshape(-1, 1, 8, 8) - 1.5) / 0.5, -1, axes=(2, 3))
    np.testing.assert_allclose(back, digits.train.x, atol=1e-5)
    assert (turned.test.y == digits.test.y).all()


def test_an_attack_raises_the_loss_more_than_noise():
    net = MLP((64, 30, 10), norm=BatchNorm())
    moment = moment_of(net)
    x, y = moment.data.test
    signs = torch.sign(torch.func.grad(lambda x: nnf.cross_entropy(moment.forward(x, training=False), y))(x))
    under = robustness.attacked(moment, size=0.2)
    found = (moment.forward(x + 0.2 * signs, training=False).argmax(1) == y).float().mean()
    assert under["attack"] == found
    assert under["attack"] < under["noise"]
    assert robustness.attacked(moment, size=0.0)["attack"] == robustness.attacked(moment, size=0.0)["noise"]


def test_a_scene_is_a_digit_somewhere():
    scenes = robustness.scenes(flat=False)
    x, y = scenes.train
    assert x.shape[1:] == (1, robustness.SIDE, robustness.SIDE)
    assert set(np.unique(y)) == {0, 1, 2, 3}
    bright = (x > 1).any(0)[0]
    assert bright.any(0).sum() > 8  # anywhere: a digit that stays has at most eight rows and columns
    assert bright.any(1).sum() > 8


@pytest.mark.parametrize("seed", [0, 1])
def test_folding_changes_no_score(seed):
    p, x = robustness._network_float64(seed)
    folded, running, batch = (robustness._score(p, x, kind) for kind in ("folded", "running", "batch"))
    assert abs(folded - running) < 1e-12
    assert abs(batch - running) > 1e-3
