r"""Regularisation: the noise of batch statistics, dropout, weight decay, large batches and ghosts."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as nnf

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._overfitting import REGIMES, Best, GhostBatchNorm, at_best, best_of
from bnlearn.lab.engine import Arm
from bnlearn.lab.networks import MLP
from bnlearn.lab.norms import BatchNorm, Norm, Pass

THEME = "Regularisation"
CHAPTER = "notebooks/56_regularisation"
SIZES = (64, 32, 32, 10)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
DROPOUTS = (0.1, 0.3, 0.5)
DECAYS = (0.001, 0.003, 0.01, 0.03, 0.1)
GHOSTS = (4, 8, 16)
ONE_RATE = 0.3
HALF_A_POINT = 0.005
"""Of accuracy: what counts as a difference."""
LARGE = 256
LARGE_GHOST = 8
SMALL = 32
LARGE_STEPS = 100
LARGE_REGIMES = ("all samples", "wrong labels")

NORMS: dict[str, Norm | None] = {"none": None, "bn": BatchNorm()}


def rates(scale: Scale) -> tuple[float, ...]:
    """Those of the grid; without the extremes at a quick scale."""
    return RATES[1:-1] if scale.quick else RATES


def _thinned(values: tuple[float, ...], scale: Scale) -> tuple[float, ...]:
    return values[1::2] if scale.quick else values


@lru_cache(maxsize=32)
def plain(norm: str, regime: str, scale: Scale) -> Best:
    """Without dropout or decay, with BN (``"bn"``) or without (``"none"``)."""
    return at_best(Arm(norm, MLP(SIZES, NORMS[norm])), {"lr": rates(scale)}, REGIMES[regime], scale)


@lru_cache(maxsize=32)
def with_dropout(norm: str, regime: str, scale: Scale) -> Best:
    """Dropout after each hidden layer, its rate tuned; none is among the choices."""
    grid = {"lr": rates(scale), "dropout": _thinned(DROPOUTS, scale)}
    arm = Arm(norm, MLP(SIZES, NORMS[norm], dropout=True))
    return best_of(plain(norm, regime, scale), at_best(arm, grid, REGIMES[regime], scale))


@lru_cache(maxsize=32)
def with_decay(norm: str, regime: str, scale: Scale) -> Best:
    """Weight decay on all weights, tuned; none is among the choices."""
    grid = {"lr": rates(scale), "weight_decay": _thinned(DECAYS, scale)}
    arm = Arm(norm, MLP(SIZES, NORMS[norm]))
    return best_of(plain(norm, regime, scale), at_best(arm, grid, REGIMES[regime], scale))


def ghost(size: int) -> Arm:
    """BN over ghosts of ``size`` samples."""
    return Arm(f"ghosts of {size}", MLP(SIZES, GhostBatchNorm(ghost_size=size)))


# B15: the noise


def noise(scale: Scale) -> dict[str, Measurement]:
    """B15: statistics of few samples against those of the whole batch, the batch being the same."""
    measured = {}
    sizes = GHOSTS[1::2] if scale.quick else GHOSTS
    for name, regime in REGIMES.items():
        whole = plain("bn", name, scale)
        noisy = {size: at_best(ghost(size), {"lr": rates(scale)}, regime, scale) for size in sizes}
        best = best_of(*noisy.values())
        arms = {f"ghosts of {size}": found.test for size, found in noisy.items()} | {"whole batch": whole.test}
        details = {
            "batch size": regime.batch_size,
            "knobs": {f"ghosts of {size}": found.knobs for size, found in noisy.items()} | {"whole batch": whole.knobs},
            "chosen": [f"ghosts of {size}" for size, found in noisy.items() if found is best],
        }
        measured[f"{name}: test accuracy"] = Measurement(best.test - whole.test, arms, details)
        one = {"lr": (ONE_RATE,)}
        same = {
            "ghosts of 8": at_best(ghost(8), one, regime, scale),
            "whole batch": at_best(Arm("bn", MLP(SIZES, BatchNorm())), one, regime, scale),
        }
        gaps = {arm: found.train - found.test for arm, found in same.items()}
        parts = {f"{arm}, {part}": getattr(found, part) for arm, found in same.items() for part in ("train", "test")}
        measured[f"{name}: gap at one rate"] = Measurement(gaps["whole batch"] - gaps["ghosts of 8"], parts)
    return measured


# B16 and B17: dropout and decay


def _replaces(scale: Scale, what: str) -> dict[str, Measurement]:
    other = {"dropout": with_dropout, "decay": with_decay}[what]
    measured = {}
    for name in REGIMES:
        bn, instead, beside = plain("bn", name, scale), other("none", name, scale), other("bn", name, scale)
        found = {"none": plain("none", name, scale), what: instead, "bn": bn, f"bn and {what}": beside}
        arms = {arm: one.test for arm, one in found.items()}
        details = {"knobs": {arm: one.knobs for arm, one in found.items()}}
        measured[f"{name}: instead of {what}"] = Measurement(bn.test - instead.test, arms, details)
        measured[f"{name}: {what} beside it"] = Measurement(bn.test - beside.test, arms, details)
    return measured


def replaces_dropout(scale: Scale) -> dict[str, Measurement]:
    """B16: BN alone against dropout without BN, and against both."""
    return _replaces(scale, "dropout")


def replaces_decay(scale: Scale) -> dict[str, Measurement]:
    """B17: BN alone against weight decay without BN, and against both."""
    return _replaces(scale, "decay")


# B21: large batches


def ghosts(scale: Scale) -> dict[str, Measurement]:
    """B21: a large batch in ghosts, against the same as a whole and against small batches, all for as many epochs."""
    measured = {}
    for name in LARGE_REGIMES:
        large = replace(REGIMES[name], batch_size=LARGE, steps=LARGE_STEPS)
        small = replace(large, batch_size=SMALL, steps=LARGE_STEPS * LARGE // SMALL)
        grid = {"lr": (0.01, *RATES)[:: 2 if scale.quick else 1]}
        bn = Arm("bn", MLP(SIZES, BatchNorm()))
        found = {
            f"batches of {SMALL}": at_best(bn, grid, small, scale),
            f"batches of {LARGE}": at_best(bn, grid, large, scale),
            f"batches of {LARGE} in ghosts of {LARGE_GHOST}": at_best(ghost(LARGE_GHOST), grid, large, scale),
        }
        few, whole, pieces = (one.test for one in found.values())
        arms = {arm: one.test for arm, one in found.items()}
        details = {"knobs": {arm: one.knobs for arm, one in found.items()}}
        measured[f"{name}: against the whole batch"] = Measurement(pieces - whole, arms, details)
        measured[f"{name}: against small batches"] = Measurement(pieces - few, arms, details)
    return measured


# B23: what decay does before BN


def effective_rate(scale: Scale) -> dict[str, Measurement]:
    """B23: decay against a growing rate, and the growth of the norm, in float64."""
    found = [decay_as_rate(seed, scale.steps(EXACT_STEPS)) for seed in range(scale.seeds)]
    names = ("decay is a growing rate", "without decay the norm grows")
    return {name: Measurement(np.array([each[i] for each in found])) for i, name in enumerate(names)}


EXACT_STEPS = 50
EXACT_RATE = 0.3
EXACT_DECAY = 0.03


def decay_as_rate(seed: int, steps: int) -> tuple[float, float]:
    r"""How far from the truth it is that weight decay before BN is a growing rate, and that the norm only grows.

    Two networks start alike, with BN of eps = 0 after each hidden layer. The weights before BN of the first decay,

    .. math:: w_{t+1} = (1 - \eta \lambda)\, w_t - \eta \nabla L(w_t),

    those of the second do not, and their rate at step t is :math:`\eta (1 - \eta \lambda)^{-2t - 1}`. As the loss does
    not depend on the norm of these weights, the second are a multiple of the first at every step (Li and Arora, 2020).
    As the gradient is orthogonal to them, each step without decay adds its squared length to theirs.

    Parameters
    ----------
    seed : int
    steps : int

    Returns
    -------
    functions, norms : float
        The largest difference between the logits of the two, after any step; and the largest relative error of the
        squared norm, of any weight before BN of the second.
    """
    generator = torch.Generator().manual_seed(seed)
    network = MLP((16, 16, 16, 4), BatchNorm(eps=0.0), bias=False)
    x = torch.randn((64, 16), generator=generator, dtype=torch.float64)
    y = torch.randint(4, (64,), generator=generator)
    start = {name: value.double() for name, value in network.parameters(generator, {}).items()}
    before_bn = [f"{i}.weight" for i in range(network.hidden)]
    shrink = 1 - EXACT_RATE * EXACT_DECAY

    def logits(p: dict[str, Tensor]) -> Tensor:
        buffers = {name: value.double() for name, value in network.buffers().items()}
        return network(p, x, Pass(True, {}, {}, buffers))

    slopes = grad(lambda p: nnf.cross_entropy(logits(p), y))
    decaying, growing = dict(start), dict(start)
    functions = norms = 0.0
    for step in range(steps):
        slope = slopes(decaying)
        decaying = {
            name: (shrink if name in before_bn else 1.0) * value - EXACT_RATE * slope[name]
            for name, value in decaying.items()
        }
        slope, old = slopes(growing), growing
        faster = EXACT_RATE * shrink ** (-2 * step - 1)
        growing = {
            name: value - (faster if name in before_bn else EXACT_RATE) * slope[name] for name, value in old.items()
        }
        functions = max(functions, float((logits(decaying) - logits(growing)).abs().max()))
        for name in before_bn:
            expected = old[name].square().sum() + faster**2 * slope[name].square().sum()
            norms = max(norms, float((growing[name].square().sum() / expected - 1).abs()))
    return functions, norms


SETTING = (
    "Handwritten digits, ReLU, two hidden layers of 32, He initialisation, SGD without momentum or schedule. Three "
    "regimes: 144 samples, drawn anew for each seed, in batches of 48; all 897 in batches of 64; all of them, a fifth "
    "of the training labels wrong."
)
_TUNED = (
    "Each arm has the knobs that are best on the validation part, whose labels are right, with the first five seeds: "
)
TUNED = f"{_TUNED}a rate of five, from 0.03 to 3, times what the arm adds."
TUNED_LARGE = f"{_TUNED}a rate of six, from 0.01 to 3."


def _noise_criteria() -> tuple[Criterion, ...]:
    return tuple(
        criterion
        for name in REGIMES
        for criterion in (
            Criterion(
                f"{name}: test accuracy",
                "test accuracy with statistics of a few samples minus with those of the whole batch, both tuned",
                support=HALF_A_POINT,
            ),
            Criterion(
                f"{name}: gap at one rate",
                "train minus test accuracy with the whole batch, minus that with ghosts of 8, at the rate 0.3",
                support=0.01,
            ),
        )
    )


def _replacing_criteria(what: str) -> tuple[Criterion, ...]:
    return tuple(
        criterion
        for name in REGIMES
        for criterion in (
            Criterion(
                f"{name}: instead of {what}",
                f"test accuracy with BN alone minus with {what} and no BN",
                support=-HALF_A_POINT,
            ),
            Criterion(
                f"{name}: {what} beside it",
                f"test accuracy with BN alone minus with BN and {what}",
                support=-HALF_A_POINT,
            ),
        )
    )


CLAIMS = (
    Claim(
        id="B15",
        statement="The noise of the batch statistics regularises.",
        sources=("P", "ioffe2015batch", "luo2019towards"),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{SETTING} The batch that a step learns from stays the same; only its statistics are those of "
        "ghosts of 4, 8 or 16 samples, which vary more, or those of the whole. "
        f"{TUNED} The noisy arm also chooses the size of its ghosts. "
        "The gap is taken at one rate for both, because the claim is about what the noise does to it.",
        criteria=_noise_criteria(),
        run=noise,
        note="A smaller gap alone is no gain: whatever disturbs training closes it.",
    ),
    Claim(
        id="B16",
        statement="Batch normalisation replaces dropout.",
        sources=("P", "ioffe2015batch"),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{SETTING} {TUNED} Dropout of 0, 0.1, 0.3 or 0.5 follows each hidden layer. It is replaced where BN "
        "alone loses at most half a point to it, and needed beside BN where it adds more than that.",
        criteria=_replacing_criteria("dropout"),
        run=replaces_dropout,
        note="Dropout here stands after BN and the activation; before BN it does harm of its own.",
    ),
    Claim(
        id="B17",
        statement="Batch normalisation replaces weight decay.",
        sources=("P", "ioffe2015batch"),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting=f"{SETTING} {TUNED} Decay of 0, 0.001, 0.003, 0.01, 0.03 or 0.1 acts on all weights, not on biases, "
        "gamma or beta. It is replaced where BN alone loses at most half a point to it, and needed beside BN where it "
        "adds more than that.",
        criteria=_replacing_criteria("decay"),
        run=replaces_decay,
        note="The last layer has no BN behind it: there decay acts as ever.",
    ),
    Claim(
        id="B21",
        statement="Training with large batches generalises better with ghost batches.",
        sources=("hoffer2017train",),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting="Handwritten digits, 897 to learn from, with right labels and with a fifth of them wrong; ReLU, two "
        f"hidden layers of 32, He initialisation, SGD. Large batches are of {LARGE}, as a whole or in ghosts of "
        f"{LARGE_GHOST} (a thirty-second, as the paper's 128 of 4,096), for {LARGE_STEPS} steps; small ones of "
        f"{SMALL}, for as many epochs. {TUNED_LARGE}",
        criteria=tuple(
            criterion
            for name in LARGE_REGIMES
            for criterion in (
                Criterion(
                    f"{name}: against the whole batch",
                    "test accuracy with ghosts minus without, large batches",
                    support=HALF_A_POINT,
                ),
                Criterion(
                    f"{name}: against small batches",
                    "test accuracy of large batches with ghosts minus that of small batches",
                    support=-HALF_A_POINT,
                ),
            )
        ),
        run=ghosts,
        note="Each batch size has its own rate, so nothing is lost to a rate that was not scaled.",
    ),
    Claim(
        id="B23",
        statement="With batch normalisation, weight decay acts through the effective learning rate.",
        sources=("vanlaarhoven2017l2", "hoffer2018norm", "li2020exponential"),
        theme=THEME,
        chapter=CHAPTER,
        data="made",
        setting="Random data, ReLU, two hidden layers of 16 with BN of eps = 0 behind each, SGD, float64. Decay on the "
        "weights before BN is compared with no decay and a rate for these weights that grows by a fixed factor at each "
        "step.",
        criteria=(
            Criterion(
                "decay is a growing rate",
                "largest difference between the logits of the two, after any of 50 steps",
                support=1e-10,
                exact=True,
            ),
            Criterion(
                "without decay the norm grows",
                "largest relative error of: each step adds its squared length to the squared norm",
                support=1e-12,
                exact=True,
            ),
        ),
        run=effective_rate,
        note="True of weights before BN under SGD; the last layer's decay acts as ever.",
    ),
)
