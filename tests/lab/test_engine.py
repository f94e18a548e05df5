"""The engine against plain PyTorch, and against itself with one replica at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    ConvNet,
    Data,
    GroupNorm,
    LayerNorm,
    Moment,
    Network,
    Pass,
    Probe,
    ResidualMLP,
    RMSNorm,
    Task,
    constant,
    cosine,
    probes,
    shuffled,
    sorted_by_class,
    train,
)
from bnlearn.lab.engine import rehearse

STEPS = 12
SIZES = (64, 24, 16, 10)
SGD = (("lr", 0.0625), ("momentum", 0.875), ("weight_decay", 0.015625))
ADAM = (("lr", 0.001953125), ("weight_decay", 0.015625))


def everything(moment: Moment) -> dict[str, Tensor]:
    return {**moment.parameters, **moment.buffers}


def task_of(network: Network, knobs: tuple[tuple[str, float], ...] = SGD, **given: Any) -> Task:
    arm = {name: given.pop(name) for name in ("optimizer", "trains", "decays", "schedule") if name in given}
    standard = {"data": Data(), "steps": STEPS, "batch_size": 32, "probes": (Probe("all", everything),)}
    return Task(arm=Arm("arm", network, knobs=knobs, **arm), **{"replicas": ((3, ()),), **standard, **given})


def last(outcome: Mapping[str, Any], replica: int = 0) -> dict[str, Any]:
    return {name.removeprefix("all."): value[replica, -1] for name, value in outcome.items() if name != "loss"}


NETWORKS = {
    "mlp, none": MLP(SIZES),
    "mlp, batch": MLP(SIZES, norm=BatchNorm()),
    "mlp, batch after": MLP(SIZES, norm=BatchNorm(momentum=0.3, eps=0.01), order="after", bias=False),
    "mlp, batch without affine": MLP(SIZES, norm=BatchNorm(affine=False), activation="gelu"),
    "mlp, layer": MLP(SIZES, norm=LayerNorm(), activation="tanh"),
    "mlp, group": MLP(SIZES, norm=GroupNorm(groups=2), activation="sigmoid"),
    "mlp, rms": MLP(SIZES, norm=RMSNorm(eps=0.01), activation="linear"),
    "conv, batch": ConvNet((1, 4, 8), (2, 1), norm=BatchNorm()),
    "conv, group": ConvNet((1, 4, 8), (1, 2), norm=GroupNorm(), activation="tanh"),
    "conv, layer": ConvNet((1, 4, 8), (2, 1), norm=LayerNorm()),
    "conv, none": ConvNet((1, 4, 8), (2, 1)),
    "residual, batch": ResidualMLP(width=16, depth=2, norm=BatchNorm(), branch_scale=0.5),
    "residual, layer and gamma": ResidualMLP(width=16, depth=2, norm=LayerNorm(gamma=0.7), last_gamma=0.25),
    "residual, rms, no skip": ResidualMLP(width=16, depth=1, norm=RMSNorm(), skip=False),
    "residual, none": ResidualMLP(width=16, depth=2, branch_scale=0.3),
}


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


# Adam divides a gradient by its own size: where it is nearly 0, rounding is all there is, so that float32 would compare
# the rounding of two programs. In float64 it says whether they do the same.
@pytest.mark.parametrize(("optimizer", "dtype"), [("sgd", torch.float32), ("adam", torch.float64)], indirect=["dtype"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_replica_is_the_module_that_pytorch_trains(
    name: str, optimizer: str, dtype: torch.dtype, plain: Callable[..., Any]
) -> None:
    network = NETWORKS[name]
    data = Data(flat=not name.startswith("conv"), options=(("dtype", torch.empty(0).numpy().dtype.type),))
    knobs = {"sgd": SGD, "adam": ADAM}[optimizer]
    outcome = train(task_of(network, knobs, optimizer=optimizer, data=data))
    other = plain(network, seed=3, steps=STEPS, data=data)
    groups = [
        {"params": [p for n, p in other.parameters().items() if n.endswith(".weight")], "weight_decay": 0.015625},
        {"params": [p for n, p in other.parameters().items() if not n.endswith(".weight")]},
    ]
    if optimizer == "sgd":
        losses = other.train(torch.optim.SGD(groups, lr=0.0625, momentum=0.875), STEPS)
    else:
        losses = other.train(torch.optim.Adam(groups, lr=0.001953125), STEPS)
    np.testing.assert_allclose(outcome["loss"][0], losses, rtol=1e-6 if dtype == torch.float32 else 1e-9, atol=0)
    found = last(outcome)
    for key, parameter in other.parameters().items():
        np.testing.assert_allclose(found.pop(key), parameter.detach(), rtol=1e-6, atol=1e-6, err_msg=key)
    buffers = [b for n, b in other.module.named_buffers() if "num_batches" not in n]
    assert len(buffers) == len(found)
    for key, buffer in zip(found, buffers, strict=True):
        np.testing.assert_allclose(found[key], buffer, rtol=1e-6, atol=1e-6, err_msg=key)


GRID = ((0, (("lr", 0.0625),)), (0, (("lr", 0.015625),)), (7, (("lr", 0.015625),)), (1, (("lr", 0.125),)))
"""Replicas: two of one seed, two of one rate."""
DROPPING = MLP(SIZES, norm=BatchNorm(), dropout=True)


@pytest.mark.parametrize("network", [DROPPING, NETWORKS["conv, layer"], NETWORKS["residual, rms, no skip"]])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_replica_gives_what_it_gives_alone(network: Network, optimizer: str) -> None:
    knobs = (("momentum", 0.5), ("weight_decay", 0.015625), ("dropout", 0.25))
    watched = (
        Probe("test", probes.loss, at=(0, 6, -1), options=(("samples", 50),)),
        Probe("landscape", probes.landscape, at=(6,)),
        Probe("shift", probes.covariate_shift, at=(6,), options=(("pattern", "weight"),)),
    )
    given = {"optimizer": optimizer, "probes": watched, "data": Data(flat=not isinstance(network, ConvNet))}
    together = train(task_of(network, knobs, replicas=GRID, **given))
    for place, replica in enumerate(GRID):
        alone = train(task_of(network, knobs, replicas=(replica,), **given))
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            near = 1e-5 if name == "landscape.smoothness" else 1e-6  # a small difference, over 0.05
            np.testing.assert_allclose(together[name][place], value[0], rtol=near, atol=near, err_msg=name)


def test_replicas_differ_in_what_differs() -> None:
    outcome = train(task_of(DROPPING, (("dropout", 0.25),), replicas=GRID))
    one, other, seed, _ = outcome["loss"]
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert other[0] != seed[0]


def test_noise_is_the_seed_s_and_new_at_every_step() -> None:
    def drawn(moment: Moment) -> Tensor:
        return moment.noise["0.dropout"]

    at = (0, 1, 2)
    given = {"replicas": GRID[:3], "probes": (Probe("u", drawn, at),), "steps": 2}
    u = train(task_of(DROPPING, (("dropout", 0.25),), **given))["u"]
    assert u.shape == (3, 3, 32, 24)
    np.testing.assert_array_equal(u[0], u[1])
    assert 0 <= u.min() < u.max() < 1
    assert not np.isclose(u[0], u[2]).all(axis=(1, 2)).any()
    assert not np.isclose(u[0, 0], u[0, 1]).all()
    generator = torch.Generator().manual_seed(2**32 + 7)
    np.testing.assert_array_equal(u[2, 0], torch.rand((32, 24), generator=generator))


def test_rates_fall_as_the_schedule_says() -> None:
    def rate(moment: Moment) -> Tensor:
        return moment.knobs["lr"] * moment.rate

    watched = (Probe("rate", rate, at=(0, 2, 3, 4)), Probe("all", everything, at=(0, 1, 2, 3, 4)))
    outcome = train(task_of(MLP(SIZES), (("lr", 0.5),), schedule=cosine, steps=4, probes=watched))
    np.testing.assert_allclose(outcome["rate"], [[0.5, 0.25, 0.5 * (0.5 - 0.125**0.5), 0.0]], rtol=1e-6, atol=1e-9)
    weights = outcome["all.1.weight"][0]
    again = train(task_of(MLP(SIZES), (("lr", 0.5),), steps=1, probes=(Probe("all", everything, at=(0, 1)),)))
    np.testing.assert_array_equal(weights[:2], again["all.1.weight"][0])
    assert constant(3, 4) == 1.0


def test_only_what_trains_is_moved_and_only_what_decays_decays() -> None:
    network = MLP(SIZES, norm=BatchNorm(gamma=0.5))
    given = {"trains": ("*gamma", "1.weight"), "decays": ("*gamma",), "probes": (Probe("all", everything, (0, 1)),)}
    with_decay = train(task_of(network, (("lr", 0.25), ("weight_decay", 0.5)), steps=1, **given))
    without = train(task_of(network, (("lr", 0.25),), steps=1, **given))
    moved = {name for name, value in with_decay.items() if name != "loss" and (value[0, 0] != value[0, 1]).any()}
    buffers = {f"all.{i}.norm.running_{what}" for i in (0, 1) for what in ("mean", "var")}
    assert moved - buffers == {"all.0.norm.gamma", "all.1.norm.gamma", "all.1.weight"}
    np.testing.assert_array_equal(with_decay["all.1.weight"], without["all.1.weight"])
    by_decay = without["all.0.norm.gamma"][0, 1] - with_decay["all.0.norm.gamma"][0, 1]
    np.testing.assert_allclose(by_decay, 0.25 * 0.5 * 0.5, rtol=1e-5)
    assert "all.1.weight" in train(task_of(network, (("lr", 0.25),), steps=1, decays=()))


def test_a_probe_changes_nothing() -> None:
    def meddling(moment: Moment) -> Tensor:
        moment.buffers["0.norm.running_mean"] = torch.ones(24)
        moment.forward(moment.batch[0], training=True)
        return moment.parameters.pop("0.weight").sum()

    network = MLP(SIZES, norm=BatchNorm())
    plain = train(task_of(network))
    watched = (Probe("meddling", meddling, at=(0, 3)), Probe("all", everything))
    seen = train(task_of(network, probes=watched))
    for name, value in plain.items():
        np.testing.assert_array_equal(value, seen[name], err_msg=name)


@pytest.mark.parametrize(
    ("at", "steps"),
    [((-1,), (10,)), ((0, -1, 5), (0, 5, 10)), ((10, -1, 3, 3), (3, 10)), ((11, -12), ()), ((-11, 10), (0, 10))],
)
def test_when_a_probe_looks(at: tuple[int, ...], steps: tuple[int, ...]) -> None:
    assert Probe("p", everything, at).steps(10) == steps


def test_probes_look_before_the_step_they_are_named_for() -> None:
    watched = (Probe("batch", probes.loss, at=(0, 4, 5), options=(("part", "train"),)), Probe("own", own_loss, (0, 4)))
    outcome = train(task_of(MLP(SIZES), steps=5, probes=watched))
    assert outcome["batch"].shape == (1, 3)
    np.testing.assert_allclose(outcome["own"][0], outcome["loss"][0, [0, 4]], rtol=1e-6)
    assert {value.dtype for value in outcome.values()} == {np.dtype(np.float32)}


def own_loss(moment: Moment) -> Tensor:
    return moment.loss()


def test_the_order_is_the_task_s() -> None:
    def labels(moment: Moment) -> Tensor:
        return moment.batch[1]

    watched = (Probe("y", labels, at=tuple(range(4))),)
    y = train(task_of(MLP(SIZES), steps=3, probes=watched, order=sorted_by_class))["y"]
    assert (y == y[:, :, :1]).all()
    assert len(set(y[0, :, 0])) == 4


@dataclass(frozen=True)
class Regression(Network):
    """The least that a network of one's own has to say."""

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        return {"weight": 0.1 * torch.randn(10, 64, generator=generator)}

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        assert not run.buffers
        assert not run.noise
        return x @ p["weight"].T


def test_a_network_of_one_s_own() -> None:
    outcome = train(task_of(Regression(), (("lr", 0.125),), decays=(), steps=1, probes=(Probe("all", everything),)))
    weight = Regression().parameters(torch.Generator().manual_seed(3), {})["weight"]
    part, order = Data().load().train, shuffled(Data().load().train.y.numpy(), 32, 2, np.random.default_rng(3))
    x, y = part.x[order[0]], part.y[order[0]]
    error = (x @ weight.T).softmax(1) - torch.eye(10)[y]
    np.testing.assert_allclose(outcome["all.weight"][0, 0], weight - 0.125 * error.T @ x / 32, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Wanting(MLP):
    """Asks for knobs when it starts, and when it runs."""

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        assert len(knobs) == len([*knobs])
        return super().parameters(generator, knobs)

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        return super().__call__(p, x, run) * run.knobs["temperature"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size from 1 to 1197, the training samples, got 0"),
        ({"batch_size": 1198}, "batch_size from 1 to 1197, the training samples, got 1198"),
        ({"knobs": (("momentum", 0.5),)}, r"'lr' from the arm 'arm' or the grid, got \['momentum'\]"),
        ({"trains": ("*.wieght",)}, r"trains to match a parameter, got \('\*\.wieght',\); there are 0.weight"),
        ({"decays": ("*.wieght",)}, r"decays to match a parameter, got \('\*\.wieght',\); there are 0.weight"),
        ({"network": Wanting(SIZES)}, "expected a knob 'temperature': set it in the arm or the grid; there are .*'lr'"),
        ({"network": DROPPING}, "expected a knob 'dropout': set it in the arm or the grid"),
    ],
)
@pytest.mark.parametrize("start", [train, rehearse])
def test_what_cannot_be_trained(start: Callable[[Task], object], change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        start(task_of(**{"network": MLP(SIZES), **change}))


def test_replicas_have_the_same_knobs() -> None:
    with pytest.raises(ValueError, match=r"same knobs for every replica, got \[\['a', 'lr'\], \['lr'\]\]"):
        train(task_of(MLP(SIZES), (("lr", 1.0),), replicas=((0, (("a", 1.0),)), (1, ()))))


def test_an_optimizer_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="expected optimizer 'sgd' or 'adam', got 'rmsprop'"):
        Arm("a", MLP(), optimizer="rmsprop")


def test_a_rehearsal_takes_every_probe_and_one_step_and_says_what_was_asked_for() -> None:
    def late(moment: Moment) -> Tensor:
        raise ValueError("too late")

    task = task_of(Wanting(SIZES, norm=BatchNorm()), (*SGD, ("temperature", 2.0)))
    asked = {"lr", "momentum", "weight_decay", "init_scale", "bn_momentum", "temperature"}
    assert rehearse(task) == asked
    assert rehearse(replace(task, arm=replace(task.arm, optimizer="adam"))) == asked - {"momentum"}
    with pytest.raises(ValueError, match="too late"):
        rehearse(replace(task, probes=(*task.probes, Probe("late", late))))
