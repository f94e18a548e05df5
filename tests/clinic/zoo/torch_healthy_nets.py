"""Healthy PyTorch models of many architectures, some of them from transformers, made small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._case import Case, Entry, register
from ._torch import ResNet, conv1d, convnet, cut, digits, features, images, mlp, seeded, settle, standing, train, waves

ENTRIES: list[Entry] = []
healthy = register(ENTRIES, "torch", seeded)


def _trained(model: nn.Module, data: Any, seed: int, epochs: int = 3, lr: float = 0.05) -> Case:
    return Case(standing(train(model, data, epochs, lr), seed), data)


@healthy()
def residual(seed: int) -> Case:
    return _trained(ResNet(), cut(*digits()), seed)


@healthy()
def residual_with_gamma_zero(seed: int) -> Case:
    return _trained(ResNet(zero=True), cut(*digits()), seed)


@healthy()
def residual_on_images(seed: int) -> Case:
    return _trained(ResNet(3, classes=4), cut(*images()), seed, 4)


@healthy()
def one_dimension(seed: int) -> Case:
    return _trained(conv1d(), cut(*waves()), seed, 4)


@healthy()
def three_dimensions(seed: int) -> Case:
    x, y = images(128, 8)
    x = torch.stack([x, x.roll(1, 2), x.roll(2, 2)], 2)
    layers = [nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1)]
    return _trained(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)), cut(x, y, 16), seed, 4)


@healthy()
def depthwise_separable(seed: int) -> Case:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
        layers += [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return _trained(nn.Sequential(*layers), cut(*images()), seed)


@healthy()
def without_affine(seed: int) -> Case:
    return _trained(convnet(affine=False), cut(*digits()), seed)


@healthy()
def groups_and_layers(seed: int) -> Case:
    """No BatchNorm at all."""
    layers = [nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.LayerNorm(288), nn.Linear(288, 10)]
    return _trained(nn.Sequential(*layers), cut(*digits()), seed, 1)


@healthy()
def layer_norm_beside_batch_norm(seed: int) -> Case:
    layers = [nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32)]
    return _trained(nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 4)), cut(*features()), seed)


@healthy()
def dropout_after_the_last_layer(seed: int) -> Case:
    model = convnet()
    model.insert(8, nn.Dropout(0.5))
    return _trained(model, cut(*digits()), seed)


@healthy()
def little_dropout_before(seed: int) -> Case:
    layers = [nn.Linear(16, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 48, bias=False), nn.BatchNorm1d(48)]
    return _trained(nn.Sequential(*layers, nn.ReLU(), nn.Linear(48, 4)), cut(*features()), seed)


class Paths(ResNet):
    """Stochastic depth: whole samples' residual paths are dropped, up to a fifth of them in the last block."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for i, block in enumerate(self.blocks, 1):
            kept = 1 - 0.2 * i / len(self.blocks)
            inner = block.bn2(block.conv2(functional.relu(block.bn1(block.conv1(x)))))
            if self.training:
                inner = inner * (torch.rand(len(x), 1, 1, 1) < kept) / kept
            x = functional.relu(x + inner)
        return self.head(x.mean((2, 3)))


@healthy()
def stochastic_depth(seed: int) -> Case:
    return _trained(Paths(blocks=3), cut(*digits()), seed)


class Sequence(nn.Module):
    """Recurrent, with BatchNorm on the inputs and on what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gru = nn.BatchNorm1d(4), nn.GRU(4, 16, batch_first=True)
        self.leave, self.head = nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.leave(self.gru(self.enter(x).mT)[0][:, -1]))


@healthy()
def recurrent_head(seed: int) -> Case:
    return _trained(Sequence(), cut(*waves(384), size=48), seed, 6)


@healthy()
def transformer(seed: int) -> Case:
    """Without BatchNorm."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Linear(4, 16), layer, nn.Flatten(), nn.Linear(64, 4))
    return _trained(model, cut(*features(128)), seed, 1)


class Siamese(nn.Module):
    """Two views of one image through one network."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(*convnet(classes=16), nn.BatchNorm1d(16, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        noisy = x + 0.3 * torch.randn_like(x)
        return torch.stack([self.tower(noisy), self.tower(x + 0.3 * torch.randn_like(x))])


@healthy()
def siamese(seed: int) -> Case:
    return _trained(Siamese(), cut(*digits(), size=64), seed, 4, lr=0.01)


class Adversaries(nn.Module):
    """A GAN late in training: generated images are nearly distributed as the real ones are."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = convnet(classes=2)

    def forward(self, real: Tensor) -> Tensor:
        fake = 0.95 * real[torch.randperm(len(real))] + 0.2 * torch.randn_like(real)
        return torch.cat([self.discriminator(real), self.discriminator(fake)], 1)


@healthy()
def real_and_fake_alike(seed: int) -> Case:
    x, y = digits()
    return _trained(Adversaries(), cut(x, y % 2), seed)


@healthy()
def generator(seed: int) -> Case:
    """DCGAN's: transposed convolutions of small weights."""
    layers: list[nn.Module] = [nn.Linear(16, 64, bias=False), nn.Unflatten(1, (16, 2, 2)), nn.BatchNorm2d(16)]
    layers += [nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh()]
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.02)
    x = torch.randn(512, 16)
    return _trained(model, cut(x, torch.zeros(512), 64), seed, 5, lr=0.005)


class Unet(nn.Module):
    """One level down and up, with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.down(x)
        return {"logits": self.head(self.merge(torch.cat([fine, self.up(self.middle(fine))], 1)))}


@healthy()
def skip_connection_and_a_dictionary(seed: int) -> Case:
    data = cut(*images(160), size=16)
    return Case(standing(settle(Unet(), [x for x, _ in data]), seed), data)


class Squeeze(nn.Module):
    """Channels weighed by what a small network with a BatchNorm makes of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.weigh = nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.conv(x)))
        gate = torch.sigmoid(self.weigh(x.mean((2, 3))))
        return self.head((x * gate[..., None, None]).mean((2, 3)))


@healthy()
def squeeze_and_excite(seed: int) -> Case:
    return _trained(Squeeze(), cut(*digits(), size=64), seed, 5)


class PointNet(nn.Module):
    """Points as positions, then a maximum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(4, 24, 1, bias=False), nn.BatchNorm1d(24), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).amax(-1))


@healthy()
def set_of_points(seed: int) -> Case:
    return _trained(PointNet(), cut(*waves(512), size=64), seed, 6)


@healthy()
def rows_of_many_samples(seed: int) -> Case:
    """Positions flattened into the first axis before the layer."""
    inner = nn.Sequential(nn.Flatten(0, 1), nn.Linear(24, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU())
    model = nn.Sequential(inner, nn.Unflatten(0, (-1, 4)), nn.Flatten(), nn.Linear(64, 3))
    return _trained(model, cut(*waves()), seed, 5)


@healthy()
def mask_with_little_padding(seed: int) -> Case:
    x, y = waves(384)
    real = torch.arange(24) < torch.randint(22, 25, (384, 1))
    x = torch.where(real[:, None], x, 0.0)
    data = list(zip(x.split(32), y.split(32), real.split(32), strict=True))
    model = train(conv1d(), [batch[:2] for batch in data], 4)
    return Case(standing(model, seed), data, mask=2)


@healthy()
def channels_last(seed: int) -> Case:
    x, y = images()
    data = cut(x.to(memory_format=torch.channels_last), y)
    return _trained(convnet(3, classes=4).to(memory_format=torch.channels_last), data, seed)


@healthy()
def wide_eps_range(seed: int) -> Case:
    """Keras's epsilon of 1e-3, in a network moved from there."""
    return _trained(convnet(3, classes=4, eps=1e-3, momentum=0.1), cut(*images()), seed)


@healthy()
def regression_on_raw_units(seed: int) -> Case:
    """Inputs of thousands, whose mean is far from zero: the layer is there for that."""
    x, y = features()
    data = cut(1e3 * x + 5e4, y)
    model = nn.Sequential(nn.BatchNorm1d(16), mlp(16, 32, 4))
    return _trained(model, data, seed, 5)


def transformers_model(kind: str, seed: int, as_published: bool = False, **settings: Any) -> Case:
    """Random weights, statistics of its data; ``settings`` make the configuration small."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the library deprecates among its own is not under test
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_labels=4, **settings)
        model = getattr(transformers, f"{kind}ForImageClassification")(config)
    x, y = images(96, 32)
    batches = [{"pixel_values": part, "labels": label} for part, label in cut(2 * x - 1, y)]
    with torch.no_grad():
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
        for norm in norms:  # what a checkpoint would bring
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
            if norm.momentum > 0.5 and not as_published:  # MobileNets', TensorFlow's numbers in PyTorch
                norm.momentum = 1 - norm.momentum
        settle(model, (batch["pixel_values"] for batch in batches))
    return Case(standing(model, seed), batches)


@healthy(needs="transformers")
def transformers_resnet(seed: int) -> Case:
    return transformers_model("ResNet", seed, embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 2, 1])


@healthy(needs="transformers")
def transformers_regnet(seed: int) -> Case:
    return transformers_model(
        "RegNet", seed, embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 2, 1], groups_width=4
    )


@healthy(needs="transformers")
def transformers_mobilenet_v1(seed: int) -> Case:
    return transformers_model("MobileNetV1", seed, depth_multiplier=0.25, image_size=32)


@healthy(needs="transformers")
def transformers_mobilenet_v2(seed: int) -> Case:
    return transformers_model("MobileNetV2", seed, depth_multiplier=0.35, image_size=32)


@healthy(needs="transformers")
def transformers_bit(seed: int) -> Case:
    """Group normalisation throughout."""
    return transformers_model("Bit", seed, embedding_size=32, hidden_sizes=[32, 32], depths=[1, 1], num_groups=4)


@healthy(needs="transformers")
def transformers_mobilevit(seed: int) -> Case:
    return transformers_model(
        "MobileViT",
        seed,
        image_size=32,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
        num_attention_heads=2,
    )
