"""What records say, as a table: plain text, Markdown or JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping

from bnlearn.claims._claim import Result
from bnlearn.claims._records import Record, prose


def _figure(number: float) -> str:
    return f"{number:.3g}"


def _measured(result: Result) -> str:
    """The estimate and its interval, or the largest error."""
    if result.criterion.exact:
        return _figure(result.estimate)
    return f"{_figure(result.estimate)} [{_figure(result.low)}, {_figure(result.high)}]"


def _declared(result: Result) -> str:
    criterion = result.criterion
    if criterion.exact:
        return f"tolerance {_figure(criterion.support)}"
    return f"supports from {_figure(criterion.support)}, refutes below {_figure(criterion.refute)}"


def as_text(shown: Mapping[str, Record], width: int | None = None) -> str:
    """The table as text: the verdict on each claim, and under it each criterion with its effect and interval.

    Parameters
    ----------
    shown : mapping of str to Record
        In the order of the table.
    width : int or None
        Of a line; None: of the terminal.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = []
    for name, one in shown.items():
        head = f"{name:<4}{one.verdict:<15} "
        lines.append(textwrap.fill(one.statement, width, initial_indent=head, subsequent_indent=" " * 20))
        for result in one.criteria.values():
            verdict = "" if len(one.criteria) == 1 else f"{result.verdict}: "
            text = (
                f"{verdict}{result.criterion.name}: {result.criterion.effect}: {_measured(result)}; {_declared(result)}"
            )
            lines.append(textwrap.fill(text, width, initial_indent=" " * 20, subsequent_indent=" " * 22))
    return "\n".join([*lines, "", summary(shown)])


def summary(shown: Mapping[str, Record]) -> str:
    """How many claims there are of each verdict."""
    counts = Counter(str(one.verdict) for one in shown.values())
    number = f"{len(shown)} claim{'s' if len(shown) != 1 else ''}"
    return f"{number}: " + (", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none")


def as_markdown(shown: Mapping[str, Record]) -> str:
    """The table in Markdown, one row for each criterion."""
    from bnlearn.family import markdown

    rows = [
        {
            "Claim": f"{name}: {one.statement}" if first else "",
            "Verdict": f"**{one.verdict}**" if first else "",
            "Where": result.criterion.name,
            "Measured": f"{result.criterion.effect}: {_measured(result)}",
            "Seeds": "exact" if result.criterion.exact else str(len(result.effect)),
            "Declared": _declared(result),
            "Shown": str(result.verdict),
        }
        for name, one in shown.items()
        for first, result in zip([True] + [False] * len(one.criteria), one.criteria.values(), strict=False)
    ]
    escaped = [{column: cell.replace("|", "\\|") for column, cell in row.items()} for row in rows]
    columns = ["Claim", "Verdict", "Where", "Measured", "Seeds", "Declared", "Shown"]
    return f"{markdown(escaped, columns)}\n\n{summary(shown)}"


def as_json(shown: Mapping[str, Record]) -> str:
    """The table as a JSON list, one mapping for each claim."""
    return json.dumps(
        [
            {
                "id": name,
                **prose(one),
                "verdict": str(one.verdict),
                "seeds": one.scale.seeds,
                "criteria": [
                    {
                        **{key: getattr(result.criterion, key) for key in ("name", "effect", "support", "refute")},
                        **{key: getattr(result, key) for key in ("estimate", "low", "high")},
                        "exact": result.criterion.exact,
                        "verdict": str(result.verdict),
                    }
                    for result in one.criteria.values()
                ],
            }
            for name, one in shown.items()
        ],
        indent=1,
        ensure_ascii=False,
    )
