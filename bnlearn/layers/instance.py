"""Instance normalisation as layers, with PyTorch's parameters, buffers and rules."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from bnlearn.functional import (
    BatchNormCache,
    batch_norm,
    batch_norm_backward,
    instance_norm,
    instance_norm_backward,
    update_running,
)
from bnlearn.layers._base import Array, Layer, check_floats


class _InstanceNorm(Layer):
    """Instance normalisation with PyTorch's arguments, state and rules; a subclass says which shapes it takes."""

    parameter_names = ("weight", "bias")
    buffer_names = ("running_mean", "running_var", "num_batches_tracked")
    ndim: ClassVar[int]  # with the samples' axis

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"expected num_features >= 1, the number of channels, got {num_features}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight: Any = np.ones(num_features, dtype) if affine else None
        self.bias: Any = np.zeros(num_features, dtype) if affine and bias else None
        self.running_mean: Any = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var: Any = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked: Any = np.zeros((), np.int64) if track_running_stats else None

    def forward(self, x: Array) -> Array:
        r"""(N, C, \*spatial), or one sample (C, \*spatial), to the same."""
        batch = self._as_batch(x)
        y: Array
        cache: Any
        if self.training or self.running_mean is None:
            y, cache = instance_norm(batch, self.weight, self.bias, eps=self.eps)
            if self.running_mean is not None and len(batch):
                self._track(cache.mean, cache.var, n=math.prod(batch.shape[2:]))
        else:
            y, cache = batch_norm(
                batch, self.weight, self.bias, mean=self.running_mean, var=self.running_var, eps=self.eps
            )
        self._cache = cache
        return y.reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, in the form of the last forward pass."""
        cache = self._saved()
        backward = batch_norm_backward if isinstance(cache, BatchNormCache) else instance_norm_backward
        dx, dgamma, dbeta = backward(dy[None] if dy.ndim == self.ndim - 1 else dy, cache)
        self._keep_grads(weight=dgamma, bias=dbeta)
        return np.reshape(dx, dy.shape)

    def _track(self, mean: Array, var: Array, n: int) -> None:
        """The running statistics see the mean over the samples of their means and of their variances."""
        momentum = 0.0 if self.momentum is None else self.momentum
        means, variances = (statistic.mean(axis=0).reshape(-1) for statistic in (mean, var))
        new = update_running(self.running_mean, self.running_var, means, variances, n, momentum=momentum)
        self.running_mean[...], self.running_var[...] = new

    def _as_batch(self, x: Array) -> Array:
        """``x`` with an axis of samples, checked."""
        check_floats(x)
        if x.ndim not in (self.ndim - 1, self.ndim):
            raise ValueError(f"expected {self.ndim - 1}D or {self.ndim}D input (got {x.ndim}D input)")
        axis = x.ndim - self.ndim + 1
        if x.shape[axis] != self.num_features:
            raise ValueError(
                f"expected input's size at dim={axis} to match num_features ({self.num_features}), but got: "
                f"{x.shape[axis]}: change num_features, or move the channels to that axis"
            )
        if (self.training or self.running_mean is None) and math.prod(x.shape[axis + 1 :]) == 1:
            raise ValueError(
                f"Expected more than 1 spatial element when training, got input size {list(x.shape)}: for features "
                "without positions use LayerNorm"
            )
        return x if axis else x[None]

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class InstanceNorm1d(_InstanceNorm):
    """Each channel of each sample normalised over its positions, (N, C, L), as ``torch.nn.InstanceNorm1d``.

    See :func:`bnlearn.functional.instance_norm`. One sample (C, L) is taken too.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance.
    momentum : float or None
        Weight of the new batch in the running statistics. As in PyTorch, and unlike its batch normalisation, None
        leaves them for ever at 0 and 1.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros), shape (C,).
    track_running_stats : bool
        Whether to average the samples' means and unbiased variances, and to normalise by them in evaluation mode. As in
        PyTorch, ``num_batches_tracked`` is there, and stays 0.
    bias : bool
        Whether an affine layer has a ``bias``.
    dtype : dtype
        Of the parameters and the running statistics. ``y`` has the dtype of ``x``.

    Raises
    ------
    ValueError, TypeError
        If the shape of ``x`` does not fit (PyTorch only warns of other channels where there is no weight), there is one
        position to take a variance over, or ``x`` is not a NumPy array of floats.

    Examples
    --------
    >>> print(InstanceNorm1d(2)(np.array([[[1.0, 3.0], [10.0, 30.0]]])).round(3))
    [[[-1.  1.]
      [-1.  1.]]]
    """

    ndim = 3


class InstanceNorm2d(_InstanceNorm):
    """Instance normalisation of images (N, C, H, W), as ``torch.nn.InstanceNorm2d``: see :class:`InstanceNorm1d`."""

    ndim = 4


class InstanceNorm3d(_InstanceNorm):
    """Instance normalisation of volumes (N, C, D, H, W): see :class:`InstanceNorm1d`."""

    ndim = 5
