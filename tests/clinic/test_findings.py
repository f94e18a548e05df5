"""The report itself: what it tells, and when it raises."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace

import pytest

from bnlearn.clinic import AuditError, Finding, Report
from bnlearn.clinic._findings import at_least

ERROR = Finding("BN306", "error", "stem.bn", "Off by 3.", "Recalibrate.", "book/rules/bn306.html")
WARNING = Finding("BN309", "warning", "", "A gap of 0.5.", "Look.", "book/rules/bn309.html")
INFO = Finding("BN107", "info", "stem.bn", "A bias.", "Drop it.", "book/rules/bn107.html")
REPORT = Report((ERROR, WARNING, INFO), (), "Net", "torch")


@pytest.mark.parametrize(("severity", "found"), [("error", 1), ("warning", 2), ("info", 3)])
def test_a_severity_and_those_worse(severity, found):
    assert REPORT.at_least(severity) == (ERROR, WARNING, INFO)[:found]
    assert at_least(severity)[-1] == "error"


def test_worst_and_by_code():
    assert REPORT.worst == "error"
    assert replace(REPORT, findings=(INFO,)).worst == "info"
    assert replace(REPORT, findings=()).worst is None
    assert REPORT.by_code("BN309") == (WARNING,)
    assert REPORT.by_code("BN101") == ()


def test_raise_if_lists_the_findings():
    with pytest.raises(AuditError, match=r"^Net: 1 error, 1 warning\n") as raised:
        REPORT.raise_if("warning")
    assert isinstance(raised.value, AssertionError)  # a test that uses it fails, and does not break
    assert str(raised.value).splitlines()[1:] == [
        "  BN306 error, stem.bn: Off by 3. Recalibrate.",
        "  BN309 warning, the model: A gap of 0.5. Look.",
    ]
    with pytest.raises(AuditError, match=r"^Net: 1 error\n"):
        replace(REPORT, findings=(ERROR,)).raise_if()


def test_raise_if_lets_the_milder_pass():
    replace(REPORT, findings=(WARNING, INFO)).raise_if()
    replace(REPORT, findings=(INFO,)).raise_if("warning")
    replace(REPORT, findings=()).raise_if("info")


@pytest.mark.parametrize("ask", [REPORT.raise_if, REPORT.at_least, at_least])
def test_an_unknown_severity(ask):
    with pytest.raises(ValueError, match=re.escape("expected a severity of info, warning, error, got 'fatal'")):
        ask("fatal")


def test_a_finding_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        ERROR.severity = "info"
