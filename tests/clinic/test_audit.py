"""From facts to a report, and from a model to its framework's part."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bnlearn
from bnlearn.clinic import RULES, _audit, _dispatch
from bnlearn.clinic._audit import audit, examine
from bnlearn.clinic._facts import OptimizerFacts, OutputFacts

ROOT = Path(__file__).parents[2]
DATA = [code for code, rule in RULES.items() if rule.needs in ("data", "mask")]
OPTIMIZER = ["BN401", "BN403"]


def test_the_worst_come_first_and_then_the_order_of_the_layers(facts, layer):
    bad = {"gamma": np.full(8, np.nan), "momentum": 0.9}
    late, early = layer(name="a", order=2, **bad), layer(name="b", order=1, **bad)
    sound = layer(name="c", order=0, dtype="float16")
    gap = OutputFacts(gap=9.0, recalibrated_gap=0.1, moved=9.0, samples=32)
    report = examine(facts(late, early, sound, output=gap, data_run=True))
    assert [(one.code, one.layer) for one in report.findings] == [
        ("BN309", ""),
        ("BN106", "c"),
        ("BN108", "b"),
        ("BN108", "a"),
        ("BN104", "b"),
        ("BN104", "a"),
    ]
    assert report.layers == ("c", "b", "a")
    assert {one.url for one in report.by_code("BN104")} == {RULES["BN104"].url}


def test_what_the_report_keeps_of_the_facts(facts):
    report = examine(facts(notes=("a note",), source=("net.py", 3), framework="keras"))
    assert (report.model, report.framework, report.notes, report.source) == ("Net", "keras", ("a note",), ("net.py", 3))


def test_without_data_and_optimizer(facts, layer, seen):
    unseen = layer(seen=seen(fewest=2, bias_from="x"), axis_problem="an axis")
    report = examine(facts(unseen))
    assert report.skipped == dict.fromkeys(DATA, "no data was given") | dict.fromkeys(
        OPTIMIZER, "no optimizer was given"
    )
    assert [one.code for one in report.findings] == ["BN402"]


def test_every_reason_not_to_check(facts, layer, seen):
    short = layer(seen=seen(batches=3, iid_ratio=np.full(8, 1e9), real_mean=seen().mean + 9, real_var=seen().var))
    report = examine(facts(short, data_run=True))
    assert report.skipped == {
        "BN307": "it takes 4 batches, and the data has 3",
        "BN309": "no outputs of training and evaluation could be compared",
        "BN310": "no mask was given, or it has no layer's shape",
        **dict.fromkeys(OPTIMIZER, "no optimizer was given"),
    }
    assert report.findings == ()
    once = layer(seen=seen(batches=1, evaluation_ratio=None))
    assert examine(facts(once, data_run=True)).skipped["BN308"] == "it takes 2 batches, and the data has 1"
    twice = layer(name="twice", seen=seen(batches=2, evaluation_ratio=None))
    reason = "no second batch of two samples or more could be compared"
    assert examine(facts(twice, data_run=True)).skipped["BN308"] == reason
    assert "BN308" not in examine(facts(twice, layer(), data_run=True)).skipped
    rows = layer(name="rows", seen=seen(iid_ratio=None))
    assert examine(facts(rows, data_run=True)).skipped["BN307"] == "at no layer are the rows the samples of the batch"
    assert "BN307" not in examine(facts(rows, layer(), data_run=True)).skipped
    whole = replace(
        facts(short, layer(name="other")),
        data_run=True,
        masked=True,
        optimizer={"bn": OptimizerFacts(holds=True, decay=0.1)},
        output=OutputFacts(gap=0.1, recalibrated_gap=0.1, moved=0.1, samples=8),
    )
    assert examine(whole).skipped == {}
    assert [one.code for one in examine(whole).findings] == ["BN310", "BN401"]


def test_a_model_without_batch_norm(facts):
    bare = replace(facts(), layers=(), notes=("a note",), data_run=True)
    report = examine(bare)
    assert report.notes == ("a note", "The model has no batch-norm layer.")
    assert report.skipped["BN307"] == "it takes 4 batches, and the data has 0"
    assert report.skipped["BN308"] == report.skipped["BN309"] == "it takes 2 batches, and the data has 0"
    assert report.findings == report.layers == ()


def test_the_model_goes_to_its_framework_s_part(monkeypatch, facts):
    asked = []
    part = SimpleNamespace(facts=lambda *given, **named: asked.append((given, named)) or facts())
    monkeypatch.setattr(_audit, "part", lambda model, name: asked.append((model, name)) or part)
    assert audit("model", "data", optimizer="optimizer", mask="mask").model == "Net"
    assert asked == [("model", "facts"), (("model", "data"), {"optimizer": "optimizer", "mask": "mask"})]


def test_the_framework_of_a_model():
    torch = pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    assert _dispatch.framework(torch.nn.ReLU()) == "torch"
    assert _dispatch.framework(keras.layers.ReLU()) == "keras"
    assert _dispatch.framework(bnlearn.layers.ReLU()) is None
    assert _dispatch.part(torch.nn.ReLU(), "facts").__name__ == "bnlearn.clinic._torch.facts"
    assert _dispatch.part(keras.layers.ReLU(), "facts").__name__ == "bnlearn.clinic._keras.facts"


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module or a keras\.Model, got Sequential"):
        audit(bnlearn.layers.Sequential())


def test_a_mask_without_data():
    with pytest.raises(ValueError, match="expected data with the mask, got none"):
        audit(None, mask=lambda batch: batch)


def test_importing_the_clinic_loads_no_framework():
    code = (
        "import bnlearn.clinic, sys; print([n for n in ('torch', 'keras', 'tensorflow', 'tqdm') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr


def test_the_names_at_the_top():
    assert bnlearn.audit is audit
    for name in ("fold", "freeze", "recalibrate", "replace"):
        assert getattr(bnlearn, name) is getattr(bnlearn.clinic, name)
    for name in ("datasets", "gradcheck", "training"):
        assert getattr(bnlearn, name).__name__ == f"bnlearn.{name}"
        assert name not in bnlearn.__all__


def test_a_symptom_points_to_its_cause(facts, layer, seen):
    far = layer(running_mean=seen().mean + 9 * np.sqrt(seen().var))
    alone = examine(facts(far, data_run=True))
    assert alone.by_code("BN306")[0].fix.startswith("If the data is preprocessed and drawn as in training: ")
    both = examine(facts(far, layer(name="slow", order=1, momentum=0.99), data_run=True))
    (symptom,) = both.by_code("BN306")
    assert symptom.fix.startswith("First mend BN104. Then: If the data is preprocessed")
    assert not both.by_code("BN104")[0].fix.startswith("First")
