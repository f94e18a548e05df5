"""A record holds what was measured, whole or not at all; what is not one is refused by name."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnlearn.claims import QUICK, Claim, CorruptRecordError, Criterion, Measurement, Verdict, _records, record, records
from bnlearn.claims._records import found, make, order, prose, read, reworded, write

CLAIM = Claim(
    id="B2",
    statement="Rates can be larger.",
    sources=("P", "ioffe2015batch"),
    theme="Rates",
    setting="Digits.",
    criteria=(
        Criterion("ReLU", "ratio", 2, 1, scale="log"),
        Criterion("tanh", "ratio", 4, 3, statistic="median"),
        Criterion("formula", "error", 1e-10, exact=True),
    ),
    run=lambda scale: {},
    chapter="notebooks/51_speed_and_rates",
    note="«Naïve» rates.",
    data="digits",
)


@pytest.fixture
def made(rng):
    curves = rng.normal(size=(5, 3)) * 1e5
    curves[2, 1], curves[4, 2] = np.nan, np.inf
    measured = {
        "ReLU": Measurement(
            rng.lognormal(2, 0.1, size=5), {"with": rng.normal(size=5), "loss": curves}, {"rate": np.float64(0.1)}
        ),
        "tanh": Measurement(
            np.array([1, 2, 9, 2, 1]), {}, {"steps": np.arange(3), "chosen": {"with": (1, np.int64(2))}}
        ),
        "formula": Measurement(np.array([0.0, 1e-16, 1 / 3])),
    }
    return make(CLAIM, measured, QUICK, seconds=1.23456, digest="abc"), measured


def test_what_is_written_is_read(made, tmp_path):
    before, measured = made
    path = write(before, tmp_path)
    assert path == tmp_path / "B2.json"
    after = read(path)
    for name in ("id", "sources", "statement", "note", "data", "declared", "scale", "digest", "versions", "date"):
        assert getattr(after, name) == getattr(before, name), name
    assert prose(after) == prose(CLAIM)
    for name, one in measured.items():
        np.testing.assert_array_equal(after.effects[name], one.effect, strict=False)  # to the last bit
        assert list(after.arms[name]) == list(one.arms)
    assert after.details == {
        "ReLU": {"rate": 0.1},
        "tanh": {"steps": [0, 1, 2], "chosen": {"with": [1, 2]}},
        "formula": {},
    }
    assert after.seconds == 1.23
    assert after.command == "python -m bnlearn ledger --only B2 --quick --seeds 5"
    assert set(after.versions) == {"bnlearn", "python", "numpy", "scipy", "torch"}
    assert after.machine["processors"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", after.date)


def test_arms_are_rounded_to_four_digits_and_may_diverge(made, tmp_path):
    arms = read(write(made[0], tmp_path)).arms["ReLU"]
    raw = made[1]["ReLU"].arms
    np.testing.assert_allclose(arms["with"], raw["with"], rtol=5e-4)
    assert arms["with"].tolist() == [float(f"{value:.4g}") for value in raw["with"]]
    np.testing.assert_array_equal(np.isnan(arms["loss"]), ~np.isfinite(raw["loss"]))
    np.testing.assert_allclose(arms["loss"][0], raw["loss"][0], rtol=5e-4)


def test_the_verdict_is_computed_from_the_effects_and_not_from_what_is_stored(made, tmp_path):
    path = write(made[0], tmp_path)
    values = json.loads(path.read_text("utf-8"))
    assert (values["verdict"], values["results"]["ReLU"]["verdict"]) == ("depends", "supported")
    values["verdict"] = values["results"]["ReLU"]["verdict"] = "refuted"
    values["effects"]["formula"] = [1e-11]
    values["effects"]["tanh"] = [5, 5, 5, 5, 6]
    path.write_text(json.dumps(values), "utf-8")
    one = read(path)
    assert one.verdict == Verdict.SUPPORTED
    assert [result.verdict for result in one.criteria.values()] == [Verdict.SUPPORTED] * 3
    assert one.criteria["ReLU"].estimate == pytest.approx(made[0].shown["ReLU"]["estimate"])
    assert one.criteria is one.criteria  # once
    assert one.shown["ReLU"]["verdict"] == "refuted"


def test_the_file_is_laid_out_for_reading(made, tmp_path):
    text = write(made[0], tmp_path).read_text("utf-8")
    lines = text.splitlines()
    assert ' "note": "«Naïve» rates.",' in lines
    assert '   "rate": 0.1' in lines
    assert sum("[" in line and "null" in line for line in lines) == 1  # an array is on one line
    assert any(line.startswith('  {"name": "tanh", "effect": "ratio", "support": 4, "refute": 3') for line in lines)
    assert text.endswith("}\n")


def test_a_record_can_be_reworded(made):
    other = replace(CLAIM, note="Other words.", statement="Said otherwise.")
    changed = reworded(made[0], other)
    assert prose(changed) == prose(other)
    assert changed.effects is made[0].effects


@pytest.mark.parametrize("detail", [math.nan, {"a": {1, 2}}, object()])
def test_details_that_json_cannot_hold_are_refused(made, tmp_path, detail):
    one = replace(made[0], details={"ReLU": {"x": detail}})
    with pytest.raises(ValueError, match=r"claim B2: expected details that JSON can hold .*, got \{'ReLU'"):
        write(one, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_writing_is_all_or_nothing(made, tmp_path, monkeypatch):
    path = write(made[0], tmp_path)
    before = path.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(replace(made[0], note="new"), tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["B2.json"]
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_record_can_be_read_by_everyone(made, tmp_path):
    assert write(made[0], tmp_path).stat().st_mode & 0o777 == 0o644


def change(**changes):
    return lambda values: values | changes


def without(name):
    return lambda values: {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (without("effects"), "no 'effects'"),
        (change(id="B3"), "it is that of 'B3'"),
        (change(scale=7), "scale is 7"),
        (change(scale={"seeds": 0}), "expected at least 2 seeds"),
        (change(scale={"seeds": 20}), r"expected effects of shape \(20,\) for 'ReLU', got \(5,\)"),
        (change(scale={"sides": 5}), "unexpected keyword argument 'sides'"),
        (change(criteria=[]), r"expected results of \[\], got \['ReLU', 'tanh', 'formula'\]"),
        (change(criteria=[{"name": "ReLU"}]), "missing 2 required positional arguments: 'effect' and 'support'"),
        (change(details={}), r"expected details of \['ReLU', 'tanh', 'formula'\], got \[\]"),
        (change(seconds="long"), "seconds is 'long'"),
        (
            change(effects={"ReLU": ["x"] * 5, "tanh": [1.0] * 5, "formula": [0.0]}),
            "could not convert string to float: 'x'",
        ),
        (lambda values: [values], "expected a mapping, got list"),
    ],
)
def test_what_is_not_a_record_is_refused_by_name(made, tmp_path, spoil, what):
    path = write(made[0], tmp_path)
    path.write_text(json.dumps(spoil(json.loads(path.read_text("utf-8")))), "utf-8")
    message = (
        rf"expected the record of claim B2 in {re.escape(str(path))}, got a file that is not one \(.*{what}.*\); "
        r"`python -m bnlearn ledger --only B2` makes it again"
    )
    with pytest.raises(CorruptRecordError, match=message):
        read(path)
    with pytest.raises(ValueError, match=what):
        record("B2", tmp_path)
    with pytest.raises(ValueError, match=what):
        records(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"id": "B2"', "\xff"])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, text):
    (tmp_path / "B2.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptRecordError, match="expected the record of claim B2 in"):
        record("B2", tmp_path)


def test_half_a_record_is_refused(made, tmp_path):
    path = write(made[0], tmp_path)
    text = path.read_text("utf-8")
    path.write_text(text[: len(text) // 2], "utf-8")
    with pytest.raises(CorruptRecordError, match=r"got a file that is not one \(.*line \d+"):
        read(path)


def test_an_effect_that_is_not_finite_has_no_verdict(made, tmp_path):
    path = write(made[0], tmp_path)
    values = json.loads(path.read_text("utf-8"))
    values["effects"]["ReLU"][3] = None
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ValueError, match=r"claim B2, criterion 'ReLU': expected finite effects .* at seeds 3"):
        record("B2", tmp_path).criteria  # noqa: B018 - computed when asked for


def test_records_come_in_the_order_of_the_ledger(made, tmp_path):
    for name in ("B10", "A2", "B9", "A10"):
        write(replace(made[0], id=name), tmp_path)
    (tmp_path / "notes.txt").touch()
    assert list(records(tmp_path)) == found(tmp_path) == ["A2", "A10", "B9", "B10"]
    assert record("B9", tmp_path).id == "B9"
    assert records(tmp_path / "none") == {}
    assert order("note")[1] == 0


@pytest.mark.parametrize(("name", "near"), [("b9", "near it: B9"), ("Z", "there are: B9"), ("B8", "near it: B9")])
def test_a_record_that_is_not_there(made, tmp_path, name, near):
    write(replace(made[0], id="B9"), tmp_path)
    with pytest.raises(ValueError, match=rf"expected a claim .*, got '{name}'; {near} \(with a record in {tmp_path}\)"):
        record(name, tmp_path)


def test_without_the_libraries_their_versions_are_left_out(monkeypatch):
    def missing(name):
        raise _records.PackageNotFoundError(name)

    monkeypatch.setattr(_records, "version", missing)
    assert set(_records._versions()) == {"bnlearn", "python"}


def test_where_affinity_is_not_to_be_had_all_processors_count(made, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    again = make(CLAIM, made[1], QUICK, seconds=1, digest="abc")
    assert again.machine["processors"] == os.cpu_count()
