"""A network: layers one after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import overload

from bnlearn.layers._base import Array, Layer


class Sequential(Layer):
    """One layer after the other, as ``torch.nn.Sequential``; names count from zero (``"0.weight"``).

    Parameters
    ----------
    *layers : Layer
        Each object once: a layer remembers one forward pass only.

    Raises
    ------
    TypeError
        If something is not a Layer.
    ValueError
        If a layer comes twice.

    Examples
    --------
    >>> import numpy as np
    >>> from bnlearn.layers import BatchNorm1d, Linear, ReLU
    >>> rng = np.random.default_rng(0)
    >>> model = Sequential(Linear(64, 32, bias=False, rng=rng), BatchNorm1d(32), ReLU(), Linear(32, 10, rng=rng))
    >>> list(model.parameters())
    ['0.weight', '1.weight', '1.bias', '3.weight', '3.bias']
    >>> y = model(rng.standard_normal((5, 64)))
    >>> dx = model.backward(np.ones_like(y))
    >>> model.grads["0.weight"].shape
    (32, 64)
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"expected layers, got {type(layer).__name__}; write Sequential(first, second, ...)")
        self._layers = layers
        seen: set[int] = set()
        for module in self.modules():
            if id(module) in seen:
                raise ValueError(f"expected every layer once, got {module} twice; make a second one")
            seen.add(id(module))

    def forward(self, x: Array) -> Array:
        """Through all layers, from the first to the last."""
        for layer in self._layers:
            x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Through all layers, from the last to the first."""
        for layer in reversed(self._layers):
            dy = layer.backward(dy)
        return dy

    def activations(self, x: Array) -> dict[str, Array]:
        """The output of each layer for ``x`` in the present mode, by name (``"0.Linear"``), changing nothing.

        A copy of the model does the work, so running statistics and what :meth:`backward` needs stay as they are.
        """
        outputs = {}
        for index, layer in enumerate(copy.deepcopy(self)):
            outputs[f"{index}.{type(layer).__name__}"] = x = layer(x)
        return outputs

    def gradients(self, dy: Array) -> dict[str, Array]:
        """The gradient with respect to the output of each layer, by name (``"0.Linear"``), in the order of the layers.

        This is :meth:`backward` (after a forward pass, and leaving ``grads`` too), writing down what it passes on.
        """
        passed = {}
        for index, layer in reversed(list(enumerate(self._layers))):
            passed[f"{index}.{type(layer).__name__}"] = dy
            dy = layer.backward(dy)
        return dict(reversed(passed.items()))

    def children(self) -> dict[str, Layer]:
        """The layers under their names, ``"0"``, ``"1"``, ..."""
        return {str(index): layer for index, layer in enumerate(self._layers)}

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequential:
        return Sequential(*self._layers[index]) if isinstance(index, slice) else self._layers[index]

    def __repr__(self) -> str:
        if not self._layers:
            return "Sequential()"
        lines = [f"({index}): {layer!r}".replace("\n", "\n  ") for index, layer in enumerate(self)]
        return "Sequential(\n  " + "\n  ".join(lines) + "\n)"
