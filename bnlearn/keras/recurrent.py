"""Recurrent layers with a normaliser inside, with the arguments and the results of ``keras.layers.LSTM``.

:class:`LayerNormLSTMCell` is a cell for ``keras.layers.RNN``, which does the rest. Batch normalisation cannot be one:
Keras shows a cell neither the mask nor which step it is at, and on JAX nothing can be remembered inside its loop. So
:class:`BatchNormLSTM` and :class:`BatchNormSimpleRNN` are whole layers, unrolled over a known number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras

from bnlearn import functional
from bnlearn.functional import RecurrentCache, StepStatistics

__all__ = ["BatchNormLSTM", "BatchNormSimpleRNN", "LayerNormLSTMCell"]


class _Weights(keras.layers.Layer):  # type: ignore[misc]
    """The weights and their arguments, as in ``keras.layers.LSTM``; a subclass adds what is particular to it."""

    gates: ClassVar[int] = 4

    def __init__(
        self,
        units: int,
        *,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        epsilon: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        # Parameters and statistics stay in float32 under mixed precision; the input is cast in `call`.
        super().__init__(autocast=False, **kwargs)
        if units < 1:
            raise ValueError(f"expected units >= 1, got units={units}")
        if not epsilon > 0:
            raise ValueError(f"expected epsilon > 0, got epsilon={epsilon}")
        self.units, self.use_bias, self.epsilon, self.unit_forget_bias = units, use_bias, epsilon, unit_forget_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_initializer = keras.initializers.get(beta_initializer)

    def _add_weights(self, features: int, sites: tuple[str, ...]) -> None:
        width = self.gates * self.units
        self.sites = {site: self.units if site == "c" else width for site in sites}
        self.kernel = self.add_weight(shape=(features, width), name="kernel", initializer=self.kernel_initializer)
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, width), name="recurrent_kernel", initializer=self.recurrent_initializer
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(width,), name="bias", initializer=self._first_bias)
        self.gammas = {
            site: self.add_weight(shape=(size,), name=f"gamma_{site}", initializer=self.gamma_initializer)
            for site, size in self.sites.items()
        }
        self.beta_c = None
        if "c" in sites:
            self.beta_c = self.add_weight(shape=(self.units,), name="beta_c", initializer=self.beta_initializer)

    def _first_bias(self, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> Any:
        """Zeros, but ones for the forget gate, as in ``keras.layers.LSTM``."""
        drawn = self.bias_initializer(shape, *args, **kwargs)
        if self.gates == 1 or not self.unit_forget_bias:
            return drawn
        ones = keras.ops.ones((self.units,), dtype=drawn.dtype)
        return keras.ops.concatenate([drawn[: self.units], ones, drawn[2 * self.units :]])

    def _arguments(self) -> dict[str, Any]:
        """The weights as the formulas take them."""
        tensor = keras.ops.convert_to_tensor
        arguments = {
            "weight_ih": keras.ops.transpose(tensor(self.kernel)),
            "weight_hh": keras.ops.transpose(tensor(self.recurrent_kernel)),
            "eps": self.epsilon,
        }
        arguments |= {f"gamma_{site}": tensor(gamma) for site, gamma in self.gammas.items()}
        arguments |= {"bias": tensor(self.bias)} if self.bias is not None else {}
        return arguments | ({"beta_c": tensor(self.beta_c)} if self.beta_c is not None else {})

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        serialize = keras.initializers.serialize
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": serialize(self.kernel_initializer),
            "recurrent_initializer": serialize(self.recurrent_initializer),
            "bias_initializer": serialize(self.bias_initializer),
            "gamma_initializer": serialize(self.gamma_initializer),
            "beta_initializer": serialize(self.beta_initializer),
            "unit_forget_bias": self.unit_forget_bias,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="bnlearn")
class LayerNormLSTMCell(_Weights):
    """The cell of a layer-normalised LSTM, for ``keras.layers.RNN``: see :func:`bnlearn.functional.layer_norm_lstm`.

    Parameters
    ----------
    units : int
        Hidden units H.
    use_bias, kernel_initializer, recurrent_initializer, bias_initializer, unit_forget_bias
        As in ``keras.layers.LSTM``.
    gamma_initializer, beta_initializer
        Of the scales of both projections and the cell, and of the cell's shift.
    epsilon : float
        Added to the variance; positive.
    **kwargs
        ``name``, ``dtype``, ``trainable``: as every Keras layer.

    References
    ----------
    Ba, Kiros and Hinton (2016), "Layer Normalization", supplementary material.

    Examples
    --------
    >>> import keras
    >>> layer = keras.layers.RNN(LayerNormLSTMCell(4), return_sequences=True)
    >>> tuple(layer(keras.ops.ones((2, 5, 3))).shape)
    (2, 5, 4)
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.state_size = [units, units]
        self.output_size = units

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights."""
        self._add_weights(input_shape[-1], ("ih", "hh", "c"))  # type: ignore[arg-type]
        self.built = True

    def call(self, inputs: Any, states: Any, training: bool | None = None) -> tuple[Any, list[Any]]:
        """One step: ``inputs`` (N, F) and ``states`` [h, c], each (N, H), to h and the states after it."""
        x, h, c = (keras.ops.cast(a, self.compute_dtype) for a in (inputs, *states))
        _, cache = functional.layer_norm_lstm(x[:, None, :], **self._arguments(), state=(h, c))
        return cache.state[0], list(cache.state)

    def get_initial_state(self, batch_size: int | None = None) -> list[Any]:
        """Zeros."""
        return [keras.ops.zeros((batch_size, self.units), dtype=self.compute_dtype) for _ in range(2)]


@keras.saving.register_keras_serializable(package="bnlearn")
class BatchNormLSTM(_Weights):
    """An LSTM with batch normalisation, its statistics separate per step: :func:`bnlearn.functional.batch_norm_lstm`.

    Parameters
    ----------
    units : int
        Hidden units H.
    per_step : bool
        Whether to normalise both projections and the cell, each step by itself (Cooijmans et al. 2016), or the
        projection of the input alone, over all steps together (Laurent et al. 2016).
    max_length : int or None
        For how many time steps to keep statistics; by default as many as the input has when the layer is built.
        Longer ones in inference use the last step's.
    return_sequences, return_state : bool
        As in ``keras.layers.LSTM``.
    momentum : float
        Weight of the OLD statistics in the moving ones, from 0 to 1.
    gamma_initializer
        Of the scales; by default 0.1 with ``per_step``, as Cooijmans et al. found necessary, else ones.
    **kwargs
        As :class:`LayerNormLSTMCell`.

    Raises
    ------
    ValueError
        If the number of steps is not known, or in training larger than ``max_length``.

    Notes
    -----
    In training it normalises by the batch and updates the moving statistics (biased, as Keras's); in inference, and
    always when ``trainable`` is False, it normalises by those. A mask, from ``keras.layers.Masking`` say, carries the
    state through padding and keeps it out of the statistics. A batch of one has no statistics: they then stay as they
    were.

    Examples
    --------
    >>> import keras
    >>> layer = BatchNormLSTM(4, return_sequences=True)
    >>> tuple(layer(keras.ops.ones((2, 5, 3)), training=True).shape), tuple(layer.moving["hh"][0].shape)
    ((2, 5, 4), (5, 16))
    """

    _sites: ClassVar[tuple[str, ...]] = ("ih", "hh", "c")
    _function: ClassVar[Callable[..., tuple[Any, RecurrentCache]]] = functional.batch_norm_lstm

    def __init__(
        self,
        units: int,
        *,
        per_step: bool = True,
        max_length: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        momentum: float = 0.99,
        gamma_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        if gamma_initializer is None:
            gamma_initializer = keras.initializers.Constant(0.1) if per_step else "ones"
        super().__init__(units, gamma_initializer=gamma_initializer, **kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"expected momentum, the weight of the old statistics, from 0 to 1, got {momentum}")
        if max_length is not None and (not per_step or max_length < 1):
            raise ValueError(
                f"expected max_length >= 1 with per_step=True and None without, got max_length={max_length} and "
                f"per_step={per_step}"
            )
        self.per_step, self.max_length, self.momentum = per_step, max_length, momentum
        self.return_sequences, self.return_state = return_sequences, return_state
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights and the moving statistics."""
        if len(input_shape) != 3 or input_shape[1] is None or input_shape[2] is None:
            raise ValueError(
                f"expected inputs of shape (N, L, features) with a known number of steps and features, got "
                f"{tuple(input_shape)}"
            )
        self._add_weights(input_shape[2], self._sites if self.per_step else ("ih",))
        rows = (self.max_length or input_shape[1]) if self.per_step else 1
        self.moving = {
            site: tuple(
                self.add_weight(shape=shape, name=f"{name}_{site}", initializer=first, trainable=False, dtype=dtype)
                for name, shape, first, dtype in (
                    ("moving_mean", (rows, size), "zeros", None),
                    ("moving_variance", (rows, size), "ones", None),
                    ("tracked", (rows,), "zeros", "int32"),
                )
            )
            for site, size in self.sites.items()
        }
        self.built = True

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None, initial_state: Any = None) -> Any:
        """The hidden state after the last step, or after every one with ``return_sequences``; then the last state."""
        x = keras.ops.cast(inputs, self.compute_dtype)
        by_batch = bool(training) and self.trainable
        options: dict[str, Any] = {"per_step": self.per_step, "mask": mask, "state": initial_state}
        if by_batch:
            rows = self.moving["ih"][0].shape[0]
            if self.per_step and x.shape[1] > rows:
                raise ValueError(
                    f"expected at most max_length={rows} time steps in training, got {x.shape[1]}; set max_length"
                )
        else:
            tensor = keras.ops.convert_to_tensor
            options["statistics"] = {s: StepStatistics(tensor(m[0]), tensor(m[1])) for s, m in self.moving.items()}
        y, cache = type(self)._function(x, **self._arguments(), **options)
        if by_batch:
            self._track(cache)
        y = y if self.return_sequences else y[:, -1, :]
        return [y, *cache.state] if self.return_state else y

    def _track(self, cache: RecurrentCache) -> None:
        for site, variables in self.moving.items():
            mean, variance, tracked = map(keras.ops.convert_to_tensor, variables)
            new = functional.update_running_steps(
                mean, variance, tracked, cache.statistics[site], momentum=1 - self.momentum, unbiased=False
            )
            for variable, value in zip(variables, new, strict=True):
                variable.assign(value)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask goes on with the sequence; a single output has none."""
        mask = mask if self.return_sequences else None
        states = 2 if self.gates == 4 else 1
        return [mask] + [None] * states if self.return_state else mask

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        """(N, H), or (N, L, H) with ``return_sequences``; then the states'."""
        state = (input_shape[0], self.units)
        y = (*input_shape[:2], self.units) if self.return_sequences else state
        return [y] + [state] * (2 if self.gates == 4 else 1) if self.return_state else y

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {
            **super().get_config(),
            "per_step": self.per_step,
            "max_length": self.max_length,
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "momentum": self.momentum,
        }


@keras.saving.register_keras_serializable(package="bnlearn")
class BatchNormSimpleRNN(BatchNormLSTM):
    """A recurrent network of tanh units with batch normalisation: as :class:`BatchNormLSTM`, without gates and cell.

    Examples
    --------
    >>> import keras
    >>> layer = BatchNormSimpleRNN(4, per_step=False)
    >>> tuple(layer(keras.ops.ones((2, 5, 3)), training=True).shape)
    (2, 4)
    """

    gates = 1
    _sites = ("ih", "hh")
    _function = functional.batch_norm_rnn
