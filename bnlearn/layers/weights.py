r"""Layers whose weight is normalised: a wrapper holds the parameters, and hands its layer a new weight each time.

Parameters and buffers are named as by ``torch.nn.utils.parametrizations``, whose modules' states load here.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bnlearn.functional import (
    spectral_norm,
    spectral_norm_backward,
    weight_norm,
    weight_norm_backward,
    weight_standardization,
    weight_standardization_backward,
)
from bnlearn.functional.weights import fan_in_axes
from bnlearn.layers._base import Array, Layer
from bnlearn.layers.basic import Conv2d, Linear

ORIGINAL = "parametrizations.weight.original"
STATE = "parametrizations.weight.0."


class _Parametrized(Layer):
    """A layer whose weight is computed from what is learnt; a subclass says how, in three methods.

    The arrays are not attributes: their names are PyTorch's, and have dots in them.
    """

    def __init__(self, layer: Linear | Conv2d) -> None:
        super().__init__()
        if not isinstance(layer, (Linear, Conv2d)):
            raise TypeError(f"expected a Linear or a Conv2d, whose weight to normalise, got {type(layer).__name__}")
        self.layer = layer
        self._arrays: dict[str, Array] = {}

    @abstractmethod
    def _normalized(self, training: bool) -> tuple[Array, Any]:
        """The weight to use, and what :meth:`_gradients` needs. It changes nothing."""

    @abstractmethod
    def _gradients(self, dweight: Array, cache: Any) -> dict[str, Array]:
        """The gradients of what is learnt, by name."""

    def _accept(self, cache: Any) -> None:
        """Remember what the forward pass in training leaves behind, now that nothing can fail any more."""

    @property
    def weight(self) -> Array:
        """The normalised weight, as in evaluation mode."""
        return self._normalized(training=False)[0]

    def forward(self, x: Array) -> Array:
        """The output of the layer inside, with the normalised weight."""
        self.layer.weight, cache = self._normalized(self.training)
        y = self.layer(x)
        if self.training:
            self._accept(cache)
        self._cache = cache
        return y

    def backward(self, dy: Array) -> Array:
        """Through the layer inside, then through the normalisation of its weight."""
        cache = self._saved()
        dx = self.layer.backward(dy)
        inside = self.layer.grads
        grads = {name: grad for name, grad in inside.items() if name != "weight"}
        self._keep_grads(**grads, **self._gradients(inside["weight"], cache))
        return dx

    def remove(self) -> Linear | Conv2d:
        """The layer inside, with the normalised weight as its own: the same function, learnt without detour."""
        self.layer.weight = self.weight
        return self.layer

    def modules(self) -> Iterator[Layer]:
        """The wrapper and the layer inside, which has no name of its own."""
        yield self
        yield from self.layer.modules()

    def _named(self, names: tuple[str, ...]) -> dict[str, Array]:
        held: Mapping[str, Array | None] = {"bias": self.layer.bias, **self._arrays}
        return {name: array for name in names if (array := held.get(name)) is not None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.layer!r}, {self.extra_repr()})"


class WeightNorm(_Parametrized):
    r"""A layer whose weight is ``g * v / norm(v)``: length and direction learnt apart (Salimans and Kingma 2016).

    As ``torch.nn.utils.parametrizations.weight_norm``. The weight starts as it was: ``v`` a copy of it, ``g`` its
    length, unless :meth:`initialize` is called.

    Parameters
    ----------
    layer : Linear or Conv2d
        Its weight is normalised; its bias is used as it is.
    dim : int or None
        The axis of the weight that counts the outputs, each of which has its own length; None: one length for all.

    Raises
    ------
    TypeError
        If ``layer`` is of another kind.
    ValueError
        If ``dim`` does not fit the weight.

    Examples
    --------
    >>> from bnlearn.layers import Linear
    >>> layer = WeightNorm(Linear(3, 2, rng=np.random.default_rng(0)))
    >>> {name: array.shape for name, array in layer.parameters().items()}  # g, then v
    {'bias': (2,), 'parametrizations.weight.original0': (2, 1), 'parametrizations.weight.original1': (2, 3)}
    """

    parameter_names = ("bias", ORIGINAL + "0", ORIGINAL + "1")

    def __init__(self, layer: Linear | Conv2d, dim: int | None = 0) -> None:
        super().__init__(layer)
        self.dim = dim
        v = layer.weight.copy()
        squares = (v * v).sum(axis=fan_in_axes(v, dim), keepdims=dim is not None)
        self._arrays = {ORIGINAL + "0": np.asarray(np.sqrt(squares), v.dtype), ORIGINAL + "1": v}

    def initialize(self, x: Array) -> Array:
        """Set lengths and bias from data, so that each output has mean 0 and variance 1 there, and return the output.

        Salimans and Kingma (2016), section 3: batch normalisation once, at the start. Call it layer by layer, each on
        the output of the one before.

        Parameters
        ----------
        x : array
            A batch that the layer takes.

        Raises
        ------
        ValueError
            If the layer has no bias, or not one length per output (``dim=0``), or an output does not vary. Nothing
            has been changed.
        """
        if self.layer.bias is None or self.dim != 0:
            raise ValueError(f"expected a layer with a bias, and dim=0, one length per output, got {self!r}")
        probe = copy.deepcopy(self)
        probe._arrays[ORIGINAL + "0"][...] = 1
        probe.layer.bias = np.zeros_like(self.layer.bias)
        y = np.moveaxis(probe(x), -1 if isinstance(self.layer, Linear) else 1, 0).reshape(len(self.layer.bias), -1)
        mean, std = y.mean(axis=1), y.std(axis=1)
        if not (std > 0).all():
            raise ValueError(f"expected outputs that vary over x with shape {x.shape}, got a standard deviation of 0")
        g = self._arrays[ORIGINAL + "0"]
        g[...] = (1 / std).reshape(g.shape)
        self.layer.bias[...] = -mean / std
        return self.forward(x)

    def _normalized(self, training: bool) -> tuple[Array, Any]:
        return weight_norm(self._arrays[ORIGINAL + "1"], self._arrays[ORIGINAL + "0"], dim=self.dim)

    def _gradients(self, dweight: Array, cache: Any) -> dict[str, Array]:
        dv, dg = weight_norm_backward(dweight, cache)
        return {ORIGINAL + "0": dg, ORIGINAL + "1": dv}

    def extra_repr(self) -> str:
        """What PyTorch does not print."""
        return f"dim={self.dim}"


class WeightStandardization(_Parametrized):
    r"""A layer whose filters have mean 0 and variance 1 over their fan-in (Qiao et al. 2019).

    Parameters
    ----------
    layer : Linear or Conv2d
        Its weight is normalised; its bias is used as it is.
    scaled : bool
        Whether to divide by ``sqrt(fan_in)`` too (Brock, De and Smith 2021).
    gain : bool
        Whether to learn a factor per filter, from ones.
    eps : float
        Added to the variance, not negative.

    Raises
    ------
    TypeError
        If ``layer`` is of another kind.

    Examples
    --------
    >>> from bnlearn.layers import Conv2d
    >>> layer = WeightStandardization(Conv2d(3, 2, 3, bias=False, rng=np.random.default_rng(0)), scaled=True)
    >>> print((layer.weight**2).sum(axis=(1, 2, 3)).round(3))
    [1. 1.]
    >>> list(layer.parameters())
    ['parametrizations.weight.original']
    """

    parameter_names = ("bias", ORIGINAL, STATE + "gain")

    def __init__(self, layer: Linear | Conv2d, scaled: bool = False, gain: bool = False, *, eps: float = 1e-6) -> None:
        super().__init__(layer)
        self.scaled, self.eps = scaled, eps
        weight = layer.weight.copy()
        self._arrays = {ORIGINAL: weight}
        if gain:
            self._arrays[STATE + "gain"] = np.ones(len(weight), weight.dtype)

    def _normalized(self, training: bool) -> tuple[Array, Any]:
        gain = self._arrays.get(STATE + "gain")
        return weight_standardization(self._arrays[ORIGINAL], gain, scaled=self.scaled, eps=self.eps)

    def _gradients(self, dweight: Array, cache: Any) -> dict[str, Array]:
        dw, dgain = weight_standardization_backward(dweight, cache)
        return {ORIGINAL: dw} | ({STATE + "gain": dgain} if STATE + "gain" in self._arrays else {})

    def extra_repr(self) -> str:
        """What PyTorch does not print."""
        return f"scaled={self.scaled}, gain={STATE + 'gain' in self._arrays}, eps={self.eps}"


class SpectralNorm(_Parametrized):
    r"""A layer whose weight is divided by its largest singular value (Miyato et al. 2018).

    As ``torch.nn.utils.parametrizations.spectral_norm``: in training, every forward pass starts with
    ``n_power_iterations`` rounds of the power iteration; in evaluation the vectors stay.

    Parameters
    ----------
    layer : Linear or Conv2d
        Its weight is normalised; its bias is used as it is.
    n_power_iterations : int
        Rounds per forward pass in training, positive.
    eps : float
        Least length by which the vectors are divided, positive.
    rng : numpy.random.Generator
        Draws the two vectors; fifteen rounds follow, as in PyTorch.

    Raises
    ------
    TypeError
        If ``layer`` or ``rng`` is of another kind.
    ValueError
        If ``n_power_iterations`` or ``eps`` is not positive.

    Examples
    --------
    >>> from bnlearn.layers import Linear
    >>> rng = np.random.default_rng(0)
    >>> layer = SpectralNorm(Linear(3, 2, rng=rng), rng=rng)
    >>> print(np.linalg.svd(layer.weight, compute_uv=False)[0].round(3))
    1.0
    """

    parameter_names = ("bias", ORIGINAL)
    buffer_names = (STATE + "_u", STATE + "_v")

    def __init__(
        self, layer: Linear | Conv2d, n_power_iterations: int = 1, eps: float = 1e-12, *, rng: np.random.Generator
    ) -> None:
        super().__init__(layer)
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"expected rng=np.random.default_rng(seed), got {type(rng).__name__}")
        if n_power_iterations < 1:
            raise ValueError(f"Expected n_power_iterations to be positive, but got {n_power_iterations}")
        self.n_power_iterations, self.eps = n_power_iterations, eps
        weight = layer.weight.copy()
        u, v = (rng.standard_normal(size).astype(weight.dtype) for size in (len(weight), weight[0].size))
        cache = spectral_norm(weight, u, v, iterations=15, eps=eps)[1]
        self._arrays = {ORIGINAL: weight, STATE + "_u": cache.u, STATE + "_v": cache.v}

    def _normalized(self, training: bool) -> tuple[Array, Any]:
        weight, u, v = (self._arrays[name] for name in (ORIGINAL, STATE + "_u", STATE + "_v"))
        return spectral_norm(weight, u, v, iterations=self.n_power_iterations if training else 0, eps=self.eps)

    def _accept(self, cache: Any) -> None:
        self._arrays[STATE + "_u"][...], self._arrays[STATE + "_v"][...] = cache.u, cache.v

    def _gradients(self, dweight: Array, cache: Any) -> dict[str, Array]:
        return {ORIGINAL: spectral_norm_backward(dweight, cache)}

    def extra_repr(self) -> str:
        """What PyTorch does not print."""
        return f"n_power_iterations={self.n_power_iterations}, eps={self.eps}"
