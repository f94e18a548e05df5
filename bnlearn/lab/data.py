r"""What the networks of the lab learn from: datasets by name, as tensors, and the order in which samples are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnlearn import datasets

__all__ = ["Data", "Order", "Part", "Parts", "shuffled", "sorted_by_class"]

_SOURCES: dict[str, Callable[..., datasets.Dataset]] = {
    "digits": datasets.load_digits,
    "mnist": datasets.load_mnist,
}


class Part(NamedTuple):
    r"""Samples (N, C, \*spatial) and labels (N,)."""

    x: Tensor
    y: Tensor


class Parts(NamedTuple):
    """What to learn from, to choose by, and to report once."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Data:
    """A dataset, by name.

    Attributes
    ----------
    source : str or callable
        ``"digits"``, ``"mnist"``, or a function defined at the top of a module that returns a
        :class:`bnlearn.datasets.Dataset`.
    flat : bool
        Samples as vectors.
    options : tuple of (str, value)
        Further arguments of the loader, such as ``(("seed", 0),)``.
    samples : int or None
        Only the first so many training samples.
    """

    source: str | Callable[..., datasets.Dataset] = "digits"
    flat: bool = True
    options: tuple[tuple[str, object], ...] = ()
    samples: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, str) and self.source not in _SOURCES:
            raise ValueError(f"expected a dataset among {', '.join(_SOURCES)} or a function, got {self.source!r}")

    def load(self) -> Parts:
        """The three parts; the same tensors at every call."""
        return _load(self)


@lru_cache(maxsize=8)
def _load(data: Data) -> Parts:
    loader = _SOURCES[data.source] if isinstance(data.source, str) else data.source
    loaded = loader(flat=data.flat, **dict(data.options))

    def part(source: datasets.Part, samples: int | None = None) -> Part:
        return Part(torch.from_numpy(source.x[:samples].copy()), torch.from_numpy(source.y[:samples].copy()))

    return Parts(part(loaded.train, data.samples), part(loaded.validation), part(loaded.test))


class Order(Protocol):
    """Which samples a replica sees at each step: a function defined at the top of a module."""

    def __call__(
        self, labels: NDArray[np.int64], batch_size: int, steps: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Indices (steps, batch_size) into the training part."""
        ...

    def __hash__(self) -> int:
        """A function has one."""
        ...


def shuffled(labels: NDArray[np.int64], batch_size: int, steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Every epoch in a new order, without what would be a smaller last batch."""
    whole = len(labels) // batch_size
    epochs = [rng.permutation(len(labels))[: whole * batch_size] for _ in range(-(-steps // whole))]
    return np.concatenate(epochs).reshape(-1, batch_size)[:steps]


def sorted_by_class(
    labels: NDArray[np.int64], batch_size: int, steps: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Batches of one class each, the classes in random order, as from a file that is sorted by label."""
    classes = np.unique(labels)
    rows = []
    for step in range(steps):
        if step % len(classes) == 0:
            turn = rng.permutation(classes)
        members = np.flatnonzero(labels == turn[step % len(classes)])
        rows.append(rng.choice(members, batch_size, replace=len(members) < batch_size))
    return np.stack(rows)
