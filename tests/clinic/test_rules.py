"""The rules' texts: whole, shown in the book as they are, and true of the code: every example is run and audited."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from bnlearn.clinic import RULES, Rule
from bnlearn.clinic._rule import SEVERITIES
from bnlearn.clinic._rules import page

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "book" / "rules"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("rule_pages", ROOT / "tools" / "rule_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def each(rules=RULES):
    return pytest.mark.parametrize("rule", rules.values(), ids=rules)


def test_the_codes_are_in_order():
    assert list(RULES) == sorted(RULES)
    assert len(RULES) == 28
    assert all(code == rule.code and re.fullmatch(r"BN[1-4]\d\d", code) for code, rule in RULES.items())


@each()
def test_every_text_is_there_and_ends_with_a_full_stop(rule):
    assert rule.severity in SEVERITIES
    assert rule.needs in ("", "data", "mask", "optimizer")
    assert not rule.title.endswith(".")
    for name in ("what", "why", "seen", "misses", "cure"):
        text = getattr(rule, name)
        assert text.strip() == text
        assert text.endswith((".", ".*")), name
        assert len(text) < 700
        assert text.count("`") % 2 == 0
    assert {field.name for field in fields(rule)} >= {"what", "why", "seen", "misses", "cure", "example", "threads"}


@each()
def test_the_threads_are_threads(rule):
    for said, path in rule.threads:
        assert said
        assert re.fullmatch(r"[\w.-]+/[\w.-]+/(issues|pull)/\d+", path)


@each()
def test_the_other_rules_that_a_text_names_exist(rule):
    named = set(re.findall(r"BN\d{3}", page(rule)))
    assert rule.code in named
    assert named <= set(RULES)


@each()
def test_a_page_has_all_of_a_rule(rule):
    text = page(rule)
    flat = " ".join(text.split())
    assert text.startswith(f"# {rule.code}: {rule.title}\n\n**Severity:** {rule.severity}. It needs ")
    for name in ("what", "why", "seen", "misses", "cure"):
        assert " ".join(getattr(rule, name).split()) in flat
    assert f'```python\n{rule.example}assert report.by_code("{rule.code}")\n```\n' in text
    assert all(f"<https://github.com/{path}>" in text for _, path in rule.threads)
    assert ("## Where people met it" in text) == bool(rule.threads)
    prose = text.partition("```python")[0]
    assert max(map(len, prose.splitlines())) <= 110


def test_the_needs_are_said():
    said = {rule.needs: page(rule).splitlines()[2].partition(". ")[2] for rule in RULES.values()}
    assert said == {
        "": "It needs the model alone.",
        "data": "It needs data: `bnlearn.audit(model, data)`.",
        "mask": "It needs data and a mask: `bnlearn.audit(model, data, mask=...)`.",
        "optimizer": "It needs the optimizer: `bnlearn.audit(model, optimizer=...)`.",
    }


@pytest.mark.parametrize(
    ("address", "url"), [("", "book/rules/bn306.html"), ("https://b.org", "https://b.org/book/rules/bn306.html")]
)
def test_the_address_of_a_page(monkeypatch, address, url):
    monkeypatch.setattr("bnlearn.clinic._rule.BOOK_URL", address)
    assert RULES["BN306"].url == url


def test_the_book_s_pages_are_those_of_the_rules(tool):
    stored = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}
    assert stored == tool.pages(), "python tools/rule_pages.py writes them"


def test_the_book_lists_every_page():
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))["parts"]
    chapters = [chapter for part in parts for chapter in part["chapters"]]
    (index,) = [chapter for chapter in chapters if chapter["file"] == "book/rules/index"]
    assert [section["file"] for section in index["sections"]] == [f"book/rules/{code.lower()}" for code in RULES]


def test_the_pages_are_written(tool, tmp_path):
    folder = tmp_path / "rules"
    tool.write(folder)
    (folder / "bn999.md").write_text("a rule of former times", "utf-8")
    (folder / "bn306.md").write_text("", "utf-8")
    tool.write(folder)
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == tool.pages()


def test_a_page_links_to_the_others_but_not_to_itself(tool):
    text = tool.pages()["bn306.md"]
    assert "[BN306](" not in text
    assert "[BN306](bn306.md)" in tool.pages()["bn102.md"]
    assert "[[" not in "".join(tool.pages().values())
    assert tool.pages()["index.md"].count("](bn") == len(RULES)


@each()
def test_the_example_has_the_defect(rule: Rule):
    assert len(rule.example.splitlines()) <= 18
    assert max(map(len, rule.example.splitlines())) <= 120
    for framework in ("torch", "keras"):
        if f"import {framework}\n" in rule.example:
            pytest.importorskip(framework)
    names: dict = {}
    exec(compile(rule.example, rule.code, "exec"), names)
    found = names["report"].by_code(rule.code)
    assert found
    assert all(one.severity == rule.severity for one in found)
    if "torch" in sys.modules:
        assert not sys.modules["torch"].distributed.is_initialized()
