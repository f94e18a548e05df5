"""What the audit says of models with a defect that is known, and of healthy ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("keras")
pytest.importorskip("sklearn")

sys.path.append(str(Path(__file__).parent))

from zoo import DEFECTS, HEALTHY  # noqa: E402

from bnlearn.clinic import RULES  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These models are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def named(entry):
    return entry.name


def made(entry, seed):
    if entry.needs:
        pytest.importorskip(entry.needs)
    return entry.make(seed)


@pytest.mark.parametrize("entry", DEFECTS, ids=named)
def test_a_defect_is_found_where_it_is(entry):
    case = made(entry, 0)
    report = case.audit()
    assert (entry.code, case.layer) in {(finding.code, finding.layer) for finding in report.findings}


@pytest.mark.parametrize("entry", HEALTHY, ids=named)
def test_a_healthy_model_is_left_in_peace(entry):
    report = made(entry, 1).audit()
    assert report.at_least("warning") == ()
    assert report.framework == entry.framework


def test_the_zoo_is_large_and_shows_every_rule():
    for entries in (DEFECTS, HEALTHY):
        assert len({entry.name for entry in entries}) == len(entries) >= 44
        assert sum(entry.framework == "keras" for entry in entries) >= 16
    assert {entry.code for entry in DEFECTS} == set(RULES)
    assert {entry.code for entry in HEALTHY} == {""}
