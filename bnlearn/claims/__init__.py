"""The ledger: what is said of batch normalisation, each claim with what was measured and the verdict that follows.

A :class:`Claim` declares beforehand what would support it and what would refute it (:class:`Criterion`); running it
gives a :class:`Measurement` for each; the verdict is computed from the raw effects whenever a :class:`Record` is read,
and never stored as the truth. Reading a record needs NumPy and SciPy; running claims needs the extra ``evidence``.
"""

from __future__ import annotations

from bnlearn.claims._claim import (
    FULL,
    QUICK,
    SMOKE,
    Claim,
    Criterion,
    Interval,
    Measurement,
    Result,
    Scale,
    Verdict,
    interval,
    judge,
    overall,
)
from bnlearn.claims._digest import digest
from bnlearn.claims._figures import draw, draw_arms
from bnlearn.claims._ledger import (
    THEMES,
    Entry,
    Run,
    entries,
    ledger,
    record,
    records,
    run,
    select,
)
from bnlearn.claims._records import RECORDS, CorruptRecordError, Record
from bnlearn.claims._table import as_json, as_markdown, as_text

__all__ = [
    "FULL",
    "QUICK",
    "RECORDS",
    "SMOKE",
    "THEMES",
    "Claim",
    "CorruptRecordError",
    "Criterion",
    "Entry",
    "Interval",
    "Measurement",
    "Record",
    "Result",
    "Run",
    "Scale",
    "Verdict",
    "as_json",
    "as_markdown",
    "as_text",
    "digest",
    "draw",
    "draw_arms",
    "entries",
    "interval",
    "judge",
    "ledger",
    "overall",
    "record",
    "records",
    "run",
    "select",
]
