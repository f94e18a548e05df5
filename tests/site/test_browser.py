"""The site as a reader has it: every page in Chromium, in light and dark, on a desk and on a telephone.

Each page is opened once per theme, and everything there is to see is noted in a :class:`Visit`; the tests judge it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Route, TimeoutError, sync_playwright

# With `--dist loadgroup` each theme keeps to one worker, where every page is opened once.
THEMES = [pytest.param(theme, marks=pytest.mark.xdist_group(theme)) for theme in ("light", "dark")]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LARGEST_EXCESS = 150_000
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".ico"}
PACKED = {".woff", ".woff2"}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
]

LOOK = r"""async () => {
  await document.fonts.ready;
  const article = document.querySelector("article");
  const plain = article?.cloneNode(true);
  plain?.querySelectorAll(".katex, pre, code, script, style").forEach((element) => element.remove());
  const faces = [...document.fonts].filter((face) => face.family.replaceAll('"', "").startsWith("KaTeX"));
  const box = (element) => element.getBoundingClientRect();
  return {
    theme: document.documentElement.dataset.theme,
    formulas: document.querySelectorAll("article .katex").length,
    hidden_formulas: [...document.querySelectorAll("article .katex .katex-html")]
      .filter((formula) => !(box(formula).width > 1 && box(formula).height > 1)).map((formula) => formula.textContent),
    fonts_loaded: faces.filter((face) => face.status === "loaded").length,
    fonts_failed: faces.filter((face) => face.status === "error").map((face) => face.family),
    raw_tex: plain?.textContent.match(/\$\$|\\\(|\\\[|\\(?:frac|hat|sum|mu|sigma|gamma|beta|begin)\b/g) ?? [],
    pictures: [...document.querySelectorAll("article img")].map((image) =>
      ({ src: image.getAttribute("src"), width: image.naturalWidth, filter: getComputedStyle(image).filter,
         photograph: image.classList.contains("as-it-is") })),
  };
}"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
# The theme lets the keyboard into what scrolls a moment after the window has changed its size, and it moves its side
# bars in and out: while they move, nothing has the width that it will have.
SCROLLING = "pre, .katex-display, .cell_output > .output, .pst-scrollable-table-container"
SETTLED = f"""() => document.getAnimations().every((motion) => motion.playState === "finished")
  && [...document.querySelectorAll("{SCROLLING}")]
    .every((element) => element.scrollWidth <= element.clientWidth || element.tabIndex === 0)"""
TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
# axe takes half a minute for the ten thousand elements of a chapter. Most are formulas as drawn, which a screen reader
# does not read (it reads the MathML beside them), and words of code, of which one per colour and ground tells all.
THIN = """() => {
  for (const part of document.querySelectorAll(".katex-html .base")) {
    const { width, height } = part.getBoundingClientRect();
    part.style.cssText = `display: inline-block; width: ${width}px; height: ${height}px`;
    part.replaceChildren();
  }
  const known = new Set();
  for (const word of document.querySelectorAll(".highlight span")) {
    const kind = `${word.className} in ${word.closest(".cell_input, .cell_output, article").className}`;
    if (known.has(kind) && !word.id) word.replaceWith(...word.childNodes);
    known.add(kind);
  }
}"""
AXE = """async () => (await axe.run(document, { preload: false, resultTypes: ["violations"] })).violations.map((v) =>
  `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.target.join(" ")).join(" | ")}`)"""


@dataclass
class Visit:
    """What one page showed in one theme."""

    requests: set[str] = field(default_factory=set)
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    overflow: int = 0
    seen: dict = field(default_factory=dict)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address at which ``folder`` is served on this machine."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def open_context(browser: Browser, address: str, theme: str) -> tuple[BrowserContext, list[str]]:
    """A fresh browser profile that reaches ``address`` only, and the list of what else it was asked for."""
    foreign: list[str] = []
    context = browser.new_context(color_scheme=theme, viewport=DESK, reduced_motion="reduce")

    def refuse(route: Route) -> None:
        foreign.append(route.request.url)
        route.abort()

    context.route(re.compile(rf"^(?!{re.escape(address)}|data:|blob:)"), refuse)
    return context, foreign


def visit(
    context: BrowserContext, foreign: list[str], url: str, axe: Path | None = None, sizes: tuple = (PHONE, DESK)
) -> Visit:
    """Open ``url``, and write down what it does and looks like on a desk and on a telephone; axe looks at ``sizes``."""
    result = Visit()
    foreign.clear()
    page = context.new_page()
    try:
        page.set_viewport_size(DESK)
        page.on("request", lambda request: result.requests.add(request.url))
        page.on("console", lambda said: result.errors.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: result.errors.append(str(error)))
        page.goto(url, wait_until="load")
        # What is folded away has to be accessible too.
        page.evaluate("() => document.querySelectorAll('article details').forEach((part) => { part.open = true; })")
        result.seen = page.evaluate(LOOK)
        page.set_viewport_size(PHONE)
        page.evaluate(TWO_FRAMES)
        result.overflow = page.evaluate(OVERFLOW)
        if axe is not None:
            page.add_script_tag(path=axe)
            page.evaluate(THIN)
            for size in sizes:
                page.set_viewport_size(size)
                page.evaluate(TWO_FRAMES)
                with suppress(TimeoutError):  # if it never settles, axe will say so
                    page.wait_for_function(SETTLED, timeout=10_000)
                result.violations += page.evaluate(AXE)
    finally:
        page.close()
    result.foreign += foreign
    return result


def transferred(url: str, folder: Path, texts: dict[str, str] | None = None) -> int:
    """What ``url`` costs a reader: text as a server sends it, compressed with gzip; fonts as they are; pictures not."""
    path = folder / unquote(urlsplit(url).path).lstrip("/")
    if url.startswith("data:") or path.suffix in PICTURES or not (path.is_file() or url in (texts or {})):
        return 0
    content = texts[url].encode() if texts and url in texts else path.read_bytes()
    return len(content) if path.suffix in PACKED else len(gzip.compress(content))


def shell(html: str) -> str:
    """A page of the same theme with nothing of this book in it: no content, styles or fonts."""
    html = re.sub(r"(<article\b[^>]*>).*?</article>", r"\1</article>", html, flags=re.DOTALL)
    html = re.sub(r'(<nav id="pst-page-toc-nav"[^>]*>).*?</nav>', r"\1</nav>", html, flags=re.DOTALL)
    own = r"(?:katex\.css|book\.css|book\.js)"
    return re.sub(rf"<(?:link|script)\b[^>]*{own}[^>]*>(?:</script>)?", "", html)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        advice = "no Chromium here: the site was NOT seen in a browser. Debian and Ubuntu: apt-get install chromium"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(advice)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=found, args=FLAGS) as chromium:
        yield chromium


@pytest.fixture(scope="session")
def axe(root: Path) -> Path:
    script = root / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        pytest.fail(f"{script.relative_to(root)} is missing: run `make book`, which installs it", pytrace=False)
    return script


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    with serve(site) as served:
        yield served


@pytest.fixture(scope="session")
def look(browser: Browser, address: str, axe: Path) -> Callable[[str, str], Visit]:
    """``look(page, theme)``: the visit, made once."""
    contexts = {theme: open_context(browser, address, theme) for theme in ("light", "dark")}
    # Dark differs from light in its colours only, and the desk shows all of them.
    sizes = {"light": (PHONE, DESK), "dark": (DESK,)}
    return cache(lambda page, theme: visit(*contexts[theme], address + page, axe, sizes[theme]))


@pytest.mark.parametrize("theme", THEMES)
class TestEveryPage:
    def test_asks_nobody_else_and_reports_no_error(self, look: Callable, page: str, theme: str) -> None:
        seen = look(page, theme)
        assert seen.foreign == []
        assert seen.errors == []

    def test_is_accessible(self, look: Callable, page: str, theme: str) -> None:
        assert look(page, theme).violations == []

    def test_does_not_scroll_sideways_on_a_telephone(self, look: Callable, page: str, theme: str) -> None:
        assert look(page, theme).overflow <= 0

    def test_shows_its_formulas(self, look: Callable, page: str, theme: str) -> None:
        seen = look(page, theme).seen
        assert seen["hidden_formulas"] == []
        assert seen["fonts_failed"] == []
        assert bool(seen["fonts_loaded"]) == bool(seen["formulas"])
        assert seen["raw_tex"] == []

    def test_shows_its_pictures_on_the_page_s_own_ground(self, look: Callable, page: str, theme: str) -> None:
        seen = look(page, theme).seen
        assert seen["theme"] == theme
        for picture in seen["pictures"]:
            assert picture["width"] > 0, picture
            turned = theme == "dark" and not picture["photograph"]
            assert picture["filter"] == ("invert(0.93) hue-rotate(180deg)" if turned else "none"), picture


@pytest.fixture(scope="session")
def theme_weight(browser: Browser, address: str, site: Path) -> int:
    context, foreign = open_context(browser, address, "light")
    url = f"{address}book/empty.html"
    html = shell((site / "book" / "intro.html").read_text("utf-8"))
    context.route(url, lambda route: route.fulfill(body=html, content_type="text/html"))
    return sum(transferred(asked, site, {url: html}) for asked in visit(context, foreign, url).requests)


@pytest.mark.xdist_group("light")
def test_no_page_is_heavy(look: Callable, page: str, site: Path, theme_weight: int) -> None:
    """At most 150 kB over the theme's own weight, apart from figures: all that Chromium asks for, as transferred."""
    weight = sum(transferred(asked, site) for asked in look(page, "light").requests)
    assert 0 <= weight - theme_weight <= LARGEST_EXCESS


@pytest.mark.xdist_group("light")
def test_every_chapter_has_pictures_and_formulas(look: Callable, site: Path) -> None:
    chapters = [path.relative_to(site).as_posix() for path in (site / "notebooks").glob("*.html")]
    assert len(chapters) >= 7
    for part in ("pictures", "formulas"):
        assert [chapter for chapter in chapters if not look(chapter, "light").seen[part]] == [], f"without {part}"


def test_search_works_without_a_network(browser: Browser, address: str) -> None:
    context, foreign = open_context(browser, address, "light")
    page = context.new_page()
    page.goto(f"{address}book/intro.html")
    page.keyboard.press("Control+k")
    page.locator("#pst-search-dialog input[name=q]").fill("epsilon")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=epsilon*")
    page.locator("#search-results li a", has_text="transform").first.wait_for(timeout=10_000)
    assert foreign == []
    context.close()


def test_a_notebook_can_be_downloaded_from_its_page(browser: Browser, address: str, root: Path) -> None:
    context, foreign = open_context(browser, address, "light")
    page = context.new_page()
    page.goto(f"{address}notebooks/21_the_transform.html")
    page.locator(".dropdown-download-buttons > button").click()
    with page.expect_download() as download:
        page.locator("a.btn-download-source-button").click()
    assert download.value.suggested_filename == "21_the_transform.ipynb"
    assert Path(download.value.path()).read_bytes() == (root / "notebooks" / "21_the_transform.ipynb").read_bytes()
    assert foreign == []
    context.close()


def test_the_theme_can_be_switched(browser: Browser, address: str) -> None:
    context, _ = open_context(browser, address, "light")
    page = context.new_page()
    page.goto(f"{address}book/intro.html")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    for _click in range(3):
        page.locator(".theme-switch-button:visible").first.click()
        if page.evaluate("() => document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate(ground) == "rgb(18, 18, 18)" != before
    context.close()


def test_the_ledger_is_filtered(browser: Browser, address: str, root: Path) -> None:
    records = {path.stem: json.loads(path.read_text("utf-8")) for path in root.glob("bnlearn/claims/records/*.json")}
    context, foreign = open_context(browser, address, "light")
    page = context.new_page()

    def shown() -> set[str]:
        return {card.get_attribute("id")[6:].upper() for card in page.locator(".claim").all() if card.is_visible()}

    page.goto(f"{address}book/ledger.html")
    assert shown() == set(records)
    page.get_by_label("Verdict").select_option("depends")
    assert shown() == {name for name, record in records.items() if record["verdict"] == "depends"}
    assert page.get_by_role("status").inner_text() == f"{len(shown())} of {len(records)} claims"
    page.get_by_label("Said by").select_option("popular introductions")
    assert shown() == {n for n, r in records.items() if r["verdict"] == "depends" and "P" in r["sources"]}
    page.get_by_label("Theme").select_option(records["A1"]["theme"])
    themes = {records[name]["theme"] for name in shown()}
    assert themes == {records["A1"]["theme"]}
    assert not page.get_by_role("heading", name="B. Training").is_visible()
    hidden = sorted(set(records) - shown())[0]
    page.evaluate(f"location.hash = 'claim-{hidden.lower()}'")  # a link to a card shows it, whatever was chosen
    page.locator(f"#claim-{hidden.lower()}").wait_for(state="visible")
    assert foreign == []
    context.close()


def test_it_opens_from_a_folder_too(browser: Browser, site: Path) -> None:
    context, foreign = open_context(browser, "file://", "dark")
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    page.wait_for_url((site / "book" / "intro.html").as_uri())
    page.locator("article h1").wait_for()
    result = visit(context, foreign, (site / "notebooks" / "21_the_transform.html").as_uri())
    context.close()
    assert (result.foreign, result.errors, result.overflow) == ([], [], 0)
    assert result.seen["fonts_loaded"] > 0
    assert result.seen["pictures"][0]["width"] > 0


BAD_PAGE = """<!doctype html><html lang="en" data-theme="light"><head><title>Bad</title>{head}</head>
<body><main><h1>Bad</h1><article>{body}</article></main></body></html>"""


@pytest.mark.parametrize(
    ("head", "body", "noticed"),
    [
        ("", "<p>Good.</p>", lambda v: not (v.foreign or v.errors or v.violations or v.overflow or v.seen["raw_tex"])),
        ('<script src="https://cdn.example/x.js"></script>', "", lambda v: v.foreign == ["https://cdn.example/x.js"]),
        ("", "<script>fetch('//cdn.example/x')</script>", lambda v: v.foreign == ["http://cdn.example/x"]),
        ("<script>console.error('broken')</script>", "", lambda v: v.errors == ["broken"]),
        ("<script>throw new Error('broken')</script>", "", lambda v: v.errors == ["broken"]),
        ('<link rel="stylesheet" href="gone.css">', "", lambda v: "404" in v.errors[0]),
        ("", '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', lambda v: "image-alt" in v.violations[0]),
        ("", '<p style="color: #aaa">Faint.</p>', lambda v: "color-contrast" in v.violations[0]),
        (
            "",
            '<details><summary>More</summary><p style="color: #aaa">Faint.</p></details>',
            lambda v: "color-contrast" in v.violations[0],
        ),
        (
            "",
            f'<div style="overflow-x: auto; white-space: nowrap">{"Wide. " * 200}</div>',
            lambda v: "scrollable-region-focusable" in v.violations[0] and v.overflow == 0,
        ),
        ("", '<div style="width: 900px">Wide.</div>', lambda v: v.overflow > 0),
        ("", r"<p>The mean is $$\frac{1}{n}$$.</p>", lambda v: v.seen["raw_tex"] == ["$$", r"\frac", "$$"]),
        (
            "",
            '<span class="katex"><span class="katex-html" hidden>x</span></span>',
            lambda v: v.seen["hidden_formulas"] == ["x"] and v.seen["fonts_loaded"] == 0,
        ),
        (
            '<style>@font-face{font-family:KaTeX_Main;src:url(gone.woff2)}.katex{font-family:KaTeX_Main}</style>',
            '<span class="katex"><span class="katex-html">x</span></span>',
            lambda v: v.seen["fonts_failed"] == ["KaTeX_Main"],
        ),
        ("", '<img alt="A curve." src="gone.png">', lambda v: v.seen["pictures"][0]["width"] == 0),
    ],
)  # fmt: skip
def test_a_defect_is_noticed(
    browser: Browser, axe: Path, tmp_path: Path, head: str, body: str, noticed: Callable[[Visit], bool]
) -> None:
    (tmp_path / "bad.html").write_text(BAD_PAGE.format(head=head, body=body), "utf-8")
    with serve(tmp_path) as address:
        context, foreign = open_context(browser, address, "light")
        result = visit(context, foreign, f"{address}bad.html", axe)
        context.close()
    assert noticed(result), result


def test_weight_is_measured(browser: Browser, tmp_path: Path) -> None:
    noise = os.urandom(1000)
    (tmp_path / "font.woff2").write_bytes(noise)
    (tmp_path / "picture.png").write_bytes(noise)
    (tmp_path / "style.css").write_text("p { color: black }\n" * 1000, "utf-8")
    style = "<style>@font-face{font-family:F;src:url(font.woff2)}p{font-family:F}</style>"
    html = BAD_PAGE.format(
        head=f'<link rel="stylesheet" href="style.css">{style}', body='<p>x</p><img alt="x" src="picture.png">'
    )
    (tmp_path / "page.html").write_text(html, "utf-8")
    with serve(tmp_path) as address:
        context, foreign = open_context(browser, address, "light")
        asked = visit(context, foreign, f"{address}page.html").requests
        context.close()
    weights = {Path(urlsplit(url).path).name: transferred(url, tmp_path) for url in asked}
    assert weights["font.woff2"] == 1000
    assert weights["picture.png"] == 0
    assert 50 < weights["style.css"] < 200
    assert weights["page.html"] == len(gzip.compress(html.encode()))


def test_only_the_page_of_results_fetches_the_search_index(site: Path) -> None:
    fetching = [page.relative_to(site) for page in site.rglob("*.html") if "searchindex.js" in page.read_text("utf-8")]
    assert fetching == [Path("search.html")]


def test_nothing_of_the_book_is_counted_as_the_theme_s(site: Path) -> None:
    html = (site / "book" / "intro.html").read_text("utf-8")
    empty = shell(html)
    for own in ("katex.css", "book.css", "book.js", "four lines of arithmetic"):
        assert own in html
        assert own not in empty
    assert "pydata-sphinx-theme.css" in empty


def test_a_missing_browser_is_not_passed_over_in_ci(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for ci, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match=r"NOT seen in a browser.*apt-get install chromium"):
            next(browser.__wrapped__())
