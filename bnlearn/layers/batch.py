"""Batch normalisation as layers, with PyTorch's parameters, buffers and rules."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from bnlearn.functional import BatchNormCache, batch_norm, batch_norm_backward, update_running
from bnlearn.layers._base import Array, Layer, check_floats


class _BatchNorm(Layer):
    """Batch normalisation with PyTorch's parameters, buffers and rules; a subclass says which shapes it takes."""

    parameter_names = ("weight", "bias")
    buffer_names = ("running_mean", "running_var", "num_batches_tracked")
    layouts: ClassVar[dict[int, str]]
    weight: Any  # this and the next three: arrays of shape (C,), or None where the layer has none
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"expected num_features >= 1, the number of channels, got {num_features}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = np.ones(num_features, dtype) if affine else None
        self.bias = np.zeros(num_features, dtype) if affine and bias else None
        self.running_mean = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None

    def forward(self, x: Array) -> Array:
        r"""Normalise ``x``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        by_batch = self.training or self.running_mean is None
        self._check_input(x, by_batch)
        mean, var = (None, None) if by_batch else (self.running_mean, self.running_var)
        y: Array
        y, cache = batch_norm(x, self.weight, self.bias, mean=mean, var=var, eps=self.eps)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(cache, n=x.size // self.num_features)
        self._cache = cache
        return y

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, in the form (training or inference) of the last forward pass."""
        dx: Array
        dx, dgamma, dbeta = batch_norm_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta)
        return dx

    def _track(self, cache: BatchNormCache, n: int) -> None:
        batches = int(self.num_batches_tracked) + 1
        momentum = 1 / batches if self.momentum is None else self.momentum  # None: the average of all batches so far
        new = update_running(self.running_mean, self.running_var, cache.mean, cache.var, n, momentum=momentum)
        # In place, and only now that nothing can fail any more.
        self.running_mean[...], self.running_var[...] = new
        self.num_batches_tracked[...] = batches

    def _check_input(self, x: Array, by_batch: bool) -> None:
        check_floats(x)
        self._check_layout(x)
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"expected {self.num_features} channels on axis 1 (got {x.shape[1]} in input size {x.shape}): change "
                "num_features, or move the channels to axis 1"
            )
        if by_batch and x.size == self.num_features:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}: use a larger batch, "
                "drop a last batch of one sample (drop_last=True), or call eval() to use the running statistics"
            )
        if by_batch and not self.eps > 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")

    def _check_layout(self, x: Array) -> None:
        if x.ndim not in self.layouts:
            dims = " or ".join(f"{ndim}D" for ndim in self.layouts)
            raise ValueError(
                f"expected {dims} input (got {x.ndim}D input): {type(self).__name__} takes x of shape "
                f"{' or '.join(self.layouts.values())}"
            )

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of features (N, C) or sequences (N, C, L), as ``torch.nn.BatchNorm1d``.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance; positive.
    momentum : float or None
        Weight of the new batch in the running statistics, from 0 to 1. None: the average over all batches so far.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros). Without: None, and no gradients.
    track_running_stats : bool
        Whether to keep running statistics for evaluation. Without, the buffers are None and evaluation too
        normalises by the batch.
    bias : bool
        Whether an affine layer has a ``bias``.
    dtype : dtype
        Of the parameters and the running statistics. ``y`` has the dtype of ``x``.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        gamma and beta.
    running_mean, running_var : array, shape (C,), or None
        Updated by each forward pass in training mode, by the UNBIASED variance of the batch. Used in evaluation mode.
    num_batches_tracked : array of int64, shape (), or None
        How many batches the running statistics have seen.

    Raises
    ------
    TypeError
        If ``x`` is not a NumPy array of floating-point numbers.
    ValueError
        If the shape of ``x`` does not fit, if there is one value per channel to take a variance of, or if ``eps`` is
        not positive. The running statistics are then as they were.

    Notes
    -----
    As in PyTorch, an empty batch leaves ``running_mean`` and ``running_var`` alone, but counts as a batch.

    Four things differ. A float64 ``x`` meets a float32 layer (PyTorch refuses) and is computed in float64. The number
    of channels is checked even where the layer holds nothing of that size. ``momentum`` outside 0 to 1 is refused. A
    forward pass that fails does not count in ``num_batches_tracked``.

    References
    ----------
    Ioffe and Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", algorithms 1 and 2.

    Examples
    --------
    >>> layer = BatchNorm1d(2)
    >>> y = layer(np.array([[1.0, 10.0], [3.0, 30.0]], np.float32))
    >>> print(y.round(3))
    [[-1. -1.]
     [ 1.  1.]]
    >>> print(layer.running_mean, layer.running_var)
    [0.2 2. ] [ 1.1 20.9]
    """

    layouts: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images (N, C, H, W), as ``torch.nn.BatchNorm2d``: see :class:`BatchNorm1d`."""

    layouts: ClassVar = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of volumes (N, C, D, H, W), as ``torch.nn.BatchNorm3d``: see :class:`BatchNorm1d`."""

    layouts: ClassVar = {5: "(N, C, D, H, W)"}
