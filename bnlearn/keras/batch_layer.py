"""Batch layer normalisation as a layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras

from bnlearn.functional import batch_layer_norm
from bnlearn.keras._base import ChannelNormalization

__all__ = ["BatchLayerNormalization"]

STATISTICS = ("batch_mean", "batch_var", "feature_mean", "feature_var")


@keras.saving.register_keras_serializable(package="bnlearn")
class BatchLayerNormalization(ChannelNormalization):
    """Normalise over the batch and over the features, weighed by the batch size.

    The formula is :func:`bnlearn.functional.batch_layer_norm`. The moving statistics over the batch are those of each
    position, so the sizes of all axes but the batch's must be known.

    Parameters
    ----------
    batch_size : int
        m, which sets the weights of the two normalisations, in inference too. Batches may have other sizes.
    momentum : float or None
        Weight of the OLD statistics in the moving ones, from 0 to 1. None, as in the authors' code: the average over
        all batches since :meth:`reset_moving_statistics`, which is to be called when an epoch begins.
    running : collection of str
        Which statistics are the moving ones in inference, of "batch_mean", "batch_var", "feature_mean" and
        "feature_var"; the others are those of the input. To be chosen on validation data.
    **kwargs
        ``axis``, ``epsilon`` and the others, as in ``keras.layers.BatchNormalization``.

    Raises
    ------
    ValueError
        If an argument does not fit, or a size is not known.

    Examples
    --------
    >>> layer = BatchLayerNormalization(batch_size=2)
    >>> y = layer(keras.ops.convert_to_tensor([[1.0, 10.0], [3.0, 30.0]]), training=True)
    >>> print(layer.moving_batch_mean.numpy())
    [ 2. 20.]
    """

    def __init__(
        self,
        *,
        batch_size: int,
        momentum: float | None = None,
        running: Collection[str] = ("batch_mean", "batch_var"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"expected momentum, the weight of the old statistics, from 0 to 1, got {momentum}")
        unknown = sorted(set(running) - set(STATISTICS))
        if unknown:
            raise ValueError(f"expected running to name some of {', '.join(STATISTICS)}, got {', '.join(unknown)}")
        self.batch_size, self.momentum, self.running = batch_size, momentum, tuple(running)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights, and the moving statistics of every position."""
        super().build(input_shape)
        sample = list(input_shape)[1:]
        if None in sample:
            raise ValueError(f"expected known sizes but for the batch's, got shape {input_shape}")
        for name in STATISTICS:
            shape = list(sample)
            if name.startswith("feature"):
                shape[self.axis % len(input_shape) - 1] = 1
            variable = self.add_weight(
                shape=shape,
                name=f"moving_{name}",
                initializer="ones" if name.endswith("var") else "zeros",
                trainable=False,
            )
            setattr(self, f"moving_{name}", variable)
        self.batches_seen = self.add_weight(shape=(), name="batches_seen", initializer="zeros", trainable=False)

    def reset_moving_statistics(self) -> None:
        """Forget the batches seen, as the authors do when an epoch begins."""
        for name in STATISTICS:
            variable = getattr(self, f"moving_{name}")
            variable.assign(keras.ops.full(variable.shape, float(name.endswith("var")), variable.dtype))
        self.batches_seen.assign(0.0)

    def _moving(self, name: str) -> Any:
        """Of shape (C, *spatial), or (1, *spatial)."""
        return keras.ops.moveaxis(self._tensor(getattr(self, f"moving_{name}"))[None], self.axis, 1)[0]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """``inputs`` normalised, of the same shape, in the layer's compute dtype."""
        x = self._channels_first(inputs)
        by_batch = bool(training and self.trainable)
        given = {} if by_batch else {name: self._moving(name) for name in self.running}
        y, cache = batch_layer_norm(
            x, self._tensor(self.gamma), self._tensor(self.beta), batch_size=self.batch_size, eps=self.epsilon, **given
        )
        if by_batch:
            self._track(cache, keras.ops.shape(x)[0])
        return self._restore(y)

    def _track(self, cache: Any, n: Any) -> None:
        ops = keras.ops
        batches = self._tensor(self.batches_seen) + 1
        share = 1 / batches if self.momentum is None else 1 - self.momentum
        for name in STATISTICS:
            old, own = self._moving(name), ops.stop_gradient(getattr(cache, name))
            if name.endswith("var"):  # unbiased; that of a single sample stays as it is
                samples = ops.cast(n, own.dtype)
                own = own * samples / ops.maximum(samples - 1, 1)
            new = old + share * (ops.cast(own, old.dtype) - old)
            getattr(self, f"moving_{name}").assign(ops.moveaxis(new[None], 1, self.axis)[0])
        self.batches_seen.assign(batches)

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {
            **super().get_config(),
            "batch_size": self.batch_size,
            "momentum": self.momentum,
            "running": list(self.running),
        }
