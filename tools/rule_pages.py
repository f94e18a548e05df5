"""Write the pages of the audit's rules, book/rules, from the rules themselves: python tools/rule_pages.py"""

from __future__ import annotations

import re
from pathlib import Path

from bnlearn.clinic import RULES, Rule
from bnlearn.clinic._rules import page

FOLDER = Path(__file__).parents[1] / "book" / "rules"

INDEX = """\
# The rules of the audit

`bnlearn.audit(model, data)` looks for these. A finding names its rule, the layer, what was seen, and what to do; each
rule has a page, with the defect in a few lines of code. `python -m bnlearn audit --explain {example}` shows the same in
a terminal.

*Error*: the results are wrong, or will be. *Warning*: something behaves otherwise than it looks. *Info*: worth knowing.
Some rules need data, a mask or the optimizer; a report says which were not checked.

"""
SECTIONS = {
    "BN1": "What a layer holds",
    "BN2": "Modes and freezing",
    "BN3": "What arrives at a layer",
    "BN4": "How a layer is set up",
}


def linked(rule: Rule) -> str:
    """The page of a rule, with links to the other rules that it names."""
    text = page(rule)
    for other in RULES:
        if other != rule.code:
            text = re.sub(rf"(?<!\[)\b{other}\b", f"[{other}]({other.lower()}.md)", text)
    return text


def index() -> str:
    """The page that lists them."""
    text = INDEX.format(example="BN306")
    for start, title in SECTIONS.items():
        text += f"## {title}\n\n| Rule | What is wrong | Severity | Needs |\n|---|---|---|---|\n"
        for code, rule in RULES.items():
            if code.startswith(start):
                needs = "data and a mask" if rule.needs == "mask" else rule.needs or "the model"
                text += f"| [{code}]({code.lower()}.md) | {rule.title} | {rule.severity} | {needs} |\n"
        text += "\n"
    return text.rstrip("\n") + "\n"


def pages() -> dict[str, str]:
    """The text of every file in the folder."""
    return {"index.md": index(), **{f"{code.lower()}.md": linked(rule) for code, rule in RULES.items()}}


def write(folder: Path) -> None:
    """Write them all, and remove what no rule asks for."""
    folder.mkdir(exist_ok=True)
    wanted = pages()
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
