r"""Many small networks trained at once, as one batched tensor program.

A replica is one network: a seed, and a value for each knob. All replicas of a task share the architecture, so each
step is one vectorised program over their stacked parameters (:func:`torch.func.vmap` of :func:`torch.func.grad`): the
price of launching an operation is paid once for all of them. Nothing flows between replicas: each gives what it gives
alone, to rounding.

Randomness belongs to the seed: initial weights, the order of samples, and noise are drawn from generators made from
it, so replicas of one seed under different knobs (or arms) differ in nothing else, and comparisons are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional as nnf

from bnlearn.lab.data import Data, Order, Parts, shuffled
from bnlearn.lab.networks import Network
from bnlearn.lab.norms import Pass

__all__ = ["Arm", "Moment", "Probe", "Task", "constant", "cosine", "rehearse", "train"]

Tensors = dict[str, Tensor]


def constant(step: int, steps: int) -> float:
    """A rate that stays."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """A rate that falls to zero along half a cosine (Loshchilov and Hutter, 2017)."""
    return 0.5 * (1 + float(np.cos(np.pi * step / steps)))


@dataclass(frozen=True)
class Arm:
    """One way to build and train a network.

    Attributes
    ----------
    name : str
    network : Network
    optimizer : str
        ``"sgd"`` (knobs ``lr``, ``momentum``, ``weight_decay``) or ``"adam"`` (``lr``, ``weight_decay``).
    knobs : tuple of (str, float)
        What this arm fixes; a grid may vary the others.
    trains : tuple of str
        Patterns of the names of parameters that are learnt; the others stay as they start.
    decays : tuple of str
        Patterns of the names of parameters that weight decay acts on.
    schedule : callable
        ``(step, steps) -> factor`` of the rate, defined at the top of a module.
    """

    name: str
    network: Network
    optimizer: str = "sgd"
    knobs: tuple[tuple[str, float], ...] = ()
    trains: tuple[str, ...] = ("*",)
    decays: tuple[str, ...] = ("*.weight",)
    schedule: Callable[[int, int], float] = constant

    def __post_init__(self) -> None:
        if self.optimizer not in {"sgd", "adam"}:
            raise ValueError(f"expected optimizer 'sgd' or 'adam', got {self.optimizer!r}")


@dataclass(frozen=True)
class Moment:
    """One network at one step of its training, for a probe to look at; nothing a probe does changes it.

    Attributes
    ----------
    network : Network
    parameters, buffers : dict of str to tensor
    knobs : mapping of str to scalar tensor
    noise : mapping of str to tensor
        Of the next training step.
    batch : (x, y)
        Of the next training step.
    data : Parts
        The whole dataset.
    rate : float
        Factor of ``knobs["lr"]`` at this step.
    trains : tuple of str
        Names of the parameters that are learnt.
    """

    network: Network
    parameters: Tensors
    buffers: Tensors
    knobs: Mapping[str, Tensor]
    noise: Mapping[str, Tensor]
    batch: tuple[Tensor, Tensor]
    data: Parts
    rate: float
    trains: tuple[str, ...]

    def forward(
        self, x: Tensor, *, training: bool, parameters: Mapping[str, Tensor] | None = None, trace: Tensors | None = None
    ) -> Tensor:
        """Logits for ``x``; with ``training``, as the batch of a step (and with its noise)."""
        run = Pass(training, self.knobs, self.noise if training else {}, dict(self.buffers), trace)
        return self.network(self.parameters if parameters is None else parameters, x, run)

    def loss(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """The training loss on the batch of the next step."""
        x, y = self.batch
        return nnf.cross_entropy(self.forward(x, training=True, parameters=parameters), y)

    def gradients(self, parameters: Mapping[str, Tensor] | None = None) -> Tensors:
        """Of :meth:`loss`, with respect to what is learnt."""
        everything = dict(self.parameters if parameters is None else parameters)
        learnt = {name: everything[name] for name in self.trains}
        return grad_and_value(lambda some: self.loss({**everything, **some}))(learnt)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Probe:
    """What to write down, and when.

    Attributes
    ----------
    name : str
        Under which the values stand in the outcome (a probe that gives several adds ``".name"``).
    measure : callable
        ``(moment) -> tensor``, or a dictionary of tensors, for ONE network; defined at the top of a module.
    at : tuple of int
        Before which steps (0: as it starts; ``steps``: at the end); negative numbers count from the end, -1 being it.
    options : tuple of (str, value)
        Further arguments of ``measure``.
    """

    name: str
    measure: Callable[..., Tensor | Mapping[str, Tensor]]
    at: tuple[int, ...] = (-1,)
    options: tuple[tuple[str, object], ...] = ()

    def steps(self, steps: int) -> tuple[int, ...]:
        """The steps of ``at`` in a training of ``steps``, in order, each once."""
        wanted = sorted({step if step >= 0 else steps + 1 + step for step in self.at})
        return tuple(step for step in wanted if 0 <= step <= steps)


@dataclass(frozen=True)
class Task:
    """What one call of :func:`train` does: replicas of one arm.

    Attributes
    ----------
    data : Data
    arm : Arm
    replicas : tuple of (seed, knobs)
        Each replica's seed and the knobs that the grid gives it, as a tuple of (name, value).
    steps, batch_size : int
    probes : tuple of Probe
    order : callable
        See :class:`bnlearn.lab.Order`.
    """

    data: Data
    arm: Arm
    replicas: tuple[tuple[int, tuple[tuple[str, float], ...]], ...]
    steps: int
    batch_size: int
    probes: tuple[Probe, ...] = ()
    order: Order = field(default=shuffled)


def _matching(names: Mapping[str, Any], patterns: tuple[str, ...], what: str) -> tuple[str, ...]:
    chosen = tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))
    if not chosen and patterns:
        raise ValueError(f"expected {what} to match a parameter, got {patterns}; there are {', '.join(names)}")
    return chosen


def _stacked(rows: list[Tensors]) -> Tensors:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class _Optimizer:
    """SGD and Adam as PyTorch's, with a rate, momentum and decay for each replica."""

    def __init__(self, arm: Arm, knobs: Tensors, decays: frozenset[str]) -> None:
        self.adam = arm.optimizer == "adam"
        self.knobs, self.decays = knobs, decays
        self.first: Tensors = {}
        self.second: Tensors = {}
        self.count = 0

    def _knob(self, name: str, like: Tensor) -> Tensor:
        return self.knobs[name].reshape(-1, *[1] * (like.ndim - 1))

    def step(self, parameters: Tensors, gradients: Tensors, factor: float) -> Tensors:
        """The learnt parameters after one more step."""
        self.count += 1
        return {name: self._moved(name, parameters[name], gradient, factor) for name, gradient in gradients.items()}

    def _moved(self, name: str, parameter: Tensor, gradient: Tensor, factor: float) -> Tensor:
        rate = self._knob("lr", parameter) * factor
        if name in self.decays and "weight_decay" in self.knobs:
            gradient = gradient + self._knob("weight_decay", parameter) * parameter
        if self.adam:
            first = torch.lerp(gradient, self.first[name], 0.9) if self.count > 1 else 0.1 * gradient
            square = gradient * gradient
            second = torch.lerp(square, self.second[name], 0.999) if self.count > 1 else 0.001 * square
            self.first[name], self.second[name] = first, second
            root = (second / (1 - 0.999**self.count)).sqrt() + 1e-8
            return parameter - rate * (first / (1 - 0.9**self.count)) / root
        if "momentum" in self.knobs:
            if self.count > 1:
                gradient = self._knob("momentum", parameter) * self.first[name] + gradient
            self.first[name] = gradient
        return parameter - rate * gradient


class _Knobs(Mapping[str, Any]):
    """The knobs of one network. It notes what is asked for, and a missing one is an error that says what to do."""

    def __init__(self, values: Mapping[str, Any], asked: set[str]) -> None:
        self._values, self._asked = values, asked

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        if name not in self._values:
            raise KeyError(f"expected a knob {name!r}: set it in the arm or the grid; there are {[*self._values]}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Noise:
    """Uniform numbers for each replica and step, drawn once for each seed."""

    def __init__(self, network: Network, samples: int, seeds: list[int]) -> None:
        self.shapes = network.noise(samples)
        self.unique = {seed: place for place, seed in enumerate(dict.fromkeys(seeds))}
        self.places = torch.tensor([self.unique[seed] for seed in seeds])
        self.generators = [torch.Generator().manual_seed(2**32 + seed) for seed in self.unique]

    def draw(self) -> Tensors:
        return {
            name: torch.stack([torch.rand(shape, generator=g) for g in self.generators])[self.places]
            for name, shape in self.shapes.items()
        }


def _knob_tensors(task: Task) -> Tensors:
    rows = [dict(task.arm.knobs) | dict(knobs) for _, knobs in task.replicas]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if any(set(row) != set(names) for row in rows):
        raise ValueError(f"expected the same knobs for every replica, got {[sorted(row) for row in rows]}")
    if "lr" not in names:
        raise ValueError(f"expected a knob 'lr' from the arm {task.arm.name!r} or the grid, got {names}")
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in names}


class _Training:
    """The replicas of a task on their way, from step to step."""

    def __init__(self, task: Task) -> None:
        arm, network = task.arm, task.arm.network
        self.task, self.network = task, network
        self.data = task.data.load()
        labels = self.data.train.y.numpy()
        if not 1 <= task.batch_size <= len(labels):
            raise ValueError(
                f"expected batch_size from 1 to {len(labels)}, the training samples, got {task.batch_size}"
            )
        self.knobs = _knob_tensors(task)
        self.asked = {"lr", "weight_decay"} | ({"momentum"} if arm.optimizer == "sgd" else set())
        seeds = [seed for seed, _ in task.replicas]
        rows = [
            network.parameters(torch.Generator().manual_seed(seed), _Knobs(dict(arm.knobs) | dict(given), self.asked))
            for seed, given in task.replicas
        ]
        self.parameters = _stacked(rows)
        self.buffers = _stacked([network.buffers()] * len(seeds))
        self.learnt = _matching(self.parameters, arm.trains, "trains")
        self.optimizer = _Optimizer(arm, self.knobs, frozenset(_matching(self.parameters, arm.decays, "decays")))
        self.noise_of = _Noise(network, task.batch_size, seeds)
        orders = [
            torch.from_numpy(task.order(labels, task.batch_size, task.steps + 1, np.random.default_rng(seed)))
            for seed in self.noise_of.unique
        ]
        self.order = torch.stack(orders)
        self.step_of = vmap(grad_and_value(self._loss, has_aux=True))

    def turn(self, step: int) -> None:
        """Make ready the batch, the noise and the rate of a step."""
        chosen = self.order[:, step][self.noise_of.places]
        self.batch = self.data.train.x[chosen], self.data.train.y[chosen]
        self.noise = self.noise_of.draw()
        self.factor = self.task.arm.schedule(step, self.task.steps)

    def advance(self) -> Tensor:
        """Take the step; the loss of each replica before it."""
        moving = {name: self.parameters[name] for name in self.learnt}
        fixed = {name: value for name, value in self.parameters.items() if name not in moving}
        given = (moving, fixed, self.buffers, *self.batch, self.knobs, self.noise)
        gradients, (loss, self.buffers) = self.step_of(*given)
        self.parameters = fixed | self.optimizer.step(moving, gradients, self.factor)
        return loss  # type: ignore[no-any-return]

    def _loss(
        self, learnt: Tensors, fixed: Tensors, buffers: Tensors, x: Tensor, y: Tensor, knobs: Tensors, noise: Tensors
    ) -> tuple[Tensor, Tensors]:
        run = Pass(True, _Knobs(knobs, self.asked), noise, dict(buffers))
        return nnf.cross_entropy(self.network({**fixed, **learnt}, x, run), y), run.buffers

    def look(self, probe: Probe) -> Tensors:
        """What a probe says of each replica before the step."""

        def one(p: Tensors, b: Tensors, k: Tensors, u: Tensors, x: Tensor, y: Tensor) -> Tensors:
            knobs = _Knobs(k, self.asked)
            moment = Moment(self.network, p, b, knobs, u, (x, y), self.data, self.factor, self.learnt)
            value = probe.measure(moment, **dict(probe.options))
            if isinstance(value, Tensor):
                return {probe.name: value}
            return {f"{probe.name}.{name}": each for name, each in value.items()}

        looked: Tensors = vmap(one)(self.parameters, self.buffers, self.knobs, self.noise, *self.batch)
        return {name: value.detach().to(torch.float32) for name, value in looked.items()}


def train(task: Task) -> dict[str, NDArray[np.float32]]:
    """Train the replicas of ``task``, all at once.

    Returns
    -------
    dict of str to array
        ``"loss"``, shape (replicas, steps): the loss on each step's batch, before the step. And for each probe an array
        (replicas, times, ...).
    """
    training = _Training(task)
    due = {probe.name: probe.steps(task.steps) for probe in task.probes}
    losses = torch.empty(len(task.replicas), task.steps)
    seen: dict[str, list[Tensor]] = {}
    for step in range(task.steps + 1):
        training.turn(step)
        for probe in task.probes:
            if step in due[probe.name]:
                for name, value in training.look(probe).items():
                    seen.setdefault(name, []).append(value)
        if step < task.steps:
            losses[:, step] = training.advance()
    outcome = {name: torch.stack(values, 1) for name, values in seen.items()}
    return {name: value.numpy() for name, value in {"loss": losses, **outcome}.items()}


def rehearse(task: Task) -> set[str]:
    """Take every probe of ``task`` and one step, with one replica: what is wrong shows before it has cost a training.

    Returns
    -------
    set of str
        The names of the knobs that were asked for.
    """
    training = _Training(replace(task, replicas=task.replicas[:1]))
    training.turn(0)
    for probe in task.probes:
        training.look(probe)
    training.advance()
    return training.asked
