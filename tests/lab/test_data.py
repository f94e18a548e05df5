"""Data by name, and the orders in which samples are shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnlearn import datasets
from bnlearn.lab import Data, shuffled, sorted_by_class

LABELS = np.repeat(np.arange(4), [10, 3, 20, 14])


def test_digits_are_the_package_s() -> None:
    parts, source = Data().load(), datasets.load_digits(flat=True)
    for part, original in zip(parts, (source.train, source.validation, source.test), strict=True):
        np.testing.assert_array_equal(part.x, original.x)
        np.testing.assert_array_equal(part.y, original.y)
    assert [tuple(part.x.shape) for part in parts] == [(1197, 64), (300, 64), (300, 64)]
    assert Data(flat=False).load().train.x.shape == (1197, 1, 8, 8)
    assert Data().load() is parts


def test_fewer_samples_and_other_options() -> None:
    parts, few = Data().load(), Data(samples=50).load()
    assert torch.equal(few.train.x, parts.train.x[:50])
    assert torch.equal(few.train.y, parts.train.y[:50])
    assert torch.equal(few.test.x, parts.test.x)
    assert not torch.equal(Data(options=(("seed", 1),)).load().train.x, parts.train.x)


def test_mnist_is_the_package_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Data.__init__.__globals__["_SOURCES"], "mnist", datasets.load_digits)
    assert Data("mnist", samples=7).load().train.y.shape == (7,)


def test_a_function_can_be_the_source() -> None:
    def half(*, flat: bool, times: int) -> datasets.Dataset:
        digits = datasets.load_digits(flat=flat)
        parts = [datasets.Part(part.x * times, part.y) for part in (digits.train, digits.validation, digits.test)]
        return datasets.Dataset(*parts, mean=0.0, std=1.0, name="half")

    assert torch.equal(Data(half, options=(("times", 3),)).load().train.x, 3 * Data().load().train.x)


def test_every_epoch_shows_every_sample_at_most_once_in_a_new_order() -> None:
    order = shuffled(LABELS, 10, 11, np.random.default_rng(0))
    assert order.shape == (11, 10)
    for epoch in (order[:4], order[4:8]):
        assert len(np.unique(epoch)) == 40
        assert epoch.min() >= 0
        assert epoch.max() < 47
    assert set(order[:4].ravel()) != set(order[4:8].ravel())
    np.testing.assert_array_equal(order, shuffled(LABELS, 10, 11, np.random.default_rng(0)))
    np.testing.assert_array_equal(order[:3], shuffled(LABELS, 10, 3, np.random.default_rng(0)))
    assert (order != shuffled(LABELS, 10, 11, np.random.default_rng(1))).any()
    assert shuffled(LABELS, 47, 2, np.random.default_rng(0)).shape == (2, 47)


def test_batches_of_one_class_each_and_every_class_in_turn() -> None:
    order = sorted_by_class(LABELS, 8, 12, np.random.default_rng(0))
    assert order.shape == (12, 8)
    classes = LABELS[order]
    assert (classes == classes[:, :1]).all()
    for turn in (classes[:4, 0], classes[4:8, 0], classes[8:, 0]):
        assert sorted(turn) == [0, 1, 2, 3]
    assert list(classes[:4, 0]) != list(classes[4:8, 0]) or list(classes[:4, 0]) != list(classes[8:, 0])
    for row, label in zip(order, classes[:, 0], strict=True):
        assert len(set(row)) == 8 or label == 1  # of which there are three
