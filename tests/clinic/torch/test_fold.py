"""Folding in PyTorch: what is folded agrees, and what must not be is left, with the reason."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest

from bnlearn.clinic._torch.fold import fold
from bnlearn.clinic._torch.freeze import freeze

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional


def randomise(model, seed=0):
    """Random gamma, beta and statistics: ones and zeros hide bugs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, -2, 2),
                (module.bias, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.1, 3),
            ):
                if tensor is not None:
                    values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.data.copy_(low + (high - low) * values)
    return model


def data(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


PAIRS = {
    "linear": (nn.Linear(3, 6), nn.BatchNorm1d(6), (5, 3)),
    "linear without bias": (nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), (5, 3)),
    "conv 1d": (nn.Conv1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (2, 4, 9)),
    "conv 2d": (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "conv 3d": (nn.Conv3d(4, 6, 2, dilation=2), nn.BatchNorm3d(6), (2, 4, 4, 4, 4)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), (2, 4, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, (3, 2), stride=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (2, 4, 3, 3, 3)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed, depthwise": (nn.ConvTranspose2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), (2, 4, 5, 5)),
    "no gamma": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5)),
    "no beta": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, bias=False), (2, 4, 5, 5)),
    "large eps": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5), (2, 4, 5, 5)),
    "synchronised": (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6), (2, 4, 5, 5)),
    "averaged": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=None), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_each_kind_of_layer(name, dtype):
    layer, bn, shape = PAIRS[name]
    model = randomise(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(bn), nn.ReLU())).to(dtype).eval()
    x = data(*shape, dtype=dtype)
    state = copy.deepcopy(model.state_dict())
    expected = model(x)
    folded = fold(model, x)
    assert folded.folding.folded == (("0", "1"),)
    assert not folded.folding.left
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    assert 0 <= folded.folding.error < (1e-12 if dtype == torch.float64 else 1e-5)
    # The one that was given is as it was.
    assert isinstance(model[1], type(bn))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


class Net(nn.Module):
    """Convolutions and batch norms by name, and a forward that is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(cin=4, cout=4, **settings):
    return nn.Conv2d(cin, cout, 1, **settings)


def tied():
    one, two = conv(), conv()
    two.weight = one.weight
    return Net(lambda m, x: m.bn(m.a(x)) + m.b(x), a=one, b=two, bn=nn.BatchNorm2d(4))


@dataclass
class Returned:
    parts: list


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class WithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def hooked(which):
    model = Net(lambda m, x: m.bn(m.a(x)), a=conv(), bn=nn.BatchNorm2d(4))
    getattr(model, which).register_forward_hook(lambda *_: None)
    return model


LEFT = {
    "after a nonlinearity": (lambda: Net(lambda m, x: m.bn(m.a(x).relu()), a=conv(), bn=nn.BatchNorm2d(4)), "relu"),
    "after one in place": (lambda: Net(lambda m, x: m.bn(F.relu_(m.a(x))), a=conv(), bn=nn.BatchNorm2d(4)), "relu_"),
    "after the input": (lambda: Net(lambda m, x: m.a(m.bn(x)), a=conv(), bn=nn.BatchNorm2d(4)), "the model's input"),
    "after a sum": (lambda: Net(lambda m, x: m.bn(m.a(x) + x), a=conv(), bn=nn.BatchNorm2d(4)), "add"),
    "output used": (lambda: Net(lambda m, x: (y := m.a(x)) + m.bn(y), a=conv(), bn=nn.BatchNorm2d(4)), "also used by"),
    "output returned": (
        lambda: Net(lambda m, x: {"y": (y := m.a(x)), "z": m.bn(y)}, a=conv(), bn=nn.BatchNorm2d(4)),
        "the model's output",
    ),
    "returned deep inside": (
        lambda: Net(lambda m, x: {"z": m.bn(y := m.a(x)), "y": [Returned([y])]}, a=conv(), bn=nn.BatchNorm2d(4)),
        "the model's output",
    ),
    "a view of it used": (
        lambda: Net(lambda m, x: m.bn(y := m.a(x)) * y.view(-1).mean(), a=conv(), bn=nn.BatchNorm2d(4)),
        "also used by mean",
    ),
    "two batch norms on one": (
        lambda: Net(lambda m, x: m.bn(y := m.a(x)) + m.c(y), a=conv(), bn=nn.BatchNorm2d(4), c=nn.BatchNorm2d(4)),
        "batch_norm of c",
    ),
    "twice the same": (
        lambda: Net(lambda m, x: m.bn(y := m.a(x)) + m.bn(y), a=conv(), bn=nn.BatchNorm2d(4)),
        "the example calls it 2 times",
    ),
    "shared layer": (
        lambda: Net(lambda m, x: m.bn(m.a(m.a(x))), a=conv(), bn=nn.BatchNorm2d(4)),
        "a is called 2 times",
    ),
    "tied weights": (tied, "the weight of a is used elsewhere too"),
    "weight used by hand": (
        lambda: Net(lambda m, x: m.bn(m.a(x)) + F.conv2d(x, m.a.weight), a=conv(), bn=nn.BatchNorm2d(4)),
        "the weight of a is used elsewhere too",
    ),
    "no running statistics": (
        lambda: Net(lambda m, x: m.bn(m.a(x)), a=conv(), bn=nn.BatchNorm2d(4, track_running_stats=False)),
        "keeps no running statistics",
    ),
    "not reached": (lambda: Net(lambda m, x: m.a(x), a=conv(), bn=nn.BatchNorm2d(4)), "does not reach it"),
    "own forward": (
        lambda: Net(lambda m, x: m.bn(m.a(x)), a=conv(), bn=WithActivation(4)),
        "WithActivation has a forward",
    ),
    "own convolution": (
        lambda: Net(lambda m, x: m.bn(m.a(x)), a=OwnConv(4, 4, 1), bn=nn.BatchNorm2d(4)),
        "a is a OwnConv with a forward of its own",
    ),
    "hook on the batch norm": (lambda: hooked("bn"), "BatchNorm2d has hooks"),
    "hook on the convolution": (lambda: hooked("a"), "Conv2d has hooks"),
    "parametrised": (
        lambda: Net(
            lambda m, x: m.bn(m.a(x)),
            a=nn.utils.parametrizations.weight_norm(conv()),
            bn=nn.BatchNorm2d(4),
        ),
        "",
    ),
    "other channels": (
        lambda: Net(lambda m, x: m.bn(m.a(x)), a=nn.Linear(3, 3), bn=nn.BatchNorm2d(4)),
        "the channels of the output of a are not those of the batch norm",
    ),
    "channels mixed by a view": (
        lambda: Net(lambda m, x: m.bn(m.a(x).view(-1, 4, 3, 3)), a=conv(4, 8), bn=nn.BatchNorm2d(4)),
        "the channels of the output of a are not those of the batch norm",
    ),
    "axes moved": (
        lambda: Net(lambda m, x: m.bn(m.a(x).mT.transpose(1, 3)), a=conv(4, 3), bn=nn.BatchNorm2d(3)),
        "the channels of the output of a are not those of the batch norm",
    ),
    "bits seen as another type": (
        lambda: Net(lambda m, x: m.bn(m.a(x).view(torch.int32).view(torch.float32)), a=conv(), bn=nn.BatchNorm2d(4)),
        "what arrives comes from view",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_must_not_be_folded_is_left_with_the_reason(name):
    make, why = LEFT[name]
    model = randomise(make()).eval()
    x = data(2, 4, 3, 3)
    folded = fold(model, x)
    assert not folded.folding.folded
    assert "bn" in folded.folding.left
    assert why in folded.folding.left["bn"]
    assert isinstance(folded.bn, nn.BatchNorm2d)
    one, other = model(x), folded(x)
    if isinstance(one, dict):
        one, other = one["z"], other["z"]
    assert torch.equal(one, other)


def test_parametrised_weights_are_named():
    model = LEFT["parametrised"][0]().eval()
    assert "parametrised" in fold(model, data(2, 4, 3, 3)).folding.left["bn"]


def test_questions_to_a_tensor_are_no_use_of_it():
    def forward(m, x):
        y = m.a(x)
        assert y.shape[1] == y.size(1) == 4
        assert y.dtype == torch.float32
        assert len(y) == y.dim() - 2
        return m.bn(y)

    model = randomise(Net(forward, a=conv(), bn=nn.BatchNorm2d(4))).eval()
    assert fold(model, data(2, 4, 3, 3)).folding.folded == (("a", "bn"),)


SEEN_THROUGH = {
    "flattened rows": lambda m, x: m.bn(m.a(x).flatten(0, 1)).reshape_as(m.a_out),
    "reshaped": lambda m, x: m.bn(m.a(x).reshape(-1, 5)),
    "viewed twice": lambda m, x: m.bn(m.a(x).view(12, 5).contiguous().unsqueeze(2)),
    "channels moved": lambda m, x: m.bn(m.a(x).transpose(1, 2)).transpose(1, 2),
    "transposed matrices": lambda m, x: m.bn(m.a(x).mT),
    "permuted": lambda m, x: m.bn(torch.permute(m.a(x), (0, 2, 1))),
}


@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_a_layer_is_found_behind_other_shapes_of_its_output(name):
    model = Net(SEEN_THROUGH[name], a=nn.Linear(4, 5), bn=nn.BatchNorm1d(5), a_out=nn.Parameter(torch.zeros(3, 4, 5)))
    x = data(3, 4, 4)
    folded = fold(randomise(model).eval(), x)
    assert folded.folding.folded == (("a", "bn"),)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-5)


def test_a_shape_asked_of_the_output_is_no_use_of_it():
    model = Net(lambda m, x: m.bn((y := m.a(x)).flatten(0, 1)).reshape_as(y), a=nn.Linear(4, 5), bn=nn.BatchNorm1d(5))
    assert fold(randomise(model).eval(), data(3, 4, 4)).folding.folded == (("a", "bn"),)


def test_a_convolution_of_one_sample_without_its_axis():
    model = Net(lambda m, x: m.bn(m.a(x[0]).T), a=nn.Conv1d(4, 5, 1), bn=nn.BatchNorm1d(5))
    x = data(1, 4, 6)
    folded = fold(randomise(model).eval(), x)
    assert folded.folding.folded == (("a", "bn"),)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-5)


class Summed(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).sum()


def test_a_layer_that_gives_a_single_number_is_no_source():
    model = randomise(Net(lambda m, x: m.bn(x + m.a(x)), a=Summed(4, 4, 1), bn=nn.BatchNorm2d(4))).eval()
    assert "add" in fold(model, data(2, 4, 3, 3)).folding.left["bn"]


def test_training_mode_is_left_and_comes_back():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(), conv(), nn.BatchNorm2d(4).eval()))
    modes = [module.training for module in model.modules()]
    folded = fold(model, data(2, 4, 3, 3))
    assert folded.folding.folded == (("3", "4"),)
    assert "call model.eval() first" in folded.folding.left["1"]
    assert [module.training for module in model.modules()] == modes
    assert folded.training
    assert folded[1].training


def test_a_frozen_layer_folds():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    freeze(model)
    assert fold(model.train(), data(2, 4, 3, 3)).folding.folded == (("0", "1"),)


def test_what_is_registered_twice_is_replaced_twice():
    bn, layer = nn.BatchNorm2d(4), conv()
    model = randomise(Net(lambda m, x: m.stem(x), stem=nn.Sequential(layer, bn), again=bn, conv=layer)).eval()
    folded = fold(model, data(2, 4, 3, 3))
    assert folded.folding.folded == (("stem.0", "stem.1"),)
    assert isinstance(folded.again, nn.Identity)
    assert folded.conv is folded.stem[0]


@pytest.mark.parametrize("form", ["tuple", "dict", "list"])
def test_the_forms_of_an_example(form):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, x, scale):
            return [self.bn(self.a(x.mul_(scale)))]

    x, scale = data(2, 4, 3, 3), torch.tensor(2)
    kept = x.clone()
    model = randomise(Two()).eval()
    if form == "list":
        model = nn.Sequential(randomise(Net(lambda m, x: m.bn(m.a(x[0])), a=conv(), bn=nn.BatchNorm2d(4)))).eval()
    folded = fold(model, {"tuple": (x, scale), "dict": {"x": x, "scale": scale}, "list": [x]}[form])
    assert len(folded.folding.folded) == 1
    assert torch.equal(x, kept)


def test_integers_and_nothing_are_no_outputs_to_compare():
    model = randomise(Net(lambda m, x: m.bn(m.a(x)).argmax(), a=conv(), bn=nn.BatchNorm2d(4))).eval()
    with pytest.raises(ValueError, match="got none that are floating-point"):
        fold(model, data(2, 4, 3, 3))
    with pytest.raises(ValueError, match="got NaN or infinite ones"):
        fold(randomise(nn.Sequential(conv(), nn.BatchNorm2d(4))).eval(), torch.full((2, 4, 3, 3), torch.nan))


def test_outputs_of_zero_agree():
    model = Net(lambda m, x: m.bn(m.a(x)) * 0, a=conv(), bn=nn.BatchNorm2d(4)).eval()
    assert fold(model, data(2, 4, 3, 3)).folding.error == 0


def test_what_does_not_agree_is_refused_and_named():
    # What no watching of tensors sees: a forward that asks for the layer's class.
    def forward(m, x):
        return m.bn(m.a(x)) * (1 if isinstance(m.bn, nn.BatchNorm2d) else 2)

    model = randomise(Net(forward, a=conv(), bn=nn.BatchNorm2d(4))).eval()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"to agree with the given one to 0\.0001, relative, got .*bn into a"):
        fold(model, data(2, 4, 3, 3))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert isinstance(model.bn, nn.BatchNorm2d)


def test_nothing_is_left_on_the_model_or_the_example():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv())).eval()
    x = data(2, 4, 3, 3)
    attributes = [set(vars(module)) for module in model.modules()]
    fold(model, x)
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(
        hooks
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs)
    )
    assert not vars(x)


def test_compiled_models_are_opened():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4))).eval()
    folded = fold(torch.compile(model, backend="eager"), data(2, 4, 3, 3))
    assert type(folded) is nn.Sequential
    assert folded.folding.folded == (("0", "1"),)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_double(dtype):
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4))).to(dtype).eval()
    folded = fold(model, data(2, 4, 3, 3, dtype=dtype))
    assert folded.folding.folded == (("0", "1"),)
    assert folded[0].weight.dtype == dtype


def test_requires_grad_is_kept():
    model = randomise(nn.Sequential(conv(bias=False), nn.BatchNorm2d(4))).eval().requires_grad_(False)
    folded = fold(model, data(2, 4, 3, 3))
    assert not folded[0].weight.requires_grad
    assert not folded[0].bias.requires_grad


def test_the_table():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))).eval()
    lines = repr(fold(model, data(2, 4, 3, 3)).folding).splitlines()
    assert lines[0].startswith("1 of 2 batch norms folded; outputs differ by ")
    assert lines[1] == "  0 <- 1"
    assert lines[2] == "  left 3: what arrives comes from relu, not from a linear or convolutional layer"


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_folded_model_is_copied_and_pickled_with_its_folding(again):
    layers = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6)
    x = data(2, 4, 5, 5)
    folded = fold(randomise(nn.Sequential(*layers)).eval(), x)
    copied = again(folded)
    assert torch.equal(copied(x), folded(x))
    assert copied.folding == folded.folding
    assert list(copied.folding.left) == ["3"]
    with pytest.raises(TypeError):
        copied.folding.left["3"] = "another reason"


def test_a_folded_model_can_be_folded_again():
    model = randomise(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).eval()
    x = data(2, 4, 5, 5)
    folded = fold(model, x)
    assert torch.equal(fold(folded, x)(x), folded(x))


def test_a_network_that_amplifies_rounding_is_judged_by_that():
    class Amplifies(nn.Module):
        """Folded, it is off by the rounding of one sum, times a factor: as the example's last bit is."""

        def __init__(self, factor):
            super().__init__()
            self.a, self.bn, self.factor = conv(), nn.BatchNorm2d(4), factor

        def forward(self, x):
            return torch.sin(self.factor * self.bn(self.a(x)))

    x = data(2, 4, 3, 3)
    errors = {factor: fold(randomise(Amplifies(factor)).eval(), x).folding.error for factor in (1.0, 2e3)}
    assert errors[1.0] < 1e-6
    assert 1e-4 < errors[2e3] < 1e-2
    with pytest.raises(RuntimeError, match=r"to 0\.01, relative"):
        fold(randomise(Amplifies(1e6)).eval(), x)
