r"""Ghost batch normalisation: a large batch normalised in small pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bnlearn._arrays import (
    Array,
    Namespace,
    channel_axes,
    full_shape,
    namespace,
    static_size,
    stop_gradient,
    whole_number,
    widen,
)
from bnlearn.functional._core import (
    Averaging,
    averaging,
    check_channels,
    check_eps,
    check_upstream,
    scale_and_shift,
    standardize,
    standardize_backward,
)

__all__ = [
    "GhostBatchNormCache",
    "GhostStatistics",
    "ghost_batch_norm",
    "ghost_batch_norm_backward",
    "update_running_ghosts",
]


class GhostStatistics(NamedTuple):
    """The statistics of ghosts of one size.

    Attributes
    ----------
    mean, var : array, shape (G, C)
        The mean and the biased variance of each.
    n : int
        Values per channel in each (an integer array where only the run can tell).
    """

    mean: Array
    var: Array
    n: int | Array

    def each(self) -> Iterator[tuple[Array, Array, int | Array]]:
        """``(mean, var, n)`` of one ghost after the other, for :func:`update_running`."""
        for ghost in range(self.mean.shape[0]):
            yield self.mean[ghost, ...], self.var[ghost, ...], self.n


class GhostBatchNormCache(NamedTuple):
    r"""What :func:`ghost_batch_norm` leaves for the backward pass and for the running statistics.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The normalised input, before gamma and beta.
    gamma : array, shape (C,), or None
        The scale, as it was given.
    ghost_size : int
        Samples per ghost.
    inv_std : tuple of arrays, shapes (G, 1, C, 1, ...)
        ``1 / sqrt(var + eps)`` of the full ghosts, and of the short last one if there is one.
    statistics : tuple of GhostStatistics
        Of the same.
    """

    x_hat: Array
    gamma: Array | None
    ghost_size: int
    inv_std: tuple[Array, ...]
    statistics: tuple[GhostStatistics, ...]


def _ghosts(xp: Namespace, x: Array, size: int) -> list[Array]:
    """The full ghosts of ``x`` as (G, size, C, *spatial), and what is left over as (1, rest, C, *spatial)."""
    samples, *rest = full_shape(xp, x)
    count = samples // size
    whole = count * size
    # Where the number of samples is known, no piece is empty; where it is not, either may be.
    pieces = [(count, size, x[:whole, ...])] if not isinstance(count, int) or count else []
    if not isinstance(samples, int) or whole < samples:
        pieces.append((1, samples - whole, x[whole:, ...]))
    return [xp.reshape(piece, (ghosts, length, *rest)) for ghosts, length, piece in pieces]


def _joined(xp: Namespace, pieces: list[Array], like: Array) -> Array:
    shape = full_shape(xp, like)[1:]
    return xp.concat([xp.reshape(piece, (-1, *shape)) for piece in pieces], axis=0)


def _over_ghost(xp: Namespace, x: Array) -> Averaging:
    """The mean over each ghost and all positions, given any x of shape (N, C, *spatial)."""
    return averaging(xp, (1, *range(3, len(x.shape) + 1)))


def _values(xp: Namespace, ghosts: Array) -> int | Array:
    """Values per channel in each ghost."""
    size = static_size(ghosts[:1, :, :1, ...])
    return xp.sum(xp.ones_like(ghosts[:1, :, :1, ...], dtype=xp.int32)) if size is None else size


def ghost_batch_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    ghost_size: int,
    eps: float = 1e-5,
) -> tuple[Array, GhostBatchNormCache]:
    r"""Batch normalisation of each ``ghost_size`` samples of the batch by themselves: ghost batch normalisation.

    A batch too large to generalise well gets the noise of small ones (Hoffer, Hubara and Soudry 2017).
    With one ghost, ``ghost_size >= N``, it is batch normalisation.

    Where ``ghost_size`` does not divide N, the last ``N % ghost_size`` samples are a short ghost of their own,
    normalised by their own statistics. If that is one sample without positions, its output is beta, as that of a batch
    of one: choose sizes that avoid it, or drop the last samples.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, shape (C,), optional
        Scale and shift, the same for all ghosts; None stands for ones and zeros.
    ghost_size : int
        Samples per ghost, at least 1.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : GhostBatchNormCache
        For :func:`ghost_batch_norm_backward` and :func:`update_running_ghosts`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, ``x`` is not floating-point, or ``ghost_size`` not whole.
    ValueError
        If a shape does not fit, ``ghost_size`` is below 1, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = ghost_batch_norm(np.array([[1.0], [3.0], [10.0], [30.0]]), ghost_size=2, eps=0.0)
    >>> print(y.T, cache.statistics[0].mean.T)
    [[-1.  1. -1.  1.]] [[ 2. 20.]]
    """
    xp = namespace(x, gamma, beta)
    check_channels(x, gamma=gamma, beta=beta)
    eps = check_eps(eps)
    if not whole_number(ghost_size, "ghost_size"):
        raise ValueError(f"expected ghost_size >= 1 samples, got {ghost_size}")
    wide = widen(xp, x)
    if static_size(x) == 0:
        return x, GhostBatchNormCache(wide, gamma, ghost_size, (), ())
    mean_of = _over_ghost(xp, x)
    ghosts = _ghosts(xp, wide, ghost_size)
    norms = [standardize(xp, ghost, mean_of, eps=eps) for ghost in ghosts]
    x_hat = _joined(xp, [norm.x_hat for norm in norms], wide)
    statistics = tuple(
        GhostStatistics(
            xp.reshape(norm.mean, (-1, x.shape[1])), xp.reshape(norm.var, (-1, x.shape[1])), _values(xp, ghost)
        )
        for norm, ghost in zip(norms, ghosts, strict=True)
    )
    y = scale_and_shift(xp, x_hat, gamma, beta)
    inv_std = tuple(norm.inv_std for norm in norms)
    return xp.astype(y, x.dtype), GhostBatchNormCache(x_hat, gamma, ghost_size, inv_std, statistics)


def ghost_batch_norm_backward(dy: Array, cache: GhostBatchNormCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`ghost_batch_norm`.

    ``dx`` is that of :func:`batch_norm_backward` within each ghost: it sums to zero over each channel of each ghost.
    dgamma and dbeta are sums over all of them.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : GhostBatchNormCache
        From the forward pass.

    Returns
    -------
    dx : array, shape (N, C, \*spatial)
        Of the dtype of ``dy``.
    dgamma, dbeta : array, shape (C,)
        Also where gamma or beta was not given.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.
    """
    xp, wide = check_upstream(dy, cache.x_hat)
    axes = channel_axes(dy)
    dgamma, dbeta = xp.sum(wide * cache.x_hat, axis=axes), xp.sum(wide, axis=axes)
    if not cache.inv_std:
        return dy, dgamma, dbeta
    mean_of = _over_ghost(xp, dy)
    pieces = zip(
        _ghosts(xp, scale_and_shift(xp, wide, cache.gamma, None), cache.ghost_size),
        _ghosts(xp, cache.x_hat, cache.ghost_size),
        cache.inv_std,
        strict=True,
    )
    dx = _joined(xp, [standardize_backward(*piece, mean_of) for piece in pieces], wide)
    return xp.astype(dx, dy.dtype), dgamma, dbeta


def update_running_ghosts(
    running_mean: Array,
    running_var: Array,
    cache: GhostBatchNormCache,
    *,
    momentum: float = 0.1,
    unbiased: bool = True,
) -> tuple[Array, Array]:
    """The running statistics after all ghosts in turn, as if each had been a batch.

    :func:`update_running` ghost by ghost, in closed form (Hoffer, Hubara and Soudry 2017): with G ghosts
    ``running * (1 - momentum)^G + sum over i of momentum * (1 - momentum)^(G - 1 - i) * ghost_i``. So a batch of many
    ghosts moves the running statistics further than one batch does.

    Parameters
    ----------
    running_mean, running_var : array, shape (C,)
        The statistics so far. They are not changed in place.
    cache : GhostBatchNormCache
        From the forward pass.
    momentum : float
        Weight of each new ghost, from 0 to 1.
    unbiased : bool
        Whether to correct each ghost's variance by ``n / (n - 1)``.

    Returns
    -------
    running_mean, running_var : array, shape (C,)
        The new statistics, of the dtypes of the old.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries.
    ValueError
        If ``momentum`` is outside [0, 1], or ``unbiased`` is set and a ghost has one value per channel.

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = ghost_batch_norm(np.array([[1.0], [3.0], [2.0], [6.0]]), ghost_size=2)
    >>> update_running_ghosts(np.zeros(1), np.ones(1), cache, momentum=0.5, unbiased=False)
    (array([2.5]), array([2.5]))
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"expected momentum, the weight of each new ghost, from 0 to 1, got {momentum}")
    for part in cache.statistics:
        xp = namespace(running_mean, running_var, part.mean)
        count = whole_number(part.n, "n")
        if unbiased and count == 1:
            raise ValueError(
                "expected n > 1 values per channel in each ghost for an unbiased variance, got a ghost of one value"
            )
        values = xp.astype(part.n, part.mean.dtype) if count is None else count
        var = part.var
        if unbiased:
            var = var * values / (values - 1 if count else xp.maximum(values - 1, xp.ones_like(values)))
        some = None if count else values > 0  # where only the run can tell, there may have been no such ghost
        running_mean = _in_turn(xp, running_mean, part.mean, some, float(momentum))
        running_var = _in_turn(xp, running_var, var, some, float(momentum))
    return running_mean, running_var


def _in_turn(xp: Namespace, running: Array, ghosts: Array, some: Array | None, momentum: float) -> Array:
    """``running``, shape (C,), after the statistics of the ghosts, shape (G, C), one after the other."""
    wide = widen(xp, running)
    new = xp.astype(stop_gradient(xp, ghosts), wide.dtype)
    ones = xp.ones_like(new)
    count = xp.sum(ones, axis=0, keepdims=True)
    weights = momentum * (1 - momentum) ** (count - xp.cumulative_sum(ones, axis=0))  # of those before, by age
    left = (1 - momentum) ** count
    updated = left[0, ...] * wide + xp.sum(weights * new, axis=0)
    return xp.astype(updated if some is None else xp.where(some, updated, wide), running.dtype)
