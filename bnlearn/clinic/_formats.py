"""A report for people (terminal, notebook, Markdown) and for machines (JSON)."""

from __future__ import annotations

import html
import json
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bnlearn.clinic._rule import SEVERITIES, Severity
from bnlearn.clinic._rules import RULES

if TYPE_CHECKING:
    from bnlearn.clinic._findings import Finding, Report

__all__ = ["as_html", "as_json", "as_markdown", "as_text", "framework", "listing", "read_json"]

SHOWN = 4
"""Layers with the same finding that a table lists; the others it counts."""

FORMAT = "bnlearn audit 1"
"""What :func:`as_json` calls itself; another number where an older reader would be wrong."""

_FRAMEWORKS = {"torch": "PyTorch", "keras": "Keras"}


class _Group(NamedTuple):
    """Findings that differ only in layer and evidence."""

    code: str
    severity: Severity
    fix: str
    findings: list[Finding]

    def more(self) -> str:
        """A line on those that are not shown, or nothing."""
        left = len(self.findings) - SHOWN
        layers = "layer" if left == 1 else "layers"
        return f'and {left} more {layers}: report.by_code("{self.code}")' if left > 0 else ""


def framework(report: Report) -> str:
    """How its makers write the framework's name."""
    return _FRAMEWORKS.get(report.framework, report.framework)


def _groups(findings: Iterable[Finding]) -> list[_Group]:
    found: dict[tuple[str, Severity, str], _Group] = {}
    for one in findings:
        key = (one.code, one.severity, one.fix)
        found.setdefault(key, _Group(*key, [])).findings.append(one)
    return list(found.values())


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 or word == "info" else "s")


def _counts(findings: Sequence[Finding]) -> str:
    counted = {severity: sum(one.severity == severity for one in findings) for severity in reversed(SEVERITIES)}
    return ", ".join(_plural(n, severity) for severity, n in counted.items() if n) or "nothing found"


def _head(report: Report) -> str:
    layers = _plural(len(report.layers), "batch-norm layer")
    return f"{report.model} ({framework(report)}), {layers}: {_counts(report.findings)}"


def _spans(codes: Iterable[str]) -> str:
    """Codes, those that follow each other as from-to."""
    order = list(RULES)
    runs: list[list[str]] = []
    for code in codes:
        if runs and code in order and order.index(code) == order.index(runs[-1][-1]) + 1:
            runs[-1].append(code)
        else:
            runs.append([code])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _remarks(report: Report) -> Iterator[str]:
    """What was checked, what was not and why, and the notes."""
    if not report.findings:
        yield f"Checked: {_spans(code for code in RULES if code not in report.skipped) or 'nothing'}."
    reasons: dict[str, list[str]] = {}
    for code, reason in report.skipped.items():
        reasons.setdefault(reason, []).append(code)
    for reason, codes in reasons.items():
        yield f"Not checked: {_spans(codes)} ({reason})."
    for note in report.notes:
        yield f"Note: {note}"
    if report.findings:
        yield f"More on a rule: python -m bnlearn audit --explain {report.findings[0].code}"


def listing(model: str, findings: Sequence[Finding]) -> str:
    """Findings for an error message, one a line.

    Parameters
    ----------
    model : str
    findings : sequence of Finding

    Returns
    -------
    str
    """
    lines = [f"{model}: {_counts(findings)}"]
    for one in findings:
        lines.append(f"  {one.code} {one.severity}, {one.layer or 'the model'}: {one.evidence} {one.fix}")
    return "\n".join(lines)


def as_text(report: Report) -> str:
    """A table for the terminal, 80 to 120 columns wide, as the terminal is."""
    width = min(max(shutil.get_terminal_size().columns, 80), 120)
    names = min(max([len("layer"), *(len(one.layer or "(model)") for one in report.findings)]), 30)
    widths = (8, 5, names, width - 8 - 5 - names - 6)
    lines = textwrap.wrap(_head(report), width)
    if report.findings:
        lines += ["", *_row(("severity", "rule", "layer", "evidence, and what to do"), widths)]
        lines.append("  ".join("-" * one for one in widths))
    for group in _groups(report.findings):
        first: tuple[str, str] = (group.severity, group.code)
        for one in group.findings[:SHOWN]:
            lines += _row((*first, one.layer or "(model)", one.evidence), widths)
            first = ("", "")
        if group.more():
            lines += _row(("", "", "", group.more()), widths)
        lines += [*_row(("", "", "", f"=> {group.fix}"), widths), ""]
    remarks = [line for remark in _remarks(report) for line in textwrap.wrap(remark, width)]
    return "\n".join([*lines, *remarks])


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, wrapped))
    columns = [lines + [""] * (height - len(lines)) for lines in wrapped]
    padded = [[f"{line:{width}}" for line in lines] for lines, width in zip(columns, widths, strict=True)]
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]


def as_html(report: Report) -> str:
    """A table for notebooks: it takes its colours from the page, and says severities in words."""
    parts = [
        '<table class="bnlearn-report" style="text-align: left">',
        f"<caption>{html.escape(_head(report))}</caption>",
    ]
    if report.findings:
        columns = ("severity", "rule", "layer", "evidence", "what to do")
        heads = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in columns)
        parts += [f"<thead><tr>{heads}</tr></thead>", "<tbody>"]
    for group in _groups(report.findings):
        parts += _html_rows(group)
    if report.findings:
        parts.append("</tbody>")
    parts.append("</table>")
    parts += [f"<p>{html.escape(remark)}</p>" for remark in _remarks(report)]
    return "\n".join(parts)


_CELL = "text-align: left; vertical-align: top"


def _html_rows(group: _Group) -> Iterator[str]:
    link = html.escape(group.code)
    if (url := group.findings[0].url).startswith("https://"):
        link = f'<a href="{html.escape(url)}">{link}</a>'
    shown = group.findings[:SHOWN]
    rows = [(one.layer or "(model)", one.evidence) for one in shown]
    if group.more():
        rows.append(("", group.more()))
    for index, (layer, evidence) in enumerate(rows):
        cells = [f"<code>{html.escape(layer)}</code>" if layer else "", html.escape(evidence)]
        row = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
        if index == 0:
            span = f'rowspan="{len(rows)}" style="{_CELL}"'
            start = f'<th scope="rowgroup" {span}>{group.severity}</th><td {span}>{link}</td>'
            row = f"{start}{row}<td {span}>{html.escape(group.fix)}</td>"
        yield f"<tr>{row}</tr>"


def as_markdown(report: Report) -> str:
    """A table with every finding, for a pull request or a log."""
    lines = [f"**{_cell(_head(report))}**"]
    if report.findings:
        lines += ["", "| severity | rule | layer | evidence | what to do |", "|---|---|---|---|---|"]
    for one in report.findings:
        code = f"[{one.code}]({one.url})" if one.url.startswith("https://") else one.code
        layer = f"`{one.layer}`" if one.layer else "(model)"
        lines.append("| " + " | ".join([one.severity, code, *map(_cell, (layer, one.evidence, one.fix))]) + " |")
    lines += ["", *(f"- {_cell(remark)}" for remark in _remarks(report))]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_json(report: Report) -> str:
    """All of the report, with keys in a fixed order."""
    whole = {
        "format": FORMAT,
        "model": report.model,
        "framework": report.framework,
        "worst": report.worst,
        "findings": [vars(one) for one in report.findings],
        "layers": list(report.layers),
        "skipped": dict(report.skipped),
        "notes": list(report.notes),
        "source": None if report.source is None else list(report.source),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False)


def read_json(text: str) -> dict[str, Any]:
    """What :func:`as_json` wrote, as the arguments of a report.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict
        The findings are still dictionaries.

    Raises
    ------
    ValueError
        If it is something else.
    """
    raw = json.loads(text)
    if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
        came = raw.get("format", "none") if isinstance(raw, Mapping) else type(raw).__name__
        raise ValueError(f"expected a report in the format {FORMAT!r}, got {came!r}")
    kept: dict[str, Any] = {key: value for key, value in raw.items() if key not in ("format", "worst")}
    for key in ("layers", "notes"):
        kept[key] = tuple(kept[key])
    if kept["source"] is not None:
        kept["source"] = tuple(kept["source"])
    return kept
