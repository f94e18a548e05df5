"""Recalibration in PyTorch: the statistics are those of the whole set, and it is all or nothing."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
recalibrate = pytest.importorskip("bnlearn.clinic._torch.recalibrate").recalibrate
freeze = pytest.importorskip("bnlearn.clinic._torch.freeze").freeze
nn = torch.nn

SIZES = (7, 1, 5, 3)


def network(dtype=torch.float64, momentum=0.1):
    """Convolutions, two batch norms in a row of layers, dropout, and a head with one for vectors."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.BatchNorm2d(3, affine=False, momentum=momentum),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5, momentum=momentum),
    )
    for name, tensor in model.named_parameters():
        if name.startswith(("1.", "8.")):
            nn.init.uniform_(tensor, 0.5, 2)
    return model.to(dtype)


def batches(dtype=torch.float64, sizes=SIZES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 2, 6, 6, generator=generator, dtype=torch.float64).to(dtype) * 3 + 1 for size in sizes]


def whole(model, data):
    """The statistics of the whole set at once: each layer in turn, on what those before it give at inference."""
    model = copy.deepcopy(model).eval()
    x = torch.cat(data)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                axes = [axis for axis in range(x.ndim) if axis != 1]
                module.running_mean.copy_(x.mean(axes))
                module.running_var.copy_(x.var(axes, unbiased=True))
            x = module(x)
    return model.state_dict()


def everything(model):
    return {
        "state": copy.deepcopy(model.state_dict()),
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
        "objects": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "random": torch.get_rng_state(),
    }


def same(one, other):
    states = one["state"].keys() == other["state"].keys() and all(
        torch.equal(value, other["state"][key]) for key, value in one["state"].items()
    )
    rest = all(one[key] == other[key] for key in ("modes", "hooks", "objects"))
    return states and rest and torch.equal(one["random"], other["random"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_equals_the_whole_set_at_once(momentum, training):
    model, data = network(momentum=momentum).train(training), batches()
    expected = whole(model, data)
    before = everything(model)
    repair = recalibrate(model, data, progress=False)
    assert repair.layers == ("1", "5", "8")
    assert not repair.left
    for name, value in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)
        elif name.endswith("tracked"):
            assert value == len(SIZES)
        else:
            assert torch.equal(value, before["state"][name])
    after = everything(model)
    assert same(after | {"state": {}}, before | {"state": {}})
    assert repair.undo() is model
    assert same(everything(model), before)


def test_inference_over_the_set_is_normalised():
    model, data = network(), batches()
    recalibrate(model, data, progress=False)
    with torch.no_grad():
        y = model.eval()(torch.cat(data))
    normalised = (y - model[8].bias) / model[8].weight
    torch.testing.assert_close(normalised.mean(0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    # eps keeps it a little below 1
    assert ((normalised.var(0) - 1).abs() < 1e-4).all()


def test_far_means_in_float32_lose_nothing():
    model = nn.Sequential(nn.BatchNorm1d(3))
    data = [1e4 + 0.1 * torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    recalibrate(model, data, progress=False)
    x = torch.cat(data).double()
    torch.testing.assert_close(model[0].running_mean, x.mean(0).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(model[0].running_var, x.var(0).float(), rtol=1e-6, atol=0)


def test_one_pass_reads_once_and_normalises_by_the_batch_before():
    model = network()
    data = batches(sizes=(8, 8, 8))
    read = []

    def once():
        for batch in data:
            read.append(len(batch))
            yield batch

    expected = copy.deepcopy(model).eval()
    for index in (1, 5, 8):
        expected[index].train()
        expected[index].momentum = None
    arrived = []
    expected[5].register_forward_pre_hook(lambda _module, args: arrived.append(args[0].detach()))
    with torch.no_grad():
        for batch in data:
            expected(batch)
    assert recalibrate(model, once(), one_pass=True, progress=False).layers == ("1", "5", "8")
    assert read == [8, 8, 8]
    torch.testing.assert_close(model[5].running_mean, torch.cat(arrived).mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[5].running_var, torch.cat(arrived).var((0, 2, 3)), rtol=1e-12, atol=1e-12)


def test_only_the_layers_that_are_named():
    model, data = network(), batches()
    before = copy.deepcopy(model.state_dict())
    assert recalibrate(model, data, layers=["5"], progress=False).layers == ("5",)
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"5"}
    with pytest.raises(ValueError, match="expected layers to name BN layers, got '2'; the model has '1', '5', '8'"):
        recalibrate(model, data, layers=["2"], progress=False)


class KeepsOne(nn.Sequential):
    """A model whose train() leaves its first batch norm alone, as many a backbone does."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def by_hand(model):
    model.train()
    model[1].eval()
    return model


def frozen(model):
    freeze(model, layers=["1"])
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda model: KeepsOne(*model).train(), "it is frozen: model.train() leaves it in evaluation mode"),
        (lambda model: KeepsOne(*model).eval(), "it is frozen: model.train() leaves it in evaluation mode"),
        (frozen, "it is frozen: model.train() leaves it in evaluation mode"),
        (by_hand, "it is frozen: it is in evaluation mode in a model that trains"),
    ],
)
def test_frozen_layers_are_left_unless_named(make, why):
    model = make(network())
    before = everything(model)
    repair = recalibrate(model, batches(), progress=False)
    assert repair.layers == ("5", "8")
    assert repair.left == {"1": why}
    assert torch.equal(model[1].running_mean, before["state"]["1.running_mean"])
    repair.undo()
    assert same(everything(model), before)
    assert recalibrate(model, batches(), layers=["1"], progress=False).layers == ("1",)
    assert [module.training for module in model.modules()] == before["modes"]


class Branches(nn.Module):
    """A layer in use, one that is not, one without statistics, and one used twice, on its own output if ``chained``."""

    def __init__(self, chained):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.none, self.shared = nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3)
        self.chained = chained

    def forward(self, x):
        a, b = self.used(self.none(x)), x * 3
        a = self.shared(a)
        return self.shared(a * x if self.chained else b)


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("one_pass", [True, False])
def test_unused_shared_and_without_statistics(chained, one_pass):
    model = Branches(chained).double()
    data = [torch.randn(6, 3, dtype=torch.float64) + 1 for _ in range(3)]
    before = copy.deepcopy(model.state_dict())
    repair = recalibrate(model, data, one_pass=one_pass, progress=False)
    assert repair.left["unused"] == "the data do not reach it"
    assert repair.left["none"] == "it keeps no running mean and variance"
    if chained and not one_pass:
        assert repair.layers == ("used",)
        assert "called 2 times, and what arrives depends on its own statistics" in repair.left["shared"]
        assert torch.equal(model.shared.running_var, before["shared.running_var"])
    else:
        assert repair.layers == ("used", "shared")
    assert torch.equal(model.unused.running_mean, before["unused.running_mean"])
    if not chained and not one_pass:
        with torch.no_grad():
            pooled = torch.cat([model.eval().used(model.none(torch.cat(data))), torch.cat(data) * 3])
        # The layer without statistics sees each batch by itself, so the mean alone is exact here.
        torch.testing.assert_close(model.shared.running_mean, pooled.mean(0), rtol=0, atol=1e-6)


def test_the_order_is_that_of_the_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.second(self.first(x) ** 2)

    model = Backwards().double()
    x = torch.randn(20, 2, dtype=torch.float64) * 5
    recalibrate(model, [x], progress=False)
    squares = ((x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()) ** 2
    torch.testing.assert_close(model.second.running_mean, squares.mean(0), rtol=1e-12, atol=0)


def test_a_layer_that_only_a_later_batch_reaches():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.bn(x) if len(x) > 3 else x

    model = Sometimes()
    assert recalibrate(model, [torch.randn(2, 2), torch.randn(8, 2)], progress=False).layers == ("bn",)
    assert model.bn.num_batches_tracked == 1


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, x):
        if len(x) == SIZES[-1] and self.error is not None:
            raise self.error
        return x


def without_single():
    """PyTorch's own error for a batch of one sample in training mode would come first."""
    return batches(sizes=(7, 5, 4, 3))


def exploding(value):
    data = without_single()
    data[2][0] = value
    return data


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize(
    ("error", "data", "kind", "words"),
    [
        (RuntimeError("half-way"), without_single, RuntimeError, "half-way"),
        (KeyboardInterrupt(), without_single, KeyboardInterrupt, "^$"),
        (None, lambda: exploding(float("nan")), ValueError, r"expected finite statistics at '1\.1', got NaN or infin"),
        (None, lambda: exploding(float("inf")), ValueError, r"nothing was changed"),
        (None, list, ValueError, "expected at least one batch, got none from the list"),
        (None, lambda: batches()[0], TypeError, "expected data to be batches, got one Tensor"),
    ],
)
def test_all_or_nothing(error, data, kind, words, one_pass):
    model = nn.Sequential(nn.Identity(), network()[:2], Fails(error), network()[2:])
    before = everything(model)
    with pytest.raises(kind, match=words):
        recalibrate(model, data(), one_pass=one_pass, progress=False)
    assert same(everything(model), before)


def test_what_overflows_half_precision_is_refused():
    model, data = nn.Sequential(nn.BatchNorm1d(2)).half(), [torch.tensor([[3e4, 1], [-3e4, 2]]).half()]
    before = everything(model)
    with pytest.raises(ValueError, match=r"in torch\.float16"):
        recalibrate(model, data, progress=False)
    assert same(everything(model), before)


def test_one_value_per_channel_has_no_variance():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="expected at least 2 values per channel at '0', got 1"):
        recalibrate(model, [torch.ones(1, 2)], progress=False)


def test_data_that_comes_once_is_refused():
    model = network()
    with pytest.raises(ValueError, match="got a generator, which gives its batches once; pass a list or a DataLoader"):
        recalibrate(model, (batch for batch in batches()), progress=False)


def test_a_loader_that_shuffles_and_augments_gives_each_layer_the_same():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return torch.randn(2, 6, 6, dtype=torch.float64) + index

    model = network()
    loader = torch.utils.data.DataLoader(Noisy(), batch_size=5, shuffle=True)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    repair = recalibrate(model, loader, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    data = list(loader)
    expected = whole(network(), data)
    assert repair.layers == ("1", "5", "8")
    for name, value in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


def test_other_statistics_are_left():
    own = pytest.importorskip("bnlearn.torch")
    model = nn.Sequential(own.DecorrelatedBatchNorm(4))
    model[0].running_var = torch.ones(4, 4)
    repair = recalibrate(model, [torch.randn(8, 4)], progress=False)
    assert not repair.layers
    assert repair.left == {"0": "its statistics are not a mean and a variance for each channel"}


def test_a_bar_is_shown(capsys):
    pytest.importorskip("tqdm")
    recalibrate(network(), batches())
    assert "recalibrate" in capsys.readouterr().err


def test_compiled_models_are_opened():
    model = network()
    repair = recalibrate(torch.compile(model, backend="eager"), batches(), progress=False)
    assert repair.model is model
    assert model[1].num_batches_tracked == len(SIZES)


def test_statistics_without_a_count():
    model = nn.Sequential(nn.BatchNorm1d(2)).double()
    model[0].num_batches_tracked = None
    x = torch.randn(9, 2, dtype=torch.float64)
    recalibrate(model, [x], progress=False)
    torch.testing.assert_close(model[0].running_var, x.var(0), rtol=1e-12, atol=0)


class Padded(nn.Module):
    """Two masked layers behind convolutions over time, called with the mask in place and by name."""

    def __init__(self):
        super().__init__()
        from bnlearn.torch import MaskedBatchNorm

        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv1d(3, 4, 3, padding=1), MaskedBatchNorm(4)
        self.conv2, self.norm2 = nn.Conv1d(4, 2, 3, padding=1), MaskedBatchNorm(2)

    def forward(self, x, mask=None):
        x = torch.relu(self.norm1(self.conv1(x), mask))
        return self.norm2(self.conv2(x), mask=mask)


def padded_batches():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[3], [9], [5], [1], [0], [0], [7], [2]])  # the third batch is padding alone
    mask = torch.arange(9) < lengths
    x = torch.randn(8, 3, 9, generator=generator, dtype=torch.float64) + 2
    return [{"x": x[i : i + 2], "mask": mask[i : i + 2]} for i in range(0, 8, 2)]


@pytest.mark.parametrize("one_pass", [False, True])
def test_masked_layer_counts_real_positions_only(one_pass):
    model, data = Padded().double(), padded_batches()
    recalibrate(model, data, one_pass=one_pass, progress=False)
    x, mask = (torch.cat([batch[key] for batch in data]) for key in ("x", "mask"))
    real = model.conv1(x).movedim(1, -1)[mask]
    torch.testing.assert_close(model.norm1.running_mean, real.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(model.norm1.running_var, real.var(0), rtol=1e-12, atol=0)
    if not one_pass:
        model.eval()
        with torch.no_grad():
            real = model.conv2(torch.relu(model.norm1(model.conv1(x), mask))).movedim(1, -1)[mask]
        torch.testing.assert_close(model.norm2.running_mean, real.mean(0), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(model.norm2.running_var, real.var(0), rtol=1e-12, atol=0)


def test_masked_layer_without_a_mask_counts_all():
    model, data = Padded().double(), [batch["x"] for batch in padded_batches()]
    recalibrate(model, data, progress=False)
    arrived = model.conv1(torch.cat(data))
    torch.testing.assert_close(model.norm1.running_mean, arrived.mean((0, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(model.norm1.running_var, arrived.var((0, 2)), rtol=1e-12, atol=0)


class Weighing(nn.BatchNorm1d):
    """Somebody's layer that counts in a way of its own."""

    def forward(self, input, weights=None):
        return super().forward(input)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.other = Weighing(2), nn.BatchNorm1d(2)

    def forward(self, x, weights=None):
        return self.other(self.norm(x, weights))


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_layer_that_counts_in_its_own_way_is_left(one_pass):
    model = Weighted()
    data = [{"x": torch.randn(8, 2) + 5, "weights": torch.rand(8)} for _ in range(3)]
    repair = recalibrate(model, iter(data) if one_pass else data, one_pass=one_pass, progress=False)
    assert repair.layers == ("other",)
    assert dict(repair.left) == {"norm": "it is called with more than its input, so what it counts is not known"}
    assert (model.norm.running_mean == 0).all()
    assert not (model.other.running_mean == 0).any()
    assert recalibrate(model, [batch["x"] for batch in data], progress=False).layers == ("norm", "other")
