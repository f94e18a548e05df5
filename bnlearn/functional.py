r"""The formulas: pure functions ``forward(x, ...) -> (y, cache)`` and ``backward(dy, cache) -> gradients``.

Shapes, here and everywhere in the book: ``x`` is (N, C, \*spatial), N samples of C channels (features), each channel
holding zero or more spatial axes. A statistic *per channel* is taken over N and all spatial axes and has shape (C,).

Every function takes arrays of any one library: NumPy, PyTorch (and is differentiable there), JAX, TensorFlow through
``keras.ops``, or another that follows the Python Array API standard. Nothing is changed in place and nothing is
remembered: what the backward pass needs is in the ``cache`` that the forward pass returns.

Half precision is computed in float32, and comes back only where it came in: in ``y``, ``dx``, the running statistics.

Under ``jax.jit``, numbers such as ``eps`` and ``momentum`` are to be static: they are checked before anything runs.
"""

from __future__ import annotations

from typing import NamedTuple

from bnlearn._arrays import Array, Namespace, channel_axes, namespace, per_channel, static_size, whole_number, widen

__all__ = [
    "BatchNormCache",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_staged",
    "update_running",
]


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
    """

    x_hat: Array
    inv_std: Array
    gamma: Array | None
    mean: Array | None
    var: Array | None


def _check_channels(x: Array, **vectors: Array | None) -> None:
    r"""Raise unless ``x`` is (N, C, \*spatial) and each vector that was given is (C,)."""
    if len(x.shape) < 2:
        raise ValueError(f"expected x of shape (N, C, *spatial), at least 2D, got shape {tuple(x.shape)}")
    known = isinstance(x.shape[1], int)  # the channels of a symbolic array may not be
    for name, vector in vectors.items():
        if vector is not None and known and tuple(vector.shape) != (x.shape[1],):
            raise ValueError(
                f"expected {name} of shape ({x.shape[1]},), one value per channel of x with shape {tuple(x.shape)}, "
                f"got shape {tuple(vector.shape)}"
            )


def _centre(xp: Namespace, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """``(x - mean, mean)``, with the rounding error of the first mean taken out by a second.

    In float32, data with mean 1e3 and standard deviation 0.1 leaves four decimal digits for the deviation, and the
    plain mean of a long column in NumPy spoils two of them. ``x - mean`` is exact where x is within a factor of two of
    its mean (Sterbenz), so the mean of what is left over measures the error, and removes it: the corrected two-pass
    algorithm of Chan, Golub and LeVeque (1983), equation 1.7, applied to the deviations too.
    """
    mean = xp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    error = xp.mean(centred, axis=axes, keepdims=True)
    # An infinite mean has no rounding error to take out: inf - inf would make it NaN, where PyTorch says inf.
    mean_or_inf = xp.where(xp.isfinite(mean), mean + error, mean)
    return centred - error, xp.reshape(mean_or_inf, (-1,))


def batch_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    mean: Array | None = None,
    var: Array | None = None,
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
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : BatchNormCache
        For :func:`batch_norm_backward`, and for :func:`update_running` (``cache.mean``, ``cache.var``).

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
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
    xp = namespace(x, gamma, beta, mean, var)
    _check_channels(x, gamma=gamma, beta=beta, mean=mean, var=var)
    if (mean is None) != (var is None):
        given, missing = ("mean", "var") if var is None else ("var", "mean")
        raise ValueError(f"expected both mean and var or neither, got {given} without {missing}")
    if not eps >= 0:
        raise ValueError(f"expected eps >= 0, got {eps}")
    eps = float(eps)  # a NumPy number would widen float32

    wide = widen(xp, x)
    axes = channel_axes(x)
    batch_mean: Array | None = None
    batch_var: Array | None = None
    if mean is not None and var is not None:
        centred = wide - per_channel(xp, xp.astype(mean, wide.dtype), wide)
        spread = xp.astype(var, wide.dtype)
    else:
        if static_size(x) == 0:  # the mean of nothing is NaN, without the library's warning
            centred, batch_mean = wide, xp.sum(wide, axis=axes) + float("nan")
            spread = batch_mean
        else:
            centred, batch_mean = _centre(xp, wide, axes)
            spread = xp.mean(centred * centred, axis=axes)
        batch_var = spread

    inv_std = 1 / xp.sqrt(spread + eps)
    x_hat = centred * per_channel(xp, inv_std, wide)
    y = x_hat
    if gamma is not None:
        y = y * per_channel(xp, xp.astype(gamma, wide.dtype), wide)
    if beta is not None:
        y = y + per_channel(xp, xp.astype(beta, wide.dtype), wide)
    return xp.astype(y, x.dtype), BatchNormCache(x_hat, inv_std, gamma, batch_mean, batch_var)


def _upstream(dy: Array, cache: BatchNormCache) -> tuple[Namespace, Array, Array]:
    """The namespace, ``dy`` in the cache's precision, and ``gamma * inv_std`` as (1, C, 1, ...)."""
    x_hat, inv_std = cache.x_hat, cache.inv_std
    xp = namespace(dy, x_hat)
    if tuple(dy.shape) != tuple(x_hat.shape):
        raise ValueError(f"expected dy of the shape of x, {tuple(x_hat.shape)}, got {tuple(dy.shape)}")
    wide = xp.astype(widen(xp, dy, "dy"), x_hat.dtype)
    scale = inv_std if cache.gamma is None else xp.astype(cache.gamma, x_hat.dtype) * inv_std
    return xp, wide, per_channel(xp, scale, x_hat)


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
    xp, wide, scale = _upstream(dy, cache)
    axes = channel_axes(dy)
    dgamma = xp.sum(wide * cache.x_hat, axis=axes)
    dbeta = xp.sum(wide, axis=axes)
    if cache.mean is None or static_size(dy) == 0:
        dx = scale * wide
    else:
        along_ones = xp.mean(wide, axis=axes, keepdims=True)
        along_x_hat = xp.mean(wide * cache.x_hat, axis=axes, keepdims=True)
        dx = scale * (wide - along_ones - cache.x_hat * along_x_hat)
    return xp.astype(dx, dy.dtype), dgamma, dbeta


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
    if cache.mean is None:
        raise ValueError(
            "expected the cache of the training form, got one of the inference form; use batch_norm_backward"
        )
    xp, wide, _ = _upstream(dy, cache)
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
    stages["x_hat"] = wide if cache.gamma is None else wide * per_channel(xp, xp.astype(cache.gamma, wide.dtype), wide)
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
        Values per channel behind them: N times the number of spatial positions. With 0 the statistics stay. Inside
        ``tf.function`` or ``jax.jit`` it may be an integer tensor, which is taken to be above 1.
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
        detached = batch.detach() if hasattr(batch, "detach") else batch
        new = xp.astype(detached, wide.dtype)
        if unbiased and name == "running_var":
            # Only where it is traced is n left to the library, whose integers do not mix with its floats.
            values = xp.astype(n, wide.dtype) if count is None else float(count)
            new = new * (values / (values - 1))
        return xp.astype((1 - momentum) * wide + momentum * new, running.dtype)

    return average(running_mean, mean, "running_mean"), average(running_var, var, "running_var")
