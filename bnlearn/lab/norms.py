r"""Normalisers for the networks of the lab: parameters and buffers apart, the arithmetic :mod:`bnlearn.functional`'s.

Each is a frozen dataclass that says what it learns and what it keeps for one network, and applies itself to the
activations of one network, (N, C) or (N, C, \*spatial); the engine runs many networks at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bnlearn import functional

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "Norm", "Pass", "RMSNorm"]


@dataclass
class Pass:
    """What goes with one forward pass of one network.

    Attributes
    ----------
    training : bool
        Whether statistics are the batch's, and noise is drawn.
    knobs : mapping of str to scalar tensor
        The replica's hyperparameters: what a grid varies (``lr`` among them) and what an arm fixes.
    noise : mapping of str to tensor
        Uniform numbers in [0, 1), of the shapes that :meth:`~bnlearn.lab.Network.noise` asks for; empty in evaluation.
    buffers : dict of str to tensor
        What is kept from step to step and not learnt; a network writes the new values here.
    trace : dict of str to tensor, or None
        Where a network writes its activations, if anybody wants them.
    """

    training: bool
    knobs: Mapping[str, Tensor]
    noise: Mapping[str, Tensor]
    buffers: dict[str, Tensor]
    trace: dict[str, Tensor] | None = None

    def see(self, name: str, values: Tensor) -> Tensor:
        """Write ``values`` into the trace, if there is one, and return them."""
        if self.trace is not None:
            self.trace[name] = values
        return values


@dataclass(frozen=True)
class Norm(ABC):
    """A normaliser with a scale and a shift per channel.

    Attributes
    ----------
    eps : float
        Added to the variance.
    affine : bool
        Whether gamma and beta are learnt.
    gamma : float
        What gamma starts from.
    """

    eps: float = 1e-5
    affine: bool = True
    gamma: float = 1.0

    def parameters(self, channels: int) -> dict[str, Tensor]:
        """What is learnt: gamma and beta, shape (C,)."""
        if not self.affine:
            return {}
        return {"gamma": torch.full((channels,), self.gamma), "beta": torch.zeros(channels)}

    def buffers(self, channels: int) -> dict[str, Tensor]:
        """What is kept: nothing, unless a subclass says otherwise."""
        return {}

    @abstractmethod
    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        r"""The normalised ``x``, shape (N, C, \*spatial); its parameters are those of ``p`` named ``prefix`` + name."""

    def _affine(self, p: Mapping[str, Tensor], prefix: str) -> tuple[Tensor | None, Tensor | None]:
        return p.get(f"{prefix}gamma"), p.get(f"{prefix}beta")


@dataclass(frozen=True)
class BatchNorm(Norm):
    """Over the batch and the positions, with PyTorch's running statistics (Ioffe and Szegedy, 2015).

    Attributes
    ----------
    momentum : float
        Weight of the new batch; a knob named ``bn_momentum`` takes its place.
    live : bool
        Normalise with the batch's own statistics in evaluation too.
    """

    momentum: float = 0.1
    live: bool = False

    def buffers(self, channels: int) -> dict[str, Tensor]:
        """The running mean and variance, shape (C,)."""
        return {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``; in training the running statistics move."""
        gamma, beta = self._affine(p, prefix)
        mean_name, var_name = f"{prefix}running_mean", f"{prefix}running_var"
        if not (run.training or self.live):
            mean, var = run.buffers[mean_name], run.buffers[var_name]
            y: Tensor = functional.batch_norm(x, gamma, beta, mean=mean, var=var, eps=self.eps)[0]
            return y
        y, cache = functional.batch_norm(x, gamma, beta, eps=self.eps)
        if run.training:
            mean, var = run.buffers[mean_name], run.buffers[var_name]
            n = x.numel() // x.shape[1]
            new = functional.update_running(mean, var, cache.mean, cache.var, n, momentum=1.0)
            momentum = run.knobs.get("bn_momentum", self.momentum)
            run.buffers[mean_name] = (1 - momentum) * mean + momentum * new[0]
            run.buffers[var_name] = (1 - momentum) * var + momentum * new[1]
        return y


@dataclass(frozen=True)
class LayerNorm(Norm):
    """Over the channels (and positions) of each sample (Ba, Kiros and Hinton, 2016)."""

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``, with gamma and beta per channel."""
        y: Tensor = functional.group_norm(x, *self._affine(p, prefix), groups=1, eps=self.eps)[0]
        return y


@dataclass(frozen=True)
class GroupNorm(Norm):
    """Over groups of the channels (and positions) of each sample (Wu and He, 2018).

    Attributes
    ----------
    groups : int
        How many; it divides the channels.
    """

    groups: int = 4

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``."""
        y: Tensor = functional.group_norm(x, *self._affine(p, prefix), groups=self.groups, eps=self.eps)[0]
        return y


@dataclass(frozen=True)
class RMSNorm(Norm):
    """The root mean square over the channels of each sample, without centring (Zhang and Sennrich, 2019)."""

    def parameters(self, channels: int) -> dict[str, Tensor]:
        """What is learnt: gamma, shape (C,)."""
        return {name: value for name, value in super().parameters(channels).items() if name == "gamma"}

    def __call__(self, x: Tensor, p: Mapping[str, Tensor], prefix: str, run: Pass) -> Tensor:
        """The normalised ``x``, shape (N, C)."""
        y: Tensor = functional.rms_norm(x, p.get(f"{prefix}gamma"), eps=self.eps)[0]
        return y
