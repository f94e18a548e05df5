"""Claims about the variants: each normaliser of the lab against the package's own module for PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnlearn.torch as bnt
from bnlearn.claims import batch_layer, methods, variants
from bnlearn.lab import MLP, Pass

C = 8


def modules(norm):
    """The PyTorch module that ``norm`` stands for, and the names of its parameters there."""
    if isinstance(norm, variants.BatchRenorm):
        module = bnt.BatchRenorm(C, r_max=norm.r_max, d_max=norm.d_max)
        module.num_batches_tracked.fill_(10**6)  # long after the warm-up
        return module
    if isinstance(norm, variants.FullNorm):
        return bnt.FullNorm(C)
    if isinstance(norm, batch_layer.BatchLayerNorm):
        return bnt.BatchLayerNorm(C, norm.batch_size, momentum=0.1)
    if isinstance(norm, variants.EvoNorm):
        return bnt.EvoNormS0(norm.groups, C)
    if isinstance(norm, methods.InstanceNorm):
        return nn.InstanceNorm2d(C, affine=True)
    raise TypeError(norm)


@pytest.mark.parametrize(
    ("norm", "spatial"),
    [
        (variants.BatchRenorm(), ()),
        (variants.BatchRenorm(r_max=1.1, d_max=0.1), ()),
        (variants.FullNorm(), ()),
        (batch_layer.BatchLayerNorm(batch_size=6), ()),
        (variants.EvoNorm(groups=2), (3, 3)),
        (methods.InstanceNorm(), (3, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_is_the_module_s_formula(norm, spatial):
    generator = torch.Generator().manual_seed(0)
    p = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in norm.parameters(C).items()
    }
    module, buffers = modules(norm), norm.buffers(C)
    names = {"gamma": "weight", "beta": "bias"}
    with torch.no_grad():
        for name, value in p.items():
            getattr(module, names.get(name, name)).copy_(value)
    for training in (True, True, False):
        x = 2 + 3 * torch.randn(6, C, *spatial, generator=generator)
        run = Pass(training, {}, {}, buffers)
        y = norm(x, {f"n.{name}": value for name, value in p.items()}, "n.", _prefixed(run))
        buffers = {name.removeprefix("n."): value for name, value in run.buffers.items()}
        module.train(training)
        torch.testing.assert_close(y, module(x), rtol=1e-4, atol=1e-5)


def _prefixed(run):
    run.buffers = {f"n.{name}": value for name, value in run.buffers.items()}
    return run


def test_filter_response_norm_has_its_threshold():
    generator = torch.Generator().manual_seed(0)
    p = {name: torch.randn(C, generator=generator) for name in ("gamma", "beta", "tau")}
    x = torch.randn(2, C, 4, 4, generator=generator)
    y = variants.FilterResponseNorm()(x, {f"n.{k}": v for k, v in p.items()}, "n.", Pass(True, {}, {}, {}))
    shape = (C, 1, 1)
    gamma, beta, tau = (p[name].reshape(shape) for name in ("gamma", "beta", "tau"))
    frn = x / torch.sqrt(x.square().mean((2, 3), keepdim=True) + 1e-6) * gamma + beta
    torch.testing.assert_close(y, torch.maximum(frn, tau.expand_as(frn)))
    assert set(variants.FilterResponseNorm().parameters(C)) == set(p)


def test_dynamic_tanh():
    p = {"n.gamma": torch.full((C,), 2.0), "n.beta": torch.full((C,), -1.0), "n.alpha": torch.tensor(0.7)}
    x = torch.linspace(-3, 3, 5 * C).reshape(5, C)
    y = variants.DynamicTanh()(x, p, "n.", Pass(True, {}, {}, {}))
    torch.testing.assert_close(y, 2 * torch.tanh(0.7 * x) - 1)
    assert variants.DynamicTanh().parameters(C)["alpha"] == 0.5


@pytest.mark.parametrize("scaled", [False, True])
def test_standardised_weights(scaled):
    net = variants.StandardizedNet((6, 5, 4, 3), scaled=scaled)
    p = net.parameters(torch.Generator().manual_seed(0), {})
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    plain = dict(p)
    for i in range(2):
        w = p[f"{i}.weight"]
        hat = (w - w.mean(1, keepdim=True)) / torch.sqrt(w.var(1, correction=0, keepdim=True) + 1e-6)
        gain = (2 / (1 - 1 / torch.pi)) ** 0.5 / w.shape[1] ** 0.5 if scaled else 1.0
        plain[f"{i}.weight"] = hat * gain
    run = Pass(True, {}, {}, {})
    torch.testing.assert_close(net(p, x, run), MLP((6, 5, 4, 3))(plain, x, run), rtol=1e-4, atol=1e-5)
    assert ("0.gain" in p) == scaled


def test_weight_norm_starts_as_the_plain_network():
    net = methods.WeightNormNet((6, 5, 4, 3))
    p = net.parameters(torch.Generator().manual_seed(0), {})
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    run = Pass(True, {}, {}, {})
    torch.testing.assert_close(net(p, x, run), MLP((6, 5, 4, 3))(p, x, run))
    doubled = p | {"0.length": 2 * p["0.length"]}
    torch.testing.assert_close(
        net(doubled, x, run), MLP((6, 5, 4, 3))(p | {"0.weight": 2 * p["0.weight"]}, x, run), rtol=1e-5, atol=1e-5
    )


def test_whitening_whitens_and_remembers():
    norm, generator = methods.Whitening(groups=2), torch.Generator().manual_seed(0)
    x = torch.randn(64, C, generator=generator) @ torch.randn(C, C, generator=generator) + 2
    run = _prefixed(Pass(True, {}, {}, norm.buffers(C)))
    y = norm(x, {}, "n.", run)
    for half in (y[:, :4], y[:, 4:]):
        before = x[:, :4] if half is y[:, :4] else x[:, 4:]
        assert (torch.corrcoef(half.T) - torch.eye(4)).abs().max() < (
            torch.corrcoef(before.T) - torch.eye(4)
        ).abs().max()
    torch.testing.assert_close(run.buffers["n.running_mean"], 0.1 * x.mean(0), rtol=1e-4, atol=1e-5)
    for _ in range(60):  # the running statistics reach the batch's, and evaluation gives what training gave
        norm(x, {}, "n.", run)
    run.training = False
    torch.testing.assert_close(norm(x, {}, "n.", run), y, rtol=1e-2, atol=1e-2)
