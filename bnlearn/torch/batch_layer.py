"""Batch layer normalisation as a module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from bnlearn.functional import BatchLayerNormCache, batch_layer_norm, update_running

__all__ = ["BatchLayerNorm"]

STATISTICS = ("batch_mean", "batch_var", "feature_mean", "feature_var")


class BatchLayerNorm(nn.Module):
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
    device, dtype
        Of the parameters and the running statistics.

    Attributes
    ----------
    weight, bias : Parameter, shape (C,), or None
        gamma and beta.
    running_batch_mean, running_batch_var : Tensor, shape (C, \*spatial)
        The variance multiplied by ``N / (N - 1)``.
    running_feature_mean, running_feature_var : Tensor, shape (1, \*spatial)
        Averaged over the samples of a batch; the variance multiplied by the same, as in the authors' code.
    num_batches_tracked : Tensor, shape ()
        How many batches they have seen.

    Raises
    ------
    ValueError
        If an argument or the shape of the input does not fit.

    Notes
    -----
    The authors keep the features' running statistics for each place in the batch, so that the batch size is fixed; here
    they are averaged over the batch, and it is free.

    Examples
    --------
    >>> layer = BatchLayerNorm(2, batch_size=2)
    >>> y = layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(layer.running_batch_mean)
    tensor([ 2., 20.])
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    num_batches_tracked: torch.Tensor

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        batch_size: int,
        eps: float = 1e-3,
        momentum: float | None = None,
        affine: bool = True,
        running: Collection[str] = ("batch_mean", "batch_var"),
        device: Any = None,
        dtype: Any = None,
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
        for name in ("weight", "bias"):
            value = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if affine else None
            self.register_parameter(name, value)
        for name in STATISTICS:
            lengths = shape if name.startswith("batch") else (1, *shape[1:])
            self.register_buffer(f"running_{name}", torch.empty(lengths, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones and zeros, in the parameters and in the running statistics."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def reset_running_stats(self) -> None:
        """Forget the batches seen, as the authors do when an epoch begins."""
        for name in STATISTICS:
            getattr(self, f"running_{name}").fill_(name.endswith("var"))
        self.num_batches_tracked.zero_()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""Normalise ``input``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        if tuple(input.shape[1:]) != self.normalized_shape:
            raise ValueError(
                f"Given normalized_shape={list(self.normalized_shape)}, expected input with shape "
                f"[N, {str(list(self.normalized_shape))[1:]}, but got input of size {list(input.shape)}"
            )
        given = {} if self.training else {name: getattr(self, f"running_{name}") for name in self.running}
        y: torch.Tensor
        y, cache = batch_layer_norm(input, self.weight, self.bias, batch_size=self.batch_size, eps=self.eps, **given)
        if self.training:
            self._track(cache, len(input))
        return y

    @torch.no_grad()
    def _track(self, cache: BatchLayerNormCache, n: int) -> None:
        batches = self.num_batches_tracked + 1
        momentum = 1 / float(batches) if self.momentum is None else self.momentum
        new = {}
        for of in ("batch", "feature"):
            mean, var = f"running_{of}_mean", f"running_{of}_var"
            own = getattr(cache, f"{of}_mean"), getattr(cache, f"{of}_var")
            new[mean], new[var] = update_running(
                getattr(self, mean), getattr(self, var), *own, n, momentum=momentum, unbiased=n > 1
            )
        for name, value in new.items():  # in place, and only now that nothing can fail any more
            getattr(self, name).copy_(value)
        self.num_batches_tracked.copy_(batches)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.normalized_shape}, batch_size={self.batch_size}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, running={self.running}"
        )
