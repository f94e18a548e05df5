"""Healthy PyTorch models: plain ones, and odd ways to train, freeze and feed them that are all right."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import bnlearn
from bnlearn.torch import MaskedBatchNorm

from ._case import Case, Entry, register
from ._torch import (
    ResNet,
    conv1d,
    convnet,
    cut,
    digits,
    features,
    images,
    loss_of,
    mlp,
    seeded,
    settle,
    standing,
    train,
    waves,
)

ENTRIES: list[Entry] = []
healthy = register(ENTRIES, "torch", seeded)


@healthy()
def perceptron(seed: int) -> Case:
    data = cut(*features())
    return Case(standing(train(mlp(16, 32, 32, 4), data), seed), data)


@healthy()
def deep_perceptron(seed: int) -> Case:
    data = cut(*features())
    return Case(standing(train(mlp(16, *[24] * 8, 4), data, 4), seed), data)


@healthy()
def norm_at_the_input(seed: int) -> Case:
    data = cut(*features())
    return Case(standing(train(nn.Sequential(nn.BatchNorm1d(16), mlp(16, 32, 4)), data), seed), data)


@healthy()
def norm_after_the_activation(seed: int) -> Case:
    data = cut(*digits())
    layers = [nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.ReLU()]
    return Case(standing(train(nn.Sequential(*layers, nn.BatchNorm1d(32), nn.Linear(32, 10)), data), seed), data)


@healthy()
def fresh_convnet(seed: int) -> Case:
    """About to be trained: that its statistics are new is no more than an info."""
    return Case(convnet(), cut(*digits()))


@healthy()
def convnet_on_digits(seed: int) -> Case:
    data = cut(*digits())
    return Case(standing(train(convnet(), data), seed), data)


@healthy()
def without_data(seed: int) -> Case:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return Case(standing(train(model, cut(*digits()), 1, optimizer=optimizer), seed), None, "", optimizer)


@healthy()
def shuffling_loader(seed: int) -> Case:
    x, y = digits()
    loader = torch.utils.data.DataLoader(list(zip(x, y, strict=True)), 32, shuffle=True)
    return Case(standing(train(convnet(), cut(x, y)), seed), loader)


@healthy()
def adam_with_groups(seed: int) -> Case:
    """Decay on the weights only."""
    data, model = cut(*images()), ResNet(3, classes=4)
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.05}]
    groups += [{"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3)
    return Case(standing(train(model, data, optimizer=optimizer), seed), data, "", optimizer)


@healthy()
def imbalanced_classes(seed: int) -> Case:
    x, y = features(1200)
    kept = (y == 0) | (torch.rand(1200) < 0.05)
    data = cut(x[kept], y[kept])[:-1]
    return Case(standing(train(mlp(16, 32, 32, 4), data, 4), seed), data)


@healthy()
def heavy_tails(seed: int) -> Case:
    """Log-normal features, as amounts of money are."""
    x, y = features(768)
    data = cut((x / x.std(0)).exp(), y, 64)
    return Case(standing(train(nn.Sequential(nn.BatchNorm1d(16), mlp(16, 32, 4)), data, 5), seed), data)


@healthy()
def sparse_features(seed: int) -> Case:
    """Counts of words, most of which are zero."""
    y = torch.randint(4, (1024,))
    x = torch.poisson((torch.randn(4, 48) - 1.5).exp()[y])
    data = cut(x, y, 64)
    return Case(standing(train(nn.Sequential(nn.BatchNorm1d(48), mlp(48, 32, 4)), data, 4), seed), data)


@healthy()
def one_hot_columns(seed: int) -> Case:
    y = torch.randint(4, (768,))
    x = torch.cat([nn.functional.one_hot(torch.randint(6, (768,))).float(), torch.randn(768, 4) + y[:, None]], 1)
    data = cut(x, y, 64)
    return Case(standing(train(mlp(10, 32, 32, 4), data, 4), seed), data)


@healthy()
def momentum_none(seed: int) -> Case:
    data = cut(*digits())
    model = train(convnet(), data)
    for norm in (model[1], model[4]):
        norm.momentum = None
    return Case(standing(settle(model, [x for x, _ in data]), seed), data)


@healthy()
def slow_momentum_and_long_enough(seed: int) -> Case:
    data = cut(*features())
    model = train(mlp(16, 32, 4, momentum=0.01), data)
    return Case(standing(settle(model, [x for x, _ in data]), seed), data)


@healthy()
def batches_of_unequal_size(seed: int) -> Case:
    x, y = digits(480)
    sizes = [64, 16, 48, 96, 32, 128, 40, 56]
    data = list(zip(x.split(sizes), y.split(sizes), strict=True))
    return Case(standing(train(convnet(), data, 5), seed), data)


@healthy()
def one_batch(seed: int) -> Case:
    data = cut(*features())
    return Case(standing(train(mlp(16, 32, 32, 4), data), seed), data[:1])


@healthy()
def two_batches(seed: int) -> Case:
    data = cut(*digits())
    return Case(standing(train(ResNet(), data), seed), data[:2])


@healthy()
def three_batches(seed: int) -> Case:
    data = cut(*waves())
    return Case(standing(train(conv1d(), data, 4), seed), data[:3])


@healthy()
def four_small_batches(seed: int) -> Case:
    data = cut(*features(), size=16)
    return Case(standing(train(mlp(16, 32, 32, 4), data), seed), data[:4])


@healthy()
def batches_of_sixteen(seed: int) -> Case:
    data = cut(*features(), size=16)
    return Case(standing(train(mlp(16, 48, 48, 4), data, 2, lr=0.02), seed), data)


@healthy()
def two_images_at_a_time(seed: int) -> Case:
    """Small batches of large maps: values enough."""
    data = cut(*images(64), size=2)
    return Case(standing(train(convnet(3, classes=4), data, 2, lr=0.01), seed), data)


@healthy()
def noise_as_augmentation(seed: int) -> Case:
    x, y = digits()

    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return x[i] + 0.3 * torch.randn_like(x[i]), y[i]

    model = train(convnet(), cut(x + 0.3 * torch.randn_like(x), y), 4)
    return Case(standing(model, seed), torch.utils.data.DataLoader(Noisy(), 32, shuffle=True))


@healthy()
def large_learning_rate(seed: int) -> Case:
    data = cut(*digits())
    return Case(standing(train(convnet(width=16), data, 6, lr=0.3), seed), data)


@healthy()
def frozen_with_the_package(seed: int) -> Case:
    """On other data than those that it was trained on, which is what freezing is for."""
    x, y = digits()
    model = train(convnet(), cut(x, y))
    bnlearn.freeze(model)
    data = cut(0.6 * x + 0.3, y)
    return Case(standing(train(model, data, 1, lr=0.01), seed), data)


class Backbone(nn.Sequential):
    """``train()`` overridden, as detection libraries do."""

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self


@healthy()
def frozen_by_overriding_train(seed: int) -> Case:
    x, y = digits()
    backbone = Backbone(*train(convnet(), cut(x, y))[:-1])
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(16, 10)).train()
    data = cut(1.4 * x, y)
    return Case(standing(train(model, data, 1, lr=0.01), seed), data)


@healthy()
def all_frozen_after_each_train(seed: int) -> Case:
    """A loop that sets every BatchNorm to evaluation after each ``train()``."""
    data = cut(*digits())
    model = train(ResNet(), data)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return Case(train(model, data, 1, lr=0.01), data)


@healthy()
def finetuned_as_a_whole(seed: int) -> Case:
    x, y = digits()
    model = train(convnet(), cut(x, y))
    model[-1] = nn.Linear(16, 2)
    data = cut(x, y % 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return Case(standing(train(model, data, optimizer=optimizer), seed), data, "", optimizer)


@healthy()
def moving_average_with_buffers(seed: int) -> Case:
    data = cut(*digits())
    model = train(convnet(), data)
    average = copy.deepcopy(model)
    for _ in range(6):
        train(model, data, 1, lr=0.01)
        with torch.no_grad():
            for ours, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                ours.copy_(ours.lerp(theirs, 0.5) if ours.is_floating_point() else theirs)
    return Case(standing(average, seed), data)


@healthy()
def averaged_with_update_bn(seed: int) -> Case:
    data = cut(*features())
    model = mlp(16, 48, 48, 4)
    average = torch.optim.swa_utils.AveragedModel(train(model, data))
    for _ in range(3):
        train(model, data, 1, lr=0.2)
        average.update_parameters(model)
    torch.optim.swa_utils.update_bn(data, average)
    return Case(standing(average, seed), data)


@healthy()
def pruned_and_recalibrated(seed: int) -> Case:
    data = cut(*digits())
    model = train(convnet(width=16), data)
    with torch.no_grad():
        for conv in (model[0], model[3]):
            conv.weight[conv.weight.abs() < conv.weight.abs().median()] = 0
    return Case(standing(settle(model, [x for x, _ in data]), seed), data)


@healthy()
def mixed_precision(seed: int) -> Case:
    """Activations in bfloat16, statistics in float32."""

    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convnet(width=8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x).float()

    data = cut(*digits(256))
    return Case(standing(train(Autocast(), data), seed), data)


@healthy()
def double_precision(seed: int) -> Case:
    x, y = features()
    data = cut(x.double(), y)
    return Case(standing(train(mlp(16, 32, 32, 4).double(), data), seed), data)


@healthy()
def images_with_outliers(seed: int) -> Case:
    """One image in a hundred is eight times as bright, and scales its whole batch down."""
    x, y = digits()
    x[::97] *= 8
    data = cut(x, y)
    return Case(standing(train(convnet(), data), seed), data)


@healthy()
def padding_left_out(seed: int) -> Case:
    """Sequences of different lengths, and layers that get the mask."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv1d(4, 12, 5, padding=2, bias=False), MaskedBatchNorm(12)
            self.conv2, self.norm2 = nn.Conv1d(12, 12, 3, padding=1, bias=False), MaskedBatchNorm(12)
            self.out = nn.Linear(12, 3)

        def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
            x, real = given
            x = self.norm1(self.conv1(x), real).relu()
            x = self.norm2(self.conv2(x), real).relu()
            return self.out(x.sum(2) / real.sum(1, keepdim=True))

    x, y = waves(512)
    real = torch.arange(24) < torch.randint(4, 25, (512, 1))
    x = torch.where(real[:, None], x, 0.0)
    data = [((a, b), c) for a, b, c in zip(x.split(32), real.split(32), y.split(32), strict=True)]
    return Case(standing(train(Reader(), data), seed), data, mask=lambda batch: batch[0][1])


@healthy()
def distilled_from_a_teacher(seed: int) -> Case:
    """Two networks in one, of which one is frozen for good by ``eval`` in ``train``."""

    class Pair(nn.Module):
        def __init__(self, teacher: nn.Module) -> None:
            super().__init__()
            self.teacher, self.student = teacher.requires_grad_(False), mlp(16, 16, 4)

        def train(self, mode: bool = True) -> Pair:
            super().train(mode)
            self.teacher.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x) - self.teacher(x)

    data = cut(*features())
    model = Pair(train(mlp(16, 32, 4), data)).train()
    optimizer = torch.optim.SGD(model.student.parameters(), 0.05)
    for _ in range(3):
        for x, _ in data:
            optimizer.zero_grad()
            loss_of(model, x, torch.zeros(len(x), dtype=torch.int64)).backward()
            optimizer.step()
    return Case(standing(model, seed), data, "", optimizer)
