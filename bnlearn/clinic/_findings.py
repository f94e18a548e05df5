"""What an audit found, and what it could not look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from bnlearn.clinic import _formats, _sarif
from bnlearn.clinic._rule import SEVERITIES, Severity

__all__ = ["AuditError", "Finding", "Report", "at_least"]


class AuditError(AssertionError):
    """A model has findings that :meth:`Report.raise_if` does not let pass; the message lists them."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes
    ----------
    code : str
        Of the rule, such as ``"BN306"``.
    severity : str
        ``"info"``, ``"warning"`` or ``"error"``.
    layer : str
        Its path in the model; empty: the model as a whole.
    evidence : str
        What was seen, with the numbers.
    fix : str
        What to do.
    url : str
        The rule's page in the book.
    """

    code: str
    severity: Severity
    layer: str
    evidence: str
    fix: str
    url: str


def at_least(severity: str) -> tuple[Severity, ...]:
    """A severity and those worse.

    Raises
    ------
    ValueError
        If there is no such severity.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"expected a severity of {', '.join(get_args(Severity))}, got {severity!r}")
    return SEVERITIES[SEVERITIES.index(severity) :]


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`bnlearn.clinic.audit` found: a table in a terminal, and in a notebook.

    Attributes
    ----------
    findings : tuple of Finding
        The worst first, and then in the order of the layers.
    notes : tuple of str
        What could not be looked at, and why.
    model, framework : str
        The class of the model, and ``"torch"`` or ``"keras"``.
    layers : tuple of str
        The batch-norm layers that were looked at.
    skipped : mapping of str to str
        Rules that were not checked, each with the reason.
    source : tuple of (str, int), or None
        File and line of the model's class.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    model: str
    framework: str
    layers: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    source: tuple[str, int] | None = None

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding, or None where nothing was found."""
        return self.findings[0].severity if self.findings else None

    def by_code(self, code: str) -> tuple[Finding, ...]:
        """The findings of one rule.

        Parameters
        ----------
        code : str
            Such as ``"BN306"``.

        Returns
        -------
        tuple of Finding
        """
        return tuple(finding for finding in self.findings if finding.code == code)

    def at_least(self, severity: str) -> tuple[Finding, ...]:
        """The findings of a severity and those worse.

        Parameters
        ----------
        severity : str
            ``"info"``, ``"warning"`` or ``"error"``.

        Returns
        -------
        tuple of Finding

        Raises
        ------
        ValueError
            If there is no such severity.
        """
        return tuple(finding for finding in self.findings if finding.severity in at_least(severity))

    def raise_if(self, severity: str = "error") -> None:
        """Do nothing, unless there are findings of a severity or worse: a line for a test of your own.

        Parameters
        ----------
        severity : str
            ``"info"``, ``"warning"`` or ``"error"``.

        Raises
        ------
        AuditError
            If there are; it lists them.
        ValueError
            If there is no such severity.
        """
        if found := self.at_least(severity):
            raise AuditError(_formats.listing(self.model, found))

    def __repr__(self) -> str:
        return _formats.as_text(self)

    def _repr_html_(self) -> str:
        return _formats.as_html(self)

    def to_json(self) -> str:
        """The report in JSON, which :meth:`from_json` reads back.

        Returns
        -------
        str
        """
        return _formats.as_json(self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """A report that :meth:`to_json` wrote.

        Parameters
        ----------
        text : str

        Returns
        -------
        Report

        Raises
        ------
        ValueError
            If it is none.
        """
        raw = _formats.read_json(text)
        findings: Sequence[Mapping[str, str]] = raw.pop("findings")
        return cls(findings=tuple(Finding(**one) for one in findings), **raw)  # type: ignore[arg-type]

    def to_markdown(self) -> str:
        """The report as a Markdown table, for a pull request.

        Returns
        -------
        str
        """
        return _formats.as_markdown(self)

    def to_sarif(self) -> str:
        """The report in SARIF 2.1.0, which code-scanning services read.

        Returns
        -------
        str
        """
        return _sarif.as_sarif(self)
