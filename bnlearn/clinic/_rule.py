"""What a rule of the audit is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["BOOK_URL", "SEVERITIES", "Need", "Rule", "Severity", "Thread"]

Severity: TypeAlias = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""From the mildest to the worst."""

Need: TypeAlias = Literal["", "data", "mask", "optimizer"]
Thread: TypeAlias = tuple[str, str]
"""A discussion among users: what it is about, and where on GitHub."""

BOOK_URL = ""
"""Where the book is published; while it is empty, the addresses of the rules' pages are relative to the book's root."""


@dataclass(frozen=True)
class Rule:
    """One rule of the audit, with the text of its page in the book.

    Attributes
    ----------
    code : str
        Such as ``"BN306"``. 1xx: what a layer holds; 2xx: modes; 3xx: how it is used; 4xx: how it is set up.
    title : str
        What is wrong, in a few words.
    severity : str
        ``"info"``, ``"warning"`` or ``"error"``; a finding may be milder or worse where the page says so.
    needs : str
        What the rule cannot be checked without: ``"data"``, ``"mask"``, ``"optimizer"``, or nothing.
    what, why, seen, misses, cure : str
        What is wrong, what comes of it, how the audit sees it, when it does not, and what to do, in Markdown.
    example : str
        The defect and its audit in a few lines of Python, which bind ``report``.
    threads : tuple of (str, str)
        Where people met it: what was said, and the path on GitHub.
    """

    code: str
    title: str
    severity: Severity
    what: str
    why: str
    seen: str
    misses: str
    cure: str
    example: str
    needs: Need = ""
    threads: tuple[Thread, ...] = ()

    @property
    def url(self) -> str:
        """The address of its page in the book."""
        return f"{BOOK_URL}/book/rules/{self.code.lower()}.html".lstrip("/")
