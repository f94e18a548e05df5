"""What is said to suffer: attributions, regions of a picture, the defence against attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as nnf

from bnlearn import datasets, functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, difference, tuned
from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    ConvNet,
    Data,
    GroupNorm,
    Moment,
    Norm,
    Probe,
    Sweep,
    draw_weight,
    run,
)

THEME = "Robustness"
CHAPTER = "notebooks/61_limits"
NET = MLP(sizes=(64, 64, 64, 64, 10))
RATES = (0.1, 0.3, 1.0)


def _seeds(scale: Scale) -> tuple[int, ...]:
    return tuple(range(scale.seeds))


def _right(moment: Moment, x: Tensor, y: Tensor) -> Tensor:
    return (moment.forward(x, training=False).argmax(1) == y).float().mean()


# C13: attributions


def _network_float64(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = {
        "w": draw_weight((16, 12), "he", generator),
        "gamma": 0.5 + torch.rand(16, generator=generator),
        "beta": torch.randn(16, generator=generator),
        "mean": torch.randn(16, generator=generator),
        "var": 0.5 + torch.rand(16, generator=generator),
        "v": draw_weight((1, 16), "he", generator),
    }
    return {name: value.double() for name, value in p.items()}, torch.randn(33, 12, generator=generator).double()


def _score(p: Mapping[str, Tensor], x: Tensor, statistics: str) -> Tensor:
    """The network's answer for the first sample of ``x``."""
    if statistics == "folded":
        scale = p["gamma"] / torch.sqrt(p["var"] + 1e-5)
        h = nnf.linear(x, p["w"] * scale[:, None], p["beta"] - p["mean"] * scale)
    else:
        h = nnf.linear(x, p["w"])
        mean, var = (None, None) if statistics == "batch" else (p["mean"], p["var"])
        h = functional.batch_norm(h, p["gamma"], p["beta"], mean=mean, var=var)[0]
    return nnf.linear(torch.tanh(h), p["v"])[0, 0]


def run_c13(scale: Scale) -> dict[str, Measurement]:
    """How much the gradient with respect to a sample changes by folding, and by the sample's company."""

    def change(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / b.norm())

    folding, company = [], []
    for seed in range(scale.seeds):
        p, x = _network_float64(seed)
        of = {kind: grad(lambda x, kind=kind, p=p: _score(p, x, kind))(x)[0] for kind in ("folded", "running")}
        folding.append(change(of["folded"], of["running"]))
        # The same sample, with one half of the others and with the other half.
        first, second = (
            grad(lambda x, p=p: _score(p, x, "batch"))(x[[0, *rest]])[0] for rest in (range(1, 17), range(17, 33))
        )
        company.append(change(first, second))
    return {
        "evaluation: folded against not": Measurement(np.array(folding), {"change": np.array(folding)}),
        "training: other samples in the batch": Measurement(np.array(company), {"change": np.array(company)}),
    }


# C16: attacks


def attacked(moment: Moment, size: float = 0.3) -> dict[str, Tensor]:
    """Test accuracy under the fast gradient sign method, and under random signs of the same size."""
    x, y = moment.data.test

    def of(x: Tensor) -> Tensor:
        return nnf.cross_entropy(moment.forward(x, training=False), y)

    signs = torch.sign(torch.from_numpy(np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32)))
    return {
        "attack": _right(moment, x + size * torch.sign(grad(of)(x)), y),
        "noise": _right(moment, x + size * signs, y),
    }


def run_c16(scale: Scale) -> dict[str, Measurement]:
    """What an attack leaves of the accuracy, without batch norm and with it."""
    arms = (Arm("batch norm", replace(NET, norm=BatchNorm())), Arm("no normaliser", NET))
    watched = (VALIDATION, Probe("under", attacked))
    outcomes = run(Sweep(arms, {"lr": (0.03, 0.1, 0.3)}, _seeds(scale), scale.steps(300), 64, watched))
    found = {}
    for name, kind in (("fast gradient sign, 0.3", "attack"), ("random signs, 0.3", "noise")):
        found[name] = difference(outcomes, "no normaliser", "batch norm", f"under.{kind}")
    return found


# C14: regions


SIDE = 12


def scenes(*, flat: bool) -> datasets.Dataset:
    """A bright digit, 0 to 3, anywhere on a noisy dark ground of 12 x 12; the answer is its class."""
    digits = datasets.load_digits()
    rng = np.random.default_rng(0)

    def part(source: datasets.Part) -> datasets.Part:
        some = source.y < 4
        x = 0.1 * rng.standard_normal((some.sum(), 1, SIDE, SIDE)).astype(np.float32)
        for picture, digit, (top, left) in zip(x, source.x[some], rng.integers(0, SIDE - 7, (len(x), 2)), strict=True):
            picture[0, top : top + 8, left : left + 8] = digit[0] - digit.min()
        return datasets.Part(x, source.y[some])

    return replace(
        digits, train=part(digits.train), validation=part(digits.validation), test=part(digits.test), name="scenes"
    )


def region_gap(moment: Moment) -> Tensor:
    """Mean of a channel where the digit is minus where it is not, in its standard deviations: the median channel."""
    x = moment.batch[0]
    trace: dict[str, Tensor] = {}
    moment.forward(x, training=True, trace=trace)
    values = trace["0.linear"]
    inside = (x > 0.5).float()
    means = [(values * region).sum((0, 2, 3)) / region.sum() for region in (inside, 1 - inside)]
    return ((means[0] - means[1]).abs() / values.std((0, 2, 3))).median()


def run_c14(scale: Scale) -> dict[str, Measurement]:
    """How far object and ground are apart in one batch, and whether batch norm loses to group norm by it."""
    norms: dict[str, Norm] = {"group norm": GroupNorm(groups=4), "batch norm": BatchNorm()}
    net = ConvNet(channels=(1, 8, 16, 16), strides=(1, 2, 2), classes=4)
    arms = tuple(Arm(name, replace(net, norm=norm), knobs=(("momentum", 0.9),)) for name, norm in norms.items())
    watched = (VALIDATION, TEST, Probe("regions", region_gap))
    rates = (0.01, 0.03, 0.1)
    sweep = Sweep(arms, {"lr": rates}, _seeds(scale), scale.steps(400), 4, watched, Data(scenes, flat=False))
    outcomes = run(sweep)
    gap = tuned(outcomes["batch norm"], "regions")
    return {
        "object against ground": Measurement(gap, {"gap": gap}),
        "accuracy, batch of 4": difference(outcomes, "group norm", "batch norm"),
    }


TUNED = "Each arm takes the rate of the grid that is best on the validation part, and is judged on the test part."
DIGITS = "Handwritten digits, three hidden layers of 64 with ReLU and He initialisation, plain SGD, 300 steps of 64."
CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C13",
        statement="Batch normalisation makes models harder to interpret.",
        sources=("P",),
        theme=THEME,
        setting=(
            "Random networks of one hidden layer in float64; the attribution is the gradient of the answer with "
            "respect to the sample, in its original units. Nothing is trained."
        ),
        criteria=(
            Criterion("evaluation: folded against not", "relative change of the attribution", 0.05, 1e-6),
            Criterion("training: other samples in the batch", "relative change of the attribution", 0.05, 1e-6),
        ),
        run=run_c13,
        chapter="notebooks/21_the_transform",
        note="In evaluation batch norm is part of the layer before it: an attribution cannot tell.",
        data="random numbers",
    ),
    Claim(
        id="C14",
        statement=(
            "In detection and segmentation the statistics of regions differ within a batch, and batch norm suffers."
        ),
        sources=("P",),
        theme=THEME,
        setting=(
            "Digits of 8 x 8, four classes, anywhere on a dark ground of 12 x 12; three convolutions of 8, 16 "
            f"and 16 channels, SGD with momentum 0.9, 400 steps of 4 pictures, as small as detectors' batches. {TUNED}"
        ),
        criteria=(
            Criterion("object against ground", "distance of their means in standard deviations", 0.5, 0.2),
            Criterion("accuracy, batch of 4", "test accuracy, group norm minus batch norm", 0.02, 0.005),
        ),
        run=run_c14,
        chapter="notebooks/61_limits",
        note="Whole pictures are classified here; a detector crops regions, which this does not.",
    ),
    Claim(
        id="C16",
        statement="Batch normalisation makes networks more vulnerable to adversarial examples.",
        sources=("galloway2019batch",),
        theme=THEME,
        setting=f"{DIGITS} {TUNED} Pixels are standardised; an attack moves each by 0.3 standard deviations.",
        criteria=(
            Criterion("fast gradient sign, 0.3", "accuracy under attack, without minus with batch norm", 0.02, 0.005),
            Criterion("random signs, 0.3", "accuracy under noise, without minus with batch norm", 0.02, 0.005),
        ),
        run=run_c16,
        chapter="notebooks/61_limits",
    ),
)
