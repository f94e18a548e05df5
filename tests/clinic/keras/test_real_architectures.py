"""The clinic on every family of ``keras.applications`` with batch norm, with random weights: nothing is downloaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
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


@cache
def model_of(name: str) -> tuple[Any, Any]:
    """The model with random weights and statistics, and a batch. The tests leave it as it was: so they share it."""
    family = FAMILIES[name]
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
    batch = rng.normal(0, 100, (20, *shape)).astype("float32")  # some divide by 255 first
    bnlearn.recalibrate(model, [batch], one_pass=True, progress=False)
    return model, batch


each = pytest.mark.parametrize("name", FAMILIES)


def test_every_family_is_here() -> None:
    members = [name for name in vars(keras.applications) if name[0].isupper()]
    assert {family.member for family in FAMILIES.values()} <= set(members)
    assert [name for name in members if not name.startswith((*FAMILIES, *WITHOUT))] == []


@each
def test_audit(name: str, portrait: Any) -> None:
    model, batch = model_of(name)
    before = portrait(model)
    report = bnlearn.audit(model, [batch])
    assert portrait(model) == before
    assert len(report.layers) == FAMILIES[name].norms
    found = Counter(finding.code for finding in report.findings if finding.severity != "info")
    if FAMILIES[name].dropout:
        del found["BN308"]
    assert not found


def agree(model: Any, folded: Any, x: np.ndarray[Any, Any]) -> bool:
    """To 1e-4, relative; or as far as the last bits of the input move a random network, which amplifies rounding."""
    cases = (model, x), (folded, x), (model, x * np.float32(1 + 2e-7))
    old, new, nudged = (net(given, training=False).numpy() for net, given in cases)
    return bool(abs(old - new).max() <= max(1e-4 * abs(old).max(), 8 * abs(old - nudged).max()))


@each
def test_fold(name: str, portrait: Any) -> None:
    model, batch = model_of(name)
    before = portrait(model)
    folded = bnlearn.fold(model, batch)
    assert portrait(model) == before
    family, folding = FAMILIES[name], folded.folding
    assert agree(model, folded, batch)
    assert len(folding.folded) == family.norms - sum(family.left.values())
    assert Counter(why.partition("(")[2].partition(")")[0] for why in folding.left.values()) == Counter(family.left)
    if family.norms < 60:  # for the rest it takes too long
        assert agree(model, folded, batch[:3, ::-1])


@each
def test_freeze(name: str, portrait: Any) -> None:
    model, _ = model_of(name)
    before = portrait(model)
    with bnlearn.freeze(model) as frozen:
        assert len(frozen.layers) == FAMILIES[name].norms
        assert not frozen.left
        assert portrait(model) != before
        assert not {"gamma", "beta"} & {variable.name for variable in model.trainable_variables}
    assert portrait(model) == before


def test_frozen_in_training() -> None:
    model, batch = model_of("MobileNet")

    def statistics() -> list[Any]:
        return [variable.numpy() for variable in model.variables if variable.name.startswith("moving")]

    before = statistics()
    with bnlearn.freeze(model):
        model(batch, training=True)
    assert all(map(np.array_equal, before, statistics()))
