"""What every function asks of its arrays, whichever of them it is: one library, shapes that fit, no wider dtype."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from bnlearn import functional
from bnlearn.family import convert, leaves, members

N, C, L, HIDDEN = 4, 6, 5, 3


def examples():
    """Name -> (function, arrays by the name of the argument, options): each member, and the forms it has besides."""
    rng = np.random.default_rng(3)
    made = {}
    for member in members():
        if member.call is not None:  # not the function itself, which is below
            continue
        example = member.example(rng, 2) if member.acts_on == "sequences" else member.example(rng)
        made[member.name] = (member.function, dict(example.arrays), dict(example.options))

    def vectors(*names, shape=(C,)):
        return {name: rng.uniform(0.5, 2.0, shape) for name in names}

    def form(name, label, options=None, **arrays):
        function, others, given = made[name]
        made[f"{name}, {label}"] = (function, {**others, **arrays}, {**given, **(options or {})})

    form("batch_norm", "masked", mask=rng.random((N, L)) < 0.7)
    form("batch_norm", "by given statistics", **vectors("mean", "var"))
    whole = vectors("batch_mean", "batch_var", shape=(C, L)) | vectors("feature_mean", "feature_var", shape=(1, L))
    form("batch_layer_norm", "by given statistics", **whole)
    for name in ("whiten", "iter_norm"):
        form(name, "by given statistics", **vectors("mean"), **vectors("matrix", shape=(1, C, C)))
    state = rng.standard_normal((2, N, HIDDEN))
    real = np.ones((N, 2), bool)
    for name, states in (("batch_norm_rnn", 1), ("batch_norm_lstm", 2), ("layer_norm_lstm", 2)):
        form(name, "from a state", state=tuple(state[:states]), mask=real)
    given = {site: tuple(vectors("mean", "var", shape=(2, 4 * HIDDEN)).values()) for site in ("ih", "hh")}
    given["c"] = tuple(vectors("mean", "var", shape=(2, HIDDEN)).values())
    form("batch_norm_lstm", "by given statistics", statistics=given)
    plain = {name: made["batch_norm_rnn"][1][name] for name in ("x", "weight_ih", "weight_hh", "bias")}
    made["rnn"] = (functional.rnn, {**plain, "state": (state[0],), "mask": real}, {})
    plain = {name: made["batch_norm_lstm"][1][name] for name in ("x", "weight_ih", "weight_hh", "bias")}
    made["lstm"] = (functional.lstm, {**plain, "state": tuple(state), "mask": real}, {})
    made["moments"] = (functional.moments, {"x": rng.standard_normal((N, C, L)), "mask": rng.random((N, L)) < 0.7}, {})
    old = {"running_mean": vectors("a")["a"], "running_var": vectors("a")["a"]}
    made["update_running"] = (functional.update_running, {**old, **vectors("mean", "var")}, {"n": 7})
    steps = {"running_mean": np.zeros((3, C)), "running_var": np.ones((3, C)), "tracked": np.zeros(3, np.int64)}
    steps["statistics"] = functional.StepStatistics(*vectors("mean", "var", shape=(2, C)).values(), np.full(2, 4))
    made["update_running_steps"] = (functional.update_running_steps, steps, {})
    source = {"source_mean": vectors("a")["a"], "source_var": vectors("a")["a"]}
    adapted = {**source, **vectors("mean", "var")}
    made["adapt_statistics"] = (functional.adapt_statistics, adapted, {"n": 5, "prior": 2.0})
    return made


EXAMPLES = examples()
EACH = pytest.mark.parametrize("name", EXAMPLES)


MIXABLE = [name for name, (_, arrays, _) in EXAMPLES.items() if len(list(leaves(arrays))) > 1]
OTHERS = [
    (name, argument)
    for name, (_, arrays, _) in EXAMPLES.items()
    for argument in list(arrays)[1:]
    if "statistics" not in arrays or argument.startswith("weight")
]
"""Each array but the first, which the others are to fit; but of statistics per step there may be any number."""


def backward_of(function):
    return getattr(functional, f"{function.__name__}_backward", None)


def takes_eps(function):
    return "eps" in inspect.signature(function).parameters


def upstream(y, dtype=np.float64):
    rng = np.random.default_rng(7)
    return convert(lambda leaf: rng.standard_normal(leaf.shape).astype(dtype), y)


@pytest.mark.parametrize("name", MIXABLE)
def test_arrays_of_two_libraries_are_refused_with_both_names(name):
    """Each of them in turn, as a tensor among arrays."""
    torch = pytest.importorskip("torch")
    function, arrays, options = EXAMPLES[name]
    for argument, value in arrays.items():
        mixed = {**arrays, argument: convert(torch.tensor, value)}
        with pytest.raises(TypeError, match=r"arrays of one library .* got (numpy\.ndarray, torch|torch\.Tensor, n)"):
            function(**mixed, **options)


@pytest.mark.parametrize(("name", "argument"), OTHERS)
def test_an_array_of_another_length_is_refused_by_name(name, argument):
    function, arrays, options = EXAMPLES[name]
    longer = convert(lambda array: np.concatenate([array, array]), arrays[argument])
    with pytest.raises(ValueError, match=rf"expected (the )?{argument} .*, got"):
        function(**{**arrays, argument: longer}, **options)


@EACH
def test_whole_numbers_are_refused_by_the_name_of_the_argument(name):
    function, arrays, options = EXAMPLES[name]
    argument, value = next(iter(arrays.items()))
    called = {"v": "the weight", "w": "the weight", "shards": "x"}.get(argument, argument)
    whole = convert(lambda array: array.astype(np.int64), value)
    with pytest.raises(TypeError, match=f"expected {called} of a real floating-point dtype, got int64; convert it"):
        function(**{**arrays, argument: whole}, **options)


EPS = {"batch_layer_norm": 1e-3, "rms_norm": 1e-6, "filter_response_norm": 1e-6, "weight_standardization": 1e-6}
EPS |= {"unit_norm": 1e-12, "spectral_norm": 1e-12}


@pytest.mark.parametrize("name", [name for name, (f, *_) in EXAMPLES.items() if takes_eps(f)])
def test_eps_by_default_and_below_zero(name):
    """The default is the paper's or PyTorch's; that it reaches the formula is seen where it is large."""
    function, arrays, options = EXAMPLES[name]
    arrays = {key: value for key, value in arrays.items() if key != "eps"}
    options = {key: value for key, value in options.items() if key != "eps"}
    default, same, large = (
        np.concatenate([leaf.ravel() for leaf in leaves(function(**arrays, **options, **eps)[0])])
        for eps in ({}, {"eps": EPS.get(function.__name__, 1e-5)}, {"eps": 50.0})
    )
    np.testing.assert_array_equal(default, same)
    assert (np.abs(default - large).max() > 1e-3) != (function.__name__ in {"whiten", "iter_norm"} and "mean" in arrays)
    with pytest.raises(ValueError, match=r"expected eps >=? 0.*, got -0\.5"):
        function(**arrays, **options, eps=-0.5)


@EACH
def test_everything_stays_in_float32(name):
    """What is kept for the backward pass too, and with numbers of NumPy's for the options, which are float64."""
    function, arrays, options = EXAMPLES[name]
    options = {key: np.float64(value) if isinstance(value, float) else value for key, value in options.items()}
    if takes_eps(function) and "eps" not in arrays:
        options["eps"] = np.float64(1e-3)
    arrays = convert(lambda array: array.astype(np.float32) if array.dtype == np.float64 else array, arrays)
    found = [function(**arrays, **options)]
    if backward_of(function) is not None:
        y, cache = found[0]
        found.append(backward_of(function)(upstream(y, np.float32), cache))
    kinds = {leaf.dtype for leaf in leaves(found) if isinstance(leaf, np.ndarray)}
    assert {kind for kind in kinds if np.issubdtype(kind, np.floating)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", [name for name in EXAMPLES if backward_of(EXAMPLES[name][0]) is not None])
def test_dy_of_another_library_or_dtype_is_refused(name):
    torch = pytest.importorskip("torch")
    function, arrays, options = EXAMPLES[name]
    y, cache = function(**arrays, **options)
    backward, dy = backward_of(function), upstream(y)
    with pytest.raises(TypeError, match=r"arrays of one library .* got torch\.Tensor, numpy\.ndarray; convert"):
        backward(convert(torch.tensor, dy), cache)
    with pytest.raises(TypeError, match=r"expected d\w+(\[0\])? of a real floating-point dtype, got int64; convert"):
        backward(convert(lambda leaf: leaf.astype(np.int64), dy), cache)
