"""What made a tensor, told by the tensor itself, as long as it lives."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import keras

from bnlearn.clinic._keras.axis import CONVOLUTIONS, SHAPELESS, Channels, after
from bnlearn.clinic._keras.listen import symbolic
from bnlearn.clinic._keras.outputs import array

__all__ = ["Origin", "Origins", "is_linear"]

BIASED = (*CONVOLUTIONS, keras.layers.Dense)
MASKING = (keras.layers.Masking, keras.layers.Embedding)


class Origin(NamedTuple):
    """What made a tensor.

    Attributes
    ----------
    biased : str or None
        The layer, if the last thing that it did was to add a bias.
    channels : Channels or None
        Where the channels are, if that is known.
    """

    biased: str | None = None
    channels: Channels | None = None


class Origins:
    """What the layers made in one pass."""

    KINDS = (*BIASED, *SHAPELESS, *MASKING)
    """The layers to be :func:`bnlearn.clinic._keras.listen.patched` with :meth:`around`."""

    def __init__(self) -> None:
        self._alive: Any = weakref.WeakValueDictionary()
        self._known: dict[int, Origin] = {}
        self.masks: list[Any] = []

    def of(self, tensor: Any) -> Origin:
        """What made ``tensor``, if that is known."""
        return self._known[id(tensor)] if self._alive.get(id(tensor)) is tensor else Origin()

    def around(self, name: str, layer: Any, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call, and note what was made of what."""
        made = call(*args, **kwargs)
        if symbolic(made):
            return made
        given = keras.tree.flatten(args)
        if isinstance(layer, MASKING) and (mask := layer.compute_mask(*args)) is not None:
            self.masks.append(array(mask).astype(bool))
        biased = isinstance(layer, BIASED) and layer.use_bias and is_linear(layer)
        channels = after(layer, len(made.shape), [self.of(tensor).channels for tensor in given])
        self._alive[id(made)] = made
        self._known[id(made)] = Origin(name if biased else None, channels)
        return made

    def mask(self, shape: list[int]) -> Any:
        """The last mask of this shape that the model made, or None."""
        return next((mask for mask in reversed(self.masks) if list(mask.shape) == shape), None)


def is_linear(layer: Any) -> bool:
    """Whether a dense or convolutional layer ends without an activation function."""
    return layer.activation in (None, keras.activations.linear)
