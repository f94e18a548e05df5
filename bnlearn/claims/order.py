r"""Before or after the activation: where batch normalisation stands."""

from __future__ import annotations

from functools import lru_cache

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._overfitting import REGIMES, Best, Regime, at_best
from bnlearn.lab.data import shuffled
from bnlearn.lab.engine import Arm
from bnlearn.lab.networks import MLP
from bnlearn.lab.norms import BatchNorm

THEME = "Before or after the activation"
CHAPTER = "notebooks/57_before_or_after"
SIZES = (64, 32, 32, 32, 32, 10)
RATES = (0.1, 0.2, 0.5, 1.0, 2.0)
STEPS = 150
HALF_A_POINT = 0.005
ACTIVATIONS = {"ReLU": ("relu", "he"), "tanh": ("tanh", "lecun"), "sigmoid": ("sigmoid", "lecun")}
PLACES = ("before", "after")


def network(activation: str, place: str) -> MLP:
    """Four hidden layers, each with BN before or after its activation ("ReLU", "tanh" or "sigmoid")."""
    name, init = ACTIVATIONS[activation]
    return MLP(SIZES, BatchNorm(), name, place, init)


@lru_cache(maxsize=8)
def tuned(activation: str, place: str, scale: Scale) -> Best:
    """One of the arms, at its own best rate."""
    regime = Regime(REGIMES["all samples"].data, shuffled, 64, STEPS)
    rates = RATES[::2] if scale.quick else RATES
    return at_best(Arm(place, network(activation, place)), {"lr": rates}, regime, scale)


def order(scale: Scale) -> dict[str, Measurement]:
    """B18: accuracy with BN before the activation minus after it, and the other way round."""
    measured = {}
    for name in ACTIVATIONS:
        before, after = (tuned(name, place, scale) for place in PLACES)
        arms = {"before": before.test, "after": after.test}
        details = {"knobs": {"before": before.knobs, "after": after.knobs}}
        measured[f"{name}: before"] = Measurement(before.test - after.test, arms, details)
        measured[f"{name}: after"] = Measurement(after.test - before.test, arms, details)
    return measured


CLAIMS = (
    Claim(
        id="B18",
        statement="Batch normalisation belongs before the activation (or, as others say, after it).",
        sources=("P", "ioffe2015batch"),
        theme=THEME,
        chapter=CHAPTER,
        data="digits",
        setting="Handwritten digits (897) in batches of 64 for 150 steps; four hidden layers of 32; He initialisation "
        "for ReLU, weights of variance 1 / fan-in for tanh and sigmoid; SGD. Each arm has the rate of five, from 0.1 "
        "to 2, that is best on the validation part with the first five seeds.",
        criteria=tuple(
            Criterion(
                f"{name}: {place}",
                f"test accuracy with BN {place} the activation minus {PLACES[1 - i]} it",
                support=HALF_A_POINT,
            )
            for name in ACTIVATIONS
            for i, place in enumerate(PLACES)
        ),
        run=order,
        note="Of each pair at most one direction can be right; where neither is, the order makes no difference "
        "worth having.",
    ),
)
