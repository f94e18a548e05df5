"""The same on another of Keras's backends, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for library in ("torch", "keras", "onnxruntime"):
        pytest.importorskip(library)

SCRIPT = """
import tempfile
import numpy as np, torch, keras
from bnlearn.convert import to_onnx, transfer
nn, L = torch.nn, keras.layers
tail = [L.BatchNormalization(), L.ReLU(), L.Flatten(), L.Dense(2)]
theirs = keras.Sequential([keras.Input((6, 5, 3)), L.Conv2D(4, 3), *tail])
ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
torch.manual_seed(0)
ours[1].weight.data.uniform_(0.5, 1.5); ours[1].running_mean.normal_(); ours[1].running_var.uniform_(0.5, 2)
x = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype("float32")
assert transfer(ours, theirs, example=x).max_difference < 1e-5
assert transfer(theirs, ours, example=np.moveaxis(x, 1, -1)).max_difference < 1e-5
with tempfile.TemporaryDirectory() as folder:
    assert to_onnx(theirs, np.moveaxis(x, 1, -1), folder + "/model.onnx").max_difference < 1e-5
print("moved on", keras.backend.backend())
"""


def test_a_small_network():
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("moved on torch"), done.stderr[-2000:]
