"""Batch layer normalisation as a layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bnlearn.functional import batch_layer_norm, batch_layer_norm_backward, update_running
from bnlearn.layers._base import Array, Layer, check_floats

STATISTICS = ("batch_mean", "batch_var", "feature_mean", "feature_var")


class BatchLayerNorm(Layer):
    r"""Batch layer normalisation (:func:`bnlearn.functional.batch_layer_norm`) with running statistics.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The shape of one sample, (C, \*spatial): the statistics over the batch are those of each position.
    batch_size : int
        m, which sets the weights of the two normalisations, in evaluation too. Batches may have other sizes.
    eps : float
        Added to the variances; positive.
    momentum : float or None
        Weight of the new batch in the running statistics. None, as in the authors' code: the average over all batches
        since :meth:`reset_running_stats`, which is to be called when an epoch begins.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros), shape (C,).
    running : collection of str
        Which statistics are the running ones in evaluation mode, of "batch_mean", "batch_var", "feature_mean" and
        "feature_var"; the others are those of the input. To be chosen on validation data, also after training.
    dtype : dtype
        Of the parameters and the running statistics. ``y`` has the dtype of ``x``.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        gamma and beta.
    running_batch_mean, running_batch_var : array, shape (C, \*spatial)
        The variance multiplied by ``N / (N - 1)``.
    running_feature_mean, running_feature_var : array, shape (1, \*spatial)
        Averaged over the samples of a batch; the variance multiplied by the same, as in the authors' code.
    num_batches_tracked : array of int64, shape ()
        How many batches they have seen.

    Raises
    ------
    TypeError
        If ``x`` is not a NumPy array of floating-point numbers.
    ValueError
        If an argument or the shape of ``x`` does not fit. The running statistics are then as they were.

    Notes
    -----
    The authors keep the features' running statistics for each place in the batch, so that the batch size is fixed; here
    they are averaged over the batch, and it is free.

    Examples
    --------
    >>> layer = BatchLayerNorm(2, batch_size=2)
    >>> print(layer(np.array([[1.0, 10.0], [3.0, 30.0]])).sum(axis=1).round(2), layer.running_batch_mean)
    [-0.71  0.71] [ 2. 20.]
    """

    parameter_names = ("weight", "bias")
    buffer_names = (*(f"running_{name}" for name in STATISTICS), "num_batches_tracked")
    weight: Any  # this and the next: arrays of shape (C,), or None where the layer has none
    bias: Any
    running_batch_mean: Array
    running_batch_var: Array
    running_feature_mean: Array
    running_feature_var: Array

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        batch_size: int,
        eps: float = 1e-3,
        momentum: float | None = None,
        affine: bool = True,
        running: Collection[str] = ("batch_mean", "batch_var"),
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"expected normalized_shape (C, *spatial) of lengths >= 1, got {shape}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        unknown = sorted(set(running) - set(STATISTICS))
        if unknown:
            raise ValueError(f"expected running to name some of {', '.join(STATISTICS)}, got {', '.join(unknown)}")
        self.normalized_shape, self.batch_size, self.eps, self.momentum = shape, batch_size, eps, momentum
        self.affine, self.running = affine, tuple(running)
        self.weight = np.ones(shape[0], dtype) if affine else None
        self.bias = np.zeros(shape[0], dtype) if affine else None
        over_samples = (1, *shape[1:])
        self.running_batch_mean, self.running_batch_var = np.zeros(shape, dtype), np.ones(shape, dtype)
        self.running_feature_mean, self.running_feature_var = (
            np.zeros(over_samples, dtype),
            np.ones(over_samples, dtype),
        )
        self.num_batches_tracked = np.zeros((), np.int64)

    def reset_running_stats(self) -> None:
        """Forget the batches seen, as the authors do when an epoch begins."""
        for name in STATISTICS:
            getattr(self, f"running_{name}")[...] = name.endswith("var")
        self.num_batches_tracked[...] = 0

    def forward(self, x: Array) -> Array:
        r"""Normalise ``x``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        check_floats(x)
        if x.shape[1:] != self.normalized_shape:
            raise ValueError(
                f"expected x of shape (N, *normalized_shape), {('N', *self.normalized_shape)}, got {x.shape}"
            )
        given = {} if self.training else {name: getattr(self, f"running_{name}") for name in self.running}
        y: Array
        y, cache = batch_layer_norm(x, self.weight, self.bias, batch_size=self.batch_size, eps=self.eps, **given)
        if self.training:
            self._track(cache, len(x))
        self._cache = cache
        return y

    def _track(self, cache: Any, n: int) -> None:
        batches = int(self.num_batches_tracked) + 1
        momentum = 1 / batches if self.momentum is None else self.momentum
        new = []
        for of in ("batch", "feature"):
            mean, var = (getattr(self, f"running_{of}_{what}") for what in ("mean", "var"))
            own = getattr(cache, f"{of}_mean"), getattr(cache, f"{of}_var")
            new.append(((mean, var), update_running(mean, var, *own, n, momentum=momentum, unbiased=n > 1)))
        for arrays, values in new:  # in place, and only now that nothing can fail any more
            for array, value in zip(arrays, values, strict=True):
                array[...] = value
        self.num_batches_tracked[...] = batches

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, in the form of the last forward pass."""
        dx: Array
        dx, dgamma, dbeta = batch_layer_norm_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta)
        return dx

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.normalized_shape}, batch_size={self.batch_size}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, running={self.running}"
        )
