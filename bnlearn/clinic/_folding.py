"""What a folding did, and what it left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["Folding", "agreed"]

SENSITIVE = 4.0
"""How many times what a change of the example in its last bit does to an output a folding may do to it."""

FAR = 100.0
"""And how many times the tolerance at most: what moves as much as that is not to be judged by an example."""


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "left", MappingProxyType(dict(self.left)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only view cannot be pickled, and the folded model, which carries this, is copied and saved.
        return type(self), (self.folded, dict(self.left), self.error)

    def __repr__(self) -> str:
        total = len(self.folded) + len(self.left)
        lines = [f"{len(self.folded)} of {total} batch norms folded; outputs differ by {self.error:.1e}, relative"]
        wide = max((len(layer) for layer, _ in self.folded), default=0)
        lines += [f"  {layer:{wide}} <- {bn}" for layer, bn in self.folded]
        lines += [f"  left {bn}: {why}" for bn, why in self.left.items()]
        return "\n".join(lines)


def agreed(differences: Iterable[tuple[float, float, float]], pairs: tuple[tuple[str, str], ...]) -> float:
    """The largest difference between the outputs before and after, if all are no more than rounding.

    Parameters
    ----------
    differences : iterable of (float, float, float)
        Of each output, relative: how far the two models are apart; what its precision tolerates; and how far it moves
        when the example is changed in its last bit. A deep network with random weights may amplify rounding by itself.
    pairs : tuple of (str, str)
        What was folded.

    Raises
    ------
    RuntimeError
        If an output differs by more.
    """
    worst = 0.0
    for error, tolerance, sensitivity in differences:
        allowed = max(tolerance, min(SENSITIVE * sensitivity, FAR * tolerance))
        if not error <= allowed:
            raise RuntimeError(
                f"expected the folded model to agree with the given one to {allowed:.2g}, relative, got {error:.2g}; "
                f"folded were {', '.join(f'{bn} into {layer}' for layer, bn in pairs)}; the given model is as it was"
            )
        worst = max(worst, error)
    return worst
