"""What a report looks like: in a terminal, a notebook, a pull request, and for machines."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import bnlearn
from bnlearn.clinic import RULES, Finding, Report
from bnlearn.clinic import _formats as formats

URL = "book/rules/bn306.html"
LONG = "backbone.layer4.2.downsample.1.normalisation.bn"
STALE = [
    Finding(
        "BN306",
        "error",
        layer,
        f"In {n} of 64 live channels the running statistics are not the data's. " * 2,
        "Recalibrate.",
        URL,
    )
    for n, layer in enumerate(["a|b", "<b>&", LONG, "bn3", "bn4", "bn5"], start=10)
]
GAP = Finding("BN309", "error", "", "They differ by 0.52.", "Recalibrate.", "book/rules/bn309.html")
BIAS = Finding("BN107", "info", "bn3", "A bias.", "Drop it.", "book/rules/bn107.html")
SKIPPED = {"BN310": "no mask was given", "BN401": "no optimizer was given", "BN403": "no optimizer was given"}
REPORT = Report(
    findings=(GAP, *STALE, BIAS),
    notes=("A note on bn9.",),
    model="Net",
    framework="torch",
    layers=("a|b", "<b>&", LONG, "bn3", "bn4", "bn5"),
    skipped=SKIPPED,
    source=("models/net.py", 12),
)
CLEAN = replace(REPORT, findings=(), notes=(), source=None, framework="keras", layers=("bn",))
EMPTY = replace(CLEAN, layers=(), skipped=dict.fromkeys(RULES, "no data was given"))


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of so many columns."""
    return lambda columns: monkeypatch.setattr(
        formats.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24))
    )


@pytest.mark.parametrize(("columns", "width"), [(40, 80), (80, 80), (100, 100), (300, 120)])
def test_the_table_fits_the_terminal(terminal, columns, width):
    terminal(columns)
    lines = repr(REPORT).splitlines()
    assert width - 12 < max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    assert repr(REPORT).isascii()


def test_the_table_names_what_was_found(terminal):
    terminal(100)
    text = repr(REPORT)
    lines = text.splitlines()
    assert lines[0] == "Net (PyTorch), 6 batch-norm layers: 7 errors, 1 info"
    assert [line.split() for line in lines if line.startswith(("severity", "error", "info"))] == [
        ["severity", "rule", "layer", "evidence,", "and", "what", "to", "do"],
        ["error", "BN309", "(model)", "They", "differ", "by", "0.52."],
        ["error", "BN306", "a|b", *STALE[0].evidence.split()[:9]],
        ["info", "BN107", "bn3", "A", "bias."],
    ]
    assert 'and 2 more layers: report.by_code("BN306")' in text
    assert "bn4" not in text
    assert text.count("=> Recalibrate.") == 2
    assert "Not checked: BN310 (no mask was given).\nNot checked: BN401, BN403 (no optimizer was given)." in text
    assert lines[-2:] == ["Note: A note on bn9.", "More on a rule: python -m bnlearn audit --explain BN309"]


def test_one_more_layer_than_is_shown(terminal):
    terminal(120)
    report = replace(REPORT, findings=tuple(STALE[:5]))
    assert 'and 1 more layer: report.by_code("BN306")' in repr(report)
    assert "more layer" not in repr(replace(REPORT, findings=tuple(STALE[:4])))


def test_a_long_name_is_cut_into_lines(terminal):
    terminal(80)
    shown = "".join(line[17:47].strip() for line in repr(replace(REPORT, findings=(STALE[2],))).splitlines()[4:6])
    assert shown == LONG


def test_where_nothing_was_found():
    assert repr(CLEAN).splitlines() == [
        "Net (Keras), 1 batch-norm layer: nothing found",
        "Checked: BN101-BN309, BN311-BN312, BN402, BN404.",
        "Not checked: BN310 (no mask was given).",
        "Not checked: BN401, BN403 (no optimizer was given).",
    ]
    assert repr(EMPTY).splitlines()[:2] == ["Net (Keras), 0 batch-norm layers: nothing found", "Checked: nothing."]


class Table(HTMLParser):
    """The tags of a piece of HTML, each with its attributes; and the text of what is in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.append((self.open[-1], data))


def test_the_table_for_notebooks():
    table = Table(REPORT._repr_html_())
    assert table.open == []
    text = table.text
    assert text[0] == ("caption", "Net (PyTorch), 6 batch-norm layers: 7 errors, 1 info")
    assert [said for tag, said in text if tag == "th"][:5] == ["severity", "rule", "layer", "evidence", "what to do"]
    assert [said for tag, said in text if tag == "th"][5:] == ["error", "error", "info"]  # in words, not by colour
    assert {tag["scope"] for name, tag in table.tags if name == "th"} == {"col", "rowgroup"}
    assert [said for tag, said in text if tag == "code"] == ["(model)", "a|b", "<b>&", LONG, "bn3", "bn3"]
    assert ("td", 'and 2 more layers: report.by_code("BN306")') in text
    assert [int(tag["rowspan"]) for name, tag in table.tags if "rowspan" in tag and name == "th"] == [1, 5, 1]
    rows = [tag for tag, _ in table.tags].count("tr")
    assert rows == 1 + 1 + 5 + 1
    assert "a" not in [tag for tag, _ in table.tags]  # nowhere to go while the book has no address
    assert "color" not in REPORT._repr_html_()
    assert ("p", "Note: A note on bn9.") in text


def test_the_table_for_notebooks_links_to_the_book():
    published = replace(GAP, url='https://book.example/rules/bn309.html?"')
    table = Table(replace(REPORT, findings=(published,))._repr_html_())
    assert ("a", {"href": 'https://book.example/rules/bn309.html?"'}) in table.tags
    assert ("a", "BN309") in table.text


def test_a_notebook_where_nothing_was_found():
    table = Table(CLEAN._repr_html_())
    assert table.text[0] == ("caption", "Net (Keras), 1 batch-norm layer: nothing found")
    assert ("p", "Checked: BN101-BN309, BN311-BN312, BN402, BN404.") in table.text
    assert not {"tbody", "thead"} & {tag for tag, _ in table.tags}


def test_markdown():
    lines = REPORT.to_markdown().splitlines()
    assert lines[0] == "**Net (PyTorch), 6 batch-norm layers: 7 errors, 1 info**"
    assert lines[2:4] == ["| severity | rule | layer | evidence | what to do |", "|---|---|---|---|---|"]
    assert lines[4] == "| error | BN309 | (model) | They differ by 0.52. | Recalibrate. |"
    assert lines[5].startswith("| error | BN306 | `a\\|b` | In 10 of 64")
    assert len([line for line in lines if line.startswith("| error")]) == 7  # all of them
    assert lines[-4:-1] == [
        "- Not checked: BN310 (no mask was given).",
        "- Not checked: BN401, BN403 (no optimizer was given).",
        "- Note: A note on bn9.",
    ]
    published = replace(GAP, url="https://book.example/bn309.html", evidence="two\nlines")
    assert (
        "| [BN309](https://book.example/bn309.html) | (model) | two lines |"
        in replace(REPORT, findings=(published,)).to_markdown()
    )
    assert "severity" not in CLEAN.to_markdown()


@pytest.mark.parametrize("report", [REPORT, CLEAN], ids=["findings", "clean"])
def test_json_there_and_back(report):
    text = report.to_json()
    again = Report.from_json(text)
    assert again == report
    assert again.to_json() == text
    raw = json.loads(text)
    assert list(raw) == ["format", "model", "framework", "worst", "findings", "layers", "skipped", "notes", "source"]
    assert raw["worst"] == report.worst
    assert raw["format"] == "bnlearn audit 1"


def test_json_has_the_keys_of_a_finding():
    raw = json.loads(REPORT.to_json())["findings"][0]
    assert list(raw) == ["code", "severity", "layer", "evidence", "fix", "url"]


@pytest.mark.parametrize(
    ("text", "came"), [('{"format": "bnlearn audit 2"}', "'bnlearn audit 2'"), ("{}", "'none'"), ("[]", "'list'")]
)
def test_json_of_something_else(text, came):
    with pytest.raises(ValueError, match=f"expected a report in the format 'bnlearn audit 1', got {came}"):
        Report.from_json(text)


def sarif(report: Report) -> dict:
    """The one run of a SARIF log, held against what SARIF 2.1.0 requires of the parts that are used."""
    log = json.loads(report.to_sarif())
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("bnlearn", bnlearn.__version__)
    for rule in driver["rules"]:
        assert all(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))
        assert rule["defaultConfiguration"]["level"] in ("note", "warning", "error")
    for result in run["results"]:
        assert result["message"]["text"]
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("note", "warning", "error")
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is True
    assert all(one["message"]["text"] for one in invocation["toolExecutionNotifications"])
    return run


def test_sarif():
    run = sarif(REPORT)
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULES)
    assert [result["level"] for result in run["results"]] == ["error"] * 7 + ["note"]
    first, second = run["results"][:2]
    assert first["message"]["text"] == "Net: They differ by 0.52. Recalibrate."
    assert [
        place["logicalLocations"][0]["fullyQualifiedName"] for place in (first["locations"][0], second["locations"][0])
    ] == [
        "Net",
        "Net.a|b",
    ]
    assert first["partialFingerprints"] != second["partialFingerprints"]
    said = [one["message"]["text"] for one in run["invocations"][0]["toolExecutionNotifications"]]
    assert said == [*(f"{code} was not checked: {why}." for code, why in SKIPPED.items()), "A note on bn9."]
    assert "helpUri" not in run["tool"]["driver"]["rules"][0]


def test_sarif_places_the_model_s_class(tmp_path, monkeypatch):
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)

    def place(path: Path) -> dict:
        return sarif(replace(REPORT, source=(str(path), 12)))["results"][0]["locations"][0]["physicalLocation"]

    inside = place(here / "my models" / "net.py")
    assert inside == {
        "artifactLocation": {"uri": "my%20models/net.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 12},
    }
    assert place(tmp_path / "net.py")["artifactLocation"] == {"uri": (tmp_path / "net.py").resolve().as_uri()}
    assert "physicalLocation" not in sarif(replace(REPORT, source=None))["results"][0]["locations"][0]


def test_sarif_links_to_the_book_once_it_has_an_address(monkeypatch):
    monkeypatch.setattr("bnlearn.clinic._rule.BOOK_URL", "https://book.example")
    rules = sarif(REPORT)["tool"]["driver"]["rules"]
    assert rules[0]["helpUri"] == "https://book.example/book/rules/bn101.html"


def test_sarif_of_a_clean_model():
    assert sarif(CLEAN)["results"] == []
