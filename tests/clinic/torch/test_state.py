"""Nothing that is done to a model within ``untouched`` is left behind."""

from __future__ import annotations

import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from bnlearn.clinic._torch import state as state_module  # noqa: E402
from bnlearn.clinic._torch.state import random_states, untouched, unwrap  # noqa: E402


class Odd(nn.Module):
    """A module with all that a module can carry."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.same = self.bn
        self.fc = nn.Linear(3, 3)
        self.register_buffer("fleeting", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.scratch = torch.zeros(3)
        self.alias = self.bn.running_mean
        self.behind = [self.bn.running_var]
        self.history, self.table, self.names, self.last = [1, 2], {"a": 1}, {"x"}, deque([1])
        self.steps = 0
        self.torch_generator = torch.Generator().manual_seed(1)
        self.numpy_generator = np.random.default_rng(1)
        self.numpy_state = np.random.RandomState(1)
        self.python_generator = random.Random(1)
        self.fc.weight.grad = torch.ones(3, 3)
        self.fc.bias.requires_grad_(False)

    def draws(self):
        return (
            torch.rand(3, generator=self.torch_generator).tolist(),
            self.numpy_generator.random(),
            self.numpy_state.rand(),
            self.python_generator.random(),
            torch.rand(1).item(),
            np.random.rand(),  # noqa: NPY002
            random.random(),
        )


@torch.no_grad()
def overwrite(model):
    model.bn.running_mean.add_(1)
    model.alias.mul_(2)
    model.behind[0].mul_(2)
    model.bn.num_batches_tracked += 5
    model.bn.running_var = torch.zeros(3)
    model.fleeting.zero_()
    model.sparse.mul_(2)
    model.scratch.fill_(7)
    model.nothing = torch.ones(1)


def modes(model):
    model.eval()
    model.bn.training = 1


@torch.enable_grad()
def graph(model):
    model.fc.weight.requires_grad_(False)
    model.fc.bias.requires_grad_(True)
    model.fc(torch.ones(1, 3)).sum().backward()
    model.bn.weight.grad = torch.ones(3)


@torch.no_grad()
def parameters(model):
    model.fc.weight.clamp_(0, 0.01)
    model.fc.bias.data = torch.zeros(3)
    model.bn.weight.data.mul_(-1)
    model.bn.bias = nn.Parameter(torch.ones(3))


def structure(model):
    model.extra = nn.Linear(2, 2)
    del model.bn, model.alias
    model.fc.register_forward_hook(print)
    model.fc.register_forward_pre_hook(print, with_kwargs=True)
    model.register_buffer("more", torch.ones(1), persistent=False)
    model.fc.__class__ = nn.Identity


def attributes(model):
    model.steps += 1
    model.history.append(3)
    model.table["b"] = model.table.pop("a")
    model.names.clear()
    model.last.extend([2, 3])
    model.new = model.__dict__.pop("steps")


def chance(model):
    model.draws()
    torch.set_grad_enabled(not torch.is_grad_enabled())


CHANGES = [overwrite, modes, graph, parameters, structure, attributes, chance]


@given(
    changes=st.lists(st.sampled_from(CHANGES), max_size=7, unique=True),
    reset=st.booleans(),
    error=st.sampled_from([None, RuntimeError, KeyboardInterrupt, GeneratorExit]),
    recording=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_whatever_happens_all_is_as_it_was(changes, reset, error, recording):
    changes = sorted(changes, key=CHANGES.index)
    order = [change for change in changes if change is not structure] + [c for c in changes if c is structure]
    model = Odd()
    with torch.set_grad_enabled(recording):
        before = PORTRAIT(model, versions=False)
        try:
            with untouched(model) as state:
                for change in order:
                    change(model)
                if reset:
                    state.reset()
                    assert torch.is_grad_enabled() is recording
                    overwrite(model)
                if error is not None:
                    raise error
        except BaseException as raised:
            assert type(raised) is error  # noqa: PT017 - which one is drawn
        assert PORTRAIT(model, versions=False) == before
    assert model.sparse.to_dense().equal(torch.eye(3))
    assert model.behind[0].equal(torch.ones(3))
    assert model.draws()[:4] == Odd().draws()[:4]


@pytest.fixture(autouse=True)
def _portrait(portrait):
    global PORTRAIT
    PORTRAIT = portrait


def test_every_change_of_the_property_is_one():
    for change in CHANGES:
        with torch.enable_grad():
            model = Odd()
            before = PORTRAIT(model)
            change(model)
            assert PORTRAIT(model) != before or model.draws()[0] != Odd().draws()[0]


def test_inside_copies_stand_in_and_keep_their_ties():
    model = Odd()
    mean = model.bn.running_mean
    with untouched(model) as state:
        assert model.bn.running_mean is not mean
        assert model.alias is model.bn.running_mean
        model.bn.running_mean.fill_(3)
        assert model.alias.eq(3).all()
        assert mean.eq(0).all()
        state.reset()
        assert model.alias.eq(0).all()
        assert model.alias is model.bn.running_mean
        assert model.fc.weight.grad is None


def test_a_graph_that_was_recorded_before_still_differentiates():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    loss = model(torch.randn(5, 3)).square().sum()
    with untouched(model) as state, torch.no_grad():
        model(torch.randn(5, 3))
        state.reset()
        model(torch.randn(5, 3))
    loss.backward()
    assert model[0].weight.grad is not None


def test_nan_in_the_state_is_the_same_nan(portrait):
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(float("nan"))
    model.weight.data.fill_(-0.0)
    before = portrait(model)
    with untouched(model):
        model.weight.data.zero_()
    assert portrait(model) != before  # the version only
    assert torch.signbit(model.weight).all()
    assert model.running_mean.isnan().all()


@pytest.mark.parametrize("build", [lambda: nn.LazyBatchNorm1d(), lambda: nn.Linear(2, 2, device="meta")])
def test_what_is_not_built_is_refused(build):
    model = nn.Sequential(nn.Linear(2, 2), build())
    expected = pytest.raises(ValueError, match=r"got Sequential where '1.weight' has no values yet; run one batch")
    with expected, untouched(model):
        pytest.fail("it must not come here")


@pytest.mark.filterwarnings("ignore")  # both are on their way out, and models that have them are still about
def test_torchscript_has_its_flag_and_buffers_back():
    model = torch.jit.script(nn.BatchNorm1d(2))
    with untouched(model), torch.no_grad():
        model.eval()
        model.running_mean.add_(1)
    assert model.training
    assert model.running_mean.eq(0).all()


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_buffer_is_the_same_tensor():
    model = nn.Module()
    model.register_buffer("table", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    table = model.table
    with untouched(model):
        assert model.table is not table
    assert model.table is table


@pytest.mark.parametrize("suffix", ["", "_all"])
def test_the_accelerator_of_the_model_has_its_random_state_back(monkeypatch, suffix):
    state = {"value": 1}
    device = SimpleNamespace(
        **{f"get_rng_state{suffix}": lambda: state["value"], f"set_rng_state{suffix}": lambda v: state.update(value=v)}
    )
    asked = []
    monkeypatch.setattr(torch, "get_device_module", lambda kind: asked.append(kind) or device)
    model = SimpleNamespace(
        parameters=lambda: [torch.ones(1), SimpleNamespace(device=torch.device("cuda:0"))], buffers=list
    )
    restores = random_states(model)
    state["value"] = 2
    for restore in restores:
        restore()
    assert asked == ["cuda"]
    assert state["value"] == 1


def test_unwrapping():
    model = nn.Linear(1, 1)
    assert unwrap(model) is model
    assert unwrap(torch.compile(model, backend="eager")) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.optim.swa_utils.AveragedModel(model)).weight.equal(model.weight)
    assert unwrap(torch.compile(nn.DataParallel(model), backend="eager")) is model
    named = nn.Module()
    named.module = model  # a name that anybody may use
    assert unwrap(named) is named
    assert state_module.unbuilt(model) == []
