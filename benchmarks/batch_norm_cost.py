"""What BatchNorm costs in time, as ratios: a small convolutional network with it over the same network without it.

    python benchmarks/batch_norm_cost.py [--threads 1] [--rounds 15] [--out benchmarks/batch_norm_cost.json]

Seconds say more about a machine than about BatchNorm, so every number is a ratio of two networks measured in turn in
one run. With one thread it is processor time, which leaves out what other programs take; with more, time on the clock.
Each round takes the fastest of several calls of each (whatever disturbs a call only adds time); the median and the
quartiles are over rounds. The noise of the machine is the same measurement of two networks WITHOUT BatchNorm: it should
be 1, and how far its quartiles are from 1 is what a difference has to exceed to mean anything.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

import bnlearn

CALLS = 10
"""Calls of each network in a round, of which the fastest counts."""

SIZES = {
    # name: (samples, channels of each convolution after the input's, height and width)
    "digits, 16 channels": (64, (1, 16, 16, 16), 8),
    "digits, 64 channels": (64, (1, 64, 64, 64), 8),
    "images of 32 x 32, 32 channels": (32, (3, 32, 32, 32), 32),
    "one sample of 32 x 32, 32 channels": (1, (3, 32, 32, 32), 32),
}


def network(channels: tuple[int, ...], size: int, *, normalised: bool) -> nn.Sequential:
    """Convolutions of 3 x 3, each with (BatchNorm and) ReLU, and a linear layer; random statistics, gamma and beta."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not normalised))
        if normalised:
            norm = nn.BatchNorm2d(after)
            for tensor in (norm.weight, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                nn.init.normal_(tensor)
            layers.append(norm)
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * size * size, 10))


def fold(model: nn.Sequential) -> nn.Sequential:
    """A copy in evaluation mode with each BatchNorm multiplied into the convolution before it."""
    folded: list[nn.Module] = []
    for layer in copy.deepcopy(model).eval():
        if isinstance(layer, nn.BatchNorm2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded)


def seconds(action: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    action()
    return clock() - start


def compare(first: Callable[[], object], second: Callable[[], object], rounds: int) -> dict[str, float]:
    """Time of ``first`` over that of ``second``: median and quartiles over rounds."""
    for action in (first, second):
        action()
    ratios = []
    for _ in range(rounds):
        # In turn, so that a slow spell of the machine hits both.
        pairs = [(seconds(first), seconds(second)) for _ in range(CALLS)]
        ratios.append(min(a for a, _ in pairs) / min(b for _, b in pairs))
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 3), "lower_quartile": round(low, 3), "upper_quartile": round(high, 3)}


def measure(samples: int, channels: tuple[int, ...], size: int, rounds: int) -> dict[str, dict[str, float]]:
    """All ratios for one size of network."""
    torch.manual_seed(1)
    x = torch.randn(samples, channels[0], size, size)
    labels = torch.randint(10, (samples,))
    plain, normal = (network(channels, size, normalised=on) for on in (False, True))
    folded, twin = fold(normal), copy.deepcopy(plain)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), normal.eval()(x), rtol=1e-3, atol=1e-3)

    def forward(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: model(x)

    def step(model: nn.Module) -> Callable[[], None]:
        return lambda: nn.functional.cross_entropy(model(x), labels).backward()

    found = {}
    normal.train()
    found["training, forward"] = compare(forward(normal), forward(plain), rounds)
    found["training, forward and backward"] = compare(step(normal), step(plain), rounds)
    found["noise, forward and backward"] = compare(step(twin), step(plain), rounds)
    normal.eval()
    with torch.inference_mode():
        found["evaluation"] = compare(forward(normal), forward(plain), rounds)
        found["evaluation, folded"] = compare(forward(folded), forward(plain), rounds)
        found["noise, evaluation"] = compare(forward(twin), forward(plain), rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What BatchNorm costs in time, as ratios with and without it.")
    parser.add_argument("--threads", type=int, default=1, help="threads for PyTorch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each comparison (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where to write the result"
    )
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.rounds < 2:
        parser.error(
            f"expected threads >= 1 and rounds >= 2, got threads {arguments.threads} and rounds {arguments.rounds}"
        )

    torch.set_num_threads(arguments.threads)
    results = {}
    bar = tqdm(SIZES.items(), unit="size")
    for name, shape in bar:
        bar.set_description(name)
        results[name] = measure(*shape, arguments.rounds)
    record = {
        "what": "time with BatchNorm / time without it, same network, measured in turn",
        "command": f"python benchmarks/batch_norm_cost.py --threads {arguments.threads} --rounds {arguments.rounds}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical processors",
        "versions": {"bnlearn": bnlearn.__version__, "python": platform.python_version(), "torch": torch.__version__},
        "clock": "processor time" if arguments.threads == 1 else "wall clock",
        "calls_per_round": CALLS,
        "ratios": results,
    }
    for name, ratios in results.items():
        print(name)
        for what, ratio in ratios.items():
            print(
                f"  {what:<32}{ratio['median']:6.2f}  ({ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f})"
            )
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out.name}")


if __name__ == "__main__":
    main()
