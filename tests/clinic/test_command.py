"""`python -m bnlearn audit`: what it prints and writes, how it ends, and what it says when it cannot run."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bnlearn import __main__ as entry
from bnlearn.clinic import RULES, Report, _command
from bnlearn.clinic._rules import page

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()
SHOP = """
import torch

class Net(torch.nn.Module):
    def __init__(self, momentum=0.1):
        super().__init__()
        self.linear, self.bn = torch.nn.Linear(3, 4, bias=False), torch.nn.BatchNorm1d(4, momentum=momentum)

    def forward(self, x):
        return self.bn(self.linear(x))

def make_hasty():
    return Net(0.99)

def make_broken():
    net = Net()
    net.bn.running_var[0] = -1
    return net

hasty = make_hasty()
batches = [torch.randn(32, 3, generator=torch.Generator().manual_seed(0)) for _ in range(4)]
pairs = [(x, torch.ones(32, dtype=bool)) for x in batches]

def make_batches():
    return iter(batches)

def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)

def mask(batch):
    return batch[1]

class Group:
    make = staticmethod(make_hasty)

def fails(*_):
    raise RuntimeError("out of bananas")

def leaves():
    raise SystemExit(3)

def interrupts():
    raise KeyboardInterrupt

def bad_batches():
    yield batches[0]
    raise OSError("the disk is gone")

number = 7
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The name of a module in the working directory."""
    name = f"shop_{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(SHOP, "utf-8")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield name
    assert sys.path == before
    sys.modules.pop(name, None)


@pytest.fixture
def run(shop, capsys):
    """Call the command; ``@`` stands for the module."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = entry.main(["audit", *(one.replace("@", f"{shop}:") for one in arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize("place", ["@hasty", "@make_hasty", "@Group.make"])
def test_a_warning_does_not_fail_by_default(run, place):
    status, out, err = run(place)
    assert (status, err) == (0, "")
    assert out.startswith("Net (PyTorch), 1 batch-norm layer: 1 warning, 1 info\n")
    assert "BN104" in out


@pytest.mark.parametrize(
    ("place", "level", "status"),
    [
        ("@hasty", "info", 1),
        ("@hasty", "warning", 1),
        ("@hasty", "error", 0),
        ("@hasty", "never", 0),
        ("@make_broken", "error", 1),
        ("@make_broken", "never", 0),
    ],
)
def test_what_fails_is_up_to_the_caller(run, place, level, status):
    assert run(place, "--fail-on", level)[0] == status


def test_an_error_fails_by_default(run):
    status, out, err = run("@make_broken")
    assert (status, err) == (1, "")
    assert "BN101" in out


def test_a_class_is_called_as_a_function_is(run):
    assert run("@Net")[0] == 0


@pytest.mark.parametrize("data", ["@batches", "@make_batches"])
def test_with_data(run, data):
    report = Report.from_json(run("@Net", "--data", data, "--json")[1])
    assert set(report.skipped) == {"BN310", "BN401", "BN403"}


def test_with_everything(run):
    arguments = ("@Net", "--data", "@pairs", "--mask", "@mask", "--optimizer", "@make_optimizer", "--json")
    report = Report.from_json(run(*arguments)[1])
    assert set(report.skipped) <= {"BN310"}  # (N,) is the shape of this layer's input without its channels
    assert [one.evidence for one in report.by_code("BN401")] == ["The optimizer decays gamma or beta, by 0.01."]


def test_the_forms(run):
    assert json.loads(run("@hasty", "--json")[1])["model"] == "Net"
    assert run("@hasty", "--markdown")[1].startswith("**Net (PyTorch)")
    run_ = json.loads(run("@hasty", "--sarif")[1])["runs"][0]
    assert run_["results"][0]["ruleId"] == "BN104"


def test_sarif_names_the_file_in_the_working_directory(run, shop):
    (result, *_) = json.loads(run("@hasty", "--sarif")[1])["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": f"{shop}.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 4},
    }


def test_the_report_is_written_and_the_table_is_shown(run, tmp_path):
    (tmp_path / "report.sarif").write_text("an older one", "utf-8")
    _, out, _ = run("@hasty", "--sarif", "--output", "report.sarif")
    assert json.loads((tmp_path / "report.sarif").read_text("utf-8"))["version"] == "2.1.0"
    assert out.startswith("Net (PyTorch)")
    run("@hasty", "--output", "report.txt")
    assert (tmp_path / "report.txt").read_text("utf-8").startswith("Net (PyTorch)")
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".py", ".sarif", ".txt"]


def test_a_report_that_cannot_be_written(run, tmp_path, monkeypatch):
    status, out, err = run("@hasty", "--output", "nowhere/report.txt")
    assert (status, out) == (2, "")
    assert "the report could not be written: " in err
    old = tmp_path / "report.txt"
    old.write_text("an older one", "utf-8")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(_command.Path, "replace", full)
    status, out, err = run("@hasty", "--output", "report.txt")
    assert (status, out) == (2, "")
    assert err == "python -m bnlearn audit: the report could not be written: no space left\n"
    assert old.read_text("utf-8") == "an older one"
    assert not list(tmp_path.glob("*.part"))


def test_explain(run):
    assert run("--explain", "bn306") == (0, page(RULES["BN306"]), "")
    status, out, err = run("--explain", "BN360")
    assert (status, out) == (2, "")
    assert "expected the code of a rule, got 'BN360'; near it: BN310, " in err
    assert run("--explain", "x")[2].strip().endswith("near it: " + ", ".join(RULES))


@pytest.mark.parametrize(
    "arguments", [[], ["m:f", "--explain", "BN306"], ["m:f", "--json", "--sarif"], ["m:f", "--fail-on", "x"]]
)
def test_what_makes_no_sense(arguments, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        entry.main(["audit", *arguments])
    assert "usage: python -m bnlearn audit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models"], "expected package.module:name for the model, got 'models'"),
        ([":make"], "expected package.module:name for the model, got ':make'"),
        (["@"], "expected package.module:name for the model, got '@'"),
        (["no_such.net:make"], "no module 'no_such' for the model, neither installed nor in "),
        (["torch.no_such:make"], "no module 'torch.no_such' for the model, neither"),
        (["@make_hasti"], "has no 'make_hasti' for the model; near it: make_hasty, "),
        (["@Group.zzz"], "has no 'Group.zzz' for the model\n"),
        (["@number"], "expected a model at @number, or a function that returns one, got int"),
        (["@make_batches"], "expected @make_batches to return a torch.nn.Module or a keras.Model, got list_iterator"),
        (["@Net", "--data", "@number"], "expected batches at @number, or a function that returns them, got int"),
        (["@Net", "--data", "@no"], "has no 'no' for --data"),
        (["@Net", "--optimizer", "@number"], "expected a function at @number for --optimizer, got int"),
        (["@Net", "--data", "@pairs", "--mask", "@number"], "expected a function at @number for --mask, got int"),
        (["@Net", "--mask", "@mask"], "expected --data with --mask, got none"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(run, shop, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("python -m bnlearn audit: ")
    assert message.replace("@", f"{shop}:") in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message", "where"),
    [
        (["@fails"], "@fails raised RuntimeError: out of bananas", "in fails"),
        (["@leaves"], "@leaves raised SystemExit: 3", "in leaves"),
        (["@Net", "--data", "@fails"], "@fails raised RuntimeError: out of bananas", "in fails"),
        (["@Net", "--optimizer", "@fails"], "@fails raised RuntimeError: out of bananas", "in fails"),
        (["@Net", "--data", "@bad_batches"], "the audit raised OSError: the disk is gone", "in bad_batches"),
    ],
)
def test_errors_in_the_caller_s_code_are_shown_whole(run, shop, arguments, message, where):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert where in err
    assert err.splitlines()[-1] == f"python -m bnlearn audit: {message.replace('@', f'{shop}:')}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_library", "raised ModuleNotFoundError: No module named 'no_such_library'"),
        ("1 +", "raised SyntaxError: invalid syntax"),
        ("raise SystemExit('bye')", "raised SystemExit: bye"),
    ],
)
def test_a_module_that_cannot_be_imported(run, shop, tmp_path, text, message):
    (tmp_path / f"{shop}.py").write_text(text, "utf-8")
    status, _, err = run("@make")
    assert status == 2
    assert err.startswith("Traceback")
    assert f"importing {shop} {message}" in err.splitlines()[-1]


def test_ctrl_c(run):
    assert run("@interrupts") == (130, "", "python -m bnlearn audit: interrupted\n")


def test_as_a_build_calls_it(shop, tmp_path):
    """A process of its own, that does not have the working directory on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "bnlearn", "audit", f"{shop}:make_broken", "--data", f"{shop}:make_batches"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^error +BN101 +bn ", done.stdout, re.MULTILINE)


def test_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        entry.main(["--help"])
    out = capsys.readouterr().out
    assert "audit: look over the batch normalisation" in " ".join(out.split())
    assert set(entry.COMMANDS) == {"audit", "ledger"}
    for name in entry.COMMANDS:
        with pytest.raises(SystemExit, match=r"^0$"):
            entry.main([name, "--help"])
        assert f"usage: python -m bnlearn {name} " in capsys.readouterr().out
