r"""Whitening: from variance one in each channel to covariance identity over all of them.

Batch normalisation divides each channel by its own standard deviation. Whitening multiplies the channels, as a vector,
by the inverse square root of their covariance matrix, so that they become uncorrelated too. Done in ``groups`` of
channels it needs fewer values per batch; with as many groups as channels it is batch normalisation.

:func:`whiten` takes the exact square root (ZCA, by an eigendecomposition), :func:`bnlearn.functional.iter_norm` a few
steps of Newton's method towards it (matrix products alone).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from bnlearn._arrays import Array, Namespace, full_shape, namespace, static_size, stop_gradient, widen
from bnlearn.functional._core import (
    averaging,
    centre,
    check_channels,
    check_eps,
    check_upstream,
    scale_and_shift,
    values_per_channel,
)
from bnlearn.functional.batch import update_running

__all__ = [
    "WhitenCache",
    "update_whitening",
    "whiten",
    "whiten_backward",
]


class WhitenCache(NamedTuple):
    r"""What :func:`whiten` leaves for its backward pass and for the running statistics; d = C / groups channels each.

    Attributes
    ----------
    x_hat : array, shape (N, C, \*spatial)
        The whitened input, before gamma and beta.
    gamma : array, shape (C,), or None
        The scale, as it was given.
    mean : array, shape (C,), or None
        Of this batch; None when the caller gave it (inference).
    matrix : array, shape (groups, d, d)
        What the centred channels of each group were multiplied by.
    cov : array, shape (groups, d, d), or None
        The biased covariance of this batch, without eps; None in inference.
    n : int or None
        Values per channel behind them (an integer array where only the run can tell); None in inference.
    vectors, roots : array, shape (groups, d, d) and (groups, d), or None
        The eigenvectors of ``cov``, in columns, and the square roots of its eigenvalues plus eps; None in inference.
    """

    x_hat: Array
    gamma: Array | None
    mean: Array | None
    matrix: Array
    cov: Array | None
    n: int | Array | None
    vectors: Array | None
    roots: Array | None


class Whitened(Protocol):
    """What the two caches have in common."""

    @property
    def x_hat(self) -> Array: ...
    @property
    def gamma(self) -> Array | None: ...
    @property
    def mean(self) -> Array | None: ...
    @property
    def matrix(self) -> Array: ...
    @property
    def n(self) -> int | Array | None: ...


def transposed(xp: Namespace, a: Array) -> Array:
    return xp.permute_dims(a, (0, 2, 1))


def to_groups(xp: Namespace, x: Array, groups: int) -> Array:
    r"""X of shape (N, C, \*spatial) as (groups, C / groups, n): one matrix per group, its channels in rows."""
    channels_first = xp.permute_dims(x, (1, 0, *range(2, len(x.shape))))
    return xp.reshape(channels_first, (groups, x.shape[1] // groups, -1))


def from_groups(xp: Namespace, grouped: Array, like: Array) -> Array:
    """The inverse of :func:`to_groups`, for an array of the shape of ``like``."""
    samples, channels, *spatial = full_shape(xp, like)
    return xp.permute_dims(xp.reshape(grouped, (channels, samples, *spatial)), (1, 0, *range(2, len(like.shape))))


def mean_product(xp: Namespace, a: Array, b: Array, n: int | Array) -> Array:
    """The mean over the values of ``a b^T``: for a = b centred, the covariance."""
    count = n if isinstance(n, int) else xp.astype(n, a.dtype)
    return xp.matmul(a, transposed(xp, b)) / count


def check_arguments(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array | None, matrix: Array | None, groups: int
) -> None:
    """Raise unless all of it fits together, and the batch (if it is to be used) holds something."""
    check_channels(x, gamma=gamma, beta=beta, mean=mean)
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise ValueError(f"expected a known number of channels, to whiten them together, got shape {tuple(x.shape)}")
    if groups < 1 or channels % groups:
        raise ValueError(
            f"expected groups to divide the {channels} channels of x with shape {tuple(x.shape)}, got groups={groups}"
        )
    if (mean is None) != (matrix is None):
        given, missing = ("mean", "matrix") if matrix is None else ("matrix", "mean")
        raise ValueError(f"expected both mean and matrix or neither, got {given} without {missing}")
    expected = (groups, channels // groups, channels // groups)
    if matrix is not None and tuple(matrix.shape) != expected:
        raise ValueError(
            f"expected matrix of shape {expected}, (groups, C / groups, C / groups), got {tuple(matrix.shape)}"
        )
    if matrix is None and static_size(x) == 0:
        raise ValueError(f"expected at least one value per channel to whiten by, got x of shape {tuple(x.shape)}")


def check_rank(x: Array, groups: int, eps: float) -> None:
    """Raise where there is no inverse square root: too few values for the covariance's rank, and no eps."""
    size, own = static_size(x), x.shape[1] // groups
    values = None if size is None else size // x.shape[1]
    if eps == 0 and values is not None and values <= own:
        raise ValueError(
            f"expected more than {own} values per channel for groups of {own} channels, or eps > 0, got {values}: "
            f"the covariance has rank {values - 1} at most; use a larger batch or more groups"
        )


def inverse_root(xp: Namespace, cov: Array, eps: float) -> tuple[Array, Array, Array]:
    """``(cov + eps I)^(-1/2)``, with the eigenvectors of ``cov`` and the square roots of its eigenvalues plus eps.

    A library that differentiates gets the right first and second derivatives, at repeated eigenvalues too. Those of the
    eigenvectors divide by l_i - l_j, so the decomposition is taken of a constant, and the matrix is written as its
    Taylor series about that constant, whose terms after the first are zero in value: with R R = cov + eps I, the change
    R_1 of R that a change E of cov makes solves ``R R_1 + R_1 R = E``, in the basis of the eigenvectors
    ``R_1[i, j] = E[i, j] / (r_i + r_j)``; to second order ``R R_2 + R_2 R = -R_1 R_1``; the matrix is the inverse of
    ``R + R_1 + R_2``. Nothing but sums of positive roots is divided by.
    """
    constant = stop_gradient(xp, cov)
    values, vectors = xp.linalg.eigh(constant)
    # A covariance has no negative eigenvalues: what is below zero is rounding.
    roots = xp.sqrt(xp.maximum(values, xp.zeros_like(values)) + eps)
    groups, own = cov.shape[0], cov.shape[1]
    column, row = xp.reshape(roots, (groups, own, 1)), xp.reshape(roots, (groups, 1, own))
    back = transposed(xp, vectors)
    matrix = xp.matmul(vectors / row, back)
    if constant is cov:  # a library that does not differentiate
        return matrix, vectors, roots
    change = xp.matmul(back, xp.matmul(cov - constant, vectors))
    first = change / (column + row)
    second = -xp.matmul(first, first) / (column + row)
    series = (xp.matmul(first / row, first) - first - second) / (column * row)
    return matrix + xp.matmul(vectors, xp.matmul(series, back)), vectors, roots


def finish(
    xp: Namespace, x: Array, matrix: Array, centred: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array]:
    """``(y, x_hat)``, both of the shape of ``x``."""
    x_hat = from_groups(xp, xp.matmul(matrix, centred), x)
    return xp.astype(scale_and_shift(xp, x_hat, gamma, beta), x.dtype), x_hat


def given_form(xp: Namespace, wide: Array, mean: Array, matrix: Array, groups: int) -> tuple[Array, Array]:
    """The inference form's matrix and centred groups."""
    own = wide.shape[1] // groups
    by_group = xp.reshape(xp.astype(mean, wide.dtype), (groups, own, 1))
    return xp.astype(matrix, wide.dtype), to_groups(xp, wide, groups) - by_group


def whiten(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    groups: int = 1,
    mean: Array | None = None,
    matrix: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, WhitenCache]:
    r"""Make the channels of ``x`` uncorrelated with variance 1: decorrelated batch normalisation, by ZCA.

    ``x_hat = (cov + eps I)^(-1/2) (x - mean)`` for the vector of the channels of each group at each position, with the
    mean and the biased covariance of the batch, then ``y = gamma * x_hat + beta`` (Huang, Yang, Lang and Deng 2018).
    With ``mean`` and ``matrix`` it is the inference form ``x_hat = matrix (x - mean)``.

    Of all matrices that whiten, the symmetric one leaves x_hat closest to x - mean, and it turns with the data: if the
    channels are rotated, so is x_hat.

    Parameters
    ----------
    x : array, shape (N, C, \*spatial)
        Real floating-point. A NaN in it makes NumPy's and PyTorch's eigendecomposition raise their ``LinAlgError`` and
        TensorFlow's its ``InvalidArgumentError``; JAX's gives NaN.
    gamma, beta : array, shape (C,), optional
        Scale and shift; None stands for ones and zeros.
    groups : int
        Into how many groups of consecutive channels C is divided, each whitened by itself. C groups: batch
        normalisation.
    mean, matrix : array, shape (C,) and (groups, C / groups, C / groups), optional
        What to whiten by, both or neither.
    eps : float
        Added to the eigenvalues of the covariance, not negative.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : WhitenCache
        For :func:`whiten_backward`, and for :func:`update_whitening`.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or ``x`` is not floating-point.
    ValueError
        If a shape does not fit, ``groups`` does not divide C, only one of ``mean`` and ``matrix`` is given, there is
        no value to whiten by, ``eps`` is negative, or is zero with no more values per channel than channels in a group.

    Notes
    -----
    With n values per channel for d > n - 1 channels the covariance has directions of variance zero. They stay zero in
    x_hat, and in the others nothing is left but the order: up to eps every two samples are equally far apart.

    PyTorch and JAX may differentiate this function twice (not three times), at repeated eigenvalues as well.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 2)) @ np.array([[2.0, 1.5], [0.0, 0.5]])
    >>> y, _ = whiten(x, eps=0.0)
    >>> print(np.cov(y.T, bias=True).round(6) + 0.0)
    [[1. 0.]
     [0. 1.]]
    """
    xp = namespace(x, gamma, beta, mean, matrix)
    check_arguments(x, gamma, beta, mean, matrix, groups)
    eps = check_eps(eps)
    wide = widen(xp, x)
    if mean is not None and matrix is not None:
        whitening, centred = given_form(xp, wide, mean, matrix, groups)
        y, x_hat = finish(xp, x, whitening, centred, gamma, beta)
        return y, WhitenCache(x_hat, gamma, None, whitening, None, None, None, None)
    check_rank(x, groups, eps)
    centred, batch_mean = centre(xp, to_groups(xp, wide, groups), averaging(xp, (2,)))
    n = values_per_channel(xp, x, None)
    cov = mean_product(xp, centred, centred, n)
    whitening, vectors, roots = inverse_root(xp, cov, eps)
    y, x_hat = finish(xp, x, whitening, centred, gamma, beta)
    return y, WhitenCache(x_hat, gamma, xp.reshape(batch_mean, (-1,)), whitening, cov, n, vectors, roots)


def through_scale(xp: Namespace, wide: Array, cache: Whitened) -> tuple[Array, Array, Array]:
    """``(g, dgamma, dbeta)``, g being the gradient with respect to ``x_hat``, grouped."""
    axes = (0, *range(2, len(wide.shape)))
    dgamma, dbeta = xp.sum(wide * cache.x_hat, axis=axes), xp.sum(wide, axis=axes)
    g = scale_and_shift(xp, wide, cache.gamma, None)
    return to_groups(xp, g, cache.matrix.shape[0]), dgamma, dbeta


def whiten_backward(dy: Array, cache: WhitenCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`whiten`.

    With the batch's statistics, W the matrix, g = gamma * dy and means over the batch and space:
    ``dx = W (g - mean(g) - F x_hat)``, where F is ``mean(g x_hat^T)`` made symmetric in the basis of the eigenvectors
    with the weights ``F[i, j] = (r_j B[i, j] + r_i B[j, i]) / (r_i + r_j)``, B = mean(g x_hat^T) there, r the square
    roots of the eigenvalues (plus eps). For one channel F is ``mean(g x_hat)``, and this is batch normalisation's dx.
    With given statistics ``dx = matrix^T g``.

    Derivation. R = W^-1 is the square root of S = cov + eps I. From R R = S, ``dR R + R dR = dS``, which in the
    eigenvectors' basis is ``dR[i, j] = dS[i, j] / (r_i + r_j)``; and ``dW = -W dR W``, so
    ``dW[i, j] = -dS[i, j] / (r_i r_j (r_i + r_j))``: a map that is its own adjoint. The gradient with respect to W is
    ``A = n mean(g x_hat^T) R``, that with respect to S therefore ``-A[i, j] / (r_i r_j (r_i + r_j))``, made symmetric.
    It reaches x through ``dS = mean(dx_c x_c^T + x_c dx_c^T)`` with x_c = R x_hat; collecting the roots gives F.
    Repeated eigenvalues are nothing special: differences of eigenvalues, by which the gradient of an
    eigendecomposition divides, never appear.

    dx sums to zero over each channel and, at eps = 0, dx * (x - mean) sums to zero over each group.

    Parameters
    ----------
    dy : array, shape (N, C, \*spatial)
        Gradient of the loss with respect to ``y``.
    cache : WhitenCache
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
    g, dgamma, dbeta = through_scale(xp, wide, cache)
    if cache.vectors is None or cache.roots is None or cache.n is None:
        dx = xp.matmul(transposed(xp, cache.matrix), g)
        return xp.astype(from_groups(xp, dx, dy), dy.dtype), dgamma, dbeta
    groups, own = cache.roots.shape[0], cache.roots.shape[1]
    column, row = xp.reshape(cache.roots, (groups, own, 1)), xp.reshape(cache.roots, (groups, 1, own))
    x_hat, back = to_groups(xp, cache.x_hat, groups), transposed(xp, cache.vectors)
    product = xp.matmul(back, xp.matmul(mean_product(xp, g, x_hat, cache.n), cache.vectors))
    symmetric = (row * product + column * transposed(xp, product)) / (column + row)
    taken_out = xp.matmul(cache.vectors, xp.matmul(symmetric, xp.matmul(back, x_hat)))
    dx = xp.matmul(cache.matrix, g - xp.mean(g, axis=2, keepdims=True) - taken_out)
    return xp.astype(from_groups(xp, dx, dy), dy.dtype), dgamma, dbeta


def update_whitening(
    running_mean: Array, running_matrix: Array, cache: Whitened, *, momentum: float = 0.1
) -> tuple[Array, Array]:
    """The running mean and whitening matrix after one more batch: ``(1 - momentum) * running + momentum * batch``.

    It is the whitening matrix that is averaged, not the covariance, as in the two papers' own code. No gradient flows
    into either.

    Parameters
    ----------
    running_mean, running_matrix : array, shape (C,) and (groups, C / groups, C / groups)
        So far. They are not changed in place. Zeros and identities to begin with.
    cache : WhitenCache or IterNormCache
        Of the training form.
    momentum : float
        Weight of the new batch, from 0 to 1.

    Returns
    -------
    running_mean, running_matrix : array
        Of the dtypes of the old.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries.
    ValueError
        If the cache is of the inference form, a shape differs, or ``momentum`` is outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> _, cache = whiten(np.array([[1.0], [5.0]]), eps=0.0)
    >>> update_whitening(np.zeros(1), np.ones((1, 1, 1)), cache)
    (array([0.3]), array([[[0.95]]]))
    """
    if cache.mean is None:
        raise ValueError("expected the cache of the training form, got one of the inference form")
    if tuple(running_matrix.shape) != tuple(cache.matrix.shape):
        raise ValueError(
            f"expected running_matrix of shape {tuple(cache.matrix.shape)}, the batch's, got "
            f"{tuple(running_matrix.shape)}"
        )

    n: Any = cache.n

    def average(running: Array, batch: Array) -> Array:
        return update_running(running, running, batch, batch, n, momentum=momentum, unbiased=False)[0]

    return average(running_mean, cache.mean), average(running_matrix, cache.matrix)
