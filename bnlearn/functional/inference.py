r"""The statistics at inference: the example weighed in, and statistics carried over to another domain.

Training is over, gamma and beta stay. What changes is the mean and the variance that a trained network normalises by.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple, TypeGuard

from bnlearn._arrays import Array, Namespace, channel_axes, namespace, per_channel, widen
from bnlearn.functional._core import (
    Averaging,
    averaging,
    centre,
    check_channels,
    check_eps,
    check_upstream,
    scale_and_shift,
    standardize_backward,
)

__all__ = [
    "ExampleWeighingCache",
    "adapt_statistics",
    "example_weighing",
    "example_weighing_backward",
]


def mixture(mean: Array, var: Array, other_mean: Array, other_var: Array, weight: float | Array) -> tuple[Array, Array]:
    """Mean and variance of a mixture: a share ``weight`` of the first distribution, the rest of the other.

    ``var`` is ``weight * (var + mean^2) + (1 - weight) * (other_var + other_mean^2) - mixed_mean^2``, written so that
    nothing cancels.
    """
    apart = mean - other_mean
    rest = 1 - weight
    return (
        weight * mean + rest * other_mean,
        weight * var + rest * other_var + weight * rest * apart * apart,
    )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a number of Python's or NumPy's, not an array that may only be known when it runs."""
    return isinstance(value, Real)


def check_share(value: float | Array, name: str) -> float | Array:
    """``value`` as a Python float from 0 to 1; an array as it is."""
    if not is_number(value):
        return value
    if not 0 <= value <= 1:
        raise ValueError(f"expected {name} from 0 to 1, got {value}")
    return float(value)  # a NumPy number would widen float32


class ExampleWeighingCache(NamedTuple):
    r"""What :func:`example_weighing` leaves for its backward pass.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The normalised input, before gamma and beta.
    inv_std : array, shape (N, C, 1, ...)
        ``1 / sqrt(var + eps)`` of each example's own mixture.
    gamma : array, shape (C,), or None
        The scale, as it was given.
    weight : float
        The share of the example.
    """

    x_hat: Array
    inv_std: Array
    gamma: Array | None
    weight: float | Array


def _own_mean(xp: Namespace, x: Array) -> Averaging:
    """The mean over the positions of one example; without positions, the value itself."""
    positions = tuple(range(2, len(x.shape)))
    own: Averaging = averaging(xp, positions) if positions else lambda a: a
    return own


def example_weighing(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    mean: Array,
    var: Array,
    weight: float | Array,
    eps: float = 1e-5,
) -> tuple[Array, ExampleWeighingCache]:
    r"""Batch normalisation at inference, with the example itself weighed into the statistics.

    In training each example is a share 1/N of what it is normalised by; at inference it is no part of it. This gives it
    a share again (Summers and Dinneen 2020): per example i and channel, with the mean and the mean square
    over its positions,

    ``mean_i = a * mean(x_i) + (1 - a) * mean``, and
    ``var_i = a * mean(x_i^2) + (1 - a) * (var + mean^2) - mean_i^2``, a being ``weight``.

    ``weight=0`` is plain inference, ``weight=1`` instance normalisation. It is chosen on validation data.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    mean, var : array, shape (C,)
        The running statistics.
    weight : float
        The example's share a, from 0 to 1.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : ExampleWeighingCache
        For :func:`example_weighing_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, ``weight`` is outside [0, 1], or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[3.0, 5.0]]])
    >>> for weight in (0.0, 1.0):
    ...     print(example_weighing(x, mean=np.zeros(1), var=np.ones(1), weight=weight, eps=0.0)[0])
    [[[3. 5.]]]
    [[[-1.  1.]]]
    """
    xp = namespace(x, gamma, beta, mean, var)
    check_channels(x, gamma=gamma, beta=beta, mean=mean, var=var)
    eps, weight = check_eps(eps), check_share(weight, "weight, the share of the example,")
    wide = widen(xp, x)
    mean_of = _own_mean(xp, x)
    centred, own_mean = centre(xp, wide, mean_of)
    running_mean, running_var = (per_channel(xp, xp.astype(vector, wide.dtype), wide) for vector in (mean, var))
    mixed_mean, mixed_var = mixture(own_mean, mean_of(centred * centred), running_mean, running_var, weight)
    inv_std = 1 / xp.sqrt(mixed_var + eps)
    x_hat = (centred + (own_mean - mixed_mean)) * inv_std
    y = scale_and_shift(xp, x_hat, gamma, beta)
    return xp.astype(y, x.dtype), ExampleWeighingCache(x_hat, inv_std, gamma, weight)


def example_weighing_backward(dy: Array, cache: ExampleWeighingCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`example_weighing`.

    ``dx = inv_std * (g - a * mean(g) - a * x_hat * mean(g * x_hat))`` with ``g = gamma * dy`` and the means over the
    positions of the example: a share ``a`` of what the backward pass of normalisation takes out, as ``a`` of the
    statistics is the example's. At ``a = 0`` it is the inference form's, at ``a = 1`` instance normalisation's.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : ExampleWeighingCache
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
    mean_of = _own_mean(xp, dy)
    dx_hat = scale_and_shift(xp, wide, cache.gamma, None)
    dx = standardize_backward(dx_hat, cache.x_hat, cache.inv_std, lambda a: cache.weight * mean_of(a))
    return xp.astype(dx, dy.dtype), xp.sum(wide * cache.x_hat, axis=axes), xp.sum(wide, axis=axes)


def adapt_statistics(
    source_mean: Array, source_var: Array, mean: Array, var: Array, n: int | Array, *, prior: float = 0.0
) -> tuple[Array, Array]:
    """Statistics for another domain: those of its data, drawn towards the source's where there are few of them.

    ``N / (N + n) * source + n / (N + n) * target`` for the mean and for the variance alike, N being ``prior``
    (Schneider et al. 2020). ``prior=0`` replaces the source's statistics: adaptive batch normalisation
    (AdaBN; Li et al. 2016); ``prior=math.inf`` keeps them.

    Parameters
    ----------
    source_mean, source_var : array, shape (C,)
        The running statistics of training.
    mean, var : array, shape (C,)
        Those of the target domain: over several batches, from :func:`merge_moments`.
    n : int
        How many samples (images, say) they come from. With 0 the source's statistics stay.
    prior : float
        How many samples the source's statistics count for, not negative.

    Returns
    -------
    mean, var : array, shape (C,)
        Of the dtypes of the source's.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries.
    ValueError
        If a shape differs, or ``prior`` or ``n`` is negative.

    Notes
    -----
    The mix of the variances is not the variance of the mixed data, which would be larger by
    ``N n / (N + n)^2 * (source_mean - mean)^2``: source and target are two guesses at one distribution here, not two
    parts of it.

    Examples
    --------
    >>> import numpy as np
    >>> adapt_statistics(np.zeros(1), np.ones(1), np.array([4.0]), np.array([9.0]), n=8, prior=8)
    (array([2.]), array([5.]))
    """
    xp = namespace(source_mean, source_var, mean, var)
    for name, vector in {"source_var": source_var, "mean": mean, "var": var}.items():
        if tuple(vector.shape) != tuple(source_mean.shape):
            raise ValueError(
                f"expected {name} of the shape of source_mean, {tuple(source_mean.shape)}, got {tuple(vector.shape)}"
            )
    if not prior >= 0:
        raise ValueError(f"expected prior, the samples that the source counts for, >= 0, got {prior}")
    if n < 0:
        raise ValueError(f"expected n >= 0 samples of the target, got {n}")
    if n == 0:
        return source_mean, source_var
    share = n / (float(prior) + n)

    def mix(source: Array, target: Array, name: str) -> Array:
        wide = widen(xp, source, name)
        # Not computed where it has no weight: 0 times an infinite or missing statistic would be NaN.
        mixed = (
            xp.astype(target, wide.dtype) if share == 1 else (1 - share) * wide + share * xp.astype(target, wide.dtype)
        )
        return xp.astype(mixed, source.dtype)

    return mix(source_mean, mean, "source_mean"), mix(source_var, var, "source_var")
