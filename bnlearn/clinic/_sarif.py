"""A report in SARIF 2.1.0 (OASIS), which code-scanning services and editors read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bnlearn.clinic._rule import Rule, Severity
from bnlearn.clinic._rules import RULES, page

if TYPE_CHECKING:
    from bnlearn.clinic._findings import Finding, Report

__all__ = ["as_sarif"]

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"

LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}


def as_sarif(report: Report) -> str:
    """The report as a SARIF log with one run."""
    from bnlearn import __version__

    indices = {code: index for index, code in enumerate(RULES)}
    driver = {"name": "bnlearn", "version": __version__, "rules": [_rule(rule) for rule in RULES.values()]}
    notes = [f"{code} was not checked: {reason}." for code, reason in report.skipped.items()] + list(report.notes)
    run = {
        "tool": {"driver": driver},
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [{"level": "note", "message": {"text": note}} for note in notes],
            }
        ],
        "results": [_result(one, indices[one.code], report) for one in report.findings],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def _rule(rule: Rule) -> dict[str, Any]:
    said: dict[str, Any] = {
        "id": rule.code,
        "shortDescription": {"text": f"{rule.title}."},
        "fullDescription": {"text": f"{rule.what} {rule.why}"},
        "help": {"text": f"{rule.what} {rule.why} {rule.cure}", "markdown": page(rule)},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }
    if rule.url.startswith("https://"):  # the format wants whole addresses
        said["helpUri"] = rule.url
    return said


def _result(finding: Finding, index: int, report: Report) -> dict[str, Any]:
    place = ".".join(filter(None, (report.model, finding.layer)))
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": place, "kind": "member"}]}
    if report.source is not None:
        file, line = report.source
        location["physicalLocation"] = {"artifactLocation": _artifact(file), "region": {"startLine": line}}
    return {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{place}: {finding.evidence} {finding.fix}"},
        "locations": [location],
        "partialFingerprints": {"layer/v1": f"{finding.code}:{place}"},  # the same in the next run
    }


def _artifact(file: str) -> dict[str, str]:
    """Relative to the working directory, where the file lies in it."""
    path = Path(file).resolve()
    here = Path.cwd().resolve()
    if path.is_relative_to(here):
        return {"uri": quote(path.relative_to(here).as_posix()), "uriBaseId": "%SRCROOT%"}
    return {"uri": path.as_uri()}
