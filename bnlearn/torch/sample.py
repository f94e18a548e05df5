r"""Normalisers of single samples, and the nonlinearities that go with them, for x of shape (N, C, \*spatial)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

from bnlearn.functional import (
    adaptive_instance_norm,
    dynamic_tanh,
    evonorm_s0,
    filter_response_norm,
    thresholded_linear_unit,
    unit_norm,
)

__all__ = [
    "AdaptiveInstanceNorm",
    "DynamicTanh",
    "EvoNormS0",
    "FilterResponseNorm",
    "ThresholdedLinearUnit",
    "UnitNorm",
]


def _check_channels(input: torch.Tensor, channels: int) -> None:
    if input.dim() < 2:
        raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
    if input.size(1) != channels:
        raise ValueError(f"expected {channels} channels on axis 1, got input size {tuple(input.shape)}")


class UnitNorm(torch.nn.Module):
    """``torch.nn.functional.normalize`` as a module: each vector along ``dim`` divided by its length.

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
    >>> UnitNorm()(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, p: int = 2, dim: int = 1, eps: float = 1e-12) -> None:
        super().__init__()
        self.p, self.dim, self.eps = p, dim, eps

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""(N, C, \*spatial) to the same."""
        y: torch.Tensor = unit_norm(input, axes=(self.dim,), p=self.p, eps=self.eps)[0]
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"p={self.p}, dim={self.dim}, eps={self.eps}"


class FilterResponseNorm(torch.nn.Module):
    """Each channel of each sample over its root mean square (:func:`bnlearn.functional.filter_response_norm`).

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
        Whether ``eps`` is a parameter too, shape (C,), from the value given: for maps of one position. The paper starts
        it at 1e-4.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If the input has fewer than two axes, or another number of channels.

    Examples
    --------
    >>> layer = torch.nn.Sequential(FilterResponseNorm(3), ThresholdedLinearUnit(3))
    >>> layer(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    weight: Any
    bias: Any
    eps: Any

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        learn_eps: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features, self.affine, self.learn_eps = num_features, affine, learn_eps
        made = {"device": device, "dtype": dtype}
        self.register_parameter("weight", Parameter(torch.ones(num_features, **made)) if affine else None)
        self.register_parameter("bias", Parameter(torch.zeros(num_features, **made)) if affine else None)
        self.eps = Parameter(torch.full((num_features,), eps, **made)) if learn_eps else eps

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""(N, C, \*spatial) to the same."""
        _check_channels(input, self.num_features)
        y: torch.Tensor = filter_response_norm(input, self.weight, self.bias, eps=self.eps)[0]
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        eps = "" if self.learn_eps else f", eps={self.eps}"
        return f"{self.num_features}{eps}, affine={self.affine}, learn_eps={self.learn_eps}"


class ThresholdedLinearUnit(torch.nn.Module):
    """``max(x, tau)`` with a learned threshold per channel (:func:`bnlearn.functional.thresholded_linear_unit`).

    Parameters
    ----------
    num_features : int
        Number of channels C. ``tau``, shape (C,), starts at zero, where the module is a ReLU.
    device, dtype
        Of ``tau``.

    Raises
    ------
    ValueError
        As :class:`FilterResponseNorm`.

    Examples
    --------
    >>> ThresholdedLinearUnit(2)(torch.tensor([[-1.0, 2.0]])).tolist()
    [[0.0, 2.0]]
    """

    def __init__(self, num_features: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_features = num_features
        self.tau = Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""(N, C, \*spatial) to the same."""
        _check_channels(input, self.num_features)
        y: torch.Tensor = thresholded_linear_unit(input, self.tau)[0]
        return y

    def extra_repr(self) -> str:
        """The argument."""
        return f"{self.num_features}"


class EvoNormS0(torch.nn.Module):
    """A normaliser and an activation in one (:func:`bnlearn.functional.evonorm_s0`): no ReLU belongs behind it.

    Parameters
    ----------
    num_groups, num_channels : int
        As in ``torch.nn.GroupNorm``: the first divides the second. The paper takes 32 groups.
    eps : float
        Added to the variance.
    affine : bool
        Whether to learn ``weight`` (gamma, from ones) and ``bias`` (beta, from zeros), shape (C,). ``v``, the steepness
        of the gate, from ones, is always learned.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If the groups do not divide the channels, or the input has fewer than two axes or another number of channels.

    Examples
    --------
    >>> EvoNormS0(2, 4)(torch.ones(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    weight: Any
    bias: Any

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        made = {"device": device, "dtype": dtype}
        self.register_parameter("weight", Parameter(torch.ones(num_channels, **made)) if affine else None)
        self.register_parameter("bias", Parameter(torch.zeros(num_channels, **made)) if affine else None)
        self.v = Parameter(torch.ones(num_channels, **made))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""(N, C, \*spatial) to the same."""
        _check_channels(input, self.num_channels)
        y: torch.Tensor = evonorm_s0(input, self.weight, self.bias, self.v, groups=self.num_groups, eps=self.eps)[0]
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class AdaptiveInstanceNorm(torch.nn.Module):
    """The content with the mean and standard deviation, per channel, of the style: AdaIN, with nothing to learn.

    See :func:`bnlearn.functional.adaptive_instance_norm`. The variance is the biased one, as in the paper's equation 6;
    implementations that call ``Tensor.var`` with its defaults take the unbiased one.

    Parameters
    ----------
    eps : float
        Added to both variances.

    Raises
    ------
    ValueError
        If the two inputs differ in samples or channels, or one has fewer than two positions.

    Examples
    --------
    >>> y = AdaptiveInstanceNorm(eps=0.0)(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[10.0, 30.0]]]))
    >>> y.mean().item(), round(y.std(correction=0).item(), 4)
    (20.0, 10.0)
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        r"""Content and style, both (N, C, \*spatial), to the shape of content."""
        y: torch.Tensor = adaptive_instance_norm(content, style, eps=self.eps)[0]
        return y

    def extra_repr(self) -> str:
        """The argument."""
        return f"eps={self.eps}"


class DynamicTanh(torch.nn.Module):
    r"""``weight * tanh(alpha * x) + bias`` in the place of a layer norm (:func:`bnlearn.functional.dynamic_tanh`).

    Arguments and state are those of the authors' own module.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The shape of ``weight`` (from ones) and ``bias`` (from zeros).
    channels_last : bool
        Whether these are the last axes of the input, as in ``torch.nn.LayerNorm``. Otherwise there is one, axis 1.
    alpha_init_value : float
        What the slope ``alpha``, shape (1,), starts from.
    elementwise_affine : bool
        Whether there are ``weight`` and ``bias``.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If ``normalized_shape`` has several axes and they are not to be the last.
    RuntimeError
        If the shape of the input does not fit, as in ``torch.nn.LayerNorm``.

    Examples
    --------
    >>> DynamicTanh(3)(torch.tensor([[-100.0, 0.0, 100.0]])).tolist()
    [[-1.0, 0.0, 1.0]]
    """

    weight: Any
    bias: Any

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        channels_last: bool = True,
        alpha_init_value: float = 0.5,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape or (not channels_last and len(shape) > 1):
            raise ValueError(
                "expected normalized_shape of at least one axis, and of one with channels_last=False, got "
                f"{list(shape)} with channels_last={channels_last}"
            )
        self.normalized_shape, self.channels_last = shape, channels_last
        self.alpha_init_value, self.elementwise_affine = alpha_init_value, elementwise_affine
        made = {"device": device, "dtype": dtype}
        self.alpha = Parameter(torch.full((1,), alpha_init_value, **made))
        self.register_parameter("weight", Parameter(torch.ones(shape, **made)) if elementwise_affine else None)
        self.register_parameter("bias", Parameter(torch.zeros(shape, **made)) if elementwise_affine else None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""(\*, \*normalized_shape), or (N, C, \*spatial), to the same."""
        shape, own = tuple(input.shape), self.normalized_shape
        first = len(shape) - len(own) if self.channels_last else 1
        if first < 0 or shape[first : first + len(own)] != own:
            layout = ", ".join(map(str, ("*", *own) if self.channels_last else ("N", *own, "*")))
            raise RuntimeError(
                f"Given normalized_shape={list(own)}, expected input with shape [{layout}], but got input of size"
                f"{list(shape)}"
            )
        batch = input if input.dim() > 1 else input[None]
        axes = range(first + batch.dim() - len(shape), first + batch.dim() - len(shape) + len(own))
        y: torch.Tensor = dynamic_tanh(batch, self.alpha, self.weight, self.bias, axes=tuple(axes))[0]
        return y.reshape(shape)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.normalized_shape}, channels_last={self.channels_last}, alpha_init_value={self.alpha_init_value}, "
            f"elementwise_affine={self.elementwise_affine}"
        )
