"""Claims about sequences: the LSTM that reads digits, with statistics per step or shared."""

from __future__ import annotations

import torch
from torch import nn

import bnlearn.torch as bnt
from bnlearn.claims import sequences
from bnlearn.lab import Pass


def digits(seed=0, n=6):
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))


def test_the_plain_one_is_pytorch_s():
    net = sequences.DigitLSTM(hidden=5)
    p = net.parameters(torch.Generator().manual_seed(0), {})
    lstm = nn.LSTM(8, 5, batch_first=True)
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(p["ih.weight"])
        lstm.weight_hh_l0.copy_(p["hh.weight"])
        lstm.bias_ih_l0.copy_(p["bias"])
        lstm.bias_hh_l0.zero_()
    x = digits()
    expected = lstm(x.reshape(6, 8, 8))[0][:, -1] @ p["head.weight"].T + p["head.bias"]
    torch.testing.assert_close(net(p, x, Pass(True, {}, {}, {})), expected, rtol=1e-4, atol=1e-5)
    assert (p["bias"][5:10] == 1).all()


def test_the_normalised_one_is_this_package_s():
    net = sequences.DigitLSTM("layer norm", hidden=5)
    p = net.parameters(torch.Generator().manual_seed(0), {})
    layer = bnt.LayerNormLSTM(8, 5, batch_first=True)
    ours = {
        "weight_ih_l0": "ih.weight",
        "weight_hh_l0": "hh.weight",
        "bias_l0": "bias",
        "norm_ih.weight": "gamma_ih",
        "norm_hh.weight": "gamma_hh",
        "norm_c.weight": "gamma_c",
        "norm_c.bias": "beta_c",
    }
    layer.load_state_dict({name: p[own] for name, own in ours.items()})
    x = digits()
    last = layer(x.reshape(6, 8, 8))[0][:, -1]
    expected = last @ p["head.weight"].T + p["head.bias"]
    torch.testing.assert_close(net(p, x, Pass(True, {}, {}, {})), expected)


def test_shared_statistics_are_the_average_over_the_steps():
    net = sequences.DigitLSTM("batch norm", hidden=5)
    p = net.parameters(torch.Generator().manual_seed(0), {})
    generator = torch.Generator().manual_seed(1)
    buffers = {name: torch.rand(value.shape, generator=generator) for name, value in net.buffers().items()}
    same = {name: value.mean(0, keepdim=True).expand_as(value) for name, value in buffers.items()}
    x, shared = digits(), sequences.DigitLSTM("batch norm", shared=True, hidden=5)
    torch.testing.assert_close(
        shared(p, x, Pass(False, {}, {}, dict(buffers))), net(p, x, Pass(False, {}, {}, dict(same)))
    )
    assert not torch.allclose(
        shared(p, x, Pass(False, {}, {}, dict(buffers))), net(p, x, Pass(False, {}, {}, dict(buffers)))
    )


def test_statistics_of_a_batch_enter_by_a_tenth():
    net = sequences.DigitLSTM("batch norm", hidden=5)
    p = net.parameters(torch.Generator().manual_seed(0), {})
    run = Pass(True, {}, {}, net.buffers())
    x = digits(n=32)
    net(p, x, run)
    first = x[:, :8] @ p["ih.weight"].T
    torch.testing.assert_close(run.buffers["ih.mean"][0], 0.1 * first.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.buffers["ih.var"][0], 0.09 + 0.1 * first.var(0, correction=0), rtol=1e-4, atol=1e-5)
