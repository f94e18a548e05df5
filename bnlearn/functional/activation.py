r"""Nonlinearities made to do a normaliser's work, or to go with one: TLU, EvoNorm-S0, Dynamic Tanh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bnlearn._arrays import Array, Namespace, channel_axes, full_shape, namespace, per_channel, widen
from bnlearn.functional._core import check_channels, check_eps, check_upstream, scale_and_shift, standardize
from bnlearn.functional.axes import broadcast, check_groups, check_parameters, group, mean_over, own_axes

__all__ = [
    "DynamicTanhCache",
    "EvoNormCache",
    "ThresholdCache",
    "dynamic_tanh",
    "dynamic_tanh_backward",
    "evonorm_s0",
    "evonorm_s0_backward",
    "thresholded_linear_unit",
    "thresholded_linear_unit_backward",
]


class ThresholdCache(NamedTuple):
    r"""What :func:`thresholded_linear_unit` leaves for its backward pass.

    Attributes
    ----------
    below : array of bool, shape (N, C, \*spatial)
        Where the threshold won, a tie included.
    wide : array
        The output in the precision of the computation.
    """

    below: Array
    wide: Array


def thresholded_linear_unit(x: Array, tau: Array) -> tuple[Array, ThresholdCache]:
    r"""``max(x, tau)`` with a learned threshold per channel: TLU (Singh and Krishnan 2020); at tau = 0 it is ReLU.

    It stands behind :func:`filter_response_norm`, which leaves the mean where it was, perhaps far below zero.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    tau : array, shape (C,)
        The thresholds.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``. NaN stays NaN.
    cache : ThresholdCache
        For :func:`thresholded_linear_unit_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = thresholded_linear_unit(np.array([[-2.0, -2.0], [3.0, 3.0]]), np.array([-1.0, 4.0]))
    >>> print(y)
    [[-1.  4.]
     [ 3.  4.]]
    """
    xp = namespace(x, tau)
    check_channels(x, tau=tau)
    wide = widen(xp, x)
    threshold = per_channel(xp, xp.astype(tau, wide.dtype), wide)
    below = wide <= threshold
    y = xp.where(below, threshold, wide)
    return xp.astype(y, x.dtype), ThresholdCache(below, y)


def thresholded_linear_unit_backward(dy: Array, cache: ThresholdCache) -> tuple[Array, Array]:
    r"""``(dx, dtau)``: dy goes to x where x is above the threshold, and to the threshold elsewhere (and at a tie).

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : ThresholdCache
        From the forward pass.

    Returns
    -------
    dx : array, shape (N, C, \*spatial)
        Of the dtype of ``dy``.
    dtau : array, shape (C,)
        Summed over samples and positions.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.
    """
    xp, wide = check_upstream(dy, cache.wide)
    zero = xp.zeros_like(wide)
    dtau = xp.sum(xp.where(cache.below, wide, zero), axis=channel_axes(dy))
    return xp.astype(xp.where(cache.below, zero, wide), dy.dtype), dtau


class EvoNormCache(NamedTuple):
    r"""What :func:`evonorm_s0` leaves for its backward pass.

    Attributes
    ----------
    x : array, shape (N, C, \*spatial)
        The input, in the precision of the computation.
    gate : array, shape (N, C, \*spatial)
        ``sigmoid(v * x)``.
    x_hat : array, shape (N, groups, C / groups, \*spatial)
        The input normalised per group; the output does not contain it, its gradient does.
    inv_std : array, shape (N, groups, 1, 1, ...)
        ``1 / sqrt(var + eps)``.
    gamma, v : array, shape (C,), or None
        As they were given.
    """

    x: Array
    gate: Array
    x_hat: Array
    inv_std: Array
    gamma: Array | None
    v: Array | None


def _by_channel(xp: Namespace, vector: Array | None, like: Array) -> Array | float:
    """A vector to meet ``like``; None stands for ones."""
    return 1.0 if vector is None else per_channel(xp, xp.astype(vector, like.dtype), like)


def evonorm_s0(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    v: Array | None = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
) -> tuple[Array, EvoNormCache]:
    r"""A normaliser and an activation in one: ``y = gamma * x * sigmoid(v * x) / sqrt(var + eps) + beta``.

    The variance is that of :func:`group_norm`, about the mean; the numerator keeps the mean, and a swish of its own
    (Liu et al. 2020, EvoNorm-S0, found by a search over such layers).

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta, v : array, shape (C,), optional
        Scale, shift, and the steepness of the gate; None stands for ones, zeros, ones.
    groups : int
        Number of groups, a divisor of C.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : EvoNormCache
        For :func:`evonorm_s0_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, ``groups`` does not divide C, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = evonorm_s0(np.array([[-3.0, 1.0, 20.0, 60.0]]), groups=2, eps=0.0)
    >>> print(y.round(3))
    [[-0.071  0.366  1.     3.   ]]
    """
    xp = namespace(x, gamma, beta, v)
    check_channels(x, gamma=gamma, beta=beta, v=v)
    check_groups(x, groups)
    wide = widen(xp, x)
    grouped = group(xp, wide, groups)
    norm = standardize(xp, grouped, mean_over(xp, x, range(2, len(x.shape) + 1)), eps=check_eps(eps))
    gate = 0.5 + 0.5 * xp.tanh(0.5 * _by_channel(xp, v, wide) * wide)  # the sigmoid, which cannot overflow this way
    activated = xp.reshape(group(xp, wide * gate, groups) * norm.inv_std, full_shape(xp, x))
    y = scale_and_shift(xp, activated, gamma, beta)
    return xp.astype(y, x.dtype), EvoNormCache(wide, gate, norm.x_hat, norm.inv_std, gamma, v)


def evonorm_s0_backward(dy: Array, cache: EvoNormCache) -> tuple[Array, Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`evonorm_s0`.

    With ``a = x * gate * inv_std`` (the output before gamma and beta) and ``g = gamma * dy``,
    ``dx = inv_std * (g * (gate + v * x * gate * (1 - gate)) - x_hat * mean(g * a))``, the mean over the group: the
    first part through the activation, the second through the variance. ``dv = sum(g * inv_std * x ** 2 * gate *
    (1 - gate))``.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : EvoNormCache
        From the forward pass.

    Returns
    -------
    dx : array, shape (N, C, \*spatial)
        Of the dtype of ``dy``.
    dgamma, dbeta, dv : array, shape (C,)
        Also where gamma, beta or v was not given.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.
    """
    xp, wide = check_upstream(dy, cache.x)
    shape, axes, groups = full_shape(xp, dy), channel_axes(dy), cache.inv_std.shape[1]
    slope = cache.gate * (1 - cache.gate)
    activated = xp.reshape(group(xp, cache.x * cache.gate, groups) * cache.inv_std, shape)
    g = scale_and_shift(xp, wide, cache.gamma, None)
    through_gate = xp.reshape(group(xp, g, groups) * cache.inv_std, shape)

    mean_of = mean_over(xp, dy, range(2, len(shape) + 1))
    through_variance = cache.inv_std * cache.x_hat * mean_of(group(xp, g * activated, groups))
    dx = through_gate * (cache.gate + _by_channel(xp, cache.v, wide) * cache.x * slope)
    dx = dx - xp.reshape(through_variance, shape)
    dv = xp.sum(through_gate * cache.x**2 * slope, axis=axes)
    return xp.astype(dx, dy.dtype), xp.sum(wide * activated, axis=axes), xp.sum(wide, axis=axes), dv


class DynamicTanhCache(NamedTuple):
    r"""What :func:`dynamic_tanh` leaves for its backward pass.

    Attributes
    ----------
    x, bent : array, shape (N, C, \*spatial)
        The input, and ``tanh(alpha * x)``, in the precision of the computation.
    alpha : array or None
        As it was given; None stands for a number.
    gamma : array or None
        As it was given.
    slope : float or array
        The value of alpha.
    shared : dict with int keys
        The axes along which gamma and beta are the same, as in :class:`NormCache`.
    """

    x: Array
    bent: Array
    alpha: Array | None
    gamma: Array | None
    slope: float | Array
    shared: dict[int, None]


def dynamic_tanh(
    x: Array,
    alpha: float | Array = 0.5,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    axes: Sequence[int] = (1,),
) -> tuple[Array, DynamicTanhCache]:
    r"""``y = gamma * tanh(alpha * x) + beta``: Dynamic Tanh (Zhu et al. 2025), put where layer normalisation was.

    Nothing is averaged. A single learned alpha, from 0.5, sets which values are bent: large ones are held within
    gamma, as a normaliser would, small ones pass.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    alpha : float, or array with one element
        The slope at zero.
    gamma, beta : array, optional
        Scale and shift, of the lengths of ``axes``; None stands for ones and zeros.
    axes : sequence of int
        The axes along which gamma and beta differ: by default the channels. ``(-1,)`` is the transformer's.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : DynamicTanhCache
        For :func:`dynamic_tanh_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape or an axis does not fit, or ``alpha`` has more than one element.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = dynamic_tanh(np.array([[-100.0, 0.02, 100.0]]))
    >>> print(y.round(3))
    [[-1.    0.01  1.  ]]
    """
    learned = alpha if hasattr(alpha, "shape") and not isinstance(alpha, float) else None  # np.float64 has a shape
    xp = namespace(x, gamma, beta, learned)
    own = own_axes(x, axes)
    shared = tuple(axis for axis in range(len(x.shape)) if axis not in own)
    check_parameters(x, shared, gamma=gamma, beta=beta)
    if learned is not None and any(n != 1 for n in learned.shape):
        raise ValueError(f"expected alpha to be a number or to have one element, got shape {tuple(learned.shape)}")
    wide = widen(xp, x)
    slope = float(alpha) if learned is None else xp.reshape(xp.astype(learned, wide.dtype), ())
    bent = xp.tanh(slope * wide)
    y = scale_and_shift(xp, bent, gamma, beta, broadcast(xp, x, shared))
    return xp.astype(y, x.dtype), DynamicTanhCache(wide, bent, learned, gamma, slope, dict.fromkeys(shared))


def dynamic_tanh_backward(dy: Array, cache: DynamicTanhCache) -> tuple[Array, Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`dynamic_tanh`.

    With ``g = gamma * dy * (1 - tanh(alpha * x) ** 2)``: ``dx = alpha * g`` and ``dalpha = sum(g * x)``. Each value has
    a gradient of its own: nothing is orthogonal to anything, and where tanh is flat there is none.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : DynamicTanhCache
        From the forward pass.

    Returns
    -------
    dx : array, shape (N, C, \*spatial)
        Of the dtype of ``dy``.
    dalpha : array
        Of the shape of alpha; if that was a number, of shape ().
    dgamma, dbeta : array
        Of the shape of gamma and beta, also where they were not given.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.
    """
    xp, wide = check_upstream(dy, cache.x)
    shape, shared = full_shape(xp, dy), tuple(cache.shared)
    parameters = tuple(length for axis, length in enumerate(shape) if axis not in shared)
    g = scale_and_shift(xp, wide, cache.gamma, None, broadcast(xp, dy, shared)) * (1 - cache.bent**2)
    dalpha = xp.reshape(xp.sum(g * cache.x), () if cache.alpha is None else tuple(cache.alpha.shape))
    dgamma = xp.reshape(xp.sum(wide * cache.bent, axis=shared), parameters)
    dbeta = xp.reshape(xp.sum(wide, axis=shared), parameters)
    return xp.astype(cache.slope * g, dy.dtype), dalpha, dgamma, dbeta
