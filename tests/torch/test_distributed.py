"""SyncBatchNorm against batch normalisation of the whole batch in one process: alone, and on two processes of torchrun.

What the two processes do is in across_processes.py.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this PyTorch was built without gloo", allow_module_level=True)

from torch import nn  # noqa: E402

from bnlearn.functional import Moments, batch_norm, batch_norm_backward  # noqa: E402
from bnlearn.torch import DecorrelatedBatchNorm, SyncBatchNorm, torchrun  # noqa: E402
from bnlearn.torch.distributed import _merge_over  # noqa: E402
from bnlearn.torch.launch import _end, _loopback  # noqa: E402

WORKER = Path(__file__).with_name("across_processes.py")


# -- Two processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(20150211)
    made = {name: rng.standard_normal(shape) for name, shape in {"features": (12, 3), "images": (12, 3, 2, 4)}.items()}
    made |= {f"d{name}": rng.standard_normal(x.shape) for name, x in made.items()}
    made["features"] += 2
    return {
        **made,
        "gamma": np.array([0.7, -1.3, 2.0]),
        "beta": np.array([0.3, 1.0, -0.5]),
        "far": (1e3 + 0.1 * rng.standard_normal((1000, 3))).astype(np.float32),
        "dfar": rng.standard_normal((1000, 3)).astype(np.float32),
        "pictures": rng.standard_normal((12, 3, 4, 4)),
        "targets": rng.standard_normal((12, 5)),
    }


@pytest.fixture(scope="module")
def ranks(data, tmp_path_factory):
    """What the two processes found, under names such as ``"features(6, 6).dx"``."""
    folder = tmp_path_factory.mktemp("ranks")
    np.savez(folder / "data.npz", **data)
    torchrun(WORKER, folder, timeout=200)
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2)]


def whole_batch(x, dy, gamma=None, beta=None, eps=0.01, **arguments):
    """PyTorch's batch normalisation of all samples in this process, autograd and buffers included."""
    kind = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.ndim]
    norm = kind(3, eps=eps, affine=gamma is not None, dtype=torch.float64, **arguments)
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    if gamma is not None:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor(gamma))
            norm.bias.copy_(torch.tensor(beta))
    y = norm(x)
    y.backward(torch.tensor(dy, dtype=torch.float64))
    grads = {} if gamma is None else {"dgamma": norm.weight.grad, "dbeta": norm.bias.grad}
    found = {"y": y, "dx": x.grad, **grads, **dict(norm.named_buffers())}
    return {name: value.detach().numpy() for name, value in found.items()}


def assert_same(ranks, name, expected, tolerance=1e-10):
    """Samples are shared out, gradients of parameters add up, statistics are the same everywhere."""
    for key, value in expected.items():
        parts = [rank[f"{name}.{key}"] for rank in ranks]
        if key in ("y", "dx"):
            found = [np.concatenate(parts)]
        else:
            found = [parts[0] + parts[1]] if key in ("dgamma", "dbeta") else parts
        for one in found:
            np.testing.assert_allclose(one, value, rtol=tolerance, atol=tolerance, err_msg=f"{name}.{key}")


class TestTwoProcesses:
    @pytest.mark.parametrize("sizes", [(6, 6), (11, 1), (12, 0), (0, 12)], ids=str)
    @pytest.mark.parametrize("shape", ["features", "images"])
    def test_forward_backward_and_running_statistics(self, data, ranks, shape, sizes):
        expected = whole_batch(data[shape], data[f"d{shape}"], data["gamma"], data["beta"])
        assert_same(ranks, f"{shape}{sizes}", expected)

    def test_equals_the_functions_over_shards(self, data, ranks):
        y, cache = batch_norm(data["images"], data["gamma"], data["beta"], eps=0.01)
        dx, dgamma, dbeta = batch_norm_backward(data["dimages"], cache)
        assert_same(ranks, "images(11, 1)", {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta})

    def test_the_own_batch_alone_would_be_wrong(self, data, ranks):
        own = whole_batch(data["features"][:6], data["dfeatures"][:6], data["gamma"], data["beta"])
        for name in ("y", "dx", "running_mean", "running_var"):
            assert np.abs(own[name] - ranks[0][f"features(6, 6).{name}"]).max() > 0.01, name

    def test_without_parameters_or_without_statistics(self, data, ranks):
        given = data["images"], data["dimages"]
        assert_same(ranks, "plain", whole_batch(*given))
        untracked = whole_batch(*given, data["gamma"], data["beta"], track_running_stats=False)
        assert set(untracked) == {"y", "dx", "dgamma", "dbeta"}
        assert_same(ranks, "untracked", untracked)

    def test_where_no_gradient_of_x_is_asked_for(self, data, ranks):
        expected = whole_batch(data["images"], data["dimages"], data["gamma"], data["beta"])
        assert_same(ranks, "no gradient of x", {name: expected[name] for name in ("dgamma", "dbeta")})

    def test_momentum_none_is_the_average_of_all_batches(self, data, ranks):
        norm = nn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
        x = torch.tensor(data["features"])
        for batch in (x, x**2, x, x**2):
            norm(batch)
        assert_same(ranks, "average", {name: value.numpy() for name, value in norm.named_buffers()})

    def test_no_samples_at_all(self, ranks):
        for rank in ranks:
            assert rank["nothing.y"].shape == (0, 3, 2, 4)
            np.testing.assert_array_equal(rank["nothing.dgamma"], 0)
            np.testing.assert_array_equal(rank["nothing.running_mean"], 0)
            np.testing.assert_array_equal(rank["nothing.running_var"], 1)
            assert rank["nothing.num_batches_tracked"] == 1  # as PyTorch counts an empty batch

    def test_one_value_in_all_is_refused_by_all_of_them(self, ranks):
        for rank, size in zip(ranks, ("(1, 3)", "(0, 3)"), strict=True):
            assert f"Expected more than 1 value per channel when training, got input size {size}" in str(
                rank["alone.error"]
            )
            np.testing.assert_array_equal(rank["alone.running_var"], 1)
            assert rank["alone.num_batches_tracked"] == 0

    def test_a_process_group_of_its_own(self, data, ranks):
        for rank, part in zip(ranks, (slice(0, 5), slice(5, 12)), strict=True):
            expected = whole_batch(data["images"][part], data["dimages"][part], data["gamma"], data["beta"])
            for name, value in expected.items():
                np.testing.assert_allclose(rank[f"own group.{name}"], value, rtol=1e-10, atol=1e-10, err_msg=name)

    def test_evaluation_waits_for_nobody(self, data, ranks):
        trained = whole_batch(data["images"], data["dimages"], data["gamma"], data["beta"])
        statistics = {"mean": trained["running_mean"], "var": trained["running_var"]}
        y, _ = batch_norm(data["images"], data["gamma"], data["beta"], eps=0.01, **statistics)
        np.testing.assert_allclose(ranks[0]["evaluated.y"], y, rtol=1e-10, atol=1e-10)

    def test_float32_at_mean_1e3(self, data, ranks):
        """No less accurate than one float32 batch: a mean rounded to float32 alone would be off by 1e-4 and more."""
        exact = whole_batch(data["far"], data["dfar"], np.ones(3), np.zeros(3), eps=1e-5)
        assert_same(ranks, "precise", {name: exact[name] for name in ("y", "running_mean", "running_var")}, 2e-5)
        assert_same(ranks, "precise", {"dx": exact["dx"]}, 1e-4)

    def test_autocast_takes_the_statistics_in_float32(self, data, ranks):
        rounded = torch.tensor(data["far"]).bfloat16().double().numpy()
        exact = whole_batch(rounded, data["dfar"], np.ones(3), np.zeros(3), eps=1e-5)
        assert_same(ranks, "autocast", {name: exact[name] for name in ("running_mean", "running_var")}, 1e-5)
        assert_same(ranks, "autocast", {"y": exact["y"]}, 0.02)


class TestDistributedDataParallel:
    """Two steps of training a small network with two batch normalisations."""

    def network(self):
        """That of the two processes, whose file cannot be imported without being one of them."""
        scope = {"torch": torch, "nn": nn}
        source = re.search(r"^def network.*?\n\n", WORKER.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        exec(source.group(), scope)
        return scope["network"]()

    def trained_alone(self, data, loss_of=nn.functional.mse_loss):
        model = self.network()
        x, targets = torch.tensor(data["pictures"]), torch.tensor(data["targets"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model(x), targets).backward()
            optimizer.step()
        return {name: value.numpy() for name, value in model.state_dict().items()}

    def test_a_step_is_that_of_one_process(self, data, ranks):
        assert_same(ranks, "synchronised", self.trained_alone(data))

    def test_uneven_batches_need_the_loss_weighted_by_their_share(self, data, ranks):
        expected = self.trained_alone(data)
        assert_same(ranks, "weighted", expected)
        assert np.abs(ranks[0]["unweighted.4.weight"] - expected["4.weight"]).max() > 1e-3

    def test_uneven_batches_unweighted_are_the_mean_of_the_two_means(self, data, ranks):
        def mean_of_means(y, targets):
            return sum(nn.functional.mse_loss(y[part], targets[part]) for part in (slice(0, 8), slice(8, 12))) / 2

        assert_same(ranks, "unweighted", self.trained_alone(data, mean_of_means))

    def test_plain_batch_normalisation_is_not(self, data, ranks):
        expected = self.trained_alone(data)
        for name in ("0.weight", "1.weight", "1.running_mean", "4.weight"):
            assert np.abs(ranks[0][f"unsynchronised.{name}"] - expected[name]).max() > 1e-4, name

    def test_plain_running_statistics_are_those_of_rank_0(self, ranks):
        """As PyTorch does it: each process updates its own, and the next forward pass begins with rank 0's."""
        for name in ("1.running_mean", "1.running_var"):
            first, second = (rank[f"after one batch.{name}"] for rank in ranks)
            assert np.abs(first - second).max() > 1e-3
            for rank in ranks:
                np.testing.assert_array_equal(rank[f"after the next call.{name}"], first)


class TestTheirs:
    def test_refuses_the_cpu(self, ranks):
        """Why this layer exists. If this fails, PyTorch has learnt it, and the documentation is to say so."""
        for rank in ranks:
            assert "expected input tensor to be on GPU" in str(rank["theirs.forward"])
            assert "only work with GPU modules" in str(rank["theirs.wrapping"])


# -- This process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A process group of this process only."""
    for name, value in _loopback().items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def layers(rng, **arguments):
    """Ours and PyTorch's, with the same random state."""
    ours, theirs = SyncBatchNorm(3, **arguments), nn.BatchNorm2d(3, **arguments)
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.tensor(rng.uniform(0.5, 2.0, 3)))
        assert name in ours.state_dict()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def both_ways(norm, x, dy):
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters()), *(b.clone() for b in norm.buffers())]


@pytest.fixture
def images(rng):
    return [torch.tensor(rng.standard_normal((4, 3, 2, 5)) + 1) for _ in range(2)]


class TestOneProcess:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"affine": False},
            {"bias": False},
            {"momentum": None},
            {"track_running_stats": False},
            {"eps": 0.3, "momentum": 0.7},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_is_batch_norm(self, rng, alone, images, arguments, training):
        for norm in (pair := layers(rng, dtype=torch.float64, **arguments)):
            norm.train(training)
        for _ in range(2):
            for found, expected in zip(*(both_ways(norm, *images) for norm in pair), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def test_without_a_process_group_it_is_batch_norm(self, rng, images):
        assert not dist.is_initialized()
        for found, expected in zip(
            *(both_ways(norm, *images) for norm in layers(rng, dtype=torch.float64)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
    def test_only_the_gradients_that_are_asked_for(self, rng, alone, images, needed):
        norm, _ = layers(rng, dtype=torch.float64)
        expected = both_ways(norm, *images)[1:4]
        norm.zero_grad()
        x = images[0].clone()
        for tensor, wanted in zip(tensors := (x, norm.weight, norm.bias), needed, strict=True):
            tensor.requires_grad_(wanted)
        norm(x).backward(images[1])
        for tensor, wanted, gradient in zip(tensors, needed, expected, strict=True):
            assert (tensor.grad is not None) == wanted
            if wanted:
                torch.testing.assert_close(tensor.grad, gradient)

    def test_gradcheck(self, rng, alone, images):
        norm, _ = layers(rng, dtype=torch.float64)
        assert torch.autograd.gradcheck(norm, images[0].requires_grad_())

    def test_is_not_differentiable_twice(self, rng, alone, images):
        norm, _ = layers(rng, dtype=torch.float64)
        x = images[0].requires_grad_()
        (dx,) = torch.autograd.grad((norm(x) ** 3).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()

    def test_half_precision(self, rng, alone, images):
        norm, plain = layers(rng)
        y, dx, *grads = both_ways(norm, *(a.bfloat16() for a in images))
        assert y.dtype == dx.dtype == torch.bfloat16
        assert {a.dtype for a in grads[:4]} == {torch.float32}
        expected = both_ways(plain, *(a.bfloat16().float() for a in images))
        for found, value in zip([y, dx, *grads], expected, strict=True):
            torch.testing.assert_close(found.to(value.dtype), value, rtol=0.01, atol=0.01)

    def test_parameters_in_half_precision(self, alone, images):
        norm = SyncBatchNorm(3, dtype=torch.bfloat16)
        both_ways(norm, *(a.bfloat16() for a in images))
        assert {p.grad.dtype for p in norm.parameters()} == {norm.running_var.dtype} == {torch.bfloat16}

    def test_an_activation_in_place_behind_it(self, alone, images):
        def gradient(activation):
            x = images[0].clone().requires_grad_()
            nn.Sequential(SyncBatchNorm(3, affine=False), activation)(x).backward(images[1])
            return x.grad

        torch.testing.assert_close(gradient(nn.ReLU(inplace=True)), gradient(nn.ReLU()))

    @pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own, at any break of a graph
    def test_compiled_it_leaves_the_graph_for_the_exchange(self, rng, alone, images):
        norm, _ = layers(rng, dtype=torch.float64)
        model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU()).double()
        expected = both_ways(copy.deepcopy(model), *images)
        found = both_ways(torch.compile(model, backend="aot_eager"), *images)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)(images[0])

    def test_the_graph_does_not_reach_the_running_statistics(self, rng, alone, images):
        norm, _ = layers(rng, dtype=torch.float64)
        for _ in range(2):
            norm(images[0].requires_grad_())
        assert not norm.running_mean.requires_grad
        copy.deepcopy(norm)

    def test_counts_beyond_what_float32_can_count(self, alone):
        n = (1 << 24) + 1
        whole = _merge_over(None, Moments(n, torch.ones(2), torch.full((2,), 3.0), torch.zeros(2)))
        assert whole.n == n
        assert torch.tensor(float(n), dtype=torch.float32).item() != n

    def test_state_copies_and_pickles(self, rng, images):
        norm, plain = layers(rng, dtype=torch.float64)
        for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            torch.testing.assert_close(twin(images[0]), plain(images[0]))
        assert list(norm.state_dict()) == list(plain.state_dict())
        assert repr(norm) == repr(plain).replace("BatchNorm2d", "SyncBatchNorm")
        assert next(SyncBatchNorm(2, device="meta").parameters()).device.type == "meta"

    def test_errors(self, alone):
        with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
            SyncBatchNorm(3)(torch.ones(3))
        for norm in (SyncBatchNorm(3), SyncBatchNorm(3).eval()):
            with pytest.raises(ValueError, match=r"expected 3 channels on axis 1, got input size \(4, 2\)"):
                norm(torch.ones(4, 2))
        with pytest.raises(ValueError, match=r"more than 1 value per channel when training, got input size \(1, 3\)"):
            SyncBatchNorm(3)(torch.ones(1, 3))
        with pytest.raises(TypeError, match=r"expected x of a real floating-point dtype, got torch\.int64"):
            SyncBatchNorm(3)(torch.ones(4, 3, dtype=torch.int64))


class TestConversion:
    def model(self):
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Conv3d(2, 2, 1), nn.BatchNorm3d(2, eps=0.1, momentum=None))
        return nn.ModuleDict(
            {"inner": inner, "2d": nn.BatchNorm2d(3, affine=False), "1d": nn.BatchNorm1d(4, bias=False).eval()}
        )

    def test_there_and_back(self):
        model = self.model()
        before = dict(model.named_modules())
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        converted = SyncBatchNorm.convert_sync_batchnorm(model, "a group")
        assert converted is model
        kinds = [type(module).__name__ for module in converted.modules()]
        assert kinds == ["ModuleDict", "Sequential", "Conv3d", "SyncBatchNorm", "SyncBatchNorm", "SyncBatchNorm"]
        assert model["inner"][1].process_group == "a group"
        for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
            assert tensor is state[name]
        assert [model[name].training for name in ("2d", "1d")] == [True, False]

        SyncBatchNorm.revert_sync_batchnorm(model)
        for name, module in model.named_modules():
            assert repr(module) == repr(self.model().get_submodule(name))
            assert type(module) is type(before[name])
        for name, tensor in model.state_dict(keep_vars=True).items():
            assert tensor is state[name]

    def test_of_a_layer_itself(self):
        norm = nn.BatchNorm1d(3)
        converted = SyncBatchNorm.convert_sync_batchnorm(norm)
        assert isinstance(converted, SyncBatchNorm)
        assert converted.weight is norm.weight
        assert type(SyncBatchNorm.revert_sync_batchnorm(converted)) is nn.BatchNorm1d

    def test_to_and_from_pytorchs_own(self):
        theirs = nn.SyncBatchNorm.convert_sync_batchnorm(SyncBatchNorm(3, eps=0.2, bias=False))
        assert type(theirs) is nn.SyncBatchNorm
        ours = SyncBatchNorm.convert_sync_batchnorm(theirs)
        assert repr(ours) == repr(theirs)
        assert "eps=0.2" in repr(ours)
        assert ours.bias is None
        assert type(SyncBatchNorm.revert_sync_batchnorm(ours)) is nn.SyncBatchNorm

    def test_what_only_derives_from_batch_normalisation_is_left(self):
        """PyTorch's own would turn it into batch normalisation."""
        model = nn.Sequential(DecorrelatedBatchNorm(3), nn.InstanceNorm2d(3))
        SyncBatchNorm.convert_sync_batchnorm(model)
        assert [type(module) for module in model] == [DecorrelatedBatchNorm, nn.InstanceNorm2d]

    @pytest.mark.parametrize("dim", [1, 2, 3])
    def test_back_from_one_that_never_was_another(self, dim):
        made = nn.Sequential(SyncBatchNorm(3))
        with pytest.raises(ValueError, match=r"dim=1, 2 or 3 .* not converted from another layer, got None"):
            SyncBatchNorm.revert_sync_batchnorm(made)
        with pytest.raises(ValueError, match="got 4"):
            SyncBatchNorm.revert_sync_batchnorm(made, dim=4)
        reverted = SyncBatchNorm.revert_sync_batchnorm(made, dim=dim)[0]
        assert type(reverted) is getattr(nn, f"BatchNorm{dim}d")
        reverted(torch.ones(2, 3, *[4] * (dim if dim > 1 else 0)))

    def test_lazy_layers(self):
        with pytest.raises(ValueError, match="got LazyBatchNorm2d; run the model on a batch first"):
            SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))
        lazy = nn.LazyBatchNorm2d()
        lazy(torch.ones(2, 3, 4, 4))
        assert SyncBatchNorm.convert_sync_batchnorm(lazy).num_features == 3


# -- What becomes of processes that fail -----------------------------------------------------------------------------

DIES = """
import os, torch.distributed as dist, torch
dist.init_process_group("gloo")
if dist.get_rank() == 1:
    os._exit(3)
from bnlearn.torch import SyncBatchNorm
SyncBatchNorm(2)(torch.ones(4, 2))
"""

HANGS = """
import pathlib, sys, time, os
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""


class TestTorchrun:
    def test_what_they_print(self, tmp_path):
        (tmp_path / "says.py").write_text(
            "import os, sys\nprint(os.environ['RANK'] + repr(sys.argv[1:]) + '\\n', end='')"
        )
        printed = torchrun(tmp_path / "says.py", "a", tmp_path, processes=3)
        assert sorted(printed.splitlines()) == [f"{rank}['a', {str(tmp_path)!r}]" for rank in range(3)]

    def test_a_process_that_dies_takes_the_others_with_it(self, tmp_path):
        (tmp_path / "dies.py").write_text(DIES)
        with pytest.raises(RuntimeError, match=r"all 2 processes to succeed, one failed:(.|\n)*exitcode *: 3"):
            torchrun(tmp_path / "dies.py", timeout=120)

    def test_processes_that_hang_are_ended(self, tmp_path):
        (tmp_path / "hangs.py").write_text(HANGS)
        with pytest.raises(TimeoutError, match=r"2 processes to end within 6 s; they were ended"):
            torchrun(tmp_path / "hangs.py", tmp_path, timeout=6)
        for started in tmp_path.glob("[01]"):
            with pytest.raises(OSError, match=r"No such process|Invalid argument|parameter is incorrect"):
                os.kill(int(started.read_text()), 0)

    @pytest.mark.skipif(sys.platform == "win32", reason="a signal that a process ignores is no way to end it there")
    def test_a_torchrun_that_will_not_end_is_killed(self, monkeypatch):
        """And nobody waits for what it leaves behind, which holds the pipe."""
        monkeypatch.setattr("bnlearn.torch.launch.GRACE", 0.5)
        child = "import time; print(1, flush=True); time.sleep(20)"
        stubborn = (
            "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            f"subprocess.run([sys.executable, '-c', {child!r}])"
        )
        running = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, text=True)
        assert running.stdout.readline() == "1\n"
        _end(running)
        assert running.poll() == -9
        assert running.stdout.closed
