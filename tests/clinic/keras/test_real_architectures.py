"""The clinic on every family of ``keras.applications`` with batch norm, with random weights: nothing is downloaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import bnlearn

keras = pytest.importorskip("keras")


@dataclass(frozen=True)
class Family:
    """The smallest member; ``left`` is what feeds the layers that cannot be folded, with their number.

    ``dropout`` tells of dropout before batch norm, of which the audit may warn. ``gain`` is what the initial kernels
    are multiplied by where epsilon, 1e-3 in Keras, would drown what arrives at some layers.
    """

    member: str
    norms: int
    left: dict[str, int] = field(default_factory=dict)
    size: int = 32
    dropout: bool = False
    gain: float = 1.0
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "DenseNet": Family("DenseNet121", 121, {"Concatenate": 58, "MaxPooling2D": 1, "AveragePooling2D": 3}),
    "EfficientNetB": Family("EfficientNetB0", 49, dropout=True, gain=4.0),
    "EfficientNetV2": Family("EfficientNetV2B0", 59, dropout=True, gain=4.0),
    "InceptionResNet": Family("InceptionResNetV2", 204, size=75),
    "InceptionV": Family("InceptionV3", 94, size=75),
    "MobileNet": Family("MobileNet", 27, config={"alpha": 0.25}),
    "MobileNetV2": Family("MobileNetV2", 52, config={"alpha": 0.35}),
    "MobileNetV3": Family("MobileNetV3Small", 34, gain=4.0),
    "NASNet": Family("NASNetMobile", 192, {"Concatenate": 4}, gain=4.0),
    "ResNet": Family("ResNet50", 53),
    "ResNetV2": Family("ResNet50V2", 49, {"MaxPooling2D": 1, "Add": 16}),
    "Xception": Family("Xception", 40, size=71),
}
WITHOUT = ("ConvNeXt", "VGG")
"""These have no batch norm."""


@dataclass
class Network:
    """A member of a family with random weights, and two batches, of which it has the statistics."""

    family: Family
    model: Any
    data: list[np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> Network:
    """A family after the other: the tests leave it as it was, and so they share it."""
    family = FAMILIES[request.param]
    keras.utils.set_random_seed(0)
    shape = (family.size, family.size, 3)
    config = {"weights": None, "input_shape": shape, "classes": 4, "classifier_activation": None, **family.config}
    model = getattr(keras.applications, family.member)(**config)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name == "gamma":
            # With gains of one, fifty random layers are chaos: a rounding of the input moves the output by over 1e-4.
            variable.assign(rng.uniform(0.3, 0.6, variable.shape))
        elif variable.name == "beta":
            variable.assign(rng.normal(size=variable.shape))
        elif variable.name.endswith("kernel"):
            variable.assign(family.gain * variable)
    # Some divide by 255 first. With fewer than 16 samples the last layers have too few values for their statistics.
    data = list(rng.normal(0, 100, (2, 16, *shape)).astype("float32"))
    norms = [layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    bnlearn.recalibrate(model, data, layers=norms, one_pass=True, progress=False)
    return Network(family, model, data)


def test_every_family_is_here() -> None:
    members = [name for name in vars(keras.applications) if name[0].isupper()]
    assert {family.member for family in FAMILIES.values()} <= set(members)
    assert [name for name in members if not name.startswith((*FAMILIES, *WITHOUT))] == []


def test_audit(network: Network, portrait: Any) -> None:
    before = portrait(network.model)
    report = bnlearn.audit(network.model, network.data)
    assert portrait(network.model) == before
    assert len(report.layers) == network.family.norms
    assert not {"BN308", "BN309"} & set(report.skipped)
    found = Counter(finding.code for finding in report.findings if finding.severity != "info")
    if network.family.dropout:
        del found["BN308"]
    assert not found


def agree(model: Any, folded: Any, x: np.ndarray[Any, Any]) -> bool:
    """To 1e-4, relative; or as far as the last bits of the input move a random network, which amplifies rounding."""
    old, nudged = np.split(model(np.concatenate([x, x * np.float32(1 + 2e-7)]), training=False).numpy(), 2)
    new = folded(x, training=False).numpy()
    return bool(abs(old - new).max() <= max(1e-4 * abs(old).max(), 8 * abs(old - nudged).max()))


def test_fold(network: Network, portrait: Any) -> None:
    model, family, example = network.model, network.family, network.data[0][:3]
    before = portrait(model)
    folded = bnlearn.fold(model, example)
    assert portrait(model) == before
    assert agree(model, folded, np.concatenate([example, example[:, ::-1]]))
    folding = folded.folding
    assert len(folding.folded) == family.norms - sum(family.left.values())
    assert Counter(why.partition("(")[2].partition(")")[0] for why in folding.left.values()) == Counter(family.left)


def test_freeze(network: Network, portrait: Any) -> None:
    model = network.model
    before = portrait(model)
    with bnlearn.freeze(model) as frozen:
        assert len(frozen.layers) == network.family.norms
        assert not frozen.left
        assert portrait(model) != before
        assert not {"gamma", "beta"} & {variable.name for variable in model.trainable_variables}
    assert portrait(model) == before


@pytest.mark.parametrize("network", ["MobileNet"], indirect=True)
def test_frozen_in_training(network: Network) -> None:
    model = network.model

    def statistics() -> list[Any]:
        return [variable.numpy() for variable in model.variables if variable.name.startswith("moving")]

    before = statistics()
    with bnlearn.freeze(model):
        model(network.data[0], training=True)
    assert all(map(np.array_equal, before, statistics()))
