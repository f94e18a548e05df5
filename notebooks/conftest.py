"""How nbval compares the notebooks: what it leaves out by itself is added here.

By itself nbval never compares pictures, compares nothing in a cell that was never run, and runs cells without history,
so that a trailing semicolon shows an output that Jupyter would not. All three are closed below.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from nbval import kernel as nbval_kernel
from nbval import plugin as nbval_plugin
from PIL import Image

PICTURES = ("image/png", "image/jpeg")
TOLERANCE = 0.01
"""Largest root-mean-square difference of two pictures, with pixel values from 0 to 1 in four channels."""

compare_text = nbval_plugin.IPyNbCell.compare_outputs
run_cell = nbval_plugin.IPyNbCell.runtest


def decode(encoded: str) -> np.ndarray:
    """The picture as float64, shape (height, width, 4), values from 0 to 1."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return np.asarray(picture.convert("RGBA"), dtype=np.float64) / 255


def difference(stored: str, new: str) -> str | None:
    """What differs between two encoded pictures, or None if they show the same."""
    left, right = decode(stored), decode(new)
    if left.shape != right.shape:
        sizes = [f"{picture.shape[1]} x {picture.shape[0]}" for picture in (left, right)]
        return f"the stored picture is {sizes[0]} pixels, the new one {sizes[1]}"
    rms = float(np.sqrt(np.mean((left - right) ** 2)))
    return None if rms <= TOLERANCE else f"the pictures differ by RMS {rms:.4f}, more than {TOLERANCE}"


def pictures(outputs: list) -> list[str]:
    """The encoded pictures of a cell, in order."""
    bundles = [output["data"] for output in outputs if "data" in output]
    return [bundle[kind] for bundle in bundles for kind in PICTURES if kind in bundle]


def compare_outputs(cell, test, ref, skip_compare=None) -> bool:
    """Nbval's comparison, and the pictures after it."""
    if not compare_text(cell, test, ref, skip_compare):
        return False
    new, stored = pictures(test), pictures(ref)
    if len(new) != len(stored):
        cell.comparison_traceback = [f"{len(stored)} pictures are stored, {len(new)} were drawn"]
        return False
    for index, (left, right) in enumerate(zip(stored, new, strict=True)):
        found = difference(left, right)
        if found:
            kept = Path(cell.config.rootpath, "_build", "nbval", f"{cell.path.stem}-cell-{cell.cell_num}-{index}.png")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(base64.b64decode(right))
            cell.comparison_traceback = [f"{found}; the new one is kept in {kept}"]
            return False
    return True


def runtest(cell) -> None:
    """Run a cell, and fail one that has code and was stored without having been run."""
    if cell.cell.source.strip() and cell.cell.execution_count is None:
        cell.raise_cell_error("this cell was stored without having been run; run `make notebooks`")
    run_cell(cell)


def execute_cell_input(kernel, cell_input, allow_stdin=None) -> str:
    """As Jupyter does it: with history, so that a trailing semicolon means what it means there."""
    return kernel.kc.execute(cell_input, silent=False, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session) -> None:
    """Put the three in place, once per process and before a notebook is collected."""
    nbval_plugin.IPyNbCell.compare_outputs = compare_outputs
    nbval_plugin.IPyNbCell.runtest = runtest
    nbval_kernel.RunningKernel.execute_cell_input = execute_cell_input
