"""What every layer shares: modes, names, state, gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class IncompatibleKeys(NamedTuple):
    """What :meth:`Layer.load_state_dict` did not find, and what it had no place for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def check_floats(x: Array) -> None:
    """Raise TypeError unless ``x`` is a NumPy array of real floating-point numbers."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"expected a NumPy array, got {type(x).__name__}; convert it, e.g. with np.asarray")
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"expected floating-point numbers, got {x.dtype}; convert them, e.g. x.astype(np.float32)")


def check_gradient(dy: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``dy`` has the ``shape`` of the output it is the gradient of."""
    if dy.shape != shape:
        raise ValueError(f"expected dy of the shape of the layer's output, {shape}, got {dy.shape}")


class Layer(ABC):
    """A function with state. A subclass names its arrays, and implements :meth:`forward` and :meth:`backward`.

    Attributes
    ----------
    training : bool
        Whether :meth:`forward` is that of training. New layers are in training mode.
    parameter_names, buffer_names : tuple of str
        The attributes that are learnt, and those that are only remembered. An attribute that is None is absent.

    Notes
    -----
    A forward pass leaves in the layer what its backward pass needs, so neither ``x`` nor ``y`` nor a parameter must be
    changed in between, nor the layer be called twice. Copies and pickles do not carry it. ``copy.copy`` shares the
    arrays, ``copy.deepcopy`` none.

    A layer of your own keeps what it needs in ``self._cache`` and writes ``self.grads["weight"] = ...`` in
    :meth:`backward`; one made of other layers says which in :meth:`children`.
    """

    parameter_names: tuple[str, ...] = ()
    buffer_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.training = True
        self._grads: dict[str, Array] = {}
        self._cache: Any = None

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """The output for ``x``; ``layer(x)`` is the same."""

    @abstractmethod
    def backward(self, dy: Array) -> Array:
        """The gradient with respect to the last forward pass's ``x``, leaving those of the parameters in ``grads``."""

    def __call__(self, x: Array) -> Array:
        """The same as :meth:`forward`."""
        return self.forward(x)

    def train(self, mode: bool = True) -> Self:
        """Switch this layer, and all inside it, to training mode (or, with False, to evaluation mode)."""
        if not isinstance(mode, bool):
            raise ValueError(
                f"training mode is expected to be boolean, got {type(mode).__name__}; to train on data: training.fit"
            )
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch this layer, and all inside it, to evaluation mode."""
        return self.train(False)

    def children(self) -> dict[str, Layer]:
        """The layers directly inside this one, by name."""
        return {}

    def modules(self) -> Iterator[Layer]:
        """The layer itself and all inside it."""
        yield self
        for child in self.children().values():
            yield from child.modules()

    @property
    def grads(self) -> dict[str, Array]:
        """Gradient per parameter, of its shape and dtype. Each :meth:`backward` overwrites it; nothing accumulates."""
        return self._collect(lambda layer: layer._grads) if self.children() else self._grads

    def parameters(self) -> dict[str, Array]:
        """What is learnt, by name (``"0.weight"`` inside a Sequential): the layer's own arrays, not copies."""
        return self._collect(lambda layer: layer._named(layer.parameter_names))

    def buffers(self) -> dict[str, Array]:
        """What is remembered but not learnt (running statistics), by name: the layer's own arrays, not copies."""
        return self._collect(lambda layer: layer._named(layer.buffer_names))

    def _state(self) -> dict[str, Array]:
        return self._collect(lambda layer: layer._named(layer.parameter_names + layer.buffer_names))

    def _named(self, names: tuple[str, ...]) -> dict[str, Array]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _collect(self, own: Callable[[Layer], dict[str, Array]]) -> dict[str, Array]:
        """What ``own`` gives for this layer and, under their names, for those inside it."""
        collected = dict(own(self))
        for name, child in self.children().items():
            collected.update({f"{name}.{key}": array for key, array in child._collect(own).items()})
        return collected

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and buffers, named as in PyTorch.

        ``np.savez(path, **layer.state_dict())`` saves it, ``layer.load_state_dict(np.load(path))`` brings it back, and
        ``{name: torch.from_numpy(a) for name, a in layer.state_dict().items()}`` is for PyTorch's layer.
        """
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters and buffers from ``state``: all of them, or nothing where one does not fit.

        Parameters
        ----------
        state : mapping of str to array
            From :meth:`state_dict`, from ``np.load``, or from the PyTorch module of the same shape (CPU tensors are
            read as they are). Values are cast to the dtype of the layer's arrays.
        strict : bool
            Whether a missing or an unexpected name is an error. A wrong shape always is.

        Returns
        -------
        missing_keys, unexpected_keys : list of str
            Both empty if ``strict``.

        Raises
        ------
        RuntimeError
            Naming every missing key, unexpected key and wrong shape. Nothing has been changed.
        """
        own = self._state()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        loaded = {name: np.asarray(state[name]) for name in own if name in state}
        problems = [f"missing {name!r}" for name in missing if strict]
        problems += [f"unexpected {name!r}" for name in unexpected if strict]
        problems += [
            f"{name!r} has shape {array.shape}, expected {own[name].shape}"
            for name, array in loaded.items()
            if array.shape != own[name].shape
        ]
        if problems:
            raise RuntimeError(
                f"the state does not fit this {type(self).__name__}, nothing was loaded: {'; '.join(problems)}"
            )
        converted = {name: array.astype(own[name].dtype) for name, array in loaded.items()}  # may fail; below may not
        for name, array in converted.items():
            own[name][...] = array
        return IncompatibleKeys(missing, unexpected)

    def extra_repr(self) -> str:
        """What stands between the brackets of the layer's representation."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def _saved(self) -> Any:
        """What the forward pass left for the backward pass."""
        if self._cache is None:
            raise RuntimeError(
                f"expected a forward pass before {type(self).__name__}.backward, got none; call it first"
            )
        return self._cache

    def _keep_grads(self, **grads: Array) -> None:
        own = self.parameters()
        self._grads = {name: np.asarray(grad, own[name].dtype) for name, grad in grads.items() if name in own}
