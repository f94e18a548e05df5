"""`python -m bnlearn ledger`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bnlearn import __main__ as command
from bnlearn import claims
from bnlearn.claims import _ledger, record, records

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ledger(themes, tmp_path, monkeypatch):
    """Call the command on two cheap claims; the package's own records are a folder of the test's."""
    themes(own="claim('B1'), claim('B2')")
    folder = tmp_path / "shipped"
    monkeypatch.setattr(claims, "RECORDS", folder)
    return lambda *arguments: command.main(["ledger", *arguments, *([] if "--show" in arguments else ["--jobs", "1"])])


def test_the_full_ledger_writes_the_shipped_records(ledger, tmp_path, capsys):
    assert ledger() == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("B1  supported")
    assert captured.out.endswith("2 claims: 2 supported\n")
    assert "2 of 2 claims" in captured.err
    assert captured.err.endswith(f"2 new and 0 up-to-date records in {tmp_path / 'shipped'}\n")
    assert {one.scale.seeds for one in records(tmp_path / "shipped").values()} == {20}
    assert ledger("--only", "B2") == 0
    assert "0 new and 1 up-to-date records" in capsys.readouterr().err
    assert ledger("--only", "B2", "--again") == 0
    assert "1 new and 0 up-to-date records" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--quick"], ["--seeds", "19"], ["--quick", "--seeds", "30"]])
def test_a_first_look_writes_nothing(ledger, tmp_path, capsys, options):
    assert ledger(*options) == 0
    captured = capsys.readouterr()
    assert "2 claims: 2 supported" in captured.out
    assert "records in" not in captured.err
    assert not (tmp_path / "shipped").exists()


def test_a_first_look_is_written_where_it_is_told(ledger, tmp_path):
    assert ledger("--quick", "--records", str(tmp_path / "own"), "--only", "b2") == 0
    one = record("B2", tmp_path / "own")
    assert (one.scale.seeds, one.scale.quick) == (5, True)
    assert list(records(tmp_path / "own")) == ["B2"]
    assert not (tmp_path / "shipped").exists()


def test_more_seeds_are_for_the_shipped_records(ledger, tmp_path):
    assert ledger("--seeds", "21", "--only", "B1") == 0
    assert record("B1", tmp_path / "shipped").scale.seeds == 21


def test_the_command_in_a_record_is_the_one_that_makes_it(ledger, tmp_path):
    for options in (["--quick", "--records", str(tmp_path / "own")], []):
        assert ledger("--only", "B1", *options) == 0
        folder = tmp_path / ("own" if options else "shipped")
        made = record("B1", folder)
        arguments = made.command.removeprefix("python -m bnlearn ledger ").split()
        assert ledger(*arguments, "--again", "--records", str(tmp_path / "again")) == 0
        assert record("B1", tmp_path / "again").scale == made.scale


def test_show_runs_nothing(ledger, capsys, monkeypatch):
    ledger()
    capsys.readouterr()
    monkeypatch.setattr(_ledger, "import_module", None)  # not even imports it
    assert ledger("--show", "--only", "B2", "--json") == 0
    captured = capsys.readouterr()
    assert [row["id"] for row in json.loads(captured.out)] == ["B2"]
    assert captured.err == ""
    assert ledger("--show", "--markdown") == 0
    assert capsys.readouterr().out.startswith("| Claim |")


def test_show_where_there_is_nothing(ledger, capsys):
    assert ledger("--show") == 0
    assert capsys.readouterr().out.strip() == "0 claims: none"


def test_only_the_table_is_on_standard_output(ledger, capsys):
    assert ledger("--quick", "--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["B1", "B2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "B3"], "expected a claim of the ledger or a pattern such as 'C*', got 'B3'; near it: B2, B1"),
        (["--only", "B2", "--only", "X*"], "got 'X*'; there are: B1, B2"),
        (["--show", "--only", "B2"], "got 'B2'; there are: none"),
        (["--seeds", "0"], "expected at least 2 seeds, without which no effect has an interval, got 0"),
        (["--jobs", "0"], "expected at least 1 process, got 0"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(ledger, capsys, options, message):
    assert ledger(*options) == 2 if "--jobs" not in options else command.main(["ledger", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m bnlearn ledger: ")
    assert re.search(f"{re.escape(message)}$", captured.err.strip(), re.MULTILINE)
    assert len(captured.err.splitlines()) == 1


def test_a_folder_that_cannot_be_written(ledger, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert ledger("--records", str(tmp_path / "file")) == 2
    assert f"expected a folder that can be written, got {tmp_path / 'file'} (" in capsys.readouterr().err


def test_a_corrupt_record(ledger, tmp_path, capsys):
    ledger()
    (tmp_path / "shipped" / "B1.json").write_text("{}", "utf-8")
    capsys.readouterr()
    assert ledger("--show") == 2
    message = (
        f"expected the record of claim B1 in {tmp_path / 'shipped' / 'B1.json'}, got a file that is not one (no 'id')"
    )
    assert message in capsys.readouterr().err
    assert ledger() == 0
    captured = capsys.readouterr()
    assert message in captured.err
    assert "1 new and 1 up-to-date records" in captured.err


def test_a_claim_that_fails(themes, ledger, capsys):
    themes(own="claim('B1', broken), claim('B2')")
    assert ledger() == 1
    captured = capsys.readouterr()
    assert "1 claim: 1 supported" in captured.out
    assert "claim B1 failed:\nTraceback" in captured.err
    assert "RuntimeError: B1 is out of order" in captured.err
    assert "1 of 2 claims failed: B1" in captured.err


@pytest.mark.parametrize(
    ("options", "kept"), [([], "call it again to go on with the others"), (["--quick"], "nothing is kept")]
)
def test_an_interruption(themes, ledger, capsys, options, kept):
    themes(own="claim('B1'), claim('B2', lambda name, scale: exec('raise KeyboardInterrupt'))")
    assert ledger(*options) == 130
    captured = capsys.readouterr()
    assert captured.err.endswith(f"interrupted after 1 of 2 claims; {kept}\n")
    assert "1 claim: 1 supported" in captured.out


def test_the_module_is_the_command(ledger, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bnlearn", "ledger", "--show", "--only", "X"])
    monkeypatch.delitem(sys.modules, "bnlearn.__main__")
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_module("bnlearn", run_name="__main__")
    assert "got 'X'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["ledgr"], ["ledger", "--json", "--markdown"]])
def test_what_is_not_a_command(arguments, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        command.main(arguments)
    assert "usage: python -m bnlearn" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_ctrl_c_keeps_the_records_that_are_written(themes, tmp_path):
    """Two processes; the second claim of the first module waits for ever, and the interruption comes while it does."""
    wait = "lambda name, scale: __import__('time').sleep(1000)"
    themes(one=f"claim('B1'), claim('B2', {wait})", two="claim('C1')")
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a runner in the background ignores it
        "from bnlearn import __main__ as command; from bnlearn.claims import _ledger\n"
        "_ledger.THEMES = ('one_theme', 'two_theme')\n"
        "sys.exit(command.main(['ledger', '--quick', '--records', 'records', '--jobs', '2']))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    made = tmp_path / "records"
    while process.poll() is None and not all((made / f"{name}.json").exists() for name in ("B1", "C1")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    try:
        out, err = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "2 claims: 2 supported" in out
    assert "interrupted after 2 of 3 claims; call it again to go on with the others" in err
    assert sorted(path.name for path in made.iterdir()) == ["B1.json", "C1.json"]
