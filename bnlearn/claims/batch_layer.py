"""Batch layer normalisation (BLN) against the two that it is made of: on vectors, in a CNN, in a recurrent network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as nnf

from bnlearn import functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, difference
from bnlearn.lab import MLP, Arm, BatchNorm, ConvNet, Network, Norm, Pass, Sweep, draw_weight, run

SIDE = 8
GATES = 4
SIZES = (4, 32)
BLN, OTHERS = "batch layer norm", ("batch norm", "layer norm")


@dataclass(frozen=True)
class BatchLayerNorm(Norm):
    """BLN (Ziaee and Cano, 2022); in evaluation the batch's half by running statistics.

    Attributes
    ----------
    batch_size : int
        Of training: it sets the weights of the two halves.
    """

    eps: float = 1e-3
    batch_size: int = 32

    def parameters(self, channels: int) -> dict[str, Tensor]:
        """gamma, starting from sqrt(C), by which the method divides, and beta: (C,)."""
        return {"gamma": torch.full((channels,), channels**0.5), "beta": torch.zeros(channels)}

    def buffers(self, channels: int) -> dict[str, Tensor]:
        r"""The running mean and variance, shape (C,); from the first batch on (C, \*spatial)."""
        return {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        r"""The normalised ``x``, shape (N, C, \*spatial)."""
        names = [f"{prefix}running_{which}" for which in ("mean", "var")]
        mean, var = (_everywhere(run.buffers[name], x.shape[1:]) for name in names)
        given = {} if run.training else {"batch_mean": mean, "batch_var": var}
        affine = self._affine(p, prefix)
        y: Tensor
        y, cache = functional.batch_layer_norm(x, *affine, batch_size=self.batch_size, eps=self.eps, **given)
        if run.training:
            new = functional.update_running(mean, var, cache.batch_mean, cache.batch_var, len(x))
            run.buffers.update(zip(names, new, strict=True))
        return y


def _everywhere(statistic: Tensor, shape: torch.Size) -> Tensor:
    """A statistic per channel as one per channel and position, unless it is one already."""
    if statistic.shape == shape:
        return statistic
    return statistic.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


@dataclass(frozen=True)
class FeatureNorm(Norm):
    """Layer norm over the channels of each position, or time step, alone: what the paper compares with."""

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        r"""The normalised ``x``, shape (N, C, \*spatial)."""
        y: Tensor = functional.layer_norm(x, *self._affine(p, prefix), axes=(1,), eps=self.eps)[0]
        return y


@dataclass(frozen=True)
class DigitConvNet(ConvNet):
    """A :class:`ConvNet` that takes a digit as a row of pixels."""

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, 10) for digits (N, 64)."""
        return super().__call__(p, x.reshape(-1, 1, SIDE, SIDE), run)


@dataclass(frozen=True)
class TwoLSTMs(Network):
    """Two LSTMs, the first of which reads a digit row by row, a normaliser behind each, and a linear layer.

    The places are those of the paper's code: behind all states of the first, and behind the last state of the second.

    Attributes
    ----------
    norm : Norm
    hidden : int
        Of each.
    """

    norm: Norm
    hidden: int = 16

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Weights and biases (the forget gates start open), and what the normalisers learn."""
        p, size = {}, GATES * self.hidden
        for i, inputs in enumerate((SIDE, self.hidden)):
            p[f"{i}.ih"] = draw_weight((size, inputs), "lecun", generator)
            p[f"{i}.hh"] = draw_weight((size, self.hidden), "lecun", generator)
            p[f"{i}.bias"] = torch.zeros(size)
            p[f"{i}.bias"][self.hidden : 2 * self.hidden] = 1.0
            p |= {f"{i}.norm.{name}": value for name, value in self.norm.parameters(self.hidden).items()}
        p["head.weight"] = draw_weight((10, self.hidden), "lecun", generator)
        return p | {"head.bias": torch.zeros(10)}

    def buffers(self) -> dict[str, Tensor]:
        """What the normalisers keep."""
        kept = self.norm.buffers(self.hidden).items()
        return {f"{i}.norm.{name}": value.clone() for i in range(2) for name, value in kept}

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, 10) for digits (N, 64)."""
        weights = [[p[f"{i}.{name}"] for name in ("ih", "hh", "bias")] for i in range(2)]
        h = functional.lstm(x.reshape(-1, SIDE, SIDE), *weights[0])[0].transpose(1, 2)
        h = self.norm(h, p, "0.norm.", run).transpose(1, 2)
        h = self.norm(functional.lstm(h, *weights[1])[0][:, -1], p, "1.norm.", run)
        return nnf.linear(h, p["head.weight"], p["head.bias"])


class Regime(NamedTuple):
    """Networks that differ in their normaliser, and how they are trained."""

    network: Callable[[Norm], Network]
    rates: tuple[float, ...]
    steps: int
    optimizer: str = "sgd"
    knobs: tuple[tuple[str, float], ...] = ()


def _mlp(norm: Norm) -> Network:
    return MLP(sizes=(64, 64, 64, 64, 10), norm=norm)


def _conv_net(norm: Norm) -> Network:
    return DigitConvNet(channels=(1, 8, 16, 16), strides=(2, 1, 1), norm=norm)


REGIMES = {
    "vectors": Regime(_mlp, (0.03, 0.1, 0.3, 1.0), 60),
    "CNN": Regime(_conv_net, (0.003, 0.01, 0.03, 0.1, 0.3), 80, knobs=(("momentum", 0.9),)),
    "LSTM": Regime(TwoLSTMs, (0.003, 0.01, 0.03, 0.1), 40, "adam"),
}


def run_d7(scale: Scale) -> dict[str, Measurement]:
    """BLN against batch and layer norm, early, in each kind of network and at both batch sizes."""
    found, seeds = {}, tuple(range(scale.seeds))
    for kind, regime in REGIMES.items():
        grid = {"lr": regime.rates[::2] if scale.quick else regime.rates}
        for size in SIZES:
            norms = dict(
                zip((BLN, *OTHERS), (BatchLayerNorm(batch_size=size), BatchNorm(), FeatureNorm()), strict=True)
            )
            arms = (Arm(name, regime.network(norm), regime.optimizer, regime.knobs) for name, norm in norms.items())
            outcomes = run(Sweep(tuple(arms), grid, seeds, scale.steps(regime.steps), size, (VALIDATION, TEST)))
            for other in OTHERS:
                found[f"{kind}, batch of {size}, against {other}"] = difference(outcomes, BLN, other)
    return found


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="D7",
        statement="Batch layer normalisation (BLN) converges faster than batch norm and layer norm, in CNNs and RNNs.",
        sources=("P", "ziaee2022batch"),
        theme="Methods",
        setting=(
            "Handwritten digits in batches of 4 or 32. Vectors: three hidden layers of 64 with ReLU and He "
            "initialisation, plain SGD, 60 steps. CNN: three convolutions of 8, 16 and 16 channels, SGD with momentum "
            "0.9, 80 steps. LSTM: two of 16 units over the rows of a digit, the normaliser behind each, Adam, 40 "
            "steps. Each arm takes the rate of four (in the CNN of five) that is best on the validation part, and is "
            "judged on the test part."
        ),
        criteria=tuple(
            Criterion(
                f"{kind}, batch of {size}, against {other}",
                f"test accuracy after {regime.steps} steps, BLN minus {other}",
                0.02,
                0.005,
            )
            for kind, regime in REGIMES.items()
            for size in SIZES
            for other in OTHERS
        ),
        run=run_d7,
        chapter="notebooks/73_batch_aware",
        note=(
            "Layer norm is over the features of each position or time step by itself, as in the paper's code. BLN's "
            "scale starts from the square root of the channels, by which the method divides; in the test its batch's "
            "half has running statistics, its features' half the sample's own."
        ),
    ),
)
