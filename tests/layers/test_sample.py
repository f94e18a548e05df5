"""Layer, RMS and group normalisation against PyTorch's modules; unit length; their state and errors."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.gradcheck import check_layer
from bnlearn.layers import GroupNorm, LayerNorm, RMSNorm, UnitNorm

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

CASES = [
    (LayerNorm, (3,), {}, (4, 3)),
    (LayerNorm, (3,), {"bias": False, "eps": 0.1}, (3,)),
    (LayerNorm, ([4, 3],), {}, (2, 5, 4, 3)),
    (LayerNorm, ((4, 3),), {"elementwise_affine": False}, (4, 3)),
    (RMSNorm, (3,), {}, (4, 3)),
    (RMSNorm, (3,), {"eps": 0.1, "elementwise_affine": False}, (3,)),
    (RMSNorm, ([4, 3],), {}, (2, 5, 4, 3)),
    (GroupNorm, (2, 4), {}, (3, 4)),
    (GroupNorm, (2, 4), {"eps": 0.1, "bias": False}, (3, 4, 5)),
    (GroupNorm, (1, 4), {"affine": False}, (2, 4, 3, 2)),
    (GroupNorm, (4, 4), {}, (2, 4, 3, 2, 2)),
]
BY_CASE = pytest.mark.parametrize(("cls", "arguments", "options", "shape"), CASES)


def randomise(layer, rng):
    """Nothing left at the 1 and 0 that hide mistakes."""
    for array in layer.parameters().values():
        array[...] = rng.uniform(0.5, 2.0, array.shape) * rng.choice([-1, 1], array.shape)
    return layer


def pair(cls, arguments, options, rng, dtype=np.float64):
    """Our layer with random parameters, and PyTorch's with the same."""
    ours = randomise(cls(*arguments, dtype=dtype, **options), rng)
    theirs = getattr(torch.nn, cls.__name__)(*arguments, **options).to(torch.tensor(np.zeros(1, dtype)).dtype)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    return ours, theirs


@BY_CASE
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-5)])
def test_agrees_with_torch(cls, arguments, options, shape, dtype, tolerance, rng):
    ours, theirs = pair(cls, arguments, options, rng, dtype)
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        x, dy = (0.5 + rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)
        leaf = torch.tensor(x, requires_grad=True)
        theirs.zero_grad()
        expected = theirs(leaf)
        expected.backward(torch.tensor(dy))
        found = {"y": ours(x), "dx": ours.backward(dy), **ours.grads}
        wanted = {"y": expected.detach(), "dx": leaf.grad, **{n: p.grad for n, p in theirs.named_parameters()}}
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            scale = max(1.0, float(value.abs().max()))
            assert found[name].dtype == dtype
            np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name)


@BY_CASE
def test_finite_differences(cls, arguments, options, shape, rng):
    layer = randomise(cls(*arguments, dtype=np.float64, **options), rng)
    errors = check_layer(layer, rng.standard_normal(shape), rng)
    assert set(errors) == {"x", *layer.parameters()}
    assert max(errors.values()) < 1e-6


@BY_CASE
def test_repr_and_state_are_torchs(cls, arguments, options, shape, rng):
    ours, theirs = pair(cls, arguments, options, rng, np.float32)
    assert repr(ours) == repr(theirs)
    state = theirs.state_dict()
    assert {n: (a.shape, str(a.dtype)) for n, a in ours.state_dict().items()} == {
        n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in state.items()
    }
    copy = pickle.loads(pickle.dumps(cls(*arguments, **options)))
    copy.load_state_dict(state)
    x = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(copy(x), ours(x))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rms_norms_eps_of_its_own_is_torchs(dtype):
    """The machine epsilon of the precision computed in: with values near its root, one sees which."""
    x = np.full((1, 2), 2e-4 if dtype != "float64" else 1e-8, dtype)
    theirs = torch.nn.RMSNorm(2, dtype=getattr(torch, dtype))(torch.tensor(x)).detach()
    np.testing.assert_allclose(RMSNorm(2)(x), theirs, rtol=1e-3 if dtype == "float16" else 1e-6)
    assert 0.3 < float(theirs[0, 0]) < 0.9


@pytest.mark.parametrize(
    ("cls", "arguments", "shape"),
    [(LayerNorm, (3,), (0, 3)), (LayerNorm, ([0],), (2, 0)), (RMSNorm, (3,), (0, 3)), (GroupNorm, (2, 4), (0, 4, 5))],
)
def test_empty(cls, arguments, shape):
    layer = cls(*arguments)
    assert layer(np.zeros(shape)).shape == layer.backward(np.zeros(shape)).shape == shape


class TestUnitNorm:
    @pytest.mark.parametrize(("p", "dim", "eps"), [(2, 1, 1e-12), (1, -1, 1e-12), (2, 2, 1.5)])
    def test_torch_and_finite_differences(self, p, dim, eps, rng):
        layer, x, dy = UnitNorm(p, dim, eps), rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
        leaf = torch.tensor(x, requires_grad=True)
        theirs = torch.nn.functional.normalize(leaf, p, dim, eps)
        theirs.backward(torch.tensor(dy))
        np.testing.assert_allclose(layer(x), theirs.detach(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.backward(dy), leaf.grad, rtol=1e-11, atol=1e-11)
        assert check_layer(layer, x, rng)["x"] < 1e-6
        assert repr(layer) == f"UnitNorm(p={p}, dim={dim}, eps={eps})"

    def test_what_is_as_long_as_eps_is_not_shorter(self):
        """PyTorch's gradient at the kink."""
        x, dy = np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])
        leaf = torch.tensor(x, requires_grad=True)
        torch.nn.functional.normalize(leaf, eps=5.0).backward(torch.tensor(dy))
        layer = UnitNorm(eps=5.0)
        layer(x)
        np.testing.assert_allclose(layer.backward(dy), leaf.grad, rtol=1e-12)

    def test_not_an_array(self):
        assert repr(UnitNorm()) == "UnitNorm(p=2, dim=1, eps=1e-12)"
        with pytest.raises(TypeError, match="expected a NumPy array, got list"):
            UnitNorm()([[1.0, 2.0]])


class TestErrors:
    @pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
    def test_other_last_axes_as_torch(self, name):
        ours, theirs = getattr(layers, name)(5), getattr(torch.nn, name)(5)
        x = np.zeros((2, 3), np.float32)
        with pytest.raises(RuntimeError, match=r"Given normalized_shape=\[5\], .*\*.* 5\], .* size ?\[2, 3\]"):
            ours(x)
        with pytest.raises(RuntimeError, match=r"Given normalized_shape=\[5\], .*5\], .* size ?\[2, 3\]"):
            theirs(torch.tensor(x))
        with pytest.raises(RuntimeError, match=r"expected input with shape \[\*, 4, 5\], but got input of size \[5\]"):
            getattr(layers, name)((4, 5))(np.zeros(5))
        with pytest.raises(RuntimeError, match=r"at least 1-dimensional, .* normalized_shape = \[\]"):
            getattr(layers, name)([])
        ours(np.zeros((2, 5)))
        with pytest.raises(ValueError, match=r"dy of the shape of x, \(2, 5\), got \(3, 5\)"):
            ours.backward(np.zeros((3, 5)))

    @pytest.mark.parametrize(("groups", "channels"), [(3, 10), (0, 4), (2, 0)])
    def test_groups_that_do_not_divide(self, groups, channels):
        message = re.escape(f"num_channels ({channels}) must be divisible by num_groups ({groups})")
        with pytest.raises(ValueError, match=message):
            GroupNorm(groups, channels)
        if groups and channels:
            with pytest.raises(ValueError, match=message):
                torch.nn.GroupNorm(groups, channels)

    @pytest.mark.parametrize("affine", [True, False])
    def test_group_norms_input(self, affine):
        layer = GroupNorm(2, 4, affine=affine)
        with pytest.raises(RuntimeError, match="Expected at least 2 dimensions for input tensor but received 1"):
            layer(np.zeros(4))
        with pytest.raises(RuntimeError, match=r"expected 4 channels on axis 1, got 6 in input size \[2, 6, 3\]"):
            layer(np.zeros((2, 6, 3)))
        with pytest.raises(TypeError, match="expected floating-point numbers, got int64"):
            layer(np.zeros((2, 4), np.int64))

    def test_one_value_per_group_as_torch(self):
        """Of one sample an error, of two samples silence: PyTorch counts the samples in, though no statistic does."""
        one, two = np.ones((1, 4), np.float32), np.array([[1, 2, 3, 4], [9, 9, 9, 9]], np.float32)
        ours, theirs = GroupNorm(4, 4), torch.nn.GroupNorm(4, 4)
        for layer, x in ((ours, one), (theirs, torch.tensor(one))):
            with pytest.raises(ValueError, match=r"Expected more than 1 value per channel .* input size \[1, 4\]"):
                layer(x)
        assert not ours(two).any()
        assert theirs(torch.tensor(two)).abs().max() < 1e-3  # its variance is E[x^2] - E[x]^2, not quite zero

    def test_backward_before_forward(self):
        for layer in (LayerNorm(3), RMSNorm(3), GroupNorm(1, 3), UnitNorm()):
            with pytest.raises(RuntimeError, match=f"forward pass before {type(layer).__name__}"):
                layer.backward(np.zeros((2, 3)))
