"""``python -m bnlearn audit``: the audit for a terminal, a pre-commit hook or a build."""

from __future__ import annotations

import argparse
import difflib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from bnlearn._files import write_at_once
from bnlearn.clinic._audit import audit
from bnlearn.clinic._dispatch import framework
from bnlearn.clinic._findings import Report
from bnlearn.clinic._rule import SEVERITIES
from bnlearn.clinic._rules import RULES, page

__all__ = ["main"]

PLACE = "package.module:name"


class CannotRunError(Exception):
    """The audit cannot be run; the message says why."""


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str
        What follows ``audit``.

    Returns
    -------
    int
        0 if nothing as bad as ``--fail-on`` says was found, 1 if something was, 2 if the audit could not be run,
        130 if it was interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.model is None) == (options.explain is None):
        parser.error(f"expected either a model ({PLACE}) or --explain")
    try:
        return _explain(options.explain) if options.explain is not None else _audit(options)
    except KeyboardInterrupt:
        print("python -m bnlearn audit: interrupted", file=sys.stderr)
        return 130
    except CannotRunError as error:
        if error.__cause__ is not None:  # it came from the caller's own code: show where
            traceback.print_exception(error.__cause__)
        print(f"python -m bnlearn audit: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bnlearn audit",
        description="Look over the batch normalisation of a PyTorch or Keras model. Modules are found from the working "
        "directory too.",
    )
    parser.add_argument("model", nargs="?", metavar=PLACE, help="a model, or what returns one")
    parser.add_argument("--data", metavar=PLACE, help="batches, or what returns them")
    parser.add_argument("--optimizer", metavar=PLACE, help="what returns the optimizer, called with the model")
    parser.add_argument("--mask", metavar=PLACE, help="what returns the mask of a batch, True where real")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_const", dest="form", const=Report.to_json, default=repr)
    form.add_argument("--markdown", action="store_const", dest="form", const=Report.to_markdown)
    form.add_argument("--sarif", action="store_const", dest="form", const=Report.to_sarif)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report there; the table is still shown")
    parser.add_argument(
        "--fail-on", choices=[*SEVERITIES, "never"], default="error", help="what exits with 1; error by default"
    )
    parser.add_argument("--explain", metavar="RULE", help="show the page of a rule, such as BN306")
    return parser


def _explain(code: str) -> int:
    if code.upper() not in RULES:
        near = difflib.get_close_matches(code.upper(), RULES, n=3) or list(RULES)
        raise CannotRunError(f"expected the code of a rule, got {code!r}; near it: {', '.join(near)}")
    print(page(RULES[code.upper()]), end="")
    return 0


def _audit(options: argparse.Namespace) -> int:
    if options.mask is not None and options.data is None:
        raise CannotRunError("expected --data with --mask, got none: a mask is looked up in each batch")
    with _working_directory_first():
        model = _model(options.model)
        data = None if options.data is None else _data(options.data)
        optimizer = _optimizer(options.optimizer, model) if options.optimizer is not None else None
        mask = None if options.mask is None else _callable(options.mask, "--mask")
        with _running("the audit"):
            report = audit(model, data, optimizer=optimizer, mask=mask)
    _show(report, options.form, options.output)
    return int(options.fail_on != "never" and bool(report.at_least(options.fail_on)))


def _show(report: Report, form: Callable[[Report], str], output: Path | None) -> None:
    if output is None:
        print(form(report))
        return
    try:
        write_at_once(output, form(report).rstrip("\n") + "\n")
    except OSError as error:
        raise CannotRunError(f"the report could not be written: {error}") from None
    print(report)


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Modules in the working directory can be imported, however Python was started."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _running(what: str) -> Iterator[None]:
    """An error in the caller's own code is shown whole, with what was being done."""
    try:
        yield
    except CannotRunError:
        raise
    except (Exception, SystemExit) as error:
        raise CannotRunError(f"{what} raised {type(error).__name__}: {error}") from error


def _found(place: str, option: str) -> Any:
    """What stands at ``package.module:name``."""
    name, colon, attribute = place.partition(":")
    if not (name and colon and attribute):
        raise CannotRunError(f"expected {PLACE} for {option}, got {place!r}")
    with _running(f"importing {name}"):
        try:
            found: Any = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there; one that it imports is not
            raise CannotRunError(
                f"no module {error.name!r} for {option}, neither installed nor in {Path.cwd()}"
            ) from None
    for step in attribute.split("."):
        if not hasattr(found, step):
            near = difflib.get_close_matches(step, dir(found), n=3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise CannotRunError(f"{name} has no {attribute!r} for {option}{hint}")
        found = getattr(found, step)
    return found


def _callable(place: str, option: str) -> Any:
    found = _found(place, option)
    if not callable(found):
        raise CannotRunError(f"expected a function at {place} for {option}, got {type(found).__name__}")
    return found


def _model(place: str) -> Any:
    found = _found(place, "the model")
    if framework(found) is None and callable(found):
        with _running(place):
            found = found()
        if framework(found) is None:
            raise CannotRunError(
                f"expected {place} to return a torch.nn.Module or a keras.Model, got {type(found).__name__}"
            )
    if framework(found) is None:
        raise CannotRunError(f"expected a model at {place}, or a function that returns one, got {type(found).__name__}")
    return found


def _data(place: str) -> Any:
    found = _found(place, "--data")
    if callable(found):
        with _running(place):
            found = found()
    if not hasattr(found, "__iter__") and not hasattr(found, "__getitem__"):
        raise CannotRunError(
            f"expected batches at {place}, or a function that returns them, got {type(found).__name__}"
        )
    return found


def _optimizer(place: str, model: Any) -> Any:
    make = _callable(place, "--optimizer")
    with _running(place):
        return make(model)
