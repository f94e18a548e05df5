"""Claims about batches: the orders, the two modes and the recomputed statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as nnf

from bnlearn.claims import batches
from bnlearn.lab import MLP, BatchNorm, Data, Moment


@pytest.fixture
def moment():
    """A network with batch norm whose running statistics are far from its batches'."""
    net = MLP((64, 12, 10), norm=BatchNorm())
    generator = torch.Generator().manual_seed(0)
    data = Data().load()
    p = net.parameters(generator, {})
    p["0.norm.beta"] += torch.randn(12, generator=generator)
    buffers = {"0.norm.running_mean": torch.full((12,), 3.0), "0.norm.running_var": torch.full((12,), 0.5)}
    batch = (data.train.x[:16], data.train.y[:16])
    return Moment(net, p, buffers, {"lr": torch.tensor(0.1)}, {}, batch, data, 1.0, tuple(p))


def by_hand(moment, x, mean=None, var=None):
    p = moment.parameters
    h = nnf.linear(x, p["0.weight"], p["0.bias"])
    training = mean is None
    h = nnf.batch_norm(h, mean, var, p["0.norm.gamma"], p["0.norm.beta"], training=training)
    return nnf.linear(torch.relu(h), p["1.weight"], p["1.bias"])


def test_batches_of_two_classes(rng):
    labels = rng.integers(0, 10, 500)
    rows = labels[batches.two_classes(labels, 32, 40, rng)]
    assert rows.shape == (40, 32)
    for row in rows:
        assert sorted(np.unique(row, return_counts=True)[1]) == [16, 16]
    assert len({tuple(np.unique(row)) for row in rows}) > 10


def test_the_gap_between_the_modes(moment):
    x, y = moment.data.test
    running = nnf.cross_entropy(by_hand(moment, x[:288], torch.full((12,), 3.0), torch.full((12,), 0.5)), y[:288])
    own = torch.cat([by_hand(moment, x[i : i + 32]) for i in range(0, 288, 32)])
    gap = batches.mode_gap(moment, 32)
    torch.testing.assert_close(gap, running - nnf.cross_entropy(own, y[:288]), rtol=1e-4, atol=1e-5)
    assert abs(gap) > 0.05


def test_recomputed_statistics_are_the_average_over_batches(moment):
    p, x = moment.parameters, moment.data.train.x
    features = nnf.linear(x[: 5 * 20], p["0.weight"], p["0.bias"]).reshape(5, 20, 12)
    found = batches.precise(moment, 20, 5).buffers
    torch.testing.assert_close(found["0.norm.running_mean"], features.mean((0, 1)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["0.norm.running_var"], features.var(1).mean(0), rtol=1e-5, atol=1e-6)
    assert (moment.buffers["0.norm.running_mean"] == 3).all()


def test_losses_by_statistics_differ_in_nothing_else(moment):
    found = batches.losses_by_statistics(moment, 32)
    x, y = moment.data.test
    buffers = batches.precise(moment, 32).buffers
    again = by_hand(moment, x, buffers["0.norm.running_mean"], buffers["0.norm.running_var"])
    torch.testing.assert_close(found["recomputed"], nnf.cross_entropy(again, y), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["running"] - found["batch"], batches.mode_gap(moment, 32))
