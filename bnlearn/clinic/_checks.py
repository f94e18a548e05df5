"""From facts to findings: one small function for each rule, and every threshold with its reason.

The thresholds are on the safe side. A rule that cries wolf on a healthy model gets the whole audit switched off, so
what is in doubt is let pass; the rules' pages say what that misses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from bnlearn.clinic import _checks_data as data
from bnlearn.clinic._common import FEW, RECALIBRATE, awaits_training, dead, fresh, learns, unused, variance
from bnlearn.clinic._common import found as say
from bnlearn.clinic._facts import Facts, LayerFacts
from bnlearn.clinic._findings import Finding

__all__ = ["CHECKS"]

Check: TypeAlias = Callable[[Facts], Iterator[Finding]]

LARGE_SHARE = 0.5
"""BN104: a layer that takes half of its statistics from the last batch remembers two or three batches; nobody who meant
PyTorch's 0.1 or Keras's 0.99 gets there but by the other framework's convention."""

EPS_SHARE = 0.01
"""BN105: with a variance of a hundredth of epsilon the output has a standard deviation of 0.1 instead of 1. Depthwise
convolutions with random weights get down to a twentieth (MobileNet V2 on small images), and learn all the same."""

MOST = 0.5
"""BN105: the share of live channels that counts as most of them."""

HALF = ("float16", "bfloat16")


def _tracking(layer: LayerFacts) -> bool:
    """Whether the layer trains by batches, and has running statistics for evaluation."""
    return learns(layer) and layer.running_mean is not None


def _moving(layer: LayerFacts) -> bool:
    """Whether training moves the layer's running statistics."""
    return _tracking(layer) and layer.updates and layer.momentum != 0


def bn101(facts: Facts) -> Iterator[Finding]:
    """Statistics that are not finite, or a negative variance."""
    for layer in facts.layers:
        if layer.running_mean is None or layer.running_var is None:
            continue
        mean, var = ~np.isfinite(layer.running_mean), ~np.isfinite(layer.running_var)
        negative = layer.running_var < 0
        if (mean | var | negative).any():
            evidence = (
                f"Of {layer.channels} channels, {mean.sum()} have a running mean and {var.sum()} a running variance "
                f"that is not finite, and {negative.sum()} a negative variance."
            )
            yield say("BN101", layer.name, evidence, RECALIBRATE)


def bn102(facts: Facts) -> Iterator[Finding]:
    """Statistics that no batch has ever moved."""
    tracking = [layer for layer in facts.layers if layer.running_mean is not None and not unused(facts, layer)]
    if tracking and all(fresh(layer) and awaits_training(facts, layer) for layer in tracking):
        evidence = f"Each layer ({len(tracking)} in all) has mean 0, variance 1, and the gamma and beta it starts with."
        yield say("BN102", "", evidence, "Nothing before training; evaluate the model only after it.", "info")
        return
    whole = "get_weights(), moving statistics" if facts.framework == "keras" else "state_dict(), buffers"
    copy = f"Copy the whole {whole} too; if the statistics are gone: bnlearn.recalibrate(model, data)."
    for layer in filter(fresh, tracking):
        waits = awaits_training(facts, layer)
        evidence = "The running statistics are exactly mean 0 and variance 1, as when the layer was made" + (
            ", and so are gamma and beta." if waits else ", but gamma and beta have been trained or loaded."
        )
        yield say("BN102", layer.name, evidence, RECALIBRATE if waits else copy, "info" if waits else None)


def bn103(facts: Facts) -> Iterator[Finding]:
    """Statistics that training does not move."""
    keras = facts.framework == "keras"
    for layer in facts.layers:
        if not _tracking(layer) or _moving(layer):
            continue
        if layer.updates:
            evidence = f"momentum={1 if keras else 0} gives the new batch a share of 0: the statistics never move."
            fix = f"Set momentum={'0.99' if keras else '0.1'}."
        else:
            evidence = "track_running_stats=False was set later: the statistics that evaluation uses never move."
            fix = "Set track_running_stats=True."
        if layer.affine_trainable is False:
            fix = "Freeze all of it: bnlearn.freeze(model)."
        yield say("BN103", layer.name, evidence, fix)


def bn104(facts: Facts) -> Iterator[Finding]:
    """A momentum in the other framework's convention."""
    keras = facts.framework == "keras"
    for layer in facts.layers:
        share = layer.momentum
        if not _tracking(layer) or share is None or share < LARGE_SHARE or (keras and share == LARGE_SHARE):
            continue
        given, other = (1 - share, share) if keras else (share, 1 - share)
        evidence = (
            f"momentum={given:.3g} gives the new batch a share of {share:.3g}; in "
            f"{'PyTorch' if keras else 'Keras'} the same number would give it {1 - share:.3g}."
        )
        yield say("BN104", layer.name, evidence, f"Set momentum={other:.3g}.")


def bn105(facts: Facts) -> Iterator[Finding]:
    """An epsilon that is larger than what it shall protect from."""
    for layer in facts.layers:
        var = variance(layer)
        if var is None or not (live := ~dead(layer)).any():
            continue
        small = var[live] < EPS_SHARE * layer.eps
        if small.mean() > MOST:
            std = np.sqrt(np.median(var[live] / (var[live] + layer.eps)))
            evidence = (
                f"The variance is below {EPS_SHARE * layer.eps:.3g} in {small.sum()} of {live.sum()} live channels, "
                f"with eps={layer.eps:.3g}: the normalised values have a standard deviation of about {std:.3g}."
            )
            yield say("BN105", layer.name, evidence, "Scale what arrives, or set an eps well below its variance.")


def bn106(facts: Facts) -> Iterator[Finding]:
    """Statistics in half precision."""
    for layer in facts.layers:
        if layer.dtype.removeprefix("torch.") in HALF and layer.running_mean is not None:
            evidence = f"The running statistics are kept in {layer.dtype.removeprefix('torch.')}."
            cast = "layer.float()" if facts.framework == "torch" else 'the policy "mixed_float16"'
            yield say("BN106", layer.name, evidence, f"Keep the layer in float32: {cast}, and autocast around it.")


def bn107(facts: Facts) -> Iterator[Finding]:
    """A bias that the mean takes away again."""
    for layer in facts.layers:
        if learns(layer) and layer.seen is not None and layer.seen.bias_from is not None:
            evidence = f"The output of layer {layer.seen.bias_from}, which adds a bias, arrives here as it is."
            option = "bias=False" if facts.framework == "torch" else "use_bias=False"
            yield say("BN107", layer.name, evidence, f"Make layer {layer.seen.bias_from} with {option}.")


def bn108(facts: Facts) -> Iterator[Finding]:
    """Gamma or beta that is not finite."""
    for layer in facts.layers:
        bad = {
            name: int((~np.isfinite(value)).sum())
            for name, value in (("gamma", layer.gamma), ("beta", layer.beta))
            if value is not None
        }
        if any(bad.values()):
            evidence = f"Not finite, of {layer.channels} channels: " + ", ".join(f"{n} of {k}" for k, n in bad.items())
            yield say("BN108", layer.name, f"{evidence}.", "Go back to a checkpoint before the divergence.")


def bn201(facts: Facts) -> Iterator[Finding]:
    """Gamma and beta stand still while the statistics move."""
    tuned = any(layer.affine_trainable for layer in facts.layers)
    for layer in facts.layers:
        moves = layer.training_now or (not facts.training_now and tuned)
        if _moving(layer) and layer.affine_trainable is False and moves:
            evidence = "gamma and beta take no gradient, yet each pass in training moves the running statistics."
            yield say("BN201", layer.name, evidence, "Freeze all of it: bnlearn.freeze(model).")


def bn202(facts: Facts) -> Iterator[Finding]:
    """Layers in different modes."""
    training = sum(layer.training_now for layer in facts.layers)
    for layer in facts.layers:
        if not facts.training_now and layer.training_now and layer.evaluates:
            count = f"{training} of {len(facts.layers)}"
            evidence = f"It uses the batch's statistics in a model that is in evaluation mode; such layers: {count}."
            yield say("BN202", layer.name, evidence, "Call model.eval() after whatever set single layers to training.")
        elif facts.training_now and layer.frozen_by_hand and training:
            evidence = f"It stands in evaluation mode beside {training} in training mode; the next train() undoes that."
            yield say("BN202", layer.name, evidence, "Freeze it for good: bnlearn.freeze(model, layers=[...]).")


def bn203(facts: Facts) -> Iterator[Finding]:
    """Data-parallel training in which every process has its own statistics."""
    for layer in facts.layers:
        if facts.distributed and layer.trains and "sync" not in layer.kind.lower():
            fewest = layer.seen.fewest if layer.seen is not None else None
            few = fewest is not None and fewest < FEW
            evidence = "Each process normalises with the statistics of its own part of the batch" + (
                "." if fewest is None else f": of {fewest} values per channel, in the data that was run."
            )
            fix = 'Synchronise it: bnlearn.replace(model, "sync").' if few else "Nothing, unless parts become small."
            yield say("BN203", layer.name, evidence, fix, "warning" if few else None)


def bn204(facts: Facts) -> Iterator[Finding]:
    """Keras: told in the graph not to train, which training overrules."""
    for layer in facts.layers:
        if layer.overruled:
            evidence = "The graph calls it with training=False, but it is trainable, and fit() passes training=True."
            fix = "Freeze it: bnlearn.freeze(model, layers=[...]), or trainable=False, and compile the model again."
            yield say("BN204", layer.name, evidence, fix)


def bn301(facts: Facts) -> Iterator[Finding]:
    """A layer that uses the batch's statistics in evaluation too."""
    for layer in facts.layers:
        if not layer.evaluates and not unused(facts, layer):
            if facts.framework == "keras":
                why, fix = "it is called with training=True", "Hand on the training argument that call() gets"
            else:
                fix = "Let it track running statistics"
                untracked = layer.running_mean is None
                why = "it keeps no running statistics" if untracked else "eval() leaves it in training mode"
            evidence = f"In evaluation it uses the statistics of the batch: {why}."
            fix += ", or normalise without the batch: bnlearn.replace(model, ...)."
            yield say("BN301", layer.name, evidence, fix)


def bn401(facts: Facts) -> Iterator[Finding]:
    """Weight decay on gamma and beta."""
    for layer in facts.layers:
        entry = (facts.optimizer or {}).get(layer.name)
        if entry is not None and entry.holds and entry.decay > 0:
            evidence = f"The optimizer decays gamma or beta, by {entry.decay:.3g}."
            yield say("BN401", layer.name, evidence, "Put gamma and beta into a group of their own without decay.")


def bn402(facts: Facts) -> Iterator[Finding]:
    """An axis that is not the channels'."""
    for layer in facts.layers:
        if layer.axis_problem is not None:
            yield say(
                "BN402",
                layer.name,
                f"{layer.axis_problem}.",
                "Set axis to the channels': -1, or 1 where channels come first.",
            )


def bn403(facts: Facts) -> Iterator[Finding]:
    """Gamma and beta that the optimizer does not know of, while the statistics move."""
    for layer in facts.layers:
        entry = (facts.optimizer or {}).get(layer.name)
        if entry is not None and not entry.holds and layer.affine_trainable and _moving(layer) and not layer.stale:
            evidence = "gamma and beta take gradients but are not in the optimizer, while the running statistics move."
            yield say("BN403", layer.name, evidence, "Give them to the optimizer, or freeze: bnlearn.freeze(model).")


def bn404(facts: Facts) -> Iterator[Finding]:
    """Keras: trainable was changed, and what trains the model was compiled before."""
    for layer in facts.layers:
        if layer.stale:
            now, still = ("trainable", "stands still") if layer.affine_trainable else ("frozen", "still moves")
            evidence = (
                f"The layer is {now} now, but fit() goes on with the step that it compiled before trainable was "
                f"changed: what was switched {still}."
            )
            yield say("BN404", layer.name, evidence, "Compile the model again: model.compile(...).")


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "BN101": bn101,
        "BN102": bn102,
        "BN103": bn103,
        "BN104": bn104,
        "BN105": bn105,
        "BN106": bn106,
        "BN107": bn107,
        "BN108": bn108,
        "BN201": bn201,
        "BN202": bn202,
        "BN203": bn203,
        "BN204": bn204,
        "BN301": bn301,
        "BN302": data.bn302,
        "BN303": data.bn303,
        "BN304": data.bn304,
        "BN305": data.bn305,
        "BN306": data.bn306,
        "BN307": data.bn307,
        "BN308": data.bn308,
        "BN309": data.bn309,
        "BN310": data.bn310,
        "BN311": data.bn311,
        "BN312": data.bn312,
        "BN401": bn401,
        "BN402": bn402,
        "BN403": bn403,
        "BN404": bn404,
    }
)
"""The check of each rule."""
