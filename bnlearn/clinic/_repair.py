"""What a repair did, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn

__all__ = ["Repair"]


class Repair:
    """What was done to a model, and :meth:`undo`, which takes it back; as a context manager, it does so at the end.

    Parameters
    ----------
    what : str
        What happened to the layers, as in ``"frozen"``.
    model : torch.nn.Module or keras.Model
        The repaired model.
    layers : sequence of str
        Those changed.
    left : mapping of str to str
        Those left alone, each with the reason.
    undo : callable
        Takes everything back, and returns the model as it was.
    """

    def __init__(
        self,
        what: str,
        model: Any,
        layers: tuple[str, ...],
        left: Mapping[str, str],
        undo: Callable[[], Any],
    ) -> None:
        self.what = what
        self.model = model
        self.layers = tuple(layers)
        self.left = MappingProxyType(dict(left))
        self._undo: Callable[[], Any] | None = undo

    def undo(self) -> Any:
        """Take it back, bit by bit.

        Returns
        -------
        torch.nn.Module or keras.Model
            The model as it was.

        Raises
        ------
        RuntimeError
            If it has been taken back already.
        """
        if self._undo is None:
            raise RuntimeError(f"expected a repair that stands, got one that was taken back: {self.what}")
        undo, self._undo = self._undo, None
        self.model = undo()
        return self.model

    def __enter__(self) -> Repair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._undo is not None:
            self.undo()

    def __reduce__(self) -> NoReturn:
        # A copy's undo() would take back what was done to this model, not to the copied one.
        raise TypeError(
            "expected a model to copy or pickle, got a Repair, whose undo() is for this very model; take .model"
        )

    def __repr__(self) -> str:
        lines = [f"{len(self.layers)} {self.what}" + (f": {', '.join(self.layers)}" if self.layers else "")]
        lines += [f"left {name}: {why}" for name, why in self.left.items()]
        return "\n".join(lines)
