"""Single methods and what is said for them: instance, weight and RMS norm, and whitening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad

from bnlearn import functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, difference
from bnlearn.claims.cost import ratios
from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    ConvNet,
    Data,
    LayerNorm,
    Moment,
    Norm,
    Pass,
    Probe,
    RMSNorm,
    Sweep,
    run,
)

THEME = "Methods"
NET = MLP(sizes=(64, 64, 64, 64, 10))
IMAGES = ConvNet(channels=(1, 8, 16, 16), strides=(1, 2, 1))
TUNED = "Each arm takes the rate of the grid that is best on the validation part, and is judged on the test part."
DIGITS = "Handwritten digits, three hidden layers of 64 with ReLU and He initialisation, plain SGD, batches of 64."


def _seeds(scale: Scale) -> tuple[int, ...]:
    return tuple(range(scale.seeds))


# D2: instance norm


@dataclass(frozen=True)
class InstanceNorm(Norm):
    """Over the positions of each channel of each sample (Ulyanov, Vedaldi and Lempitsky, 2016)."""

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``, shape (N, C, height, width)."""
        y: Tensor = functional.instance_norm(x, *self._affine(p, prefix), eps=self.eps)[0]
        return y


def own_lights(moment: Moment) -> Tensor:
    """Test accuracy where each picture has a contrast and a light of its own."""
    x, y = moment.data.test
    rng = np.random.default_rng(0)
    contrast, light = (
        torch.from_numpy(rng.uniform(*ends, (len(x), 1, 1, 1)).astype(np.float32)) for ends in ((0.3, 1.5), (-1.5, 1.5))
    )
    return (moment.forward(contrast * x + light, training=False).argmax(1) == y).float().mean()


def run_d2(scale: Scale) -> dict[str, Measurement]:
    """What contrast and light of a picture change in the output, exactly; and accuracy where each has its own."""
    errors = []
    for seed in range(scale.seeds):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 3, 5, 5, generator=generator).double()
        contrast, light = (torch.rand(2, 3, 1, 1, generator=generator).double() + 0.5 for _ in range(2))
        same, other = (functional.instance_norm(each, eps=0.0)[0] for each in (x, contrast * x + light))
        errors.append(float((same - other).abs().max()))
    norms: dict[str, Norm] = {"instance norm": InstanceNorm(), "batch norm": BatchNorm()}
    arms = tuple(Arm(name, replace(IMAGES, norm=norm), knobs=(("momentum", 0.9),)) for name, norm in norms.items())
    watched = (VALIDATION, Probe("lights", own_lights))
    sweep = Sweep(arms, {"lr": (0.01, 0.03, 0.1)}, _seeds(scale), scale.steps(200), 32, watched, Data(flat=False))
    return {
        "the formula": Measurement(np.array(errors)),
        "each picture in its own light": difference(run(sweep), "instance norm", "batch norm", "lights"),
    }


# D4: weight norm


@dataclass(frozen=True)
class WeightNormNet(MLP):
    """Hidden weights given by length and direction; the lengths start where the plain weights' are."""

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """As :class:`MLP`'s, and a length for each hidden feature."""
        p = super().parameters(generator, knobs)
        return p | {f"{i}.length": p[f"{i}.weight"].norm(dim=1) for i in range(self.hidden)}

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """As :class:`MLP`'s."""
        weights = {
            f"{i}.weight": functional.weight_norm(p[f"{i}.weight"], p[f"{i}.length"][:, None])[0]
            for i in range(self.hidden)
        }
        return super().__call__({**p, **weights}, x, run)


def run_d4(scale: Scale) -> dict[str, Measurement]:
    """Orthogonality of the direction's gradient, exactly; and whether training is faster."""
    errors = []
    for seed in range(scale.seeds):
        generator = torch.Generator().manual_seed(seed)
        v, g, dw = (torch.randn(shape, generator=generator).double() for shape in ((5, 7), (5, 1), (5, 7)))
        dv = grad(lambda v, g=g, dw=dw: (functional.weight_norm(v, g)[0] * dw).sum())(v)
        errors.append(float((dv * v).sum(1).abs().max()))
    arms = (Arm("weight norm", WeightNormNet(NET.sizes)), Arm("plain weights", NET))
    sweep = Sweep(arms, {"lr": (0.03, 0.1, 0.3)}, _seeds(scale), scale.steps(100), 64, (VALIDATION, TEST))
    return {
        "length and direction": Measurement(np.array(errors)),
        "accuracy after 100 steps": difference(run(sweep), "weight norm", "plain weights"),
    }


# D11: RMS norm


@lru_cache(maxsize=4)
def _speed(rounds: int) -> NDArray[np.float64]:
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    gamma, beta = torch.ones(512), torch.zeros(512)

    def layer_norm() -> None:
        functional.layer_norm(x, gamma, beta)

    def rms_norm() -> None:
        functional.rms_norm(x, gamma)

    return ratios(layer_norm, rms_norm, rounds, 20)


def run_d11(scale: Scale) -> dict[str, Measurement]:
    """Accuracy of RMS norm minus layer norm, and time of layer norm over RMS norm."""
    arms = (Arm("RMS norm", replace(NET, norm=RMSNorm())), Arm("layer norm", replace(NET, norm=LayerNorm())))
    rates = (0.03, 0.1, 0.3, 1.0)
    outcomes = run(Sweep(arms, {"lr": rates}, _seeds(scale), scale.steps(200), 64, (VALIDATION, TEST)))
    speed = _speed(scale.seeds)
    return {
        "quality": difference(outcomes, "RMS norm", "layer norm"),
        "time of the forward pass": Measurement(speed, {"ratio": speed}),
    }


# B20: whitening


@dataclass(frozen=True)
class Whitening(BatchNorm):
    """Iterative whitening (Huang et al., 2019) of groups of channels.

    Attributes
    ----------
    groups : int
    """

    groups: int = 4

    def buffers(self, channels: int) -> dict[str, Tensor]:
        """The running mean (C,) and whitening matrices (groups, C / groups, C / groups)."""
        size = channels // self.groups
        return {"running_mean": torch.zeros(channels), "matrix": torch.eye(size).expand(self.groups, -1, -1).clone()}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The whitened ``x``, shape (N, C)."""
        names = (f"{prefix}running_mean", f"{prefix}matrix")
        mean, matrix = (run.buffers[name] for name in names)
        affine = self._affine(p, prefix)
        y: Tensor
        if not run.training:
            y, _ = functional.iter_norm(x, *affine, groups=self.groups, mean=mean, matrix=matrix)
            return y
        y, cache = functional.iter_norm(x, *affine, groups=self.groups, eps=1e-3)
        for name, old, new in zip(names, (mean, matrix), (cache.mean, cache.matrix), strict=True):
            run.buffers[name] = 0.9 * old + 0.1 * new.detach()
        return y


@lru_cache(maxsize=4)
def _whitening_time(rounds: int) -> NDArray[np.float64]:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    return ratios(lambda: functional.iter_norm(x, groups=4), lambda: functional.batch_norm(x), rounds, 20)


def run_b20(scale: Scale) -> dict[str, Measurement]:
    """Accuracy after few steps, whitening minus batch norm; and time, whitening over batch norm."""
    arms = (Arm("whitening", replace(NET, norm=Whitening())), Arm("batch norm", replace(NET, norm=BatchNorm())))
    rates = (0.1, 0.3, 1.0)
    outcomes = run(Sweep(arms, {"lr": rates}, _seeds(scale), scale.steps(40), 64, (VALIDATION, TEST)))
    speed = _whitening_time(scale.seeds)
    return {
        "better per step": difference(outcomes, "whitening", "batch norm"),
        "dear": Measurement(speed, {"ratio": speed}),
    }


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="B20",
        statement="Whitening is better per step than batch norm, and too dear.",
        sources=("P", "huang2018decorrelated", "huang2019iterative"),
        theme=THEME,
        setting=(
            f"{DIGITS} 40 steps; iterative whitening in four groups of 16. {TUNED} Time: the normaliser alone, 64 x 64."
        ),
        criteria=(
            Criterion("better per step", "test accuracy after 40 steps, whitening minus batch norm", 0.02, 0.005),
            Criterion("dear", "time of the forward pass over batch norm's", 2.0, 1.2, "median", "log"),
        ),
        run=run_b20,
        chapter="notebooks/77_whitening",
    ),
    Claim(
        id="D2",
        statement="Instance normalisation removes contrast and style.",
        sources=("P", "ulyanov2016instance"),
        theme=THEME,
        setting=(
            "The formula in float64. Then handwritten digits, three convolutions, SGD with momentum 0.9, 200 steps of "
            f"32; in the test each picture has a contrast and a light of its own. {TUNED}"
        ),
        criteria=(
            Criterion("the formula", "change of the output by contrast and light", 1e-12, exact=True),
            Criterion("each picture in its own light", "test accuracy, instance minus batch norm", 0.1, 0.02),
        ),
        run=run_d2,
        chapter="notebooks/75_style",
    ),
    Claim(
        id="D4",
        statement="Weight normalisation decouples length from direction and conditions the problem.",
        sources=("P", "salimans2016weight"),
        theme=THEME,
        setting=f"The gradient in float64. Then: {DIGITS} {TUNED} The lengths start from those of the He weights.",
        criteria=(
            Criterion("length and direction", "inner product of the direction and its gradient", 1e-12, exact=True),
            Criterion("accuracy after 100 steps", "test accuracy, weight norm minus plain weights", 0.02, 0.005),
        ),
        run=run_d4,
        chapter="notebooks/74_weight_space",
        note="Without the start from data that the paper recommends.",
    ),
    Claim(
        id="D11",
        statement="RMSNorm equals layer norm in quality and is cheaper.",
        sources=("zhang2019root",),
        theme=THEME,
        setting=f"{DIGITS} 200 steps. {TUNED} Time: this package's formula on 256 x 512 values, one thread.",
        criteria=(
            Criterion("quality", "test accuracy, RMSNorm minus layer norm", -0.01, -0.01),
            Criterion("time of the forward pass", "layer norm over RMSNorm", 1.1, 1.02, "median", "log"),
        ),
        run=run_d11,
        chapter="notebooks/72_batch_free",
    ),
)
