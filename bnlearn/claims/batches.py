"""The batch as the weak point: small batches, batches that are no fair draw, and statistics that come too late."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, difference
from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    Data,
    GroupNorm,
    LayerNorm,
    Moment,
    Norm,
    Order,
    Outcome,
    Pass,
    Probe,
    Sweep,
    probes,
    run,
    shuffled,
    sorted_by_class,
)

THEME = "Batches"
CHAPTER = "notebooks/61_limits"
NET = MLP(sizes=(64, 64, 64, 64, 10))
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TUNED = (
    "Handwritten digits, three hidden layers of 64 with ReLU and He initialisation, plain SGD; each arm takes the rate "
    "of the grid that is best on the validation part, and is judged on the test part."
)


def with_norm(name: str, norm: Norm | None) -> Arm:
    """The network of this module with ``norm``."""
    return Arm(name, replace(NET, norm=norm))


def two_classes(labels: NDArray[np.int64], batch_size: int, steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Batches of two classes each, half and half, drawn anew for each batch."""
    rows = []
    for _ in range(steps):
        pair = rng.choice(np.unique(labels), 2, replace=False)
        halves = (batch_size // 2, batch_size - batch_size // 2)
        rows.append([rng.choice(np.flatnonzero(labels == c), n) for c, n in zip(pair, halves, strict=True)])
    return np.stack([np.concatenate(row) for row in rows])


@lru_cache(maxsize=16)
def _compared(scale: Scale, batch_size: int, steps: int, order: Order = shuffled) -> dict[str, Outcome]:
    arms = (
        with_norm("batch norm", BatchNorm()),
        with_norm("layer norm", LayerNorm()),
        with_norm("group norm", GroupNorm(groups=4)),
    )
    rates = RATES[::2] if scale.quick else RATES
    seeds = tuple(range(scale.seeds))
    return run(Sweep(arms, {"lr": rates}, seeds, scale.steps(steps), batch_size, (VALIDATION, TEST), Data(), order))


def run_c1(scale: Scale) -> dict[str, Measurement]:
    """Group norm against batch norm, from two samples on."""
    return {
        f"batch of {size}": difference(_compared(scale, size, steps), "group norm", "batch norm")
        for size, steps in ((2, 400), (16, 300))
    }


def run_c2(scale: Scale) -> dict[str, Measurement]:
    """Layer norm against batch norm, on batches of one class and of two."""
    found = {}
    for name, order in {"one class in a batch": sorted_by_class, "two classes in a batch": two_classes}.items():
        found[name] = difference(_compared(scale, 32, 300, order), "layer norm", "batch norm")
    return found


def mode_gap(moment: Moment, batch_size: int) -> Tensor:
    """Cross-entropy on the test part in evaluation, minus that with the statistics of batches of ``batch_size``."""
    x, y = moment.data.test
    whole = len(x) // batch_size * batch_size
    batches = x[:whole].reshape(-1, batch_size, *x.shape[1:])
    logits = torch.vmap(lambda batch: moment.forward(batch, training=True))(batches).flatten(0, 1)
    return nnf.cross_entropy(moment.forward(x[:whole], training=False), y[:whole]) - nnf.cross_entropy(
        logits, y[:whole]
    )


def precise(moment: Moment, batch_size: int, batches: int = 30) -> Moment:
    """The same network with its running statistics replaced by the plain average over training batches."""
    buffers = dict(moment.buffers)
    for k in range(batches):
        x = moment.data.train.x[k * batch_size : (k + 1) * batch_size]
        knobs = {**moment.knobs, "bn_momentum": torch.tensor(1 / (k + 1))}
        run_ = Pass(True, knobs, moment.noise, buffers)
        moment.network(moment.parameters, x, run_)
        buffers = run_.buffers
    return replace(moment, buffers=buffers)


def losses_by_statistics(moment: Moment, batch_size: int) -> dict[str, Tensor]:
    """Test loss with the running statistics, with recomputed ones, and with those of each test batch itself."""
    running = probes.loss(moment)
    return {
        "running": running,
        "recomputed": probes.loss(precise(moment, batch_size)),
        "batch": running - mode_gap(moment, batch_size),
    }


@lru_cache(maxsize=8)
def _modes(scale: Scale, batch_size: int, steps: int) -> Outcome:
    probe = Probe("loss of", losses_by_statistics, options=(("batch_size", batch_size),))
    grid = {"bn_momentum": (0.01, 0.1), "lr": (0.03, 0.1, 0.3)}
    return run(
        Sweep(
            (with_norm("bn", BatchNorm()),),
            grid,
            tuple(range(scale.seeds)),
            scale.steps(steps),
            batch_size,
            (VALIDATION, probe),
        )
    )["bn"]


def _mode_losses(scale: Scale, batch_size: int, steps: int, momentum: float) -> dict[str, NDArray[np.float64]]:
    """Each (seeds,), at the rate that is best for momentum 0.1: the weights are then the same for both momenta."""
    outcome = _modes(scale, batch_size, steps)
    rate = outcome.points[outcome.best("validation", among={"bn_momentum": 0.1})]["lr"]
    at = outcome.where(bn_momentum=momentum, lr=rate)
    kinds = ("running", "recomputed", "batch")
    return {kind: outcome[f"loss of.{kind}"][at][:, -1].astype(np.float64) for kind in kinds}


def run_c3(scale: Scale) -> dict[str, Measurement]:
    """How far the loss in evaluation is from that with batch statistics, against momentum and against batch size."""
    lagging, usual = (_mode_losses(scale, 64, 60, momentum) for momentum in (0.01, 0.1))
    small = _mode_losses(scale, 4, 300, 0.1)
    kinds = {"slow": lagging, "usual": usual, "small": small}
    excess = {kind: np.abs(losses["running"] - losses["batch"]) for kind, losses in kinds.items()}
    return {
        "momentum 0.01 against 0.1": Measurement(
            excess["slow"] - excess["usual"], {"momentum 0.01": excess["slow"], "momentum 0.1": excess["usual"]}
        ),
        "batch of 4 against 64": Measurement(
            excess["small"] - excess["usual"], {"batch of 4": excess["small"], "batch of 64": excess["usual"]}
        ),
    }


def run_c4(scale: Scale) -> dict[str, Measurement]:
    """Loss in evaluation, with running statistics minus with recomputed ones."""
    found = {}
    for name, losses in {
        "running average that lags (momentum 0.01)": _mode_losses(scale, 64, 60, 0.01),
        "batch of 4": _mode_losses(scale, 4, 300, 0.1),
    }.items():
        arms = {f"{kind} statistics": value for kind, value in losses.items()}
        found[name] = Measurement(losses["running"] - losses["recomputed"], arms)
    return found


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C1",
        statement="Batch normalisation fails at small batches; group and layer normalisation do not.",
        sources=("P", "wu2018group"),
        theme=THEME,
        setting=f"{TUNED} 400 steps of 2 samples, 300 of 16.",
        criteria=(
            Criterion("batch of 2", "test accuracy, group norm minus batch norm", support=0.1, refute=0.02),
            Criterion("batch of 16", "test accuracy, group norm minus batch norm", support=0.1, refute=0.02),
        ),
        run=run_c1,
        chapter=CHAPTER,
        note="A small network on small images; how small is small depends on both.",
    ),
    Claim(
        id="C2",
        statement="Batches that are not drawn independently (sorted, of one class) break batch normalisation.",
        sources=("P", "ioffe2017renorm", "lian2019revisit"),
        theme=THEME,
        setting=f"{TUNED} 300 steps of 32 samples; in evaluation, running statistics.",
        criteria=(
            Criterion("one class in a batch", "test accuracy, layer norm minus batch norm", support=0.2, refute=0.02),
            Criterion("two classes in a batch", "test accuracy, layer norm minus batch norm", support=0.2, refute=0.02),
        ),
        run=run_c2,
        chapter=CHAPTER,
    ),
    Claim(
        id="C3",
        statement=(
            "Training and inference compute different functions; the gap grows as the running average lags and as the "
            "batch shrinks."
        ),
        sources=("P", "wu2021rethinking"),
        theme=THEME,
        setting=(
            f"{TUNED} The gap is the distance between the test loss with running statistics and that with the "
            "statistics of test batches as large as those of training, after 60 steps of 64 or 300 of 4. The running "
            "average does not reach the weights, so both momenta have the same ones."
        ),
        criteria=(
            Criterion("momentum 0.01 against 0.1", "growth of the gap, in nats", support=0.05, refute=0.01),
            Criterion("batch of 4 against 64", "growth of the gap, in nats", support=0.05, refute=0.01),
        ),
        run=run_c3,
        chapter=CHAPTER,
        note="Whichever is better: with batches of 4, it is evaluation that has the smaller loss.",
    ),
    Claim(
        id="C4",
        statement="Recomputing the population statistics after training (precise BN) closes the gap.",
        sources=("wu2021rethinking",),
        theme=THEME,
        setting=(
            f"{TUNED} Statistics recomputed over 30 training batches of the size of training, by their plain average, "
            "after 60 steps of 64 (momentum 0.01) or 300 of 4 (momentum 0.1)."
        ),
        criteria=(
            Criterion(
                "running average that lags (momentum 0.01)", "test loss saved, in nats", support=0.05, refute=0.01
            ),
            Criterion("batch of 4", "test loss saved, in nats", support=0.05, refute=0.01),
        ),
        run=run_c4,
        chapter=CHAPTER,
    ),
)
