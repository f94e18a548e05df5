"""The landscape: how much loss and gradient change along a step, with batch normalisation and without (B14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims.shift import BATCH_SIZE, LOOKS, NETWORKS, STEPS, normalised, tuned_rates
from bnlearn.claims.shift import SETTING as _SETTING
from bnlearn.lab import Arm, Data, Moment, Probe, Task, train

Floats = NDArray[np.float64]

STUDIED = ("8 ReLU layers", "3 sigmoid layers")
MULTIPLES = (0.5, 1.0, 2.0, 4.0)
"""Of the arm's own step, along which loss and gradient are looked at."""
SHARES = (0.005, 0.01, 0.02, 0.04)
"""Of the length of all weights: the same relative distance in both arms."""

Lengths = Callable[[Moment, Tensor], list[Tensor]]


def own_step(moment: Moment, norm: Tensor) -> list[Tensor]:
    """What the gradient is multiplied by for :data:`MULTIPLES` of the step that comes next."""
    return [moment.knobs["lr"] * moment.rate * multiple for multiple in MULTIPLES]


def same_distance(moment: Moment, norm: Tensor) -> list[Tensor]:
    """What the gradient is multiplied by to go :data:`SHARES` of the length of the weights; ``norm`` is its own."""
    weights = _length({name: value for name, value in moment.parameters.items() if name.endswith(".weight")})
    return [share * weights / norm for share in SHARES]


def _length(values: Mapping[str, Tensor]) -> Tensor:
    return torch.sqrt(torch.stack([value.square().sum() for value in values.values()]).sum())


def along_gradient(moment: Moment, lengths: Lengths) -> dict[str, Tensor]:
    """Loss and gradient on the batch of the next step, on the way against the gradient, as far as ``lengths``.

    After Santurkar et al. (2018, section 3.1), who take fixed distances and do not divide the change of the gradient.

    Returns
    -------
    dict
        ``"loss"``: the largest loss on the way less the smallest, the start included, in nats. ``"gradient"``: the
        largest Euclidean distance of the gradient from that at the start, over the length of the latter.
        ``"losses"``: at the start and at each length.
    """
    start = moment.gradients()
    norm = _length(start).clamp_min(1e-12)
    losses, changes = [moment.loss()], []
    for length in lengths(moment, norm):
        moved = moment.parameters | {name: moment.parameters[name] - length * g for name, g in start.items()}
        there = moment.gradients(moved)
        changes.append(_length({name: there[name] - g for name, g in start.items()}) / norm)
        losses.append(moment.loss(moved))
    seen = torch.stack(losses)
    return {"loss": seen.max() - seen.min(), "gradient": torch.stack(changes).max(), "losses": seen}


STEPPED: Mapping[str, Lengths] = {"own step": own_step, "same distance": same_distance}


@cache
def measured(name: str, arm: str, scale: Scale) -> Mapping[str, Floats]:
    """How loss and gradient change along the steps of an arm at its rate: (seeds, looks), the first at the start.

    What overflowed counts as a million, what is nothing as a millionth.
    """
    looks = tuple(
        Probe(how, partial(along_gradient, lengths=lengths), at=(0, *LOOKS)) for how, lengths in STEPPED.items()
    )
    if arm == "none":
        what, knobs = Arm(arm, NETWORKS[name]), {}
    else:
        what, knobs = Arm(arm, normalised(name)), {"noise": 0.0}
    knobs["lr"] = tuned_rates(name, scale)[arm]
    replicas = tuple((seed, tuple(knobs.items())) for seed in range(scale.seeds))
    values = train(Task(Data(), what, replicas, scale.steps(STEPS), BATCH_SIZE, looks))
    return {
        key: np.clip(np.nan_to_num(value.astype(np.float64), nan=1e6, posinf=1e6), 1e-6, 1e6)
        for key, value in values.items()
        if key.endswith((".loss", ".gradient"))
    }


def _smoother(name: str, scale: Scale, measure: str, when: slice) -> Measurement:
    arms = {arm: measured(name, arm, scale)[measure] for arm in ("none", "BN")}
    without, with_bn = (np.median(values[:, when], axis=1) for values in arms.values())
    rates = tuned_rates(name, scale)
    return Measurement(without / with_bn, arms, {"rate": {arm: rates[arm] for arm in arms}, "steps": [0, *LOOKS]})


def run_b14(scale: Scale) -> dict[str, Measurement]:
    """Change without BN over change with it: of the loss and of the gradient, at a typical look after the start."""
    found = {
        f"{name}, {how}: {what}": _smoother(name, scale, f"{how}.{what}", slice(1, None))
        for name in STUDIED
        for how in STEPPED
        for what in ("loss", "gradient")
    }
    found[_START] = _smoother(STUDIED[0], scale, "same distance.loss", slice(0, 1))
    return found


_START = f"{STUDIED[0]}, same distance, before training: loss"
_EFFECTS = {
    "loss": "without BN over with it: range of the loss along the step",
    "gradient": "without BN over with it: largest change of the gradient along the step, over the gradient's length",
}

CLAIMS = (
    Claim(
        id="B14",
        statement="Batch normalisation makes the loss landscape smoother: loss and gradient change less along a step.",
        sources=("P", "santurkar2018how"),
        theme="The landscape",
        setting=f"{_SETTING} Looked at against the gradient of a step's batch: half to four times the step that the "
        "arm takes; or, the same for both, 0.5 to 4 % of the length of its weights. Median over five steps.",
        criteria=(
            *(
                Criterion(f"{name}, {how}: {what}", effect, support=1.25, refute=1.0, statistic="median", scale="log")
                for name in STUDIED
                for how in STEPPED
                for what, effect in _EFFECTS.items()
            ),
            Criterion(_START, _EFFECTS["loss"], support=1.25, refute=1.0, statistic="median", scale="log"),
        ),
        run=run_b14,
        chapter="notebooks/55_the_landscape",
        note="Along the gradient only, and each arm where its own training has led it: BN's loss is lower by then.",
        data="digits",
    ),
)
