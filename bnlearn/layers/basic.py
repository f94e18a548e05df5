"""The layers between the normalisers: linear, convolution, activations."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

from bnlearn.layers._base import Array, Layer, check_floats, check_gradient

Init: TypeAlias = Literal["he", "lecun", "glorot"] | float


def _draw(rng: np.random.Generator, shape: tuple[int, ...], init: Init, dtype: DTypeLike) -> Array:
    """Normal weights of ``shape`` (out, in, *kernel), of mean zero and the standard deviation that ``init`` names."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"expected rng=np.random.default_rng(seed), got {type(rng).__name__}")
    if min(shape) < 1:
        raise ValueError(f"expected numbers of inputs and outputs >= 1, got weights of shape {shape}")
    fan_out, fan_in = (size * math.prod(shape[2:]) for size in shape[:2])
    named = {"he": (2 / fan_in) ** 0.5, "lecun": (1 / fan_in) ** 0.5, "glorot": (2 / (fan_in + fan_out)) ** 0.5}
    std = named.get(init, -1.0) if isinstance(init, str) else float(init)
    if not std >= 0:
        raise ValueError(f"expected init 'he', 'lecun', 'glorot' or a standard deviation >= 0, got {init!r}")
    return (std * rng.standard_normal(shape)).astype(dtype)


class Linear(Layer):
    r"""``y = x @ weight.T + bias`` on the last axis, as ``torch.nn.Linear``.

    Parameters
    ----------
    in_features, out_features : int
        Length of the last axis of ``x`` and of ``y``.
    bias : bool
        Whether to add a bias. In front of a batch normalisation it has no effect.
    rng : numpy.random.Generator
        Draws the weights; the bias starts at zero.
    init : {"he", "lecun", "glorot"} or float
        Standard deviation of the weights: sqrt(2 / fan_in) (He et al. 2015, for ReLU), sqrt(1 / fan_in) (LeCun et al.
        1998), sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010), or the number itself.
    dtype : dtype
        Of the parameters.

    Attributes
    ----------
    weight : array, shape (out_features, in_features)
        As in PyTorch.
    bias : array, shape (out_features,), or None
        Added to every output.

    Raises
    ------
    ValueError, TypeError
        If the last axis of ``x`` is not ``in_features`` long, or ``x`` is not of floating-point numbers.

    Examples
    --------
    >>> layer = Linear(3, 2, rng=np.random.default_rng(0))
    >>> layer(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    parameter_names = ("weight", "bias")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator,
        init: Init = "he",
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _draw(rng, (out_features, in_features), init, dtype)
        self.bias = np.zeros(out_features, dtype) if bias else None

    def forward(self, x: Array) -> Array:
        r"""(\*, in_features) to (\*, out_features)."""
        check_floats(x)
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"expected x of shape (N, {self.in_features}), got {x.shape}; put Flatten() before it, or change "
                "in_features"
            )
        self._cache = x
        y: Array = x @ self.weight.T
        return y if self.bias is None else y + self.bias

    def backward(self, dy: Array) -> Array:
        """``dx = dy @ weight``; the gradients of weight and bias are sums over all samples."""
        x = self._saved()
        check_gradient(dy, (*x.shape[:-1], self.out_features))
        rows = dy.reshape(-1, self.out_features)
        self._keep_grads(weight=rows.T @ x.reshape(-1, self.in_features), bias=rows.sum(axis=0))
        dx: Array = dy @ self.weight
        return dx

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _pair(value: int | tuple[int, int], name: str, least: int) -> tuple[int, int]:
    """``value`` for height and width."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(size, (int, np.integer)) and size >= least for size in pair):
        raise ValueError(f"expected {name} to be a whole number >= {least}, or two of them, got {value!r}")
    return pair


class Conv2d(Layer):
    """Two-dimensional cross-correlation of images with learnt kernels, as ``torch.nn.Conv2d``.

    Every patch of an image that the kernel sees becomes a column of a matrix (im2col), and the convolution one product
    of matrices.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of ``x`` and of ``y``.
    kernel_size, stride, padding : int or (int, int)
        For height and width. The padding is with zeros, on both sides.
    bias, rng, init, dtype
        As for :class:`Linear`; fan_in is ``in_channels`` times the kernel's area.

    Attributes
    ----------
    weight : array, shape (out_channels, in_channels, kernel height, kernel width)
        As in PyTorch.
    bias : array, shape (out_channels,), or None
        Added to every pixel.

    Raises
    ------
    ValueError, TypeError
        If ``x`` is not (N, in_channels, H, W) of floating-point numbers, or smaller than the kernel.

    Examples
    --------
    >>> layer = Conv2d(1, 4, kernel_size=3, stride=2, padding=1, rng=np.random.default_rng(0))
    >>> layer(np.ones((5, 1, 8, 8), np.float32)).shape
    (5, 4, 4, 4)
    """

    parameter_names = ("weight", "bias")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        *,
        rng: np.random.Generator,
        init: Init = "he",
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size, "kernel_size", least=1)
        self.stride = _pair(stride, "stride", least=1)
        self.padding = _pair(padding, "padding", least=0)
        self.weight = _draw(rng, (out_channels, in_channels, *self.kernel_size), init, dtype)
        self.bias = np.zeros(out_channels, dtype) if bias else None

    def forward(self, x: Array) -> Array:
        """(N, in_channels, H, W) to (N, out_channels, H', W'), with H' = (H + 2 padding - kernel) // stride + 1."""
        check_floats(x)
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected x of shape (N, {self.in_channels}, H, W), got {x.shape}")
        height, width = self.padding
        padded = np.pad(x, ((0, 0), (0, 0), (height, height), (width, width))) if height or width else x
        if padded.shape[2] < self.kernel_size[0] or padded.shape[3] < self.kernel_size[1]:
            raise ValueError(
                f"expected images, with their padding, at least as large as the kernel {self.kernel_size}, got "
                f"{padded.shape[2:]}; use a smaller kernel or more padding"
            )
        self._cache = padded
        y = self.weight.reshape(self.out_channels, -1) @ self._columns(padded)
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.reshape(len(x), self.out_channels, *self._patches(padded).shape[2:4])

    def backward(self, dy: Array) -> Array:
        """Each weight meets dy at every position it was used; each pixel of x hears from every patch it was in."""
        padded = self._saved()
        patches = self._patches(padded)
        check_gradient(dy, (len(padded), self.out_channels, *patches.shape[2:4]))
        rows = dy.reshape(len(dy), self.out_channels, math.prod(dy.shape[2:]))
        dweight = (rows @ self._columns(padded).swapaxes(1, 2)).sum(axis=0)
        self._keep_grads(weight=dweight.reshape(self.weight.shape), bias=dy.sum(axis=(0, 2, 3)))

        dcolumns = self.weight.reshape(self.out_channels, -1).T @ rows
        dpatches = dcolumns.reshape(*patches.shape[:2], *self.kernel_size, *patches.shape[2:4])
        dx = np.zeros(padded.shape, dcolumns.dtype)
        for row, column in np.ndindex(self.kernel_size):  # patches overlap
            self._patches(dx, writeable=True)[..., row, column] += dpatches[:, :, row, column]
        height, width = self.padding
        return dx[:, :, height : dx.shape[2] - height, width : dx.shape[3] - width]

    def _patches(self, padded: Array, writeable: bool = False) -> Array:
        """A view of every patch that the kernel sees, shape (N, in_channels, H', W', kernel height, kernel width)."""
        windows: Array = sliding_window_view(padded, self.kernel_size, axis=(2, 3), writeable=writeable)
        return windows[:, :, :: self.stride[0], :: self.stride[1]]

    def _columns(self, padded: Array) -> Array:
        """The patches as columns (im2col), shape (N, in_channels * kernel height * kernel width, H' * W')."""
        patches = self._patches(padded).transpose(0, 1, 4, 5, 2, 3)
        return patches.reshape(len(padded), math.prod(patches.shape[1:4]), math.prod(patches.shape[4:]))

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        padding = f", padding={self.padding}" if any(self.padding) else ""
        bias = "" if self.bias is not None else ", bias=False"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
            f"{padding}{bias}"
        )


class ReLU(Layer):
    """``max(x, 0)``, elementwise."""

    def forward(self, x: Array) -> Array:
        """The positive part of ``x``."""
        y: Array = np.maximum(x, 0)
        self._cache = y <= 0  # false of NaN, through which the gradient passes, as in PyTorch
        return y

    def backward(self, dy: Array) -> Array:
        """``dy`` where x was positive, else 0 (also at x = 0, as in PyTorch)."""
        dead = self._saved()
        check_gradient(dy, dead.shape)
        return np.where(dead, 0, dy)


class Sigmoid(Layer):
    """``1 / (1 + exp(-x))``, elementwise."""

    def forward(self, x: Array) -> Array:
        """Written so that exp never overflows."""
        small = np.exp(-np.abs(x))
        y: Array = np.where(x >= 0, 1, small) / (1 + small)
        self._cache = y
        return y

    def backward(self, dy: Array) -> Array:
        """``dy * y * (1 - y)``: at most a quarter of ``dy``."""
        y = self._saved()
        check_gradient(dy, y.shape)
        dx: Array = dy * y * (1 - y)
        return dx


class Tanh(Layer):
    """``tanh(x)``, elementwise."""

    def forward(self, x: Array) -> Array:
        """The hyperbolic tangent of ``x``."""
        self._cache = y = np.tanh(x)
        return y

    def backward(self, dy: Array) -> Array:
        """``dy * (1 - y ** 2)``."""
        y = self._saved()
        check_gradient(dy, y.shape)
        dx: Array = dy * (1 - y * y)
        return dx


class Flatten(Layer):
    r"""(N, \*shape) to (N, features): all axes but the first become one."""

    def forward(self, x: Array) -> Array:
        """The same numbers in two dimensions."""
        self._cache = x.shape
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def backward(self, dy: Array) -> Array:
        """``dy`` in the shape of x."""
        shape = self._saved()
        check_gradient(dy, (shape[0], math.prod(shape[1:])))
        return dy.reshape(shape)

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return "start_dim=1, end_dim=-1"
