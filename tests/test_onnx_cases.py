"""ONNX's own node cases for every normalisation operator it has, each by its name, against the formulas."""

from __future__ import annotations

import pkgutil
import re
import warnings
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from bnlearn import functional

onnx = pytest.importorskip("onnx")
node = pytest.importorskip("onnx.backend.test.case.node")


def collect(words: str) -> list:
    """The cases of all modules of ONNX's whose name has one of ``words`` in it; importing a module makes its cases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the cases of other operators overflows and divides by zero
        for module in pkgutil.iter_modules(node.__path__):
            if re.search(words, module.name):
                import_module(f"{node.__name__}.{module.name}")
    return list(node._NodeTestCases)


def batch_normalization(x, gamma, beta, mean, var, *, epsilon=1e-5, momentum=0.9, training_mode=0):
    """ONNX: momentum is the weight of the OLD, the running variance is biased."""
    if not training_mode:
        return [functional.batch_norm(x, gamma, beta, mean=mean, var=var, eps=epsilon)[0]]
    y, cache = functional.batch_norm(x, gamma, beta, eps=epsilon)
    running = functional.update_running(
        mean, var, cache.mean, cache.var, cache.n, momentum=1 - momentum, unbiased=False
    )
    return [y, *running]


def instance_normalization(x, gamma, beta, *, epsilon=1e-5):
    return [functional.instance_norm(x, gamma, beta, eps=epsilon)[0]]


def group_normalization(x, gamma, beta, *, num_groups, epsilon=1e-5):
    return [functional.group_norm(x, gamma, beta, groups=num_groups, eps=epsilon)[0]]


def layer_normalization(x, gamma, beta, *, axis=-1, epsilon=1e-5):
    """``axis`` is the first of those that are normalised; the mean and 1 / standard deviation are outputs too."""
    axes = range(axis % x.ndim, x.ndim)
    y, cache = functional.layer_norm(x, gamma, beta, axes=axes, eps=epsilon)
    return [y, cache.mean, cache.inv_std]


def rms_normalization(x, gamma, *, axis=-1, epsilon=1e-5):
    return [functional.rms_norm(x, gamma, axes=range(axis % x.ndim, x.ndim), eps=epsilon)[0]]


def lp_normalization(x, *, axis=-1, p=2):
    """One case has a single axis, which is one sample here."""
    y, _ = functional.unit_norm(x[None], axes=(axis % x.ndim + 1,), p=p)
    return [y[0]]


def mean_variance_normalization(x, *, axes=(0, 2, 3)):
    """By default batch normalisation without scale and shift; ONNX adds 1e-9 to the standard deviation."""
    y, _ = functional.layer_norm(x, axes=axes, eps=1e-18)
    assert tuple(axes) == (0, 2, 3)
    np.testing.assert_allclose(y, functional.batch_norm(x, eps=1e-18)[0], rtol=1e-6, atol=1e-6)
    return [y]


OURS = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}


def of_these_operators(cases: list) -> dict[str, tuple[Any, Any]]:
    """Name -> (case, its node). An expanded case, the operator spelled out, has the node of the plain one."""
    nodes = {case.name: case.model.graph.node for case in cases}
    found = {}
    for case in cases:
        first = nodes[re.sub(r"_expanded(_ver\d+)?$", "", case.name)][0]
        if first.op_type in OURS:
            found[case.name] = case, first
    return found


CASES = of_these_operators(collect("norm|variance"))


def test_no_case_of_these_operators_is_left_out():
    """Whatever module of ONNX's it stands in: names and modules come and go with its versions."""
    everywhere = of_these_operators(collect(""))
    assert sorted(CASES) == sorted(everywhere)
    counts = dict.fromkeys(OURS, 0)
    for name, (_, first) in CASES.items():
        counts[first.op_type] += "_expanded" not in name
    print(f"onnx {onnx.__version__}: {counts}, and {len(CASES) - sum(counts.values())} expanded")
    assert min(counts.values()) > 0


def test_every_normalisation_operator_of_onnx_is_here():
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.name.endswith("Normalization")}
    assert names == set(OURS)


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case, first = CASES[name]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in first.attribute}
    for inputs, expected in case.data_sets:
        before = [value.copy() for value in inputs]
        got = OURS[first.op_type](*inputs, **attributes)
        assert len(got) == len(expected)
        for ours, theirs in zip(got, expected, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_allclose(ours, theirs, rtol=case.rtol, atol=case.atol)
        for value, old in zip(inputs, before, strict=True):
            np.testing.assert_array_equal(value, old)
