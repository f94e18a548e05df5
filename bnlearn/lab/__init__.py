"""The lab: many small networks trained at once, and what they did written down.

A :class:`Sweep` says what to run: the data, the arms, a grid of knobs, the seeds, the steps and what to record. Its
replicas are trained together as one batched tensor program, in tasks that joblib spreads over processes or machines.

>>> from bnlearn.lab import MLP, Arm, BatchNorm, Probe, Sweep, probes, run
>>> arms = (Arm("bn", MLP(norm=BatchNorm())), Arm("none", MLP()))
>>> sweep = Sweep(arms, {"lr": (0.1, 1.0)}, seeds=(0, 1, 2), steps=20, probes=(Probe("test", probes.accuracy),))
>>> outcome = run(sweep)
>>> outcome["bn"]["test"].shape  # points, seeds, times
(2, 3, 1)

It needs PyTorch, joblib, SciPy and scikit-learn: the extra ``evidence``.
"""

from bnlearn.lab import probes
from bnlearn.lab.data import Data, Order, Part, Parts, shuffled, sorted_by_class
from bnlearn.lab.engine import Arm, Moment, Probe, Task, constant, cosine, train
from bnlearn.lab.networks import MLP, ConvNet, Network, ResidualMLP, activate, draw_weight
from bnlearn.lab.norms import BatchNorm, GroupNorm, LayerNorm, Norm, Pass, RMSNorm
from bnlearn.lab.sweep import Outcome, Sweep, run

__all__ = [
    "MLP",
    "Arm",
    "BatchNorm",
    "ConvNet",
    "Data",
    "GroupNorm",
    "LayerNorm",
    "Moment",
    "Network",
    "Norm",
    "Order",
    "Outcome",
    "Part",
    "Parts",
    "Pass",
    "Probe",
    "RMSNorm",
    "ResidualMLP",
    "Sweep",
    "Task",
    "activate",
    "constant",
    "cosine",
    "draw_weight",
    "probes",
    "run",
    "shuffled",
    "sorted_by_class",
    "train",
]
