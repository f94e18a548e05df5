"""Freezing in PyTorch: it holds whatever is done to the model, and undo leaves no trace."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")
freezing = pytest.importorskip("bnlearn.clinic._torch.freeze")
fold = pytest.importorskip("bnlearn.clinic._torch.fold").fold

freeze, Frozen = freezing.freeze, freezing.Frozen
nn = torch.nn


class Net(nn.Module):
    """Three BN layers, of which one stands in two places; with random gamma, beta and statistics."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Dropout(0.5))
        self.bn2 = nn.SyncBatchNorm(4, momentum=None) if seed == 9 else nn.BatchNorm2d(4, momentum=None)
        self.again = self.bn2
        for bn in (self.bn1, self.tail[1], self.bn2):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)
            if bn.affine:
                nn.init.normal_(bn.weight)
                nn.init.normal_(bn.bias)

    def forward(self, x):
        return self.again(self.bn2(self.tail(self.bn1(self.conv(x)).relu()))).mean((2, 3))


def batch(seed=0):
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def traces(model):
    """All that undo must give back: classes, flags, values and the very objects."""
    modules = [(name, type(m), m.training, list(vars(m))) for name, m in model.named_modules(remove_duplicate=False)]
    tensors = [
        (name, id(t), t.detach().clone().numpy().tobytes(), t.requires_grad, id(t.grad))
        for name, t in (*model.named_parameters(), *model.named_buffers())
    ]
    return modules, tensors


def train(model, steps=2, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    for seed in range(steps):
        model.train()
        optimizer.zero_grad()
        model(batch(seed)).square().sum().backward()
        optimizer.step()


def test_frozen_layers_stay_so_in_training():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    done = freeze(model)
    assert (done.model, done.layers, dict(done.left)) == (model, ("bn1", "tail.1", "bn2"), {})
    assert repr(done) == "3 frozen: bn1, tail.1, bn2"
    train(model, momentum=0.9, weight_decay=0.1)
    after = model.state_dict()
    frozen = [name for name in before if torch.equal(before[name], after[name])]
    assert frozen == [name for name in before if name.startswith(("bn1", "tail.1", "bn2", "again"))]
    assert model.tail[2].training
    assert not any(bn.training for bn in (model.bn1, model.tail[1], model.bn2))


def test_an_optimizer_with_momentum_and_weight_decay_passes_gamma_and_beta_by():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model(batch()).square().sum().backward()
    optimizer.step()  # there is a momentum now, and a gradient waits
    gamma, grad = model.bn1.weight.detach().clone(), model.bn1.weight.grad
    with freeze(model):
        for _ in range(3):
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            model.train()(batch()).square().sum().backward()
        assert torch.equal(model.bn1.weight, gamma)
    assert model.bn1.weight.grad is grad
    optimizer.step()
    assert not torch.equal(model.bn1.weight, gamma)


def test_a_gradient_still_passes_through():
    model = Net()
    freeze(model)
    model(batch()).sum().backward()
    assert model.conv.weight.grad.abs().sum() > 0
    assert model.bn1.weight.grad is None


@pytest.mark.parametrize("mode", [True, False])
def test_undo_leaves_no_trace(mode):
    model = Net().train(mode)
    model.tail[1].eval()
    model.bn1.bias.requires_grad_(False)
    model(batch()).sum().backward()
    before = traces(model)
    done = freeze(model)
    assert traces(model) != before
    assert done.undo() is model
    assert traces(model) == before


def test_undo_after_training_follows_the_model_where_the_layer_did():
    model = Net().eval()
    model.bn1.train()  # by hand
    with freeze(model):
        model.train()
    assert [bn.training for bn in (model.bn1, model.bn2, model.tail[1])] == [True, True, True]
    model = Net().train()
    model.bn1.eval()
    with freeze(model):
        model.train()
    assert [bn.training for bn in (model.bn1, model.bn2, model.tail[1])] == [False, True, True]


def test_a_model_that_is_a_batch_norm_itself():
    model = nn.BatchNorm1d(3)
    before = traces(model)
    with freeze(model) as done:
        assert done.layers == ("",)
        assert not model.train().training
    assert traces(model) == before
    assert model.training


def test_without_affine_gamma_and_beta_go_on():
    model = Net()
    state, gamma = model.bn1.running_mean.clone(), model.bn1.weight.detach().clone()
    model(batch()).sum().backward()
    grad = model.bn1.weight.grad
    model.bn1.running_mean.copy_(state)
    done = freeze(model, affine=False)
    assert model.bn1.weight.grad is grad
    train(model)
    assert torch.equal(model.bn1.running_mean, state)
    assert not torch.equal(model.bn1.weight, gamma)
    grad = model.bn1.weight.grad
    done.undo()
    assert model.bn1.weight.grad is grad
    assert model.bn1.weight.requires_grad


def test_only_the_layers_named():
    model = Net()
    done = freeze(model, layers=["tail.1"])
    assert done.layers == ("tail.1",)
    model.train()
    assert [bn.training for bn in (model.bn1, model.tail[1], model.bn2)] == [True, False, True]
    assert model.bn1.weight.requires_grad
    assert freeze(model, layers=[]).layers == ()


def test_a_wrong_name_changes_nothing():
    model = Net()
    before = traces(model)
    with pytest.raises(ValueError, match=r"got 'tail\.0'; the model has 'tail\.1'"):
        freeze(model, layers=["bn1", "tail.0"])
    with pytest.raises(ValueError, match=r"got 'q'; the model has 'bn1', 'tail\.1', 'bn2'"):
        freeze(model, layers=["q"])
    with pytest.raises(ValueError, match=r"got the string 'bn1'; write \['bn1'\]"):
        freeze(model, layers="bn1")
    with pytest.raises(ValueError, match=r"got 'q'; the model has none"):
        freeze(nn.Linear(2, 2), layers=["q"])
    assert traces(model) == before


def test_a_model_without_batch_norm():
    assert freeze(nn.Linear(2, 2)).layers == ()


def test_frozen_twice():
    model = Net()
    first = freeze(model, layers=["bn1"])
    second = freeze(model)
    assert second.layers == ("tail.1", "bn2")
    assert dict(second.left) == {"bn1": "it is frozen already"}
    second.undo()
    assert isinstance(model.bn1, Frozen)
    assert not isinstance(model.bn2, Frozen)
    first.undo()
    assert type(model.bn1) is nn.BatchNorm2d


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle, the oldest protocol": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "deepcopy": copy.deepcopy,
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_frozen_too_and_is_another(way):
    model = Net()
    done = freeze(model)
    other = COPIES[way](model)
    assert type(other.bn1) is type(model.bn1)
    assert isinstance(other.bn1, nn.BatchNorm2d)
    assert other.again is other.bn2
    train(other, weight_decay=0.1)
    assert torch.equal(other.bn1.running_mean, model.bn1.running_mean)
    assert torch.equal(other.bn1.weight, model.bn1.weight)
    assert not torch.equal(other.conv.weight, model.conv.weight)
    done.undo()
    assert not other.train().bn1.training


def test_a_shallow_copy_shares_the_values():
    model = Net()
    freeze(model)
    other = copy.copy(model.bn1)
    assert isinstance(other, Frozen)
    assert other.weight is model.bn1.weight


def test_the_state_dict_is_that_of_an_unfrozen_model():
    model, plain = Net(0), Net(1)
    freeze(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), Net(0).state_dict().values(), strict=True)
    )
    model.load_state_dict(Net(2).state_dict())
    assert torch.equal(model.bn1.running_mean, Net(2).bn1.running_mean)
    assert not model.train().bn1.training


def test_a_class_of_ones_own_keeps_its_state():
    class Counting(nn.BatchNorm2d):
        def __getstate__(self):
            return {**self.__dict__, "copied": True}

    model = nn.Sequential(Counting(4))
    freeze(model)
    assert copy.deepcopy(model)[0].copied


def test_what_traces_models_takes_a_frozen_one():
    model = Net()
    traced = torch.fx.symbolic_trace(model)
    assert freeze(traced).layers == ("bn1", "tail.1", "bn2")
    model = Net()
    freeze(model)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"].count("bn1") == 1
    traced.train()
    assert not traced.bn1.training
    model.eval()
    traced.eval()
    assert torch.equal(traced(batch()), model(batch()))


def compilable():
    """Without dropout, and without the simple average, whose factor breaks a graph in two."""
    model = Net()
    model.tail[2], model.bn2.momentum = nn.Identity(), 0.1
    return model


def test_a_compiled_model():
    model = compilable()
    compiled = torch.compile(model, backend="eager")
    compiled(batch())
    before = {name: tensor.clone() for name, tensor in model.bn1.named_buffers()}
    done = freeze(compiled)
    assert done.model is model
    expected = copy.deepcopy(model).eval()(batch())
    assert torch.allclose(compiled.train()(batch()), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.bn1.named_buffers())
    done.undo()
    assert not torch.allclose(compiled(batch()), expected)
    torch.compiler.reset()


def test_a_frozen_model_can_be_compiled():
    model = compilable()
    freeze(model)
    expected = copy.deepcopy(model).eval()(batch())
    assert torch.allclose(torch.compile(model, backend="eager")(batch()), expected)
    torch.compiler.reset()


def test_a_frozen_model_can_be_folded():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    freeze(model)
    assert fold(model, batch()).folding.folded == (("0", "1"),)


def test_synchronised_layers():
    model = Net(9)
    freeze(model)
    assert isinstance(model.bn2, nn.SyncBatchNorm)
    assert not model.train().bn2.training


def test_parametrised_weights_are_left():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    model = Net()
    nn.utils.parametrize.register_parametrization(model.bn1, "weight", Twice())
    done = freeze(model)
    assert dict(done.left) == {"bn1": "its weights are parametrised"}
    done.undo()
    nn.utils.parametrize.remove_parametrizations(model.bn1, "weight")
    assert type(model.bn1) is nn.BatchNorm2d


def test_a_lazy_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="got LazyBatchNorm2d at '1', which takes its size from the first batch"):
        freeze(model)
    assert type(model[1]) is nn.LazyBatchNorm2d
    model(batch())
    assert freeze(model).layers == ("1",)


@pytest.fixture
def parallel(tmp_path):
    """A process group of one."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=(tmp_path / "group").as_uri(), rank=0, world_size=1)
    yield nn.parallel.DistributedDataParallel
    torch.distributed.destroy_process_group()


def test_data_parallel(parallel):
    model = Net()
    wrapped = parallel(model)
    before = traces(model)
    with pytest.raises(ValueError, match="not in DistributedDataParallel yet"):
        freeze(wrapped)
    assert traces(model) == before
    assert freeze(wrapped, affine=False).undo() is model
    freeze(model)
    train(parallel(model))
    tolerant = parallel(Net(), find_unused_parameters=True)
    freeze(tolerant)
    train(tolerant)
    assert not tolerant.module.bn1.training
