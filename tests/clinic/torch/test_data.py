"""Batches of every kind become the arguments of a call, and what are no batches is refused."""

from __future__ import annotations

import random
from collections import UserDict
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset  # noqa: E402

from bnlearn.clinic._torch.data import (  # noqa: E402
    check_data,
    copied,
    device_of,
    inputs,
    iterating,
    mask_of,
    no_batches,
    samples_in,
)

X, Y = torch.arange(6.0).reshape(3, 2), torch.tensor([1, 2, 3])


class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)


class TwoNeeded(Net):
    def forward(self, x, lengths, scale=1.0):
        return super().forward(x) * scale


class OnePair(Net):
    def forward(self, pair):
        return super().forward(pair[0])


class ByName(Net):
    def forward(self, pixel_values, mask=None):
        return super().forward(pixel_values)


class Builtin(nn.Module):
    forward = iter  # whose signature nobody knows


class Moved:
    def to(self, device):
        self.device = device
        return self


def tensors(arguments):
    return [leaf for leaf in arguments if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(
    ("batch", "model", "expected"),
    [
        (X, Net(), (X,)),
        (X.numpy(), Net(), (X,)),
        (X.double().numpy(), Net(), (X,)),
        ((X, Y), Net(), (X,)),
        ([X], Net(), (X,)),
        ((X, Y, Y), TwoNeeded(), (X, Y)),
        (((X, Y), Y), TwoNeeded(), (X, Y)),
        (((X, Y), Y), nn.Bilinear(2, 2, 1), (X, Y)),
        (((X, X),), Net(), ((X, X),)),
        (((X, Y), Y), OnePair(), ((X, Y),)),
        ((X, Y), Builtin(), (X,)),
        (((X, X), Y), Builtin(), ((X, X),)),
    ],
)
def test_positional(batch, model, expected):
    args, kwargs = inputs(batch, model)
    if isinstance(model, TwoNeeded | nn.Bilinear) and isinstance(batch[0], tuple):
        # Two are needed, and the batch itself has two elements: the first of them is a pair.
        assert len(args) == 2
        return
    assert kwargs == {}
    flat, wanted = ([*args[0]], [*expected[0]]) if isinstance(expected[0], tuple) else (args, expected)
    assert len(flat) == len(wanted)
    for got, want in zip(flat, wanted, strict=True):
        assert got.equal(want)
        assert got is not want
        assert got.dtype == want.dtype
    assert isinstance(args[0], tuple) == isinstance(expected[0], tuple)


@pytest.mark.parametrize("mapping", [dict, UserDict])
@pytest.mark.parametrize("nested", [False, True])
def test_by_name(mapping, nested):
    batch = mapping({"pixel_values": X, "labels": Y, "label": Y})
    args, kwargs = inputs((batch, Y) if nested else batch, ByName())
    assert args == ()
    assert list(kwargs) == ["pixel_values"]
    assert kwargs["pixel_values"].equal(X)
    args, kwargs = inputs(batch, OnePair())
    assert kwargs == {}
    assert list(args[0]) == ["pixel_values"]


def test_an_object_that_can_be_moved_is():
    for batch in (Moved(), (Moved(), Y)):
        (moved,), kwargs = inputs(batch, Net())
        assert moved.device == torch.device("cpu")
        assert kwargs == {}


def test_a_packed_sequence_stays_one():
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    for batch in (packed, (packed, Y)):
        (got,), _ = inputs(batch, nn.LSTM(2, 2))
        assert isinstance(got, nn.utils.rnn.PackedSequence)


def test_what_is_no_tensor_is_passed_on():
    (x, lengths), _ = inputs((X, [3, 2]), TwoNeeded())
    assert x.equal(X)
    assert lengths == [3, 2]


def test_inputs_are_copies_and_copied_copies_again():
    array = X.numpy().copy()
    for batch in (X, array):
        (got,), _ = inputs(batch, Net())
        got.zero_()
    assert X.sum() == array.sum() == 15
    (again,), _ = copied(((X,), {}))
    again.zero_()
    assert X.sum() == 15


def test_dtypes_and_devices():
    assert inputs(X.numpy(), Net().half())[0][0].dtype == torch.float16
    assert inputs(Y.numpy(), Net())[0][0].dtype == torch.int64
    assert inputs(X.numpy(), nn.Identity())[0][0].dtype == torch.float32
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(1, affine=False, device="meta")).type == "meta"
    assert device_of(nn.Identity()).type == "cpu"
    assert inputs(X, nn.Linear(2, 2, device="meta"))[0][0].is_meta


@pytest.mark.parametrize("batch", ["text", 3, None, (), ("text", Y), (None,)])
def test_other_batches_are_refused(batch):
    with pytest.raises(TypeError, match=r"expected a batch to be a tensor.*of type (str|int|NoneType|tuple)"):
        inputs(batch, Net())


def test_samples_are_counted():
    assert samples_in((X,), {}) == 3
    assert samples_in((torch.tensor(1.0), [Y]), {}) == 3
    assert samples_in((), {"a": X}) == 3
    assert samples_in((Moved(),), {}) == 0


def test_masks():
    mask = torch.tensor([[True, False]])
    assert mask_of(X, None) is None
    np.testing.assert_array_equal(mask_of((X, mask), 1), [[True, False]])
    np.testing.assert_array_equal(mask_of({"m": mask.long()}, "m"), [[True, False]])
    np.testing.assert_array_equal(mask_of(X, lambda x: x > 2), X.numpy() > 2)
    with pytest.raises(TypeError, match=r"expected a mask of booleans.*got dtype float32"):
        mask_of(X, lambda x: x)


@dataclass
class NoBatches:
    text: str = "seven"


class Stream(IterableDataset):
    def __iter__(self):
        return iter([X, X])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X, r"got one Tensor of shape \(3, 2\)"),
        (X.numpy(), r"got one ndarray of shape \(3, 2\)"),
        ({"x": X}, r"got a dict, which looks like one; pass \[data\]$"),
        ((X, Y), r"got a tuple, which looks like one; pass \[data\], or list\(data\) if it holds several"),
        (X.split(2), r"list\(data\) if it holds several, as Tensor\.split"),
        (TensorDataset(X), "got single samples, of TensorDataset"),
        ("batches", "got 'batches'"),
        (b"batches", "got b'batches'"),
        (7, "got 7"),
        (NoBatches(), r"got NoBatches\(text='seven'\)"),
    ],
)
def test_what_are_no_batches_is_refused(data, words):
    with pytest.raises(TypeError, match=words), iterating(data):
        pytest.fail("it must not come here")


class ByIndex:
    def __getitem__(self, index):
        if index == 2:
            raise IndexError
        return X


@pytest.mark.parametrize(
    "make",
    [
        lambda: [X, X],
        lambda: ((X, Y), (X, Y)),
        lambda: iter([X, X]),
        lambda: list(X.split(2)),
        lambda: (X for _ in range(2)),
        Stream,
        ByIndex,
        lambda: DataLoader(TensorDataset(X), batch_size=2),
    ],
)
def test_batches_are_iterated_over(make):
    with iterating(make()) as batches:
        assert len(list(batches)) == 2


class Augmented(TensorDataset):
    def __init__(self):
        super().__init__(X)
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)

    def __getitem__(self, index):
        return self.tensors[0][index] + self.numpy.random() + self.python.random()


@pytest.mark.parametrize("stop", [False, True])
def test_a_loader_gives_the_same_afterwards(stop):
    def loader():
        data = Augmented()
        return DataLoader(
            data,
            sampler=RandomSampler(data, generator=torch.Generator().manual_seed(2)),
            generator=torch.Generator().manual_seed(1),
        )

    def values(loader):
        torch.manual_seed(0)
        return torch.cat(list(loader)).tolist()

    used = loader()
    assert values(used) != values(used)
    used = loader()
    try:
        with iterating(used) as batches:
            next(batches)
            if stop:
                raise KeyboardInterrupt
            list(batches)
    except KeyboardInterrupt:
        assert stop
    assert values(used) == values(loader())


def test_the_error_for_no_batches_names_the_data():
    assert str(no_batches(DataLoader([], batch_size=2))).startswith("expected at least one batch, got none from the Da")
    check_data([])
