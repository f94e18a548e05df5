"""The oracles that every formula is held against: the other libraries, their automatic differentiation, differences."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from bnlearn.gradcheck import numerical_gradient, relative_error

ORACLES = ["torch", "jax", "tensorflow", "array_api_strict", "differences"]


def _differentiate(forward, arrays, dy, library):
    """``y`` and the gradients of ``sum(dy * y)`` by each array, by the library's own differentiation if it has one."""
    if library == "array_api_strict":
        strict = pytest.importorskip("array_api_strict")
        return forward(**{name: strict.asarray(a) for name, a in arrays.items()})[0], None
    if library == "torch":
        torch = pytest.importorskip("torch")
        leaves = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
        y = forward(**leaves)[0]
        return y.detach(), torch.autograd.grad(y, list(leaves.values()), torch.tensor(dy))
    if library == "jax":
        jax = pytest.importorskip("jax")
        jax.config.update("jax_enable_x64", True)
        leaves = {name: jax.numpy.asarray(a) for name, a in arrays.items()}

        @jax.jit  # compiled as a whole, it is faster than one operation at a time
        def run(leaves, dy):
            y, pull = jax.vjp(lambda leaves: forward(**leaves)[0], leaves)
            return y, pull(dy)[0]

        y, gradients = run(leaves, jax.numpy.asarray(dy))
        return y, [gradients[name] for name in arrays]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
        tf = pytest.importorskip("tensorflow")
    leaves = {name: tf.Variable(a) for name, a in arrays.items()}
    with tf.GradientTape() as tape:
        y = forward(**{name: leaf.value() for name, leaf in leaves.items()})[0]
    return y, tape.gradient(y, list(leaves.values()), output_gradients=tf.constant(dy))


def _hand_written(forward, backward, arrays, dy, library):
    """The gradients from our backward pass, computed on the library's arrays."""
    convert: Any = np.asarray
    if library == "torch":
        convert = pytest.importorskip("torch").tensor
    elif library == "jax":
        convert = pytest.importorskip("jax").numpy.asarray
    elif library == "tensorflow":
        convert = pytest.importorskip("tensorflow").constant
    elif library == "array_api_strict":
        convert = pytest.importorskip("array_api_strict").asarray

    def run(leaves, dy):
        return backward(dy, forward(**leaves)[1])

    if library == "jax":
        run = pytest.importorskip("jax").jit(run)
    found = run({name: convert(a) for name, a in arrays.items()}, convert(dy))
    return found if isinstance(found, tuple) else (found,)


@pytest.fixture(params=ORACLES)
def hold_against_oracle(request):
    """Hold ``forward(**arrays) -> (y, cache)`` and ``backward(dy, cache) -> gradients`` against one oracle.

    The gradients come in the order of ``arrays``; all is in float64. Outputs are to agree to 1e-10, gradients to 1e-9.
    """

    def hold(forward, backward, arrays, dy):
        assert all(a.dtype == np.float64 for a in (*arrays.values(), dy))
        y, cache = forward(**arrays)
        ours = backward(dy, cache)
        ours = dict(zip(arrays, ours if isinstance(ours, tuple) else (ours,), strict=True))
        for name, array in arrays.items():
            assert ours[name].shape == array.shape, name
        if request.param == "differences":
            for name, array in arrays.items():
                numeric = numerical_gradient(lambda a, name=name: (forward(**{**arrays, name: a})[0] * dy).sum(), array)
                assert relative_error(ours[name], numeric) < 1e-6, name
            return
        theirs, gradients = _differentiate(forward, arrays, dy, request.param)
        np.testing.assert_allclose(np.asarray(theirs), y, rtol=1e-10, atol=1e-10)
        there = _hand_written(forward, backward, arrays, dy, request.param)
        for i, (name, gradient) in enumerate(ours.items()):
            np.testing.assert_allclose(np.asarray(there[i]), gradient, rtol=1e-9, atol=1e-9, err_msg=name)
            if gradients is not None:
                np.testing.assert_allclose(np.asarray(gradients[i]), gradient, rtol=1e-9, atol=1e-9, err_msg=name)

    return hold
