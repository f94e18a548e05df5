"""Vanishing, exploding and rank: what a deep network does to the gradient and to the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad
from torch.nn import functional as nnf

from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._two_stages import tuned
from bnlearn.lab.engine import Arm, Moment, Probe
from bnlearn.lab.networks import MLP, Network, ResidualMLP
from bnlearn.lab.norms import BatchNorm, Pass
from bnlearn.lab.sweep import Sweep, run

__all__ = ["CLAIMS", "activation_gradients", "decades", "gradients", "lost", "ranks"]

Floats = NDArray[np.float64]

THEME = "Vanishing, exploding and rank"
CHAPTER = "notebooks/53_vanishing_exploding_rank"
DATA = "digits"
ARMS = {"with BN": BatchNorm(), "without BN": None}


# Measures -------------------------------------------------------------------------------------------------------------


@dataclass
class _Tapped(Pass):
    """A pass that adds something to what a network traces, by name."""

    taps: Mapping[str, Tensor] = field(default_factory=dict)

    def see(self, name: str, values: Tensor) -> Tensor:
        return values + self.taps[name] if name in self.taps else values


def activation_gradients(moment: Moment, pattern: str = ".linear") -> Tensor:
    """Norm of the loss's gradient with respect to each traced activation whose name ends in ``pattern``: (layers,).

    Of the batch of the next step, over all its samples and features. Not with respect to the weights, whose gradients
    batch normalisation divides by their scale.
    """
    x, y = moment.batch
    trace: dict[str, Tensor] = {}
    moment.forward(x, training=True, trace=trace)

    def loss(taps: dict[str, Tensor]) -> Tensor:
        tapped = _Tapped(True, moment.knobs, moment.noise, dict(moment.buffers), None, taps)
        return nnf.cross_entropy(moment.network(moment.parameters, x, tapped), y)

    zeros = {name: torch.zeros_like(value) for name, value in trace.items() if name.endswith(pattern)}
    return torch.stack([gradient.norm() for gradient in grad(loss)(zeros).values()])


def ranks(moment: Moment, depths: tuple[int, ...] = (1,)) -> Tensor:
    """Effective rank of a batch as it leaves these layers' linear maps (from 1), centred: (depths,). One width for all.

    As :func:`bnlearn.lab.probes.effective_rank`, of the differences between the samples: their mean, which batch
    normalisation takes away, is taken away from all.
    """
    trace: dict[str, Tensor] = {}
    moment.forward(moment.batch[0], training=True, trace=trace)
    values = torch.stack([trace[f"{depth - 1}.linear"] for depth in depths]).double()
    values = values - values.mean(1, keepdim=True)
    values = values / values.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
    singular = torch.linalg.svdvals(values)
    share = singular / singular.sum(1, keepdim=True).clamp_min(1e-300)
    return torch.exp(-torch.special.xlogy(share, share).sum(1))


def _at_start(network: Network, scale: Scale, probe: Probe, *, batch_size: int = 64, init_scale: float = 1.0) -> Floats:
    """What a probe gives before the first step: (seeds, layers)."""
    arm = Arm("", network, knobs=(("lr", 0.0), ("init_scale", init_scale)))
    sweep = Sweep((arm,), {}, tuple(range(scale.seeds)), 1, batch_size, (probe,))
    return run(sweep)[""][probe.name][0, :, 0].astype(np.float64)


def decades(norms: Floats) -> Floats:
    """Powers of ten by which the gradient at each layer is above that at the last; (..., layers) as ``norms``."""
    return np.asarray(np.log10(norms / norms[..., -1:]))


def gradients(network: Network, scale: Scale, init_scale: float = 1.0, pattern: str = ".linear") -> Floats:
    """:func:`decades` of :func:`activation_gradients` before the first step: (seeds, layers)."""
    probe = Probe("gradients", activation_gradients, at=(0,), options=(("pattern", pattern),))
    return decades(_at_start(network, scale, probe, init_scale=init_scale))


def lost(curves: Mapping[str, Floats], sign: float) -> Measurement:
    """Decades by which the gradient falls (sign 1) or grows (-1) on its way to the first layer, without BN minus with.

    Only what is lost, or grown, counts: a gradient that grows has not vanished.
    """
    sizes = {name: np.maximum(-sign * curve[:, 0], 0.0) for name, curve in curves.items()}
    layers = next(iter(curves.values())).shape[1]
    details = {
        "steps": list(range(1, layers + 1)),
        "squared gradient per layer": {
            name: round(float(10 ** (2 * np.mean(curve[:, 0]) / (layers - 1))), 3) for name, curve in curves.items()
        },
    }
    return Measurement(sizes["without BN"] - sizes["with BN"], curves, details)


# B6: vanishing --------------------------------------------------------------------------------------------------------

LAYERS = 10

STARTS = {
    "sigmoid, weights of variance 1/n": ("sigmoid", "lecun", 1.0),
    "sigmoid, weights four times as large": ("sigmoid", "lecun", 4.0),
    "tanh, PyTorch's default weights": ("tanh", "torch", 1.0),
    "tanh, weights of variance 1/n": ("tanh", "lecun", 1.0),
}

TRAINED = {
    "sigmoid, trained": ("sigmoid", {"lr": (0.03, 0.1, 0.3, 1.0), "init_scale": (1.0, 4.0, 6.0)}),
    "tanh, trained": ("tanh", {"lr": (0.01, 0.03, 0.1), "init_scale": (1.0, 1.5)}),
}


def vanishing(scale: Scale) -> dict[str, Measurement]:
    """Run B6."""
    found = {}
    for name, (activation, init, times) in STARTS.items():
        sizes = (64, *[64] * LAYERS, 10)
        curves = {
            arm: gradients(MLP(sizes, norm, activation=activation, init=init), scale, times)
            for arm, norm in ARMS.items()
        }
        found[name] = lost(curves, 1.0)
    for name, (activation, grid) in TRAINED.items():
        arms, points = {}, {}
        for arm, norm in ARMS.items():
            network = MLP((64, *[32] * LAYERS, 10), norm, activation=activation, init="lecun")
            start = Arm(arm, network, knobs=(("momentum", 0.9),))
            arms[arm], points[arm] = tuned(start, grid, scale, steps=150, batch_size=32, tuning=2)
        found[name] = Measurement(arms["with BN"] - arms["without BN"], arms, {"chosen": points})
    return found


_LOST = "decades that the gradient loses from the last to the first layer, without BN less with"

B6 = Claim(
    id="B6",
    statement="Batch normalisation prevents vanishing gradients in sigmoid and tanh networks.",
    sources=("P", "ioffe2015batch"),
    theme=THEME,
    setting=(
        "Digits; ten hidden layers. As they start (64 wide, batch of 64): the gradient with respect to what each "
        "linear map puts out; the claim is also about bad initialisation, so good and bad ones are regimes. Trained "
        "(32 wide, 150 steps of 32, SGD with momentum 0.9): rate and scale of the initial weights are tuned for both "
        "arms on one grid, by the validation accuracy of two seeds."
    ),
    criteria=(
        *(Criterion(name, _LOST, support=1.0) for name in STARTS),
        *(
            Criterion(name, "test accuracy, both arms tuned, with BN less without", support=0.05, refute=0.02)
            for name in TRAINED
        ),
    ),
    run=vanishing,
    chapter=CHAPTER,
    note="Where the verdict is 'refuted' there was little to prevent: the gradient does not vanish without BN either.",
    data=DATA,
)


# B7: exploding --------------------------------------------------------------------------------------------------------

DEPTH = 30


def exploding(scale: Scale) -> dict[str, Measurement]:
    """Run B7."""
    sizes = (64, *[64] * DEPTH, 10)

    def plain(init_scale: float) -> Measurement:
        return lost({arm: gradients(MLP(sizes, norm), scale, init_scale) for arm, norm in ARMS.items()}, -1.0)

    residual = {
        arm: gradients(ResidualMLP(width=64, depth=DEPTH, norm=norm), scale, pattern=".out")
        for arm, norm in ARMS.items()
    }
    return {
        "plain, weights twice He's": plain(2.0),
        "plain, He's initialisation": plain(1.0),
        "residual, He's initialisation": lost(residual, -1.0),
    }


B7 = Claim(
    id="B7",
    statement="Batch normalisation prevents exploding gradients.",
    sources=("P", "yang2019mean", "de2020batch"),
    theme=THEME,
    setting=(
        "Digits; ReLU; 30 layers (or 30 residual blocks of two layers) of width 64 as they start, batch of 64: the "
        "gradient with respect to what each linear map (each block) puts out. Nothing is trained, so nothing is tuned; "
        "a good and a bad initialisation are regimes."
    ),
    criteria=tuple(
        Criterion(
            name, "decades that the gradient grows from the last to the first layer, without BN less with",
            support=1.0, refute=0.0,
        )
        for name in ("plain, weights twice He's", "plain, He's initialisation", "residual, He's initialisation")
    ),
    run=exploding,
    chapter=CHAPTER,
    note="It is about the first step: the explosion that BN causes shrinks as soon as a plain network is trained.",
    data=DATA,
)  # fmt: skip


# B9: rank -------------------------------------------------------------------------------------------------------------

DEPTHS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300)


@cache
def _ranks(scale: Scale, activation: str, width: int, depths: tuple[int, ...]) -> dict[str, Floats]:
    """Effective rank after these layers: (seeds, depths) of each arm."""
    probe = Probe("ranks", ranks, at=(0,), options=(("depths", depths),))
    sizes = (64, *[width] * depths[-1], 10)
    init = "he" if activation == "relu" else "lecun"
    return {
        arm: _at_start(MLP(sizes, norm, activation=activation, init=init, bias=False), scale, probe, batch_size=128)
        for arm, norm in ARMS.items()
    }


def rank(scale: Scale) -> dict[str, Measurement]:
    """Run B9."""
    found = {}
    for name, (activation, width, depths) in {
        "linear, 300 layers, width 32": ("linear", 32, DEPTHS),
        "linear, 300 layers, width 64": ("linear", 64, DEPTHS),
        "ReLU, 100 layers, width 64": ("relu", 64, DEPTHS[:-2]),
    }.items():
        curves = _ranks(scale, activation, width, depths)
        found[name] = Measurement(
            curves["with BN"][:, -1] / curves["without BN"][:, -1], curves, {"steps": list(depths)}
        )
    for width in (32, 64):
        curve = _ranks(scale, "linear", width, DEPTHS)["with BN"]
        name = f"linear, 300 layers, width {width}, against its square root"
        found[name] = Measurement(curve[:, -1] / width**0.5, {"with BN": curve}, {"steps": list(DEPTHS)})
    return found


_TIMES = "effective rank of a batch at the last layer, with BN over without"
_ROOT = "effective rank at the last layer with BN, over the square root of the width"

B9 = Claim(
    id="B9",
    statement="Batch normalisation keeps deep linear networks from rank collapse.",
    sources=("daneshmand2020batch",),
    theme=THEME,
    setting=(
        "128 digits through networks as they start, without biases; weights of variance 1/n (He's for ReLU); the "
        "effective rank (exp of the entropy of the singular values' shares) of what the last linear map puts out, less "
        "its mean over the batch. Nothing is trained, so nothing is tuned."
    ),
    criteria=(
        Criterion("linear, 300 layers, width 32", _TIMES, support=2.0, scale="log"),
        Criterion("linear, 300 layers, width 64", _TIMES, support=2.0, scale="log"),
        Criterion("ReLU, 100 layers, width 64", _TIMES, support=2.0, scale="log"),
        Criterion("linear, 300 layers, width 32, against its square root", _ROOT, support=1.0, scale="log"),
        Criterion("linear, 300 layers, width 64, against its square root", _ROOT, support=1.0, scale="log"),
    ),
    run=rank,
    chapter=CHAPTER,
    note=(
        "The rank falls with BN too, to the order of the square root of the width, which is what the paper proves; it "
        "is kept from falling to one. In ten layers there is no collapse to be kept from."
    ),
    data=DATA,
)

CLAIMS = (B6, B7, B9)
