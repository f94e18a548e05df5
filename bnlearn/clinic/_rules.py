"""The rules of the audit: their texts are the book's pages on them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from types import MappingProxyType

from bnlearn.clinic._rule import Rule
from bnlearn.clinic._rules_data import DATA
from bnlearn.clinic._rules_modes import MODES, SETUP
from bnlearn.clinic._rules_state import STATE
from bnlearn.clinic._rules_use import USE

__all__ = ["RULES", "page"]

RULES: Mapping[str, Rule] = MappingProxyType({rule.code: rule for rule in (*STATE, *MODES, *USE, *DATA, *SETUP)})
"""All rules, by code."""

_NEEDS = {
    "": "It needs the model alone.",
    "data": "It needs data: `bnlearn.audit(model, data)`.",
    "mask": "It needs data and a mask: `bnlearn.audit(model, data, mask=...)`.",
    "optimizer": "It needs the optimizer: `bnlearn.audit(model, optimizer=...)`.",
}


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def page(rule: Rule) -> str:
    """The page of a rule in the book, which ``python -m bnlearn audit --explain`` shows too.

    Parameters
    ----------
    rule : Rule

    Returns
    -------
    str
        Markdown.
    """
    parts = [
        f"# {rule.code}: {rule.title}",
        f"**Severity:** {rule.severity}. {_NEEDS[rule.needs]}",
        f"## What it is\n\n{_wrapped(rule.what)}",
        f"## Why it matters\n\n{_wrapped(rule.why)}",
        f"## How it is seen\n\n{_wrapped(rule.seen)}",
        f"## What it misses\n\n{_wrapped(rule.misses)}",
        f"## The cure\n\n{_wrapped(rule.cure)}",
        f'## The defect in a few lines\n\n```python\n{rule.example}assert report.by_code("{rule.code}")\n```',
    ]
    if rule.threads:
        links = [f"- {said}: <https://github.com/{path}>" for said, path in rule.threads]
        parts.append("## Where people met it\n\n" + "\n".join(links))
    return "\n\n".join(parts) + "\n"
