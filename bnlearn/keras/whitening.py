"""Whitening as layers: decorrelated batch normalisation, and its iterative form."""

from __future__ import annotations

from typing import Any

import keras

from bnlearn.functional import IterNormCache, WhitenCache, iter_norm, update_whitening, whiten
from bnlearn.keras._base import ChannelNormalization

__all__ = ["DecorrelatedBatchNormalization", "IterativeNormalization"]


def _identities(shape: tuple[int, ...], dtype: Any = None) -> Any:
    """One identity matrix per group."""
    return keras.ops.tile(keras.ops.eye(shape[1], dtype=dtype)[None], (shape[0], 1, 1))


class _Whitening(ChannelNormalization):
    """What the two share: groups, and a moving mean and whitening matrix."""

    def __init__(
        self, *, groups: int = 1, momentum: float = 0.99, moving_mean_initializer: Any = "zeros", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if groups < 1:
            raise ValueError(f"expected groups >= 1, got groups={groups}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"expected momentum, the weight of the old statistics, from 0 to 1, got {momentum}")
        self.groups, self.momentum = groups, momentum
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)

    def _add_weights(self, channels: int) -> None:
        if channels % self.groups:
            raise ValueError(f"expected groups to divide the {channels} channels, got groups={self.groups}")
        super()._add_weights(channels)
        own = channels // self.groups
        self.moving_mean = self.add_weight(
            shape=(channels,), name="moving_mean", initializer=self.moving_mean_initializer, trainable=False
        )
        self.moving_matrix = self.add_weight(
            shape=(self.groups, own, own), name="moving_matrix", initializer=_identities, trainable=False
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """``inputs`` whitened, of the same shape, in the layer's compute dtype."""
        x = self._channels_first(inputs)
        moving_mean, moving_matrix = self._tensor(self.moving_mean), self._tensor(self.moving_matrix)
        if not (training and self.trainable):
            return self._restore(self.whiten(x, mean=moving_mean, matrix=moving_matrix)[0])
        y, cache = self.whiten(x)
        mean, matrix = update_whitening(moving_mean, moving_matrix, cache, momentum=1 - self.momentum)
        self.moving_mean.assign(mean)
        self.moving_matrix.assign(matrix)
        return self._restore(y)

    def whiten(self, x: Any, **statistics: Any) -> tuple[Any, WhitenCache | IterNormCache]:
        """The subclass's formula."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {
            **super().get_config(),
            "groups": self.groups,
            "momentum": self.momentum,
            "moving_mean_initializer": keras.initializers.serialize(self.moving_mean_initializer),
        }


@keras.saving.register_keras_serializable(package="bnlearn")
class DecorrelatedBatchNormalization(_Whitening):
    """Make the channels uncorrelated with variance 1: see :func:`bnlearn.functional.whiten`.

    In training, the layer whitens by the batch and updates ``moving_mean``, shape (C,), and ``moving_matrix``, shape
    (groups, C / groups, C / groups); in inference, and always when ``trainable`` is False, it whitens by those two. Its
    gradient is right at repeated eigenvalues, on all backends.

    Parameters
    ----------
    groups : int
        Into how many groups of channels C is divided, each whitened by itself.
    momentum : float
        Weight of the OLD statistics in the moving ones, from 0 to 1.
    moving_mean_initializer
        As in ``keras.layers.BatchNormalization``. The moving matrix starts as the identity.
    **kwargs
        ``axis``, ``epsilon`` (added to the eigenvalues), ``center``, ``scale``, ... as every layer here.

    Raises
    ------
    ValueError
        If ``groups`` does not divide C, or as every layer here.

    Examples
    --------
    >>> import keras, numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 2)) @ np.array([[2.0, 1.5], [0.0, 0.5]])
    >>> y = DecorrelatedBatchNormalization(epsilon=1e-6)(keras.ops.convert_to_tensor(x), training=True)
    >>> print(np.cov(keras.ops.convert_to_numpy(y).T, bias=True).round(3) + 0.0)
    [[1. 0.]
     [0. 1.]]
    """

    def whiten(self, x: Any, **statistics: Any) -> tuple[Any, WhitenCache | IterNormCache]:
        r"""X of shape (N, C, \*spatial), by the batch or by the statistics that are given."""
        gamma, beta = self._tensor(self.gamma), self._tensor(self.beta)
        return whiten(x, gamma, beta, groups=self.groups, eps=self.epsilon, **statistics)


@keras.saving.register_keras_serializable(package="bnlearn")
class IterativeNormalization(_Whitening):
    """Whitening by a few of Newton's steps: see :func:`bnlearn.functional.iter_norm`.

    Parameters
    ----------
    iterations : int
        T, not negative.
    **kwargs
        As :class:`DecorrelatedBatchNormalization`.

    Raises
    ------
    ValueError
        If ``iterations`` is negative, or as :class:`DecorrelatedBatchNormalization`.

    Examples
    --------
    >>> import keras, numpy as np
    >>> x = np.random.default_rng(0).standard_normal((100, 2)) @ np.array([[2.0, 1.5], [0.0, 0.5]])
    >>> layer = IterativeNormalization(iterations=10, epsilon=1e-6)
    >>> y = layer(keras.ops.convert_to_tensor(x), training=True)
    >>> print(np.cov(keras.ops.convert_to_numpy(y).T, bias=True).round(2) + 0.0)
    [[1. 0.]
     [0. 1.]]
    """

    def __init__(self, *, iterations: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if iterations < 0:
            raise ValueError(f"expected iterations >= 0, got {iterations}")
        self.iterations = iterations

    def whiten(self, x: Any, **statistics: Any) -> tuple[Any, WhitenCache | IterNormCache]:
        r"""X of shape (N, C, \*spatial), by the batch or by the statistics that are given."""
        gamma, beta = self._tensor(self.gamma), self._tensor(self.beta)
        return iter_norm(x, gamma, beta, groups=self.groups, iterations=self.iterations, eps=self.epsilon, **statistics)

    def get_config(self) -> dict[str, Any]:
        """All arguments, for ``from_config`` and saving."""
        return {**super().get_config(), "iterations": self.iterations}
