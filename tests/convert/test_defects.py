"""Whatever does not fit is named on both sides, and then not a bit of the target has changed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.convert import transfer

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
ours_torch, ours_keras = pytest.importorskip("bnlearn.torch"), pytest.importorskip("bnlearn.keras")
nn, L = torch.nn, keras.layers


def source(*more):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *more)


def target(*more, shape=(6, 7, 3)):
    first = [L.Conv2D(4, 3, name="conv"), L.BatchNormalization(name="bn")]
    return keras.Sequential([keras.Input(shape), *first, *more])


def dense(width, **arguments):
    return keras.Sequential([keras.Input((3,)), L.Dense(width, name="dense", **arguments)])


def whitened():
    return keras.Sequential([keras.Input((6,)), ours_keras.IterativeNormalization(groups=3, name="iter")])


def filtered():
    return keras.Sequential([keras.Input((4, 6)), ours_keras.FilterResponseNormalization(name="frn")])


CASES = {
    "missing in the target": (
        lambda: (source(nn.Conv2d(4, 5, 1)), target()),
        r"kind 'conv2d' and size \(5, 4, 1, 1\) the source has 1 \('2'\), the target 0 \(none\)",
    ),
    "missing in the source": (
        lambda: (source(), target(L.Conv2D(5, 1, name="more"))),
        r"kind 'conv2d' and size \(5, 4, 1, 1\) the source has 0 \(none\), the target 1 \('more'\)",
    ),
    "wrong shape": (
        lambda: (nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(4)), target()),
        r"size \(5, 3, 3, 3\) the source has 1 \('0'\)(.|\n)*the source has 0 \(none\), the target 1 \('conv'\)",
    ),
    "stride": (
        lambda: (nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)), target()),
        r"'0' \(Conv2d \(4, 3, 3, 3\)\) and target layer 'conv' .* differ in stride: \(2, 2\) and \(1, 1\)",
    ),
    "padding mode": (
        lambda: (nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect"), nn.BatchNorm2d(4)), target()),
        "'conv' .* differ in padding mode: reflect and zeros",
    ),
    "groups of a norm": (
        lambda: (nn.GroupNorm(2, 6), keras.Sequential([keras.Input((5, 6)), L.GroupNormalization(3, name="gn")])),
        "'GroupNorm' .* and target layer 'gn' .* differ in groups: 2 and 3",
    ),
    "groups of whitening": (
        lambda: (ours_torch.IterNorm(6, num_groups=2), whitened()),
        "'IterNorm' .* and target layer 'iter' .* differ in groups: 2 and 3",
    ),
    "eps that only one side learns": (
        lambda: (ours_torch.FilterResponseNorm(6, learn_eps=True), filtered()),
        "'FilterResponseNorm' .* and target layer 'frn' .*: the target has no place for eps",
    ),
    "direction": (
        lambda: (nn.LSTM(3, 5), keras.Sequential([keras.Input((4, 3)), L.LSTM(5, go_backwards=True, name="rnn")])),
        "'LSTM:l0' .* and target layer 'rnn' .* differ in reverse: False and True",
    ),
    "bias": (
        lambda: (nn.Linear(3, 4), dense(4, use_bias=False)),
        r"'Linear' \(Linear \(4, 3\)\) and target layer 'dense' \(Dense \(4, 3\)\): the target has no place for bias",
    ),
    "order that could be confused": (
        lambda: (
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)),
            keras.Sequential([keras.Input((3,)), L.Dense(3, name="a"), L.LayerNormalization(), L.Dense(3, name="b")]),
        ),
        r"2 layers of kind 'linear' and size \(3, 3\) come in .* '0', '1' in the source, 'a', 'b' in the target",
    ),
    "names that are none": (
        lambda: (source(), target(), {"names": {"bn1": "bnn"}}),
        "names has 'bn1', which is no layer with state; there are '0', '1'\n- names has 'bnn', .*; there are 'bn'",
    ),
    "names of different kinds": (
        lambda: (source(), target(), {"names": {"0": "bn", "1": "conv"}}),
        "'0' .* and target layer 'bn' .* are of different kinds, 'conv2d' and 'batch norm'",
    ),
    "names of different shapes": (
        lambda: (nn.Sequential(nn.Linear(3, 4)), dense(5), {"names": {"0": "dense"}}),
        r"'0' .* and target layer 'dense' .* differ in shape: \(4, 3\) and \(5, 3\), in PyTorch's layout",
    ),
    "one target twice": (
        lambda: (nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4)), dense(4), {"names": {"0": "dense", "1": "dense"}}),
        "names gives 'dense' to more than one layer",
    ),
    "skip that is none": (lambda: (source(), target(), {"skip": ["head"]}), "skip has 'head', which is no layer"),
    "activations": (
        lambda: (source(nn.ReLU()), target(), {"example": np.ones((2, 3, 6, 7), np.float32)}),
        "on the example the outputs differ by",
    ),
    "output of another shape": (
        lambda: (source(nn.Flatten()), target(), {"example": np.ones((2, 3, 6, 7), np.float32)}),
        r"outputs have the shapes \(2, 80\) and \(2, 4, 4, 5\)",
    ),
    "example that the target cannot take": (
        lambda: (source(), target(), {"example": (np.ones((2, 3, 6, 7), np.float32),) * 2}),
        "incompatible|expected",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_changes(tools, case):
    made, message = CASES[case]
    ours, theirs, *arguments = made()
    tools.randomise(ours, 0)
    tools.randomise(theirs, 1)
    before = tools.torch_state(ours), tools.keras_state(theirs)
    with pytest.raises(ValueError, match=message):
        transfer(ours, theirs, **(arguments[0] if arguments else {}))
    assert (tools.torch_state(ours), tools.keras_state(theirs)) == before


def unsupported(layer, shape):
    return keras.Sequential([keras.Input(shape), layer])


UNSUPPORTED = {
    "attention": (lambda: nn.MultiheadAttention(4, 2), r"'MultiheadAttention' .*no rule here moves its in_proj_weight"),
    "subclass": (lambda: type("Odd", (nn.Linear,), {})(3, 4), r"'Odd' \(Odd\): no rule here moves its weight, bias"),
    "lazy": (lambda: nn.LazyBatchNorm1d(), "it has no shape yet; call the model on one example"),
    "projection": (lambda: nn.LSTM(3, 5, proj_size=2), "'LSTM:l0' .*it has a projection"),
    "embedding that renormalises": (lambda: nn.Embedding(3, 4, max_norm=1.0), "no rule here moves its weight"),
    "NumPy layer with parts": (
        lambda: layers.LayerNormLSTM(3, 4, rng=np.random.default_rng(0)),
        "'LayerNormLSTM' .*no rule here moves its state",
    ),
    "instance norm with statistics": (
        lambda: nn.InstanceNorm1d(3, track_running_stats=True),
        "no rule here moves its running_mean",
    ),
    "NumPy layer of one's own": (lambda: Own(), "'Own' .*no rule here moves its state"),
    "unbuilt": (lambda: keras.Sequential([L.Dense(3, name="d")]), "'d' .*it is not built"),
    "GRU of the other kind": (lambda: unsupported(L.GRU(3, reset_after=False), (4, 2)), "reset_after=True"),
    "LSTM of another activation": (lambda: unsupported(L.LSTM(3, activation="relu"), (4, 2)), "tanh and sigmoid"),
    "renorm": (lambda: unsupported(L.BatchNormalization(renorm=True), (4,)), "renorm=True keeps statistics"),
    "Keras layer norm over two axes": (
        lambda: unsupported(L.LayerNormalization(axis=[1, 2]), (4, 5)),
        r"several axes at once, \[1, 2\]",
    ),
    "no weights": (
        lambda: unsupported(L.LayerNormalization(center=False, scale=False), (4,)),
        "nothing tells how many channels",
    ),
    "PReLU per position": (lambda: unsupported(L.PReLU(), (4, 3)), "no rule here moves its alpha"),
    "wrapper": (lambda: unsupported(L.SpectralNormalization(L.Dense(3)), (4,)), "no rule here moves its"),
    "LoRA": (lambda: unsupported(L.Dense(8, lora_rank=2), (4,)), "LoRA"),
}


class Own(layers.Layer):
    parameter_names = ("scale",)

    def __init__(self):
        super().__init__()
        self.scale = np.ones(3)

    def forward(self, x):
        raise NotImplementedError

    backward = forward


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("case", UNSUPPORTED)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_unsupported(case, side):
    make, message = UNSUPPORTED[case]
    pair = (make(), nn.Linear(3, 4)) if side == "source" else (nn.Linear(3, 4), make())
    with pytest.raises(ValueError, match=f"{side} layer .*{message}.*skip="):
        transfer(*pair)


def test_no_model():
    with pytest.raises(TypeError, match=r"expected the source to be a torch.nn.Module, .*, got dict"):
        transfer({}, nn.Linear(3, 4))
    with pytest.raises(TypeError, match="expected the target to be"):
        transfer(nn.Linear(3, 4), [])


def test_a_failure_half_way_is_taken_back(tools, monkeypatch):
    """The second layer's assignment fails: the first one's is undone, eps and all."""
    ours, theirs = source(), target()
    before = tools.keras_state(theirs)

    def fail(value):
        raise MemoryError("no room")

    monkeypatch.setattr(theirs.layers[1].moving_variance, "assign", fail, raising=False)
    with pytest.raises(MemoryError):
        transfer(ours, theirs)
    monkeypatch.undo()
    assert tools.keras_state(theirs) == before


def test_tied_arrays_of_the_target(tools):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    untied = tools.randomise(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), 0)
    before = tools.torch_state(tied)
    with pytest.raises(ValueError, match="two layers of the target share one array"):
        transfer(untied, tied)
    assert tools.torch_state(tied) == before
    transfer(tied, untied)
    transfer(untied, tied)
    assert torch.equal(untied[1].weight, tied[0].weight)


def test_a_layer_used_twice_is_one(tools, rng):
    shared, dense = nn.Linear(3, 3), L.Dense(3)
    inner = keras.Sequential([keras.Input((3,)), dense])
    theirs = keras.Sequential([keras.Input((3,)), inner, L.ReLU(), dense])
    ours = tools.randomise(nn.Sequential(shared, nn.ReLU(), shared), 0)
    x = rng.standard_normal((2, 3)).astype(np.float32)
    report = transfer(ours, theirs, example=x)
    assert len(report.moved) == 1
    assert report.max_difference < 1e-5


def test_skip_leaves_a_new_head_alone(tools):
    ours, theirs = source(nn.Conv2d(4, 9, 1)), target(L.Conv2D(5, 1, name="head"))
    head = theirs.layers[-1].kernel.numpy()
    report = transfer(tools.randomise(ours, 0), theirs, skip=["2", "head"])
    np.testing.assert_array_equal(theirs.layers[-1].kernel, head)
    np.testing.assert_array_equal(theirs.layers[1].gamma, ours[1].weight.detach())
    assert report.notes == ("left alone: 2, head",)


def test_names_and_an_example_settle_an_order(tools, rng):
    ours = tools.randomise(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)), 0)
    inputs = keras.Input((3,))
    b, a = L.Dense(3, name="b"), L.Dense(3, name="a")
    theirs = keras.Model(inputs, L.LayerNormalization()(b(a(inputs))))
    x = rng.standard_normal((2, 3)).astype(np.float32)
    assert transfer(ours, theirs, names={"0": "a", "1": "b"}, example=x).max_difference < 1e-5
    before = tools.keras_state(theirs)
    with pytest.raises(ValueError, match="an order of layers"):
        transfer(ours, theirs, names={"0": "b", "1": "a"}, example=x)
    assert tools.keras_state(theirs) == before
    mixed = keras.Sequential([keras.Input((3,)), L.Dense(3), L.LayerNormalization(), L.Dense(3)])
    same = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="the outputs differ"):
        transfer(tools.randomise(same, 0), mixed, example=x)


def test_same_names_beat_the_order(tools):
    """As in functional Keras models, whose layers are listed by depth."""
    ours = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.ModuleDict({"c": nn.Linear(3, 3)})})
    theirs = keras.Sequential([keras.Input((3,)), L.Dense(3, name="b_c"), L.Dense(3, name="a")])
    report = transfer(tools.randomise(ours, 0), theirs)
    assert [(move.source, move.target) for move in report.moved] == [("a", "a"), ("b.c", "b_c")]


def test_same_padding_with_a_stride_is_remarked(tools):
    ours = nn.Conv2d(3, 4, 3, 2, padding=1)
    theirs = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, 2, padding="same")])
    report = transfer(tools.randomise(ours, 0), theirs)
    assert "padding (1, 1) and same with stride (2, 2) may not be the same" in str(report)
    with pytest.raises(ValueError, match="padding"):
        transfer(ours, theirs, example=np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))


def test_the_report_is_to_be_read(tools):
    ours, theirs = source(), target()
    text = str(transfer(tools.randomise(ours, 0), theirs))
    assert text.startswith("2 layers moved\n  0 -> conv  (conv2d: weight, bias)\n")
    assert text.endswith("outputs NOT compared: no example")
    text = str(transfer(ours, theirs, example=np.ones((1, 3, 6, 7), np.float32)))
    assert re.search(r"outputs differ by at most \d\.\de-\d\d$", text)
    assert "\n2 layers" not in text


def test_arrays_are_filled_in_place():
    """Whoever looks at a parameter through a view, or shares its memory, sees the new values."""
    ours = nn.Linear(3, 4)
    numpy = layers.Linear(3, 4, rng=np.random.default_rng(0))
    view, array = ours.weight.detach(), numpy.weight
    transfer(numpy, ours)
    np.testing.assert_array_equal(view, numpy.weight)
    transfer(nn.Linear(3, 4), numpy)
    assert numpy.weight is array


def test_modes_stay(tools):
    ours, theirs = source(), target()
    ours.train()
    ours[1].eval()
    statistics = ours[1].running_mean.clone()
    transfer(ours, theirs, example=np.ones((2, 3, 6, 7), np.float32))
    assert (ours.training, ours[0].training, ours[1].training) == (True, True, False)
    assert torch.equal(ours[1].running_mean, statistics)
