"""The rules that need data: what arrives at a layer, against what it holds and against what it assumes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bnlearn.clinic._common import FEW, RECALIBRATE, awaits_training, dead, found, fresh, learns, unused, variance
from bnlearn.clinic._facts import Facts, LayerFacts, OutputFacts, SeenFacts
from bnlearn.clinic._findings import Finding

__all__ = ["bn302", "bn303", "bn304", "bn305", "bn306", "bn307", "bn308", "bn309", "bn310", "bn311", "bn312"]

NOISE = 4.0
"""How many standard errors of sampling a difference must exceed before it counts at all."""

BLOWN_UP = 1e4
"""BN305: PyTorch's usual epsilon lets a silent channel be multiplied by 316 times gamma, Keras's by 32."""

FAR_SHARE = 0.25
"""BN306, BN310: the share of live channels that must be off. A few rarely active channels always are."""

FAR_MEAN = 0.3
FAR_VARIANCE = 2.0
"""BN306: a mean so many standard deviations off moves one value in eight to the other side of a ReLU, and a variance
off by this factor scales what follows by 1.41. Healthy networks with enough data stay well below either."""

OF_THE_START = 0.05
"""BN306: what the running statistics may hold of their initial values before that is worth a word."""

APART_MEAN = 0.5
APART_VARIANCE = 2.0
"""BN303: wider, for a layer that is shared on purpose does no harm while its inputs are alike."""

GAP_BATCHES = 2
"""BN309: the statistics of a single batch are those that training uses, and recalibration leaves no gap at all."""

RATIO_BATCHES = 2
"""BN308: the first batch is run three times for BN309 already, and no batch is run more often."""

MIN_BATCHES = 4
"""BN307: with fewer, the variance of the batches' means has no more than two degrees of freedom."""

FAIR_QUANTILE = 4.75
"""BN307: in standard normal deviations, about one in a million."""

FAR_BATCH = 0.3
"""BN307: and a single batch counts if its mean is so many standard deviations off, as in BN306."""

FAIR_FACTOR = 3.0
"""BN307: and below this factor a difference that is real does little harm: at 32 samples, the batches explain 6 % of
the variance."""

SHUFFLE = "Shuffle the data before it is cut into batches."

DROPOUT_LOSS = 0.25
"""BN308: a dropout of one half takes a third to two thirds of the variance away at inference; stochastic depth as in
published networks, by its chance draws on a single batch, up to a sixth."""

GAP_RATIO = 2.0
GAP_FLOOR = 0.1
"""BN309: the gap must be this much larger than the one that recalibration leaves. A fixed limit on the gap alone
flagged half of the healthy models that it was tried on. The statistics of B batches are partly those of the one that
is compared, which makes the gap that they leave smaller than that of other samples' statistics, by sqrt(1 - 1/B)."""

MOVED_RATIO = 3.0
MOVED_FLOOR = 0.25
MOVED_SAMPLES = 16
"""BN309: sharper, because no batch's own statistics are in it: how far new statistics move what evaluation gives. What
they move it by their draw alone is told by the gap that a batch's own statistics leave. Most healthy models stay well
below a quarter, and in those that do not, the draw explains it."""

PADDING_MEAN = 0.25
PADDING_VARIANCE = 1.5
"""BN310: stricter than BN306, because nothing here is left to chance: both sides are of the same data."""


def _usable(layer: LayerFacts) -> SeenFacts | None:
    """What arrived, where it was finite and the layer learns from it."""
    seen = layer.seen
    return seen if seen is not None and seen.finite and learns(layer) else None


def _live(layer: LayerFacts) -> NDArray[np.bool_]:
    return ~dead(layer)


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if values.size else 0.0


def bn302(facts: Facts) -> Iterator[Finding]:
    """A layer that nothing arrives at."""
    for layer in facts.layers:
        if unused(facts, layer):
            evidence = "The model holds the layer, but no batch of the data came by."
            yield found("BN302", layer.name, evidence, "Remove the layer, or call it where it was meant to be.")


def bn303(facts: Facts) -> Iterator[Finding]:
    """One layer for inputs that differ."""
    for layer in facts.layers:
        seen = _usable(layer)
        if seen is None or seen.calls < 2 or seen.apart is None or seen.call_var is None:
            continue
        live = _live(layer)
        apart = _median(np.ptp(seen.apart[:, live], axis=0))
        spread = np.clip(seen.call_var[:, live], seen.var[live] * 1e-6, None)
        ratio = _median(spread.max(axis=0) / spread.min(axis=0))
        error = NOISE / np.sqrt(max(seen.samples, 1))
        if apart > max(APART_MEAN, np.sqrt(2) * error) or ratio > max(APART_VARIANCE, np.exp(2 * error)):
            evidence = (
                f"Called {seen.calls} times per pass; between the calls the mean differs by {apart:.3g} standard "
                f"deviations and the variance by a factor of {ratio:.3g} (medians over the channels)."
            )
            yield found("BN303", layer.name, evidence, "Give each place a BatchNorm of its own.")


def bn304(facts: Facts) -> Iterator[Finding]:
    """Too few values for a mean and a variance."""
    for layer in facts.layers:
        if learns(layer) and layer.seen is not None and 1 < layer.seen.fewest < FEW:
            few = layer.seen.fewest
            evidence = (
                f"A batch had {few} values per channel; the standard error of its variance is "
                f"{np.sqrt(2 / (few - 1)):.0%} of it, and of its mean {1 / np.sqrt(few):.0%} of the standard deviation."
            )
            fix = 'Larger batches, or bnlearn.replace(model, "group"), or fixed statistics: bnlearn.freeze(model).'
            yield found("BN304", layer.name, evidence, fix)


def bn305(facts: Facts) -> Iterator[Finding]:
    """Channels that say nothing."""
    for layer in facts.layers:
        if variance(layer) is None or not (count := int((silent := dead(layer)).sum())):
            continue
        source = "in the data" if layer.seen is not None else "by the running statistics"
        evidence = f"{count} of {layer.channels} channels are constant {source}."
        gain = _gain(layer, silent)
        if layer.seen is not None and count == layer.channels and layer.seen.n > 1:
            fix = "Nothing passes: look for what comes before, such as a gamma of zeros, or units that never open."
            yield found("BN305", layer.name, evidence, fix, "warning")
        elif gain > BLOWN_UP:
            evidence += f" Should one ever move, evaluation multiplies what arrives by up to {gain:.3g}."
            yield found("BN305", layer.name, evidence, f"Set eps to 1e-5 or so; it is {layer.eps:.3g}.", "warning")
        else:
            yield found("BN305", layer.name, evidence, "Prune them, or find out why the layer before went silent.")


def _gain(layer: LayerFacts, silent: NDArray[np.bool_]) -> float:
    """What evaluation multiplies the silent channels by, at most."""
    if layer.running_var is None:
        return 0.0
    with np.errstate(all="ignore"):
        scale = np.broadcast_to(1.0 if layer.gamma is None else np.abs(layer.gamma), layer.running_var.shape)
        return float(np.max((scale / np.sqrt(layer.running_var + layer.eps))[silent]))


def _sampling(layer: LayerFacts, seen: SeenFacts) -> float:
    """Standard error, in standard deviations, of the difference between running and population mean."""
    share = 0.0 if layer.momentum is None else min(layer.momentum, 1.0)
    moving = np.sqrt(share / (2 - share))
    per_batch = max(seen.samples, 1) / max(seen.batches, 1)
    return float(np.hypot(1 / np.sqrt(max(seen.samples, 1)), moving / np.sqrt(per_batch)))


def bn306(facts: Facts) -> Iterator[Finding]:
    """Running statistics that are not those of the data."""
    for layer in facts.layers:
        seen = _usable(layer)
        if seen is None or layer.running_mean is None or layer.running_var is None or seen.fewest < FEW:
            continue
        if fresh(layer) or not np.isfinite([layer.running_mean, layer.running_var]).all():
            continue
        live = _live(layer)
        shift = (np.abs(layer.running_mean - seen.mean) / np.sqrt(seen.var + layer.eps))[live]
        ratio = ((layer.running_var + layer.eps) / (seen.var + layer.eps))[live]
        error = NOISE * _sampling(layer, seen)
        log_ratio = np.abs(np.log(np.clip(ratio, 1e-300, None)))
        off = (shift > max(FAR_MEAN, error)) | (log_ratio > max(np.log(FAR_VARIANCE), np.sqrt(2) * error))
        if live.any() and off.mean() >= FAR_SHARE:
            evidence = (
                f"In {off.sum()} of {live.sum()} live channels the running statistics are not the data's: the mean "
                f"is off by {_median(shift):.3g} standard deviations, the variance is {_median(ratio):.3g} times "
                "the data's (medians)." + _of_the_start(layer)
            )
            yield found("BN306", layer.name, evidence, RECALIBRATE)


def _of_the_start(layer: LayerFacts) -> str:
    """What is left in a moving average of the mean 0 and variance 1 that it began with, if that is much."""
    if not layer.batches_seen or layer.momentum is None or not 0 < layer.momentum < 1:
        return ""
    left = (1 - layer.momentum) ** layer.batches_seen
    # What was computed in another way since, as recalibration does, may well lie below what the start would leave.
    if left < OF_THE_START or layer.running_var is None or (layer.running_var < 0.999 * left).any():
        return ""
    return f" After {layer.batches_seen} batches at momentum={layer.momentum:.3g}, {left:.0%} of the start is in them."


def _fair_limit(batches: int) -> float:
    """The quantile of a chi-squared variable over its degrees of freedom (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * (batches - 1))
    return max(FAIR_FACTOR, float((1 - part + FAIR_QUANTILE * np.sqrt(part)) ** 3))


def _upper(values: NDArray[np.float64], live: NDArray[np.bool_]) -> float:
    """What a quarter of the live channels reach; 0 where there are none."""
    kept = values[np.isfinite(values) & live]
    return float(np.quantile(kept, 0.75, method="higher")) if kept.size else 0.0


def _chance_limit(batches: int) -> float:
    """Standard errors that the farthest of so many fair batches exceeds about once in a million."""
    return float(np.sqrt(FAIR_QUANTILE**2 + 2 * np.log(2 * batches)))


def bn307(facts: Facts) -> Iterator[Finding]:
    """Batches that are no fair draws from the data.

    Only the first layer that can tell is asked. Behind it what the batches differ in is gone, and something else has
    come in: a single outlier scales its whole batch down.
    """
    able = (layer for layer in sorted(facts.layers, key=lambda layer: layer.order) if _compares_batches(layer))
    if (layer := next(able, None)) is not None and (evidence := _unfair(layer)):
        yield found("BN307", layer.name, evidence, SHUFFLE)


def _compares_batches(layer: LayerFacts) -> bool:
    seen = _usable(layer)
    return seen is not None and seen.iid_ratio is not None and seen.batches >= MIN_BATCHES


def _unfair(layer: LayerFacts) -> str:
    """What speaks against the batches, as a whole or one of them; empty if nothing does."""
    seen, live = layer.seen, _live(layer)
    assert seen is not None
    assert seen.iid_ratio is not None
    if (upper := _upper(seen.iid_ratio, live)) > _fair_limit(seen.batches):
        return (
            f"In a quarter of the channels the means of the {seen.batches} batches vary {upper:.3g} times as much "
            f"as fair draws would, or more (limit {_fair_limit(seen.batches):.3g})."
        )
    if seen.farthest is None or seen.farthest_errors is None:
        return ""
    far = live & (seen.farthest > FAR_BATCH)
    errors = _upper(np.where(far, seen.farthest_errors, 0.0), live)
    if errors <= _chance_limit(seen.batches):
        return ""
    return (
        f"In a quarter of the channels one of the {seen.batches} batches has a mean that is {errors:.3g} standard "
        f"errors off, or more (limit {_chance_limit(seen.batches):.3g}); as a whole the batches pass."
    )


def bn308(facts: Facts) -> Iterator[Finding]:
    """A variance that is smaller at inference, for what is random in training is off."""
    for layer in facts.layers:
        seen = _usable(layer)
        if seen is None or seen.evaluation_ratio is None or seen.fewest < FEW:
            continue
        ratios = seen.evaluation_ratio[np.isfinite(seen.evaluation_ratio) & _live(layer)]
        # What dropout leaves of so few samples is itself a draw.
        limit = 1 - max(DROPOUT_LOSS, 2 / np.sqrt(max(seen.samples, 1) / max(seen.batches, 1)))
        if ratios.size and (ratio := _median(ratios)) < limit:
            evidence = (
                f"On one and the same batch the variance that arrives at inference is {ratio:.3g} times the one in "
                "training (median over the channels)."
            )
            yield found("BN308", layer.name, evidence, "Move the dropout behind the last BatchNorm.")


def bn309(facts: Facts) -> Iterator[Finding]:
    """Outputs that differ between training and evaluation by more than they must."""
    output = facts.output
    if output is None or not np.isfinite(output.recalibrated_gap):
        return
    if any(layer.frozen_by_hand or (fresh(layer) and awaits_training(facts, layer)) for layer in facts.layers):
        return
    batches = max((layer.seen.batches for layer in facts.layers if layer.seen is not None), default=0)
    if batches < GAP_BATCHES:
        return
    if told := _apart(output, batches) or _moved(output, facts, batches):
        evidence = (
            f"For the same {output.samples} samples the outputs in training and in evaluation mode differ by "
            f"{output.gap:.3g} of their spread{told}."
        )
        yield found("BN309", "", evidence, RECALIBRATE)


def _left(output: OutputFacts, batches: int) -> float:
    """The gap that the statistics of other samples would leave; those of the data hold this very batch as well."""
    return float(output.recalibrated_gap / np.sqrt(1 - 1 / batches))


def _apart(output: OutputFacts, batches: int) -> str:
    if output.gap <= GAP_RATIO * _left(output, batches) + GAP_FLOOR:
        return ""
    return f"; with the statistics of the data, by {output.recalibrated_gap:.3g}"


def _moved(output: OutputFacts, facts: Facts, batches: int) -> str:
    limit = max(MOVED_FLOOR, MOVED_RATIO * _left(output, batches) * _drawn(facts, batches))
    if output.samples < MOVED_SAMPLES or output.moved <= limit:
        return ""
    return (
        f". The statistics of the data move those in evaluation mode by {output.moved:.3g}, more than the draw of the "
        "batches explains"
    )


def _drawn(facts: Facts, batches: int) -> float:
    """The scatter of the running statistics and of those of the data, by their draw, over that of a single batch's."""
    shares = [layer.momentum for layer in facts.layers if learns(layer) and layer.momentum is not None]
    share = min(max(shares, default=0.0), 1.0)
    return float(np.sqrt(share / (2 - share) + 1 / batches))


def bn310(facts: Facts) -> Iterator[Finding]:
    """Padding that counts in the statistics."""
    for layer in facts.layers:
        seen = _usable(layer)
        if seen is None or seen.real_mean is None or seen.real_var is None:
            continue
        live = _live(layer)
        real = seen.real_var[live] + layer.eps
        shift = np.abs(seen.mean - seen.real_mean)[live] / np.sqrt(real)
        ratio = (seen.var[live] + layer.eps) / real
        off = (shift > PADDING_MEAN) | (np.abs(np.log(ratio)) > np.log(PADDING_VARIANCE))
        if live.any() and off.mean() >= FAR_SHARE:
            evidence = (
                f"With the padding the mean is {_median(shift):.3g} standard deviations off, and the variance is "
                f"{_median(ratio):.3g} times that of the real positions (medians); it shows in {off.sum()} of "
                f"{live.sum()} channels."
            )
            name = "bnlearn.torch.MaskedBatchNorm" if facts.framework == "torch" else "the layer's mask argument"
            if "masked" in layer.kind.lower():
                name = "call the layer with a mask that is True only where the input is real"
            yield found("BN310", layer.name, evidence, f"Leave the padding out: {name}.")


def bn311(facts: Facts) -> Iterator[Finding]:
    """A batch with a single value per channel."""
    for layer in facts.layers:
        if learns(layer) and layer.name in facts.single:
            comes = "PyTorch raises" if facts.framework == "torch" else "Keras returns beta, whatever came in"
            evidence = f"A batch of the data brings one value per channel, whose variance is 0: in training {comes}."
            fix = "Drop the last, smaller batch (drop_last=True, drop_remainder=True), or use larger ones."
            yield found("BN311", layer.name, evidence, fix)


def bn312(facts: Facts) -> Iterator[Finding]:
    """Something that is not a number arrives; the first layer tells where from."""
    hit = [layer for layer in facts.layers if layer.seen is not None and not layer.seen.finite]
    if hit:
        first = min(hit, key=lambda layer: layer.order)
        evidence = f"NaN or infinity arrives here first, and at {len(hit)} of {len(facts.layers)} layers in all."
        fix = "Look at the data and at the layers before this one; then recalibrate, for the statistics are spoilt."
        yield found("BN312", first.name, evidence, fix)
