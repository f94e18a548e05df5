r"""Batch normalisation: its training and inference forms, its gradients, its running statistics."""

from __future__ import annotations

from typing import NamedTuple

from bnlearn._arrays import (
    Array,
    Namespace,
    channel_axes,
    namespace,
    per_channel,
    static_size,
    stop_gradient,
    whole_number,
    widen,
)
from bnlearn.functional._core import (
    averaging,
    check_channels,
    check_eps,
    check_upstream,
    keep,
    scale_and_shift,
    standardize,
    standardize_backward,
    values_per_channel,
)

__all__ = ["BatchNormCache", "batch_norm", "batch_norm_backward", "batch_norm_backward_staged", "update_running"]


class BatchNormCache(NamedTuple):
    r"""What :func:`batch_norm` leaves for the backward pass and for the running statistics.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The normalised input, before gamma and beta.
    inv_std : array, shape (C,)
        ``1 / sqrt(var + eps)``.
    gamma : array, shape (C,), or None
        The scale, as it was given.
    mean, var : array, shape (C,), or None
        The mean and the biased variance of this batch; None when the caller gave the statistics (inference).
    n : int
        Values per channel behind the statistics (an integer array where only the run can tell: with a mask, or a
        batch size that is not known yet); for :func:`update_running`.
    mask : array of bool, broadcastable to x, or None
        What was not padding.
    """

    x_hat: Array
    inv_std: Array
    gamma: Array | None
    mean: Array | None
    var: Array | None
    n: int | Array
    mask: Array | None = None


def _mask_like(x: Array, mask: Array | None, xp: Namespace) -> Array | None:
    """The mask as (N, 1, *spatial), to meet ``x``."""
    if mask is None:
        return None
    shape = tuple(x.shape)
    expected = (shape[0], *shape[2:])
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(
            f"expected mask of dtype bool, True where x is real, got {mask.dtype}; compare it, e.g. mask > 0"
        )
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"expected mask of shape {expected}, (N, *spatial) for x with shape {shape}, got {tuple(mask.shape)}"
        )
    return mask[:, None, ...]


def batch_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    mean: Array | None = None,
    var: Array | None = None,
    mask: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, BatchNormCache]:
    r"""Normalise each channel of ``x`` to mean 0 and variance 1, then scale by ``gamma`` and shift by ``beta``.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` (Ioffe and Szegedy 2015, algorithm 1). Without ``mean`` and
    ``var`` the statistics are those of the batch (training); with them, it is the inference form (their algorithm 2).

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    mean, var : array, shape (C,), optional
        Statistics to normalise by, both or neither.
    mask : array of bool, shape (N, \*spatial), optional
        True where ``x`` is real, False where it is padding. Padding does not enter the statistics, whatever it holds
        (NaN too), and is zero in ``y`` and in ``dx``.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : BatchNormCache
        For :func:`batch_norm_backward`, and for :func:`update_running` (``cache.mean``, ``cache.var``, ``cache.n``).

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, ``x`` is not floating-point, or ``mask`` not boolean.
    ValueError
        If a shape does not fit, only one of ``mean`` and ``var`` is given, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, cache = batch_norm(x, eps=0.0)
    >>> print(y)
    [[-1. -1.]
     [ 1.  1.]]
    >>> print(cache.mean, cache.var)
    [ 2. 20.] [  1. 100.]
    """
    xp = namespace(x, gamma, beta, mean, var, mask)
    check_channels(x, gamma=gamma, beta=beta, mean=mean, var=var)
    if (mean is None) != (var is None):
        given, missing = ("mean", "var") if var is None else ("var", "mean")
        raise ValueError(f"expected both mean and var or neither, got {given} without {missing}")
    eps = check_eps(eps)

    wide = widen(xp, x)
    real = _mask_like(x, mask, xp)
    n = values_per_channel(xp, x, real)
    batch_mean: Array | None = None
    batch_var: Array | None = None
    if mean is not None and var is not None:
        inv_std = 1 / xp.sqrt(xp.astype(var, wide.dtype) + eps)
        x_hat = (wide - per_channel(xp, xp.astype(mean, wide.dtype), wide)) * per_channel(xp, inv_std, wide)
    elif static_size(x) == 0:  # the mean of nothing is NaN, without the library's warning
        batch_mean = xp.sum(wide, axis=channel_axes(x)) + float("nan")
        x_hat, inv_std, batch_var = wide, batch_mean, batch_mean
    else:
        over_batch = averaging(xp, channel_axes(x), real)
        batch = standardize(xp, keep(xp, wide, real), over_batch, eps=eps)
        x_hat, inv_std = batch.x_hat, xp.reshape(batch.inv_std, (-1,))
        batch_mean, batch_var = xp.reshape(batch.mean, (-1,)), xp.reshape(batch.var, (-1,))

    y = keep(xp, scale_and_shift(xp, keep(xp, x_hat, real), gamma, beta), real)
    cache = BatchNormCache(keep(xp, x_hat, real), inv_std, gamma, batch_mean, batch_var, n, real)
    return xp.astype(y, x.dtype), cache


def _upstream(dy: Array, cache: BatchNormCache) -> tuple[Namespace, Array]:
    """The namespace, and ``dy`` in the cache's precision, zero where the mask says padding."""
    xp, wide = check_upstream(dy, cache.x_hat)
    return xp, keep(xp, wide, cache.mask)


def _scaled(xp: Namespace, dy: Array, cache: BatchNormCache) -> Array:
    """The gradient with respect to ``x_hat``."""
    return dy if cache.gamma is None else dy * per_channel(xp, xp.astype(cache.gamma, dy.dtype), dy)


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`batch_norm`, in closed form.

    With the batch's statistics, which depend on every x (means over the batch and space, per channel):
    ``dx = gamma * inv_std * (dy - mean(dy) - x_hat * mean(dy * x_hat))``. With given statistics, which do not:
    ``dx = gamma * inv_std * dy``. Ioffe and Szegedy (2015), section 3, with their chain of terms collected.

    In the first form dx sums to zero over each channel, and (at eps = 0) is orthogonal to x_hat.

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
        Also where gamma or beta was not given (the gradients they would have had).

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` is not of the shape of ``x``.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = batch_norm(np.array([[1.0], [2.0], [6.0]]))
    >>> dx, dgamma, dbeta = batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), cache)
    >>> bool(abs(dx.sum()) < 1e-15), dbeta
    (True, array([1.]))
    """
    xp, wide = _upstream(dy, cache)
    axes = channel_axes(dy)
    dgamma = xp.sum(wide * cache.x_hat, axis=axes)
    dbeta = xp.sum(wide, axis=axes)
    dx_hat, inv_std = _scaled(xp, wide, cache), per_channel(xp, cache.inv_std, wide)
    if cache.mean is None or static_size(dy) == 0:
        dx = inv_std * dx_hat
    else:
        dx = standardize_backward(dx_hat, cache.x_hat, inv_std, averaging(xp, axes, cache.mask))
    return xp.astype(keep(xp, dx, cache.mask), dy.dtype), dgamma, dbeta


def batch_norm_backward_staged(dy: Array, cache: BatchNormCache) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
    r""":func:`batch_norm_backward` one node of the computation graph at a time, keeping every gradient on the way.

    The graph of the training form, per channel, with n values per channel:
    ``mean = sum(x) / n``; ``centred = x - mean``; ``square = centred ** 2``; ``var = sum(square) / n``;
    ``inv_std = (var + eps) ** -0.5``; ``x_hat = centred * inv_std``; ``scaled = gamma * x_hat``; ``y = scaled + beta``.
    Slower than the closed form and equal to it: for reading, not for training.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : BatchNormCache
        From the forward pass, in the training form.

    Returns
    -------
    gradients : tuple of arrays
        ``(dx, dgamma, dbeta)`` as from :func:`batch_norm_backward`.
    stages : dict of str to array
        The gradient of the loss with respect to each node, in the order in which they are reached. Where a node feeds
        two others, the two contributions are listed (``"centred via x_hat"``, ...) before their sum.

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_norm_backward`; ValueError also if the cache is of the inference form, whose graph has no such
        nodes.
    """
    if cache.mean is None or cache.mask is not None:
        form = "inference form" if cache.mean is None else "masked form"
        raise ValueError(
            f"expected the cache of the training form without a mask, got one of the {form}; use batch_norm_backward"
        )
    xp, wide = _upstream(dy, cache)
    axes = channel_axes(dy)
    inv_std = per_channel(xp, cache.inv_std, wide)
    centred = cache.x_hat / inv_std

    ones = xp.ones_like(wide)
    n = xp.sum(ones, axis=axes)

    def share(total: Array) -> Array:
        # The derivative of a mean over the channel: each of its n values receives 1/n of the gradient.
        return ones * per_channel(xp, total / n, wide)

    stages: dict[str, Array] = {"y": wide}
    stages["beta"] = xp.sum(wide, axis=axes)
    stages["scaled"] = wide
    stages["gamma"] = xp.sum(stages["scaled"] * cache.x_hat, axis=axes)
    stages["x_hat"] = _scaled(xp, wide, cache)
    stages["centred via x_hat"] = stages["x_hat"] * inv_std
    stages["inv_std"] = xp.sum(stages["x_hat"] * centred, axis=axes)
    stages["var"] = stages["inv_std"] * (-0.5) * cache.inv_std**3
    stages["square"] = share(stages["var"])
    stages["centred via square"] = stages["square"] * 2 * centred
    stages["centred"] = stages["centred via x_hat"] + stages["centred via square"]
    stages["x via centred"] = stages["centred"]
    stages["mean"] = -xp.sum(stages["centred"], axis=axes)
    stages["x via mean"] = share(stages["mean"])
    stages["x"] = stages["x via centred"] + stages["x via mean"]
    return (xp.astype(stages["x"], dy.dtype), stages["gamma"], stages["beta"]), stages


def update_running(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    var: Array,
    n: int,
    *,
    momentum: float = 0.1,
    unbiased: bool = True,
) -> tuple[Array, Array]:
    """The running statistics after one more batch: ``(1 - momentum) * running + momentum * batch``.

    The defaults are PyTorch's: ``momentum`` is the weight of the NEW batch, and the running variance estimates the
    population's, so the batch's biased variance is first multiplied by ``n / (n - 1)``. Keras's layer is
    ``momentum=1 - layer.momentum, unbiased=False``. No gradient flows into the running statistics: on PyTorch tensors
    they are detached from the batch's graph, which they would otherwise keep alive, and the next batch's after it.

    Parameters
    ----------
    running_mean, running_var : array, shape (C,)
        The statistics so far. They are not changed in place.
    mean, var : array, shape (C,)
        The batch's mean and biased variance, from ``cache.mean`` and ``cache.var``.
    n : int
        Values per channel behind them, ``cache.n``: N times the number of spatial positions, or what the mask left of
        them. With 0 the statistics stay. Inside ``tf.function`` or ``jax.jit`` it may be an integer tensor, whose
        value cannot be refused: 1 then counts as 2.
    momentum : float
        Weight of the new batch, from 0 to 1.
    unbiased : bool
        Whether to correct the batch's variance by ``n / (n - 1)``.

    Returns
    -------
    running_mean, running_var : array, shape (C,)
        The new statistics, of the dtypes of the old.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``n`` is not a whole number.
    ValueError
        If ``momentum`` is outside [0, 1], a shape differs, ``n`` is negative, or ``n`` is 1 and ``unbiased`` is set:
        one value has no unbiased variance.

    Examples
    --------
    >>> import numpy as np
    >>> update_running(np.zeros(1), np.ones(1), np.array([2.0]), np.array([4.0]), n=5)
    (array([0.2]), array([1.4]))
    """
    xp = namespace(running_mean, running_var, mean, var)
    if not 0 <= momentum <= 1:
        raise ValueError(f"expected momentum, the weight of the new batch, from 0 to 1, got {momentum}")
    for name, vector in {"running_var": running_var, "mean": mean, "var": var}.items():
        if tuple(vector.shape) != tuple(running_mean.shape):
            raise ValueError(
                f"expected {name} of the shape of running_mean, {tuple(running_mean.shape)}, got {tuple(vector.shape)}"
            )
    count = whole_number(n, "n")
    if count == 0:
        return running_mean, running_var
    if unbiased and count == 1:
        raise ValueError("expected n > 1 values per channel for an unbiased variance, got n = 1; use a larger batch")
    momentum = float(momentum)  # a NumPy number would widen float32

    def average(running: Array, batch: Array, name: str) -> Array:
        wide = widen(xp, running, name)
        new = xp.astype(stop_gradient(xp, batch), wide.dtype)
        # Only where it is traced is n left to the library, whose integers do not mix with its floats.
        values = xp.astype(n, wide.dtype) if count is None else float(count)
        if unbiased and name == "running_var":
            new = new * (1 + 1 / (values - 1 if count else xp.where(values > 2, values - 1, xp.ones_like(values))))
        updated = (1 - momentum) * wide + momentum * new
        if count is None:
            updated = xp.where(values > 0, updated, wide)
        return xp.astype(updated, running.dtype)

    return average(running_mean, mean, "running_mean"), average(running_var, var, "running_var")
