"""The layers that this package adds, and the normalisers and LSTM of its NumPy part, from library to library."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.convert import transfer

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
ours_torch, ours_keras = pytest.importorskip("bnlearn.torch"), pytest.importorskip("bnlearn.keras")
nn, L = torch.nn, keras.layers

EVERYWHERE = {
    "FilterResponseNorm": ((3,), {}, "FilterResponseNormalization", {}),
    "FilterResponseNorm, eps learnt": (
        (3,),
        {"learn_eps": True},
        "FilterResponseNormalization",
        {"learn_epsilon": True},
    ),
    "ThresholdedLinearUnit": ((3,), {}, "ThresholdedLinearUnit", {}),
    "EvoNormS0": ((1, 3), {}, "EvoNormS0", {"groups": 1}),
    "GhostBatchNorm": ((3, 2), {}, "GhostBatchNormalization", {"ghost_size": 2}),
    "FullNorm": ((3,), {}, "FullNormalization", {}),
    "ExampleWeighing": ((3,), {}, "ExampleWeighing", {}),
    "IterNorm": ((4,), {"num_groups": 2}, "IterativeNormalization", {"groups": 2}),
    "DecorrelatedBatchNorm": ((4,), {}, "DecorrelatedBatchNormalization", {}),
}


@pytest.mark.parametrize("case", EVERYWHERE)
def test_ours(tools, rng, case):
    """PyTorch to Keras to NumPy to PyTorch: the outputs agree on each leg, and the state comes back."""
    arguments, options, name, theirs = EVERYWHERE[case]
    kind = case.partition(",")[0]
    first, last = (getattr(ours_torch, kind)(*arguments, **options) for _ in range(2))
    channels = arguments[-1] if kind == "EvoNormS0" else arguments[0]
    middle = keras.Sequential([keras.Input((5, 6, channels)), getattr(ours_keras, name)(**theirs)])
    ours = getattr(layers, kind)(*arguments, **options)
    tools.randomise(first, 0)
    x = rng.standard_normal((2, channels, 5, 6)).astype(np.float32)
    if "whiten" in str(dict(first.named_buffers())) or hasattr(first, "running_matrix"):
        matrix = first.running_matrix
        matrix.copy_(matrix @ matrix.mT + torch.eye(matrix.shape[-1]))
    assert transfer(first, middle, example=x).max_difference < 1e-5
    assert transfer(middle, ours, example=np.moveaxis(x, 1, -1)).max_difference < 1e-5
    assert transfer(ours, last, example=x).max_difference < 1e-5
    state = first.state_dict()
    for key, array in last.state_dict().items():
        if key != "num_batches_tracked":
            assert torch.equal(array, state[key]), key


NUMPY = {
    "LayerNorm": ((5, 6), lambda: nn.LayerNorm((5, 6), eps=0.1), lambda: layers.LayerNorm((5, 6))),
    "RMSNorm": ((3, 6), lambda: nn.RMSNorm(6), lambda: layers.RMSNorm(6)),
    "RMSNorm with eps": ((3, 6), lambda: nn.RMSNorm(6, eps=0.1), lambda: layers.RMSNorm(6)),
    "GroupNorm": ((4, 6), lambda: nn.GroupNorm(2, 4, eps=0.1), lambda: layers.GroupNorm(2, 4)),
    "InstanceNorm": (
        (4, 6),
        lambda: nn.InstanceNorm1d(4, eps=0.1, affine=True),
        lambda: layers.InstanceNorm1d(4, affine=True),
    ),
    "InstanceNorm without parameters": (
        (4, 6),
        lambda: nn.InstanceNorm1d(4, eps=0.1),
        lambda: layers.InstanceNorm1d(4),
    ),
    "LSTM": (
        (4, 6),
        lambda: nn.LSTM(6, 3, batch_first=True),
        lambda: layers.LSTM(6, 3, rng=np.random.default_rng(0)),
    ),
    "LSTM without bias": (
        (4, 6),
        lambda: nn.LSTM(6, 3, bias=False, batch_first=True),
        lambda: layers.LSTM(6, 3, bias=False, rng=np.random.default_rng(0)),
    ),
}


@pytest.mark.parametrize("case", NUMPY)
def test_numpy_and_pytorch(tools, rng, case):
    shape, module, layer = NUMPY[case]
    first, ours = tools.randomise(module(), 0), layer()
    x = rng.standard_normal((2, *shape)).astype(np.float32)
    assert transfer(first, ours, example=x).max_difference < 1e-5
    last = tools.randomise(module(), 1)
    assert transfer(ours, last, example=x).max_difference < 1e-5


def test_a_shape_that_only_another_array_tells():
    """Whitening in groups: gamma has the same shape, the matrix has not, and no name for the groups is compared."""
    one, other = layers.IterNorm(4, num_groups=2), layers.IterNorm(4, num_groups=1)
    other.num_groups = 2
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"differ in the shape of running_matrix: \(2, 2, 2\) and \(1, 4, 4\)"):
        transfer(one, other)
    assert all(np.array_equal(array, before[name]) for name, array in other.state_dict().items())
