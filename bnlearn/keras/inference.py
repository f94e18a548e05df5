"""A whole model adapted to another domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras

from bnlearn.functional import Moments, adapt_statistics, merge_moments, moments
from bnlearn.keras._base import StatisticsNormalization

__all__ = ["adapt_batch_normalization"]


def adapt_batch_normalization(model: Any, batches: Iterable[Any], *, prior: float = 0.0) -> Any:
    """Replace the moving statistics of a trained model by those of another domain: adaptive batch normalisation.

    No label is needed and no weight changes: each batch normalisation in ``model`` gets the mean and variance that its
    inputs have on the target's data (AdaBN; Li et al. 2016), or a mix of these with the old ones
    (:func:`bnlearn.functional.adapt_statistics`; Schneider et al. 2020).

    Every layer sees inputs that the layers before it have normalised by the target's statistics as far as collected,
    this batch included. Those are merged over the batches exactly (:func:`bnlearn.functional.merge_moments`), and what
    a mask leaves out does not count. One large batch is best; with many, the first see statistics of a few samples.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Built, and changed in place: ``moving_mean`` and ``moving_variance`` (biased, as in training) of every
        ``keras.layers.BatchNormalization`` and of the layers here that have the two. It is run eagerly.
    batches : iterable
        Of inputs for ``model``, or of tuples or lists with the inputs first (a ``tf.data.Dataset``, say).
    prior : float
        How many samples the old statistics count for, not negative. With 0 they count for nothing.

    Returns
    -------
    keras.Model or keras.layers.Layer
        The same model.

    Raises
    ------
    ValueError
        If ``model`` has no such layer or one that is not built, ``batches`` is empty, a layer was given no data, or
        ``prior`` is negative. Whatever is raised, here or by the model: it is as it was.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> model = adapt_batch_normalization(model, [keras.ops.convert_to_tensor([[9.0], [11.0]])])
    >>> print([float(w[0]) for w in model.layers[0].non_trainable_weights])
    [10.0, 1.0]
    """
    if not prior >= 0:
        raise ValueError(f"expected prior, the samples that the old statistics count for, >= 0, got {prior}")
    kinds = (keras.layers.BatchNormalization, StatisticsNormalization)
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]
    if not layers:
        raise ValueError(f"expected a model with batch normalisation, got {type(model).__name__} without")
    unbuilt = [layer.name for layer in layers if not layer.built]
    if unbuilt:
        raise ValueError(f"expected a built model, got layer {unbuilt[0]!r} without weights; call the model first")
    before = [(keras.ops.copy(layer.moving_mean), keras.ops.copy(layer.moving_variance)) for layer in layers]
    collected: dict[int, tuple[Moments, int]] = {}

    def collect(index: int, inputs: Any, mask: Any) -> None:
        layer = layers[index]
        x = keras.ops.moveaxis(keras.ops.convert_to_tensor(inputs), layer.axis, 1)
        found, samples = moments(x, None if mask is None else keras.ops.cast(mask, "bool")), int(x.shape[0])
        if index in collected:
            found, samples = merge_moments(collected[index][0], found), samples + collected[index][1]
        if int(found.n):
            collected[index] = found, samples
            mean, variance = adapt_statistics(*before[index], found.mean, found.var, samples, prior=prior)
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)

    def watched(index: int) -> Callable[..., Any]:
        call: Callable[..., Any] = layers[index].call

        def collect_and_call(inputs: Any, *args: Any, mask: Any = None, **options: Any) -> Any:
            collect(index, inputs, mask)
            return call(inputs, *args, **options) if mask is None else call(inputs, *args, mask=mask, **options)

        return collect_and_call

    try:
        for index, layer in enumerate(layers):
            # Past Keras's own __setattr__, which would keep track of it.
            object.__setattr__(layer, "call", watched(index))
        for batch in batches:
            model(batch[0] if isinstance(batch, (list, tuple)) else batch, training=False)
        for index, layer in enumerate(layers):
            if index not in collected:
                raise ValueError(f"expected data for layer {layer.name!r}, got none")
    except BaseException:
        for layer, (mean, variance) in zip(layers, before, strict=True):
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)
        raise
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")
    return model
