"""Layers by the names that a user gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import TypeVar

__all__ = ["named"]

Layer = TypeVar("Layer")


def named(found: Mapping[str, Layer], layers: Collection[str] | None) -> dict[str, Layer]:
    """Of the BN layers ``found`` those in ``layers``, in the order of the model; None: all.

    Raises
    ------
    ValueError
        If a name is of no BN layer.
    """
    if layers is None:
        return dict(found)
    if isinstance(layers, str):
        raise ValueError(f"expected layers to be a list of names, got the string {layers!r}; write [{layers!r}]")
    for name in layers:
        if name not in found:
            near = get_close_matches(name, found, n=3) or list(found)[:8]
            raise ValueError(
                f"expected layers to name BN layers, got {name!r}; the model has {', '.join(map(repr, near)) or 'none'}"
            )
    return {name: layer for name, layer in found.items() if name in set(layers)}
