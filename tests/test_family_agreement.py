"""Every method of the family, in every library: one list of promises, and no member that is left out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from bnlearn.family import convert, influence, leaves, members
from bnlearn.gradcheck import numerical_gradient, relative_error

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    jax = pytest.importorskip("jax")
    strict = pytest.importorskip("array_api_strict")

jax.config.update("jax_enable_x64", True)

MEMBERS = members()
DIFFERENTIABLE = [member for member in MEMBERS if member.backward is not None]
TO = {
    "torch": torch.tensor,
    "keras.ops on TensorFlow": tf.constant,
    "array_api_strict": strict.asarray,
}


def example_of(member, rng):
    """The member's example; of sequences a short one, since what is traced is unrolled over the steps."""
    return member.example(rng, 2) if member.acts_on == "sequences" else member.example(rng)


def each(of):
    return pytest.mark.parametrize("member", of, ids=lambda member: member.name)


def upstream(y):
    """A gradient with respect to ``y``, random, of its tree and library."""
    rng = np.random.default_rng(7)
    return convert(lambda leaf: rng.standard_normal(leaf.shape), y)


def gradients(member, example, dy, cache):
    """Name of an array -> its gradient, from the hand-written backward pass."""
    found = member.backward(dy, cache)
    if hasattr(found, "_fields"):
        return {name: getattr(found, name) for name in example.gradients}
    found = found if isinstance(found, tuple) else (found,)
    return dict(zip(example.gradients, found, strict=True))


def assert_same(ours, theirs, tolerance):
    """Two trees, to a tolerance relative to the largest number of each array."""
    for left, right in zip(leaves(ours), leaves(theirs), strict=True):
        assert left.shape == tuple(right.shape)
        assert relative_error(np.asarray(left), np.asarray(right)) < tolerance


def inner(dy, y):
    """The scalar whose gradient with respect to ``y`` is ``dy``."""
    return sum((a * b).sum() for a, b in zip(leaves(dy), leaves(y), strict=True))


@pytest.mark.parametrize("library", TO)
@each(MEMBERS)
def test_one_formula_in_every_library(member, library, rng):
    """Forwards and backwards, in float64, in arrays of the library that was asked."""
    example = example_of(member, rng)
    y, cache = member(example.arrays, example.options)
    there, cache_there = member(convert(TO[library], example.arrays), example.options)
    kind = type(TO[library](np.zeros(1)))
    assert all(isinstance(leaf, kind) for leaf in leaves(there))
    assert_same(y, there, 1e-10)
    if member.backward is not None:
        dy = upstream(y)
        ours = gradients(member, example, dy, cache)
        theirs = gradients(member, example, convert(TO[library], dy), cache_there)
        assert all(isinstance(leaf, kind) for leaf in leaves(theirs))
        assert_same(ours, theirs, 1e-10)


@each(DIFFERENTIABLE)
def test_backward_is_torch_autograd(member, rng):
    example = example_of(member, rng)
    arrays = convert(torch.tensor, example.arrays)
    wanted = {name: arrays[name] for name in example.gradients}
    for leaf in leaves(wanted):
        leaf.requires_grad_()
    y, cache = member(arrays, example.options)
    dy = convert(torch.tensor, upstream(convert(lambda leaf: leaf.detach().numpy(), y)))
    theirs = torch.autograd.grad(inner(dy, y), list(leaves(wanted)))
    with torch.no_grad():
        ours = gradients(member, example, dy, cache)
    assert_same(convert(lambda leaf: leaf.detach(), ours), theirs, 1e-9)


@each(MEMBERS)
def test_jax_jit_and_jax_grad(member, rng):
    """Traced, as it is used there; and one compilation is much faster than one for each operation."""
    example = example_of(member, rng)
    y, cache = member(example.arrays, example.options)
    dy = upstream(y)
    names = example.gradients if member.backward else ()

    @jax.jit
    def all_at_once(arrays, dy):
        def forward(wanted):
            return member({**arrays, **wanted}, example.options)

        there, pull, cache = jax.vjp(forward, {name: arrays[name] for name in names}, has_aux=True)
        if not names:
            return there, [], []
        (theirs,) = pull(dy)
        ours = gradients(member, example, dy, cache)
        return there, [ours[name] for name in names], [theirs[name] for name in names]

    there, ours, theirs = all_at_once(*convert(jax.numpy.asarray, (example.arrays, dy)))
    assert_same(there, y, 1e-10)
    if names:
        assert_same(ours, list(gradients(member, example, dy, cache).values()), 1e-10)
        assert_same(ours, theirs, 1e-9)


@each([member for member in DIFFERENTIABLE if member.example(np.random.default_rng(0)).exact is not None])
def test_backward_is_what_central_differences_say(member, rng):
    example = example_of(member, rng)
    options = {**example.options, **example.exact}
    y, cache = member(example.arrays, options)
    dy = upstream(y)
    for name, ours in gradients(member, example, dy, cache).items():
        parts = list(leaves(example.arrays[name]))
        for place, (part, gradient) in enumerate(zip(parts, leaves(ours), strict=True)):

            def loss(value, name=name, parts=parts, place=place):
                changed = [value if i == place else part for i, part in enumerate(parts)]
                whole = tuple(changed) if isinstance(example.arrays[name], tuple) else changed[0]
                return inner(dy, member({**example.arrays, name: whole}, options)[0])

            assert relative_error(gradient, numerical_gradient(loss, part)) < 1e-6, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each(MEMBERS)
def test_half_precision_is_rounded_once(member, dtype, rng):
    """Computed in float32, whatever comes in: a result in half precision is the float32 result, rounded."""
    example = example_of(member, rng)
    rest = convert(lambda leaf: torch.tensor(leaf).float(), example.arrays)
    half = convert(lambda leaf: torch.tensor(leaf).to(dtype), example.arrays[example.subject])
    y, cache = member({**rest, example.subject: half}, example.options)
    wide, cache_wide = member({**rest, example.subject: convert(lambda leaf: leaf.float(), half)}, example.options)
    pairs = list(zip(leaves(y), leaves(wide), strict=True))
    if member.backward is not None:
        dy = convert(lambda leaf: torch.tensor(leaf).to(dtype), upstream(convert(lambda leaf: leaf.numpy(), wide)))
        ours = gradients(member, example, dy, cache)[example.subject]
        theirs = gradients(member, example, convert(lambda leaf: leaf.float(), dy), cache_wide)[example.subject]
        pairs += zip(leaves(ours), leaves(theirs), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs.to(dtype).float(), rtol=torch.finfo(dtype).eps, atol=1e-6)


@each(MEMBERS)
def test_float32_stays_float32(member, rng):
    example = example_of(member, rng)
    y, cache = member(convert(np.float32, example.arrays), example.options)
    assert {leaf.dtype for leaf in leaves(y)} == {np.dtype(np.float32)}
    if member.backward is not None:
        ours = gradients(member, example, convert(np.float32, upstream(y)), cache)
        assert {leaf.dtype for leaf in leaves(ours)} == {np.dtype(np.float32)}


@each(MEMBERS)
def test_nothing_is_changed_in_place(member, rng):
    example = example_of(member, rng)
    before = convert(np.copy, example.arrays)
    y, cache = member(example.arrays, example.options)
    y_before = convert(np.copy, y)
    if member.backward is not None:
        dy = upstream(y)
        dy_before = convert(np.copy, dy)
        first = member.backward(dy, cache)
        again = member.backward(dy, cache)
        for left, right in zip(leaves([first, dy]), leaves([again, dy_before]), strict=True):
            np.testing.assert_array_equal(left, right)
    for left, right in zip(leaves([example.arrays, y]), leaves([before, y_before]), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@each(MEMBERS)
def test_nan_goes_as_far_as_the_statistics_and_no_further(member, bad, rng):
    """It is not hidden (its own output is NaN), and reaches no value that does not share a statistic with it."""
    example = member.example(rng)
    reached = influence(member, np.random.default_rng(0))
    y = np.concatenate([leaf.ravel() for leaf in leaves(member(example.arrays, example.options)[0])])
    spoilt = convert(np.copy, example.arrays)
    first = next(leaves(spoilt[example.subject]))
    first[(0,) * first.ndim] = bad
    if member.name == "whiten":
        with pytest.raises(np.linalg.LinAlgError):  # NumPy's eigenvalues of a NaN: not hidden either
            member(spoilt, example.options)
        return
    after = np.concatenate([leaf.ravel() for leaf in leaves(member(spoilt, example.options)[0])])
    spread = reached.reshape(y.size, -1)[:, 0]
    np.testing.assert_array_equal(after[~spread], y[~spread])
    if np.isnan(bad):
        assert np.isnan(after[0])


@each(MEMBERS)
def test_torch_compile(member, rng):
    """In one graph, without a break."""
    example = example_of(member, rng)
    arrays = convert(torch.tensor, example.arrays)
    function = member.function  # looked up outside: the compiler is to see the formula, not the registry
    y, _ = function(**arrays, **example.options)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(lambda a: function(**a, **example.options)[0], fullgraph=True, backend="aot_eager")
        assert_same(compiled(arrays), y, 1e-10)
