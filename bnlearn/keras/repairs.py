"""The repairs that stay with the batch, as layers. (Masks and batch renormalisation are in Keras's own layer.)"""

from __future__ import annotations

from typing import Any

import keras

from bnlearn.functional import batch_norm, example_weighing, full_norm, ghost_batch_norm, update_running_ghosts
from bnlearn.keras._base import StatisticsNormalization

__all__ = ["ExampleWeighing", "FullNormalization", "GhostBatchNormalization"]


@keras.saving.register_keras_serializable(package="bnlearn")
class GhostBatchNormalization(StatisticsNormalization):
    """Each ``ghost_size`` samples of a batch, normalised by themselves: :func:`bnlearn.functional.ghost_batch_norm`.

    In inference it is batch normalisation. The moving statistics see one ghost after the other, as if each had been a
    batch.

    Parameters
    ----------
    ghost_size : int
        Samples per ghost. Where it does not divide the batch size, the last ghost is a short one.
    **kwargs
        ``axis``, ``momentum`` (of the OLD statistics), ``epsilon`` and the others, as in
        ``keras.layers.BatchNormalization``.

    Raises
    ------
    ValueError
        If ``ghost_size`` is below 1, or another argument does not fit.

    Examples
    --------
    >>> layer = GhostBatchNormalization(ghost_size=2, epsilon=1e-9)
    >>> y = layer(keras.ops.convert_to_tensor([[1.0], [3.0], [10.0], [30.0]]), training=True)
    >>> print(keras.ops.convert_to_numpy(y).T)
    [[-1.  1. -1.  1.]]
    """

    def __init__(self, *, ghost_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ghost_size < 1:
            raise ValueError(f"expected ghost_size >= 1 samples, got {ghost_size}")
        self.ghost_size = ghost_size

    def normalize_batch(self, x: Any) -> Any:
        r"""Training: x of shape (N, C, \*spatial), each ghost by itself."""
        y, cache = ghost_batch_norm(
            x, self._tensor(self.gamma), self._tensor(self.beta), ghost_size=self.ghost_size, eps=self.epsilon
        )
        mean, variance = update_running_ghosts(
            self._tensor(self.moving_mean),
            self._tensor(self.moving_variance),
            cache,
            momentum=1 - self.momentum,
            unbiased=False,
        )
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        return y

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {**super().get_config(), "ghost_size": self.ghost_size}


@keras.saving.register_keras_serializable(package="bnlearn")
class FullNormalization(StatisticsNormalization):
    """Normalise by a running estimate, in training too: :func:`bnlearn.functional.full_norm`.

    ``1 - momentum`` is the weight of a batch in the estimate, but the first batches weigh more, the t-th at least
    ``1/t``. With ``momentum=0`` it is batch normalisation. ``moving_variance`` contains what the batches' means differ
    by.

    Parameters
    ----------
    momentum : float
        Weight of the OLD estimate, from 0 to 1.
    **kwargs
        ``axis``, ``epsilon`` and the others, as in ``keras.layers.BatchNormalization``.

    Raises
    ------
    ValueError
        If an argument does not fit.

    Examples
    --------
    >>> layer = FullNormalization()
    >>> x = keras.ops.convert_to_tensor([[1.0], [3.0]])
    >>> same = keras.ops.isclose(layer(x, training=True), layer(x))  # one formula in both
    >>> print(keras.ops.convert_to_numpy(same).T)
    [[ True  True]]
    """

    def __init__(self, *, momentum: float = 0.9, **kwargs: Any) -> None:
        super().__init__(momentum=momentum, **kwargs)

    def _add_weights(self, channels: int) -> None:
        super()._add_weights(channels)
        self.batches_seen = self.add_weight(shape=(), name="batches_seen", initializer="zeros", trainable=False)

    def normalize_batch(self, x: Any) -> Any:
        r"""Training: x of shape (N, C, \*spatial) by the estimate, this batch included."""
        batches = self._tensor(self.batches_seen) + 1
        y, cache = full_norm(
            x,
            self._tensor(self.gamma),
            self._tensor(self.beta),
            mean=self._tensor(self.moving_mean),
            var=self._tensor(self.moving_variance),
            momentum=keras.ops.maximum(1 / batches, 1 - self.momentum),
            eps=self.epsilon,
        )
        self.moving_mean.assign(cache.mean)
        self.moving_variance.assign(cache.var)
        self.batches_seen.assign(batches)
        return y


@keras.saving.register_keras_serializable(package="bnlearn")
class ExampleWeighing(StatisticsNormalization):
    """Batch normalisation that weighs the example into the statistics at inference.

    Training is that of ``keras.layers.BatchNormalization``; inference is :func:`bnlearn.functional.example_weighing`.

    Parameters
    ----------
    example_weight : float
        The example's share of the statistics at inference, from 0 (plain inference) to 1: to be chosen on validation
        data. The attribute of that name may be changed until inference is traced.
    **kwargs
        ``axis``, ``momentum`` (of the OLD statistics), ``epsilon`` and the others, as in
        ``keras.layers.BatchNormalization``, whose weights fit.

    Raises
    ------
    ValueError
        If ``example_weight`` is outside [0, 1], or another argument does not fit.

    Examples
    --------
    >>> layer = ExampleWeighing(example_weight=0.5, epsilon=1e-9)
    >>> y = layer(keras.ops.convert_to_tensor([[[3.0], [5.0]]]))  # mean 2 and variance 5, from (4, 1) and (0, 1)
    >>> print(keras.ops.convert_to_numpy(y)[0, :, 0].round(3))
    [0.447 1.342]
    """

    def __init__(self, *, example_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= example_weight <= 1:
            raise ValueError(f"expected example_weight from 0 to 1, got {example_weight}")
        self.example_weight = example_weight

    def normalize(self, x: Any) -> Any:
        r"""Inference: x of shape (N, C, \*spatial) by the moving statistics and its own."""
        return example_weighing(
            x,
            self._tensor(self.gamma),
            self._tensor(self.beta),
            mean=self._tensor(self.moving_mean),
            var=self._tensor(self.moving_variance),
            weight=self.example_weight,
            eps=self.epsilon,
        )[0]

    def normalize_batch(self, x: Any) -> Any:
        r"""Training: x of shape (N, C, \*spatial) by the batch."""
        y, cache = batch_norm(x, self._tensor(self.gamma), self._tensor(self.beta), eps=self.epsilon)
        self.track(cache.mean, cache.var, cache.n)
        return y

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {**super().get_config(), "example_weight": self.example_weight}
