"""The audit: from a model to a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from bnlearn.clinic._checks import CHECKS
from bnlearn.clinic._checks_data import GAP_BATCHES, MIN_BATCHES, RATIO_BATCHES
from bnlearn.clinic._dispatch import part
from bnlearn.clinic._facts import Facts
from bnlearn.clinic._findings import Finding, Report
from bnlearn.clinic._rule import SEVERITIES
from bnlearn.clinic._rules import RULES

__all__ = ["audit", "examine"]

SYMPTOMS = ("BN306", "BN309")
CAUSES = ("BN103", "BN104", "BN105", "BN106", "BN303", "BN307", "BN310", "BN312", "BN402")
"""What makes running statistics wrong, or makes what is computed from them wrong again."""


def audit(
    model: Any, data: Any = None, *, optimizer: Any = None, mask: Callable[[Any], Any] | str | int | None = None
) -> Report:
    r"""Look a model over for what goes wrong with batch normalisation.

    Nothing is changed: modes, statistics, gradients, hooks and random state are as before, whatever happens. No batch
    is run more than three times, all but two are run once, and only one is kept. Beside it there is a copy of the
    parameters and buffers, to put back what a forward pass writes.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model
        Built: after a first batch, where layers are made lazily.
    data : iterable of batches, or None
        As the model is trained with: a list, a ``DataLoader``, a ``tf.data.Dataset`` or a generator; read once.
        A batch is an array or tensor; a tuple or list, whose first entry goes to the model; or a dictionary of
        arguments. A few hundred samples make most rules sharp. None: only what can be seen without data.
    optimizer : torch.optim.Optimizer or keras.optimizers.Optimizer, or None
        The one that trains the model.
    mask : callable, key or index, or None
        What of a batch is real and what is padding: a function of the batch that gives booleans of shape
        (N, \*spatial), True where real; or where in the batch they stand.

    Returns
    -------
    Report
        A table in a terminal, and in a notebook. Its findings have a code, a severity, a layer, the evidence and a fix.

    Raises
    ------
    TypeError
        If the model is of neither framework.
    ValueError
        If there is nothing in the data, if a layer is not built yet, or if a mask comes without data.

    Examples
    --------
    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16, momentum=0.99))
    >>> report = audit(model)
    >>> report.findings[0].code, report.findings[0].layer, report.worst
    ('BN104', '1', 'warning')
    """
    if mask is not None and data is None:
        raise ValueError("expected data with the mask, got none: a mask is looked up in each batch")
    facts: Facts = part(model, "facts").facts(model, data, optimizer=optimizer, mask=mask)
    return examine(facts)


def examine(facts: Facts) -> Report:
    """The report on what is known of a model.

    Parameters
    ----------
    facts : Facts

    Returns
    -------
    Report
    """
    skipped = dict(_skipped(facts))
    order = {layer.name: layer.order for layer in facts.layers} | {"": -1}
    findings = [finding for code, check in CHECKS.items() if code not in skipped for finding in check(facts)]
    findings = list(_causes_first(findings))

    def place(finding: Finding) -> tuple[int, int, str]:
        return -SEVERITIES.index(finding.severity), order[finding.layer], finding.code

    return Report(
        findings=tuple(sorted(findings, key=place)),
        notes=facts.notes if facts.layers else (*facts.notes, "The model has no batch-norm layer."),
        model=facts.model,
        framework=facts.framework,
        layers=tuple(layer.name for layer in sorted(facts.layers, key=lambda layer: layer.order)),
        skipped=skipped,
        source=facts.source,
    )


def _causes_first(findings: list[Finding]) -> Iterator[Finding]:
    """The findings; those that new statistics seem to cure point to what has spoilt the old ones, where that is found.

    Recalibrated over its cause, such a symptom goes away or comes back, and nothing is mended.
    """
    causes = list(dict.fromkeys(finding.code for finding in findings if finding.code in CAUSES))
    for finding in findings:
        if finding.code in SYMPTOMS and causes:
            finding = replace(finding, fix=f"First mend {' and '.join(causes)}. Then: {finding.fix}")
        yield finding


def _skipped(facts: Facts) -> Iterator[tuple[str, str]]:
    """The rules that cannot be checked, each with the reason."""
    seen = [layer.seen for layer in facts.layers if layer.seen is not None]
    batches = max((one.batches for one in seen), default=0)
    for code, rule in RULES.items():
        if rule.needs in ("data", "mask") and not facts.data_run:
            yield code, "no data was given"
        elif rule.needs == "mask" and not facts.masked:
            yield code, "no mask was given, or it has no layer's shape"
        elif rule.needs == "optimizer" and facts.optimizer is None:
            yield code, "no optimizer was given"
        elif code == "BN307" and batches < MIN_BATCHES:
            yield code, f"it takes {MIN_BATCHES} batches, and the data has {batches}"
        elif code == "BN307" and all(one.iid_ratio is None for one in seen):
            yield code, "at no layer are the rows the samples of the batch"
        elif code == "BN308" and batches < RATIO_BATCHES:
            yield code, f"it takes {RATIO_BATCHES} batches, and the data has {batches}"
        elif code == "BN308" and all(one.evaluation_ratio is None for one in seen):
            yield code, "no second batch of two samples or more could be compared"
        elif code == "BN309" and batches < GAP_BATCHES:
            yield code, f"it takes {GAP_BATCHES} batches, and the data has {batches}"
        elif code == "BN309" and facts.output is None:
            yield code, "no outputs of training and evaluation could be compared"
