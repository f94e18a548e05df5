"""Other data than the training data's: another domain, fine-tuning, attributions, attacks, regions of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bnlearn import datasets, functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, difference, tuned
from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    ConvNet,
    Data,
    Moment,
    Outcome,
    Pass,
    Probe,
    Sweep,
    probes,
    run,
)

THEME = "Other data"
CHAPTER = "notebooks/61_limits"
NET = MLP(sizes=(64, 64, 64, 64, 10))
RATES = (0.1, 0.3, 1.0)


def _seeds(scale: Scale) -> tuple[int, ...]:
    return tuple(range(scale.seeds))


def another_light(x: Tensor) -> Tensor:
    """Less contrast, more light."""
    return 0.5 * x + 1.5


def another_noise(x: Tensor) -> Tensor:
    """Noise of the size of the signal, the same at every call."""
    return x + torch.from_numpy(np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32))


SHIFTS = {"light": another_light, "noise": another_noise}


# C5, D9: another domain


@dataclass(frozen=True)
class AdaptableNorm(BatchNorm):
    """Batch norm whose statistics in evaluation may be those of the first samples of the batch.

    Attributes
    ----------
    target : int or None
        How many; None: the running statistics.
    """

    target: int | None = None

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``."""
        if run.training or self.target is None:
            return super().__call__(x, p, prefix, run)
        mean, var = (run.buffers[f"{prefix}running_{which}"] for which in ("mean", "var"))
        cache = functional.batch_norm(x[: self.target])[1]
        given = functional.adapt_statistics(mean, var, cache.mean, cache.var, self.target)
        y: Tensor = functional.batch_norm(x, *self._affine(p, prefix), mean=given[0], var=given[1], eps=self.eps)[0]
        return y


def on_other_data(moment: Moment, samples: tuple[int, ...] = (300, 32, 4)) -> dict[str, Tensor]:
    """Test accuracy as it is, on each shifted domain, and there with the statistics of some of its samples."""
    x, y = moment.data.test
    found = {"same": _right(moment, x, y)}
    for name, shift in SHIFTS.items():
        other = shift(x)
        found[name] = _right(moment, other, y)
        for n in samples:
            adapted = replace(moment, network=replace(NET, norm=AdaptableNorm(target=n)))
            found[f"{name}, {n}"] = _right(adapted, other, y)
    return found


def _right(moment: Moment, x: Tensor, y: Tensor) -> Tensor:
    return (moment.forward(x, training=False).argmax(1) == y).float().mean()


@lru_cache(maxsize=4)
def _adapted(scale: Scale) -> Outcome:
    arm = Arm("bn", replace(NET, norm=AdaptableNorm()))
    watched = (VALIDATION, Probe("on", on_other_data))
    return run(Sweep((arm,), {"lr": RATES}, _seeds(scale), scale.steps(300), 64, watched))["bn"]


def _regained(scale: Scale, shift: str, samples: int) -> Measurement:
    outcome = _adapted(scale)
    adapted, stale = tuned(outcome, f"on.{shift}, {samples}"), tuned(outcome, f"on.{shift}")
    arms = {f"statistics of {samples} samples": adapted, "statistics of the training data": stale}
    return Measurement(adapted - stale, arms)


def run_c5(scale: Scale) -> dict[str, Measurement]:
    """What another light costs, and what the new domain's statistics give back."""
    outcome = _adapted(scale)
    same, stale = tuned(outcome, "on.same"), tuned(outcome, "on.light")
    return {
        "light: lost": Measurement(same - stale, {"same domain": same, "another light": stale}),
        "light: regained": _regained(scale, "light", 300),
        "noise: regained": _regained(scale, "noise", 300),
    }


def run_d9(scale: Scale) -> dict[str, Measurement]:
    """What the statistics of a few samples of the new domain give back."""
    return {f"{n} samples": _regained(scale, "light", n) for n in (32, 4)}


# D10: the test sample in its own statistics


@dataclass(frozen=True)
class WeighingNorm(BatchNorm):
    """Batch norm that weighs each example into its statistics in evaluation, by ``knobs["own_weight"]``."""

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``, shape (N, C, height, width)."""
        if run.training or "own_weight" not in run.knobs:
            return super().__call__(x, p, prefix, run)
        mean, var = run.buffers[f"{prefix}running_mean"], run.buffers[f"{prefix}running_var"]
        y: Tensor = functional.example_weighing(
            x, *self._affine(p, prefix), mean=mean, var=var, weight=run.knobs["own_weight"], eps=self.eps
        )[0]
        return y


WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4)


def by_weight(moment: Moment) -> dict[str, Tensor]:
    """Accuracy for each of :data:`WEIGHTS`, on the validation and on the test part: (weights,)."""
    found: dict[str, list[Tensor]] = {"validation": [], "test": []}
    for weight in WEIGHTS:
        weighing = replace(moment, knobs={**moment.knobs, "own_weight": torch.tensor(weight)})
        for part, values in found.items():
            values.append(probes.accuracy(weighing, part))
    return {part: torch.stack(values) for part, values in found.items()}


def run_d10(scale: Scale) -> dict[str, Measurement]:
    """The weight that is best on the validation part against none, after training on small and on usual batches."""
    found = {}
    arm = Arm("bn", ConvNet(norm=WeighingNorm()), knobs=(("momentum", 0.9),))
    for size, steps in ((4, 300), (32, 150)):
        watched = (VALIDATION, Probe("weighing", by_weight))
        sweep = Sweep((arm,), {"lr": (0.01, 0.03)}, _seeds(scale), scale.steps(steps), size, watched, Data(flat=False))
        outcome = run(sweep)["bn"]
        best = outcome.best("validation")
        chosen = int(outcome["weighing.validation"][best][:, -1].mean(0).argmax())
        accuracy = outcome["weighing.test"][best][:, -1].astype(np.float64)
        arms = {"weighed": accuracy[:, chosen], "not weighed": accuracy[:, 0]}
        found[f"batch of {size}"] = Measurement(
            arms["weighed"] - arms["not weighed"], arms, {"weight": WEIGHTS[chosen]}
        )
    return found


# C6: fine-tuning


def other_digits(*, flat: bool) -> datasets.Dataset:
    """The digits in another light and turned by a quarter: another task for the same network."""
    digits = datasets.load_digits()

    def part(source: datasets.Part) -> datasets.Part:
        x = np.rot90(source.x, axes=(2, 3)).reshape(len(source.x), -1)
        return datasets.Part(np.ascontiguousarray(0.5 * x + 1.5, dtype=np.float32), source.y)

    return replace(
        digits, train=part(digits.train), validation=part(digits.validation), test=part(digits.test), name="turned"
    )


@dataclass(frozen=True)
class FrozenNorm(BatchNorm):
    """Batch norm by the statistics that stand among the parameters, in training too."""

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``."""
        mean, var = p[f"{prefix}frozen_mean"], p[f"{prefix}frozen_var"]
        y: Tensor = functional.batch_norm(x, *self._affine(p, prefix), mean=mean, var=var, eps=self.eps)[0]
        return y


def everything(moment: Moment) -> dict[str, Tensor]:
    """All parameters and buffers."""
    return {**moment.parameters, **moment.buffers}


@lru_cache(maxsize=4)
def pretrained(seeds: int, steps: int) -> dict[str, Tensor]:
    """Parameters and buffers of the network after training on the digits, each (seeds, ...)."""
    arm = Arm("bn", replace(NET, norm=BatchNorm()), knobs=(("lr", 0.3),))
    outcome = run(Sweep((arm,), {}, tuple(range(seeds)), steps, 64, (Probe("all", everything),)))["bn"]
    return {
        name.removeprefix("all."): torch.from_numpy(value[0, :, -1].copy())
        for name, value in outcome.values.items()
        if name != "loss"
    }


@dataclass(frozen=True)
class Pretrained(MLP):
    """The network of :func:`pretrained`; a replica's seed chooses which.

    Attributes
    ----------
    seeds, steps_before : int
        Of the pre-training.
    """

    seeds: int = 20
    steps_before: int = 200

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """The trained parameters, and the running statistics as ``frozen_mean`` and ``frozen_var``."""
        seed = generator.initial_seed()
        state = {name: value[seed] for name, value in pretrained(self.seeds, self.steps_before).items()}
        return {name.replace("running_", "frozen_"): value.clone() for name, value in state.items()}


def run_c6(scale: Scale) -> dict[str, Measurement]:
    """Frozen against live statistics on 100 samples of another task."""
    steps = scale.steps(200)
    learnt = ("*.weight", "*.bias", "*.gamma", "*.beta")
    arms = (
        Arm("frozen", Pretrained(NET.sizes, FrozenNorm(), seeds=scale.seeds, steps_before=steps), trains=learnt),
        Arm("live", Pretrained(NET.sizes, BatchNorm(), seeds=scale.seeds, steps_before=steps), trains=learnt),
    )
    data = Data(other_digits, samples=100)
    found = {}
    for size in (2, 32):
        rates = (0.003, 0.01, 0.03, 0.1)
        sweep = Sweep(arms, {"lr": rates}, _seeds(scale), scale.steps(150), size, (VALIDATION, TEST), data)
        outcomes = run(sweep)
        found[f"batch of {size}"] = difference(outcomes, "frozen", "live")
    return found


TUNED = "Each arm takes the rate of the grid that is best on the validation part, and is judged on the test part."
DIGITS = "Handwritten digits, three hidden layers of 64 with ReLU and He initialisation, plain SGD, 300 steps of 64."
CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C5",
        statement=(
            "Statistics of the training data fail on a shifted domain; estimating them again restores the accuracy."
        ),
        sources=("P", "li2016revisiting", "schneider2020improving"),
        theme=THEME,
        setting=(
            f"{DIGITS} {TUNED} The new domain is the test part with half the contrast and more light, or with noise."
        ),
        criteria=(
            Criterion("light: lost", "test accuracy lost on the new domain", 0.2, 0.05),
            Criterion("light: regained", "test accuracy regained by the new domain's statistics", 0.2, 0.05),
            Criterion("noise: regained", "test accuracy regained by the new domain's statistics", 0.2, 0.05),
        ),
        run=run_c5,
        chapter="notebooks/73_batch_aware",
    ),
    Claim(
        id="C6",
        statement="For fine-tuning on a small set, freeze the statistics.",
        sources=("P",),
        theme=THEME,
        setting=(
            "Three hidden layers of 64, trained on handwritten digits, then on 100 digits turned by a quarter in "
            f"another light, 150 steps. {TUNED}"
        ),
        criteria=(
            Criterion("batch of 2", "test accuracy, frozen minus live statistics", 0.02, 0.005),
            Criterion("batch of 32", "test accuracy, frozen minus live statistics", 0.02, 0.005),
        ),
        run=run_c6,
        chapter="notebooks/41_pytorch",
    ),
    Claim(
        id="D9",
        statement="Adaptive batch normalisation adjusts to the data it meets.",
        sources=("P", "li2016revisiting"),
        theme=THEME,
        setting=f"{DIGITS} {TUNED} Statistics of a few samples of the test part with half the contrast and more light.",
        criteria=(
            Criterion("32 samples", "test accuracy regained", 0.2, 0.05),
            Criterion("4 samples", "test accuracy regained", 0.2, 0.05),
        ),
        run=run_d9,
        chapter="notebooks/73_batch_aware",
    ),
    Claim(
        id="D10",
        statement="Weighing the test sample into the statistics helps inference.",
        sources=("summers2020four",),
        theme=THEME,
        setting=(
            "Handwritten digits, three convolutions, SGD with momentum 0.9, 300 steps of 4 or 150 of 32; the rate, and "
            "then the weight out of five, are those that are best on the validation part."
        ),
        criteria=(
            Criterion("batch of 4", "test accuracy gained by weighing", 0.005, 0.001),
            Criterion("batch of 32", "test accuracy gained by weighing", 0.005, 0.001),
        ),
        run=run_d10,
        chapter="notebooks/73_batch_aware",
    ),
)
