"""Enough to train the networks of :mod:`bnlearn.layers`: a loss, two optimisers, and the loop that every book has."""

from __future__ import annotations

import math
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bnlearn.layers import Layer

__all__ = ["SGD", "Adam", "History", "Optimizer", "evaluate", "fit", "softmax_cross_entropy"]

Array: TypeAlias = NDArray[Any]


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean of ``-log(softmax(logits)[label])`` over the batch, and its gradient.

    Parameters
    ----------
    logits : array, shape (N, K)
        Any real numbers; larger is likelier. N is at least 1.
    labels : array of integers, shape (N,)
        The right class of each sample, from 0 to K - 1.

    Returns
    -------
    loss : float
        In nats: log(K) for a model that knows nothing.
    dlogits : array, shape (N, K)
        Gradient of the loss, ``(softmax - one_hot) / N``, of the dtype of ``logits``.

    Raises
    ------
    TypeError
        If the logits are not floating-point numbers or the labels not integers.
    ValueError
        If a shape does not fit, the batch is empty, or a label is out of range.

    Examples
    --------
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(loss, 4), dlogits
    (0.6931, array([[-0.5,  0.5]]))
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if not np.issubdtype(logits.dtype, np.floating):
        raise TypeError(f"expected logits of a floating-point dtype, got {logits.dtype}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"expected integer labels, got {labels.dtype}; from one-hot labels, take labels.argmax(axis=1)")
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"expected logits of shape (N, K), with N and K at least 1, got {logits.shape}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"expected labels of shape {logits.shape[:1]}, one per row of logits, got {labels.shape}")
    n, k = logits.shape
    if labels.min() < 0 or labels.max() >= k:
        first = int(np.flatnonzero((labels < 0) | (labels >= k))[0])
        raise ValueError(f"expected labels from 0 to {k - 1}, one of {k} logits, got {labels[first]} at index {first}")

    wide = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
    shifted = wide - wide.max(axis=1, keepdims=True)  # the same softmax, and exp cannot overflow
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(n)
    loss = -float(log_softmax[rows, labels].mean()) + 0.0  # no -0.0 for a perfect prediction
    dlogits = np.exp(log_softmax)
    dlogits[rows, labels] -= 1
    return loss, (dlogits / n).astype(logits.dtype, copy=False)


class Optimizer(ABC):
    """Changes a model's parameters, in place, by the gradients of its last backward pass."""

    def __init__(self, model: Layer, lr: float, weight_decay: float = 0.0) -> None:
        if not lr >= 0:
            raise ValueError(f"expected a learning rate lr >= 0, got {lr}")
        if not weight_decay >= 0:
            raise ValueError(f"expected weight_decay >= 0, got {weight_decay}")
        self.model, self.lr, self.weight_decay = model, lr, weight_decay
        self.steps = 0

    def step(self) -> None:
        """Update every parameter once.

        Raises
        ------
        RuntimeError
            If a parameter has no gradient yet. Nothing has been changed.
        """
        parameters, grads = self.model.parameters(), self.model.grads
        missing = [name for name in parameters if name not in grads]
        if missing:
            raise RuntimeError(
                f"expected a gradient for every parameter, got none for {', '.join(missing)}; call backward"
            )
        self.steps += 1
        for name, parameter in parameters.items():
            decay = self.weight_decay * parameter if self.weight_decay else 0
            parameter -= self._change(name, grads[name] + decay)

    @abstractmethod
    def _change(self, name: str, grad: Array) -> Array:
        """What to take from the parameter ``name``, whose gradient (with weight decay) is ``grad``."""


class SGD(Optimizer):
    """Stochastic gradient descent, as ``torch.optim.SGD``.

    ``velocity = momentum * velocity + grad + weight_decay * parameter``; ``parameter -= lr * velocity``.

    Parameters
    ----------
    model : Layer
        Whose parameters to change. The decay is on all of them, gamma and beta too, as in PyTorch.
    lr : float
        Learning rate.
    momentum, weight_decay : float
        0 turns each off. This momentum has nothing to do with that of the running statistics.
    """

    def __init__(self, model: Layer, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(model, lr, weight_decay)
        if not momentum >= 0:
            raise ValueError(f"expected momentum >= 0, got {momentum}")
        self.momentum = momentum
        self._velocity: dict[str, Array] = {}

    def _change(self, name: str, grad: Array) -> Array:
        if self.momentum:
            self._velocity[name] = grad = self.momentum * self._velocity.get(name, np.zeros_like(grad)) + grad
        change: Array = self.lr * grad
        return change


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), as ``torch.optim.Adam``.

    Parameters
    ----------
    model : Layer
        Whose parameters to change.
    lr : float
        Learning rate, about the size of each change.
    betas : (float, float)
        Decay of the averages of the gradient and of its square.
    eps : float
        Added to the root of the latter.
    weight_decay : float
        Added to the gradient, times the parameter (L2; not the decoupled decay of AdamW).
    """

    def __init__(
        self,
        model: Layer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(model, lr, weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"expected both betas from 0 to below 1, got {betas}")
        if not eps >= 0:
            raise ValueError(f"expected eps >= 0, got {eps}")
        self.betas, self.eps = betas, eps
        self._mean: dict[str, Array] = {}
        self._square: dict[str, Array] = {}

    def _change(self, name: str, grad: Array) -> Array:
        zeros = np.zeros_like(grad)
        first, second = self.betas
        self._mean[name] = first * self._mean.get(name, zeros) + (1 - first) * grad
        self._square[name] = second * self._square.get(name, zeros) + (1 - second) * grad * grad
        mean = self._mean[name] / (1 - first**self.steps)  # the averages start at zero: undo that bias
        square = self._square[name] / (1 - second**self.steps)
        change: Array = self.lr * mean / (np.sqrt(square) + self.eps)
        return change


@dataclass
class History:
    """What :func:`fit` saw.

    Attributes
    ----------
    loss : list of float
        Of each step, on its batch, before the update.
    validation_loss, validation_accuracy : list of float
        After each epoch, in evaluation mode; empty without validation data.
    epochs : int
        Epochs completed.
    interrupted : bool
        Whether Ctrl-C ended it early.
    diverged : bool
        Whether a loss that is not finite ended it early; it is the last of ``loss``.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    epochs: int = 0
    interrupted: bool = False
    diverged: bool = False


@contextmanager
def _mode(model: Layer, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode, and then every layer of it in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only makes the function that this yields return True; a second one is as usual.

    Otherwise it could strike in the middle of an update and leave half of the parameters changed.
    """
    asked = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    # Elsewhere Ctrl-C either does not arrive (other threads) or belongs to someone else (another handler).
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _progress_bar(total: int, show: bool) -> Any:
    """A tqdm bar for terminal or notebook, or None where it is not wanted or tqdm is not installed."""
    if not show:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets the text bar, and need not be told
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit="step")


def _check_data(data: tuple[Array, Array], name: str) -> tuple[Array, Array]:
    x, y = np.asarray(data[0]), np.asarray(data[1])
    if len(x) != len(y) or not len(x):
        raise ValueError(
            f"expected {name} data with as many labels as samples, at least one, got {len(x)} samples and "
            f"{len(y)} labels"
        )
    return x, y


def fit(
    model: Layer,
    train: tuple[Array, Array],
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int,
    seed: int | np.random.Generator,
    validation: tuple[Array, Array] | None = None,
    progress: bool = True,
    callback: Callable[[Layer, History], object] | None = None,
    drop_last: bool = False,
) -> History:
    r"""Train a classifier with :func:`softmax_cross_entropy`, in place.

    Parameters
    ----------
    model : Layer
        From x to logits (N, K). All of it is put into training mode, and back into its present modes in the end.
    train : (x, y)
        Samples, shape (N, \*shape), and integer labels, shape (N,); a ``datasets.Part``.
    optimizer : Optimizer
        Of this model.
    epochs, batch_size : int
        How often to go through the data, and how many samples each step takes.
    seed : int or numpy.random.Generator
        Shuffles the data, anew in each epoch. The same seed gives the same training, bit for bit on one machine.
    validation : (x, y), optional
        Evaluated after each epoch.
    progress : bool
        Whether to show a bar, with tqdm if it is installed, and to say why training ended early.
    callback : callable, optional
        Called as ``callback(model, history)`` after each step.
    drop_last : bool
        Whether to leave out the last batch of an epoch when it is short, as in PyTorch's DataLoader. Needed where
        that is a single sample and BatchNorm1d normalises it, shape (1, C): one value per channel has no variance.

    Returns
    -------
    history : History
        Also of a training that ended early. Ctrl-C ends it after the step under way, with the model as that step left
        it (a second Ctrl-C does not wait). A loss that is NaN or infinite ends it before the update; running statistics
        have then met that batch.

    Raises
    ------
    ValueError
        If the data is empty, labels and samples differ in number, a count is not positive, the optimiser belongs to
        another model, or ``drop_last`` leaves nothing.
    """
    x, y = _check_data(train, "training")
    if validation is not None:
        _check_data(validation, "validation")
    if epochs < 0 or batch_size < 1:
        raise ValueError(f"expected epochs >= 0 and batch_size >= 1, got {epochs} and {batch_size}")
    if optimizer.model is not model:
        raise ValueError("expected the optimizer of this model, got that of another; make one with this model")
    starts = range(0, len(x) - batch_size + 1 if drop_last else len(x), batch_size)
    if not starts:
        raise ValueError(f"expected at least one full batch of {batch_size}, got {len(x)} samples; lower batch_size")

    rng = np.random.default_rng(seed)
    history = History()
    bar = _progress_bar(epochs * len(starts), progress)
    try:
        with _mode(model, training=True), _interrupt_between_steps() as interrupted:
            for epoch in range(1, epochs + 1):
                order = rng.permutation(len(x))
                for start in starts:
                    batch = order[start : start + batch_size]
                    loss, dlogits = softmax_cross_entropy(model(x[batch]), y[batch])
                    history.loss.append(loss)
                    if not math.isfinite(loss):
                        history.diverged = True
                        return history
                    model.backward(dlogits)
                    optimizer.step()
                    if bar is not None:
                        bar.set_postfix_str(f"epoch {epoch}, loss {loss:.3f}", refresh=False)
                        bar.update()
                    if callback is not None:
                        callback(model, history)
                    if interrupted():
                        raise KeyboardInterrupt
                if validation is not None:
                    validation_loss, accuracy = evaluate(model, validation)
                    history.validation_loss.append(validation_loss)
                    history.validation_accuracy.append(accuracy)
                history.epochs = epoch
                if interrupted():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        if bar is not None:
            bar.close()
        if progress and (history.interrupted or history.diverged):
            why = "interrupted" if history.interrupted else f"the loss is {history.loss[-1]}, try a smaller lr"
            print(f"fit ended in step {len(history.loss)}, after {history.epochs} of {epochs} epochs: {why}")
    return history


def evaluate(model: Layer, data: tuple[Array, Array], batch_size: int = 256) -> tuple[float, float]:
    r"""Mean loss and accuracy on ``data``, in evaluation mode; every layer is then put back into its mode.

    Parameters
    ----------
    model : Layer
        From x to logits (N, K).
    data : (x, y)
        Samples, shape (N, \*shape), and integer labels, shape (N,).
    batch_size : int
        Samples at a time. It bounds the memory; the result depends on it only if a layer has no running statistics.

    Returns
    -------
    loss, accuracy : float
        Means over the samples; the accuracy is from 0 to 1.

    Raises
    ------
    ValueError
        If the data is empty, labels and samples differ in number, or ``batch_size`` is not positive.
    """
    x, y = _check_data(data, "evaluation")
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    loss, correct = 0.0, 0
    with _mode(model, training=False):
        for start in range(0, len(x), batch_size):
            labels = y[start : start + batch_size]
            logits = model(x[start : start + batch_size])
            loss += softmax_cross_entropy(logits, labels)[0] * len(labels)
            correct += int((logits.argmax(axis=1) == labels).sum())
    return loss / len(x), correct / len(x)
