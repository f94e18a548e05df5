"""A healthy layer of which nothing is 0 or 1 by chance, in facts as a framework's part gathers them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnlearn.clinic._facts import Facts, LayerFacts, SeenFacts

CHANNELS = 8


@pytest.fixture
def seen(rng):
    """Make SeenFacts of 16 batches with 32 samples."""
    mean, var = rng.normal(1.0, 2.0, CHANNELS), rng.uniform(0.5, 2.0, CHANNELS)
    usual = SeenFacts(
        calls=1,
        fewest=32,
        n=512,
        mean=mean,
        var=var,
        iid_ratio=rng.uniform(0.8, 1.2, CHANNELS),
        batches=16,
        samples=512,
        evaluation_ratio=rng.uniform(0.95, 1.05, CHANNELS),
    )
    return lambda **changes: replace(usual, **changes)


@pytest.fixture
def layer(rng, seen):
    """Make LayerFacts whose running statistics are those of the data."""
    usual = LayerFacts(
        name="bn",
        kind="BatchNorm1d",
        order=0,
        channels=CHANNELS,
        eps=1e-5,
        momentum=0.1,
        dtype="float32",
        running_mean=seen().mean + 0.05,
        running_var=seen().var * 1.05,
        batches_seen=16,
        gamma=rng.uniform(0.5, 2.0, CHANNELS),
        beta=rng.normal(size=CHANNELS),
        affine_trainable=True,
        training_now=True,
        trains=True,
        evaluates=True,
        seen=seen(),
    )
    return lambda **changes: replace(usual, **changes)


@pytest.fixture
def facts(layer):
    """Make Facts of the layers given, or of a healthy one."""

    def make(*layers, **changes):
        return Facts(
            **{"framework": "torch", "model": "Net", "training_now": True, "layers": layers or (layer(),)} | changes
        )

    return make


@pytest.fixture
def fresh(layer):
    """Make LayerFacts of a layer that no batch has moved yet."""
    made = {"running_mean": np.zeros(CHANNELS), "running_var": np.ones(CHANNELS), "batches_seen": 0}
    return lambda **changes: layer(**made | changes)
