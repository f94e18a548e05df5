"""Claims about cost: what is counted, and what is compared. (No test of the times themselves.)"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bnlearn.claims import cost


def test_saved_bytes_are_those_of_the_backward_pass():
    x = torch.ones(5, 7)
    linear = nn.Linear(7, 3)
    assert cost.saved_bytes(linear, x) == 5 * 7 * 4  # its input; the weight is not counted
    assert cost.saved_bytes(nn.Sequential(linear, nn.Sigmoid()), x) == 5 * 7 * 4 + 5 * 3 * 4  # and sigmoid's output
    with_norm = cost.saved_bytes(nn.Sequential(linear, nn.BatchNorm1d(3)), x)
    assert with_norm == 5 * 7 * 4 + 5 * 3 * 4 + 2 * 3 * 4  # norm's input, its mean and inverse deviation


def test_statistics_bytes():
    model = cost.network((3, 8, 16), 4, normalised=True)
    assert cost.statistics_bytes(model) == 4 * 4 * (8 + 16)  # running and batch, mean and variance, float32
    assert cost.statistics_bytes(cost.network((3, 8, 16), 4, normalised=False)) == 0


def test_the_folded_network_is_the_same_function():
    model = cost.network((1, 4, 4), 6, normalised=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    folded = cost.folded_network(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded)
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_networks_are_drawn_from_their_seed_and_leave_the_global_one():
    before = torch.random.get_rng_state()
    first, again, other = (cost.network((1, 4), 4, normalised=True, seed=seed) for seed in (1, 1, 2))
    assert (torch.random.get_rng_state() == before).all()
    assert (first[0].weight == again[0].weight).all()
    assert not (first[0].weight == other[0].weight).all()


def test_ratios_take_turns_and_keep_the_threads():
    calls, threads = [], torch.get_num_threads()
    found = cost.ratios(lambda: calls.append("a"), lambda: calls.append("b"), rounds=3, calls=2)
    assert "".join(calls) == "ab" + 3 * "aabb"
    assert found.shape == (3,)
    assert (found > 0).all()
    assert torch.get_num_threads() == threads


def test_the_error_of_half_precision_statistics():
    x = 10 + torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    half, wide = cost.half_statistics_error(x.half())
    assert 0 < wide < half
    both = cost.half_statistics_error(x.double())
    np.testing.assert_allclose(both, (0, 0), atol=1e-12)
