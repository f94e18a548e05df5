r"""Weight standardisation as a parametrization; weight norm and spectral norm PyTorch has, under the same roof.

A module whose weight is parametrized computes it anew whenever it is asked for; what is learnt is the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from bnlearn import functional

__all__ = ["WeightStandardization", "weight_standardization"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class WeightStandardization(nn.Module):
    r"""The map that :func:`weight_standardization` registers: a weight to its standardised one.

    Parameters
    ----------
    scaled : bool
        Whether to divide by the square root of the fan-in.
    gain : torch.Tensor, optional
        Multiplies every filter, and is learnt, from this value on; of shape (out,). None: no gain.
    eps : float
        Added to the variance.
    dim : int
        The axis of the weight that counts the outputs.

    Examples
    --------
    >>> import torch
    >>> print(WeightStandardization()(torch.tensor([[1.0, 3.0], [-20.0, -10.0]])).round())
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """

    def __init__(self, scaled: bool = False, gain: torch.Tensor | None = None, eps: float = 1e-6, dim: int = 0) -> None:
        super().__init__()
        self.scaled, self.eps, self.dim = scaled, eps, dim
        self.register_parameter("gain", None if gain is None else nn.Parameter(gain))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        r"""``weight``, shape (out, in, \*kernel), with mean 0 and variance 1 over every filter's fan-in."""
        standardised: torch.Tensor = functional.weight_standardization(
            weight, self.gain, scaled=self.scaled, dim=self.dim, eps=self.eps
        )[0]
        return standardised

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The original for a weight that is assigned: itself, to be standardised."""
        return weight

    def extra_repr(self) -> str:
        """What the representation says of the map."""
        return f"scaled={self.scaled}, gain={self.gain is not None}, eps={self.eps}, dim={self.dim}"


def weight_standardization(
    module: nn.Module,
    name: str = "weight",
    scaled: bool = False,
    gain: bool = False,
    eps: float = 1e-6,
    dim: int | None = None,
) -> nn.Module:
    r"""Standardise a weight of ``module`` over the fan-in of every filter (Qiao et al. 2019), and return the module.

    In the manner of ``torch.nn.utils.parametrizations.weight_norm`` and ``spectral_norm``: the original weight becomes
    ``module.parametrizations.weight.original``, and ``module.weight`` is computed from it.
    ``torch.nn.utils.parametrize.remove_parametrizations(module, "weight")`` takes it off and leaves the function.

    Parameters
    ----------
    module : torch.nn.Module
        A convolution or a linear layer, say. For every convolution of a model: ``for layer in model.modules(): if
        isinstance(layer, torch.nn.Conv2d): weight_standardization(layer)``.
    name : str
        The name of the weight.
    scaled : bool
        Whether to divide by ``sqrt(fan_in)`` too (Brock, De and Smith 2021).
    gain : bool
        Whether to learn a factor per filter, from ones: ``parametrizations.weight.0.gain``.
    eps : float
        Added to the variance, not negative.
    dim : int, optional
        The axis that counts the outputs; by default 0, and 1 for transposed convolutions. Each filter of a grouped
        (or depthwise) convolution has its own fan-in; a weight of one input per filter, kernel 1, becomes zero.

    Raises
    ------
    ValueError
        If ``module`` has no such weight, ``dim`` or ``eps`` does not fit, or ``module`` is a transposed convolution
        with groups, whose filters lie across two axes.

    Examples
    --------
    >>> import torch
    >>> layer = weight_standardization(torch.nn.Conv2d(3, 8, 3), scaled=True)
    >>> layer(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 8, 3, 3])
    >>> sorted(layer.state_dict())
    ['bias', 'parametrizations.weight.original']
    """
    weight: Any = getattr(module, name, None)
    if not isinstance(weight, torch.Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if dim is None:
        if isinstance(module, TRANSPOSED) and module.groups > 1:
            raise ValueError(
                f"expected a transposed convolution without groups, got groups={module.groups}; its weight has no axis "
                "that counts the outputs"
            )
        dim = 1 if isinstance(module, TRANSPOSED) else 0
    functional.weight_standardization(weight.detach(), dim=dim, eps=eps)  # says what is wrong before anything changes
    ones = torch.ones(weight.shape[dim], dtype=weight.dtype, device=weight.device) if gain else None
    parametrize.register_parametrization(module, name, WeightStandardization(scaled, ones, eps, dim))
    return module
