"""The registry says what is so: each function is in it, each place exists, each probe agrees with what it declares."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from bnlearn import family, functional, layers
from bnlearn.family import (
    cost,
    footprint,
    influence,
    markdown,
    member,
    members,
    probe_axes,
    probe_batch,
    probe_modes,
    table,
)
from bnlearn.family._counting import Counted, Tally

ROOT = Path(__file__).parents[1]
BIBLIOGRAPHY = (ROOT / "book" / "references.bib").read_text("utf-8")
HELPERS = {
    "batch_norm_backward_staged",  # another form of a backward pass
    "lstm",  # what the normalised ones are held against
    "merge_moments",
    "moments",
    "renorm_limits",
    "rnn",
    "update_running",
    "update_running_ghosts",
    "update_running_steps",
    "update_whitening",
}
"""Public functions that normalise nothing by themselves."""


def each(of=None, **kwargs):
    return pytest.mark.parametrize("method", of or members(), ids=lambda method: method.name, **kwargs)


def test_every_function_is_a_member_and_the_reverse():
    public = {name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))}
    forward = {name for name in public - HELPERS if not name.endswith("_backward")}
    assert sorted(forward) == sorted(method.name for method in members())
    assert public >= HELPERS  # none that is gone
    assert {f"{method.name}_backward" for method in members() if method.backward} == {
        name for name in public if name.endswith("_backward")
    } - {f"{name}_backward" for name in HELPERS}


@each()
def test_the_axes_are_those_the_probe_finds(method, rng):
    found = probe_axes(method, rng)
    if method.mixes:
        assert len(found) > len(method.over)
    else:
        assert found == method.over


@each()
def test_the_dependence_on_the_batch_is_what_the_probe_finds(method, rng):
    assert probe_batch(method, rng) == method.depends_on_batch


@each([method for method in members() if method.layer])
def test_training_differs_from_inference_where_the_layer_does(method, rng):
    assert probe_modes(method, rng) == method.modes_differ


def test_probes_catch_a_wrong_member(rng):
    """A batch norm that calls itself instance norm, and the reverse."""
    batch, instance = member("batch_norm"), member("instance_norm")
    wrong = replace(instance, name="batch_norm")
    assert probe_axes(wrong, rng) != wrong.over
    assert probe_batch(wrong, rng) != wrong.depends_on_batch
    assert not probe_modes(replace(batch, layer=lambda: layers.BatchNorm1d(6, track_running_stats=False)), rng)
    with pytest.raises(ValueError, match="expected a method with a layer, got sync_batch_norm"):
        probe_modes(member("sync_batch_norm"), rng)


def test_the_statistics_of_a_recurrent_network_are_over_the_sequences(rng):
    """With input weights that are the identity and no recurrence, what an output depends on is what it shares."""
    method = member("batch_norm_rnn")

    def example(rng, length=5):
        made = method.example(rng, length)
        eye, ones = np.eye(6), np.ones(6)
        weights = {"weight_ih": eye, "weight_hh": 0 * eye, "bias": ones, "gamma_ih": ones, "gamma_hh": ones}
        return replace(made, arrays={"x": made.arrays["x"], **weights})

    assert probe_axes(replace(method, example=example), rng) == method.over == ("N",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("batch_norm", lambda x: x[:, 3]),
        ("layer_norm", lambda x: x[2]),
        ("instance_norm", lambda x: x[2, 3]),
        ("group_norm", lambda x: x[2, 3:]),
        ("ghost_batch_norm", lambda x: x[2:, 3]),
        ("dynamic_tanh", lambda x: x[2, 3, 2:3]),
    ],
)
def test_footprint_is_the_set_that_shares_a_statistic(rng, name, expected):
    drawn = np.zeros((4, 6, 5), dtype=bool)
    expected(drawn)[...] = True
    np.testing.assert_array_equal(footprint(member(name), rng), drawn)


def test_influence_is_the_derivative_where_it_is_not_zero(rng):
    """Held against the shapes of y and x: element (1, 2, 3) of one by element (0, 2, 1) of the other."""
    found = influence(member("batch_norm"), rng)
    assert found.shape == (4, 6, 5, 4, 6, 5)
    assert found[1, 2, 3, 0, 2, 1]
    assert not found[1, 2, 3, 1, 1, 3]


def test_shards_are_probed_as_one_batch(rng):
    np.testing.assert_array_equal(footprint(member("sync_batch_norm"), rng), footprint(member("batch_norm"), rng))


PLACES = sorted({place for method in members() for place in (method.numpy, method.torch, method.keras) if place})


@pytest.mark.parametrize("place", PLACES)
def test_every_place_exists(place):
    library = "keras" if "keras" in place else "torch" if "torch" in place else "numpy"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
        pytest.importorskip(library)
        parts = place.split(".")
        split = next(i for i in range(len(parts), 0, -1) if _is_module(".".join(parts[:i])))
        found = import_module(".".join(parts[:split]))
    for part in parts[split:]:
        found = getattr(found, part)
    assert callable(found)


def _is_module(name):
    try:
        import_module(name)
    except ModuleNotFoundError:
        return False
    return True


@each()
def test_every_paper_is_in_the_bibliography(method):
    assert re.search(rf"@\w+\{{{re.escape(method.paper)},", BIBLIOGRAPHY), method.paper


@each()
def test_every_member_is_complete(method):
    """A framework is left without a place only where there is no layer to be: statistics at inference, processes."""
    assert method.title
    assert method.acts_on in {"activations", "weights", "statistics", "sequences", "processes"}
    if method.acts_on != "statistics":
        assert method.torch
        assert method.keras
    if method.learned and method.acts_on != "processes":
        assert method.numpy


def test_table_has_every_member_and_no_gap():
    rows = table()
    assert [row["Method"] for row in rows] == [method.title for method in members()]
    assert len({row["Formula"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == list(rows[0])
        assert all(row[column] for column in list(row)[:9]), row
        assert "|" not in "".join(row.values())


def test_rows_of_the_table_by_hand():
    group, norm = table([member("group_norm"), member("weight_norm")])
    assert group["Statistics over"] == "C in parts, L"
    assert (group["Depends on the batch"], group["Training differs from inference"]) == ("no", "no")
    assert norm["Learns"] == "`v` (O, I, K), `g` (O, 1, 1)"
    assert table([member("dynamic_tanh")])[0]["Statistics over"] == "nothing"
    assert table([member("adapt_statistics")])[0]["Learns"] == "nothing"


def test_markdown():
    text = markdown([{"a": "1", "b": "", "c": "3"}], ["a", "b"])
    assert text.splitlines() == ["| a | b |", "|---|---|", "| 1 | – |"]


def test_cost_of_batch_norm_by_hand():
    """Forwards: three means, two subtractions, a square, a product, gamma, beta. A mean is a pass over x."""
    spent = cost(member("batch_norm"), length=4000)
    assert spent.forward == pytest.approx(9, abs=0.01)
    assert spent.passes == pytest.approx(3, abs=0.01)
    # Backwards: dy x_hat and its sum, the sum of dy, gamma, g x_hat and its mean, that times x_hat, the mean of g, two
    # subtractions, and inv_std.
    assert spent.backward == pytest.approx(11, abs=0.01)


def test_cost_without_a_mean_and_without_a_backward_pass():
    assert cost(member("rms_norm")).forward < cost(member("layer_norm")).forward
    assert np.isnan(cost(member("adapt_statistics")).backward)


def test_tally_counts_each_kind():
    tally = Tally()
    a = tally.wrap(np.ones((3, 4)))
    assert a.ndim == 2
    spent = []

    def since(value):
        spent.append(tally.operations - sum(spent))
        return value

    xp = a.__array_namespace__()
    since(1 - a)
    since(a**2)
    since(xp.sum(a, axis=0))
    since(xp.reshape(a, (4, 3)))
    since(xp.sqrt(a))
    product = since(a @ xp.permute_dims(a, (1, 0)))
    since(xp.linalg.eigh(product))
    since(xp.where(a > 0, a, -a))
    assert spent == [12, 12, 12, 0, 12, 2 * 3 * 3 * 4, 27, 36]
    assert tally.reduced == 12
    two = tally.wrap(np.full(2, 4.0))
    np.testing.assert_array_equal((1 - two).value, [-3, -3])
    np.testing.assert_array_equal((1 / two).value, [0.25, 0.25])
    assert isinstance(product, Counted)
    assert xp.float32 is np.float32


def test_members_by_what_they_act_on_and_by_name():
    assert {method.name for method in members("weights")} == {"weight_norm", "weight_standardization", "spectral_norm"}
    assert member("rms_norm").title == "RMS normalisation"
    with pytest.raises(ValueError, match=r"expected one of batch_norm, .*, got 'batchnorm'"):
        member("batchnorm")


def test_trees():
    pair = functional.GhostStatistics(np.zeros(1), np.ones(2), None)
    tree = {"a": [np.zeros(2), pair], "b": None}
    doubled = family.convert(lambda leaf: leaf * 2 + 1, tree)
    assert isinstance(doubled["a"][1], functional.GhostStatistics)
    assert doubled["b"] is None
    assert [leaf.size for leaf in family.leaves(doubled)] == [2, 1, 2]


def test_importing_it_loads_no_framework():
    code = "import sys, bnlearn.family as f; f.table(); print(*sorted({'torch', 'keras', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
