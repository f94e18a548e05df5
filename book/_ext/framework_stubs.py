"""Stand-ins for torch and keras while the API pages are made: their environment has neither.

Sphinx's own mocks turn a class behind a decorator, or one that inherits from a mock, into a mock that has no signature.
Here a stand-in is skipped as a base class, and as a decorator it leaves what it decorates alone.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FRAMEWORKS = ("torch", "keras")


class Stub(ModuleType):
    """Any module, class, function or constant of a framework; its attributes are made when they are asked for."""

    __path__: list[str] = []  # noqa: RUF012 - what makes it a package to the import system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        stub = Stub(f"{self.__name__}.{name}")
        setattr(self, name, stub)
        return stub

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorates = len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], Stub)
        return args[0] if decorates else self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __repr__(self) -> str:
        return self.__name__


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top = name.partition(".")[0]
        return ModuleSpec(name, self, is_package=True) if top in FRAMEWORKS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's entry point: stand in for the frameworks that are not installed."""
    if not any(importlib.util.find_spec(name) for name in FRAMEWORKS):
        sys.meta_path.append(_Finder())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
