"""Gamma and beta alone: the network of which some weights are learnt, and what each arm learns."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch

from bnlearn.claims import affine
from bnlearn.lab import MLP, Arm, BatchNorm, Data, Pass, Probe, Sweep, probes, run

SIZES = (64, 12, 9, 10)


def start(network, seed=3):
    return network.parameters(torch.Generator().manual_seed(seed), {})


def logits(network, parameters):
    return network(parameters, Data().load().train.x[:30], Pass(True, {}, {}, network.buffers()))


def test_some_weights_are_added_where_they_belong():
    plain, sparse = MLP(SIZES, BatchNorm(), bias=False), affine.SparseMLP(SIZES, BatchNorm(), bias=False)
    parameters = start(sparse)
    assert torch.equal(logits(sparse, parameters), logits(plain, start(plain)))
    rng = torch.Generator().manual_seed(1)
    edited = start(plain)
    for i in range(2):
        parameters[f"{i}.some"] = torch.randn(SIZES[i + 1], 2, generator=rng)
        for row, places in enumerate(parameters[f"{i}.places"].tolist()):
            assert len(set(places)) == 2
            for column, added in zip(places, parameters[f"{i}.some"][row], strict=True):
                edited[f"{i}.weight"][row, column] += added
    torch.testing.assert_close(logits(sparse, parameters), logits(plain, edited))


@pytest.mark.parametrize("sizes", [SIZES, (64, 7, 10), (64, 5, 6, 7, 10)])
def test_each_arm_learns_as_many_parameters_as_it_says(sizes):
    for name, arm in affine.arms(sizes).items():
        learnt = [
            value.numel()
            for key, value in start(arm.network).items()
            if any(fnmatchcase(key, pattern) for pattern in arm.trains)
        ]
        assert sum(learnt) == affine.counts(sizes)[name]
    assert affine.counts(sizes)["as many weights"] == affine.counts(sizes)["gamma and beta"]


@pytest.mark.parametrize("name", ["gamma and beta", "as many weights", "last layer", "everything"])
def test_each_arm_lowers_the_loss(name):
    arm = affine.arms((64, 30, 30, 10))[name]
    sweep = Sweep((arm,), {"lr": (0.03,)}, (0, 1), 20, 64, (Probe("loss after", probes.loss, at=(0, -1)),))
    before, after = np.moveaxis(run(sweep)[name]["loss after"][0], 1, 0)
    assert (after < 0.9 * before).all()


def test_the_arms_are_one_network():
    first, *others = (start(arm.network) for arm in affine.arms(SIZES).values())
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())
    assert all(isinstance(arm, Arm) and arm.decays == () for arm in affine.arms(SIZES).values())
