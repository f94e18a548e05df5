"""What each of the processes does that test_distributed.py starts: ``torchrun across_processes.py FOLDER``.

The data lie in FOLDER/data.npz, and what this process found goes to FOLDER/rank<N>.npz.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bnlearn.torch import SyncBatchNorm

folder = Path(sys.argv[1])
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
rank = dist.get_rank()
torch.set_num_threads(1)
data = {name: torch.from_numpy(value) for name, value in np.load(folder / "data.npz").items()}
found: dict[str, object] = {}


def own(name, sizes):
    """This process's part."""
    return data[name].split(sizes)[rank]


def keep(name, tensors):
    found.update(
        {
            f"{name}.{key}": value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
            for key, value in tensors.items()
            if value is not None
        }
    )


def layer(**arguments):
    norm = SyncBatchNorm(3, **{"dtype": torch.float64, "eps": 0.01, **arguments})
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(data["gamma"])
            norm.bias.copy_(data["beta"])
    return norm


def both_ways(name, norm, x, dy):
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    grads = {} if norm.weight is None else {"dgamma": norm.weight.grad, "dbeta": norm.bias.grad}
    keep(name, {"y": y, "dx": x.grad, **grads, **dict(norm.named_buffers())})


# -- The layer alone -------------------------------------------------------------------------------------------------

for shape in ("features", "images"):
    for sizes in ((6, 6), (11, 1), (12, 0), (0, 12)):
        both_ways(f"{shape}{sizes}", layer(), own(shape, sizes), own(f"d{shape}", sizes))
both_ways("plain", layer(affine=False), own("images", (5, 7)), own("dimages", (5, 7)))
both_ways("untracked", layer(track_running_stats=False), own("images", (5, 7)), own("dimages", (5, 7)))
first = layer()
first(own("images", (5, 7))).backward(own("dimages", (5, 7)))
keep("no gradient of x", {"dgamma": first.weight.grad, "dbeta": first.bias.grad})

average = layer(momentum=None)
for sizes in ((6, 6), (3, 9)):
    average(own("features", sizes))
    average(own("features", sizes) ** 2)
keep("average", dict(average.named_buffers()))

nothing = layer()
y = nothing(own("images", (12, 0))[:0].requires_grad_())
y.sum().backward()
keep("nothing", {"y": y, "dgamma": nothing.weight.grad, **dict(nothing.named_buffers())})

alone = layer()
try:
    alone(own("features", (1, 11))[: 1 - rank])
except ValueError as error:
    found["alone.error"] = str(error)
keep("alone", dict(alone.named_buffers()))

groups = [dist.new_group([0]), dist.new_group([1])]
both_ways("own group", layer(process_group=groups[rank]), own("images", (5, 7)), own("dimages", (5, 7)))

evaluated = layer()
evaluated(own("images", (5, 7)))
if rank == 0:  # alone: in evaluation mode nobody is waited for
    keep("evaluated", {"y": evaluated.eval()(data["images"])})

precise = SyncBatchNorm(3, dtype=torch.float32)
both_ways("precise", precise, own("far", (399, 601)), own("dfar", (399, 601)))

with torch.autocast("cpu", dtype=torch.bfloat16):
    both_ways("autocast", SyncBatchNorm(3), own("far", (399, 601)).bfloat16(), own("dfar", (399, 601)).bfloat16())


# -- One step of training under DistributedDataParallel --------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5)
    ).double()


def step(name, model, sizes, weight=1.0):
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(own("pictures", sizes)), own("targets", sizes))
        (weight * loss).backward()
        optimizer.step()
    keep(name, model.module.state_dict())


step("synchronised", SyncBatchNorm.convert_sync_batchnorm(network()), (6, 6))
step("weighted", SyncBatchNorm.convert_sync_batchnorm(network()), (8, 4), weight=2 * (8, 4)[rank] / 12)
step("unweighted", SyncBatchNorm.convert_sync_batchnorm(network()), (8, 4))
step("unsynchronised", network(), (6, 6))

# Whose running statistics are they, without synchronisation?
model = DistributedDataParallel(network())
model(own("pictures", (6, 6))).sum().backward()
keep("after one batch", {name: buffer.clone() for name, buffer in model.module.named_buffers()})
with torch.no_grad():
    model.eval()(own("pictures", (6, 6)))
keep("after the next call", dict(model.module.named_buffers()))

# -- What PyTorch's own does on the CPU ------------------------------------------------------------------------------

for name, attempt in {
    "forward": lambda: nn.SyncBatchNorm(3)(torch.ones(2, 3)),
    "wrapping": lambda: DistributedDataParallel(nn.SyncBatchNorm(3)),
}.items():
    try:
        attempt()
    except ValueError as error:
        found[f"theirs.{name}"] = str(error)

np.savez(folder / f"rank{rank}.npz", **found)
dist.destroy_process_group()
