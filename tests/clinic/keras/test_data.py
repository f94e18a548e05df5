"""Data in all its forms."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from bnlearn.clinic._keras.data import batches, inputs_of, mask_of, repeatable, samples_of  # noqa: E402

X = np.arange(12.0).reshape(6, 2)


class Sequence(keras.utils.PyDataset):
    epochs = 0

    def __init__(self, length=3):
        super().__init__()
        self.length = length

    @property
    def num_batches(self):
        return self.length

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], X[:2]

    def on_epoch_end(self):
        self.epochs += 1


class Indexed:
    """Only the old protocol of iteration."""

    def __getitem__(self, index):
        if index > 1:
            raise IndexError
        return X


@pytest.mark.parametrize(
    "data",
    [
        [X[:2], X[2:4], X[4:]],
        ((X[i : i + 2], 1) for i in (0, 2, 4)),
        tuple((X[i : i + 2], 1) for i in (0, 2, 4)),
        Sequence(),
        tf.data.Dataset.from_tensor_slices(X).batch(2),
    ],
    ids=["list", "generator", "tuple", "PyDataset", "tf.data"],
)
def test_every_batch_once(data):
    np.testing.assert_array_equal(np.concatenate([np.asarray(inputs_of(batch)) for batch in batches(data)]), X)


def test_a_data_set_is_told_that_the_epoch_ends():
    data = Sequence()
    assert len(list(batches(data))) == 3
    assert data.epochs == 1


def test_the_old_protocol():
    assert len(list(batches(Indexed()))) == 2


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (X, TypeError, r"got one array of shape \(6, 2\).*\[batch\]"),
        (tf.constant(X), TypeError, r"got one array of shape \(6, 2\)"),
        ({"x": X}, TypeError, "got a dict"),
        ((X, X[:, 0]), TypeError, r"got a tuple of arrays.*one batch, \[batch\]; of several, list\(data\)"),
        ((1, tf.constant(X)), TypeError, "got a tuple of arrays"),
        ("data", TypeError, "got a str"),
        (7, TypeError, "got a int"),
        ([], ValueError, "at least one batch, got an empty list"),
        (tf.data.Dataset.from_tensor_slices(X).batch(2).take(0), ValueError, "at least one batch"),
        (tf.data.Dataset.from_tensor_slices(X).batch(2).repeat(), ValueError, r"data\.take\(n\)"),
        (Sequence(None), ValueError, "num_batches=None"),
    ],
)
def test_what_is_no_data(data, error, words):
    with pytest.raises(error, match=words):
        list(batches(data))


def test_what_can_be_read_once_is_told():
    repeatable([X])
    repeatable(Sequence())
    with pytest.raises(ValueError, match=r"once per layer, got a generator.*one_pass=True"):
        repeatable(x for x in [X])


def test_what_a_batch_is_called_with():
    assert inputs_of(X) is X
    assert inputs_of((X, 1)) is X
    assert inputs_of([X, 1, 2]) is X
    assert inputs_of({"a": X}) == {"a": X}
    assert samples_of({"a": X, "b": X[:2]}) == 6


@pytest.mark.parametrize("mask", [lambda batch: batch[1] > 0, 1])
def test_a_mask(mask):
    found = mask_of(mask, (X, np.array([1, 0])))
    assert found.dtype == bool
    assert found.tolist() == [True, False]


def test_no_mask_and_a_bad_one():
    assert mask_of(None, X) is None
    assert mask_of("real", {"real": tf.constant([True])}).tolist() == [True]
    with pytest.raises(TypeError, match=r"mask of booleans.*float64"):
        mask_of(lambda batch: batch, X)
