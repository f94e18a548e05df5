"""Loss and optimisers against PyTorch's, and the loop."""

from __future__ import annotations

import math
import re
import signal
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnlearn.layers import BatchNorm1d, Flatten, Layer, Linear, ReLU, Sequential
from bnlearn.training import SGD, Adam, History, evaluate, fit, softmax_cross_entropy

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

# -- softmax_cross_entropy


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([1.0, 30.0, 1e4]),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([np.int64, np.int32, np.uint8]),
    st.integers(0, 2**32 - 1),
)
def test_loss_agrees_with_torch(n, k, scale, dtype, label_dtype, seed):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((n, k))).astype(dtype)
    labels = rng.integers(0, k, n).astype(label_dtype)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels.astype(np.int64)))
    expected.backward()
    loss, dlogits = softmax_cross_entropy(logits, labels)
    assert type(loss) is float
    assert dlogits.dtype == dtype
    rtol = 1e-5 if dtype == np.float32 else 1e-10
    assert loss == pytest.approx(expected.item(), rel=rtol, abs=rtol)
    np.testing.assert_allclose(dlogits, theirs.grad.numpy(), rtol=rtol, atol=rtol)


def test_loss_is_stable_for_huge_logits():
    loss, dlogits = softmax_cross_entropy(np.array([[1e5, 0.0], [0.0, -1e5]], np.float32), np.array([1, 0]))
    assert loss == 5e4
    np.testing.assert_array_equal(dlogits, [[0.5, -0.5], [0, 0]])


def test_loss_of_ignorance_is_log_k_and_gradients_sum_to_zero(rng):
    loss, _ = softmax_cross_entropy(np.full((3, 10), 7.0), np.array([0, 4, 9]))
    assert loss == pytest.approx(math.log(10), rel=1e-14)
    _, dlogits = softmax_cross_entropy(rng.standard_normal((3, 10)), np.array([0, 4, 9]))
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-15)


def test_loss_in_half_precision_is_computed_in_float32():
    logits = np.array([[11.0, 0.0, 3.0]], np.float16)
    loss, dlogits = softmax_cross_entropy(logits, np.array([2]))
    assert loss == softmax_cross_entropy(logits.astype(np.float32), np.array([2]))[0]
    assert dlogits.dtype == np.float16


def test_loss_leaves_its_arguments_alone(rng):
    logits, labels = rng.standard_normal((4, 3)), np.array([0, 1, 2, 0])
    before = logits.copy()
    softmax_cross_entropy(logits, labels)
    np.testing.assert_array_equal(logits, before)
    logits.flags.writeable = labels.flags.writeable = False
    softmax_cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels", "kind", "message"),
    [
        (np.zeros((2, 3), int), [0, 1], TypeError, "expected logits of a floating-point dtype, got int64"),
        (np.zeros((2, 3)), [0.0, 1.0], TypeError, "expected integer labels, got float64; from one-hot labels, take"),
        (np.zeros((2, 3)), [True, False], TypeError, "expected integer labels, got bool"),
        (np.zeros(3), [0], ValueError, "expected logits of shape (N, K), with N and K at least 1, got (3,)"),
        (np.zeros((0, 3)), np.zeros(0, int), ValueError, "with N and K at least 1, got (0, 3)"),
        (np.zeros((2, 3)), [0, 1, 2], ValueError, "expected labels of shape (2,), one per row of logits, got (3,)"),
        (np.zeros((2, 3)), [[0], [1]], ValueError, "expected labels of shape (2,), one per row of logits, got (2, 1)"),
        (np.zeros((2, 3)), [0, 3], ValueError, "expected labels from 0 to 2, one of 3 logits, got 3 at index 1"),
        (np.zeros((2, 3)), [-1, 5], ValueError, "expected labels from 0 to 2, one of 3 logits, got -1 at index 0"),
    ],
)
def test_loss_refuses(logits, labels, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        softmax_cross_entropy(logits, np.asarray(labels))


# -- optimisers


def network(seed=0, dtype=np.float64, features=5, classes=3):
    rng = np.random.default_rng(seed)
    return Sequential(
        Linear(features, 8, bias=False, rng=rng, dtype=dtype),
        BatchNorm1d(8, dtype=dtype),
        ReLU(),
        Linear(8, classes, rng=rng, dtype=dtype),
    )


def torch_twin(model):
    twin = torch.nn.Sequential(
        torch.nn.Linear(5, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ).double()
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})
    return twin


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.1}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.05}),
        (SGD, torch.optim.SGD, {"lr": 0.03, "momentum": 0.5, "weight_decay": 0.05}),
        (Adam, torch.optim.Adam, {}),
        (Adam, torch.optim.Adam, {"lr": 0.05, "betas": (0.5, 0.7), "eps": 0.1, "weight_decay": 0.05}),
    ],
    ids=lambda value: value.__module__ if isinstance(value, type) else str(value),
)
def test_optimizer_agrees_with_torch_over_ten_steps(ours, theirs, options, rng):
    model = network()
    twin = torch_twin(model)
    optimizer, expected = ours(model, **options), theirs(twin.parameters(), **options)
    start = model.state_dict()
    for _ in range(10):
        x, labels = rng.standard_normal((6, 5)), rng.integers(0, 3, 6)
        loss, dlogits = softmax_cross_entropy(model(x), labels)
        model.backward(dlogits)
        optimizer.step()
        expected.zero_grad()
        expected_loss = torch.nn.functional.cross_entropy(twin(torch.tensor(x)), torch.tensor(labels))
        expected_loss.backward()
        expected.step()
        assert loss == pytest.approx(expected_loss.item(), rel=1e-9)
        for name, tensor in twin.state_dict().items():
            np.testing.assert_allclose(model.state_dict()[name], tensor.numpy(), rtol=1e-9, atol=1e-11, err_msg=name)
    for name, array in model.parameters().items():
        assert not np.array_equal(array, start[name]), name


@pytest.mark.parametrize("make", [lambda model: SGD(model, 0.1, 0.9, 0.01), lambda model: Adam(model)])
def test_optimizer_changes_parameters_in_place_and_keeps_their_dtype(make, rng):
    model = network(dtype=np.float32)
    held = model.parameters()
    before = {name: array.copy() for name, array in held.items()}
    optimizer = make(model)
    model.backward(model(rng.standard_normal((4, 5))))
    optimizer.step()
    for name, array in model.parameters().items():
        assert array is held[name]
        assert array.dtype == np.float32
        assert not np.array_equal(array, before[name])


def test_no_decay_leaves_an_infinite_parameter_infinite(rng):
    # 0 * inf would be NaN, where PyTorch takes nothing
    model = Linear(1, 1, rng=rng, dtype=np.float64)
    model.bias[...] = np.inf
    optimizer = SGD(model, 0.1)
    model(np.ones((1, 1)))
    model.backward(np.ones((1, 1)))
    optimizer.step()
    assert model.bias == np.inf


def test_step_without_gradients(rng):
    model = Sequential(Linear(2, 2, rng=rng), BatchNorm1d(2))
    optimizer = SGD(model, 0.1)
    model[1](np.eye(2)), model[1].backward(np.eye(2))
    before = model.state_dict()
    with pytest.raises(
        RuntimeError, match=re.escape("a gradient for every parameter, got none for 0.weight, 0.bias; call backward")
    ):
        optimizer.step()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: SGD(m, -0.1), "expected a learning rate lr >= 0, got -0.1"),
        (lambda m: Adam(m, float("nan")), "expected a learning rate lr >= 0, got nan"),
        (lambda m: SGD(m, 0.1, momentum=-1), "expected momentum >= 0, got -1"),
        (lambda m: SGD(m, 0.1, weight_decay=-1), "expected weight_decay >= 0, got -1"),
        (lambda m: Adam(m, betas=(0.9, 1.0)), "expected both betas from 0 to below 1, got (0.9, 1.0)"),
        (lambda m: Adam(m, eps=-1), "expected eps >= 0, got -1"),
    ],
)
def test_optimizer_refuses(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(network())


# -- fit and evaluate


def blobs(n, seed, dtype=np.float64):
    """Three well separated classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    centres = np.random.default_rng(99).standard_normal((3, 5)) * 3
    return (centres[y] + rng.standard_normal((n, 5))).astype(dtype), y


def train(seed=0, model=None, **options):
    model = model or network()
    options = {"epochs": 2, "batch_size": 16, "seed": seed, "progress": False, **options}
    data = options.pop("data", blobs(100, 1))
    return model, fit(model, data, options.pop("optimizer", None) or SGD(model, 0.1), **options)


def test_fit_learns():
    model = network()
    before, _ = evaluate(model, blobs(200, 2))
    _, history = train(model=model, epochs=6, validation=blobs(60, 3))
    loss, accuracy = evaluate(model, blobs(200, 2))
    assert accuracy > 0.95
    assert loss < before / 3
    assert np.mean(history.loss[-7:]) < np.mean(history.loss[:7]) / 3
    assert len(history.loss) == 6 * 7  # 100 samples: six batches of 16 and one of 4
    assert len(history.validation_loss) == len(history.validation_accuracy) == history.epochs == 6
    assert not history.interrupted
    assert not history.diverged


def test_fit_takes_images_and_float32(rng):
    x, y = blobs(40, 1, np.float32)
    model = Sequential(Flatten(), network(dtype=np.float32))
    _, history = train(model=model, data=(x.reshape(40, 1, 1, 5), y), epochs=1)
    assert len(history.loss) == 3
    assert model.parameters()["1.0.weight"].dtype == np.float32


def test_fit_is_what_one_would_write_by_hand():
    model, by_hand = network(), network()
    x, y = blobs(20, 1)
    _, history = train(seed=5, model=model, data=(x, y), epochs=2, batch_size=8)
    optimizer, shuffle, losses = SGD(by_hand, 0.1), np.random.default_rng(5), []
    for _ in range(2):
        order = shuffle.permutation(20)
        for batch in (order[:8], order[8:16], order[16:]):
            loss, dlogits = softmax_cross_entropy(by_hand(x[batch]), y[batch])
            by_hand.backward(dlogits)
            optimizer.step()
            losses.append(loss)
    assert history.loss == losses
    for name, array in by_hand.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], array)


def test_same_seed_same_bits_and_another_seed_others():
    first, second, other = train(seed=3), train(seed=3), train(seed=4)
    assert first[1] == second[1]
    assert first[1].loss != other[1].loss
    for name, array in first[0].state_dict().items():
        np.testing.assert_array_equal(array, second[0].state_dict()[name])
    assert train(seed=np.random.default_rng(3))[1] == first[1]


def test_validation_is_in_evaluation_mode_and_changes_nothing():
    with_validation, without = train(validation=blobs(30, 3)), train()
    assert with_validation[1].loss == without[1].loss
    assert without[1].validation_loss == without[1].validation_accuracy == []
    for name, array in with_validation[0].state_dict().items():
        np.testing.assert_array_equal(array, without[0].state_dict()[name])
    loss, accuracy = evaluate(with_validation[0], blobs(30, 3))
    assert with_validation[1].validation_loss[-1] == loss
    assert with_validation[1].validation_accuracy[-1] == accuracy


def test_callback_after_each_step():
    seen = []

    def watch(model, history):
        assert model.training
        seen.append((len(history.loss), int(model[1].num_batches_tracked)))

    train(callback=watch, epochs=1)
    assert seen == [(i, i) for i in range(1, 8)]


def test_no_epochs_is_no_training():
    model, history = train(epochs=0, validation=blobs(30, 3))
    assert history == History()
    np.testing.assert_array_equal(model[0].weight, network()[0].weight)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("n", "steps"), [(17, (3, 2)), (16, (2, 2)), (15, (2, 1))])
def test_last_short_batch(n, steps, drop_last):
    model = Sequential(Linear(5, 3, rng=np.random.default_rng(0)))
    _, history = train(model=model, data=blobs(n, 1), batch_size=8, epochs=1, drop_last=drop_last)
    assert len(history.loss) == steps[drop_last]


def test_last_batch_of_one_sample_says_what_to_do():
    with pytest.raises(
        ValueError, match=re.escape("got input size (1, 8): use a larger batch, drop a last batch of one")
    ):
        train(data=blobs(17, 1), batch_size=8)
    _, history = train(data=blobs(17, 1), batch_size=8, drop_last=True)
    assert len(history.loss) == 4


def test_modes_are_restored_layer_by_layer():
    model = network()
    modes = [True, True, False, True, False]

    def set_modes():
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training

    def assert_modes():
        assert [module.training for module in model.modules()] == modes

    set_modes()
    train(model=model, validation=blobs(30, 3))
    assert_modes()
    evaluate(model, blobs(30, 3))
    assert_modes()
    with pytest.raises(ValueError, match="expected x of shape"):
        evaluate(model, (np.zeros((3, 4)), np.zeros(3, int)))
    assert_modes()
    with pytest.raises(ValueError, match="expected x of shape"):
        train(model=model, data=(np.zeros((3, 4)), np.zeros(3, int)))
    assert_modes()


def test_evaluate_weighs_every_sample_alike():
    model, data = train()[0], blobs(23, 2)
    model.eval()
    logits = model(data[0])
    expected = softmax_cross_entropy(logits, data[1])[0], (logits.argmax(axis=1) == data[1]).mean()
    for batch_size in [1, 5, 23, 256]:
        assert evaluate(model, data, batch_size) == pytest.approx(expected, rel=1e-12)
    assert 0 < expected[1] <= 1


@pytest.mark.parametrize("raises", [True, False], ids=["KeyboardInterrupt in the callback", "Ctrl-C during a step"])
def test_interrupt_returns_what_is_done(raises, capsys):
    model = network()
    handler = signal.getsignal(signal.SIGINT)

    class Interrupting(SGD):
        """Ctrl-C in the middle of the third update."""

        def _change(self, name, grad):
            if not raises and self.steps == 3 and name == "1.weight":
                signal.raise_signal(signal.SIGINT)
            return super()._change(name, grad)

    def callback(model, history):
        if raises and len(history.loss) == 3:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner may have its own
    try:
        _, history = train(model=model.eval(), optimizer=Interrupting(model, 0.1), callback=callback)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert history.interrupted
    assert history.epochs == 0
    assert not model.training
    whole = []

    def keep(model, history):
        whole.append(model.state_dict())

    _, expected = train(callback=keep)
    assert history.loss == expected.loss[:3]
    for name, array in model.state_dict().items():  # the third step was finished, no fourth begun
        np.testing.assert_array_equal(array, whole[2][name], err_msg=name)
    assert not capsys.readouterr().out


def test_a_second_interrupt_does_not_wait():
    model = network()
    handler = signal.getsignal(signal.SIGINT)

    class Interrupting(SGD):
        def _change(self, name, grad):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _, history = train(model=model, optimizer=Interrupting(model, 0.1))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert history.interrupted
    assert len(history.loss) == 1


@pytest.mark.parametrize("epochs", [1, 5])
def test_an_interrupt_during_validation_is_not_lost(epochs):
    handler = signal.getsignal(signal.SIGINT)

    class Interrupting(Layer):
        def forward(self, x):
            if not self.training:
                signal.raise_signal(signal.SIGINT)
            return x

        def backward(self, dy):
            return dy

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _, history = train(model=Sequential(network(), Interrupting()), validation=blobs(30, 3), epochs=epochs)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert history.interrupted
    assert history.epochs == len(history.validation_loss) == 1
    assert len(history.loss) == 7  # and no step more


def test_someone_elses_handler_is_left_alone():
    handler, seen = signal.getsignal(signal.SIGINT), []

    def theirs(number, frame):
        seen.append(number)

    signal.signal(signal.SIGINT, theirs)
    try:
        _, history = train(callback=lambda model, history: signal.raise_signal(signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is theirs
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(seen) == len(history.loss) == 14
    assert not history.interrupted


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_it_before_the_update(bad, capsys):
    model = Sequential(Linear(5, 3, rng=np.random.default_rng(0), dtype=np.float64))
    x, y = blobs(40, 1)
    x[np.random.default_rng(0).permutation(40)[20]] = bad  # in the third batch of eight
    before = []
    with np.errstate(invalid="ignore"):
        _, history = train(
            model=model, data=(x, y), batch_size=8, callback=lambda m, h: before.append(m.state_dict()), seed=0
        )
    assert history.diverged
    assert not history.interrupted
    assert len(history.loss) == 3
    assert not math.isfinite(history.loss[-1])
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[1][name])


def test_an_infinite_loss_ends_it_too():
    model = Sequential(Linear(5, 3, rng=np.random.default_rng(0)))
    model[0].bias[0] = -np.inf  # the first class is impossible, and there are samples of it
    _, history = train(model=model)
    assert history.diverged
    assert history.loss == [np.inf]


def test_progress_bar_and_why_it_ended(capsys):
    pytest.importorskip("tqdm")
    train(progress=True)
    out, err = capsys.readouterr()
    assert "14/14" in err
    assert "epoch 2, loss 0." in err
    assert not out

    def stop(model, history):
        raise KeyboardInterrupt

    train(progress=True, callback=stop)
    assert capsys.readouterr().out == "fit ended in step 1, after 0 of 2 epochs: interrupted\n"

    x, y = blobs(40, 1)
    train(model=Sequential(Linear(5, 3, rng=np.random.default_rng(0))), data=(x * np.nan, y), progress=True)
    assert capsys.readouterr().out == "fit ended in step 1, after 0 of 2 epochs: the loss is nan, try a smaller lr\n"


def test_no_bar_without_progress_or_without_tqdm(monkeypatch, capsys):
    expected = train(progress=False)[1]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert train(progress=True)[1] == expected
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"data": (np.zeros((0, 5)), np.zeros(0, int))},
            "training data with as many labels as samples, at least one, got",
        ),
        ({"data": (np.zeros((4, 5)), np.zeros(3, int))}, "labels as samples, at least one, got 4 samples and 3 labels"),
        ({"epochs": -1}, "expected epochs >= 0 and batch_size >= 1, got -1 and 16"),
        ({"batch_size": 0}, "expected epochs >= 0 and batch_size >= 1, got 2 and 0"),
        ({"batch_size": 101, "drop_last": True}, "expected at least one full batch of 101, got 100 samples; lower"),
        ({"optimizer": SGD(network(), 0.1)}, "expected the optimizer of this model, got that of another; make one"),
        (
            {"validation": (np.zeros((4, 5)), np.zeros(3, int))},
            "expected validation data with as many labels as samples, at least one, got 4 samples and 3 labels",
        ),
    ],
)
def test_fit_refuses_before_it_begins(options, message):
    model = network()
    with pytest.raises(ValueError, match=re.escape(message)):
        train(model=model, **options)
    assert model[1].num_batches_tracked == 0


def test_evaluate_refuses():
    with pytest.raises(ValueError, match=re.escape("expected evaluation data with as many labels as samples")):
        evaluate(network(), (np.zeros((0, 5)), np.zeros(0, int)))
    with pytest.raises(ValueError, match="expected batch_size >= 1, got 0"):
        evaluate(network(), blobs(5, 1), batch_size=0)
