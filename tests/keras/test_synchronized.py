"""Why bnlearn.keras has no synchronised layer: Keras has one. And what to know of it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")

from bnlearn.functional import batch_norm

# In a process of its own: how many devices a processor stands for is settled before TensorFlow first uses it.
TWO_REPLICAS = """
import numpy as np, tensorflow as tf, keras
from bnlearn.functional import batch_norm

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32) ** 2
parts = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(np.split(x, 2)[context.replica_id_in_sync_group])
)
for synchronized in (True, False):
    with strategy.scope():
        layer = keras.layers.BatchNormalization(synchronized=synchronized)
        layer.build((None, 3))

    @tf.function
    def run(parts):
        return strategy.run(lambda part: layer(part, training=True), args=(parts,))

    y = np.concatenate([part.numpy() for part in strategy.experimental_local_results(run(parts))])
    print(synchronized, np.abs(y - batch_norm(x, eps=1e-3)[0]).max() < 1e-5)
"""


def test_keras_has_it_for_the_replicas_of_a_tensorflow_strategy():
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr[-2000:]


def test_its_variance_is_the_difference_of_two_large_numbers(rng):
    """E[x^2] - E[x]^2 in float32, unlike that of the layer that is not synchronised.

    If this fails, Keras has mended it, and the chapter on processes is to say so.
    """
    x = (1e3 + 0.1 * rng.standard_normal((512, 4))).astype(np.float32)
    exact = batch_norm(x.astype(np.float64), eps=1e-3)[0]
    errors = {
        synchronized: np.abs(
            keras.ops.convert_to_numpy(keras.layers.BatchNormalization(synchronized=synchronized)(x, training=True))
            - exact
        ).max()
        for synchronized in (True, False)
    }
    assert errors[False] < 0.02
    assert errors[True] > 1
