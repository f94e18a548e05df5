r"""Experiments of papers at the size they have there, on MNIST: minutes each, run by hand and recorded.

``python -m bnlearn.claims.full_size ioffe_figure_1`` runs one and writes its record, ``records/full_size/<name>.json``.
MNIST is looked for as :func:`bnlearn.datasets.load_mnist` says; ``BNLEARN_DATA_DIR`` names the folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bnlearn import datasets
from bnlearn.claims import _records
from bnlearn.lab import MLP, Arm, BatchNorm, Data, Probe, Sweep, probes, run

RECORDS = _records.RECORDS / "full_size"

IOFFE = MLP(sizes=(784, 100, 100, 100, 10), activation="sigmoid", init="lecun")
IOFFE_TIMES = (500, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, *range(10_000, 50_001, 2500))
IOFFE_READ = {
    "steps": [4000, 6000, 8000, 10_000, 15_000, 20_000, 30_000, 40_000],
    "none": [0.735, 0.834, 0.909, 0.926, 0.953, 0.962, 0.967, 0.971],
    "bn": [0.953, 0.960, 0.966, 0.965, 0.972, 0.974, 0.978, 0.980],
}
"""Test accuracy in Figure 1 (a) of Ioffe and Szegedy (2015), read off its curves; the text gives no numbers."""


def binary_mnist(*, flat: bool = True, seed: int = 0) -> datasets.Dataset:
    """MNIST with each pixel 0 or 1, as the paper has it: 1 where the grey level is above half."""
    loaded = datasets.load_mnist(seed=seed, flat=flat)

    def binary(part: datasets.Part) -> datasets.Part:
        return datasets.Part((part.x * loaded.std + loaded.mean > 127.5).astype(np.float32), part.y)

    return replace(loaded, train=binary(loaded.train), validation=binary(loaded.validation), test=binary(loaded.test))


def ioffe_figure_1(
    *,
    steps: int = 50_000,
    seeds: int = 3,
    rates: Sequence[float] = (0.1,),
    source: Callable[..., datasets.Dataset] = binary_mnist,
    network: MLP = IOFFE,
) -> dict[str, Any]:
    """Test accuracy over the steps, with BN and without: Ioffe and Szegedy (2015), Figure 1 (a).

    Parameters
    ----------
    steps, seeds : int
    rates : sequence of float
        The paper does not say which one it used.
    source : callable
        The data.
    network : MLP
        Without BN.

    Returns
    -------
    dict
        What was run, and ``"test"``: by arm and rate, accuracy of shape (seeds, times).
    """
    at = (0, *(time for time in IOFFE_TIMES if time < steps), steps)
    arms = (Arm("none", network), Arm("bn", replace(network, norm=BatchNorm())))
    sweep = Sweep(
        arms,
        {"lr": tuple(rates)},
        tuple(range(seeds)),
        steps,
        batch_size=60,
        probes=(Probe("test", probes.accuracy, at),),
        data=Data(source),
    )
    outcomes = run(sweep)
    return {
        "source": "ioffe2015batch",
        "setting": "MNIST with pixels 0 or 1 (50,000 to train), three layers of 100 with sigmoid, weights of variance "
        "1 / fan-in, batches of 60, plain SGD at a constant rate, not tuned. The paper gives neither its rate nor the "
        "size of its 'small random Gaussian' weights.",
        "rates": list(rates),
        "seeds": seeds,
        "steps": list(at),
        "test": {
            arm: {
                f"{rate:g}": np.round(values.astype(np.float64), 4).tolist()
                for rate, values in zip(rates, outcome["test"], strict=True)
            }
            for arm, outcome in outcomes.items()
        },
        "paper": IOFFE_READ,
    }


EXPERIMENTS: Mapping[str, Callable[[], dict[str, Any]]] = {"ioffe_figure_1": ioffe_figure_1}


def record(name: str, folder: Path = RECORDS) -> dict[str, Any]:
    """What a full-size run gave, as it was written.

    Parameters
    ----------
    name : str
        A key of :data:`EXPERIMENTS`.
    folder : Path

    Raises
    ------
    ValueError
        If there is no such experiment, or no record of it.
    """
    _known(name)
    path = folder / f"{name}.json"
    if not path.exists():
        raise ValueError(f"expected a record of {name}, got none at {path}; make it: {_command(name)}")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _known(name: str) -> None:
    if name not in EXPERIMENTS:
        raise ValueError(f"expected an experiment among {', '.join(EXPERIMENTS)}, got {name!r}")


def _command(name: str) -> str:
    return f"python -m bnlearn.claims.full_size {name}"


def make(name: str, folder: Path = RECORDS) -> Path:
    """Run an experiment, and write its record, whole or not at all.

    Parameters
    ----------
    name : str
        A key of :data:`EXPERIMENTS`.
    folder : Path
        Made if it is not there.

    Returns
    -------
    Path
        The record.

    Raises
    ------
    ValueError
        If there is no such experiment.
    OSError
        If the folder cannot be written (nothing has run then), or the data is nowhere.
    """
    import joblib

    _known(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    part = path.with_suffix(".json.part")
    part.touch()
    try:
        start = time.perf_counter()
        found = {"experiment": name} | EXPERIMENTS[name]()
        found |= {
            "seconds": round(time.perf_counter() - start),
            "date": datetime.now(UTC).date().isoformat(),
            "command": _command(name),
            "versions": _records._versions(),
            "machine": {"system": platform.system(), "processors": joblib.cpu_count()},
        }
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in found.items())
        part.write_text(f"{{\n{lines}\n}}\n", "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments that are named; 0 if all went well, 2 if that cannot be done."""
    import joblib

    parser = argparse.ArgumentParser(prog=_command("")[:-1], description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", nargs="+", help=", ".join(EXPERIMENTS))
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="FOLDER", help="where the records go")
    parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes; as many as processors by default")
    options = parser.parse_args(arguments)
    try:
        with joblib.parallel_config(n_jobs=options.jobs):
            for name in options.experiment:
                print(make(name, options.records))
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
