r"""Batch normalisation across processes: the statistics of the whole batch, of which each process holds a part."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from bnlearn.functional import Moments, merge_moments, moments, update_running
from bnlearn.functional.shards import normalize_shard, shard_backward, shard_sums

__all__ = ["SyncBatchNorm"]

# float32 holds whole numbers up to 2**24, and a channel may have more values: they travel as two digits.
_DIGIT = 1 << 20


def _merge_over(group: Any, own: Moments) -> Moments:
    """The moments of the batch of all processes of the group, each telling its ``own``, in one exchange."""
    digits = own.mean.new_tensor(divmod(own.n, _DIGIT))
    vectors: Any = own[1:]
    message = torch.cat([digits, *vectors])
    received: Any = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, message, group=group)
    channels = len(own.mean)
    counts = torch.stack([part[:2] for part in received]).tolist()
    return merge_moments(
        *(
            Moments(int(high) * _DIGIT + int(low), *part[2:].split(channels))
            for (high, low), part in zip(counts, received, strict=True)
        )
    )


class _OverProcesses(torch.autograd.Function):
    """:func:`bnlearn.functional.sync_batch_norm`, its shards on several processes."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, eps: float, group: Any) -> tuple[Any, Any, Any, int]:
        whole = _merge_over(group, moments(x))
        y, x_hat, inv_std = normalize_shard(x, whole, weight, bias, eps)
        ctx.save_for_backward(x_hat, inv_std, weight)
        ctx.n, ctx.group = whole.n, group
        mean, var = whole.mean, whole.var
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var, int(whole.n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Any, *_: Any) -> tuple[Any, ...]:
        x_hat, inv_std, weight = ctx.saved_tensors
        wide = dy.to(x_hat.dtype)
        own = torch.cat(shard_sums(wide, x_hat))
        dx = None
        if ctx.needs_input_grad[0]:
            total = own.clone()
            dist.all_reduce(total, group=ctx.group)
            sum_dy, sum_dy_x_hat = total.chunk(2)
            dx = shard_backward(wide, x_hat, inv_std, weight, sum_dy, sum_dy_x_hat, ctx.n).to(dy.dtype)
        dbias, dweight = own.chunk(2)
        wanted = ctx.needs_input_grad
        return dx, dweight if wanted[1] else None, dbias if wanted[2] else None, None, None


class SyncBatchNorm(_BatchNorm):
    r"""Batch normalisation by the statistics of the batch of all processes, for CPU tensors too.

    ``torch.nn.SyncBatchNorm`` refuses tensors on the CPU, and ``DistributedDataParallel`` refuses models on the CPU
    that contain it. This one asks nothing of the backend but ``all_gather`` and ``all_reduce`` (tested with gloo), and
    is otherwise used like it: convert the model, then wrap it.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance; positive.
    momentum : float or None
        Weight of the new batch in the running statistics. None: the average over all batches so far.
    affine, track_running_stats, device, dtype, bias
        As in ``torch.nn.SyncBatchNorm``.
    process_group : ProcessGroup, optional
        The processes whose batches are one; by default all.

    Attributes
    ----------
    weight, bias : Parameter, shape (C,), or None
        gamma and beta.
    running_mean, running_var, num_batches_tracked : Tensor or None
        Those of the batch of all processes, with the unbiased variance: the same on each of them.

    Raises
    ------
    ValueError
        If the input has fewer than two axes or another number of channels, or if there is one value per channel in all
        processes together.

    Notes
    -----
    What is exact, with k processes in training mode (``bnlearn.functional.sync_batch_norm`` is the same on one):

    - the output and the running statistics are those of batch normalisation of all the samples in one batch, however
      unevenly they are shared out, and if a process has none;
    - the gradient of the input is that of the SUM of the processes' losses;
    - the gradients of weight and bias are the own samples' share of it, as in ``torch.nn.SyncBatchNorm``: their sum
      over the processes is the gradient. ``DistributedDataParallel`` divides every gradient, these and those before
      the layer, by k. If each process's loss is the mean over its samples, the step is that of the mean over all
      samples where the processes have equally many; elsewhere scale each loss by k times its share of the samples.

    Each pass exchanges once: (n, mean, sum of squared deviations) and the means' rounding errors in the forward pass,
    two sums in the backward pass. So every process must call the layer equally often, in the same order, in the same
    mode, and go backwards through it; one that does not leaves the others waiting until the group's timeout. The
    backward exchange is left out where no gradient of the input is asked for, which must be the case on all.

    In evaluation mode, and where no process group was initialised, it is ``torch.nn.BatchNorm2d``. Under
    ``torch.compile`` the exchange runs outside the graph, so ``fullgraph=True`` is refused. Under autocast the
    statistics are taken in float32.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    >>> SyncBatchNorm.convert_sync_batchnorm(model)[1]
    SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.process_group = process_group
        self._converted_from: type[_BatchNorm] | None = None

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.size(1) != self.num_features:
            raise ValueError(f"expected {self.num_features} channels on axis 1, got input size {tuple(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""Normalise ``input``, shape (N, C, \*spatial), by all processes' batches in training mode."""
        over_processes = self.training and dist.is_available() and dist.is_initialized()
        y: torch.Tensor = self._forward_over_processes(input) if over_processes else super().forward(input)
        return y

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _forward_over_processes(self, input: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(input)
        y: torch.Tensor
        y, mean, var, n = _OverProcesses.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self.process_group
        )
        if n == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {tuple(input.shape)} and no "
                "values in the other processes"
            )
        if self.track_running_stats and self.running_mean is not None:
            self._track(mean, var, n)
        return y

    def _track(self, mean: torch.Tensor, var: torch.Tensor, n: int) -> None:
        running_mean: Any = self.running_mean
        running_var: Any = self.running_var
        counter: Any = self.num_batches_tracked
        with torch.no_grad():
            batches = counter + 1
            momentum = 1 / float(batches) if self.momentum is None else self.momentum
            new_mean, new_var = update_running(running_mean, running_var, mean, var, n, momentum=momentum)
            # In place, and only now that nothing can fail any more.
            running_mean.copy_(new_mean)
            running_var.copy_(new_var)
            counter.copy_(batches)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """``module`` with this layer in the place of each batch normalisation inside it (or of the module itself).

        As PyTorch's class method of that name: parameters and buffers are shared with the old layers, not copied, and
        hooks are lost. Unlike it, only ``BatchNorm1d``, ``2d``, ``3d`` and ``torch.nn.SyncBatchNorm`` are replaced,
        not what merely derives from their base class and normalises otherwise (whitening, batch renormalisation).

        Parameters
        ----------
        module : Module
            It is changed in place, unless it is a batch normalisation itself.
        process_group : ProcessGroup, optional
            For every converted layer.

        Returns
        -------
        Module
            The same module, or the new layer.

        Raises
        ------
        ValueError
            If a lazy layer does not know its number of channels yet.
        """

        def convert(layer: nn.Module) -> nn.Module:
            if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
                raise ValueError(
                    f"expected layers that know their number of channels, got {type(layer).__name__}; run the model "
                    "on a batch first"
                )
            for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
                if isinstance(layer, kind):
                    new = cls(0, process_group=process_group)
                    new._converted_from = kind
                    return _take_over(new, layer)
            return layer

        return _replace(module, convert)

    @classmethod
    def revert_sync_batchnorm(cls, module: nn.Module, *, dim: int | None = None) -> nn.Module:
        """``module`` with PyTorch's batch normalisation again, to run or to export it on its own.

        Parameters
        ----------
        module : Module
            It is changed in place, unless it is a SyncBatchNorm itself.
        dim : int, optional
            1, 2 or 3, for ``BatchNorm1d``, ``2d`` or ``3d`` in the place of layers that were made as they are and not
            converted. A converted one becomes what it was.

        Returns
        -------
        Module
            The same module, or the new layer.

        Raises
        ------
        ValueError
            If a layer was not converted and ``dim`` is not given, or not one of these.
        """
        kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

        def revert(layer: nn.Module) -> nn.Module:
            if not isinstance(layer, cls):
                return layer
            kind = layer._converted_from or kinds.get(dim or 0)
            if kind is None:
                raise ValueError(
                    f"expected dim=1, 2 or 3 for a SyncBatchNorm that was not converted from another layer, got {dim}"
                )
            return _take_over(kind(0), layer)

        return _replace(module, revert)


def _take_over(new: _BatchNorm, old: _BatchNorm) -> _BatchNorm:
    """``new`` with the settings, parameters and buffers of ``old``."""
    new.num_features, new.eps, new.momentum = old.num_features, old.eps, old.momentum
    new.affine, new.track_running_stats, new.training = old.affine, old.track_running_stats, old.training
    for name in ("weight", "bias"):
        new.register_parameter(name, getattr(old, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        new.register_buffer(name, getattr(old, name))
    return new


def _replace(module: nn.Module, replacement: Any) -> nn.Module:
    """``module`` with every layer in it replaced, and itself."""
    new: nn.Module = replacement(module)
    for name, child in module.named_children():
        new.add_module(name, _replace(child, replacement))
    return new
