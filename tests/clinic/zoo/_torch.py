"""Data and training in PyTorch for the zoo: a few quick steps, after which the running statistics are genuine."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bnlearn.datasets import load_digits

Batches = list[tuple[Tensor, Tensor]]

CATCH_UP = 40
"""Forward passes at the end of a training: 0.9 ** 40 of what was in the running statistics before is left, some 1 %."""


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what the libraries under test draw from


def features(n: int = 512, width: int = 16, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Correlated features on scales of their own, with some classes in them; (n, width)."""
    y = torch.randint(classes, (n,))
    mix = torch.randn(width, width) / width**0.5
    x = (torch.randn(n, width) + 1.5 * torch.randn(classes, width)[y]) @ mix
    return x * torch.rand(width).mul(2).exp() + torch.randn(width), y


@cache
def _digits() -> tuple[Tensor, Tensor]:
    part = load_digits().train
    return torch.from_numpy(part.x), torch.from_numpy(part.y)


def digits(n: int = 512) -> tuple[Tensor, Tensor]:
    """Scanned digits, standardised; (n, 1, 8, 8)."""
    x, y = _digits()
    chosen = torch.randperm(len(x))[:n]
    return x[chosen], y[chosen]


def images(n: int = 256, size: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Smooth colour images in (0, 1), with a pattern for each class; (n, 3, size, size)."""
    y = torch.randint(classes, (n,))
    coarse = torch.randn(n, 3, 4, 4) + torch.randn(classes, 3, 4, 4)[y] + 0.7 * torch.randn(n, 1, 1, 1)
    return functional.interpolate(coarse, size=(size, size), mode="bilinear").sigmoid(), y


def waves(n: int = 256, channels: int = 4, length: int = 24, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Noisy waves, whose frequency is the class; (n, channels, length)."""
    y = torch.randint(classes, (n,))
    time = torch.linspace(0, 6.3, length)
    phase = 6.3 * torch.rand(n, channels, 1)
    return torch.sin((y[:, None, None] + 1) * time + phase) + 0.5 * torch.randn(n, channels, length), y


def cut(x: Tensor, y: Tensor, size: int = 32) -> Batches:
    """Into batches, in the order given (the data are drawn at random already)."""
    return list(zip(x.split(size), y.split(size), strict=True))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    out = model(x)
    return functional.cross_entropy(out, y) if out.dim() == 2 else out.square().mean()


def train(
    model: nn.Module,
    batches: Batches,
    epochs: int = 3,
    lr: float = 0.05,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """An ordinary loop, with the batches in another order in each epoch; in the mode that the model stands in.

    At the end the rate is zero, and the running statistics catch up, as they do where it decays.
    """
    optimizer = optimizer or torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr, momentum=0.9)
    for _ in range(epochs):
        for i in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            loss_of(model, *batches[i]).backward()
            optimizer.step()
    with torch.no_grad():
        for i in torch.randint(len(batches), (CATCH_UP,)).tolist():
            model(batches[i][0])
    return model


@torch.no_grad()
def settle(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Running statistics as the plain average over the batches, which is where a long training ends."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for x in batches:
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def standing(model: nn.Module, seed: int) -> nn.Module:
    """As users hand it over: in either mode."""
    return model.train(seed % 2 == 0)


def mlp(*widths: int, **settings: object) -> nn.Sequential:
    """Linear, BatchNorm1d, ReLU for each width but the last; BN layers are "1", "4", ..."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, **settings), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def convnet(channels: int = 1, width: int = 8, classes: int = 10, **settings: object) -> nn.Sequential:
    """Two convolutions; the BN layers are "1" and "4"."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width, **settings),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width, **settings),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


class Block(nn.Module):
    """A residual block; ``zero`` starts its last gamma at 0."""

    def __init__(self, width: int, zero: bool = False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        if zero:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """A small one; the first BN layer is "stem.1", then "blocks.0.bn1", ..."""

    def __init__(self, channels: int = 1, width: int = 8, blocks: int = 2, classes: int = 10, zero: bool = False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(Block(width, zero) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(functional.relu(self.stem(x))).mean((2, 3)))


def conv1d(channels: int = 4, width: int = 12, classes: int = 3, **settings: object) -> nn.Sequential:
    """The BN layers are "1" and "4"."""
    return nn.Sequential(
        nn.Conv1d(channels, width, 5, padding=2, bias=False),
        nn.BatchNorm1d(width, **settings),
        nn.GELU(),
        nn.Conv1d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm1d(width, **settings),
        nn.GELU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )
