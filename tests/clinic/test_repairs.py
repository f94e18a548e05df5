"""The public repairs: each goes to the part for the model's framework, with all that it was given."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

import bnlearn
from bnlearn.clinic import _repairs

CALLS = {
    "recalibrate": (
        (["batch"],),
        {"layers": ["bn"], "one_pass": True, "progress": False},
        ((["batch"],), {"layers": ["bn"], "one_pass": True, "progress": False}),
    ),
    "freeze": ((False,), {"layers": ["bn"]}, ((False,), {"layers": ["bn"]})),
    "fold": (("example",), {}, (("example",), {})),
    "replace": (
        ("group",),
        {"layers": ["bn"], "groups": 8},
        (("group",), {"layers": ["bn"], "groups": 8}),
    ),
}
DEFAULTS = {
    "recalibrate": ((["batch"],), ((["batch"],), {"layers": None, "one_pass": False, "progress": True})),
    "freeze": ((), ((True,), {"layers": None})),
    "replace": (("group",), (("group",), {"layers": None})),
}


@pytest.fixture
def parts(monkeypatch):
    """Records what the functions are called with; what they return comes back."""
    calls = []

    def part(model, name):
        def record(*args, **kwargs):
            calls.append((args, kwargs))
            return "done"

        return SimpleNamespace(**{name: record})

    monkeypatch.setattr(_repairs, "part", part)
    return calls


@pytest.mark.parametrize("name", CALLS)
def test_everything_is_passed_on(parts, name):
    args, kwargs, (positional, named) = CALLS[name]
    assert getattr(_repairs, name)("model", *args, **kwargs) == "done"
    assert parts == [(("model", *positional), named)]


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults(parts, name):
    args, (positional, named) = DEFAULTS[name]
    getattr(_repairs, name)("model", *args)
    assert parts == [(("model", *positional), named)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("model", [None, "resnet", object, 3.5])
def test_no_model_of_either_framework(name, model):
    args, kwargs, _ = CALLS[name]
    with pytest.raises(TypeError, match=rf"a torch.nn.Module or a keras.Model, got {type(model).__name__}"):
        getattr(_repairs, name)(model, *args, **kwargs)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_parts_take_the_same_arguments(name, framework):
    pytest.importorskip(framework)
    module = pytest.importorskip(f"bnlearn.clinic._{framework}.{name}")
    own = list(inspect.signature(getattr(_repairs, name)).parameters.values())
    its = list(inspect.signature(getattr(module, name)).parameters.values())
    assert [(p.name, p.kind, p.default) for p in its] == [(p.name, p.kind, p.default) for p in own]


@pytest.mark.parametrize("name", CALLS)
def test_the_package_offers_them(name):
    assert getattr(bnlearn, name) is getattr(_repairs, name)


def test_a_model_of_pytorch_is_repaired():
    torch = pytest.importorskip("torch")
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)]
    model = torch.nn.Sequential(*layers).eval()
    batches = [torch.randn(n, 1, 5, 5, generator=torch.Generator().manual_seed(n)) for n in (3, 5)]
    assert bnlearn.recalibrate(model, batches, progress=False).layers == ("1",)
    seen = model[0](torch.cat(batches)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, seen.mean(1))
    torch.testing.assert_close(model[1].running_var, seen.var(1))
    assert bnlearn.fold(model, batches[0]).folding.folded == (("0", "1"),)
    with bnlearn.freeze(model) as frozen:
        assert frozen.layers == ("1",)
    with bnlearn.replace(model, "layer") as replaced:
        assert isinstance(replaced.model[1], torch.nn.GroupNorm)
    assert list(model) == layers
