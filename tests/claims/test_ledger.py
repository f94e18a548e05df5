"""Choosing and running claims: each record is written as soon as it is made, and nothing that is made is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from bnlearn.claims import (
    FULL,
    QUICK,
    Entry,
    Scale,
    _ledger,
    as_json,
    as_markdown,
    as_text,
    digest,
    entries,
    ledger,
    record,
    records,
    run,
    select,
)
from bnlearn.claims._ledger import unknown

ROOT = Path(__file__).parents[2]


def go(*names, scale=QUICK, **options):
    known = entries()
    return run([known[name] for name in names or known], scale, **{"jobs": 1, "progress": False} | options)


# --- which claims there are -----------------------------------------------------------------------------------------


def test_the_ledger_gathers_the_themes_in_order(themes):
    themes(own="claim('B10'), claim('B2')", other="claim('A3')", empty="")
    assert list(ledger()) == ["A3", "B2", "B10"]
    assert [entry.module for entry in entries().values()] == ["other_theme", "own_theme", "own_theme"]
    assert entries()["B2"].claim is ledger()["B2"]


def test_one_identifier_is_one_claim(themes):
    themes(own="claim('B2')", other="claim('B2')")
    with pytest.raises(ValueError, match="expected one claim B2, got one in own_theme and in other_theme"):
        ledger()


@pytest.mark.parametrize("library", ["torch", "scipy.stats", "joblib"])
def test_a_missing_library_is_named_with_its_cure(themes, monkeypatch, library):
    themes(own="")

    def missing(module):
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    monkeypatch.setattr(_ledger, "import_module", missing)
    with pytest.raises(ImportError, match=rf"{library} is not installed; .* pip install -e '\.\[evidence\]'"):
        ledger()


def test_an_import_that_fails_otherwise_is_left_alone(monkeypatch):
    monkeypatch.setattr(_ledger, "THEMES", ("bnlearn.claims.nowhere",))
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'bnlearn\.claims\.nowhere'"):
        ledger()


NAMES = ["A1", "A2", "A10", "B2", "C1", "C10", "C2"]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], NAMES),
        (["B2"], ["B2"]),
        (["b2", "a*"], ["A1", "A2", "A10", "B2"]),  # in the order of the ledger
        (["C?"], ["C1", "C2"]),
        (["[AC]1", "A1", "A*"], ["A1", "A2", "A10", "C1"]),
        (["*"], NAMES),
    ],
)
def test_select(patterns, chosen):
    assert select(iter(patterns), iter(NAMES)) == chosen


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("B3", "expected a claim of the ledger or a pattern such as 'C*', got 'B3'; near it: B2"),
        ("xyz", "got 'xyz'; there are: A1, A2, A10, B2, C1, C10, C2"),
    ],
)
def test_a_pattern_that_matches_nothing(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        select(["A1", name], NAMES)


def test_unknown_where_there_is_nothing():
    assert unknown("B2", []).endswith("there are: none")


# --- running them ---------------------------------------------------------------------------------------------------


def test_a_run_gives_records_and_leaves_no_file(themes):
    themes(own="claim('B2'), claim('B1')")
    done = go()
    assert list(done.records) == ["B1", "B2"]
    assert (done.kept, done.failed, done.warnings, done.interrupted) == ([], {}, [], False)
    one = done.records["B2"]
    assert one.scale == QUICK
    assert one.effects["ReLU"].tolist() == [3, 4, 5, 6, 7]
    assert one.digest == digest("own_theme")
    assert one.seconds >= 0


def test_the_records_of_a_folder_are_those_of_the_run(themes, tmp_path):
    themes(own="claim('B2'), claim('B1')")
    done = go(folder=tmp_path / "new" / "records")
    assert list(records(tmp_path / "new" / "records")) == list(done.records) == ["B1", "B2"]
    assert sorted(path.name for path in (tmp_path / "new" / "records").iterdir()) == ["B1.json", "B2.json"]


def test_what_is_up_to_date_is_not_run_again(themes, tmp_path):
    (module,) = themes(own="claim('B2'), claim('B1')")
    go("B2", folder=tmp_path)
    assert module.RUNS == ["B2"]
    done = go(folder=tmp_path)
    assert module.RUNS == ["B2", "B1"]
    assert done.kept == ["B2"]
    assert list(done.records) == ["B1", "B2"]
    assert go(folder=tmp_path).kept == ["B1", "B2"]
    assert go(folder=tmp_path, again=True).kept == []
    assert module.RUNS == ["B2", "B1", "B1", "B2"] or module.RUNS == ["B2", "B1", "B2", "B1"]


def test_another_scale_is_run_again(themes, tmp_path):
    (module,) = themes(own="claim('B2')")
    for scale in (QUICK, Scale(5), Scale(5, steps_at_most=3), FULL):
        assert go(scale=scale, folder=tmp_path).kept == []
    assert len(module.RUNS) == 4
    assert record("B2", tmp_path).scale == FULL


def test_other_code_is_run_again_and_other_words_are_only_written(themes, tmp_path):
    themes(own="claim('B2')")
    assert go(folder=tmp_path).kept == []
    (module,) = themes(setting="MNIST, rather.", own="claim('B2')")
    assert go(folder=tmp_path).kept == ["B2"]
    assert module.RUNS == []
    assert record("B2", tmp_path).setting == "MNIST, rather."
    (module,) = themes(setting="MNIST, rather.", own="claim('B2'), claim('B3')")
    assert go("B2", folder=tmp_path).kept == []
    assert module.RUNS == ["B2"]


def test_a_corrupt_record_is_named_and_made_again(themes, tmp_path):
    themes(own="claim('B2')")
    (tmp_path / "B2.json").write_text('{"id": "B2"', "utf-8")
    done = go(folder=tmp_path)
    assert len(done.warnings) == 1
    assert f"expected the record of claim B2 in {tmp_path / 'B2.json'}, got a file that is not one" in done.warnings[0]
    assert record("B2", tmp_path).verdict == "supported"
    assert go(folder=tmp_path).warnings == []


def test_a_claim_that_fails_leaves_the_others_alone(themes, tmp_path):
    themes(own="claim('B1', broken), claim('B2')")
    done = go(folder=tmp_path)
    assert list(done.records) == ["B2"]
    assert list(done.failed) == ["B1"]
    assert "RuntimeError: B1 is out of order" in done.failed["B1"]
    assert list(records(tmp_path)) == ["B2"]


def test_an_interruption_keeps_what_is_done(themes, tmp_path):
    interrupt = "lambda name, scale: exec('raise KeyboardInterrupt')"
    themes(own=f"claim('B1'), claim('B2', {interrupt}), claim('B3')")
    done = go(folder=tmp_path)
    assert done.interrupted
    assert list(done.records) == list(records(tmp_path)) == ["B1"]


def test_a_process_that_ends_loses_its_own_claims(themes, tmp_path, monkeypatch):
    themes(own="claim('B1'), claim('B2')")
    measure = _ledger.measure

    def killed(module, names, *rest):
        measure(module, names[:1], *rest)
        raise BrokenProcessPool("out of memory")

    monkeypatch.setattr(_ledger, "measure", killed)
    done = go(folder=tmp_path)
    assert list(done.records) == ["B1"]
    assert done.failed == {"B2": "the process that ran it ended: out of memory"}


def test_what_failed_before_a_process_ended_keeps_its_own_error(themes, monkeypatch):
    themes(own="claim('B1')", other="claim('B2')")

    def killed(module, names, *rest):
        if module == "other_theme":
            raise BrokenProcessPool("out of memory")
        return {"B1": "its own error"}

    monkeypatch.setattr(_ledger, "measure", killed)
    assert go().failed == {"B1": "its own error", "B2": "the process that ran it ended: out of memory"}


def test_the_longest_come_first(themes, tmp_path, monkeypatch):
    """As far as is known: what has never run is taken to be of average length."""
    themes(short="claim('B1')", new="claim('B2')", long="claim('B3'), claim('B4')")
    go("B1", "B3", "B4", folder=tmp_path)
    for name, seconds in {"B1": 10, "B3": 8, "B4": 7}.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"seconds": seconds}), "utf-8")
    order = []
    measure = _ledger.measure

    def spy(module, names, *rest):
        order.append((module, list(names)))
        return measure(module, names, *rest)

    monkeypatch.setattr(_ledger, "measure", spy)
    go(folder=tmp_path, again=True)
    assert order == [("long_theme", ["B3", "B4"]), ("short_theme", ["B1"]), ("new_theme", ["B2"])]


def test_the_bar_shows_what_is_done_and_left(themes, capfd):
    themes(own="claim('B1'), claim('B2', broken)")
    go(progress=True)
    out, shown = capfd.readouterr()
    assert out == ""
    assert "1 of 2 claims" in shown
    assert "50 %" in shown
    assert "left]" in shown


@pytest.mark.parametrize(
    ("chosen", "options", "message"),
    [
        ([], {}, "expected at least one claim, got none"),
        ([Entry(None, "x")], {"jobs": 0}, "expected at least 1 process, got 0"),
    ],
)
def test_nothing_to_do(chosen, options, message):
    with pytest.raises(ValueError, match=message):
        run(chosen, **options)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(themes, tmp_path, place):
    (module,) = themes(own="claim('B1')")
    (tmp_path / "file").touch()
    message = rf"expected a folder that can be written, got {tmp_path / place} \(.+\); choose another: --records FOLDER"
    with pytest.raises(OSError, match=message):
        go(folder=tmp_path / place)
    assert module.RUNS == []


def test_two_processes(themes, tmp_path):
    """In an interpreter of its own, as the processes outlive the run; one of them ends on the way."""
    themes(one="claim('B1'), claim('B2')", two="claim('C1'), claim('C2', broken)", gone="claim('D1', gone)")
    code = """
        from bnlearn.claims import _ledger, entries, run, QUICK
        from pathlib import Path
        for themes in (("one_theme", "two_theme"), ("gone_theme", "one_theme")):
            _ledger.THEMES = themes
            known = entries().values()
            done = run(known, QUICK, folder=Path("records"), jobs=2, progress=False, again=True)
            print(*sorted({*done.records, *done.failed}), "failed", *(set(done.failed) & {"C2", "D1"}))
    """
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert result.stdout.splitlines() == ["B1 B2 C1 C2 failed C2", "B1 B2 D1 failed D1"], result.stderr


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(themes):
    themes(own="claim('B1'), claim('B2')")
    return go().records


def test_the_table_as_text(shown):
    lines = as_text(shown, 100).splitlines()
    assert lines[0] == "B1  supported       B1: rates can be | larger."
    assert lines[1] == " " * 20 + "supported: ReLU: ratio: 5 [4, 6]; supports from 2, refutes below 1".replace(
        "[4, 6]", lines[1].split("ratio: 5 ")[1].split(";")[0]
    )
    assert lines[2] == " " * 20 + "supported: formula: largest error: 1e-16; tolerance 1e-10"
    assert lines[-1] == "2 claims: 2 supported"
    narrow = as_text(shown, 60).splitlines()
    assert max(map(len, narrow)) <= 60
    assert narrow[2].startswith(" " * 22)  # what is broken is set in under its beginning
    assert narrow[2][22] != " "
    assert as_text({}).strip() == "0 claims: none"
    assert as_text({"B1": shown["B1"]}).endswith("1 claim: 1 supported")


def test_the_table_as_markdown(shown):
    lines = as_markdown(shown).splitlines()
    assert lines[0] == "| Claim | Verdict | Where | Measured | Seeds | Declared | Shown |"
    assert len(lines) == 2 + 4 + 2
    assert lines[2].startswith(r"| B1: B1: rates can be \| larger. | **supported** | ReLU | ratio: 5 [")
    assert lines[2].endswith("] | 5 | supports from 2, refutes below 1 | supported |")
    assert lines[3] == "| – | – | formula | largest error: 1e-16 | exact | tolerance 1e-10 | supported |"


def test_the_table_as_json(shown):
    rows = json.loads(as_json(shown))
    assert [row["id"] for row in rows] == ["B1", "B2"]
    assert (rows[0]["verdict"], rows[0]["seeds"], rows[0]["sources"]) == ("supported", 5, ["P"])
    ratio, formula = rows[0]["criteria"]
    assert (ratio["name"], ratio["support"], ratio["refute"], ratio["exact"]) == ("ReLU", 2, 1, False)
    assert ratio["estimate"] == 5
    assert 3 <= ratio["low"] < 5 < ratio["high"] <= 7
    assert (formula["estimate"], formula["verdict"], formula["exact"]) == (1e-16, "supported", True)
