"""Checks of what follows from the formula, each on one random problem in float64; :mod:`.transform` declares them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnlearn.functional import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    instance_norm,
    layer_norm,
    sync_batch_norm,
    sync_batch_norm_backward,
    update_running,
)

Array = NDArray[np.float64]
Check = Callable[[np.random.Generator], float]


class Problem(NamedTuple):
    """An input of shape (N, C, *spatial), a scale and a shift of shape (C,), and a gradient of the input's shape."""

    x: Array
    gamma: Array
    beta: Array
    dy: Array


def problem(rng: np.random.Generator, spatial: tuple[int, ...] | None = None) -> Problem:
    """A random one; without ``spatial``, with none, one or two spatial axes."""
    spatial = ((), (5,), (3, 4))[rng.integers(3)] if spatial is None else spatial
    shape = (int(rng.integers(4, 17)), int(rng.integers(2, 9)), *spatial)
    channels, each = shape[1], (1, shape[1], *(1,) * (len(shape) - 2))
    x = rng.normal(size=shape) * 10 ** rng.uniform(-0.5, 1, each) + rng.uniform(-5, 5, each)
    return Problem(x, rng.uniform(0.5, 2, channels), rng.normal(size=channels), rng.normal(size=shape))


def channels(x: Array) -> tuple[int, ...]:
    """All axes but that of the channels."""
    return (0, *range(2, x.ndim))


def column(values: Any, x: Any) -> Any:
    """(C,) as it broadcasts over (N, C, *spatial)."""
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


def off(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value that was expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def random(seed: int) -> np.random.Generator:
    """The numbers of one problem."""
    return np.random.default_rng([20150211, seed])


# A1 and A2: what the outputs are, and how to undo it.


def mean_of_outputs(rng: np.random.Generator) -> float:
    """The largest mean of a channel."""
    y, _ = batch_norm(x := problem(rng).x)
    return float(np.abs(y.mean(axis=channels(x))).max())


def variance_formula(rng: np.random.Generator) -> float:
    """The variances of the outputs against var / (var + eps)."""
    x = problem(rng).x * 10 ** rng.uniform(-4, 1)
    var = x.var(axis=channels(x))
    return off(batch_norm(x)[0].var(axis=channels(x)), var / (var + 1e-5))


def variance_of_outputs(low: float, high: float) -> Check:
    """How far it is from 1, for inputs whose variance lies between two bounds."""

    def check(rng: np.random.Generator) -> float:
        x = batch_norm(problem(rng).x, eps=0)[0]
        x = x * np.sqrt(column(10 ** rng.uniform(np.log10(low), np.log10(high), x.shape[1]), x))
        return float(np.abs(batch_norm(x)[0].var(axis=channels(x)) - 1).max())

    return check


def undone(rng: np.random.Generator) -> float:
    """Batch norm with gamma = sqrt(var + eps) and beta = mean, against its input."""
    x = problem(rng).x
    mean, var = x.mean(axis=channels(x)), x.var(axis=channels(x))
    return off(batch_norm(x, np.sqrt(var + 1e-5), mean)[0], x)


# A3: is it linear, up to a constant?


def departure(f: Callable[[Array], Any], x: Array, other: Array) -> Any:
    """How far f of a mixture is from the mixture of f: nothing, for an affine map."""
    return f(0.3 * x + 0.7 * other) - 0.3 * f(x) - 0.7 * f(other)


def linearity(rng: np.random.Generator) -> tuple[float, float, float]:
    """How far batch norm is from affine: at inference, in training, and what of that gamma and beta add."""
    x, gamma, beta, other = problem(rng)
    mean, var = rng.normal(size=len(gamma)), rng.uniform(0.1, 5, len(gamma))

    def inference(x: Array) -> Any:
        return batch_norm(x, gamma, beta, mean=mean, var=var)[0]

    def training(x: Array) -> Any:
        return batch_norm(x, gamma, beta)[0]

    still, live = departure(inference, x, other), departure(training, x, other)
    added = live - column(gamma, x) * departure(lambda x: batch_norm(x)[0], x, other)
    size = np.abs(training(x)).max()
    parts = still / np.abs(inference(x)).max(), live / size, added / size
    at_inference, in_training, by_gamma_and_beta = (float(np.abs(part).max()) for part in parts)
    return at_inference, in_training, by_gamma_and_beta


# A4: a bias in front.


def bias_gradient(rng: np.random.Generator) -> float:
    """The gradient of a bias in front of batch norm, relative to the sum of sizes that it is the sum of."""
    x, gamma, beta, dy = map(torch.from_numpy, problem(rng))
    bias = torch.from_numpy(rng.normal(size=len(gamma))).requires_grad_()
    before = x + column(bias, x)
    loss = (torch.tanh(batch_norm(before, gamma, beta)[0]) * dy).sum()
    of_bias, of_sum = torch.autograd.grad(loss, (bias, before))
    return float(of_bias.abs().max() / of_sum.abs().sum())


def bias_in_outputs(rng: np.random.Generator) -> float:
    """How the outputs change with a bias in front."""
    x, gamma, beta, _ = problem(rng)
    return off(
        batch_norm(x + column(10 * rng.normal(size=len(gamma)), x), gamma, beta)[0], batch_norm(x, gamma, beta)[0]
    )


# A5: one sample.


def alone(rng: np.random.Generator) -> float:
    """A sample at inference, alone and in its batch."""
    x, gamma, beta, _ = problem(rng)
    mean, var = rng.normal(size=len(gamma)), rng.uniform(0.1, 5, len(gamma))
    together, _ = batch_norm(x, gamma, beta, mean=mean, var=var)
    return off(batch_norm(x[:1], gamma, beta, mean=mean, var=var)[0], together[:1])


def among_others(rng: np.random.Generator) -> float:
    """A sample in training, beside other samples."""
    x, gamma, beta, _ = problem(rng)
    others = x.copy()
    others[1:] = rng.normal(size=x[1:].shape) * x.std() + x.mean()
    return off(batch_norm(others, gamma, beta)[0][0], batch_norm(x, gamma, beta)[0][0])


# A6: scale-invariant weights.


class Scaled(NamedTuple):
    """The loss of a small network and its gradient, at weights w and at a * w."""

    w: Tensor
    a: float
    loss: Tensor
    grad: Tensor
    loss_scaled: Tensor
    grad_scaled: Tensor


def scaled(rng: np.random.Generator) -> Scaled:
    """A random network at w and at a * w."""
    x, labels = torch.from_numpy(rng.normal(size=(16, 6))), torch.from_numpy(rng.integers(3, size=16))
    w, out = torch.from_numpy(rng.normal(size=(8, 6))), torch.from_numpy(rng.normal(size=(3, 8)))
    gamma, beta = torch.from_numpy(rng.uniform(0.5, 2, 8)), torch.from_numpy(rng.normal(size=8))

    def at(weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = weight.clone().requires_grad_()
        hidden = torch.relu(batch_norm(x @ weight.T, gamma, beta, eps=0)[0])
        loss = torch.nn.functional.cross_entropy(hidden @ out.T, labels)
        return loss.detach(), torch.autograd.grad(loss, weight)[0]

    a = float(10 ** rng.uniform(-2, 2))
    return Scaled(w, a, *at(w), *at(a * w))


def same_loss(rng: np.random.Generator) -> float:
    """The losses at w and at a * w."""
    one = scaled(rng)
    return off(one.loss_scaled, one.loss)


def smaller_gradient(rng: np.random.Generator) -> float:
    """The gradient at w against a times that at a * w."""
    one = scaled(rng)
    return off(one.a * one.grad_scaled, one.grad)


def orthogonal(rng: np.random.Generator) -> float:
    """The largest cosine between the weights of a unit and their gradient."""
    one = scaled(rng)
    return float(((one.w * one.grad).sum(1).abs() / one.w.norm(dim=1) / one.grad.norm(dim=1).clamp_min(1e-300)).max())


# A7: the gradient of the input.


def sum_of_gradient(rng: np.random.Generator) -> float:
    """The sum of dx over a channel, relative to the sum of sizes."""
    x, gamma, beta, dy = problem(rng)
    dx = batch_norm_backward(dy, batch_norm(x, gamma, beta, eps=1e-3)[1])[0]
    return float((np.abs(dx.sum(axis=channels(x))) / np.abs(dx).sum(axis=channels(x))).max())


def gradient_along_outputs(rng: np.random.Generator) -> float:
    """The product of dx and x_hat over a channel, relative to the sum of sizes."""
    x, gamma, beta, dy = problem(rng)
    _, cache = batch_norm(x, gamma, beta, eps=0)
    along = batch_norm_backward(dy, cache)[0] * cache.x_hat
    return float((np.abs(along.sum(axis=channels(x))) / np.abs(along).sum(axis=channels(x))).max())


# A8: the same formula over other axes.


def one_group(rng: np.random.Generator) -> float:
    """Group norm of one group against layer norm."""
    x = problem(rng).x
    return off(group_norm(x, groups=1)[0], layer_norm(x, axes=tuple(range(1, x.ndim)))[0])


def groups_of_one(rng: np.random.Generator) -> float:
    """Group norm of a group per channel against instance norm."""
    x, gamma, beta, _ = problem(rng, (3, 4))
    return off(group_norm(x, gamma, beta, groups=len(gamma))[0], instance_norm(x, gamma, beta)[0])


def batches_of_one(rng: np.random.Generator) -> float:
    """Instance norm against batch norm of each sample alone."""
    x, gamma, beta, _ = problem(rng, (3, 4))
    singly = np.concatenate([batch_norm(sample, gamma, beta)[0] for sample in np.split(x, len(x))])
    return off(instance_norm(x, gamma, beta)[0], singly)


# A9 and A10: what frameworks do.


def folded_linear(rng: np.random.Generator) -> float:
    """A linear layer with PyTorch's batch norm folded into it, against the two one after the other."""
    layer, norm = torch.nn.Linear(5, 4).double(), torch.nn.BatchNorm1d(4).double()
    x = drawn(rng, (7, 5), layer, norm)
    with torch.no_grad():
        return off(fuse_linear_bn_eval(layer.eval(), norm.eval())(x), norm(layer(x)))


def folded_convolution(rng: np.random.Generator) -> float:
    """The same of a convolution."""
    layer, norm = torch.nn.Conv2d(3, 4, 3).double(), torch.nn.BatchNorm2d(4).double()
    x = drawn(rng, (2, 3, 6, 5), layer, norm)
    with torch.no_grad():
        return off(fuse_conv_bn_eval(layer.eval(), norm.eval())(x), norm(layer(x)))


def drawn(rng: np.random.Generator, shape: tuple[int, ...], *modules: torch.nn.Module) -> Tensor:
    """A random input, after filling all parameters and buffers of the modules; variances are positive."""
    for module in modules:
        state = {name: torch.from_numpy(rng.normal(size=value.shape)) for name, value in module.state_dict().items()}
        module.load_state_dict({name: v.abs() + 0.1 if name == "running_var" else v for name, v in state.items()})
    return torch.from_numpy(rng.normal(size=shape))


def torch_statistics(rng: np.random.Generator) -> float:
    """PyTorch's running statistics after a batch against ours, which follow its documentation."""
    x, gamma, _, _ = problem(rng)
    old, momentum = (rng.normal(size=len(gamma)), rng.uniform(0.1, 5, len(gamma))), float(rng.uniform(0.05, 0.5))
    kept = [torch.from_numpy(one.copy()) for one in old]
    torch.nn.functional.batch_norm(torch.from_numpy(x), kept[0], kept[1], training=True, momentum=momentum)
    _, cache = batch_norm(x)
    ours = update_running(*old, cache.mean, cache.var, x.size // x.shape[1], momentum=momentum)
    return max(off(found, expected) for found, expected in zip(kept, ours, strict=True))


def keras_statistics(rng: np.random.Generator) -> float:
    """Keras's documented rule, from PyTorch's running statistics: 1 - m, and (n - 1) / n of the variance.

    Both start from zero, so that the running statistics are the shares of the new batch.
    """
    x = problem(rng).x
    n, momentum = x.size // x.shape[1], float(rng.uniform(0.5, 0.95))
    keras = [(1 - momentum) * moment for moment in (x.mean(axis=channels(x)), x.var(axis=channels(x)))]
    kept = [torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(2)]
    torch.nn.functional.batch_norm(torch.from_numpy(x), kept[0], kept[1], training=True, momentum=1 - momentum)
    return max(off(kept[0], keras[0]), off(kept[1] * (n - 1) / n, keras[1]))


def torch_outputs(rng: np.random.Generator) -> float:
    """PyTorch's outputs against ours."""
    x, gamma, beta, _ = problem(rng)
    batch, scale, shift = map(torch.from_numpy, (x, gamma, beta))
    theirs = torch.nn.functional.batch_norm(batch, None, None, scale, shift, training=True)
    return off(theirs, batch_norm(x, gamma, beta)[0])


# A11 and A12: a batch in parts.


def synced_forward(rng: np.random.Generator) -> float:
    """How far the outputs of synchronised batch norm over three shards are from those of the whole batch."""
    return shards(rng)[0]


def synced_backward(rng: np.random.Generator) -> float:
    """The same of the gradients of input, scale and shift."""
    return shards(rng)[1]


def shards(rng: np.random.Generator) -> tuple[float, float]:
    """How far synchronised batch norm is from that of the whole batch: outputs, and the three gradients."""
    x, gamma, beta, dy = problem(rng)
    cuts = np.sort(rng.choice(np.arange(1, len(x)), size=2, replace=False))
    y, cache = batch_norm(x, gamma, beta)
    parts, synced = sync_batch_norm(np.split(x, cuts), gamma, beta)
    dx, *rest = sync_batch_norm_backward(np.split(dy, cuts), synced)
    expected = batch_norm_backward(dy, cache)
    pairs = zip((np.concatenate(dx), *rest), expected, strict=True)
    return off(np.concatenate(parts), y), max(off(found, one) for found, one in pairs)


def accumulated(norm: str, parts: int) -> Check:
    """How far gradients accumulated over parts of a batch are from those of the batch, in a small network."""

    def check(rng: np.random.Generator) -> float:
        x, labels = torch.from_numpy(rng.normal(size=(32, 6))), torch.from_numpy(rng.integers(3, size=32))
        weights = [torch.from_numpy(rng.normal(size=shape)).requires_grad_() for shape in ((8, 6), (3, 8))]
        gamma, beta = torch.from_numpy(rng.uniform(0.5, 2, 8)), torch.from_numpy(rng.normal(size=8))
        normalize = batch_norm if norm == "batch" else layer_norm

        def gradient(rows: Tensor) -> Tensor:
            hidden = torch.relu(normalize(x[rows] @ weights[0].T, gamma, beta)[0])
            loss = torch.nn.functional.cross_entropy(hidden @ weights[1].T, labels[rows])
            return torch.cat([one.ravel() for one in torch.autograd.grad(loss, weights)])

        whole = gradient(torch.arange(32))
        mean = torch.stack([gradient(rows) for rows in torch.arange(32).chunk(parts)]).mean(0)
        return float((mean - whole).norm() / whole.norm())

    return check


# A13 to A16: what introductions leave out.


def replayed(rng: np.random.Generator) -> float:
    """PyTorch with momentum 1, evaluated on the batch it has just seen, against what the two variances imply."""
    x = problem(rng).x
    n, kept = x.size // x.shape[1], [torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(2)]
    batch = torch.from_numpy(x)
    y = torch.nn.functional.batch_norm(batch, kept[0], kept[1], training=True, momentum=1.0, eps=1e-15)
    return off(torch.nn.functional.batch_norm(batch, kept[0], kept[1], eps=1e-15), y * np.sqrt((n - 1) / n))


def rescaled(eps: float, low: float, high: float) -> Check:
    """How the outputs change as inputs of variance 1 are shifted and made as many times larger."""

    def check(rng: np.random.Generator) -> float:
        x = batch_norm(problem(rng).x, eps=0)[0]
        a = column(10 ** rng.uniform(np.log10(low), np.log10(high), x.shape[1]), x)
        b = column(rng.normal(size=x.shape[1]), x)
        return off(batch_norm(a * (x + b), eps=eps)[0], x)

    return check


def two_samples(rng: np.random.Generator) -> float:
    """How far the outputs for a batch of two are from the sign of the difference."""
    x = problem(rng, ()).x[:2]
    return off(batch_norm(x, eps=0)[0], np.sign(x - x[::-1]))


def beyond_the_bound(rng: np.random.Generator) -> float:
    """By how much an output exceeds sqrt(n - 1), for inputs with heavy tails."""
    shape = (int(rng.integers(3, 100)), 8)
    return max(0.0, float(np.abs(batch_norm(rng.standard_cauchy(shape), eps=0)[0]).max() / np.sqrt(shape[0] - 1)) - 1)


def one_outlier(rng: np.random.Generator) -> float:
    """How far the largest output is from sqrt(n - 1), where all values but one are the same."""
    n = int(rng.integers(3, 100))
    x = np.full((n, 1), rng.normal())
    x[rng.integers(n)] += 10 ** rng.uniform(-1, 3)
    return off(np.abs(batch_norm(x, eps=0)[0]).max(), np.sqrt(n - 1))
