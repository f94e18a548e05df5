"""What the audit knows of a model, whichever framework it is of: the rules read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Facts", "LayerFacts", "OptimizerFacts", "OutputFacts", "SeenFacts"]

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class SeenFacts:
    """What passed through one BN layer while the data was run, all statistics per channel, in float64.

    Attributes
    ----------
    calls : int
        The largest number of calls in one forward pass of the model.
    fewest : int
        The smallest number of values per channel that a call in training had (with a mask, all positions count).
    n : int
        Values per channel over all the data.
    mean, var : array, shape (C,)
        Over all the data, of what arrived at the layer in training mode; ``var`` is biased.
    apart : array, shape (calls, C), or None
        Where the layer was called more than once per forward pass: mean of what arrived at each call, less ``mean``, in
        standard deviations of the whole.
    call_var : array, shape (calls, C), or None
        And the variance of each call.
    iid_ratio : array, shape (C,), or None
        Variance of the batches' means, times the samples per batch, over the variance of the samples' means within a
        batch: about 1 where each batch is a fair draw. None with fewer than three batches.
    farthest, farthest_errors : array, shape (C,), or None
        How far the mean of the farthest batch lies off, in standard deviations of the channel and in standard errors of
        such a mean. Only batches of sixteen samples or more are looked at.
    batches, samples : int
        How many batches, and samples in all.
    evaluation_ratio : array, shape (C,), or None
        On one and the same batch, and with its statistics: the variance that arrives at inference (dropout off) over
        the one that arrives in training. The batch is the second of two samples or more; None where there is none.
    real_mean, real_var : array, shape (C,), or None
        With a mask whose shape fits: the statistics over the real positions only.
    bias_from : str or None
        The layer whose biased output is the very tensor that arrives here.
    finite : bool
        Whether all that arrived was finite.
    """

    calls: int
    fewest: int
    n: int
    mean: Vector
    var: Vector
    apart: Vector | None = None
    call_var: Vector | None = None
    iid_ratio: Vector | None = None
    farthest: Vector | None = None
    farthest_errors: Vector | None = None
    batches: int = 0
    samples: int = 0
    evaluation_ratio: Vector | None = None
    real_mean: Vector | None = None
    real_var: Vector | None = None
    bias_from: str | None = None
    finite: bool = True


@dataclass(frozen=True)
class LayerFacts:
    """One BN layer.

    Attributes
    ----------
    name, kind : str
        Path of the layer in the model, and its class.
    order : int
        Place in the order of the calls, or of registration where no data was run.
    channels : int
    eps : float
    momentum : float or None
        Share of the NEW batch in the running statistics (PyTorch's sense); None: a cumulative average.
    dtype : str
        Of the statistics.
    running_mean, running_var : array, shape (C,), or None
        None: the layer keeps none, and uses the batch's at inference too.
    batches_seen : int or None
        Where the framework counts them.
    gamma, beta : array, shape (C,), or None
    affine_trainable : bool or None
        Whether gamma or beta take a gradient; None: it has neither.
    training_now : bool
        Whether it would use batch statistics as the model stands.
    trains, evaluates : bool
        Whether it uses batch statistics once the model is set to training, and running ones once to evaluation.
    frozen_by_hand : bool
        It stands in evaluation mode in a model that trains, and the next ``train()`` undoes that.
    updates : bool
        PyTorch: ``track_running_stats``. False in a layer that has running statistics: it was switched off later, which
        leaves them as they were then, and evaluation goes on using them.
    held : bool
        Frozen by :func:`bnlearn.freeze`.
    axis_problem : str or None
        Keras: why ``axis`` is not the channels', in words.
    overruled : bool
        Keras: the graph calls it with ``training=False``, and it trains all the same, for training overrides that.
    stale : bool
        Keras: ``trainable`` was changed after training had begun, which takes effect only with the next ``compile()``.
    seen : SeenFacts or None
        None: no data was run, or none arrived.
    """

    name: str
    kind: str
    order: int
    channels: int
    eps: float
    momentum: float | None
    dtype: str
    running_mean: Vector | None
    running_var: Vector | None
    batches_seen: int | None
    gamma: Vector | None
    beta: Vector | None
    affine_trainable: bool | None
    training_now: bool
    trains: bool
    evaluates: bool
    frozen_by_hand: bool = False
    updates: bool = True
    held: bool = False
    axis_problem: str | None = None
    overruled: bool = False
    stale: bool = False
    seen: SeenFacts | None = None


@dataclass(frozen=True)
class OutputFacts:
    """Outputs for one and the same batch, compared: root mean square of the difference, over the spread of the outputs.

    Attributes
    ----------
    gap : float
        Training mode against evaluation mode as the model stands.
    recalibrated_gap : float
        Training mode against evaluation mode with the statistics of the data.
    moved : float
        Evaluation mode as the model stands against evaluation mode with the statistics of the data.
    samples : int
        In that batch.
    """

    gap: float
    recalibrated_gap: float
    moved: float
    samples: int


@dataclass(frozen=True)
class OptimizerFacts:
    """What an optimizer does to one BN layer's gamma and beta.

    Attributes
    ----------
    holds : bool
        Whether it updates any of the two.
    decay : float
        The largest weight decay that applies to them.
    """

    holds: bool
    decay: float


@dataclass(frozen=True)
class Facts:
    """One model.

    Attributes
    ----------
    framework : str
        ``"torch"`` or ``"keras"``.
    model : str
        Its class.
    training_now : bool
        Whether the model as a whole stands in training mode.
    layers : tuple of LayerFacts
    distributed : bool
        Whether it is wrapped for data-parallel training on several processes.
    optimizer : mapping of str to OptimizerFacts, or None
        By layer; None: no optimizer was given.
    output : OutputFacts or None
    data_run, masked : bool
        Whether data was run, and whether a mask fitted any layer.
    single : tuple of str
        Layers that a batch with one value per channel arrived at in training.
    notes : tuple of str
        What could not be looked at, and why.
    source : tuple of (str, int), or None
        File and line of the model's class, for reports that need a place.
    """

    framework: str
    model: str
    training_now: bool
    layers: tuple[LayerFacts, ...]
    distributed: bool = False
    optimizer: Mapping[str, OptimizerFacts] | None = None
    output: OutputFacts | None = None
    data_run: bool = False
    masked: bool = False
    single: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: tuple[str, int] | None = None
