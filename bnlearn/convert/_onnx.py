"""A model as an ONNX file, written only after another runtime has given the same outputs."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnlearn.convert._models import Model, evaluating, is_keras, is_torch, open_model
from bnlearn.convert._units import Array
from bnlearn.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
)

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Exported", "to_onnx"]

OPSET = 20
BATCH_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)  # and no subclass, which may compute something else
NORMALIZERS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"}


@dataclass(frozen=True)
class Exported:
    """What :func:`to_onnx` wrote.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    max_difference : float
        Largest absolute difference of onnxruntime's outputs and the model's, over two batch sizes.
    normalizers : tuple of dict
        Each normalisation node left in the graph: its ``op``, and its attributes. ONNX's ``momentum`` is the weight of
        the OLD statistics. A batch norm folded into the layer before it is no node any more.
    opset : int
        Version of ONNX's operators.
    """

    path: Path
    max_difference: float
    normalizers: tuple[dict[str, Any], ...]
    opset: int


def to_onnx(model: Model, example: Any, path: str | Path, *, fold: bool = True, tolerance: float = 1e-4) -> Exported:
    """Write ``model``, as it is in evaluation mode, to ``path``, and check it with onnxruntime.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model or bnlearn.layers.Layer
        Of one input and one output. Its modes and statistics stay. A NumPy Sequential may hold the layers of
        :mod:`bnlearn.layers` up to Flatten, the activations and batch normalisation. Keras's own export needs
        ``tf2onnx`` on the TensorFlow backend, ``jax2onnx`` on JAX, neither on PyTorch.
    example : array
        An input, its first axis the batch, whose size stays free in the file.
    path : str or path
        Where to write. The file appears there whole and checked, or not at all.
    fold : bool
        For PyTorch: whether its exporter may simplify the graph, which folds a BatchNorm into the convolution
        before it.
    tolerance : float
        Largest difference of the outputs, relative to the largest output (or to 1).

    Returns
    -------
    Exported
        With the difference that was found.

    Raises
    ------
    TypeError
        If the model, or a NumPy layer in it, is of no supported kind.
    ValueError
        If onnxruntime's outputs differ from the model's.
    ImportError
        If what writes or checks the file is not installed: ``onnx``, ``onnxruntime``, and ``onnxscript`` for PyTorch.

    Examples
    --------
    >>> from bnlearn import layers
    >>> rng = np.random.default_rng(0)
    >>> model = layers.Sequential(layers.Linear(4, 3, rng=rng), layers.BatchNorm1d(3, momentum=0.25)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = to_onnx(model, np.ones((2, 4), np.float32), f"{folder}/model.onnx")
    >>> exported.max_difference < 1e-6
    True
    >>> exported.normalizers
    ({'op': 'BatchNormalization', 'epsilon': 1e-05, 'momentum': 0.75},)
    """
    import onnx

    onnxruntime = import_module("onnxruntime")  # it has no types

    opened = open_model(model, "model")
    x = np.asarray(example)
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder, "draft.onnx")
        if is_keras(model):
            _write_keras(model, x, draft)
        else:
            onnx.save(_from_torch(model, x, fold) if is_torch(model) else _from_numpy(model, x), draft)
        onnx.checker.check_model(str(draft), full_check=True)
        session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        difference, largest = 0.0, 1.0
        for batch in (x, np.concatenate([x, x[:1]])):  # the second has another size
            ours, theirs = opened.run(batch), session.run(None, {name: batch})[0]
            difference = max(difference, _difference(ours, theirs))
            largest = max(largest, float(np.abs(ours).max(initial=0.0)))
        if not difference <= tolerance * largest:
            raise ValueError(
                f"expected onnxruntime's outputs to be the model's, they differ by {difference:.3g}, more than "
                f"{tolerance:g} of the largest, {largest:.3g}; {path} was not written"
            )
        written = onnx.load(draft)
        draft.replace(path)
    return Exported(path, difference, tuple(_normalizers(written)), written.opset_import[0].version)


def _difference(ours: Array, theirs: Array) -> float:
    same = ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max(initial=0.0)) if same else float("inf")


def _normalizers(model: ModelProto) -> Iterator[dict[str, Any]]:
    from onnx.helper import get_attribute_value

    for node in model.graph.node:
        if node.op_type in NORMALIZERS:
            values = {found.name: get_attribute_value(found) for found in node.attribute}
            yield {"op": node.op_type} | {key: _rounded(value) for key, value in sorted(values.items())}


def _rounded(value: Any) -> Any:
    """ONNX keeps float32, which is 9.99999975e-06 for 1e-5."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters log and deprecate among themselves."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _from_torch(model: Any, x: Array, fold: bool) -> ModelProto:
    import torch

    like = next(model.parameters(), torch.zeros(()))
    given = torch.tensor(x).to(like.device)
    with _quietly(), evaluating(model):
        program = torch.onnx.export(
            model,
            (given,),
            dynamo=True,
            optimize=fold,
            verbose=False,
            dynamic_shapes=({0: "batch"},),
            opset_version=OPSET,
        )
    proto: ModelProto = program.model_proto  # type: ignore[union-attr]
    return proto


def _write_keras(model: Any, x: Array, path: Path) -> None:
    model(x)  # a Sequential can be exported only once it was called
    try:
        with _quietly():
            model.export(path, format="onnx", verbose=False)
    except ImportError as error:
        raise ImportError(
            "Keras writes ONNX with another package on this backend (tf2onnx for TensorFlow, jax2onnx for JAX): "
            "install it, or set KERAS_BACKEND=torch before Keras is imported, or move the state to a PyTorch twin with "
            "transfer and export that"
        ) from error


def _from_numpy(model: Layer, x: Array) -> ModelProto:
    """The layers one after the other, each as one or two nodes."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)

    def add(op: str, *inputs: str | Array, **attributes: Any) -> str:
        names = []
        for given in inputs:
            if not isinstance(given, str):
                constants.append(numpy_helper.from_array(given.astype(x.dtype), f"constant_{len(constants)}"))
                given = constants[-1].name
            names.append(given)
        nodes.append(helper.make_node(op, names, [f"value_{len(nodes)}"], **attributes))
        return f"value_{len(nodes) - 1}"

    last = _add_layer(model, "input", add)
    free: list[int | str] = ["batch", *x.shape[1:]]
    with evaluating(model):
        shape = model(x).shape
    made = helper.make_graph(
        nodes,
        type(model).__name__,
        [helper.make_tensor_value_info("input", kind, free)],
        [helper.make_tensor_value_info(last, kind, ["batch", *shape[1:]])],
        constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _add_layer(layer: Layer, x: str, add: Callable[..., str]) -> str:
    """The nodes of ``layer`` on the value named ``x``; the name of what comes out."""
    if isinstance(layer, Sequential):
        for inner in layer:
            x = _add_layer(inner, x, add)
        return x
    if isinstance(layer, Linear):
        y = add("MatMul", x, layer.weight.T)
        return y if layer.bias is None else add("Add", y, layer.bias)
    if isinstance(layer, Conv2d):
        height, width = layer.padding
        inputs = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        return add("Conv", x, *inputs, strides=layer.stride, pads=[height, width, height, width])
    if isinstance(layer, BATCH_NORMS) and type(layer) in BATCH_NORMS and layer.running_mean is not None:
        ones, zeros = np.ones(layer.num_features), np.zeros(layer.num_features)
        return add(
            "BatchNormalization",
            x,
            ones if layer.weight is None else layer.weight,
            zeros if layer.bias is None else layer.bias,
            layer.running_mean,
            layer.running_var,
            epsilon=layer.eps,
            **({} if layer.momentum is None else {"momentum": 1 - layer.momentum}),
        )
    if isinstance(layer, Flatten):
        return add("Flatten", x)
    for kind, op in ((ReLU, "Relu"), (Sigmoid, "Sigmoid"), (Tanh, "Tanh")):
        if isinstance(layer, kind):
            return add(op, x)
    raise TypeError(f"expected layers that ONNX is written for, got {layer!r}; export a PyTorch twin instead")
