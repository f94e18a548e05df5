"""Before or after the activation: two directions of one difference, each place at its own rate."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn.claims import Scale, order
from bnlearn.lab import Outcome


@pytest.fixture
def swept(monkeypatch):
    """Before is best at the second rate by validation, at which test is 0.8; after at the first, 0.7."""

    def outcome(validation, test):
        values = {"validation": np.array(validation), "test": np.array(test)}
        values = {name: np.tile(value[:, None, None], (1, 3, 2)) for name, value in values.items()}
        return Outcome(({"lr": 0.1}, {"lr": 0.5}), (0, 1, 2), values)

    found = {"before": outcome([0.1, 0.9], [0.9, 0.8]), "after": outcome([0.9, 0.1], [0.7, 0.9])}
    monkeypatch.setattr(order, "sweep", lambda activation, scale: found)


@pytest.mark.usefixtures("swept")
def test_before_and_after_are_two_directions_of_one_difference():
    measured = order.order(Scale(3))
    assert list(measured) == [criterion.name for criterion in order.CLAIMS[0].criteria]
    for name, one in measured.items():
        assert one.effect == pytest.approx([0.1 if name.endswith("before") else -0.1] * 3)
        assert one.details["rate"] == {"before": 0.5, "after": 0.1}
        assert one.details["accuracy at each rate"] == {"before": [0.9, 0.8], "after": [0.7, 0.9]}


@pytest.mark.parametrize(("activation", "init"), [("ReLU", "he"), ("tanh", "lecun"), ("sigmoid", "lecun")])
def test_networks_differ_in_the_place_only(activation, init):
    before, after = (order.network(activation, place) for place in order.PLACES)
    assert (before.activation, before.init) == (activation.lower(), init)
    assert (before.order, after.order) == order.PLACES
    assert before.sizes == after.sizes
    assert before.norm == after.norm is not None


def test_accuracy_is_taken_at_the_steps_that_are_told():
    found = order.sweep("tanh", Scale(2, steps_at_most=15, quick=True))
    assert found["before"]["test"].shape == (3, 2, 2)  # rates, seeds, after 10 and 15 steps
