"""The command line: ``python -m bnlearn audit`` and ``python -m bnlearn ledger``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "audit": ("bnlearn.clinic._command", "look over the batch normalisation of a model of yours"),
    "ledger": ("bnlearn.claims._command", "run the claims of the book, or show their records"),
}
"""Each command, with the module whose ``main`` carries it out, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str or None
        What follows ``python -m bnlearn``; None: as the interpreter was called.

    Returns
    -------
    int
        The exit status: 0 if all went well, 2 if the command could not be carried out, else as the command says.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bnlearn",
        usage="python -m bnlearn [-h] command ...",
        epilog="; ".join(f"{name}: {what}" for name, (_, what) in COMMANDS.items()) + ". Each has a --help of its own.",
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    module, _ = COMMANDS[options.command]
    status: int = import_module(module).main(options.arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
