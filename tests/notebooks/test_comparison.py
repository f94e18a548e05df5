"""What nbval plus notebooks/conftest.py must catch, each shown on a small notebook with that one defect."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]
DRAW = """
import matplotlib
import matplotlib.pyplot as plt
plt.plot([0, 1], [{start}, 1])
plt.show()
"""


@pytest.fixture
def refreshed(tmp_path):
    """Store cells as a notebook with true outputs; returns its path."""

    def store(*sources: str) -> Path:
        path = tmp_path / "notebook.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
        command = [sys.executable, ROOT / "tools" / "refresh_notebooks.py", path]
        subprocess.run(command, check=True, capture_output=True)
        return path

    return store


def validate(path: Path) -> tuple[bool, str]:
    """Whether nbval accepts the notebook, with the project's conftest beside it, and what it printed."""
    shutil.copy(ROOT / "notebooks" / "conftest.py", path.parent)
    options = ["--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-p", "no:cov", "--rootdir", path.parent]
    command = [sys.executable, "-m", "pytest", *options, path]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 0, done.stdout


def change(path: Path, edit) -> None:
    notebook = nbformat.read(path, as_version=4)
    edit(notebook)
    nbformat.write(notebook, path)


def test_an_honest_notebook_passes(refreshed):
    passed, printed = validate(refreshed("print(1 + 1)", "1 + 1;", "'shown'", DRAW.format(start=0)))
    assert passed, printed


def test_a_changed_number_fails(refreshed):
    path = refreshed("print(2 + 2)")
    change(path, lambda notebook: notebook.cells[0].outputs[0].update(text="5\n"))
    passed, printed = validate(path)
    assert not passed
    assert "Cell outputs differ" in printed


def test_a_stale_picture_fails_and_the_new_one_is_kept(refreshed):
    path = refreshed(DRAW.format(start=0))
    change(path, lambda notebook: notebook.cells[0].update(source=DRAW.format(start=0.5)))
    passed, printed = validate(path)
    assert not passed
    assert "the pictures differ by RMS" in printed
    assert (path.parent / "_build" / "nbval" / "notebook-cell-0-0.png").exists()


def test_a_picture_of_another_size_fails(refreshed):
    path = refreshed(DRAW.format(start=0))
    resized = "%config InlineBackend.print_figure_kwargs = {'bbox_inches': None}" + DRAW.format(start=0)
    change(path, lambda notebook: notebook.cells[0].update(source=resized))
    passed, printed = validate(path)
    assert not passed
    assert "pixels, the new one" in printed


def test_a_missing_picture_fails(refreshed):
    path = refreshed(DRAW.format(start=0))
    change(path, lambda notebook: notebook.cells[0].outputs[0]["data"].pop("image/png"))
    passed, printed = validate(path)
    assert not passed
    assert "0 pictures are stored, 1 were drawn" in printed


def test_stripped_outputs_fail(refreshed):
    path = refreshed("print(2 + 2)")
    change(path, lambda notebook: notebook.cells[0].update(outputs=[], execution_count=None))
    passed, printed = validate(path)
    assert not passed
    assert "stored without having been run" in printed


def test_an_error_fails(refreshed):
    path = refreshed("print(2 + 2)")
    change(path, lambda notebook: notebook.cells[0].update(source="print(2 + 2)\n1 / 0"))
    passed, printed = validate(path)
    assert not passed
    assert "ZeroDivisionError" in printed


def test_refresh_leaves_a_notebook_that_raises_as_it_was(tmp_path):
    path = tmp_path / "raises.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    command = [sys.executable, ROOT / "tools" / "refresh_notebooks.py", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "left as it was, a cell raised" in done.stderr
    assert path.read_bytes() == before


def test_refresh_twice_gives_the_same_file(refreshed):
    path = refreshed("print(1)", DRAW.format(start=0))
    first = path.read_bytes()
    subprocess.run([sys.executable, ROOT / "tools" / "refresh_notebooks.py", path], check=True, capture_output=True)
    assert path.read_bytes() == first
