r"""Statistics over shards: a batch that lies on several processors, or data larger than the memory.

What one shard has to tell is small: how many values, their mean, and the sum of their squared deviations from it. These
:class:`Moments` merge exactly, whatever the sizes of the shards, and batch normalisation over all the shards follows
from the merged ones: synchronised batch normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from importlib import import_module
from numbers import Integral
from operator import add
from typing import Any, NamedTuple

import numpy as np

from bnlearn._arrays import (
    Array,
    Namespace,
    channel_axes,
    namespace,
    per_channel,
    static_size,
    whole_number,
    widen,
)
from bnlearn.functional._core import (
    averaging,
    centre,
    check_channels,
    check_eps,
    check_upstream,
    keep,
    scale_and_shift,
    standardize_backward,
    values_per_channel,
)
from bnlearn.functional.batch import _mask_like, batch_norm

__all__ = [
    "Moments",
    "SyncBatchNormCache",
    "merge_moments",
    "moments",
    "sync_batch_norm",
    "sync_batch_norm_backward",
]


class Moments(NamedTuple):
    """What :func:`moments` finds and :func:`merge_moments` merges.

    Attributes
    ----------
    n : int
        Values per channel (an integer array where only the run can tell: with a mask, or an unknown batch size).
    mean : array, shape (C,)
        Their mean; NaN where ``n`` is 0.
    m2 : array, shape (C,)
        The sum of the squares of their deviations from the mean.
    rest : array, shape (C,), or None
        What rounding left out of ``mean``: ``mean + rest`` is the mean to twice the digits, and ``(x - mean) - rest``
        the deviation that float32 deserves where the mean is a thousand times larger. None stands for zero.
    """

    n: int | Array
    mean: Array
    m2: Array
    rest: Array | None = None

    @property
    def var(self) -> Array:
        """The biased variance, ``m2 / n``, shape (C,); NaN where ``n`` is 0."""
        xp = namespace(self.mean, self.m2)
        # The mean of nothing is NaN already, and a division by zero would warn.
        count = _count(self.n)
        n = _as_float(xp, _at_least_one(xp, count), self.m2)
        return xp.where(_some(xp, count, self.mean), self.m2 / n, xp.ones_like(self.m2) * float("nan"))


def _count(n: int | Array) -> int | Array:
    """An int where ``n`` is a number, and as it is where it is an array: a lazy one is not to be computed here."""
    return n if hasattr(n, "dtype") and not isinstance(n, Integral) else whole_number(n, "n")


def _as_float(xp: Namespace, n: int | Array, like: Array) -> Array:
    return float(n) if isinstance(n, int) else xp.astype(n, like.dtype)


def _at_least_one(xp: Namespace, n: int | Array) -> int | Array:
    return max(n, 1) if isinstance(n, int) else xp.where(n > 0, n, xp.ones_like(n))


def _some(xp: Namespace, n: int | Array, like: Array) -> Array:
    """Whether there are any values, of the shape of ``like``."""
    return xp.ones_like(like) * _as_float(xp, n, like) > 0


def moments(x: Array, mask: Array | None = None) -> Moments:
    r"""How many values each channel of ``x`` has, their mean, and the sum of their squared deviations from it.

    Two passes, as in :func:`batch_norm`: never ``E[x^2] - E[x]^2``, which cancels.

    Of a Dask array the result is lazy. When it is computed, each chunk is reduced to its moments as soon as it is
    there, so data that do not fit in memory need not. To normalise them, compute the statistics first
    (``dask.persist``) and give them to :func:`batch_norm`: alone, it would keep every chunk until the last one has
    been read.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    mask : array of bool, shape (N, \*spatial), optional
        True where ``x`` is real, False where it is padding.

    Returns
    -------
    Moments
        In float32 or wider; see there for ``n``, ``mean``, ``m2``.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, ``x`` is not floating-point, or ``mask`` not boolean.
    ValueError
        If a shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> found = moments(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(found.n, found.mean, found.m2, found.var)
    2 [ 2. 20.] [  2. 200.] [  1. 100.]
    """
    xp = namespace(x, mask)
    check_channels(x)
    wide = widen(xp, x)
    real = _mask_like(x, mask, xp)
    n = values_per_channel(xp, x, real)
    if type(x).__module__.startswith("dask"):  # torch.compile cannot look into array_api_compat.is_dask_array
        return _moments_by_chunk(x, mask, n, wide.dtype)
    over = channel_axes(x)
    if static_size(x) == 0:  # the mean of nothing is NaN, without the library's warning
        zero = xp.sum(wide, axis=over)
        return Moments(0, zero + float("nan"), zero, zero)
    mean_of = averaging(xp, over, real)
    wide = keep(xp, wide, real)
    centred, mean = centre(xp, wide, mean_of)
    rest = mean_of(wide - mean)
    rest = xp.where(xp.isfinite(rest), rest, xp.zeros_like(rest))
    m2 = xp.sum(keep(xp, centred * centred, real), axis=over)
    return Moments(n, xp.reshape(mean, (-1,)), m2, xp.reshape(rest, (-1,)))


def _moments_by_chunk(x: Array, mask: Array | None, n: int | Array, dtype: Any) -> Moments:
    """The moments of a Dask array: those of its chunks, merged."""
    delayed, from_delayed = import_module("dask").delayed, import_module("dask.array").from_delayed
    x = x.rechunk({1: -1})  # all channels of a value in one chunk
    chunks = x.to_delayed().ravel()
    masks: Any = [None] * len(chunks)
    if mask is not None:
        masks = mask.rechunk((x.chunks[0], *x.chunks[2:])).to_delayed().ravel()
    parts = [delayed(moments)(chunk, real) for chunk, real in zip(chunks, masks, strict=True)]
    whole = delayed(merge_moments)(*parts)
    mean, m2, rest = (from_delayed(getattr(whole, name), (x.shape[1],), dtype=dtype) for name in ("mean", "m2", "rest"))
    if not isinstance(n, int):
        n = from_delayed(delayed(np.asarray)(whole.n), (), dtype=n.dtype)
    return Moments(n, mean, m2, rest)


def merge_moments(*shards: Moments) -> Moments:
    """The moments of the shards taken together.

    With n the sum of the ``n_i``, ``mean = sum(n_i * mean_i) / n`` and
    ``m2 = sum(m2_i) + sum(n_i * (mean_i - mean)^2)`` (Chan, Golub and LeVeque 1983, for any number of shards). This is
    exact for shards of unequal sizes, and nothing cancels: the means are centred as the data are. The average of the
    shards' variances would lack the second term, and weigh a small shard as a large one.

    Parameters
    ----------
    *shards : Moments
        One or more, in any order. Those with ``n`` of 0 are ignored.

    Returns
    -------
    Moments
        ``n`` is an int if all of theirs are.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or an ``n`` is not a whole number.
    ValueError
        If nothing is given, the shapes differ, or an ``n`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [3.0], [10.0]])
    >>> print(merge_moments(moments(x[:3]), moments(x[3:])))
    Moments(n=4, mean=array([4.]), m2=array([50.]), rest=array([0.]))
    >>> print(moments(x))
    Moments(n=4, mean=array([4.]), m2=array([50.]), rest=array([0.]))
    """
    if not shards:
        raise ValueError("expected the moments of at least one shard, got none")
    first = shards[0].mean
    for shard in shards:
        for name, vector in {"mean": shard.mean, "m2": shard.m2, "rest": shard.rest}.items():
            if vector is not None and tuple(vector.shape) != tuple(first.shape):
                raise ValueError(
                    f"expected {name} of one shape in all shards, {tuple(first.shape)} as in the first, got "
                    f"{tuple(vector.shape)}"
                )
    xp = namespace(*(vector for shard in shards for vector in (shard.mean, shard.m2, shard.rest)))
    counts = [_count(shard.n) for shard in shards]
    n = reduce(add, counts)

    def stacked(vectors: list[Array]) -> Array:
        filled = [
            xp.where(_some(xp, count, vector), vector, xp.zeros_like(vector))
            for count, vector in zip(counts, vectors, strict=True)
        ]
        return xp.stack(filled)

    values = xp.stack([xp.ones_like(first) * _as_float(xp, count, first) for count in counts])
    weights = values / _as_float(xp, _at_least_one(xp, n), first)

    def mean_of(a: Array) -> Array:
        return xp.sum(weights * a, axis=0, keepdims=True)

    means = stacked([shard.mean for shard in shards])
    _, mean = centre(xp, means, mean_of)
    # An infinite mean is left as it is: inf - inf would make the rest NaN.
    off = xp.where(xp.isfinite(mean), means - mean, xp.zeros_like(means))
    rests = stacked([xp.zeros_like(first) if shard.rest is None else shard.rest for shard in shards])
    centred, rest = centre(xp, off + rests, mean_of)
    m2 = xp.sum(stacked([shard.m2 for shard in shards]) + values * centred * centred, axis=0)
    mean, rest = xp.reshape(mean, (-1,)), xp.reshape(rest, (-1,))
    return Moments(n, xp.where(_some(xp, n, mean), mean, xp.ones_like(mean) * float("nan")), m2, rest)


class SyncBatchNormCache(NamedTuple):
    r"""What :func:`sync_batch_norm` leaves for the backward pass and for the running statistics.

    Attributes
    ----------
    x_hats : tuple of arrays, shapes (N_i, C, \*spatial)
        The normalised shards, before gamma and beta.
    inv_std : array, shape (C,)
        ``1 / sqrt(var + eps)``.
    gamma : array, shape (C,), or None
        The scale, as it was given.
    mean, var : array, shape (C,)
        The mean and the biased variance of all shards together.
    n : int
        Values per channel in all shards together; with the two before, for :func:`update_running`.
    """

    x_hats: tuple[Array, ...]
    inv_std: Array
    gamma: Array | None
    mean: Array
    var: Array
    n: int | Array


def normalize_shard(
    x: Array, whole: Moments, gamma: Array | None, beta: Array | None, eps: float
) -> tuple[Array, Array, Array]:
    """``(y, x_hat, inv_std)`` of one shard by the moments of the ``whole``: the inference form, given these."""
    xp = namespace(x, whole.mean)
    wide = widen(xp, x)
    centred = wide - per_channel(xp, xp.astype(whole.mean, wide.dtype), wide)
    rest = xp.zeros_like(whole.mean) if whole.rest is None else whole.rest
    y, cache = batch_norm(centred, gamma, beta, mean=rest, var=whole.var, eps=eps)
    return y if y.dtype == x.dtype else xp.astype(y, x.dtype), cache.x_hat, cache.inv_std


def shard_backward(
    dy: Array, x_hat: Array, inv_std: Array, gamma: Array | None, sum_dy: Array, sum_dy_x_hat: Array, n: int | Array
) -> Array:
    """``dx`` of one shard, given the two sums over all shards (which are the gradients of beta and of gamma)."""
    xp = namespace(dy, x_hat, sum_dy)

    def mean(total: Array) -> Array:
        share = total / _as_float(xp, _at_least_one(xp, n), total)
        return scale_and_shift(xp, per_channel(xp, share, dy), gamma, None)

    dx_hat = scale_and_shift(xp, dy, gamma, None)
    means = {True: mean(sum_dy), False: mean(sum_dy_x_hat)}
    return standardize_backward(dx_hat, x_hat, per_channel(xp, inv_std, dy), lambda a: means[a is dx_hat])


def shard_sums(dy: Array, x_hat: Array) -> tuple[Array, Array]:
    """What one shard adds to the two sums of the backward pass: ``sum(dy)`` and ``sum(dy * x_hat)``, shape (C,)."""
    xp = namespace(dy, x_hat)
    over = channel_axes(dy)
    return xp.sum(dy, axis=over), xp.sum(dy * x_hat, axis=over)


def sync_batch_norm(
    shards: Sequence[Array], gamma: Array | None = None, beta: Array | None = None, *, eps: float = 1e-5
) -> tuple[tuple[Array, ...], SyncBatchNormCache]:
    r"""Batch normalisation of a batch that comes in shards, as if they were one: synchronised batch normalisation.

    Each shard tells its :func:`moments`; they are merged; each shard is normalised by the merged mean and variance.
    That is :func:`batch_norm` of the shards joined along axis 0, forward and backward, up to rounding. On several
    processes the merging is the one thing to be sent (see ``bnlearn.torch.SyncBatchNorm``).

    Parameters
    ----------
    shards : sequence of arrays, shapes (N_i, C, \*spatial_i)
        Of one library and one dtype; sizes may differ, and a shard may be empty.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    ys : tuple of arrays, shapes (N_i, C, \*spatial_i)
        Of the dtype of the shards.
    cache : SyncBatchNormCache
        For :func:`sync_batch_norm_backward`, and (``mean``, ``var``, ``n``) for :func:`update_running`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or a shard is not floating-point.
    ValueError
        If there is no shard, a shape does not fit, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> ys, _ = sync_batch_norm([x[:1], x[1:]])
    >>> print(np.abs(np.concatenate(ys) - batch_norm(x)[0]).max() < 1e-15)
    True
    """
    parts = tuple(shards)
    if not parts:
        raise ValueError("expected at least one shard of x, got none")
    namespace(*parts, gamma, beta)
    for x in parts:
        check_channels(x, gamma=gamma, beta=beta)
        if x.shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"expected shards of {parts[0].shape[1]} channels, as the first with shape {tuple(parts[0].shape)}, "
                f"got one of shape {tuple(x.shape)}"
            )
    eps = check_eps(eps)
    whole = merge_moments(*map(moments, parts))
    ys, x_hats, inv_stds = zip(*(normalize_shard(x, whole, gamma, beta, eps) for x in parts), strict=True)
    return ys, SyncBatchNormCache(x_hats, inv_stds[0], gamma, whole.mean, whole.var, whole.n)


def sync_batch_norm_backward(dys: Sequence[Array], cache: SyncBatchNormCache) -> tuple[tuple[Array, ...], Array, Array]:
    r"""Gradients of a scalar loss through :func:`sync_batch_norm`, in closed form.

    ``dx_i = gamma * inv_std * (dy_i - sum(dy) / n - x_hat_i * sum(dy * x_hat) / n)``, both sums over ALL shards: every
    x has moved the mean and the variance that the other shards were normalised by. The sums are the gradients of beta
    and gamma, so the backward pass has nothing else to merge. The dx of all shards together sum to zero over each
    channel; those of one shard need not.

    Parameters
    ----------
    dys : sequence of arrays, shapes (N_i, C, \*spatial_i)
        Gradient of the loss with respect to each of ``ys``.
    cache : SyncBatchNormCache
        From the forward pass.

    Returns
    -------
    dxs : tuple of arrays, shapes (N_i, C, \*spatial_i)
        Of the dtypes of ``dys``.
    dgamma, dbeta : array, shape (C,)
        The sums over all shards.

    Raises
    ------
    TypeError
        If a dy is of another library than the cache, or not floating-point.
    ValueError
        If there are not as many dys as shards, or one is not of the shape of its x.

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = sync_batch_norm([np.array([[1.0]]), np.array([[2.0], [6.0]])])
    >>> dxs, dgamma, dbeta = sync_batch_norm_backward([np.array([[1.0]]), np.array([[0.0], [0.0]])], cache)
    >>> print(abs(sum(dx.sum() for dx in dxs)) < 1e-15, dbeta)
    True [1.]
    """
    upstream = tuple(dys)
    if len(upstream) != len(cache.x_hats):
        raise ValueError(f"expected one dy for each of the {len(cache.x_hats)} shards, got {len(upstream)}")
    checked = [
        check_upstream(dy, x_hat, f"dys[{i}]") for i, (dy, x_hat) in enumerate(zip(upstream, cache.x_hats, strict=True))
    ]
    wides = [wide for _, wide in checked]
    sums = [shard_sums(wide, x_hat) for wide, x_hat in zip(wides, cache.x_hats, strict=True)]
    dbeta, dgamma = (reduce(add, totals) for totals in zip(*sums, strict=True))
    dxs = tuple(
        xp.astype(shard_backward(wide, x_hat, cache.inv_std, cache.gamma, dbeta, dgamma, cache.n), dy.dtype)
        for (xp, wide), x_hat, dy in zip(checked, cache.x_hats, upstream, strict=True)
    )
    return dxs, dgamma, dbeta
