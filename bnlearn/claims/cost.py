"""What batch normalisation costs: memory, time in training and at inference, and the precision it needs.

Times are ratios of two networks measured in turn in one process, in processor time with one thread; each "seed" is one
round, which takes the fastest of several calls, as whatever disturbs a call only adds time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bnlearn import functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale

THEME = "Cost"
CHAPTER = "notebooks/61_limits"


def network(channels: tuple[int, ...], side: int, *, normalised: bool, seed: int = 0) -> nn.Sequential:
    """Convolutions of 3 x 3, each with (BatchNorm2d and) ReLU, and a linear layer to ten classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not normalised))
            layers += [nn.BatchNorm2d(after)] if normalised else []
            layers.append(nn.ReLU())
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side * side, 10))


# C10: memory


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that the forward pass keeps for the backward pass, parameters apart; each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x).sum()
        total = sum(kept.values())
        loss.backward()
    return total


def statistics_bytes(model: nn.Module) -> int:
    """Bytes of the means and variances: the running ones, and the batch's, which the backward pass needs."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return sum(2 * 2 * 4 * norm.num_features for norm in norms)


def run_c10(scale: Scale) -> dict[str, Measurement]:
    """Networks of random sizes: the share of the statistics in what batch norm adds, and what it adds in all."""
    shares, ratios = [], []
    for seed in range(scale.seeds):
        rng = np.random.default_rng(seed)
        channels = (3, *(int(c) for c in 8 * rng.integers(1, 5, 3)))
        side, samples = int(rng.choice([8, 16, 32])), int(rng.choice([8, 16, 32]))
        x = torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(seed))
        normalised, plain = (network(channels, side, normalised=which) for which in (True, False))
        with_it, without = saved_bytes(normalised, x), saved_bytes(plain, x)
        statistics = statistics_bytes(normalised)
        shares.append(statistics / (with_it - without + statistics))
        ratios.append(with_it / without)
    share, ratio = np.array(shares), np.array(ratios)
    return {
        "mean and variance": Measurement(share, {"share": share}),
        "saved activations": Measurement(ratio, {"ratio": ratio}),
    }


# C11, C12: time


def fastest(call: Callable[[], Any], calls: int) -> float:
    """Processor seconds of the fastest of ``calls`` calls."""
    seconds = []
    for _ in range(calls):
        start = time.process_time_ns()
        call()
        seconds.append(time.process_time_ns() - start)
    return max(min(seconds), 1) * 1e-9


def ratios(first: Callable[[], Any], second: Callable[[], Any], rounds: int, calls: int) -> NDArray[np.float64]:
    """Time of ``first`` over that of ``second``, measured in turn: (rounds,)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first(), second()  # what is only done once
        return np.array([fastest(first, calls) / fastest(second, calls) for _ in range(rounds)])
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=4)
def _times(rounds: int) -> dict[str, NDArray[np.float64]]:
    channels, side = (1, 16, 16, 16), 16
    normalised, plain = (network(channels, side, normalised=which) for which in (True, False))
    x = torch.randn(32, 1, side, side, generator=torch.Generator().manual_seed(0))

    def step(model: nn.Module) -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    found = {
        "training step": ratios(lambda: step(normalised), lambda: step(plain), rounds, 5),
        "noise": ratios(lambda: step(plain), lambda: step(plain), rounds, 5),
    }
    normalised.eval(), plain.eval()
    folded = folded_network(normalised)
    with torch.inference_mode():
        for samples in (1, 32):
            some = x[:samples]
            found[f"not folded, {samples}"] = ratios(lambda: normalised(some), lambda: plain(some), rounds, 20)  # noqa: B023
        found["folded, 1"] = ratios(lambda: folded(x[:1]), lambda: plain(x[:1]), rounds, 20)
    return found


def folded_network(model: nn.Sequential) -> nn.Sequential:
    """A copy of ``model``, in evaluation, with every BatchNorm2d folded into the convolution before it."""
    layers: list[nn.Module] = []
    for module in copy.deepcopy(model).eval():
        if isinstance(module, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], module)  # type: ignore[type-var]
        else:
            layers.append(module)
    return nn.Sequential(*layers).eval()


def _as_measurement(scale: Scale, name: str) -> Measurement:
    times = _times(scale.seeds)
    return Measurement(times[name], {"ratio": times[name], "noise (the same network twice)": times["noise"]})


def run_c11(scale: Scale) -> dict[str, Measurement]:
    """Forward and backward pass with batch norm over without."""
    return {"forward and backward": _as_measurement(scale, "training step")}


def run_c12(scale: Scale) -> dict[str, Measurement]:
    """Forward pass in evaluation with batch norm over without: as it is, for one and for many samples, and folded."""
    names = {"one sample": "not folded, 1", "32 samples": "not folded, 32", "one sample, folded": "folded, 1"}
    return {name: _as_measurement(scale, key) for name, key in names.items()}


# C18: precision


def half_statistics_error(x: Tensor) -> tuple[float, float]:
    """Largest error of the normalised values with statistics in the dtype of ``x``, and with float32 ones."""
    exact = x.double()
    exact = (exact - exact.mean(0)) / torch.sqrt(exact.var(0, correction=0) + 1e-5)
    mean = x.mean(0)
    centred = x - mean
    half = centred / torch.sqrt((centred * centred).mean(0) + 1e-5)
    wide = functional.batch_norm(x)[0]
    return tuple(float((y.double() - exact).abs().amax()) for y in (half, wide))  # type: ignore[return-value]


def run_c18(scale: Scale) -> dict[str, Measurement]:
    """How many times larger the error is with statistics in half precision."""
    found = {}
    for name, dtype, mean, std in (
        ("float16, mean 0, deviation 1", torch.float16, 0.0, 1.0),
        ("float16, mean 10, deviation 1", torch.float16, 10.0, 1.0),
        ("float16, mean 0, deviation 0.003", torch.float16, 0.0, 0.003),
        ("bfloat16, mean 10, deviation 1", torch.bfloat16, 10.0, 1.0),
    ):
        errors = []
        for seed in range(scale.seeds):
            x = mean + std * torch.randn(4096, 8, generator=torch.Generator().manual_seed(seed))
            errors.append(half_statistics_error(x.to(dtype)))
        half, wide = np.array(errors).T
        found[name] = Measurement(half / wide, {"statistics in half precision": half, "statistics in float32": wide})
    return found


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C10",
        statement="Batch normalisation costs much extra memory, to store the mean and the variance.",
        sources=("P",),
        theme=THEME,
        setting=(
            "PyTorch networks of three convolutions of random sizes, a forward pass in training; what autograd keeps "
            "is counted, so nothing is random but the sizes."
        ),
        criteria=(
            Criterion("mean and variance", "their share of the memory that batch norm adds", 0.1, 0.02),
            Criterion(
                "saved activations", "memory kept for the backward pass, with over without", 1.2, 1.05, scale="log"
            ),
        ),
        run=run_c10,
        chapter=CHAPTER,
        data="random images",
    ),
    Claim(
        id="C11",
        statement="Batch normalisation costs time in training.",
        sources=("P",),
        theme=THEME,
        setting="A PyTorch network of three convolutions of 16 channels on 32 images of 16 x 16, one thread.",
        criteria=(Criterion("forward and backward", "time with batch norm over without", 1.1, 1.03, "median", "log"),),
        run=run_c11,
        chapter=CHAPTER,
        note="A processor; on another kind of machine the ratio is another.",
        data="random images",
    ),
    Claim(
        id="C12",
        statement="Batch normalisation slows down inference.",
        sources=("P",),
        theme=THEME,
        setting=(
            "A PyTorch network of three convolutions of 16 channels on images of 16 x 16, in evaluation, one thread. "
            "Some introductions say so, others that the overhead is negligible."
        ),
        criteria=(
            Criterion("one sample", "time with batch norm over without", 1.05, 1.03, "median", "log"),
            Criterion("32 samples", "time with batch norm over without", 1.05, 1.03, "median", "log"),
            Criterion("one sample, folded", "time with batch norm over without", 1.05, 1.03, "median", "log"),
        ),
        run=run_c12,
        chapter="notebooks/83_deployment",
        note="A processor; on another kind of machine the ratio is another.",
        data="random images",
    ),
    Claim(
        id="C18",
        statement="In half precision, batch normalisation needs float32 statistics.",
        sources=("-",),
        theme=THEME,
        setting=(
            "4,096 normal values in each of 8 channels; the largest error of the normalised values, against float64 on "
            "the same rounded input. Both centre first; the output is in half precision either way."
        ),
        criteria=tuple(
            Criterion(name, "error with statistics in half precision over float32 ones", 2.0, 1.1, scale="log")
            for name in (
                "float16, mean 0, deviation 1",
                "float16, mean 10, deviation 1",
                "float16, mean 0, deviation 0.003",
                "bfloat16, mean 10, deviation 1",
            )
        ),
        run=run_c18,
        chapter="notebooks/82_half_precision",
        note="PyTorch sums in float32 even where it rounds the result: statistics summed in half precision are worse.",
        data="random numbers",
    ),
)
