"""Whitening as modules: decorrelated batch normalisation, and its iterative form."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bnlearn.functional import IterNormCache, WhitenCache, iter_norm, update_whitening, whiten

__all__ = ["DecorrelatedBatchNorm", "IterNorm"]


class _Whitening(_BatchNorm):
    """What the two share: the whitening matrix where ``torch.nn.BatchNorm2d`` has the running variance."""

    running_matrix: torch.Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        num_groups: int = 1,
    ) -> None:
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f"num_features ({num_features}) must be divisible by num_groups ({num_groups})")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.num_groups = num_groups
        self.running_var = None
        self.register_buffer("running_matrix", None)
        if track_running_stats:
            own = num_features // num_groups
            self.running_matrix = torch.empty(num_groups, own, own, device=device, dtype=dtype)
            self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """The running mean to zeros, the running matrices to identities, the number of batches to zero."""
        # PyTorch's own __init__ calls this before there is a matrix.
        if self._buffers.get("running_matrix") is not None:
            self.running_mean.zero_()  # type: ignore[union-attr]
            self.running_matrix.copy_(torch.eye(self.num_features // self.num_groups))  # type: ignore[union-attr]
            self.num_batches_tracked.zero_()  # type: ignore[union-attr]

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.size(1) != self.num_features:
            raise ValueError(f"expected {self.num_features} channels on axis 1, got input size {tuple(input.shape)}")

    def _whiten(self, x: torch.Tensor, **statistics: Any) -> tuple[torch.Tensor, WhitenCache | IterNormCache]:
        """The subclass's formula."""
        raise NotImplementedError

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""Whiten ``input``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        self._check_input_dim(input)
        by_batch = self.training or self.running_mean is None
        if by_batch and input.numel() <= self.num_features:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        statistics = {} if by_batch else {"mean": self.running_mean, "matrix": self.running_matrix}
        # Autocast would take the covariance and the matrix products in half precision.
        with torch.autocast(input.device.type, enabled=False):
            y, cache = self._whiten(input, **statistics)
            if self.training and self.track_running_stats and self.running_mean is not None:
                self._track(cache)
        return y

    def _track(self, cache: WhitenCache | IterNormCache) -> None:
        running_mean: Any = self.running_mean
        running_matrix: Any = self.running_matrix
        counter: Any = self.num_batches_tracked
        with torch.no_grad():
            batches = counter + 1
            momentum = 1 / float(batches) if self.momentum is None else self.momentum
            mean, matrix = update_whitening(running_mean, running_matrix, cache, momentum=momentum)
            # In place, and only now that nothing can fail any more.
            running_mean.copy_(mean)
            running_matrix.copy_(matrix)
            counter.copy_(batches)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """A batch normalisation's state too, whose running variance becomes a diagonal matrix."""
        var = state_dict.get(f"{prefix}running_var")
        if var is not None and f"{prefix}running_matrix" not in state_dict and var.shape == (self.num_features,):
            own = self.num_features // self.num_groups
            diagonal = torch.rsqrt(state_dict.pop(f"{prefix}running_var") + self.eps)
            state_dict[f"{prefix}running_matrix"] = torch.diag_embed(diagonal.reshape(self.num_groups, own))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, num_groups={self.num_groups}"
        )


class DecorrelatedBatchNorm(_Whitening):
    r"""Make the channels uncorrelated with variance 1: :func:`bnlearn.functional.whiten` with running statistics.

    A drop-in replacement for ``torch.nn.BatchNorm1d``, ``2d`` and ``3d``, whose state it loads: it then does the same
    in evaluation mode.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the eigenvalues of the covariance, not negative.
    momentum : float or None
        Weight of the new batch in the running statistics. None: the average over all batches so far.
    affine, track_running_stats, device, dtype
        As in ``torch.nn.BatchNorm2d``.
    num_groups : int
        Into how many groups of channels C is divided, each whitened by itself.

    Attributes
    ----------
    weight, bias : Parameter, shape (C,), or None
        gamma and beta.
    running_mean, running_matrix : Tensor, shape (C,) and (num_groups, C / num_groups, C / num_groups), or None
        Averages of the batches' means and whitening matrices. There is no ``running_var``: it is None.

    Raises
    ------
    ValueError
        If ``num_groups`` does not divide C, the shape of the input does not fit, or there is one value per channel or
        none to whiten by.

    Notes
    -----
    Its gradient is right where that of ``torch.linalg.eigh`` is not: at repeated eigenvalues.
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` takes every subclass of PyTorch's batch normalisation for one, and
    would replace this by a plain one.

    References
    ----------
    Huang, Yang, Lang and Deng (2018), "Decorrelated Batch Normalization".

    Examples
    --------
    >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[2.0, 1.5], [0.0, 0.5]])
    >>> y = DecorrelatedBatchNorm(2)(x)
    >>> torch.allclose(torch.cov(y.T, correction=0), torch.eye(2), atol=1e-3)
    True
    """

    def _whiten(self, x: torch.Tensor, **statistics: Any) -> tuple[torch.Tensor, WhitenCache | IterNormCache]:
        return whiten(x, self.weight, self.bias, groups=self.num_groups, eps=self.eps, **statistics)


class IterNorm(_Whitening):
    r"""Whitening by a few of Newton's steps: :func:`bnlearn.functional.iter_norm` with running statistics.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, num_groups
        As :class:`DecorrelatedBatchNorm`, with the same attributes and errors.
    iterations : int
        T, not negative.

    References
    ----------
    Huang, Zhou, Zhu, Liu and Shao (2019), "Iterative Normalization: Beyond Standardization towards Efficient
    Whitening".

    Examples
    --------
    >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[2.0, 1.5], [0.0, 0.5]])
    >>> y = IterNorm(2, iterations=10)(x)
    >>> torch.allclose(torch.cov(y.T, correction=0), torch.eye(2), atol=1e-2)
    True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        num_groups: int = 1,
        iterations: int = 5,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, num_groups=num_groups)
        self.iterations = iterations

    def _whiten(self, x: torch.Tensor, **statistics: Any) -> tuple[torch.Tensor, WhitenCache | IterNormCache]:
        return iter_norm(
            x,
            self.weight,
            self.bias,
            groups=self.num_groups,
            iterations=self.iterations,
            eps=self.eps,
            **statistics,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, iterations={self.iterations}"
