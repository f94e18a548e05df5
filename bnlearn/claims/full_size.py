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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnlearn import datasets
from bnlearn.claims import _records
from bnlearn.claims._tuning import TEST, VALIDATION, tuned
from bnlearn.claims.variants import BatchRenorm
from bnlearn.lab import MLP, Arm, BatchNorm, ConvNet, Data, GroupNorm, LayerNorm, Probe, Sweep, probes, run

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


def _from_0_to_1(loaded: datasets.Dataset) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Training, validation and test part, with grey levels over the highest one."""
    highest = float(loaded.train.x.max()) * loaded.std + loaded.mean
    for part in (loaded.train, loaded.validation, loaded.test):
        yield ((part.x * loaded.std + loaded.mean) / highest).astype(np.float32), part.y


def keras_comparison(
    *,
    epochs: int = 10,
    seeds: int = 5,
    batch_size: int = 128,
    source: Callable[..., datasets.Dataset] = datasets.load_mnist,
) -> dict[str, Any]:
    """Two models of Keras as tutorials compare them on MNIST, with and without ``BatchNormalization``.

    TensorFlow is told, for the rest of the process, to compute the same numbers each time.

    Parameters
    ----------
    epochs, seeds, batch_size : int
    source : callable
        The data.

    Returns
    -------
    dict
        What was run, and ``"curves"``: by arm what Keras prints after each epoch, of shape (seeds, epochs), under its
        names (``"accuracy"`` and ``"loss"`` are of training), and ``"test_accuracy"``, of shape (seeds,).
    """
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    train, validation, test = _from_0_to_1(source(flat=True))
    curves: dict[str, dict[str, list[Any]]] = {"none": {}, "bn": {}}
    for arm, kept in curves.items():
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            model = keras.Sequential([keras.Input(train[0].shape[1:])])
            for units in (128, 64):
                model.add(keras.layers.Dense(units, activation="relu"))
                if arm == "bn":
                    model.add(keras.layers.BatchNormalization())
            model.add(keras.layers.Dense(10, activation="softmax"))
            # Several steps at a call of TensorFlow: the same numbers, in half the time.
            model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], steps_per_execution=17)
            seen = model.fit(*train, batch_size, epochs, validation_data=validation, verbose=0).history
            _, seen["test_accuracy"] = model.evaluate(*test, batch_size, verbose=0)
            for name, values in seen.items():
                kept.setdefault(name, []).append(np.round(values, 4).tolist())
    return {
        "source": None,
        "setting": "MNIST with pixels from 0 to 1 (50,000 to train, 10,000 to validate), layers of 128 and 64 with "
        "ReLU, BatchNormalization (momentum 0.99, epsilon 0.001) behind each or none, softmax; Adam at Keras's default "
        "rate of 0.001, not tuned. Tutorials run it in many versions; there is no single paper, so no figures of one.",
        "keras": {"version": keras.__version__, "backend": keras.backend.backend()},
        "batch_size": batch_size,
        "epochs": epochs,
        "seeds": seeds,
        "curves": curves,
    }


SMALL_CNN = ConvNet(channels=(1, 8, 16, 16), strides=(2, 2, 1))
NORMS = {"bn": BatchNorm(), "ln": LayerNorm(), "gn": GroupNorm(groups=4), "renorm": BatchRenorm()}
BATCH_RATES: Mapping[int, tuple[float, ...]] = {
    2: (0.003, 0.01, 0.03, 0.1),
    8: (0.01, 0.03, 0.1, 0.3),
    32: (0.03, 0.1, 0.3, 1.0),
    128: (0.03, 0.1, 0.3, 1.0),
}
"""By batch size, the rates that an arm chooses from."""
WU_READ = {
    "source": "wu2018group",
    "setting": "ResNet-50 on ImageNet, validation error in per cent, by images per worker",
    "sizes": [32, 16, 8, 4, 2],
    "bn": [23.6, 23.7, 24.8, 27.3, 34.7],
    "gn": [24.1, 24.2, 24.0, 24.2, 24.1],
}
"""What Wu and He (2018) give for batch and group normalisation."""


def batch_size_curves(
    *,
    samples: int = 20_000,
    seeds: int = 3,
    rates: Mapping[int, Sequence[float]] = BATCH_RATES,
    source: Callable[..., datasets.Dataset] = datasets.load_mnist,
) -> dict[str, Any]:
    """Test accuracy against the batch size, with four normalisers, each at its own best rate at each size.

    Parameters
    ----------
    samples : int
        What each network sees, whatever the size of its batches.
    seeds : int
    rates : mapping of int to sequence of float
        By batch size, what is tried.
    source : callable
        The data.

    Returns
    -------
    dict
        What was run, and by arm, in the order of ``"sizes"``: ``"test"``, accuracy at the rate that is best on the
        validation part, of shape (sizes, seeds); ``"chosen"``, that rate; ``"validation"``, the mean over seeds at each
        of the ``"rates"``, of shape (sizes, rates).
    """
    arms = tuple(Arm(name, replace(SMALL_CNN, norm=norm), knobs=(("momentum", 0.9),)) for name, norm in NORMS.items())
    kept: dict[str, dict[str, list[Any]]] = {
        what: {arm.name: [] for arm in arms} for what in ("test", "chosen", "validation")
    }
    for size, tried in rates.items():
        sweep = Sweep(
            arms,
            {"lr": tuple(tried)},
            tuple(range(seeds)),
            samples // size,
            batch_size=size,
            probes=(VALIDATION, TEST),
            data=Data(source, flat=False),
            at_once=12,
        )
        for arm, outcome in run(sweep).items():
            validation = outcome["validation"][:, :, -1].astype(np.float64).mean(1)
            kept["test"][arm].append(np.round(tuned(outcome), 4).tolist())
            kept["chosen"][arm].append(tried[outcome.best("validation")])
            kept["validation"][arm].append(np.round(validation, 4).tolist())
    return {
        "source": "wu2018group",
        "setting": "MNIST (50,000 to train), three convolutions of 3 x 3 with 8, 16 and 16 channels (strides 2, 2, 1), "
        "each with a normaliser and ReLU, the mean over positions, a linear layer; He's initialisation, SGD with "
        "momentum 0.9, the same number of samples for every size. Group norm has 4 groups; batch renorm keeps its "
        "limits, 3 and 5, from the start. Rates are chosen on 10,000 validation images.",
        "samples": samples,
        "seeds": seeds,
        "sizes": list(rates),
        "rates": [list(tried) for tried in rates.values()],
        **kept,
        "paper": WU_READ,
    }


EXPERIMENTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "ioffe_figure_1": ioffe_figure_1,
    "keras_comparison": keras_comparison,
    "batch_size_curves": batch_size_curves,
}


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
