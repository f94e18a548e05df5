"""The Markdown pages: their examples run, and what the bibliography lists is cited somewhere."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

from bnlearn import functional

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "book").glob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RECORDS = sorted((ROOT / "bnlearn" / "claims" / "records").glob("*.json"))
KEYS = re.findall(
    r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.MULTILINE
)


def examples(page: Path) -> str:
    """The ``pycon`` blocks of a page, one after the other."""
    return "\n".join(
        re.findall(r"^```pycon\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    )


def cited(text: str) -> set[str]:
    """The keys in the ``{cite}`` roles of a Markdown text."""
    roles = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    return {key.strip() for role in roles for key in role.split(",")}


def markdown(notebook: Path) -> str:
    """The prose cells of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


CITED = set().union(
    *(cited(page.read_text(encoding="utf-8")) for page in PAGES if page.parent.name == "book"),
    *(cited(markdown(notebook)) for notebook in NOTEBOOKS),
    # The page of the ledger cites what its records name; "P" stands for popular introductions, "-" for this book.
    *({*json.loads(record.read_text(encoding="utf-8"))["sources"]} - {"P", "-"} for record in RECORDS),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_give_what_the_page_shows(page: Path) -> None:
    test = doctest.DocTestParser().get_doctest(examples(page), {}, page.name, str(page), 0)
    report: list[str] = []
    result = doctest.DocTestRunner().run(test, out=report.append)
    assert result.failed == 0, "".join(report)


def test_the_first_pages_have_examples() -> None:
    for name in ("intro.md", "how_to.md"):
        assert ">>>" in examples(ROOT / "book" / name), f"expected a pycon block in book/{name}"


def test_every_citation_has_an_entry() -> None:
    assert CITED - set(KEYS) == set(), "cited, but not in book/references.bib"


def test_every_entry_is_cited() -> None:
    assert set(KEYS) - CITED == set(), "in book/references.bib, but cited by no page or notebook: remove it"


def test_no_key_is_used_twice() -> None:
    assert len(KEYS) == len(set(KEYS))


def test_every_formula_has_its_place_on_an_api_page():
    pages = (ROOT / "book" / "api").glob("functional_*.md")
    listed = [
        name for page in pages for name in re.findall(r"^\.\. auto\w+:: (\w+)$", page.read_text("utf-8"), re.MULTILINE)
    ]
    assert sorted(listed) == sorted(functional.__all__)
