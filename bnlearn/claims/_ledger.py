"""The ledger: which claims there are, and running many of them."""

from __future__ import annotations

import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from bnlearn.claims import _records
from bnlearn.claims._claim import FULL, Claim, Scale
from bnlearn.claims._digest import digest
from bnlearn.claims._records import RECORDS, CorruptRecordError, Record

THEMES = (
    "bnlearn.claims.transform",
    "bnlearn.claims.speed",
    "bnlearn.claims.signal",
    "bnlearn.claims.affine",
    "bnlearn.claims.depth",
    "bnlearn.claims.shift",
    "bnlearn.claims.landscape",
    "bnlearn.claims.regularisation",
    "bnlearn.claims.order",
    "bnlearn.claims.batches",
    "bnlearn.claims.leaks",
    "bnlearn.claims.domains",
    "bnlearn.claims.robustness",
    "bnlearn.claims.cost",
    "bnlearn.claims.sequences",
    "bnlearn.claims.variants",
    "bnlearn.claims.methods",
    "bnlearn.claims.batch_layer",
)
"""The modules that claims are declared in, each with its ``CLAIMS``. A new theme is a new line here."""

_EVIDENCE = ("torch", "scipy", "joblib", "tqdm", "sklearn")


class Entry(NamedTuple):
    """A claim and the module that declares it."""

    claim: Claim
    module: str


def entries() -> dict[str, Entry]:
    """Every claim with its module, by its identifier, in the order of the ledger.

    Raises
    ------
    ImportError
        If a library is missing that the claims are measured with.
    ValueError
        If two claims have one identifier.
    """
    found: dict[str, Entry] = {}
    for module in THEMES:
        for claim in _declared(module):
            if claim.id in found:
                raise ValueError(f"expected one claim {claim.id}, got one in {found[claim.id].module} and in {module}")
            found[claim.id] = Entry(claim, module)
    return {name: found[name] for name in sorted(found, key=_records.order)}


def _declared(module: str) -> tuple[Claim, ...]:
    try:
        declared: tuple[Claim, ...] = import_module(module).CLAIMS
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EVIDENCE:
            raise
        raise ImportError(
            f"the claims are measured with {', '.join(_EVIDENCE[:-1])} and scikit-learn, and {error.name} is not "
            "installed; install this package with its extra: pip install -e '.[evidence]'"
        ) from error
    return declared


def ledger() -> dict[str, Claim]:
    """Every claim, by its identifier.

    Raises
    ------
    ImportError
        If a library is missing that the claims are measured with: they are the extra ``evidence``.
    """
    return {name: entry.claim for name, entry in entries().items()}


def select(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that any of the patterns matches; all of them if there is no pattern.

    Parameters
    ----------
    patterns : iterable of str
        Identifiers, or patterns such as ``"C*"`` and ``"B[1-4]"``; small letters will do.
    names : iterable of str
        Identifiers to choose from; their order is kept.

    Raises
    ------
    ValueError
        If a pattern matches none.

    Examples
    --------
    >>> select(["b2", "C*"], ["A1", "B2", "C1", "C2"])
    ['B2', 'C1', 'C2']
    """
    names, patterns = list(names), list(patterns)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern.upper())]
        if not matched:
            raise ValueError(unknown(pattern, names))
        chosen.update(matched)
    return [name for name in names if name in chosen or not patterns]


def unknown(name: str, names: Sequence[str]) -> str:
    """What to say to who asks for a claim that is not there."""
    near = get_close_matches(name.upper(), names, n=4, cutoff=0.5)
    known = f"near it: {', '.join(near)}" if near else f"there are: {', '.join(names) or 'none'}"
    return f"expected a claim of the ledger or a pattern such as 'C*', got {name!r}; {known}"


def record(name: str, folder: Path = RECORDS) -> Record:
    """The record of a claim.

    Parameters
    ----------
    name : str
        Its identifier, such as ``"B2"``.
    folder : Path
        Where the records lie; those of the package by default.

    Raises
    ------
    ValueError
        If there is no record of it, or the file is not one.

    Examples
    --------
    >>> print(record("A7").verdict)
    supported
    """
    try:
        return _records.read(folder / f"{name}.json")
    except FileNotFoundError:
        raise ValueError(f"{unknown(name, _records.found(folder))} (with a record in {folder})") from None


def records(folder: Path = RECORDS) -> dict[str, Record]:
    """All records in a folder, by the identifier of the claim, in the order of the ledger."""
    return {name: _records.read(folder / f"{name}.json") for name in _records.found(folder)}


@dataclass
class Run:
    """What a run of the ledger gave.

    Attributes
    ----------
    records : dict of str to Record
        Of every claim that is done, those that were up to date included.
    kept : list of str
        Claims whose record was up to date.
    failed : dict of str to str
        What went wrong, by the claim.
    warnings : list of str
        What the reader should know: records that could not be read.
    interrupted : bool
        Whether it was stopped from the keyboard.
    """

    records: dict[str, Record] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False


def run(
    chosen: Iterable[Entry],
    scale: Scale = FULL,
    *,
    folder: Path | None = None,
    jobs: int | None = None,
    again: bool = False,
    progress: bool = True,
) -> Run:
    """Run claims and write the record of each as soon as it is done.

    The claims of a module share what they train, so they run in one process, one after the other; modules run beside
    each other, the longest first as far as earlier records tell. An exception in one claim leaves the others alone.

    Parameters
    ----------
    chosen : iterable of Entry
        From :func:`entries`.
    scale : Scale
        How much.
    folder : Path or None
        Where the records go; None: nowhere, they are only returned. A claim that has a record there of the same code
        and scale is not run.
    jobs : int or None
        Processes; None: as many as there are processors. (``joblib.parallel_config`` is heeded.)
    again : bool
        Whether to run also what is up to date.
    progress : bool
        Whether to show a bar with the time left.

    Raises
    ------
    ValueError
        If nothing is chosen, or no process.
    OSError
        If the folder cannot be written: nothing has run then.
    """
    chosen = list(chosen)
    if not chosen:
        raise ValueError("expected at least one claim, got none")
    if jobs is not None and jobs < 1:
        raise ValueError(f"expected at least 1 process, got {jobs}")
    if folder is not None:
        writable(folder)
    done = Run()
    digests = {module: digest(module) for module in {entry.module for entry in chosen}}
    for claim, module in chosen:
        if folder is not None:
            _keep(done, claim, folder, scale, None if again else digests[module])
    waiting = [entry for entry in chosen if entry.claim.id not in done.kept]
    with nullcontext(folder) if folder is not None else tempfile.TemporaryDirectory() as place:
        out = Path(place or ".")
        if waiting:
            _run(done, waiting, scale, out, digests, jobs, progress)
    done.records = {entry.claim.id: done.records[entry.claim.id] for entry in chosen if entry.claim.id in done.records}
    return done


def writable(folder: Path) -> None:
    """Make sure that a folder is there and can be written.

    Raises
    ------
    OSError
        If not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"expected a folder that can be written, got {folder} ({error.strerror}); choose another: --records FOLDER"
        ) from error


def _keep(done: Run, claim: Claim, folder: Path, scale: Scale, code: str | None) -> None:
    """Keep a claim's record if it was made with this code at this scale."""
    path = folder / f"{claim.id}.json"
    try:
        old = _records.read(path)
    except FileNotFoundError:
        return
    except CorruptRecordError as error:
        done.warnings.append(str(error))
        return
    if (old.digest, old.scale) != (code, scale):
        return
    if _records.prose(old) != _records.prose(claim):
        old = _records.reworded(old, claim)
        _records.write(old, folder)
    done.records[claim.id] = old
    done.kept.append(claim.id)


def _run(
    done: Run,
    waiting: list[Entry],
    scale: Scale,
    out: Path,
    digests: Mapping[str, str],
    jobs: int | None,
    progress: bool,
) -> None:
    import joblib

    tasks: dict[str, list[str]] = {}
    for claim, module in waiting:
        tasks.setdefault(module, []).append(claim.id)
    seconds = _expected([entry.claim.id for entry in waiting], out)
    modules = sorted(tasks, key=lambda module: -sum(seconds[name] for name in tasks[module]))
    workers = min(jobs or joblib.cpu_count(), len(modules))
    before = {name: _stamp(out, name) for name in seconds}

    def finished() -> list[str]:
        return [name for name in seconds if _stamp(out, name) != before[name]]

    with _bar(seconds, finished, progress):
        try:
            calls = (joblib.delayed(measure)(m, tasks[m], scale, out, digests[m]) for m in modules)
            for failed in joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(calls):
                done.failed.update(failed)
        except KeyboardInterrupt:
            done.interrupted = True
        except BrokenProcessPool as error:
            lost = set(seconds) - set(finished()) - set(done.failed)
            done.failed.update(dict.fromkeys(sorted(lost), f"the process that ran it ended: {error}"))
    for name in finished():
        done.records[name] = _records.read(out / f"{name}.json")


def measure(module: str, names: Sequence[str], scale: Scale, folder: Path, code: str) -> dict[str, str]:
    """Run claims of one module, in the order given, and write the record of each; what went wrong is returned."""
    failed = {}
    claims = {claim.id: claim for claim in _declared(module)}
    for name in names:
        start = time.perf_counter()
        try:
            measured = claims[name].measure(scale)
            seconds = time.perf_counter() - start
            _records.write(_records.make(claims[name], measured, scale, seconds=seconds, digest=code), folder)
        except Exception:
            failed[name] = traceback.format_exc().strip()
    return failed


def _stamp(folder: Path, name: str) -> int:
    path = folder / f"{name}.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def _expected(names: Sequence[str], folder: Path) -> dict[str, float]:
    """The seconds that each claim took when it was last run; where nothing is known, the mean of the others."""
    paths = {name: [place / f"{name}.json" for place in (folder, RECORDS)] for name in names}
    known = {name: seconds for name in names if (seconds := _seconds(paths[name])) is not None}
    mean = sum(known.values()) / len(known) if known else 1.0
    return {name: known.get(name, mean) + 0.01 for name in names}


def _seconds(paths: Iterable[Path]) -> float | None:
    """What the first of these records that is there and can be read says."""
    for path in paths:
        with suppress(FileNotFoundError, CorruptRecordError):
            return _records.read(path).seconds
    return None


@contextmanager
def _bar(seconds: Mapping[str, float], finished: Callable[[], list[str]], progress: bool) -> Iterator[None]:
    """A bar with the time left; the records that appear in the folder move it."""
    from tqdm.auto import tqdm

    form = "{desc} |{bar}| {percentage:.0f} % [{elapsed}, {remaining} left]"
    with tqdm(total=sum(seconds.values()), disable=not progress, bar_format=form) as bar:
        stop = threading.Event()

        def show() -> None:
            over = False
            while not over:
                over = stop.wait(0.3)
                names = finished()
                bar.set_description(f"{len(names)} of {len(seconds)} claims", refresh=False)
                bar.n = sum(seconds[name] for name in names)
                bar.refresh()

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
