"""The repairs as PyTorch modules: against PyTorch's own, the NumPy layers, and what a module must survive."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest

from bnlearn import layers
from bnlearn.functional import batch_layer_norm, example_weighing

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from bnlearn.torch import (  # noqa: E402
    BatchLayerNorm,
    BatchRenorm,
    ExampleWeighing,
    FullNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    adapt_batch_norm,
)

QUICK = {"warmup": 1, "r_end": 4, "d_end": 3}
OURS = {
    "BatchRenorm": lambda **options: BatchRenorm(3, **{**QUICK, **options}),
    "GhostBatchNorm": lambda **options: GhostBatchNorm(3, 2, **options),
    "FullNorm": lambda **options: FullNorm(3, **options),
    "MaskedBatchNorm": lambda **options: MaskedBatchNorm(3, **options),
    "ExampleWeighing": lambda **options: ExampleWeighing(3, 0.3, **options),
}
ALL = {**OURS, "BatchLayerNorm": lambda **options: BatchLayerNorm((3, 4), 6, **options)}
EACH = pytest.mark.parametrize("name", OURS)
EVERY = pytest.mark.parametrize("name", ALL)
SHAPES = [(6, 3), (6, 3, 4), (4, 3, 2, 5), (2, 3, 2, 2, 2, 2)]


@pytest.fixture
def x():
    return 0.5 + 1.5 * torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def randomise(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(2)
            elif "var" in name:
                tensor.uniform_(0.5, 2.0, generator=generator)
            else:
                tensor.normal_(generator=generator)
    return module


def arguments(name, x):
    """A mask too, for the one that takes it."""
    mask = torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool)
    mask[0] = False
    return (x, mask) if name == "MaskedBatchNorm" else (x,)


def states_equal(module, other):
    theirs = other.state_dict() if isinstance(other, torch.nn.Module) else other
    return all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items())


# -- against PyTorch's and the NumPy layers


@EACH
@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_is_batch_norms(name, shape):
    module = randomise(OURS[name](dtype=torch.float64)).eval()
    module.example_weight = 0.0
    plain = torch.nn.BatchNorm2d(3, dtype=torch.float64).eval()
    plain.load_state_dict(module.state_dict())
    plain._check_input_dim = lambda input: None
    x = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["MaskedBatchNorm", "ExampleWeighing"])
def test_training_without_a_mask_is_torchs_own(name, x):
    module = randomise(OURS[name](dtype=torch.float64))
    plain = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), plain(x))
    assert states_equal(module, plain)


@pytest.mark.parametrize("name", ["BatchRenorm", "GhostBatchNorm", "FullNorm", "ExampleWeighing", "BatchLayerNorm"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_same_as_the_numpy_layer(name, momentum):
    """Outputs, gradients and state, over training and evaluation: autograd against the hand-written backward."""
    ours = randomise(ALL[name](momentum=momentum, dtype=torch.float64))
    options = {"momentum": momentum, "dtype": np.float64}
    numpy = {
        "BatchRenorm": lambda: layers.BatchRenorm(3, **QUICK, **options),
        "GhostBatchNorm": lambda: layers.GhostBatchNorm(3, 2, **options),
        "FullNorm": lambda: layers.FullNorm(3, **options),
        "ExampleWeighing": lambda: layers.ExampleWeighing(3, 0.3, **options),
        "BatchLayerNorm": lambda: layers.BatchLayerNorm((3, 4), 6, **options),
    }[name]()
    numpy.load_state_dict(ours.state_dict())
    rng = np.random.default_rng(0)
    for training, samples in [(True, 6), (True, 7), (False, 5), (True, 4), (False, 1)]:
        ours.train(training), numpy.train(training)
        array, dy = 1 + rng.standard_normal((samples, 3, 4)), rng.standard_normal((samples, 3, 4))
        tensor = torch.tensor(array, requires_grad=True)
        ours.zero_grad()
        y = ours(tensor)
        y.backward(torch.tensor(dy))
        np.testing.assert_allclose(numpy(array), y.detach().numpy(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(numpy.backward(dy), tensor.grad.numpy(), rtol=1e-9, atol=1e-9)
        for key, parameter in ours.named_parameters():
            np.testing.assert_allclose(numpy.grads[key], parameter.grad.numpy(), rtol=1e-9, atol=1e-9)
        for key, value in numpy.state_dict().items():
            np.testing.assert_allclose(value, ours.state_dict()[key].numpy(), rtol=1e-10, atol=1e-10)


@EACH
def test_a_batch_norms_state_loads_and_it_counts_as_one(name, x):
    plain = randomise(torch.nn.BatchNorm1d(3))
    module = OURS[name]()
    assert module.load_state_dict(plain.state_dict()) == ([], [])
    assert states_equal(module, plain)
    assert isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    torch.optim.swa_utils.update_bn([x.float()], torch.nn.Sequential(module))
    torch.testing.assert_close(module.running_mean, x.float().mean((0, 2)))


# -- what a module must survive


@pytest.mark.parametrize(
    ("name", "training"),
    [
        *((name, True) for name in ALL),
        *((name, False) for name in ("MaskedBatchNorm", "ExampleWeighing", "BatchLayerNorm")),
    ],
)
def test_compiled_as_one_graph_without_warnings(name, training, x):
    module = randomise(ALL[name](momentum=0.3)).train(training)
    eager = copy.deepcopy(module)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            inputs = arguments(name, x.float().requires_grad_())
            y = compiled(*inputs)
            torch.testing.assert_close(y, eager(*inputs))
            (gradient,) = torch.autograd.grad(y.square().sum(), inputs[0])
    assert torch.isfinite(gradient).all()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[key])


@EVERY
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_with_float32_statistics(name, half, training, x):
    module = randomise(ALL[name]()).train(training)
    wide = copy.deepcopy(module)
    with torch.autocast("cpu", dtype=half):
        y = module(*arguments(name, x.to(half)))
    assert y.dtype == half
    torch.testing.assert_close(y.float(), wide(*arguments(name, x.to(half).float())), rtol=0.05, atol=0.05)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, wide.state_dict()[key], rtol=1e-3, atol=1e-3)
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32, torch.int64}


@EVERY
def test_device_and_dtype(name):
    module = ALL[name](device="meta", dtype=torch.float64)
    floats = [t for t in module.state_dict().values() if t.is_floating_point()]
    assert {(t.device.type, t.dtype) for t in floats} == {("meta", torch.float64)}
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}


@EVERY
def test_copies_and_state_round_trip_after_training(name, x):
    module = randomise(ALL[name](dtype=torch.float64))
    for _ in range(2):  # the second would fail if the statistics kept the first's graph
        module(*arguments(name, x)).sum().backward()
    twin = copy.deepcopy(module)
    other = ALL[name](dtype=torch.float64)
    other.load_state_dict(module.state_dict())
    expected = module.eval()(*arguments(name, x))
    for copied in (twin, other):
        torch.testing.assert_close(copied.eval()(*arguments(name, x)), expected, rtol=0, atol=0)
    assert not any(buffer.requires_grad for buffer in module.buffers())


@EVERY
def test_evaluation_changes_nothing(name, x):
    module = randomise(ALL[name](dtype=torch.float64)).eval()
    before = copy.deepcopy(module.state_dict())
    module(*arguments(name, x))
    assert states_equal(module, before)


@EVERY
def test_without_parameters(name, x):
    module = ALL[name](affine=False, dtype=torch.float64)
    assert (module.weight, module.bias, list(module.parameters())) == (None, None, [])
    assert module(*arguments(name, x)).shape == x.shape


@EACH
def test_shape_errors_change_nothing(name, x):
    module = randomise(OURS[name]())
    before = copy.deepcopy(module.state_dict())
    for wrong, message in (
        (torch.zeros(3), r"expected at least 2D input \(got 1D input\)"),
        (torch.zeros(4, 2), r"expected 3 channels on axis 1, got input size \(4, 2\)"),
        (torch.zeros(1, 3), r"Expected more than 1 value per channel when training, got input size"),
    ):
        with pytest.raises(ValueError, match=message):
            module(wrong)
        if len(wrong) != 1:
            with pytest.raises(ValueError, match=message):
                copy.deepcopy(module).eval()(wrong)
    assert {k: v.tolist() for k, v in module.state_dict().items()} == {k: v.tolist() for k, v in before.items()}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            BatchRenorm(3),
            "3, eps=1e-05, momentum=0.1, affine=True, r_max=3.0, d_max=5.0, warmup=5000, r_end=40000, d_end=25000",
        ),
        (
            GhostBatchNorm(3, 8),
            "3, ghost_size=8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True",
        ),
        (
            ExampleWeighing(3, 0.25),
            "3, example_weight=0.25, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True",
        ),
        (
            BatchLayerNorm(3, 8),
            "(3,), batch_size=8, eps=0.001, momentum=None, affine=True, running=('batch_mean', 'batch_var')",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_extra_repr(module, text):
    assert module.extra_repr() == text


# -- each by itself


def test_batch_renorm_goes_from_batch_norm_to_evaluation(x):
    module = randomise(BatchRenorm(3, r_max=math.inf, d_max=math.inf, dtype=torch.float64, warmup=0, r_end=9, d_end=9))
    module.num_batches_tracked.fill_(0)
    plain = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    plain.load_state_dict(module.state_dict())
    module.r_max = module.d_max = 1e9
    torch.testing.assert_close(module(x), plain(x))
    module.num_batches_tracked.fill_(9)
    evaluation = copy.deepcopy(module).eval()(x)
    torch.testing.assert_close(module(x), evaluation, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="got warmup=50000"):
        BatchRenorm(3, warmup=50_000)


def test_ghosts_count_as_batches(x):
    module = GhostBatchNorm(3, 4)
    module(x.float())
    assert module.num_batches_tracked == 2
    bare = GhostBatchNorm(3, 4, track_running_stats=False)
    torch.testing.assert_close(bare.eval()(x.float()), bare.train()(x.float()))
    with pytest.raises(ValueError, match=r"in each ghost when training, got input size \(5, 3\) in ghosts of 2"):
        GhostBatchNorm(3, 2)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="expected ghost_size >= 1 samples, got 0"):
        GhostBatchNorm(3, 0)
    assert GhostBatchNorm(3, 2)(torch.zeros(0, 3)).shape == (0, 3)


def test_full_norm_with_all_the_weight_is_batch_norm(x):
    module, plain = FullNorm(3, momentum=1.0, dtype=torch.float64), torch.nn.BatchNorm1d(3, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for _ in range(2):
        ys = [module(inputs[0]), plain(inputs[1])]
        torch.testing.assert_close(*ys)
        gradients = [torch.autograd.grad((y * x).sum(), i)[0] for y, i in zip(ys, inputs, strict=True)]
        torch.testing.assert_close(*gradients)


class TestMaskedBatchNorm:
    @pytest.mark.parametrize("momentum", [0.3, None])
    def test_it_is_batch_norm_of_the_real_positions(self, x, momentum):
        module = randomise(MaskedBatchNorm(3, momentum=momentum, dtype=torch.float64))
        plain = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
        plain.load_state_dict(module.state_dict())
        mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.6
        padded = torch.where(mask[:, None], x, torch.nan).requires_grad_()
        for training in (True, True, False):
            module.train(training), plain.train(training)
            y = module(padded, mask)
            real = plain(x.movedim(1, -1)[mask])
            torch.testing.assert_close(y.movedim(1, -1)[mask], real)
            assert not y.movedim(1, -1)[~mask].any()
            (dx,) = torch.autograd.grad(y.square().sum(), padded)
            assert torch.isfinite(dx).all()
            assert not dx.movedim(1, -1)[~mask].any()
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key])

    def test_all_padding_leaves_the_statistics(self, x):
        module = randomise(MaskedBatchNorm(3, dtype=torch.float64))
        before = copy.deepcopy(module.state_dict())
        assert not module(x * torch.nan, torch.zeros(6, 4, dtype=torch.bool)).any()
        assert torch.equal(module.running_mean, before["running_mean"])
        assert torch.equal(module.running_var, before["running_var"])
        assert module.num_batches_tracked == before["num_batches_tracked"] + 1

    def test_one_real_value_and_wrong_masks_change_nothing(self, x):
        module = randomise(MaskedBatchNorm(3, dtype=torch.float64))
        before = copy.deepcopy(module.state_dict())
        mask = torch.zeros(6, 4, dtype=torch.bool)
        mask[0, 0] = True
        with pytest.raises(ValueError, match="got n = 1"):
            module(x, mask)
        with pytest.raises(TypeError, match="expected mask of dtype bool"):
            module(x, mask.double())
        with pytest.raises(ValueError, match=r"expected mask of shape \(6, 4\)"):
            module(x, mask[:, :2])
        assert states_equal(module, before)

    def test_without_running_statistics(self, x):
        mask = torch.ones(6, 4, dtype=torch.bool)
        module = MaskedBatchNorm(3, track_running_stats=False, dtype=torch.float64)
        torch.testing.assert_close(module.eval()(x, mask), module.train()(x))


def test_example_weighing_is_the_formula(x):
    module = randomise(ExampleWeighing(3, 0.4, dtype=torch.float64)).eval()
    expected, _ = example_weighing(
        x, module.weight, module.bias, mean=module.running_mean, var=module.running_var, weight=0.4
    )
    torch.testing.assert_close(module(x), expected)
    with pytest.raises(ValueError, match="expected example_weight from 0 to 1, got -1"):
        ExampleWeighing(3, -1)


class TestBatchLayerNorm:
    def test_any_batch_size_and_none(self, x):
        module = randomise(BatchLayerNorm((3, 4), 6, dtype=torch.float64))
        for samples in (1, 6, 0):
            part = x[:samples]
            torch.testing.assert_close(
                module(part), batch_layer_norm(part, module.weight, module.bias, batch_size=6)[0], equal_nan=True
            )
        assert torch.isfinite(module.running_batch_var).all()

    def test_errors(self):
        with pytest.raises(
            ValueError, match=r"expected input with shape \[N, 3, 4\], but got input of size \[2, 3, 5\]"
        ):
            BatchLayerNorm((3, 4), 8)(torch.zeros(2, 3, 5))
        with pytest.raises(ValueError, match=r"of lengths >= 1, got \(3, 0\)"):
            BatchLayerNorm((3, 0), 8)
        with pytest.raises(ValueError, match="expected batch_size >= 1, got 0"):
            BatchLayerNorm(3, 0)
        with pytest.raises(ValueError, match=r"expected running to name some of batch_mean, .*, got mean"):
            BatchLayerNorm(3, 8, running=["mean"])


# -- adapting a model


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Linear(4, 3)),
        FullNorm(3), torch.nn.Dropout(0.5),
    )  # fmt: skip
    return randomise(model, 3)


class TestAdaptation:
    def test_on_one_batch_it_is_update_bn(self):
        x = 3 + 2 * torch.randn(50, 5)
        plain = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4))
        theirs = copy.deepcopy(plain)
        torch.optim.swa_utils.update_bn([x], theirs)
        assert adapt_batch_norm(plain, [x]) is plain
        torch.testing.assert_close(plain[1].running_mean, theirs[1].running_mean)
        torch.testing.assert_close(plain[1].running_var, theirs[1].running_var)
        # The second layer sees what it will at inference, where the first divides by the unbiased variance.
        torch.testing.assert_close(plain[2].running_var * 50 / 49, theirs[2].running_var, rtol=1e-4, atol=0)

    def test_over_several_batches_the_first_layer_is_exact(self):
        x = 3 + torch.arange(50.0)[:, None] * torch.randn(50, 5)
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
        adapt_batch_norm(model, [(part, "label") for part in x.split([20, 29, 1])])
        torch.testing.assert_close(model[0].running_mean, x.mean(0))
        torch.testing.assert_close(model[0].running_var, x.var(0))  # unbiased; update_bn's average of the parts is not
        theirs = torch.nn.BatchNorm1d(5)
        torch.optim.swa_utils.update_bn(x[:49].split([20, 29]), torch.nn.Sequential(theirs))
        assert not torch.allclose(theirs.running_var, x[:49].var(0), rtol=0.01)

    def test_the_prior(self):
        x = 3 + 2 * torch.randn(30, 5)
        source, target, mixed, kept = (network() for _ in range(4))
        adapt_batch_norm(target, [x])
        adapt_batch_norm(mixed, x.split([20, 10]), prior=10)
        adapt_batch_norm(kept, [x], prior=math.inf)
        for what in ("running_mean", "running_var"):
            expected = 0.25 * getattr(source[1], what) + 0.75 * getattr(target[1], what)
            torch.testing.assert_close(getattr(mixed[1], what), expected)
        assert states_equal(kept, source)

    def test_only_the_running_statistics_change_and_modes_come_back(self):
        model = network()
        model[1].eval()
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        adapt_batch_norm(model, [torch.randn(8, 5)])
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {f"{i}.running_{what}" for i in (1, 4) for what in ("mean", "var")}
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_pre_hooks for m in model.modules())

    @pytest.mark.parametrize(
        ("batches", "error", "message"),
        [
            ([], ValueError, "expected more than one value per channel in layer '1', got none"),
            ([torch.zeros(1, 5)], ValueError, "in layer '1', got 1"),
            ([torch.randn(8, 5), torch.zeros(4, 7)], RuntimeError, "cannot be multiplied"),
        ],
    )
    def test_a_failure_leaves_it_as_it_was(self, batches, error, message):
        model = network()
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        with pytest.raises(error, match=message):
            adapt_batch_norm(model, batches)
        assert states_equal(model, before)
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_pre_hooks for m in model.modules())

    def test_nothing_to_adapt(self):
        with pytest.raises(ValueError, match="expected a model with batch normalisation, got Linear without"):
            adapt_batch_norm(torch.nn.Linear(2, 3), [])
        with pytest.raises(ValueError, match="got Sequential without"):
            adapt_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm1d(3, track_running_stats=False)), [])
        with pytest.raises(ValueError, match=r"expected prior, .*, got -1"):
            adapt_batch_norm(network(), [], prior=-1)
