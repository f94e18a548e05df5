r"""The normalisers that differ from batch normalisation in the axes alone: layer, instance, group, RMS.

Each sample is normalised by itself, so training and inference are the same and there is nothing to remember.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

from bnlearn._arrays import Array, Namespace, channel_axes, full_shape, namespace, static_size, widen
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
    "NormCache",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]


class NormCache(NamedTuple):
    r"""What a normaliser of single samples leaves for its backward pass.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The normalised input, before gamma and beta.
    inv_std : array
        ``1 / sqrt(var + eps)``, the averaged axes kept at length one. For groups it is (N, groups, 1, 1, ...): one axis
        more than x, whose channels were then averaged as (groups, C / groups).
    gamma : array or None
        The scale, as it was given.
    mean, var : array or None
        The statistics, of the shape of inv_std. Where no mean was taken off, it is None, and var is the mean square.
    axes, shared : dict with int keys
        The axes that were averaged (of the grouped shape), and those of x along which gamma and beta are the same. As
        the keys of a dictionary without values, since jax.jit makes arrays of a tuple of numbers, and of keys does not.
    """

    x_hat: Array
    inv_std: Array
    gamma: Array | None
    mean: Array | None
    var: Array
    axes: dict[int, None]
    shared: dict[int, None]


def _normalize(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    *,
    axes: Sequence[int],
    shared: Sequence[int],
    eps: float,
    groups: int | None = None,
    subtract_mean: bool = True,
) -> tuple[Array, NormCache]:
    """All four of them: standardise over ``axes`` (of the grouped shape, if there are groups), then scale and shift."""
    xp = namespace(x, gamma, beta)
    check_parameters(x, shared, gamma=gamma, beta=beta)
    wide = group(xp, widen(xp, x), groups)
    norm = standardize(xp, wide, mean_over(xp, x, axes), eps=check_eps(eps), subtract_mean=subtract_mean)
    x_hat = norm.x_hat if groups is None else xp.reshape(norm.x_hat, full_shape(xp, x))
    y = scale_and_shift(xp, x_hat, gamma, beta, broadcast(xp, x, shared))
    cache = NormCache(
        x_hat, norm.inv_std, gamma, norm.mean, norm.var, dict.fromkeys(tuple(axes)), dict.fromkeys(tuple(shared))
    )
    return xp.astype(y, x.dtype), cache


def check_parameters(x: Array, shared: Container[int], **vectors: Array | None) -> None:
    """Raise unless each array that was given has the lengths of the axes of ``x`` that are not shared."""
    expected = tuple(length for axis, length in enumerate(x.shape) if axis not in shared)
    for name, vector in vectors.items():
        if vector is not None and None not in expected and tuple(vector.shape) != expected:
            raise ValueError(
                f"expected {name} of shape {expected} for x with shape {tuple(x.shape)}, got shape "
                f"{tuple(vector.shape)}"
            )


def check_groups(x: Array, groups: int) -> None:
    """Raise unless ``groups`` divides the channels of ``x``."""
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"expected groups to divide the {channels} channels of x with shape {tuple(x.shape)}, got groups={groups}"
        )


def group(xp: Namespace, x: Array, groups: int | None) -> Array:
    r"""``x``, shape (N, C, \*spatial), as (N, groups, C / groups, \*spatial); as it is, without groups."""
    if groups is None:
        return x
    samples, channels, *spatial = full_shape(xp, x)
    return xp.reshape(x, (samples, groups, channels // groups, *spatial))


def mean_over(xp: Namespace, x: Array, axes: Sequence[int]) -> Averaging:
    """The mean over ``axes``; where ``x`` is empty, NaN without the library's warning about the mean of nothing."""
    if static_size(x) != 0:
        return averaging(xp, axes)
    return lambda a: xp.sum(a, axis=tuple(axes), keepdims=True) + float("nan")


def broadcast(xp: Namespace, x: Array, shared: Container[int]) -> tuple[int, ...]:
    """The shape in which gamma and beta meet x."""
    return tuple(1 if axis in shared else length for axis, length in enumerate(full_shape(xp, x)))


def _normalize_backward(dy: Array, cache: NormCache) -> tuple[Array, Array, Array]:
    """``(dx, dgamma, dbeta)`` for all four of them."""
    xp, wide = check_upstream(dy, cache.x_hat)
    shape = full_shape(xp, dy)
    shared, parameters = tuple(cache.shared), tuple(n for axis, n in enumerate(shape) if axis not in cache.shared)
    dgamma = xp.reshape(xp.sum(wide * cache.x_hat, axis=shared), parameters)
    dbeta = xp.reshape(xp.sum(wide, axis=shared), parameters)
    dx_hat = scale_and_shift(xp, wide, cache.gamma, None, broadcast(xp, dy, cache.shared))
    groups = cache.inv_std.shape[1] if len(cache.inv_std.shape) > len(shape) else None
    dx = standardize_backward(
        group(xp, dx_hat, groups),
        group(xp, cache.x_hat, groups),
        cache.inv_std,
        mean_over(xp, dy, tuple(cache.axes)),
        subtract_mean=cache.mean is not None,
    )
    return xp.astype(xp.reshape(dx, shape), dy.dtype), dgamma, dbeta


def own_axes(x: Array, axes: Sequence[int] | None) -> tuple[int, ...]:
    """The axes to normalise over as positive numbers in order; None stands for all but the first."""
    if len(x.shape) < 2:
        raise ValueError(f"expected x of shape (N, C, *spatial), at least 2D, got shape {tuple(x.shape)}")
    ndim = len(x.shape)
    chosen = range(1, ndim) if axes is None else axes
    positive = sorted({axis % ndim for axis in chosen if -ndim <= axis < ndim})
    if len(positive) != len(tuple(chosen)) or not positive:
        raise ValueError(f"expected different axes of x with shape {tuple(x.shape)}, got axes={tuple(chosen)}")
    return tuple(positive)


def layer_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axes: Sequence[int] | None = None,
    eps: float = 1e-5,
) -> tuple[Array, NormCache]:
    r"""Normalise each sample of ``x`` over its features: the axes of batch normalisation, turned by a right angle.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` with the statistics of each sample (Ba, Kiros and Hinton 2016,
    equation 3).

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, optional
        Scale and shift, of the lengths of the normalised axes, as in PyTorch's ``normalized_shape``.
    axes : sequence of int, optional
        The axes to normalise over; by default all but the first. ``(-1,)`` is the transformer's, ``(1,)`` that of
        images whose positions are normalised one by one.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : NormCache
        For :func:`layer_norm_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape or an axis does not fit, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), eps=0.0)
    >>> print(y)
    [[-1.  1.]
     [-1.  1.]]
    """
    own = own_axes(x, axes)
    shared = tuple(axis for axis in range(len(x.shape)) if axis not in own)
    return _normalize(x, gamma, beta, axes=own, shared=shared, eps=eps)


def layer_norm_backward(dy: Array, cache: NormCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`layer_norm`.

    ``dx = inv_std * (g - mean(g) - x_hat * mean(g * x_hat))`` with ``g = gamma * dy``, the means over the normalised
    axes: that of batch normalisation, over other axes. dx sums to zero over each sample.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : NormCache
        From the forward pass.

    Returns
    -------
    dx : array, shape (N, C, \*spatial)
        Of the dtype of ``dy``.
    dgamma, dbeta : array
        Of the shape of gamma and beta, also where they were not given.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.
    """
    return _normalize_backward(dy, cache)


def rms_norm(
    x: Array, gamma: Array | None = None, *, axes: Sequence[int] | None = None, eps: float = 1e-6
) -> tuple[Array, NormCache]:
    r"""Divide each sample of ``x`` by its root mean square: layer normalisation that does not subtract the mean.

    ``y = gamma * x / sqrt(mean(x ** 2) + eps)`` (Zhang and Sennrich 2019, equation 4). Arguments, result and errors as
    :func:`layer_norm`; there is no beta.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = rms_norm(np.array([[3.0, 4.0]]), eps=0.0)
    >>> print((y**2).mean())
    1.0
    """
    own = own_axes(x, axes)
    shared = tuple(axis for axis in range(len(x.shape)) if axis not in own)
    return _normalize(x, gamma, None, axes=own, shared=shared, eps=eps, subtract_mean=False)


def rms_norm_backward(dy: Array, cache: NormCache) -> tuple[Array, Array]:
    """``(dx, dgamma)`` through :func:`rms_norm`: as :func:`layer_norm_backward` without the mean of the gradient."""
    return _normalize_backward(dy, cache)[:2]


def group_norm(
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, groups: int, eps: float = 1e-5
) -> tuple[Array, NormCache]:
    r"""Normalise each sample over each group of ``C / groups`` neighbouring channels and their positions.

    Wu and He (2018), equations 1 to 3 and 7. One group is :func:`layer_norm` over all axes, C groups are
    :func:`instance_norm`.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    groups : int
        Number of groups, a divisor of C.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : NormCache
        For :func:`group_norm_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, ``groups`` does not divide C, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = group_norm(np.array([[1.0, 3.0, 10.0, 30.0]]), groups=2, eps=0.0)
    >>> print(y)
    [[-1.  1. -1.  1.]]
    """
    check_channels(x, gamma=gamma, beta=beta)
    check_groups(x, groups)
    over = range(2, len(x.shape) + 1)
    return _normalize(x, gamma, beta, axes=over, shared=channel_axes(x), eps=eps, groups=groups)


def group_norm_backward(dy: Array, cache: NormCache) -> tuple[Array, Array, Array]:
    """``(dx, dgamma, dbeta)`` through :func:`group_norm`: as :func:`layer_norm_backward`, over each group."""
    return _normalize_backward(dy, cache)


def instance_norm(
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, NormCache]:
    r"""Normalise each channel of each sample over its positions.

    Ulyanov, Vedaldi and Lempitsky (2016), equation 3: batch normalisation of each sample by itself, which takes the
    contrast of an image out. Arguments, result and errors as :func:`group_norm`, without groups.

    Raises
    ------
    ValueError
        Also if there are fewer than two positions: each value would be its own mean.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
    >>> print(y)
    [[[-1.  1.]
      [-1.  1.]]]
    """
    check_channels(x, gamma=gamma, beta=beta)
    positions = 1
    for length in x.shape[2:]:
        positions = positions * (length if isinstance(length, int) else 2)
    if positions == 1:
        raise ValueError(
            f"expected more than 1 spatial element, x of shape (N, C, *spatial), got shape {tuple(x.shape)}; for "
            "features without positions use layer_norm"
        )
    return _normalize(x, gamma, beta, axes=range(2, len(x.shape)), shared=channel_axes(x), eps=eps)


def instance_norm_backward(dy: Array, cache: NormCache) -> tuple[Array, Array, Array]:
    """``(dx, dgamma, dbeta)`` through :func:`instance_norm`: as :func:`layer_norm_backward`, over the positions."""
    return _normalize_backward(dy, cache)
