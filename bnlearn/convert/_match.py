"""Which layer of one model is which layer of the other, and what stands in the way."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from bnlearn.convert._units import UNSUPPORTED, Unit

__all__ = ["Pair", "match"]

Pair = tuple[Unit, Unit]


def match(
    source: Sequence[Unit],
    target: Sequence[Unit],
    names: Mapping[str, str],
    skip: Collection[str],
    *,
    compared: bool,
) -> tuple[list[Pair], list[str]]:
    """The pairs, and every problem in words (then no pair is to be trusted).

    First those that ``names`` states; then, if all names of the rest are the same, by name; else in order, by kind and
    size. Where the two orders differ and layers of one kind and size could be confused, that is a problem, unless the
    outputs will be ``compared``.
    """
    problems = _unknown(source, [*names], "names") + _unknown(target, [*names.values()], "names")
    problems += _unknown([*source, *target], [*skip], "skip")
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    problems += [f"names gives {name!r} to more than one layer" for name in twice]
    source = [unit for unit in source if not _listed(unit, skip)]
    target = [unit for unit in target if not _listed(unit, skip)]
    for side, units in (("source", source), ("target", target)):
        problems += [
            f"{side} layer {unit}: {unit.remarks['why']}; or leave it out with skip={[unit.name]}"
            for unit in units
            if unit.kind == UNSUPPORTED
        ]
    if problems:
        return [], problems
    there = {unit.name: unit for unit in target}
    pairs = [(unit, there[names[unit.name]]) for unit in source if unit.name in names]
    taken = {id(unit) for pair in pairs for unit in pair}
    source = [unit for unit in source if id(unit) not in taken]
    target = [unit for unit in target if id(unit) not in taken]
    found, problems = _rest(source, target, compared)
    pairs += found
    return pairs, problems + [problem for pair in pairs for problem in _conflicts(*pair)]


def _listed(unit: Unit, skip: Collection[str]) -> bool:
    """Whether the unit is named, or is inside something that is."""
    return any(unit.name == name or unit.name.startswith((f"{name}.", f"{name}/", f"{name}:")) for name in skip)


def _unknown(units: Sequence[Unit], stated: Sequence[str], argument: str) -> list[str]:
    known = [unit.name for unit in units]
    problems = []
    for name in stated:
        if name not in known and not (argument == "skip" and any(_listed(unit, [name]) for unit in units)):
            near = get_close_matches(name, known, n=3) or known[:8]
            problems.append(f"{argument} has {name!r}, which is no layer with state; there are {_quoted(near)}")
    return problems


def _rest(source: Sequence[Unit], target: Sequence[Unit], compared: bool) -> tuple[list[Pair], list[str]]:
    by_name = {_plain(unit.name): unit for unit in target}
    if {_plain(unit.name) for unit in source} == set(by_name) and len(by_name) == len(target) == len(source):
        return [(unit, by_name[_plain(unit.name)]) for unit in source], []
    if [unit.signature for unit in source] == [unit.signature for unit in target]:
        return list(zip(source, target, strict=True)), []
    ours, theirs = _buckets(source), _buckets(target)
    problems = []
    for signature in dict.fromkeys([*ours, *theirs]):
        here, there = ours[signature], theirs[signature]
        if len(here) != len(there):
            problems.append(_lacking(signature, here, there))
        elif len(here) > 1 and not compared and not problems:
            problems.append(
                f"{len(here)} layers of kind {signature[0]!r} and size {signature[1]} come in an order that differs "
                f"among the others: {_listing(here)} in the source, {_listing(there)} in the target; say which is "
                "which with names={source name: target name}, or give an example, so that the outputs are compared"
            )
    pairs = [pair for signature in ours for pair in zip(ours[signature], theirs[signature], strict=False)]
    place = {id(unit): index for index, unit in enumerate(source)}
    return sorted(pairs, key=lambda pair: place[id(pair[0])]), problems


def _lacking(signature: tuple[str, tuple[int, ...]], here: Sequence[Unit], there: Sequence[Unit]) -> str:
    return (
        f"of kind {signature[0]!r} and size {signature[1]} the source has {len(here)} ({_listing(here)}), "
        f"the target {len(there)} ({_listing(there)})"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _listing(units: Sequence[Unit]) -> str:
    shown = ", ".join(repr(unit.name) for unit in units[:6]) or "none"
    return shown + (", ..." if len(units) > 6 else "")


def _plain(name: str) -> str:
    """``layer1.0.bn``, ``layer1/0/bn`` and ``layer1_0_bn`` are one name."""
    return re.sub(r"[./:]", "_", name)


def _buckets(units: Sequence[Unit]) -> dict[tuple[str, tuple[int, ...]], list[Unit]]:
    found: dict[tuple[str, tuple[int, ...]], list[Unit]] = defaultdict(list)
    for unit in units:
        found[unit.signature].append(unit)
    return found


def _conflicts(source: Unit, target: Unit) -> list[str]:
    """Why these two cannot be the same function."""
    where = f"source layer {source} and target layer {target}"
    if source.kind != target.kind:
        return [f"{where} are of different kinds, {source.kind!r} and {target.kind!r}"]
    if source.size != target.size:
        return [f"{where} differ in shape: {source.size} and {target.size}, in PyTorch's layout"]
    return [
        f"{where} differ in {key}: {value} and {target.fixed[key]}"
        for key, value in source.fixed.items()
        if value != target.fixed.get(key, value)
    ]
