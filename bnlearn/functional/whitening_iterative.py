r"""Whitening by Newton's method: a few matrix products instead of an eigendecomposition."""

from __future__ import annotations

from typing import NamedTuple

from bnlearn._arrays import Array, Namespace, namespace, whole_number, widen
from bnlearn.functional._core import averaging, centre, check_eps, check_upstream, values_per_channel
from bnlearn.functional.whitening import (
    check_arguments,
    check_rank,
    finish,
    from_groups,
    given_form,
    mean_product,
    through_scale,
    to_groups,
    transposed,
)

__all__ = ["IterNormCache", "iter_norm", "iter_norm_backward"]


class IterNormCache(NamedTuple):
    r"""What :func:`iter_norm` leaves; what is not listed is as in :class:`bnlearn.functional.WhitenCache`.

    Attributes
    ----------
    centred : array, shape (groups, d, n), or None
        The input without its mean, the channels of each group first; None in inference.
    trace : array, shape (groups, 1, 1), or None
        Of ``cov + eps I``.
    normed : array, shape (groups, d, d), or None
        S_N, ``(cov + eps I) / trace``.
    steps : tuple of pairs of array, each (groups, d, d)
        ``(P_k S_N, P_k)`` for k = 0 to T - 1; empty in inference.
    """

    x_hat: Array
    gamma: Array | None
    mean: Array | None
    matrix: Array
    cov: Array | None
    n: int | Array | None
    centred: Array | None
    trace: Array | None
    normed: Array | None
    steps: tuple[tuple[Array, Array], ...]


def _identity(xp: Namespace, like: Array) -> Array:
    """An identity matrix per group, of the shape, dtype and device of ``like``."""
    ones = xp.ones_like(like)
    return xp.tril(ones) * xp.triu(ones)


def iter_norm(
    x: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    groups: int = 1,
    iterations: int = 5,
    mean: Array | None = None,
    matrix: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, IterNormCache]:
    r"""Whiten by a few steps of Newton's method: :func:`bnlearn.functional.whiten` without an eigendecomposition.

    With S = cov + eps I and S_N = S / trace(S), ``P_0 = I``, ``P_k = (3 P - P^3 S_N) / 2`` with P = P_(k-1), and
    ``x_hat = P_T / sqrt(trace(S)) (x - mean)`` (Huang, Zhou, Zhu, Liu and Shao 2019, algorithm 1). As T grows P_T tends
    to the inverse square root of S_N, large eigenvalues first: a small one is stretched by 1.5 per step at most, so a
    small T whitens the main directions and leaves the faint ones, which a small batch cannot tell from noise, faint.

    The product P S_N is carried along with its own recursion (:func:`iter_norm_backward` states it) instead of being
    formed anew from P: the same numbers and the same work in exact arithmetic, but rounding errors are not amplified
    from step to step (the coupled form of Higham 1997), so that more steps do no harm. As it stands in the paper the
    iteration is unstable (Guo and Higham 2006): the chapter on whitening runs it until it diverges.

    Parameters
    ----------
    x, gamma, beta, groups, mean, matrix, eps
        As in :func:`bnlearn.functional.whiten`. A NaN spreads over its group, in every library.
    iterations : int
        T, not negative; 0 divides each group by one number.

    Returns
    -------
    y : array, shape (N, C, \*spatial)
        Of the dtype of ``x``.
    cache : IterNormCache
        For :func:`iter_norm_backward`, and for :func:`bnlearn.functional.update_whitening`.

    Raises
    ------
    TypeError, ValueError
        As :func:`bnlearn.functional.whiten`; also if ``iterations`` is not a whole number, or negative.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 2)) @ np.array([[2.0, 1.5], [0.0, 0.5]])
    >>> for steps in (1, 5, 10):
    ...     y, _ = iter_norm(x, iterations=steps)
    ...     print(np.linalg.eigvalsh(np.cov(y.T, bias=True)).round(2))
    [0.05 1.  ]
    [0.7 1. ]
    [1. 1.]
    """
    xp = namespace(x, gamma, beta, mean, matrix)
    check_arguments(x, gamma, beta, mean, matrix, groups)
    eps, total = check_eps(eps), whole_number(iterations, "iterations")
    if total is None:
        raise TypeError(f"expected iterations to be a Python int, got {iterations!r}")
    wide = widen(xp, x)
    if mean is not None and matrix is not None:
        whitening, centred = given_form(xp, wide, mean, matrix, groups)
        y, x_hat = finish(xp, x, whitening, centred, gamma, beta)
        return y, IterNormCache(x_hat, gamma, None, whitening, None, None, None, None, None, ())
    check_rank(x, groups, eps)
    centred, batch_mean = centre(xp, to_groups(xp, wide, groups), averaging(xp, (2,)))
    n = values_per_channel(xp, x, None)
    cov = mean_product(xp, centred, centred, n)
    identity = _identity(xp, cov)
    shifted = cov + eps * identity
    trace = xp.sum(shifted * identity, axis=(1, 2), keepdims=True)
    normed = shifted / trace
    steps = []
    towards_root, towards_inverse = normed, identity
    for _ in range(total):
        steps.append((towards_root, towards_inverse))
        factor = 1.5 * identity - 0.5 * xp.matmul(towards_inverse, towards_root)
        towards_root, towards_inverse = xp.matmul(towards_root, factor), xp.matmul(factor, towards_inverse)
    whitening = towards_inverse / xp.sqrt(trace)
    y, x_hat = finish(xp, x, whitening, centred, gamma, beta)
    batch_mean = xp.reshape(batch_mean, (-1,))
    cache = IterNormCache(x_hat, gamma, batch_mean, whitening, cov, n, centred, trace, normed, tuple(steps))
    return y, cache


def iter_norm_backward(dy: Array, cache: IterNormCache) -> tuple[Array, Array, Array]:
    r"""Gradients of a scalar loss through :func:`iter_norm`: the loop, reversed.

    With Y_k = P_k S_N, a step of the loop is ``M = (3 I - P_k Y_k) / 2``, ``Y_(k+1) = Y_k M``, ``P_(k+1) = M P_k``. All
    of these are polynomials of S_N: symmetric, and they commute. Write D_Y and D_P for the gradients with respect to
    Y_(k+1) and P_(k+1); M receives ``D_M = Y D_Y + D_P P``, and what goes on to step k is ``D_Y M - P D_M / 2`` and
    ``M D_P - D_M Y / 2``. At k = T they are zero and ``A / sqrt(trace)``, A = sum(g x_c^T) being the gradient with
    respect to the matrix W and g = gamma * dy; at k = 0, D_Y is the gradient with respect to S_N. The trace receives
    ``-sum(A * W) / (2 trace)`` through the square root and ``-sum(D_Y * S_N) / trace`` through S_N.
    Then ``dx_c = W g + (dS + dS^T) x_c / n``, less its mean. With given statistics ``dx = matrix^T g``.

    dx sums to zero over each channel and, at eps = 0, dx * (x - mean) sums to zero over each group. Arguments, result
    and errors as :func:`bnlearn.functional.whiten_backward`.
    """
    xp, wide = check_upstream(dy, cache.x_hat)
    g, dgamma, dbeta = through_scale(xp, wide, cache)
    if cache.centred is None or cache.n is None:
        dx = xp.matmul(transposed(xp, cache.matrix), g)
        return xp.astype(from_groups(xp, dx, dy), dy.dtype), dgamma, dbeta
    through_matrix = xp.matmul(g, transposed(xp, cache.centred))
    identity = _identity(xp, through_matrix)
    into_inverse, into_root = through_matrix / xp.sqrt(cache.trace), xp.zeros_like(through_matrix)
    for root, inverse in reversed(cache.steps):
        factor = 1.5 * identity - 0.5 * xp.matmul(inverse, root)
        into_factor = xp.matmul(root, into_root) + xp.matmul(into_inverse, inverse)
        into_root = xp.matmul(into_root, factor) - 0.5 * xp.matmul(inverse, into_factor)
        into_inverse = xp.matmul(factor, into_inverse) - 0.5 * xp.matmul(into_factor, root)
    whole = (1, 2)
    into_trace = -0.5 * xp.sum(through_matrix * cache.matrix, axis=whole, keepdims=True)
    into_trace = (into_trace - xp.sum(into_root * cache.normed, axis=whole, keepdims=True)) / cache.trace
    into_cov = into_root / cache.trace + into_trace * identity
    count = cache.n if isinstance(cache.n, int) else xp.astype(cache.n, g.dtype)
    via_cov = xp.matmul(into_cov + transposed(xp, into_cov), cache.centred) / count
    dx = xp.matmul(cache.matrix, g - xp.mean(g, axis=2, keepdims=True)) + via_cov
    return xp.astype(from_groups(xp, dx, dy), dy.dtype), dgamma, dbeta
