"""Whole architectures with random weights and statistics compute the same on both sides, and come back bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn.convert import transfer

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
nn, F = torch.nn, torch.nn.functional


class ResNet50(nn.Module):
    """``keras.applications.ResNet50`` with Keras's names for the layers, and Keras's eps nowhere."""

    stages = ((2, 64, 3, 1), (3, 128, 4, 2), (4, 256, 6, 2), (5, 512, 3, 2))

    def __init__(self, classes: int):
        super().__init__()
        self.conv1_conv, self.conv1_bn = nn.Conv2d(3, 64, 7, 2, padding=3), nn.BatchNorm2d(64)
        width = 64
        for stage, filters, blocks, stride in self.stages:
            for block in range(1, blocks + 1):
                first, name = stride if block == 1 else 1, f"conv{stage}_block{block}"
                if block == 1:
                    self.add(f"{name}_0", nn.Conv2d(width, 4 * filters, 1, first))
                self.add(f"{name}_1", nn.Conv2d(width, filters, 1, first))
                self.add(f"{name}_2", nn.Conv2d(filters, filters, 3, padding=1))
                self.add(f"{name}_3", nn.Conv2d(filters, 4 * filters, 1))
                width = 4 * filters
        self.predictions = nn.Linear(width, classes)

    def add(self, name, convolution):
        self.add_module(f"{name}_conv", convolution)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(convolution.out_channels))

    def step(self, name, x):
        return getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(x))

    def forward(self, x):
        x = F.max_pool2d(F.pad(F.relu(self.step("conv1", x)), (1, 1, 1, 1)), 3, 2)
        for stage, _, blocks, _ in self.stages:
            for block in range(1, blocks + 1):
                name = f"conv{stage}_block{block}"
                shortcut = self.step(f"{name}_0", x) if block == 1 else x
                inner = F.relu(self.step(f"{name}_2", F.relu(self.step(f"{name}_1", x))))
                x = F.relu(shortcut + self.step(f"{name}_3", inner))
        return self.predictions(x.mean((2, 3)))


class MobileNetV2(nn.Module):
    """``keras.applications.MobileNetV2`` in order of execution; at stride 2 Keras pads (0, 1)."""

    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int, alpha: float):
        super().__init__()

        def rounded(channels):
            found = max(8, int(channels * alpha + 4) // 8 * 8)
            return found + 8 if found < 0.9 * channels * alpha else found

        def convolution(ins, outs, kernel, stride=1, groups=1):
            padding = 0 if stride == 2 or kernel == 1 else 1
            return nn.Sequential(
                nn.Conv2d(ins, outs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outs)
            )

        width = rounded(32)
        self.stem = convolution(3, width, 3, 2)
        self.body = nn.ModuleList()
        for expansion, channels, repeats, stride in self.blocks:
            for repeat in range(repeats):
                inner = width * expansion
                steps = [convolution(width, inner, 1)] if expansion > 1 else []
                steps += [convolution(inner, inner, 3, stride if repeat == 0 else 1, inner)]
                self.body.append(nn.ModuleList([*steps, convolution(inner, rounded(channels), 1)]))
                width = rounded(channels)
        self.head, self.classifier = convolution(width, 1280, 1), nn.Linear(1280, classes)

    def step(self, convolution, x):
        return convolution(F.pad(x, (0, 1, 0, 1)) if convolution[0].stride == (2, 2) else x)

    def forward(self, x):
        x = F.relu6(self.step(self.stem, x))
        for block in self.body:
            y = x
            for convolution in block[:-1]:
                y = F.relu6(self.step(convolution, y))
            y = block[-1](y)
            x = x + y if x.shape == y.shape else y
        return self.classifier(F.relu6(self.head(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("application", "twin", "arguments"),
    [("ResNet50", ResNet50, {}), ("MobileNetV2", MobileNetV2, {"alpha": 0.35})],
    ids=["ResNet50", "MobileNetV2"],
)
def test_a_keras_application_and_its_twin(tools, rng, application, twin, arguments):
    build = getattr(keras.applications, application)
    theirs = build(weights=None, input_shape=(32, 32, 3), classes=5, classifier_activation=None, **arguments)
    tools.randomise(theirs, 0)
    ours = twin(5, **arguments)
    before = tools.keras_state(theirs)
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    report = transfer(theirs, ours, example=x, tolerance=1e-5)
    assert len(report.moved) == sum(bool(layer.weights) for layer in theirs.layers)
    y = ours.eval()(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy()
    assert np.abs(y).max() > 0.1  # two networks that both give zero would agree
    assert y.std(axis=0).min() > 1e-3 * np.abs(y).max()  # and two that ignore their input
    np.testing.assert_allclose(y, theirs(x, training=False), rtol=0, atol=1e-5 * np.abs(y).max())

    tools.randomise(theirs, 1)
    transfer(ours, theirs, example=np.moveaxis(x, -1, 1), tolerance=1e-5)
    assert tools.keras_state(theirs) == before


class Block(nn.Module):
    def __init__(self, ins, outs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs, momentum=0.3)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.short = nn.Conv2d(ins, outs, 3, stride, 1, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return F.relu(self.short(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def torch_resnet():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(8), nn.ReLU(), Block(8, 8, 1), Block(8, 16, 2), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 5)),
    )


def keras_resnet():
    L = keras.layers

    def convolution(filters, stride=1):
        return keras.Sequential([L.ZeroPadding2D(1), L.Conv2D(filters, 3, stride, use_bias=False)])

    def block(x, filters, stride):
        y = L.ReLU()(L.BatchNormalization()(convolution(filters, stride)(x)))
        y = L.BatchNormalization()(convolution(filters)(y))
        short = convolution(filters, stride)(x) if stride > 1 else x
        return L.ReLU()(L.Add()([short, y]))

    x = inputs = keras.Input((8, 8, 1))
    x = L.ReLU()(L.BatchNormalization()(convolution(8)(x)))
    x = L.AveragePooling2D(2)(block(block(x, 8, 1), 16, 2))
    return keras.Model(inputs, L.Dense(5)(L.Flatten()(x)))


def test_small_resnet_both_ways_bit_by_bit(tools, rng):
    """The dense layer after Flatten, and a Keras order of layers (by depth) that is not the one of definition."""
    ours, theirs = tools.randomise(torch_resnet(), 0), tools.randomise(keras_resnet(), 1)
    x = rng.standard_normal((4, 1, 8, 8)).astype(np.float32)
    before = tools.torch_state(ours)
    report = transfer(ours, theirs, example=x, tolerance=1e-5)
    assert report.max_difference < 1e-5
    back = torch_resnet()
    transfer(theirs, back, example=np.moveaxis(x, 1, -1), tolerance=1e-5)
    assert tools.torch_state(back) == before
