"""PyTorch's modules as units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from bnlearn.convert._own import own_fixed, own_kind, own_numbers
from bnlearn.convert._units import BATCH_NORM, Array, Change, State, Unit, number, plain, unsupported
from bnlearn.torch import SyncBatchNorm

__all__ = ["BATCH_NORMS", "units"]

BATCH_NORMS: tuple[type[nn.Module], ...] = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.SyncBatchNorm, SyncBatchNorm),
)
CONVOLUTIONS: dict[type[nn.Module], str] = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"}
TRANSPOSED: dict[type[nn.Module], str] = {
    nn.ConvTranspose1d: "transposed conv1d",
    nn.ConvTranspose2d: "transposed conv2d",
    nn.ConvTranspose3d: "transposed conv3d",
}
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMALISERS = {*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm}
RECURRENT: dict[type[nn.Module], str] = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn"}


def units(model: nn.Module) -> list[Unit]:
    """Every module of ``model`` that has state of its own, in order of definition."""
    return [unit for name, module in model.named_modules() for unit in _units(name or type(module).__name__, module)]


def _units(name: str, module: nn.Module) -> Iterator[Unit]:
    kind = type(module)  # exactly: a subclass may compute something else with the same names
    layer = kind.__name__
    if kind in RECURRENT:
        yield from _recurrent(name, module)
        return
    own: dict[str, Any] = {**module._parameters, **module._buffers}
    present = [key for key, value in own.items() if value is not None]
    if not present and kind not in NORMALISERS:
        return
    if any(torch.nn.parameter.is_lazy(own[key]) for key in present):
        yield unsupported(name, layer, "it has no shape yet; call the model on one example first")
        return
    arrays: State = {key: None if value is None else _read(value) for key, value in own.items()}
    fixed: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    remarks: dict[str, Any] = {}
    size = tuple(own[present[0]].shape) if present else ()
    made: Any = module
    if kind in BATCH_NORMS:
        word, size, carried = BATCH_NORM, (made.num_features,), {"eps": made.eps, "momentum": made.momentum}
    elif kind is nn.Linear:
        word = "linear"
    elif kind in CONVOLUTIONS or kind in TRANSPOSED:
        word = CONVOLUTIONS.get(kind) or TRANSPOSED[kind]
        fixed = {"stride": made.stride, "dilation": made.dilation, "groups": made.groups}
        fixed["padding mode"], remarks = made.padding_mode, {"padding": made.padding}
    elif kind is nn.Embedding and made.max_norm is None:
        word = "embedding"
    elif kind is nn.PReLU:
        word = "prelu"
    elif kind in (nn.LayerNorm, nn.RMSNorm):
        word, size = "layer norm" if kind is nn.LayerNorm else "rms norm", made.normalized_shape
        carried = {"eps": torch.finfo(torch.float32).eps if made.eps is None else made.eps}
    elif kind is nn.GroupNorm:
        word, size, fixed, carried = "group norm", (made.num_channels,), {"groups": made.num_groups}, {"eps": made.eps}
    elif kind in INSTANCE_NORMS and not made.track_running_stats:
        word, size = "group norm", (made.num_features,)
        fixed, carried = {"groups": made.num_features}, {"eps": made.eps}
        arrays = {"weight": arrays["weight"], "bias": arrays["bias"]}
    elif (ours := own_kind(module)) is not None:
        word, fixed, carried = ours, own_fixed(made), own_numbers(made)
    else:
        yield unsupported(name, layer, f"no rule here moves its {', '.join(present)}")
        return

    def changes(values: Mapping[str, Array], numbers: Mapping[str, Any]) -> list[Change]:
        return [_write(own[key], value) for key, value in values.items()] + [
            number(module, key, value) for key, value in numbers.items()
        ]

    yield Unit(name, layer, word, size, arrays, fixed, carried, remarks, changes=changes)


def _recurrent(name: str, module: Any) -> Iterator[Unit]:
    """One unit per layer and direction: ``lstm:l0``, ``lstm:l0_reverse``, ..."""
    directions = ("", "_reverse") if module.bidirectional else ("",)
    for suffix in (f"l{index}{direction}" for index in range(module.num_layers) for direction in directions):
        if module.proj_size:
            yield unsupported(f"{name}:{suffix}", type(module).__name__, "it has a projection")
        else:
            yield _recurrent_layer(name, module, suffix)


def _recurrent_layer(name: str, module: Any, suffix: str) -> Unit:
    own = {key: getattr(module, f"{key}_{suffix}") for key in ("weight_ih", "weight_hh")}
    biases = [getattr(module, f"{key}_{suffix}") for key in ("bias_ih", "bias_hh") if module.bias]

    def changes(values: Mapping[str, Array], numbers: Mapping[str, Any]) -> list[Change]:
        made = [_write(own[key], value) for key, value in values.items() if key in own]
        return made + [_write(bias, row) for bias, row in zip(biases, values.get("bias", ()), strict=False)]

    return Unit(
        f"{name}:{suffix}",
        type(module).__name__,
        RECURRENT[type(module)],
        tuple(own["weight_ih"].shape),
        {
            **{key: _read(value) for key, value in own.items()},
            "bias": np.stack([*map(_read, biases)]) if biases else None,
        },
        {"activation": getattr(module, "nonlinearity", "tanh"), "reverse": suffix.endswith("reverse")},
        changes=changes,
    )


def _read(tensor: torch.Tensor) -> Array:
    values = tensor.detach().cpu()
    return plain((values.float() if values.dtype == torch.bfloat16 else values).numpy())


def _write(own: torch.Tensor, value: Array) -> Change:
    def put(new: torch.Tensor) -> None:
        with torch.no_grad():
            own.copy_(new)

    new = torch.from_numpy(np.array(value)).to(own.dtype)
    return Change((id(own), ""), new, put, own.detach().clone())
