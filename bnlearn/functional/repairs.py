r"""Repairs that stay with the batch: batch renormalisation and full normalisation.

Both bring the running statistics into training. Renormalisation computes what inference will compute and
differentiates it as batch normalisation; full normalisation normalises by a running estimate and differentiates at it.
"""

from __future__ import annotations

from typing import NamedTuple

from bnlearn._arrays import (
    Array,
    channel_axes,
    namespace,
    per_channel,
    static_size,
    stop_gradient,
    widen,
)
from bnlearn.functional._core import (
    averaging,
    centre,
    check_channels,
    check_eps,
    scale_and_shift,
    values_per_channel,
)
from bnlearn.functional.batch import BatchNormCache, batch_norm, batch_norm_backward
from bnlearn.functional.inference import check_share, is_number, mixture

__all__ = [
    "BatchRenormCache",
    "batch_renorm",
    "batch_renorm_backward",
    "full_norm",
    "full_norm_backward",
    "renorm_limits",
]


class BatchRenormCache(NamedTuple):
    """What :func:`batch_renorm` leaves for its backward pass and for the running statistics.

    Attributes
    ----------
    batch : BatchNormCache
        That of batch normalisation with the scale ``gamma * r``. For :func:`update_running`: ``batch.mean``,
        ``batch.var`` and ``batch.n``.
    r, d : array, shape (C,)
        The correction, after clipping.
    """

    batch: BatchNormCache
    r: Array
    d: Array


def batch_renorm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    mean: Array,
    var: Array,
    r_max: float | Array = 3.0,
    d_max: float | Array = 5.0,
    eps: float = 1e-5,
) -> tuple[Array, BatchRenormCache]:
    r"""Batch normalisation whose training output is that of inference, within limits: batch renormalisation.

    ``y = gamma * (x_hat * r + d) + beta`` with ``x_hat`` normalised by the batch, ``r = s_B / s`` and
    ``d = (mean_B - mean) / s``, where ``s_B = sqrt(var_B + eps)`` and ``s = sqrt(var + eps)``: algorithm 1 of Ioffe
    (2017). Where r within [1 / r_max, r_max] and d within [-d_max, d_max] need no clipping, that is
    ``gamma * (x - mean) / s + beta``: the inference form. r and d are constants to the gradient.

    The paper averages s; here ``var`` is averaged, as everywhere else, so that the statistics are batch normalisation's
    and one may be loaded into the other.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    mean, var : array, shape (C,)
        The running statistics before this batch.
    r_max, d_max : float
        The limits, at least 1 and 0; see :func:`renorm_limits`. With 1 and 0 it is batch normalisation, with
        ``math.inf`` for both nothing is clipped.
    eps : float
        Added to both variances, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : BatchRenormCache
        For :func:`batch_renorm_backward`, and for :func:`update_running`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, ``r_max`` is below 1, or ``d_max`` or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> x, mean, var = np.array([[1.0], [3.0]]), np.array([1.0]), np.array([4.0])
    >>> print(batch_renorm(x, mean=mean, var=var, eps=0.0)[0].T)  # as at inference
    [[0. 1.]]
    >>> print(batch_renorm(x, mean=mean, var=var, r_max=1, d_max=0, eps=0.0)[0].T)  # as batch normalisation
    [[-1.  1.]]
    """
    xp = namespace(x, gamma, beta, mean, var)
    check_channels(x, gamma=gamma, beta=beta, mean=mean, var=var)
    for name, limit, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if is_number(limit) and not limit >= least:
            raise ValueError(f"expected {name} >= {least}, got {limit}")
    eps = check_eps(eps)
    batch = batch_norm(x, eps=eps)[1]
    dtype = batch.x_hat.dtype
    std = xp.sqrt(xp.astype(var, dtype) + eps)
    if static_size(x) == 0:  # nothing to correct, and no statistics to do it with
        r, d = xp.ones_like(std), xp.zeros_like(std)
    else:
        batch_mean: Array = batch.mean
        batch_var: Array = batch.var
        r = xp.sqrt(batch_var + eps) / std
        d = (batch_mean - xp.astype(mean, dtype)) / std

    def within(value: Array, low: float | Array, high: float | Array) -> Array:
        one = xp.ones_like(std)
        return stop_gradient(xp, xp.minimum(xp.maximum(value, low * one), high * one))

    upper, bound = (float(v) if is_number(v) else xp.astype(v, dtype) for v in (r_max, d_max))
    r, d = within(r, 1 / upper, upper), within(d, -bound, bound)
    scale, shift = (r, d) if gamma is None else (r * xp.astype(gamma, dtype), d * xp.astype(gamma, dtype))
    if beta is not None:
        shift = shift + xp.astype(beta, dtype)
    y = scale_and_shift(xp, batch.x_hat, scale, shift)
    return xp.astype(y, x.dtype), BatchRenormCache(batch._replace(gamma=scale), r, d)


def batch_renorm_backward(dy: Array, cache: BatchRenormCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`batch_renorm`.

    ``dx`` is batch normalisation's with ``gamma * r`` for gamma (:func:`batch_norm_backward`), and
    ``dgamma = sum(dy * (x_hat * r + d))``, as r and d are constants (Ioffe 2017).

    As in batch normalisation, dx sums to zero over each channel. The inference form has the same output and another
    gradient, ``gamma / s * dy``: trained with that, gradient descent and normalisation work against each other.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : BatchRenormCache
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
    dx, dscale, dbeta = batch_norm_backward(dy, cache.batch)
    return dx, cache.r * dscale + cache.d * dbeta, dbeta


def renorm_limits(
    step: int | Array,
    *,
    warmup: int = 5_000,
    r_end: int = 40_000,
    d_end: int = 25_000,
    r_max: float = 3.0,
    d_max: float = 5.0,
) -> tuple[float | Array, float | Array]:
    """The limits ``(r_max, d_max)`` of batch renormalisation after ``step`` steps of training.

    1 and 0 up to ``warmup``, which is batch normalisation; then relaxed, r to its maximum at ``r_end`` and d to its own
    at ``d_end``. The defaults are the paper's (Ioffe 2017), which says "gradually"; here it is linearly.

    Parameters
    ----------
    step : int, or an array of integers
        Steps done. An array (a tensor that counts batches, also a traced one) gives arrays.
    warmup, r_end, d_end : int
        Steps; neither end before the warm-up's.
    r_max, d_max : float
        What the limits end at.

    Returns
    -------
    r_max, d_max : float, or array

    Raises
    ------
    ValueError
        If the steps are not in order, ``r_max`` is below 1, or ``d_max`` or ``warmup`` negative.

    Examples
    --------
    >>> renorm_limits(5_000), renorm_limits(22_500), renorm_limits(1_000_000)
    ((1.0, 0.0), (2.0, 4.375), (3.0, 5.0))
    """
    if not 0 <= warmup <= min(r_end, d_end):
        raise ValueError(
            f"expected 0 <= warmup <= r_end and d_end, got warmup={warmup}, r_end={r_end}, d_end={d_end} steps"
        )
    if not (r_max >= 1 and d_max >= 0):
        raise ValueError(f"expected r_max >= 1 and d_max >= 0, got {r_max} and {d_max}")

    def progress(end: int) -> float | Array:
        length = max(end - warmup, 1)
        if is_number(step):
            return min(max((step - warmup) / length, 0.0), 1.0)
        xp = namespace(step)
        return xp.clip((xp.astype(step, xp.float32) - warmup) / length, 0.0, 1.0)

    return 1 + (r_max - 1) * progress(r_end), d_max * progress(d_end)


def full_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    mean: Array,
    var: Array,
    momentum: float | Array = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, BatchNormCache]:
    r"""Normalise by a running estimate of the whole data's statistics, in training too: full normalisation.

    After Lian and Liu (2019), of whom the abstract was read; the form is derived here. The loss to be minimised is that
    of a network which normalises by the statistics of ALL the data, so those of a small batch are the wrong ones. They
    are estimated over the batches, ``mean <- (1 - a) * mean + a * mean_B`` and the mean square likewise, and x is
    normalised by the estimate, this batch included. In terms of the variance, without cancellation:
    ``var <- (1 - a) * var + a * var_B + a * (1 - a) * (mean_B - mean)^2``.

    The gradient is that of a composition (:func:`full_norm_backward`), and on PyTorch, JAX and TensorFlow automatic
    differentiation through this function gives it.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    mean, var : array, shape (C,)
        The estimate before this batch.
    momentum : float
        The weight a of the new batch, from 0 to 1. With 1 it is batch normalisation.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : BatchNormCache
        For :func:`full_norm_backward`. ``cache.mean`` and ``cache.var`` (biased) are the NEW ESTIMATE: keep them for
        the next batch, and for inference.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, ``momentum`` is outside [0, 1], or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[4.0], [6.0]])
    >>> y, cache = full_norm(x, mean=np.array([3.0]), var=np.array([1.0]), momentum=0.5, eps=0.0)
    >>> print(cache.mean, cache.var, y.T.round(3))
    [4.] [2.] [[0.    1.414]]
    """
    xp = namespace(x, gamma, beta, mean, var)
    check_channels(x, gamma=gamma, beta=beta, mean=mean, var=var)
    eps, share = check_eps(eps), check_share(momentum, "momentum, the weight of the new batch,")
    wide = widen(xp, x)
    if not isinstance(share, float):
        share = xp.astype(share, wide.dtype)
    old_mean, old_var = (stop_gradient(xp, per_channel(xp, xp.astype(a, wide.dtype), wide)) for a in (mean, var))
    n = values_per_channel(xp, x, None)
    if static_size(x) == 0:  # no batch, no news
        x_hat, new_mean, new_var = wide, old_mean, old_var
        inv_std = 1 / xp.sqrt(new_var + eps)
    else:
        mean_of = averaging(xp, channel_axes(x))
        centred, batch_mean = centre(xp, wide, mean_of)
        constant_mean, constant_var = (stop_gradient(xp, a) for a in (batch_mean, mean_of(centred * centred)))
        new_mean, new_var = mixture(constant_mean, constant_var, old_mean, old_var, share)
        # The values are the estimate's, the derivatives the batch's, taken at the estimate: of the mean, that of
        # `centred`; of the variance E[x^2] - mean^2, that of the mean of (x - new_mean)^2 with new_mean constant.
        from_new_mean = wide - new_mean
        spread = mean_of(from_new_mean * from_new_mean)
        inv_std = 1 / xp.sqrt(new_var + (spread - stop_gradient(xp, spread)) + eps)
        x_hat = (centred + (constant_mean - new_mean)) * inv_std
    y = scale_and_shift(xp, x_hat, gamma, beta)
    inv_std, new_mean, new_var = (xp.reshape(a, (-1,)) for a in (inv_std, new_mean, new_var))
    return xp.astype(y, x.dtype), BatchNormCache(x_hat, inv_std, gamma, new_mean, new_var, n)


def full_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    r"""Gradients through :func:`full_norm` by the rule for compositions.

    The loss is ``f(x, S)`` of the batch and of the statistics ``S`` of all the data, which depend on the weights too.
    Its gradient is ``df/dx + df/dS * dS/dx`` with everything evaluated at the true S. The estimate stands for the value
    of S, and the batch's ``dS_B/dx`` for its derivative (``1 / n`` for the mean, ``2 x / n`` for the mean square; not
    ``a / n``, the derivative of the estimate, which forgets that earlier batches would have moved too). Collected:

    ``dx = gamma * inv_std * (dy - mean(dy) - x_hat * mean(dy * x_hat))`` with the means over the batch: the formula of
    :func:`batch_norm_backward`, at the estimate's ``x_hat`` and ``inv_std``.

    It neither sums to zero over a channel nor is orthogonal to ``x_hat``, as batch normalisation's does and is: this
    one batch's ``x_hat`` has not mean 0 and mean square 1. Over all the data it has, and there both hold.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : BatchNormCache
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
    return batch_norm_backward(dy, cache)
