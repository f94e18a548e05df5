"""BatchNorm to SyncBatchNorm and back keeps every object that training holds on to."""

from __future__ import annotations

import pytest

from bnlearn.convert import sync_batch_norm, transfer, unsync_batch_norm

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
nn = torch.nn
SyncBatchNorm = pytest.importorskip("bnlearn.torch").SyncBatchNorm


def network():
    shared = nn.BatchNorm1d(3, eps=0.1, momentum=None, bias=False)
    plain = nn.BatchNorm3d(2, affine=False, track_running_stats=False)
    return nn.Sequential(nn.Linear(3, 3), shared, nn.Sequential(shared, nn.BatchNorm2d(4).eval()), plain)


def test_there_and_back(tools):
    model = tools.randomise(network(), 0)
    before, state = str(model), tools.torch_state(model)
    objects = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert sync_batch_norm(model) is model
    assert [type(model[index]) for index in (1, 3)] == [nn.SyncBatchNorm] * 2
    assert model[2][0] is model[1]
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert found.keys() == objects.keys()
    assert all(found[name] is objects[name] for name in objects)
    assert not model[2][1].training
    assert model[1].bias is None
    assert unsync_batch_norm(model) is model
    assert str(model) == before
    assert tools.torch_state(model) == state


def test_the_model_itself():
    made = sync_batch_norm(nn.BatchNorm2d(3))
    assert type(made) is nn.SyncBatchNorm
    assert type(unsync_batch_norm(made)) is nn.BatchNorm2d


def test_the_one_for_any_backend(tools):
    model = tools.randomise(network(), 0)
    before, x = model[1].weight, torch.randn(4, 3)
    expected = model[:2](x)
    sync_batch_norm(model, layer=SyncBatchNorm)
    assert type(model[1]) is SyncBatchNorm
    assert model[1].weight is before
    torch.testing.assert_close(model[:2](x), expected)
    assert type(unsync_batch_norm(model)[3]) is nn.BatchNorm3d


def test_made_by_pytorch_needs_dims():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    with pytest.raises(ValueError, match=r"expected dims for '1', .*1, 2 or 3"):
        unsync_batch_norm(model)
    assert type(model[1]) is nn.SyncBatchNorm
    with pytest.raises(ValueError, match="got 4"):
        unsync_batch_norm(model, dims=4)
    assert type(unsync_batch_norm(model, dims=1)[1]) is nn.BatchNorm1d


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm, SyncBatchNorm], ids=["PyTorch's", "ours"])
def test_a_synchronised_model_moves_to_keras(tools, layer):
    ours = sync_batch_norm(tools.randomise(nn.BatchNorm1d(3), 0), layer=layer)
    theirs = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    transfer(ours, theirs)
    assert torch.equal(torch.tensor(theirs.layers[0].moving_mean.numpy()), ours.running_mean)
