r"""Normalisers of single samples that are more than a choice of axes: unit length, filter responses, adaptive instance.

The normalising itself is the one of :mod:`bnlearn.functional.axes`: a sum in the place of the mean gives unit length, a
mean square per channel gives filter response normalisation, and adaptive instance normalisation is instance
normalisation that takes its scale and shift from another image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bnlearn._arrays import Array, Namespace, channel_axes, full_shape, namespace, widen
from bnlearn.functional._core import (
    check_channels,
    check_eps,
    check_upstream,
    scale_and_shift,
    standardize,
    standardize_backward,
)
from bnlearn.functional.axes import mean_over, own_axes

__all__ = [
    "AdaptiveInstanceNormCache",
    "FilterResponseNormCache",
    "UnitNormCache",
    "adaptive_instance_norm",
    "adaptive_instance_norm_backward",
    "filter_response_norm",
    "filter_response_norm_backward",
    "unit_norm",
    "unit_norm_backward",
]


class UnitNormCache(NamedTuple):
    r"""What :func:`unit_norm` leaves for its backward pass.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The input divided by its norm.
    inv_norm : array
        One over the norm, or over eps where that is larger; the axes kept at length one.
    slope : array, shape (N, C, \*spatial)
        The derivative of the norm with respect to x: zero where the norm is below eps.
    axes : dict with int keys
        The axes that the norm was taken over, as in :class:`NormCache`.
    """

    x_hat: Array
    inv_norm: Array
    slope: Array
    axes: dict[int, None]


def unit_norm(
    x: Array, *, axes: Sequence[int] | None = (1,), p: int = 2, eps: float = 1e-12
) -> tuple[Array, UnitNormCache]:
    r"""Divide ``x`` by its length: ``y = x / max(norm(x), eps)``, as ``torch.nn.functional.normalize``.

    With ``p=2`` it is :func:`rms_norm` divided by the root of the number of values, with another part for eps to play.
    Nothing is learned.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    axes : sequence of int, optional
        The axes that make up one vector: by default the channels, as in PyTorch. Keras's layer takes ``(-1,)``.
        None stands for all but the first.
    p : {1, 2}
        Which norm: 2 is the Euclidean length, 1 the sum of absolute values.
    eps : float
        The least norm to divide by, positive.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : UnitNormCache
        For :func:`unit_norm_backward`.

    Raises
    ------
    TypeError
        If ``x`` is not floating-point.
    ValueError
        If an axis does not fit, ``p`` is neither 1 nor 2, or ``eps`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> print(unit_norm(np.array([[3.0, 4.0]]))[0], unit_norm(np.array([[1.0, -3.0]]), p=1)[0])
    [[0.6 0.8]] [[ 0.25 -0.75]]
    """
    xp = namespace(x)
    over = own_axes(x, axes)
    if p not in (1, 2):
        raise ValueError(f"expected p, the order of the norm, to be 1 or 2, got {p}")
    if not eps > 0:
        raise ValueError(f"expected eps > 0, the least norm to divide by, got {eps}")
    wide, least = widen(xp, x), float(eps)
    size = xp.sum(xp.abs(wide) if p == 1 else wide * wide, axis=over, keepdims=True)
    # Cut off before the root, whose derivative at zero is infinite: automatic differentiation would give NaN there.
    total = xp.where(size < least**p, xp.zeros_like(size) + least**p, size)
    inv_norm = 1 / (total if p == 1 else xp.sqrt(total))
    x_hat = wide * inv_norm
    slope = xp.where(size < least**p, xp.zeros_like(wide), xp.sign(wide) if p == 1 else x_hat)
    return xp.astype(x_hat, x.dtype), UnitNormCache(x_hat, inv_norm, slope, dict.fromkeys(over))


def unit_norm_backward(dy: Array, cache: UnitNormCache) -> Array:
    r"""The gradient with respect to x through :func:`unit_norm`.

    ``dx = (dy - slope * sum(dy * x_hat)) / norm``, the sum over the axes. For p = 2 the slope is x_hat itself: dx is
    orthogonal to x, since a longer x has the same direction. Below eps, ``dx = dy / eps``.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : UnitNormCache
        From the forward pass.

    Returns
    -------
    dx : array, shape (N, C, \*spatial)
        Of the dtype of ``dy``.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.
    """
    xp, wide = check_upstream(dy, cache.x_hat)
    along = xp.sum(wide * cache.x_hat, axis=tuple(cache.axes), keepdims=True)
    return xp.astype((wide - cache.slope * along) * cache.inv_norm, dy.dtype)


class FilterResponseNormCache(NamedTuple):
    r"""What :func:`filter_response_norm` leaves for its backward pass.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The normalised input, before gamma and beta.
    inv_rms : array, shape (N, C, 1, ...)
        ``1 / sqrt(nu2 + abs(eps))``.
    gamma, eps : array or None
        As they were given; eps is None if it was a number.
    """

    x_hat: Array
    inv_rms: Array
    gamma: Array | None
    eps: Array | None


def filter_response_norm(
    x: Array, gamma: Array | None = None, beta: Array | None = None, *, eps: float | Array = 1e-6
) -> tuple[Array, FilterResponseNormCache]:
    r"""Divide each channel of each sample by its root mean square over the positions.

    ``y = gamma * x / sqrt(nu2 + abs(eps)) + beta`` with ``nu2 = mean(x ** 2)`` over the positions of one channel of one
    sample: filter response normalisation (Singh and Krishnan 2020), which is :func:`rms_norm` with the axes of
    :func:`instance_norm`. No mean is taken off, so it is followed by :func:`thresholded_linear_unit` instead of a ReLU.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point. Without positions, (N, C), each value is divided by its own size, up to eps: learn that.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    eps : float, or array of shape (C,) or ()
        Added to the mean square. A number is not negative; an array is learned, and its absolute value is added.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : FilterResponseNormCache
        For :func:`filter_response_norm_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, or ``eps`` is a negative number.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = filter_response_norm(np.array([[[1.0, 7.0], [30.0, 40.0]]]), eps=0.0)
    >>> print(y.round(3))
    [[[0.2   1.4  ]
      [0.849 1.131]]]
    """
    learned = eps if hasattr(eps, "shape") and not isinstance(eps, float) else None  # np.float64 has a shape
    xp = namespace(x, gamma, beta, learned)
    check_channels(x, gamma=gamma, beta=beta)
    wide = widen(xp, x)
    least: Array
    if learned is None:
        least = check_eps(eps)
    else:
        if len(learned.shape):
            check_channels(x, eps=learned)
        least = xp.reshape(xp.abs(xp.astype(learned, wide.dtype)), (1, -1) + (1,) * (len(x.shape) - 2))
    norm = standardize(xp, wide, _over_positions(xp, wide), eps=least, subtract_mean=False)
    y = scale_and_shift(xp, norm.x_hat, gamma, beta)
    return xp.astype(y, x.dtype), FilterResponseNormCache(norm.x_hat, norm.inv_std, gamma, learned)


def _over_positions(xp: Namespace, x: Array) -> Array:
    """The mean over the spatial axes: the values themselves where there are none."""
    positions = range(2, len(x.shape))
    return mean_over(xp, x, positions) if positions else lambda a: a


def filter_response_norm_backward(dy: Array, cache: FilterResponseNormCache) -> tuple[Array, Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`filter_response_norm`.

    With ``g = gamma * dy`` and the means over the positions, ``dx = inv_rms * (g - x_hat * mean(g * x_hat))``: at
    eps = 0, dx is orthogonal to x in each channel of each sample, and it need not sum to zero. For the learned eps,
    ``deps = -sign(eps) / 2 * sum(g * x_hat * inv_rms ** 2)``, over all that share it.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : FilterResponseNormCache
        From the forward pass.

    Returns
    -------
    dx : array, shape (N, C, \*spatial)
        Of the dtype of ``dy``.
    dgamma, dbeta : array, shape (C,)
        Also where gamma or beta was not given.
    deps : array
        Of the shape of eps; if that was a number, of shape ().

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.
    """
    xp, wide = check_upstream(dy, cache.x_hat)
    axes = channel_axes(dy)
    dgamma = xp.sum(wide * cache.x_hat, axis=axes)
    dbeta = xp.sum(wide, axis=axes)
    g = scale_and_shift(xp, wide, cache.gamma, None)
    dx = standardize_backward(g, cache.x_hat, cache.inv_rms, _over_positions(xp, wide), subtract_mean=False)
    deps = xp.sum(g * cache.x_hat * cache.inv_rms**2, axis=axes) * (-0.5)
    if cache.eps is None or not len(cache.eps.shape):
        deps = xp.sum(deps)
    if cache.eps is not None:
        deps = deps * xp.sign(xp.astype(cache.eps, deps.dtype))
    return xp.astype(dx, dy.dtype), dgamma, dbeta, deps


class AdaptiveInstanceNormCache(NamedTuple):
    r"""What :func:`adaptive_instance_norm` leaves for its backward pass.

    Attributes
    ----------
    content_hat, style_hat : array, shape (N, C, \*spatial)
        The two inputs, each normalised by its own statistics; their positions may differ in number.
    content_inv_std, style_inv_std : array, shape (N, C, 1, ...)
        ``1 / sqrt(var + eps)`` of each channel of each sample.
    """

    content_hat: Array
    style_hat: Array
    content_inv_std: Array
    style_inv_std: Array


def adaptive_instance_norm(
    content: Array, style: Array, *, eps: float = 1e-5
) -> tuple[Array, AdaptiveInstanceNormCache]:
    r"""Give each channel of ``content`` the mean and the standard deviation of that channel of ``style``.

    ``y = std(style) * (content - mean(content)) / std(content) + mean(style)`` (Huang and Belongie 2017, equation 8),
    with the statistics of each channel of each sample over its positions, and ``std = sqrt(var + eps)`` with the biased
    variance (their equations 5 and 6). Instance normalisation whose gamma and beta are an image's. Nothing is learned.

    Parameters
    ----------
    content, style : array, shape (N, C, \*spatial)
        Real floating-point. N and C must agree; the spatial axes need not.
    eps : float
        Added to both variances, not negative.

    Returns
    -------
    y : array, shape of ``content``
        Of its dtype.
    cache : AdaptiveInstanceNormCache
        For :func:`adaptive_instance_norm_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or are not floating-point.
    ValueError
        If one of them has fewer than two positions, N or C differ, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> content, style = np.array([[[1.0, 2.0, 3.0]]]), np.array([[[10.0, 30.0]]])
    >>> y, _ = adaptive_instance_norm(content, style, eps=0.0)
    >>> print(y.mean(), y.std().round(6))
    20.0 10.0
    """
    xp = namespace(content, style)
    for name, x in {"content": content, "style": style}.items():
        positions = [n for n in x.shape[2:] if n != 1]  # what is not known yet may be more than one
        if len(x.shape) < 3 or not positions:
            raise ValueError(
                f"expected {name} of shape (N, C, *spatial) with more than 1 position, got shape {tuple(x.shape)}"
            )
    for axis in (0, 1):
        ours, theirs = content.shape[axis], style.shape[axis]
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
            raise ValueError(
                f"expected style of as many samples and channels as content, {tuple(content.shape)[:2]}, got "
                f"{tuple(style.shape)[:2]}"
            )
    eps = check_eps(eps)
    wide = widen(xp, content, "content")
    from_ = standardize(xp, wide, _over_positions(xp, wide), eps=eps)
    wide_style = xp.astype(widen(xp, style, "style"), wide.dtype)
    to = standardize(xp, wide_style, _over_positions(xp, wide_style), eps=eps)
    ndim = len(content.shape)
    y = from_.x_hat / _of_dimensions(xp, to.inv_std, ndim) + _of_dimensions(xp, to.mean, ndim)
    return xp.astype(y, content.dtype), AdaptiveInstanceNormCache(from_.x_hat, to.x_hat, from_.inv_std, to.inv_std)


def _of_dimensions(xp: Namespace, statistic: Array, ndim: int) -> Array:
    """A statistic per channel of each sample, shape (N, C, 1, ...), to meet an array of so many dimensions."""
    return xp.reshape(statistic, (*full_shape(xp, statistic)[:2], *(1,) * (ndim - 2)))


def adaptive_instance_norm_backward(dy: Array, cache: AdaptiveInstanceNormCache) -> tuple[Array, Array]:
    r"""Gradients of a scalar loss through :func:`adaptive_instance_norm`, with respect to content and style.

    ``dcontent`` is that of instance normalisation with gamma = std(style). The style is heard through its mean and its
    standard deviation alone: ``dstyle = (sum(dy) + style_hat * sum(dy * content_hat)) / n``, the sums over the
    positions of content, n the number of positions of style.

    Parameters
    ----------
    dy : array, shape of content
        Gradient of the loss with respect to ``y``.
    cache : AdaptiveInstanceNormCache
        From the forward pass.

    Returns
    -------
    dcontent, dstyle : array
        Of the shapes of content and style, of the dtype of ``dy``.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of content.
    """
    xp, wide = check_upstream(dy, cache.content_hat)
    ndim = len(cache.style_hat.shape)
    dcontent = standardize_backward(
        wide / _of_dimensions(xp, cache.style_inv_std, len(dy.shape)),
        cache.content_hat,
        cache.content_inv_std,
        _over_positions(xp, wide),
    )
    positions = tuple(range(2, len(dy.shape)))
    dmean = _of_dimensions(xp, xp.sum(wide, axis=positions, keepdims=True), ndim)
    dstd = _of_dimensions(xp, xp.sum(wide * cache.content_hat, axis=positions, keepdims=True), ndim)
    share = xp.ones_like(cache.style_hat)
    n = xp.sum(share, axis=tuple(range(2, ndim)), keepdims=True)
    dstyle = (share * dmean + cache.style_hat * dstd) / n
    return xp.astype(dcontent, dy.dtype), xp.astype(dstyle, dy.dtype)
