"""What every layer here shares: Keras's arguments and weights outside, (N, C, *spatial) and the formulas inside."""

from __future__ import annotations

from typing import Any

import keras

from bnlearn.functional import batch_norm, instance_norm, update_running

__all__ = ["ChannelNormalization", "InstanceNormalization", "StatisticsNormalization"]


class ChannelNormalization(keras.layers.Layer):  # type: ignore[misc]
    """A normaliser with one gamma and one beta per channel; a subclass implements :meth:`normalize`.

    Parameters
    ----------
    axis : int
        The channel axis.
    epsilon : float
        Added to the variance; positive.
    center, scale : bool
        Whether to learn ``beta`` (from ``beta_initializer``) and ``gamma`` (from ``gamma_initializer``), shape (C,).
    beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint
        As in ``keras.layers.BatchNormalization``.
    **kwargs
        ``name``, ``dtype``, ``trainable``: as every Keras layer.

    Raises
    ------
    ValueError
        If ``epsilon`` is not positive, if ``axis`` is the batch's or not one of the input's, or if the number of
        channels is not known.
    """

    def __init__(
        self,
        *,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        # Under mixed precision, `call` casts the input; see `add_weight` for parameters and statistics.
        super().__init__(autocast=False, **kwargs)
        if not epsilon > 0:
            raise ValueError(f"expected epsilon > 0, got epsilon={epsilon}")
        self.axis, self.epsilon, self.center, self.scale = axis, epsilon, center, scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.gamma: Any = None
        self.beta: Any = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights, one value per channel."""
        ndim = len(input_shape)
        if not -ndim <= self.axis < ndim or self.axis % ndim == 0:
            raise ValueError(f"expected axis, the channels', from 1 to {ndim - 1} or negative, got axis={self.axis}")
        channels = input_shape[self.axis]
        if channels is None:
            raise ValueError(f"expected a known number of channels on axis {self.axis}, got shape {input_shape}")
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={self.axis: channels})
        self._add_weights(channels)
        self.built = True

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """As every layer's, but read in the precision it is kept in, whatever the dtype policy computes in."""
        return super().add_weight(*args, **{"autocast": False, **kwargs})

    def _add_weights(self, channels: int) -> None:
        """Gamma and beta; a subclass adds its own after these."""
        if self.scale:
            self.gamma = self.add_weight(
                shape=(channels,),
                name="gamma",
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
            )
        if self.center:
            self.beta = self.add_weight(
                shape=(channels,),
                name="beta",
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
            )

    def _tensor(self, variable: Any) -> Any:
        """The backend's own tensor, which is what the formulas know; None stays None."""
        return None if variable is None else keras.ops.convert_to_tensor(variable)

    def _channels_first(self, inputs: Any) -> Any:
        x = keras.ops.cast(inputs, self.compute_dtype)
        return keras.ops.moveaxis(x, self.axis, 1)

    def _restore(self, y: Any) -> Any:
        return keras.ops.moveaxis(y, 1, self.axis)

    def call(self, inputs: Any) -> Any:
        """``inputs`` normalised, of the same shape, in the layer's compute dtype."""
        return self._restore(self.normalize(self._channels_first(inputs)))

    def normalize(self, x: Any) -> Any:
        r"""What the subclass does to x of shape (N, C, \*spatial)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it normalises; implement normalize")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
        }


class StatisticsNormalization(ChannelNormalization):
    """A normaliser with moving statistics; a subclass says in :meth:`normalize_batch` what training does.

    In training, the layer normalises by the batch and updates ``moving_mean`` and ``moving_variance`` (biased, as
    Keras's); in inference, and always when ``trainable`` is False, it normalises by those two.

    Parameters
    ----------
    momentum : float
        Weight of the OLD statistics in the moving ones, from 0 to 1.
    moving_mean_initializer, moving_variance_initializer
        As in ``keras.layers.BatchNormalization``.
    **kwargs
        As :class:`ChannelNormalization`.
    """

    def __init__(
        self,
        *,
        momentum: float = 0.99,
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"expected momentum, the weight of the old statistics, from 0 to 1, got {momentum}")
        self.momentum = momentum
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)

    def _add_weights(self, channels: int) -> None:
        super()._add_weights(channels)
        self.moving_mean = self.add_weight(
            shape=(channels,), name="moving_mean", initializer=self.moving_mean_initializer, trainable=False
        )
        self.moving_variance = self.add_weight(
            shape=(channels,), name="moving_variance", initializer=self.moving_variance_initializer, trainable=False
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """``inputs`` normalised, of the same shape, in the layer's compute dtype."""
        x = self._channels_first(inputs)
        return self._restore(self.normalize_batch(x) if training and self.trainable else self.normalize(x))

    def normalize(self, x: Any) -> Any:
        r"""Inference: x of shape (N, C, \*spatial) by the moving statistics."""
        return batch_norm(
            x,
            self._tensor(self.gamma),
            self._tensor(self.beta),
            mean=self._tensor(self.moving_mean),
            var=self._tensor(self.moving_variance),
            eps=self.epsilon,
        )[0]

    def normalize_batch(self, x: Any) -> Any:
        r"""Training: x of shape (N, C, \*spatial) by the batch; calls :meth:`track`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it trains; implement normalize_batch")

    def track(self, mean: Any, var: Any, n: Any) -> None:
        """Let the moving statistics see the mean and the biased variance, shape (C,), of ``n`` values per channel."""
        moving_mean, moving_variance = update_running(
            self._tensor(self.moving_mean),
            self._tensor(self.moving_variance),
            mean,
            var,
            n,
            momentum=1 - self.momentum,
            unbiased=False,
        )
        self.moving_mean.assign(moving_mean)
        self.moving_variance.assign(moving_variance)

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "moving_mean_initializer": keras.initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": keras.initializers.serialize(self.moving_variance_initializer),
        }


@keras.saving.register_keras_serializable(package="bnlearn")
class InstanceNormalization(ChannelNormalization):
    """Each channel of each sample, normalised over its positions: see :func:`bnlearn.functional.instance_norm`.

    ``keras.layers.GroupNormalization(groups=-1)`` is the same; this one has the name, and refuses an input without
    positions. Arguments are those of the other layers here.

    Examples
    --------
    >>> import keras
    >>> layer = InstanceNormalization(epsilon=1e-12)
    >>> y = layer(keras.ops.convert_to_tensor([[[1.0], [3.0]]]))
    >>> print(keras.ops.convert_to_numpy(y)[0, :, 0])
    [-1.  1.]
    """

    def normalize(self, x: Any) -> Any:
        r"""X of shape (N, C, \*spatial), each channel of each sample by its own statistics."""
        return instance_norm(x, self._tensor(self.gamma), self._tensor(self.beta), eps=self.epsilon)[0]
