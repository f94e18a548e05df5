"""What the audit finds out about a PyTorch model, and that the model does not notice."""

from __future__ import annotations

import random
import weakref
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import bnlearn.torch as own  # noqa: E402
from bnlearn.clinic._torch import watch  # noqa: E402
from bnlearn.clinic._torch.facts import facts  # noqa: E402
from bnlearn.clinic._torch.freeze import freeze  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randomised(model, seed=0):
    """No gamma of one, no fresh statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and ("running" in name or tensor.dim() == 1):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def network():
    torch.manual_seed(1)
    return randomised(
        nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(12, 4),
            nn.BatchNorm1d(4),
            nn.Linear(4, 2),
        )
    )


def batches(sizes=(6, 5, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 2, 4, 4, generator=generator), torch.zeros(n)) for n in sizes]


def by_name(found):
    return {layer.name: layer for layer in found.layers}


# -- What is read without data -----------------------------------------------------------------------------------------


def test_a_layer_is_read(portrait):
    model = network()
    model[1].eps, model[1].momentum = 0.25, 0.5
    model[6].momentum = None
    model[6].num_batches_tracked += 7
    before = portrait(model)
    found = facts(model)
    assert portrait(model) == before
    first, second = found.layers
    assert (found.framework, found.model, found.training_now, found.data_run) == ("torch", "Sequential", True, False)
    assert (found.output, found.optimizer, found.single, found.notes, found.distributed) == (None, None, (), (), False)
    assert (first.name, first.kind, first.order, first.channels) == ("1", "BatchNorm2d", 0, 3)
    assert (first.eps, first.momentum, first.dtype, first.batches_seen) == (0.25, 0.5, "float32", 0)
    assert (second.momentum, second.batches_seen) == (None, 7)
    for attribute, tensor in {
        "running_mean": model[1].running_mean,
        "running_var": model[1].running_var,
        "gamma": model[1].weight,
        "beta": model[1].bias,
    }.items():
        value = getattr(first, attribute)
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, tensor.detach().numpy())
        assert not np.shares_memory(value, tensor.detach().numpy())
    assert (first.affine_trainable, first.training_now, first.trains, first.evaluates) == (True, True, True, True)
    assert (first.frozen_by_hand, first.updates, first.held, first.seen) == (False, True, False, None)
    model[1].track_running_stats = False
    assert [layer.updates for layer in facts(model).layers] == [False, True]


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_all_of_pytorchs_layers_are_found(kind):
    class Users(kind):
        pass

    model = nn.Sequential(kind(2), Users(2), nn.InstanceNorm1d(2, track_running_stats=True), nn.LayerNorm(2))
    assert [layer.kind for layer in facts(model).layers] == [kind.__name__, "Users"]


def test_layers_with_little_state():
    model = nn.Sequential(
        nn.BatchNorm1d(2, affine=False),
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.BatchNorm1d(2, affine=False, track_running_stats=False),
        nn.BatchNorm1d(2).to(torch.bfloat16),
    ).eval()
    model[3].bias.requires_grad_(False)
    plain, untracked, neither, half = facts(model).layers
    assert plain.gamma is plain.beta is plain.affine_trainable is None
    assert untracked.running_mean is untracked.running_var is untracked.batches_seen is None
    assert (untracked.training_now, untracked.trains, untracked.evaluates) == (True, True, False)
    assert (neither.dtype, untracked.dtype, half.dtype) == ("float32", "float32", "bfloat16")
    assert half.affine_trainable
    model[3].weight.requires_grad_(False)
    assert by_name(facts(model))["3"].affine_trainable is False


class Stubborn(nn.Sequential):
    """Keeps the first layer in evaluation mode, as those do who know what train() does."""

    def train(self, mode=True):
        super().train(mode)
        self[0].eval()
        self[0].weight.requires_grad_(False)
        return self


def test_modes_are_found_by_setting_them(portrait):
    model = Stubborn(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[0].eval()
    before = portrait(model)
    kept, moves = facts(model).layers
    assert portrait(model) == before
    assert (kept.trains, kept.evaluates, kept.training_now, kept.frozen_by_hand) == (False, True, False, False)
    assert (moves.trains, moves.training_now) == (True, True)
    assert kept.affine_trainable


def test_frozen_by_hand_or_held():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[0].eval()
    with freeze(model, layers=["1"]):
        hand, held, free = facts(model).layers
    assert (hand.frozen_by_hand, held.frozen_by_hand, free.frozen_by_hand) == (True, False, False)
    assert (hand.held, held.held, held.trains) == (False, True, False)
    assert not facts(model.eval()).layers[0].frozen_by_hand


def test_what_cannot_be_looked_at_is_noted():
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(2))
            self.register_buffer("running_var", torch.ones(2))

    model = nn.ModuleDict(
        {
            "frozen": FrozenBatchNorm2d(),
            "white": own.DecorrelatedBatchNorm(2),
            "lstm": own.BatchNormLSTM(2, 2, max_length=3),
            "bn": nn.BatchNorm1d(2),
            "renorm": own.BatchRenorm(2),
        }
    )
    found = facts(model)
    assert [layer.name for layer in found.layers] == ["bn", "renorm"]
    assert "frozen (FrozenBatchNorm2d): not looked at, for it is none of PyTorch's" in found.notes[0]
    assert found.notes[1].startswith("white (DecorrelatedBatchNorm): not looked at, for its statistics are not a mean")
    assert any(note.startswith("lstm.norm_") for note in found.notes[2:])


def test_the_source_of_a_model_is_its_class():
    path, line = facts(Stubborn(nn.BatchNorm1d(2))).source
    assert path == __file__
    assert Path(path).read_text(encoding="utf-8").splitlines()[line - 1].startswith("class Stubborn")
    assert facts(network()).source is None
    made = type("Made", (nn.Sequential,), {"__module__": "nowhere"})
    assert facts(made()).source is None


def test_optimizers():
    model = network()
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[1].weight], "weight_decay": 0.1},
            {"params": [model[1].bias, model[0].weight], "weight_decay": 0.2},
        ]
    )
    found = facts(model, optimizer=optimizer).optimizer
    assert (found["1"].holds, found["1"].decay) == (True, 0.2)
    assert (found["6"].holds, found["6"].decay) == (False, 0.0)
    optimizer.param_groups[1].pop("weight_decay")
    assert facts(model, optimizer=optimizer).optimizer["1"].decay == 0.1
    with pytest.raises(TypeError, match=r"expected optimizer to be a torch.optim.Optimizer.*got float"):
        facts(model, optimizer=0.1)


# -- What arrives ------------------------------------------------------------------------------------------------------


def test_what_arrives_is_what_the_layers_get_in_training_mode():
    model = network().eval()
    model[3].p = 0.0
    data = batches()
    found = facts(model, data)
    first, second = found.layers
    assert not found.training_now
    x = [model[0](batch).detach() for batch, _ in data]
    whole = torch.cat(x).double()
    np.testing.assert_allclose(first.seen.mean, whole.mean(dim=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(first.seen.var, whole.var(dim=(0, 2, 3), correction=0), rtol=1e-6)
    model.train()
    later = torch.cat([model[:6](batch).detach() for batch, _ in data]).double()
    np.testing.assert_allclose(second.seen.mean, later.mean(dim=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second.seen.var, later.var(dim=0, correction=0), rtol=1e-5)
    assert (first.seen.n, first.seen.fewest, second.seen.fewest) == (60, 16, 4)
    assert (first.seen.batches, first.seen.samples, first.seen.calls, first.seen.finite) == (3, 15, 1, True)
    assert first.seen.iid_ratio.shape == (3,)
    assert found.data_run
    assert not found.masked


def gap(reference, other):
    a, b = reference.detach().double(), other.detach().double()
    return float(((a - b).square().mean() / a.var(dim=0, correction=0).mean()).sqrt())


def test_the_gap_is_that_of_the_first_batch():
    model = network()
    model[3].p = 0.0
    data = batches()
    found = facts(model, data)
    x = data[0][0]
    twin = network()
    twin[3].p = 0.0
    in_evaluation = twin.eval()(x)
    in_training = twin.train()(x)
    with torch.no_grad():
        for layer in found.layers:
            bn = twin.get_submodule(layer.name)
            bn.running_mean.copy_(torch.from_numpy(layer.seen.mean))
            bn.running_var.copy_(torch.from_numpy(layer.seen.var * layer.seen.n / (layer.seen.n - 1)))
    recalibrated = twin.eval()(x)
    assert found.output.gap == pytest.approx(gap(in_training, in_evaluation), rel=1e-5)
    assert found.output.recalibrated_gap == pytest.approx(gap(in_training, recalibrated), rel=1e-4)
    assert found.output.moved == pytest.approx(gap(recalibrated, in_evaluation), rel=1e-4)
    assert found.output.samples == 6
    # Without dropout, and with the batch's own statistics, nothing differs between the modes.
    np.testing.assert_allclose(found.layers[1].seen.evaluation_ratio, 1, rtol=1e-6)
    np.testing.assert_allclose(found.layers[0].seen.evaluation_ratio, 1, rtol=1e-6)


def test_dropout_is_on_in_training_and_off_in_evaluation():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 2))
    torch.manual_seed(0)
    data = [torch.randn(500, 3) + 2, torch.randn(500, 3) + 2]
    (layer,) = facts(model, data).layers
    assert (layer.seen.evaluation_ratio < 0.4).all()
    (layer,) = facts(model, data[:1]).layers  # the second batch is the one for this
    assert layer.seen.evaluation_ratio is None


def test_frozen_layers_keep_their_statistics_in_all_passes():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    randomised(model)
    with freeze(model):
        found = facts(model, [torch.randn(8, 2)])
    assert found.output.gap == found.output.recalibrated_gap == 0


def test_a_model_that_trains_is_run_as_it_stands():
    model = randomised(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)))
    model[0].eval()
    arrives = facts(model, [torch.randn(8, 2)]).layers[1].seen
    assert not np.allclose(arrives.var, model[0].weight.detach().square(), rtol=1e-3)
    model[1].eval()
    found = facts(model, [torch.randn(8, 2)])
    assert all(layer.frozen_by_hand and layer.trains for layer in found.layers)
    assert found.output.gap == found.output.recalibrated_gap == 0
    model.eval()  # no training is under way, and the next train() wakes them
    assert facts(model, [torch.randn(8, 2)]).output.gap > 0


class Called(nn.Module):
    """Calls layers in another order than it has them in, one of them twice, and one never."""

    def __init__(self):
        super().__init__()
        self.last, self.twice, self.never, self.first = (nn.BatchNorm1d(2) for _ in range(4))

    def forward(self, x):
        return self.last(self.twice(input=self.first(x)) + self.twice(x * 2 + 3))


def test_calls_are_counted_and_ordered():
    found = facts(Called(), [torch.randn(8, 2), torch.randn(3, 2)])
    assert [layer.name for layer in found.layers] == ["first", "twice", "last", "never"]
    assert [layer.order for layer in found.layers] == [0, 1, 2, 3]
    layers = by_name(found)
    assert layers["never"].seen is None
    assert (layers["twice"].seen.calls, layers["twice"].seen.n) == (2, 22)
    assert layers["twice"].seen.apart.shape == (2, 2)
    assert (layers["twice"].seen.apart[1] > 0.3).all()
    assert layers["first"].seen.apart is None


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.other = nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)
        self.weighted = Weighted(2)

    def forward(self, x):
        x = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.training)
        return self.weighted(x, weights=torch.ones(x.shape[0]))


class Weighted(nn.BatchNorm1d):
    """Whatever it does with its weights."""

    def forward(self, input, weights):
        return super().forward(input * weights[:, None])


def test_layers_that_are_used_in_their_own_way_are_noted():
    found = facts(Functional(), [torch.randn(8, 2) + 3])
    assert [layer.name for layer in found.layers] == ["other"]
    assert set(found.notes) == {
        "bn: not looked at, for its statistics move without its being called",
        "weighted: not looked at, for it is called with more than its input",
    }


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 3, 1), own.MaskedBatchNorm(3)

    def forward(self, x, mask=None):
        return self.norm(self.conv(x), mask=mask)


def test_of_a_layer_that_takes_a_mask_only_what_is_real_counts():
    model = Masked()
    x, mask = torch.randn(4, 6, 2, 5) + 3, torch.rand(4, 6, 5) < 0.6
    batches = [{"x": torch.where(m[:, None], part, torch.nan), "mask": m} for part, m in zip(x, mask, strict=True)]
    found = facts(model, batches, mask="mask")
    (layer,) = found.layers
    with torch.no_grad():
        real = model.conv(x.flatten(0, 1)).movedim(1, -1)[mask.flatten(0, 1)].double()
    np.testing.assert_allclose(layer.seen.mean, real.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.seen.var, real.var(0, correction=0), rtol=1e-5)
    assert (layer.seen.n, layer.seen.fewest) == (len(real), int(mask.sum((1, 2)).min()))
    assert layer.seen.finite
    assert layer.seen.bias_from == "conv"
    assert layer.seen.iid_ratio is None
    np.testing.assert_allclose(layer.seen.real_mean, layer.seen.mean, rtol=1e-12)
    assert found.masked
    assert found.notes[0] == "norm: a mask reaches it, and what that leaves out does not count"
    (layer,) = facts(model, list(x)).layers  # without a mask
    assert layer.seen.n == 4 * 6 * 5


def test_a_mask_that_a_layer_takes_is_compared_with_the_user_s():
    model = Masked()
    x, real = torch.randn(3, 4, 2, 5), torch.rand(3, 4, 5) < 0.6
    batches = [{"x": part, "mask": torch.ones(4, 5, dtype=torch.bool)} for part in x]
    masks = iter(real)
    (layer,) = facts(model, batches, mask=lambda batch: next(masks)).layers
    with torch.no_grad():
        z = model.conv(x.flatten(0, 1)).movedim(1, -1).double()
    np.testing.assert_allclose(layer.seen.mean, z.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(layer.seen.real_mean, z[real.flatten(0, 1)].mean(0), rtol=1e-4)
    (layer,) = facts(model, batches, mask=lambda batch: torch.ones(4, dtype=torch.bool)).layers
    assert layer.seen.real_mean is None


def test_a_single_real_value_is_noticed():
    model = Masked()
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 0] = True
    found = facts(model, [{"x": torch.randn(2, 2, 5), "mask": m} for m in (mask, ~mask)])
    assert found.single == ("norm",)
    assert found.layers[0].seen.n == 9


def test_what_is_no_mask_is_for_the_layer_to_refuse():
    with pytest.raises(ValueError, match="mask"):
        facts(Masked(), [{"x": torch.randn(2, 2, 5), "mask": torch.ones(2, 4, dtype=torch.bool)}])
    with pytest.raises(TypeError, match="mask"):
        facts(Masked(), [{"x": torch.randn(2, 2, 5), "mask": torch.ones(2, 5)}])


@pytest.mark.parametrize(
    ("before", "source"),
    [
        (nn.Sequential(nn.Conv1d(2, 3, 1)), "before.0"),
        (nn.ConvTranspose1d(2, 3, 1), "before"),
        (nn.Conv1d(2, 3, 1, bias=False), None),
        (nn.Sequential(nn.Conv1d(2, 3, 1), nn.Identity()), "before.0"),
        (nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU()), None),
        (nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(inplace=True)), None),
    ],
    ids=["conv", "transposed", "no bias", "identity", "relu", "relu in place"],
)
def test_a_bias_is_traced_by_the_very_tensor(before, source):
    model = nn.Sequential()
    model.before, model.bn = before, nn.BatchNorm1d(3)
    (layer,) = facts(model, [torch.randn(8, 2, 4) for _ in range(3)]).layers
    assert layer.seen.bias_from == source


class Inference(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(2, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        with torch.inference_mode():
            return self.bn(self.fc(x))


def test_inference_tensors_tell_nothing_of_writes_so_their_source_is_left_open():
    assert facts(Inference(), [torch.randn(8, 2)]).layers[0].seen.bias_from is None


def test_masks():
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(15, 4), nn.BatchNorm1d(4))
    x, mask = torch.randn(8, 2, 5), torch.rand(8, 5) < 0.6
    found = facts(model, [(x, mask)], mask=1)
    fits, other = found.layers
    arrives = model[0](x).detach().double().movedim(1, -1)[mask]
    np.testing.assert_allclose(fits.seen.real_mean, arrives.mean(dim=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fits.seen.real_var, arrives.var(dim=0, correction=0), rtol=1e-5)
    assert other.seen.real_mean is None
    assert found.masked
    assert not facts(model, [(x, mask)], mask=lambda batch: batch[1][:, :4]).masked


# -- Batches that do not go through ------------------------------------------------------------------------------------


def test_a_batch_with_one_value_per_channel_is_left_out(portrait):
    model = network()
    before = portrait(model)
    found = facts(model, batches((6, 1, 5)))
    assert portrait(model) == before
    assert found.single == ("6",)
    assert [layer.seen.n for layer in found.layers] == [44, 11]
    assert [layer.seen.batches for layer in found.layers] == [2, 2]


class Swallows(nn.Sequential):
    def forward(self, x):
        try:
            return super().forward(x)
        except Exception:
            pytest.fail("it is not for the model")


def test_a_batch_of_one_alone():
    model = Swallows(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    found = facts(model, [torch.randn(1, 2)])
    assert (found.single, found.data_run, found.output) == (("0",), False, None)
    assert [layer.seen for layer in found.layers] == [None, None]
    assert found.notes == (
        "no batch of at least two samples gave finite outputs: training and evaluation not compared",
    )
    model[0].eval()
    assert facts(Stubborn(*model), [torch.randn(1, 2)]).single == ("1",)


def test_the_first_batch_that_can_be_compared_is():
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
    bad = torch.full((4, 2, 3), float("nan"))
    found = facts(model, [torch.randn(1, 2, 3), bad, torch.randn(5, 2, 3), torch.randn(6, 2, 3)])
    assert found.output.samples == 5
    assert not found.layers[0].seen.finite
    assert found.layers[0].seen.n == 3 * 12
    assert np.isfinite(found.layers[0].seen.mean).all()


def test_statistics_that_are_not_finite_make_an_infinite_gap():
    model = randomised(nn.Sequential(nn.BatchNorm1d(2)))
    model[0].running_mean.fill_(float("nan"))
    found = facts(model, [torch.randn(50, 2)])
    assert found.output.gap == float("inf")
    assert found.output.recalibrated_gap < 0.02


class Beside(nn.Module):
    """What one layer sees is not finite and goes nowhere; another layer has no statistics to set."""

    def __init__(self):
        super().__init__()
        self.bn, self.untracked = nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)

    def forward(self, x):
        self.bn(x / 0)
        return self.untracked(x)


def test_layers_without_statistics_to_pretend_are_left_as_they_are():
    found = facts(Beside(), [torch.randn(8, 2), torch.randn(8, 2)])
    bad, good = found.layers
    assert (bad.seen.finite, good.seen.finite) == (False, True)
    assert (bad.seen.evaluation_ratio is None, good.seen.evaluation_ratio is None) == (True, False)
    assert found.output.gap == found.output.recalibrated_gap == 0


Pair = namedtuple("Pair", ["logits", "aux"])


@dataclass
class Result:
    logits: Any
    hidden: Any = None


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.bn, self.make = nn.BatchNorm1d(2), make

    def forward(self, x):
        return self.make(self.bn(x), self.training)


@pytest.mark.parametrize(
    "make",
    [
        lambda y, training: y,
        lambda y, training: (y, y.argmax(dim=1), y.mean()),
        lambda y, training: [{"a": y}],
        lambda y, training: Pair(y, None),
        lambda y, training: Result(y),
        lambda y, training: {"logits": y, "aux": y * 100} if training else {"logits": y},
        lambda y, training: (y, "text", torch.zeros(3 if training else 4, 2)),
    ],
    ids=["tensor", "tuple", "nested", "namedtuple", "dataclass", "aux in training", "another shape"],
)
def test_outputs_of_every_kind_are_compared(make):
    torch.manual_seed(0)
    data = [torch.randn(20, 2) + 1]
    plain = facts(Returns(lambda y, training: y), data).output
    found = facts(Returns(make), data).output
    assert plain.gap == pytest.approx(found.gap, rel=1e-9)
    assert plain.recalibrated_gap == pytest.approx(found.recalibrated_gap, rel=1e-9)
    assert plain.gap > 5 * plain.recalibrated_gap > 0


@pytest.mark.parametrize("make", [lambda y, training: y.mean(), lambda y, training: 0 * y, lambda y, training: "text"])
def test_outputs_that_do_not_vary_are_not_compared(make):
    found = facts(Returns(make), [torch.randn(20, 2), torch.randn(20, 2)])
    assert found.output is None
    assert found.notes == ("nothing in the outputs to compare training and evaluation by",)
    assert found.layers[0].seen.evaluation_ratio is not None


def test_a_layer_that_is_asked_for_nonsense_says_so_itself():
    class Nonsense(nn.Module):
        def __init__(self, *args):
            super().__init__()
            self.bn, self.args = nn.BatchNorm1d(2), args

        def forward(self, x):
            return self.bn(*self.args)

    for args in ((), ("x",), (torch.ones(2),)):
        with pytest.raises((TypeError, AttributeError, ValueError)) as error:
            facts(Nonsense(*args), [torch.ones(4, 2)])
        assert "arrives" not in str(error.traceback[-1])


# -- What it costs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def passes():
    """What the models below note of each pass; not on the model, which is put back."""
    PASSES.clear()
    return PASSES


PASSES: list = []


class Counts(nn.Module):
    """Notes its mode and the batch, by its first value, at each pass."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(2)

    def forward(self, x):
        PASSES.append((self.training, self.bn.training, x[0, 0].item()))
        x *= 1.5  # what a model does to its input stays inside
        return self.bn(x)


def test_no_batch_is_run_more_than_three_times_and_all_but_two_once(passes):
    facts(Counts(), (torch.full((4, 2), float(i)) for i in range(5)))
    in_training = [(True, True, float(i)) for i in range(5)]
    assert passes == [*in_training[:2], (False, True, 1.0), *in_training[2:], (False, False, 0.0), (False, False, 0.0)]


def test_the_second_batch_that_can_be_compared_gives_the_ratio(passes):
    nan, single = torch.full((4, 2), torch.nan), torch.full((1, 2), 9.0)
    good = [torch.arange(8.0).reshape(4, 2) + i for i in range(3)]
    found = facts(Counts(), [single, nan, good[0], nan, single, good[1], good[2]])
    assert [x for training, _, x in passes if not training] == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(found.layers[0].seen.evaluation_ratio, 1)
    assert found.output.samples == 4


class Drifts(nn.Module):
    """What it computes in training depends on all that the pass in between could change."""

    def __init__(self):
        super().__init__()
        self.bn, self.frozen, self.generator = nn.BatchNorm1d(2), nn.BatchNorm1d(2), torch.Generator()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))
        self.generator.manual_seed(1)

    def forward(self, x):
        self.count += 1
        drawn = [torch.rand(()), torch.rand((), generator=self.generator), np.random.rand(), random.random()]  # noqa: NPY002
        modes = [module.training for module in self.modules()]
        if self.training:
            PASSES.append([*map(float, drawn), *modes, self.count.item(), self.bn.running_mean.tolist()])
        return self.frozen(self.dropout(self.bn(x)))


def test_training_goes_on_as_if_nothing_had_been_in_between(monkeypatch, passes):
    def run():
        torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
        passes.clear()
        model = Drifts()
        freeze(model, layers=["frozen"])
        found = facts(model, (torch.randn(6, 2) for _ in range(5)))
        return list(passes), found

    usual, found = run()
    assert found.layers[0].seen.evaluation_ratio is not None
    monkeypatch.setattr(watch._Watch, "_ratios", lambda *_: {})
    without, other = run()
    assert usual == without
    assert len(usual) == 5
    assert other.layers[0].seen.evaluation_ratio is None
    np.testing.assert_array_equal(found.layers[1].seen.mean, other.layers[1].seen.mean)
    assert found.output == other.output


def test_a_path_of_evaluation_alone_that_training_cannot_take():
    class Averages(nn.Sequential):
        def forward(self, x):
            return super().forward(x if self.training else x.mean(dim=0, keepdim=True))

    found = facts(Averages(nn.BatchNorm1d(2)), [torch.randn(8, 2) for _ in range(4)])
    assert (found.single, found.layers[0].seen.batches, found.layers[0].seen.evaluation_ratio) == ((), 4, None)


def test_only_one_batch_is_kept():
    alive = []

    def data():
        for _ in range(6):
            assert sum(reference() is not None for reference in alive) == 0
            x = torch.randn(4, 2)
            alive.append(weakref.ref(x))
            yield [x]
            del x

    inside = []

    class Remembers(nn.Sequential):
        def forward(self, x):
            assert sum(reference() is not None for reference in inside) <= 1
            inside.append(weakref.ref(x))
            return super().forward(x)

    assert facts(Remembers(nn.Linear(2, 2), nn.BatchNorm1d(2)), data()).data_run
    assert len(inside) == 9


def test_a_generator_that_fills_one_array_again_and_again_does_no_harm():
    def data(array):
        for i in range(3):
            array[...] = np.random.default_rng(i).standard_normal(array.shape)
            yield array

    array = np.zeros((6, 2), np.float32)
    model = randomised(nn.Sequential(nn.BatchNorm1d(2)))
    reused = facts(model, data(array))
    fresh = facts(model, [batch.copy() for batch in data(array)])
    assert reused.output == fresh.output


def test_the_inputs_are_not_written_to():
    x = torch.randn(6, 2)
    before = x.clone()
    facts(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(2)), [x, x])
    assert x.equal(before)


class Adds(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.bn, self.in_place = nn.BatchNorm1d(2), in_place

    def forward(self, x):
        return self.bn(x.add_(1) if self.in_place else x + 1)


def test_each_pass_gets_the_batch_as_it_came():
    data = [torch.randn(6, 2), torch.randn(6, 2)]
    assert facts(Adds(True), data).output == facts(Adds(False), data).output


# -- Nothing is left behind --------------------------------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.a = nn.BatchNorm2d(2)
        self.b = self.a

    def forward(self, x):
        return self.b(self.conv(self.a(self.conv(x))))


class Changing(nn.Module):
    """Does to itself what a forward pass had better not do."""

    def __init__(self):
        super().__init__()
        self.bn, self.steps, self.kept = nn.BatchNorm2d(2, momentum=None), 0, []
        self.scale = nn.Parameter(torch.full((1,), 5.0))

    def forward(self, x):
        self.steps += 1
        self.kept.append(x)
        self.scale.data.clamp_(max=1 / self.steps)
        self.bn.momentum = 0.5
        np.random.rand()  # noqa: NPY002
        return self.bn(x) * self.scale + torch.rand(1)


class Weightless(nn.Module):
    def forward(self, x):
        return x


def built(name):
    torch.manual_seed(3)
    conv = nn.Conv2d(2, 2, 3)
    models = {
        "plain": network,
        "shared": Shared,
        "changing": Changing,
        "stubborn": lambda: Stubborn(nn.BatchNorm2d(2), nn.BatchNorm2d(2)),
        "spectral": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(conv), nn.BatchNorm2d(2)),
        "untracked": lambda: nn.Sequential(conv, nn.BatchNorm2d(2, track_running_stats=False)),
        "half": lambda: nn.Sequential(conv, nn.BatchNorm2d(2)).to(torch.bfloat16),
        "none": lambda: nn.Sequential(conv, nn.GroupNorm(1, 2)),
        "weightless": Weightless,
        "compiled": lambda: torch.compile(network(), backend="eager"),
        "part compiled": lambda: nn.Sequential(torch.compile(network()[:2], backend="eager"), nn.BatchNorm2d(3)),
        "graph": lambda: torch.fx.symbolic_trace(network()),
    }
    model = models[name]()
    return randomised(model) if name != "compiled" else model


MODELS = [
    *("plain", "shared", "changing", "stubborn", "spectral", "untracked"),
    *("half", "none", "weightless", "compiled", "part compiled", "graph"),
]


def spoilt(data, how, at):
    for i, batch in enumerate(data):
        if i == at and how in (RuntimeError, KeyboardInterrupt):
            raise how("half-way")
        yield (batch[0] * float("nan"), batch[1]) if i == at and how == "nan" else batch


@given(
    name=st.sampled_from(MODELS),
    how=st.sampled_from([None, RuntimeError, KeyboardInterrupt, "nan", "empty", "forward"]),
    at=st.integers(0, 2),
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    training=st.booleans(),
    mixed=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_whatever_happens_the_model_is_as_it_was(name, how, at, sizes, training, mixed):
    model = built(name).train(training)
    if mixed:
        for module in list(model.modules())[::2]:
            module.training = not module.training
        for parameter in list(model.parameters())[::2]:
            parameter.requires_grad_(False)
    for parameter in list(model.parameters())[1::2]:
        parameter.grad = torch.ones_like(parameter)
    if how == "forward":
        calls = []

        def interrupt(*_):
            calls.append(True)
            if len(calls) > at:
                raise KeyboardInterrupt("within")

        list(model.modules())[-1].register_forward_pre_hook(interrupt)
    data = [] if how == "empty" else batches(sizes)
    if name == "half":
        data = [(x.bfloat16(), y) for x, y in data]
    versions = name != "changing"  # it writes into its parameters
    before = PORTRAIT(model, versions)
    try:
        facts(model, spoilt(data, how, at), optimizer=torch.optim.SGD([torch.ones(1)], lr=0.1))
    except (RuntimeError, KeyboardInterrupt) as error:
        assert type(error) is how or (how == "forward" and str(error) == "within")  # noqa: PT017 - which is drawn
    except ValueError as error:
        assert how == "empty"
        assert "expected at least one batch, got none from the generator" in str(error)  # noqa: PT017
    else:
        assert how in (None, "nan", "empty", "forward") or name in ("none", "weightless")
    assert PORTRAIT(model, versions) == before


@pytest.fixture(autouse=True)
def _portrait(portrait):
    global PORTRAIT
    PORTRAIT = portrait


def test_a_part_that_is_compiled_is_seen_too():
    model = nn.Sequential(torch.compile(network()[:2], backend="eager"), nn.BatchNorm2d(3))
    with torch.no_grad():
        model(batches()[0][0])  # a graph without hooks is there
    assert [layer.seen is not None for layer in facts(model, batches()).layers] == [True, True]
    inside = network()
    inside.compile(backend="eager")
    with torch.no_grad():
        inside(batches()[0][0])
    assert [layer.seen is not None for layer in facts(inside, batches()).layers] == [True, True]
    assert torch.compiler.is_compiling() is False


def test_a_compiled_model_is_looked_into():
    model = network()
    plain, compiled = facts(model, batches()), facts(torch.compile(model, backend="eager"), batches())
    assert [layer.name for layer in compiled.layers] == [layer.name for layer in plain.layers] == ["1", "6"]
    assert compiled.model == "Sequential"
    assert compiled.output == plain.output


def test_a_model_for_several_processes_is_looked_into(tmp_path, portrait):
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this PyTorch was built without gloo")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        compiled = torch.compile(model, backend="eager")
        before = portrait(model)
        found = facts(compiled, batches())
        assert portrait(model) == before
    finally:
        dist.destroy_process_group()
    assert found.distributed
    assert [layer.name for layer in found.layers] == ["1", "6"]
    assert facts(nn.DataParallel(network())).distributed


def test_lazy_layers_are_to_be_built_first():
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="run one batch through the model first"):
        facts(model, [torch.randn(4, 2)])
    assert isinstance(model[1], nn.LazyBatchNorm1d)
    model(torch.randn(4, 2))
    assert len(facts(model, [torch.randn(4, 2)]).layers) == 1


def test_data_are_checked_first():
    with pytest.raises(TypeError, match=r"expected data to be batches, got one Tensor of shape \(4, 2\)"):
        facts(nn.BatchNorm1d(2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="expected at least one batch, got none from the DataLoader"):
        facts(nn.BatchNorm1d(2), DataLoader(TensorDataset(torch.ones(3, 2)), batch_size=4, drop_last=True))


def test_a_loader_and_the_random_states_are_as_they_were():
    loader = DataLoader(
        TensorDataset(torch.randn(12, 2)), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    state = loader.generator.get_state()
    everywhere = torch.get_rng_state()
    facts(nn.BatchNorm1d(2), loader)
    assert loader.generator.get_state().equal(state)
    assert torch.get_rng_state().equal(everywhere)


def test_a_model_in_the_middle_of_a_step_goes_on():
    model = network()
    loss = model(batches()[0][0]).square().sum()
    facts(model, batches())
    loss.backward()
    twin = network()
    twin(batches()[0][0]).square().sum().backward()
    assert model[0].weight.grad.any()
    assert all(p.grad.equal(q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
