"""Initialisation and depth: how far a network may start from the right scale, and how deep it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    Data,
    Network,
    Outcome,
    Pass,
    Probe,
    ResidualMLP,
    Sweep,
    cosine,
    probes,
    run,
)

__all__ = ["CLAIMS"]

Floats = NDArray[np.float64]

THEME = "Initialisation and depth"
CHAPTER = "notebooks/52_initialisation_and_depth"
DIGITS = "digits (1,197 to learn from, 300 to choose the rate by, 300 to report)"
CHANCE = "A run that diverges answers with one class, which is chance."


def _outcome(
    network: Network,
    scale: Scale,
    grid: Mapping[str, tuple[float, ...]],
    steps: int,
    *,
    early: tuple[int, ...] = (),
    optimizer: str = "sgd",
) -> Outcome:
    """One network at every point of a grid; its test accuracy before the steps ``early`` and at the end."""
    sweep = Sweep(
        (Arm("", network, optimizer, schedule=cosine),),
        grid,
        seeds=tuple(range(scale.seeds)),
        steps=scale.steps(steps),
        batch_size=32,
        probes=(
            Probe("test", probes.accuracy, at=(*early, -1)),
            Probe("validation", probes.accuracy, at=(*early, -1), options=(("part", "validation"),)),
        ),
        at_once=100,
    )
    return run(sweep)[""]


def _best(outcome: Outcome, time: int = -1) -> int:
    """The place of the rate that is best on the validation part at this time."""
    return int(outcome["validation"][:, :, time].mean(1).argmax())


def _at_best(outcome: Outcome, time: int = -1) -> Floats:
    """Test accuracy (seeds,) at that rate and time."""
    return outcome["test"][_best(outcome, time), :, time].astype(np.float64)


def _rate(outcome: Outcome, time: int = -1) -> float:
    return outcome.points[_best(outcome, time)]["lr"]


# B5: the scale of the initial weights ---------------------------------------------------------------------------------

SCALES = (1e-4, 1e-3, 1e-2, 1e-1, 0.25, 1.0)
"""Standard deviations of the initial weights; He's is 0.25 for a layer of 32."""


def _table(outcome: Outcome, name: str) -> Floats:
    """The last value of ``name``: (rates, scales, seeds)."""
    return outcome[name][:, :, -1].reshape(-1, len(SCALES), len(outcome.seeds)).astype(np.float64)


@cache
def _scales(scale: Scale, optimizer: str, normalised: bool) -> tuple[tuple[float, ...], Floats, Floats]:
    """The rates, and test and validation accuracy (rates, scales, seeds)."""
    rates = (0.01, 0.1, 1.0, 10.0) if normalised and optimizer == "sgd" else (0.001, 0.01, 0.1, 1.0)
    network = MLP((64, 32, 32, 32, 32, 10), norm=BatchNorm() if normalised else None, init=1.0)
    outcome = _outcome(network, scale, {"lr": rates, "init_scale": SCALES}, 150, optimizer=optimizer)
    return rates, _table(outcome, "test"), _table(outcome, "validation")


def _spread(scale: Scale, optimizer: str, shift: int | None) -> Measurement:
    """How much the worst scale loses, at the rate that suits all scales best and ``shift`` places below it.

    ``shift`` None: at 0.001, whatever suits.
    """
    rates, test, validation = _scales(scale, optimizer, True)
    suits = int(validation.mean((1, 2)).argmax())
    row = rates.index(0.001) if shift is None else max(suits - shift, 0)
    by_scale = validation[row].mean(1)
    best, worst = int(by_scale.argmax()), int(by_scale.argmin())
    details = {
        "rate": rates[row],
        "rate that suits all scales": rates[suits],
        "best scale": SCALES[best],
        "worst scale": SCALES[worst],
        "rates": list(rates),
        "scales": list(SCALES),
        "accuracy by rate and scale": test.mean(2).round(3).tolist(),
    }
    arms = {f"{std:g}": values for std, values in zip(SCALES, test[row], strict=True)}
    return Measurement(test[row, worst] - test[row, best], arms, details)


def _gain(scale: Scale) -> Measurement:
    """BN over none at the scale where BN gains least, each arm with its own rate at each scale."""
    best: dict[str, Floats] = {}
    details: dict[str, object] = {"scales": list(SCALES)}
    for name, normalised in (("BN", True), ("none", False)):
        rates, test, validation = _scales(scale, "sgd", normalised)
        rows = validation.mean(2).argmax(0)
        best[name] = test[rows, np.arange(len(SCALES))]
        details[f"rates, {name}"] = [rates[row] for row in rows]
        details[f"accuracy by scale, {name}"] = best[name].mean(1).round(3).tolist()
        details[f"accuracy by rate and scale, {name}"] = test.mean(2).round(3).tolist()
    worst = {name: values[values.mean(1).argmin()] for name, values in best.items()}
    return Measurement(worst["BN"] - worst["none"], worst, details)


def _b5(scale: Scale) -> dict[str, Measurement]:
    return {
        "SGD, the rate that suits all scales": _spread(scale, "sgd", 0),
        "SGD, a tenth of that rate": _spread(scale, "sgd", 1),
        "Adam, the rate that suits all scales": _spread(scale, "adam", 0),
        "Adam, its default rate of 0.001": _spread(scale, "adam", None),
        "against none, each scale its own rate": _gain(scale),
    }


_LOST = "test accuracy at the worst scale less that at the best, with BN"

B5 = Claim(
    id="B5",
    statement="With batch normalisation, training is insensitive to the scale of the initial weights.",
    sources=("ioffe2015batch", "P"),
    theme=THEME,
    setting=(
        "Digits; four hidden layers of 32, ReLU; all weights start with the same standard deviation, 0.0001 to 1 (He's "
        "is 0.25); 150 steps of 32 samples, rates in powers of ten along a cosine. The claim is about bad "
        "initialisation, so the scale is not tuned; the one rate for all scales is the best on average over them. "
        + CHANCE
    ),
    criteria=(
        Criterion("SGD, the rate that suits all scales", _LOST, support=-0.1),
        Criterion("SGD, a tenth of that rate", _LOST, support=-0.1),
        Criterion("Adam, the rate that suits all scales", _LOST, support=-0.1),
        Criterion("Adam, its default rate of 0.001", _LOST, support=-0.1),
        Criterion(
            "against none, each scale its own rate",
            "test accuracy at each arm's worst scale, with BN less without",
            support=0.2,
            refute=0.05,
        ),
    ),
    run=_b5,
    chapter=CHAPTER,
    note="Not sensitive to the scale at one rate is not the same as at every rate. All of it after 150 steps.",
    data=DIGITS,
)


# B8: more than 100 layers ---------------------------------------------------------------------------------------------

BLOCKS = 50
"""Of two layers each: with the first and the last, 102 layers."""
LARGE = (0.1, 0.3, 1.0, 3.0, 10.0)
SMALL = (0.001, 0.01, 0.1, 1.0)
TINY = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1e-1)
"""Where the gradients are so large that any larger rate diverges."""
FEW = 5


def _arms(blocks: int) -> dict[str, tuple[ResidualMLP, tuple[float, ...]]]:
    """The networks, each with the rates that it is tried at."""
    none = ResidualMLP(width=16, depth=blocks)
    bn = replace(none, norm=BatchNorm())
    return {
        "plain, BN": (replace(bn, skip=False), SMALL),
        "plain, none": (replace(none, skip=False), SMALL),
        "residual, BN": (bn, LARGE),
        "residual, none": (none, TINY),
        "residual, scaled": (replace(none, branch_scale=blocks**-0.5), LARGE),
    }


@cache
def _hundred(scale: Scale) -> dict[str, Outcome]:
    coarse = slice(1, None) if scale.quick else slice(None)
    arms = _arms(BLOCKS).items()
    return {name: _outcome(network, scale, {"lr": rates[coarse]}, 50) for name, (network, rates) in arms}


def _last_loss(outcome: Outcome) -> float:
    """The median over seeds, of the last ten steps at the best rate; what diverged counts as 99."""
    loss = outcome["loss"][_best(outcome), :, -10:].mean(1)
    return float(np.median(np.nan_to_num(loss, nan=99.0).clip(max=99.0)))


def _by_depth(scale: Scale) -> dict[str, object]:
    """Test accuracy of fewer seeds at other depths, each arm at its best rate: no verdict rests on it."""
    depths = (2,) if scale.quick else (2, 4, 8, 16)
    few = Scale(min(scale.seeds, FEW), scale.steps_at_most, scale.quick)
    accuracy: dict[str, list[list[float]]] = {}
    for blocks in depths:
        for name, (network, rates) in _arms(blocks).items():
            found = _at_best(_outcome(network, few, {"lr": rates}, 50))
            accuracy.setdefault(name, []).append(found.round(4).tolist())
    return {"layers": [2 * blocks + 2 for blocks in depths], "accuracy": accuracy}


def _b8(scale: Scale) -> dict[str, Measurement]:
    outcomes = _hundred(scale)
    test = {name: _at_best(outcome) for name, outcome in outcomes.items()}
    rates = {name: _rate(outcome) for name, outcome in outcomes.items()}
    loss = {name: _last_loss(outcome) for name, outcome in outcomes.items()}

    def measured(one: str, other: str | None = None) -> Measurement:
        names = [one] if other is None else [one, other]
        effect = test[one] if other is None else test[one] - test[other]
        details = {
            "rates": {name: rates[name] for name in names},
            "training loss, last ten steps, at most 99": {name: loss[name] for name in names},
        }
        return Measurement(effect, {name: test[name] for name in names}, details)

    plain = measured("plain, BN")
    return {
        "plain": replace(plain, details={**plain.details, "fewer layers": _by_depth(scale)}),
        "residual": measured("residual, BN"),
        "plain, against none": measured("plain, BN", "plain, none"),
        "residual, against none": measured("residual, BN", "residual, none"),
        "residual, against branches scaled by hand": measured("residual, BN", "residual, scaled"),
    }


B8 = Claim(
    id="B8",
    statement="Batch normalisation makes networks of more than 100 layers trainable.",
    sources=("de2020batch", "P"),
    theme=THEME,
    setting=(
        "Digits; 102 linear layers of width 16 from He's initialisation, ReLU, in blocks of two (BN first): plain, "
        "or residual, where a block's input is added to its output; 50 steps of 32 samples; each arm at its best rate "
        "on the validation part, along a cosine: of 0.1 to 10, plain of 0.001 to 1; residual without BN, which "
        "diverges at larger ones, of 1e-10 to 0.1. Scaled by hand: each branch times 1 / sqrt(50), no BN. " + CHANCE
    ),
    criteria=(
        Criterion("plain", "test accuracy with BN (chance is 0.1)", support=0.5, refute=0.2),
        Criterion("residual", "test accuracy with BN (chance is 0.1)", support=0.5, refute=0.2),
        Criterion("plain, against none", "test accuracy, with BN less without", support=0.1, refute=0.05),
        Criterion("residual, against none", "test accuracy, with BN less without", support=0.1, refute=0.05),
        Criterion(
            "residual, against branches scaled by hand",
            "test accuracy, with BN less without BN but with scaled branches",
            support=0.1,
            refute=0.05,
        ),
    ),
    run=_b8,
    chapter=CHAPTER,
    note="Fifty steps tell whether a narrow network starts to learn, not how good a wide one gets.",
    data=DIGITS,
)


# B10: the variance along the skip connection --------------------------------------------------------------------------

DEPTH = 64


def _variances(network: ResidualMLP, scale: Scale) -> Floats:
    """Variance over features and samples after each block of the network as it starts: (seeds, 1 + blocks)."""
    rows = []
    for seed in range(scale.seeds):
        generator = torch.Generator().manual_seed(seed)
        parameters = network.parameters(generator, {})
        x = Data().load().train.x
        chosen = torch.randperm(len(x), generator=generator)[:128]
        trace: dict[str, torch.Tensor] = {}
        network(parameters, x[chosen], Pass(True, {}, {}, network.buffers(), trace))
        rows.append([float(value.double().var(correction=0)) for value in trace.values()])
    return np.array(rows)


def _exponent(variances: Floats) -> Floats:
    """How what the blocks have added grows with their number, between 8 and the last: 1 is linear; (seeds,)."""
    added = variances - variances[:, :1]
    last = variances.shape[1] - 1
    return np.asarray(np.log(added[:, last] / added[:, 8]) / np.log(last / 8))


def _growth(variances: Floats) -> Floats:
    """Growth per block, between block 8 and the last: (seeds,)."""
    last = variances.shape[1] - 1
    return np.asarray((variances[:, last] / variances[:, 8]) ** (1 / (last - 8)))


def _b10(scale: Scale) -> dict[str, Measurement]:
    bn = BatchNorm()
    first = _variances(ResidualMLP(width=128, depth=DEPTH, norm=bn), scale)
    last = _variances(ResidualMLP(width=128, depth=DEPTH, norm=bn, last_gamma=1.0), scale)
    none = _variances(ResidualMLP(width=128, depth=DEPTH), scale)
    found = {}
    for name, variances in (("BN before each layer of the branch", first), ("BN after each layer of the branch", last)):
        exponent = _exponent(variances)
        details = {"exponent": exponent.round(3).tolist(), "growth per block": _growth(variances).round(4).tolist()}
        found[name] = Measurement(-np.abs(exponent - 1), {"variance after each block": variances}, details)
    details = {"exponent": _exponent(none).round(3).tolist()}
    found["without BN"] = Measurement(_growth(none), {"variance after each block": none}, details)
    return found


_OFF = "minus the distance of p from 1, where the variance that l blocks add grows as l to the p"

B10 = Claim(
    id="B10",
    statement=(
        "As a residual network starts, the variance grows linearly with depth if there is batch normalisation in the "
        "branch, and exponentially if there is none."
    ),
    sources=("de2020batch",),
    theme=THEME,
    setting=(
        "128 digits through 64 residual blocks of two layers of width 128, ReLU, He's initialisation, not trained; the "
        "variance is over samples and features. Exponent and growth are taken from block 8 to block 64."
    ),
    criteria=(
        Criterion("BN before each layer of the branch", _OFF, support=-0.1),
        Criterion("BN after each layer of the branch", _OFF, support=-0.1),
        Criterion("without BN", "factor by which the variance grows per block", support=1.5, refute=1.1, scale="log"),
    ),
    run=_b10,
    chapter=CHAPTER,
    note="Of the network as it starts. Training may change it.",
    data="digits",
)


# B11: a last gamma of zero --------------------------------------------------------------------------------------------


@cache
def _gammas(scale: Scale, blocks: int, steps: int, early: tuple[int, ...]) -> tuple[Outcome, Outcome]:
    """The same residual network with a last gamma of zero and of one."""
    zero, one = (
        _outcome(
            ResidualMLP(width=16, depth=blocks, norm=BatchNorm(), last_gamma=gamma),
            scale,
            {"lr": LARGE[1:]},
            steps,
            early=early,
        )
        for gamma in (0.0, 1.0)
    )
    return zero, one


def _b11(scale: Scale) -> dict[str, Measurement]:
    def measured(blocks: int, steps: int, time: int) -> Measurement:
        zero, one = _gammas(scale, blocks, steps, (scale.steps(20),))
        arms = {"gamma 0": _at_best(zero, time), "gamma 1": _at_best(one, time)}
        rates = {"gamma 0": _rate(zero, time), "gamma 1": _rate(one, time)}
        return Measurement(arms["gamma 0"] - arms["gamma 1"], arms, {"rates": rates})

    return {
        "22 layers, after 20 steps": measured(10, 100, 0),
        "22 layers, after 100 steps": measured(10, 100, -1),
        "52 layers, after 20 steps": measured(25, 50, 0),
        "52 layers, after 50 steps": measured(25, 50, -1),
    }


_HELPED = "test accuracy, with a last gamma of zero less with one"

B11 = Claim(
    id="B11",
    statement="Starting the last gamma of each residual branch at zero helps.",
    sources=("goyal2017accurate",),
    theme=THEME,
    setting=(
        "Digits; residual blocks x + BN(W BN(W x)) of width 16 with a ReLU between, He's initialisation; batches of "
        "32; rates along a cosine; each arm at the rate of 0.3 to 10 that is best on the validation part at that step."
    ),
    criteria=(
        Criterion("22 layers, after 20 steps", _HELPED, support=0.05, refute=0.0),
        Criterion("22 layers, after 100 steps", _HELPED, support=0.01, refute=0.0),
        Criterion("52 layers, after 20 steps", _HELPED, support=0.05, refute=0.0),
        Criterion("52 layers, after 50 steps", _HELPED, support=0.01, refute=0.0),
    ),
    run=_b11,
    chapter=CHAPTER,
    data=DIGITS,
)

CLAIMS = (B5, B8, B10, B11)
