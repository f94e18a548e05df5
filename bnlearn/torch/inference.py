r"""The statistics at inference: the example weighed in, and a whole model adapted to another domain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnlearn.functional import Moments, adapt_statistics, example_weighing, merge_moments, moments
from bnlearn.torch.repairs import _Repair

__all__ = ["ExampleWeighing", "adapt_batch_norm"]


class ExampleWeighing(_Repair):
    r"""Batch normalisation that weighs the example into the statistics at inference.

    Training is that of ``torch.nn.BatchNorm2d``; evaluation is :func:`bnlearn.functional.example_weighing`.

    Parameters
    ----------
    num_features : int
        Number of channels C.
    example_weight : float
        The example's share of the statistics in evaluation mode, from 0 (plain inference) to 1. An attribute of that
        name may be changed at any time, and is meant to be: choose it on validation data.
    eps, momentum, affine, device, dtype
        As in ``torch.nn.BatchNorm2d``.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked
        As in ``torch.nn.BatchNorm2d``, whose state can be loaded.

    Raises
    ------
    ValueError
        If ``example_weight`` is outside [0, 1], the input has fewer than two axes or another number of channels, or
        there is one value per channel in training.

    Examples
    --------
    >>> trained = torch.nn.BatchNorm1d(1)
    >>> layer = ExampleWeighing(1, example_weight=0.5).eval()
    >>> layer.load_state_dict(trained.state_dict())
    <All keys matched successfully>
    >>> print(layer(torch.tensor([[[3.0, 5.0]]])).detach().round(decimals=3))
    tensor([[[0.4470, 1.3420]]])
    """

    def __init__(
        self,
        num_features: int,
        example_weight: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        if not 0 <= example_weight <= 1:
            raise ValueError(f"expected example_weight from 0 to 1, got {example_weight}")
        self.example_weight = example_weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        r"""Normalise ``input``, shape (N, C, \*spatial), and in training mode update the running statistics."""
        if self.training:
            self._check_batch(input)
            return super().forward(input)
        self._check_input_dim(input)
        y: torch.Tensor
        y, _ = example_weighing(
            input,
            self.weight,
            self.bias,
            mean=self.running_mean,
            var=self.running_var,
            weight=self.example_weight,
            eps=self.eps,
        )
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        common: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return common.replace(",", f", example_weight={self.example_weight},", 1)


def _input_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (list, tuple)) else batch


def adapt_batch_norm(model: nn.Module, batches: Iterable[Any], *, prior: float = 0.0) -> nn.Module:
    r"""Replace the running statistics of a trained model by those of another domain: adaptive batch normalisation.

    No label is needed and no weight changes: each batch normalisation in ``model`` gets the mean and variance that its
    inputs have on the target's data (AdaBN; Li et al. 2016), or a mix of these with the old ones
    (:func:`bnlearn.functional.adapt_statistics`; Schneider et al. 2020).

    Every layer sees inputs that the layers before it have normalised by the target's statistics as far as collected,
    this batch included. Those are merged over the batches exactly (:func:`bnlearn.functional.merge_moments`): what the
    means of the batches differ by counts too, and a short last batch as what it is. One large batch is best; with many,
    the first see statistics of a few samples.

    Parameters
    ----------
    model : Module
        Changed in place: ``running_mean`` and ``running_var`` of every ``torch.nn.BatchNorm1d``, ``2d``, ``3d``,
        ``SyncBatchNorm``, or other layer with their base class and running statistics. The variance is the unbiased
        one, as in training.
    batches : iterable
        Of inputs for ``model``, or of tuples or lists with the input first (a ``DataLoader``, say). They must be on the
        model's device.
    prior : float
        How many samples the old statistics count for, not negative. With 0 they count for nothing.

    Returns
    -------
    Module
        The same model, its modules in the modes they were in.

    Raises
    ------
    ValueError
        If ``model`` has no such layer, ``batches`` is empty, a layer was given no data or one value per channel only,
        or ``prior`` is negative. Whatever is raised, here or by the model: it is as it was.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1, affine=False)).eval()
    >>> target = torch.tensor([[9.0], [11.0]])
    >>> model = adapt_batch_norm(model, [target])
    >>> print(model[0].running_mean, model[0].running_var)
    tensor([10.]) tensor([2.])
    """
    if not prior >= 0:
        raise ValueError(f"expected prior, the samples that the old statistics count for, >= 0, got {prior}")
    layers: dict[nn.Module, str] = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
    if not layers:
        raise ValueError(f"expected a model with batch normalisation, got {type(model).__name__} without")
    modes = {module: module.training for module in model.modules()}
    before: dict[Any, tuple[Any, Any]] = {
        layer: (layer.running_mean.clone(), layer.running_var.clone())  # type: ignore[operator]
        for layer in layers
    }
    collected: dict[Any, tuple[Moments, int]] = {}

    def collect(layer: Any, inputs: Any) -> None:
        x = inputs[0]
        found, samples = moments(x), x.shape[0]
        if layer in collected:
            found, samples = merge_moments(collected[layer][0], found), samples + collected[layer][1]
        collected[layer] = found, samples
        if found.n > 1:
            unbiased = found.m2 / (found.n - 1)
            mean, var = adapt_statistics(*before[layer], found.mean, unbiased, samples, prior=prior)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var)

    hooks = [layer.register_forward_pre_hook(collect) for layer in layers]
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                model(_input_of(batch))
        for layer, name in layers.items():
            if layer not in collected or collected[layer][0].n <= 1:
                got = collected[layer][0].n if layer in collected else "none"
                raise ValueError(f"expected more than one value per channel in layer {name!r}, got {got}")
    except BaseException:
        for layer, (mean, var) in before.items():
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return model
