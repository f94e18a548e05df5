"""Several processes on this machine, started by ``torchrun``, for tests and notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["torchrun"]

GRACE = 20.0
"""Seconds that torchrun has to end its processes once it is asked to."""


def _loopback() -> dict[str, str]:
    """What keeps gloo off the network: the name of the interface that leads to this machine itself."""
    names = {"linux": "lo", "darwin": "lo0"}  # Windows goes by the address, and has no name for it
    return {"GLOO_SOCKET_IFNAME": names[sys.platform]} if sys.platform in names else {}


def torchrun(script: str | Path, *arguments: str | Path, processes: int = 2, timeout: float = 120.0) -> str:
    """Run a Python script in several processes that can talk to each other, and give what they print.

    ``python -m torch.distributed.run --nproc-per-node PROCESSES SCRIPT ARGUMENTS``, over the loopback interface alone,
    on a free port. The script begins with ``torch.distributed.init_process_group("gloo")``. One thread per process.

    Parameters
    ----------
    script : path
        The script to run.
    *arguments : str or path
        What follows it on the command line.
    processes : int
        How many.
    timeout : float
        Seconds after which all of them are ended.

    Returns
    -------
    str
        What the processes wrote to stdout, in the order in which it came.

    Raises
    ------
    RuntimeError
        If a process failed, with the end of what was written to stderr: the others are ended then.
    TimeoutError
        If they took longer than ``timeout``, one waiting for another, say. All of them are ended.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
        # What --standalone stands for, and an address in place of the machine's name, which need not be known.
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
        *map(str, (script, *arguments)),
    ]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **_loopback(), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
    )
    try:
        printed, errors = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"expected the {processes} processes to end within {timeout} s; they were ended") from error
    finally:
        _end(running)
    if running.returncode:
        raise RuntimeError(f"expected all {processes} processes to succeed, one failed:\n{errors[-4000:]}")
    return printed


def _end(running: subprocess.Popen[str]) -> None:
    """End torchrun, which ends its processes if it is asked to, and leaves them if it is killed."""
    if running.poll() is None:
        running.terminate()
        try:
            running.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
    for pipe in (running.stdout, running.stderr):
        if pipe is not None:
            pipe.close()  # not read to its end: a process that torchrun left behind may hold the other one
