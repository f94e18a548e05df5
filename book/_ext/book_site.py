"""Sphinx extension: what this site does differently from its theme."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

logger = logging.getLogger(__name__)

# The theme draws its icons twice over: with a web font, and with this script of 1.5 MB. The font is enough.
ICON_SCRIPT = "_static/scripts/fontawesome.js"
# Results as one types are switched off, so only the page of results needs the index of the whole book.
SEARCH_SCRIPT = re.compile(r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js"></script>')
# What a screen reader needs said otherwise than the tools say it:
REPAIRS = [
    # this label hid the text "Show code cell source",
    (' aria-label="Toggle hidden content"', ""),
    # this button had none,
    ('<summary><span class="toctree-toggle"', '<summary aria-label="Pages below"><span class="toctree-toggle"'),
    # the bibliography is a list without items,
    ('role="doc-biblioentry"', 'role="listitem"'),
    # and the corner of a table heads nothing.
    ('<th class="head"><p></p></th>', '<td class="head"></td>'),
]
# A download is saved, not opened in a new tab as text.
DOWNLOAD = re.compile(r'(<a href="[^"]*/_sources/[^"]*") target="_blank"')
ICON_TAG = re.compile(rf"\s*(<!--[^>]*custom icons -->\s*)?<script[^>]*{re.escape(ICON_SCRIPT)}[^>]*></script>")


def offer_repository(app: Sphinx, config: Config) -> None:
    """Show Binder, Colab, repository, issue and edit buttons if, and only if, the repository's address is known."""
    options = config.html_theme_options
    known = bool(options.get("repository_url"))
    for button in ("use_repository_button", "use_issues_button", "use_edit_page_button"):
        options[button] = known
    options["launch_buttons"] = (
        {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        }
        if known
        else {}
    )


def require_alternative_text(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Warn, which fails a strict build, about every picture that a blind reader would miss."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning(
                'picture without alternative text on page %s: in a notebook, set the cell\'s metadata to {"mystnb": '
                '{"image": {"alt": "..."}}}; in Markdown, write ![...](file)',
                docname,
                location=image,
            )


def skip_tuple_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out "Alias for field number 0": the docstring of a named tuple lists its fields."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def tidy(app: Sphinx, exception: Exception | None) -> None:
    """Drop what no reader needs (source maps, the theme's templates, the second set of icons) and repair the rest."""
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for source_map in (site / "_static").rglob("*.map"):
        source_map.unlink()
    for template in (site / "_static").glob("*-macros.html"):
        template.unlink()
    for page in site.rglob("*.html"):
        html = DOWNLOAD.sub(r"\1 download", ICON_TAG.sub("", page.read_text("utf-8")))
        for defect, repair in REPAIRS:
            html = html.replace(defect, repair)
        if page.name != "search.html":
            html = SEARCH_SCRIPT.sub("", html)
        page.write_text(html, "utf-8")
    (site / ICON_SCRIPT).unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", offer_repository)
    app.connect("doctree-resolved", require_alternative_text)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("build-finished", tidy)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
