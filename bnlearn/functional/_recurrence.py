"""One recurrence under every recurrent network here: a cell, and what is done at each of the three sites of a norm.

The sites are ``"ih"``, the projection of the input; ``"hh"``, that of the hidden state; ``"c"``, the LSTM's cell before
its tanh. The first needs no state: it is normalised for the whole sequence at once, in front of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple, TypeAlias

from bnlearn._arrays import Array, Namespace, namespace, widen
from bnlearn.functional._core import check_upstream
from bnlearn.functional.axes import NormCache, layer_norm, layer_norm_backward
from bnlearn.functional.batch import BatchNormCache, batch_norm, batch_norm_backward
from bnlearn.functional.steps import StepStatistics

State: TypeAlias = tuple[Array, ...]
Normalise: TypeAlias = Callable[..., tuple[Array, Any]]
"""``(a, gamma, beta, step) -> (y, cache)``; a is (N, C) at one step, or (N, L, C) at the input site."""


class Weights(NamedTuple):
    """The parameters of a recurrent network; the gradients come in the same order."""

    ih: Array
    hh: Array
    bias: Array | None = None
    gamma_ih: Array | None = None
    gamma_hh: Array | None = None
    gamma_c: Array | None = None
    beta_c: Array | None = None


class RecurrentGradients(NamedTuple):
    """What a backward pass through time gives. None where the network has no such part.

    Attributes
    ----------
    x : array, shape (N, L, F)
        Zero at padded steps.
    weight_ih, weight_hh, bias, gamma_ih, gamma_hh, gamma_c, beta_c : array or None
        Of the shapes of the parameters, also of those that were not given but stood for ones or zeros.
    h, c : array, shape (N, H), or None
        With respect to the initial state.
    """

    x: Array
    weight_ih: Array
    weight_hh: Array
    bias: Array
    gamma_ih: Array | None
    gamma_hh: Array | None
    gamma_c: Array | None
    beta_c: Array | None
    h: Array
    c: Array | None


class RecurrentCache(NamedTuple):
    """What a recurrent network leaves for its backward pass, and the two things that its caller wants besides ``y``.

    Attributes
    ----------
    state : tuple of array, shape (N, H)
        The state after the last step: ``(h,)``, or ``(h, c)`` of an LSTM.
    statistics : dict of str to StepStatistics
        What this batch was normalised by, per site (``"ih"``, ``"hh"``, ``"c"``); empty in the inference form and
        where nothing is taken over the batch. It is what the inference form takes.
    x, weights, projected, steps, mask
        For the backward pass.
    """

    state: State
    statistics: dict[str, StepStatistics]
    x: Array
    weights: Weights
    projected: Any
    steps: list[Any]
    mask: Array | None


class Sites(NamedTuple):
    """The normaliser as a part: what happens at each site. None: nothing."""

    ih: Normalise | None = None
    hh: Normalise | None = None
    c: Normalise | None = None


def by_layer(eps: float) -> Normalise:
    """Layer normalisation over the features, at every step of every sequence by itself."""
    return lambda a, gamma, beta, step: layer_norm(a, gamma, beta, axes=(-1,), eps=eps)


def by_batch(eps: float, mask: Array | None, given: tuple[Array, Array] | None) -> Normalise:
    """Batch normalisation over the sequences of one time step; beyond the last given row, by the last one."""

    def normalise(a: Array, gamma: Array | None, beta: Array | None, step: int) -> tuple[Array, BatchNormCache]:
        if given is None:
            return batch_norm(a, gamma, beta, mask=None if mask is None else mask[:, step, ...], eps=eps)
        row = min(step, given[0].shape[0] - 1)
        return batch_norm(a, gamma, beta, mean=given[0][row, ...], var=given[1][row, ...], eps=eps)

    return normalise


def every_step(normalise: Normalise) -> Normalise:
    """What is done to (N, C) at one step, done to (N, L, C) at all of them, one after the other."""

    def over_steps(a: Array, gamma: Array | None, beta: Array | None, step: int) -> tuple[Array, list[Any]]:
        done = [normalise(a[:, t, ...], gamma, beta, t) for t in range(a.shape[1])]
        return namespace(a).stack([y for y, _ in done], axis=1), [cache for _, cache in done]

    return over_steps


def shared(eps: float, mask: Array | None, given: tuple[Array, Array] | None) -> Normalise:
    """Batch normalisation over the sequences and all their steps together."""

    def normalise(a: Array, gamma: Array | None, beta: Array | None, step: int) -> tuple[Array, BatchNormCache]:
        if given is None:
            real = None if mask is None else namespace(mask).reshape(mask, (-1,))
            y, cache = batch_norm(flatten(a), gamma, beta, mask=real, eps=eps)
        else:
            y, cache = batch_norm(flatten(a), gamma, beta, mean=given[0][0, ...], var=given[1][0, ...], eps=eps)
        return namespace(a).reshape(y, (-1, *a.shape[1:])), cache

    return normalise


def flatten(a: Array) -> Array:
    """(N, L, C) as (N L, C)."""
    return namespace(a).reshape(a, (-1, a.shape[-1]))


def undo(dy: Array, cache: Any) -> tuple[Array, Array | None, Array | None]:
    """The gradients ``(da, dgamma, dbeta)`` through whatever left this cache at a site."""
    if cache is None:
        return dy, None, None
    if isinstance(cache, NormCache):
        return layer_norm_backward(dy, cache)
    xp = namespace(dy)
    if isinstance(cache, list):
        done = [undo(dy[:, t, ...], each) for t, each in enumerate(cache)]
        da, dgamma, dbeta = zip(*done, strict=True)
        return xp.stack(da, axis=1), reduce(add, dgamma), reduce(add, dbeta)
    da, dgamma, dbeta = batch_norm_backward(flatten(dy), cache)
    return xp.reshape(da, (-1, *dy.shape[1:])), dgamma, dbeta


def sigmoid(xp: Namespace, z: Array) -> Array:
    """The logistic function; as a tanh it cannot overflow."""
    return 0.5 * xp.tanh(0.5 * z) + 0.5


class Cell(NamedTuple):
    """A cell: ``forward(xp, z, state, normalise_c) -> (state, saved)`` and its backward pass.

    ``backward(xp, dstate, saved) -> (dz, what flows to the states before other than through z, dgamma_c, dbeta_c)``.
    """

    gates: int
    states: int
    forward: Callable[..., tuple[State, Any]]
    backward: Callable[..., tuple[Array, State, Array | None, Array | None]]


def _rnn_forward(xp: Namespace, z: Array, state: State, normalise: Normalise) -> tuple[State, Any]:
    h = xp.tanh(z)
    return (h,), h


def _rnn_backward(xp: Namespace, dstate: State, h: Any) -> tuple[Array, State, None, None]:
    return dstate[0] * (1 - h * h), (), None, None


def _lstm_forward(xp: Namespace, z: Array, state: State, normalise: Normalise) -> tuple[State, Any]:
    size = z.shape[-1] // 4
    i, f, g, o = (z[:, k * size : (k + 1) * size] for k in range(4))
    i, f, o, g = sigmoid(xp, i), sigmoid(xp, f), sigmoid(xp, o), xp.tanh(g)
    c = f * state[1] + i * g
    normalised, cache = normalise(c)
    t = xp.tanh(normalised)
    return (o * t, c), (i, f, g, o, state[1], t, cache)


def _lstm_backward(xp: Namespace, dstate: State, saved: Any) -> tuple[Array, State, Array | None, Array | None]:
    i, f, g, o, before, t, cache = saved
    dc, dgamma, dbeta = undo(dstate[0] * o * (1 - t * t), cache)
    dc = dc + dstate[1]
    gates = (dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dstate[0] * t * o * (1 - o))
    return xp.concat(gates, axis=-1), (dc * f,), dgamma, dbeta


RNN = Cell(1, 1, _rnn_forward, _rnn_backward)
LSTM = Cell(4, 2, _lstm_forward, _lstm_backward)


def project(xp: Namespace, a: Array, weight: Array) -> Array:
    """``a @ weight.T``, in the precision of ``a`` (autocast would lower it, and the statistics with it)."""
    return xp.astype(xp.matmul(a, xp.permute_dims(xp.astype(weight, a.dtype), (1, 0))), a.dtype)


def unroll(
    x: Array, weights: Weights, cell: Cell, sites: Sites, state: Sequence[Array] | None, mask: Array | None
) -> tuple[Array, RecurrentCache]:
    """Run the cell along axis 1 of x: the hidden states (N, L, H), and the cache."""
    xp = namespace(x, *weights, *(state or ()), mask)
    check(xp, x, weights, cell, state, mask)
    wide = widen(xp, x)
    if mask is not None:
        mask = xp.reshape(mask, (*_known(mask.shape), 1))
        wide = xp.where(mask, wide, xp.zeros_like(wide))
    weights = Weights(*(None if w is None else xp.astype(w, wide.dtype) for w in weights))
    zeros = xp.zeros_like(wide[:, 0, :1]) + xp.zeros_like(weights.hh[:1, :])
    now = (zeros,) * cell.states if state is None else tuple(xp.astype(s, wide.dtype) for s in state)

    def at(site: Normalise | None, a: Array, gamma: Array | None, beta: Array | None, t: int) -> tuple[Array, Any]:
        return (a, None) if site is None else site(a, gamma, beta, t)

    inputs, projected = at(sites.ih, project(xp, wide, weights.ih), weights.gamma_ih, None, 0)
    outputs, steps = [], []
    for t in range(x.shape[1]):
        hidden, cache = at(sites.hh, project(xp, now[0], weights.hh), weights.gamma_hh, None, t)
        z = inputs[:, t, ...] + hidden
        if weights.bias is not None:
            z = z + weights.bias

        def normalise_c(c: Array, t: int = t) -> tuple[Array, Any]:
            return at(sites.c, c, weights.gamma_c, weights.beta_c, t)

        after, saved = cell.forward(xp, z, now, normalise_c)
        steps.append((now[0], cache, saved))
        now = (
            after if mask is None else tuple(xp.where(mask[:, t, ...], *pair) for pair in zip(after, now, strict=True))
        )
        outputs.append(now[0])
    last = tuple(xp.astype(s, x.dtype) for s in now)
    cache = RecurrentCache(last, {}, wide, weights, projected, steps, mask)
    return xp.astype(xp.stack(outputs, axis=1), x.dtype), cache


def unroll_backward(dy: Array, cache: RecurrentCache, dstate: Sequence[Array] | None, cell: Cell) -> RecurrentGradients:
    """Backpropagation through time: the same loop from its end, then what was in front of it."""
    weights, like = cache.weights, cache.state[0]
    size = like.shape[-1]
    if tuple(dy.shape[1:]) != (len(cache.steps), size) or len(dy.shape) != 3:
        raise ValueError(
            f"expected dy of the shape of y, {(cache.x.shape[0], len(cache.steps), size)}, got {tuple(dy.shape)}"
        )
    if dstate is not None and len(dstate) != cell.states:
        raise ValueError(f"expected dstate of {cell.states} arrays, as the state, got {len(dstate)}")
    xp = namespace(dy, cache.x)
    wide = xp.astype(widen(xp, dy, "dy"), cache.x.dtype)
    nothing = xp.zeros_like(wide[:, 0, ...])
    flowing: State = (nothing,) * cell.states
    if dstate is not None:
        flowing = tuple(xp.astype(check_upstream(d, like, "dstate")[1], wide.dtype) for d in dstate)

    sums: dict[str, list[Array]] = {"weight_hh": [], "gamma_hh": [], "gamma_c": [], "beta_c": []}
    dz_all = []
    for t in reversed(range(len(cache.steps))):
        before, hidden, saved = cache.steps[t]
        flowing = (flowing[0] + wide[:, t, ...], *flowing[1:])
        skipped = None
        if cache.mask is not None:  # what was carried past this step flows past it
            real = cache.mask[:, t, ...]
            skipped = tuple(xp.where(real, xp.zeros_like(d), d) for d in flowing)
            flowing = tuple(xp.where(real, d, xp.zeros_like(d)) for d in flowing)
        dz, rest, dgamma_c, dbeta_c = cell.backward(xp, flowing, saved)
        da, dgamma_hh, _ = undo(dz, hidden)
        flowing = (xp.matmul(da, weights.hh), *rest)
        if skipped is not None:
            flowing = tuple(map(add, flowing, skipped))
        dz_all.append(dz)
        parts = (xp.matmul(xp.permute_dims(da, (1, 0)), before), dgamma_hh, dgamma_c, dbeta_c)
        for collected, part in zip(sums.values(), parts, strict=True):
            if part is not None:
                collected.append(part)

    dz = xp.stack(dz_all[::-1], axis=1)
    da, dgamma_ih, _ = undo(dz, cache.projected)
    summed = {name: reduce(add, collected) if collected else None for name, collected in sums.items()}
    return RecurrentGradients(
        x=xp.astype(xp.matmul(da, weights.ih), dy.dtype),
        weight_ih=xp.matmul(xp.permute_dims(flatten(da), (1, 0)), flatten(cache.x)),
        bias=xp.sum(dz, axis=(0, 1)),
        gamma_ih=dgamma_ih,
        **summed,
        h=xp.astype(flowing[0], dy.dtype),
        c=xp.astype(flowing[1], dy.dtype) if cell.states == 2 else None,
    )


def _known(shape: Sequence[Any]) -> tuple[int, ...]:
    """The shape with -1 for an unknown number of sequences."""
    return (shape[0] if isinstance(shape[0], int) else -1, *shape[1:])


def check(
    xp: Namespace, x: Array, weights: Weights, cell: Cell, state: Sequence[Array] | None, mask: Array | None
) -> None:
    """Raise unless every shape fits the others."""
    if len(x.shape) != 3:
        raise ValueError(
            f"expected x of shape (N, L, features), 3D, got shape {tuple(x.shape)}; from (N, C, L) swap the last two "
            "axes"
        )
    if not isinstance(x.shape[1], int) or x.shape[1] < 1:
        raise ValueError(f"expected a known number of time steps, at least 1, on axis 1 of x, got {tuple(x.shape)}")
    size, features = weights.hh.shape[-1], x.shape[2]
    gates = cell.gates * size
    expected = {"weight_ih": (gates, features), "weight_hh": (gates, size), "bias": (gates,)}
    expected |= {"gamma_ih": (gates,), "gamma_hh": (gates,), "gamma_c": (size,), "beta_c": (size,)}
    for (name, shape), array in zip(expected.items(), weights, strict=True):
        if array is not None and tuple(array.shape) != shape:
            raise ValueError(
                f"expected {name} of shape {shape} for x with shape {tuple(x.shape)} and {size} hidden units, got "
                f"shape {tuple(array.shape)}"
            )
    if state is not None:
        shapes = [tuple(s.shape) for s in state]
        if shapes != [(x.shape[0], size)] * cell.states:
            raise ValueError(
                f"expected state of {cell.states} arrays of shape {(x.shape[0], size)}, got shapes {shapes}"
            )
    if mask is not None:
        if not xp.isdtype(mask.dtype, "bool"):
            raise TypeError(
                f"expected mask of dtype bool, True where x is real, got {mask.dtype}; compare it, e.g. mask > 0"
            )
        if tuple(mask.shape) != tuple(x.shape[:2]):
            raise ValueError(f"expected mask of shape {tuple(x.shape[:2])}, (N, L), got {tuple(mask.shape)}")


def check_statistics(
    given: Mapping[str, Any] | None, widths: Mapping[str, int]
) -> dict[str, tuple[Array, Array] | None]:
    """The given mean and variance per site, or None for each where the batch is to be asked."""
    if given is None:
        return dict.fromkeys(widths)
    if set(given) != set(widths):
        raise ValueError(f"expected statistics for {', '.join(widths)}, got {', '.join(given) or 'none'}")
    for site, width in widths.items():
        for name, array in zip(("mean", "var"), given[site], strict=False):
            if len(array.shape) != 2 or array.shape[0] < 1 or array.shape[1] != width:
                raise ValueError(
                    f"expected the {name} of {site} of shape (steps, {width}), a row per time step, got shape "
                    f"{tuple(array.shape)}"
                )
    return {site: (given[site][0], given[site][1]) for site in widths}
