"""The NumPy recurrent layers: modes, running statistics, gradients, state, errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from bnlearn.functional import (
    StepStatistics,
    batch_norm_lstm,
    batch_norm_rnn,
    layer_norm_lstm,
    lstm,
    update_running_steps,
)
from bnlearn.gradcheck import check_layer
from bnlearn.layers import LSTM, BatchNormLSTM, BatchNormRNN, LayerNormLSTM, Linear, Sequential

N, L, F, H = 6, 4, 3, 2
MAKE = {
    "LayerNormLSTM": lambda **kw: LayerNormLSTM(F, H, **kw),
    "BatchNormLSTM": lambda **kw: BatchNormLSTM(F, H, max_length=5, **kw),
    "BatchNormLSTM shared": lambda **kw: BatchNormLSTM(F, H, per_step=False, **kw),
    "BatchNormRNN": lambda **kw: BatchNormRNN(F, H, max_length=5, **kw),
    "BatchNormRNN shared": lambda **kw: BatchNormRNN(F, H, per_step=False, **kw),
}
BY_BATCH = [name for name in MAKE if name.startswith("Batch")]


def randomise(layer, rng):
    for array in layer.parameters().values():
        array[...] = rng.standard_normal(array.shape) + 0.5
    for name, array in layer.buffers().items():
        array[...] = rng.uniform(0.5, 2, array.shape) if "var" in name else rng.integers(1, 3, array.shape)
    return layer


def make(name, rng, **kw):
    return randomise(MAKE[name](rng=rng, dtype=np.float64, eps=1e-3, **kw), rng)


@pytest.mark.parametrize("name", MAKE)
class TestEveryLayer:
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("return_sequences", [True, False])
    def test_backward(self, rng, name, return_sequences, training):
        layer = make(name, rng, return_sequences=return_sequences).train(training)
        errors = check_layer(layer, rng.standard_normal((N, L, F)), rng)
        assert set(errors) == {"x", *layer.parameters()}
        assert max(errors.values()) < 1e-6, errors

    def test_the_last_step_alone(self, rng, name):
        layer = make(name, rng)
        x = rng.standard_normal((N, L, F))
        sequence = layer(x)
        layer.return_sequences = False
        np.testing.assert_array_equal(layer(x), sequence[:, -1])
        assert sequence.shape == (N, L, H)

    def test_padding(self, rng, name):
        layer = make(name, rng, return_sequences=False)
        x, mask = rng.standard_normal((N, L, F)), np.arange(L) < np.array([4, 3, 2, 4, 3, 3])[:, None]
        y = layer(x, mask)
        np.testing.assert_array_equal(copy.deepcopy(layer)(np.where(mask[:, :, None], x, np.nan), mask), y)
        assert np.abs(layer(x) - y).max() > 1e-3
        layer(x, mask)
        assert not layer.backward(np.ones((N, H)))[~mask].any()

    def test_state_copies_and_pickles(self, rng, name):
        layer, x = make(name, rng), rng.standard_normal((N, L, F))
        other = MAKE[name](rng=rng, dtype=np.float64, eps=1e-3)
        other.load_state_dict(layer.state_dict())
        expected = layer.eval()(x)
        for copied in (other.eval(), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            np.testing.assert_array_equal(copied(x), expected)
        assert not np.allclose(MAKE[name](rng=rng, dtype=np.float64).eval()(x), expected)

    def test_parameters_are_the_arrays_themselves(self, rng, name):
        layer = make(name, rng)
        layer(rng.standard_normal((N, L, F)))
        layer.backward(rng.standard_normal((N, L, H)))
        assert layer.grads.keys() == layer.parameters().keys()
        assert layer.parameters()["norm_ih.weight"] is layer.norms["ih"].weight
        for key, array in layer.parameters().items():
            assert layer.grads[key].shape == array.shape

    def test_inside_a_sequential(self, rng, name):
        model = Sequential(make(name, rng, return_sequences=False), Linear(H, 3, rng=rng, dtype=np.float64))
        assert max(check_layer(model, rng.standard_normal((N, L, F)), rng).values()) < 1e-6

    def test_errors(self, rng, name):
        layer = make(name, rng)
        with pytest.raises(ValueError, match=r"expected x of shape \(N, L, 3\), got \(6, 3, 4\)"):
            layer(np.zeros((N, F, L)))
        with pytest.raises(ValueError, match=r"expected x of shape \(N, L, 3\), got \(6, 3\)"):
            layer(np.zeros((N, F)))
        with pytest.raises(TypeError, match="expected floating-point numbers, got int64"):
            layer(np.zeros((N, L, F), np.int64))
        with pytest.raises(ValueError, match="input_size and hidden_size >= 1, got 0 and 2"):
            type(layer)(0, 2, rng=rng, **({} if name == "LayerNormLSTM" else {"per_step": False}))
        with pytest.raises(TypeError, match=r"expected rng=np.random.default_rng\(seed\), got int"):
            MAKE[name](rng=0)
        layer(np.ones((N, L, F)))
        with pytest.raises(ValueError, match=r"of the layer's output, \(6, 4, 2\), got \(6, 2\)"):
            layer.backward(np.ones((N, H)))
        layer.return_sequences = False
        with pytest.raises(ValueError, match=r"of the layer's output, \(6, 2\), got \(6, 4, 2\)"):
            layer.backward(np.ones((N, L, H)))
        norm = layer.norms["ih"]
        for method in (norm.forward, norm.backward):
            with pytest.raises(NotImplementedError, match="call that"):
                method(np.zeros(3))


@pytest.mark.parametrize("name", BY_BATCH)
class TestRunningStatistics:
    def test_training_then_evaluation(self, rng, name):
        layer = make(name, rng)
        before = layer.state_dict()
        x = rng.standard_normal((N, L, F))
        y = layer(x)
        function = batch_norm_rnn if "RNN" in name else batch_norm_lstm
        gammas = {f"gamma_{site}": norm.weight for site, norm in layer.norms.items()}
        gammas |= {"beta_c": layer.norms["c"].bias} if "c" in layer.norms else {}
        arguments = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_l0)
        options = {"eps": 1e-3, "per_step": "shared" not in name}
        expected, cache = function(x, *arguments, **gammas, **options)
        np.testing.assert_array_equal(y, expected)
        statistics = {}
        for site, norm in layer.norms.items():
            old = (before[f"norm_{site}.{key}"] for key in ("running_mean", "running_var", "num_batches_tracked"))
            new = update_running_steps(*old, cache.statistics[site], momentum=0.1)
            for ours, theirs in zip(new, (norm.running_mean, norm.running_var, norm.num_batches_tracked), strict=True):
                np.testing.assert_array_equal(theirs, ours)
            statistics[site] = StepStatistics(*new[:2])
        state = layer.state_dict()
        expected, _ = function(x, *arguments, **gammas, **options, statistics=statistics)
        np.testing.assert_array_equal(layer.eval()(x), expected)
        np.testing.assert_allclose(layer(x[:1]), expected[:1], rtol=1e-12, atol=1e-12)  # no other sequence matters
        for key, array in layer.state_dict().items():
            np.testing.assert_array_equal(array, state[key])

    def test_average_of_all_batches(self, rng, name):
        layer = MAKE[name](rng=rng, dtype=np.float64, momentum=None)
        batches = [3 + rng.standard_normal((N, 5, F)) for _ in range(3)]
        for x in batches:
            layer(x)
        projected = np.stack([x @ layer.weight_ih_l0.T for x in batches])  # (batch, N, L, gates)
        axes = (1, 2) if "shared" in name else 1
        mean = projected.mean(axis=axes).mean(axis=0)
        np.testing.assert_allclose(layer.norms["ih"].running_mean, np.atleast_2d(mean), rtol=1e-10)
        np.testing.assert_array_equal(layer.norms["ih"].num_batches_tracked, [3] * len(np.atleast_2d(mean)))

    def test_a_failed_forward_pass_changes_nothing(self, rng, name):
        layer = make(name, rng)
        before = layer.state_dict()
        for bad in (np.zeros((1, L, F)), np.zeros((N, L, F + 1))):
            with pytest.raises(ValueError, match="xpected"):
                layer(bad)
        with pytest.raises(TypeError, match="mask of dtype bool"):
            layer(np.zeros((N, L, F)), np.ones((N, L)))
        for key, array in layer.state_dict().items():
            np.testing.assert_array_equal(array, before[key])

    def test_one_sequence(self, rng, name):
        layer = make(name, rng)
        with pytest.raises(ValueError, match=r"more than 1 value per channel.*got input size \(1, 4, 3\)"):
            layer(np.zeros((1, L, F)))
        assert layer.eval()(np.zeros((1, L, F))).shape == (1, L, H)

    def test_first_gamma(self, rng, name):
        norms = MAKE[name](rng=rng).norms.values()
        assert {float(norm.weight[0]) for norm in norms} == {1.0 if "shared" in name else float(np.float32(0.1))}
        assert {float(norm.weight[0]) for norm in MAKE[name](rng=rng, scale=0.5).norms.values()} == {0.5}
        assert all(norm.weight.dtype == np.float32 for norm in norms)


def test_weights_start_as_in_torch(rng):
    """Uniform up to one over the root of the hidden units; the norm of the cell alone has a shift."""
    layer = BatchNormLSTM(30, 16, max_length=2, rng=rng)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_l0"):
        found = layer.state_dict()[name]
        assert found.min() < -0.2
        assert found.max() > 0.2
        assert np.abs(found).max() <= 0.25
    assert [site for site, norm in layer.norms.items() if norm.bias is not None] == ["c"]
    np.testing.assert_array_equal(layer.norms["c"].bias, np.zeros(16))


def test_the_last_state_alone_keeps_the_dtype(rng):
    layer = LSTM(F, H, return_sequences=False, rng=rng)
    y = layer(rng.standard_normal((N, L, F)).astype(np.float32))
    assert layer.backward(np.ones_like(y)).dtype == np.float32


def test_two_sequences_and_one_step_are_enough(rng):
    layer = BatchNormLSTM(F, H, max_length=1, rng=rng)
    assert layer(rng.standard_normal((2, 1, F))).shape == (2, 1, H)


def test_longer_than_max_length(rng):
    layer = make("BatchNormLSTM", rng)
    with pytest.raises(ValueError, match="at most max_length=5 time steps in training, got 6"):
        layer(np.zeros((N, 6, F)))
    assert layer.eval()(np.zeros((N, 6, F))).shape == (N, 6, H)
    assert make("BatchNormLSTM shared", rng)(np.zeros((N, 6, F))).shape == (N, 6, H)


def test_evaluation_beyond_what_training_has_seen_uses_the_last_seen_step(rng):
    """Rows up to max_length exist; those that no batch reached must not be the initial mean 0 and variance 1."""
    layer = BatchNormLSTM(F, H, max_length=5, momentum=None, rng=rng, dtype=np.float64)
    layer(5 + rng.standard_normal((N, 3, F)))
    for norm in layer.norms.values():
        np.testing.assert_array_equal(norm.running_var[3:], norm.running_var[[2, 2]])
        assert not np.allclose(norm.running_var[3], 1)


def test_layer_norm_lstm_is_its_function(rng):
    layer, x = make("LayerNormLSTM", rng), rng.standard_normal((N, L, F))
    c = layer.norms["c"]
    gammas = layer.norms["ih"].weight, layer.norms["hh"].weight, c.weight, c.bias
    weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_l0
    np.testing.assert_array_equal(layer(x), layer_norm_lstm(x, *weights, *gammas, eps=1e-3)[0])
    np.testing.assert_array_equal(layer.eval()(x[:1]), layer_norm_lstm(x[:1], *weights, *gammas, eps=1e-3)[0])
    assert "norm_ih.bias" not in layer.state_dict()
    assert LayerNormLSTM(F, H, rng=rng).norms["ih"].weight.tolist() == [1] * 8


def test_plain_lstm(rng):
    layer, x = randomise(LSTM(F, H, rng=rng, dtype=np.float64), rng), rng.standard_normal((N, L, F))
    mask = np.arange(L) < np.array([4, 3, 2, 4, 3, 3])[:, None]
    weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_l0
    np.testing.assert_array_equal(layer(x, mask), lstm(x, *weights, mask=mask)[0])
    errors = check_layer(layer, x, rng)
    assert set(errors) == {"x", "weight_ih_l0", "weight_hh_l0", "bias_l0"}
    assert max(errors.values()) < 1e-6
    assert repr(layer) == "LSTM(3, 2, bias=True)"
    last = LSTM(F, H, False, return_sequences=False, rng=rng)
    assert last(x.astype(np.float32)).shape == (N, H)
    assert "bias_l0" not in last.state_dict()


def test_without_bias(rng):
    layer = BatchNormRNN(F, H, False, per_step=False, rng=rng)
    assert "bias_l0" not in layer.state_dict()
    layer(np.ones((N, L, F), np.float32))
    assert layer.backward(np.ones((N, L, H), np.float32)).dtype == np.float32
    assert set(layer.grads) == {"weight_ih_l0", "weight_hh_l0", "norm_ih.weight"}


def test_arguments_and_representation(rng):
    assert repr(LayerNormLSTM(F, H, rng=rng)) == "LayerNormLSTM(3, 2, bias=True, eps=1e-05)"
    layer = BatchNormLSTM(F, H, max_length=5, rng=rng)
    assert repr(layer) == "BatchNormLSTM(3, 2, bias=True, eps=1e-05, max_length=5, momentum=0.1)"
    for bad in ({}, {"max_length": 0}, {"max_length": 3, "per_step": False}):
        with pytest.raises(ValueError, match=f"got max_length={bad.get('max_length')} and per_step"):
            BatchNormLSTM(F, H, rng=rng, **bad)
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"expected eps > 0, got {eps}"):
            BatchNormLSTM(F, H, max_length=3, eps=eps, rng=rng)
