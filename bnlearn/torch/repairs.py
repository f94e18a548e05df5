r"""The repairs that stay with the batch, as modules, for x of shape (N, C, \*spatial) with any number of axes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bnlearn.functional import (
    batch_norm,
    batch_renorm,
    full_norm,
    ghost_batch_norm,
    renorm_limits,
    update_running,
)

__all__ = ["BatchRenorm", "FullNorm", "GhostBatchNorm", "MaskedBatchNorm"]


class _Repair(_BatchNorm):
    """``torch.nn.BatchNorm2d`` for any number of spatial axes; a subclass changes a form of it."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.size(1) != self.num_features:
            raise ValueError(f"expected {self.num_features} channels on axis 1, got input size {tuple(input.shape)}")

    def _check_batch(self, input: torch.Tensor) -> None:
        """What the training form asks for."""
        self._check_input_dim(input)
        if input.numel() == self.num_features:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {tuple(input.shape)}"
            )

    def _momentum(self, batches: torch.Tensor) -> float:
        """The weight of the batch of that number in the running statistics."""
        return 1 / float(batches) if self.momentum is None else self.momentum

    def _assign(self, mean: Any, var: Any, batches: torch.Tensor) -> None:
        """Keep new statistics, in place: called only when nothing can fail any more."""
        with torch.no_grad():
            self.running_mean.copy_(mean)  # type: ignore[union-attr]
            self.running_var.copy_(var)  # type: ignore[union-attr]
            self.num_batches_tracked.copy_(batches)  # type: ignore[union-attr]

    def _track(self, mean: Any, var: Any, n: Any) -> None:
        batches: Any = self.num_batches_tracked
        with torch.no_grad():
            batches = batches + 1
            new = update_running(self.running_mean, self.running_var, mean, var, n, momentum=self._momentum(batches))
        self._assign(*new, batches)


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
        Weight of the new batch in the running statistics. None: the average over all batches so far.
    affine : bool
        Whether to learn ``weight`` and ``bias``.
    device, dtype
        As in ``torch.nn.BatchNorm2d``.
    r_max, d_max : float
        What the limits end at.
    warmup, r_end, d_end : int
        Batches: up to the first it is batch normalisation, at the others r and d have their full limits.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in ``torch.nn.BatchNorm2d``, whose state can be loaded: then the steps go on from its number of batches.

    Raises
    ------
    ValueError
        If the limits are not in order, the input has fewer than two axes or another number of channels, or there is
        one value per channel in training.

    Examples
    --------
    >>> layer = BatchRenorm(1, warmup=0, r_end=0, d_end=0, momentum=1.0)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> first, second = layer(x), layer(x)
    >>> torch.equal(first, torch.nn.BatchNorm1d(1)(x)), torch.allclose(second, layer.eval()(x))
    (True, True)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5_000,
        r_end: int = 40_000,
        d_end: int = 25_000,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.r_max, self.d_max, self.warmup, self.r_end, self.d_end = r_max, d_max, warmup, r_end, d_end
        self._limits(0)  # raises now rather than in training

    def _limits(self, step: Any) -> tuple[Any, Any]:
        return renorm_limits(
            step, warmup=self.warmup, r_end=self.r_end, d_end=self.d_end, r_max=self.r_max, d_max=self.d_max
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""Normalise ``input``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        if not self.training:
            return super().forward(input)
        self._check_batch(input)
        r_max, d_max = self._limits(self.num_batches_tracked)
        y: torch.Tensor
        y, cache = batch_renorm(
            input,
            self.weight,
            self.bias,
            mean=self.running_mean,
            var=self.running_var,
            r_max=r_max,
            d_max=d_max,
            eps=self.eps,
        )
        self._track(cache.batch.mean, cache.batch.var, cache.batch.n)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}, r_end={self.r_end}, d_end={self.d_end}"
        )


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
    eps, momentum, affine, track_running_stats, device, dtype
        As in ``torch.nn.BatchNorm2d``.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in ``torch.nn.BatchNorm2d``, whose state can be loaded. Every ghost is counted as a batch.

    Raises
    ------
    ValueError
        If ``ghost_size`` is below 1, the input has fewer than two axes or another number of channels, or the last
        ghost has one value per channel in training.

    Examples
    --------
    >>> layer = GhostBatchNorm(1, ghost_size=2)
    >>> print(layer(torch.tensor([[1.0], [3.0], [10.0], [30.0]])).detach().T.round(decimals=3))
    tensor([[-1.,  1., -1.,  1.]])
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if ghost_size < 1:
            raise ValueError(f"expected ghost_size >= 1 samples, got {ghost_size}")
        self.ghost_size = ghost_size

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""Normalise ``input``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        self._check_batch(input)
        last = len(input) % self.ghost_size or self.ghost_size
        if input.numel() and last * input[:1, :1].numel() == 1:
            raise ValueError(
                "Expected more than 1 value per channel in each ghost when training, got input size "
                f"{tuple(input.shape)} in ghosts of {self.ghost_size}"
            )
        y: torch.Tensor
        y, cache = ghost_batch_norm(input, self.weight, self.bias, ghost_size=self.ghost_size, eps=self.eps)
        if self.training and self.running_mean is not None:
            self._track_ghosts(cache)
        return y

    def _track_ghosts(self, cache: Any) -> None:
        batches: Any = self.num_batches_tracked
        mean: Any = self.running_mean
        var: Any = self.running_var
        with torch.no_grad():
            for ghost_mean, ghost_var, n in (ghost for part in cache.statistics for ghost in part.each()):
                batches = batches + 1
                mean, var = update_running(mean, var, ghost_mean, ghost_var, n, momentum=self._momentum(batches))
        self._assign(mean, var, batches)

    def extra_repr(self) -> str:
        """The arguments."""
        common: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return common.replace(",", f", ghost_size={self.ghost_size},", 1)


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
        Weight of the new batch in the estimate. None: the average over all batches so far. With 1 it is batch
        normalisation.
    affine : bool
        Whether to learn ``weight`` and ``bias``.
    device, dtype
        As in ``torch.nn.BatchNorm2d``.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in ``torch.nn.BatchNorm2d``, whose state can be loaded; but ``running_var`` is the BIASED estimate that
        training normalised by, and contains what the batches' means differ by.

    Raises
    ------
    ValueError
        If the input has fewer than two axes or another number of channels, or there is one value per channel in
        training.

    Examples
    --------
    >>> layer, x = FullNorm(1), torch.tensor([[1.0], [3.0]])
    >>> torch.allclose(layer(x), layer.eval()(x))  # one formula in both modes
    True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""Normalise ``input``, shape (N, C, \*spatial), and in training mode by the estimate that it updates."""
        if not self.training:
            return super().forward(input)
        self._check_batch(input)
        batches: Any = self.num_batches_tracked
        batches = batches + 1
        share = (1 / batches.to(torch.promote_types(input.dtype, torch.float32))).clamp(min=self.momentum or 0.0)
        y: torch.Tensor
        y, cache = full_norm(
            input,
            self.weight,
            self.bias,
            mean=self.running_mean,
            var=self.running_var,
            momentum=share,
            eps=self.eps,
        )
        self._assign(cache.mean, cache.var, batches)
        return y


class MaskedBatchNorm(_Repair):
    r"""Batch normalisation that leaves padding out: ``forward(input, mask)`` with True where the input is real.

    Padding enters neither the statistics nor the gradients, whatever it holds, and is zero in the output. Without a
    mask it is ``torch.nn.BatchNorm2d``.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps, momentum, affine, track_running_stats, device, dtype
        As in ``torch.nn.BatchNorm2d``.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in ``torch.nn.BatchNorm2d``, whose state can be loaded. A batch that is all padding leaves the running
        statistics as they are, and is counted.

    Raises
    ------
    TypeError
        If the mask is not boolean.
    ValueError
        If the input has fewer than two axes or another number of channels, the mask is not of shape (N, \*spatial), or
        there is one real value per channel in training (which under ``torch.compile`` is not seen).

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 3.0, torch.nan]]])
    >>> print(MaskedBatchNorm(1)(x, torch.tensor([[True, True, False]])).detach().round(decimals=3))
    tensor([[[-1.,  1.,  0.]]])
    """

    def forward(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        r"""Normalise ``input``, shape (N, C, \*spatial), where ``mask``, shape (N, \*spatial), is True."""
        by_batch = self.training or self.running_mean is None
        if mask is None:
            if by_batch:
                self._check_batch(input)
            return super().forward(input)
        self._check_input_dim(input)
        given = {} if by_batch else {"mean": self.running_mean, "var": self.running_var}
        y: torch.Tensor
        y, cache = batch_norm(input, self.weight, self.bias, mask=mask, eps=self.eps, **given)
        if self.training and self.running_mean is not None:
            self._track(cache.mean, cache.var, cache.n)
        return y
