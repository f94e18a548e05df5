"""Statistics over shards: merging is exact, and normalising over shards is normalising them joined, both ways."""

from __future__ import annotations

import re
import tracemalloc
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    Moments,
    batch_norm,
    batch_norm_backward,
    merge_moments,
    moments,
    sync_batch_norm,
    sync_batch_norm_backward,
    update_running,
)
from bnlearn.gradcheck import numerical_gradient

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")
    strict = pytest.importorskip("array_api_strict")
    dask = pytest.importorskip("dask")
    da = pytest.importorskip("dask.array")

jax.config.update("jax_enable_x64", True)

TO = {
    "numpy": np.asarray,
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
    "dask": da.asarray,
}
# Sizes of the shards: one, equal, unequal, a single sample, an empty one in every place.
SPLITS = {"one": (12,), "equal": (4, 4, 4), "unequal": (7, 4, 1), "with empty ones": (0, 5, 0, 0, 7, 0)}
SHAPES = [(12, 3), (12, 2, 5), (12, 3, 2, 4)]


def split(a, sizes):
    return np.split(a, np.cumsum(sizes)[:-1])


def joined(arrays):
    return np.concatenate([np.asarray(a) for a in arrays])


def axes_of(x):
    return (0, *range(2, x.ndim))


def made(rng, shape, dtype=np.float64, mean=2.0, std=3.0):
    channels = shape[1]
    return {
        "x": (mean + std * rng.standard_normal(shape)).astype(dtype),
        "gamma": (rng.uniform(0.5, 2.0, channels) * rng.choice([-1, 1], channels)).astype(dtype),
        "beta": rng.standard_normal(channels).astype(dtype),
        "dy": rng.standard_normal(shape).astype(dtype),
    }


def close(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=tolerance, atol=tolerance)


class TestMoments:
    @pytest.mark.parametrize(
        ("library", "shape"), [*(("numpy", shape) for shape in SHAPES), *((library, SHAPES[2]) for library in TO)]
    )
    def test_count_mean_and_sum_of_squared_deviations(self, rng, shape, library):
        x = made(rng, shape)["x"]
        found = moments(TO[library](x))
        n = x.size // x.shape[1]
        assert found.n == n
        close(found.mean, x.mean(axis=axes_of(x)))
        close(found.m2, n * x.var(axis=axes_of(x)))
        close(found.var, x.var(axis=axes_of(x)))

    @pytest.mark.parametrize("library", sorted(TO))
    def test_padding_does_not_count(self, rng, library):
        x, mask = made(rng, (9, 3, 4))["x"], rng.random((9, 4)) < 0.6
        real = np.moveaxis(x, 1, -1)[mask]
        x[~np.broadcast_to(mask[:, None], x.shape)] = np.nan
        found = moments(TO[library](x), TO[library](mask))
        assert int(found.n) == mask.sum()
        close(found.mean, real.mean(axis=0))
        close(found.m2, mask.sum() * real.var(axis=0))
        close(found.var, real.var(axis=0))

    def test_nan_in_the_padding_is_no_gradient(self, rng):
        x, mask = torch.tensor(rng.standard_normal((4, 3, 2))), torch.tensor(rng.random((4, 2)) < 0.6)
        x = torch.where(mask[:, None], x, torch.nan).requires_grad_()
        found = moments(x, mask)
        (found.mean.sum() + found.m2.sum()).backward()
        np.testing.assert_array_equal(x.grad == 0, ~mask[:, None].expand(4, 3, 2))

    def test_under_jit_the_counts_stay_arrays(self, rng):
        x, mask = rng.standard_normal((4, 3, 2)), rng.random((4, 2)) < 0.6

        @jax.jit
        def run(x, mask):
            whole = merge_moments(moments(x[:1], mask[:1]), moments(x[1:], mask[1:]))
            return whole.n, whole.mean, whole.var

        whole = moments(x, mask)
        for there, here in zip(
            run(jax.numpy.asarray(x), jax.numpy.asarray(mask)), (whole.n, whole.mean, whole.var), strict=True
        ):
            close(there, here)

    def test_one_value_is_its_own_mean(self):
        x = np.array([[3.0, -2.0]])
        merged = merge_moments(moments(x))
        assert merged.n == 1
        np.testing.assert_array_equal([merged.mean, merged.m2, merged.var], [x[0], [0, 0], [0, 0]])

    @pytest.mark.parametrize("library", sorted(TO))
    def test_of_nothing(self, library):
        to = TO[library]
        of_padding = moments(to(np.ones((2, 3, 4))), to(np.zeros((2, 4), bool)))
        for found in (moments(to(np.empty((0, 3)))), of_padding):
            assert int(found.n) == 0
            np.testing.assert_array_equal(np.asarray(found.mean), [np.nan] * 3)
            np.testing.assert_array_equal(np.asarray(found.var), [np.nan] * 3)
            np.testing.assert_array_equal(np.asarray(found.m2), 0)

    def test_half_precision_is_summed_in_float32(self, rng):
        x = (30 + rng.standard_normal((1000, 2))).astype(np.float16)
        found = moments(x)
        assert {a.dtype for a in found[1:]} == {np.dtype(np.float32)}
        np.testing.assert_allclose(found.m2, 1000 * x.astype(np.float64).var(axis=0), rtol=1e-5)

    def test_the_mean_and_its_rest_have_twice_the_digits(self, rng):
        x = (1e3 + 0.1 * rng.standard_normal((999, 4))).astype(np.float32)
        found, exact = moments(x), x.astype(np.float64).mean(axis=0)
        assert np.abs(found.mean.astype(np.float64) - exact).max() > 1e-6  # what float32 can say of a thousand
        np.testing.assert_allclose(found.mean.astype(np.float64) + found.rest, exact, rtol=0, atol=1e-8)

    def test_infinity_stays_what_it_is(self):
        with np.errstate(invalid="ignore"):
            found = moments(np.array([[np.inf], [1.0]]))
            whole = merge_moments(found, moments(np.array([[2.0], [3.0]])))
        assert found.mean == whole.mean == np.inf
        assert found.rest == whole.rest == 0

    def test_errors(self):
        with pytest.raises(ValueError, match=r"at least 2D, got shape \(4,\)"):
            moments(np.zeros(4))
        with pytest.raises(TypeError, match="expected x of a real floating-point dtype, got int64"):
            moments(np.zeros((4, 2), np.int64))
        with pytest.raises(ValueError, match=r"expected mask of shape \(4, 5\), .* got \(4, 2\)"):
            moments(np.zeros((4, 2, 5)), np.ones((4, 2), bool))


class TestMerge:
    @pytest.mark.parametrize(
        ("library", "sizes"),
        [*(("numpy", sizes) for sizes in SPLITS.values()), *((library, SPLITS["with empty ones"]) for library in TO)],
        ids=str,
    )
    def test_of_the_shards_is_that_of_the_whole(self, rng, sizes, library):
        x = made(rng, (12, 3, 2))["x"]
        whole = merge_moments(*(moments(TO[library](part)) for part in split(x, sizes)))
        assert whole.n == 24
        close(whole.mean, x.mean(axis=(0, 2)))
        close(whole.m2, 24 * x.var(axis=(0, 2)))
        close(whole.var, x.var(axis=(0, 2)))

    @pytest.mark.parametrize("library", sorted(TO))
    def test_counts_that_are_arrays(self, rng, library):
        to, x, mask = TO[library], made(rng, (12, 2, 5))["x"], rng.random((12, 5)) < 0.5
        mask[:4] = False
        parts = [moments(to(a), to(m)) for a, m in zip(split(x, (4, 7, 1)), split(mask, (4, 7, 1)), strict=True)]
        parts.append(moments(to(x[:3])))  # and one that is a plain number
        whole, real = merge_moments(*parts), np.concatenate([np.moveaxis(x, 1, -1)[mask], *np.moveaxis(x[:3], 1, -1)])
        assert int(whole.n) == len(real)
        close(whole.mean, real.mean(axis=0))
        close(whole.var, real.var(axis=0))

    def test_is_the_same_in_any_order_and_nesting(self, rng):
        parts = [moments(part) for part in split(made(rng, (12, 3))["x"], (1, 6, 2, 3))]
        flat = merge_moments(*parts)
        nested = merge_moments(merge_moments(parts[2], parts[0]), merge_moments(parts[3]), parts[1])
        for left, right in zip(flat[:3], nested[:3], strict=True):
            close(left, right, 1e-13)

    def test_the_average_of_the_variances_is_not_the_variance(self, rng):
        """What a merge without the second term would say."""
        x = made(rng, (12, 3))["x"]
        parts = [moments(part) for part in split(x, (3, 9))]
        average = sum(part.n * part.var for part in parts) / 12
        assert np.abs(average / x.var(axis=0) - 1).max() > 0.01

    @pytest.mark.parametrize("sizes", [(500, 500), (1, 399, 600), (10,) * 100])
    def test_float32_at_mean_1e3_std_01(self, rng, sizes):
        x = (1e3 + 0.1 * rng.standard_normal((1000, 5))).astype(np.float32)
        whole = merge_moments(*(moments(part) for part in split(x, sizes)))
        exact = x.astype(np.float64)
        np.testing.assert_allclose(whole.mean, exact.mean(axis=0), rtol=np.finfo(np.float32).eps)
        np.testing.assert_allclose(whole.mean.astype(np.float64) + whole.rest, exact.mean(axis=0), atol=1e-7, rtol=0)
        np.testing.assert_allclose(whole.m2, 1000 * exact.var(axis=0), rtol=1e-5)
        # E[x^2] - E[x]^2 of the same numbers, which an all-reduce of sums and sums of squares computes:
        naive = np.float32(sum((part**2).sum(axis=0) for part in split(x, sizes)) / 1000) - x.mean(axis=0) ** 2
        assert np.abs(naive / exact.var(axis=0) - 1).min() > 0.1

    def test_a_merge_without_the_rests_would_be_less_exact(self, rng):
        x = (1e3 + 0.1 * rng.standard_normal((1000, 50))).astype(np.float32)
        parts = [moments(part) for part in split(x, (1, 399, 600))]
        exact = 1000 * x.astype(np.float64).var(axis=0)
        errors = [
            np.abs(merge_moments(*given).m2 / exact - 1).max()
            for given in (parts, [Moments(part.n, part.mean, part.m2) for part in parts])
        ]
        assert errors[1] > 20 * errors[0]

    def test_of_nothing_is_nothing(self):
        whole = merge_moments(moments(np.empty((0, 2))), moments(np.empty((0, 2))))
        assert whole.n == 0
        np.testing.assert_array_equal(whole.mean, [np.nan, np.nan])
        np.testing.assert_array_equal(whole.m2, [0, 0])

    def test_counts_of_numpy(self):
        whole = merge_moments(Moments(np.int64(1), np.ones(1), np.zeros(1)), Moments(3, np.full(1, 5.0), np.ones(1)))
        assert isinstance(whole.n, int)
        assert (whole.n, float(whole.mean[0]), float(whole.m2[0])) == (4, 4.0, 13.0)
        close(Moments(np.int64(4), np.ones(1), np.full(1, 2.0)).var, [0.5])

    def test_errors(self):
        one = Moments(2, np.zeros(3), np.ones(3))
        with pytest.raises(ValueError, match="at least one shard, got none"):
            merge_moments()
        for name, wrong in {
            "mean": Moments(2, np.zeros(2), np.ones(3)),
            "m2": Moments(2, np.zeros(3), np.ones((1, 3))),
            "rest": Moments(2, np.zeros(3), np.ones(3), np.zeros(1)),
        }.items():
            with pytest.raises(ValueError, match=rf"expected {name} of one shape in all shards, \(3,\) .* got \("):
                merge_moments(one, wrong)
        with pytest.raises(ValueError, match="expected n >= 0, got -1"):
            merge_moments(one, Moments(-1, np.zeros(3), np.ones(3)))
        with pytest.raises(TypeError, match=r"expected n to be a whole number, got 2\.5"):
            merge_moments(one, Moments(2.5, np.zeros(3), np.ones(3)))
        with pytest.raises(TypeError, match=r"one library .* numpy\.ndarray, torch\.Tensor"):
            merge_moments(one, Moments(2, torch.zeros(3), torch.ones(3)))


class TestSyncBatchNorm:
    @pytest.mark.parametrize(
        ("library", "shape", "sizes"),
        [
            *(("numpy", shape, sizes) for shape in SHAPES for sizes in SPLITS.values()),
            *((library, SHAPES[1], SPLITS[name]) for library in TO for name in ("unequal", "with empty ones")),
        ],
        ids=str,
    )
    def test_is_batch_norm_of_the_shards_joined(self, rng, shape, sizes, library):
        """Forward, backward and running statistics."""
        d, to = made(rng, shape), TO[library]
        y, cache = batch_norm(d["x"], d["gamma"], d["beta"], eps=0.01)
        gradients = batch_norm_backward(d["dy"], cache)
        running = [np.full(shape[1], 0.3), np.full(shape[1], 1.7)]
        expected = update_running(*running, cache.mean, cache.var, cache.n)

        shards = [to(part) for part in split(d["x"], sizes)]
        ys, over_shards = sync_batch_norm(shards, to(d["gamma"]), to(d["beta"]), eps=0.01)
        dxs, dgamma, dbeta = sync_batch_norm_backward([to(part) for part in split(d["dy"], sizes)], over_shards)

        assert [tuple(part.shape) for part in ys] == [tuple(part.shape) for part in shards]
        close(joined(ys), y)
        for found, theirs in zip((joined(dxs), dgamma, dbeta), gradients, strict=True):
            close(found, theirs)
        mine = update_running(*map(to, running), over_shards.mean, over_shards.var, over_shards.n)
        for found, theirs in zip(mine, expected, strict=True):
            close(found, theirs)

    def test_without_gamma_and_beta(self, rng):
        d = made(rng, (12, 3))
        ys, cache = sync_batch_norm(split(d["x"], (5, 7)))
        y, plain = batch_norm(d["x"])
        close(joined(ys), y)
        close(
            joined(sync_batch_norm_backward(split(d["dy"], (5, 7)), cache)[0]), batch_norm_backward(d["dy"], plain)[0]
        )

    def test_shards_of_different_spatial_size(self, rng):
        """Images of two sizes, which no array holds together: as if all positions were samples."""
        shards = [rng.standard_normal((2, 3, 4, 4)) + 5, rng.standard_normal((3, 3, 2, 6))]
        ys, cache = sync_batch_norm(shards)
        y, _ = batch_norm(np.concatenate([np.moveaxis(part, 1, -1).reshape(-1, 3) for part in shards]))
        assert cache.n == 2 * 16 + 3 * 12
        close(np.concatenate([np.moveaxis(part, 1, -1).reshape(-1, 3) for part in ys]), y)

    @pytest.mark.parametrize("sizes", [(1000,), (500, 500), (1, 399, 600), (1,) * 10 + (990,)])
    def test_float32_at_mean_1e3_is_as_accurate_as_one_batch(self, rng, sizes):
        d = made(rng, (1000, 5), np.float32, mean=1e3, std=0.1)
        exact, exact_cache = batch_norm(*(d[name].astype(np.float64) for name in ("x", "gamma", "beta")))
        whole, _ = batch_norm(d["x"], d["gamma"], d["beta"])
        ys, cache = sync_batch_norm(split(d["x"], sizes), d["gamma"], d["beta"])
        assert np.abs(joined(ys) - exact).max() <= 2 * np.abs(whole - exact).max()
        dxs, *_ = sync_batch_norm_backward(split(d["dy"], sizes), cache)
        dx, *_ = batch_norm_backward(d["dy"].astype(np.float64), exact_cache)
        np.testing.assert_allclose(joined(dxs), dx, atol=1e-4 * np.abs(dx).max())

    @pytest.mark.parametrize("which", range(3))
    def test_finite_differences(self, rng, which):
        d, sizes = made(rng, (6, 2, 2)), (1, 0, 5)
        given = [d["x"], d["gamma"], d["beta"]]

        def loss(moved):
            x, gamma, beta = [*given[:which], moved, *given[which + 1 :]]
            return sum((y * dy).sum() for y, dy in zip(forward(x, gamma, beta)[0], dys, strict=True))

        def forward(x, gamma, beta):
            return sync_batch_norm(split(x, sizes), gamma, beta)

        dys = split(d["dy"], sizes)
        dxs, *others = sync_batch_norm_backward(dys, forward(*given)[1])
        found = [joined(dxs), *others][which]
        np.testing.assert_allclose(found, numerical_gradient(loss, given[which]), rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("sizes", [(5, 7), (0, 1, 11)])
    def test_autograd_of_torch_and_jax(self, rng, sizes):
        d = made(rng, (12, 3, 2))
        dys = split(d["dy"], sizes)
        dxs, dgamma, dbeta = sync_batch_norm_backward(
            dys, sync_batch_norm(split(d["x"], sizes), d["gamma"], d["beta"])[1]
        )
        t = [torch.tensor(d[name], requires_grad=True) for name in ("x", "gamma", "beta")]
        ys, _ = sync_batch_norm(t[0].split(sizes), t[1], t[2])
        torch.cat(ys).backward(torch.tensor(d["dy"]))
        for found, theirs in zip((joined(dxs), dgamma, dbeta), t, strict=True):
            close(found, theirs.grad.numpy(), 1e-9)

        def forward(x, gamma, beta):
            return jax.numpy.concatenate(
                sync_batch_norm(jax.numpy.split(x, np.cumsum(sizes)[:-1].tolist()), gamma, beta)[0]
            )

        _, pull = jax.vjp(forward, *(jax.numpy.asarray(d[name]) for name in ("x", "gamma", "beta")))
        for found, theirs in zip((joined(dxs), dgamma, dbeta), pull(jax.numpy.asarray(d["dy"])), strict=True):
            close(found, theirs, 1e-9)

    def test_under_jit(self, rng):
        d = made(rng, (12, 3))
        parts = [jax.numpy.asarray(part) for part in split(d["x"], (5, 7))]
        ys, cache = jax.jit(sync_batch_norm)(parts, d["gamma"], d["beta"])
        close(joined(ys), batch_norm(d["x"], d["gamma"], d["beta"])[0])
        dxs, *_ = jax.jit(sync_batch_norm_backward)([jax.numpy.asarray(part) for part in split(d["dy"], (5, 7))], cache)
        _, plain = batch_norm(d["x"], d["gamma"], d["beta"])
        close(joined(dxs), batch_norm_backward(d["dy"], plain)[0])

    def test_compiled_by_torch_without_a_break(self, rng):
        d = {name: torch.tensor(value) for name, value in made(rng, (12, 3)).items()}

        @torch.compile(fullgraph=True, backend="aot_eager")
        def both_ways(x, dy, gamma, beta):
            ys, cache = sync_batch_norm(x.split((5, 7)), gamma, beta)
            dxs, *gradients = sync_batch_norm_backward(dy.split((5, 7)), cache)
            return torch.cat(ys), torch.cat(dxs), *gradients

        y, cache = batch_norm(d["x"], d["gamma"], d["beta"])
        expected = y, *batch_norm_backward(d["dy"], cache)
        for found, value in zip(both_ways(d["x"], d["dy"], d["gamma"], d["beta"]), expected, strict=True):
            close(found, value.numpy())

    def test_dx_sums_to_zero_over_all_shards_and_not_over_each(self, rng):
        d = made(rng, (12, 3))
        _, cache = sync_batch_norm(split(d["x"], (5, 7)), d["gamma"], d["beta"], eps=0.0)
        dxs, *_ = sync_batch_norm_backward(split(d["dy"], (5, 7)), cache)
        np.testing.assert_allclose(joined(dxs).sum(axis=0), 0, atol=1e-13)
        np.testing.assert_allclose((joined(dxs) * joined(cache.x_hats)).sum(axis=0), 0, atol=1e-12)
        assert np.abs(dxs[0].sum(axis=0)).min() > 1e-3

    def test_sums_over_the_own_shard_alone_would_be_wrong(self, rng):
        """The mistake of merging in the forward pass only."""
        d = made(rng, (12, 3))
        _, cache = sync_batch_norm(split(d["x"], (5, 7)), d["gamma"], d["beta"])
        dxs, *_ = sync_batch_norm_backward(split(d["dy"], (5, 7)), cache)
        own, *_ = sync_batch_norm_backward([d["dy"][:5]], cache._replace(x_hats=cache.x_hats[:1], n=5))
        assert np.abs(own[0] - dxs[0]).max() > 0.05 * np.abs(dxs[0]).max()

    def test_all_shards_empty(self):
        ys, cache = sync_batch_norm([np.empty((0, 3)), np.empty((0, 3))], np.ones(3), np.zeros(3))
        dxs, dgamma, dbeta = sync_batch_norm_backward(ys, cache)
        assert [a.shape for a in (*ys, *dxs)] == [(0, 3)] * 4
        assert cache.n == 0
        np.testing.assert_array_equal(cache.mean, [np.nan] * 3)
        np.testing.assert_array_equal([dgamma, dbeta], np.zeros((2, 3)))

    def test_half_precision_comes_back_where_it_came_in(self, rng):
        d = made(rng, (40, 3), np.float32)
        halves = [part.astype(np.float16) for part in split(d["x"], (15, 25))]
        ys, cache = sync_batch_norm(halves, d["gamma"], d["beta"])
        dxs, dgamma, _ = sync_batch_norm_backward([part.astype(np.float16) for part in split(d["dy"], (15, 25))], cache)
        assert {a.dtype for a in (*ys, *dxs)} == {np.dtype(np.float16)}
        assert {a.dtype for a in (*cache.x_hats, cache.mean, cache.var, dgamma)} == {np.dtype(np.float32)}
        exact, _ = batch_norm(*(np.float64(a) for a in (np.concatenate(halves), d["gamma"], d["beta"])))
        np.testing.assert_allclose(joined(ys), exact, atol=4e-3)

    def test_errors(self, rng):
        x = rng.standard_normal((4, 3))
        with pytest.raises(ValueError, match="at least one shard of x, got none"):
            sync_batch_norm([])
        with pytest.raises(
            ValueError, match=re.escape("shards of 3 channels, as the first with shape (4, 3), got one of shape (4, 2)")
        ):
            sync_batch_norm([x, x[:, :2]])
        with pytest.raises(ValueError, match=r"expected gamma of shape \(3,\), .* got shape \(2,\)"):
            sync_batch_norm([x], np.ones(2))
        with pytest.raises(ValueError, match=r"expected eps >= 0, got -1"):
            sync_batch_norm([x], eps=-1)
        with pytest.raises(TypeError, match=r"one library .* numpy\.ndarray, torch\.Tensor"):
            sync_batch_norm([x, torch.tensor(x)])
        _, cache = sync_batch_norm([x, x[:2]])
        with pytest.raises(ValueError, match="one dy for each of the 2 shards, got 1"):
            sync_batch_norm_backward([x], cache)
        with pytest.raises(ValueError, match=r"expected dys\[1\] of the shape of x, \(2, 3\), got \(4, 3\)"):
            sync_batch_norm_backward([x, x], cache)


CHUNKS, PART = 64, np.random.default_rng(0).random((1 << 14, 64), dtype=np.float32)


def chunk(i):
    """Four megabytes that are in memory only while someone holds them."""
    return PART + np.float32(i)


def by_dask(x):
    """As the documentation says: the statistics, and then what needs them."""
    (whole,) = dask.persist(moments(x))
    y, _ = batch_norm(x, mean=whole.mean, var=whole.var)
    return whole.mean, whole.var, (y * y).mean().compute()


def by_numpy(x):
    whole = merge_moments(*(moments(chunk(i)) for i in range(CHUNKS)))
    return whole.mean, whole.var, 1.0


def at_once(x):
    y, cache = batch_norm(x)
    return dask.compute(cache.mean, cache.var, (y * y).mean())


class TestLargerThanMemory:
    def test_a_dask_array_stays_lazy(self, rng):
        x = rng.standard_normal((40, 3, 5))
        seen = []

        def read(block):
            seen.append(block.shape)
            return block

        lazy = da.from_array(x, chunks=(7, 3, 5)).map_blocks(read, meta=np.empty((0, 0, 0)))
        found = moments(lazy)
        whole = merge_moments(found, found)
        y, _ = batch_norm(lazy, mean=found.mean, var=found.var)
        assert seen == []
        assert {type(a) for a in (*found[1:], *whole[1:], whole.var, y)} == {da.Array}
        close(y, batch_norm(x)[0])

    def test_chunks_along_every_axis(self, rng):
        x, mask = rng.standard_normal((40, 3, 5)), rng.random((40, 5)) > 0.3
        found = moments(da.from_array(x, chunks=(7, 2, 3)), da.from_array(mask, chunks=(9, 4)))
        real = np.moveaxis(x, 1, -1)[mask]
        assert isinstance(found.n, da.Array)
        assert found.n.compute() == mask.sum()
        close(found.mean, real.mean(axis=0))
        close(found.var, real.var(axis=0))

    def test_chunks_of_unknown_length(self, rng):
        x = rng.standard_normal((40, 3))
        lazy = da.from_array(x, chunks=(7, 3))
        found = moments(lazy[lazy[:, 0] > 0])
        kept = x[x[:, 0] > 0]
        assert int(found.n) == len(kept)
        close(found.var, kept.var(axis=0))

    @pytest.mark.parametrize(("how", "least", "most"), [(by_dask, 0, 0.1), (by_numpy, 0, 0.1), (at_once, 0.9, 4)])
    def test_peak_memory_is_a_fraction_of_the_data(self, how, least, most):
        """A quarter of a gigabyte, made chunk by chunk. batch_norm at once, as is documented, keeps them all."""
        x = da.map_blocks(
            lambda block_info: chunk(block_info[None]["chunk-location"][0]),
            chunks=((len(PART),) * CHUNKS, (64,)),
            dtype=np.float32,
            meta=np.empty((0, 0), np.float32),
        )
        with dask.config.set(scheduler="synchronous"):
            tracemalloc.start()
            try:
                mean, var, spread = how(x)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert least < peak / x.nbytes < most
        # The chunks are one array plus 0, 1, 2, ...: its mean and variance, and those of a row of whole numbers.
        exact = PART.astype(np.float64)
        close(mean, exact.mean(axis=0) + (CHUNKS - 1) / 2, 1e-5)
        close(var, exact.var(axis=0) + (CHUNKS**2 - 1) / 12, 1e-5)
        close(spread, 1, 1e-4)
