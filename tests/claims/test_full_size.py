"""Full-size experiments, at a small size: what they keep, and how their records are written."""

from __future__ import annotations

import json
import runpy
from functools import partial

import numpy as np
import pytest

from bnlearn import datasets
from bnlearn.claims import full_size
from bnlearn.lab import MLP, Outcome

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
