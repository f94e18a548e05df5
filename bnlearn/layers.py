r"""A small neural network in NumPy, with PyTorch's names and semantics: layers that own state and call the formulas.

Every layer maps ``x`` to ``y = layer(x)``, and then the gradient of a loss with respect to ``y`` to the one with
respect to ``x``: ``dx = layer.backward(dy)``. There is no automatic differentiation: :class:`Sequential` calls its
layers forwards and then backwards. The formulas of batch normalisation live in :mod:`bnlearn.functional`; here is what
PyTorch wraps around them.

Shapes are (N, C, \*spatial): N samples, C channels (features), zero or more spatial axes.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, overload

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from bnlearn.functional import BatchNormCache, batch_norm, batch_norm_backward, update_running

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv2d",
    "Flatten",
    "Layer",
    "Linear",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
]

Array: TypeAlias = NDArray[Any]
Init: TypeAlias = Literal["he", "lecun", "glorot"] | float


class IncompatibleKeys(NamedTuple):
    """What :meth:`Layer.load_state_dict` did not find, and what it had no place for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def _check_floats(x: Array) -> None:
    """Raise TypeError unless ``x`` is a NumPy array of real floating-point numbers."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"expected a NumPy array, got {type(x).__name__}; convert it, e.g. with np.asarray")
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"expected floating-point numbers, got {x.dtype}; convert them, e.g. x.astype(np.float32)")


def _check_gradient(dy: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``dy`` has the ``shape`` of the output it is the gradient of."""
    if dy.shape != shape:
        raise ValueError(f"expected dy of the shape of the layer's output, {shape}, got {dy.shape}")


class Layer(ABC):
    """A function with state. A subclass names its arrays, and implements :meth:`forward` and :meth:`backward`.

    Attributes
    ----------
    training : bool
        Whether :meth:`forward` is that of training. New layers are in training mode.
    parameter_names, buffer_names : tuple of str
        The attributes that are learnt, and those that are only remembered. An attribute that is None is absent.

    Notes
    -----
    A forward pass leaves in the layer what its backward pass needs, so neither ``x`` nor ``y`` nor a parameter must be
    changed in between, nor the layer be called twice. Copies and pickles do not carry it. ``copy.copy`` shares the
    arrays, ``copy.deepcopy`` none.

    A layer of your own keeps what it needs in ``self._cache`` and writes ``self.grads["weight"] = ...`` in
    :meth:`backward`; one made of other layers says which in :meth:`children`.
    """

    parameter_names: tuple[str, ...] = ()
    buffer_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.training = True
        self._grads: dict[str, Array] = {}
        self._cache: Any = None

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """The output for ``x``; ``layer(x)`` is the same."""

    @abstractmethod
    def backward(self, dy: Array) -> Array:
        """The gradient with respect to the last forward pass's ``x``, leaving those of the parameters in ``grads``."""

    def __call__(self, x: Array) -> Array:
        """The same as :meth:`forward`."""
        return self.forward(x)

    def train(self, mode: bool = True) -> Self:
        """Switch this layer, and all inside it, to training mode (or, with False, to evaluation mode)."""
        if not isinstance(mode, bool):
            raise ValueError(
                f"training mode is expected to be boolean, got {type(mode).__name__}; to train on data: training.fit"
            )
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch this layer, and all inside it, to evaluation mode."""
        return self.train(False)

    def children(self) -> dict[str, Layer]:
        """The layers directly inside this one, by name."""
        return {}

    def modules(self) -> Iterator[Layer]:
        """The layer itself and all inside it."""
        yield self
        for child in self.children().values():
            yield from child.modules()

    @property
    def grads(self) -> dict[str, Array]:
        """Gradient per parameter, of its shape and dtype. Each :meth:`backward` overwrites it; nothing accumulates."""
        return self._collect(lambda layer: layer._grads) if self.children() else self._grads

    def parameters(self) -> dict[str, Array]:
        """What is learnt, by name (``"0.weight"`` inside a Sequential): the layer's own arrays, not copies."""
        return self._collect(lambda layer: layer._named(layer.parameter_names))

    def buffers(self) -> dict[str, Array]:
        """What is remembered but not learnt (running statistics), by name: the layer's own arrays, not copies."""
        return self._collect(lambda layer: layer._named(layer.buffer_names))

    def _state(self) -> dict[str, Array]:
        return self._collect(lambda layer: layer._named(layer.parameter_names + layer.buffer_names))

    def _named(self, names: tuple[str, ...]) -> dict[str, Array]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _collect(self, own: Callable[[Layer], dict[str, Array]]) -> dict[str, Array]:
        """What ``own`` gives for this layer and, under their names, for those inside it."""
        collected = dict(own(self))
        for name, child in self.children().items():
            collected.update({f"{name}.{key}": array for key, array in child._collect(own).items()})
        return collected

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers, named as in PyTorch.

        ``np.savez(path, **layer.state_dict())`` saves it, ``layer.load_state_dict(np.load(path))`` brings it back, and
        ``{name: torch.from_numpy(a) for name, a in layer.state_dict().items()}`` is for PyTorch's layer.
        """
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters and buffers from ``state``: all of them, or nothing where one does not fit.

        Parameters
        ----------
        state : mapping of str to array
            From :meth:`state_dict`, from ``np.load``, or from the PyTorch module of the same shape (CPU tensors are
            read as they are). Values are cast to the dtype of the layer's arrays.
        strict : bool
            Whether a missing or an unexpected name is an error. A wrong shape always is.

        Returns
        -------
        missing_keys, unexpected_keys : list of str
            Both empty if ``strict``.

        Raises
        ------
        RuntimeError
            Naming every missing key, unexpected key and wrong shape. Nothing has been changed.
        """
        own = self._state()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        loaded = {name: np.asarray(state[name]) for name in own if name in state}
        problems = [f"missing {name!r}" for name in missing if strict]
        problems += [f"unexpected {name!r}" for name in unexpected if strict]
        problems += [
            f"{name!r} has shape {array.shape}, expected {own[name].shape}"
            for name, array in loaded.items()
            if array.shape != own[name].shape
        ]
        if problems:
            raise RuntimeError(
                f"the state does not fit this {type(self).__name__}, nothing was loaded: {'; '.join(problems)}"
            )
        converted = {name: array.astype(own[name].dtype) for name, array in loaded.items()}  # may fail; below may not
        for name, array in converted.items():
            own[name][...] = array
        return IncompatibleKeys(missing, unexpected)

    def extra_repr(self) -> str:
        """What stands between the brackets of the layer's representation."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def _saved(self) -> Any:
        """What the forward pass left for the backward pass."""
        if self._cache is None:
            raise RuntimeError(
                f"expected a forward pass before {type(self).__name__}.backward, got none; call it first"
            )
        return self._cache

    def _keep_grads(self, **grads: Array) -> None:
        own = self.parameters()
        self._grads = {name: np.asarray(grad, own[name].dtype) for name, grad in grads.items() if name in own}


class _BatchNorm(Layer):
    """Batch normalisation with PyTorch's parameters, buffers and rules; a subclass says which shapes it takes."""

    parameter_names = ("weight", "bias")
    buffer_names = ("running_mean", "running_var", "num_batches_tracked")
    layouts: ClassVar[dict[int, str]]
    weight: Any  # this and the next three: arrays of shape (C,), or None where the layer has none
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"expected num_features >= 1, the number of channels, got {num_features}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = np.ones(num_features, dtype) if affine else None
        self.bias = np.zeros(num_features, dtype) if affine and bias else None
        self.running_mean = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None

    def forward(self, x: Array) -> Array:
        r"""Normalise ``x``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        by_batch = self.training or self.running_mean is None
        self._check_input(x, by_batch)
        mean, var = (None, None) if by_batch else (self.running_mean, self.running_var)
        y: Array
        y, cache = batch_norm(x, self.weight, self.bias, mean=mean, var=var, eps=self.eps)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(cache, n=x.size // self.num_features)
        self._cache = cache
        return y

    def backward(self, dy: Array) -> Array:
        """The gradient with respect to ``x``, in the form (training or inference) of the last forward pass."""
        dx: Array
        dx, dgamma, dbeta = batch_norm_backward(dy, self._saved())
        self._keep_grads(weight=dgamma, bias=dbeta)
        return dx

    def _track(self, cache: BatchNormCache, n: int) -> None:
        batches = int(self.num_batches_tracked) + 1
        momentum = 1 / batches if self.momentum is None else self.momentum  # None: the average of all batches so far
        new = update_running(self.running_mean, self.running_var, cache.mean, cache.var, n, momentum=momentum)
        # In place, and only now that nothing can fail any more.
        self.running_mean[...], self.running_var[...] = new
        self.num_batches_tracked[...] = batches

    def _check_input(self, x: Array, by_batch: bool) -> None:
        _check_floats(x)
        if x.ndim not in self.layouts:
            dims = " or ".join(f"{ndim}D" for ndim in self.layouts)
            raise ValueError(
                f"expected {dims} input (got {x.ndim}D input): {type(self).__name__} takes x of shape "
                f"{' or '.join(self.layouts.values())}"
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"expected {self.num_features} channels on axis 1 (got {x.shape[1]} in input size {x.shape}): change "
                "num_features, or move the channels to axis 1"
            )
        if by_batch and x.size == self.num_features:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}: use a larger batch, "
                "drop a last batch of one sample (drop_last=True), or call eval() to use the running statistics"
            )
        if by_batch and not self.eps > 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {self.eps}")

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of features (N, C) or sequences (N, C, L), as ``torch.nn.BatchNorm1d``.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    eps : float
        Added to the variance; positive.
    momentum : float or None
        Weight of the new batch in the running statistics, from 0 to 1. None: the average over all batches so far.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros). Without: None, and no gradients.
    track_running_stats : bool
        Whether to keep running statistics for evaluation. Without, the buffers are None and evaluation too
        normalises by the batch.
    bias : bool
        Whether an affine layer has a ``bias``.
    dtype : dtype
        Of the parameters and the running statistics. ``y`` has the dtype of ``x``.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        gamma and beta.
    running_mean, running_var : array, shape (C,), or None
        Updated by each forward pass in training mode, by the UNBIASED variance of the batch. Used in evaluation mode.
    num_batches_tracked : array of int64, shape (), or None
        How many batches the running statistics have seen.

    Raises
    ------
    TypeError
        If ``x`` is not a NumPy array of floating-point numbers.
    ValueError
        If the shape of ``x`` does not fit, if there is one value per channel to take a variance of, or if ``eps`` is
        not positive. The running statistics are then as they were.

    Notes
    -----
    As in PyTorch, an empty batch leaves ``running_mean`` and ``running_var`` alone, but counts as a batch.

    Four things differ. A float64 ``x`` meets a float32 layer (PyTorch refuses) and is computed in float64. The number
    of channels is checked even where the layer holds nothing of that size. ``momentum`` outside 0 to 1 is refused. A
    forward pass that fails does not count in ``num_batches_tracked``.

    References
    ----------
    Ioffe and Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", algorithms 1 and 2.

    Examples
    --------
    >>> layer = BatchNorm1d(2)
    >>> y = layer(np.array([[1.0, 10.0], [3.0, 30.0]], np.float32))
    >>> print(y.round(3))
    [[-1. -1.]
     [ 1.  1.]]
    >>> print(layer.running_mean, layer.running_var)
    [0.2 2. ] [ 1.1 20.9]
    """

    layouts: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images (N, C, H, W), as ``torch.nn.BatchNorm2d``: see :class:`BatchNorm1d`."""

    layouts: ClassVar = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of volumes (N, C, D, H, W), as ``torch.nn.BatchNorm3d``: see :class:`BatchNorm1d`."""

    layouts: ClassVar = {5: "(N, C, D, H, W)"}


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
        _check_floats(x)
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
        _check_gradient(dy, (*x.shape[:-1], self.out_features))
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
        _check_floats(x)
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
        _check_gradient(dy, (len(padded), self.out_channels, *patches.shape[2:4]))
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
        _check_gradient(dy, dead.shape)
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
        _check_gradient(dy, y.shape)
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
        _check_gradient(dy, y.shape)
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
        _check_gradient(dy, (shape[0], math.prod(shape[1:])))
        return dy.reshape(shape)

    def extra_repr(self) -> str:
        """What PyTorch prints."""
        return "start_dim=1, end_dim=-1"


class Sequential(Layer):
    """One layer after the other, as ``torch.nn.Sequential``; names count from zero (``"0.weight"``).

    Parameters
    ----------
    *layers : Layer
        Each object once: a layer remembers one forward pass only.

    Raises
    ------
    TypeError
        If something is not a Layer.
    ValueError
        If a layer comes twice.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> model = Sequential(Linear(64, 32, bias=False, rng=rng), BatchNorm1d(32), ReLU(), Linear(32, 10, rng=rng))
    >>> list(model.parameters())
    ['0.weight', '1.weight', '1.bias', '3.weight', '3.bias']
    >>> y = model(rng.standard_normal((5, 64)))
    >>> dx = model.backward(np.ones_like(y))
    >>> model.grads["0.weight"].shape
    (32, 64)
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"expected layers, got {type(layer).__name__}; write Sequential(first, second, ...)")
        self._layers = layers
        seen: set[int] = set()
        for module in self.modules():
            if id(module) in seen:
                raise ValueError(f"expected every layer once, got {module} twice; make a second one")
            seen.add(id(module))

    def forward(self, x: Array) -> Array:
        """Through all layers, from the first to the last."""
        for layer in self._layers:
            x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Through all layers, from the last to the first."""
        for layer in reversed(self._layers):
            dy = layer.backward(dy)
        return dy

    def activations(self, x: Array) -> dict[str, Array]:
        """The output of each layer for ``x`` in the present mode, by name (``"0.Linear"``), changing nothing.

        A copy of the model does the work, so running statistics and what :meth:`backward` needs stay as they are.
        """
        outputs = {}
        for index, layer in enumerate(copy.deepcopy(self)):
            outputs[f"{index}.{type(layer).__name__}"] = x = layer(x)
        return outputs

    def gradients(self, dy: Array) -> dict[str, Array]:
        """The gradient with respect to the output of each layer, by name (``"0.Linear"``), in the order of the layers.

        This is :meth:`backward` (after a forward pass, and leaving ``grads`` too), writing down what it passes on.
        """
        passed = {}
        for index, layer in reversed(list(enumerate(self._layers))):
            passed[f"{index}.{type(layer).__name__}"] = dy
            dy = layer.backward(dy)
        return dict(reversed(passed.items()))

    def children(self) -> dict[str, Layer]:
        """The layers under their names, ``"0"``, ``"1"``, ..."""
        return {str(index): layer for index, layer in enumerate(self._layers)}

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequential:
        return Sequential(*self._layers[index]) if isinstance(index, slice) else self._layers[index]

    def __repr__(self) -> str:
        if not self._layers:
            return "Sequential()"
        lines = [f"({index}): {layer!r}".replace("\n", "\n  ") for index, layer in enumerate(self)]
        return "Sequential(\n  " + "\n  ".join(lines) + "\n)"
