"""What is written as ONNX computes, in onnxruntime, what the model does in evaluation mode."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.convert import to_onnx

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
nn, L = torch.nn, keras.layers


def network():
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=0.02, momentum=0.3), nn.ReLU(), nn.Flatten()),
        *(nn.BatchNorm1d(36), nn.Linear(36, 4), nn.LayerNorm(4, eps=0.5)),
    )


def outputs(path, x):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_pytorch(tools, rng, tmp_path):
    model = tools.randomise(network(), 0)
    model.train()
    model[4].eval()
    state, level = tools.torch_state(model), logging.getLogger("torch.onnx").level
    x = rng.standard_normal((2, 2, 5, 6)).astype(np.float32)
    found = to_onnx(model, torch.tensor(x), tmp_path / "model.onnx", fold=False)
    assert tools.torch_state(model) == state
    assert logging.getLogger("torch.onnx").level == level
    assert found.path == tmp_path / "model.onnx"
    assert [*tmp_path.iterdir()] == [found.path]
    assert found.max_difference < 1e-5
    assert found.opset == 20
    first, second, last = found.normalizers
    assert first == {
        "op": "BatchNormalization",
        "epsilon": 0.02,
        "momentum": 0.7,
    }  # of the old
    assert (second["epsilon"], second["momentum"]) == (1e-5, 0.9)
    assert (last["op"], last["epsilon"], last["axis"]) == ("LayerNormalization", 0.5, -1)
    more = rng.standard_normal((5, 2, 5, 6)).astype(np.float32)  # a batch of another size
    y = model.eval()(torch.tensor(more)).detach()
    np.testing.assert_allclose(outputs(found.path, more), y, atol=1e-5)


def test_pytorch_folds_a_batch_norm_into_the_convolution(tools, rng, tmp_path):
    model = tools.randomise(network(), 0)
    x = rng.standard_normal((2, 2, 5, 6)).astype(np.float32)
    found = to_onnx(model, x, str(tmp_path / "model.onnx"))
    assert [entry["op"] for entry in found.normalizers] == ["BatchNormalization", "LayerNormalization"]
    assert found.max_difference < 1e-5


def numpy_network(seed, momentum=0.3):
    rng = np.random.default_rng(seed)
    network = layers.Sequential(
        layers.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0), rng=rng),
        *(layers.BatchNorm2d(3, eps=0.02, momentum=momentum), layers.ReLU()),
        layers.Conv2d(3, 4, 1, bias=False, rng=rng),
        layers.Sequential(layers.BatchNorm2d(4, affine=False), layers.Sigmoid(), layers.Flatten()),
        *(layers.Linear(48, 5, bias=False, rng=rng), layers.Tanh(), layers.Linear(5, 3, rng=rng)),
    )
    for array in (*network.parameters().values(), *network.buffers().values()):
        array[...] = np.asarray(rng.uniform(0.5, 1.5, array.shape)).astype(array.dtype)
    return network


def test_numpy(rng, tmp_path):
    network = numpy_network(0)
    x = rng.standard_normal((2, 2, 5, 5)).astype(np.float32)
    before = network.state_dict()
    found = to_onnx(network, x, tmp_path / "model.onnx")
    assert network.training
    assert all(np.array_equal(array, network.state_dict()[name]) for name, array in before.items())
    assert found.max_difference < 1e-5
    assert found.normalizers[0] == {"op": "BatchNormalization", "epsilon": 0.02, "momentum": 0.7}
    y = outputs(found.path, x)
    np.testing.assert_allclose(y, network.eval()(x), atol=1e-5)


def test_numpy_in_float64(rng, tmp_path):
    """Onnxruntime has no convolution for it."""
    model = layers.Sequential(layers.Linear(3, 4, rng=rng, dtype=np.float64), layers.BatchNorm1d(4), layers.ReLU())
    found = to_onnx(model, rng.standard_normal((5, 3)), tmp_path / "model.onnx")
    assert found.max_difference < 1e-12


def test_numpy_momentum_none(rng, tmp_path):
    found = to_onnx(numpy_network(0, None), rng.standard_normal((2, 2, 5, 5)).astype(np.float32), tmp_path / "m.onnx")
    assert found.normalizers[0] == {"op": "BatchNormalization", "epsilon": 0.02}


def test_numpy_layer_without_a_rule(tmp_path):
    untracked = layers.Sequential(layers.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(TypeError, match=r"BatchNorm1d.*export a PyTorch twin"):
        to_onnx(untracked, np.ones((2, 3), np.float32), tmp_path / "model.onnx")
    assert not [*tmp_path.iterdir()]


class Unfit(nn.Module):
    """Gives something else each time."""

    calls = 0

    def forward(self, x):
        Unfit.calls += 1
        return x + Unfit.calls


def test_nothing_is_written_where_outputs_differ(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("what was there")
    with pytest.raises(ValueError, match=r"they differ by \d.*model\.onnx was not written"):
        to_onnx(Unfit(), np.ones((2, 3), np.float32), path)
    assert path.read_text() == "what was there"
    assert [*tmp_path.iterdir()] == [path]


class WrongShape(nn.Module):
    """Its shape depends on how often it was called."""

    calls = 0

    def forward(self, x):
        WrongShape.calls += 1
        return torch.cat([x] * WrongShape.calls, 1)


def test_outputs_of_another_shape_differ(tmp_path):
    with pytest.raises(ValueError, match="they differ by inf"):
        to_onnx(WrongShape(), np.ones((2, 3), np.float32), tmp_path / "model.onnx")


class TestKeras:
    def test_without_tf2onnx_it_says_what_to_do(self, tools, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tf2onnx", None)
        model = tools.randomise(keras.Sequential([keras.Input((3,)), L.Dense(2)]), 0)
        with pytest.raises(ImportError, match=r"tf2onnx for TensorFlow.*: install it, or set KERAS_BACKEND=torch"):
            to_onnx(model, np.ones((2, 3), np.float32), tmp_path / "model.onnx")
        assert not [*tmp_path.iterdir()]

    def test_what_keras_writes_is_checked(self, tools, tmp_path, monkeypatch, rng):
        """Whatever writes the file (here: our own writer, with Keras's weights), its outputs are compared."""
        model = tools.randomise(keras.Sequential([keras.Input((3,)), L.Dense(2)]), 0)
        twin = layers.Linear(3, 2, rng=rng)
        twin.weight, twin.bias = model.layers[0].kernel.numpy().T, model.layers[0].bias.numpy()
        x = rng.standard_normal((2, 3)).astype(np.float32)

        def export(path, **arguments):
            to_onnx(twin, x, path)

        monkeypatch.setattr(model, "export", export, raising=False)
        assert to_onnx(model, x, tmp_path / "model.onnx").max_difference < 1e-5
        twin.bias[0] += 0.1
        with pytest.raises(ValueError, match=r"they differ by 0\.1"):
            to_onnx(model, x, tmp_path / "other.onnx")
        assert not (tmp_path / "other.onnx").exists()
