"""Layers with normalised weights against PyTorch's parametrizations, whose states they load."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

from bnlearn.functional import spectral_norm, weight_standardization
from bnlearn.gradcheck import check_layer
from bnlearn.layers import (
    BatchNorm1d,
    Conv2d,
    Linear,
    ReLU,
    Sequential,
    SpectralNorm,
    WeightNorm,
    WeightStandardization,
)
from bnlearn.training import SGD

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
parametrizations = torch.nn.utils.parametrizations

LAYERS = {
    "linear": (Linear, torch.nn.Linear, (3, 4), (5, 3)),
    "convolution": (Conv2d, torch.nn.Conv2d, (3, 4, (2, 3)), (2, 3, 4, 5)),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)


def randomise(arrays, rng):
    for array in arrays.values():
        array[...] = rng.uniform(0.5, 2.0, array.shape) * rng.choice([-1, 1], array.shape)


def made(kind, rng, wrap, bias=True, dtype=np.float64):
    """A wrapped layer with random parameters, and an input for it."""
    cls, _, sizes, shape = LAYERS[kind]
    wrapped = wrap(cls(*sizes, bias=bias, rng=rng, dtype=dtype), rng)
    randomise(wrapped.parameters(), rng)
    return wrapped, rng.standard_normal(shape).astype(dtype)


def weight_norm(dim):
    return lambda layer, rng: WeightNorm(layer, dim)


WRAPPERS = {
    "weight norm": weight_norm(0),
    "weight norm of axis 1": weight_norm(1),
    "weight norm of all": weight_norm(None),
    "standardization": lambda layer, rng: WeightStandardization(layer),
    "scaled standardization with gain": lambda layer, rng: WeightStandardization(layer, scaled=True, gain=True),
    "spectral norm": lambda layer, rng: SpectralNorm(layer, rng=rng),
    "spectral norm of two rounds": lambda layer, rng: SpectralNorm(layer, 2, rng=rng),
}
EVERY = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def of_torch(name, kind, bias=True):
    """PyTorch's own of the same kind."""
    _, cls, sizes, _ = LAYERS[kind]
    module = cls(*sizes, bias=bias).double()
    if name.startswith("weight norm"):
        dim = {"weight norm": 0, "weight norm of axis 1": 1, "weight norm of all": None}[name]
        return parametrizations.weight_norm(module, dim=dim)
    return parametrizations.spectral_norm(module, n_power_iterations=2 if name.endswith("rounds") else 1)


IN_TORCH = [name for name in WRAPPERS if "standardization" not in name]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", IN_TORCH)
@KINDS
def test_agrees_with_torch_over_training_and_evaluation(kind, name, bias, rng):
    ours, x = made(kind, rng, WRAPPERS[name], bias)
    theirs = of_torch(name, kind, bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    for training in (True, True, False, True):
        ours.train(training), theirs.train(training)
        there = torch.tensor(x, requires_grad=True)
        y = theirs(there)
        dy = rng.standard_normal(tuple(y.shape))
        theirs.zero_grad()
        y.backward(torch.tensor(dy))
        np.testing.assert_allclose(ours(x), y.detach().numpy(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(ours.backward(dy), there.grad.numpy(), rtol=1e-10, atol=1e-10)
        expected = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
        assert list(ours.grads) == list(expected)
        for key, grad in expected.items():
            assert ours.grads[key].shape == grad.shape, key
            np.testing.assert_allclose(ours.grads[key], grad, rtol=1e-10, atol=1e-10, err_msg=key)
        for key, value in theirs.state_dict().items():
            np.testing.assert_allclose(ours.state_dict()[key], value.numpy(), rtol=1e-10, err_msg=key)


@pytest.mark.parametrize("name", IN_TORCH)
@KINDS
def test_loads_the_state_of_torch(kind, name, rng):
    theirs = of_torch(name, kind)
    ours, x = made(kind, rng, WRAPPERS[name])
    ours.load_state_dict(theirs.state_dict())
    ours.eval(), theirs.eval()
    np.testing.assert_allclose(ours(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-10, atol=1e-12)


@EVERY
@KINDS
def test_gradients_by_finite_differences(kind, wrap, rng):
    layer, x = made(kind, rng, wrap)
    layer.eval()  # in training, the vectors of the spectral norm would move between two differences
    errors = check_layer(layer, x, rng)
    assert set(errors) == {"x", *layer.parameters()}
    assert max(errors.values()) < 1e-7, errors


@EVERY
@KINDS
def test_starts_at_a_weight_that_the_layer_s_own_gives(kind, wrap, rng):
    cls, _, sizes, shape = LAYERS[kind]
    layer = cls(*sizes, rng=rng, dtype=np.float64)
    before = layer.weight.copy()
    wrapped = wrap(layer, rng)
    if isinstance(wrapped, WeightNorm):
        np.testing.assert_allclose(wrapped.weight, before, rtol=1e-13)
    elif isinstance(wrapped, WeightStandardization):
        axes = tuple(range(1, before.ndim))
        size = before[0].size ** -0.5 if wrapped.scaled else 1
        np.testing.assert_allclose(wrapped.weight.mean(axis=axes), 0, atol=1e-13)
        np.testing.assert_allclose(wrapped.weight.std(axis=axes), size, rtol=1e-4)
    else:
        largest = np.linalg.svd(wrapped.weight.reshape(len(before), -1), compute_uv=False)[0]
        assert 1 <= largest * (1 + 1e-14) < 1.05
    x = rng.standard_normal(shape)
    y = wrapped.eval()(x)
    np.testing.assert_array_equal(y, layer(x))  # what is inside holds the normalised weight


def test_standardization_is_the_formula(rng):
    layer = Conv2d(3, 4, 2, rng=rng, dtype=np.float64)
    before = layer.weight.copy()
    wrapped = WeightStandardization(layer, scaled=True, gain=True, eps=0.1)
    gain = wrapped.parameters()["parametrizations.weight.0.gain"]
    np.testing.assert_array_equal(gain, np.ones(4))
    gain[...] = rng.standard_normal(4)
    expected, _ = weight_standardization(before, gain, scaled=True, eps=0.1)
    np.testing.assert_array_equal(wrapped.weight, expected)
    default = WeightStandardization(Linear(3, 2, rng=rng, dtype=np.float64))
    original = default.parameters()["parametrizations.weight.original"]
    np.testing.assert_array_equal(default.weight, weight_standardization(original, eps=1e-6)[0])


def test_names_with_and_without_gain(rng):
    names = list(WeightStandardization(Linear(2, 3, rng=rng), gain=True).parameters())
    assert names == ["bias", "parametrizations.weight.original", "parametrizations.weight.0.gain"]
    without = WeightStandardization(Linear(2, 3, bias=False, rng=rng))
    assert list(without.state_dict()) == ["parametrizations.weight.original"]
    without(np.ones((4, 2))), without.backward(np.ones((4, 3)))
    assert list(without.grads) == ["parametrizations.weight.original"]


def test_spectral_norm_moves_its_vectors_in_training_only(rng):
    layer = SpectralNorm(Linear(3, 2, rng=rng), rng=rng)
    randomise(layer.parameters(), rng)
    before = {name: value.copy() for name, value in layer.buffers().items()}
    assert list(before) == ["parametrizations.weight.0._u", "parametrizations.weight.0._v"]
    weight = layer.weight
    layer.eval()(np.ones((1, 3)))
    assert all(np.array_equal(value, before[name]) for name, value in layer.buffers().items())
    np.testing.assert_array_equal(layer.layer.weight, weight)
    layer.train()(np.ones((1, 3)))
    assert not any(np.array_equal(value, before[name]) for name, value in layer.buffers().items())


def test_spectral_norm_leaves_its_vectors_where_the_forward_pass_fails(rng):
    layer = SpectralNorm(Linear(3, 2, rng=rng), rng=rng)
    randomise(layer.parameters(), rng)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"expected x of shape \(N, 3\)"):
        layer(np.ones((1, 4)))
    assert all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())


def test_spectral_norm_draws_by_the_generator(rng):
    first, second, other = (
        SpectralNorm(Linear(30, 20, rng=np.random.default_rng(0)), rng=np.random.default_rng(seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["parametrizations.weight.0._u"], other["parametrizations.weight.0._u"])


def test_spectral_norm_starts_after_fifteen_rounds_as_in_torch():
    layer = Linear(5, 1, rng=np.random.default_rng(0))  # of one row: there is no second to ask for its length
    assert SpectralNorm(layer, rng=np.random.default_rng(1)).state_dict()["parametrizations.weight.0._v"].shape == (5,)
    layer = Linear(30, 20, rng=np.random.default_rng(0))
    draw = np.random.default_rng(1).standard_normal
    u, v = draw(20).astype(np.float32), draw(30).astype(np.float32)
    expected = spectral_norm(layer.weight, u, v, iterations=15)[1]
    state = SpectralNorm(layer, rng=np.random.default_rng(1)).state_dict()
    np.testing.assert_array_equal(state["parametrizations.weight.0._u"], expected.u)
    np.testing.assert_array_equal(state["parametrizations.weight.0._v"], expected.v)


@EVERY
def test_remove_leaves_the_function(wrap, rng):
    layer, x = made("convolution", rng, wrap)
    for _ in range(3):
        layer(x)
    y = layer.eval()(x)
    plain = layer.train().remove()
    assert type(plain) is Conv2d
    np.testing.assert_array_equal(plain(x), y)
    assert list(plain.parameters()) == ["weight", "bias"]


@EVERY
def test_learns_copies_and_pickles_in_a_network(wrap, rng):
    def fresh(seed):
        rng = np.random.default_rng(seed)
        return Sequential(wrap(Linear(3, 4, rng=rng), rng), BatchNorm1d(4), ReLU(), Linear(4, 1, rng=rng))

    model, x = fresh(0), rng.standard_normal((8, 3)).astype(np.float32)
    optimizer, losses = SGD(model, lr=0.05), []
    for _ in range(20):
        y = model(x)
        losses.append(float((y * y).mean()))
        model.backward(2 * y / len(y))
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    assert all(model.grads[name].shape == array.shape for name, array in model.parameters().items())
    assert all(grad.dtype == np.float32 for grad in model.grads.values())
    y = model.eval()(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh(1)):
        other.load_state_dict(model.state_dict())
        np.testing.assert_array_equal(other.eval()(x), y)
        for array in other.parameters().values():
            array[...] = 0.5
    np.testing.assert_array_equal(model(x), y)


def test_train_and_eval_reach_the_layer_inside_and_it_is_counted_once(rng):
    inside = Linear(2, 3, rng=rng)
    layer = WeightNorm(inside)
    layer.eval()
    assert not inside.training
    with pytest.raises(ValueError, match="expected every layer once"):
        Sequential(layer, inside)


def test_parameters_are_copies_of_the_layer_s_weight_and_share_its_bias(rng):
    inside = Linear(2, 3, rng=rng)
    layer = WeightNorm(inside)
    assert not np.shares_memory(layer.parameters()["parametrizations.weight.original1"], inside.weight)
    assert layer.parameters()["bias"] is inside.bias


# -- data-dependent initialisation


@KINDS
def test_initialize_gives_every_output_mean_0_and_variance_1(kind, rng):
    layer, x = made(kind, rng, WRAPPERS["weight norm"])
    x = 5 * x + 2
    v = layer.parameters()["parametrizations.weight.original1"].copy()
    y = layer.initialize(x)
    axes = (0,) if kind == "linear" else (0, 2, 3)
    np.testing.assert_allclose(y.mean(axis=axes), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=axes), 1, rtol=1e-12)
    np.testing.assert_array_equal(layer(x), y)
    np.testing.assert_array_equal(layer.parameters()["parametrizations.weight.original1"], v)
    assert (layer.parameters()["parametrizations.weight.original0"] > 0).all()


def test_initialize_of_a_sequence_of_vectors(rng):
    layer = WeightNorm(Linear(3, 4, rng=rng, dtype=np.float64))
    y = layer.initialize(rng.standard_normal((5, 6, 3)))
    np.testing.assert_allclose(y.mean(axis=(0, 1)), 0, atol=1e-13)


def test_initialize_errors(rng):
    for layer in (WeightNorm(Linear(3, 4, bias=False, rng=rng)), WeightNorm(Linear(3, 4, rng=rng), dim=1)):
        with pytest.raises(ValueError, match=re.escape(f"one length per output, got {layer!r}")):
            layer.initialize(np.ones((5, 3)))
    layer, _ = made("linear", rng, WRAPPERS["weight norm"])
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"vary over x with shape \(5, 3\), got a standard deviation of 0"):
        layer.initialize(np.zeros((5, 3)))
    assert all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())


# -- errors and representations


@pytest.mark.parametrize("wrap", [WeightNorm, WeightStandardization, lambda layer: SpectralNorm(layer, rng=None)])
def test_what_is_not_a_linear_or_convolution(wrap):
    with pytest.raises(TypeError, match="expected a Linear or a Conv2d, whose weight to normalise, got ReLU"):
        wrap(ReLU())


def test_other_errors(rng):
    with pytest.raises(ValueError, match=r"got dim=2 for shape \(4, 3\)"):
        WeightNorm(Linear(3, 4, rng=rng), dim=2)
    with pytest.raises(TypeError, match=r"expected rng=np.random.default_rng"):
        SpectralNorm(Linear(3, 4, rng=rng), rng=0)
    with pytest.raises(ValueError, match="Expected n_power_iterations to be positive, but got 0"):
        SpectralNorm(Linear(3, 4, rng=rng), 0, rng=rng)
    with pytest.raises(ValueError, match=r"expected eps > 0, got 0.0"):
        SpectralNorm(Linear(3, 4, rng=rng), eps=0.0, rng=rng)
    with pytest.raises(RuntimeError, match=r"expected a forward pass before WeightNorm.backward"):
        WeightNorm(Linear(3, 4, rng=rng)).backward(np.ones((1, 4)))
    layer = WeightNorm(Linear(3, 4, rng=rng))
    layer(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"expected dy of the shape of the layer's output, \(2, 4\), got \(2, 3\)"):
        layer.backward(np.ones((2, 3)))


def test_repr(rng):
    inside = "Linear(in_features=3, out_features=4, bias=True)"
    linear = Linear(3, 4, rng=rng)
    assert repr(WeightNorm(linear)) == f"WeightNorm({inside}, dim=0)"
    standardised = WeightStandardization(linear, True)
    assert repr(standardised) == f"WeightStandardization({inside}, scaled=True, gain=False, eps=1e-06)"
    assert "scaled=False, gain=True, eps=0.1" in repr(WeightStandardization(linear, gain=True, eps=0.1))
    assert repr(SpectralNorm(linear, rng=rng)) == f"SpectralNorm({inside}, n_power_iterations=1, eps=1e-12)"
