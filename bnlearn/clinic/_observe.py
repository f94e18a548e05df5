r"""What passes through one BN layer while data is run, reduced at once to small sums per channel.

An :class:`Observer` takes the tensors that arrive at its layer, shape (N, C, \*spatial), of PyTorch, TensorFlow, NumPy
or whatever NumPy can read, one call after the other, and keeps their moments in float64: nothing of the data's size.
The statistics are those of :func:`bnlearn.functional.moments` and :func:`bnlearn.functional.merge_moments`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from bnlearn._arrays import Array, channel_axes, namespace
from bnlearn.clinic._facts import SeenFacts, Vector
from bnlearn.functional import Moments, merge_moments, moments

__all__ = ["Observer", "double", "to_numpy", "variance_ratio"]

WITHOUT_DOUBLE = frozenset({"mps"})
"""Kinds of PyTorch devices that have no float64: their tensors are widened on the CPU."""


def double(x: Array) -> Array:
    """A float64 copy of ``x`` (itself, if it is float64 already): a tensor of PyTorch's, or else a NumPy array."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        return np.asarray(x).astype(np.float64, copy=False)
    x = x.detach()
    return (x.cpu() if x.device.type in WITHOUT_DOUBLE else x).to(torch.float64)


def to_numpy(x: Array) -> np.ndarray[Any, np.dtype[Any]]:
    """``x`` as a NumPy array of its own dtype, from whichever device."""
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


ENOUGH = 16
"""Samples below which a batch is too small for a verdict on its mean alone: one strange sample moves it far."""


def variance_ratio(var: Vector, reference: Vector) -> Vector:
    """``var / reference``; 1 where the reference is zero and there is nothing to compare with."""
    return np.divide(var, reference, out=np.ones_like(reference), where=reference != 0)


def _moments(x: Array, mask: Array | None = None) -> Moments:
    """The moments of the float64 array ``x``, in NumPy, with an int for ``n``."""
    found = moments(x, mask)
    rest = None if found.rest is None else to_numpy(found.rest)
    return Moments(int(found.n), to_numpy(found.mean), to_numpy(found.m2), rest)


def _like(mask: np.ndarray[Any, np.dtype[np.bool_]], x: Array) -> Array:
    return sys.modules["torch"].from_numpy(mask).to(x.device) if hasattr(x, "detach") else mask


def _merge(*parts: Moments | None) -> Moments:
    return merge_moments(*(part for part in parts if part is not None))


def _flat(part: Moments) -> Moments:
    """Only where the mean lies, and how many values are there: without the scatter about it."""
    return part._replace(m2=np.zeros_like(part.m2))


class Observer:
    """The statistics of what arrives at one BN layer.

    :meth:`see` each call of a forward pass, then :meth:`commit` the pass, or :meth:`discard` it if it was cut short.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.fewest: int | None = None
        self.batches = 0
        self.samples = 0
        self.finite = True
        self.channels = 0
        self._sources: set[str | None] = set()
        self._by_call: dict[int, Moments] = {}
        self._real: Moments | None = None
        self._masked = True
        self._between: dict[int, Moments] = {}  # of the batches' means, a call index
        self._batches_of: dict[int, int] = {}
        self._farthest: dict[int, tuple[_Extreme, _Extreme]] = {}  # the lowest and the highest of the batches' means
        self._within: Vector | None = None  # sum of squares of the samples' means about their batch's
        self._within_freedom = 0
        self._pending: list[_Call] = []

    @property
    def seen(self) -> bool:
        """Whether anything arrived in a pass that was committed."""
        return self.calls > 0

    def see(
        self,
        x: Array,
        *,
        samples: int,
        mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
        source: str | None = None,
    ) -> None:
        r"""Look at what arrives at one call; calls are numbered as they come within a pass.

        Parameters
        ----------
        x : array, shape (N, C, \*spatial)
            Of a floating-point dtype.
        samples : int
            In the batch. Where ``x`` has another first axis (positions flattened into it, say), its rows are not
            independent, and the batches' means are not compared by them.
        mask : array of bool, optional
            NumPy's; True where the batch is real. Looked at where its shape is (N, \*spatial).
        source : str, optional
            The layer whose biased output ``x`` itself is.
        """
        self._pending.append(_Call(x, samples, mask, source))

    def discard(self) -> None:
        """Forget the pass that was under way."""
        self._pending.clear()

    def commit(self) -> Moments | None:
        """Take in the pass that has ended.

        Returns
        -------
        Moments or None
            Of all that arrived in it; None where nothing finite did.
        """
        calls, self._pending = self._pending, []
        if not calls:
            return None
        self.calls = max(self.calls, len(calls))
        self.batches += 1
        self.samples += calls[0].samples
        with np.errstate(over="ignore"):
            for index, call in enumerate(calls):
                self._take(index, call)
            parts = [call.moments for call in calls if call.moments is not None]
            return _merge(*parts) if parts else None

    def _take(self, index: int, call: _Call) -> None:
        self.channels = call.channels
        self._sources.add(call.source)
        if call.values == 0:
            return
        self.fewest = call.values if self.fewest is None else min(self.fewest, call.values)
        self.finite = self.finite and call.finite
        if call.moments is None:
            return
        self._by_call[index] = _merge(self._by_call.get(index), call.moments)
        self._masked = self._masked and call.real is not None
        if call.real is not None:
            self._real = _merge(self._real, call.real)
        if call.by_sample is not None:
            self._between[index] = _merge(self._between.get(index), _flat(call.by_sample))
            self._batches_of[index] = self._batches_of.get(index, 0) + 1
            self._within = call.by_sample.m2 + (0 if self._within is None else self._within)
            self._within_freedom += call.by_sample.n - 1
            if call.by_sample.n >= ENOUGH:
                extremes = self._farthest.setdefault(index, (_Extreme(-1), _Extreme(1)))
                for extreme in extremes:
                    extreme.take(call.by_sample)

    def whole(self) -> Moments | None:
        """The moments of all that arrived; None where nothing finite did."""
        return _merge(*self._by_call.values()) if self._by_call else None

    def iid_ratio(self) -> Vector | None:
        """The F statistic of the batches' means; see :class:`bnlearn.clinic._facts.SeenFacts`.

        The calls of one pass may differ in what they see (that is another finding), so each is compared with the same
        call of the other batches.
        """
        between_freedom = sum(self._batches_of.values()) - len(self._batches_of)
        if max(self._batches_of.values(), default=0) < 3 or self._within is None or self._within_freedom < 1:
            return None
        between = sum(part.m2 for part in self._between.values()) / between_freedom
        return variance_ratio(between, self._within / self._within_freedom)

    def farthest(self) -> tuple[Vector, Vector] | None:
        """How far off the farthest batch is; see :class:`bnlearn.clinic._facts.SeenFacts`.

        In raw units, and in standard errors. The standard error is that of the batch itself where this is larger than
        that of all batches, so that a single strange sample does not make its batch look unfair.
        """
        if self._within is None or self._within_freedom < 1 or not self._farthest:
            return None
        pooled = self._within / self._within_freedom
        off, errors = [], []
        for index, extremes in self._farthest.items():
            for extreme in extremes:
                off.append(np.abs(extreme.mean - self._between[index].mean))
                error = np.sqrt(np.maximum(pooled, extreme.var) / extreme.n)
                errors.append(np.divide(off[-1], error, out=np.zeros_like(error), where=error > 0))
        which = np.argmax(errors, axis=0)[None]
        return np.take_along_axis(np.stack(off), which, 0)[0], np.take_along_axis(np.stack(errors), which, 0)[0]

    def facts(self, *, evaluation_ratio: Vector | None = None) -> SeenFacts | None:
        """All of it; None where nothing arrived."""
        if not self.seen:
            return None
        whole = self.whole()
        nothing = np.full(self.channels, np.nan)
        mean, var = (nothing, nothing) if whole is None else (whole.mean, whole.var)
        real = self._real if self._masked else None
        apart, call_var = self._apart(mean, var)
        off, errors = self.farthest() or (None, None)
        return SeenFacts(
            calls=self.calls,
            fewest=self.fewest or 0,
            n=0 if whole is None else int(whole.n),
            mean=mean,
            var=var,
            apart=apart,
            call_var=call_var,
            iid_ratio=self.iid_ratio(),
            farthest=None if off is None else variance_ratio(off, np.sqrt(var)),
            farthest_errors=errors,
            batches=self.batches,
            samples=self.samples,
            evaluation_ratio=evaluation_ratio,
            real_mean=None if real is None else real.mean,
            real_var=None if real is None else real.var,
            bias_from=next(iter(self._sources)) if len(self._sources) == 1 else None,
            finite=self.finite,
        )

    def _apart(self, mean: Vector, var: Vector) -> tuple[Vector | None, Vector | None]:
        """Where each call of a pass lies, in standard deviations of the whole, and its variance."""
        if len(self._by_call) < 2:
            return None, None
        calls = [self._by_call[index] for index in sorted(self._by_call)]
        off = np.stack([call.mean for call in calls]) - mean
        std = np.broadcast_to(np.sqrt(var), off.shape)
        apart = np.divide(off, std, out=np.zeros_like(off), where=std > 0)
        return apart, np.stack([call.var for call in calls])


class _Extreme:
    """Of the batches' means the lowest (``sign`` -1) or the highest (1), by channel, with its batch's scatter."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.mean = self.var = self.n = np.zeros(0)

    def take(self, batch: Moments) -> None:
        """The moments of one batch's samples."""
        if not self.mean.size:
            self.mean, self.var, self.n = batch.mean, batch.var, np.full(batch.mean.shape, float(batch.n))
            return
        farther = self.sign * batch.mean > self.sign * self.mean
        self.mean = np.where(farther, batch.mean, self.mean)
        self.var = np.where(farther, batch.var, self.var)
        self.n = np.where(farther, batch.n, self.n)


class _Call:
    """One call's tensor, reduced."""

    moments: Moments | None = None  # None: not finite, or no values
    by_sample: Moments | None = None  # of the samples' means
    real: Moments | None = None

    def __init__(
        self, x: Array, samples: int, mask: np.ndarray[Any, np.dtype[np.bool_]] | None, source: str | None
    ) -> None:
        shape = tuple(int(length) for length in x.shape)
        self.channels, self.samples, self.source = shape[1], samples, source
        self.values = shape[0] * int(np.prod(shape[2:]))
        self.finite = True
        if self.values == 0 or self.channels == 0:
            return
        with np.errstate(all="ignore"):
            self._reduce(double(x), mask)

    def _reduce(self, wide: Array, mask: np.ndarray[Any, np.dtype[np.bool_]] | None) -> None:
        xp = namespace(wide)
        found = _moments(wide)
        if not np.isfinite(found.mean).all() or not np.isfinite(found.m2).all():
            self.finite = bool(xp.all(xp.isfinite(wide)))
            return
        self.moments = found
        if wide.shape[0] == self.samples:
            spatial = channel_axes(wide)[1:]
            self.by_sample = _moments(xp.mean(wide, axis=spatial)) if spatial else found
        if mask is not None and tuple(mask.shape) == (wide.shape[0], *wide.shape[2:]):
            self.real = _moments(wide, _like(mask, wide))
