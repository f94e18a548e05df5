"""What the clinic's repairs are worth: exact statistics beside two popular tools, and the speed of a folded network.

    python benchmarks/clinic_repairs.py [--rounds 15] [--out benchmarks/clinic_repairs.json]

Recalibration. Networks are trained for a little while on scanned digits. Then their running statistics are made anew by
``bnlearn.recalibrate`` (exact, and in one pass), by ``torch.optim.swa_utils.update_bn``, and by fvcore's
``update_bn_stats``, where that is installed (pip install fvcore; the project does not depend on it). The truth is
computed here in float64, by other code: layer after layer, all the data at once, in evaluation mode. Errors are the
largest over all channels of all layers: of the mean in standard deviations, of the variance relative; and of what the
network then computes for the data, RMS in units of the outputs' spread. Times are ratios to one forward pass over the
data in evaluation mode, taken in turn.

Folding. Time of inference unfolded over folded, for batches of three sizes: above 1, folding pays.

Seconds say more about a machine than about a tool, so all times are ratios of two things measured in turn in one run,
in processor time of one thread. Medians and quartiles are over rounds. The noise is a thing measured against itself.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import bnlearn
from bnlearn.datasets import load_digits

try:
    from fvcore import __version__ as fvcore_version
    from fvcore.nn.precise_bn import update_bn_stats
except ImportError:
    update_bn_stats = fvcore_version = None

Batches = list[torch.Tensor]
Spread = dict[str, float]

# Networks


def conv(n: int, m: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(n, m, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(m)]


class Residual(nn.Module):
    def __init__(self, n: int, m: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(n, m, 3, stride), nn.ReLU(), *conv(m, m))
        self.shortcut = nn.Identity() if n == m and stride == 1 else nn.Sequential(*conv(n, m, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


class Inverted(nn.Module):
    """MobileNet V2's block: wide inside, and depthwise."""

    def __init__(self, n: int, m: int, stride: int = 1) -> None:
        super().__init__()
        layers = [*conv(n, 6 * n, 1), nn.ReLU6(), *conv(6 * n, 6 * n, 3, stride, 6 * n), nn.ReLU6(), *conv(6 * n, m, 1)]
        self.body, self.residual = nn.Sequential(*layers), n == m and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def head(width: int, dropout: float = 0.0) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(width, 10)]


def plain(channels: int, width: int, dropout: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in ((channels, width), (width, width), (width, 2 * width), (2 * width, 2 * width)):
        drop = [nn.Dropout(dropout)] if dropout else []
        layers += [*conv(n, m, stride=1 + (m > n > channels)), nn.ReLU(), *drop]
    return nn.Sequential(*layers, *head(2 * width, dropout))


def resnet(channels: int, width: int) -> nn.Module:
    blocks = [Residual(width, width), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width)]
    return nn.Sequential(*conv(channels, width), nn.ReLU(), *blocks, *head(2 * width))


def mobilenet(channels: int, width: int) -> nn.Module:
    blocks = [Inverted(width, width), Inverted(width, 2 * width, 2), Inverted(2 * width, 2 * width)]
    return nn.Sequential(*conv(channels, width), nn.ReLU6(), *blocks, *head(2 * width))


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


# Recalibration


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(60):
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return model


def in_sizes(x: torch.Tensor, *sizes: int) -> Batches:
    """Batches of these sizes in turn, until there is no more."""
    batches, at, turn = [], 0, 0
    while at < len(x):
        batches.append(x[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(batches[-1]), turn + 1
    return batches


def cases() -> dict[str, tuple[nn.Module, Batches, int]]:
    """Name: (a model, batches, how many layers are frozen, from the first on)."""
    part = load_digits().train
    x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
    by_class = x[torch.argsort(y, stable=True)]
    return {
        "plain, batches of 64": (trained(plain(1, 16), x, y), in_sizes(x, 64), 0),
        "plain with dropout, batches of 64": (trained(plain(1, 16, 0.3), x, y), in_sizes(x, 64), 0),
        "ResNet-like, batches of 4 and of 256 in turn": (trained(resnet(1, 16), x, y), in_sizes(x, 4, 256), 0),
        "ResNet-like, batches of 64 sorted by class": (trained(resnet(1, 16), x, y), in_sizes(by_class, 64), 0),
        "MobileNet-like, batches of 64, two layers frozen": (trained(mobilenet(1, 8), x, y), in_sizes(x, 64), 2),
    }


def truth(model: nn.Module, batches: Batches, frozen: int) -> nn.Module:
    """In float64, layer after layer, with all the data at once."""
    model = copy.deepcopy(model).double().eval()
    x = torch.cat(batches).double()
    for bn in norms(model)[frozen:]:  # they are registered in the order in which they are called

        def keep(bn: Any, args: tuple[torch.Tensor]) -> None:
            values = args[0].transpose(0, 1).flatten(1)
            bn.running_mean, bn.running_var = values.mean(1), values.var(1)

        handle = bn.register_forward_pre_hook(keep)
        with torch.no_grad():
            model(x)
        handle.remove()
    return model


def exactly(model: nn.Module, batches: Batches) -> None:
    bnlearn.recalibrate(model, batches, progress=False)


def in_one_pass(model: nn.Module, batches: Batches) -> None:
    bnlearn.recalibrate(model, batches, one_pass=True, progress=False)


def with_update_bn(model: nn.Module, batches: Batches) -> None:
    update_bn(batches, model)


def with_fvcore(model: nn.Module, batches: Batches) -> None:
    update_bn_stats(model, batches, len(batches))


def tools() -> dict[str, Callable[[nn.Module, Batches], None]]:
    found = {
        "bnlearn.recalibrate": exactly,
        "bnlearn.recalibrate, one pass": in_one_pass,
        "torch.optim.swa_utils.update_bn": with_update_bn,
    }
    return found | ({"fvcore update_bn_stats": with_fvcore} if update_bn_stats else {})


def forward(model: nn.Module, batches: Batches) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(x) for x in batches])


def errors(model: nn.Module, exact: nn.Module, batches: Batches, frozen: int) -> dict[str, Any]:
    mean = var = 0.0
    for bn, right in zip(norms(model)[frozen:], norms(exact)[frozen:], strict=True):
        mean = max(
            mean, float(((bn.running_mean.double() - right.running_mean) / right.running_var.sqrt()).abs().max())
        )
        var = max(var, float((bn.running_var.double() / right.running_var - 1).abs().max()))
    expected = forward(exact, [x.double() for x in batches])
    gap = (forward(model, batches).double() - expected).square().mean().sqrt() / expected.std(0).square().mean().sqrt()
    found = {"mean": rounded(mean), "variance": rounded(var), "outputs": rounded(float(gap))}
    if frozen:
        pairs = zip(norms(model)[:frozen], norms(exact)[:frozen], strict=True)
        found["frozen layers rewritten"] = sum(
            not torch.allclose(bn.running_mean.double(), right.running_mean, rtol=1e-6) for bn, right in pairs
        )
    return found


def rounded(value: float) -> float:
    return float(f"{value:.2g}")


def recalibration(model: nn.Module, batches: Batches, frozen: int, rounds: int) -> dict[str, Any]:
    exact = truth(model, batches, frozen)
    model.train()
    for bn in norms(model)[:frozen]:
        bn.eval()  # as many people do; what else bnlearn.freeze does is not for the other tools to know
    found: dict[str, Any] = {"as trained": errors(copy.deepcopy(model), exact, batches, frozen)}
    actions: dict[str, Callable[[], object]] = {"forward": lambda: forward(copy.deepcopy(model), batches)}
    for name, tool in tools().items():
        torch.manual_seed(0)
        changed = copy.deepcopy(model)
        tool(changed, batches)
        found[name] = errors(changed, exact, batches, frozen)
        actions[name] = partial(lambda tool: tool(copy.deepcopy(model), batches), tool)
    taken = compare(actions | {"again": actions["forward"]}, rounds)
    for name in tools():
        found[name]["time, in forward passes"] = ratio(taken, name, "forward")
    return found | {"layers": len(norms(model)) - frozen, "noise": ratio(taken, "again", "forward")}


# Folding


def nets() -> dict[str, nn.Module]:
    return {"plain": plain(3, 32), "ResNet-like": resnet(3, 32), "MobileNet-like": mobilenet(3, 16)}


def folding(model: nn.Module, size: int, rounds: int) -> dict[str, Any]:
    for bn in norms(model):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
        nn.init.uniform_(bn.running_var, 0.5, 2.0)
    model.eval()
    x = torch.randn(size, 3, 32, 32)
    folded = bnlearn.fold(model, x)
    times = max(1, 64 // size)

    def run(net: nn.Module) -> None:
        with torch.inference_mode():
            for _ in range(times):
                net(x)

    unfolded = partial(run, model)
    taken = compare({"unfolded": unfolded, "folded": partial(run, folded), "again": unfolded}, rounds)
    return {
        "unfolded / folded": ratio(taken, "unfolded", "folded"),
        "noise": ratio(taken, "again", "unfolded"),
        "layers folded": len(folded.folding.folded),
        "error on the example": rounded(folded.folding.error),
    }


# Times


def compare(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action in each round, measured in turn, so that a slow spell of the machine hits all."""
    for action in actions.values():
        action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            start = time.process_time()
            action()
            taken[name].append(time.process_time() - start)
    return taken


def ratio(taken: dict[str, list[float]], first: str, second: str) -> Spread:
    ratios = [a / b for a, b in zip(taken[first], taken[second], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 2), "lower_quartile": round(low, 2), "upper_quartile": round(high, 2)}


def told(spread: Spread) -> str:
    return f"{spread['median']:.2f} ({spread['lower_quartile']:.2f} to {spread['upper_quartile']:.2f})"


def line(name: str, row: dict[str, Any]) -> str:
    said = f"  {name:<32}" + "".join(f" {key} {row[key]:<8.1g}" for key in ("mean", "variance", "outputs"))
    if "time, in forward passes" in row:
        said += f" {told(row['time, in forward passes'])} forward passes"
    if row.get("frozen layers rewritten"):
        said += f"; {row['frozen layers rewritten']} frozen layers rewritten"
    return said


def show(recalibrated: dict[str, dict[str, Any]], folded: dict[str, dict[str, Any]]) -> None:
    for case, found in recalibrated.items():
        print(f"{case}; {found['layers']} layers; noise of the times {told(found['noise'])}")
        print("\n".join(line(name, row) for name, row in found.items() if name not in ("layers", "noise")))
    print("unfolded / folded")
    for case, found in folded.items():
        print(f"  {case:<32} {told(found['unfolded / folded'])}; noise {told(found['noise'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the clinic's repairs are worth.")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each comparison (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where to write the result"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"expected rounds >= 2, got {arguments.rounds}")
    if update_bn_stats is None:
        print("SKIPPED: fvcore is not installed, so its update_bn_stats is not compared (pip install fvcore)")

    torch.set_num_threads(1)
    torch.manual_seed(0)
    recalibrated = {
        name: recalibration(*case, arguments.rounds) for name, case in tqdm(cases().items(), desc="recalibration")
    }
    folded = {
        f"{name}, batch of {size}": folding(model, size, arguments.rounds)
        for name, model in tqdm(nets().items(), desc="folding")
        for size in (1, 8, 64)
    }
    versions = {
        "bnlearn": bnlearn.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "fvcore": fvcore_version,
    }
    record = {
        "what": "errors and times of running statistics made anew, and inference time unfolded / folded",
        "command": f"python benchmarks/clinic_repairs.py --rounds {arguments.rounds}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical processors, one thread",
        "versions": versions,
        "recalibration": recalibrated,
        "folding": folded,
    }
    show(recalibrated, folded)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out.name}")


if __name__ == "__main__":
    main()
