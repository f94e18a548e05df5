"""What a worker in another process needs: a module that it can import."""

from __future__ import annotations

import os
import signal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnlearn.datasets import Dataset, Part
from bnlearn.lab import Moment, shuffled

calls: list[int] = []
"""One entry for each time that the order below is asked for, which is once per seed of a task."""


def small(*, flat: bool, seed: int = 0) -> Dataset:
    """A dataset for which nothing is imported: 64 features, 10 classes."""
    rng = np.random.default_rng(seed)
    parts = [Part(rng.normal(size=(n, 64)).astype(np.float32), rng.integers(0, 10, n)) for n in (96, 16, 24)]
    return Dataset(*parts, mean=0.0, std=1.0, name="small")


def process(moment: Moment) -> Tensor:
    """Where this runs."""
    return torch.tensor(float(os.getpid()))


def threads(moment: Moment) -> Tensor:
    return torch.tensor(float(torch.get_num_threads()))


def deadly(labels: NDArray[np.int64], batch_size: int, steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """As usual, but for the call that the environment names: then the process is killed, or interrupted."""
    calls.append(len(calls) + 1)
    if str(calls[-1]) == os.environ.get("KILLED_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    if str(calls[-1]) == os.environ.get("INTERRUPTED_AT"):
        raise KeyboardInterrupt
    return shuffled(labels, batch_size, steps, rng)
