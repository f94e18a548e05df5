"""Where regularisation has something to do: little data, enough data, wrong labels; and arms at their best there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bnlearn import datasets, functional
from bnlearn.claims._claim import Scale
from bnlearn.lab.data import Data, Order, shuffled
from bnlearn.lab.engine import Arm, Moment, Probe
from bnlearn.lab.norms import BatchNorm, Pass
from bnlearn.lab.probes import accuracy
from bnlearn.lab.sweep import Sweep, run

FEW = 144
"""Training samples where they are few."""
HELD_OUT = 300
"""Training samples that are given to the test part, so that it tells smaller differences."""
WRONG = 0.2
"""Share of the training labels that are wrong where some are."""
TUNING = 5
"""Seeds that the knobs are chosen with; two where the scale is quick."""


def digits(*, flat: bool = True) -> datasets.Dataset:
    """The digits with 897 samples to learn from, 300 to choose by and 600 to test with."""
    whole = datasets.load_digits(flat=flat)
    (x, y), (test_x, test_y) = whole.train, whole.test
    return replace(
        whole,
        train=datasets.Part(x[:-HELD_OUT], y[:-HELD_OUT]),
        test=datasets.Part(np.concatenate([test_x, x[-HELD_OUT:]]), np.concatenate([test_y, y[-HELD_OUT:]])),
    )


def wrong_labels(*, flat: bool = True) -> datasets.Dataset:
    """The same, a fifth of the training labels replaced by another, drawn once."""
    right = digits(flat=flat)
    labels, rng = right.train.y.copy(), np.random.default_rng(0)
    wrong = rng.permutation(len(labels))[: round(WRONG * len(labels))]
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return replace(right, train=datasets.Part(right.train.x, labels), name=f"{right.name}, some labels wrong")


def few(labels: NDArray[np.int64], batch_size: int, steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Every epoch in a new order, over few samples that each seed draws for itself."""
    chosen = rng.permutation(len(labels))[:FEW]
    return chosen[shuffled(labels[chosen], batch_size, steps, rng)]


def seen(moment: Moment) -> Tensor:
    """Share of the next training batch that is classified as its labels say, in evaluation."""
    x, y = moment.batch
    return (moment.forward(x, training=False).argmax(1) == y).float().mean()


PROBES = (
    Probe("test", accuracy),
    Probe("validation", accuracy, options=(("part", "validation"),)),
    Probe("seen", seen, at=(-3, -2, -1)),
)


@dataclass(frozen=True)
class Regime:
    """What is learnt from, and for how long.

    Attributes
    ----------
    data : Data
    order : callable
        See :class:`bnlearn.lab.Order`.
    batch_size, steps : int
    """

    data: Data
    order: Order
    batch_size: int
    steps: int


REGIMES: Mapping[str, Regime] = {
    "few samples": Regime(Data(digits), few, 48, 200),
    "all samples": Regime(Data(digits), shuffled, 64, 200),
    "wrong labels": Regime(Data(wrong_labels), shuffled, 64, 300),
}


@dataclass(frozen=True)
class GhostBatchNorm(BatchNorm):
    """Over each few samples of the batch by themselves (Hoffer, Hubara and Soudry, 2017); in evaluation as BatchNorm.

    Attributes
    ----------
    ghost_size : int
        Samples that share statistics; of a batch it divides.
    """

    ghost_size: int = 16

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``; in training the running statistics move by every ghost in turn."""
        if not run.training:
            return super().__call__(x, p, prefix, run)
        y: Tensor
        y, cache = functional.ghost_batch_norm(x, *self._affine(p, prefix), ghost_size=self.ghost_size, eps=self.eps)
        mean, var = f"{prefix}running_mean", f"{prefix}running_var"
        run.buffers[mean], run.buffers[var] = functional.update_running_ghosts(
            run.buffers[mean], run.buffers[var], cache, momentum=self.momentum
        )
        return y


@dataclass(frozen=True)
class Best:
    """An arm at the point of a grid that is best on the validation part.

    Attributes
    ----------
    test, train : array, shape (seeds,)
        Accuracy at the end: on the test part, and on the last three training batches, by their labels.
    validation : float
        That of the seeds it was chosen with: mean accuracy.
    knobs : dict
        The point.
    """

    test: NDArray[np.float64]
    train: NDArray[np.float64]
    validation: float
    knobs: dict[str, float]


def at_best(arm: Arm, grid: Mapping[str, tuple[float, ...]], regime: Regime, scale: Scale) -> Best:
    """Tune an arm with a few seeds, and run it with the others where it is best.

    Parameters
    ----------
    arm : Arm
    grid : mapping of str to values
        Knobs.
    regime : Regime
    scale : Scale

    Returns
    -------
    Best
        Over all seeds, those of the tuning among them.
    """
    first = min(2 if scale.quick else TUNING, scale.seeds - 1)
    sweep = Sweep(
        (arm,),
        grid,
        tuple(range(first)),
        scale.steps(regime.steps),
        regime.batch_size,
        PROBES,
        data=regime.data,
        order=regime.order,
        at_once=100,
    )
    tried = run(sweep)[arm.name]
    place = tried.best()
    knobs = tried.points[place]
    chosen = replace(arm, knobs=(*arm.knobs, *knobs.items()))
    rest = run(replace(sweep, arms=(chosen,), grid={}, seeds=tuple(range(first, scale.seeds))))[arm.name]
    test, train = (
        np.concatenate([tried[name][place].mean(1), rest[name][0].mean(1)]).astype(np.float64)
        for name in ("test", "seen")
    )
    return Best(test, train, float(tried["validation"][place].mean()), knobs)


def best_of(*candidates: Best) -> Best:
    """The one that is best on the validation part; the first of equals."""
    return max(candidates, key=lambda candidate: candidate.validation)
