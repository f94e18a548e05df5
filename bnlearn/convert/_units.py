"""What a layer is to this package: its kind, its arrays in one layout (PyTorch's), and how to put new ones in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCH_NORM", "UNSUPPORTED", "Array", "Change", "State", "Unit", "number", "plain", "unsupported"]

Array: TypeAlias = NDArray[Any]
State: TypeAlias = dict[str, Array | None]
"""Arrays by PyTorch's names and in its layout; None where the layer was made without one."""

BATCH_NORM = "batch norm"
UNSUPPORTED = "unsupported"


class Change(NamedTuple):
    """One assignment, and what takes it back."""

    place: tuple[int, str]  # tied parameters are one place
    value: Any
    put: Callable[[Any], object]
    before: Any


@dataclass(frozen=True)
class Unit:
    """A layer, or one of the layers that it stands for (each direction of an LSTM, say).

    Attributes
    ----------
    name : str
        Its path in the model.
    layer : str
        The name of its class.
    kind : str
        What it computes: units of one kind can take each other's state.
    size : tuple of int
        The shape that tells layers of one kind apart.
    arrays : dict
        See :data:`State`. They are copies.
    fixed : dict
        What must be the same on both sides, because no assignment changes it: stride, groups, ...
    carried : dict
        ``eps`` and ``momentum`` (the weight of the NEW batch), where it has them: no arrays, and moved all the same.
    remarks : dict
        What cannot be compared as it stands, but that one should know of: the padding, or why it is unsupported.
    biased : bool
        Whether its running variance is the biased one.
    changes : callable
        ``changes(arrays, carried)`` prepares the assignments, changing nothing.
    """

    name: str
    layer: str
    kind: str
    size: tuple[int, ...] = ()
    arrays: State = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    remarks: Mapping[str, Any] = field(default_factory=dict)
    biased: bool = False
    changes: Callable[[Mapping[str, Array], Mapping[str, Any]], list[Change]] = lambda arrays, numbers: []

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """What two units must share to be taken for one another."""
        return self.kind, self.size

    def __str__(self) -> str:
        return f"{self.name!r} ({self.layer} {self.size})" if self.size else f"{self.name!r} ({self.layer})"


def unsupported(name: str, layer: str, why: str) -> Unit:
    """A layer with state that no rule here moves; an error unless it is left out."""
    return Unit(name, layer, UNSUPPORTED, remarks={"why": why})


def number(owner: Any, name: str, value: Any) -> Change:
    """The assignment of an attribute that is a number."""
    return Change((id(owner), name), value, lambda new: setattr(owner, name, new), getattr(owner, name))


def plain(array: Any) -> Array:
    """A copy of ``array`` in NumPy: half precision, of which NumPy knows one kind only, as float32."""
    found = np.array(array)
    return found.astype(np.float32) if found.dtype.itemsize == 2 else found
