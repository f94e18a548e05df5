"""Folding BN into the dense or convolutional layer before it, in Keras."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from bnlearn.clinic._folding import Folding, agreed
from bnlearn.clinic._keras.axis import CONVOLUTIONS, after
from bnlearn.clinic._keras.layers import batch_norms, graph, named_layers, nodes, own_kind, require_built
from bnlearn.clinic._keras.origins import is_linear
from bnlearn.clinic._keras.outputs import Outputs, Wide, array, floating
from bnlearn.clinic._keras.rebuild import rebuild, require_graph
from bnlearn.clinic._keras.state import untouched
from bnlearn.functional import batch_norm

__all__ = ["fold"]

L = keras.layers
TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)
LINEAR = (*CONVOLUTIONS, L.Dense)
# A few times what the type resolves; for float32 what deployment asks for.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def fold(model: Any, example: Any) -> Any:
    """See :func:`bnlearn.fold`; ``model`` is a functional or Sequential model, and those inside are folded too.

    Raises
    ------
    TypeError
        If ``model`` is of another kind, or a layer in it cannot be made again from its configuration.
    ValueError
        If it is not built, or its outputs for the example are not finite.
    RuntimeError
        If the folded model does not agree with the given one on the example.
    """
    require_built(model)
    require_graph(model, "folded")
    survey = _Survey()
    survey.take(graph(model))
    left = {name: why for name, layer in batch_norms(model).items() if (why := _obstacle(layer, survey))}
    gone = {id(layer): survey.source(layer) for name, layer in batch_norms(model).items() if name not in left}
    biased = {id(source) for source in gone.values()}

    def change(layer: Any) -> Any:
        if id(layer) in gone:
            return False
        if id(layer) in biased:
            return type(layer).from_config({**layer.get_config(), "use_bias": True})
        return None

    folded, made = rebuild(model, change)
    norms = {id(layer): layer for layer in batch_norms(model).values()}
    for bn, source in gone.items():
        _fold_pair(norms[bn], source, made[id(source)])
    names = {id(layer): name for name, layer in named_layers(model).items()}
    pairs = tuple((names[id(source)], names[bn]) for bn, source in gone.items())
    with untouched(model):
        before, nudged = _outputs(model, example), _outputs(model, _nudged(example))
    after = _outputs(folded, example)
    folded.folding = Folding(pairs, left, agreed(_differences(before, after, nudged), pairs))
    return folded


@dataclass
class _Survey:
    """Every call that is written down in a graph and in those inside it."""

    calls: Counter[int] = field(default_factory=Counter)  # by layer
    node: dict[int, Any] = field(default_factory=dict)  # a layer's last call
    made_by: dict[int, Any] = field(default_factory=dict)  # a tensor's layer
    used_by: dict[int, list[str]] = field(default_factory=dict)
    graphs: set[int] = field(default_factory=set)

    def take(self, functional: Any) -> None:
        self.graphs.add(id(functional))
        for node in nodes(functional):
            layer, inner = node.operation, graph(node.operation)
            self.calls[id(layer)] += 1
            self.node[id(layer)] = node
            self.made_by.update((id(tensor), layer) for tensor in node.outputs)
            for tensor in node.input_tensors:
                self.used_by.setdefault(id(tensor), []).append(layer.name)
            if inner is not None and id(inner) not in self.graphs:
                self.take(inner)
        for tensor in functional.outputs:
            self.used_by.setdefault(id(tensor), []).append("the model's output")

    def source(self, layer: Any) -> Any:
        """The layer whose output arrives, or None for the model's input."""
        return self.made_by.get(id(self.node[id(layer)].input_tensors[0]))


def _obstacle(layer: Any, survey: _Survey) -> str:
    """Why a BN layer must stay; empty if nothing stands in the way."""
    return _of_the_norm(layer, survey) or _of_the_source(layer, survey.source(layer), survey)


def _of_the_norm(layer: Any, survey: _Survey) -> str:
    calls = survey.calls[id(layer)]
    if calls != 1:
        return f"the graph calls it {calls} times" if calls else "no graph of layers calls it"
    if own_kind(layer).call is not L.BatchNormalization.call:
        return f"{type(layer).__name__} has a call of its own, which may do more than batch norm"
    if survey.node[id(layer)].arguments.kwargs.get("training"):
        return "it is called with training=True, and uses the statistics of the batch"
    return ""


def _of_the_source(layer: Any, source: Any, survey: _Survey) -> str:
    if source is None:
        return "what arrives is the model's input"
    name = source.name
    if type(source).call not in {kind.call for kind in LINEAR}:
        return f"what arrives comes from {name} ({type(source).__name__}), not from a dense or convolutional layer"
    if not is_linear(source):
        return f"{name} has an activation, {keras.activations.serialize(source.activation)}"
    if survey.calls[id(source)] != 1:
        return f"{name} is called {survey.calls[id(source)]} times"
    tensor = survey.node[id(layer)].input_tensors[0]
    if len(survey.used_by[id(tensor)]) != 1:
        others = [use for use in survey.used_by[id(tensor)] if use != layer.name]
        return f"the output of {name} is also used by {', '.join(others) or 'the layer itself, again'}"
    ndim = len(tensor.shape)
    channels = after(source, ndim, [])
    if channels is None or layer.axis % ndim != channels.axis:
        return f"the channels of {name} are not on its axis {layer.axis}"
    if getattr(source, "quantization_mode", None) or getattr(source, "lora_enabled", False):
        return f"{name} is quantised, or has LoRA weights"
    return ""


def _fold_pair(bn: Any, source: Any, new: Any) -> None:
    """Give ``new`` the weights of ``source`` with those of ``bn`` folded in, computed in float64."""
    for mine, theirs in ((v, n) for v in source.weights for n in new.weights if v.name == n.name != "bias"):
        theirs.assign(mine.value)
    kernel = new.pointwise_kernel if hasattr(new, "pointwise_kernel") else new.kernel
    gamma, beta = (None if v is None else _wide(v) for v in (bn.gamma, bn.beta))
    mean, var = _wide(bn.moving_mean), _wide(bn.moving_variance)
    nothing = np.zeros_like(mean)
    columns, shape = _outputs_last(_wide(kernel), source)
    # At inference BN is affine: of the columns it takes the slope alone, of the bias everything.
    slope, _ = batch_norm(columns, gamma, mean=nothing, var=var, eps=bn.epsilon)
    bias = nothing if source.bias is None else _wide(source.bias)
    shift, _ = batch_norm(bias[None], gamma, beta, mean=mean, var=var, eps=bn.epsilon)
    kernel.assign(_outputs_back(slope, source, shape))
    new.bias.assign(shift[0])


def _wide(variable: Any) -> Wide:
    return array(variable).astype(np.float64)


def _outputs_last(kernel: Wide, layer: Any) -> tuple[Wide, tuple[int, ...]]:
    """The kernel as (values per output channel, output channels), and the shape that this was made from."""
    if isinstance(layer, TRANSPOSED):
        kernel = np.moveaxis(kernel, -2, -1)
    channels = kernel.shape[-1] * (kernel.shape[-2] if isinstance(layer, DEPTHWISE) else 1)
    return kernel.reshape(-1, channels), kernel.shape


def _outputs_back(columns: Wide, layer: Any, shape: tuple[int, ...]) -> Wide:
    """Undo :func:`_outputs_last`."""
    kernel = columns.reshape(shape)
    return np.moveaxis(kernel, -1, -2) if isinstance(layer, TRANSPOSED) else kernel


def _outputs(model: Any, example: Any) -> Outputs:
    found = floating(model(example, training=False))
    if not found or not all(np.isfinite(leaf).all() for _, leaf in found.values()):
        state = "none that are floating-point" if not found else "NaN or infinite ones"
        raise ValueError(f"expected finite outputs for the example, to compare before and after, got {state}")
    return found


def _nudged(example: Any) -> Any:
    """The example, changed in its last bit."""

    def nudge(leaf: Any) -> Any:
        values = array(leaf)
        return values * (1 + np.finfo(values.dtype).eps) if values.dtype.kind == "f" else leaf

    return keras.tree.map_structure(nudge, example)


def _differences(before: Outputs, after: Outputs, nudged: Outputs) -> Iterator[tuple[float, float, float]]:
    """See :func:`bnlearn.clinic._folding.agreed`."""
    for place, (dtype, old) in before.items():
        yield _apart(old, after[place][1]), TOLERANCE[dtype], _apart(old, nudged[place][1])


def _apart(old: Wide, new: Wide) -> float:
    """The largest difference, over the largest value."""
    scale = float(np.abs(old).max(initial=0.0)) or 1.0
    return float(np.abs(old - new).max(initial=0.0)) / scale
