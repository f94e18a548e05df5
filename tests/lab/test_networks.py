"""Networks and normalisers where the tests of the engine, which train them, do not look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bnlearn.lab import (
    MLP,
    BatchNorm,
    ConvNet,
    GroupNorm,
    LayerNorm,
    Network,
    Norm,
    Pass,
    ResidualMLP,
    RMSNorm,
    activate,
    draw_weight,
)

SIZES = (64, 12, 8, 10)


def started(network: Network, seed: int = 0, **knobs: float) -> dict[str, Tensor]:
    return network.parameters(torch.Generator().manual_seed(seed), knobs)


def run_of(training: bool, network: Network | None = None, **given: Any) -> Pass:
    buffers = {} if network is None else network.buffers()
    return Pass(training, **{"knobs": {}, "noise": {}, "buffers": buffers, **given})


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return 2.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


@pytest.mark.parametrize(
    "network",
    [
        MLP(SIZES, norm=BatchNorm()),
        MLP(SIZES, norm=RMSNorm(), order="after"),
        ConvNet((1, 4, 8), (2, 1), norm=BatchNorm(eps=0.1)),
        ResidualMLP(width=12, depth=2, norm=BatchNorm()),
        ResidualMLP(width=12, depth=2, norm=BatchNorm(), last_gamma=0.5, skip=False),
    ],
)
def test_evaluation_is_pytorch_s_with_the_same_statistics(network: Network, plain: Callable[..., Any]) -> None:
    other = plain(network, seed=5, steps=1).module.eval()
    generator = torch.Generator().manual_seed(2)
    buffers = {name: value + torch.rand(value.shape, generator=generator) for name, value in network.buffers().items()}
    theirs = [buffer for name, buffer in other.named_buffers() if "num_batches" not in name]
    with torch.no_grad():
        for buffer, value in zip(theirs, buffers.values(), strict=True):
            buffer.copy_(value)
    x = inputs(9, 1, 8, 8) if isinstance(network, ConvNet) else inputs(9, 64)
    kept = dict(buffers)
    run = run_of(False, buffers=buffers)
    torch.testing.assert_close(network(started(network, 5), x, run), other(x), rtol=1e-5, atol=1e-5)
    assert all(run.buffers[name] is value for name, value in kept.items())


def test_a_normaliser_is_what_it_computes() -> None:
    x = inputs(16, 8)
    p = {"n.gamma": inputs(8, seed=2), "n.beta": inputs(8, seed=3)}
    mean, var = x.mean(0), x.var(0, correction=0)
    expected = (x - mean) / (var + 1e-5).sqrt() * p["n.gamma"] + p["n.beta"]
    buffers = {"n.running_mean": inputs(8, seed=4), "n.running_var": inputs(8, seed=5).abs()}
    for training, norm in ((True, BatchNorm()), (False, BatchNorm(live=True))):
        run = run_of(training, buffers=dict(buffers))
        torch.testing.assert_close(norm(x, p, "n.", run), expected)
        if not training:
            assert run.buffers == buffers
    run = run_of(True, buffers=dict(buffers), knobs={"bn_momentum": torch.tensor(0.25)})
    BatchNorm(momentum=0.5)(x, p, "n.", run)
    torch.testing.assert_close(run.buffers["n.running_mean"], 0.75 * buffers["n.running_mean"] + 0.25 * mean)
    unbiased = 0.75 * buffers["n.running_var"] + 0.25 * x.var(0)
    torch.testing.assert_close(run.buffers["n.running_var"], unbiased)


@pytest.mark.parametrize("norm", [BatchNorm(), LayerNorm(), GroupNorm(), RMSNorm()])
def test_what_a_normaliser_learns(norm: Norm) -> None:
    learnt = replace(norm, gamma=0.25).parameters(8)
    assert set(learnt) == ({"gamma"} if isinstance(norm, RMSNorm) else {"gamma", "beta"})
    assert (learnt["gamma"] == 0.25).all()
    assert learnt["gamma"].shape == (8,)
    assert replace(norm, affine=False).parameters(8) == {}
    assert set(norm.buffers(8)) == ({"running_mean", "running_var"} if isinstance(norm, BatchNorm) else set())


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda x: x.clamp_min(0)),
        ("tanh", lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
        ("sigmoid", lambda x: 1 / (1 + (-x).exp())),
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("linear", lambda x: x),
    ],
)
def test_activations(name: str, function: Callable[[Tensor], Tensor]) -> None:
    x = inputs(50)
    torch.testing.assert_close(activate(name, x), function(x))


@pytest.mark.parametrize(
    ("init", "std"), [("he", (2 / 180) ** 0.5), ("lecun", (1 / 180) ** 0.5), ("torch", (1 / 540) ** 0.5), (0.3, 0.3)]
)
def test_the_size_of_weights(init: str | float, std: float) -> None:
    weight = draw_weight((400, 20, 3, 3), init, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(weight.std(), std, rtol=0.01)
    np.testing.assert_allclose(weight.mean(), 0, atol=0.02 * std)
    assert torch.equal(weight, draw_weight((400, 20, 3, 3), init, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("network", [MLP(SIZES), ConvNet((1, 4, 8), (2, 1)), ResidualMLP(width=12, depth=2)])
def test_init_scale_multiplies_every_weight(network: Network) -> None:
    one, three = started(network), started(network, init_scale=3.0)
    assert one.keys() == three.keys()
    for name, value in one.items():
        torch.testing.assert_close(three[name], 3 * value if name.endswith(".weight") else value)
        assert name.endswith(".weight") or not value.any()
    assert not torch.equal(one[next(iter(one))], started(network, 1)[next(iter(one))])


def test_dropout_sets_to_zero_and_makes_up_for_it() -> None:
    network = MLP(SIZES, dropout=True, activation="sigmoid")
    shapes = network.noise(200)
    assert shapes == {"0.dropout": (200, 12), "1.dropout": (200, 8)}
    assert MLP(SIZES).noise(200) == {}
    noise = {name: torch.rand(shape, generator=torch.Generator().manual_seed(3)) for name, shape in shapes.items()}
    p, x = started(network), inputs(200, 64)
    outs = []
    for training in (True, False):
        run = run_of(training, knobs={"dropout": torch.tensor(0.25)}, noise=noise, trace={})
        network(p, x, run)
        outs.append(run.trace["0.out"])
    dropped = noise["0.dropout"] < 0.25
    assert (outs[0][dropped] == 0).all()
    torch.testing.assert_close(outs[0][~dropped], outs[1][~dropped] / 0.75)
    assert (outs[1] > 0).all()


def test_dropout_can_start_later() -> None:
    network = MLP(SIZES, dropout=True, dropout_from=1, activation="sigmoid")
    assert network.noise(5) == {"1.dropout": (5, 8)}
    run = run_of(True, knobs={"dropout": torch.tensor(0.5)}, noise={"1.dropout": torch.zeros(5, 8)}, trace={})
    network(started(network), inputs(5, 64), run)
    assert (run.trace["0.out"] > 0).all()
    assert not run.trace["1.out"].any()


def test_what_is_traced() -> None:
    x = inputs(7, 64)
    network = MLP(SIZES, norm=BatchNorm())
    p, run = started(network), run_of(True, network, trace={})
    logits = network(p, x, run)
    assert list(run.trace) == [f"{i}.{what}" for i in (0, 1) for what in ("linear", "normed", "out")]
    torch.testing.assert_close(run.trace["0.linear"], x @ p["0.weight"].T + p["0.bias"])
    torch.testing.assert_close(run.trace["1.out"], run.trace["1.normed"].relu())
    torch.testing.assert_close(logits, run.trace["1.out"] @ p["2.weight"].T + p["2.bias"])
    after = MLP(SIZES, norm=BatchNorm(), order="after", activation="tanh")
    run = run_of(True, after, trace={})
    after(p, x, run)
    torch.testing.assert_close(run.trace["0.normed"], run.trace["0.out"])
    for other, names in (
        (ConvNet((1, 4, 8), (2, 1)), ["0.linear", "0.out", "1.linear", "1.out"]),
        (ResidualMLP(width=12, depth=2), ["stem.out", "0.out", "1.out"]),
    ):
        run = run_of(True, trace={})
        other(started(other), inputs(7, 1, 8, 8) if isinstance(other, ConvNet) else x, run)
        assert list(run.trace) == names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: activate("swish", inputs(2)), "an activation among relu, tanh, sigmoid, gelu, linear, got 'swish'"),
        (lambda: started(MLP(SIZES, init="xavier")), "init among he, lecun, torch or a standard .*, got 'xavier'"),
        (lambda: MLP(SIZES, order="between"), "order 'before' or 'after' the activation, got 'between'"),
        (lambda: MLP((64,)), r"sizes of the inputs, the hidden layers and the classes, got \(64,\)"),
        (lambda: ConvNet((1, 8), (1, 1)), r"a stride for each of 1 convolutions, got \(1, 1\)"),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"expected {message}"):
        make()


def test_networks_are_compared_by_what_they_are() -> None:
    assert MLP(SIZES, norm=BatchNorm()) == MLP(SIZES, norm=BatchNorm())
    assert len({MLP(SIZES, norm=BatchNorm()), MLP(SIZES, norm=LayerNorm()), MLP(SIZES)}) == 3
