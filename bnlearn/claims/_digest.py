"""A digest of the code that a record was made with: it differs as soon as the code may give other numbers.

It is taken over the source of a claim's module and of every module of this package that it imports, directly or not,
without what cannot change a number: comments, docstrings, blank lines, and the prose of a claim (its statement, its
setting, ...). Nothing is imported: the sources are read.
"""

from __future__ import annotations

import ast
import hashlib
import io
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "bnlearn"
PROSE = frozenset({"statement", "sources", "theme", "setting", "chapter", "note", "data"})
"""Arguments of a claim that are words for the reader."""
MACHINERY = frozenset(
    {f"{PACKAGE}.claims.{name}" for name in ("_claim", "_digest", "_figures", "_ledger", "_records", "_table")}
)
"""What runs, keeps and draws claims; the numbers come from elsewhere."""


def digest(module: str, root: Path = ROOT) -> str:
    """The digest of a module's code and of all in the package that it rests on.

    Parameters
    ----------
    module : str
        Dotted name, such as ``"bnlearn.claims.transform"``; or a module outside the package that has been imported.
    root : Path
        The folder that the package lies in.

    Returns
    -------
    str
        SHA-256 in hexadecimal.

    Examples
    --------
    >>> len(digest("bnlearn.functional.batch"))
    64
    """
    found = hashlib.sha256()
    for name in sorted(modules(module, root)):
        found.update(f"{name}\n{_code(*_version(_file(name, root)))}\n".encode())
    return found.hexdigest()


def modules(module: str, root: Path = ROOT) -> set[str]:
    """The module itself and those of the package that it imports, directly or not.

    A name that is imported from a package is followed to the module that defines it: the package's ``__init__`` counts
    only if it defines something that is used.

    Parameters
    ----------
    module, root
        As :func:`digest` has them.

    Returns
    -------
    set of str
        Dotted names.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in MACHINERY:
            found.add(name)
            waiting.extend(_imported(name, root))
    return found


def _file(module: str, root: Path) -> Path:
    """The source of a module or of a package; outside this package, of a module that has been imported."""
    if module.split(".")[0] != PACKAGE:
        return Path(str(sys.modules[module].__file__))
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _exists(module: str, root: Path) -> bool:
    return _file(module, root).is_file()


def _version(path: Path) -> tuple[Path, int, int]:
    """What the caches below go by, so that a file that changed is read again."""
    state = path.stat()
    return path, state.st_mtime_ns, state.st_size


@cache
def _tree(path: Path, _time: int, _size: int) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _imported(module: str, root: Path) -> Iterator[str]:
    """The modules of the package that this one needs itself."""
    tree = _tree(*_version(_file(module, root)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom) and _origin(node, module, root).split(".")[0] == PACKAGE:
            for alias in node.names:
                yield from _defining(_origin(node, module, root), alias, root, tree, (module,))


def _origin(node: ast.ImportFrom, module: str, root: Path) -> str:
    """The dotted name that a ``from`` statement imports from."""
    if not node.level:
        return node.module or ""
    parents = module.split(".")
    package = parents if _file(module, root).name == "__init__.py" else parents[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def _defining(package: str, alias: ast.alias, root: Path, tree: ast.Module, seen: tuple[str, ...]) -> Iterator[str]:
    """The modules that define a name that ``tree`` imports from a module or a package."""
    if _file(package, root).name != "__init__.py":
        yield package
        return
    for node in ast.walk(_tree(*_version(_file(package, root)))):
        if isinstance(node, ast.ImportFrom) and package not in seen:
            for bound in node.names:
                if (bound.asname or bound.name) == alias.name:
                    renamed = ast.alias(bound.name, alias.asname or alias.name)
                    yield from _defining(_origin(node, package, root), renamed, root, tree, (*seen, package))
                    return
    submodule = f"{package}.{alias.name}"
    if not _exists(submodule, root):
        yield package  # it defines the name itself
    elif (names := _attributes(alias.asname or alias.name, tree)) is None or not _file(submodule, root).match(
        "__init__.py"
    ):
        yield submodule
    else:
        for name in names:
            yield from _defining(submodule, ast.alias(name), root, tree, seen)


def _attributes(name: str, tree: ast.Module) -> list[str] | None:
    """Which attributes of a name are used; None if the name is used in any other way, or only passed on."""
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    through = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    ]
    return sorted({node.attr for node in through}) if 0 < len(used) == len(through) else None


@cache
def _code(path: Path, _time: int, _size: int) -> str:
    return code(path.read_text("utf-8"))


def code(source: str) -> str:
    r"""A source without comments, docstrings, blank lines and the prose of claims.

    Examples
    --------
    >>> code('''def f(x):
    ...     "Twice."
    ...
    ...     return 2 * x  # not squared
    ... ''')
    'def f(x):\n    return 2 * x'
    """
    text = source.encode()
    starts = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]
    spans = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            start = starts[token.start[0] - 1] + len(token.line[: token.start[1]].encode())
            spans.append((start, start + len(token.string.encode())))
    for node in ast.walk(ast.parse(source)):
        spans.extend((starts[row - 1] + column, starts[last - 1] + end) for row, column, last, end in _wordy(node))
    kept, done = b"", 0
    for start, stop in sorted(spans):
        kept, done = kept + text[done : max(start, done)], max(stop, done)
    lines = (kept + text[done:]).decode().splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _wordy(node: ast.AST) -> Iterator[tuple[int, int, int, int]]:
    """Where there are words for the reader: the first and the last line and column of docstrings and of prose."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        yield node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0
    elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Claim":
        given: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
        arguments = sorted(given, key=lambda argument: (argument.lineno, argument.col_offset))
        ends = [(argument.lineno, argument.col_offset) for argument in arguments[1:]]
        last = (node.end_lineno or 0, (node.end_col_offset or 0) - 1)
        for argument, end in zip(arguments, [*ends, last], strict=False):
            if isinstance(argument, ast.keyword) and argument.arg in PROSE:
                yield argument.lineno, argument.col_offset, *end
