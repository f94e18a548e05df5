r"""What a :class:`bnlearn.lab.Probe` can write down of a network, each a function of one :class:`bnlearn.lab.Moment`.

They are written for one network; the engine applies them to all replicas at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

from bnlearn.lab.data import Part
from bnlearn.lab.engine import Moment

__all__ = [
    "accuracy",
    "activation_moments",
    "covariate_shift",
    "effective_rank",
    "gradient_norms",
    "landscape",
    "loss",
    "update_ratio",
]


def _part(moment: Moment, name: str, samples: int | None) -> Part:
    if name not in moment.data._fields:
        raise ValueError(f"expected a part among {', '.join(moment.data._fields)}, got {name!r}")
    part: Part = getattr(moment.data, name)
    return Part(part.x[:samples], part.y[:samples])


def _ending(gradients: dict[str, Tensor], pattern: str) -> list[str]:
    names = [name for name in gradients if name.endswith(pattern)]
    if not names:
        raise ValueError(f"expected a learnt parameter whose name ends in {pattern!r}, got {', '.join(gradients)}")
    return names


def accuracy(moment: Moment, part: str = "test", training: bool = False, samples: int | None = None) -> Tensor:
    """Share of ``part`` that is classified right, in evaluation (or, with ``training``, as one batch)."""
    x, y = _part(moment, part, samples)
    return (moment.forward(x, training=training).argmax(1) == y).float().mean()


def loss(moment: Moment, part: str = "test", training: bool = False, samples: int | None = None) -> Tensor:
    """Mean cross-entropy over ``part``, in nats."""
    x, y = _part(moment, part, samples)
    return nnf.cross_entropy(moment.forward(x, training=training), y)


def activation_moments(moment: Moment, pattern: str = ".linear") -> dict[str, Tensor]:
    """Mean and standard deviation of each traced activation whose name ends in ``pattern``: (layers,)."""
    trace: dict[str, Tensor] = {}
    moment.forward(moment.batch[0], training=True, trace=trace)
    chosen = [value for name, value in trace.items() if name.endswith(pattern)]
    if not chosen:
        raise ValueError(f"expected a trace whose name ends in {pattern!r}, got {', '.join(trace)}")
    return {
        "mean": torch.stack([value.mean() for value in chosen]),
        "std": torch.stack([value.std(correction=0) for value in chosen]),
    }


def gradient_norms(moment: Moment, pattern: str = ".weight") -> Tensor:
    """Euclidean norm of the loss's gradient for each learnt parameter whose name ends in ``pattern``: (parameters,)."""
    gradients = moment.gradients()
    return torch.stack([gradients[name].norm() for name in _ending(gradients, pattern)])


def update_ratio(moment: Moment, pattern: str = ".weight") -> Tensor:
    """Size of the next plain gradient step over the size of the parameter, for each weight: (parameters,)."""
    rate = moment.knobs["lr"] * moment.rate
    gradients = moment.gradients()
    names = _ending(gradients, pattern)
    return torch.stack([rate * gradients[name].norm() / moment.parameters[name].norm() for name in names])


def landscape(moment: Moment, distances: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)) -> dict[str, Tensor]:
    r"""How loss and gradient change along the gradient of this step (Santurkar et al., 2018, section 3.1).

    At :math:`\theta - \eta \nabla L(\theta)` for each :math:`\eta` of ``distances``: the loss, the Euclidean distance
    of its gradient from that at :math:`\theta`, and their quotient by the distance moved ("effective smoothness").

    Returns
    -------
    dict
        ``"loss"``, ``"gradient"``, ``"smoothness"``: (distances,).
    """
    start = moment.gradients()
    norm = _norm(start)
    losses, changes, smoothness = [], [], []
    for distance in distances:
        moved = moment.parameters | {n: moment.parameters[n] - distance * g for n, g in start.items()}
        there = moment.gradients(moved)
        change = _norm({name: there[name] - start[name] for name in start})
        losses.append(moment.loss(moved))
        changes.append(change)
        smoothness.append(change / (distance * norm))
    return {"loss": torch.stack(losses), "gradient": torch.stack(changes), "smoothness": torch.stack(smoothness)}


def _norm(gradients: dict[str, Tensor]) -> Tensor:
    return torch.sqrt(sum((value.square().sum() for value in gradients.values()), torch.zeros(())))


def covariate_shift(moment: Moment, pattern: str = ".weight") -> dict[str, Tensor]:
    r"""Internal covariate shift (Santurkar et al., 2018, definition 2.1), for each layer.

    The gradient of a layer's weight before, and after, all EARLIER layers have taken their step
    (:math:`\theta - \mathrm{lr}\, \nabla L`), on the same batch: the Euclidean distance between the two, and the
    cosine of the angle. (The paper's definition; distance 0 and cosine 1 mean no shift.) Earlier are the parameters
    that the network names before the weight, less those that share its prefix: they are of the layer itself.

    Returns
    -------
    dict
        ``"distance"``, ``"relative"`` (over the norm of the first), ``"cosine"``: (layers,).
    """
    rate = moment.knobs["lr"] * moment.rate
    before = moment.gradients()
    order = list(before)
    distances, relative, cosines = [], [], []
    for name in _ending(before, pattern):
        layer = f"{name.rsplit('.', 1)[0]}."
        earlier = [other for other in order[: order.index(name)] if not other.startswith(layer)]
        moved = moment.parameters | {other: moment.parameters[other] - rate * before[other] for other in earlier}
        after = moment.gradients(moved)[name]
        distances.append((after - before[name]).norm())
        relative.append(distances[-1] / before[name].norm().clamp_min(1e-30))
        cosines.append(nnf.cosine_similarity(after.flatten(), before[name].flatten(), dim=0))
    return {
        "distance": torch.stack(distances),
        "relative": torch.stack(relative),
        "cosine": torch.stack(cosines),
    }


def effective_rank(moment: Moment, trace: str, samples: int = 128) -> Tensor:
    r"""Effective rank of the activations called ``trace`` (Roy and Vetterli, 2007): exp of the entropy of its spectrum.

    The singular values :math:`s_i` of the matrix (samples, C), normalised to :math:`p_i = s_i / \sum_j s_j`, give
    :math:`\exp(-\sum_i p_i \ln p_i)`: 1 if all samples are multiples of one, C at most. Values that are not finite
    count as zero.
    """
    seen: dict[str, Tensor] = {}
    moment.forward(moment.data.train.x[:samples], training=True, trace=seen)
    if trace not in seen:
        raise ValueError(f"expected a trace among {', '.join(seen)}, got {trace!r}")
    values = torch.nan_to_num(seen[trace], 0.0, 0.0, 0.0).flatten(1)
    values = values / values.abs().amax().clamp_min(1e-30)
    singular = torch.linalg.svdvals(values)
    share = singular / singular.sum().clamp_min(1e-30)
    return torch.exp(-torch.special.xlogy(share, share).sum())
