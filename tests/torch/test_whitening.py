"""The PyTorch modules that whiten: as the NumPy layers, and at home in PyTorch."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.functional import iter_norm, iter_norm_backward, whiten, whiten_backward

torch = pytest.importorskip("torch")

from bnlearn.torch import DecorrelatedBatchNorm, IterNorm  # noqa: E402

KINDS = pytest.mark.parametrize("kind", [DecorrelatedBatchNorm, IterNorm])
FORMULAS = {DecorrelatedBatchNorm: (whiten, whiten_backward), IterNorm: (iter_norm, iter_norm_backward)}


def randomise(module, rng):
    state = {name: torch.tensor(rng.uniform(0.5, 2, tensor.shape)) for name, tensor in module.state_dict().items()}
    module.load_state_dict(state)
    return module


@KINDS
class TestAgainstTheNumpyLayer:
    @pytest.mark.parametrize("shape", [(12, 6), (4, 6, 5), (3, 6, 4, 2), (2, 6, 2, 3, 2)])
    @pytest.mark.parametrize("momentum", [0.3, None])
    def test_outputs_gradients_and_statistics(self, rng, kind, shape, momentum):
        module = randomise(kind(6, eps=0.01, momentum=momentum, num_groups=2, dtype=torch.float64), rng)
        twin = getattr(layers, kind.__name__)(6, eps=0.01, momentum=momentum, num_groups=2, dtype=np.float64)
        twin.load_state_dict(module.state_dict())
        for training in (True, True, False):
            module.train(training)
            twin.train(training)
            x, dy = 2 + rng.standard_normal(shape), rng.standard_normal(shape)
            leaf = torch.tensor(x, requires_grad=True)
            module.zero_grad()
            y = module(leaf)
            y.backward(torch.tensor(dy))
            np.testing.assert_allclose(y.detach(), twin(x), rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(leaf.grad, twin.backward(dy), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(module.weight.grad, twin.grads["weight"], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(module.bias.grad, twin.grads["bias"], rtol=1e-9, atol=1e-9)
            for name, array in twin.state_dict().items():
                np.testing.assert_allclose(module.state_dict()[name], array, rtol=1e-10, atol=1e-10, err_msg=name)

    def test_without_parameters_or_statistics(self, rng, kind):
        module = kind(3, affine=False, track_running_stats=False)
        assert list(module.state_dict()) == []
        x = torch.tensor(2 + rng.standard_normal((9, 3)))
        torch.testing.assert_close(module.eval()(x), FORMULAS[kind][0](x)[0])
        module.reset_running_stats()  # nothing to do, as in PyTorch
        assert module.running_matrix is None

    def test_already_white_input(self, rng, kind):
        """All eigenvalues the same: where differentiating an eigendecomposition divides by zero."""
        forward, backward = FORMULAS[kind]
        x, _ = whiten(rng.standard_normal((20, 5)), eps=0.0)
        dy = rng.standard_normal(x.shape)
        leaf = torch.tensor(x, requires_grad=True)
        kind(5, dtype=torch.float64)(leaf).backward(torch.tensor(dy))
        np.testing.assert_allclose(leaf.grad, backward(dy, forward(x)[1])[0], rtol=1e-9, atol=1e-9)


@KINDS
class TestAtHomeInTorch:
    def test_it_is_a_batch_norm_to_pytorch(self, rng, kind):
        """``update_bn`` finds it, sets the momentum to None, and averages over the loader."""
        module = kind(4, num_groups=2)
        assert isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        loader = [torch.tensor(1 + rng.standard_normal((9, 4)), dtype=torch.float32) for _ in range(3)]
        module(loader[0] * 100)
        torch.optim.swa_utils.update_bn(loader, module)
        torch.testing.assert_close(module.running_mean, torch.stack(loader).mean(dim=(0, 1)))
        matrices = [FORMULAS[kind][0](x, groups=2)[1].matrix for x in loader]
        torch.testing.assert_close(module.running_matrix, torch.stack(matrices).mean(dim=0))
        assert (module.momentum, int(module.num_batches_tracked)) == (0.1, 3)

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_the_state_of_a_batch_norm_loads(self, rng, kind, groups):
        theirs = randomise(torch.nn.BatchNorm2d(4, eps=1e-3, dtype=torch.float64), rng).eval()
        ours = kind(4, eps=1e-3, num_groups=groups, dtype=torch.float64).eval()
        ours.load_state_dict(theirs.state_dict())
        x = torch.tensor(rng.standard_normal((3, 4, 2, 2)))
        torch.testing.assert_close(ours(x), theirs(x))
        nested = torch.nn.Sequential(kind(4, eps=1e-3, dtype=torch.float64)).eval()
        nested.load_state_dict(torch.nn.Sequential(theirs).state_dict())
        torch.testing.assert_close(nested(x), theirs(x))
        with pytest.raises(RuntimeError, match="running_var"):
            kind(4).load_state_dict(torch.nn.BatchNorm2d(3).state_dict())

    def test_state_round_trip_and_deepcopy(self, rng, kind):
        module = randomise(kind(4, num_groups=2), rng).eval()
        names = ["weight", "bias", "running_mean", "num_batches_tracked", "running_matrix"]
        assert list(module.state_dict()) == names
        x = torch.tensor(rng.standard_normal((3, 4)), dtype=torch.float32)
        other = kind(4, num_groups=2).eval()
        other.load_state_dict(module.state_dict())
        for twin in (other, copy.deepcopy(module)):
            torch.testing.assert_close(twin(x), module(x), rtol=0, atol=0)

    @pytest.mark.filterwarnings("error")
    def test_compile(self, rng, kind):
        torch.compiler.reset()
        module = randomise(kind(4, num_groups=2), rng)
        twin = copy.deepcopy(module)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for training in (True, False):
            module.train(training)
            twin.train(training)
            x = torch.tensor(rng.standard_normal((9, 4, 3)), dtype=torch.float32, requires_grad=True)
            y = compiled(x)
            (dx,) = torch.autograd.grad(y.square().sum(), x)
            expected = twin(x)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(dx, torch.autograd.grad(expected.square().sum(), x)[0], rtol=1e-4, atol=1e-4)
        for name, tensor in twin.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], tensor)

    def test_autocast_leaves_the_statistics_in_float32(self, rng, kind):
        module, twin = kind(4), kind(4)
        x = torch.tensor(100 + rng.standard_normal((64, 4)), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        torch.testing.assert_close(y, twin(x), rtol=0, atol=0)
        torch.testing.assert_close(module.running_matrix, twin.running_matrix, rtol=0, atol=0)

    def test_half_precision(self, rng, kind):
        x = torch.tensor(rng.standard_normal((64, 4)), dtype=torch.bfloat16)
        module = kind(4)
        y = module(x)
        assert (y.dtype, module.running_matrix.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(y.float(), kind(4)(x.float()), rtol=1e-2, atol=1e-2)

    def test_factory_arguments(self, kind):
        module = kind(4, dtype=torch.float64)
        assert {t.dtype for name, t in module.state_dict().items() if "num" not in name} == {torch.float64}
        meta = kind(4, device="meta")
        assert {tensor.device.type for tensor in meta.state_dict().values()} == {"meta"}

    def test_running_statistics_hold_no_graph(self, rng, kind):
        module = kind(3)
        for _ in range(2):
            module(torch.tensor(rng.standard_normal((9, 3)), dtype=torch.float32)).sum().backward()
        assert not module.running_matrix.requires_grad
        copy.deepcopy(module)

    def test_representation(self, kind):
        shown = repr(kind(6, num_groups=2, momentum=None))
        assert "6, eps=1e-05, momentum=None, affine=True, track_running_stats=True, num_groups=2" in shown
        assert ("iterations=5" in shown) == (kind is IterNorm)

    def test_errors(self, rng, kind):
        module = kind(4)
        with pytest.raises(ValueError, match=re.escape("expected at least 2D input (got 1D input)")):
            module(torch.ones(4))
        with pytest.raises(ValueError, match=re.escape("expected 4 channels on axis 1, got input size (5, 3)")):
            module(torch.ones(5, 3))
        for shape in [(1, 4), (0, 4)]:
            message = f"Expected more than 1 value per channel when training, got input size torch.Size({list(shape)})"
            with pytest.raises(ValueError, match=re.escape(message)):
                module(torch.ones(shape))
        assert int(module.num_batches_tracked) == 0
        for groups in (3, 0):
            with pytest.raises(ValueError, match=rf"num_features \(4\) must be divisible by num_groups \({groups}\)"):
                kind(4, num_groups=groups)
        failing = kind(4, momentum=2.0)
        with pytest.raises(ValueError, match=r"from 0 to 1, got 2\.0"):
            failing(torch.tensor(rng.standard_normal((9, 4))))
        torch.testing.assert_close(failing.running_mean, torch.zeros(4))


def test_iterations_are_passed_on(rng):
    x = torch.tensor(rng.standard_normal((30, 4)) * np.arange(1, 5))
    for iterations in (0, 7):
        expected, _ = iter_norm(x, iterations=iterations, eps=1e-3)
        torch.testing.assert_close(IterNorm(4, iterations=iterations, affine=False, eps=1e-3)(x), expected)


def test_subclasses_say_what_they_do():
    from bnlearn.torch.whitening import _Whitening

    with pytest.raises(NotImplementedError):
        _Whitening(2)(torch.ones(3, 2))


def test_converting_to_synchronised_batch_norm_loses_the_whitening():
    """As the docstring warns: PyTorch takes any subclass of its batch norm for one."""
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(DecorrelatedBatchNorm(4)))
    assert type(converted[0]) is torch.nn.SyncBatchNorm
