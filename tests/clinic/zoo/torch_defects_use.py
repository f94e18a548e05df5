"""PyTorch models with a defect in what arrives at a layer: BN3xx."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._case import Case, Entry, register
from ._torch import ResNet, conv1d, convnet, cut, digits, features, images, mlp, seeded, standing, train, waves

ENTRIES: list[Entry] = []
defect = register(ENTRIES, "torch", seeded)


@defect("BN301")
def without_running_statistics(seed: int) -> Case:
    data = cut(*images())
    return Case(standing(train(convnet(3, classes=4, track_running_stats=False), data), seed), data, "4")


class AlwaysTraining(nn.Sequential):
    """What the generator of an image-to-image GAN does to keep its dropout."""

    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)


@defect("BN301")
def evaluation_overridden(seed: int) -> Case:
    return Case(AlwaysTraining(*train(convnet(), cut(*digits()))).eval(), None, "1")


class Forgotten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)
        self.bn1, self.bn2, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.head(functional.relu(self.conv2(x)).mean((2, 3)))


@defect("BN302")
def forgotten_in_forward(seed: int) -> Case:
    data = cut(*digits())
    return Case(standing(train(Forgotten(), data), seed), data, "bn2")


@defect("BN302")
def unused_shortcut(seed: int) -> Case:
    """Each block makes the shortcut's layers, and uses them only where the width changes."""
    data = cut(*digits())
    model = ResNet()
    model.blocks[0].shortcut = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    return Case(standing(train(model, data, 2), seed), data, "blocks.0.shortcut.1")


class Adversaries(nn.Module):
    """A GAN early in training: the discriminator sees real and generated images in batches of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
        self.discriminator = convnet(classes=2)

    def forward(self, real: Tensor) -> Tensor:
        fake = self.generator(torch.randn(len(real), 16))
        return torch.cat([self.discriminator(real), self.discriminator(fake)], 1)


@defect("BN303")
def real_and_fake_apart(seed: int) -> Case:
    x, y = images(256, 8)
    data = cut(4 * x.mean(1, keepdim=True) - 1, y)
    return Case(standing(train(Adversaries(), data, 2), seed), data, "discriminator.1")


class Pyramid(nn.Module):
    """One head for the levels of a feature pyramid, whose deeper levels are larger in amplitude."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 8, 3, 2, 1), nn.ReLU()) for c in (3, 8))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        with torch.no_grad():
            self.levels[1][0].weight.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(self.head(x).mean((2, 3)))
        return torch.stack(maps).sum(0)


@defect("BN303")
def head_shared_over_scales(seed: int) -> Case:
    data = cut(*images())
    return Case(standing(train(Pyramid(), data, lr=0.01), seed), data, "head.1")


class Recurrent(nn.Module):
    """A recurrent network with one BatchNorm for all steps: the state starts at zero and grows."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.back = nn.Linear(4, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.bn, self.head = nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 16)
        for step in range(0, x.shape[-1], 6):
            state = torch.relu(self.bn(self.enter(x[:, :, step]) + self.back(state)))
        return self.head(state)


@defect("BN303")
def one_layer_for_all_steps(seed: int) -> Case:
    data = cut(*waves())
    model = Recurrent()
    nn.init.orthogonal_(model.back.weight, 1.5)
    return Case(standing(train(model, data, lr=0.01), seed), data, "bn")


@defect("BN303")
def two_domains(seed: int) -> Case:
    """A twin network for sketches and photographs."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = convnet()

        def forward(self, x: Tensor) -> Tensor:
            return self.tower(x) - self.tower((x > 0.5).float() * 3)

    data = cut(*digits())
    return Case(standing(train(Twins(), data, 1, lr=0.01), seed), data, "tower.1")


@defect("BN304")
def batches_of_eight(seed: int) -> Case:
    data = cut(*features(), size=8)
    return Case(standing(train(mlp(16, 32, 4), data, 1), seed), data, "1")


@defect("BN304")
def after_global_pooling(seed: int) -> Case:
    """As in the image branch of a segmentation network: one value per channel and image, and four images."""
    data = cut(*digits(256), size=4)
    model = nn.Sequential(
        *convnet()[:6], nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    )
    model.append(nn.Flatten()).append(nn.Linear(16, 10))
    return Case(standing(train(model, data, 1), seed), data, "8")


@defect("BN304")
def small_last_batch(seed: int) -> Case:
    data = cut(*features(32 * 8 + 5))
    return Case(standing(train(mlp(16, 24, 24, 4), data), seed), data, "4")


@defect("BN305")
def units_that_never_open(seed: int) -> Case:
    """After a step that was too large, some units are below zero for every sample."""
    data = cut(*features())
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].bias[:5] -= 200
    return Case(standing(train(model, data), seed), data, "2")


@defect("BN305")
def border_of_the_image(seed: int) -> Case:
    """Pixels that are always background, and a BatchNorm at the input."""
    x, y = digits()
    x = functional.pad(x - x.amin(), (1, 1, 1, 1)).flatten(1)
    data = cut(x, y)
    model = nn.Sequential(nn.BatchNorm1d(100), nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 10))
    return Case(standing(train(model, data), seed), data, "0")


@defect("BN305")
def gammas_of_zero_without_a_way_around(seed: int) -> Case:
    """As at the end of a residual block, where the block's input passes by; here nothing does."""
    data, model = cut(*digits()), convnet()
    nn.init.zeros_(model[1].weight)
    return Case(standing(train(model, data), seed), data, "4")


@defect("BN306")
def moving_average_of_parameters(seed: int) -> Case:
    """The average starts as a copy of the young model, and takes in its parameters only."""
    data = cut(*digits(), size=64)
    model = train(convnet(width=16), data, 1, lr=0.02)
    average = copy.deepcopy(model)
    for _ in range(5):
        train(model, data, 1, lr=0.2)
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
                ours.lerp_(theirs, 0.6)
    return Case(standing(average, seed), data, "4")


@defect("BN306")
def pixels_up_to_255(seed: int) -> Case:
    x, y = images()
    return Case(train(convnet(3, classes=4), cut(x, y)).eval(), cut(255 * x, y), "1")


@defect("BN306")
def statistics_of_another_checkpoint(seed: int) -> Case:
    """Weights by ``named_parameters()``, into a network pretrained on something else."""
    x, y = features()
    model = train(mlp(16, 32, 32, 4), cut(0.2 * x, y))
    other = train(mlp(16, 32, 32, 4), cut(x, y))
    model.load_state_dict(dict(other.named_parameters()), strict=False)
    return Case(standing(model, seed), cut(x, y), "1")


@defect("BN306")
def momentum_too_slow(seed: int) -> Case:
    x, y = waves()
    data = cut(2 * x + 1, y)
    return Case(standing(train(conv1d(momentum=0.001), data), seed), data, "1")


@defect("BN306")
def pruned_by_magnitude(seed: int) -> Case:
    data = cut(*digits())
    model = train(ResNet(width=16), data, 2)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight[module.weight.abs() < module.weight.abs().quantile(0.8)] = 0
    return Case(model.eval(), data, "stem.1")


@defect("BN306")
def other_colour_channels(seed: int) -> Case:
    """Standardised for training, and not standardised since."""
    x, y = images()
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return Case(train(ResNet(3, classes=4), cut((x - mean) / std, y), 2).eval(), cut(x, y), "stem.1")


@defect("BN307")
def sorted_by_class(seed: int) -> Case:
    x, y = digits()
    order = y.argsort()
    model = train(convnet(), cut(x, y), 4)
    return Case(standing(model, seed), cut(x[order], y[order]), "1")


@defect("BN307")
def one_patient_in_each_batch(seed: int) -> Case:
    x, y = features()
    offsets = x.std(0) * torch.randn(16, 1, 16)
    data = cut((x.unflatten(0, (16, 32)) + offsets).flatten(0, 1), y)
    return Case(standing(train(mlp(16, 32, 4), data), seed), data, "1")


@defect("BN307")
def rare_cases_at_the_end(seed: int) -> Case:
    """A table in which the few cases of interest were added last."""
    x, y = features(2048)
    x[-24:] += 2.5 * x.std(0)
    data = cut(x, y)
    return Case(standing(train(nn.Sequential(nn.BatchNorm1d(16), *mlp(16, 32, 4)), data, 2), seed), data, "0")


@defect("BN307")
def frames_of_a_video(seed: int) -> Case:
    """Neighbouring frames are alike, and a batch is one clip."""
    clips, y = images(12)
    x = clips.repeat_interleave(24, 0)
    data = cut(x + 0.05 * torch.randn_like(x), y.repeat_interleave(24), 24)
    return Case(standing(train(ResNet(3, classes=4), data, 1), seed), data, "stem.1")


@defect("BN308")
def dropout_before_the_layer(seed: int) -> Case:
    data = cut(*features(1024), size=64)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 4))
    return Case(standing(train(model, data), seed), data, "3")


@defect("BN308")
def dropout_at_the_input(seed: int) -> Case:
    data = cut(*digits(1024), size=64)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), mlp(64, 64, 10))
    return Case(standing(train(model, data), seed), data, "2.1")


@defect("BN308")
def dropout_between_convolutions(seed: int) -> Case:
    data = cut(*images(512), size=64)
    model = convnet(3, classes=4)
    model.insert(2, nn.Dropout2d(0.5))
    return Case(standing(train(model, data, 2), seed), data, "5")


@defect("BN309")
def evaluation_of_another_network(seed: int) -> Case:
    """The moving average of parameters again: this is what its user sees."""
    case = moving_average_of_parameters(seed)
    return Case(case.model, case.data)


@defect("BN309")
def weights_averaged_without_update_bn(seed: int) -> Case:
    """The statistics of each layer are not far off, and the errors add up."""
    data = cut(*digits())
    model = convnet(width=16)
    average = torch.optim.swa_utils.AveragedModel(train(model, data, 1, lr=0.01))
    for _ in range(4):
        train(model, data, 2, lr=0.3)
        average.update_parameters(model)
    return Case(average.eval(), data)


@defect("BN309")
def statistics_from_other_units(seed: int) -> Case:
    x, y = waves()
    return Case(standing(train(conv1d(), cut(10 * x + 5, y)), seed), cut(x, y))


def _padded() -> list[tuple[Tensor, Tensor, Tensor]]:
    x, y = waves(384)
    length = torch.randint(4, 24, (384, 1))
    real = torch.arange(24) < length
    return list(zip((torch.where(real[:, None], x + 2, 0.0)).split(32), y.split(32), real.split(32), strict=True))


@defect("BN310")
def padded_sequences(seed: int) -> Case:
    data = _padded()
    model = nn.Sequential(nn.BatchNorm1d(4), conv1d())
    train(model, [batch[:2] for batch in data])
    return Case(standing(model, seed), data, "0", mask=2)


@defect("BN310")
def padded_behind_a_convolution(seed: int) -> Case:
    data = _padded()
    return Case(standing(train(conv1d(), [batch[:2] for batch in data]), seed), data, "1", mask=lambda batch: batch[2])


@defect("BN311")
def one_sample_left_over(seed: int) -> Case:
    data = cut(*features(32 * 8 + 1))
    return Case(standing(train(mlp(16, 32, 32, 4), data[:-1]), seed), data, "1")


@defect("BN311")
def one_pooled_image_left_over(seed: int) -> Case:
    x, y = digits(32 * 6 + 1)
    model = nn.Sequential(*convnet()[:-1], nn.BatchNorm1d(16), nn.Linear(16, 10))
    train(model, cut(x[:-1], y[:-1]))
    loader = torch.utils.data.DataLoader(list(zip(x, y, strict=True)), 32)
    return Case(standing(model, seed), loader, "8")


@defect("BN312")
def missing_value(seed: int) -> Case:
    x, y = features()
    model = train(mlp(16, 32, 32, 4), cut(x, y))
    x[77, 3] = float("nan")
    return Case(standing(model, seed), cut(x, y), "1")


@defect("BN312")
def logarithm_of_silence(seed: int) -> Case:
    x, y = waves()
    model = train(conv1d(), cut(x.abs().add(0.01).log(), y))
    x[40, :, 5:] = 0
    return Case(standing(model, seed), cut(x.abs().log(), y), "1")
