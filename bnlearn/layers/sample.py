"""Normalisers of single samples as layers: layer, RMS and group normalisation as PyTorch's, and unit length.

Training and evaluation are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from bnlearn.functional import (
    group_norm,
    group_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
    unit_norm,
    unit_norm_backward,
)
from bnlearn.layers._base import Array, Layer, check_floats


def shape_of(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """``normalized_shape`` as a tuple, unless it is empty."""
    shape = (int(normalized_shape),) if isinstance(normalized_shape, (int, np.integer)) else tuple(normalized_shape)
    if not shape:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            "normalized_shape = []"
        )
    return shape


def rows(x: Array, normalized_shape: tuple[int, ...]) -> Array:
    """``x``, whose last axes are ``normalized_shape``, with all others made one: a view, where NumPy can."""
    check_floats(x)
    others = x.shape[: x.ndim - len(normalized_shape)]
    if x.shape != (*others, *normalized_shape):
        raise RuntimeError(
            f"Given normalized_shape={list(normalized_shape)}, expected input with shape "
            f"[*, {', '.join(map(str, normalized_shape))}], but got input of size {list(x.shape)}"
        )
    return x.reshape(math.prod(others), *normalized_shape)


class LayerNorm(Layer):
    r"""Normalise over the last axes, as ``torch.nn.LayerNorm``: see :func:`bnlearn.functional.layer_norm`.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The lengths of the last axes of ``x``, over which it is normalised.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Whether to learn ``weight`` (from ones) and ``bias`` (from zeros), both of shape ``normalized_shape``.
    bias : bool
        Whether an affine layer has a ``bias``.
    dtype : dtype
        Of the parameters. ``y`` has the dtype of ``x``.

    Raises
    ------
    RuntimeError, TypeError
        If the last axes of ``x`` are not ``normalized_shape``, or ``x`` is not a NumPy array of floats.

    Examples
    --------
    >>> layer = LayerNorm(2)
    >>> print(layer(np.array([[1.0, 3.0], [10.0, 30.0]])).round(3))
    [[-1.  1.]
     [-1.  1.]]
    """

    parameter_names = ("weight", "bias")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = shape_of(normalized_shape), eps, elementwise_affine
        self.weight = np.ones(self.normalized_shape, dtype) if elementwise_affine else None
        self.bias = np.zeros(self.normalized_shape, dtype) if elementwise_affine and bias else None

    def forward(self, x: Array) -> Array:
        r"""(\*, \*normalized_shape) to the same."""
        y, self._cache = layer_norm(rows(x, self.normalized_shape), self.weight, self.bias, eps=self.eps)
        return np.reshape(y, x.shape)

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``; those of weight and bias are sums over all samples and positions."""
        cache = self._saved()
        dx, dgamma, dbeta = layer_norm_backward(rows(dy, self.normalized_shape), cache)
        self._keep_grads(weight=dgamma, bias=dbeta)
        return np.reshape(dx, dy.shape)

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Layer):
    r"""Divide by the root mean square of the last axes, as ``torch.nn.RMSNorm``: :func:`bnlearn.functional.rms_norm`.

    Parameters
    ----------
    normalized_shape, elementwise_affine, dtype
        As for :class:`LayerNorm`; there is no bias.
    eps : float or None
        Added to the mean square. None stands for the machine epsilon of the precision computed in, as in PyTorch:
        float64's for float64, float32's for the rest.

    Raises
    ------
    RuntimeError, TypeError
        As :class:`LayerNorm`.

    Examples
    --------
    >>> print(RMSNorm(2)(np.array([[3.0, 4.0]])).round(3))
    [[0.849 1.131]]
    """

    parameter_names = ("weight",)

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.elementwise_affine = shape_of(normalized_shape), eps, elementwise_affine
        self.weight = np.ones(self.normalized_shape, dtype) if elementwise_affine else None

    def forward(self, x: Array) -> Array:
        r"""(\*, \*normalized_shape) to the same."""
        values = rows(x, self.normalized_shape)
        least = float(np.finfo(np.float64 if x.dtype == np.float64 else np.float32).eps)
        y, self._cache = rms_norm(values, self.weight, eps=least if self.eps is None else self.eps)
        return np.reshape(y, x.shape)

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``; that of weight is a sum over all samples and positions."""
        cache = self._saved()
        dx, dgamma = rms_norm_backward(rows(dy, self.normalized_shape), cache)
        self._keep_grads(weight=dgamma)
        return np.reshape(dx, dy.shape)

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Layer):
    r"""Normalise over groups of channels, as ``torch.nn.GroupNorm``: see :func:`bnlearn.functional.group_norm`.

    Parameters
    ----------
    num_groups, num_channels : int
        The first divides the second.
    eps : float
        Added to the variance.
    affine : bool
        Whether to learn ``weight`` (from ones) and ``bias`` (from zeros), shape (C,).
    bias : bool
        Whether an affine layer has a ``bias``.
    dtype : dtype
        Of the parameters. ``y`` has the dtype of ``x``.

    Raises
    ------
    ValueError
        If the groups do not divide the channels; or if ``x`` is one value per group of a single sample. As in PyTorch,
        with two samples of one value per group nothing is said, and ``y`` is the bias.
    RuntimeError, TypeError
        If ``x`` has not ``num_channels`` channels on axis 1 (which PyTorch checks where there is a weight), or is not a
        NumPy array of floats.

    Examples
    --------
    >>> print(GroupNorm(2, 4)(np.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    parameter_names = ("weight", "bias")

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        check_divisible(num_groups, num_channels)
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.weight = np.ones(num_channels, dtype) if affine else None
        self.bias = np.zeros(num_channels, dtype) if affine and bias else None

    def forward(self, x: Array) -> Array:
        r"""(N, C, \*spatial) to the same."""
        check_channels_of(x, self.num_channels)
        if x.size == self.num_groups:
            size = list(x.shape)
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {size}: use fewer groups"
            )
        y: Array
        y, self._cache = group_norm(x, self.weight, self.bias, groups=self.num_groups, eps=self.eps)
        return y

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``; those of weight and bias are sums over all samples and positions."""
        dx: Array
        dx, dgamma, dbeta = group_norm_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta)
        return dx

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


def check_divisible(num_groups: int, num_channels: int) -> None:
    """Raise unless the groups divide the channels."""
    if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
        raise ValueError(f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})")


def check_channels_of(x: Array, channels: int) -> None:
    r"""Raise unless ``x`` is (N, channels, \*spatial), of floats."""
    check_floats(x)
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    if x.shape[1] != channels:
        raise RuntimeError(
            f"expected {channels} channels on axis 1, got {x.shape[1]} in input size {list(x.shape)}: change the "
            "number of channels of the layer, or move the channels to axis 1"
        )


class UnitNorm(Layer):
    """Divide by the length, as ``torch.nn.functional.normalize``: see :func:`bnlearn.functional.unit_norm`.

    Parameters
    ----------
    p : {1, 2}
        Which norm.
    dim : int
        The axis that makes up one vector.
    eps : float
        The least norm to divide by.

    Examples
    --------
    >>> print(UnitNorm()(np.array([[3.0, 4.0]])))
    [[0.6 0.8]]
    """

    def __init__(self, p: int = 2, dim: int = 1, eps: float = 1e-12) -> None:
        super().__init__()
        self.p, self.dim, self.eps = p, dim, eps

    def forward(self, x: Array) -> Array:
        r"""(N, C, \*spatial) to the same."""
        check_floats(x)
        y: Array
        y, self._cache = unit_norm(x, axes=(self.dim,), p=self.p, eps=self.eps)
        return y

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``: at right angles to it, where p is 2."""
        dx: Array = unit_norm_backward(dy, self._saved())
        return dx

    def extra_repr(self) -> str:
        """The arguments."""
        return f"p={self.p}, dim={self.dim}, eps={self.eps}"
