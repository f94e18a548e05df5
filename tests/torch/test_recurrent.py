"""The recurrent modules: results and arguments of torch.nn.LSTM, running statistics, compile, autocast, state."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bnlearn import layers  # noqa: E402
from bnlearn.torch import BatchNormLSTM, BatchNormRNN, LayerNormLSTM  # noqa: E402

N, L, F, H = 6, 4, 3, 2
MAKE = {
    "LayerNormLSTM": lambda cls, **kw: cls.LayerNormLSTM(F, H, **kw),
    "BatchNormLSTM": lambda cls, **kw: cls.BatchNormLSTM(F, H, max_length=5, **kw),
    "BatchNormLSTM shared": lambda cls, **kw: cls.BatchNormLSTM(F, H, per_step=False, **kw),
    "BatchNormRNN": lambda cls, **kw: cls.BatchNormRNN(F, H, max_length=5, **kw),
    "BatchNormRNN shared": lambda cls, **kw: cls.BatchNormRNN(F, H, per_step=False, **kw),
}
BY_BATCH = [name for name in MAKE if name.startswith("Batch")]


class Ours:
    """So that MAKE makes the modules as it makes the NumPy layers."""

    LayerNormLSTM, BatchNormLSTM, BatchNormRNN = LayerNormLSTM, BatchNormLSTM, BatchNormRNN


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20160330)


def make(name, **kw):
    """With random parameters and statistics."""
    module = MAKE[name](Ours, **{"batch_first": True, "dtype": torch.float64, "eps": 1e-3, **kw})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) + 0.5)
        for key, buffer in module.named_buffers():
            buffer.copy_(torch.rand(buffer.shape) + 0.5 if "var" in key else torch.randint(1, 3, buffer.shape))
    return module


def data(length=L, n=N, dtype=torch.float64):
    lengths = torch.tensor([4, 3, 2, 4, 3, 3])[:n]
    return torch.randn(n, length, F, dtype=dtype), torch.arange(length) < lengths[:, None]


@pytest.mark.parametrize("name", MAKE)
class TestEveryModule:
    @pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_as_the_numpy_layer(self, name, training, masked):
        module = make(name).train(training)
        layer = MAKE[name](layers, rng=np.random.default_rng(0), dtype=np.float64, eps=1e-3).train(training)
        layer.load_state_dict(module.state_dict())
        x, mask = data()
        x.requires_grad_()
        y, _ = module(x, mask=mask if masked else None)
        dy = torch.randn_like(y)
        y.backward(dy)
        np.testing.assert_allclose(y.detach(), layer(x.detach().numpy(), mask.numpy() if masked else None), rtol=1e-10)
        np.testing.assert_allclose(x.grad, layer.backward(dy.numpy()), rtol=1e-8, atol=1e-10)
        assert {key for key, _ in module.named_parameters()} == set(layer.grads)
        for key, parameter in module.named_parameters():
            np.testing.assert_allclose(parameter.grad, layer.grads[key], rtol=1e-8, atol=1e-10, err_msg=key)
        for key, value in module.state_dict().items():
            np.testing.assert_allclose(value, layer.state_dict()[key], rtol=1e-12, err_msg=key)

    def test_shapes_as_in_torch(self, name):
        theirs = (torch.nn.RNN if "RNN" in name else torch.nn.LSTM)(F, H, dtype=torch.float64)
        for batch_first in (False, True):
            module = make(name, batch_first=batch_first)
            x = torch.randn((N, L, F) if batch_first else (L, N, F), dtype=torch.float64)
            theirs.batch_first = batch_first
            (out, state), (their_out, their_state) = module(x), theirs(x)
            assert out.shape == their_out.shape
            assert type(state) is type(their_state)
            torch.testing.assert_close(
                out.select(1 if batch_first else 0, -1), (state[0] if "LSTM" in name else state)[0]
            )
            for ours, other in zip(state, their_state, strict=True):
                assert ours.shape == other.shape

    def test_batch_first_is_a_transposition(self, name):
        module = make(name).eval()
        x, mask = data()
        out, _ = module(x, mask=mask)
        module.batch_first = False
        torch.testing.assert_close(module(x.transpose(0, 1), mask=mask.T)[0].transpose(0, 1), out)

    def test_two_halves_joined_by_the_state(self, name):
        """In evaluation with one row of statistics for all steps (or none), where a sequence is cut does not matter."""
        module = make(name).eval()
        for key, buffer in module.named_buffers():
            if "running" in key:
                buffer.copy_(buffer[:1].expand_as(buffer))
        x, _ = data()
        whole, last = module(x)
        first, state = module(x[:, :3])
        second, end = module(x[:, 3:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        for ours, other in zip(end, last, strict=True):
            torch.testing.assert_close(ours, other)

    def test_padding_with_nan(self, name):
        module = make(name)
        x, mask = data()
        results = []
        for filled in (x, x.masked_fill(~mask[..., None], torch.nan)):
            other = copy.deepcopy(module)
            filled = torch.cat([filled, torch.full((N, 1, F), torch.nan)], dim=1).requires_grad_()
            out, _ = other(filled, mask=torch.cat([mask, torch.zeros(N, 1, dtype=torch.bool)], dim=1))
            out.sum().backward()
            results.append([out, filled.grad, *(p.grad for p in other.parameters()), *other.buffers()])
        for ours, theirs in zip(*results, strict=True):
            assert torch.isfinite(ours).all()
            torch.testing.assert_close(ours, theirs)

    def test_autocast(self, name):
        module = make(name, dtype=torch.float32)
        x, _ = data(dtype=torch.float32)
        exact, _ = copy.deepcopy(module)(x)
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = module(x)
        assert all(b.dtype in (torch.float32, torch.int64) for b in module.buffers())
        torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.1)
        out.sum().backward()

    def test_half_precision_input(self, name):
        module = make(name, dtype=torch.float32)
        x, _ = data(dtype=torch.float32)
        out, state = module(x.bfloat16())
        assert out.dtype == state[0].dtype == torch.bfloat16

    def test_device_and_dtype(self, name):
        module = make(name, device="meta", dtype=torch.float32)
        assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])
        assert make(name, dtype=torch.float64).weight_ih_l0.dtype == torch.float64

    def test_state_round_trip(self, name):
        module, other = make(name), make(name)
        x, _ = data()
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        assert not torch.allclose(other.eval()(x)[0], module.eval()(x)[0])
        other.load_state_dict(torch.load(file))
        torch.testing.assert_close(other(x)[0], module(x)[0])
        torch.testing.assert_close(copy.deepcopy(module)(x)[0], module(x)[0])

    def test_reset_parameters(self, name):
        fresh = MAKE[name](Ours)
        bound = H**-0.5
        assert all(p.abs().max() <= bound for p in fresh.parameters(recurse=False))
        assert {m.weight.unique().item() for m in fresh.children()} == {
            1.0 if "shared" in name or "Layer" in name else float(np.float32(0.1))
        }
        assert len({p.std().item() for p in fresh.parameters(recurse=False)} - {0.0}) == 3

    def test_errors_as_torch_words_them(self, name):
        module, theirs = make(name), torch.nn.LSTM(F, H, batch_first=True)
        for bad in (torch.zeros(N, F, L), torch.zeros(1, 2, 5)):
            with pytest.raises(RuntimeError) as their_error:
                theirs(bad)
            with pytest.raises(RuntimeError) as our_error:
                module(bad.double())
            assert str(our_error.value) == str(their_error.value)
        for dim in (2, 4):
            with pytest.raises(ValueError, match=rf"expected 3D input \(got {dim}D input\)"):
                module(torch.zeros((3,) * dim))
        with pytest.raises(ValueError, match="expected input_size and hidden_size >= 1, got 3 and 0"):
            type(module)(F, 0, **({} if "Layer" in name else {"per_step": False}))
        h = torch.zeros(1, 5, H, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"arrays of shape \(6, 2\), got shapes \[\(5, 2\)"):
            module(data()[0], (h, h) if "LSTM" in name else h)


@pytest.mark.parametrize("name", ["LayerNormLSTM", "BatchNormLSTM", "BatchNormRNN shared"])
def test_compile(name):
    """As one graph, without a warning, with the mask and the running statistics in it."""
    module = make(name)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x, mask = data(2)
    for mode in (True, False):
        module.train(mode)
        compiled.train(mode)
        torch.testing.assert_close(compiled(x, mask=mask)[0], module(x, mask=mask)[0])
    for (key, ours), theirs in zip(compiled.named_buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=key)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", BY_BATCH)
class TestStatistics:
    def test_update_bn_finds_them(self, name):
        """PyTorch's own re-estimation: resets, averages over all batches, and puts the momentum back."""
        module = make(name)
        batches = [data()[0] for _ in range(3)]
        torch.optim.swa_utils.update_bn(batches, module)
        projected = torch.stack(batches) @ module.weight_ih_l0.T
        mean = projected.mean(dim=(1, 2) if "shared" in name else 1).mean(dim=0)
        running = module.norm_ih.running_mean
        torch.testing.assert_close(running[:L], mean.reshape(-1, mean.shape[-1]))
        assert module.norm_ih.momentum == 0.1
        if "shared" not in name:  # no batch had a fifth step: it repeats the fourth
            torch.testing.assert_close(running[4], running[3])
            assert module.norm_ih.num_batches_tracked.tolist() == [3, 3, 3, 3, 0]

    def test_evaluation_keeps_them(self, name):
        module = make(name).eval()
        before = copy.deepcopy(module.state_dict())
        x, _ = data(9)
        out, _ = module(x)
        torch.testing.assert_close(module(x[:1])[0], out[:1])
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)

    def test_a_failure_changes_nothing(self, name):
        module = make(name)
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(ValueError, match=r"more than 1 value per channel.*input size torch.Size\(\[1, 4, 3\]\)"):
            module(torch.zeros(1, L, F))
        with pytest.raises(TypeError, match="mask of dtype bool"):
            module(data()[0], mask=torch.ones(N, L))
        if "shared" not in name:
            with pytest.raises(ValueError, match="at most max_length=5 time steps in training, got 6"):
                module(data(6)[0])
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)

    def test_no_graph_is_kept(self, name):
        module = make(name)
        for _ in range(2):
            module(data()[0])[0].sum().backward()
        assert not any(b.requires_grad for b in module.buffers())

    def test_arguments(self, name):
        for bad in ({}, {"max_length": 0}, {"max_length": 3, "per_step": False}):
            with pytest.raises(ValueError, match=f"got max_length={bad.get('max_length')} and per_step"):
                type(make(name))(F, H, **bad)
        for eps in (0.0, float("nan")):
            with pytest.raises(ValueError, match=f"expected eps > 0, got {eps}"):
                type(make(name))(F, H, per_step=False, eps=eps)
        norms = MAKE[name](Ours, scale=0.5, momentum=None).children()
        assert all((m.weight == 0.5).all() and m.momentum is None for m in norms)


def test_representation():
    assert repr(BatchNormLSTM(3, 2, max_length=5)).startswith("BatchNormLSTM(\n  3, 2, max_length=5\n")
    assert "3, 2, bias=False, batch_first=True, per_step=False" in repr(BatchNormRNN(3, 2, False, True, per_step=False))
    assert repr(LayerNormLSTM(3, 2, False)).startswith("LayerNormLSTM(\n  3, 2, bias=False\n")


def test_without_bias():
    module = BatchNormLSTM(F, H, bias=False, per_step=False)
    assert module.bias_l0 is None
    assert set(module.state_dict()) == {
        *("weight_ih_l0", "weight_hh_l0", "norm_ih.weight", "norm_ih.running_mean", "norm_ih.running_var"),
        "norm_ih.num_batches_tracked",
    }
    assert module(torch.ones(L, N, F))[0].shape == (L, N, H)
