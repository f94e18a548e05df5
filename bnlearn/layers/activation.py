"""Normalisers that come with a nonlinearity, or are one, as layers: FRN and TLU, EvoNorm-S0, Dynamic Tanh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bnlearn.functional import (
    dynamic_tanh,
    dynamic_tanh_backward,
    evonorm_s0,
    evonorm_s0_backward,
    filter_response_norm,
    filter_response_norm_backward,
    thresholded_linear_unit,
    thresholded_linear_unit_backward,
)
from bnlearn.layers._base import Array, Layer
from bnlearn.layers.sample import check_channels_of, check_divisible, rows, shape_of


class FilterResponseNorm(Layer):
    """Divide each channel of each sample by its root mean square: see :func:`bnlearn.functional.filter_response_norm`.

    A :class:`ThresholdedLinearUnit` belongs behind it.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the mean square.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros), shape (C,).
    learn_eps : bool
        Whether ``eps`` is learned too, per channel, from the value given: for maps of one position. The paper starts
        it at 1e-4.
    dtype : dtype
        Of the parameters. ``y`` has the dtype of ``x``.

    Raises
    ------
    RuntimeError, TypeError
        If ``x`` has not ``num_features`` channels on axis 1, or is not a NumPy array of floats.

    Examples
    --------
    >>> print(FilterResponseNorm(2)(np.array([[[1.0, 7.0], [30.0, 40.0]]])).round(3))
    [[[0.2   1.4  ]
      [0.849 1.131]]]
    """

    parameter_names: tuple[str, ...] = ("weight", "bias")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        learn_eps: bool = False,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.num_features, self.affine, self.learn_eps = num_features, affine, learn_eps
        self.weight = np.ones(num_features, dtype) if affine else None
        self.bias = np.zeros(num_features, dtype) if affine else None
        self.eps: Any = np.full(num_features, eps, dtype) if learn_eps else eps
        if learn_eps:
            self.parameter_names = ("weight", "bias", "eps")

    def forward(self, x: Array) -> Array:
        r"""(N, C, \*spatial) to the same."""
        check_channels_of(x, self.num_features)
        y: Array
        y, self._cache = filter_response_norm(x, self.weight, self.bias, eps=self.eps)
        return y

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``; those of the parameters are sums over samples and positions."""
        dx: Array
        dx, dgamma, dbeta, deps = filter_response_norm_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta, eps=deps)
        return dx

    def extra_repr(self) -> str:
        """The arguments."""
        eps = "" if self.learn_eps else f", eps={self.eps}"
        return f"{self.num_features}{eps}, affine={self.affine}, learn_eps={self.learn_eps}"


class ThresholdedLinearUnit(Layer):
    """``max(x, tau)`` with a learned threshold per channel: see :func:`bnlearn.functional.thresholded_linear_unit`.

    Parameters
    ----------
    num_features : int
        Number of channels C. ``tau``, shape (C,), starts at zero, where the layer is a ReLU.
    dtype : dtype
        Of ``tau``. ``y`` has the dtype of ``x``.

    Raises
    ------
    RuntimeError, TypeError
        As :class:`FilterResponseNorm`.

    Examples
    --------
    >>> print(ThresholdedLinearUnit(2)(np.array([[-1.0, 2.0]])))
    [[0. 2.]]
    """

    parameter_names = ("tau",)

    def __init__(self, num_features: int, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__()
        self.num_features = num_features
        self.tau = np.zeros(num_features, dtype)

    def forward(self, x: Array) -> Array:
        r"""(N, C, \*spatial) to the same."""
        check_channels_of(x, self.num_features)
        y: Array
        y, self._cache = thresholded_linear_unit(x, self.tau)
        return y

    def backward(self, dy: Array) -> Array:
        """``dy`` where x was above the threshold, else 0; the rest goes to the threshold."""
        dx: Array
        dx, dtau = thresholded_linear_unit_backward(dy, self._saved())
        self._keep_grads(tau=dtau)
        return dx

    def extra_repr(self) -> str:
        """The argument."""
        return f"{self.num_features}"


class EvoNormS0(Layer):
    """A normaliser and an activation in one: see :func:`bnlearn.functional.evonorm_s0`. No ReLU belongs behind it.

    Parameters
    ----------
    num_groups, num_channels : int
        The first divides the second.
    eps : float
        Added to the variance.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros), shape (C,). ``v``, the steepness
        of the gate, from ones, is always learned.
    dtype : dtype
        Of the parameters. ``y`` has the dtype of ``x``.

    Raises
    ------
    ValueError
        If the groups do not divide the channels.
    RuntimeError, TypeError
        As :class:`FilterResponseNorm`.

    Examples
    --------
    >>> print(EvoNormS0(2, 4)(np.array([[-3.0, 1.0, 20.0, 60.0]])).round(3))
    [[-0.071  0.366  1.     3.   ]]
    """

    parameter_names = ("weight", "bias", "v")

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        check_divisible(num_groups, num_channels)
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.weight = np.ones(num_channels, dtype) if affine else None
        self.bias = np.zeros(num_channels, dtype) if affine else None
        self.v = np.ones(num_channels, dtype)

    def forward(self, x: Array) -> Array:
        r"""(N, C, \*spatial) to the same."""
        check_channels_of(x, self.num_channels)
        y: Array
        y, self._cache = evonorm_s0(x, self.weight, self.bias, self.v, groups=self.num_groups, eps=self.eps)
        return y

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``; those of the parameters are sums over samples and positions."""
        dx: Array
        dx, dgamma, dbeta, dv = evonorm_s0_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta, v=dv)
        return dx

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class DynamicTanh(Layer):
    r"""``weight * tanh(alpha * x) + bias``, in the place of a layer norm: see :func:`bnlearn.functional.dynamic_tanh`.

    The arguments are those of the authors' own module.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The shape of ``weight`` (from ones) and ``bias`` (from zeros).
    channels_last : bool
        Whether these are the last axes of ``x``, as for :class:`LayerNorm`. Otherwise there is one, axis 1.
    alpha_init_value : float
        What the slope ``alpha``, shape (1,), starts from.
    elementwise_affine : bool
        Whether there are ``weight`` and ``bias``.
    dtype : dtype
        Of the parameters. ``y`` has the dtype of ``x``.

    Raises
    ------
    ValueError
        If ``normalized_shape`` has several axes, and they are not to be the last.
    RuntimeError, TypeError
        If the shape of ``x`` does not fit, or it is not a NumPy array of floats.

    Examples
    --------
    >>> print(DynamicTanh(3)(np.array([[-100.0, 0.02, 100.0]])).round(3))
    [[-1.    0.01  1.  ]]
    """

    parameter_names = ("alpha", "weight", "bias")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        channels_last: bool = True,
        alpha_init_value: float = 0.5,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.normalized_shape, self.channels_last = shape_of(normalized_shape), channels_last
        if not channels_last and len(self.normalized_shape) > 1:
            raise ValueError(
                f"expected one number of channels with channels_last=False, got normalized_shape={normalized_shape}"
            )
        self.alpha_init_value, self.elementwise_affine = alpha_init_value, elementwise_affine
        self.alpha = np.full(1, alpha_init_value, dtype)
        self.weight = np.ones(self.normalized_shape, dtype) if elementwise_affine else None
        self.bias = np.zeros(self.normalized_shape, dtype) if elementwise_affine else None

    def forward(self, x: Array) -> Array:
        r"""(\*, \*normalized_shape), or (N, C, \*spatial), to the same."""
        if self.channels_last:
            values = rows(x, self.normalized_shape)
        else:
            check_channels_of(x, self.normalized_shape[0])
            values = x
        axes = range(1, values.ndim) if self.channels_last else (1,)
        y, self._cache = dynamic_tanh(values, self.alpha, self.weight, self.bias, axes=axes)
        return np.reshape(y, x.shape)

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``: each value has its own."""
        cache = self._saved()
        values = rows(dy, self.normalized_shape) if self.channels_last else dy
        dx, dalpha, dgamma, dbeta = dynamic_tanh_backward(values, cache)
        self._keep_grads(alpha=dalpha, weight=dgamma, bias=dbeta)
        return np.reshape(dx, dy.shape)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.normalized_shape}, channels_last={self.channels_last}, alpha_init_value={self.alpha_init_value}, "
            f"elementwise_affine={self.elementwise_affine}"
        )
