"""The claims and the records that the package ships: every claim runs, and every record is that of the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from bnlearn.claims import FULL, QUICK, RECORDS, SMOKE, Verdict, digest, entries, records
from bnlearn.claims._records import prose

ROOT = Path(__file__).parents[2]
BIBLIOGRAPHY = (ROOT / "book" / "references.bib").read_text("utf-8")
ENTRIES = entries()
SHIPPED = records()
SAMPLE = ("A1", "A3", "A5", "A12", "A14", "B7", "B10", "B23", "C10", "C13", "D4")
"""Claims to be run again by the tests, at five seeds: cheap, and decided by a wide margin."""


def each(names):
    return pytest.mark.parametrize("name", names)


def test_every_claim_has_a_record_and_every_record_a_claim():
    assert list(SHIPPED) == list(ENTRIES)


@each(ENTRIES)
def test_every_claim_s_code_runs(name):
    """At a size at which the verdict means nothing."""
    claim = ENTRIES[name].claim
    results = claim.judge(claim.measure(SMOKE))
    assert list(results) == [criterion.name for criterion in claim.criteria]


@each(sorted(SHIPPED.keys() & ENTRIES.keys()))
def test_no_record_is_older_than_the_code_that_makes_it(name):
    made, now = SHIPPED[name].digest, digest(ENTRIES[name].module)
    assert made == now, f"`python -m bnlearn ledger --only {name}` makes it again"


@each(sorted(SHIPPED.keys() & ENTRIES.keys()))
def test_a_record_is_of_what_the_claim_declares(name):
    record, claim = SHIPPED[name], ENTRIES[name].claim
    assert prose(record) == prose(claim), f"`python -m bnlearn ledger --only {name}` rewords it"
    assert record.declared == claim.criteria
    assert record.scale.seeds >= FULL.seeds
    assert (record.scale.steps_at_most, record.scale.quick) == (None, False)


@each(SHIPPED)
def test_what_a_record_says_is_what_follows_from_its_effects(name):
    for criterion, result in SHIPPED[name].criteria.items():
        shown = SHIPPED[name].shown[criterion]
        assert shown["verdict"] == result.verdict
        numbers = [shown[key] for key in ("estimate", "low", "high")]
        np.testing.assert_allclose(numbers, [result.estimate, result.low, result.high], rtol=1e-6)


@each(ENTRIES)
def test_every_claim_can_be_traced(name):
    claim = ENTRIES[name].claim
    for source in claim.sources:
        assert source in {"P", "-"} or f"{{{source}," in BIBLIOGRAPHY, source
    if claim.chapter:
        assert any((ROOT / f"{claim.chapter}{suffix}").exists() for suffix in (".ipynb", ".md")), claim.chapter


@each(SAMPLE)
def test_a_sample_run_again_says_what_the_records_say(name):
    """Fewer seeds have wider intervals: they may leave open what the record decides, and may not say the opposite."""
    claim, decided = ENTRIES[name].claim, 0
    for criterion, result in claim.judge(claim.measure(QUICK)).items():
        recorded = SHIPPED[name].criteria[criterion].verdict
        assert result.verdict in {recorded, Verdict.NOT_SHOWN}
        decided += result.verdict == recorded
    assert decided >= 1


def test_the_sample_is_of_claims_that_are_there():
    assert set(SAMPLE) <= set(ENTRIES)


def test_reading_a_record_loads_no_framework():
    code = (
        "import sys, bnlearn.claims as c; heavy = {'torch', 'matplotlib', 'joblib', 'sklearn', 'tqdm', 'keras'}\n"
        "print(*sorted((heavy | {'scipy'}) & set(sys.modules)))\n"
        "records = c.records(); print(*(record.verdict for record in records.values()))\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    at_import, verdicts, afterwards = done.stdout.splitlines()
    assert (at_import, afterwards) == ("", "")
    assert verdicts.startswith(" ".join(record.verdict for record in list(SHIPPED.values())[:3]))


def test_the_folder_of_records_holds_nothing_else():
    """But for the records of the full-size experiments, in a folder of their own."""
    assert {path.suffix for path in RECORDS.rglob("*") if path.is_file()} <= {".json"}
    assert {path.name for path in RECORDS.iterdir() if path.is_dir()} <= {"full_size"}
