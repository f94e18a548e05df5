r"""Before or after the activation: where batch normalisation stands."""

from __future__ import annotations

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._overfitting import REGIMES
from bnlearn.lab.engine import Arm, Probe
from bnlearn.lab.networks import MLP
from bnlearn.lab.norms import BatchNorm
from bnlearn.lab.probes import accuracy
from bnlearn.lab.sweep import Outcome, Sweep, run

THEME = "Before or after the activation"
CHAPTER = "notebooks/57_before_or_after"
SIZES = (64, 32, 32, 32, 32, 10)
RATES = (0.1, 0.2, 0.5, 1.0, 2.0)
STEPS = 150
TIMES = (10, 20, 40, 80, 150)
HALF_A_POINT = 0.005
ACTIVATIONS = {"ReLU": ("relu", "he"), "tanh": ("tanh", "lecun"), "sigmoid": ("sigmoid", "lecun")}
PLACES = ("before", "after")


def network(activation: str, place: str) -> MLP:
    """Four hidden layers, each with BN before or after its activation ("ReLU", "tanh" or "sigmoid")."""
    name, init = ACTIVATIONS[activation]
    return MLP(SIZES, BatchNorm(), name, place, init)


def sweep(activation: str, scale: Scale) -> dict[str, Outcome]:
    """Both places at every rate, with test accuracy at some steps, and validation accuracy at the end."""
    steps = scale.steps(STEPS)
    looks = (
        Probe("test", accuracy, (*(time for time in TIMES if time < steps), steps)),
        Probe("validation", accuracy, options=(("part", "validation"),)),
    )
    arms = tuple(Arm(place, network(activation, place)) for place in PLACES)
    rates, seeds = RATES[::2] if scale.quick else RATES, tuple(range(scale.seeds))
    return run(Sweep(arms, {"lr": rates}, seeds, steps, 64, looks, data=REGIMES["all samples"].data, at_once=100))


def order(scale: Scale) -> dict[str, Measurement]:
    """B18: accuracy with BN before the activation minus after it, and the other way round."""
    measured = {}
    for name in ACTIVATIONS:
        found = sweep(name, scale)
        best = {place: outcome.best() for place, outcome in found.items()}
        arms = {place: outcome["test"][best[place]] for place, outcome in found.items()}
        details = {
            "steps": list(TIMES),
            "rate": {place: outcome.points[best[place]]["lr"] for place, outcome in found.items()},
            "rates": [point["lr"] for point in found["before"].points],
            "accuracy at each rate": {
                place: outcome["test"][:, :, -1].mean(1).round(4).tolist() for place, outcome in found.items()
            },
        }
        before, after = (arms[place][:, -1].astype(float) for place in PLACES)
        measured[f"{name}: before"] = Measurement(before - after, arms, details)
        measured[f"{name}: after"] = Measurement(after - before, arms, details)
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
        "to 2, that is best on the validation part.",
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
