"""What the lab gains by training networks together: 100 runs in one sweep against the same runs one at a time.

    python benchmarks/lab_speed.py [--rounds 3] [--out benchmarks/lab_speed.json]

Seconds say more about a machine than about the lab, so every number is a ratio of two things measured in turn in one
run: how many times longer the single runs take. It is taken twice:

- on two cores, by the clock on the wall: ``bnlearn.lab.run`` over two processes, 50 runs to a task or one. This is what
  a sweep gains in use;
- on one core, in processor time, which leaves out what other programs take, for networks and batches of several sizes.
  Here the runs are also compared with an ordinary loop over a ``torch.nn.Module``, which shows where the gain ends:
  where one network is enough work for a core, it gains nothing from company, and the loop costs less.

The median and the quartiles are over rounds. The noise of the machine is the sweep measured against itself: it should
be 1, and how far its quartiles are from 1 is what a difference has to exceed to mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import bnlearn
from bnlearn.lab import MLP, Arm, BatchNorm, ConvNet, Data, Network, Sweep, Task, run, shuffled, train

RUNS = 100
SINGLES = 10
"""Single runs in a round of the comparison on one core, of which the mean stands for a hundred."""
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)


def mlp(*widths: int, norm: BatchNorm | None = None) -> MLP:
    return MLP((64, *widths, 10), norm=norm)


SIZES: dict[str, tuple[Network, int, int]] = {
    # name: (network, batch size, steps)
    "3 layers of 32, batch of 32": (mlp(32, 32, 32, norm=BatchNorm()), 32, 20),
    "3 layers of 64, batch of 64": (mlp(64, 64, 64, norm=BatchNorm()), 64, 20),
    "3 layers of 64, batch of 64, without BatchNorm": (mlp(64, 64, 64), 64, 20),
    "20 layers of 32, batch of 64": (mlp(*[32] * 20, norm=BatchNorm()), 64, 5),
    "3 layers of 64, batch of 256": (mlp(64, 64, 64, norm=BatchNorm()), 256, 5),
    "3 layers of 64, batch of 1024": (mlp(64, 64, 64, norm=BatchNorm()), 1024, 2),
    "3 layers of 128, batch of 64": (mlp(128, 128, 128, norm=BatchNorm()), 64, 5),
    "3 layers of 256, batch of 64": (mlp(256, 256, 256, norm=BatchNorm()), 64, 5),
    "3 layers of 512, batch of 64": (mlp(512, 512, 512, norm=BatchNorm()), 64, 2),
    "3 convolutions, batch of 32": (ConvNet(norm=BatchNorm()), 32, 5),
}
IN_USE = tuple(SIZES)[:3]
"""What is also measured on two cores: networks of the size that the lab is made for."""


def seconds(action: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    action()
    return clock() - start


def summary(ratios: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 2), "lower_quartile": round(low, 2), "upper_quartile": round(high, 2)}


def compare(
    actions: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each action in each round, measured in turn, so that a slow spell of the machine hits all."""
    for action in actions.values():
        action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            taken[name].append(seconds(action, clock))
    return taken


def ratio(taken: dict[str, list[float]], first: str, second: str, times: float = 1.0) -> dict[str, float]:
    return summary([times * a / b for a, b in zip(taken[first], taken[second], strict=True)])


def on_two_cores(name: str, rounds: int) -> dict[str, dict[str, float]]:
    network, batch_size, steps = SIZES[name]
    seeds = tuple(range(RUNS // len(RATES)))
    arm = Arm("arm", network)

    def sweep(at_once: int) -> object:
        return run(Sweep((arm,), {"lr": RATES}, seeds, steps, batch_size, at_once=at_once))

    half = partial(sweep, RUNS // 2)
    with joblib.parallel_config("loky", n_jobs=2):
        taken = compare({"together": half, "one": partial(sweep, 1), "again": half}, rounds, time.perf_counter)
    return {"one at a time": ratio(taken, "one", "together"), "noise": ratio(taken, "again", "together")}


def ordinary(network: MLP, batch_size: int, steps: int) -> None:
    """The same training of so many single runs as an ordinary loop."""
    for seed in range(SINGLES):
        loop(network, batch_size, steps, seed)


def loop(network: MLP, batch_size: int, steps: int, seed: int) -> None:
    layers: list[nn.Module] = []
    for before, after in zip(network.sizes[:-2], network.sizes[1:-1], strict=True):
        norm = [nn.BatchNorm1d(after)] if network.norm else []
        layers += [nn.Linear(before, after), *norm, nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(*network.sizes[-2:]))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    part = Data().load().train
    order = torch.from_numpy(shuffled(part.y.numpy(), batch_size, steps, np.random.default_rng(seed)))
    for row in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(part.x[row]), part.y[row]).backward()
        optimizer.step()


def on_one_core(name: str, rounds: int) -> dict[str, dict[str, float]]:
    network, batch_size, steps = SIZES[name]
    data = Data(flat=isinstance(network, MLP))
    seeds = range(RUNS // len(RATES))
    replicas = tuple((seed, (("lr", rate),)) for rate in RATES for seed in seeds)

    def task(chosen: tuple[tuple[int, tuple[tuple[str, float], ...]], ...]) -> Task:
        return Task(data, Arm("arm", network), chosen, steps, batch_size)

    def singles() -> None:
        for replica in replicas[:SINGLES]:
            train(task((replica,)))

    together = partial(train, task(replicas))
    actions: dict[str, Callable[[], object]] = {"together": together, "one": singles, "again": together}
    if isinstance(network, MLP):
        actions["plain"] = partial(ordinary, network, batch_size, steps)
    taken = compare(actions, rounds, time.process_time)
    found = {"one at a time": ratio(taken, "one", "together", RUNS / SINGLES)}
    if "plain" in actions:
        found["ordinary loop"] = ratio(taken, "plain", "together", RUNS / SINGLES)
    return found | {"noise": ratio(taken, "again", "together")}


def show(title: str, results: dict[str, dict[str, dict[str, float]]]) -> None:
    print(title)
    for name, ratios in results.items():
        print(f"  {name}")
        for what, found in ratios.items():
            spread = f"({found['lower_quartile']:.2f} to {found['upper_quartile']:.2f})"
            print(f"    {what:<16}{found['median']:6.2f}  {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the lab gains by training networks together.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where to write the result"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"expected rounds >= 2, got {arguments.rounds}")

    torch.set_num_threads(1)
    bar = tqdm(total=len(IN_USE) + len(SIZES), unit="size")

    def all_of(
        measure: Callable[[str, int], dict[str, dict[str, float]]], names: tuple[str, ...]
    ) -> dict[str, dict[str, dict[str, float]]]:
        results = {}
        for name in names:
            bar.set_description(name)
            results[name] = measure(name, arguments.rounds)
            bar.update()
        return results

    two, one = all_of(on_two_cores, IN_USE), all_of(on_one_core, tuple(SIZES))
    bar.close()
    ended = [name for name, found in one.items() if "ordinary loop" in found and found["ordinary loop"]["median"] < 1]
    record = {
        "what": f"time of {RUNS} runs one at a time / time of the same runs trained together",
        "command": f"python benchmarks/lab_speed.py --rounds {arguments.rounds}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical processors",
        "versions": {"bnlearn": bnlearn.__version__, "python": platform.python_version(), "torch": torch.__version__},
        "runs": RUNS,
        "two processes, wall clock": two,
        "one process, processor time": one,
        "an ordinary loop costs less": ended,
    }
    show("two processes, wall clock", two)
    show("one process, processor time", one)
    print(f"an ordinary loop costs less for: {'; '.join(ended) or 'none of these'}")
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out.name}")


if __name__ == "__main__":
    main()
