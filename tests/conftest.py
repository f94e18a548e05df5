"""What several test modules share."""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest

FRAMEWORKS = ("torch", "keras", "tensorflow", "jax", "array_api_strict", "onnx", "tqdm")

# Before TensorFlow is imported by any test: its C++ log lines are not ours to test.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_configure() -> None:
    """Where CI is set, no test may be skipped for want of a framework; elsewhere one may test without."""
    missing = [name for name in FRAMEWORKS if find_spec(name) is None]
    if os.environ.get("CI") and missing:
        raise pytest.UsageError(
            f"expected every framework in CI, {', '.join(missing)} cannot be imported; see `make unit`"
        )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)
