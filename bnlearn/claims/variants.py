"""The family on trial: every variant against what it was made to beat, on small batches and on usual ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bnlearn import functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, difference, tuned
from bnlearn.claims.batches import two_classes
from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    ConvNet,
    Data,
    GroupNorm,
    LayerNorm,
    Norm,
    Order,
    Outcome,
    Pass,
    Sweep,
    run,
    shuffled,
)

THEME = "Variants"
NET = MLP(sizes=(64, 64, 64, 64, 10))
IMAGES = ConvNet(channels=(1, 8, 16, 16), strides=(1, 2, 2))
SETTING = (
    "Handwritten digits, three hidden layers of 64 with ReLU and He initialisation, plain SGD; each arm takes the rate "
    "of the grid (five values) that is best on the validation part, and is judged on the test part. 400 steps of 2 "
    "samples, 200 of 32."
)
SMALL, USUAL = "batch of 2", "batch of 32"
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class BatchRenorm(BatchNorm):
    """Batch renormalisation (Ioffe, 2017) with its limits fixed: a short training has no time for a warm-up.

    Attributes
    ----------
    r_max, d_max : float
        The limits of the correction.
    """

    r_max: float = 3.0
    d_max: float = 5.0

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``; in training corrected towards the running statistics, which move."""
        if not run.training:
            return super().__call__(x, p, prefix, run)
        names = [f"{prefix}running_{which}" for which in ("mean", "var")]
        mean, var = (run.buffers[name] for name in names)
        limits = {"r_max": self.r_max, "d_max": self.d_max}
        y, cache = functional.batch_renorm(x, *self._affine(p, prefix), mean=mean, var=var, **limits, eps=self.eps)
        batch, n = cache.batch, x.numel() // x.shape[1]
        new = functional.update_running(mean, var, batch.mean, batch.var, n, momentum=self.momentum)
        run.buffers.update(zip(names, new, strict=True))
        renormed: Tensor = y
        return renormed


@dataclass(frozen=True)
class FullNorm(BatchNorm):
    """Full normalisation (Lian and Liu, 2018): the running estimate normalises in training too.

    The first batches weigh more in it, the t-th at least 1 / t.
    """

    def buffers(self, channels: int) -> dict[str, Tensor]:
        """The estimate, shape (C,), and how many batches it has seen."""
        return super().buffers(channels) | {"batches": torch.zeros(())}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``; in training the estimate moves first."""
        if not run.training:
            return super().__call__(x, p, prefix, run)
        names = [f"{prefix}running_{which}" for which in ("mean", "var")]
        mean, var = (run.buffers[name] for name in names)
        batches = run.buffers[f"{prefix}batches"] + 1
        weight = (1 / batches).clamp_min(self.momentum)
        affine = self._affine(p, prefix)
        y: Tensor
        y, cache = functional.full_norm(x, *affine, mean=mean, var=var, momentum=weight, eps=self.eps)
        new = functional.update_running(mean, var, cache.mean, cache.var, 1, momentum=1.0, unbiased=False)
        run.buffers.update(zip(names, new, strict=True))
        run.buffers[f"{prefix}batches"] = batches
        return y


@dataclass(frozen=True)
class FilterResponseNorm(Norm):
    """FRN with its thresholded unit (Singh and Krishnan, 2020), in the place of normaliser and activation."""

    eps: float = 1e-6

    def parameters(self, channels: int) -> dict[str, Tensor]:
        """gamma, beta and the threshold tau, shape (C,)."""
        return super().parameters(channels) | {"tau": torch.zeros(channels)}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The activated ``x``."""
        x = functional.filter_response_norm(x, *self._affine(p, prefix), eps=self.eps)[0]
        y: Tensor = functional.thresholded_linear_unit(x, p[f"{prefix}tau"])[0]
        return y


@dataclass(frozen=True)
class EvoNorm(Norm):
    """EvoNorm-S0 (Liu et al., 2020), in the place of normaliser and activation.

    Attributes
    ----------
    groups : int
    """

    groups: int = 4

    def parameters(self, channels: int) -> dict[str, Tensor]:
        """gamma, beta and v, shape (C,)."""
        return super().parameters(channels) | {"v": torch.ones(channels)}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The activated ``x``."""
        y: Tensor = functional.evonorm_s0(
            x, *self._affine(p, prefix), p[f"{prefix}v"], groups=self.groups, eps=self.eps
        )[0]
        return y


@dataclass(frozen=True)
class DynamicTanh(Norm):
    """DyT (Zhu et al., 2025), where the normaliser stood."""

    def parameters(self, channels: int) -> dict[str, Tensor]:
        """gamma, beta, shape (C,), and alpha."""
        return super().parameters(channels) | {"alpha": torch.tensor(0.5)}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The squashed ``x``."""
        y: Tensor = functional.dynamic_tanh(x, p[f"{prefix}alpha"], *self._affine(p, prefix))[0]
        return y


@dataclass(frozen=True)
class StandardizedNet(MLP):
    """The hidden layers' weights standardised (Qiao et al., 2019), or scaled as well (Brock et al., 2021).

    Attributes
    ----------
    scaled : bool
        With the gain of ReLU, sqrt(2 / (1 - 1 / pi)), and a learnt one.
    """

    scaled: bool = False

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """As :class:`MLP`'s, and a gain for each hidden feature if scaled."""
        p = super().parameters(generator, knobs)
        if self.scaled:
            p |= {f"{i}.gain": torch.ones(after) for i, after in enumerate(self.sizes[1:-1])}
        return p

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """As :class:`MLP`'s, with other weights."""
        gain = float(np.sqrt(2 / (1 - 1 / np.pi)))
        standard = dict(p)
        for i in range(self.hidden):
            own = p[f"{i}.gain"] * gain if self.scaled else None
            standard[f"{i}.weight"] = functional.weight_standardization(p[f"{i}.weight"], own, scaled=self.scaled)[0]
        return super().__call__(standard, x, run)


def _with(norm: Norm | None) -> MLP:
    return replace(NET, norm=norm)


def _on_images(name: str, norm: Norm, activation: str = "relu") -> Arm:
    return Arm(f"{name}, images", replace(IMAGES, norm=norm, activation=activation), knobs=(("momentum", 0.9),))


ARMS = (
    Arm("batch norm", _with(BatchNorm())),
    Arm("layer norm", _with(LayerNorm())),
    Arm("group norm", _with(GroupNorm(groups=4))),
    Arm("batch renormalisation", _with(BatchRenorm())),
    Arm("full normalisation", _with(FullNorm())),
    Arm("weight standardisation and group norm", StandardizedNet(norm=GroupNorm(groups=4))),
    Arm("scaled weight standardisation", StandardizedNet(scaled=True)),
    Arm("dynamic tanh", _with(DynamicTanh())),
    Arm("no normaliser", _with(None)),
    _on_images("batch norm", BatchNorm()),
    _on_images("filter response norm", FilterResponseNorm(), "linear"),
    _on_images("EvoNorm-S0", EvoNorm(), "linear"),
)


@lru_cache(maxsize=64)
def _trained(scale: Scale, name: str, batch_size: int, order: Order = shuffled) -> Outcome:
    arm = next(arm for arm in ARMS if arm.name == name)
    images = isinstance(arm.network, ConvNet)
    rates = tuple(rate / 10 for rate in RATES) if images else RATES
    rates = rates[1::2] if scale.quick else rates
    seeds, watched = tuple(range(scale.seeds)), (VALIDATION, TEST)
    steps = scale.steps(400 if batch_size < 8 else 200)
    return run(Sweep((arm,), {"lr": rates}, seeds, steps, batch_size, watched, Data(flat=not images), order))[name]


def compared(scale: Scale, first: str, second: str, batch_size: int, order: Order = shuffled) -> Measurement:
    """Test accuracy of ``first`` minus that of ``second``, each at its best rate."""
    outcomes = {name: _trained(scale, name, batch_size, order) for name in (first, second)}
    return difference(outcomes, first, second)


def run_d3(scale: Scale) -> dict[str, Measurement]:
    """Group norm against batch norm at 2, and against both others at 32."""
    return {
        SMALL: compared(scale, "group norm", "batch norm", 2),
        USUAL: compared(scale, "group norm", "layer norm", 32),
    }


def run_d5(scale: Scale) -> dict[str, Measurement]:
    """What weight standardisation adds to group norm, and whether the two reach batch norm at 32."""
    both = "weight standardisation and group norm"
    return {
        "batch of 2: beside group norm alone": compared(scale, both, "group norm", 2),
        "batch of 2: beside batch norm at 32": Measurement(
            (a := tuned(_trained(scale, both, 2))) - (b := tuned(_trained(scale, "batch norm", 32))),
            {f"{both}, batch of 2": a, "batch norm, batch of 32": b},
        ),
    }


def run_d6(scale: Scale) -> dict[str, Measurement]:
    """Batch renormalisation against batch norm, on batches of 2 and on batches of two classes."""
    renorm = "batch renormalisation"
    return {
        SMALL: compared(scale, renorm, "batch norm", 2),
        "two classes in a batch of 32": compared(scale, renorm, "batch norm", 32, two_classes),
    }


def run_d8(scale: Scale) -> dict[str, Measurement]:
    """Full normalisation against batch norm, on batches of two classes and on fair ones."""
    full = "full normalisation"
    return {
        "two classes in a batch of 32": compared(scale, full, "batch norm", 32, two_classes),
        "fair batches of 32": compared(scale, full, "batch norm", 32),
    }


def run_d12(scale: Scale) -> dict[str, Measurement]:
    """Networks without a normaliser against batch norm."""
    return {
        "dynamic tanh": compared(scale, "dynamic tanh", "batch norm", 32),
        "scaled weight standardisation": compared(scale, "scaled weight standardisation", "batch norm", 32),
        "nothing at all": compared(scale, "no normaliser", "batch norm", 32),
    }


def run_d13(scale: Scale) -> dict[str, Measurement]:
    """FRN and EvoNorm against batch norm, at 2."""
    names = ("filter response norm", "EvoNorm-S0")
    return {name: compared(scale, f"{name}, images", "batch norm, images", 2) for name in names}


def _better(name: str, effect: str) -> Criterion:
    return Criterion(name, f"test accuracy, {effect}", support=0.02, refute=0.005)


def _no_worse(name: str, effect: str) -> Criterion:
    return Criterion(name, f"test accuracy, {effect}", support=-0.02, refute=-0.02)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="D3",
        statement=(
            "Group normalisation is the compromise: better than batch norm at small batches, than layer norm elsewhere."
        ),
        sources=("P", "wu2018group"),
        theme=THEME,
        setting=SETTING,
        criteria=(
            _better(SMALL, "group norm minus batch norm"),
            _better(USUAL, "group norm minus layer norm"),
        ),
        run=run_d3,
        chapter="notebooks/72_batch_free",
    ),
    Claim(
        id="D5",
        statement="Weight standardisation with group norm catches up with batch norm at small batches.",
        sources=("P", "qiao2019micro"),
        theme=THEME,
        setting=SETTING,
        criteria=(
            _better("batch of 2: beside group norm alone", "with weight standardisation minus group norm alone"),
            _no_worse("batch of 2: beside batch norm at 32", "both at a batch of 2 minus batch norm at 32"),
        ),
        run=run_d5,
        chapter="notebooks/74_weight_space",
        note="400 steps of 2 samples are 800 samples, 200 of 32 are 6,400: the second criterion asks much.",
    ),
    Claim(
        id="D6",
        statement="Batch renormalisation survives small batches and batches that are not drawn fairly.",
        sources=("P", "ioffe2017renorm"),
        theme=THEME,
        setting=f"{SETTING} r up to 3 and d up to 5 from the first step.",
        criteria=(
            _better(SMALL, "batch renormalisation minus batch norm"),
            _better("two classes in a batch of 32", "batch renormalisation minus batch norm"),
        ),
        run=run_d6,
        chapter="notebooks/73_batch_aware",
    ),
    Claim(
        id="D8",
        statement="Full normalisation beats batch norm where batches are built badly.",
        sources=("P", "lian2019revisit"),
        theme=THEME,
        setting=SETTING,
        criteria=(
            _better("two classes in a batch of 32", "full normalisation minus batch norm"),
            _no_worse("fair batches of 32", "full normalisation minus batch norm"),
        ),
        run=run_d8,
        chapter="notebooks/73_batch_aware",
    ),
    Claim(
        id="D12",
        statement="Networks without any normaliser match those with one.",
        sources=("zhu2025transformers", "brock2021characterizing"),
        theme=THEME,
        setting=f"{SETTING} Batches of 32.",
        criteria=(
            _no_worse("dynamic tanh", "dynamic tanh minus batch norm"),
            _no_worse("scaled weight standardisation", "scaled weight standardisation minus batch norm"),
            _no_worse("nothing at all", "no normaliser minus batch norm"),
        ),
        run=run_d12,
        chapter="notebooks/78_norm_free",
        note="Three layers are few: what a normaliser is needed for shows in deep networks.",
    ),
    Claim(
        id="D13",
        statement="Filter response norm and EvoNorm need no batch.",
        sources=("singh2020filter", "liu2020evolving"),
        theme=THEME,
        setting=(
            "Handwritten digits, three convolutions of 8, 16 and 16 channels, He initialisation, SGD with momentum "
            "0.9, 400 steps of 2 samples; each arm takes the rate of the grid (five values) that is best on the "
            "validation part, and is judged on the test part."
        ),
        criteria=(
            _better("filter response norm", "minus batch norm, both at a batch of 2"),
            _better("EvoNorm-S0", "minus batch norm, both at a batch of 2"),
        ),
        run=run_d13,
        chapter="notebooks/78_norm_free",
        note="In a convolution a batch of 2 is not that small: each channel has 8 to 128 values.",
    ),
)
