"""What several checks ask of a layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnlearn.clinic._facts import Facts, LayerFacts
from bnlearn.clinic._findings import Finding
from bnlearn.clinic._rule import Severity
from bnlearn.clinic._rules import RULES

__all__ = ["DEAD", "FEW", "RECALIBRATE", "awaits_training", "dead", "found", "fresh", "learns", "unused", "variance"]

FEW = 16
"""Values per channel below which a batch's variance is wrong by a third and more: its relative error is
sqrt(2 / (n - 1)) for normal values."""

DEAD = 1e-12
"""A variance, over the squared mean, that float32 cannot tell from none: its steps are 1e-7 of a value."""

NOTHING = 1e-16
"""A variance that is none whatever the mean; a running one gets there in some hundred steps without any."""

RECALIBRATE = "If the data is preprocessed and drawn as in training: bnlearn.recalibrate(model, data)."

Mask = NDArray[np.bool_]


def found(code: str, layer: str, evidence: str, fix: str, severity: Severity | None = None) -> Finding:
    """A finding of a rule; with the rule's severity unless told otherwise."""
    rule = RULES[code]
    return Finding(code, severity or rule.severity, layer, evidence, fix, rule.url)


def unused(facts: Facts, layer: LayerFacts) -> bool:
    """Whether data was run, and never came by."""
    return facts.data_run and layer.seen is None and layer.name not in facts.single


def learns(layer: LayerFacts) -> bool:
    """Whether batches are what it normalises with in training; not where the user has just set it to evaluation."""
    return layer.trains and not layer.frozen_by_hand


def fresh(layer: LayerFacts) -> bool:
    """Whether the running statistics are exactly those that the layer was made with."""
    return (
        layer.running_mean is not None
        and layer.running_var is not None
        and not layer.batches_seen
        and bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())
    )


def awaits_training(facts: Facts, layer: LayerFacts) -> bool:
    """Whether gamma and beta look as made, in a model that may be about to train."""
    return (facts.training_now or facts.framework == "keras") and _as_made(layer)


def _as_made(layer: LayerFacts) -> bool:
    """Beta of all zeros (gamma may be drawn at random, as in DCGAN); without beta, gamma the same everywhere."""
    if layer.beta is not None:
        return not layer.beta.any()
    return layer.gamma is None or bool((layer.gamma == layer.gamma[:1]).all())


def variance(layer: LayerFacts) -> NDArray[np.float64] | None:
    """Of what arrives, or else the running one; None where neither tells anything."""
    if layer.seen is not None:
        return layer.seen.var if layer.seen.finite else None
    var = layer.running_var
    known = var is not None and np.isfinite(var).all() and (var >= 0).all() and not fresh(layer)
    return var if known else None


def dead(layer: LayerFacts) -> Mask:
    """Channels without variance, where :func:`variance` is not None."""
    var = variance(layer)
    mean = layer.seen.mean if layer.seen is not None else layer.running_mean
    assert var is not None
    assert mean is not None
    without: Mask = var <= np.maximum(NOTHING, DEAD * mean**2)
    return without
