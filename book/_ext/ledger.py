"""Sphinx extension: the records of the ledger as cards, straight from the files that ``make ledger`` wrote.

``{ledger} B`` shows the claims whose names begin with B, ``{ledger-summary}`` counts the verdicts, and the role
``verdict`` says what came of one claim and leads to its card. The records are read as JSON, so the book is built
without what it takes to run a claim.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

RECORDS = Path(__file__).parents[2] / "bnlearn" / "claims" / "records"
PAGE = "book/ledger"
VERDICTS = ("supported", "depends", "refuted", "not shown here")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SAID_BY = {"P": "popular introductions", "-": "this book"}


def records(letter: str = "") -> dict[Path, dict[str, Any]]:
    """The records whose names begin with ``letter``, in the order of their names."""
    files = sorted(RECORDS.glob(f"{letter}*.json"), key=lambda path: (path.stem[0], int(path.stem[1:])))
    return {path: json.loads(path.read_text("utf-8")) for path in files}


def plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", text)


def number(value: float) -> str:
    """Three significant digits, or a power of ten."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(RAISED)}"
    return f"{value:.3g}".replace("-", "−")


def finding(criterion: dict[str, Any], result: dict[str, Any]) -> str:
    """One criterion as a line: what was measured, and what it says."""
    measured = number(result["estimate"])
    if not criterion["exact"]:
        measured += f" [{number(result['low'])}, {number(result['high'])}]"
    name, effect = plain(criterion["name"]), plain(criterion["effect"])
    return f"- *{name}.* {effect[0].upper()}{effect[1:]}: **{measured}**, {result['verdict']}"


def lines_drawn(criterion: dict[str, Any]) -> str:
    """What would have supported and refuted it: declared beforehand."""
    support, refute = number(criterion["support"]), number(criterion["refute"])
    said = f"up to {support} supports" if criterion["exact"] else f"from {support} supports, below {refute} refutes"
    return f"{plain(criterion['name'])}: {said}"


def box(kind: str, lines: Iterable[str], colons: int = 4, name: str = "") -> Iterator[str]:
    """Lines in a container of the given classes."""
    yield f"{':' * colons}{{container}} {kind}"
    if name:
        yield f":name: {name}"
    yield ""
    yield from lines
    yield ":" * colons
    yield ""


def card(path: Path, record: dict[str, Any]) -> Iterator[str]:
    """One record as MyST."""
    verdict, chapter = record["verdict"], record["chapter"]
    said = [SAID_BY.get(key, f"{{cite:t}}`{key}`") for key in record["sources"]]
    links = [f"{{download}}`record </{path.relative_to(RECORDS.parents[2])}>`"]
    if chapter:
        suffix = ".ipynb" if chapter.startswith("notebooks/") else ".md"
        links.insert(0, f"[](/{chapter}{suffix})")

    def lines() -> Iterator[str]:
        yield from box("claim-head", [f"**{record['id']}** {verdict}"], 5)
        yield from box("claim-statement", [plain(record["statement"])], 5)
        for criterion in record["criteria"]:
            yield finding(criterion, record["results"][criterion["name"]])
        yield ""
        yield ":::::{dropdown} How it was run"
        yield ""
        yield f"{plain(record['setting'])} {plain(record['note'])} {record['scale']['seeds']} seeds."
        yield ""
        yield f"Lines: {'; '.join(map(lines_drawn, record['criteria']))}."
        yield ""
        yield from box("claim-theme", [plain(record["theme"])])
        yield from box("claim-said-by", ["; ".join(said)])
        yield ":::::"
        yield from box("claim-links", [" · ".join(links)], 5)

    yield from box(f"claim verdict-{verdict.replace(' ', '-')}", lines(), 6, f"claim-{record['id'].lower()}")


class Ledger(SphinxDirective):
    """The claims of one letter."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        found = records(self.arguments[0])
        if not found:
            raise self.error(f"expected records named {self.arguments[0]}*.json in {RECORDS}; run `make ledger`")
        lines: list[str] = []
        for path, record in found.items():
            self.env.note_dependency(str(path))
            lines += card(path, record)
        return parsed(self, lines)


class LedgerSummary(SphinxDirective):
    """How many claims there are, and how many of each verdict."""

    def run(self) -> list[nodes.Node]:
        found = Counter(record["verdict"] for record in records().values())
        counts = [f"**{found[verdict]}** {verdict}" for verdict in VERDICTS]
        return parsed(self, [*box("ledger-counts", [f"**{found.total()}** claims: {', '.join(counts)}."])])


class VerdictRole(SphinxRole):
    """The name of a claim and its verdict, leading to its card."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        path = RECORDS / f"{self.text}.json"
        if not path.is_file():
            message = self.inliner.reporter.error(f"no record of a claim {self.text} in {RECORDS}", line=self.lineno)
            return [], [message]
        self.env.note_dependency(str(path))
        said = f"{self.text}: {json.loads(path.read_text('utf-8'))['verdict']}"
        link = pending_xref(
            "", nodes.inline("", said), refdomain="std", reftype="ref", refexplicit=True, refwarn=True,
            refdoc=self.env.docname, reftarget=f"claim-{self.text.lower()}",
        )  # fmt: skip
        return [link], []


def parsed(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    node = nodes.Element()
    directive.state.nested_parse(StringList(lines, source="ledger"), directive.content_offset, node)
    return node.children


def add_filter(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """The script that filters the cards, on their page alone."""
    if page == PAGE:
        app.add_js_file("ledger.js", loading_method="defer")


def add_anchors(app: Sphinx, doctree: nodes.document) -> None:
    """Lets a link in Markdown lead to a card, as to a section: ``ledger.md#claim-b2``."""
    if app.env.docname == PAGE:
        anchors = app.env.metadata[PAGE].setdefault("myst_slugs", {})
        for card in doctree.findall(nodes.container):
            anchors.update({name: (0, name, name) for name in card["ids"] if name.startswith("claim-")})


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ledger", Ledger)
    app.add_directive("ledger-summary", LedgerSummary)
    app.add_role("verdict", VerdictRole())
    app.connect("doctree-read", add_anchors)
    app.connect("html-page-context", add_filter)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
