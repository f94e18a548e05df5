"""What nbval plus notebooks/conftest.py must catch, each shown on a cell of a small notebook with that one defect."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]
REFRESH = ROOT / "tools" / "refresh_notebooks.py"
DRAW = """
import matplotlib.pyplot as plt
plt.plot([0, 1], [{start}, 1])
plt.show()
"""


class Case(NamedTuple):
    """A cell as it is run and stored, what is then done to it, and what nbval must say of that (None: nothing)."""

    source: str
    spoil: Callable[[NotebookNode], object] | None = None
    complaint: str | None = None


CASES = {
    "honest text": Case("print(1 + 1)"),
    "honest semicolon": Case("1 + 1;"),
    "honest value": Case("'shown'"),
    "honest picture": Case(DRAW.format(start=0)),
    "changed number": Case("print(2 + 2)", lambda cell: cell.outputs[0].update(text="5\n"), "Cell outputs differ"),
    "stale picture": Case(
        DRAW.format(start=0),
        lambda cell: cell.update(source=DRAW.format(start=0.5)),
        "the pictures differ by RMS",
    ),
    "missing picture": Case(
        DRAW.format(start=0),
        lambda cell: cell.outputs[0]["data"].pop("image/png"),
        "0 pictures are stored, 1 were drawn",
    ),
    "stripped outputs": Case(
        "print(2 + 2)",
        lambda cell: cell.update(outputs=[], execution_count=None),
        "stored without having been run",
    ),
    "error": Case("print(3)", lambda cell: cell.update(source="print(3)\n1 / 0"), "ZeroDivisionError"),
    "picture of another size": Case(  # the last: it changes how all later pictures are made
        DRAW.format(start=0),
        lambda cell: cell.update(
            source="%config InlineBackend.print_figure_kwargs = {'bbox_inches': None}" + DRAW.format(start=0)
        ),
        "pixels, the new one",
    ),
}


def refresh(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, REFRESH, path], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def said(folder) -> dict[str, str]:
    """What nbval said of each case; an empty string of one that passed."""
    path = folder / "notebook.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(case.source) for case in CASES.values()]), path)
    done = refresh(path)
    assert done.returncode == 0, done.stderr
    stored = path.read_bytes()
    assert refresh(path).returncode == 0
    assert path.read_bytes() == stored, "a second refresh changed the file"

    notebook = nbformat.read(path, as_version=4)
    for cell, case in zip(notebook.cells, CASES.values(), strict=True):
        if case.spoil is not None:
            case.spoil(cell)
    nbformat.write(notebook, path)
    shutil.copy(ROOT / "notebooks" / "conftest.py", folder)
    options = ["--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "--color=no", "--rootdir", folder]
    command = [sys.executable, "-m", "pytest", *options, path]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    parts = re.split(r"^_+ .*notebook\.ipynb::Cell (\d+) _+$", done.stdout, flags=re.MULTILINE)
    complaints = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))
    return {name: complaints.get(index, "") for index, name in enumerate(CASES)}


@pytest.mark.parametrize("name", CASES)
def test_case(said, name):
    complaint = CASES[name].complaint
    if complaint is None:
        assert said[name] == ""
    else:
        assert complaint in said[name]


def test_the_picture_that_differs_is_kept(said, folder):
    kept = list((folder / "_build" / "nbval").iterdir())
    assert f"notebook-cell-{list(CASES).index('stale picture')}-0.png" in {path.name for path in kept}


def test_refresh_leaves_a_notebook_that_raises_as_it_was(tmp_path):
    path = tmp_path / "raises.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    done = refresh(path)
    assert done.returncode == 1
    assert "left as it was, a cell raised" in done.stderr
    assert path.read_bytes() == before
