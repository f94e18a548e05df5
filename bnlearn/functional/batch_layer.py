r"""Batch layer normalisation (BLN): a weighted sum of a batch's and a sample's normalisation."""

from __future__ import annotations

from typing import NamedTuple

from bnlearn._arrays import Array, Namespace, channel_axes, full_shape, namespace, static_size, whole_number, widen
from bnlearn.functional._core import (
    Averaging,
    averaging,
    centre,
    check_channels,
    check_eps,
    check_upstream,
    scale_and_shift,
    standardize,
    standardize_backward,
)

__all__ = ["BatchLayerNormCache", "batch_layer_norm", "batch_layer_norm_backward"]

SHARE_TAKEN = 1e-4  # from each of the two weights, in the authors' code


class _Half(NamedTuple):
    """One of the two normalisations, with any of its statistics recomputed or given."""

    x_hat: Array
    deviation: Array  # times inv_std, from the own mean: x_hat, unless the mean was given
    inv_std: Array
    mean: Array  # this and the next: of x itself
    var: Array
    given: tuple[bool, bool]


class BatchLayerNormCache(NamedTuple):
    r"""What :func:`batch_layer_norm` leaves for the backward pass and for the running statistics.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The weighted sum, before gamma and beta.
    gamma : array, shape (C,), or None
        The scale, as it was given.
    weights : tuple
        Of the feature and of the batch normalisation, ``1 / sqrt(C)`` included.
    feature, batch
        What the two halves need.
    batch_mean, batch_var : array, shape (C, \*spatial)
        The batch's own, the variance biased; to be averaged over an epoch (:func:`update_running`).
    feature_mean, feature_var : array, shape (1, \*spatial)
        The samples' own, averaged over the batch.
    """

    x_hat: Array
    gamma: Array | None
    weights: tuple[float | Array, float | Array]
    feature: _Half
    batch: _Half
    batch_mean: Array
    batch_var: Array
    feature_mean: Array
    feature_var: Array


def _mean_over(xp: Namespace, x: Array, axis: int) -> Averaging:
    """The mean over one axis; of nothing it is NaN, without the library's warning."""
    if static_size(x) == 0:
        return lambda a: xp.sum(a, axis=axis, keepdims=True) + float("nan")
    return averaging(xp, (axis,))


def _half(xp: Namespace, x: Array, mean_of: Averaging, mean: Array | None, var: Array | None, eps: float) -> _Half:
    if mean is None and var is None:
        norm = standardize(xp, x, mean_of, eps=eps)
        return _Half(norm.x_hat, norm.x_hat, norm.inv_std, norm.mean, norm.var, (False, False))
    centred, own_mean = centre(xp, x, mean_of)
    own_var = mean_of(centred * centred)
    inv_std = 1 / xp.sqrt((own_var if var is None else var) + eps)
    x_hat = (centred if mean is None else x - mean) * inv_std
    return _Half(x_hat, centred * inv_std, inv_std, own_mean, own_var, (mean is not None, var is not None))


def _half_backward(dx_hat: Array, half: _Half, mean_of: Averaging) -> Array:
    """As :func:`standardize_backward`, without the terms of what was given."""
    if half.given == (False, False):
        return standardize_backward(dx_hat, half.x_hat, half.inv_std, mean_of)
    mean_given, var_given = half.given
    rest = dx_hat if mean_given else dx_hat - mean_of(dx_hat)
    if not var_given:
        rest = rest - half.deviation * mean_of(dx_hat * half.x_hat)
    return half.inv_std * rest


def batch_layer_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    batch_size: int | None = None,
    batch_mean: Array | None = None,
    batch_var: Array | None = None,
    feature_mean: Array | None = None,
    feature_var: Array | None = None,
    eps: float = 1e-3,
) -> tuple[Array, BatchLayerNormCache]:
    r"""Normalise over the batch and over the features, and weigh the two by the batch size: BLN.

    ``y = gamma * ((1/m - 1e-4) * x_f + (1 - 1/m - 1e-4) * x_b) / sqrt(C) + beta``, where ``x_f`` is x normalised over
    the channels of each sample and position, and ``x_b`` over the N samples of each channel and position (Ziaee and
    Cano 2022, as in the authors' code, whose last axis is axis 1 here). A batch of one is all features, a large batch
    nearly all batch.

    In training all four statistics are computed from x. At inference each may be replaced by its average over an epoch;
    the authors choose which by validation.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    batch_size : int, optional
        m, which sets the weights. By default N; at inference, that of training.
    batch_mean, batch_var : array, shape (C, \*spatial), optional
        To normalise by, instead of the batch's own.
    feature_mean, feature_var : array, shape (1, \*spatial), optional
        To normalise by, instead of each sample's own.
    eps : float
        Added to both variances, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``. Its mean square is about ``1 / C`` at gamma = 1, beta = 0.
    cache : BatchLayerNormCache
        For :func:`batch_layer_norm_backward`, and for :func:`update_running`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, ``batch_size`` is below 1, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> print(batch_layer_norm(x, eps=0.0)[0].round(3))  # from features (-1, 1), (-1, 1), from batch (-1, -1), (1, 1)
    [[-0.707  0.   ]
     [ 0.     0.707]]
    """
    xp = namespace(x, gamma, beta, batch_mean, batch_var, feature_mean, feature_var)
    check_channels(x, gamma=gamma, beta=beta)
    eps = check_eps(eps)
    sizes = tuple(x.shape)
    known = all(isinstance(length, int) for length in sizes[1:])
    for name, array, expected in (
        ("batch_mean", batch_mean, sizes[1:]),
        ("batch_var", batch_var, sizes[1:]),
        ("feature_mean", feature_mean, (1, *sizes[2:])),
        ("feature_var", feature_var, (1, *sizes[2:])),
    ):
        if array is not None and known and tuple(array.shape) != expected:
            raise ValueError(
                f"expected {name} of shape {expected} for x with shape {sizes}, got shape {tuple(array.shape)}"
            )
    wide = widen(xp, x)
    if batch_size is not None and not whole_number(batch_size, "batch_size"):
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    m = full_shape(xp, x)[0] if batch_size is None else batch_size
    m = float(max(m, 1)) if isinstance(m, int) else xp.astype(m, wide.dtype)
    shrunk = float(x.shape[1]) ** -0.5
    weights = ((1 / m - SHARE_TAKEN) * shrunk, (1 - 1 / m - SHARE_TAKEN) * shrunk)

    def fit(array: Array | None) -> Array | None:
        return None if array is None else xp.astype(array, wide.dtype)[None, ...]

    feature = _half(xp, wide, _mean_over(xp, wide, 1), fit(feature_mean), fit(feature_var), eps)
    batch = _half(xp, wide, _mean_over(xp, wide, 0), fit(batch_mean), fit(batch_var), eps)
    x_hat = weights[0] * feature.x_hat + weights[1] * batch.x_hat
    y = scale_and_shift(xp, x_hat, gamma, beta)
    over_batch = _mean_over(xp, wide, 0)
    own = (a[0, ...] for a in (batch.mean, batch.var, over_batch(feature.mean), over_batch(feature.var)))
    return xp.astype(y, x.dtype), BatchLayerNormCache(x_hat, gamma, weights, feature, batch, *own)


def batch_layer_norm_backward(dy: Array, cache: BatchLayerNormCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`batch_layer_norm`, in any of its forms.

    The weighted sum of the gradients through the two normalisations, each
    ``inv_std * (g - mean(g) - (x - own mean) * inv_std * mean(g * x_hat))`` over its axes; a mean that was given takes
    the second term away, a variance the third. Derived here; at C = 1 or N = 1 it is that of one normalisation.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : BatchLayerNormCache
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
    dx_hat = scale_and_shift(xp, wide, cache.gamma, None)
    by_feature = _half_backward(cache.weights[0] * dx_hat, cache.feature, _mean_over(xp, wide, 1))
    by_batch = _half_backward(cache.weights[1] * dx_hat, cache.batch, _mean_over(xp, wide, 0))
    dgamma, dbeta = xp.sum(wide * cache.x_hat, axis=axes), xp.sum(wide, axis=axes)
    return xp.astype(by_feature + by_batch, dy.dtype), dgamma, dbeta
