"""Inference-mode batch normalisation is affine per channel, so it folds into a linear layer in front: same function."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn.functional import batch_norm
from bnlearn.layers import Conv2d, Linear


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def statistics(rng, channels):
    """gamma, beta, mean and variance, none of them near its start."""
    draw = rng.standard_normal
    return draw(channels), draw(channels), draw(channels), rng.uniform(0.1, 3, channels)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_folding_leaves_the_function(rng, kind, bias):
    if kind == "linear":
        layer, x = Linear(5, 4, bias=bias, rng=rng, dtype=np.float64), rng.standard_normal((7, 5))
        folded = Linear(5, 4, rng=rng, dtype=np.float64)
    else:
        layer, x = Conv2d(3, 4, 3, bias=bias, rng=rng, dtype=np.float64), rng.standard_normal((2, 3, 6, 5))
        folded = Conv2d(3, 4, 3, rng=rng, dtype=np.float64)
    if bias:
        layer.bias[...] = rng.standard_normal(4)
    gamma, beta, mean, var = statistics(rng, 4)
    expected, _ = batch_norm(layer(x), gamma, beta, mean=mean, var=var, eps=0.01)

    scale = gamma / np.sqrt(var + 0.01)
    folded.weight[...] = layer.weight * scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    folded.bias[...] = beta + ((layer.bias if bias else 0) - mean) * scale
    np.testing.assert_allclose(folded(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_pytorch_s_own_folding_leaves_ours(rng, kind):
    torch = pytest.importorskip("torch")
    gamma, beta, mean, var = (torch.tensor(a) for a in statistics(rng, 4))
    if kind == "linear":
        layer, norm = torch.nn.Linear(5, 4).double(), torch.nn.BatchNorm1d(4).double()
        x, fuse = torch.tensor(rng.standard_normal((7, 5))), torch.nn.utils.fuse_linear_bn_eval
    else:
        layer, norm = torch.nn.Conv2d(3, 4, 3).double(), torch.nn.BatchNorm2d(4).double()
        x, fuse = torch.tensor(rng.standard_normal((2, 3, 6, 5))), torch.nn.utils.fuse_conv_bn_eval
    norm.load_state_dict({"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}, strict=False)
    with torch.no_grad():
        expected, _ = batch_norm(layer(x), gamma, beta, mean=mean, var=var, eps=norm.eps)
        torch.testing.assert_close(fuse(layer.eval(), norm.eval())(x), expected, rtol=0, atol=1e-12)
