r"""The repairs that stay with the batch, as layers, for x of shape (N, C, \*spatial) with any number of axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bnlearn.functional import (
    BatchNormCache,
    batch_norm,
    batch_norm_backward,
    batch_renorm,
    batch_renorm_backward,
    example_weighing,
    example_weighing_backward,
    full_norm,
    full_norm_backward,
    ghost_batch_norm,
    ghost_batch_norm_backward,
    renorm_limits,
    update_running,
)
from bnlearn.layers._base import Array
from bnlearn.layers.batch import _BatchNorm

Backward = Callable[[Array, Any], tuple[Array, Array, Array]]


class _Repair(_BatchNorm):
    """Batch normalisation with another training (or inference) form: a subclass gives that form."""

    def _check_layout(self, x: Array) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected x of shape (N, C, *spatial), at least 2D input (got {x.ndim}D input)")

    def forward(self, x: Array) -> Array:
        r"""Normalise ``x``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        by_batch = self.training or self.running_mean is None
        self._check_input(x, by_batch)
        y, cache, backward = self._by_batch(x) if by_batch else self._by_running(x)
        self._cache = cache, backward
        return y

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, in the form (training or inference) of the last forward pass."""
        cache, backward = self._saved()
        dx: Array
        dx, dgamma, dbeta = backward(dy, cache)
        self._keep_grads(weight=dgamma, bias=dbeta)
        return dx

    def _by_batch(self, x: Array) -> tuple[Array, Any, Backward]:
        y, cache = batch_norm(x, self.weight, self.bias, eps=self.eps)
        self._track(cache, n=x.size // self.num_features)
        return y, cache, batch_norm_backward

    def _by_running(self, x: Array) -> tuple[Array, Any, Backward]:
        y, cache = batch_norm(x, self.weight, self.bias, mean=self.running_mean, var=self.running_var, eps=self.eps)
        return y, cache, batch_norm_backward


class BatchRenorm(_Repair):
    r"""Batch renormalisation (:func:`bnlearn.functional.batch_renorm`) with its warm-up.

    The limits of the correction follow :func:`bnlearn.functional.renorm_limits`, the number of batches seen being the
    step: batch normalisation first, then gradually the same in training as in evaluation.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance; positive.
    momentum : float or None
        Weight of the new batch in the running statistics, from 0 to 1. None: the average over all batches so far.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros).
    r_max, d_max : float
        What the limits end at.
    warmup, r_end, d_end : int
        Batches: up to the first it is batch normalisation, at the others r and d have their full limits.
    bias : bool
        Whether an affine layer has a ``bias``.
    dtype : dtype
        Of the parameters and the running statistics. ``y`` has the dtype of ``x``.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in :class:`BatchNorm1d`, whose state can be loaded.

    Raises
    ------
    TypeError, ValueError
        As :class:`BatchNorm1d`; ValueError also if the limits are not in order.

    Examples
    --------
    >>> layer = BatchRenorm(1, warmup=0, r_end=0, d_end=0, momentum=1.0)
    >>> x = np.array([[1.0], [3.0]], np.float32)
    >>> print(layer(x).T.round(3))  # the first batch: batch normalisation
    [[-1.  1.]]
    >>> print(layer(x).T.round(3), layer.eval()(x).T.round(3))  # the second: as in evaluation (unbiased variance)
    [[-0.707  0.707]] [[-0.707  0.707]]
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5_000,
        r_end: int = 40_000,
        d_end: int = 25_000,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, bias=bias, dtype=dtype)
        self.limits: dict[str, Any] = {"warmup": warmup, "r_end": r_end, "d_end": d_end, "r_max": r_max, "d_max": d_max}
        renorm_limits(0, **self.limits)  # raises now rather than in training

    def _by_batch(self, x: Array) -> tuple[Array, Any, Backward]:
        r_max, d_max = renorm_limits(int(self.num_batches_tracked), **self.limits)
        y, cache = batch_renorm(
            x,
            self.weight,
            self.bias,
            mean=self.running_mean,
            var=self.running_var,
            r_max=r_max,
            d_max=d_max,
            eps=self.eps,
        )
        self._track(cache.batch, n=x.size // self.num_features)
        return y, cache, batch_renorm_backward

    def extra_repr(self) -> str:
        """The arguments."""
        limits = ", ".join(f"{name}={value}" for name, value in self.limits.items())
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, {limits}"


class GhostBatchNorm(_Repair):
    r"""Ghost batch normalisation (:func:`bnlearn.functional.ghost_batch_norm`) with running statistics.

    In evaluation mode it is batch normalisation. The running statistics see one ghost after the other, as if each had
    been a batch.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    ghost_size : int
        Samples per ghost. Where it does not divide N, the last ghost is a short one.
    eps, momentum, affine, track_running_stats, bias, dtype
        As in :class:`BatchNorm1d`.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in :class:`BatchNorm1d`, whose state can be loaded. Every ghost is counted as a batch.

    Raises
    ------
    TypeError, ValueError
        As :class:`BatchNorm1d`; ValueError also if ``ghost_size`` is below 1, or the last ghost has one value per
        channel.

    Examples
    --------
    >>> layer = GhostBatchNorm(1, ghost_size=2, affine=False)
    >>> print(layer(np.array([[1.0], [3.0], [10.0], [30.0]], np.float32)).T.round(3), layer.num_batches_tracked)
    [[-1.  1. -1.  1.]] 2
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias=bias, dtype=dtype)
        if ghost_size < 1:
            raise ValueError(f"expected ghost_size >= 1 samples, got {ghost_size}")
        self.ghost_size = ghost_size

    def _check_input(self, x: Array, by_batch: bool) -> None:
        super()._check_input(x, by_batch)
        if by_batch and x.size and (len(x) % self.ghost_size or self.ghost_size) * (x[:1, :1].size) == 1:
            raise ValueError(
                f"Expected more than 1 value per channel in each ghost when training, got input size {x.shape} in "
                f"ghosts of {self.ghost_size}: drop the last sample, or change ghost_size"
            )

    def _by_batch(self, x: Array) -> tuple[Array, Any, Backward]:
        y, cache = ghost_batch_norm(x, self.weight, self.bias, ghost_size=self.ghost_size, eps=self.eps)
        if self.training and self.running_mean is not None:
            running, batches = (self.running_mean, self.running_var), int(self.num_batches_tracked)
            for part in cache.statistics:
                for mean, var, n in part.each():
                    batches += 1
                    momentum = 1 / batches if self.momentum is None else self.momentum
                    running = update_running(*running, mean, var, n, momentum=momentum)
            # In place, and only now that nothing can fail any more.
            self.running_mean[...], self.running_var[...] = running
            self.num_batches_tracked[...] = batches
        return y, cache, ghost_batch_norm_backward

    def extra_repr(self) -> str:
        """The arguments."""
        return super().extra_repr().replace(",", f", ghost_size={self.ghost_size},", 1)


class FullNorm(_Repair):
    r"""Full normalisation (:func:`bnlearn.functional.full_norm`): by a running estimate, in training too.

    The weight of a batch in the estimate is ``momentum``, but the first batches weigh more, the t-th at least ``1/t``:
    without it the estimate, and with it the training, would start from the mean 0 and variance 1 of no data.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance; positive.
    momentum : float or None
        Weight of the new batch in the estimate, from 0 to 1. None: the average over all batches so far. With 1 it is
        batch normalisation.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros).
    bias : bool
        Whether an affine layer has a ``bias``.
    dtype : dtype
        Of the parameters and the running statistics. ``y`` has the dtype of ``x``.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in :class:`BatchNorm1d`, whose state can be loaded; but ``running_var`` is the BIASED estimate that training
        normalised by, and contains what the batches' means differ by.

    Raises
    ------
    TypeError, ValueError
        As :class:`BatchNorm1d`.

    Examples
    --------
    >>> layer = FullNorm(1)
    >>> x = np.array([[1.0], [3.0]], np.float32)
    >>> same = layer(x) == layer.eval()(x)  # one formula in both modes
    >>> print(same.T, layer.running_mean, layer.running_var)
    [[ True  True]] [2.] [1.]
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, bias=bias, dtype=dtype)

    def _by_batch(self, x: Array) -> tuple[Array, Any, Backward]:
        batches = int(self.num_batches_tracked) + 1
        share = max(1 / batches, self.momentum or 0)
        cache: BatchNormCache
        y, cache = full_norm(
            x, self.weight, self.bias, mean=self.running_mean, var=self.running_var, momentum=share, eps=self.eps
        )
        self.running_mean[...], self.running_var[...] = cache.mean, cache.var
        self.num_batches_tracked[...] = batches
        return y, cache, full_norm_backward


class ExampleWeighing(_Repair):
    r"""Batch normalisation that weighs the example into the statistics at inference.

    Training is that of batch normalisation; evaluation is :func:`bnlearn.functional.example_weighing`.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    example_weight : float
        The example's share of the statistics in evaluation mode, from 0 (plain inference) to 1. An attribute of that
        name may be changed at any time, and is meant to be: choose it on validation data.
    eps, momentum, affine, bias, dtype
        As in :class:`BatchNorm1d`.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in :class:`BatchNorm1d`, whose state can be loaded.

    Raises
    ------
    TypeError, ValueError
        As :class:`BatchNorm1d`; ValueError also if ``example_weight`` is outside [0, 1].

    Examples
    --------
    >>> layer = ExampleWeighing(1, example_weight=0.5).eval()
    >>> print(layer(np.array([[[3.0, 5.0]]], np.float32)).round(3))  # mean 2 and variance 5, from (4, 1) and (0, 1)
    [[[0.447 1.342]]]
    """

    def __init__(
        self,
        num_features: int,
        example_weight: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, bias=bias, dtype=dtype)
        if not 0 <= example_weight <= 1:
            raise ValueError(f"expected example_weight from 0 to 1, got {example_weight}")
        self.example_weight = example_weight

    def _by_running(self, x: Array) -> tuple[Array, Any, Backward]:
        y, cache = example_weighing(
            x,
            self.weight,
            self.bias,
            mean=self.running_mean,
            var=self.running_var,
            weight=self.example_weight,
            eps=self.eps,
        )
        return y, cache, example_weighing_backward

    def extra_repr(self) -> str:
        """The arguments."""
        return super().extra_repr().replace(",", f", example_weight={self.example_weight},", 1)
