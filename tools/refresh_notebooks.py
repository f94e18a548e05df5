"""Execute notebooks in place and store what they gave: the authors' one way to refresh outputs (`make notebooks`).

A notebook that raises is left as it was. What differs from run to run without meaning anything (timestamps, cell ids,
version numbers of the kernel) is not stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm.auto import tqdm

KEPT_METADATA = {"tags", "mystnb"}
CELL_TIMEOUT = 120


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave only what means something, in the same words each time."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_METADATA})


def refresh(path: Path) -> None:
    """Execute the notebook at ``path`` and store its outputs there."""
    notebook = nbformat.read(path, as_version=4)
    tidy(notebook)
    NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,
        record_timing=False,
    ).execute()
    tidy(notebook)  # the kernel has written its own version into the metadata
    nbformat.validate(notebook)
    written = path.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, written)
    written.replace(path)


def main(names: list[str]) -> int:
    """Refresh each named notebook, and say at the end which ones raised."""
    if not names:
        print("expected the paths of notebooks, got none, e.g. notebooks/21_the_transform.ipynb", file=sys.stderr)
        return 2
    failed = 0
    bar = tqdm([Path(name) for name in names], unit="notebook")
    for path in bar:
        bar.set_description(path.stem)
        try:
            refresh(path)
        except CellExecutionError as error:
            failed += 1
            tqdm.write(f"{path}: left as it was, a cell raised\n{error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
