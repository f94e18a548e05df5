"""Progress bars, where tqdm is installed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar, cast

__all__ = ["bar"]

T = TypeVar("T")


def bar(items: Collection[T], what: str, unit: str, progress: bool) -> Iterable[T]:
    """``items``, with a bar for the terminal or the notebook if ``progress``; without tqdm, without one."""
    if not progress or find_spec("tqdm") is None:
        return items
    return cast(Iterable[T], import_module("tqdm.auto").tqdm(items, desc=what, unit=unit))
