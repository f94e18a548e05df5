"""Recurrent networks with a normaliser inside: against PyTorch, JAX, TensorFlow, finite differences, identities."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest

from bnlearn.functional import (
    RecurrentGradients,
    StepStatistics,
    batch_norm,
    batch_norm_backward,
    batch_norm_lstm,
    batch_norm_lstm_backward,
    batch_norm_rnn,
    batch_norm_rnn_backward,
    layer_norm_lstm,
    layer_norm_lstm_backward,
    lstm,
    lstm_backward,
    rnn,
    rnn_backward,
    update_running,
    update_running_steps,
)
from bnlearn.gradcheck import numerical_gradient, relative_error

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")
    strict = pytest.importorskip("array_api_strict")

jax.config.update("jax_enable_x64", True)

N, L, F, H = 6, 4, 3, 2
EPS = 1e-3
# name: (forward, backward, gates, sites that are normalised)
KINDS = {
    "rnn": (rnn, rnn_backward, 1, ()),
    "lstm": (lstm, lstm_backward, 4, ()),
    "layer_norm_lstm": (functools.partial(layer_norm_lstm, eps=EPS), layer_norm_lstm_backward, 4, ("ih", "hh", "c")),
    "batch_norm_rnn": (functools.partial(batch_norm_rnn, eps=EPS), batch_norm_rnn_backward, 1, ("ih", "hh")),
    "batch_norm_rnn shared": (
        functools.partial(batch_norm_rnn, eps=EPS, per_step=False),
        batch_norm_rnn_backward,
        1,
        ("ih",),
    ),
    "batch_norm_lstm": (functools.partial(batch_norm_lstm, eps=EPS), batch_norm_lstm_backward, 4, ("ih", "hh", "c")),
    "batch_norm_lstm shared": (
        functools.partial(batch_norm_lstm, eps=EPS, per_step=False),
        batch_norm_lstm_backward,
        4,
        ("ih",),
    ),
}
BY_BATCH = [name for name in KINDS if name.startswith("batch")]
FORMS = [*KINDS, *(f"{name}, given" for name in BY_BATCH)]
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
TO = {
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
}


class Case:
    """Random arguments for one kind of network."""

    def __init__(self, form, rng, *, masked=False, n=N, length=L, dtype=np.float64):
        self.kind, _, given = form.partition(", ")
        self.forward, self.backward, gates, self.sites = KINDS[self.kind]
        rows = {"ih": gates * H, "hh": gates * H, "c": H}
        cells = ("h", "c") if gates == 4 else ("h",)

        def normal(*shape):
            return rng.standard_normal(shape).astype(dtype)

        self.arrays = {"x": normal(n, length, F), "weight_ih": normal(gates * H, F), "weight_hh": normal(gates * H, H)}
        self.arrays["bias"] = normal(gates * H)
        for site in self.sites:
            self.arrays[f"gamma_{site}"] = normal(rows[site]) + 1
        if "c" in self.sites:
            self.arrays["beta_c"] = normal(H)
        self.arrays |= {name: normal(n, H) for name in cells}
        self.cells = cells
        self.mask = MASK[:n, :length] if masked else None
        self.statistics = None
        if given:  # fewer rows than steps
            steps = 1 if "shared" in self.kind else length - 1
            self.statistics = {
                site: (normal(steps, rows[site]), rng.uniform(0.5, 2, (steps, rows[site])).astype(dtype))
                for site in self.sites
            }
        self.dy = normal(n, length, H)
        self.dstate = tuple(normal(n, H) for _ in cells)

    def run(self, arrays, to=lambda a: a):
        own = {name: array for name, array in arrays.items() if name not in ("h", "c")}
        options = (
            {}
            if self.statistics is None
            else {"statistics": {s: tuple(map(to, v)) for s, v in self.statistics.items()}}
        )
        mask = None if self.mask is None else to(self.mask)
        return self.forward(**own, state=tuple(arrays[c] for c in self.cells), mask=mask, **options)

    def loss(self, arrays, to=lambda a: a):
        """A number that depends on every output and on the last state."""
        y, cache = self.run(arrays, to)
        return (y * self.dy).sum() + sum((s * d).sum() for s, d in zip(cache.state, self.dstate, strict=True))

    def gradients(self, to=lambda a: a):
        arrays = {name: to(array) for name, array in self.arrays.items()}
        _, cache = self.run(arrays, to)
        return self.backward(to(self.dy), cache, tuple(map(to, self.dstate)))

    def with_torch(self):
        """The gradients by PyTorch's autograd through a straightforward composition of PyTorch's own functions."""
        t = {name: torch.tensor(array, requires_grad=True) for name, array in self.arrays.items()}
        y, state = reference(self, t)
        loss = (y * torch.tensor(self.dy)).sum() + sum(
            (s * torch.tensor(d)).sum() for s, d in zip(state, self.dstate, strict=True)
        )
        loss.backward()
        return y.detach().numpy(), [s.detach().numpy() for s in state], {name: a.grad.numpy() for name, a in t.items()}


def reference(case, t):
    """The recurrence as one would write it for PyTorch: only real rows are computed, one step after the other."""
    functional = torch.nn.functional
    steps = case.arrays["x"].shape[1]
    mask = torch.ones(t["x"].shape[:2], dtype=torch.bool) if case.mask is None else torch.tensor(case.mask)

    def norm(site, a, step, beta=None):
        gamma = t.get(f"gamma_{site}")
        if site not in case.sites:
            return a
        if case.kind.startswith("layer"):
            return functional.layer_norm(a, a.shape[-1:], gamma, beta, EPS)
        if case.statistics is None:
            return functional.batch_norm(a, None, None, gamma, beta, True, 0.0, EPS)
        mean, var = (torch.tensor(s[min(step, len(s) - 1)]) for s in case.statistics[site])
        return functional.batch_norm(a, mean, var, gamma, beta, False, 0.0, EPS)

    projected = torch.nn.functional.linear(t["x"][mask], t["weight_ih"])
    if "shared" in case.kind:
        projected = norm("ih", projected, 0)
    whole = torch.zeros(*mask.shape, projected.shape[-1], dtype=projected.dtype)
    whole[mask] = projected
    state, outputs = [t[c] for c in case.cells], []
    for step in range(steps):
        real = mask[:, step]
        a = whole[real, step]
        a = a if "shared" in case.kind else norm("ih", a, step)
        z = a + norm("hh", functional.linear(state[0][real], t["weight_hh"]), step) + t["bias"]
        if len(state) == 1:
            new = [torch.tanh(z)]
        else:
            i, f, g, o = z.chunk(4, dim=-1)
            c = torch.sigmoid(f) * state[1][real] + torch.sigmoid(i) * torch.tanh(g)
            new = [torch.sigmoid(o) * torch.tanh(norm("c", c, step, t.get("beta_c"))), c]
        state = [old.index_put((real.nonzero()[:, 0],), value) for old, value in zip(state, new, strict=True)]
        outputs.append(state[0])
    return torch.stack(outputs, dim=1), state


def named(gradients):
    return {name.removeprefix("d"): value for name, value in gradients._asdict().items() if value is not None}


def assert_close(ours, theirs, tolerance, what=""):
    theirs = np.asarray(theirs)
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * scale, err_msg=what)


masked = pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])


class TestPyTorch:
    @masked
    @pytest.mark.parametrize("form", FORMS)
    def test_straightforward_composition(self, rng, form, masked):
        case = Case(form, rng, masked=masked)
        y, cache = case.run(case.arrays)
        theirs_y, theirs_state, theirs = case.with_torch()
        assert_close(y, theirs_y, 1e-10)
        for ours, other in zip(cache.state, theirs_state, strict=True):
            assert_close(ours, other, 1e-10)
        ours = named(case.gradients())
        assert set(ours) == set(theirs)
        for name, gradient in theirs.items():
            assert_close(ours[name], gradient, 1e-9, name)

    @masked
    @pytest.mark.parametrize("form", FORMS)
    def test_autograd_through_our_forward(self, rng, form, masked):
        case = Case(form, rng, masked=masked)
        arrays = {name: torch.tensor(array, requires_grad=True) for name, array in case.arrays.items()}
        y, cache = case.run(arrays, torch.tensor)
        outputs, upstream = (y, *cache.state), tuple(map(torch.tensor, (case.dy, *case.dstate)))
        torch.autograd.backward(outputs, upstream)
        ours = named(case.gradients())
        for name, array in arrays.items():
            assert_close(ours[name], array.grad, 1e-9, name)

    @pytest.mark.parametrize("kind", ["rnn", "lstm"])
    def test_its_own_layers(self, rng, kind):
        case = Case(kind, rng)
        layer = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM}[kind](F, H, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.tensor(case.arrays["weight_ih"]))
            layer.weight_hh_l0.copy_(torch.tensor(case.arrays["weight_hh"]))
            layer.bias_ih_l0.copy_(torch.tensor(case.arrays["bias"]) / 4)
            layer.bias_hh_l0.copy_(torch.tensor(case.arrays["bias"]) * 3 / 4)
        state = tuple(torch.tensor(case.arrays[c])[None] for c in case.cells)
        x = torch.tensor(case.arrays["x"], requires_grad=True)
        theirs, last = layer(x, state[0] if kind == "rnn" else state)
        y, cache = case.run(case.arrays)
        assert_close(y, theirs.detach(), 1e-12)
        for ours, other in zip(cache.state, (last,) if kind == "rnn" else last, strict=True):
            assert_close(ours, other[0].detach(), 1e-12)
        theirs.backward(torch.tensor(case.dy))
        ours = case.backward(case.dy, cache)  # without a gradient of the last state
        assert_close(ours.x, x.grad, 1e-10)
        assert_close(ours.weight_ih, layer.weight_ih_l0.grad, 1e-10)
        assert_close(ours.weight_hh, layer.weight_hh_l0.grad, 1e-10)
        assert_close(ours.bias, layer.bias_hh_l0.grad, 1e-10)

    def test_packed_sequences(self, rng):
        """PyTorch's way to skip padding: the same last state; its padded outputs are 0, ours the state carried on."""
        case = Case("lstm", rng)
        lengths = np.array([4, 2, 3, 1, 4, 2])
        case.mask = np.arange(L) < lengths[:, None]
        layer = torch.nn.LSTM(F, H, batch_first=True, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.tensor(case.arrays["weight_ih"]))
            layer.weight_hh_l0.copy_(torch.tensor(case.arrays["weight_hh"]))
        pack = torch.nn.utils.rnn.pack_padded_sequence(
            torch.tensor(case.arrays["x"]), torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        packed, last = layer(pack)
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        y, cache = lstm(case.arrays["x"], case.arrays["weight_ih"], case.arrays["weight_hh"], mask=case.mask)
        assert_close(y[case.mask], padded.detach().numpy()[case.mask], 1e-12)
        for ours, other in zip(cache.state, last, strict=True):
            assert_close(ours, other[0].detach(), 1e-12)
        assert_close(y[:, -1], last[0][0].detach(), 1e-12)


class TestKeras:
    @pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
    def test_its_lstm_with_converted_weights(self, rng, masked):
        case = Case("lstm", rng, masked=masked)
        layer = keras.layers.LSTM(H, return_sequences=True, dtype="float64")
        layer.build((None, L, F))
        a = case.arrays
        layer.set_weights([a["weight_ih"].T, a["weight_hh"].T, a["bias"]])
        theirs = layer(tf.constant(a["x"]), initial_state=[a["h"], a["c"]], mask=case.mask)
        y, _ = case.run(a)
        if masked:  # before the first real step Keras puts out zeros, we the initial state
            started = np.cumsum(case.mask, axis=1) > 0
            y, theirs = y[started], np.asarray(theirs)[started]
        assert_close(y, theirs, 1e-10)


class TestEveryLibrary:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("library", TO)
    def test_same_as_numpy(self, rng, library, form):
        case, to = Case(form, rng, masked="given" not in form, length=2), TO[library]
        y, cache = case.run(case.arrays)
        there, there_cache = case.run({name: to(array) for name, array in case.arrays.items()}, to)
        assert type(there) is type(to(case.dy))
        assert_close(there, y, 1e-10)
        for ours, other in zip(cache.state, there_cache.state, strict=True):
            assert_close(other, ours, 1e-10)
        for site, statistics in cache.statistics.items():
            for ours, other in zip(statistics, there_cache.statistics[site], strict=True):
                assert_close(other, ours, 1e-10, site)
        theirs = named(case.gradients(to))
        for name, gradient in named(case.gradients()).items():
            assert_close(theirs[name], gradient, 1e-10, name)

    @pytest.mark.parametrize("form", [*list(KINDS)[2:], "batch_norm_lstm, given"])
    def test_jax_grad(self, rng, form):
        case = Case(form, rng, masked="given" not in form, length=2)
        to = jax.numpy.asarray
        gradients = jax.grad(case.loss)({name: to(array) for name, array in case.arrays.items()}, to)
        for name, gradient in named(case.gradients()).items():
            assert_close(gradient, gradients[name], 1e-9, name)

    def test_jax_jit(self, rng):
        """The backward pass through a compiled forward and backward."""
        case, to = Case("batch_norm_lstm", rng, masked=True, length=2), jax.numpy.asarray
        arrays = {name: to(array) for name, array in case.arrays.items()}

        def both(arrays):
            _, cache = case.run(arrays, to)
            return case.backward(case.dy, cache, case.dstate)

        case.dy, case.dstate = to(case.dy), tuple(map(to, case.dstate))
        compiled = named(jax.jit(both)(arrays))
        for name, gradient in named(both(arrays)).items():
            assert_close(compiled[name], gradient, 1e-10, name)

    @pytest.mark.parametrize("library", TO)
    def test_running_statistics(self, rng, library):
        to = TO[library]
        old = rng.standard_normal((5, 3)), rng.uniform(0.5, 2, (5, 3)), np.array([2, 2, 0, 0, 0])
        batch = rng.standard_normal((4, 3)), rng.uniform(0.5, 2, (4, 3)), np.array([6, 3, 2, 1])
        for momentum in (0.3, None):
            ours = update_running_steps(*old, StepStatistics(*batch), momentum=momentum)
            there = update_running_steps(*map(to, old), StepStatistics(*map(to, batch)), momentum=momentum)
            for left, right in zip(there, ours, strict=True):
                assert_close(left, right, 1e-12)

    def test_tensorflow_with_an_unknown_number_of_sequences(self, rng):
        case = Case("batch_norm_lstm", rng, masked=True, length=2)
        a = {name: tf.constant(array) for name, array in case.arrays.items() if name not in ("h", "c")}
        x = a.pop("x")

        @tf.function(
            autograph=False,
            input_signature=[tf.TensorSpec((None, 2, F), tf.float64), tf.TensorSpec((None, 2), tf.bool)],
        )
        def forward(x, mask):
            y, cache = batch_norm_lstm(x, **a, mask=mask)
            plain, unmasked = batch_norm_lstm(x, **a)
            running = tf.zeros((2, H)), tf.ones((2, H)), tf.zeros(2, tf.int64)
            updated = update_running_steps(*running, unmasked.statistics["c"], momentum=1.0)
            return y, cache.statistics["c"].n, updated, batch_norm_lstm_backward(plain, unmasked).x

        numpy = {name: array.numpy() for name, array in a.items()}
        y, n, updated, dx = forward(x, case.mask)
        expected, cache = batch_norm_lstm(x.numpy(), **numpy, mask=case.mask)
        assert_close(y, expected, 1e-10)
        np.testing.assert_array_equal(n, case.mask.sum(axis=0))
        plain, cache = batch_norm_lstm(x.numpy(), **numpy)
        assert_close(updated[1], cache.statistics["c"].var * N / (N - 1), 1e-6)
        assert_close(dx, batch_norm_lstm_backward(plain, cache).x, 1e-9)

    def test_half_precision_is_computed_in_float32(self, rng):
        case = Case("batch_norm_lstm", rng)
        half = {name: torch.tensor(array).bfloat16() for name, array in case.arrays.items()}
        y, cache = case.run(half)
        exact, _ = case.run({name: array.float() for name, array in half.items()})
        assert y.dtype == cache.state[1].dtype == torch.bfloat16
        assert cache.statistics["hh"].var.dtype == torch.float32
        torch.testing.assert_close(y, exact.bfloat16(), rtol=0, atol=0)
        gradients = case.backward(torch.tensor(case.dy).bfloat16(), cache)
        assert gradients.x.dtype == gradients.h.dtype == torch.bfloat16
        assert gradients.weight_ih.dtype == torch.float32


@masked
@pytest.mark.parametrize("form", FORMS)
def test_finite_differences(rng, form, masked):
    case = Case(form, rng, masked=masked)
    ours = named(case.gradients())
    for name, array in case.arrays.items():
        numerical = numerical_gradient(lambda a, name=name: case.loss({**case.arrays, name: a}), array)
        assert relative_error(ours[name], numerical) < 1e-6, name


class TestIdentities:
    def test_one_step_with_shared_statistics_is_a_dense_layer_with_batch_norm(self, rng):
        """At L = 1 and h_0 = 0 the recurrence is gone."""
        x, weight, gamma, beta = (rng.standard_normal(s) for s in [(N, 1, F), (H, F), (H,), (H,)])
        for per_step in (False, True):
            y, cache = batch_norm_rnn(x, weight, rng.standard_normal((H, H)), beta, gamma, per_step=per_step)
            dense, dense_cache = batch_norm(x[:, 0] @ weight.T, gamma, beta)
            assert_close(y[:, 0], np.tanh(dense), 1e-12)
            dy = rng.standard_normal(y.shape)
            ours = batch_norm_rnn_backward(dy, cache)
            da, dgamma, dbeta = batch_norm_backward(dy[:, 0] * (1 - np.tanh(dense) ** 2), dense_cache)
            for left, right in zip(
                (ours.x[:, 0], ours.weight_ih, ours.gamma_ih, ours.bias),
                (da @ weight, da.T @ x[:, 0], dgamma, dbeta),
                strict=True,
            ):
                assert_close(left, right, 1e-12)

    @pytest.mark.parametrize("kind", KINDS)
    def test_padding_more_changes_nothing(self, rng, kind):
        """Longer batches, filled with NaN: the same outputs, last state, statistics, gradients."""
        case = Case(kind, rng, masked=True)
        y, cache = case.run(case.arrays)
        gradients = case.gradients()

        case.arrays["x"] = np.where(case.mask[:, :, None], case.arrays["x"], np.nan)
        case.arrays["x"] = np.concatenate([case.arrays["x"], np.full((N, 3, F), np.nan)], axis=1)
        case.mask = np.concatenate([case.mask, np.zeros((N, 3), bool)], axis=1)
        case.dy = np.concatenate([case.dy, np.zeros((N, 3, H))], axis=1)
        longer, longer_cache = case.run(case.arrays)
        np.testing.assert_array_equal(longer[:, :L], y)
        np.testing.assert_array_equal(longer[:, L:], np.repeat(y[:, -1:], 3, axis=1))
        for ours, other in zip(longer_cache.state, cache.state, strict=True):
            np.testing.assert_array_equal(ours, other)
        for site, statistics in cache.statistics.items():
            for ours, other in zip(longer_cache.statistics[site], statistics, strict=True):
                np.testing.assert_array_equal(ours[: len(other)], other)
        for name, gradient in named(case.gradients()).items():
            expected = named(gradients)[name]
            if name == "x":
                assert not gradient[~case.mask].any()
                gradient = gradient[:, :L]
            assert_close(gradient, expected, 1e-13, name)

    @pytest.mark.parametrize("kind", KINDS)
    def test_automatic_differentiation_beside_nan_padding(self, rng, kind):
        """Where no sequence is real the statistics are NaN, and NaN times zero is NaN: none of it may come through."""
        case = Case(kind, rng, masked=True)
        case.mask = np.concatenate([case.mask[:, :3], np.zeros((N, 1), bool)], axis=1)
        expected = named(case.gradients())
        arrays = {name: torch.tensor(array) for name, array in case.arrays.items()}
        arrays["x"][~torch.tensor(case.mask)] = torch.nan
        arrays = {name: array.requires_grad_() for name, array in arrays.items()}
        y, cache = case.run(arrays, torch.tensor)
        torch.autograd.backward((y, *cache.state), tuple(map(torch.tensor, (case.dy, *case.dstate))))
        for name, array in arrays.items():
            assert_close(array.grad, expected[name], 1e-9, name)

    @pytest.mark.parametrize("kind", BY_BATCH)
    def test_own_statistics_given_back(self, rng, kind):
        """The inference form with the batch's own statistics is the training form's output."""
        case = Case(kind, rng, masked=True)
        y, cache = case.run(case.arrays)
        case.statistics = {site: statistics[:2] for site, statistics in cache.statistics.items()}
        assert_close(case.run(case.arrays)[0], y, 1e-12)

    @pytest.mark.parametrize("kind", ["batch_norm_rnn", "batch_norm_lstm"])
    def test_beyond_the_last_row_the_last_row(self, rng, kind):
        case = Case(f"{kind}, given", rng)
        y, _ = case.run(case.arrays)
        rows = np.minimum(np.arange(L), L - 2)
        repeated = {site: (mean[rows], var[rows]) for site, (mean, var) in case.statistics.items()}
        other = {site: (mean[[0, 1, 2, 0]], var[[0, 1, 2, 0]]) for site, (mean, var) in case.statistics.items()}
        case.statistics = repeated
        np.testing.assert_array_equal(case.run(case.arrays)[0], y)
        case.statistics = other
        assert np.abs(case.run(case.arrays)[0][:, -1] - y[:, -1]).max() > 1e-3

    @pytest.mark.parametrize("kind", ["layer_norm_lstm", "batch_norm_lstm", "batch_norm_rnn"])
    def test_the_scale_of_the_weights_does_not_matter(self, rng, kind):
        """Nor to the gradient's direction: it is orthogonal to what is normalised."""
        case = Case(kind, rng)
        case.forward = functools.partial(case.forward, eps=1e-12)
        y, _ = case.run(case.arrays)
        gradients = case.gradients()
        for name in ("weight_ih", "weight_hh"):
            assert abs((getattr(gradients, name) * case.arrays[name]).sum()) < 1e-8
            case.arrays[name] = 7 * case.arrays[name]
        assert_close(case.run(case.arrays)[0], y, 1e-8)

    def test_a_padded_sequence_is_not_in_the_statistics_of_the_others(self, rng):
        case = Case("batch_norm_lstm", rng)
        case.mask = np.ones((N, L), bool)
        case.mask[-1, 2:] = False
        _, cache = case.run(case.arrays)
        np.testing.assert_array_equal(cache.statistics["hh"].n, [N, N, N - 1, N - 1])
        _, pooled = batch_norm_rnn(
            *(rng.standard_normal(s) for s in [(N, L, F), (H, F), (H, H)]), per_step=False, mask=case.mask
        )
        np.testing.assert_array_equal(pooled.statistics["ih"].n, [N * L - 2])
        alone = case.arrays["x"][:-1] @ case.arrays["weight_ih"].T
        assert_close(cache.statistics["ih"].mean[2:], alone.mean(axis=0)[2:], 1e-12)

    def test_one_sequence_that_is_longest_is_normalised_to_zero(self, rng):
        case = Case("batch_norm_lstm", rng)
        case.mask = np.arange(L) < np.array([4, 3, 3, 3, 3, 3])[:, None]
        _, cache = case.run(case.arrays)
        np.testing.assert_allclose(cache.statistics["c"].var[3], 0, atol=1e-30)
        np.testing.assert_array_equal(cache.statistics["c"].n, [6, 6, 6, 1])


class TestRunningStatistics:
    old = np.array([[1.0], [2.0], [0.0], [0.0]]), np.array([[1.0], [2.0], [1.0], [1.0]]), np.array([3, 1, 0, 0])

    def test_each_row_as_update_running(self, rng):
        mean, var = rng.standard_normal((4, 3)), rng.uniform(0.5, 2, (4, 3))
        batch = rng.standard_normal((4, 3)), rng.uniform(0.5, 2, (4, 3))
        for unbiased in (True, False):
            new = update_running_steps(
                mean, var, np.arange(1, 5), StepStatistics(*batch, 7), momentum=0.3, unbiased=unbiased
            )
            for row in range(4):
                expected = update_running(
                    mean[row], var[row], batch[0][row], batch[1][row], 7, momentum=0.3, unbiased=unbiased
                )
                assert_close(new[0][row], expected[0], 1e-12)
                assert_close(new[1][row], expected[1], 1e-12)
            np.testing.assert_array_equal(new[2], [2, 3, 4, 5])

    def test_rows_that_too_few_sequences_reach_stay(self):
        batch = StepStatistics(np.full((4, 1), 5.0), np.full((4, 1), 3.0), np.array([4, 1, 0, 0]))
        mean, var, tracked = update_running_steps(*self.old, batch, momentum=0.5)
        np.testing.assert_allclose(mean[:, 0], [3, 2, 2, 2])
        np.testing.assert_allclose(var[:, 0], [0.5 + 0.5 * 4, 2, 2, 2])
        np.testing.assert_array_equal(tracked, [4, 1, 0, 0])

    def test_rows_not_reached_yet_repeat_the_last_that_was(self):
        """As Cooijmans et al. want it; the gap in the middle too, and the start stays as it is."""
        batch = StepStatistics(np.array([[7.0], [5.0], [9.0]]), np.full((3, 1), 3.0), np.array([1, 4, 0]))
        old = np.zeros((5, 1)), np.ones((5, 1)), np.array([0, 0, 0, 0, 0])
        mean, _, tracked = update_running_steps(*old, batch, momentum=1.0)
        np.testing.assert_allclose(mean[:, 0], [0, 5, 5, 5, 5])
        np.testing.assert_array_equal(tracked, [0, 1, 0, 0, 0])

    def test_average_of_all_batches_that_reached_the_step(self):
        batch = StepStatistics(np.full((2, 1), 9.0), np.full((2, 1), 6.0), 3)
        mean, var, tracked = update_running_steps(*self.old, batch, momentum=None)
        np.testing.assert_allclose(mean[:, 0], [1 + 8 / 4, 2 + 7 / 2, 5.5, 5.5])
        np.testing.assert_allclose(var[:, 0], [1 + 8 / 4, 2 + 7 / 2, 5.5, 5.5])
        np.testing.assert_array_equal(tracked, [4, 2, 0, 0])

    def test_two_sequences_are_enough_and_a_weight_of_zero_counts_them(self):
        batch = StepStatistics(np.full((2, 1), 9.0), np.full((2, 1), 6.0), 2)
        mean, var, tracked = update_running_steps(*self.old, batch, momentum=0)
        np.testing.assert_array_equal(mean[:2, 0], self.old[0][:2, 0])
        np.testing.assert_array_equal(var[:2, 0], self.old[1][:2, 0])
        np.testing.assert_array_equal(tracked[:2], self.old[2][:2] + 1)

    def test_the_old_are_not_changed_and_dtypes_stay(self):
        old = tuple(a.astype(np.float32) for a in self.old[:2])
        before = [a.copy() for a in old]
        new = update_running_steps(*old, self.old[2], StepStatistics(np.ones((2, 1)), np.ones((2, 1)), 3))
        assert [a.dtype for a in new] == [np.float32, np.float32, self.old[2].dtype]
        for array, copy in zip(old, before, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_no_graph_is_kept(self):
        mean = torch.ones(2, 1, requires_grad=True)
        new = update_running_steps(
            torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2, dtype=torch.int64), StepStatistics(mean, mean, 3)
        )
        assert not any(a.requires_grad for a in new)

    def test_errors(self):
        batch = StepStatistics(np.ones((5, 1)), np.ones((5, 1)), 3)
        with pytest.raises(ValueError, match=r"expected at most 4 time steps.*got 5; make max_length larger"):
            update_running_steps(*self.old, batch)
        for momentum in (1.5, -0.1, float("nan")):
            with pytest.raises(ValueError, match=f"weight of the new batch, from 0 to 1 or None, got {momentum}"):
                update_running_steps(*self.old, batch, momentum=momentum)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": np.zeros((2, 3))}, r"expected x of shape \(N, L, features\), 3D, got shape \(2, 3\)"),
            ({"x": np.zeros((2, 0, F))}, r"at least 1, on axis 1 of x, got \(2, 0, 3\)"),
            ({"weight_ih": np.zeros((8, 5))}, r"expected weight_ih of shape \(8, 3\).*got shape \(8, 5\)"),
            (
                {"weight_hh": np.zeros((7, H))},
                r"expected weight_hh of shape \(8, 2\).*got shape \(7, 2\)",
            ),
            ({"bias": np.zeros(2)}, r"expected bias of shape \(8,\).*got shape \(2,\)"),
            ({"gamma_c": np.zeros(8)}, r"expected gamma_c of shape \(2,\).*got shape \(8,\)"),
            ({"state": (np.zeros((N, H)),)}, r"expected state of 2 arrays of shape \(6, 2\), got shapes \[\(6, 2\)\]"),
            ({"state": (np.zeros((N, H)), np.zeros((N, 1)))}, r"got shapes \[\(6, 2\), \(6, 1\)\]"),
            ({"mask": np.ones((N, 9), bool)}, r"expected mask of shape \(6, 4\), \(N, L\), got \(6, 9\)"),
            ({"eps": -1.0}, "expected eps >= 0, got -1.0"),
            ({"per_step": False}, "expected no gamma_hh, gamma_c, beta_c with per_step=False"),
            ({"statistics": {"ih": (0, 0)}}, "expected statistics for ih, hh, c, got ih"),
            ({"statistics": {}}, "expected statistics for ih, hh, c, got none"),
        ],
    )
    def test_values(self, rng, change, message):
        a = {name: array for name, array in Case("batch_norm_lstm", rng).arrays.items() if name not in ("h", "c")}
        with pytest.raises(ValueError, match=message):
            batch_norm_lstm(**{**a, **change})

    @pytest.mark.parametrize("bad", [np.ones(8), np.ones((0, 8)), np.ones((3, 7))])
    def test_statistics(self, rng, bad):
        for name in ("mean", "var"):
            case = Case("batch_norm_lstm, given", rng)
            given = dict(zip(("mean", "var"), case.statistics["hh"], strict=False))
            case.statistics["hh"] = tuple({**given, name: bad}.values())
            with pytest.raises(
                ValueError, match=rf"expected the {name} of hh of shape \(steps, 8\).*got shape \([038]"
            ):
                case.run(case.arrays)

    def test_types(self, rng):
        a = Case("rnn", rng).arrays
        weights = a["weight_ih"], a["weight_hh"]
        with pytest.raises(TypeError, match=r"expected mask of dtype bool.*got int64"):
            rnn(a["x"], *weights, mask=np.ones((N, L), np.int64))
        with pytest.raises(TypeError, match="expected x of a real floating-point dtype, got int64"):
            rnn(np.zeros((N, L, F), np.int64), *weights)
        with pytest.raises(TypeError, match="expected arrays of one library"):
            rnn(torch.tensor(a["x"]), *weights)

    def test_upstream(self, rng):
        case = Case("lstm", rng)
        _, cache = case.run(case.arrays)
        for shape in [(N, L, H + 1), (N, L + 1, H), (N, L)]:
            with pytest.raises(ValueError, match=r"expected dy of the shape of y, \(6, 4, 2\), got \(6, "):
                lstm_backward(np.zeros(shape), cache)
        with pytest.raises(ValueError, match="expected dstate of 2 arrays, as the state, got 1"):
            lstm_backward(case.dy, cache, case.dstate[:1])
        with pytest.raises(ValueError, match=r"expected dstate of the shape of x, \(6, 2\), got \(6, 3\)"):
            lstm_backward(case.dy, cache, (np.zeros((N, 3)), np.zeros((N, 3))))


def test_gradients_are_none_for_what_is_not_there(rng):
    assert set(named(Case("rnn", rng).gradients())) == {"x", "weight_ih", "weight_hh", "bias", "h"}
    assert isinstance(Case("rnn", rng).gradients(), RecurrentGradients)
    case = Case("batch_norm_lstm", rng)
    a = {name: case.arrays[name] for name in ("x", "weight_ih", "weight_hh")}
    _, cache = batch_norm_lstm(**a)
    gradients = batch_norm_lstm_backward(case.dy, cache)
    assert gradients.bias.shape == gradients.gamma_ih.shape == (4 * H,)
    assert gradients.beta_c.shape == (H,)
