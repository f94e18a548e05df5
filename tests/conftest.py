"""What several test modules share."""

from __future__ import annotations

import os

import numpy as np
import pytest

# Before TensorFlow is imported by any test: its C++ log lines are not ours to test.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)
