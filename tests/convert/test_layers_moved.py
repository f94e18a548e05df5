"""Each kind of layer, both ways: the outputs agree, and what comes back is what was sent, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.convert import transfer

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
nn, L = torch.nn, keras.layers


def twins(*, shape, ours, theirs):
    """The torch module, and a Keras model of ``theirs`` on inputs of ``shape`` (Keras's, without the batch)."""
    return ours, keras.Sequential([keras.Input(shape), *theirs])


CASES = {
    "dense": lambda: twins(shape=(3,), ours=nn.Sequential(nn.Linear(3, 4)), theirs=[L.Dense(4)]),
    "dense without bias": lambda: twins(
        shape=(3,), ours=nn.Linear(3, 4, bias=False), theirs=[L.Dense(4, use_bias=False)]
    ),
    "dense on a sequence": lambda: twins(shape=(6, 3), ours=nn.Linear(3, 4), theirs=[L.Dense(4)]),
    "conv1d": lambda: twins(shape=(9, 3), ours=nn.Conv1d(3, 4, 3, 2), theirs=[L.Conv1D(4, 3, 2)]),
    "conv2d": lambda: twins(shape=(7, 8, 3), ours=nn.Conv2d(3, 5, (2, 3)), theirs=[L.Conv2D(5, (2, 3))]),
    "conv3d": lambda: twins(shape=(4, 5, 6, 2), ours=nn.Conv3d(2, 3, (1, 2, 3)), theirs=[L.Conv3D(3, (1, 2, 3))]),
    "dilated": lambda: twins(
        shape=(9, 3), ours=nn.Conv1d(3, 4, 3, dilation=2), theirs=[L.Conv1D(4, 3, dilation_rate=2)]
    ),
    "grouped": lambda: twins(shape=(7, 8, 4), ours=nn.Conv2d(4, 6, 3, groups=2), theirs=[L.Conv2D(6, 3, groups=2)]),
    "depthwise": lambda: twins(
        shape=(7, 8, 3), ours=nn.Conv2d(3, 6, (2, 3), groups=3), theirs=[L.DepthwiseConv2D((2, 3), depth_multiplier=2)]
    ),
    "depthwise 1d": lambda: twins(shape=(7, 3), ours=nn.Conv1d(3, 3, 2, groups=3), theirs=[L.DepthwiseConv1D(2)]),
    "separable": lambda: twins(
        shape=(7, 8, 3),
        ours=nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.Conv2d(6, 5, 1)),
        theirs=[L.SeparableConv2D(5, 3, depth_multiplier=2)],
    ),
    "separable 1d": lambda: twins(
        shape=(7, 3),
        ours=nn.Sequential(nn.Conv1d(3, 3, 3, groups=3, bias=False), nn.Conv1d(3, 5, 1, bias=False)),
        theirs=[L.SeparableConv1D(5, 3, use_bias=False)],
    ),
    "transposed 1d": lambda: twins(shape=(5, 3), ours=nn.ConvTranspose1d(3, 4, 3), theirs=[L.Conv1DTranspose(4, 3)]),
    "transposed 2d": lambda: twins(
        shape=(4, 5, 3),
        ours=nn.ConvTranspose2d(3, 4, (2, 3), 2),
        theirs=[L.Conv2DTranspose(4, (2, 3), 2, output_padding=None)],
    ),
    "transposed 3d": lambda: twins(
        shape=(3, 2, 3, 2), ours=nn.ConvTranspose3d(2, 3, (1, 2, 3)), theirs=[L.Conv3DTranspose(3, (1, 2, 3))]
    ),
    "prelu": lambda: twins(shape=(4, 5, 3), ours=nn.PReLU(3), theirs=[L.PReLU(shared_axes=[1, 2])]),
    "batch norm": lambda: twins(shape=(4, 5, 3), ours=nn.BatchNorm2d(3), theirs=[L.BatchNormalization()]),
    "batch norm 1d": lambda: twins(shape=(4, 3), ours=nn.BatchNorm1d(3), theirs=[L.BatchNormalization()]),
    "batch norm 3d": lambda: twins(shape=(2, 2, 2, 3), ours=nn.BatchNorm3d(3), theirs=[L.BatchNormalization()]),
    "batch norm, no affine": lambda: twins(
        shape=(4,), ours=nn.BatchNorm1d(4, affine=False), theirs=[L.BatchNormalization(center=False, scale=False)]
    ),
    "layer norm": lambda: twins(shape=(6, 3), ours=nn.LayerNorm(3), theirs=[L.LayerNormalization()]),
    "rms norm": lambda: twins(shape=(6, 3), ours=nn.RMSNorm(3), theirs=[L.RMSNormalization()]),
    "rms norm with eps": lambda: twins(shape=(6, 3), ours=nn.RMSNorm(3, eps=0.1), theirs=[L.RMSNormalization()]),
    "group norm": lambda: twins(shape=(4, 5, 6), ours=nn.GroupNorm(2, 6), theirs=[L.GroupNormalization(2)]),
    "instance norm": lambda: twins(
        shape=(4, 5, 3), ours=nn.InstanceNorm2d(3, affine=True), theirs=[L.GroupNormalization(-1)]
    ),
    "instance norm of ours": lambda: twins(
        shape=(4, 5, 3),
        ours=nn.InstanceNorm2d(3, affine=True),
        theirs=[pytest.importorskip("bnlearn.keras").InstanceNormalization()],
    ),
    "lstm": lambda: twins(
        shape=(4, 3), ours=nn.LSTM(3, 5, batch_first=True), theirs=[L.LSTM(5, return_sequences=True)]
    ),
    "two lstms": lambda: twins(
        shape=(4, 3),
        ours=nn.LSTM(3, 5, num_layers=2, batch_first=True),
        theirs=[L.LSTM(5, return_sequences=True), L.LSTM(5, return_sequences=True)],
    ),
    "lstm without bias": lambda: twins(
        shape=(4, 3),
        ours=nn.LSTM(3, 5, bias=False, batch_first=True),
        theirs=[L.LSTM(5, use_bias=False, return_sequences=True)],
    ),
    "gru": lambda: twins(shape=(4, 3), ours=nn.GRU(3, 5, batch_first=True), theirs=[L.GRU(5, return_sequences=True)]),
    "gru both ways": lambda: twins(
        shape=(4, 3),
        ours=nn.GRU(3, 5, batch_first=True, bidirectional=True),
        theirs=[L.Bidirectional(L.GRU(5, return_sequences=True))],
    ),
    "rnn": lambda: twins(
        shape=(4, 3),
        ours=nn.RNN(3, 5, nonlinearity="relu", batch_first=True),
        theirs=[L.SimpleRNN(5, activation="relu", return_sequences=True)],
    ),
}
SAME_LAYOUT = ("layer norm", "rms norm", "sequence", "lstm", "gru", "rnn")


@pytest.mark.parametrize("case", CASES)
def test_both_ways(tools, rng, case):
    ours, theirs = CASES[case]()
    tools.randomise(ours, 0)
    tools.randomise(theirs, 1)
    x = rng.standard_normal((2, *theirs.input_shape[1:])).astype(np.float32)
    sequence = any(word in case for word in SAME_LAYOUT)
    moved = x if x.ndim < 3 or sequence else np.moveaxis(x, -1, 1)

    before = tools.keras_state(theirs)
    report = transfer(theirs, ours, example=(x, moved))
    assert report.max_difference < 1e-5
    tools.randomise(theirs, 2)
    transfer(ours, theirs, example=moved)
    assert tools.keras_state(theirs) == before

    if ("lstm" in case or case == "rnn") and "without" not in case:
        return  # two biases become one, so only the function comes back
    tools.randomise(ours, 3)
    before = tools.torch_state(ours)
    transfer(ours, theirs)
    tools.randomise(ours, 4)
    transfer(theirs, ours)
    assert tools.torch_state(ours) == before


def test_embedding(tools, rng):
    ours, theirs = nn.Embedding(7, 3), keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(7, 3)])
    words = rng.integers(0, 7, (2, 4))
    tools.randomise(ours, 0)
    transfer(ours, theirs, example=words)
    np.testing.assert_array_equal(theirs(words), ours(torch.tensor(words)).detach())


def numpy_network(rng, seed):
    rng = np.random.default_rng(seed)
    network = layers.Sequential(
        layers.Conv2d(2, 3, 3, padding=1, rng=rng),
        *(layers.BatchNorm2d(3, momentum=0.3), layers.ReLU(), layers.Flatten()),
        layers.Sequential(layers.Linear(60, 6, bias=False, rng=rng), layers.BatchNorm1d(6, eps=0.01), layers.Tanh()),
    )
    for array in (*network.parameters().values(), *network.buffers().values()):
        array[...] = np.asarray(rng.uniform(0.5, 1.5, array.shape)).astype(array.dtype)
    return network


def test_numpy_to_pytorch_to_keras_and_back(rng):
    ours, copy = numpy_network(rng, 0), numpy_network(rng, 1)
    tail = nn.Sequential(nn.Linear(60, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh())
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), tail)
    model = keras.Sequential(
        [
            keras.Input((4, 5, 2)),
            *(L.Conv2D(3, 3, padding="same"), L.BatchNormalization(), L.ReLU(), L.Flatten()),
            *(L.Dense(6, use_bias=False), L.BatchNormalization(), L.Activation("tanh")),
        ]
    )
    x = rng.standard_normal((3, 2, 4, 5)).astype(np.float32)
    ours.train()
    before = ours.state_dict()
    assert transfer(ours, module, example=x).max_difference < 1e-5
    assert transfer(module, model, example=x).max_difference < 1e-5
    assert transfer(model, copy, example=np.moveaxis(x, 1, -1)).max_difference < 1e-5
    assert transfer(ours, model, example=x).max_difference < 1e-5
    assert ours.training
    for name, array in before.items():
        np.testing.assert_array_equal(ours.state_dict()[name], array)
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(copy.state_dict()[name], array, err_msg=name)
    assert (copy[1].momentum, copy[4][1].eps) == (0.3, 0.01)
    assert int(module[1].num_batches_tracked) == int(ours[1].num_batches_tracked)


def test_half_precision_reaches_the_other_side(tools):
    ours = tools.randomise(nn.Linear(3, 4), 0).bfloat16()
    theirs = keras.Sequential([keras.Input((3,)), L.Dense(4)])
    transfer(ours, theirs)
    np.testing.assert_array_equal(theirs.layers[0].kernel.numpy().T, ours.weight.detach().float())
    half = keras.Sequential([keras.Input((3,)), L.Dense(4, dtype="bfloat16")])
    transfer(ours, half)
    back = nn.Linear(3, 4)
    transfer(half, back)
    assert torch.equal(back.weight, ours.weight.float())
