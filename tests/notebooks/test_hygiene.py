"""What every stored notebook keeps to; each rule is also shown to catch a notebook that breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
CHAPTERS = [
    "11_why_normalise",
    "21_the_transform",
    "22_backward",
    "31_from_scratch",
    "41_pytorch",
    "42_keras_tensorflow",
    "43_moving_models",
    "44_across_processes",
    "51_speed_and_rates",
    "52_initialisation_and_depth",
    "53_vanishing_exploding_rank",
    "54_covariate_shift",
    "55_the_landscape",
    "56_regularisation",
    "57_before_or_after",
    "58_what_gamma_and_beta_do",
    "61_limits",
    "62_small_batches",
    "63_training_and_inference",
    "64_unfair_batches",
    "65_transfer_and_freezing",
    "66_padding",
    "67_dropout_and_decay",
    "68_explaining_and_attacking",
    "69_leaks",
    "71_one_picture",
    "72_batch_free",
    "73_batch_aware",
    "74_weight_space",
    "75_style",
    "76_sequences",
    "77_whitening",
    "78_norm_free",
    "81_audit",
    "82_half_precision",
    "83_deployment",
]
UNCOMPARED = {
    "61_limits": 1,  # prints times of this machine
}
"""How many cells of a notebook may print what another run would not."""
ADDRESS = re.compile(r"0x[0-9a-f]{6,}|/home/|/root/|/Users/|/tmp/|site-packages|[A-Z]:\\\\", re.IGNORECASE)
LONG_NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d{7,}|(?<![\w.])-?\d\.\d{6,}e[+-]?\d+")


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def texts(cell) -> Iterator[str]:
    """Everything a cell printed or displayed as text."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield output.get("data", {}).get("text/plain", "")


def executed_in_order(notebook) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}, not 1, 2, 3, ..."]


def nothing_on_stderr(notebook) -> list[str]:
    return [
        f"cell {cell.execution_count} wrote to stderr: {output.text[:80]!r}"
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


def no_error_output(notebook) -> list[str]:
    return [
        f"cell {cell.execution_count} raised {output.ename}"
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error"
    ]


def no_addresses(notebook) -> list[str]:
    return [
        f"cell {cell.execution_count} shows {found.group()!r}, which another machine would not"
        for cell in code_cells(notebook)
        for text in texts(cell)
        for found in ADDRESS.finditer(text)
    ]


def few_digits(notebook) -> list[str]:
    """Seven decimals are more than another processor agrees on."""
    return [
        f"cell {cell.execution_count} prints {found.group()}"
        for cell in code_cells(notebook)
        for text in texts(cell)
        for found in LONG_NUMBER.finditer(text)
    ]


def alt_text(notebook) -> list[str]:
    problems = []
    for cell in code_cells(notebook):
        drawn = [o for o in cell.outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if drawn and len(alt) < 40:
            problems.append(f"cell {cell.execution_count} draws a figure and its alt text is {alt!r}")
        if len(drawn) > 1:
            problems.append(f"cell {cell.execution_count} draws {len(drawn)} figures under one alt text")
    return problems


def no_trailing_semicolon(notebook) -> list[str]:
    return [
        f"cell {cell.execution_count} ends with a semicolon; end it with plt.show()"
        for cell in code_cells(notebook)
        if cell.source.rstrip().endswith(";")
    ]


def nothing_skipped(notebook) -> list[str]:
    return [
        f"cell {cell.execution_count} is kept from being compared: {sorted(found)}"
        for cell in code_cells(notebook)
        if (
            found := {tag for tag in tags(cell) if tag.startswith("nbval")} | set(re.findall("NBVAL_\\w+", cell.source))
        )
    ]


def nothing_left_behind(notebook) -> list[str]:
    """Metadata that an editor or an execution leaves, and that means nothing."""
    problems = [f"notebook metadata {key!r}" for key in set(notebook.metadata) - {"kernelspec", "language_info"}]
    for cell in notebook.cells:
        problems += [f"{cell.id}: metadata {key!r}" for key in set(cell.metadata) - {"tags", "mystnb"}]
    return problems


def one_title(notebook) -> list[str]:
    first = notebook.cells[0]
    titles = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("# ")
    ]
    starts = first.cell_type == "markdown" and first.source.startswith("# ")
    return [] if starts and len(titles) == 1 else [f"expected one title, in the first cell, found {titles}"]


RULES: list[Callable] = [
    executed_in_order,
    nothing_on_stderr,
    no_error_output,
    no_addresses,
    few_digits,
    alt_text,
    no_trailing_semicolon,
    nothing_skipped,
    nothing_left_behind,
    one_title,
]


def test_every_chapter_is_there():
    assert [path.stem for path in NOTEBOOKS] == CHAPTERS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rule(path, rule):
    problems = rule(nbformat.read(path, as_version=4))
    if rule is nothing_skipped:
        problems = problems[UNCOMPARED.get(path.stem, 0) :]
    assert not problems, "\n".join(problems)


def picture(**metadata):
    output = new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"})
    return new_code_cell("plt.show()", outputs=[output], execution_count=1, metadata=metadata)


def printed(text, name="stdout"):
    return new_code_cell("...", outputs=[new_output("stream", name=name, text=text)], execution_count=1)


BROKEN = {
    executed_in_order: [new_code_cell("1", execution_count=2)],
    nothing_on_stderr: [printed("warning", name="stderr")],
    no_error_output: [new_code_cell("1/0", outputs=[new_output("error", ename="E", evalue="", traceback=[])])],
    no_addresses: [printed("<object at 0x7f8b4c2a9d50>")],
    few_digits: [printed("loss 0.12345678")],
    alt_text: [picture()],
    no_trailing_semicolon: [new_code_cell("plt.plot([1]);")],
    nothing_skipped: [new_code_cell("1", metadata={"tags": ["nbval-ignore-output"]})],
    nothing_left_behind: [new_code_cell("1", metadata={"collapsed": True})],
    one_title: [new_markdown_cell("## not a title")],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_catches_what_it_is_for(rule):
    assert rule(new_notebook(cells=BROKEN[rule]))


def test_a_clean_notebook_breaks_no_rule():
    alt = {"image": {"alt": "A line that rises from the lower left to the upper right."}}
    cells = [new_markdown_cell("# Title"), picture(mystnb=alt)]
    clean = new_notebook(cells=cells)
    assert [problem for rule in RULES for problem in rule(clean)] == []
