"""The ledger: what is said of batch normalisation, each claim with what was measured and the verdict that follows."""

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

__all__ = [
    "FULL",
    "QUICK",
    "SMOKE",
    "Claim",
    "Criterion",
    "Interval",
    "Measurement",
    "Result",
    "Scale",
    "Verdict",
    "interval",
    "judge",
    "overall",
]
