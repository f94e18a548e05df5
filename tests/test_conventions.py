r"""The table of conventions in book/notation.md, measured cell by cell on the frameworks themselves.

Statistics, scale and shift are random, so that no default value can hide a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")

PAGE = Path(__file__).parent.parent / "book" / "notation.md"
RNG = np.random.default_rng(20150211)
X = RNG.normal(3.0, 2.0, size=(6, 3))
GAMMA, BETA = RNG.uniform(0.5, 2.0, size=3), RNG.normal(size=3)
TINY = 1e-12
"""An epsilon too small to matter beside the variances of X."""

Cells = tuple[str, str, str]


def table() -> dict[str, Cells]:
    """The rows of the page's table: what is compared, then PyTorch, Keras and ONNX."""
    section = PAGE.read_text(encoding="utf-8").split("## The frameworks' conventions")[1]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    assert rows[0] == ["", "PyTorch", "Keras", "ONNX"]
    return {label: (torch_, keras_, onnx_) for label, torch_, keras_, onnx_ in rows[2:]}


def torch_layer(**options: Any) -> torch.nn.BatchNorm1d:
    layer = torch.nn.BatchNorm1d(3, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(GAMMA))
        layer.bias.copy_(torch.from_numpy(BETA))
    return layer


def keras_layer(**options: Any) -> Any:
    layer = keras.layers.BatchNormalization(dtype="float64", **options)
    layer.build((None, 3))
    layer.gamma.assign(GAMMA)
    layer.beta.assign(BETA)
    return layer


def to_numpy(tensor: Any) -> np.ndarray:
    return tensor.numpy()  # keras.ops.convert_to_numpy on a variable is a DeprecationWarning of NumPy 2


def onnx_training(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, **attributes: float) -> list[np.ndarray]:
    """Output, new running mean and new running variance of ONNX's operator, from running statistics 0 and 0."""
    names = [argument.name for argument in schema().inputs], [argument.name for argument in schema().outputs]
    node = onnx.helper.make_node("BatchNormalization", *names, training_mode=1, **attributes)
    tensors = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in side] for side in names
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "one", *tensors))
    zeros = np.zeros_like(gamma)
    return reference.ReferenceEvaluator(model).run(
        None, dict(zip(names[0], [x, gamma, beta, zeros, zeros], strict=True))
    )


def schema() -> Any:
    return onnx.defs.get_schema("BatchNormalization")


def one_step() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """For each framework: normalised X, the new running mean and variance from 0 and 0, and the default momentum."""
    ours = torch_layer(eps=TINY)
    ours.running_var.zero_()
    output = ours(torch.from_numpy(X)).detach().numpy()
    result = {"torch": (output, ours.running_mean.numpy(), ours.running_var.numpy(), float(ours.momentum))}
    theirs = keras_layer(epsilon=TINY)
    theirs.moving_variance.assign(np.zeros(3))
    output = to_numpy(theirs(X, training=True))
    moving = to_numpy(theirs.moving_mean), to_numpy(theirs.moving_variance)
    result["keras"] = (output, *moving, float(theirs.momentum))
    momentum = schema().attributes["momentum"].default_value.f
    output, mean, var = onnx_training(X, GAMMA, BETA, epsilon=TINY)
    result["onnx"] = (output, mean, var, momentum)
    return {name: ((output - BETA) / GAMMA, *rest) for name, (output, *rest) in result.items()}


def short(number: float) -> str:
    """1e-05 as 1e-5, as the page writes it."""
    return f"{number:.0e}".replace("e-0", "e-")


def epsilon() -> Cells:
    default = schema().attributes["epsilon"].default_value.f
    return short(torch_layer().eps), short(keras_layer().epsilon), short(default)


def momentum() -> Cells:
    return tuple(f"{momentum:.3g}" for *_, momentum in one_step().values())


def weight_of() -> Cells:
    def which(mean: np.ndarray, momentum: float) -> str:
        share = mean / X.mean(axis=0)  # of the batch's mean in the running mean, which began at 0
        if np.allclose(share, momentum, rtol=1e-6):
            return "new batch"
        return "old average" if np.allclose(share, 1 - momentum, rtol=1e-6) else f"neither: {share}"

    return tuple(which(mean, momentum) for _, mean, _, momentum in one_step().values())


def which_variance(biased: bool, unbiased: bool) -> str:
    assert biased != unbiased
    return "biased" if biased else "unbiased"


def variance_that_normalises() -> Cells:
    return tuple(
        which_variance(
            np.allclose(x_hat.var(axis=0), 1, rtol=1e-6), np.allclose(x_hat.var(axis=0, ddof=1), 1, rtol=1e-6)
        )
        for x_hat, *_ in one_step().values()
    )


def variance_kept() -> Cells:
    def which(mean: np.ndarray, var: np.ndarray) -> str:
        batch_var = var / (mean / X.mean(axis=0))  # both began at 0, so the batch has the same share in both
        return which_variance(*(np.allclose(batch_var, X.var(axis=0, ddof=ddof), rtol=1e-6) for ddof in (0, 1)))

    return tuple(which(mean, var) for _, mean, var, _ in one_step().values())


def channel_axis() -> Cells:
    images = RNG.normal(size=(2, 3, 5, 7))
    ours = torch.nn.LazyBatchNorm2d(dtype=torch.float64)
    ours(torch.from_numpy(images))
    theirs = keras.layers.BatchNormalization(dtype="float64")
    theirs(images)
    output, *_ = onnx_training(images, np.ones(3), np.zeros(3))
    per_axis = [np.abs(output.mean(axis=tuple({0, 1, 2, 3} - {axis}))).max() for axis in range(4)]
    sizes = {3: "1", 7: "-1"}
    return sizes[ours.weight.shape[0]], sizes[theirs.gamma.shape[0]], str(int(np.argmin(per_axis)))


def names(trained: bool, start: float) -> tuple[str, str]:
    """The name of the array of shape (C,) that is trained or not and starts at 0 or 1, in PyTorch and in Keras."""
    ours = torch.nn.BatchNorm1d(3)
    arrays = dict(ours.named_parameters() if trained else ours.named_buffers())
    found = [name for name, array in arrays.items() if array.ndim == 1 and bool((array == start).all())]
    theirs = keras.layers.BatchNormalization()
    theirs.build((None, 3))
    weights = theirs.trainable_weights if trained else theirs.non_trainable_weights
    found += [weight.name for weight in weights if bool((to_numpy(weight) == start).all())]
    assert len(found) == 2
    return f"`{found[0]}`", f"`{found[1]}`"


def name_row(trained: bool, start: float, position: int) -> Cells:
    # The other checks hold the positions of ONNX's inputs: they call the operator with them.
    return *names(trained, start), f"`{schema().inputs[position].name}`"


def one_value() -> Cells:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch_layer()(torch.from_numpy(X[:1]))
    theirs = to_numpy(keras_layer()(X[:1], training=True))
    operator, *_ = onnx_training(X[:1], GAMMA, BETA)
    said = [r"returns $\beta$" if np.allclose(output, BETA) else "something else" for output in (theirs, operator)]
    return "`ValueError`", *said


def empty_batch() -> Cells:
    ours, theirs = torch_layer(), keras_layer()
    ours(torch.from_numpy(X)), theirs(X, training=True)
    before = ours.running_mean.clone()
    ours(torch.from_numpy(X[:0])), theirs(X[:0], training=True)
    stays, is_nan = torch.equal(before, ours.running_mean), bool(np.isnan(to_numpy(theirs.moving_mean)).all())
    return "statistics stay" if stays else "changed", "statistics become NaN" if is_nan else "kept", "-"


def not_to_train() -> Cells:
    ours, theirs = torch_layer(), keras_layer()
    ours.requires_grad_(False)
    theirs.trainable = False
    ours(torch.from_numpy(X)), theirs(X, training=True)
    said = {True: "statistics still move", False: "statistics stay"}
    return said[bool((ours.running_mean != 0).any())], said[bool((to_numpy(theirs.moving_mean) != 0).any())], "-"


MEASURED: dict[str, Callable[[], Cells]] = {
    r"default $\varepsilon$": epsilon,
    "default momentum": momentum,
    "momentum is the weight of the": weight_of,
    "variance that normalises": variance_that_normalises,
    "variance kept for evaluation": variance_kept,
    "default channel axis": channel_axis,
    r"$\gamma$": lambda: name_row(True, 1.0, 1),
    r"$\beta$": lambda: name_row(True, 0.0, 2),
    "mean for evaluation": lambda: name_row(False, 0.0, 3),
    "variance for evaluation": lambda: name_row(False, 1.0, 4),
    "one value per channel, in training": one_value,
    "empty batch, in training": empty_batch,
    r"$\gamma$ and $\beta$ set not to train": not_to_train,
}


def test_every_row_is_measured() -> None:
    assert list(table()) == list(MEASURED)


@pytest.mark.parametrize("row", MEASURED)
def test_the_page_says_what_the_frameworks_do(row: str) -> None:
    assert table()[row] == MEASURED[row]()
