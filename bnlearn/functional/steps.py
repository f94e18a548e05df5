"""Running statistics that are different at every time step."""

from __future__ import annotations

from typing import Any, NamedTuple

from bnlearn._arrays import Array, namespace, widen
from bnlearn.functional.batch import update_running

__all__ = ["StepStatistics", "update_running_steps"]


class StepStatistics(NamedTuple):
    """The statistics of one site: a row per time step, or a single row shared by all.

    Attributes
    ----------
    mean, var : array, shape (T, C)
        Mean and biased variance; T is the number of steps, or 1.
    n : int or array of integers, shape (T,), or None
        Values behind each row; None where nobody needs to know (inference).
    """

    mean: Array
    var: Array
    n: int | Array | None = None


def update_running_steps(
    running_mean: Array,
    running_var: Array,
    tracked: Array,
    statistics: StepStatistics,
    *,
    momentum: float | None = 0.1,
    unbiased: bool = True,
) -> tuple[Array, Array, Array]:
    """The running statistics of every time step after one more batch: :func:`update_running`, a row per step.

    Two things are particular to sequences. Steps that fewer than two sequences of the batch reach leave their rows
    alone: one value has no variance. And rows that no batch has reached yet repeat the last one that was reached, so
    that a longer sequence finds there what Cooijmans et al. (2016) prescribe.

    Parameters
    ----------
    running_mean, running_var : array, shape (T, C)
        The statistics so far, a row per time step. They are not changed in place.
    tracked : array of integers, shape (T,)
        How many batches each row has seen.
    statistics : StepStatistics
        Of this batch, at most T rows, ``n`` included.
    momentum : float or None
        Weight of the new batch, from 0 to 1. None: the average of all batches that reached the step.
    unbiased : bool
        Whether to correct the batch's variance by ``n / (n - 1)``.

    Returns
    -------
    running_mean, running_var, tracked : array
        The new ones, of the dtypes of the old.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries.
    ValueError
        If ``momentum`` is outside [0, 1], or the statistics have more rows than the running ones.

    Examples
    --------
    >>> import numpy as np
    >>> batch = StepStatistics(np.array([[1.0], [2.0]]), np.array([[3.0], [3.0]]), 4)
    >>> old = np.zeros((3, 1)), np.ones((3, 1)), np.zeros(3, int)
    >>> mean, var, tracked = update_running_steps(*old, batch, momentum=0.5)
    >>> print(mean[:, 0], var[:, 0], tracked)
    [0.5 1.  1. ] [2.5 2.5 2.5] [1 1 0]
    """
    xp = namespace(running_mean, running_var, tracked, statistics.mean, statistics.var)
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"expected momentum, the weight of the new batch, from 0 to 1 or None, got {momentum}")
    rows = statistics.mean.shape[0]
    if rows > running_mean.shape[0]:
        raise ValueError(
            f"expected at most {running_mean.shape[0]} time steps, as many as the running statistics have rows, got "
            f"{rows}; make max_length larger"
        )
    n = xp.zeros_like(tracked[:rows]) + xp.astype(_array_like(xp, statistics.n, tracked[:rows]), tracked.dtype)
    seen = n > 1
    count = tracked[:rows] + xp.astype(seen, tracked.dtype)
    values = xp.reshape(xp.where(seen, n, xp.zeros_like(n)), (-1, 1)) + xp.zeros_like(
        statistics.mean, dtype=tracked.dtype
    )
    # At momentum 1 what comes back is the batch's own, ready to be averaged with a weight per row.
    own = running_mean[:rows, ...], running_var[:rows, ...]
    batch = update_running(*own, statistics.mean, statistics.var, values, momentum=1.0, unbiased=unbiased)
    tracked = xp.concat([count, tracked[rows:]], axis=0)
    # Which row each takes its values from: the last one up to it that any batch has reached.
    up_to = xp.tril(xp.reshape(xp.ones_like(tracked), (-1, 1)) * xp.reshape(xp.ones_like(tracked), (1, -1)))
    position = xp.astype(xp.sum(up_to, axis=1), tracked.dtype) - 1
    reached = xp.where(tracked > 0, position, xp.zeros_like(position))
    source = xp.max(up_to * xp.reshape(reached, (1, -1)), axis=1)

    def average(running: Array, new: Array) -> Array:
        old = widen(xp, running[:rows, ...])
        ones = xp.ones_like(old)
        weight = ones * momentum if momentum is not None else ones / xp.astype(_positive(xp, count), old.dtype)
        mixed = xp.where(xp.reshape(seen, (-1, 1)), old + weight * (xp.astype(new, old.dtype) - old), old)
        whole = xp.concat([xp.astype(mixed, running.dtype), running[rows:, ...]], axis=0)
        return xp.take(whole, source, axis=0)

    return average(running_mean, batch[0]), average(running_var, batch[1]), tracked


def _positive(xp: Any, count: Array) -> Array:
    """The counts as a column, none of them zero."""
    return xp.reshape(xp.where(count > 0, count, xp.ones_like(count)), (-1, 1))


def _array_like(xp: Any, value: Any, like: Array) -> Array:
    """An int as an array of the shape of ``like``; an array as it is."""
    return xp.ones_like(like) * value if isinstance(value, int) else value
