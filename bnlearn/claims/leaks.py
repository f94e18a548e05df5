"""What gets into a batch's statistics that should not: padding, dropout, the answers of other samples, rare cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from bnlearn import datasets, functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, difference, tuned
from bnlearn.claims.batches import precise
from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    Data,
    Moment,
    Network,
    Outcome,
    Pass,
    Probe,
    Sweep,
    activate,
    draw_weight,
    probes,
    run,
)

THEME = "Leaks"
CHAPTER = "notebooks/61_limits"


def _dataset(name: str, parts: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]]) -> datasets.Dataset:
    train, validation, test = (datasets.Part(*parts[key]) for key in ("train", "validation", "test"))
    return datasets.Dataset(train, validation, test, 0.0, 1.0, name)


# C8: padding

LENGTH, FEATURES = 24, 8


def padded(*, flat: bool) -> datasets.Dataset:
    """Sequences padded with zeros, the mask as their last channel; the test part is padded more than the others."""
    x, mask, y = datasets.make_padded_sequences(900, length=LENGTH, features=FEATURES, seed=0, classes=6)
    rest = np.random.default_rng(1).integers(1, 5, len(x))
    left = np.where(np.arange(len(x)) < 600, LENGTH, rest)  # of the test part, one to four positions
    mask = mask & (np.arange(LENGTH) < left[:, None])
    x = np.concatenate([np.where(mask[:, None], x, 0.0), mask[:, None]], 1).astype(np.float32)
    pieces = {"train": slice(400), "validation": slice(400, 600), "test": slice(600, None)}
    return _dataset("padded", {name: (x[piece], y[piece]) for name, piece in pieces.items()})


@dataclass(frozen=True)
class PositionNet(Network):
    """A linear layer, batch norm and ReLU at each position of a sequence, the mean over its data, a linear layer.

    Attributes
    ----------
    masked : bool
        Whether batch norm leaves the padding out of its statistics.
    width, classes : int
    """

    masked: bool = True
    width: int = 32
    classes: int = 6

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Weights (out, in), gamma and beta, the last layer."""
        return {
            "0.weight": draw_weight((self.width, FEATURES), "he", generator),
            "0.gamma": torch.ones(self.width),
            "0.beta": torch.zeros(self.width),
            "head.weight": draw_weight((self.classes, self.width), "he", generator),
            "head.bias": torch.zeros(self.classes),
        }

    def buffers(self) -> dict[str, Tensor]:
        """The running mean and (biased) variance."""
        return {"mean": torch.zeros(self.width), "var": torch.ones(self.width)}

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, classes) for (N, features + 1, length), whose last channel is the mask."""
        x, mask = x[:, :-1], x[:, -1] > 0
        x = torch.einsum("oc,ncl->nol", p["0.weight"], x)
        gamma, beta = p["0.gamma"], p["0.beta"]
        if run.training:
            x, cache = functional.batch_norm(x, gamma, beta, mask=mask if self.masked else None)
            new = functional.update_running(
                run.buffers["mean"], run.buffers["var"], cache.mean, cache.var, 1, unbiased=False
            )
            run.buffers.update(zip(("mean", "var"), new, strict=True))
        else:
            x = functional.batch_norm(x, gamma, beta, mean=run.buffers["mean"], var=run.buffers["var"])[0]
        data = mask[:, None].float()
        x = (torch.relu(x) * data).sum(2) / data.sum(2)
        return nnf.linear(x, p["head.weight"], p["head.bias"])


def run_c8(scale: Scale) -> dict[str, Measurement]:
    """Masked statistics against statistics with the padding in them."""
    arms = (Arm("masked", PositionNet(masked=True)), Arm("padding in the statistics", PositionNet(masked=False)))
    rates = (0.03, 0.1, 0.3, 1.0)
    # As many positions of data in validation as in training, fewer in the test part.
    outcomes = run(
        Sweep(
            arms,
            {"lr": rates},
            tuple(range(scale.seeds)),
            scale.steps(200),
            32,
            (VALIDATION, TEST),
            Data(padded, False),
        )
    )
    names = ("masked", "padding in the statistics")
    return {
        "padded as in training": difference(outcomes, *names, "validation"),
        "padded more than in training": difference(outcomes, *names),
    }


# C9: dropout


def variance_ratio(moment: Moment) -> Tensor:
    """Variance that the batch norms after the first see in training, over that without dropout: mean over layers."""
    kept = replace(moment, knobs={**moment.knobs, "dropout": torch.zeros(())})
    spreads = [probes.activation_moments(each, ".linear")["std"][1:] for each in (moment, kept)]
    return (spreads[0] / spreads[1]).square().mean()


def accuracy_without_shift(moment: Moment) -> Tensor:
    """Test accuracy with statistics estimated again without dropout, on the training part."""
    kept = replace(moment, knobs={**moment.knobs, "dropout": torch.zeros(())})
    return probes.accuracy(precise(kept, 64, 18))


def run_c9(scale: Scale) -> dict[str, Measurement]:
    """Dropout of one half between the hidden layers, batch norm after each of them."""
    arm = Arm("dropout", MLP(norm=BatchNorm(), dropout=True), knobs=(("dropout", 0.5),))
    watched = (VALIDATION, TEST, Probe("ratio", variance_ratio), Probe("estimated again", accuracy_without_shift))
    found = run(Sweep((arm,), {"lr": (0.1, 0.3, 1.0)}, tuple(range(scale.seeds)), scale.steps(300), 64, watched))[
        "dropout"
    ]
    ratio, again, running = (tuned(found, name) for name in ("ratio", "estimated again", "test"))
    knobs = found.points[found.best("validation")]
    arms = {"statistics without dropout": again, "running statistics": running}
    return {
        "variance": Measurement(ratio, {"ratio": ratio}, knobs),
        "accuracy": Measurement(again - running, arms, knobs),
    }


# C15: other samples' answers


def pairs(*, flat: bool) -> datasets.Dataset:
    """Two digits side by side, (N, 128), with the class of the second."""
    digits = datasets.load_digits(flat=True)
    rng = np.random.default_rng(0)
    parts = {}
    for name in ("train", "validation", "test"):
        x, y = getattr(digits, name)
        mates = rng.permutation(len(x))
        parts[name] = (np.concatenate([x, x[mates]], 1), y[mates])
    return _dataset("pairs", parts)


@dataclass(frozen=True)
class PairNet(Network):
    """Each pair is a batch of two; the answer about the second digit is read from the output for the FIRST.

    Attributes
    ----------
    over_batch : bool
        Batch norm over the two, otherwise layer norm over each.
    width, depth : int
    """

    over_batch: bool
    width: int = 64
    depth: int = 2

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Weights (out, in), gamma and beta."""
        p: dict[str, Tensor] = {}
        for i in range(self.depth):
            p[f"{i}.weight"] = draw_weight((self.width, self.width if i else 64), "he", generator)
            p[f"{i}.gamma"], p[f"{i}.beta"] = torch.ones(self.width), torch.zeros(self.width)
        p["head.weight"] = draw_weight((10, self.width), "he", generator)
        return p

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, 10) for pairs (N, 128)."""
        rows = x.reshape(-1, 64)
        for i in range(self.depth):
            rows = nnf.linear(rows, p[f"{i}.weight"])
            gamma, beta = p[f"{i}.gamma"], p[f"{i}.beta"]
            if self.over_batch:
                rows = functional.ghost_batch_norm(rows, gamma, beta, ghost_size=2)[0]
            else:
                rows = functional.layer_norm(rows, gamma, beta)[0]
            rows = activate("relu", rows)
        return nnf.linear(rows[::2], p["head.weight"])


def run_c15(scale: Scale) -> dict[str, Measurement]:
    """How well the first digit's output tells the second digit."""
    arms = (Arm("batch norm", PairNet(True)), Arm("layer norm", PairNet(False)))
    outcomes = run(
        Sweep(
            arms, {"lr": (0.1, 0.3)}, tuple(range(scale.seeds)), scale.steps(300), 32, (VALIDATION, TEST), Data(pairs)
        )
    )
    return {"batches of two": difference(outcomes, "batch norm", "layer norm")}


# C17: rare cases


def rare(*, flat: bool) -> datasets.Dataset:
    """Rows of 20 features, one in fifty of them a rare case: five of its features are moved by 1, to either side."""
    rng = np.random.default_rng(0)
    n = 9000
    y = (np.arange(n) % 50 == 0).astype(np.int64)
    x = rng.standard_normal((n, 20)).astype(np.float32)
    x[:, :5] += y[:, None] * 1.0
    x[:, 5:10] *= 1 + y[:, None]
    order = rng.permutation(n)
    pieces = {"train": order[:4000], "validation": order[4000:6000], "test": order[6000:]}
    return _dataset("rare cases", {name: (x[rows], y[rows]) for name, rows in pieces.items()})


def ranking(moment: Moment, part: str = "test") -> Tensor:
    """Area under the ROC curve: how often a rare case is put above a common one."""
    x, y = getattr(moment.data, part)
    logits = torch.nan_to_num(moment.forward(x, training=False), 0.0, 0.0, 0.0)
    score = logits[:, 1] - logits[:, 0]
    above = torch.sign(score[y == 1][:, None] - score[y == 0])
    return (1 + above.mean()) / 2


@lru_cache(maxsize=4)
def _rare(scale: Scale, batch_size: int) -> dict[str, Outcome]:
    net = MLP(sizes=(20, 32, 32, 2))
    arms = (Arm("batch norm", replace(net, norm=BatchNorm())), Arm("no normaliser", net))
    watched = (Probe("validation", ranking, options=(("part", "validation"),)), Probe("test", ranking))
    rates = (0.03, 0.1, 0.3)
    return run(Sweep(arms, {"lr": rates}, tuple(range(scale.seeds)), scale.steps(400), batch_size, watched, Data(rare)))


def run_c17(scale: Scale) -> dict[str, Measurement]:
    """No normaliser against batch norm, where most batches hold no rare case and where all hold some."""
    return {f"batch of {size}": difference(_rare(scale, size), "no normaliser", "batch norm") for size in (16, 256)}


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C8",
        statement="Padding pollutes the statistics of a batch.",
        sources=("-",),
        theme=THEME,
        setting=(
            "Made sequences of 1 to 24 positions with 8 channels and 6 classes, padded with zeros; a linear layer, "
            "batch norm and ReLU at each position, the mean over the data, a linear layer. Both arms tuned over four "
            "rates, 200 steps of 32; the second criterion's test sequences have 1 to 4 positions."
        ),
        criteria=(
            Criterion(
                "padded as in training", "accuracy, masked minus polluted statistics", support=0.02, refute=0.005
            ),
            Criterion(
                "padded more than in training", "accuracy, masked minus polluted statistics", support=0.02, refute=0.005
            ),
        ),
        run=run_c8,
        chapter=CHAPTER,
        note="The running statistics are polluted alike in training and in evaluation, so gamma and beta can answer.",
        data="made sequences",
    ),
    Claim(
        id="C9",
        statement="Dropout before batch normalisation shifts the variance at inference, and costs accuracy.",
        sources=("li2018disharmony",),
        theme=THEME,
        setting=(
            "Handwritten digits, three hidden layers of 64, batch norm, ReLU and dropout of one half after each; rate "
            "tuned over three values, 300 steps of 64."
        ),
        criteria=(
            Criterion("variance", "variance in training over variance without dropout", 1.2, 1.05, scale="log"),
            Criterion("accuracy", "test accuracy gained by statistics estimated without dropout", 0.01, 0.002),
        ),
        run=run_c9,
        chapter=CHAPTER,
    ),
    Claim(
        id="C15",
        statement="Batch normalisation leaks between samples: a network can tell its batch mates.",
        sources=("wu2021rethinking",),
        theme=THEME,
        setting=(
            "Pairs of handwritten digits, each pair a batch of two for the normaliser; two hidden layers of 64, "
            "trained to tell the class of the second digit from the output for the first. Both arms tuned over two "
            "rates, 300 steps of 32 pairs."
        ),
        criteria=(
            Criterion("batches of two", "accuracy about the other sample, batch norm minus layer norm", 0.1, 0.02),
        ),
        run=run_c15,
        chapter=CHAPTER,
        note="The smallest batch leaks most. Layer norm sees nothing of the other sample: it can only guess.",
    ),
    Claim(
        id="C17",
        statement="On imbalanced data, batches without a rare case skew the statistics and hurt batch normalisation.",
        sources=("P",),
        theme=THEME,
        setting=(
            "Made table of 20 features, one row in fifty a rare case; two hidden layers of 32 with ReLU and He "
            "initialisation, 400 steps. Both arms tuned over three rates by the area under the ROC curve on the "
            "validation part."
        ),
        criteria=(
            Criterion("batch of 16", "area under the ROC curve, no normaliser minus batch norm", 0.02, 0.005),
            Criterion("batch of 256", "area under the ROC curve, no normaliser minus batch norm", 0.02, 0.005),
        ),
        run=run_c17,
        chapter=CHAPTER,
        data="made table",
    ),
)
