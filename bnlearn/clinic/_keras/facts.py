"""What there is to know of a Keras model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from bnlearn.clinic._facts import Facts, LayerFacts, OptimizerFacts, Vector
from bnlearn.clinic._keras.axis import problems
from bnlearn.clinic._keras.freeze import is_held
from bnlearn.clinic._keras.layers import batch_norms, require_built, told_inference
from bnlearn.clinic._keras.look import Look, look
from bnlearn.clinic._keras.outputs import array
from bnlearn.clinic._keras.state import untouched

__all__ = ["facts"]


def facts(model: Any, data: Any = None, *, optimizer: Any = None, mask: Any = None) -> Facts:
    """See :func:`bnlearn.audit`; ``model`` is a ``keras.Model`` or layer.

    Raises
    ------
    ValueError, RuntimeError
        As :func:`bnlearn.clinic._keras.layers.require_built`; also if ``data`` is empty or has no end.
    TypeError
        If ``data`` is no iterable of batches, or ``optimizer`` not Keras's.
    """
    require_built(model)
    norms = batch_norms(model)
    seen = Look()
    if data is not None:
        with untouched(model):
            seen = look(model, norms, data, mask)
    seen.problems |= problems(model)
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)  # the one that it was compiled with
    trainable = {id(variable) for variable in model.trainable_variables}
    ranks = {name: rank for rank, name in enumerate([*seen.order, *(n for n in norms if n not in seen.order)])}
    told, stale = told_inference(model), _stale(model, norms, trainable)
    layers = [
        replace(facts, overruled=facts.trains and id(norms[facts.name]) in told, stale=facts.name in stale)
        for facts in (_layer(name, layer, ranks[name], trainable, seen) for name, layer in norms.items())
    ]
    return Facts(
        framework="keras",
        model=type(model).__name__,
        training_now=False,
        layers=tuple(sorted(layers, key=lambda layer: layer.order)),
        distributed=_replicas(model) > 1,
        optimizer=None if optimizer is None else _optimizer(optimizer, norms, trainable),
        output=seen.output,
        data_run=seen.completed > 0,
        masked=seen.masked,
        single=tuple(seen.single),
        notes=tuple(seen.notes),
        source=_source(type(model)),
    )


def _layer(name: str, layer: Any, order: int, trainable: set[int], seen: Look) -> LayerFacts:
    affine = [v for v in (layer.gamma, layer.beta) if v is not None]
    mean, variance = getattr(layer, "moving_mean", None), getattr(layer, "moving_variance", None)
    trains = bool(layer.trainable) and not is_held(layer) and seen.trained.get(name, True)
    return LayerFacts(
        name=name,
        kind=type(layer).__name__ + (" (synchronized)" if getattr(layer, "synchronized", False) else ""),
        order=order,
        channels=0 if mean is None else int(mean.shape[0]),
        eps=float(layer.epsilon),
        momentum=round(1 - layer.momentum, 12),
        dtype=layer.variable_dtype if mean is None else mean.dtype,
        running_mean=_vector(mean),
        running_var=_vector(variance),
        batches_seen=None,
        gamma=_vector(layer.gamma),
        beta=_vector(layer.beta),
        affine_trainable=any(v.trainable and id(v) in trainable for v in affine) if affine else None,
        training_now=trains and seen.batch_at_inference.get(name, False),
        trains=trains,
        evaluates=not (trains and seen.batch_at_inference.get(name, False)),
        held=is_held(layer),
        axis_problem=seen.problems.get(id(layer)),
        seen=seen.seen.get(name),
    )


def _vector(variable: Any) -> Vector | None:
    if variable is None:
        return None
    return array(variable).astype(np.float64)


def _optimizer(optimizer: Any, norms: Mapping[str, Any], trainable: set[int]) -> dict[str, OptimizerFacts]:
    """What the optimizer does to gamma and beta; one that has not been built will get what is trainable."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"expected a Keras optimizer, got {type(optimizer).__name__}")
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    held = {id(v) for v in optimizer._trainable_variables} if optimizer.built else trainable
    return {
        name: _treatment(optimizer, [v for v in (layer.gamma, layer.beta) if v is not None and id(v) in held])
        for name, layer in norms.items()
    }


def _treatment(optimizer: Any, variables: list[Any]) -> OptimizerFacts:
    decay = float(getattr(optimizer, "weight_decay", None) or 0)
    decayed = decay > 0 and any(_decays(optimizer, variable) for variable in variables)
    return OptimizerFacts(holds=bool(variables), decay=decay if decayed else 0.0)


def _decays(optimizer: Any, variable: Any) -> bool:
    """Whether weight decay applies, without the cache that Keras would keep of the answer."""
    had = dict(vars(optimizer).get("_exclude_from_weight_decay_cache", {}))
    answer = bool(optimizer._use_weight_decay(variable))
    optimizer._exclude_from_weight_decay_cache.clear()
    optimizer._exclude_from_weight_decay_cache.update(had)
    return answer


def _stale(model: Any, norms: Mapping[str, Any], trainable: set[int]) -> set[str]:
    """The layers that training, as ``fit`` has compiled it, treats in another way than ``trainable`` now says."""
    if getattr(model, "train_function", None) is None or model.run_eagerly or not model.optimizer.built:
        return set()
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    held = {id(variable) for variable in optimizer._trainable_variables}
    affine = {name: {id(v) for v in (bn.gamma, bn.beta) if v is not None} for name, bn in norms.items()}
    return {name for name, ids in affine.items() if ids & held != ids & trainable}


def _replicas(model: Any) -> int:
    """Over how many copies a batch is divided."""
    strategy = getattr(model, "distribute_strategy", None)
    return getattr(strategy, "num_replicas_in_sync", 1)


def _source(kind: type) -> tuple[str, int] | None:
    """Where the model's class is written, unless that is Keras."""
    if kind.__module__.split(".")[0] == "keras":
        return None
    try:
        return inspect.getsourcefile(kind) or "", inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):  # made in an interpreter
        return None
