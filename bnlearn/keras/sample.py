"""Normalisers of single samples, and the nonlinearities that go with them."""

from __future__ import annotations

from typing import Any

import keras

from bnlearn.functional import (
    adaptive_instance_norm,
    dynamic_tanh,
    evonorm_s0,
    filter_response_norm,
    thresholded_linear_unit,
)
from bnlearn.keras._base import ChannelNormalization

__all__ = [
    "AdaptiveInstanceNormalization",
    "DynamicTanh",
    "EvoNormS0",
    "FilterResponseNormalization",
    "ThresholdedLinearUnit",
]


@keras.saving.register_keras_serializable(package="bnlearn")
class FilterResponseNormalization(ChannelNormalization):
    """Each channel of each sample over its root mean square: see :func:`bnlearn.functional.filter_response_norm`.

    A :class:`ThresholdedLinearUnit` belongs behind it.

    Parameters
    ----------
    epsilon : float
        Added to the mean square; the paper's value.
    learn_epsilon : bool
        Whether it is learned, per channel, from that value: for maps of one position. The paper starts it at 1e-4.
    **kwargs
        As :class:`InstanceNormalization`.

    Examples
    --------
    >>> import keras
    >>> layer = FilterResponseNormalization(epsilon=1e-12)
    >>> y = layer(keras.ops.convert_to_tensor([[[1.0], [7.0]]]))
    >>> print(keras.ops.convert_to_numpy(y)[0, :, 0].round(3))
    [0.2 1.4]
    """

    def __init__(self, *, epsilon: float = 1e-6, learn_epsilon: bool = False, **kwargs: Any) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        self.learn_epsilon = learn_epsilon

    def _add_weights(self, channels: int) -> None:
        super()._add_weights(channels)
        if self.learn_epsilon:
            start = keras.initializers.Constant(self.epsilon)
            self.learned_epsilon = self.add_weight(shape=(channels,), name="epsilon", initializer=start)

    def normalize(self, x: Any) -> Any:
        r"""X of shape (N, C, \*spatial), each channel of each sample by its own mean square."""
        eps = self._tensor(self.learned_epsilon) if self.learn_epsilon else self.epsilon
        return filter_response_norm(x, self._tensor(self.gamma), self._tensor(self.beta), eps=eps)[0]

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {**super().get_config(), "learn_epsilon": self.learn_epsilon}


@keras.saving.register_keras_serializable(package="bnlearn")
class ThresholdedLinearUnit(ChannelNormalization):
    """``max(x, tau)`` with a learned threshold per channel: see :func:`bnlearn.functional.thresholded_linear_unit`.

    Parameters
    ----------
    axis : int
        The channel axis.
    tau_initializer, tau_regularizer, tau_constraint
        For ``tau``, shape (C,). From zeros, where the layer is a ReLU.
    **kwargs
        ``name``, ``dtype``, ``trainable``: as every Keras layer.

    Examples
    --------
    >>> import keras
    >>> y = ThresholdedLinearUnit()(keras.ops.convert_to_tensor([[-1.0, 2.0]]))
    >>> print(keras.ops.convert_to_numpy(y))
    [[0. 2.]]
    """

    def __init__(
        self,
        *,
        axis: int = -1,
        tau_initializer: Any = "zeros",
        tau_regularizer: Any = None,
        tau_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(axis=axis, center=False, scale=False, **kwargs)
        self.tau_initializer = keras.initializers.get(tau_initializer)
        self.tau_regularizer = keras.regularizers.get(tau_regularizer)
        self.tau_constraint = keras.constraints.get(tau_constraint)

    def _add_weights(self, channels: int) -> None:
        self.tau = self.add_weight(
            shape=(channels,),
            name="tau",
            initializer=self.tau_initializer,
            regularizer=self.tau_regularizer,
            constraint=self.tau_constraint,
        )

    def normalize(self, x: Any) -> Any:
        r"""X of shape (N, C, \*spatial), each channel cut off at its threshold."""
        return thresholded_linear_unit(x, self._tensor(self.tau))[0]

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        own = keras.layers.Layer.get_config(self)
        return {
            **own,
            "axis": self.axis,
            "tau_initializer": keras.initializers.serialize(self.tau_initializer),
            "tau_regularizer": keras.regularizers.serialize(self.tau_regularizer),
            "tau_constraint": keras.constraints.serialize(self.tau_constraint),
        }


@keras.saving.register_keras_serializable(package="bnlearn")
class EvoNormS0(ChannelNormalization):
    """A normaliser and an activation in one: see :func:`bnlearn.functional.evonorm_s0`. No ReLU belongs behind it.

    Parameters
    ----------
    groups : int
        Number of groups, a divisor of the channels.
    epsilon : float
        Added to the variance; the paper's value.
    v_initializer
        For ``v``, the steepness of the gate, shape (C,).
    **kwargs
        As :class:`InstanceNormalization`.

    Raises
    ------
    ValueError
        If the groups do not divide the channels.

    Examples
    --------
    >>> import keras
    >>> tuple(EvoNormS0(groups=2)(keras.ops.ones((2, 8, 8, 4))).shape)
    (2, 8, 8, 4)
    """

    def __init__(self, groups: int = 32, *, epsilon: float = 1e-5, v_initializer: Any = "ones", **kwargs: Any) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        self.groups = groups
        self.v_initializer = keras.initializers.get(v_initializer)

    def _add_weights(self, channels: int) -> None:
        if self.groups < 1 or channels % self.groups:
            raise ValueError(f"expected groups to divide the {channels} channels, got groups={self.groups}")
        super()._add_weights(channels)
        self.v = self.add_weight(shape=(channels,), name="v", initializer=self.v_initializer)

    def normalize(self, x: Any) -> Any:
        r"""X of shape (N, C, \*spatial), each group of channels of each sample by its own variance."""
        vectors = (self._tensor(vector) for vector in (self.gamma, self.beta, self.v))
        return evonorm_s0(x, *vectors, groups=self.groups, eps=self.epsilon)[0]

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {
            **super().get_config(),
            "groups": self.groups,
            "v_initializer": keras.initializers.serialize(self.v_initializer),
        }


@keras.saving.register_keras_serializable(package="bnlearn")
class DynamicTanh(ChannelNormalization):
    """``gamma * tanh(alpha * x) + beta`` in the place of a layer norm: see :func:`bnlearn.functional.dynamic_tanh`.

    Parameters
    ----------
    alpha_init_value : float
        What the slope ``alpha``, shape (1,), starts from.
    **kwargs
        As :class:`InstanceNormalization`; there is no ``epsilon``.

    Examples
    --------
    >>> import keras
    >>> y = DynamicTanh()(keras.ops.convert_to_tensor([[-100.0, 0.0, 100.0]]))
    >>> print(keras.ops.convert_to_numpy(y))
    [[-1.  0.  1.]]
    """

    def __init__(self, *, alpha_init_value: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha_init_value = alpha_init_value

    def _add_weights(self, channels: int) -> None:
        start = keras.initializers.Constant(self.alpha_init_value)
        self.alpha = self.add_weight(shape=(1,), name="alpha", initializer=start)
        super()._add_weights(channels)

    def normalize(self, x: Any) -> Any:
        r"""X of shape (N, C, \*spatial), value by value."""
        return dynamic_tanh(x, *(self._tensor(vector) for vector in (self.alpha, self.gamma, self.beta)))[0]

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        config = {**super().get_config(), "alpha_init_value": self.alpha_init_value}
        del config["epsilon"]
        return config


@keras.saving.register_keras_serializable(package="bnlearn")
class AdaptiveInstanceNormalization(keras.layers.Layer):  # type: ignore[misc]
    """The first input, the content, with the mean and standard deviation, per channel, of the second, the style.

    See :func:`bnlearn.functional.adaptive_instance_norm`. There is nothing to learn.

    Parameters
    ----------
    axis : int
        The channel axis of both inputs.
    epsilon : float
        Added to both variances; positive.
    **kwargs
        ``name``, ``dtype``: as every Keras layer.

    Raises
    ------
    ValueError
        If ``epsilon`` is not positive, if ``axis`` is the batch's or not one of the inputs', if there are not two
        inputs, if they differ in samples or channels, or if one has fewer than two positions.

    Examples
    --------
    >>> import keras
    >>> content, style = keras.ops.ones((1, 8, 8, 3)), keras.ops.ones((1, 5, 5, 3))
    >>> tuple(AdaptiveInstanceNormalization()([content, style]).shape)
    (1, 8, 8, 3)
    """

    def __init__(self, *, axis: int = -1, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not epsilon > 0:
            raise ValueError(f"expected epsilon > 0, got epsilon={epsilon}")
        self.axis, self.epsilon = axis, epsilon

    def build(self, input_shape: Any) -> None:
        """Check the shapes."""
        if len(input_shape) != 2 or not all(isinstance(shape, (tuple, list)) for shape in input_shape):
            raise ValueError(f"expected two inputs, [content, style], got input of shape {input_shape}")
        for shape in input_shape:
            if not -len(shape) <= self.axis < len(shape) or self.axis % len(shape) == 0:
                raise ValueError(
                    f"expected axis, the channels', from 1 to {len(shape) - 1} or negative, got axis={self.axis}"
                )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """``[content, style]`` to an array of the shape of content, in the layer's compute dtype."""
        content, style = (keras.ops.moveaxis(keras.ops.cast(x, self.compute_dtype), self.axis, 1) for x in inputs)
        return keras.ops.moveaxis(adaptive_instance_norm(content, style, eps=self.epsilon)[0], 1, self.axis)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the content."""
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {**super().get_config(), "axis": self.axis, "epsilon": self.epsilon}
