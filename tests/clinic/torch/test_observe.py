"""The observers of bnlearn.clinic._observe against the statistics of all the data at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from bnlearn.clinic import _observe  # noqa: E402
from bnlearn.clinic._observe import Observer, double, variance_ratio  # noqa: E402

LIBRARIES = {
    "numpy": lambda x: x,
    "torch": torch.from_numpy,
    "tensorflow": lambda x: pytest.importorskip("tensorflow").constant(x),
}


def observed(batches, library="numpy", masks=None, samples=None):
    observer = Observer()
    for i, batch in enumerate(batches):
        for x in batch if isinstance(batch, list) else [batch]:
            mask = None if masks is None else masks[i]
            observer.see(LIBRARIES[library](x), samples=samples or len(x), mask=mask)
        observer.commit()
    return observer.facts()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("spatial", [(), (5,), (2, 3), (2, 1, 3)])
def test_the_statistics_are_those_of_all_the_data(library, spatial, rng):
    sizes = (4, 4, 4, 1)
    batches = [1e3 + 0.1 * rng.standard_normal((size, 3, *spatial)).astype(np.float32) for size in sizes]
    facts = observed(batches, library)
    whole = np.concatenate([np.moveaxis(x, 1, -1).reshape(-1, 3) for x in batches]).astype(float)
    np.testing.assert_allclose(facts.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(facts.var, whole.var(axis=0), rtol=1e-9)
    assert facts.mean.dtype == facts.var.dtype == np.float64
    assert (facts.n, facts.samples, facts.batches, facts.calls) == (len(whole), 13, 4, 1)
    assert facts.fewest == int(np.prod(spatial))
    assert facts.finite
    assert facts.apart is facts.call_var is facts.real_mean is facts.real_var is facts.bias_from is None


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6), length=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_batches_give_the_same_statistics(sizes, length, seed):
    batches = [np.random.default_rng(seed).standard_normal((size, 2, length)) for size in sizes]
    facts = observed(batches)
    whole = np.concatenate(batches)
    np.testing.assert_allclose(facts.mean, whole.mean(axis=(0, 2)), atol=1e-12)
    np.testing.assert_allclose(facts.var, whole.var(axis=(0, 2)), rtol=1e-9, atol=1e-20)
    assert facts.n == whole.size // 2
    assert facts.fewest == min(sizes) * length


def test_the_f_statistic_is_that_of_one_way_analysis_of_variance(rng):
    stats = pytest.importorskip("scipy.stats")
    batches = [rng.standard_normal((size, 2, 7)) + 0.3 * i for i, size in enumerate((5, 8, 3, 6))]
    means = [x.mean(axis=2) for x in batches]
    np.testing.assert_allclose(observed(batches).iid_ratio, stats.f_oneway(*means).statistic, rtol=1e-10)
    np.testing.assert_allclose(observed(means).iid_ratio, stats.f_oneway(*means).statistic, rtol=1e-10)


def test_the_farthest_batch_is_found_by_its_mean(rng):
    batches = [rng.standard_normal((32, 3, 5)) for _ in range(20)]
    batches[7][:, 0] += 2.0
    batches[11][:, 1] -= 3.0
    facts = observed(batches)
    means = np.stack([x.mean(axis=2) for x in batches])
    within = np.sqrt(means.var(axis=1, ddof=1).mean(axis=0))
    off = np.abs(means.mean(axis=1) - means.mean(axis=(0, 1)))
    assert (off.argmax(axis=0)[:2] == [7, 11]).all()
    std = np.concatenate(batches).std(axis=(0, 2))
    np.testing.assert_allclose(facts.farthest, off.max(axis=0) / std, rtol=1e-10)
    own = np.maximum(within, means.std(axis=1)[off.argmax(axis=0), range(3)])
    np.testing.assert_allclose(facts.farthest_errors, off.max(axis=0) / own * 32**0.5, rtol=1e-10)
    assert facts.farthest_errors[0] > 20
    assert facts.farthest_errors[2] < 5


def test_one_strange_sample_does_not_make_its_batch_the_farthest(rng):
    batches = [rng.standard_normal((32, 2)) for _ in range(20)]
    batches[3][5] = 100.0
    assert (observed(batches).farthest_errors < 4).all()


def test_small_batches_are_not_judged_one_by_one(rng):
    batches = [rng.standard_normal((32, 2)) for _ in range(9)]
    last = 9 + rng.standard_normal((15, 2))
    assert (observed([*batches, last]).farthest_errors < 6).all()  # it has moved the mean
    assert (observed([*batches, np.concatenate([last, last[:1]])]).farthest_errors > 20).all()
    assert observed([x[:15] for x in batches]).farthest is None
    assert observed(batches, samples=4).farthest_errors is None


def test_constant_batches_are_not_far():
    facts = observed([np.ones((16, 2)), np.ones((16, 2))])
    assert (facts.farthest_errors == 0).all()


def test_calls_that_differ_do_not_make_the_batches_look_unfair(rng):
    batches = [[rng.standard_normal((32, 2)), rng.standard_normal((32, 2)) + 9] for _ in range(30)]
    assert (observed(batches).iid_ratio < 3).all()
    assert (observed([batch[i % 2] for i, batch in enumerate(batches)]).iid_ratio > 100).all()


@pytest.mark.parametrize(
    ("sizes", "samples"), [((4, 4), 4), ((1, 1, 1, 1), 1), ((4, 4, 4), 2)], ids=["two", "single", "flattened"]
)
def test_there_is_no_f_statistic_without(sizes, samples, rng):
    """Three batches, two samples in one of them, and rows that are samples."""
    assert observed([rng.standard_normal((size, 2)) for size in sizes], samples=samples).iid_ratio is None


def test_calls_of_one_pass_are_told_apart(rng):
    a, b = rng.standard_normal((2, 3, 50, 2))
    b = 2 * b + 5
    facts = observed([[x, y] for x, y in zip(a, b, strict=True)])
    whole = np.concatenate([a, b]).reshape(-1, 2)
    expected = (np.stack([a.mean(axis=(0, 1)), b.mean(axis=(0, 1))]) - whole.mean(axis=0)) / whole.std(axis=0)
    np.testing.assert_allclose(facts.apart, expected, rtol=1e-10)
    np.testing.assert_allclose(facts.call_var, [a.var(axis=(0, 1)), b.var(axis=(0, 1))], rtol=1e-10)
    assert (facts.calls, facts.batches, facts.samples) == (2, 3, 150)


def test_constant_calls_are_not_apart():
    facts = observed([[np.ones((3, 2)), np.ones((3, 2))]])
    assert (facts.apart == 0).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_masked_statistics_are_over_the_real_positions(library, rng):
    batches = list(rng.standard_normal((3, 6, 2, 5)))
    masks = list(rng.random((3, 6, 5)) < 0.6)
    masks[2][:] = False
    facts = observed(batches, library, masks)
    real = np.concatenate([np.moveaxis(x, 1, -1)[mask] for x, mask in zip(batches, masks, strict=True)])
    np.testing.assert_allclose(facts.real_mean, real.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(facts.real_var, real.var(axis=0), rtol=1e-10)
    assert facts.n == 90


def test_a_mask_counts_only_if_it_always_fits(rng):
    batches = list(rng.standard_normal((2, 6, 2, 5)))
    masks = [np.ones((6, 5), bool), np.ones((6, 4), bool)]
    assert observed(batches, masks=masks).real_mean is None
    assert observed(batches, masks=masks[::-1]).real_mean is None
    assert observed(batches[:1], masks=masks[:1]).real_mean is not None


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_noticed_and_left_out(library, value, rng):
    good, bad = rng.standard_normal((2, 5, 3, 2))
    bad[0, 1, 1] = value
    facts = observed([good, bad], library)
    assert not facts.finite
    np.testing.assert_allclose(facts.mean, good.mean(axis=(0, 2)), rtol=1e-10)
    only = observed([bad], library)
    assert (only.n, only.finite, only.batches) == (0, False, 1)
    assert np.isnan(only.mean).all()
    assert np.isnan(only.var).all()
    assert only.mean.shape == (3,)


def test_numbers_too_large_to_square_are_finite_all_the_same():
    facts = observed([np.full((4, 1), 1e300) * [[1], [-1], [1], [-1]]])
    assert facts.finite
    assert facts.n == 0


def test_a_pass_can_be_taken_back(rng):
    observer = Observer()
    observer.see(rng.standard_normal((4, 2)), samples=4)
    observer.discard()
    assert observer.commit() is None
    assert observer.facts() is None
    assert not observer.seen
    x = rng.standard_normal((4, 2))
    observer.see(x, samples=4)
    np.testing.assert_allclose(observer.commit().mean, x.mean(axis=0))


def test_an_empty_batch_has_no_values_but_was_a_call():
    facts = observed([np.ones((0, 2, 3))], samples=1)
    assert (facts.calls, facts.n, facts.fewest) == (1, 0, 0)
    assert np.isnan(facts.mean).all()


def test_the_source_is_told_where_there_is_one():
    observer = Observer()
    x = np.ones((2, 1))
    observer.see(x, samples=2, source="conv")
    observer.see(x, samples=2, source="conv")
    observer.commit()
    assert observer.facts().bias_from == "conv"
    observer.see(x, samples=2)
    observer.commit()
    assert observer.facts().bias_from is None


def test_half_precision_is_widened_first():
    x = torch.tensor([[60000.0], [40000.0]], dtype=torch.float16, requires_grad=True)
    assert double(x).dtype == torch.float64
    assert not double(x).requires_grad
    facts = observed([np.array([[60000.0], [40000.0]], np.float16)])
    assert (facts.mean[0], facts.var[0]) == (50000, 1e8)


def test_a_device_without_float64_hands_its_tensors_to_the_cpu(monkeypatch):
    class OnSuchADevice(torch.Tensor):
        def cpu(self):
            moved.append(True)
            return self

    moved = []
    monkeypatch.setattr(_observe, "WITHOUT_DOUBLE", frozenset({"cpu"}))
    x = torch.ones(2, 1).as_subclass(OnSuchADevice)
    assert double(x).dtype == torch.float64
    assert moved


def test_a_variance_of_zero_is_no_reference():
    ratio = variance_ratio(np.array([2.0, 3.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(ratio, [2, 1, 1])
