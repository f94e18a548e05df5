r"""The normalisers of the weights: weight normalisation, weight standardisation, spectral normalisation.

A weight is of shape (out, in, \*kernel), as in PyTorch: ``dim=0`` says that axis 0 counts the filters, one per output,
and all other axes are a filter's *fan-in*. Keras's kernels, (\*kernel, in, out), are ``dim=-1``.

The first two are the formula of every normaliser, with a filter's fan-in as the axes: weight normalisation divides by
the root mean square (times the square root of the fan-in: the length), weight standardisation subtracts the mean too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from bnlearn._arrays import Array, Namespace, namespace, stop_gradient, whole_number, widen
from bnlearn.functional._core import averaging, check_eps, check_upstream, standardize, standardize_backward

__all__ = [
    "SpectralNormCache",
    "WeightNormCache",
    "spectral_norm",
    "spectral_norm_backward",
    "weight_norm",
    "weight_norm_backward",
    "weight_standardization",
    "weight_standardization_backward",
]

Dims: TypeAlias = int | Sequence[int] | None


class WeightNormCache(NamedTuple):
    """What :func:`weight_norm` and :func:`weight_standardization` leave for their backward passes.

    Attributes
    ----------
    x_hat : array, shape of the weight
        Each filter at root mean square 1 (and mean 0, where the mean was taken off), before the gain.
    inv_std : array
        One over what the filters were divided by, the fan-in's axes kept at length one.
    gain : array or None
        ``g`` or the gain, as it was given.
    factor : float
        By what ``x_hat`` was multiplied besides: ``1 / sqrt(fan_in)``, or 1.
    axes : tuple of int
        The fan-in's axes.
    subtract_mean : bool
        Whether the mean was taken off.
    """

    x_hat: Array
    inv_std: Array
    gain: Array | None
    factor: float
    axes: tuple[int, ...]
    subtract_mean: bool


class SpectralNormCache(NamedTuple):
    """What :func:`spectral_norm` leaves: the state for the next call, and what the backward pass needs.

    Attributes
    ----------
    w_hat : array, shape (out, fan_in)
        The normalised weight, as a matrix.
    sigma : array, shape ()
        What the weight was divided by, ``u @ W @ v``: never above its largest singular value.
    u, v : array, shapes (out,) and (fan_in,)
        The vectors after the power iteration, for the next call. No gradient flows through them.
    dim : int
        The axis of the weight that counts the outputs.
    """

    w_hat: Array
    sigma: Array
    u: Array
    v: Array
    dim: int


def fan_in_axes(w: Array, dim: Dims) -> tuple[int, ...]:
    """The axes of ``w`` that are not in ``dim``."""
    ndim = len(w.shape)
    dims = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    kept = {axis % ndim for axis in dims if -ndim <= axis < ndim}
    axes = tuple(axis for axis in range(ndim) if axis not in kept)
    if len(kept) != len(dims) or not axes:
        raise ValueError(
            f"expected dim to name axes of the weight, and to leave one or more to normalise over, got dim={dim} for "
            f"shape {tuple(w.shape)}"
        )
    return axes


def _normalize(
    w: Array, gain: Array | None, name: str, *, dim: Dims, scaled: bool, eps: float, subtract_mean: bool
) -> tuple[Array, WeightNormCache]:
    """Both of them: standardise over the fan-in, then multiply by ``gain`` and, if ``scaled``, 1 / sqrt(fan-in)."""
    xp = namespace(w, gain)
    axes = fan_in_axes(w, dim)
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(w.shape))
    outputs = tuple(length for axis, length in enumerate(w.shape) if axis not in axes)
    if gain is not None and tuple(gain.shape) not in (shape, outputs):
        raise ValueError(
            f"expected {name} of shape {shape} or {outputs}, one value per filter of the weight with shape "
            f"{tuple(w.shape)}, got shape {tuple(gain.shape)}"
        )
    norm = standardize(
        xp, widen(xp, w, "the weight"), averaging(xp, axes), eps=check_eps(eps), subtract_mean=subtract_mean
    )
    factor = math.prod([w.shape[axis] for axis in axes]) ** -0.5 if scaled else 1.0
    cache = WeightNormCache(norm.x_hat, norm.inv_std, gain, factor, axes, subtract_mean)
    return xp.astype(_scaled(xp, norm.x_hat, cache), w.dtype), cache


def _scaled(xp: Namespace, wide: Array, cache: WeightNormCache) -> Array:
    """``wide`` times the factor and the gain of each filter."""
    if cache.gain is None:
        return wide * cache.factor
    return wide * (cache.factor * xp.reshape(xp.astype(cache.gain, wide.dtype), tuple(cache.inv_std.shape)))


def _normalize_backward(dw_hat: Array, cache: WeightNormCache, name: str) -> tuple[Array, Array]:
    """The gradients with respect to the weight and the gain, for both of them."""
    xp, wide = check_upstream(dw_hat, cache.x_hat, name)
    shape = cache.inv_std.shape if cache.gain is None else cache.gain.shape
    dgain = cache.factor * xp.reshape(xp.sum(wide * cache.x_hat, axis=cache.axes), tuple(shape))
    mean_of = averaging(xp, cache.axes)
    dw = standardize_backward(
        _scaled(xp, wide, cache), cache.x_hat, cache.inv_std, mean_of, subtract_mean=cache.subtract_mean
    )
    return xp.astype(dw, dw_hat.dtype), dgain


def weight_norm(v: Array, g: Array, *, dim: Dims = 0) -> tuple[Array, WeightNormCache]:
    r"""A weight given by its length and its direction: ``w = g * v / norm(v)``, filter by filter.

    Salimans and Kingma (2016), equation 2. It is RMS normalisation of the filters, without eps: a filter of zeros has
    no direction and becomes NaN, as in PyTorch.

    Parameters
    ----------
    v : array, shape (out, in, \*kernel)
        The directions, real floating-point; their lengths do not matter.
    g : array, shape (out, 1, ...) or (out,)
        The lengths (Euclidean norms) of the filters, PyTorch's ``original0``.
    dim : int, sequence of int or None
        The axis, or axes, of the outputs, each of which has its own length; None stands for one length for the whole
        weight, with ``g`` of shape ``()``. As ``torch.nn.utils.parametrizations.weight_norm``, except for ``dim=-1``:
        the last axis here, as None there.

    Returns
    -------
    w : array, shape of ``v``
        The weight to use, of the dtype of ``v``.
    cache : WeightNormCache
        For :func:`weight_norm_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``v`` is not floating-point.
    ValueError
        If ``g`` does not have one value per filter, or ``dim`` does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> w, _ = weight_norm(np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([10.0, 1.0]))
    >>> print(w)
    [[6. 8.]
     [0. 1.]]
    """
    return _normalize(v, g, "g", dim=dim, scaled=True, eps=0.0, subtract_mean=False)


def weight_norm_backward(dw: Array, cache: WeightNormCache) -> tuple[Array, Array]:
    r"""Gradients of a scalar loss through :func:`weight_norm`.

    Per filter, ``dg = sum(dw * v) / norm(v)`` and ``dv = g / norm(v) * (dw - dg * v / norm(v))`` (Salimans and Kingma
    2016, equation 3). dv is orthogonal to v: a step of gradient descent can only make v longer.

    Parameters
    ----------
    dw : array, shape (out, in, \*kernel)
        Gradient of the loss with respect to ``w``.
    cache : WeightNormCache
        From the forward pass.

    Returns
    -------
    dv : array, shape of ``v``
        Of the dtype of ``dw``.
    dg : array
        Of the shape of ``g``.

    Raises
    ------
    TypeError
        If ``dw`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dw`` is not of the shape of ``v``.
    """
    return _normalize_backward(dw, cache, "dw")


def weight_standardization(
    w: Array, gain: Array | None = None, *, scaled: bool = False, dim: Dims = 0, eps: float = 1e-6
) -> tuple[Array, WeightNormCache]:
    r"""Give every filter of a weight mean 0 and variance 1 over its fan-in.

    ``w_hat = (w - mean) / sqrt(var + eps)`` (Qiao et al. 2019, with the biased variance of the paper).
    ``scaled`` also divides by ``sqrt(fan_in)``, so that independent inputs of variance 1 give outputs of variance 1,
    whatever the fan-in (Brock, De and Smith 2021).

    Parameters
    ----------
    w : array, shape (out, in, \*kernel)
        The weight, real floating-point.
    gain : array, shape (out,) or (out, 1, ...), optional
        Multiplies every filter; None stands for ones.
    scaled : bool
        Whether to divide by the square root of the fan-in.
    dim : int, sequence of int or None
        The axis, or axes, of the outputs; None stands for one mean and variance for the whole weight.
    eps : float
        Added to the variance, not negative. Libraries differ, and some add theirs to the standard deviation. The
        variance of a usual initial weight is about one over the fan-in: eps is to be far below that.

    Returns
    -------
    w_hat : array, shape of ``w``
        The weight to use, of the dtype of ``w``.
    cache : WeightNormCache
        For :func:`weight_standardization_backward`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``w`` is not floating-point.
    ValueError
        If ``gain`` does not have one value per filter, ``dim`` does not fit, or ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> w_hat, _ = weight_standardization(np.array([[1.0, 3.0], [-20.0, -10.0]]), eps=0.0)
    >>> print(w_hat)
    [[-1.  1.]
     [-1.  1.]]
    """
    return _normalize(w, gain, "gain", dim=dim, scaled=scaled, eps=eps, subtract_mean=True)


def weight_standardization_backward(dw_hat: Array, cache: WeightNormCache) -> tuple[Array, Array]:
    r"""Gradients of a scalar loss through :func:`weight_standardization`.

    That of batch normalisation, over each filter: ``dw = inv_std * (h - mean(h) - x_hat * mean(h * x_hat))`` with h
    the gradient with respect to ``x_hat``. dw sums to zero over each filter and, at eps = 0, is orthogonal to it.

    Parameters
    ----------
    dw_hat : array, shape (out, in, \*kernel)
        Gradient of the loss with respect to ``w_hat``.
    cache : WeightNormCache
        From the forward pass.

    Returns
    -------
    dw : array, shape of ``w``
        Of the dtype of ``dw_hat``.
    dgain : array
        Of the shape of the gain; if none was given, (out, 1, ...).

    Raises
    ------
    TypeError
        If ``dw_hat`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dw_hat`` is not of the shape of ``w``.
    """
    return _normalize_backward(dw_hat, cache, "dw_hat")


def _front(xp: Namespace, w: Array, dim: int) -> Array:
    """``w`` as a matrix of shape (out, fan_in)."""
    moved = xp.permute_dims(w, (dim, *(axis for axis in range(len(w.shape)) if axis != dim)))
    return xp.reshape(moved, (w.shape[dim], -1))


def _unit(xp: Namespace, vector: Array, eps: float) -> Array:
    """``vector`` at length one, or shorter where it is shorter than ``eps``."""
    length = xp.sqrt(xp.sum(vector * vector))
    return vector / xp.where(length > eps, length, xp.ones_like(length) * eps)


def spectral_norm(
    w: Array, u: Array, v: Array | None = None, *, iterations: int = 1, dim: int = 0, eps: float = 1e-12
) -> tuple[Array, SpectralNormCache]:
    r"""Divide a weight by its largest singular value, as a power iteration knows it: ``w / (u @ W @ v)``.

    Miyato et al. (2018), algorithm 1. ``W`` is the weight as a matrix, (out, fan_in). One round per training step is
    enough, because the weight moves little in a step and the vectors are kept: pass ``cache.u`` and ``cache.v`` to the
    next call. The matrix product with the result lengthens no vector once they have converged; a convolution, which
    uses its kernel at many positions, is another matrix, and may still.

    Parameters
    ----------
    w : array, shape (out, in, \*kernel)
        The weight, real floating-point. A weight of zeros becomes NaN.
    u : array, shape (out,)
        Towards the first left singular vector: random at first, then ``cache.u``.
    v : array, shape (fan_in,), optional
        Towards the first right one. With it a round computes ``u`` from ``v`` first, as PyTorch; without, ``v`` from
        ``u`` first, as the paper and Keras: the same chain of vectors, entered at another link.
    iterations : int
        Rounds of the power iteration, not negative; 0 in inference.
    dim : int
        The axis of the outputs: 0; 1 for PyTorch's transposed convolutions; -1 for Keras's kernels.
    eps : float
        Least length by which a vector is divided; positive.

    Returns
    -------
    w_hat : array, shape of ``w``
        The weight to use, of the dtype of ``w``.
    cache : SpectralNormCache
        For :func:`spectral_norm_backward`, with the new ``u`` and ``v``.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, one is not floating-point, or ``iterations`` is no whole number.
    ValueError
        If a shape or ``dim`` does not fit, ``iterations`` is negative or ``eps`` not positive.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.array([[3.0, 0.0], [0.0, 1.0]])
    >>> w_hat, cache = spectral_norm(w, np.ones(2), iterations=30)
    >>> print(w_hat.round(3), cache.sigma.round(3))
    [[1.    0.   ]
     [0.    0.333]] 3.0
    """
    xp = namespace(w, u, v)
    rounds = whole_number(iterations, "iterations")
    if rounds is None:
        raise TypeError(f"expected iterations to be a whole number, got {iterations!r}")
    if not eps > 0:
        raise ValueError(f"expected eps > 0, got {eps}")
    if len(w.shape) < 2 or not -len(w.shape) <= dim < len(w.shape):
        raise ValueError(
            f"expected a weight of two or more axes and dim one of them, got dim={dim} for shape {tuple(w.shape)}"
        )
    dim %= len(w.shape)
    wide = widen(xp, w, "the weight")
    matrix = _front(xp, wide, dim)
    for name, vector, length in (("u", u, matrix.shape[0]), ("v", v, matrix.shape[1])):
        if vector is not None and tuple(vector.shape) != (length,):
            raise ValueError(
                f"expected {name} of shape ({length},) for the weight with shape {tuple(w.shape)} and dim={dim}, got "
                f"shape {tuple(vector.shape)}"
            )
    left, right = _power_iteration(xp, matrix, u, v, rounds, float(eps))
    sigma = xp.sum(left * _times(xp, matrix, right))
    return xp.astype(wide / sigma, w.dtype), SpectralNormCache(matrix / sigma, sigma, left, right, dim)


def _times(xp: Namespace, matrix: Array, vector: Array) -> Array:
    return xp.reshape(xp.matmul(matrix, xp.reshape(vector, (-1, 1))), (-1,))


def _power_iteration(
    xp: Namespace, matrix: Array, u: Array, v: Array | None, rounds: int, eps: float
) -> tuple[Array, Array]:
    """``u`` and ``v`` after so many rounds, as constants."""
    constant = stop_gradient(xp, matrix)
    transposed = xp.permute_dims(constant, (1, 0))
    left = stop_gradient(xp, xp.astype(widen(xp, u, "u"), matrix.dtype))
    if v is None:
        right = _unit(xp, _times(xp, transposed, left), eps)
        for done in range(rounds):
            if done:
                right = _unit(xp, _times(xp, transposed, left), eps)
            left = _unit(xp, _times(xp, constant, right), eps)
        return left, right
    right = stop_gradient(xp, xp.astype(widen(xp, v, "v"), matrix.dtype))
    for _ in range(rounds):
        left = _unit(xp, _times(xp, constant, right), eps)
        right = _unit(xp, _times(xp, transposed, left), eps)
    return left, right


def spectral_norm_backward(dw_hat: Array, cache: SpectralNormCache) -> Array:
    r"""The gradient of a scalar loss through :func:`spectral_norm`.

    ``dw = (dw_hat - sum(dw_hat * w_hat) * outer(u, v)) / sigma`` (Miyato et al. 2018, their gradient analysis), with u
    and v as constants: once they have converged, so is the largest singular value's derivative. dw is orthogonal to w.

    Parameters
    ----------
    dw_hat : array, shape (out, in, \*kernel)
        Gradient of the loss with respect to ``w_hat``.
    cache : SpectralNormCache
        From the forward pass.

    Returns
    -------
    dw : array, shape of ``w``
        Of the dtype of ``dw_hat``.

    Raises
    ------
    TypeError
        If ``dw_hat`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dw_hat`` does not have as many outputs and as large a fan-in as ``w``.
    """
    xp = namespace(dw_hat, cache.w_hat)
    out, fan_in = cache.w_hat.shape
    if len(dw_hat.shape) <= cache.dim or tuple(_front(xp, dw_hat, cache.dim).shape) != (out, fan_in):
        raise ValueError(
            f"expected dw_hat of the shape of the weight, {out} outputs on axis {cache.dim} and a fan-in of {fan_in}, "
            f"got {tuple(dw_hat.shape)}"
        )
    wide = xp.astype(widen(xp, dw_hat, "dw_hat"), cache.w_hat.dtype)
    along = xp.sum(_front(xp, wide, cache.dim) * cache.w_hat)
    others = tuple(length for axis, length in enumerate(dw_hat.shape) if axis != cache.dim)
    outer = xp.reshape(xp.reshape(cache.u, (-1, 1)) * xp.reshape(cache.v, (1, -1)), (out, *others))
    back = (*range(1, cache.dim + 1), 0, *range(cache.dim + 1, len(dw_hat.shape)))
    dw = (wide - along * xp.permute_dims(outer, back)) / cache.sigma
    return xp.astype(dw, dw_hat.dtype)
