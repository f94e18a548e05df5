"""What a sweep keeps, and what it does with what it finds."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bnlearn.claims import judge
from bnlearn.lab import MLP, Arm, BatchNorm, Data, Outcome, Probe, Sweep, Task, cosine, probes, run, sorted_by_class
from bnlearn.lab import store as store_module
from bnlearn.lab.store import Store, fingerprint

HERE = Path(__file__).parent
VALUES = {"loss": np.array([[1.0, np.nan]], np.float32), "a probe": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(HERE)
    import elsewhere

    elsewhere.calls.clear()
    yield elsewhere
    del sys.modules["elsewhere"]


def sweep_of(**changes: Any) -> Sweep:
    arms = (Arm("bn", MLP((64, 8, 10), norm=BatchNorm())), Arm("none", MLP((64, 8, 10))))
    given = {"grid": {"lr": (0.1, 0.2)}, "seeds": (0,), "steps": 2, "batch_size": 16, "at_once": 1}
    return Sweep(**{"arms": arms, "probes": (Probe("test", probes.accuracy),), **given, **changes})


def same(a: dict[str, Outcome], b: dict[str, Outcome]) -> bool:
    return a.keys() == b.keys() and all(
        a[arm].values.keys() == b[arm].values.keys()
        and all(a[arm][name].tobytes() == b[arm][name].tobytes() for name in a[arm].values)
        for arm in a
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "down")
    assert store.load("name") is None
    store.save("name", VALUES)
    found = store.load("name")
    assert found is not None
    assert found.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value)
    assert [path.name for path in store.folder.iterdir()] == ["name.record"]


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "name.record"
    store.save("name", VALUES)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in (0, 10, 64, 65, len(whole) // 2, len(whole) - 1)]
    for place in range(0, len(whole), 7):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=r"name.record is damaged: its checksum.*its task is run again"):
            assert store.load("name") is None
    path.write_bytes(whole)
    assert store.load("name") is not None


def test_a_record_of_another_task_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("other", VALUES)
    (tmp_path / "other.record").rename(tmp_path / "name.record")
    with pytest.warns(UserWarning, match="name.record belongs to another task, other; its task is run again"):
        assert store.load("name") is None


def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "name.record").mkdir()
    with pytest.warns(UserWarning, match=r"name.record cannot be read \(.+\); its task is run again"):
        assert Store(tmp_path).load("name") is None


def test_a_record_that_cannot_be_written_leaves_the_old_one_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.save("name", VALUES)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save("name", {"loss": np.zeros((1, 1), np.float32)})
    found = store.load("name")
    assert found is not None
    assert found.keys() == VALUES.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["name.record"]


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "file"
    place.write_text("")
    monkeypatch.setattr("bnlearn.lab.sweep.train", None)
    monkeypatch.setattr("bnlearn.lab.sweep.rehearse", None)
    with pytest.raises(OSError, match=r"can be written for the store, got .*file \(.+\); nothing was run"):
        run(sweep_of(), place)


def test_a_second_run_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(sweep_of(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr("bnlearn.lab.sweep.train", None)
    monkeypatch.setattr("bnlearn.lab.sweep.rehearse", None)
    assert same(run(sweep_of(), str(tmp_path)), first)


def test_a_damaged_record_is_run_again(tmp_path: Path) -> None:
    first = run(sweep_of(), tmp_path)
    path = sorted(tmp_path.iterdir())[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert same(run(sweep_of(), tmp_path), first)
    assert same(run(sweep_of(), tmp_path), first)


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import elsewhere
from bnlearn.claims import judge
from bnlearn.lab import MLP, Arm, Data, Sweep, run
arm, data = Arm("a", MLP((64, 8, 10))), Data(elsewhere.small)
run(Sweep((arm,), {{"lr": (0.1, 0.2, 0.3, 0.4)}}, (0,), 3, 16, (), data, elsewhere.deadly, 1), {store!r})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_loses_the_task_in_hand(tmp_path: Path, elsewhere: ModuleType) -> None:
    """Which another process goes on from: fingerprints do not depend on the process."""
    arm, data = Arm("a", MLP((64, 8, 10))), Data(elsewhere.small)
    sweep = Sweep((arm,), {"lr": (0.1, 0.2, 0.3, 0.4)}, (0,), 3, 16, (), data, elsewhere.deadly, 1)
    script = SCRIPT.format(here=str(HERE), store=str(tmp_path))
    environment = {**os.environ, "PYTHONHASHSEED": "123", "KILLED_AT": "4"}  # one call is the rehearsal's
    ended = subprocess.run([sys.executable, "-c", script], env=environment, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.record"))) == 2
    resumed = run(sweep, tmp_path)
    assert len(elsewhere.calls) == 1 + 2
    assert same(resumed, run(sweep))


def test_an_interrupted_run_keeps_what_is_done(
    tmp_path: Path, elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERRUPTED_AT", "5")
    sweep = sweep_of(order=elsewhere.deadly)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(sweep, tmp_path)
    assert caught.value.__notes__ == [f"2 of 4 tasks are kept in {tmp_path}; the same call goes on from there"]
    assert len(list(tmp_path.glob("*.record"))) == 2
    monkeypatch.delenv("INTERRUPTED_AT")
    elsewhere.calls.clear()
    resumed = run(sweep, tmp_path)
    assert len(elsewhere.calls) == 2 + 2
    assert same(resumed, run(sweep))


def task_of(**changes: Any) -> Task:
    task = sweep_of().tasks(sweep_of().arms[0])[0]
    return replace(task, **changes)


def test_every_field_of_a_task_tells_it_from_others() -> None:
    task = task_of()
    arm = task.arm
    others = [
        replace(task, data=Data(samples=100)),
        replace(task, data=Data(options=(("seed", np.int64(1)),))),
        replace(task, arm=replace(arm, name="another")),
        replace(task, arm=replace(arm, optimizer="adam")),
        replace(task, arm=replace(arm, knobs=(("momentum", 0.9),))),
        replace(task, arm=replace(arm, schedule=cosine)),
        replace(task, arm=replace(arm, network=replace(arm.network, norm=BatchNorm(eps=1e-4)))),
        replace(task, arm=replace(arm, network=replace(arm.network, norm=None))),
        replace(task, arm=replace(arm, network=Twin((64, 8, 10), norm=BatchNorm()))),
        replace(task, replicas=((0, (("lr", np.nextafter(0.1, 1.0)),)),)),
        replace(task, replicas=((1, (("lr", 0.1),)),)),
        replace(task, steps=3),
        replace(task, batch_size=17),
        replace(task, probes=()),
        replace(task, probes=(Probe("test", probes.loss),)),
        replace(task, probes=(Probe("test", probes.accuracy, options=(("training", True),)),)),
        replace(task, order=sorted_by_class),
    ]
    names = [fingerprint(each) for each in [task, *others]]
    assert len(set(names)) == len(names)
    assert fingerprint(task_of()) == names[0]


@dataclass(frozen=True)
class Twin(MLP):
    """An MLP by another name."""


def test_numbers_of_numpy_are_as_good_as_python_s() -> None:
    assert fingerprint(task_of(replicas=((np.int64(0), (("lr", np.float64(0.1)),)),))) == fingerprint(task_of())
    assert fingerprint(task_of(replicas=((0, [("lr", 0.1)]),))) == fingerprint(task_of())


def test_other_code_is_another_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    own, beside = tmp_path / "own_order.py", tmp_path / "beside.py"
    own.write_text("from bnlearn.lab import shuffled\ndef own(*given): return shuffled(*given)\n")
    import own_order

    task, plain = task_of(order=own_order.own), fingerprint(task_of())
    seen = {fingerprint(task)}
    own.write_text("from bnlearn.lab import shuffled\ndef own(*given): return shuffled(*given)[::-1]\n")
    seen.add(fingerprint(task))
    beside.write_text("helper = 1\n")
    seen.add(fingerprint(task))
    assert len(seen) == 3
    assert fingerprint(task_of()) == plain
    monkeypatch.setattr(store_module, "_state", lambda folder: "edited")
    package = store_module._PACKAGE
    monkeypatch.setattr(store_module, "_sources", lambda folder: [package / "lab" / "engine.py"])
    assert fingerprint(task_of()) != plain
    del sys.modules["own_order"]


def test_every_module_of_the_package_counts_and_claims_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    package = store_module._PACKAGE
    names = {path.relative_to(package).as_posix() for path in store_module._sources(package)}
    assert {"_arrays.py", "datasets.py", "lab/engine.py", "lab/norms.py", "functional/batch.py"} <= names
    assert not any(name.startswith("claims") for name in names)
    digested: list[str] = []
    monkeypatch.setattr(store_module, "_digest", lambda folder, state: digested.append(folder.name) or folder.name)
    fingerprint(task_of())
    fingerprint(task_of(order=judge))
    assert sorted(digested) == ["bnlearn", "bnlearn", "claims"]


def test_other_versions_are_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(task_of())
    asked = []
    monkeypatch.setattr(store_module, "version", lambda name: asked.append(name) or "1.0")
    assert fingerprint(task_of()) != before
    assert asked == ["numpy", "torch", "scikit-learn"]


def test_functions_typed_into_a_notebook_count_by_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    names = []
    for body in ("return shuffled(*given)", "return shuffled(*given)[::-1]"):
        source = f"def own(*given):\n    {body}\n"
        exec(compile(source, "<cell>", "exec"), notebook.__dict__)
        monkeypatch.setattr(store_module.inspect, "getsource", lambda what, text=source: text)
        names.append(fingerprint(task_of(order=notebook.own)))
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda *given: sorted_by_class(*given), "from the top of a module, got .*<lambda>: its name can mean others"),
        (io.StringIO(), "expected plain values, dataclasses, and functions .*StringIO.*run it without a store"),
    ],
)
def test_what_has_no_name_cannot_be_stored(tmp_path: Path, order: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(sweep_of(order=order), tmp_path)


def test_a_sweep_without_names_runs_without_a_store() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(sweep_of(order=lambda *given: sorted_by_class(*given)))
