"""What is a number in both frameworks and means something else: eps, momentum, the variance that is kept."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn.convert import transfer, values_per_channel

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
nn, L = torch.nn, keras.layers


def batch_norms(**arguments):
    return nn.BatchNorm2d(3, **arguments), keras.Sequential([keras.Input((4, 5, 3)), L.BatchNormalization()])


def test_training_goes_on_as_it_would_have(tools, rng):
    """One more step of training on either side, with the biased variance made unbiased, leaves the same statistics."""
    x = rng.standard_normal((8, 3, 4, 5)).astype(np.float32)
    n = 8 * 4 * 5
    ours, theirs = batch_norms(momentum=0.3, eps=0.02)
    tools.randomise(ours, 0)
    report = transfer(ours, theirs, n=n)
    assert "momentum 0.01 -> 0.3" in report.moved[0].notes
    assert "eps 0.001 -> 0.02" in report.moved[0].notes
    y = ours.train()(torch.tensor(x))
    np.testing.assert_allclose(theirs(np.moveaxis(x, 1, -1), training=True), y.detach().permute(0, 2, 3, 1), atol=1e-5)
    layer = theirs.layers[0]
    np.testing.assert_allclose(layer.moving_mean, ours.running_mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy() * n / (n - 1), ours.running_var, rtol=1e-5)


@pytest.mark.parametrize(
    "n", [np.int64(20), {"BatchNorm2d": 20}, {"batch_normalization": 20}], ids=["all", "ours", "theirs"]
)
def test_the_variance_that_is_kept(tools, rng, n):
    """The outputs are compared before the correction, which changes them."""
    keras.utils.clear_session()
    ours, theirs = batch_norms()
    tools.randomise(ours, 0)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    report = transfer(ours, theirs, n=n, example=x)
    assert report.max_difference < 1e-5
    assert any("n = 20" in note for note in report.moved[0].notes)
    np.testing.assert_allclose(theirs.layers[0].moving_variance, ours.running_var * 19 / 20, rtol=1e-6)
    before = ours.running_var.clone()
    transfer(theirs, ours, n=n)
    np.testing.assert_allclose(ours.running_var, before, rtol=1e-6)


def test_without_n_the_variance_stays_and_the_report_says_so(tools):
    ours, theirs = batch_norms()
    tools.randomise(ours, 0)
    notes = transfer(ours, theirs).moved[0].notes
    assert "running_var as it was, unbiased: no n was stated" in notes
    np.testing.assert_array_equal(theirs.layers[0].moving_variance, ours.running_var)


def test_n_between_two_of_one_convention_corrects_nothing(tools):
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    tools.randomise(ours, 0)
    transfer(ours, theirs, n=2)
    assert torch.equal(ours.running_var, theirs.running_var)


@pytest.mark.parametrize(
    ("n", "message"),
    [(1, "got n = 1"), ({"bn": 5}, "n has 'bn', which is no batch normalisation"), ({"BatchNorm2d": 0}, "got n = 0")],
)
def test_wrong_n(tools, n, message):
    ours, theirs = batch_norms()
    before = tools.keras_state(theirs)
    with pytest.raises(ValueError, match=message):
        transfer(tools.randomise(ours, 0), theirs, n=n)
    assert tools.keras_state(theirs) == before


def test_momentum_none_has_no_counterpart(tools):
    ours, theirs = batch_norms(momentum=None)
    report = transfer(tools.randomise(ours, 0), theirs)
    assert theirs.layers[0].momentum == 0.99
    assert any("averages over all batches" in note for note in report.moved[0].notes)
    assert transfer(ours, nn.BatchNorm2d(3, momentum=None)).moved[0].notes == ()
    transfer(theirs, ours)
    assert ours.momentum == 0.01


def test_a_traced_predict_does_not_keep_the_old_epsilon(tools, rng):
    ours, theirs = batch_norms(eps=1.0)
    tools.randomise(ours, 0)
    x = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)
    theirs.predict(x, verbose=0)
    transfer(ours, theirs)
    y = ours.eval()(torch.tensor(np.moveaxis(x, -1, 1))).detach().permute(0, 2, 3, 1)
    np.testing.assert_allclose(theirs.predict(x, verbose=0), y, atol=1e-5)


def test_what_one_side_lacks_is_made_up_or_refused(tools):
    plain = keras.Sequential([keras.Input((3,)), L.BatchNormalization(center=False)])
    ours = tools.randomise(nn.BatchNorm1d(3), 0)
    tools.randomise(plain, 1)
    before = tools.keras_state(plain)
    with pytest.raises(ValueError, match=r"'BatchNorm1d' \(BatchNorm1d \(3,\)\).*the target has no place for bias"):
        transfer(ours, plain)
    assert tools.keras_state(plain) == before
    report = transfer(plain, ours)
    assert not ours.bias.any()
    assert "bias: 0 everywhere, as the source has none" in report.moved[0].notes
    transfer(ours, plain)  # a bias of zeros has a place
    untracked = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="the source has no running_mean"):
        transfer(untracked, plain)
    with pytest.raises(ValueError, match="the target has no place for running_mean"):
        transfer(plain, untracked)


def test_values_per_channel_is_the_n_of_training(rng):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
    model[4].eval()
    before = model.state_dict()["1.running_mean"].clone()
    counts = values_per_channel(model, torch.randn(7, 1, 6, 6))
    assert counts == {"1": 7 * 16, "4": 7}
    assert torch.equal(model[1].running_mean, before)
    assert model.training
    assert not model[4].training
    assert not model[1]._forward_pre_hooks
