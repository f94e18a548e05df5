r"""Where a sweep keeps what its tasks gave, so that a run that was cut short goes on where it stopped.

A record is one file, written under another name and then renamed, so that it is there as a whole or not at all. Its
name is a fingerprint of the task, of the code it runs and of the versions of the libraries: a change of any of these is
another record. The file starts with a checksum of the rest (NumPy's ``.npz``), and says which task it belongs to.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from bnlearn.lab.engine import Task

__all__ = ["Store", "fingerprint"]

_LIBRARIES = ("numpy", "torch", "scikit-learn")
_PACKAGE = Path(__file__).resolve().parents[1]
_CLAIMS = _PACKAGE / "claims"


def fingerprint(task: Task) -> str:
    """What tells ``task`` from every other: the same in every process, and on every machine with the same code.

    It is taken over the fields of the task and of all it is made of (functions and classes by their names); over the
    sources of this package (less :mod:`bnlearn.claims`); over the files that the functions and classes come from, and
    those beside them; and over the versions of the libraries. What such a file imports from elsewhere does not count.

    Raises
    ------
    TypeError
        If the task holds something whose name does not say what it is: a lambda, say, or an object that is neither a
        plain value nor a dataclass.
    """
    folders: set[Path] = {_PACKAGE}
    loose: dict[str, str] = {}
    what = _described(task, folders, loose)
    code = sorted(_digest(folder, _state(folder)) for folder in folders)
    versions = {name: version(name) for name in _LIBRARIES}
    text = json.dumps([what, code, loose, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(value: object, folders: set[Path], loose: dict[str, str]) -> Any:
    """``value`` in terms of JSON; where its code lies is noted in ``folders`` and ``loose``."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, np.generic):
        return _described(value.item(), folders, loose)
    if isinstance(value, (tuple, list)):
        return [_described(each, folders, loose) for each in value]
    if isinstance(value, (FunctionType, type)):
        return _named(value, folders, loose)
    if is_dataclass(value):
        parts = [(each.name, _described(getattr(value, each.name), folders, loose)) for each in fields(value)]
        return [_named(type(value), folders, loose), parts]
    raise TypeError(
        f"expected plain values, dataclasses, and functions from the top of a module, got {value!r}; a sweep with "
        "anything else has no name to be stored by: run it without a store"
    )


def _named(what: FunctionType | type, folders: set[Path], loose: dict[str, str]) -> str:
    name = f"{what.__module__}.{what.__qualname__}"
    if "<" in what.__qualname__:
        raise TypeError(f"expected a function or class from the top of a module, got {name}: its name can mean others")
    file = getattr(sys.modules.get(what.__module__), "__file__", None)
    if file is None:  # typed into a notebook
        loose[name] = inspect.getsource(what)
        return name
    folder = Path(file).resolve().parent
    if folder == _CLAIMS or not folder.is_relative_to(_PACKAGE):
        folders.add(folder)
    return name


def _sources(folder: Path) -> list[Path]:
    if folder != _PACKAGE:
        return sorted(folder.glob("*.py"))
    return sorted(path for path in folder.rglob("*.py") if path.parent != _CLAIMS)


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a source does."""
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in _sources(folder))


@lru_cache(maxsize=16)
def _digest(folder: Path, _state: object) -> str:
    found = hashlib.sha256()
    for path in _sources(folder):
        found.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()


class Store:
    """A folder of records, one for each task.

    Parameters
    ----------
    folder : path
        It is made if it is not there.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(
                f"expected a folder that can be written for the store, got {self.folder} ({error.strerror}); nothing "
                "was run: choose another, or run without a store"
            ) from error

    def load(self, name: str) -> dict[str, NDArray[np.float32]] | None:
        """What the task whose fingerprint is ``name`` gave; None if that is not there.

        A record that is damaged, or belongs to another task, is not used; a warning names the file.
        """
        path = self._path(name)
        try:
            return _values(path.read_bytes(), name)
        except FileNotFoundError:
            return None
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        except ValueError as error:
            why = str(error)
        warnings.warn(f"the record {path} {why}; its task is run again", stacklevel=3)
        return None

    def save(self, name: str, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Write what the task whose fingerprint is ``name`` gave."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"value {key}": value for key, value in values.items()}
        np.savez(buffer, task=np.array(name), **arrays)
        payload = buffer.getvalue()
        part = self.folder / f"{name[:8]}-{uuid4().hex}.part"
        try:
            with part.open("xb") as file:
                file.write(_checksum(payload) + b"\n" + payload)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path(name))
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.record"


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()


def _values(content: bytes, name: str) -> dict[str, NDArray[np.float32]]:
    checksum, _, payload = content.partition(b"\n")
    if checksum != _checksum(payload):
        raise ValueError("is damaged: its checksum is not that of its content")
    with np.load(io.BytesIO(payload), allow_pickle=False) as record:
        if str(record["task"]) != name:
            raise ValueError(f"belongs to another task, {record['task']}")
        return {key.removeprefix("value "): record[key] for key in record.files if key != "task"}
