r"""Wrappers that normalise the kernel of the layer inside them.

What is learnt is the layer's own ``kernel``; what it computes with is the normalised one, through which the gradient
flows. (``keras.layers.SpectralNormalization`` works otherwise: in training it stores the quotient in the kernel.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from bnlearn.functional import weight_norm, weight_standardization
from bnlearn.functional.weights import fan_in_axes

__all__ = ["WeightNormalization", "WeightStandardization"]

LAST = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


class _KernelNormalization(keras.layers.Wrapper):  # type: ignore[misc]
    """A wrapper around a layer with a kernel; a subclass implements :meth:`normalize`."""

    def __init__(self, layer: Any, axis: int | Sequence[int] | None = None, **kwargs: Any) -> None:
        # The kernel is normalised in its own precision: with a mixed policy, reading it here would cast it, autocast or
        # not. The layer inside casts for itself.
        dtype = getattr(layer, "variable_dtype", None)
        super().__init__(layer, **{**kwargs, "autocast": False, "dtype": dtype})
        self.supports_masking = layer.supports_masking
        self.axis = axis if axis is None or isinstance(axis, int) else tuple(axis)

    def build(self, input_shape: Any = None) -> None:
        """Build the layer inside, then what is learnt besides."""
        super().build(input_shape)
        kernel = getattr(self.layer, "kernel", None)
        if not isinstance(kernel, keras.Variable):
            raise ValueError(f"expected a layer with one kernel, a variable, got {type(self.layer).__name__}")
        self._dim = self._outputs()
        self._fan_in = fan_in_axes(kernel, self._dim)
        self._add_weights(tuple(size for axis, size in enumerate(kernel.shape) if axis not in self._fan_in))
        self.built = True

    def _outputs(self) -> int | tuple[int, ...]:
        """The axes of the kernel that count its filters."""
        if self.axis is not None:
            return self.axis
        for kinds, axes in ((DEPTHWISE, (-2, -1)), (TRANSPOSED, (-2,)), (LAST, (-1,))):
            if isinstance(self.layer, kinds):
                return axes
        raise ValueError(f"expected axis, the outputs' in the kernel, for a layer of kind {type(self.layer).__name__}")

    def _add_weights(self, outputs: tuple[int, ...]) -> None:
        """What is learnt besides the kernel; ``outputs`` is one length per axis of the outputs."""
        raise NotImplementedError

    def normalize(self, kernel: Any) -> Any:
        """The kernel to use, for the one that is learnt."""
        raise NotImplementedError

    @property
    def kernel(self) -> Any:
        """The normalised kernel, a tensor."""
        return self.normalize(keras.ops.convert_to_tensor(self.layer.kernel))

    def call(self, inputs: Any) -> Any:
        """What the layer inside makes of ``inputs`` with the normalised kernel."""
        own, kernel = self.layer.kernel, self.kernel
        mapping = [(v, kernel if v is own else keras.ops.convert_to_tensor(v)) for v in self.layer.variables]
        with keras.StatelessScope(mapping, collect_losses=True, initialize_variables=False) as scope:
            outputs = self.layer(inputs)
        for variable in self.layer.non_trainable_variables:  # what the layer itself keeps
            if variable is not own:
                variable.assign(scope.get_current_value(variable))
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def remove(self) -> Any:
        """The layer inside, with the normalised kernel as its own: the same function, learnt without detour."""
        self.layer.kernel.assign(self.kernel)
        return self.layer

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the layer inside."""
        return tuple(self.layer.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {**super().get_config(), "axis": self.axis}


@keras.saving.register_keras_serializable(package="bnlearn")
class WeightNormalization(_KernelNormalization):
    """Learn a kernel's length and direction apart (Salimans and Kingma 2016): ``g * v / norm(v)``.

    As PyTorch's ``weight_norm``; see :func:`bnlearn.functional.weight_norm`. ``v`` is the layer's own kernel, and
    ``g`` starts as its length, so that the function is at first the layer's.

    Parameters
    ----------
    layer : keras.layers.Layer
        With a ``kernel``: a dense or a convolutional layer.
    axis : int or tuple of int, optional
        The axes of the kernel that count its filters, each of which has its own length. By default the last; the one
        before it for transposed convolutions; and these two for depthwise convolutions, where each channel and
        multiplier is a filter of its own.
    **kwargs
        ``name``, ``trainable``: as every Keras layer. The dtype policy is that of ``layer``.

    Raises
    ------
    ValueError
        When built: if ``layer`` has no kernel, or is of another kind and ``axis`` is not given, or ``axis`` does not
        fit.

    Examples
    --------
    >>> import keras
    >>> layer = WeightNormalization(keras.layers.Dense(4))
    >>> layer(keras.ops.ones((2, 3))).shape
    TensorShape([2, 4])
    >>> [weight.path.split("/")[-1] for weight in layer.trainable_weights]
    ['g', 'kernel', 'bias']
    """

    def _add_weights(self, outputs: tuple[int, ...]) -> None:
        def length(shape: tuple[int, ...], dtype: Any = None) -> Any:
            kernel = keras.ops.convert_to_tensor(self.layer.kernel)
            return keras.ops.cast(keras.ops.sqrt(keras.ops.sum(kernel * kernel, axis=self._fan_in)), dtype)

        self.g = self.add_weight(shape=outputs, name="g", initializer=length, dtype=self.layer.kernel.dtype)

    def normalize(self, kernel: Any) -> Any:
        """``g * kernel / norm(kernel)``."""
        return weight_norm(kernel, keras.ops.convert_to_tensor(self.g), dim=self._dim)[0]


@keras.saving.register_keras_serializable(package="bnlearn")
class WeightStandardization(_KernelNormalization):
    """Give every filter of a kernel mean 0 and variance 1 over its fan-in (Qiao et al. 2019).

    See :func:`bnlearn.functional.weight_standardization`.

    Parameters
    ----------
    layer, axis, **kwargs
        As :class:`WeightNormalization`. A filter of a depthwise convolution has its positions alone as fan-in.
    scaled : bool
        Whether to divide by ``sqrt(fan_in)`` too (Brock, De and Smith 2021).
    gain : bool
        Whether to learn a factor per filter, from ones.
    epsilon : float
        Added to the variance, not negative.

    Raises
    ------
    ValueError
        As :class:`WeightNormalization`; also if ``epsilon`` is negative.

    Examples
    --------
    >>> import keras
    >>> layer = WeightStandardization(keras.layers.Conv2D(4, 3), scaled=True)
    >>> layer(keras.ops.ones((2, 5, 5, 3))).shape
    TensorShape([2, 3, 3, 4])
    >>> print(abs(keras.ops.convert_to_numpy(layer.kernel).sum(axis=(0, 1, 2))).max() < 1e-5)
    True
    """

    def __init__(
        self,
        layer: Any,
        scaled: bool = False,
        gain: bool = False,
        epsilon: float = 1e-6,
        axis: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, axis, **kwargs)
        if not epsilon >= 0:
            raise ValueError(f"expected epsilon >= 0, got epsilon={epsilon}")
        self.scaled, self.use_gain, self.epsilon = scaled, gain, epsilon
        self.gain: Any = None

    def _add_weights(self, outputs: tuple[int, ...]) -> None:
        if self.use_gain:
            self.gain = self.add_weight(shape=outputs, name="gain", initializer="ones", dtype=self.layer.kernel.dtype)

    def normalize(self, kernel: Any) -> Any:
        """The kernel, standardised over the fan-in."""
        gain = None if self.gain is None else keras.ops.convert_to_tensor(self.gain)
        return weight_standardization(kernel, gain, scaled=self.scaled, dim=self._dim, eps=self.epsilon)[0]

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {**super().get_config(), "scaled": self.scaled, "gain": self.use_gain, "epsilon": self.epsilon}
