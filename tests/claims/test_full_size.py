"""Full-size experiments, at a small size: what they keep, and how their records are written."""

from __future__ import annotations

import json
import runpy
from functools import partial

import numpy as np
import pytest

from bnlearn import datasets
from bnlearn.claims import full_size
from bnlearn.lab import MLP, BatchNorm, GroupNorm, LayerNorm, Outcome

NAME = "ioffe_figure_1"


def small(seeds=2, steps=3):
    network = MLP(sizes=(64, 8, 10), activation="sigmoid")
    return full_size.ioffe_figure_1(
        steps=steps, seeds=seeds, rates=(0.1, 2.0), source=datasets.load_digits, network=network
    )


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(full_size, "EXPERIMENTS", {NAME: small})


def test_pixels_are_binary_by_their_grey_level(monkeypatch):
    grey = np.array([[0.0, 127.0, 128.0, 255.0]])
    part = datasets.Part(((grey - 33.0) / 78.0).astype(np.float32), np.array([3]))
    loaded = datasets.Dataset(part, part, part, 33.0, 78.0, "small")
    monkeypatch.setattr(datasets, "load_mnist", lambda *, seed, flat: loaded)
    found = full_size.binary_mnist()
    for name in ("train", "validation", "test"):
        x, y = getattr(found, name)
        assert x.dtype == np.float32
        assert x.tolist() == [[0, 0, 1, 1]]
        assert y.tolist() == [3]


def test_every_arm_and_rate_is_kept(monkeypatch):
    def ran(sweep):
        shape = (len(sweep.grid["lr"]), len(sweep.seeds), len(sweep.probes[0].at))
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        points = tuple({"lr": rate} for rate in sweep.grid["lr"])
        return {arm.name: Outcome(points, sweep.seeds, {"test": values + 100 * place})
                for place, arm in enumerate(sweep.arms)}  # fmt: skip

    monkeypatch.setattr(full_size, "run", ran)
    found = small(steps=600)
    assert found["steps"] == [0, 500, 600]
    assert found["test"] == {
        "none": {"0.1": [[0, 1, 2], [3, 4, 5]], "2": [[6, 7, 8], [9, 10, 11]]},
        "bn": {"0.1": [[100, 101, 102], [103, 104, 105]], "2": [[106, 107, 108], [109, 110, 111]]},
    }


def test_the_papers_curves_fit_their_steps():
    assert len(full_size.IOFFE_READ["steps"]) == len(full_size.IOFFE_READ["none"]) == len(full_size.IOFFE_READ["bn"])


def compared(seeds):
    return full_size.keras_comparison(epochs=2, seeds=seeds, batch_size=100, source=datasets.load_digits)


@pytest.fixture
def own_determinism():
    """TensorFlow's switch is of the whole process: the tests that follow find it as it was."""
    config = pytest.importorskip("tensorflow.python.framework.config")
    before = config.is_op_determinism_enabled()
    yield
    if not before:
        config.disable_op_determinism()


@pytest.mark.usefixtures("own_determinism")
def test_keras_gives_every_curve_of_the_tutorials_models(monkeypatch):
    keras = pytest.importorskip("keras")
    models, real = [], keras.Sequential
    monkeypatch.setattr(keras, "Sequential", lambda layers: models.append(real(layers)) or models[-1])
    found = compared(seeds=2)

    assert (found["epochs"], found["seeds"], found["batch_size"]) == (2, 2, 100)
    assert found["keras"] == {"version": keras.__version__, "backend": "tensorflow"}
    for kept in found["curves"].values():
        assert list(kept) == ["accuracy", "loss", "val_accuracy", "val_loss", "test_accuracy"]
        assert [np.shape(values) for values in kept.values()] == [(2, 2)] * 4 + [(2,)]
        assert kept["loss"][0] != kept["loss"][1]  # the seeds differ
        assert np.all(np.diff(kept["loss"]) < 0)

    layers = [[(type(layer).__name__, layer.output.shape[-1]) for layer in model.layers] for model in models]
    plain = [("Dense", 128), ("Dense", 64), ("Dense", 10)]
    normalised = [(kind, units) for _, units in plain for kind in ("Dense", "BatchNormalization")][:-1]
    assert layers == [plain, plain, normalised, normalised]
    for model in models:
        names = [layer.activation.__name__ for layer in model.layers if type(layer).__name__ == "Dense"]
        assert names == ["relu", "relu", "softmax"]
        assert type(model.optimizer).__name__ == "Adam"
        assert float(model.optimizer.learning_rate) == pytest.approx(0.001)

    again = compared(seeds=1)["curves"]
    for arm, kept in again.items():
        assert kept == {name: values[:1] for name, values in found["curves"][arm].items()}


def test_pixels_for_keras_go_from_0_to_1():
    loaded = datasets.load_digits(flat=True)
    for (x, y), part in zip(
        full_size._from_0_to_1(loaded), (loaded.train, loaded.validation, loaded.test), strict=True
    ):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x * 16, np.rint(part.x * loaded.std + loaded.mean), atol=1e-4)
        assert (y == part.y).all()


def test_every_normaliser_meets_every_batch_size():
    rates = {2: (0.1, 0.2), 8: (0.1,)}
    found = full_size.batch_size_curves(samples=16, seeds=2, rates=rates, source=datasets.load_digits)
    assert (found["sizes"], found["rates"]) == ([2, 8], [[0.1, 0.2], [0.1]])
    assert (found["samples"], found["seeds"]) == (16, 2)
    for arm in ("bn", "ln", "gn", "renorm"):
        assert np.shape(found["test"][arm]) == (2, 2)
        assert [len(row) for row in found["validation"][arm]] == [2, 1]
        assert found["chosen"][arm][1] == 0.1


def test_a_rate_is_chosen_by_validation_and_judged_by_test(monkeypatch):
    sweeps = []

    def ran(sweep):
        sweeps.append(sweep)
        points = tuple({"lr": rate} for rate in sweep.grid["lr"])
        validation, test = np.array([[0.5, 0.75], [0.75, 0.75]]), np.array([[1.0, 1.0], [0.25, 0.5]])
        values = {"validation": validation[:, :, None], "test": test[:, :, None]}
        return {
            arm.name: Outcome(points, sweep.seeds, {k: v * (arm.name == "bn") for k, v in values.items()})
            for arm in sweep.arms
        }

    monkeypatch.setattr(full_size, "run", ran)
    found = full_size.batch_size_curves(samples=100, seeds=2, rates={4: (0.1, 0.3), 10: (1.0, 3.0)})
    assert [(sweep.batch_size, sweep.steps, sweep.grid["lr"]) for sweep in sweeps] == [
        (4, 25, (0.1, 0.3)),
        (10, 10, (1.0, 3.0)),
    ]
    norms = {arm.name: type(arm.network.norm) for arm in sweeps[0].arms}
    assert norms == {"bn": BatchNorm, "ln": LayerNorm, "gn": GroupNorm, "renorm": full_size.BatchRenorm}
    assert found["chosen"]["bn"] == [0.3, 3.0]
    assert found["test"]["bn"] == [[0.25, 0.5]] * 2
    assert found["validation"]["bn"] == [[0.625, 0.75]] * 2
    assert found["test"]["gn"] == [[0.0, 0.0]] * 2


def test_the_papers_errors_fit_their_sizes():
    paper = full_size.WU_READ
    assert len(paper["sizes"]) == len(paper["bn"]) == len(paper["gn"])


@pytest.mark.parametrize("name", full_size.EXPERIMENTS)
def test_every_experiment_has_its_record(name):
    found = full_size.record(name)
    assert found["experiment"] == name
    assert found["command"].endswith(f" {name}")
    assert found["seeds"] >= 3


def test_a_record_is_written_and_read_again(quick, tmp_path, capsys):
    folder = tmp_path / "new"
    assert full_size.main([NAME, "--records", str(folder), "--jobs", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / f"{NAME}.json")
    assert [path.name for path in folder.iterdir()] == [f"{NAME}.json"]
    found = full_size.record(NAME, folder)
    assert found["command"] == f"python -m bnlearn.claims.full_size {NAME}"
    assert found["versions"]["bnlearn"]
    assert found["steps"] == [0, 3]
    assert found["machine"]["processors"] >= 1


def test_a_run_that_fails_leaves_the_old_record(monkeypatch, tmp_path):
    path = tmp_path / f"{NAME}.json"
    path.write_text('{"old": 1}')
    monkeypatch.setattr(full_size, "EXPERIMENTS", {NAME: partial(dict, test=float("nan"))})
    with pytest.raises(ValueError, match="JSON compliant"):
        full_size.make(NAME, tmp_path)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_bad_input_is_named(quick, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"experiment among ioffe_figure_1, got 'ioffe_figure_7'"):
        full_size.record("ioffe_figure_7")
    with pytest.raises(ValueError, match=rf"record of {NAME}, got none at .*; make it: python -m"):
        full_size.record(NAME, tmp_path)
    assert full_size.main(["nothing", "--records", str(tmp_path)]) == 2
    assert "got 'nothing'" in capsys.readouterr().err


def test_it_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["full_size", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(full_size.__file__, run_name="__main__")
    assert "got 'nothing'" in capsys.readouterr().err
