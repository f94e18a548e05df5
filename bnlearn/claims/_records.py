"""Records: what a run of a claim gave, raw, in one JSON file each; the verdict is computed whenever one is read."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bnlearn
from bnlearn._files import write_at_once
from bnlearn.claims._claim import Claim, Criterion, Measurement, Result, Scale, Verdict, judge, overall

RECORDS = Path(__file__).parent / "records"
"""Those that the package ships."""

_PROSE = ("statement", "sources", "theme", "setting", "chapter", "note", "data")
_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "id": str,
    "statement": str,
    "sources": list,
    "theme": str,
    "setting": str,
    "chapter": str,
    "note": str,
    "data": str,
    "verdict": str,
    "criteria": list,
    "scale": dict,
    "seconds": (int, float),
    "date": str,
    "command": str,
    "versions": dict,
    "machine": dict,
    "digest": str,
    "results": dict,
    "effects": dict,
    "arms": dict,
    "details": dict,
}


class CorruptRecordError(ValueError):
    """A file is not the record of a claim."""


@dataclass(frozen=True, eq=False)
class Record:
    """What one run of a claim gave, and how it was made.

    Attributes
    ----------
    id, statement, sources, theme, setting, chapter, note, data
        As :class:`Claim` has them.
    declared : tuple of Criterion
        What would support the claim and what would refute it, as declared before the run.
    effects : mapping of str to array
        Raw, by the name of the criterion: shape (seeds,), or (checks,) if it is exact.
    arms : mapping of str to mapping of str to array
        What each arm of each criterion gave: shape (seeds,) or (seeds, times), to four significant digits; what is not
        finite is NaN.
    details : mapping of str to mapping
        Whatever else each criterion keeps.
    scale : Scale
        How many seeds, and whether anything was cut short.
    seconds : float
        How long it took.
    date, command, digest : str
        When (UTC), how, and with what code (:func:`digest`) it was made.
    versions, machine : mapping
        Of Python and the libraries; the system and the number of processors.
    shown : mapping of str to mapping
        Estimate, interval and verdict as they were when it was made: to be compared, and to be read without SciPy.
    """

    id: str
    statement: str
    sources: tuple[str, ...]
    theme: str
    setting: str
    chapter: str
    note: str
    data: str
    declared: tuple[Criterion, ...]
    effects: Mapping[str, NDArray[np.float64]]
    arms: Mapping[str, Mapping[str, NDArray[np.float64]]]
    details: Mapping[str, Mapping[str, Any]]
    scale: Scale
    seconds: float
    date: str
    command: str
    digest: str
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]
    shown: Mapping[str, Mapping[str, Any]]

    @cached_property
    def criteria(self) -> dict[str, Result]:
        """The result of each criterion, computed from its raw effects."""
        return {c.name: judge(self.id, c, self.effects[c.name]) for c in self.declared}

    @property
    def verdict(self) -> Verdict:
        """The verdict on the claim, computed from the raw effects."""
        return overall(result.verdict for result in self.criteria.values())


def make(claim: Claim, measured: Mapping[str, Measurement], scale: Scale, *, seconds: float, digest: str) -> Record:
    """The record of a run.

    Parameters
    ----------
    claim, measured, scale
        What was run, what it gave (:meth:`Claim.measure`), and how much.
    seconds : float
        How long it took.
    digest : str
        Of the code it was made with.
    """
    results = claim.judge(measured)
    shown = {
        name: {"estimate": one.estimate, "low": one.low, "high": one.high, "verdict": str(one.verdict)}
        for name, one in results.items()
    }
    return Record(
        id=claim.id,
        **prose(claim),
        declared=claim.criteria,
        effects={name: one.effect for name, one in results.items()},
        arms={name: {k: _rounded(arm) for k, arm in one.arms.items()} for name, one in measured.items()},
        details={name: dict(one.details) for name, one in measured.items()},
        scale=scale,
        seconds=round(seconds, 2),
        date=datetime.now(UTC).date().isoformat(),
        command=_command(claim.id, scale),
        digest=digest,
        versions=_versions(),
        machine={
            "system": platform.system(),
            "architecture": platform.machine(),
            "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        },
        shown=shown,
    )


def prose(claim: Claim | Record) -> dict[str, Any]:
    """What a record repeats of a claim for the reader; a run does not depend on it."""
    return {name: getattr(claim, name) for name in _PROSE}


def reworded(record: Record, claim: Claim) -> Record:
    """The record with the words that the claim has now."""
    return replace(record, **prose(claim))


def _rounded(values: Any) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    digits = [float(f"{value:.4g}") if math.isfinite(value) else math.nan for value in array.ravel().tolist()]
    return np.array(digits).reshape(array.shape)


def _command(name: str, scale: Scale) -> str:
    options = " --quick" if scale.quick else ""
    return f"python -m bnlearn ledger --only {name}{options} --seeds {scale.seeds}"


def _versions() -> dict[str, str]:
    found = {"bnlearn": bnlearn.__version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "torch"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write(record: Record, folder: Path) -> Path:
    """Write a record into a folder, whole or not at all.

    Parameters
    ----------
    record : Record
        Replaces the claim's earlier one.
    folder : Path
        Exists.

    Returns
    -------
    Path
        ``folder / "B2.json"`` for claim B2.

    Raises
    ------
    ValueError
        If the details are not what JSON can hold: text, finite numbers, lists and mappings of them.
    """
    values = {
        "id": record.id,
        **prose(record),
        "verdict": str(overall(Verdict(one["verdict"]) for one in record.shown.values())),
        "criteria": [asdict(criterion) for criterion in record.declared],
        "scale": asdict(record.scale),
        **{name: getattr(record, name) for name in ("seconds", "date", "command", "versions", "machine", "digest")},
        "results": record.shown,
        "effects": record.effects,
        "arms": record.arms,
    }
    text = "".join(f" {json.dumps(name)}: {_json(value, 1)},\n" for name, value in values.items())
    try:
        details = _json(record.details, 1)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"claim {record.id}: expected details that JSON can hold (text, finite numbers, lists and mappings of "
            f"them), got {dict(record.details)!r}: {error}"
        ) from error
    path = folder / f"{record.id}.json"
    write_at_once(path, f'{{\n{text} "details": {details}\n}}\n')
    return path


def _json(value: Any, depth: int) -> str:
    """JSON with mappings down to the third level on lines of their own, and everything else on one."""
    if isinstance(value, Mapping) and value and depth < 4:
        pad = " " * (depth + 1)
        lines = (f"{pad}{json.dumps(str(key))}: {_json(one, depth + 1)}" for key, one in value.items())
        return "{\n" + ",\n".join(lines) + "\n" + pad[1:] + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {_json(one, 9)}" for one in value) + "\n ]"
    if isinstance(value, np.ndarray):
        value = _nulls(value.tolist())
    return json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain)


def _nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_nulls(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is neither")


def read(path: Path) -> Record:
    """The record in a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CorruptRecordError
        If it is not a record: the message names the file, and what is wrong with it.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        return _parsed(values, path.stem)
    except (ValueError, TypeError, KeyError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptRecordError(
            f"expected the record of claim {path.stem} in {path}, got a file that is not one ({what}); "
            f"`python -m bnlearn ledger --only {path.stem}` makes it again"
        ) from error


def _parsed(values: Any, name: str) -> Record:
    if not isinstance(values, dict):
        raise TypeError(f"expected a mapping, got {type(values).__name__}")
    for key, kind in _KEYS.items():
        if not isinstance(values[key], kind):
            raise TypeError(f"{key} is {values[key]!r}")
    if values["id"] != name:
        raise ValueError(f"it is that of {values['id']!r}")
    declared = tuple(Criterion(**one) for one in values["criteria"])
    names = [criterion.name for criterion in declared]
    for key in ("results", "effects", "arms", "details"):
        if list(values[key]) != names:
            raise ValueError(f"expected {key} of {names}, got {list(values[key])}")
    scale = Scale(**values["scale"])
    effects = {one: _array(values["effects"][one]) for one in names}
    for criterion in declared:
        if not criterion.exact and effects[criterion.name].shape != (scale.seeds,):
            got = effects[criterion.name].shape
            raise ValueError(f"expected effects of shape ({scale.seeds},) for {criterion.name!r}, got {got}")
    return Record(
        id=name,
        **{key: values[key] for key in _PROSE} | {"sources": tuple(values["sources"])},
        declared=declared,
        effects=effects,
        arms={one: {arm: _array(raw) for arm, raw in values["arms"][one].items()} for one in names},
        details=values["details"],
        scale=scale,
        **{key: values[key] for key in ("seconds", "date", "command", "digest", "versions", "machine")},
        shown=values["results"],
    )


def _array(values: Sequence[Any]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def found(folder: Path = RECORDS) -> list[str]:
    """The identifiers of the claims that have a record in a folder, in the order of the ledger."""
    return sorted((path.stem for path in folder.glob("*.json")), key=order)


def order(name: str) -> tuple[str, int]:
    """What identifiers are sorted by: A2 comes before A10.

    Examples
    --------
    >>> sorted(["A10", "B1", "A2"], key=order)
    ['A2', 'A10', 'B1']
    """
    return name[:1], int(name[1:]) if name[1:].isdigit() else 0
