"""Claim D7: the networks that BLN is measured in, against PyTorch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnlearn.torch as bnt
from bnlearn.claims import batch_layer
from bnlearn.lab import BatchNorm, Pass

C = 8


def drawn(*shape, seed=0):
    return 2 + 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spatial", [(), (5,), (3, 4)], ids=len)
def test_bln_is_the_module_s_at_every_position(spatial):
    norm, module = batch_layer.BatchLayerNorm(batch_size=6), bnt.BatchLayerNorm((C, *spatial), 6, momentum=0.1)
    p = {f"n.{name}": drawn(C, seed=i) for i, name in enumerate(("gamma", "beta"))}
    with torch.no_grad():
        module.weight.copy_(p["n.gamma"])
        module.bias.copy_(p["n.beta"])
    run = Pass(True, {}, {}, {f"n.{name}": value for name, value in norm.buffers(C).items()})
    for seed, training in enumerate((True, True, False)):
        run.training = training
        module.train(training)
        x = drawn(6, C, *spatial, seed=seed)
        torch.testing.assert_close(norm(x, p, "n.", run), module(x), rtol=1e-4, atol=1e-4)
    assert run.buffers["n.running_var"].shape == (C, *spatial)


def test_bln_before_its_first_batch_takes_the_starting_statistics_everywhere():
    norm, x = batch_layer.BatchLayerNorm(batch_size=10**9), drawn(4, C, 2, 3)
    run = Pass(False, {}, {}, norm.buffers(C))
    y = norm(x, norm.parameters(C), "", run)
    torch.testing.assert_close(y, x, rtol=2e-3, atol=2e-3)  # all batch, whose mean is 0 and variance 1
    assert run.buffers["running_mean"].shape == (C,)


def test_feature_norm_is_pytorch_s_at_each_position():
    p = {"n.gamma": drawn(C, seed=1), "n.beta": drawn(C, seed=2)}
    module, x = nn.LayerNorm(C), drawn(4, C, 3, 5)
    module.load_state_dict({"weight": p["n.gamma"], "bias": p["n.beta"]})
    expected = module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(batch_layer.FeatureNorm()(x, p, "n.", Pass(True, {}, {}, {})), expected)


def test_the_convolutions_see_the_picture():
    net = batch_layer.DigitConvNet(norm=BatchNorm())
    p, x = net.parameters(torch.Generator().manual_seed(0), {}), drawn(5, 64)
    seen: dict[str, torch.Tensor] = {}
    logits = net(p, x, Pass(True, {}, {}, net.buffers(), seen))
    first = nn.functional.conv2d(x.reshape(5, 1, 8, 8), p["0.weight"], p["0.bias"], padding=1)
    torch.testing.assert_close(seen["0.linear"], first)
    assert logits.shape == (5, 10)


def test_the_two_lstms_are_pytorch_s_with_a_normaliser_behind_each():
    norm, hidden = BatchNorm(), 5
    net = batch_layer.TwoLSTMs(norm, hidden)
    p = net.parameters(torch.Generator().manual_seed(0), {})
    for i in range(2):
        p |= {f"{i}.norm.gamma": drawn(hidden, seed=2 * i + 1), f"{i}.norm.beta": drawn(hidden, seed=2 * i + 2)}
    lstms = [nn.LSTM(inputs, hidden, batch_first=True) for inputs in (8, hidden)]
    norms = [nn.BatchNorm1d(hidden) for _ in range(2)]
    for i, (lstm, module) in enumerate(zip(lstms, norms, strict=True)):
        assert (p[f"{i}.bias"][hidden : 2 * hidden] == 1).all()  # the forget gates start open
        with torch.no_grad():
            lstm.weight_ih_l0.copy_(p[f"{i}.ih"])
            lstm.weight_hh_l0.copy_(p[f"{i}.hh"])
            lstm.bias_ih_l0.copy_(p[f"{i}.bias"])
            lstm.bias_hh_l0.zero_()
            module.weight.copy_(p[f"{i}.norm.gamma"])
            module.bias.copy_(p[f"{i}.norm.beta"])
    run = Pass(True, {}, {}, net.buffers())
    for seed, training in enumerate((True, True, False)):
        run.training = training
        for module in norms:
            module.train(training)
        x = drawn(6, 64, seed=seed)
        h = norms[0](lstms[0](x.reshape(6, 8, 8))[0].transpose(1, 2)).transpose(1, 2)
        last = norms[1](lstms[1](h)[0][:, -1])
        expected = last @ p["head.weight"].T + p["head.bias"]
        torch.testing.assert_close(net(p, x, run), expected, rtol=1e-4, atol=1e-4)


def test_every_regime_is_declared_with_its_steps():
    declared = {criterion.name: criterion.effect for criterion in batch_layer.CLAIMS[0].criteria}
    assert len(declared) == len(batch_layer.REGIMES) * 4
    for kind, regime in batch_layer.REGIMES.items():
        effect = declared[f"{kind}, batch of 4, against layer norm"]
        assert effect == f"test accuracy after {regime.steps} steps, BLN minus layer norm"
