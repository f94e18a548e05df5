r"""The networks of the lab, each written for ONE network: parameters in, logits out. The engine runs many at once.

A network is a frozen dataclass without state. Its parameters and buffers are dictionaries of tensors by name, as in a
``state_dict``: ``"0.weight"``, ``"0.norm.gamma"``, ``"0.norm.running_mean"``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nnf

from bnlearn.lab.norms import Norm, Pass

__all__ = ["MLP", "ConvNet", "Network", "ResidualMLP", "activate", "draw_weight"]

_GAINS = {"he": 2.0, "lecun": 1.0, "torch": 1 / 3}
"""Variance of a weight times its fan-in: He et al. (2015), LeCun et al. (1998), PyTorch's default."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": nnf.gelu,
    "linear": lambda x: x,
}


def activate(name: str, x: Tensor) -> Tensor:
    """The activation function called ``name``: relu, tanh, sigmoid, gelu or linear."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"expected an activation among {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name](x)


def draw_weight(shape: tuple[int, ...], init: str | float, generator: torch.Generator) -> Tensor:
    """A weight of shape (out, in) or (out, in, height, width), normally distributed.

    ``init`` is ``"he"`` (variance 2 / fan-in), ``"lecun"`` (1 / fan-in), ``"torch"`` (1 / (3 fan-in), the variance of
    PyTorch's default), or a standard deviation.
    """
    if isinstance(init, str):
        if init not in _GAINS:
            raise ValueError(f"expected init among {', '.join(_GAINS)} or a standard deviation, got {init!r}")
        init = math.sqrt(_GAINS[init] / math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * init


class Network(ABC):
    """What the engine asks of a network; subclasses are frozen dataclasses, defined at the top of a module."""

    @abstractmethod
    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """What is learnt, as it starts; every random number from ``generator``."""

    def buffers(self) -> dict[str, Tensor]:
        """What is kept from step to step and not learnt."""
        return {}

    def noise(self, samples: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the uniform numbers that one training step on ``samples`` samples needs, by name."""
        return {}

    @abstractmethod
    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        r"""Logits (N, classes) for ``x`` (N, C, \*spatial)."""


def _norm_parameters(norm: Norm | None, channels: int, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in norm.parameters(channels).items()} if norm else {}


def _norm_buffers(norm: Norm | None, channels: int, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in norm.buffers(channels).items()} if norm else {}


@dataclass(frozen=True)
class MLP(Network):
    """Linear layers, each hidden one with a normaliser and an activation.

    Knobs: ``init_scale`` multiplies the initial weights of all layers; ``dropout`` is the share of hidden activations
    that is set to zero in training (only if ``dropout`` is set here).

    Attributes
    ----------
    sizes : tuple of int
        Inputs, hidden layers, classes.
    norm : Norm, or None
        After each hidden linear layer.
    activation : str
        See :func:`activate`.
    order : str
        ``"before"``: the normaliser stands before the activation, as Ioffe and Szegedy (2015) put it; ``"after"``.
    init : str or float
        See :func:`draw_weight`.
    dropout : bool
        Whether dropout follows hidden layers, with the knob's rate.
    dropout_from : int
        The first hidden layer that it follows.
    bias : bool
        Whether hidden layers have biases (the last one does).
    """

    sizes: tuple[int, ...] = (64, 64, 64, 64, 10)
    norm: Norm | None = None
    activation: str = "relu"
    order: str = "before"
    init: str | float = "he"
    dropout: bool = False
    dropout_from: int = 0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.order not in {"before", "after"}:
            raise ValueError(f"expected order 'before' or 'after' the activation, got {self.order!r}")
        if len(self.sizes) < 2:
            raise ValueError(f"expected sizes of the inputs, the hidden layers and the classes, got {self.sizes}")

    @property
    def hidden(self) -> int:
        """How many hidden layers there are."""
        return len(self.sizes) - 2

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Weights (out, in), biases, and what the normaliser learns."""
        p: dict[str, Tensor] = {}
        for i, (before, after) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            p[f"{i}.weight"] = draw_weight((after, before), self.init, generator) * knobs.get("init_scale", 1.0)
            if self.bias or i == self.hidden:
                p[f"{i}.bias"] = torch.zeros(after)
            if i < self.hidden:
                p |= _norm_parameters(self.norm, after, f"{i}.norm.")
        return p

    def buffers(self) -> dict[str, Tensor]:
        """What the normaliser keeps."""
        b: dict[str, Tensor] = {}
        for i, after in enumerate(self.sizes[1:-1]):
            b |= _norm_buffers(self.norm, after, f"{i}.norm.")
        return b

    def noise(self, samples: int) -> dict[str, tuple[int, ...]]:
        """One number for each hidden activation that dropout follows."""
        dropped = range(self.dropout_from, self.hidden) if self.dropout else ()
        return {f"{i}.dropout": (samples, self.sizes[i + 1]) for i in dropped}

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, classes); traces ``"i.linear"``, ``"i.normed"`` and ``"i.out"``, each (N, sizes[i + 1])."""
        for i in range(self.hidden):
            x = run.see(f"{i}.linear", nnf.linear(x, p[f"{i}.weight"], p.get(f"{i}.bias")))
            if self.order == "after":
                x = activate(self.activation, x)
            if self.norm is not None:
                x = run.see(f"{i}.normed", self.norm(x, p, f"{i}.norm.", run))
            if self.order == "before":
                x = activate(self.activation, x)
            if self.dropout and run.training and i >= self.dropout_from:
                rate = run.knobs["dropout"]
                x = torch.where(run.noise[f"{i}.dropout"] < rate, 0.0, x / (1 - rate))
            x = run.see(f"{i}.out", x)
        return nnf.linear(x, p[f"{self.hidden}.weight"], p[f"{self.hidden}.bias"])


@dataclass(frozen=True)
class ResidualMLP(Network):
    """A linear layer, ``depth`` blocks ``x + W norm(activation(...))`` as in ResNet v2, a normaliser, a linear layer.

    A block is ``x + W2 a(norm(W1 a(norm(x))))`` (He et al., 2016, "Identity mappings"), or, with ``last_gamma`` set,
    ``x + norm(W2 a(norm(W1 x)))`` whose last gamma starts from it (Goyal et al., 2017).

    Attributes
    ----------
    inputs, width, depth, classes : int
        Sizes; ``depth`` counts blocks.
    norm : Norm, or None
        In every branch.
    activation, init
        As in :class:`MLP`.
    skip : bool
        False leaves ``x +`` out: the same layers, plain.
    last_gamma : float, or None
        See above.
    branch_scale : float
        What each branch is multiplied by.
    """

    inputs: int = 64
    width: int = 32
    depth: int = 10
    classes: int = 10
    norm: Norm | None = None
    activation: str = "relu"
    init: str | float = "he"
    skip: bool = True
    last_gamma: float | None = None
    branch_scale: float = 1.0

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Weights (out, in), biases, and what the normalisers learn."""
        scale, width = knobs.get("init_scale", 1.0), self.width
        p = {"stem.weight": draw_weight((width, self.inputs), self.init, generator) * scale}
        for i in range(self.depth):
            for j in range(2):
                p[f"{i}.{j}.weight"] = draw_weight((width, width), self.init, generator) * scale
                p[f"{i}.{j}.bias"] = torch.zeros(width)
                p |= _norm_parameters(self.norm, width, f"{i}.{j}.norm.")
            if self.last_gamma is not None and f"{i}.1.norm.gamma" in p:
                p[f"{i}.1.norm.gamma"] = torch.full((width,), self.last_gamma)
        p |= _norm_parameters(self.norm, width, "end.norm.")
        p["head.weight"] = draw_weight((self.classes, width), self.init, generator) * scale
        p["head.bias"] = torch.zeros(self.classes)
        return p

    def buffers(self) -> dict[str, Tensor]:
        """What the normalisers keep."""
        places = [f"{i}.{j}.norm." for i in range(self.depth) for j in range(2)]
        b: dict[str, Tensor] = {}
        for place in [*places, "end.norm."]:
            b |= _norm_buffers(self.norm, self.width, place)
        return b

    def _normed(self, p: Mapping[str, Tensor], x: Tensor, place: str, run: Pass) -> Tensor:
        return x if self.norm is None else self.norm(x, p, f"{place}.norm.", run)

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, classes); traces ``"stem.out"`` and ``"i.out"`` after each block, (N, width)."""
        x = run.see("stem.out", nnf.linear(x, p["stem.weight"]))
        for i in range(self.depth):
            branch = x
            for j in range(2):
                place = f"{i}.{j}"
                if self.last_gamma is None:
                    branch = activate(self.activation, self._normed(p, branch, place, run))
                branch = nnf.linear(branch, p[f"{place}.weight"], p[f"{place}.bias"])
                if self.last_gamma is not None:
                    branch = self._normed(p, branch, place, run)
                    branch = activate(self.activation, branch) if j == 0 else branch
            branch = branch * self.branch_scale
            x = run.see(f"{i}.out", x + branch if self.skip else branch)
        x = activate(self.activation, self._normed(p, x, "end", run))
        return nnf.linear(x, p["head.weight"], p["head.bias"])


@dataclass(frozen=True)
class ConvNet(Network):
    """Convolutions of 3 x 3 with a normaliser and an activation, the mean over positions, a linear layer.

    Attributes
    ----------
    channels : tuple of int
        Of the image and of each convolution.
    strides : tuple of int
        Of each convolution.
    classes : int
    norm, activation, init
        As in :class:`MLP`.
    """

    channels: tuple[int, ...] = (1, 8, 16, 16)
    strides: tuple[int, ...] = (1, 2, 1)
    classes: int = 10
    norm: Norm | None = None
    activation: str = "relu"
    init: str | float = "he"

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(f"expected a stride for each of {len(self.channels) - 1} convolutions, got {self.strides}")

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Weights (out, in, 3, 3), biases, what the normaliser learns, and the last layer."""
        scale = knobs.get("init_scale", 1.0)
        p: dict[str, Tensor] = {}
        for i, (before, after) in enumerate(zip(self.channels[:-1], self.channels[1:], strict=True)):
            p[f"{i}.weight"] = draw_weight((after, before, 3, 3), self.init, generator) * scale
            p[f"{i}.bias"] = torch.zeros(after)
            p |= _norm_parameters(self.norm, after, f"{i}.norm.")
        p["head.weight"] = draw_weight((self.classes, self.channels[-1]), self.init, generator) * scale
        p["head.bias"] = torch.zeros(self.classes)
        return p

    def buffers(self) -> dict[str, Tensor]:
        """What the normaliser keeps."""
        b: dict[str, Tensor] = {}
        for i, after in enumerate(self.channels[1:]):
            b |= _norm_buffers(self.norm, after, f"{i}.norm.")
        return b

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, classes) for images (N, C, height, width); traces ``"i.linear"`` and ``"i.out"``."""
        for i, stride in enumerate(self.strides):
            x = nnf.conv2d(x, p[f"{i}.weight"], p[f"{i}.bias"], stride=stride, padding=1)
            x = run.see(f"{i}.linear", x)
            if self.norm is not None:
                x = self.norm(x, p, f"{i}.norm.", run)
            x = run.see(f"{i}.out", activate(self.activation, x))
        return nnf.linear(x.mean((2, 3)), p["head.weight"], p["head.bias"])
