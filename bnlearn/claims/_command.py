"""``python -m bnlearn ledger``: run the claims, or show their records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bnlearn import claims
from bnlearn.claims import FULL, QUICK, Scale

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str
        What follows ``ledger``.

    Returns
    -------
    int
        0 if all went well, 1 if a claim failed, 2 if the command could not be carried out, 130 if it was interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return _show(options) if options.show else _run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"python -m bnlearn ledger: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    ledger = argparse.ArgumentParser(prog="python -m bnlearn ledger", description=claims.__doc__)
    ledger.add_argument("--only", action="append", default=[], metavar="ID", help='a claim, or a pattern such as "C*"')
    ledger.add_argument("--quick", action="store_true", help=f"{QUICK.seeds} seeds and coarser grids; writes no record")
    ledger.add_argument("--seeds", type=int, metavar="N", help=f"{FULL.seeds} by default; with fewer, writes no record")
    ledger.add_argument("--records", type=Path, metavar="FOLDER", help="where records go; the package's own by default")
    ledger.add_argument("--jobs", type=int, metavar="N", help="processes; as many as processors by default")
    ledger.add_argument("--again", action="store_true", help="run also what has an up-to-date record")
    ledger.add_argument("--show", action="store_true", help="run nothing, show the records")
    form = ledger.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_const", dest="form", const=claims.as_json, default=claims.as_text)
    form.add_argument("--markdown", action="store_const", dest="form", const=claims.as_markdown)
    return ledger


def _show(options: argparse.Namespace) -> int:
    folder = options.records or claims.RECORDS
    found = claims.records(folder)
    shown = {name: found[name] for name in claims.select(options.only, found)}
    print(options.form(shown))
    return 0


def _run(options: argparse.Namespace) -> int:
    usual = QUICK if options.quick else FULL
    scale = Scale(usual.seeds if options.seeds is None else options.seeds, quick=options.quick)
    folder: Path | None = options.records
    if folder is None and not scale.quick and scale.seeds >= FULL.seeds:
        folder = claims.RECORDS
    known = claims.entries()
    chosen = [known[name] for name in claims.select(options.only, known)]
    done = claims.run(chosen, scale, folder=folder, jobs=options.jobs, again=options.again)
    for warning in done.warnings:
        print(warning, file=sys.stderr)
    print(options.form(done.records))
    for name, error in done.failed.items():
        print(f"claim {name} failed:\n{error}\n", file=sys.stderr)
    if done.failed:
        print(f"{len(done.failed)} of {len(chosen)} claims failed: {', '.join(done.failed)}", file=sys.stderr)
    if folder is not None:
        new = len(done.records) - len(done.kept)
        print(f"{new} new and {len(done.kept)} up-to-date records in {folder}", file=sys.stderr)
    if done.interrupted:
        kept = "nothing is kept" if folder is None else "call it again to go on with the others"
        print(f"interrupted after {len(done.records)} of {len(chosen)} claims; {kept}", file=sys.stderr)
        return 130
    return 1 if done.failed else 0
