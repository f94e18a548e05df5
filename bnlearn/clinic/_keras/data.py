"""Data in whatever form: batches, and what of a batch the model is called with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

__all__ = ["batches", "inputs_of", "mask_of", "repeatable", "samples_of"]

WAYS = "pass batches: a list of arrays or of (x, y) tuples, a tf.data.Dataset, a keras.utils.PyDataset, a loader"


def batches(data: Any) -> Iterator[Any]:
    """The batches of ``data``, once; a data set that never ends is refused.

    Raises
    ------
    TypeError
        If ``data`` is a single array, tuple of arrays or mapping, or nothing to iterate over.
    ValueError
        If it has no batch, or no end.
    """
    if isinstance(data, tuple) and any(hasattr(part, "shape") for part in data):
        raise TypeError(
            f"expected an iterable of batches, got a {type(data).__name__} of arrays, which looks like one (x, y); "
            f"{WAYS}; of one batch, [batch]; of several, list(data)"
        )
    if hasattr(data, "shape") or isinstance(data, (str, bytes, dict)) or not _iterable(data):
        what = f"one array of shape {tuple(data.shape)}" if hasattr(data, "shape") else f"a {type(data).__name__}"
        raise TypeError(f"expected an iterable of batches, got {what}; {WAYS}; of one batch, [batch]")
    count = 0
    for batch in _each(data):
        count += 1
        yield batch
    if not count:
        raise ValueError(f"expected at least one batch, got an empty {type(data).__name__}")


def _iterable(data: Any) -> bool:
    return isinstance(data, Iterable) or hasattr(data, "__getitem__")


def _each(data: Any) -> Iterator[Any]:
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ValueError("expected data with an end, got a PyDataset with num_batches=None")
        yield from (data[index] for index in range(data.num_batches))
        data.on_epoch_end()
        return
    cardinality = getattr(data, "cardinality", None)
    if callable(cardinality) and int(cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError("expected data with an end, got a data set that repeats for ever; use data.take(n)")
    yield from data


def repeatable(data: Any) -> None:
    """Refuse what can be read only once.

    Raises
    ------
    ValueError
        If ``data`` is an iterator.
    """
    if hasattr(data, "__next__"):
        raise ValueError(
            f"expected data that can be read once per layer, got a {type(data).__name__}, which gives its batches "
            "once; pass a list or a data set, or one_pass=True"
        )


def inputs_of(batch: Any) -> Any:
    """What the model is called with: of (x, y) or (x, y, weights), x."""
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def samples_of(inputs: Any) -> int:
    """The length of the first axis of the first array in there."""
    return int(keras.tree.flatten(inputs)[0].shape[0])


def mask_of(mask: Any, batch: Any) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    r"""What ``mask`` says of ``batch``, shape (N, \*spatial): it is a callable, a key or index of the batch, or None.

    Raises
    ------
    TypeError
        If what it gives is neither boolean nor whole numbers.
    """
    if mask is None:
        return None
    found = np.asarray(keras.ops.convert_to_numpy(mask(batch) if callable(mask) else batch[mask]))
    if found.dtype.kind not in "biu":
        raise TypeError(f"expected a mask of booleans, True where the batch is real, got dtype {found.dtype}")
    return found.astype(bool)
