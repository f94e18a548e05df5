r"""Recurrent networks with a normaliser inside: forward, and backward through time.

Sequences are (N, L, F) here, L steps of F features: what ``torch.nn.LSTM(batch_first=True)`` and Keras take, and the
book's (N, C, L) with the last two axes swapped. Weights have PyTorch's shapes and its order of the gates (input,
forget, cell, output; Keras has the same); its two biases are one here, their sum.

At a step that the mask calls padding, the state is carried through unchanged, and no statistic knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnlearn._arrays import Array, namespace
from bnlearn.functional._core import check_eps
from bnlearn.functional._recurrence import (
    LSTM,
    RNN,
    Cell,
    RecurrentCache,
    RecurrentGradients,
    Sites,
    Weights,
    by_batch,
    by_layer,
    check,
    check_statistics,
    every_step,
    shared,
    unroll,
    unroll_backward,
)
from bnlearn.functional.steps import StepStatistics

__all__ = [
    "RecurrentCache",
    "RecurrentGradients",
    "batch_norm_lstm",
    "batch_norm_lstm_backward",
    "batch_norm_rnn",
    "batch_norm_rnn_backward",
    "layer_norm_lstm",
    "layer_norm_lstm_backward",
    "lstm",
    "lstm_backward",
    "rnn",
    "rnn_backward",
]

State = Sequence[Array]


def rnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    *,
    state: State | None = None,
    mask: Array | None = None,
) -> tuple[Array, RecurrentCache]:
    """The plain recurrent network ``h_t = tanh(W_ih x_t + W_hh h_(t-1) + b)``, as ``torch.nn.RNN``.

    Parameters
    ----------
    x : array, shape (N, L, F)
        N sequences of L steps of F features, real floating-point.
    weight_ih : array, shape (H, F)
        From the input to the H hidden units.
    weight_hh : array, shape (H, H)
        From one hidden state to the next.
    bias : array, shape (H,), optional
        None stands for zeros.
    state : tuple of one array, shape (N, H), optional
        ``(h_0,)``; zeros by default.
    mask : array of bool, shape (N, L), optional
        True where ``x`` is real. At a padded step the state is carried through unchanged, whatever x holds there.

    Returns
    -------
    y : array, shape (N, L, H)
        The hidden state after each step, of the dtype of ``x``.
    cache : RecurrentCache
        For :func:`rnn_backward`; ``cache.state`` is the state after the last step.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, ``x`` is not floating-point, or ``mask`` not boolean.
    ValueError
        If a shape does not fit, or the number of steps is zero or not known.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = rnn(np.ones((1, 2, 1)), np.array([[1.0]]), np.array([[0.5]]))
    >>> print(y[0, :, 0].round(4), cache.state[0].round(4))
    [0.7616 0.8811] [[0.8811]]
    """
    return unroll(x, Weights(weight_ih, weight_hh, bias), RNN, Sites(), state, mask)


def rnn_backward(dy: Array, cache: RecurrentCache, dstate: State | None = None) -> RecurrentGradients:
    """Gradients of a scalar loss through :func:`rnn` or :func:`batch_norm_rnn`: backpropagation through time.

    With ``d_t`` what arrives at ``h_t`` from ``dy`` and from step t + 1: ``dz_t = d_t (1 - h_t ** 2)``; at each site
    the normaliser's own backward pass takes ``dz_t`` to the projection; ``W_hh`` takes that to step t - 1. The
    parameters are the same at every step: their gradients are sums over the steps.

    Parameters
    ----------
    dy : array, shape (N, L, H)
        Gradient of the loss with respect to ``y``.
    cache : RecurrentCache
        From the forward pass.
    dstate : tuple of arrays, shape (N, H), optional
        Gradient with respect to the last state, where the loss looks at it besides ``y``.

    Returns
    -------
    RecurrentGradients
        ``x`` first; None for what the network does not have.

    Raises
    ------
    TypeError
        If ``dy`` is of another library than the cache, or not floating-point.
    ValueError
        If ``dy`` or ``dstate`` is not of the shape of what it is the gradient of.
    """
    return unroll_backward(dy, cache, dstate, RNN)


def lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    *,
    state: State | None = None,
    mask: Array | None = None,
) -> tuple[Array, RecurrentCache]:
    """The plain long short-term memory, as ``torch.nn.LSTM``: the gates ``(i, f, g, o) = W_ih x_t + W_hh h_(t-1) + b``.

    ``c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g)``; ``h_t = sigmoid(o) tanh(c_t)``. Arguments, result and errors as
    :func:`rnn`, with four times as many rows in the weights, (4H, F) and (4H, H), and ``state = (h_0, c_0)``.

    Examples
    --------
    >>> import numpy as np
    >>> y, cache = lstm(np.ones((1, 2, 1)), np.ones((4, 1)), np.zeros((4, 1)))
    >>> print(y[0, :, 0].round(4), cache.state[1].round(4))
    [0.3696 0.5453] [[0.9638]]
    """
    return unroll(x, Weights(weight_ih, weight_hh, bias), LSTM, Sites(), state, mask)


def lstm_backward(dy: Array, cache: RecurrentCache, dstate: State | None = None) -> RecurrentGradients:
    """Gradients through :func:`lstm`, :func:`layer_norm_lstm` or :func:`batch_norm_lstm`, as :func:`rnn_backward`.

    With ``u = N(c_t)`` what the tanh sees, ``dc_t = N_backward(dh_t o (1 - tanh(u) ** 2)) + f_(t+1) dc_(t+1)``: along
    the cell no normaliser stands in the way of the gradient.
    """
    return unroll_backward(dy, cache, dstate, LSTM)


def layer_norm_lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    gamma_ih: Array | None = None,
    gamma_hh: Array | None = None,
    gamma_c: Array | None = None,
    beta_c: Array | None = None,
    *,
    state: State | None = None,
    mask: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, RecurrentCache]:
    """An LSTM with layer normalisation in three places (Ba, Kiros and Hinton 2016, supplementary material).

    ``(i, f, g, o) = LN(W_ih x_t) + LN(W_hh h_(t-1)) + b``; ``c_t`` as ever; ``h_t = sigmoid(o) tanh(LN(c_t))``. All 4H
    gates are normalised together. The paper's two shifts of the projections and ``b`` are one sum, which is ``b`` here.

    Parameters
    ----------
    x, weight_ih, weight_hh, bias, state, mask
        As :func:`lstm`.
    gamma_ih, gamma_hh : array, shape (4H,), optional
        Scales of the two projections; None stands for ones.
    gamma_c, beta_c : array, shape (H,), optional
        Scale and shift of the cell.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, L, H)
        The hidden state after each step.
    cache : RecurrentCache
        For :func:`layer_norm_lstm_backward`.

    Raises
    ------
    TypeError, ValueError
        As :func:`rnn`; ValueError also if ``eps`` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, weight_ih, weight_hh = (rng.standard_normal(shape) for shape in [(2, 5, 3), (16, 3), (16, 4)])
    >>> y, cache = layer_norm_lstm(x, weight_ih, weight_hh)
    >>> y.shape, [s.shape for s in cache.state]
    ((2, 5, 4), [(2, 4), (2, 4)])
    """
    weights = Weights(weight_ih, weight_hh, bias, gamma_ih, gamma_hh, gamma_c, beta_c)
    normalise = by_layer(check_eps(eps))
    return unroll(x, weights, LSTM, Sites(normalise, normalise, normalise), state, mask)


layer_norm_lstm_backward = lstm_backward


def batch_norm_rnn(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    gamma_ih: Array | None = None,
    gamma_hh: Array | None = None,
    *,
    per_step: bool = True,
    statistics: Mapping[str, Any] | None = None,
    state: State | None = None,
    mask: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, RecurrentCache]:
    """A recurrent network with batch normalisation: ``h_t = tanh(BN(W_ih x_t) + BN(W_hh h_(t-1)) + b)``.

    As :func:`batch_norm_lstm`, which has the parameters explained, with H instead of 4H and no cell.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, weight_ih, weight_hh = (rng.standard_normal(shape) for shape in [(6, 5, 3), (4, 3), (4, 4)])
    >>> y, cache = batch_norm_rnn(x, weight_ih, weight_hh, per_step=False)
    >>> {site: statistics.mean.shape for site, statistics in cache.statistics.items()}
    {'ih': (1, 4)}
    """
    weights = Weights(weight_ih, weight_hh, bias, gamma_ih, gamma_hh)
    return _batch_norm(x, weights, RNN, per_step, statistics, state, mask, eps)


batch_norm_rnn_backward = rnn_backward


def batch_norm_lstm(
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    gamma_ih: Array | None = None,
    gamma_hh: Array | None = None,
    gamma_c: Array | None = None,
    beta_c: Array | None = None,
    *,
    per_step: bool = True,
    statistics: Mapping[str, Any] | None = None,
    state: State | None = None,
    mask: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, RecurrentCache]:
    """An LSTM with batch normalisation, everywhere with statistics of their own per step, or at the input alone.

    ``per_step`` (after Cooijmans et al. 2016): ``(i, f, g, o) = BN(W_ih x_t) + BN(W_hh h_(t-1)) + b``, ``c_t`` as ever,
    ``h_t = sigmoid(o) tanh(BN(c_t))``, each BN over the N sequences at that step. The gammas and b are shared by all
    steps, the statistics are not. Start the gammas at 0.1.

    Otherwise (after Laurent et al. 2016): ``(i, f, g, o) = BN(W_ih x_t) + W_hh h_(t-1) + b`` alone, over all sequences
    and all steps together. What follows the recurrence cannot share its training statistics over time: they would need
    the future.

    Parameters
    ----------
    x, weight_ih, weight_hh, bias, state
        As :func:`lstm`.
    gamma_ih, gamma_hh : array, shape (4H,), optional
        Scales of the two projections; None stands for ones. Their shifts are ``bias``.
    gamma_c, beta_c : array, shape (H,), optional
        Scale and shift of the cell, where the tanh sees it.
    per_step : bool
        Which of the two.
    statistics : mapping of str to (mean, var) or StepStatistics, optional
        Statistics to normalise by (inference), per site: ``"ih"``, and with ``per_step`` ``"hh"`` and ``"c"``. Each of
        shape (T, 4H), for ``"c"`` (T, H), a row per time step; steps beyond the last row take the last row, so one row
        serves all. By default those of the batch (training).
    mask : array of bool, shape (N, L), optional
        True where ``x`` is real. Padding enters no statistic and changes no state, whatever x holds there.
    eps : float
        Added to the variance, not negative.

    Returns
    -------
    y : array, shape (N, L, H)
        The hidden state after each step.
    cache : RecurrentCache
        For :func:`batch_norm_lstm_backward`; ``cache.statistics`` for :func:`update_running_steps`.

    Raises
    ------
    TypeError, ValueError
        As :func:`rnn`; ValueError also if ``eps`` is negative, if the statistics are not those of the sites, or if a
        parameter is given of a site that is not normalised.

    Notes
    -----
    At the first step ``W_hh h_0`` is the same for all sequences if ``h_0`` is zero: its variance is 0, and what stands
    for it in the gates is 0 whatever ``W_hh``. Where only one sequence is so long, its step is normalised by itself,
    to zero; where none is, the statistics are NaN, which no output and no gradient sees.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, weight_ih, weight_hh = (rng.standard_normal(shape) for shape in [(6, 5, 3), (16, 3), (16, 4)])
    >>> gammas = np.full(16, 0.1), np.full(16, 0.1), np.full(4, 0.1)
    >>> y, cache = batch_norm_lstm(x, weight_ih, weight_hh, None, *gammas)
    >>> {site: statistics.mean.shape for site, statistics in cache.statistics.items()}
    {'ih': (5, 16), 'hh': (5, 16), 'c': (5, 4)}
    >>> longer = np.concatenate([x, x], axis=1)
    >>> y, _ = batch_norm_lstm(longer, weight_ih, weight_hh, None, *gammas, statistics=cache.statistics)
    >>> y.shape
    (6, 10, 4)
    """
    weights = Weights(weight_ih, weight_hh, bias, gamma_ih, gamma_hh, gamma_c, beta_c)
    return _batch_norm(x, weights, LSTM, per_step, statistics, state, mask, eps)


batch_norm_lstm_backward = lstm_backward


def _batch_norm(
    x: Array,
    weights: Weights,
    cell: Cell,
    per_step: bool,
    statistics: Mapping[str, Any] | None,
    state: State | None,
    mask: Array | None,
    eps: float,
) -> tuple[Array, RecurrentCache]:
    xp = namespace(x, *weights, *(state or ()), mask)
    check(xp, x, weights, cell, state, mask)
    eps = check_eps(eps)
    size = weights.hh.shape[-1]
    widths = {"ih": cell.gates * size}
    if per_step:
        widths |= {"hh": cell.gates * size} | ({"c": size} if cell is LSTM else {})
    else:
        given = [name for name in ("gamma_hh", "gamma_c", "beta_c") if getattr(weights, name) is not None]
        if given:
            raise ValueError(f"expected no {', '.join(given)} with per_step=False, which normalises the input alone")
    known = check_statistics(statistics, widths)
    normalise = {site: by_batch(eps, mask, known[site]) for site in widths}
    normalise["ih"] = every_step(normalise["ih"]) if per_step else shared(eps, mask, known["ih"])
    y, cache = unroll(x, weights, cell, Sites(**normalise), state, mask)
    if statistics is not None:
        return y, cache

    columns = {"ih": cache.projected if per_step else [cache.projected]}
    columns |= {"hh": [step[1] for step in cache.steps]} if per_step else {}
    columns |= {"c": [step[2][-1] for step in cache.steps]} if "c" in widths else {}
    n = columns["ih"][0].n if mask is None else xp.sum(xp.astype(mask, xp.int32), axis=0)
    if mask is not None and not per_step:
        n = xp.reshape(xp.sum(n), (1,))
    measured = {
        site: StepStatistics(xp.stack([c.mean for c in caches]), xp.stack([c.var for c in caches]), n)
        for site, caches in columns.items()
    }
    return y, cache._replace(statistics=measured)
