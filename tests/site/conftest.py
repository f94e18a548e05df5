"""The built site, page by page. `make book` builds it; nothing here does."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"


def pages(site: Path) -> list[str]:
    """Every page with content, as a path relative to ``site``; the entrance only sends the reader on."""
    found = (path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return sorted(name for name in found if name != "index.html" and not name.startswith("_static/"))


def looked_at(names: list[str]) -> list[str]:
    """The pages that a browser opens: of those that one script makes from one table, every eighth."""
    made = [name for name in names if name.startswith("book/rules/bn")]
    return sorted({*names} - {*made} | {*made[::8]})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", looked_at(pages(SITE)) or ["(no page)"])


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def site() -> Path:
    if not (SITE / "index.html").is_file():
        pytest.fail(f"{SITE.relative_to(ROOT)} holds no site: run `make book` first", pytrace=False)
    return SITE
