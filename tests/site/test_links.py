"""The files of the site: every link and fragment leads somewhere, and all that a page embeds is the site's own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

EMBEDDED = {
    "script": ("src",),
    "img": ("src",),
    "iframe": ("src",),
    "source": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "image": ("href",),
    "use": ("href",),
}
ONLY_LINKS = {"next", "prev", "index", "search", "canonical", "author", "license", "alternate"}
CSS_URL = re.compile(r"""(?:url\(|@import\s)\s*["']?([^"')\s;]+)""")
REPOSITORY_LINK = re.compile(
    r"mybinder\.org|colab\.research|/issues/new|/edit/|https?://(?:www\.)?git(?:hub|lab)\.com/?$"
)


@dataclass
class Page(HTMLParser):
    """What one page links to, embeds and can be jumped to."""

    source: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)
    silent_pictures: list[str] = field(default_factory=list)
    in_article: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.embedded += CSS_URL.findall("\n".join(re.findall(r"<style[^>]*>(.*?)</style>", self.source, re.DOTALL)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.update(values[name] for name in ("id", "name") if name in values and (name == "id" or tag == "a"))
        self.in_article = self.in_article or tag == "article"
        self.embedded += [values[name] for name in EMBEDDED.get(tag, ()) if name in values]
        self.embedded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.embedded += CSS_URL.findall(values.get("style", ""))
        if tag == "link" and "href" in values:
            kind = self.links if set(values.get("rel", "").split()) & ONLY_LINKS else self.embedded
            kind.append(values["href"])
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            self.links.append(values["content"].partition("url=")[2])
        elif tag == "img":
            alternative, name = values.get("alt"), Path(values.get("src", "")).name
            # A picture beside the text may be decoration; one inside it is not, and its file's name says nothing.
            if alternative is None or (self.in_article and (not alternative.strip() or alternative.endswith(name))):
                self.silent_pictures.append(values.get("src", ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_article = self.in_article and tag != "article"


def problems(site: Path) -> list[str]:
    """Every broken link, missing fragment, part from elsewhere and picture without words in ``site``."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    sheets = {path.resolve(): path.read_text("utf-8") for path in site.rglob("*.css")}
    found = []

    def follow(origin: Path, url: str, embedded: bool) -> None:
        where, parts = origin.relative_to(site.resolve()), urlsplit(url)
        if parts.scheme in {"data", "javascript", "mailto"}:
            return
        if parts.scheme or parts.netloc:
            if embedded:
                found.append(f"{where}: loads {url} from elsewhere")
            elif not parts.netloc:
                found.append(f"{where}: {url} names no host")
            return
        target = (origin.parent / unquote(parts.path)).resolve() if parts.path else origin
        if not target.is_file() or site.resolve() not in target.parents:
            found.append(f"{where}: {url} leads nowhere")
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
            found.append(f"{where}: {url} has no such fragment")

    for path, page in pages.items():
        for url in page.links:
            follow(path, url, embedded=False)
        for url in page.embedded:
            follow(path, url, embedded=True)
        name = path.relative_to(site.resolve())
        found += [f"{name}: picture {source} has no alternative text" for source in page.silent_pictures]
    for path, sheet in sheets.items():
        for url in CSS_URL.findall(sheet):
            follow(path, url, embedded=True)
    return found


def test_every_link_leads_somewhere_and_nothing_comes_from_elsewhere(site: Path) -> None:
    assert problems(site) == []


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
        ('<a href="other.html#gone">x</a>', "other.html#gone has no such fragment"),
        ('<a href="#gone">x</a>', "#gone has no such fragment"),
        ('<a href="../outside.html">x</a>', "../outside.html leads nowhere"),
        ('<a href="https:///user/name">x</a>', "https:///user/name names no host"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js from elsewhere"),
        ('<script src="//cdn.example/x.js"></script>', "loads //cdn.example/x.js from elsewhere"),
        ('<link rel="stylesheet" href="https://cdn.example/x.css">', "loads https://cdn.example/x.css from elsewhere"),
        ('<link rel="preload" href="gone.woff2">', "gone.woff2 leads nowhere"),
        ('<img alt="x" src="https://cdn.example/x.png">', "loads https://cdn.example/x.png from elsewhere"),
        ('<img alt="x" srcset="gone.png 2x">', "gone.png leads nowhere"),
        ('<iframe src="https://cdn.example/"></iframe>', "loads https://cdn.example/ from elsewhere"),
        (
            '<p style="background: url(https://cdn.example/x.png)">x</p>',
            "loads https://cdn.example/x.png from elsewhere",
        ),
        ('<style>@import "https://cdn.example/x.css";</style>', "loads https://cdn.example/x.css from elsewhere"),
        ('<meta http-equiv="Refresh" content="0; url=gone.html">', "gone.html leads nowhere"),
        ('<img src="style.css">', "picture style.css has no alternative text"),
        ('<article><img src="style.css" alt=""></article>', "picture style.css has no alternative text"),
        ('<article><img src="style.css" alt="../style.css"></article>', "picture style.css has no alternative text"),
    ],
)
def test_a_defect_is_found(tmp_path: Path, body: str, complaint: str) -> None:
    good = (
        '<a id="top" href="other.html#top">x</a><a href="https://example.org/">y</a><img src="style.css" alt="A dot">'
    )
    (tmp_path / "other.html").write_text(good, "utf-8")
    (tmp_path / "style.css").write_text("p { color: red }", "utf-8")
    (tmp_path.parent / "outside.html").write_text("", "utf-8")
    assert problems(tmp_path) == []
    (tmp_path / "bad.html").write_text(good + body, "utf-8")
    assert problems(tmp_path) == [f"bad.html: {complaint}"]


@pytest.mark.parametrize("rule", ['@import "https://cdn.example/x.css";', "p { background: url(gone.png) }"])
def test_a_defect_in_a_stylesheet_is_found(tmp_path: Path, rule: str) -> None:
    (tmp_path / "style.css").write_text(rule, "utf-8")
    assert len(problems(tmp_path)) == 1


def test_no_page_links_to_a_repository_before_its_address_is_known(site: Path, root: Path) -> None:
    address = yaml.safe_load((root / "_config.yml").read_text("utf-8"))["repository"]["url"]
    links = {url for path in site.rglob("*.html") for url in Page(path.read_text("utf-8")).links}
    offered = sorted(url for url in links if REPOSITORY_LINK.search(url))
    assert bool(offered) == bool(address), offered


def test_every_notebook_can_be_downloaded_as_it_stands(site: Path, root: Path) -> None:
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        page = site / "notebooks" / f"{notebook.stem}.html"
        offered = [url for url in Page(page.read_text("utf-8")).links if url.endswith(".ipynb")]
        assert f"../_sources/notebooks/{notebook.name}" in offered
        assert re.search(rf'<a href="[^"]*{notebook.name}" download\b', page.read_text("utf-8"))
        served = (site / "_sources" / "notebooks" / notebook.name).read_bytes()
        assert served == notebook.read_bytes(), f"{notebook.name} has changed since the site was built: run `make book`"
        assert json.loads(served)["cells"]


def test_what_no_reader_needs_is_not_published(site: Path) -> None:
    left = [path.name for pattern in ("*.map", "*-macros.html", "fontawesome.js") for path in site.rglob(pattern)]
    assert left == []
