"""Choosing the namespace: every library is recognised, mixtures and strangers are refused by name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bnlearn._arrays import channel_axes, namespace, per_channel, static_size, widen


def test_numpy():
    xp = namespace(np.zeros(2), None, np.ones(3))
    assert xp.mean(np.array([1.0, 3.0])) == 2.0


def test_mixture_is_refused_with_both_names():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"got numpy\.ndarray, torch\.Tensor; convert them all to numpy\.ndarray"):
        namespace(np.zeros(2), torch.zeros(2))


def test_tensorflow_with_numpy_is_refused():
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(TypeError, match=r"got numpy\.ndarray, tensorflow\.EagerTensor"):
        namespace(np.zeros(2), tf.zeros(2))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6)])
def test_channel_axes_are_all_but_the_second(shape):
    x = np.arange(np.prod(shape), dtype=float).reshape(shape)
    assert channel_axes(x) == tuple(axis for axis in range(len(shape)) if axis != 1)
    vector = per_channel(np, np.arange(4.0), x)
    assert vector.shape == (1, 4) + (1,) * (len(shape) - 2)


def test_static_size():
    assert static_size(np.zeros((2, 3, 4))) == 24
    keras = pytest.importorskip("keras")
    assert static_size(keras.KerasTensor((None, 3))) is None


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_widen(dtype, expected):
    assert widen(namespace(np.zeros(1)), np.zeros(3, dtype)).dtype == expected


def test_no_framework_is_imported_for_numpy():
    code = (
        "import sys, numpy as np; from bnlearn.functional import batch_norm; batch_norm(np.eye(3));"
        "print([m for m in ('torch', 'tensorflow', 'keras', 'jax', 'ml_dtypes') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_a_name_that_keras_was_not_given_is_named():
    tf = pytest.importorskip("tensorflow")
    with pytest.raises(AttributeError, match=r"has no 'fft'; add it to the tables"):
        _ = namespace(tf.zeros(2)).fft
