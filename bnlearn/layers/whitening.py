"""Whitening as layers: decorrelated batch normalisation, and its iterative form."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bnlearn.functional import (
    IterNormCache,
    WhitenCache,
    iter_norm,
    iter_norm_backward,
    update_whitening,
    whiten,
    whiten_backward,
)
from bnlearn.layers._base import Array, Layer, check_floats


class _Whitening(Layer):
    """What the two share: parameters, running statistics, checks."""

    parameter_names = ("weight", "bias")
    buffer_names = ("running_mean", "running_matrix", "num_batches_tracked")
    weight: Any  # this and the next four: arrays, or None where the layer has none
    bias: Any
    running_mean: Any
    running_matrix: Any
    num_batches_tracked: Any

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        num_groups: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"expected num_features >= 1, the number of channels, got {num_features}")
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f"num_features ({num_features}) must be divisible by num_groups ({num_groups})")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats, self.num_groups = affine, track_running_stats, num_groups
        self.weight = np.ones(num_features, dtype) if affine else None
        self.bias = np.zeros(num_features, dtype) if affine else None
        identities = np.tile(np.eye(num_features // num_groups, dtype=dtype), (num_groups, 1, 1))
        self.running_mean = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_matrix = identities if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None

    @abstractmethod
    def _whiten(self, x: Array, **statistics: Any) -> tuple[Array, WhitenCache | IterNormCache]:
        """The subclass's formula."""

    def forward(self, x: Array) -> Array:
        r"""Whiten ``x``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        by_batch = self.training or self.running_mean is None
        self._check_input(x, by_batch)
        statistics = {} if by_batch else {"mean": self.running_mean, "matrix": self.running_matrix}
        y, cache = self._whiten(x, **statistics)
        if self.training and self.running_mean is not None:
            batches = int(self.num_batches_tracked) + 1
            momentum = 1 / batches if self.momentum is None else self.momentum
            new = update_whitening(self.running_mean, self.running_matrix, cache, momentum=momentum)
            # In place, and only now that nothing can fail any more.
            self.running_mean[...], self.running_matrix[...] = new
            self.num_batches_tracked[...] = batches
        self._cache = cache
        return y

    def _check_input(self, x: Array, by_batch: bool) -> None:
        check_floats(x)
        if x.ndim < 2:
            raise ValueError(f"expected x of shape (N, C, *spatial), at least 2D input (got {x.ndim}D input)")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"expected {self.num_features} channels on axis 1 (got {x.shape[1]} in input size {x.shape}): change "
                "num_features, or move the channels to axis 1"
            )
        if by_batch and x.size <= self.num_features:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}: use a larger batch, "
                "drop a last batch of one sample (drop_last=True), or call eval() to use the running statistics"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, num_groups={self.num_groups}"
        )


class DecorrelatedBatchNorm(_Whitening):
    r"""Make the channels uncorrelated with variance 1: :func:`bnlearn.functional.whiten` with running statistics.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the eigenvalues of the covariance, not negative.
    momentum : float or None
        Weight of the new batch in the running statistics, from 0 to 1. None: the average over all batches so far.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros).
    track_running_stats : bool
        Whether to keep running statistics for evaluation. Without, evaluation too whitens by the batch.
    num_groups : int
        Into how many groups of channels C is divided, each whitened by itself.
    dtype : dtype
        Of the parameters and the running statistics. ``y`` has the dtype of ``x``.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        gamma and beta.
    running_mean, running_matrix : array, shape (C,) and (num_groups, C / num_groups, C / num_groups), or None
        Averages of the batches' means and whitening matrices. Used in evaluation mode.
    num_batches_tracked : array of int64, shape (), or None
        How many batches the running statistics have seen.

    Raises
    ------
    TypeError
        If ``x`` is not a NumPy array of floating-point numbers.
    ValueError
        If ``num_groups`` does not divide C, the shape of ``x`` does not fit, or there is one value per channel or none.
        The running statistics are then as they were.

    References
    ----------
    Huang, Yang, Lang and Deng (2018), "Decorrelated Batch Normalization".

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((100, 2)) @ np.array([[2.0, 1.5], [0.0, 0.5]])
    >>> y = DecorrelatedBatchNorm(2)(x)
    >>> print(np.cov(y.T, bias=True).round(3) + 0.0)
    [[1. 0.]
     [0. 1.]]
    """

    def _whiten(self, x: Array, **statistics: Any) -> tuple[Array, WhitenCache | IterNormCache]:
        return whiten(x, self.weight, self.bias, groups=self.num_groups, eps=self.eps, **statistics)

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, in the form (training or inference) of the last forward pass."""
        dx: Array
        dx, dgamma, dbeta = whiten_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta)
        return dx


class IterNorm(_Whitening):
    r"""Whitening by a few of Newton's steps: :func:`bnlearn.functional.iter_norm` with running statistics.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, num_groups, dtype
        As :class:`DecorrelatedBatchNorm`, with the same attributes and errors.
    iterations : int
        T, not negative.

    References
    ----------
    Huang, Zhou, Zhu, Liu and Shao (2019), "Iterative Normalization: Beyond Standardization towards Efficient
    Whitening".

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((100, 2)) @ np.array([[2.0, 1.5], [0.0, 0.5]])
    >>> y = IterNorm(2, iterations=10)(x)
    >>> print(np.cov(y.T, bias=True).round(2) + 0.0)
    [[1. 0.]
     [0. 1.]]
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        num_groups: int = 1,
        iterations: int = 5,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, num_groups=num_groups, dtype=dtype)
        self.iterations = iterations

    def _whiten(self, x: Array, **statistics: Any) -> tuple[Array, WhitenCache | IterNormCache]:
        return iter_norm(
            x,
            self.weight,
            self.bias,
            groups=self.num_groups,
            iterations=self.iterations,
            eps=self.eps,
            **statistics,
        )

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, in the form (training or inference) of the last forward pass."""
        dx: Array
        dx, dgamma, dbeta = iter_norm_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta)
        return dx

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, iterations={self.iterations}"
