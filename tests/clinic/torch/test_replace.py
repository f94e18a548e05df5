"""Replacing BN in PyTorch: what is kept, what is left, and the way back."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
replacing = pytest.importorskip("bnlearn.clinic._torch.replace")
freeze = pytest.importorskip("bnlearn.clinic._torch.freeze").freeze
own = pytest.importorskip("bnlearn.torch")

replace, NORMALISERS = replacing.replace, replacing.NORMALISERS
nn = torch.nn

SETTINGS = {"ghost": {"ghost_size": 4}, "example_weighing": {"example_weight": 0.3}}
"""What a normaliser cannot do without."""


def randomised(bn):
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    nn.init.normal_(bn.weight)
    if bn.bias is not None:
        nn.init.normal_(bn.bias)
    return bn


class Net(nn.Module):
    """Two BN layers, of which one stands in two places."""

    def __init__(self, *, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(2, 8, 3), randomised(nn.BatchNorm2d(8, eps=1e-3, bias=bias)), nn.ReLU())
        self.bn = randomised(nn.BatchNorm2d(8, momentum=0.3, bias=bias))
        self.again = self.bn
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.head(self.again(self.bn(self.body(x))))


def batch(dtype=torch.float32):
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", NORMALISERS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_normaliser_trains_a_step(name, bias):
    model = Net(bias=bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gamma = model.bn.weight
    before = gamma.detach().clone()
    done = replace(model, name, **SETTINGS.get(name, {}))
    assert done.layers == ("body.1", "bn")
    assert repr(done).startswith(f"2 replaced by {name}: body.1, bn")
    assert type(model.bn) is not nn.BatchNorm2d
    model(batch()).square().mean().backward()
    optimizer.step()
    assert model.bn.weight is gamma
    assert not torch.equal(gamma, before)
    assert (model.bn.bias is None) is not bias
    assert model.eval()(batch()).isfinite().all()


@pytest.mark.parametrize("name", ["renorm", "ghost", "sync", "example_weighing"])
def test_statistics_are_kept_where_there_are_any(name):
    model = Net()
    old = model.bn
    expected = model.eval()(batch())
    replace(model, name, **SETTINGS.get(name, {}))
    assert model.bn.running_mean is old.running_mean
    assert model.bn.running_var is old.running_var
    assert model.bn.num_batches_tracked is old.num_batches_tracked
    assert (model.bn.momentum, model.body[1].eps) == (0.3, 1e-3)
    if name != "example_weighing":  # which differs at inference
        torch.testing.assert_close(model(batch()), expected)


def test_each_is_what_its_name_says():
    x = batch()
    body = Net().body
    gamma, beta = (tensor.detach() for tensor in (body[1].weight, body[1].bias))
    h = body[0](x)
    for name, settings, dims in (
        ("group", {"groups": 4}, None),
        ("layer", {}, (1, 2, 3)),
        ("instance", {}, (2, 3)),
    ):
        model = Net().body
        replace(model, name, **settings)
        parts = h if dims else h.reshape(8, 4, 2, 4, 4)
        dims = dims or (2, 3, 4)
        mean, var = parts.mean(dims, keepdim=True), parts.var(dims, correction=0, keepdim=True)
        y = ((parts - mean) / (var + 1e-3).sqrt()).reshape(h.shape)
        torch.testing.assert_close(model[:2](x), y * gamma[:, None, None] + beta[:, None, None])


@pytest.mark.parametrize(
    ("channels", "groups", "made"), [(64, 32, 32), (48, 32, 24), (8, 32, 8), (7, 4, 1), (6, 4, 3), (6, 1, 1)]
)
def test_as_many_groups_as_fit(channels, groups, made):
    model = nn.Sequential(nn.BatchNorm2d(channels))
    replace(model, "group", groups=groups)
    assert model[0].num_groups == made


@pytest.mark.parametrize(("channels", "made"), [(512, 32), (256, 32), (96, 12), (20, 2), (13, 1), (4, 1)])
def test_the_default_number_of_groups(channels, made):
    model = nn.Sequential(nn.BatchNorm2d(channels))
    replace(model, "group")
    assert model[0].num_groups == made


def test_no_group_is_a_single_value_after_a_linear_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32))
    replace(model, "group")
    y = model(torch.randn(5, 6))
    assert (y.std(0) > 0.1).all()


def test_undo_puts_the_very_layers_back():
    model = Net()
    layers, before = (model.body[1], model.bn), state(model)
    expected = copy.deepcopy(model)(batch())
    done = replace(model, "layer")
    assert model.again is model.bn
    assert done.undo() is model
    assert (model.body[1], model.bn) == layers
    assert model.again is model.bn
    assert same(state(model), before)
    assert torch.equal(model(batch()), expected)


def test_undo_after_training_keeps_what_was_learned():
    model = Net()
    layers = model.body[1], model.bn
    with replace(model, "renorm"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(batch()).square().mean().backward()
        optimizer.step()
        learned = state(model)
    assert (model.body[1], model.bn) == layers
    assert same(state(model), learned)
    assert model.bn.num_batches_tracked == 2  # it stands in two places


@pytest.mark.parametrize("mode", [True, False])
def test_mode_and_precision_are_kept(mode):
    model = Net().double().train(mode)
    replace(model, lambda bn: nn.Sequential(nn.GroupNorm(2, bn.num_features), nn.Dropout()))
    assert model.bn[0].weight.dtype is torch.float64
    assert all(module.training is mode for module in model.modules())
    assert model(batch(torch.float64)).dtype is torch.float64


def test_the_device_is_kept():
    model = Net().to("meta")
    replace(model, "filter_response", learn_eps=True)
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False, device="meta"))
    replace(model, "renorm")
    assert {tensor.device.type for tensor in model.buffers()} == {"meta"}


def test_synchronised_where_pytorch_has_its_own(monkeypatch):
    model = Net()
    replace(model, "sync")
    assert type(model.bn) is own.SyncBatchNorm
    monkeypatch.setattr(
        replacing, "_state", lambda bn: type("OnGpu", (), {"is_cuda": True, "dtype": None, "device": "cpu"})
    )
    model = Net()
    replace(model, "sync", process_group="ours")
    assert type(model.bn) is nn.SyncBatchNorm
    assert model.bn.process_group == "ours"


def test_without_gamma_beta_and_statistics():
    for kind in ({"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}):
        for name in NORMALISERS:
            model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, **kind))
            replace(model, name, **SETTINGS.get(name, {}))
            assert (model[1].weight is None) is not kind.get("affine", True)
            assert model(batch()).isfinite().all()


def test_settings_go_to_the_layer():
    model = Net()
    replace(model, "ghost", ghost_size=4)
    assert model.bn.ghost_size == 4
    model = Net()
    replace(model, "renorm", r_max=2.0, warmup=7)
    assert (model.bn.r_max, model.bn.warmup) == (2.0, 7)


@pytest.mark.parametrize(
    ("name", "settings", "error", "match"),
    [
        ("group", {"group": 4}, TypeError, r"settings that 'group' takes, got \{'group': 4\}: .*argument 'group'"),
        ("ghost", {}, TypeError, r"settings that 'ghost' takes, got \{\}: .*'ghost_size'"),
        ("group", {"groups": 0}, ValueError, "expected groups >= 1, got 0"),
        ("renorm", {"r_max": 0.1}, ValueError, "0.1"),
        ("batch", {}, ValueError, "a normaliser among group, layer, instance, .*, got 'batch'"),
        (3, {}, ValueError, "or a function from the old layer to a new, got 3"),
        (
            lambda bn: None,
            {},
            TypeError,
            r"expected the function to give a torch.nn.Module, got None for BatchNorm2d\(8",
        ),
        (lambda bn, *, size: None, {}, TypeError, "missing 1 required keyword-only argument: 'size'"),
    ],
)
def test_what_is_wrong_changes_nothing(name, settings, error, match):
    model = Net()
    layers, before = list(model.modules()), state(model)
    with pytest.raises(error, match=match):
        replace(model, name, **settings)
    assert list(model.modules()) == layers
    assert same(state(model), before)


def test_a_function_of_ones_own():
    model = Net()
    gamma, mean = model.bn.weight, model.bn.running_mean

    def small(bn, *, axes):
        return nn.LayerNorm(axes) if bn.eps == 1e-3 else nn.InstanceNorm2d(bn.num_features, affine=True)

    done = replace(model, small, axes=[8, 4, 4])
    assert repr(done) == "2 replaced by yours: body.1, bn"
    assert model.bn.weight is gamma
    assert model.bn.running_mean is None
    assert model.body[1].weight.shape == (8, 4, 4)  # not gamma, which has another shape
    assert model(batch()).isfinite().all()
    done.undo()
    assert model.bn.running_mean is mean


def test_a_function_may_wrap_the_old_layer_or_give_it_back():
    model = Net()
    old = model.bn
    done = replace(model, lambda bn: nn.Sequential(bn, nn.ReLU()) if bn is old else bn)
    assert done.layers == ("bn",)
    assert dict(done.left) == {"body.1": "the function gave it back"}
    assert model.bn[0] is old
    assert model(batch()).isfinite().all()
    done.undo()
    assert model.bn is model.again is old


def test_a_function_may_give_the_same_for_all():
    model = Net()
    layers = model.body[1], model.bn
    nothing = nn.Identity()
    done = replace(model, lambda bn: nothing)
    assert model.body[1] is model.bn is nothing
    done.undo()
    assert (model.body[1], model.bn) == layers


def test_only_the_layers_named():
    model = Net()
    done = replace(model, "layer", layers=["bn"])
    assert done.layers == ("bn",)
    assert type(model.body[1]) is nn.BatchNorm2d
    with pytest.raises(ValueError, match=r"got 'bn'; the model has 'body\.1'"):
        replace(model, "layer", layers=["bn"])


def test_what_is_left_and_why():
    class Mine(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    layers = {
        "frozen": nn.BatchNorm2d(8),
        "mine": Mine(8),
        "renorm": own.BatchRenorm(8),
        "hooked": nn.BatchNorm2d(8),
        "parametrised": nn.BatchNorm2d(8),
        "plain": nn.BatchNorm2d(8),
    }
    model = nn.ModuleDict(layers)
    freeze(model, layers=["frozen"])
    nn.utils.parametrize.register_parametrization(model["parametrised"], "weight", Twice())
    handle = layers["hooked"].register_forward_hook(lambda *_: None)
    done = replace(model, "group")
    assert done.layers == ("plain",)
    assert dict(done.left) == {
        "frozen": "it is frozen: undo that first",
        "mine": "Mine has a forward of its own, which may do more than batch norm",
        "renorm": "BatchRenorm has a forward of its own, which may do more than batch norm",
        "hooked": "it has hooks, which would be lost",
        "parametrised": "its weights are parametrised",
    }
    assert model["hooked"] is layers["hooked"]
    handle.remove()
    assert replace(model, "group").layers == ("hooked",)


@pytest.mark.parametrize(
    "register",
    [
        lambda bn: bn.register_forward_pre_hook(lambda *_: None),
        lambda bn: bn.register_full_backward_hook(lambda *_: None),
        lambda bn: bn.register_full_backward_pre_hook(lambda *_: None),
    ],
)
def test_hooks_of_every_kind_are_seen(register):
    model = nn.Sequential(nn.BatchNorm2d(8))
    register(model[0])
    assert dict(replace(model, "layer").left) == {"0": "it has hooks, which would be lost"}


def test_a_model_that_is_a_batch_norm_itself():
    model = randomised(nn.BatchNorm2d(8))
    done = replace(model, "layer")
    assert type(done.model) is nn.GroupNorm
    assert done.model.weight is model.weight
    assert done.undo() is model


def test_a_compiled_model():
    model = Net()
    compiled = torch.compile(model, backend="eager")
    compiled(batch())
    done = replace(compiled, "layer")
    assert done.model is model
    assert type(model.bn) is nn.GroupNorm
    torch.testing.assert_close(compiled(batch()), copy.deepcopy(model)(batch()))
    torch.compiler.reset()


def test_a_model_that_was_traced():
    model = torch.fx.symbolic_trace(Net())
    expected = copy.deepcopy(model)(batch())
    with replace(model, "layer") as done:
        assert done.layers == ("body.1", "bn")
        assert not torch.allclose(model(batch()), expected)
    assert torch.equal(model(batch()), expected)
