"""Small random arguments for every function of the family: scales of either sign, shifts and statistics not zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnlearn.family._member import Example

N, C, GROUPS, HIDDEN = 4, 6, 2, 3
"""Samples, channels, groups and hidden units; the spatial axis is 5 long: no two axes are of one length."""

Rng = np.random.Generator


def _scale(rng: Rng, *shape: int) -> NDArray[Any]:
    return np.asarray(rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape))


def _batch(rng: Rng, length: int) -> NDArray[Any]:
    return 1.0 + 2.0 * rng.standard_normal((N, C, length))


def channels(rng: Rng, length: int = 5, **options: Any) -> Example:
    """A batch with a scale and a shift per channel."""
    arrays = {"x": _batch(rng, length), "gamma": _scale(rng, C), "beta": rng.standard_normal(C)}
    return Example(arrays, options)


def grouped(rng: Rng, length: int = 5) -> Example:
    """The same, in groups of channels."""
    return channels(rng, length, groups=GROUPS)


def ghosts(rng: Rng, length: int = 5) -> Example:
    """The same, in ghosts of two samples."""
    return channels(rng, length, ghost_size=2)


def only_x(rng: Rng, length: int = 5) -> Example:
    """A batch, and nothing to learn."""
    return Example({"x": _batch(rng, length)}, gradients=("x",))


def per_sample(rng: Rng, length: int = 5) -> Example:
    """A scale and a shift per element of a sample."""
    gamma, beta = _scale(rng, C, length), rng.standard_normal((C, length))
    return Example({"x": _batch(rng, length), "gamma": gamma, "beta": beta})


def root_mean_square(rng: Rng, length: int = 5) -> Example:
    """A scale per element of a sample."""
    return Example({"x": _batch(rng, length), "gamma": _scale(rng, C, length)}, gradients=("x", "gamma"))


def running(rng: Rng, length: int = 5, exact: dict[str, Any] | None = None, **options: Any) -> Example:
    """Scale, shift, and running statistics that are not the batch's, without a gradient."""
    example = channels(rng, length)
    statistics = {"mean": rng.standard_normal(C), "var": rng.uniform(1.0, 5.0, C)}
    return Example({**example.arrays, **statistics}, options, exact=exact)


def renorm(rng: Rng, length: int = 5) -> Example:
    """Clipped, or the forward pass would not depend on the batch; with the tightest limits it is batch norm."""
    return running(rng, length, {"r_max": 1.0, "d_max": 0.0}, r_max=1.1, d_max=0.1)


def full(rng: Rng, length: int = 5) -> Example:
    """The gradient is defined by the method; where the new batch is all that counts, it is batch norm's."""
    return running(rng, length, {"momentum": 1.0}, momentum=0.3)


def weighing(rng: Rng, length: int = 5) -> Example:
    """The sample's own statistics at a weight of 0.3."""
    return running(rng, length, {}, weight=0.3)


def adapted(rng: Rng, length: int = 5) -> Example:
    """The source's statistics count for three samples."""
    return running(rng, length, {}, prior=3.0)


def response(rng: Rng, length: int = 5) -> Example:
    """With a learned eps, one of them negative: its absolute value counts."""
    example = channels(rng, length)
    eps = 0.1 * _scale(rng, C)
    return Example({**example.arrays, "eps": eps}, gradients=("x", "gamma", "beta", "eps"))


def threshold(rng: Rng, length: int = 5) -> Example:
    """Thresholds among the values."""
    return Example({"x": _batch(rng, length), "tau": rng.standard_normal(C)}, gradients=("x", "tau"))


def gated(rng: Rng, length: int = 5) -> Example:
    """With the steepness of the gate."""
    example = grouped(rng, length)
    arrays = {**example.arrays, "v": _scale(rng, C)}
    return Example(arrays, example.options, gradients=("x", "gamma", "beta", "v"))


def bent(rng: Rng, length: int = 5) -> Example:
    """With the slope at zero."""
    example = channels(rng, length)
    arrays = {**example.arrays, "alpha": rng.uniform(0.3, 0.8, 1)}
    return Example(arrays, gradients=("x", "alpha", "gamma", "beta"))


def styled(rng: Rng, length: int = 5) -> Example:
    """A content and a style of another size."""
    arrays = {"content": _batch(rng, length), "style": _batch(rng, length + 2)}
    return Example(arrays, gradients=("content", "style"))


def shards(rng: Rng, length: int = 5) -> Example:
    """Two shards of different sizes, two samples and three."""
    example = channels(rng, length)
    arrays = {"shards": (example.arrays["x"][:1], example.arrays["x"][1:])}
    arrays |= {name: example.arrays[name] for name in ("gamma", "beta")}
    return Example(arrays, gradients=("shards", "gamma", "beta"))


def _weight(rng: Rng, length: int, name: str, **others: Any) -> Example:
    weight = {name: rng.standard_normal((N, C, length)) + 0.3}
    return Example({**weight, **others}, gradients=(name, *others), axes=("O", "I", "K"))


def directions(rng: Rng, length: int = 5) -> Example:
    """A weight, and a length for each of its filters."""
    return _weight(rng, length, "v", g=_scale(rng, N, 1, 1))


def filters(rng: Rng, length: int = 5) -> Example:
    """A weight, and a gain for each of its filters."""
    return _weight(rng, length, "w", gain=_scale(rng, N, 1, 1))


def singular(rng: Rng, length: int = 5) -> Example:
    """A weight and its vectors after a round; without another round they are constants in truth, not by decree."""
    u, v = rng.standard_normal(N), rng.standard_normal(C * length)
    weight = rng.standard_normal((N, C, length))
    arrays = {"w": weight, "u": u / np.linalg.norm(u), "v": v / np.linalg.norm(v)}
    return Example(arrays, {"iterations": 1}, ("w",), ("O", "I", "K"), {"iterations": 0})


def _sequence(rng: Rng, length: int, gates: int, cell: bool, **options: Any) -> Example:
    rows = gates * HIDDEN
    arrays = {
        "x": 1.0 + 2.0 * rng.standard_normal((N, length, C)),
        "weight_ih": 0.4 * rng.standard_normal((rows, C)),
        "weight_hh": 0.4 * rng.standard_normal((rows, HIDDEN)),
        "bias": 0.5 * rng.standard_normal(rows),
        "gamma_ih": 0.5 * _scale(rng, rows),
        "gamma_hh": 0.5 * _scale(rng, rows),
    }
    if cell:
        arrays |= {"gamma_c": _scale(rng, HIDDEN), "beta_c": rng.standard_normal(HIDDEN)}
    # At the first step the hidden state is zero for all: eps keeps the variance of that away from 0 in the differences.
    sizes = {HIDDEN: "H", rows: "H" if gates == 1 else f"{gates}H"}
    return Example(arrays, {"eps": 1e-3, **options}, tuple(arrays), ("N", "L", "C"), sizes=sizes)


def steps_rnn(rng: Rng, length: int = 5) -> Example:
    """Sequences, with statistics for each step."""
    return _sequence(rng, length, 1, cell=False, per_step=True)


def steps_lstm(rng: Rng, length: int = 5) -> Example:
    """Sequences through four gates and a cell, with statistics for each step."""
    return _sequence(rng, length, 4, cell=True, per_step=True)


def sequences(rng: Rng, length: int = 5) -> Example:
    """Sequences through four gates and a cell, each step of each by itself."""
    return _sequence(rng, length, 4, cell=True)
