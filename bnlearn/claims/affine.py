"""What gamma and beta can do alone: a network whose weights stay random, and the controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._two_stages import tuned
from bnlearn.lab.engine import Arm
from bnlearn.lab.networks import MLP
from bnlearn.lab.norms import BatchNorm, Pass

__all__ = ["CLAIMS", "SparseMLP", "arms", "counts"]

STEPS, QUICK_STEPS = 150, 50
BATCH = 32
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
CHANCE = 0.1

SIZES = {
    "2 layers of 100": (64, 100, 100, 10),
    "2 layers of 500": (64, 500, 500, 10),
    "8 layers of 100": (64, *[100] * 8, 10),
}


@dataclass(frozen=True)
class SparseMLP(MLP):
    """An MLP in which some weights of each hidden neuron can be learnt apart from the others.

    Its parameters ``"i.some"``, (out, ``some``), start at zero and are added to the weights at ``"i.places"``, which
    are drawn at random and of integers: learn ``"*.some"`` alone.

    Attributes
    ----------
    some : int
        How many of each neuron's incoming weights.
    """

    some: int = 2

    def parameters(self, generator: Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Those of the MLP, drawn first, so that it starts as an MLP of the same seed does; and the new ones."""
        p = super().parameters(generator, knobs)
        for i in range(self.hidden):
            before, after = self.sizes[i : i + 2]
            rows = [torch.randperm(before, generator=generator)[: self.some] for _ in range(after)]
            p |= {f"{i}.places": torch.stack(rows), f"{i}.some": torch.zeros(after, self.some)}
        return p

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, classes)."""
        weights = {
            f"{i}.weight": torch.scatter_add(p[f"{i}.weight"], 1, p[f"{i}.places"], p[f"{i}.some"])
            for i in range(self.hidden)
        }
        return super().__call__({**p, **weights}, x, run)


def arms(sizes: tuple[int, ...]) -> dict[str, Arm]:
    """One random network with batch normalisation, and what of it is learnt, by Adam."""
    plain = MLP(sizes, BatchNorm(), bias=False)
    sparse = SparseMLP(sizes, BatchNorm(), bias=False)

    def arm(name: str, network: MLP, *learnt: str) -> Arm:
        return Arm(name, network, "adam", trains=learnt, decays=())

    built = (
        arm("gamma and beta", plain, "*.gamma", "*.beta"),
        arm("as many weights", sparse, "*.some"),
        arm("last layer", plain, f"{plain.hidden}.*"),
        arm("everything", plain, "*"),
    )
    return {each.name: each for each in built}


def counts(sizes: tuple[int, ...]) -> dict[str, int]:
    """How many parameters each of these arms learns."""
    hidden = sizes[1:-1]
    weights = sum(before * after for before, after in pairwise(sizes))
    last = (hidden[-1] + 1) * sizes[-1]
    few = 2 * sum(hidden)
    return {
        "gamma and beta": few,
        "as many weights": few,
        "last layer": last,
        "everything": weights + sizes[-1] + few,
    }


def alone(scale: Scale) -> dict[str, Measurement]:
    """Run B19."""
    found = {}
    steps = QUICK_STEPS if scale.quick else STEPS
    for name, sizes in SIZES.items():
        accuracy, rates = {}, {}
        for arm, built in arms(sizes).items():
            accuracy[arm], point = tuned(built, {"lr": RATES}, scale, steps=steps, batch_size=BATCH, tuning=2)
            rates[arm] = point["lr"]
        ours = accuracy["gamma and beta"]
        details = {"rates": rates, "learnt": counts(sizes)}
        gained = (ours - CHANCE) / (accuracy["everything"] - CHANCE).clip(0.1)
        found[f"{name}: it learns"] = Measurement(gained, accuracy, details)
        for control in ("as many weights", "last layer"):
            both = {arm: accuracy[arm] for arm in ("gamma and beta", control)}
            found[f"{name}: against {_THE[control]}"] = Measurement(ours - accuracy[control], both, details)
    return found


_THE = {"as many weights": "as many weights", "last layer": "the last layer"}

CLAIMS = (
    Claim(
        id="B19",
        statement="Training gamma and beta alone makes a random network learn, better than training other parts of it.",
        sources=("frankle2021training",),
        theme="What gamma and beta do",
        setting=(
            "Digits; ReLU; He's initialisation; one random network with BN for all arms; 150 steps of 32 by Adam (50 "
            "in a quick run), each arm at its best rate of seven (0.001 to 1) by the validation accuracy of two seeds. "
            "As many weights: two of each hidden neuron's incoming weights, drawn at random. The last layer: a linear "
            "classifier on random features."
        ),
        criteria=tuple(
            criterion
            for name in SIZES
            for criterion in (
                Criterion(
                    f"{name}: it learns",
                    "share of what training everything gains over chance",
                    support=0.8,
                    refute=0.5,
                ),
                Criterion(
                    f"{name}: against as many weights",
                    "test accuracy, gamma and beta less two random weights per neuron",
                    support=0.02,
                    refute=0.0,
                ),
                Criterion(
                    f"{name}: against the last layer",
                    "test accuracy, gamma and beta less the last layer alone",
                    support=0.02,
                    refute=0.0,
                ),
            )
        ),
        run=alone,
        chapter="notebooks/58_what_gamma_and_beta_do",
        note=(
            "In the two shallow networks the last layer has more parameters to learn than gamma and beta, in the deep "
            "one fewer; the record counts them."
        ),
        data="digits",
    ),
)
