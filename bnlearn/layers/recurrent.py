"""Recurrent layers with a normaliser inside, in NumPy, with backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from bnlearn import functional
from bnlearn.functional import RecurrentCache, RecurrentGradients, StepStatistics
from bnlearn.layers._base import Array, Layer, check_floats, check_gradient

Functions: TypeAlias = tuple[Callable[..., tuple[Any, RecurrentCache]], Callable[..., RecurrentGradients]]


class _Norm(Layer):
    """The scale, shift and running statistics of one site; the recurrence uses them, it is never called itself."""

    parameter_names = ("weight", "bias")
    buffer_names = ("running_mean", "running_var", "num_batches_tracked")
    bias: Any  # this and the next three: arrays, or None where the site has none
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(self, size: int, scale: float, dtype: DTypeLike, *, shift: bool, rows: int | None) -> None:
        super().__init__()
        self.weight = np.full(size, scale, dtype)
        self.bias = np.zeros(size, dtype) if shift else None
        self.running_mean = None if rows is None else np.zeros((rows, size), dtype)
        self.running_var = None if rows is None else np.ones((rows, size), dtype)
        self.num_batches_tracked = None if rows is None else np.zeros(rows, np.int64)

    def forward(self, x: Array) -> Array:
        raise NotImplementedError("this holds the parameters of a recurrent layer: call that")

    def backward(self, dy: Array) -> Array:
        raise NotImplementedError("this holds the parameters of a recurrent layer: call that")


class _Recurrent(Layer):
    """What the three share; a subclass says which function it is and which sites are normalised."""

    parameter_names = ("weight_ih_l0", "weight_hh_l0", "bias_l0")
    gates: ClassVar[int] = 4
    _functions: ClassVar[Functions]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        *,
        sites: tuple[str, ...],
        rows: int | None,
        scale: float,
        eps: float | None,
        return_sequences: bool,
        rng: np.random.Generator,
        dtype: DTypeLike,
    ) -> None:
        super().__init__()
        if min(input_size, hidden_size) < 1:
            raise ValueError(f"expected input_size and hidden_size >= 1, got {input_size} and {hidden_size}")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"expected rng=np.random.default_rng(seed), got {type(rng).__name__}")
        self.input_size, self.hidden_size, self.eps = input_size, hidden_size, eps
        self.return_sequences = return_sequences
        width, bound = self.gates * hidden_size, hidden_size**-0.5
        self.weight_ih_l0 = rng.uniform(-bound, bound, (width, input_size)).astype(dtype)
        self.weight_hh_l0 = rng.uniform(-bound, bound, (width, hidden_size)).astype(dtype)
        self.bias_l0 = rng.uniform(-bound, bound, width).astype(dtype) if bias else None
        sizes = {"ih": width, "hh": width, "c": hidden_size}
        self.norms = {site: _Norm(sizes[site], scale, dtype, shift=site == "c", rows=rows) for site in sites}

    def children(self) -> dict[str, Layer]:
        """The scales, shifts and statistics, by site."""
        return {f"norm_{site}": norm for site, norm in self.norms.items()}

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """The same as :meth:`forward`."""
        return self.forward(x, mask)

    def forward(self, x: Array, mask: Array | None = None) -> Array:
        """The hidden states of ``x``, shape (N, L, F); ``mask``, bool of shape (N, L), is False where it is padding."""
        self._check_input(x)
        affine: dict[str, Any] = {f"gamma_{site}": norm.weight for site, norm in self.norms.items()}
        if "c" in self.norms:
            affine["beta_c"] = self.norms["c"].bias
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_l0
        y: Array
        y, cache = self._functions[0](x, *weights, **affine, mask=mask, **self._options())
        if self.training:
            self._track(cache)
        self._cache = cache, y.shape
        return y if self.return_sequences else y[:, -1]

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, back through all steps."""
        cache, shape = self._saved()
        check_gradient(dy, shape if self.return_sequences else (shape[0], shape[2]))
        if not self.return_sequences:
            last, dy = dy, np.zeros(shape, dy.dtype)
            dy[:, -1] = last
        gradients = self._functions[1](dy, cache)
        own = {f"{name}_l0": getattr(gradients, name) for name in ("weight_ih", "weight_hh", "bias")}
        own |= {f"norm_{site}.weight": getattr(gradients, f"gamma_{site}") for site in self.norms}
        if "c" in self.norms:
            own["norm_c.bias"] = gradients.beta_c
        self._keep_grads(**own)
        return np.asarray(gradients.x)

    def _options(self) -> dict[str, Any]:
        """What the subclass's function takes besides."""
        return {} if self.eps is None else {"eps": self.eps}

    def _track(self, cache: RecurrentCache) -> None:
        """Update what is remembered of this batch."""

    def _check_input(self, x: Array) -> None:
        check_floats(x)
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(
                f"expected x of shape (N, L, {self.input_size}), got {x.shape}: change input_size, or move the "
                "features to the last axis"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        eps = "" if self.eps is None else f", eps={self.eps}"
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias_l0 is not None}{eps}"


class LSTM(_Recurrent):
    """The plain LSTM, to compare the others with: ``torch.nn.LSTM(batch_first=True)``, one layer in one direction.

    Parameters
    ----------
    input_size, hidden_size, bias, return_sequences, rng, dtype
        As :class:`LayerNormLSTM`.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_l0 : array, shape (4H, F), (4H, H), (4H,)
        Named as in ``torch.nn.LSTM``, whose two biases are one here, their sum.

    Examples
    --------
    >>> LSTM(3, 4, rng=np.random.default_rng(0))(np.ones((2, 5, 3), np.float32)).shape
    (2, 5, 4)
    """

    _functions = functional.lstm, functional.lstm_backward

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        return_sequences: bool = True,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            *(input_size, hidden_size, bias),
            sites=(),
            rows=None,
            scale=1.0,
            eps=None,
            return_sequences=return_sequences,
            rng=rng,
            dtype=dtype,
        )


class LayerNormLSTM(_Recurrent):
    """An LSTM with layer normalisation of both projections and of the cell: see ``functional.layer_norm_lstm``.

    Parameters
    ----------
    input_size, hidden_size : int
        Features F of a step, and hidden units H.
    bias : bool
        Whether the gates have one.
    eps : float
        Added to the variance.
    return_sequences : bool
        Whether the output is the hidden state after every step, (N, L, H), or after the last, (N, H).
    rng : numpy.random.Generator
        Draws weights and bias: uniform within ``1 / sqrt(hidden_size)``, as PyTorch.
    dtype : dtype
        Of the parameters. ``y`` has the dtype of ``x``.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_l0 : array, shape (4H, F), (4H, H), (4H,)
        Named as in ``torch.nn.LSTM``, whose two biases are one here.
    norms : dict
        Per site (``"ih"``, ``"hh"``, ``"c"``) its ``weight``, from ones; the cell's also a ``bias``. Their names in the
        state are ``norm_ih.weight`` and so on.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a NumPy array of floating-point numbers, or its shape, or the mask's, does not fit.

    References
    ----------
    Ba, Kiros and Hinton (2016), "Layer Normalization", supplementary material.

    Examples
    --------
    >>> layer = LayerNormLSTM(3, 4, rng=np.random.default_rng(0), return_sequences=False)
    >>> layer(np.ones((2, 5, 3), np.float32)).shape
    (2, 4)
    """

    _functions = functional.layer_norm_lstm, functional.layer_norm_lstm_backward

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        eps: float = 1e-5,
        return_sequences: bool = True,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            *(input_size, hidden_size, bias),
            sites=("ih", "hh", "c"),
            rows=None,
            scale=1.0,
            eps=eps,
            return_sequences=return_sequences,
            rng=rng,
            dtype=dtype,
        )


class BatchNormLSTM(_Recurrent):
    """An LSTM with batch normalisation, its statistics separate at each time step: see ``functional.batch_norm_lstm``.

    Parameters
    ----------
    input_size, hidden_size, bias, return_sequences, rng, dtype
        As :class:`LayerNormLSTM`.
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
    norms : dict
        Per site its ``weight``, ``running_mean`` and ``running_var`` of shape (max_length, C), and
        ``num_batches_tracked`` of shape (max_length,); one row without ``per_step``.

    Raises
    ------
    TypeError, ValueError
        As :class:`LayerNormLSTM`; ValueError also in training with a batch of one sequence, or with one longer than
        ``max_length``.

    Examples
    --------
    >>> layer = BatchNormLSTM(3, 4, max_length=5, rng=np.random.default_rng(0))
    >>> y = layer(np.ones((2, 5, 3), np.float32))
    >>> layer.norms["hh"].running_mean.shape, layer.eval()(np.ones((2, 9, 3), np.float32)).shape
    ((5, 16), (2, 9, 4))
    """

    _functions: ClassVar[Functions] = functional.batch_norm_lstm, functional.batch_norm_lstm_backward
    sites: ClassVar[tuple[str, ...]] = ("ih", "hh", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        max_length: int | None = None,
        per_step: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        scale: float | None = None,
        return_sequences: bool = True,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if per_step != (max_length is not None) or (max_length is not None and max_length < 1):
            raise ValueError(
                "expected max_length >= 1, the longest sequence in training, with per_step=True, and None without, got "
                f"max_length={max_length} and per_step={per_step}"
            )
        if not eps > 0:
            raise ValueError(f"expected eps > 0, got {eps}")
        self.max_length, self.per_step, self.momentum = max_length, per_step, momentum
        super().__init__(
            *(input_size, hidden_size, bias),
            sites=self.sites if per_step else ("ih",),
            rows=1 if max_length is None else max_length,
            scale=(0.1 if per_step else 1.0) if scale is None else scale,
            eps=eps,
            return_sequences=return_sequences,
            rng=rng,
            dtype=dtype,
        )

    def _options(self) -> dict[str, Any]:
        options = {**super()._options(), "per_step": self.per_step}
        if self.training:
            return options
        statistics = {site: StepStatistics(norm.running_mean, norm.running_var) for site, norm in self.norms.items()}
        return {**options, "statistics": statistics}

    def _track(self, cache: RecurrentCache) -> None:
        new = {
            site: functional.update_running_steps(
                norm.running_mean,
                norm.running_var,
                norm.num_batches_tracked,
                cache.statistics[site],
                momentum=self.momentum,
            )
            for site, norm in self.norms.items()
        }
        for site, norm in self.norms.items():  # in place, and only now that nothing can fail any more
            norm.running_mean[...], norm.running_var[...], norm.num_batches_tracked[...] = new[site]

    def _check_input(self, x: Array) -> None:
        super()._check_input(x)
        if self.training and x.shape[0] < 2:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}: use a larger batch, "
                "or call eval() to use the running statistics"
            )
        if self.training and self.max_length is not None and x.shape[1] > self.max_length:
            raise ValueError(
                f"expected at most max_length={self.max_length} time steps in training, got {x.shape[1]}: make "
                "max_length larger"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, max_length={self.max_length}, momentum={self.momentum}"


class BatchNormRNN(BatchNormLSTM):
    """A recurrent network of tanh units with batch normalisation: as :class:`BatchNormLSTM`, without gates and cell.

    Examples
    --------
    >>> layer = BatchNormRNN(3, 4, per_step=False, rng=np.random.default_rng(0))
    >>> layer(np.ones((2, 5, 3), np.float32)).shape, sorted(layer.state_dict())[2:4]
    ((2, 5, 4), ['norm_ih.running_mean', 'norm_ih.running_var'])
    """

    gates = 1
    sites = ("ih", "hh")
    _functions = functional.batch_norm_rnn, functional.batch_norm_rnn_backward
