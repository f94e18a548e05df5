"""The exact claims notice a formula that is not exact."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
from bnlearn.claims import QUICK, SMOKE, Verdict, _transform, transform
from bnlearn.functional import batch_norm, batch_norm_backward

CLAIMS = {claim.id: claim for claim in transform.CLAIMS}
SAID = {"A1": "depends", "A3": "refuted", "A14": "depends"}
"""What is not simply supported."""


def verdicts(name, scale=QUICK):
    results = CLAIMS[name].judge(CLAIMS[name].measure(scale))
    return {criterion: result.verdict for criterion, result in results.items()}


@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in SAID])
def test_what_follows_from_the_formula_is_supported(name):
    assert set(verdicts(name).values()) == {Verdict.SUPPORTED}


def test_where_eps_decides_it_is_refuted():
    assert list(verdicts("A1").values()) == [Verdict.SUPPORTED] * 3 + [Verdict.REFUTED]
    assert list(verdicts("A14").values()) == [Verdict.SUPPORTED] * 2 + [Verdict.REFUTED]


def test_scale_and_shift_add_no_non_linearity_though_training_is_not_linear():
    assert set(verdicts("A3").values()) == {Verdict.REFUTED}
    measured = CLAIMS["A3"].measure(QUICK)["in training"]
    assert (measured.arms["in all"] > 0.01).all()
    np.testing.assert_array_equal(measured.arms["by gamma and beta"], measured.effect)


def test_each_seed_is_another_problem():
    for claim in CLAIMS.values():
        first, second = (_transform.random(seed).normal() for seed in range(2))
        assert first != second
        again, measured = claim.measure(SMOKE), claim.measure(SMOKE)
        for name in measured:
            np.testing.assert_array_equal(measured[name].effect, again[name].effect)


def scaled(factor, shift=0.0):
    """Batch norm whose outputs are off by a factor and a shift."""

    def wrong(*args, **kwargs):
        y, cache = batch_norm(*args, **kwargs)
        return y * factor + shift, cache

    return wrong


def unbiased(x, gamma=None, beta=None, *, mean=None, var=None, eps=1e-5):
    """Batch norm that divides by n - 1."""
    if mean is None and len(x) > 1:
        axes = (0, *range(2, x.ndim))
        mean, var = x.mean(axes), (x.var(axes, ddof=1) if isinstance(x, np.ndarray) else x.var(axes))
    return batch_norm(x, gamma, beta, mean=mean, var=var, eps=eps)


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        (scaled(1 + 1e-8), {"A1", "A2", "A10", "A11", "A15", "A16"}),
        (scaled(1, 1e-8), {"A1", "A2", "A10", "A11", "A15"}),
        (unbiased, {"A1", "A2", "A15", "A16"}),
    ],
)
def test_a_formula_that_is_off_is_noticed(monkeypatch, wrong, noticed):
    """Claims that hold PyTorch against itself (folding, running statistics) cannot tell."""
    monkeypatch.setattr(_transform, "batch_norm", wrong)
    for name in noticed:
        assert Verdict.REFUTED in list(verdicts(name).values())[:2], name


@pytest.mark.parametrize("scale", [1 + 1e-8, 0.0])
def test_a_gradient_that_is_off_is_noticed(monkeypatch, scale):
    def wrong(dy, cache):
        """The statistics' share of the gradient is left out, or a little too large."""
        dx, *rest = batch_norm_backward(dy, cache)
        fixed = dy * (cache.gamma * cache.inv_std.ravel()).reshape(1, -1, *(1,) * (dy.ndim - 2))
        return fixed + scale * (dx - fixed), *rest

    monkeypatch.setattr(_transform, "batch_norm_backward", wrong)
    assert Verdict.REFUTED in verdicts("A7").values()
    assert verdicts("A11")["backward"] == Verdict.REFUTED


def test_a_network_that_accumulates_over_one_part_is_that_of_the_batch():
    for norm in ("batch", "layer"):
        assert _transform.accumulated(norm, 1)(_transform.random(0)) < 1e-12
    assert _transform.accumulated("batch", 2)(_transform.random(0)) > 0.01
