"""Weight standardisation as a parametrization of PyTorch's modules."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest

from bnlearn import layers

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
from torch.nn.utils import parametrize  # noqa: E402

from bnlearn.torch import WeightStandardization, weight_standardization  # noqa: E402

MODULES = [
    (torch.nn.Linear(6, 4), (5, 6)),
    (torch.nn.Conv1d(3, 4, 3), (2, 3, 7)),
    (torch.nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    (torch.nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    (torch.nn.Conv3d(2, 3, 2), (2, 2, 3, 3, 3)),
]
EACH = pytest.mark.parametrize(("module", "shape"), MODULES, ids=lambda v: str(v) if isinstance(v, tuple) else repr(v))


def reference(weight, gain, scaled, eps):
    """As weight-standardised convolutions are usually written: batch norm of (1, out, fan-in)."""
    out, fan_in = len(weight), weight[0].numel()
    gain = torch.ones(out, dtype=weight.dtype) if gain is None else gain
    flat = torch.nn.functional.batch_norm(
        weight.reshape(1, out, -1), None, None, gain * (fan_in**-0.5 if scaled else 1), training=True, eps=eps
    )
    return flat.reshape_as(weight)


def made(module, seed=0, **options):
    torch.manual_seed(seed)
    module = weight_standardization(copy.deepcopy(module).double(), **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) + 0.3)
    return module


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("gain", [False, True])
@EACH
def test_weight_and_gradients_are_the_reference_s(module, shape, gain, scaled):
    module = made(module, scaled=scaled, gain=gain, eps=1e-3)
    x, original = torch.randn(shape, dtype=torch.float64), module.parametrizations.weight.original
    learnt = [original, *([module.parametrizations.weight[0].gain] if gain else [])]
    y = module(x)
    expected = reference(original, learnt[1] if gain else None, scaled, 1e-3)
    torch.testing.assert_close(module.weight, expected, rtol=1e-10, atol=1e-10)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, learnt, dy)
    bare = parametrize.remove_parametrizations(copy.deepcopy(module), "weight")
    there = torch.func.functional_call(bare, {"weight": expected}, x)
    for ours, theirs in zip(found, torch.autograd.grad(there, learnt, dy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cls", [torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d])
def test_transposed_convolutions_count_their_outputs_on_axis_1(cls):
    module = made(cls(3, 4, 2), scaled=True, gain=True)
    assert module.parametrizations.weight[0].dim == 1
    assert module.parametrizations.weight[0].gain.shape == (4,)
    expected = reference(
        module.parametrizations.weight.original.transpose(0, 1), module.parametrizations.weight[0].gain, True, 1e-6
    )
    torch.testing.assert_close(module.weight.transpose(0, 1), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="transposed convolution without groups, got groups=2"):
        weight_standardization(cls(4, 4, 2, groups=2))


def test_defaults_and_names():
    module = weight_standardization(torch.nn.Conv2d(3, 4, 2))
    assert list(module.state_dict()) == ["bias", "parametrizations.weight.original"]
    torch.testing.assert_close(module.weight, reference(module.parametrizations.weight.original, None, False, 1e-6))
    assert "WeightStandardization(scaled=False, gain=False, eps=1e-06, dim=0)" in repr(module)
    module = weight_standardization(torch.nn.Conv2d(3, 4, 2), gain=True, scaled=True, eps=0.5, dim=1)
    assert list(module.state_dict())[1:] == ["parametrizations.weight.original", "parametrizations.weight.0.gain"]
    assert torch.equal(module.parametrizations.weight[0].gain, torch.ones(3))
    assert "WeightStandardization(scaled=True, gain=True, eps=0.5, dim=1)" in repr(module)
    torch.testing.assert_close(
        module.weight.transpose(0, 1),
        reference(module.parametrizations.weight.original.transpose(0, 1), None, True, 0.5),
    )


def test_another_name():
    module = torch.nn.RNNCell(3, 4).double()
    weight = module.weight_hh.detach().clone()
    assert weight_standardization(module, "weight_hh", True) is module
    torch.testing.assert_close(module.weight_hh, reference(weight, None, True, 1e-6))
    assert not parametrize.is_parametrized(module, "weight_ih")


@pytest.mark.parametrize("training", [True, False])
@EACH
def test_removal_leaves_the_function(module, shape, training):
    module = made(module, scaled=True, gain=True).train(training)
    x = torch.randn(shape, dtype=torch.float64)
    y = module(x)
    removed = parametrize.remove_parametrizations(module, "weight")
    torch.testing.assert_close(removed(x), y, rtol=0, atol=0)
    assert sorted(name for name, _ in removed.named_parameters()) == ["bias", "weight"]


def test_removal_without_leaving_it_restores_the_original():
    module = made(torch.nn.Linear(3, 4))
    original = module.parametrizations.weight.original.detach().clone()
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    assert torch.equal(module.weight, original)


def test_assigning_a_weight_sets_the_original():
    module, weight = made(torch.nn.Linear(3, 4)), torch.randn(4, 3, dtype=torch.float64)
    module.weight = weight
    assert torch.equal(module.parametrizations.weight.original, weight)


def test_state_deepcopy_and_the_numpy_layer(rng):
    module = made(torch.nn.Conv2d(3, 4, 2), scaled=True, gain=True)
    other = made(torch.nn.Conv2d(3, 4, 2), seed=1, scaled=True, gain=True)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    y = module(x).detach()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), y)
    assert torch.equal(copy.deepcopy(module)(x), y)
    numpy = layers.WeightStandardization(layers.Conv2d(3, 4, 2, rng=rng, dtype=np.float64), scaled=True, gain=True)
    numpy.load_state_dict(module.state_dict())
    np.testing.assert_allclose(numpy(x.numpy()), y.numpy(), rtol=1e-12)


def test_dtype_and_device_follow_the_weight():
    module = weight_standardization(torch.nn.Linear(3, 4, dtype=torch.float64, device="meta"), gain=True)
    assert module.weight.device.type == "meta"
    assert module.parametrizations.weight[0].gain.device.type == "meta"
    assert module.parametrizations.weight[0].gain.dtype == module.weight.dtype == torch.float64
    half = weight_standardization(torch.nn.Linear(300, 4).bfloat16())
    assert half.weight.dtype == torch.bfloat16
    expected = reference(half.parametrizations.weight.original.float(), None, False, 1e-6).bfloat16()
    torch.testing.assert_close(half.weight, expected)


def test_autocast_computes_the_statistics_in_float32():
    module = weight_standardization(torch.nn.Linear(300, 4), scaled=True)
    with torch.no_grad():
        module.parametrizations.weight.original.add_(100)  # in half precision, the deviations would be gone
    x = torch.randn(8, 300)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        assert module.weight.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module(x), rtol=0.02, atol=0.02)


def test_compiles_in_one_graph_without_warnings():
    module = made(torch.nn.Conv2d(3, 4, 2), scaled=True, gain=True).float()
    x = torch.randn(2, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        y = compiled(x)
    torch.testing.assert_close(y, module(x))
    found = torch.autograd.grad(y.square().sum(), module.parameters())
    expected = torch.autograd.grad(module(x).square().sum(), module.parameters())
    torch.testing.assert_close(found, expected)


def test_with_spectral_norm_on_top_the_filters_keep_mean_0():
    module = torch.nn.utils.parametrizations.spectral_norm(made(torch.nn.Linear(6, 4)))
    torch.testing.assert_close(module.weight.mean(dim=1), torch.zeros(4, dtype=torch.float64))


def test_the_map_alone():
    weight = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(WeightStandardization()(weight), reference(weight, None, False, 1e-6))
    gain = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(WeightStandardization(True, gain)(weight), reference(weight, gain, True, 1e-6))


def test_errors_change_nothing():
    module = torch.nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"Module 'Linear\(.*\)' has no parameter or buffer with name 'kernel'"):
        weight_standardization(module, "kernel")
    with pytest.raises(ValueError, match=re.escape("got dim=2 for shape (4, 3)")):
        weight_standardization(module, dim=2)
    with pytest.raises(ValueError, match=re.escape("got dim=0 for shape (4,)")):
        weight_standardization(module, "bias")
    with pytest.raises(ValueError, match=r"expected eps >= 0, got -1.0"):
        weight_standardization(module, eps=-1.0)
    assert not parametrize.is_parametrized(module)
