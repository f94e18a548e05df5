"""What looking at a Keras model must leave as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from bnlearn.clinic._keras.layers import every_layer, named_layers

__all__ = ["kept", "same_randomness", "snapshot", "untouched"]


def snapshot(variables: list[Any]) -> Callable[[], None]:
    """A function that gives the variables the values back that they have now, bit by bit."""
    before = [(variable, keras.ops.copy(variable.value)) for variable in variables]

    def restore() -> None:
        for variable, value in before:
            variable.assign(value)

    return restore


@contextmanager
def kept(variables: list[Any]) -> Iterator[None]:
    """Set the variables back at the end, whatever happens."""
    restore = snapshot(variables)
    try:
        yield
    finally:
        restore()


@contextmanager
def same_randomness() -> Iterator[None]:
    """Set Python's, NumPy's, Keras's and TensorFlow's random state back at the end, whatever happens."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the user's code may draw from it)
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    with ExitStack() as stack:
        stack.callback(random.setstate, python)
        stack.callback(np.random.set_state, legacy)
        stack.callback(global_state.set_global_attribute, GLOBAL_SEED_GENERATOR, generator)
        if generator is not None:
            stack.enter_context(kept([generator.state]))
        if "tensorflow" in sys.modules:
            stack.enter_context(_same_tensorflow())
        yield


@contextmanager
def _same_tensorflow() -> Iterator[None]:
    """From which TensorFlow draws the seeds of its own random functions, and its generator."""
    from tensorflow.python.eager import context
    from tensorflow.python.ops import stateful_random_ops

    drawn = getattr(context.context(), "_rng", None)  # absent until a seed is set
    state = None if drawn is None else drawn.getstate()
    generator = stateful_random_ops.global_generator
    position = None if generator is None else generator.state.read_value()
    try:
        yield
    finally:
        if drawn is not None:
            context.context()._rng = drawn
            drawn.setstate(state)
        stateful_random_ops.global_generator = generator
        if generator is not None:
            generator.state.assign(position)


def all_variables(model: Any) -> list[Any]:
    """Weights, statistics, states of seed generators, metrics and the optimizer's: each once."""
    found = [*model.variables, *(v for layer in every_layer(model) for v in layer.variables)]
    found += getattr(model, "metrics_variables", [])
    optimizer = getattr(model, "optimizer", None)
    found += [] if optimizer is None else optimizer.variables
    return list({id(variable): variable for variable in found}.values())


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Whatever happens inside, afterwards the model and all random states are as they were, bit by bit.

    Parameters
    ----------
    model : keras.Layer
        Built. Its variables (those of seed generators, metrics and the optimizer too) and its losses are set back.

    Raises
    ------
    ValueError
        If the model calls a layer that is not built, which would be built then.
    """
    losses = [(layer, list(layer._losses), set(layer._loss_ids), layer._called) for layer in every_layer(model)]
    with same_randomness(), kept(all_variables(model)), _nothing_built(model):
        try:
            yield
        finally:
            for layer, given, ids, called in losses:
                layer._called = called
                layer._losses[:] = given
                layer._loss_ids.clear()
                layer._loss_ids.update(ids)


@contextmanager
def _nothing_built(model: Any) -> Iterator[None]:
    """Refuse to build what is not built yet."""
    unbuilt = {name: layer for name, layer in named_layers(model).items() if not layer.built}
    paths = {id(layer): layer._parent_path for layer in unbuilt.values()}

    def refuse(name: str) -> Callable[..., None]:
        def build(*_: Any) -> None:
            raise ValueError(
                f"expected a model whose layers are built, got one that calls {name!r}, which takes its size from the "
                "first batch; run one batch through the model first, with training=True"
            )

        return build

    try:
        for name, layer in unbuilt.items():
            object.__setattr__(layer, "_maybe_build", refuse(name))
        yield
    finally:
        for layer in unbuilt.values():
            vars(layer).pop("_maybe_build", None)
            layer._parent_path = paths[id(layer)]
