"""The clinic: find what is wrong with batch normalisation in your own models, and mend it.

:func:`audit` looks a PyTorch or Keras model over and reports findings, each with its evidence and a fix;
:func:`recalibrate`, :func:`freeze`, :func:`fold` and :func:`replace` are the repairs. What touches your model puts
everything else back as it was, and each repair can be undone. No framework is imported before you do.
"""

from __future__ import annotations

from bnlearn.clinic._audit import audit
from bnlearn.clinic._findings import AuditError, Finding, Report
from bnlearn.clinic._repair import Repair
from bnlearn.clinic._repairs import fold, freeze, recalibrate, replace
from bnlearn.clinic._rule import Rule
from bnlearn.clinic._rules import RULES

__all__ = [
    "RULES",
    "AuditError",
    "Finding",
    "Repair",
    "Report",
    "Rule",
    "audit",
    "fold",
    "freeze",
    "recalibrate",
    "replace",
]
