r"""The one formula under every normaliser: subtract a mean, divide by a standard deviation, both taken over some axes.

``x_hat = (x - mean) / sqrt(var + eps)``. Batch, layer, instance and group normalisation, RMS normalisation and weight
standardisation differ in the axes alone (and in whether the mean is subtracted): they call :func:`standardize` and
:func:`standardize_backward`, and nothing is derived twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from bnlearn._arrays import Array, Namespace, namespace, per_channel, static_size, widen

Averaging: TypeAlias = Callable[[Array], Array]
"""Takes an array to its means, with the averaged axes kept at length one."""


class Standardized(NamedTuple):
    """What :func:`standardize` gives; the statistics keep the averaged axes, at length one."""

    x_hat: Array
    inv_std: Array
    mean: Array | None  # None where nothing was subtracted
    var: Array  # the mean square, where nothing was subtracted


def averaging(xp: Namespace, axes: Sequence[int], mask: Array | None = None) -> Averaging:
    """The mean over ``axes``; with a boolean ``mask``, that of the values where it is True (NaN if there are none)."""
    over = tuple(axes)
    if mask is None:
        return lambda a: xp.mean(a, axis=over, keepdims=True)

    def masked(a: Array) -> Array:
        weights = xp.astype(mask, a.dtype) + xp.zeros_like(a)
        count = xp.sum(weights, axis=over, keepdims=True)
        total = xp.sum(keep(xp, a, mask), axis=over, keepdims=True)
        one = xp.ones_like(count)
        return xp.where(count > 0, total / xp.where(count > 0, count, one), one * float("nan"))

    return masked


def keep(xp: Namespace, a: Array, mask: Array | None) -> Array:
    """``a`` where the mask is True and zero elsewhere, whatever stands there (0 times NaN would be NaN)."""
    return a if mask is None else xp.where(mask, a, xp.zeros_like(a))


def centre(xp: Namespace, x: Array, mean_of: Averaging) -> tuple[Array, Array]:
    """``(x - mean, mean)``, with the rounding error of the first mean taken out by a second.

    In float32, data with mean 1e3 and standard deviation 0.1 leaves four decimal digits for the deviation, and the
    plain mean of a long column in NumPy spoils two of them. ``x - mean`` is exact where x is within a factor of two of
    its mean (Sterbenz), so the mean of what is left over measures the error, and removes it: the corrected two-pass
    algorithm of Chan, Golub and LeVeque (1983), equation 1.7, applied to the deviations too.
    """
    mean = mean_of(x)
    centred = x - mean
    error = mean_of(centred)
    # An infinite mean has no rounding error to take out: inf - inf would make it NaN, where PyTorch says inf.
    return centred - error, xp.where(xp.isfinite(mean), mean + error, mean)


def standardize(xp: Namespace, x: Array, mean_of: Averaging, *, eps: float, subtract_mean: bool = True) -> Standardized:
    """``x`` with mean 0 and variance 1 (up to ``eps``) over whatever ``mean_of`` averages.

    ``x`` is float32 or wider. Without ``subtract_mean`` it is divided by its root mean square.
    """
    centred, mean = centre(xp, x, mean_of) if subtract_mean else (x, None)
    var = mean_of(centred * centred)
    inv_std = 1 / xp.sqrt(var + eps)
    return Standardized(centred * inv_std, inv_std, mean, var)


def standardize_backward(
    dx_hat: Array, x_hat: Array, inv_std: Array, mean_of: Averaging, *, subtract_mean: bool = True
) -> Array:
    """The gradient through :func:`standardize`: ``inv_std * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat))``.

    What is left of ``dx_hat`` is orthogonal to the two directions that the forward pass takes out of ``x``: ones (not
    if the mean was not subtracted) and, at eps = 0, ``x_hat``.
    """
    along_x_hat = x_hat * mean_of(dx_hat * x_hat)
    rest = dx_hat - mean_of(dx_hat) if subtract_mean else dx_hat
    return inv_std * (rest - along_x_hat)


def check_channels(x: Array, **vectors: Array | None) -> None:
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


def check_eps(eps: float) -> float:
    """``eps`` as a Python float (a NumPy number would widen float32), unless it is negative or NaN."""
    if not eps >= 0:
        raise ValueError(f"expected eps >= 0, got {eps}")
    return float(eps)


def check_upstream(dy: Array, like: Array, name: str = "dy") -> tuple[Namespace, Array]:
    """The namespace, and ``dy`` in the precision of ``like``, whose shape it must have."""
    xp = namespace(dy, like)
    if tuple(dy.shape) != tuple(like.shape):
        raise ValueError(f"expected {name} of the shape of x, {tuple(like.shape)}, got {tuple(dy.shape)}")
    return xp, xp.astype(widen(xp, dy, name), like.dtype)


def scale_and_shift(
    xp: Namespace, x_hat: Array, gamma: Array | None, beta: Array | None, shape: tuple[int, ...] | None = None
) -> Array:
    """``gamma * x_hat + beta``, the two reshaped to ``shape`` first: by default, to one value per channel (axis 1)."""

    def fit(vector: Array) -> Array:
        wide = xp.astype(vector, x_hat.dtype)
        return per_channel(xp, wide, x_hat) if shape is None else xp.reshape(wide, shape)

    y = x_hat
    if gamma is not None:
        y = y * fit(gamma)
    if beta is not None:
        y = y + fit(beta)
    return y


def values_per_channel(xp: Namespace, x: Array, mask: Array | None) -> int | Array:
    """How many values stand behind a statistic per channel: an int, or an integer array where only running tells."""
    if mask is not None:
        positions = xp.ones_like(x[:, :1, ...], dtype=xp.int32) * xp.astype(mask, xp.int32)
        return xp.sum(positions)
    size = static_size(x)
    if size is None:
        return xp.sum(xp.ones_like(x[:, :1, ...], dtype=xp.int32))
    return size // x.shape[1] if x.shape[1] else 0
