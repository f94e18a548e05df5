"""How the site is built: on small books of one page and one notebook, with the book's own configuration."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.xdist_group("build")

ADDRESS = "https://github.com/someone/some-book"

FORMULAS = r"""# Formulas

Inline $\hat{x}$, and {eq}`of-one` and {eq}`of-rows`.

$$
y = \gamma \hat{x} + \beta
$$ (of-one)

$$
a &= b \\
c &= d
$$ (of-rows)

$$ e = f $$

\begin{align}
g &= h \\
i &= j
\end{align}
"""


def notebook(*, outputs: bool = True, alternative: str = "A dot.") -> str:
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": dot, "text/plain": "<Figure>"}}
    code = {
        "cell_type": "code",
        "id": "a",
        "execution_count": 1,
        "metadata": {"mystnb": {"image": {"alt": alternative}}} if alternative else {},
        "source": "draw()",
        "outputs": [picture] if outputs else [],
    }
    title = {"cell_type": "markdown", "id": "b", "metadata": {}, "source": "# Notebook"}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": [title, code], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def small_book(root: Path, target: Path, *, address: str = "", formulas: str = FORMULAS, **options: Any) -> Path:
    """A book of two pages in ``target``, set up as this book is."""
    for folder in ("_ext", "_static", "_templates"):
        shutil.copytree(root / "book" / folder, target / "book" / folder)
    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    config["repository"]["url"] = address
    (target / "_config.yml").write_text(yaml.safe_dump(config), "utf-8")
    toc = {"format": "jb-book", "root": "book/intro", "chapters": [{"file": "notebooks/one"}]}
    (target / "_toc.yml").write_text(yaml.safe_dump(toc), "utf-8")
    (target / "book" / "references.bib").write_text("", "utf-8")
    (target / "book" / "intro.md").write_text(formulas, "utf-8")
    (target / "notebooks").mkdir()
    (target / "notebooks" / "one.ipynb").write_text(notebook(**options), "utf-8")
    return target


def build(book: Path) -> subprocess.CompletedProcess[str]:
    """What `make book` runs, in ``book``."""
    tool = Path(sys.executable).with_name("jupyter-book")
    command = [tool, "build", ".", "--all", "-W", "-n", "--keep-going", "--quiet"]
    return subprocess.run(command, cwd=book, capture_output=True, encoding="utf-8", timeout=120)


def message(run: subprocess.CompletedProcess[str]) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", run.stdout + run.stderr)


@pytest.fixture(scope="module")
def checker(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_build", root / "tools" / "check_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small book, built as if the repository's address were known."""
    book = small_book(root, tmp_path_factory.mktemp("published"), address=ADDRESS)
    (book / "node_modules").symlink_to(root / "node_modules")
    run = build(book)
    assert run.returncode == 0, message(run)
    return book


def test_the_repository_s_address_stands_in_one_place(published: Path) -> None:
    page = (published / "_build" / "html" / "notebooks" / "one.html").read_text("utf-8")
    links = re.findall(r'href="([^"]+)"', page.replace("&amp;", "&"))
    assert "https://mybinder.org/v2/gh/someone/some-book/main?urlpath=lab/tree/notebooks/one.ipynb" in links
    assert "https://colab.research.google.com/github/someone/some-book/blob/main/notebooks/one.ipynb" in links
    assert f"{ADDRESS}/edit/main/notebooks/one.ipynb" in links
    assert any(link.startswith(f"{ADDRESS}/issues/new?") for link in links)
    assert ADDRESS in links
    prose = (published / "_build" / "html" / "book" / "intro.html").read_text("utf-8")
    assert f"{ADDRESS}/edit/main/book/intro.md" in prose
    assert "mybinder.org" not in prose  # nothing to run there


def test_formulas_are_rendered_and_numbered_once(published: Path) -> None:
    page = (published / "_build" / "html" / "book" / "intro.html").read_text("utf-8")
    article = page.partition("<article")[2].partition("</article>")[0]
    assert article.count('<span class="katex">') == 1 + 4
    assert article.count('<math xmlns="http://www.w3.org/1998/Math/MathML"') == 1 + 4
    numbers = re.findall(r'<span class="eqno">\((\d+)\)', article)
    assert numbers == ["1", "2", "3"]
    assert 'class="tag"' not in article  # a number of KaTeX's own
    targets = dict(re.findall(r'<a class="reference internal" href="#(equation-[\w-]+)">\((\d+)\)</a>', article))
    assert targets == {"equation-of-one": "1", "equation-of-rows": "2"}
    assert all(f'id="{name}"' in article for name in targets)
    assert not re.search("<script[^>]*mathjax", page, re.IGNORECASE)


def test_only_fonts_that_browsers_load_are_published(published: Path) -> None:
    katex = published / "_build" / "html" / "_static" / "katex"
    named = set(re.findall(r"url\(fonts/([^)]+)\)", (katex / "katex.css").read_text("utf-8")))
    assert named == {path.name for path in (katex / "fonts").iterdir()}
    assert {Path(name).suffix for name in named} == {".woff2"}


def test_errors_fail_the_build_by_page_and_formula(root: Path, tmp_path: Path) -> None:
    book = small_book(root, tmp_path, formulas=FORMULAS + "\n$$ \\oops{x} $$\n\nInline $\\frac{1}$.\n", alternative="")
    (book / "node_modules").symlink_to(root / "node_modules")
    run = build(book)
    assert run.returncode != 0
    said = message(run)
    line = FORMULAS.count("\n") + 2
    assert f"book/intro.md:{line}: ERROR: formula on page book/intro: KaTeX parse error: Undefined" in said
    assert "\\oops{x}" in said
    assert "\\frac{1}" in said
    assert "formulas that could not be rendered: 2, on: book/intro" in said
    assert "picture without alternative text on page notebooks/one" in said


def test_a_missing_renderer_says_what_to_do(root: Path, tmp_path: Path) -> None:
    run = build(small_book(root, tmp_path))
    assert run.returncode != 0
    assert re.search(r"KaTeX is missing, expected in .*node_modules/katex: run `make book`", message(run))


def test_a_whole_build_passes_the_check(published: Path, checker: ModuleType) -> None:
    assert checker.problems(published, published / "_build" / "html") == []


@pytest.mark.parametrize(
    ("defect", "complaint"),
    [
        ("page", "one.html is missing, though _toc.yml names notebooks/one"),
        ("everything", "index.html is missing"),
        ("heading", "intro.html has no heading"),
        ("outputs", "one.html shows the outputs of 0 cells, the notebook stores 1"),
        ("stripped", "one.ipynb has no stored outputs: run `make notebooks`"),
        ("contents", "_toc.yml names no page"),
    ],
)
def test_a_build_that_lacks_something_fails_the_check(
    published: Path, checker: ModuleType, tmp_path: Path, defect: str, complaint: str
) -> None:
    book = shutil.copytree(published, tmp_path / "book", symlinks=True)
    site = book / "_build" / "html"
    page, intro = site / "notebooks" / "one.html", site / "book" / "intro.html"
    if defect == "page":
        page.unlink()
    elif defect == "everything":
        shutil.rmtree(site)
    elif defect == "heading":
        intro.write_text(re.sub(r"<h1\b.*?</h1>", "<h1></h1>", intro.read_text("utf-8"), flags=re.DOTALL), "utf-8")
    elif defect == "outputs":
        page.write_text(page.read_text("utf-8").replace("cell_output", ""), "utf-8")
    elif defect == "stripped":
        (book / "notebooks" / "one.ipynb").write_text(notebook(outputs=False), "utf-8")
    else:
        (book / "_toc.yml").write_text("format: jb-book\n", "utf-8")
    assert any(line.endswith(complaint) for line in checker.problems(book, site))
    run = subprocess.run(
        [sys.executable, checker.__file__, site], cwd=book, capture_output=True, encoding="utf-8", timeout=60
    )
    assert (run.returncode, complaint in run.stderr) == (1, True)
