"""Arguments that are arrays, or tuples, lists and dicts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tree = Any
"""An array, or a tuple, list or dict of trees; None stands for an array that is absent."""


def leaves(tree: Tree) -> Iterator[Any]:
    """The arrays of a tree, in order."""
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, tuple | list):
        for item in tree:
            yield from leaves(item)
    elif tree is not None:
        yield tree


def convert(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same tree with ``function`` of each array."""
    if isinstance(tree, Mapping):
        return {key: convert(function, item) for key, item in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(convert(function, item) for item in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(convert(function, item) for item in tree)
    return None if tree is None else function(tree)
