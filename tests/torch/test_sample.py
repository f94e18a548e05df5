"""The modules for single samples: the formulas' outputs and gradients, state, precision, compilation, errors."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest

from bnlearn import functional, layers

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from bnlearn.torch import (  # noqa: E402
    AdaptiveInstanceNorm,
    DynamicTanh,
    EvoNormS0,
    FilterResponseNorm,
    ThresholdedLinearUnit,
    UnitNorm,
)

# Each: our module, the NumPy layer that it should agree with, and the names of its parameters.
CASES = {
    "unit": (lambda **o: UnitNorm(1, -1, 0.1), lambda: layers.UnitNorm(1, -1, 0.1), []),
    "frn": (lambda **o: FilterResponseNorm(4, 0.1, **o), lambda: layers.FilterResponseNorm(4, 0.1), ["weight", "bias"]),
    "frn, eps learned": (
        lambda **o: FilterResponseNorm(4, 1e-2, learn_eps=True, **o),
        lambda: layers.FilterResponseNorm(4, learn_eps=True),
        ["weight", "bias", "eps"],
    ),
    "frn, plain": (
        lambda **o: FilterResponseNorm(4, affine=False, **o),
        lambda: layers.FilterResponseNorm(4, affine=False),
        [],
    ),
    "tlu": (lambda **o: ThresholdedLinearUnit(4, **o), lambda: layers.ThresholdedLinearUnit(4), ["tau"]),
    "evonorm": (lambda **o: EvoNormS0(2, 4, 0.1, **o), lambda: layers.EvoNormS0(2, 4, 0.1), ["weight", "bias", "v"]),
    "evonorm, plain": (
        lambda **o: EvoNormS0(1, 4, affine=False, **o),
        lambda: layers.EvoNormS0(1, 4, affine=False),
        ["v"],
    ),
    "dyt": (lambda **o: DynamicTanh(3, **o), lambda: layers.DynamicTanh(3), ["alpha", "weight", "bias"]),
    "dyt, two axes": (
        lambda **o: DynamicTanh((4, 3), **o),
        lambda: layers.DynamicTanh((4, 3)),
        ["alpha", "weight", "bias"],
    ),
    "dyt, channels": (
        lambda **o: DynamicTanh(4, channels_last=False, **o),
        lambda: layers.DynamicTanh(4, False),
        ["alpha", "weight", "bias"],
    ),
    "dyt, plain": (
        lambda **o: DynamicTanh([4, 3], alpha_init_value=0.8, elementwise_affine=False, **o),
        lambda: layers.DynamicTanh([4, 3], elementwise_affine=False),
        ["alpha"],
    ),
}
EVERY = pytest.mark.parametrize("case", CASES)


def made(case, **options):
    """A module with nothing left at the 1 and 0 that hide mistakes."""
    module = CASES[case][0](**options)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 + torch.rand(parameter.shape, generator=draws))
    return module


@EVERY
def test_agrees_with_the_numpy_layer(case, rng):
    module, layer = made(case, dtype=torch.float64), CASES[case][1]()
    assert [name for name, _ in module.named_parameters()] == CASES[case][2] == list(module.state_dict())
    for name, array in layer.parameters().items():  # in float64
        setattr(layer, name, array.astype(np.float64))
    layer.load_state_dict(module.state_dict())
    x, dy = 0.3 + rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 3))
    leaf = torch.tensor(x, requires_grad=True)
    y = module(leaf)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(y.detach(), layer(x), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(leaf.grad, layer.backward(dy), rtol=1e-9, atol=1e-9)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.grad, layer.grads[name], rtol=1e-9, atol=1e-9, err_msg=name)


@EVERY
def test_copies_modes_devices_and_repr(case, rng):
    module = made(case)
    x = torch.tensor(rng.standard_normal((2, 4, 3)), dtype=torch.float32)
    y = module(x)
    assert y.dtype == torch.float32
    assert torch.equal(copy.deepcopy(module)(x), y)
    assert torch.equal(module.eval()(x), y)
    other = CASES[case][0]()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), y)
    assert repr(module).startswith(f"{type(module).__name__}(")
    assert all(
        p.is_meta and p.dtype == torch.float16 for p in CASES[case][0](device="meta", dtype=torch.float16).parameters()
    )


def test_repr():
    assert repr(UnitNorm()) == "UnitNorm(p=2, dim=1, eps=1e-12)"
    assert repr(FilterResponseNorm(4)) == "FilterResponseNorm(4, eps=1e-06, affine=True, learn_eps=False)"
    assert repr(FilterResponseNorm(4, learn_eps=True)) == "FilterResponseNorm(4, affine=True, learn_eps=True)"
    assert repr(ThresholdedLinearUnit(4)) == "ThresholdedLinearUnit(4)"
    assert repr(EvoNormS0(2, 4)) == "EvoNormS0(2, 4, eps=1e-05, affine=True)"
    assert repr(AdaptiveInstanceNorm()) == "AdaptiveInstanceNorm(eps=1e-05)"
    assert repr(DynamicTanh(4)) == (
        "DynamicTanh((4,), channels_last=True, alpha_init_value=0.5, elementwise_affine=True)"
    )


def test_starting_values_are_the_papers(rng):
    x = torch.tensor(rng.standard_normal((3, 4, 5)))
    assert torch.equal(ThresholdedLinearUnit(4)(x), x.relu())
    assert torch.equal(FilterResponseNorm(4)(x), functional.filter_response_norm(x, eps=1e-6)[0])
    assert torch.equal(FilterResponseNorm(4, 1e-4, learn_eps=True).eps, torch.full((4,), 1e-4))
    assert torch.equal(EvoNormS0(2, 4)(x), functional.evonorm_s0(x, groups=2, eps=1e-5)[0])
    assert torch.equal(DynamicTanh(5)(x), torch.tanh(0.5 * x))
    assert torch.equal(UnitNorm()(x), functional.unit_norm(x, axes=(1,), p=2, eps=1e-12)[0])


@EVERY
def test_autocast_and_half_precision(case, rng):
    """A layer before it makes half precision; the normaliser computes in float32 and gives it back as it came."""
    module = made(case)
    x = torch.tensor(30 + rng.standard_normal((2, 4, 3)), dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    exact = module(x.float())
    torch.testing.assert_close(y.float(), exact, rtol=1e-2, atol=1e-2)


def compiled_agrees(module, *inputs):
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = torch.compile(module, fullgraph=True, backend="aot_eager")
        ys = []
        for run in (fast, module):
            leaves = [x.clone().requires_grad_() for x in inputs]
            y = run(*leaves)
            (y * y).sum().backward()
            ys += [(y, *(leaf.grad for leaf in leaves))]
    for left, right in zip(*ys, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("case", ["unit", "frn, eps learned", "tlu", "evonorm", "dyt", "dyt, channels"])
def test_compile(case, rng):
    compiled_agrees(made(case), torch.tensor(rng.standard_normal((2, 4, 3)), dtype=torch.float32))


class TestAdaptiveInstanceNorm:
    def test_the_formula_and_compile(self, rng):
        content = torch.tensor(rng.standard_normal((2, 3, 4, 5)), dtype=torch.float32)
        style = torch.tensor(3 + 2 * rng.standard_normal((2, 3, 7)), dtype=torch.float32)
        module = AdaptiveInstanceNorm(eps=0.1)
        assert torch.equal(module(content, style), functional.adaptive_instance_norm(content, style, eps=0.1)[0])
        compiled_agrees(module, content, style)

    def test_it_is_the_paper_with_the_biased_variance(self, rng):
        content, style = torch.tensor(rng.standard_normal((2, 2, 3, 4, 4))).unbind(1)
        var, mean = torch.var_mean(style, (2, 3), correction=0, keepdim=True)
        own = torch.nn.functional.instance_norm(content)
        torch.testing.assert_close(AdaptiveInstanceNorm()(content, style), own * (var + 1e-5).sqrt() + mean)


class TestErrors:
    @pytest.mark.parametrize("case", ["frn", "tlu", "evonorm"])
    def test_channels(self, case):
        with pytest.raises(ValueError, match=r"expected 4 channels on axis 1, got input size \(2, 5, 3\)"):
            made(case)(torch.ones(2, 5, 3))
        with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
            made(case)(torch.ones(4))

    @pytest.mark.parametrize("groups", [3, 0, -2])
    def test_groups(self, groups):
        with pytest.raises(ValueError, match=re.escape(f"num_channels (4) must be divisible by num_groups ({groups})")):
            EvoNormS0(groups, 4)

    def test_dynamic_tanh(self):
        for shape, channels_last in [([], True), ((4, 3), False)]:
            message = f"got {list(shape)} with channels_last={channels_last}"
            with pytest.raises(ValueError, match=re.escape(message)):
                DynamicTanh(shape, channels_last)
        for module, x, message in [
            (DynamicTanh(5), torch.ones(2, 3), "[5], expected input with shape [*, 5], but got input of size[2, 3]"),
            (DynamicTanh((4, 5)), torch.ones(5), "expected input with shape [*, 4, 5], but got input of size[5]"),
            (DynamicTanh(4, False), torch.ones(2, 5, 3), "with shape [N, 4, *], but got input of size[2, 5, 3]"),
            (DynamicTanh(4, False), torch.ones(4), "with shape [N, 4, *], but got input of size[4]"),
        ]:
            with pytest.raises(RuntimeError, match=re.escape(message)):
                module(x)

    def test_a_vector_alone(self):
        x = torch.tensor([-1.0, 0.0, 2.0])
        assert torch.equal(DynamicTanh(3)(x), torch.tanh(0.5 * x))
