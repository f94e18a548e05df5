"""Instance normalisation against PyTorch's modules: with and without tracked statistics, batches and single samples."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bnlearn.gradcheck import check_layer
from bnlearn.layers import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

BY_SHAPE = pytest.mark.parametrize(
    ("cls", "shape"),
    [
        (InstanceNorm1d, (4, 3, 5)),
        (InstanceNorm1d, (3, 5)),
        (InstanceNorm2d, (4, 3, 5, 2)),
        (InstanceNorm2d, (3, 5, 2)),
        (InstanceNorm3d, (2, 3, 2, 3, 2)),
        (InstanceNorm3d, (3, 2, 3, 2)),
    ],
)


def pair(cls, rng, dtype=np.float64, **options):
    """Our layer with random state, and PyTorch's with the same."""
    ours = cls(3, dtype=dtype, **options)
    for name, array in ours._state().items():
        if name == "running_var":
            array[...] = rng.uniform(0.5, 2, 3)
        elif name != "num_batches_tracked":
            array[...] = rng.standard_normal(3)
    theirs = getattr(torch.nn, cls.__name__)(3, **options).to(torch.tensor(np.zeros(1, dtype)).dtype)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    return ours, theirs


@BY_SHAPE
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": True, "eps": 0.1},
        {"affine": True, "bias": False},
        {"affine": True, "track_running_stats": True, "momentum": 0.3},
        {"track_running_stats": True, "momentum": None},
    ],
    ids=str,
)
def test_agrees_with_torch(cls, shape, options, rng):
    ours, theirs = pair(cls, rng, **options)
    for training in (True, True, False, True, False):
        ours.train(training), theirs.train(training)
        x, dy = 2 + 3 * rng.standard_normal(shape), rng.standard_normal(shape)
        leaf = torch.tensor(x, requires_grad=True)
        theirs.zero_grad()
        expected = theirs(leaf)
        expected.backward(torch.tensor(dy))
        found = {"y": ours(x), "dx": ours.backward(dy), **ours.grads, **ours.buffers()}
        wanted = {"y": expected.detach(), "dx": leaf.grad, **{n: p.grad for n, p in theirs.named_parameters()}}
        wanted |= dict(theirs.named_buffers())
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-10, err_msg=name)


@BY_SHAPE
def test_finite_differences_float32_and_repr(cls, shape, rng):
    ours, theirs = pair(cls, rng, np.float32, affine=True)
    assert repr(ours) == repr(theirs)
    x = rng.standard_normal(shape)
    np.testing.assert_allclose(
        ours(x.astype(np.float32)), theirs(torch.tensor(x.astype(np.float32))).detach(), rtol=2e-5, atol=2e-5
    )
    exact, _ = pair(cls, rng, affine=True, track_running_stats=True)
    for mode in (True, False):
        errors = check_layer(exact.train(mode), x, rng)
        assert list(errors) == ["x", "weight", "bias"]
        assert max(errors.values()) < 1e-6


def test_an_empty_batch_leaves_the_statistics(rng):
    layer, _ = pair(InstanceNorm1d, rng, track_running_stats=True)
    before = layer.state_dict()
    for shape in [(0, 3, 5), (2, 3, 0)]:
        assert layer(np.zeros(shape)).shape == shape
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_without_momentum_the_statistics_stay_at_their_start_as_in_torch(rng):
    """A trap: batch normalisation's momentum=None averages all batches; here it is taken for zero."""
    for layer, to in ((InstanceNorm1d, np.asarray), (torch.nn.InstanceNorm1d, torch.tensor)):
        tracking = layer(3, momentum=None, track_running_stats=True)
        tracking(to(5 + rng.standard_normal((4, 3, 5)).astype(np.float32)))
        np.testing.assert_array_equal(tracking.running_mean, 0)
        np.testing.assert_array_equal(tracking.running_var, 1)
        assert tracking.num_batches_tracked == 0


class TestErrors:
    @pytest.mark.parametrize("shape", [(4,), (4, 3, 5, 2)])
    def test_axes(self, shape):
        for layer, x in (
            (InstanceNorm1d(3), np.zeros(shape)),
            (torch.nn.InstanceNorm1d(3), torch.zeros(shape)),
        ):
            with pytest.raises(ValueError, match=rf"expected 2D or 3D input \(got {len(shape)}D input\)"):
                layer(x)

    @pytest.mark.parametrize(("shape", "axis"), [((2, 4, 5), 1), ((4, 5), 0)])
    def test_channels(self, shape, axis):
        message = rf"size at dim={axis} to match num_features \(3\), but got: 4"
        with pytest.raises(ValueError, match=message + ": change"):
            InstanceNorm1d(3)(np.zeros(shape))
        with pytest.raises(ValueError, match=message):
            torch.nn.InstanceNorm1d(3, affine=True)(torch.zeros(shape))

    def test_one_position(self):
        message = r"more than 1 spatial element when training, got input size .*\[2, 3, 1\]"
        tracking = InstanceNorm1d(3, track_running_stats=True)
        for layer in (InstanceNorm1d(3), InstanceNorm1d(3).eval(), tracking):
            with pytest.raises(ValueError, match=message + ".*: for features without positions use LayerNorm"):
                layer(np.zeros((2, 3, 1)))
        with pytest.raises(ValueError, match=message):
            torch.nn.InstanceNorm1d(3)(torch.zeros(2, 3, 1))
        np.testing.assert_array_equal(tracking.running_var, 1)
        assert tracking.eval()(np.ones((2, 3, 1))).shape == (2, 3, 1)

    def test_the_rest(self):
        with pytest.raises(ValueError, match="expected num_features >= 1, the number of channels, got 0"):
            InstanceNorm1d(0)
        with pytest.raises(TypeError, match="expected a NumPy array, got list"):
            InstanceNorm1d(3)([1.0])
        with pytest.raises(RuntimeError, match=re.escape("forward pass before InstanceNorm2d.backward")):
            InstanceNorm2d(3).backward(np.zeros((2, 3, 4, 4)))
