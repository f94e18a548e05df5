"""Recurrent modules with a normaliser inside, with the arguments and the results of ``torch.nn.LSTM``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlearn import functional
from bnlearn.functional import RecurrentCache, StepStatistics

__all__ = ["BatchNormLSTM", "BatchNormRNN", "LayerNormLSTM"]


class StepBatchNorm(_BatchNorm):
    """The scale, shift and running statistics, a row per time step, of one site; the recurrence uses them.

    A ``_BatchNorm``, so that ``torch.optim.swa_utils.update_bn`` and whatever looks for batch normalisation finds it.
    """

    scale = 1.0

    def __init__(
        self,
        num_features: int,
        rows: int,
        eps: float,
        momentum: float | None,
        scale: float,
        shift: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.scale = scale
        if not shift:
            self.register_parameter("bias", None)
        self.register_buffer("running_mean", torch.zeros(rows, num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(rows, num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros(rows, device=device, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The scale to its first value, the shift to 0, the statistics to those of nothing seen."""
        super().reset_parameters()
        nn.init.constant_(self.weight, self.scale)

    @torch.no_grad()
    def track(self, statistics: StepStatistics) -> None:
        """Let the running statistics see those of a batch."""
        old = self.running_mean, self.running_var, self.num_batches_tracked
        new = functional.update_running_steps(*old, statistics, momentum=self.momentum)
        for buffer, value in zip(old, new, strict=True):
            buffer.copy_(value)  # type: ignore[union-attr]


class _Recurrent(nn.Module):
    """What the three share; a subclass says which function it is."""

    gates: ClassVar[int] = 4
    _function: ClassVar[Callable[..., tuple[Tensor, RecurrentCache]]]

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, batch_first: bool, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        if min(input_size, hidden_size) < 1:
            raise ValueError(f"expected input_size and hidden_size >= 1, got {input_size} and {hidden_size}")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.bias, self.batch_first = bias, batch_first
        width = self.gates * hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(width, input_size, device=device, dtype=dtype))
        self.weight_hh_l0 = nn.Parameter(torch.empty(width, hidden_size, device=device, dtype=dtype))
        self.bias_l0 = nn.Parameter(torch.empty(width, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as ``torch.nn.LSTM`` does: uniform within ``1 / sqrt(hidden_size)``."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)

    def sites(self) -> dict[str, Any]:
        """The modules that hold what belongs to a normaliser, by site."""
        return {name.removeprefix("norm_"): module for name, module in self.named_children()}

    def forward(self, input: Tensor, hx: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """The hidden states and the last state, as ``torch.nn.LSTM`` (or ``torch.nn.RNN``) returns them.

        Parameters
        ----------
        input : tensor, shape (L, N, F), or (N, L, F) if ``batch_first``
            Sequences.
        hx : tuple of tensors (h_0, c_0), or for the RNN the tensor h_0, shape (1, N, H), optional
            The first state; zeros by default.
        mask : tensor of bool, shape (L, N), or (N, L) if ``batch_first``, optional
            False where ``input`` is padding: the state is carried through, and no statistic sees it.

        Returns
        -------
        output : tensor, shape (L, N, H), or (N, L, H) if ``batch_first``
            The hidden state after each step.
        state : tuple of tensors (h_n, c_n), or for the RNN the tensor h_n, shape (1, N, H)
            The last state.
        """
        if input.dim() != 3:
            raise ValueError(f"expected 3D input (got {input.dim()}D input)")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )
        x = input if self.batch_first else input.transpose(0, 1)
        if mask is not None and not self.batch_first:
            mask = mask.transpose(0, 1)
        self._check_batch(x)
        state = None if hx is None else tuple(s[0] for s in (hx if self.gates == 4 else (hx,)))
        affine = {f"gamma_{site}": norm.weight for site, norm in self.sites().items()}
        if "c" in self.sites():
            affine["beta_c"] = self.sites()["c"].bias
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_l0
        eps = self.sites()["ih"].eps
        y, cache = type(self)._function(x, *weights, **affine, state=state, mask=mask, eps=eps, **self._options())
        if self.training:
            self._track(cache)
        last = tuple(s[None] for s in cache.state)
        return y if self.batch_first else y.transpose(0, 1), last if self.gates == 4 else last[0]

    def _check_batch(self, x: Tensor) -> None:
        """Raise where the batch has no statistics."""

    def _options(self) -> dict[str, Any]:
        """What the subclass's function takes besides."""
        return {}

    def _track(self, cache: RecurrentCache) -> None:
        """Update what is remembered of this batch."""

    def extra_repr(self) -> str:
        """The arguments, as ``torch.nn.LSTM`` writes them."""
        shown = f"{self.input_size}, {self.hidden_size}"
        shown += "" if self.bias else ", bias=False"
        return shown + (", batch_first=True" if self.batch_first else "")


class LayerNormLSTM(_Recurrent):
    """An LSTM with layer normalisation of both projections and of the cell: :func:`bnlearn.functional.layer_norm_lstm`.

    Parameters
    ----------
    input_size, hidden_size, bias, batch_first, device, dtype
        As in ``torch.nn.LSTM``, of which this is one layer in one direction.
    eps : float
        Added to the variance.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_l0
        As in ``torch.nn.LSTM``, whose two biases are one here, their sum.
    norm_ih, norm_hh, norm_c : torch.nn.LayerNorm
        Scales, and the shift of the cell.

    References
    ----------
    Ba, Kiros and Hinton (2016), "Layer Normalization", supplementary material.

    Examples
    --------
    >>> out, (h, c) = LayerNormLSTM(3, 4, batch_first=True)(torch.ones(2, 5, 3))
    >>> tuple(out.shape), tuple(h.shape)
    ((2, 5, 4), (1, 2, 4))
    """

    _function = functional.layer_norm_lstm

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        batch_first: bool = False,
        *,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, batch_first, device, dtype)
        width = self.gates * hidden_size
        self.norm_ih = nn.LayerNorm(width, eps, bias=False, device=device, dtype=dtype)
        self.norm_hh = nn.LayerNorm(width, eps, bias=False, device=device, dtype=dtype)
        self.norm_c = nn.LayerNorm(hidden_size, eps, device=device, dtype=dtype)


class BatchNormLSTM(_Recurrent):
    """An LSTM with batch normalisation, its statistics separate per step: :func:`bnlearn.functional.batch_norm_lstm`.

    Parameters
    ----------
    input_size, hidden_size, bias, batch_first, device, dtype
        As in ``torch.nn.LSTM``, of which this is one layer in one direction.
    max_length : int or None
        For how many time steps to keep statistics: the longest sequence in training. Longer ones in evaluation use the
        last step's. None with ``per_step=False``.
    per_step : bool
        Whether to normalise both projections and the cell, each step by itself (Cooijmans et al. 2016), or the
        projection of the input alone, over all steps together (Laurent et al. 2016).
    eps : float
        Added to the variance; positive.
    momentum : float or None
        Weight of the new batch in the running statistics; None: the average of all batches that reached the step.
    scale : float or None
        What every gamma starts at: by default 0.1 with ``per_step``, as Cooijmans et al. found necessary, else 1.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_l0
        As in ``torch.nn.LSTM``, whose two biases are one here, their sum.
    norm_ih, norm_hh, norm_c
        Per site the scale ``weight`` (the cell's also a shift ``bias``), ``running_mean`` and ``running_var`` of shape
        (max_length, C) and ``num_batches_tracked`` of shape (max_length,); one row without ``per_step``.

    Examples
    --------
    >>> lstm = BatchNormLSTM(3, 4, batch_first=True, max_length=5)
    >>> out, (h, c) = lstm(torch.ones(2, 5, 3))
    >>> tuple(lstm.norm_hh.running_mean.shape), tuple(lstm.eval()(torch.ones(2, 9, 3))[0].shape)
    ((5, 16), (2, 9, 4))
    """

    _function: ClassVar[Callable[..., tuple[Tensor, RecurrentCache]]] = functional.batch_norm_lstm

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        batch_first: bool = False,
        *,
        max_length: int | None = None,
        per_step: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        scale: float | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if per_step != (max_length is not None) or (max_length is not None and max_length < 1):
            raise ValueError(
                "expected max_length >= 1, the longest sequence in training, with per_step=True, and None without, got "
                f"max_length={max_length} and per_step={per_step}"
            )
        if not eps > 0:
            raise ValueError(f"expected eps > 0, got {eps}")
        super().__init__(input_size, hidden_size, bias, batch_first, device, dtype)
        self.max_length, self.per_step = max_length, per_step
        width, rows = self.gates * hidden_size, 1 if max_length is None else max_length
        settings = eps, momentum, (0.1 if per_step else 1.0) if scale is None else scale
        self.norm_ih = StepBatchNorm(width, rows, *settings, False, device, dtype)
        if per_step:
            self.norm_hh = StepBatchNorm(width, rows, *settings, False, device, dtype)
            if self.gates == 4:
                self.norm_c = StepBatchNorm(hidden_size, rows, *settings, True, device, dtype)

    def _check_batch(self, x: Tensor) -> None:
        if self.training and x.size(0) == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        if self.training and self.max_length is not None and x.size(1) > self.max_length:
            raise ValueError(
                f"expected at most max_length={self.max_length} time steps in training, got {x.size(1)}: make "
                "max_length larger"
            )

    def _options(self) -> dict[str, Any]:
        if self.training:
            return {"per_step": self.per_step}
        statistics = {site: StepStatistics(norm.running_mean, norm.running_var) for site, norm in self.sites().items()}
        return {"per_step": self.per_step, "statistics": statistics}

    def _track(self, cache: RecurrentCache) -> None:
        for site, norm in self.sites().items():
            norm.track(cache.statistics[site])

    def extra_repr(self) -> str:
        """The arguments, as ``torch.nn.LSTM`` writes them."""
        length = f", max_length={self.max_length}" if self.per_step else ", per_step=False"
        return super().extra_repr() + length


class BatchNormRNN(BatchNormLSTM):
    """A recurrent network of tanh units with batch normalisation: as :class:`BatchNormLSTM`, without gates and cell.

    Examples
    --------
    >>> out, h = BatchNormRNN(3, 4, per_step=False)(torch.ones(5, 2, 3))
    >>> tuple(out.shape), tuple(h.shape)
    ((5, 2, 4), (1, 2, 4))
    """

    gates = 1
    _function = functional.batch_norm_rnn
