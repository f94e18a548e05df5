"""What a folding did, and what it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Folding"]


@dataclass(frozen=True)
class Folding:
    """The pairs folded, and why others were not; the attribute ``folding`` of what :func:`bnlearn.fold` returns.

    Attributes
    ----------
    folded : tuple of (str, str)
        The linear or convolutional layer, and the BN layer that went into it.
    left : mapping of str to str
        BN layers left as they were, each with the reason.
    error : float
        Largest difference between the outputs for the example before and after, over the largest output.
    """

    folded: tuple[tuple[str, str], ...]
    left: Mapping[str, str]
    error: float

    def __repr__(self) -> str:
        total = len(self.folded) + len(self.left)
        lines = [f"{len(self.folded)} of {total} batch norms folded; outputs differ by {self.error:.1e}, relative"]
        wide = max((len(layer) for layer, _ in self.folded), default=0)
        lines += [f"  {layer:{wide}} <- {bn}" for layer, bn in self.folded]
        lines += [f"  left {bn}: {why}" for bn, why in self.left.items()]
        return "\n".join(lines)
