"""Refuse a build that lacks a page, a heading or a notebook's outputs; else say what to open.

    python tools/check_build.py _build/html

A book can be built "successfully" into nothing (Jupyter Book 2 does it from the configuration of version 1), so what
the table of contents promises is compared with what lies in the folder.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def files(toc: Any) -> Iterator[str]:
    """Every page that ``_toc.yml`` names, in reading order."""
    if isinstance(toc, list):
        for entry in toc:
            yield from files(entry)
    elif isinstance(toc, dict):
        yield from (toc[key] for key in ("root", "file") if key in toc)
        for key in ("parts", "chapters", "sections", "subtrees", "entries"):
            yield from files(toc.get(key, []))


def stored_outputs(notebook: Path) -> int:
    """How many code cells of a notebook have an output."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return sum(bool(cell.get("outputs")) for cell in cells)


def problems(root: Path, site: Path) -> list[str]:
    """What is missing in ``site``, built from the sources in ``root``; one line each."""
    found = []
    names = list(files(yaml.safe_load((root / "_toc.yml").read_text("utf-8"))))
    if not names:
        found.append("_toc.yml names no page")
    if not (site / "index.html").is_file():
        found.append(f"{site / 'index.html'} is missing")
    for name in names:
        page = site / f"{name}.html"
        if not page.is_file():
            found.append(f"{page} is missing, though _toc.yml names {name}")
            continue
        html = page.read_text("utf-8")
        heading = re.search(r"<h1\b.*?</h1>", html.partition("<article")[2], re.DOTALL)
        if heading is None or not re.sub(r"<[^>]*>", "", heading[0]).strip():
            found.append(f"{page} has no heading")
        notebook = root / f"{name}.ipynb"
        if notebook.is_file():
            expected, shown = stored_outputs(notebook), len(re.findall(r'class="[^"]*\bcell_output\b', html))
            if expected == 0:
                found.append(f"{notebook} has no stored outputs: run `make notebooks`")
            elif shown < expected:
                found.append(f"{page} shows the outputs of {shown} cells, the notebook stores {expected}")
    return found


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html")
    found = problems(Path(), site)
    if found:
        print(f"The book in {site} is not whole:", *found, sep="\n  ", file=sys.stderr)
        return 1
    print(f"Open {site / 'index.html'} in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
