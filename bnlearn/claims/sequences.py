"""Sequences: batch norm inside a recurrent network, and layer norm, the simple answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as nnf

from bnlearn import functional
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale
from bnlearn.claims._tuning import TEST, VALIDATION, tuned
from bnlearn.lab import Arm, Moment, Network, Outcome, Pass, Probe, Sweep, draw_weight, probes, run

THEME = "Sequences"
CHAPTER = "notebooks/76_sequences"
STEPS, INPUTS = 8, 8
GATES = 4


@dataclass(frozen=True)
class DigitLSTM(Network):
    """An LSTM that reads a digit row by row, and a linear layer on its last state.

    Attributes
    ----------
    kind : str
        ``"plain"``, ``"layer norm"``, ``"batch norm"`` (everywhere, statistics per step).
    shared : bool
        In evaluation, one set of statistics for all steps: their average.
    hidden : int
    """

    kind: str = "plain"
    shared: bool = False
    hidden: int = 16

    def _sites(self) -> dict[str, int]:
        return {"ih": GATES * self.hidden, "hh": GATES * self.hidden, "c": self.hidden}

    def parameters(self, generator: torch.Generator, knobs: Mapping[str, float]) -> dict[str, Tensor]:
        """Weights and bias of the gates (the forget gate starts open), gammas from 0.1, or from 1 for layer norm."""
        size = GATES * self.hidden
        bias = torch.zeros(size)
        bias[self.hidden : 2 * self.hidden] = 1.0
        p = {
            "ih.weight": draw_weight((size, INPUTS), "lecun", generator),
            "hh.weight": draw_weight((size, self.hidden), "lecun", generator),
            "bias": bias,
            "head.weight": draw_weight((10, self.hidden), "lecun", generator),
            "head.bias": torch.zeros(10),
        }
        if self.kind != "plain":
            start = 0.1 if self.kind == "batch norm" else 1.0
            p |= {f"gamma_{site}": torch.full((channels,), start) for site, channels in self._sites().items()}
            p["beta_c"] = torch.zeros(self.hidden)
        return p

    def buffers(self) -> dict[str, Tensor]:
        """Running mean and (biased) variance, a row per step, for each place where batch norm stands."""
        if self.kind != "batch norm":
            return {}
        shapes = {site: (STEPS, channels) for site, channels in self._sites().items()}
        means = {f"{site}.mean": torch.zeros(shape) for site, shape in shapes.items()}
        # The variance starts far below 1, where the cell's is; the average forgets the rest.
        return means | {f"{site}.var": torch.full(shape, 0.1) for site, shape in shapes.items()}

    def _statistics(self, run: Pass) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for site in self._sites():
            pair = (run.buffers[f"{site}.mean"], run.buffers[f"{site}.var"])
            found[site] = tuple(part.mean(0, keepdim=True) for part in pair) if self.shared else pair
        return found  # type: ignore[return-value]

    def __call__(self, p: Mapping[str, Tensor], x: Tensor, run: Pass) -> Tensor:
        """Logits (N, 10) for digits (N, 64)."""
        weights = (x.reshape(-1, STEPS, INPUTS), p["ih.weight"], p["hh.weight"], p["bias"])
        affine = [p.get(name) for name in ("gamma_ih", "gamma_hh", "gamma_c", "beta_c")]
        if self.kind == "plain":
            y = functional.lstm(*weights)[0]
        elif self.kind == "layer norm":
            y = functional.layer_norm_lstm(*weights, *affine)[0]
        elif run.training:
            y, cache = functional.batch_norm_lstm(*weights, *affine)
            for site, seen in cache.statistics.items():
                for name, new in (("mean", seen.mean), ("var", seen.var)):
                    run.buffers[f"{site}.{name}"] = 0.9 * run.buffers[f"{site}.{name}"] + 0.1 * new.detach()
        else:
            y = functional.batch_norm_lstm(*weights, *affine, statistics=self._statistics(run))[0]
        return nnf.linear(y[:, -1], p["head.weight"], p["head.bias"])


def accuracy_shared(moment: Moment) -> Tensor:
    """Test accuracy of the same network with one set of statistics for all steps."""
    return probes.accuracy(replace(moment, network=replace(moment.network, shared=True)))  # type: ignore[type-var]


@lru_cache(maxsize=16)
def _trained(scale: Scale, kind: str, batch_size: int) -> Outcome:
    arm = Arm(kind, DigitLSTM(kind), optimizer="adam")
    watched = (VALIDATION, TEST, *([Probe("shared", accuracy_shared)] if kind == "batch norm" else []))
    rates = (0.003, 0.01, 0.03)
    seeds = tuple(range(scale.seeds))
    return run(Sweep((arm,), {"lr": rates}, seeds, scale.steps(150), batch_size, watched))[kind]


def _accuracy(scale: Scale, kind: str, batch_size: int = 32, name: str = "test") -> NDArray[np.float64]:
    return tuned(_trained(scale, kind, batch_size), name)


def run_c7(scale: Scale) -> dict[str, Measurement]:
    """Statistics per step against shared ones, and layer norm against both."""
    per_step, shared = (_accuracy(scale, "batch norm", name=name) for name in ("test", "shared"))
    layer = _accuracy(scale, "layer norm")
    return {
        "statistics per step": Measurement(per_step - shared, {"per step": per_step, "shared": shared}),
        "layer norm": Measurement(layer - per_step, {"layer norm": layer, "batch norm per step": per_step}),
    }


def run_d1(scale: Scale) -> dict[str, Measurement]:
    """Layer norm against none, and against batch norm at a batch of 4."""
    layer, plain = _accuracy(scale, "layer norm"), _accuracy(scale, "plain")
    small = {kind: _accuracy(scale, kind, 4) for kind in ("layer norm", "batch norm")}
    return {
        "against no normaliser": Measurement(layer - plain, {"layer norm": layer, "plain": plain}),
        "against batch norm, batch of 4": Measurement(small["layer norm"] - small["batch norm"], small),
    }


SETTING = (
    "Handwritten digits read row by row by an LSTM of 16 units, 150 steps of Adam; each arm takes the rate of three "
    "that is best on the validation part, and is judged on the test part. Batches of 32 unless said otherwise."
)
CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C7",
        statement=(
            "In recurrent networks statistics shared over time fail, statistics per step help, layer norm is simple."
        ),
        sources=("P", "laurent2016batch", "cooijmans2017recurrent"),
        theme=THEME,
        setting=f"{SETTING} Shared statistics are the average over the steps, in evaluation, of the same network.",
        criteria=(
            Criterion("statistics per step", "test accuracy, statistics per step minus shared", 0.05, 0.01),
            Criterion("layer norm", "test accuracy, layer norm minus batch norm per step", -0.01, -0.03),
        ),
        run=run_c7,
        chapter=CHAPTER,
        note="Eight steps are few; a longer sequence has more steps that are unlike the first.",
    ),
    Claim(
        id="D1",
        statement="Layer normalisation does not depend on the batch and suits sequences.",
        sources=("P", "ba2016layer"),
        theme=THEME,
        setting=SETTING,
        criteria=(
            Criterion("against no normaliser", "test accuracy, layer norm minus none", 0.02, 0.005),
            Criterion("against batch norm, batch of 4", "test accuracy, layer norm minus batch norm", 0.02, 0.005),
        ),
        run=run_d1,
        chapter=CHAPTER,
    ),
)
