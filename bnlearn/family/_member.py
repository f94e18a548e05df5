"""What the registry says of a method, and what can be found out by running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnlearn import functional
from bnlearn.family._counting import Tally, unwrap
from bnlearn.family._trees import Tree, convert, leaves
from bnlearn.layers import Layer


@dataclass(frozen=True)
class Example:
    r"""Small random arguments of a function of the family.

    Attributes
    ----------
    arrays : mapping of str to array
        By the name of the argument; the first is what is normalised. A sequence of arrays stands for one, in shards
        along its first axis.
    options : mapping of str
        The other arguments.
    gradients : tuple of str
        Of which arrays the backward function returns the gradients, in its order.
    axes : tuple of str
        The names of the axes of the first array: (N, C, \*spatial) is N, C, L with one spatial axis.
    exact : mapping of str, or None
        Options with which the backward pass is the derivative of the forward pass; None if the method defines another.
    sizes : mapping of int to str
        The letters of lengths that the first array does not have.
    """

    arrays: Mapping[str, Tree]
    options: Mapping[str, Any] = field(default_factory=dict)
    gradients: tuple[str, ...] = ("x", "gamma", "beta")
    axes: tuple[str, ...] = ("N", "C", "L")
    exact: Mapping[str, Any] | None = field(default_factory=dict)
    sizes: Mapping[int, str] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The name of the first array."""
        return next(iter(self.arrays))


class Cost(NamedTuple):
    """Arithmetic operations for each value of x, and how often all of x is reduced to a statistic before going on."""

    forward: float
    backward: float
    passes: float


@dataclass(frozen=True)
class Member:
    """A method of the family.

    Attributes
    ----------
    name : str
        Of the function in :mod:`bnlearn.functional`.
    title : str
        What it is called.
    acts_on : str
        ``"activations"``, ``"weights"``, ``"statistics"`` (at inference), ``"sequences"`` or ``"processes"``.
    over : tuple of str
        The axes whose values share a statistic, whole (``"N"``) or in parts (``"part of C"``).
    learned : tuple of str
        Which of the example's arrays are learnt.
    depends_on_batch : bool
        Whether, in training, the output for a sample depends on the others.
    modes_differ : bool
        Whether training and inference compute something different.
    paper : str
        A key of the book's bibliography.
    example : callable
        ``example(rng, length=5)``: an :class:`Example`, ``length`` long in its last axis.
    layer : callable or None
        Makes the NumPy layer, for x as in the example.
    torch, keras : str
        Where a module or a layer is to be had, as a dotted name: the framework's own wherever it has one.
    mixes : bool
        Whether the function does more than normalise (a recurrent network): along other axes too, an output depends on
        other inputs than its own, and :func:`probe_axes` finds more than the statistics are taken over.
    call : callable or None
        What to call instead of the function, where it gives no output itself but what one is computed with.
    """

    name: str
    title: str
    acts_on: str
    over: tuple[str, ...]
    learned: tuple[str, ...]
    depends_on_batch: bool
    modes_differ: bool
    paper: str
    example: Callable[..., Example]
    layer: Callable[[], Layer] | None
    torch: str
    keras: str
    mixes: bool = False
    call: Callable[..., Any] | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """The forward function, ``(y, cache)`` from the example's arrays and options."""
        if self.call is not None:
            return self.call
        found: Callable[..., Any] = getattr(functional, self.name)
        return found

    @property
    def backward(self) -> Callable[..., Any] | None:
        """The backward function; None where nothing is learnt through it."""
        return getattr(functional, f"{self.name}_backward", None)

    @property
    def numpy(self) -> str:
        """Where the NumPy layer lives, as a dotted name; empty where there is none."""
        return f"bnlearn.layers.{type(self.layer()).__name__}" if self.layer else ""

    def __call__(self, arrays: Mapping[str, Tree], options: Mapping[str, Any]) -> tuple[Tree, Any]:
        """The output and the cache for these arguments."""
        output, cache = self.function(**arrays, **options)
        return output, cache

    def shapes(self) -> dict[str, str]:
        """Learned parameter -> its shape in letters, such as ``"(C,)"``, read off the example."""
        example = self.example(np.random.default_rng(0))
        subject = joined(example.arrays[example.subject])
        letters = {**example.sizes, **dict(zip(subject.shape, example.axes, strict=True))}
        found = {}
        for name in self.learned:
            sizes = [letters.get(size, str(size)) for size in np.shape(example.arrays[name])]
            found[name] = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        return found


def joined(tree: Tree) -> NDArray[Any]:
    """The array that a tree of shards stands for."""
    return np.concatenate([np.asarray(array) for array in tree]) if isinstance(tree, tuple | list) else np.asarray(tree)


def influence(member: Member, rng: np.random.Generator, *, trials: int = 2) -> NDArray[np.bool_]:
    r"""Which elements of the output depend on which of the input: found by changing the inputs one at a time.

    Returns
    -------
    influence : array of bool, shape (\*y.shape, \*x.shape)
        Whether ``y[i]`` has changed with ``x[j]``, by more than rounding, in one of the ``trials``.
    """
    found: NDArray[np.bool_] | None = None
    for _ in range(trials):
        example = member.example(rng)
        subject = example.arrays[example.subject]
        shape = joined(subject).shape

        def output(values: NDArray[Any], example: Example = example, subject: Tree = subject) -> NDArray[Any]:
            start = 0
            parts = []
            for leaf in leaves(subject):
                parts.append(values[start : start + leaf.size].reshape(leaf.shape))
                start += leaf.size
            x = tuple(parts) if isinstance(subject, tuple | list) else parts[0]
            return joined(member({**example.arrays, example.subject: x}, example.options)[0])

        flat = joined(subject).ravel()
        still = output(flat)
        changed = np.zeros((still.size, flat.size), dtype=bool)
        for j in range(flat.size):
            moved = flat.copy()
            moved[j] += 0.5
            changed[:, j] = np.abs(output(moved) - still).ravel() > 1e-10
        changed = changed.reshape(*still.shape, *shape)
        found = changed if found is None else found | changed
    assert found is not None
    return found


def footprint(member: Member, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The inputs that one output, near the middle of x, depends on: array of bool, shape of x."""
    depends = influence(member, rng)
    middle = tuple(size // 2 for size in depends.shape[: depends.ndim // 2])
    return np.asarray(depends[middle])


def probe_axes(member: Member, rng: np.random.Generator) -> tuple[str, ...]:
    """``Member.over`` as it is: the axes along which an output depends on other values than its own."""
    used = footprint(member, rng)
    found = []
    for axis, letter in enumerate(member.example(rng).axes):
        extent = int(used.any(axis=tuple(other for other in range(used.ndim) if other != axis)).sum())
        if extent > 1:
            found.append(letter if extent == used.shape[axis] else f"part of {letter}")
    return tuple(found)


def probe_batch(member: Member, rng: np.random.Generator) -> bool:
    """``Member.depends_on_batch`` as it is: whether another sample's values change the output for a sample."""
    axes = member.example(rng).axes
    if "N" not in axes:
        return False
    depends = influence(member, rng)
    half = depends.ndim // 2
    n = axes.index("N")
    between = np.asarray(np.moveaxis(depends, (n, half + n), (0, 1)).any(axis=tuple(range(2, depends.ndim))))
    return bool(between[~np.eye(between.shape[0], dtype=np.bool_)].any())


def probe_modes(member: Member, rng: np.random.Generator) -> bool:
    """``Member.modes_differ`` as it is: whether the NumPy layer's output changes with its mode.

    For another batch than the one before: a layer may remember just this one.
    """
    if member.layer is None:
        raise ValueError(f"expected a method with a layer, got {member.name}, which is a function only")
    layer = member.layer()
    example = member.example(rng)
    x = joined(example.arrays[example.subject])
    if member.acts_on == "weights":
        x = rng.standard_normal(x.shape[:2])
    layer(x)
    other = 2 * x[::-1] + 0.5
    inference = layer.eval()(other)
    return not np.allclose(layer.train()(other), inference, rtol=1e-10, atol=1e-10)


def cost(member: Member, *, length: int = 400) -> Cost:
    """What a forward and a backward pass of the formula take, counted while they run.

    Element-wise operations, comparisons and selections count one for each element of their result, whatever they are
    (a square root as much as a sum), sums and means one for each element that goes in, an (m, k) by (k, n) matrix
    product 2 m k n. It is arithmetic, not time: what memory traffic costs is another question.
    """
    example = member.example(np.random.default_rng(0), length=length)
    size = joined(example.arrays[example.subject]).size
    tally = Tally()
    output, cache = member(tally.wrap(example.arrays), example.options)
    forward, passes = tally.operations, tally.reduced
    if member.backward is None:
        return Cost(forward / size, float("nan"), passes / size)
    tally.operations = 0
    ones = convert(lambda y: tally.wrap(np.ones_like(unwrap(y))), output)
    member.backward(ones, cache)
    return Cost(forward / size, tally.operations / size, passes / size)
