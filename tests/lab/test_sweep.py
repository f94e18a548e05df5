"""Sweeps: what they run, what they give, where, and what they refuse."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from logging import CRITICAL
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pytest
import torch

from bnlearn.lab import MLP, Arm, BatchNorm, Data, Outcome, Probe, Sweep, probes, run, train

HERE = Path(__file__).parent
ARMS = (
    Arm("bn", MLP((64, 8, 10), norm=BatchNorm()), knobs=(("momentum", 0.5),)),
    Arm("none", MLP((64, 8, 10))),
)
GRID = {"lr": (0.5, 0.25), "init_scale": (1.0, 2.0, 4.0)}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(HERE)
    import elsewhere

    elsewhere.calls.clear()
    yield elsewhere
    del sys.modules["elsewhere"]


def sweep_of(**changes: Any) -> Sweep:
    given = {"grid": GRID, "seeds": (4, 2), "steps": 3, "batch_size": 16, "at_once": 5}
    return Sweep(**{"arms": ARMS, "probes": (Probe("test", probes.accuracy, at=(0, -1)),), **given, **changes})


def test_every_arm_is_run_at_every_point_with_every_seed() -> None:
    sweep = sweep_of()
    outcomes = run(sweep)
    assert list(outcomes) == ["bn", "none"]
    for arm in ARMS:
        outcome = outcomes[arm.name]
        assert outcome.seeds == (4, 2)
        assert [tuple(point.values()) for point in outcome.points] == [
            (lr, scale) for lr in GRID["lr"] for scale in GRID["init_scale"]
        ]
        assert outcome["loss"].shape == (6, 2, 3)
        assert outcome["test"].shape == (6, 2, 2)
        for i, point in enumerate(sweep.points):
            for j, seed in enumerate(sweep.seeds):
                (task, *_) = sweep_of(arms=(arm,), grid={k: (v,) for k, v in point}, seeds=(seed,)).tasks(arm)
                alone = train(task)
                np.testing.assert_allclose(outcome["loss"][i, j], alone["loss"][0], rtol=1e-6, atol=1e-6)
                np.testing.assert_array_equal(outcome["test"][i, j], alone["test"][0])


def test_tasks_hold_at_most_so_many_replicas() -> None:
    tasks = sweep_of().tasks(ARMS[0])
    assert [len(task.replicas) for task in tasks] == [5, 5, 2]
    replicas = [replica for task in tasks for replica in task.replicas]
    assert replicas[:3] == [
        (4, (("lr", 0.5), ("init_scale", 1.0))),
        (2, (("lr", 0.5), ("init_scale", 1.0))),
        (4, (("lr", 0.5), ("init_scale", 2.0))),
    ]
    assert len(set(replicas)) == 12


def test_no_grid_is_one_point() -> None:
    arm = Arm("a", MLP((64, 8, 10)), knobs=(("lr", 0.5),))
    assert run(sweep_of(arms=(arm,), grid={}))["a"]["loss"].shape == (1, 2, 3)


def equal(a: dict[str, Outcome], b: dict[str, Outcome], names: tuple[str, ...]) -> bool:
    return all(a[arm][name].tobytes() == b[arm][name].tobytes() for arm in a for name in names)


def test_a_cluster_gives_bit_for_bit_what_one_process_gives(elsewhere: ModuleType, tmp_path: Path) -> None:
    """Two processes of Dask's, each of which is neither this one nor the other."""
    distributed = pytest.importorskip("distributed")
    watched = (Probe("test", probes.accuracy), Probe("process", elsewhere.process))
    sweep = sweep_of(probes=watched, at_once=2, data=Data(elsewhere.small))
    here = run(sweep)
    assert {float(os.getpid())} == {value for arm in here.values() for value in arm["process"].ravel()}
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, silence_logs=CRITICAL) as cluster,
        distributed.Client(cluster) as client,
    ):
        workers = {float(process) for process in client.run(os.getpid).values()}
        with joblib.parallel_config(backend="dask"):
            there = run(sweep, tmp_path)
    assert equal(here, there, ("loss", "test"))
    seen = {value for arm in there.values() for value in arm["process"].ravel()}
    assert len(workers) == 2
    assert seen == workers
    assert os.getpid() not in seen
    assert len(list(tmp_path.iterdir())) == 12
    assert equal(run(sweep, tmp_path), there, ("loss", "test", "process"))


def test_each_task_uses_one_thread_and_the_number_is_put_back(elsewhere: ModuleType) -> None:
    torch.set_num_threads(2)
    sweep = sweep_of(probes=(Probe("threads", elsewhere.threads),))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        outcomes = run(sweep)
    assert {value for arm in outcomes.values() for value in arm["threads"].ravel()} == {1.0}
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError):
        run(sweep_of(arms=(Arm("a", MLP((64, 8, 10), dropout=True)),)))
    assert torch.get_num_threads() == 2


def test_the_bar_counts_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = sweep_of(arms=ARMS[:1])
    run(first, tmp_path, progress=True)
    assert " 12/12 " in capsys.readouterr().err
    run(sweep_of(), tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "  0/24 " not in shown
    assert " 12/24 " in shown
    assert " 24/24 " in shown
    run(sweep_of())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ()}, r"arms with different names, at least one, got \[\]"),
        ({"arms": (ARMS[0], ARMS[0])}, r"different names, at least one, got \['bn', 'bn'\]"),
        ({"seeds": ()}, r"seeds that differ, at least one, none negative, got \(\)"),
        ({"seeds": (1, 1)}, r"seeds that differ, at least one, none negative, got \(1, 1\)"),
        ({"seeds": (1, -1)}, r"none negative, got \(1, -1\)"),
        ({"steps": 0}, "steps to be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size to be at least 1, got 0"),
        ({"at_once": 0}, "at_once to be at least 1, got 0"),
        (
            {"grid": {"lr": (0.1,), "momentum": ()}},
            "at least one value for each knob of the grid, got none for momentum",
        ),
        ({"probes": (Probe("loss", probes.loss),)}, r"none of them 'loss' \(every step's\), got \['loss'\]"),
        ({"probes": (Probe("a", probes.loss), Probe("a", probes.loss))}, r"different names, .* got \['a', 'a'\]"),
    ],
)
def test_a_sweep_that_makes_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_of(**change)


@pytest.mark.parametrize(
    ("change", "arm", "message"),
    [
        ({"batch_size": 1198}, "bn", "batch_size from 1 to 1197, the training samples, got 1198"),
        ({"grid": {}}, "bn", "expected a knob 'lr' from the arm 'bn' or the grid, got .'momentum'."),
        ({"arms": (*ARMS, Arm("drop", MLP((64, 8, 10), dropout=True)))}, "drop", "expected a knob 'dropout'"),
        (
            {"probes": (Probe("p", probes.accuracy, options=(("part", "trian"),)),)},
            "bn",
            "expected a part among train, validation, test, got 'trian'",
        ),
        (
            {"probes": (Probe("p", probes.effective_rank, options=(("trace", "7.out"),)),)},
            "bn",
            "expected a trace among 0.linear, 0.normed, 0.out, got '7.out'",
        ),
    ],
)
def test_what_is_wrong_shows_before_anything_is_trained(
    change: dict[str, Any], arm: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bnlearn.lab.sweep.train", None)
    with pytest.raises((ValueError, KeyError), match=message) as caught:
        run(sweep_of(**change))
    assert caught.value.__notes__ == [f"in the arm {arm!r}; nothing was trained"]


def test_a_knob_that_nothing_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"lr": (0.1,), "bn_momentun": (0.1,)}
    arms = (*ARMS, Arm("adam", ARMS[1].network, "adam", (("bn_momentum", 0.1), ("dorpout", 0.1))))
    asked = "which none does; they ask for bn_momentum, init_scale, lr, momentum, weight_decay$"
    with pytest.raises(ValueError, match=f"asks for, got bn_momentun, dorpout, {asked}"):
        run(sweep_of(arms=arms, grid=given))


def test_a_dataset_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="expected a dataset among digits, mnist or a function, got 'cifar'"):
        Data("cifar")


def test_an_error_in_training_is_the_caller_s_and_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(task: Any) -> Any:
        if task.arm.name == "none":
            raise ValueError("it does not work")
        return train(task)

    monkeypatch.setattr("bnlearn.lab.sweep.train", failing)
    with pytest.raises(ValueError, match="it does not work") as caught:
        run(sweep_of(), tmp_path)
    assert caught.value.__notes__ == [f"3 of 6 tasks are kept in {tmp_path}; the same call goes on from there"]
    with pytest.raises(ValueError, match="it does not work") as caught:
        run(sweep_of())
    assert not hasattr(caught.value, "__notes__")


POINTS = ({"lr": 1.0, "a": 1.0}, {"lr": 2.0, "a": 1.0}, {"lr": 3.0, "a": 2.0})


def outcome_of(*last: tuple[float, float]) -> Outcome:
    """Three points, two seeds, two times, of which the first would mislead."""
    values = np.array([[[-v, v] for v in point] for point in last], np.float32)
    return Outcome(POINTS, (0, 1), {"validation": values, "many": values[..., None]})


def test_the_best_point_is_that_of_the_best_mean_at_the_end() -> None:
    outcome = outcome_of((0.5, 0.6), (0.2, 0.8), (0.9, 0.3))
    assert outcome.best() == 2
    assert outcome.best("validation", largest=False) == 1
    assert outcome.best(among={"a": 1.0}) == 0
    assert outcome.best(among={"a": 1.0, "lr": 2.0}) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_worst(bad: float) -> None:
    outcome = outcome_of((bad, 1.0), (0.2, 0.3), (bad, bad))
    assert outcome.best() == 1
    assert outcome.best(largest=False) == 1
    assert outcome.best(among={"lr": 3.0}) == 2


def test_where_a_point_is() -> None:
    outcome = outcome_of((0, 0), (0, 0), (0, 0))
    assert outcome.where(lr=2.0) == 1
    assert outcome.where(a=2.0) == 2
    with pytest.raises(ValueError, match=r"exactly one point, got \{'a': 1.0\}, which fits 2"):
        outcome.where(a=1.0)
    with pytest.raises(ValueError, match=r"exactly one point, got \{'b': 1.0\}, which fits 0"):
        outcome.where(b=1.0)


def test_what_an_outcome_has_not() -> None:
    outcome = outcome_of((0, 0), (0, 0), (0, 0))
    with pytest.raises(KeyError, match="expected a record among validation, many, got 'test'"):
        outcome["test"]
    with pytest.raises(ValueError, match=r"one number at each time, got 'many' of shape \(3, 2, 2, 1\)"):
        outcome.best("many")
    with pytest.raises(ValueError, match=r"knobs of at least one point, got \{'a': 9.0\}; there are .*'lr': 3.0"):
        outcome.best(among={"a": 9.0})
