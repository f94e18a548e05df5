"""The repository as a whole: what its files promise about each other, and what importing the package costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import bnlearn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bnlearn"
# What `import bnlearn` must not load; and the names that PyPI's other `bnlearn` has in its folder.
HEAVY = ["torch", "tensorflow", "keras", "jax", "matplotlib", "sklearn", "tqdm", "numba", "scipy", "IPython"]
FOREIGN_NAMES = {
    "bnlearn",
    "structure_learning",
    "parameter_learning",
    "inference",
    "sampling",
    "plot",
    "utils",
    "examples",
    "tests",
}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


ON_DEMAND = {"mutmut"}
"""What one target of make installs for itself, and no user needs."""


@pytest.fixture(scope="module")
def requirements(project: dict) -> dict[str, SpecifierSet]:
    """Everything pyproject.toml depends on, by name; the extra that only gathers the others is left out."""
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    parsed = map(Requirement, lines)
    return {canonicalize_name(r.name): r.specifier for r in parsed if r.name != project["name"]}


def python(code: str, *, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that finds ``bnlearn`` in ``path``."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=path, env=environment, capture_output=True, encoding="utf-8", timeout=120)


def test_the_conda_environment_is_pyproject_s(project: dict, requirements: dict[str, SpecifierSet]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (interpreter,) = [entry for entry in conda if entry.startswith("python")]
    assert SpecifierSet(interpreter.removeprefix("python")) == SpecifierSet(project["requires-python"])
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    listed = [Requirement(line) for line in pip if not line.startswith("-")]
    everyday = {name: specifier for name, specifier in requirements.items() if name not in ON_DEMAND}
    assert {canonicalize_name(r.name): r.specifier for r in listed} == everyday
    assert len(listed) == len(everyday)


def test_every_dependency_is_pinned_within_its_range(requirements: dict[str, SpecifierSet]) -> None:
    lines = (line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert int(pins["jupyter-book"].split(".")[0]) < 2
    for name, specifier in requirements.items():
        assert specifier.contains(pins[name]), f"{name} is pinned to {pins[name]}, outside {specifier}"


def test_the_gathering_extra_gathers_every_extra(project: dict) -> None:
    extras = project["optional-dependencies"]
    (gathered,) = [Requirement(line) for line in extras["all"]]
    assert gathered.extras == set(extras) - {"all", "mutation"}
    assert {canonicalize_name(Requirement(line).name) for line in extras["mutation"]} == ON_DEMAND


def test_importing_the_package_loads_no_framework() -> None:
    code = f"import bnlearn, sys, json; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    assert json.loads(python(code).stdout) == []


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"))
def test_importing_a_module_loads_no_framework(module: str) -> None:
    code = f"import bnlearn.{module}, sys, json; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    assert json.loads(python(code).stdout) == []


def test_the_top_level_is_small_and_every_name_is_there() -> None:
    code = "import bnlearn, json; [getattr(bnlearn, n) for n in bnlearn.__all__]; print(json.dumps(bnlearn.__all__))"
    names = json.loads(python(code).stdout)
    assert 1 <= len(names) <= 12
    assert names == sorted(names)
    run = python("import bnlearn; bnlearn.dropout")
    assert "module 'bnlearn' has no attribute 'dropout'; it has audit, batch_norm" in run.stderr


@pytest.mark.parametrize("name", ["bnlearn.py", "structure_learning.py", "parameter_learning.py"])
def test_two_packages_in_one_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(PACKAGE, tmp_path / "bnlearn", ignore=shutil.ignore_patterns("__pycache__"))
    assert python("import bnlearn; print(bnlearn.__file__)", path=tmp_path).stdout.startswith(str(folder))
    (folder / name).write_text("", "utf-8")
    error = python("import bnlearn", path=tmp_path).stderr
    assert f"ImportError: two packages named bnlearn are mixed in {folder}: 'batchnorm-learn'" in error
    assert f"'bnlearn' (Bayesian networks, which {name} belongs to)" in error
    assert "pip uninstall -y bnlearn batchnorm-learn" in error


def test_the_refusal_names_each_foreign_file(tmp_path: Path) -> None:
    for name in ("bnlearn.py", "structure_learning.py"):
        (tmp_path / name).touch()
    with pytest.raises(ImportError, match=r"which bnlearn\.py, structure_learning\.py belongs to"):
        bnlearn._refuse_foreign_files(tmp_path)


def test_no_module_has_a_name_of_the_other_package() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert "functional" in names
    assert names.isdisjoint(FOREIGN_NAMES)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "book/how_to.md", "book/intro.md"])
def test_every_make_command_in_prose_is_a_target(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = (ROOT / document).read_text("utf-8")
    # In code only: between backticks, or at the start of a line of a block.
    commands = re.findall(r"(?:`|^|&& )make ([a-z]+)", text, re.MULTILINE)
    assert set(commands) <= targets
    if document == "README.md":
        assert {"book", "test"} <= set(commands)
