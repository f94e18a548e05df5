"""Each probe against the same computed on a plain PyTorch module, one replica after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor

from bnlearn.lab import (
    MLP,
    Arm,
    BatchNorm,
    ConvNet,
    Data,
    Network,
    Parts,
    Probe,
    ResidualMLP,
    Task,
    cosine,
    probes,
    train,
)

AT = 2
"""Where the probes look: after some steps, so that the running statistics are not what they start as."""
RATE = 0.125
SEEDS = (3, 8)
NETWORK = MLP((64, 12, 8, 10), norm=BatchNorm())


def looked(measure: Callable[..., Any], network: Network = NETWORK, **options: Any) -> dict[str, np.ndarray]:
    """What a probe gives for both seeds, without its name."""
    arm = Arm("a", network, knobs=(("lr", RATE),), schedule=cosine)
    probe = Probe("p", measure, (AT,), tuple(options.items()))
    data = Data(flat=not isinstance(network, ConvNet))
    outcome = train(Task(data, arm, tuple((seed, ()) for seed in SEEDS), 4, 32, (probe,)))
    return {name.removeprefix("p").removeprefix("."): value[:, 0] for name, value in outcome.items() if name != "loss"}


def arrived(plain: Callable[..., Any], seed: int, network: Network = NETWORK) -> Any:
    """The plain module where the probe looks."""
    other = plain(network, seed=seed, steps=4, data=Data(flat=not isinstance(network, ConvNet)))
    for step in range(AT):
        rate = RATE * 0.5 * (1 + np.cos(np.pi * step / 4))
        other.module.train()
        gradients = other.gradients(step)
        with torch.no_grad():
            for name, parameter in other.parameters().items():
                parameter -= rate * gradients[name]
    return other


def moved(other: Any, step: dict[str, Tensor]) -> Any:
    """A copy that stands a step further; the batch and the running statistics stay."""
    there = copy.deepcopy(other)
    with torch.no_grad():
        for name, parameter in there.parameters().items():
            if name in step:
                parameter -= step[name]
    return there


def norm(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()


def parts() -> Parts:
    return Data().load()


@pytest.mark.parametrize(
    ("part", "training", "samples"), [("test", False, None), ("validation", False, 40), ("train", True, 50)]
)
def test_accuracy_and_loss(part: str, training: bool, samples: int | None, plain: Callable[..., Any]) -> None:
    options = {"part": part, "training": training, "samples": samples}
    accuracy, loss = looked(probes.accuracy, **options)[""], looked(probes.loss, **options)[""]
    x, y = (each[:samples] for each in getattr(parts(), part))
    for place, seed in enumerate(SEEDS):
        module = arrived(plain, seed).module.train(training)
        logits = module(x)
        assert_allclose(accuracy[place], (logits.argmax(1) == y).float().mean(), rtol=1e-6)
        assert_allclose(loss[place], -logits.log_softmax(1)[torch.arange(len(y)), y].mean().item(), rtol=1e-5)


def test_moments_of_activations(plain: Callable[..., Any]) -> None:
    found, normed = looked(probes.activation_moments), looked(probes.activation_moments, pattern="1.normed")
    assert found["mean"].shape == found["std"].shape == (2, 2)
    assert normed["mean"].shape == (2, 1)
    for place, seed in enumerate(SEEDS):
        other = arrived(plain, seed)
        x = other.batches[AT][0]
        first, second = other.module[:1](x).detach().numpy(), other.module[:4](x).detach().numpy()
        assert_allclose(found["mean"][place], [first.mean(), second.mean()], rtol=1e-4, atol=1e-6)
        assert_allclose(found["std"][place], [first.std(), second.std()], rtol=1e-5)
        assert_allclose(normed["std"][place], other.module[:5](x).detach().numpy().std(), rtol=1e-5)


def test_gradient_norms_and_update_ratios(plain: Callable[..., Any]) -> None:
    norms, ratios = looked(probes.gradient_norms)[""], looked(probes.update_ratio)[""]
    gammas = looked(probes.gradient_norms, pattern=".gamma")[""]
    for place, seed in enumerate(SEEDS):
        other = arrived(plain, seed)
        gradients, parameters = other.gradients(AT), other.parameters()
        names = ["0.weight", "1.weight", "2.weight"]
        assert_allclose(norms[place], [gradients[name].norm() for name in names], rtol=1e-5)
        assert_allclose(gammas[place], [gradients[f"{i}.norm.gamma"].norm() for i in (0, 1)], rtol=1e-5)
        expected = [RATE * 0.5 * gradients[name].norm() / parameters[name].detach().norm() for name in names]
        assert_allclose(ratios[place], expected, rtol=1e-5)


def test_the_landscape_along_the_gradient(plain: Callable[..., Any]) -> None:
    distances = (0.25, 1.0)
    found = looked(probes.landscape, distances=distances)
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(
        ("loss", "gradient", "smoothness"), (2, 2)
    )
    for place, seed in enumerate(SEEDS):
        other = arrived(plain, seed)
        here = other.gradients(AT)
        for column, distance in enumerate(distances):
            there = moved(other, {name: distance * gradient for name, gradient in here.items()})
            change = norm({name: gradient - here[name] for name, gradient in there.gradients(AT).items()})
            assert_allclose(found["loss"][place, column], there.loss(AT).item(), rtol=1e-5)
            assert_allclose(found["gradient"][place, column], change, rtol=1e-5)
            assert_allclose(found["smoothness"][place, column], change / (distance * norm(here)), rtol=1e-5)


LAYERS = {
    "mlp": (NETWORK, [("0.",), ("1.",), ("2.",)]),
    "conv": (ConvNet((1, 4, 8), (2, 1), norm=BatchNorm()), [("0.",), ("1.",), ("head.",)]),
    "mlp, biases": (MLP((64, 12, 8, 10), activation="tanh"), [("0.",), ("1.",), ("2.",)]),
    "residual": (
        ResidualMLP(width=12, depth=1, norm=BatchNorm(), last_gamma=0.5),
        [("stem.",), ("0.0.",), ("0.1.",), ("end.", "head.")],
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_internal_covariate_shift_is_santurkar_s(name: str, plain: Callable[..., Any]) -> None:
    """Definition 2.1: the gradient of a layer, before and after the layers BELOW it have taken their step."""
    network, layers = LAYERS[name]
    what = "bias" if "biases" in name else "weight"
    found = looked(probes.covariate_shift, network, pattern=f".{what}")
    for place, seed in enumerate(SEEDS):
        other = arrived(plain, seed, network)
        before = other.gradients(AT)
        step: dict[str, Tensor] = {}
        for column, prefixes in enumerate(layers):
            weight = f"{prefixes[-1]}{what}"
            if name == "residual" and column == 3:  # the last normaliser stands before the head
                step |= {key: RATE * 0.5 * before[key] for key in before if key.startswith("end.")}
            after = moved(other, step).gradients(AT)[weight]
            distance = (after - before[weight]).norm()
            assert_allclose(found["distance"][place, column], distance, rtol=1e-4, atol=1e-6)
            assert_allclose(found["relative"][place, column], distance / before[weight].norm(), rtol=1e-4, atol=1e-6)
            cosine_of = (after * before[weight]).sum() / after.norm() / before[weight].norm()
            assert_allclose(found["cosine"][place, column], cosine_of, rtol=1e-5)
            step |= {key: RATE * 0.5 * before[key] for key in before if key.startswith(prefixes)}
        assert found["distance"][place, 0] == 0
        assert (found["distance"][place, 1:] > 1e-4).all()


def test_effective_rank(plain: Callable[..., Any]) -> None:
    found = looked(probes.effective_rank, trace="1.out", samples=20)[""]
    for place, seed in enumerate(SEEDS):
        module = arrived(plain, seed).module
        values = module[:6](parts().train.x[:20]).detach().numpy().astype(np.float64)
        share = np.linalg.svd(values, compute_uv=False)
        share = share[share > 0] / share.sum()
        assert_allclose(found[place], np.exp(-(share * np.log(share)).sum()), rtol=1e-4)


def test_the_rank_of_what_has_one() -> None:
    assert_allclose(looked(rank_of, kind="one")[""], 1, rtol=1e-4)
    assert_allclose(looked(rank_of, kind="equal")[""], 8, rtol=1e-4)
    assert_allclose(looked(rank_of, kind="nothing")[""], 1, rtol=1e-4)
    assert_allclose(looked(rank_of, kind="huge")[""], 8, rtol=1e-4)


def rank_of(moment: Any, kind: str) -> Tensor:
    """The effective rank of activations that are made up."""
    made = {
        "one": torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 9.0)),
        "equal": 3 * torch.eye(8),
        "nothing": torch.full((8, 8), torch.nan),
        "huge": 1e30 * torch.eye(8),
    }[kind]

    class Made:
        data = moment.data

        @staticmethod
        def forward(x: Tensor, *, training: bool, trace: dict[str, Tensor]) -> None:
            assert training
            trace["made"] = made + 0 * moment.parameters["0.weight"][:8, :8]

    return probes.effective_rank(Made(), "made")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (probes.accuracy, {"part": "all"}, "a part among train, validation, test, got 'all'"),
        (probes.loss, {"part": "x"}, "a part among train, validation, test, got 'x'"),
        (probes.activation_moments, {"pattern": ".conv"}, "a trace whose name ends in '.conv', got 0.linear, 0.normed"),
        (probes.effective_rank, {"trace": "9.out"}, "a trace among 0.linear, 0.normed, .*, got '9.out'"),
        (probes.gradient_norms, {"pattern": ".w"}, "a learnt parameter whose name ends in '.w', got 0.weight, 0.bias"),
        (probes.update_ratio, {"pattern": ".w"}, "a learnt parameter whose name ends in '.w', got 0.weight"),
        (probes.covariate_shift, {"pattern": ".w"}, "a learnt parameter whose name ends in '.w', got 0.weight"),
    ],
)
def test_what_is_refused(measure: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"expected {message}"):
        looked(measure, **options)
