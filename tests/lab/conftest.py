"""The lab's networks as plain PyTorch modules, trained by an ordinary loop with PyTorch's own optimisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlearn import lab

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "linear": nn.Identity,
}


def norm_of(norm: lab.Norm | None, channels: int, *, images: bool = False) -> nn.Module:
    given = {} if norm is None else {"eps": norm.eps}
    match norm:
        case None:
            return nn.Identity()
        case lab.BatchNorm():
            kind = nn.BatchNorm2d if images else nn.BatchNorm1d
            return kind(channels, momentum=norm.momentum, affine=norm.affine, **given)
        case lab.LayerNorm():
            return nn.GroupNorm(1, channels, affine=norm.affine, **given)
        case lab.GroupNorm():
            return nn.GroupNorm(norm.groups, channels, affine=norm.affine, **given)
        case lab.RMSNorm():
            return nn.RMSNorm(channels, elementwise_affine=norm.affine, **given)
    raise AssertionError(norm)


def mlp(network: lab.MLP) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(network.hidden):
        linear = nn.Linear(network.sizes[i], network.sizes[i + 1], bias=network.bias)
        norm, active = norm_of(network.norm, network.sizes[i + 1]), ACTIVATIONS[network.activation]()
        layers += [linear, norm, active] if network.order == "before" else [linear, active, norm]
    return nn.Sequential(*layers, nn.Linear(*network.sizes[-2:]))


def convolutional(network: lab.ConvNet) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, stride in enumerate(network.strides):
        before, after = network.channels[i : i + 2]
        layers += [nn.Conv2d(before, after, 3, stride, 1), norm_of(network.norm, after, images=True)]
        layers += [ACTIVATIONS[network.activation]()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(network.channels[-1], network.classes))


class Block(nn.Module):
    def __init__(self, network: lab.ResidualMLP) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Linear(network.width, network.width), norm_of(network.norm, network.width)
        self.second, self.second_norm = nn.Linear(network.width, network.width), norm_of(network.norm, network.width)
        self.active, self.network = ACTIVATIONS[network.activation](), network

    def forward(self, x: Tensor) -> Tensor:
        if self.network.last_gamma is None:
            branch = self.first(self.active(self.first_norm(x)))
            branch = self.second(self.active(self.second_norm(branch)))
        else:
            branch = self.active(self.first_norm(self.first(x)))
            branch = self.second_norm(self.second(branch))
        branch = branch * self.network.branch_scale
        return x + branch if self.network.skip else branch


def residual(network: lab.ResidualMLP) -> nn.Sequential:
    blocks = [Block(network) for _ in range(network.depth)]
    end = [norm_of(network.norm, network.width), ACTIVATIONS[network.activation]()]
    stem = nn.Linear(network.inputs, network.width, bias=False)
    return nn.Sequential(stem, *blocks, *end, nn.Linear(network.width, network.classes))


MAKERS: dict[type, Callable[..., nn.Sequential]] = {
    lab.MLP: mlp,
    lab.ConvNet: convolutional,
    lab.ResidualMLP: residual,
}


@dataclass
class Plain:
    """A plain module with the weights that a replica starts from, and the batches it sees."""

    module: nn.Sequential
    names: list[str]
    batches: list[tuple[Tensor, Tensor]]

    def parameters(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.module.parameters(), strict=True))

    def loss(self, step: int) -> Tensor:
        x, y = self.batches[step]
        return nn.functional.cross_entropy(self.module(x), y)

    def gradients(self, step: int) -> dict[str, Tensor]:
        found = torch.autograd.grad(self.loss(step), list(self.module.parameters()))
        return dict(zip(self.names, found, strict=True))

    def train(self, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        for step in range(steps):
            optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


def plain(network: lab.Network, *, seed: int, steps: int, batch_size: int = 32, data: lab.Data | None = None) -> Plain:
    module = MAKERS[type(network)](network)
    start = network.parameters(torch.Generator().manual_seed(seed), {})
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), start.values(), strict=True):
            parameter.copy_(value)
    part = (data or lab.Data()).load().train
    order = lab.shuffled(part.y.numpy(), batch_size, steps + 1, np.random.default_rng(seed))
    return Plain(module, list(start), [(part.x[row], part.y[row]) for row in order])


@pytest.fixture(name="plain")
def _plain() -> Callable[..., Plain]:
    return plain


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
