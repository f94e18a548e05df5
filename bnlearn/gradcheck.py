"""Is this gradient right? Central finite differences, in float64, against which any backward pass can be held."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnlearn.layers import Layer

__all__ = ["check_layer", "numerical_gradient", "relative_error"]

Array = NDArray[Any]


def numerical_gradient(f: Callable[[Array], Any], x: Array, eps: float = 1e-6) -> Array:
    """The gradient of a scalar function by central differences: ``(f(x + eps) - f(x - eps)) / (2 eps)`` per element.

    The error is about ``eps ** 2`` times the third derivative, plus rounding of about ``1e-16 * abs(f) / eps``: hence
    float64 only (in float32 the second term alone is about a tenth of f), and no kink (ReLU at 0) within ``eps`` of x.

    Parameters
    ----------
    f : callable
        Takes an array of the shape of ``x``, returns one number.
    x : array of float64, any shape
        Where to take the gradient. It is not changed.
    eps : float
        Step, positive.

    Returns
    -------
    gradient : array of float64, shape of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not a NumPy array of float64.
    ValueError
        If ``eps`` is not positive, or ``f`` returns more than one number.

    Examples
    --------
    >>> numerical_gradient(lambda x: (x**2).sum(), np.array([1.0, -3.0])).round(6)
    array([ 2., -6.])
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float64:
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"expected x to be a NumPy array of float64, got {kind}; finite differences drown in less")
    if not eps > 0:
        raise ValueError(f"expected eps > 0, got {eps}")

    def value(index: tuple[int, ...], step: float) -> float:
        moved = x.copy()
        moved[index] += step
        result = np.asarray(f(moved))
        if result.size != 1:
            raise ValueError(f"expected f to return one number, got shape {result.shape}; sum it, or weigh and sum it")
        return float(result.item())

    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        gradient[index] = (value(index, eps) - value(index, -eps)) / (2 * eps)
    return gradient


def relative_error(a: Array, b: Array, floor: float = 1e-3) -> float:
    """The largest difference between two arrays, relative to the largest number in them.

    ``max(abs(a - b)) / max(max(abs(a)), max(abs(b)), floor)``. Relative to the array, not element by element: an
    element that should be zero and is rounding noise must not count as wholly wrong. For the same reason a gradient
    that is zero throughout (that of a bias before batch normalisation) is held against ``floor``.

    Parameters
    ----------
    a, b : array of one shape
        Real numbers. NaN in either gives NaN.
    floor : float
        Least size to be relative to, positive.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> relative_error(np.array([1.0, 100.0]), np.array([2.0, 100.0]))
    0.01
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape, got {a.shape} and {b.shape}")
    size = max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0)), floor)
    return float(np.abs(a - b).max(initial=0)) / size


def check_layer(layer: Layer, x: Array, rng: np.random.Generator, eps: float = 1e-6) -> dict[str, float]:
    """Hold a layer's backward pass, in its present mode, against finite differences.

    The loss is the sum of the outputs with random weights, so that no error can hide in a symmetry. A copy of the
    layer does the work: running statistics and gradients stay as they are.

    Parameters
    ----------
    layer : Layer
        With float64 parameters (``dtype=np.float64``).
    x : array of float64
        An input that the layer takes.
    rng : numpy.random.Generator
        Draws the weights of the loss.
    eps : float
        Step of the finite differences.

    Returns
    -------
    errors : dict of str to float
        :func:`relative_error` for the input (``"x"``) and for every parameter, by name. Below 1e-6 is right; a wrong
        gradient is far above, unless all of it is below about 1e-3: scale ``x`` so that it is not.

    Raises
    ------
    TypeError
        If ``x`` or a parameter is not float64.

    Examples
    --------
    >>> from bnlearn.layers import BatchNorm1d
    >>> rng = np.random.default_rng(0)
    >>> errors = check_layer(BatchNorm1d(3, dtype=np.float64), rng.standard_normal((4, 3)), rng)
    >>> {name: error < 1e-6 for name, error in errors.items()}
    {'x': True, 'weight': True, 'bias': True}
    """
    for name, parameter in layer.parameters().items():
        if parameter.dtype != np.float64:
            raise TypeError(f"expected float64 parameters, got {parameter.dtype} for {name}; use dtype=np.float64")
    layer = copy.deepcopy(layer)
    y = layer(x)
    weights = rng.standard_normal(y.shape)
    dx = layer.backward(weights)
    grads = layer.grads

    def loss(x: Array) -> Any:
        return (weights * layer(x)).sum()

    errors = {"x": relative_error(dx, numerical_gradient(loss, x, eps))}
    for name, parameter in layer.parameters().items():
        start = parameter.copy()

        def loss_of_parameter(value: Array, parameter: Array = parameter) -> Any:
            parameter[...] = value
            return loss(x)

        errors[name] = relative_error(grads[name], numerical_gradient(loss_of_parameter, start, eps))
        parameter[...] = start
    return errors
