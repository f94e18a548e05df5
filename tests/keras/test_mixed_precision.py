"""Under a mixed dtype policy, parameters and moving statistics are read and kept in float32."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from bnlearn.functional import batch_norm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")

from bnlearn.keras._base import ChannelNormalization, StatisticsNormalization


class Recorded(StatisticsNormalization):
    """Batch normalisation that says which dtypes it saw."""

    def normalize_batch(self, x):
        self.seen = {
            str(self._tensor(v).dtype) for v in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        }
        y, cache = batch_norm(x, self._tensor(self.gamma), self._tensor(self.beta), eps=self.epsilon)
        self.track(cache.mean, cache.var, cache.n)
        return y


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_weights_are_read_and_statistics_kept_in_float32(rng, policy):
    layer = Recorded(dtype=policy, momentum=0.999)
    x = np.ones((4, 3), np.float32) * [1, 2, 4]
    for _ in range(4):
        y = layer(x, training=True)
    assert f"mixed_{keras.backend.standardize_dtype(y.dtype)}" == policy
    assert all("float32" in dtype for dtype in layer.seen)
    # In half precision, steps of a thousandth would be rounded away once the mean is as large as this.
    layer.moving_mean.assign([100.0, 100.0, 100.0])
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean.numpy(), 100 - 0.001 * (100 - x[0]), rtol=1e-6)


def test_a_layer_that_leaves_its_formula_out_says_so():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(NotImplementedError, match="ChannelNormalization does not say how it normalises"):
        ChannelNormalization()(x)
    with pytest.raises(NotImplementedError, match="StatisticsNormalization does not say how it trains"):
        StatisticsNormalization()(x, training=True)
