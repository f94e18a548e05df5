"""Vanishing, exploding and rank: the measures, against automatic differentiation and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from bnlearn.claims import SMOKE, signal
from bnlearn.lab import MLP, BatchNorm, Data, Moment, Pass, ResidualMLP


def moment(network, seed=0, shift=0.0):
    parameters = network.parameters(torch.Generator().manual_seed(seed), {})
    data = Data().load()
    batch = (data.train.x[:40] + shift, data.train.y[:40])
    return Moment(network, parameters, network.buffers(), {}, {}, batch, data, 1.0, tuple(parameters))


@pytest.mark.parametrize(
    ("network", "pattern"),
    [
        (MLP((64, 12, 9, 7, 10), norm=BatchNorm(), activation="tanh"), ".linear"),
        (MLP((64, 12, 9, 7, 10), activation="sigmoid"), ".linear"),
        (ResidualMLP(width=8, depth=3, norm=BatchNorm()), ".out"),
    ],
)
def test_gradients_of_activations_agree_with_autograd(network, pattern):
    seen = moment(network)
    parameters = {name: value.requires_grad_() for name, value in seen.parameters.items()}
    trace: dict[str, torch.Tensor] = {}
    logits = network(parameters, seen.batch[0], Pass(True, {}, {}, network.buffers(), trace))
    wanted = [value for name, value in trace.items() if name.endswith(pattern)]
    expected = torch.autograd.grad(nnf.cross_entropy(logits, seen.batch[1]), wanted)
    found = signal.activation_gradients(moment(network), pattern)
    assert found.tolist() == pytest.approx([gradient.norm().item() for gradient in expected], rel=1e-4)


def test_ranks_agree_with_numpy_and_do_not_see_the_mean():
    network = MLP((64, 9, 9, 9, 10), activation="linear")
    seen = moment(network)
    trace: dict[str, torch.Tensor] = {}
    seen.forward(seen.batch[0], training=True, trace=trace)
    expected = []
    for depth in (1, 3):
        values = trace[f"{depth - 1}.linear"].double().numpy()
        singular = np.linalg.svd(values - values.mean(0), compute_uv=False)
        share = singular / singular.sum()
        expected.append(np.exp(-(share * np.log(share)).sum()))
    assert signal.ranks(seen, (1, 3)).tolist() == pytest.approx(expected, rel=1e-4)
    assert signal.ranks(moment(network, shift=7.0), (1, 3)).tolist() == pytest.approx(expected, rel=1e-3)


def test_the_rank_of_one_direction_is_one_and_of_equal_ones_their_number():
    network = MLP((4, 4, 4, 10), activation="linear", bias=False)
    seen = moment(MLP())
    x = torch.cat([torch.eye(4), -torch.eye(4)])
    weights = {"0.weight": torch.eye(4), "1.weight": torch.ones(4, 1) @ torch.tensor([[1.0, 2.0, 0.5, -3.0]])}
    parameters = {**network.parameters(torch.Generator(), {}), **weights}
    made = Moment(network, parameters, {}, {}, {}, (x, torch.zeros(8).long()), seen.data, 1.0, tuple(parameters))
    assert signal.ranks(made, (1, 2)).tolist() == pytest.approx([4.0, 1.0], abs=1e-4)


def test_decades_are_above_the_last_layer():
    assert signal.decades(np.array([[10.0, 0.1], [1.0, 100.0]])).tolist() == [[2.0, 0.0], [-2.0, 0.0]]


def test_only_what_vanishes_counts_as_vanishing():
    curves = {"with BN": np.array([[0.5, 0.0], [-0.25, 0.0]]), "without BN": np.array([[-3.0, 0.0], [2.0, 0.0]])}
    assert signal.lost(curves, 1.0).effect.tolist() == [3.0, -0.25]
    assert signal.lost(curves, -1.0).effect.tolist() == [-0.5, 2.0]
    per_layer = signal.lost(curves, 1.0).details["squared gradient per layer"]
    assert per_layer == pytest.approx({"with BN": 10**0.25, "without BN": 10**-1}, abs=1e-3)


def test_weights_twice_as_large_double_the_gradient_at_each_layer():
    network = MLP((64, *[32] * 12, 10))
    once, twice = (signal.gradients(network, SMOKE, init_scale=scale)[:, 0] for scale in (1.0, 2.0))
    assert (twice - once).tolist() == pytest.approx([11 * np.log10(2)] * 2, abs=0.3)


def test_the_two_arms_start_from_the_same_weights_and_other_seeds_from_others():
    with_bn, without = (signal.gradients(MLP((64, 16, 10), norm), SMOKE) for norm in (BatchNorm(), None))
    assert with_bn.shape == without.shape == (2, 1)
    first, second = signal.gradients(MLP((64, 16, 16, 10)), SMOKE)[:, 0]
    assert first != second
