"""Covariate shift: whether batch normalisation lessens it, and whether that is why it works (B12, B13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.lab import MLP, Arm, BatchNorm, Data, Moment, Pass, Probe, Sweep, Task, probes, run, train

Floats = NDArray[np.float64]

NETWORKS: Mapping[str, MLP] = {
    "8 ReLU layers": MLP(sizes=(64, *[32] * 8, 10)),
    "3 sigmoid layers": MLP(sizes=(64, 64, 64, 64, 10), activation="sigmoid", init=0.5),
    "3 sigmoid layers, small start": MLP(sizes=(64, 64, 64, 64, 10), activation="sigmoid", init="lecun"),
}
LEAST = {"8 ReLU layers": "noise", "3 sigmoid layers": "strong noise"}
"""For the networks that noise is tried in: the noise that moves the inputs more than they move without BN."""
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
STEPS = 80
BATCH_SIZE = 64
LOOKS = (2, 6, 15, 35, 70)
"""Before which steps the shift is measured: densely where training is fast."""
DOSES = {"noise": 1.0, "strong noise": 2.0}
SETTING = (
    "scikit-learn's digits; 8 hidden ReLU layers of 32 (He), or 3 sigmoid layers of 64 (weights of variance "
    f"16 / fan-in); plain SGD, batch {BATCH_SIZE}, {STEPS} steps. Each arm at its own rate of "
    f"{', '.join(f'{rate:g}' for rate in RATES)}: the best mean accuracy on the validation part through training, on "
    "other seeds."
)


@dataclass(frozen=True)
class NoisyBatchNorm(BatchNorm):
    """Batch normalisation, after which each unit's scale and mean are made to jump at every training step.

    The output times :math:`1.25^{ad}` plus :math:`bd/2`, with ``a`` and ``b`` uniform in [-1, 1], drawn for each unit
    and step, the same for all samples of a batch. The knob ``noise`` is :math:`d`; in evaluation there is none. (After
    Santurkar et al., 2018, section 2.1; their scale and mean are moreover jittered for each sample.)
    """

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``, shape (N, C), and in training the noise on top."""
        y = super().__call__(x, p, prefix, run)
        if not run.training:
            return y
        scale, mean = run.knobs["noise"] * (2 * run.noise[f"{prefix}noise"] - 1)
        noised: Tensor = y * 1.25**scale + mean / 2
        return noised


@dataclass(frozen=True)
class NoisyMLP(MLP):
    """Linear layers with :class:`NoisyBatchNorm`."""

    norm: BatchNorm = NoisyBatchNorm()

    def noise(self, samples: int) -> dict[str, tuple[int, ...]]:
        """Two numbers for each hidden unit."""
        return {f"{i}.norm.noise": (2, self.sizes[i + 1]) for i in range(self.hidden)}


def input_shift(moment: Moment) -> Tensor:
    """How far one training step moves the distribution of what each layer after the first receives: (layers,).

    For each unit of the layer before, the distance (Wasserstein's, of order 2) between the distributions of its output
    over the batch before and after the step; their root mean square over the units, over that of the units' standard
    deviations before the step. The batch is the same, so all the change is the step's, and the noise's: where there
    is noise, the second pass has other draws (its neighbour's).
    """
    rate = moment.knobs["lr"] * moment.rate
    moved = dict(moment.parameters)
    for name, gradient in moment.gradients().items():
        moved[name] = moved[name] - rate * gradient
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    moment.forward(moment.batch[0], training=True, trace=before)
    drawn = {name: noise.roll(1, -1) for name, noise in moment.noise.items()}
    moment.network(moved, moment.batch[0], Pass(True, moment.knobs, drawn, dict(moment.buffers), after))
    shifts = []
    for name in before:
        if name.endswith(".out"):
            distance = (after[name].sort(0).values - before[name].sort(0).values).square().mean()
            variance = before[name].var(0, correction=0).mean()
            shifts.append((distance / variance.clamp_min(1e-12)).sqrt())
    return torch.stack(shifts)


def doses(name: str) -> dict[str, float]:
    """The arms with BN, and how much noise each has after it."""
    return {"BN": 0.0, **(DOSES if name in LEAST else {})}


def normalised(name: str) -> NoisyMLP:
    """The network called ``name`` with BN; without noise if the knob ``noise`` is zero."""
    plain = NETWORKS[name]
    return NoisyMLP(sizes=plain.sizes, activation=plain.activation, init=plain.init)


def through_training(part: str, steps: int) -> Probe:
    """Accuracy on ``part`` at every tenth of the training."""
    return Probe(part, probes.accuracy, at=tuple(steps * k // 10 for k in range(1, 11)), options=(("part", part),))


@cache
def tuned_rates(name: str, scale: Scale) -> Mapping[str, float]:
    """For each arm the rate with the best accuracy on the validation part, averaged over training; seeds of its own."""
    steps = scale.steps(STEPS)
    seeds = tuple(range(1000, 1000 + min(scale.seeds, 3 if scale.quick else 5)))
    looks = (through_training("validation", steps),)
    plain = run(Sweep((Arm("none", NETWORKS[name]),), {"lr": RATES}, seeds, steps, probes=looks))["none"]
    grid = {"noise": tuple(doses(name).values()), "lr": RATES}
    other = run(Sweep((Arm("BN", normalised(name)),), grid, seeds, steps, probes=looks))["BN"]
    accuracy = np.concatenate([plain["validation"], other["validation"]]).mean((1, 2)).reshape(-1, len(RATES))
    return {arm: RATES[int(place)] for arm, place in zip(("none", *doses(name)), accuracy.argmax(1), strict=True)}


@cache
def measured(name: str, scale: Scale) -> Mapping[str, Mapping[str, Floats]]:
    """What each arm does at its rate: accuracy through training, and the two measures of shift, (seeds, times, ...)."""
    steps, rates = scale.steps(STEPS), tuned_rates(name, scale)
    looks = (
        through_training("test", steps),
        Probe("distribution", input_shift, at=LOOKS),
        Probe("gradient", probes.covariate_shift, at=LOOKS),
    )
    found: dict[str, dict[str, Floats]] = {}
    for arm, knobs in (
        (Arm("none", NETWORKS[name]), {"none": ()}),
        (Arm("BN", normalised(name)), {label: (("noise", dose),) for label, dose in doses(name).items()}),
    ):
        replicas = [(seed, (*knobs[at], ("lr", rates[at]))) for at in knobs for seed in range(scale.seeds)]
        values = train(Task(Data(), arm, tuple(replicas), steps, BATCH_SIZE, looks))
        for place, label in enumerate(knobs):
            rows = slice(place * scale.seeds, (place + 1) * scale.seeds)
            found[label] = {key: value[rows].astype(np.float64) for key, value in values.items()}
    return found


def typical(name: str, arm: str, scale: Scale, measure: str) -> tuple[Floats, Floats]:
    """A measure of shift, mean over the layers that have earlier ones: at a typical step (seeds,); at all looks.

    A typical step is the median over the looks; what overflowed, or is nothing, counts as a million, or a millionth.
    """
    values = measured(name, scale)[arm][measure]
    if measure != "distribution":
        values = values[..., 1:]  # what the first layer receives are the data
    over_layers: Floats = np.clip(np.nan_to_num(values, nan=1e6, posinf=1e6).mean(-1), 1e-6, 1e6)
    return np.median(over_layers, axis=1), over_layers


def accuracies(name: str, arm: str, scale: Scale) -> Floats:
    """Test accuracy at every tenth of the training: (seeds, times)."""
    return measured(name, scale)[arm]["test"]


def _lessened(name: str, scale: Scale, measure: str, over: str, under: str) -> Measurement:
    (above, all_above), (below, all_below) = (typical(name, arm, scale, measure) for arm in (over, under))
    details = {"rate": {arm: tuned_rates(name, scale)[arm] for arm in (over, under)}, "steps": list(LOOKS)}
    return Measurement(above / below, {over: all_above, under: all_below}, details)


def _accuracy(name: str, scale: Scale, arms: tuple[str, ...], effect: Floats) -> Measurement:
    steps = scale.steps(STEPS)
    details = {
        "rate": {arm: tuned_rates(name, scale)[arm] for arm in arms},
        "steps": list(through_training("test", steps).steps(steps)),
    }
    return Measurement(effect, {arm: accuracies(name, arm, scale) for arm in arms}, details)


def run_b12(scale: Scale) -> dict[str, Measurement]:
    """Shift without BN over shift with it, by both measures; and what is lost when the shift comes back as noise."""
    found = {}
    for name in NETWORKS:
        found[f"{name}: distribution"] = _lessened(name, scale, "distribution", "none", "BN")
        found[f"{name}: gradient"] = _lessened(name, scale, "gradient.distance", "none", "BN")
        if name not in LEAST:
            continue
        arms = ("none", "BN", LEAST[name])
        none, bn, back = (accuracies(name, arm, scale).mean(1) for arm in arms)
        lead = max(float((bn - none).mean()), 0.01)
        found[f"{name}: taken away"] = _accuracy(name, scale, arms, (bn - back) / lead)
    return found


def run_b13(scale: Scale) -> dict[str, Measurement]:
    """Shift with noise over shift without BN; accuracy with noise less that of BN."""
    found = {}
    for name in LEAST:
        found[f"{name}: shift"] = _lessened(name, scale, "distribution", LEAST[name], "none")
        for label in DOSES:
            noisy_end, bn_end = (accuracies(name, arm, scale)[:, -1] for arm in (label, "BN"))
            found[f"{name}, {label}"] = _accuracy(name, scale, ("none", "BN", label), noisy_end - bn_end)
    return found


_B12 = {
    "distribution": "how far a step moves the distribution of a layer's inputs, without BN over with it",
    "gradient": "how far earlier layers' steps move a layer's gradient (definition 2.1), without BN over with it",
    "taken away": "share of BN's lead in accuracy that noise takes when it moves the inputs more than without BN",
}

CLAIMS = (
    Claim(
        id="B12",
        statement="Batch normalisation works because it reduces internal covariate shift.",
        sources=("P", "ioffe2015batch", "santurkar2018how"),
        theme="Covariate shift",
        setting=f"{SETTING} Small start: weights of variance 1 / fan-in, where the plain network hardly trains.",
        criteria=tuple(
            Criterion(f"{name}: {what}", effect, support=0.5, refute=0.25, statistic="mean")
            if what == "taken away"
            else Criterion(f"{name}: {what}", effect, support=1.25, refute=1.0, statistic="median", scale="log")
            for name in NETWORKS
            for what, effect in _B12.items()
            if what != "taken away" or name in LEAST
        ),
        run=run_b12,
        chapter="notebooks/54_covariate_shift",
        note="Each arm is at its own rate, and the larger rate moves more. Other measures of shift may say otherwise.",
        data="digits",
    ),
    Claim(
        id="B13",
        statement=(
            "With noise after batch normalisation, so that the layers' inputs are less stable than without it, the "
            "network still trains as well."
        ),
        sources=("santurkar2018how",),
        theme="Covariate shift",
        setting=f"{SETTING} Noise: each unit's scale and mean are drawn at each step, within a factor of 1.25 and "
        "half a standard deviation; strong noise, its double. None in evaluation.",
        criteria=tuple(
            criterion
            for name in LEAST
            for criterion in (
                Criterion(
                    f"{name}: shift",
                    f"how far a step moves the distribution of a layer's inputs, with {LEAST[name]} over without BN",
                    support=1.0,
                    statistic="median",
                    scale="log",
                ),
                *(
                    Criterion(
                        f"{name}, {label}",
                        "test accuracy after training, with noise after BN minus with BN",
                        support=-0.02,
                        refute=-0.05,
                    )
                    for label in DOSES
                ),
            )
        ),
        run=run_b13,
        chapter="notebooks/54_covariate_shift",
        note="Noise also regularises, and its strength means something else at each depth.",
        data="digits",
    ),
)
