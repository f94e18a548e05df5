r"""Data to learn on: handwritten digits, MNIST, and made data whose distribution is known.

Images come as (N, 1, height, width), or (N, height * width) when ``flat``; labels as (N,) int64. Whatever is drawn or
shuffled is drawn by an explicit ``seed``: the same arguments give the same arrays.

Only the functions that need them import scikit-learn (:func:`load_digits`) and tqdm (the bar of a download).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Dataset",
    "PaddedSequences",
    "Part",
    "load_digits",
    "load_mnist",
    "make_classes",
    "make_padded_sequences",
    "make_scaled_features",
    "mnist_available",
]


class Part(NamedTuple):
    r"""One part of a dataset; unpacks as ``x, y = part``.

    Attributes
    ----------
    x : ndarray, shape (N, C, \*spatial)
        Samples, floating-point.
    y : ndarray, shape (N,)
        Labels, int64, from 0.
    """

    x: NDArray[np.floating[Any]]
    y: NDArray[np.int64]


class PaddedSequences(NamedTuple):
    """Sequences of unequal length, padded to one length; unpacks as ``x, mask, y = sequences``.

    Attributes
    ----------
    x : ndarray, shape (N, C, L)
        Floating-point; the padding holds one constant value.
    mask : ndarray, shape (N, L)
        True where ``x`` is data, False where it is padding.
    y : ndarray, shape (N,)
        Labels, int64, from 0.
    """

    x: NDArray[np.floating[Any]]
    mask: NDArray[np.bool_]
    y: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three parts that share no sample, standardised by the first.

    Attributes
    ----------
    train, validation, test : Part
        To learn from, to choose by, and to report once.
    mean, std : float
        Mean and (biased) standard deviation over all pixels of the training part, in the grey levels of the source:
        ``part.x * std + mean`` gives those back.
    name : str
        What the data is.
    """

    train: Part
    validation: Part
    test: Part
    mean: float
    std: float
    name: str

    def __repr__(self) -> str:
        parts = ", ".join(f"{key} {getattr(self, key).x.shape}" for key in ("train", "validation", "test"))
        by = f"standardised by mean {self.mean:.4g}, std {self.std:.4g}"
        return f"<Dataset {self.name!r}: {parts}; {self.train.x.dtype}, {by}>"


def _check_seed(seed: int) -> int:
    """``seed`` as an int, or an error: it is asked for by name, so it shall not be None, a float or a generator."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"expected seed to be an integer, got {seed!r} ({type(seed).__name__})")
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected seed from 0 to 2**32 - 1, got {seed}")
    return int(seed)


def _check_count(name: str, value: int, at_least: int, why: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"expected {name} to be an integer, got {value!r} ({type(value).__name__})")
    if value < at_least:
        raise ValueError(f"expected {name} >= {at_least}{why}, got {value}")
    return int(value)


def _check_number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"expected {name} to be a number, got {value!r} ({type(value).__name__})") from None


def _check_finite(name: str, value: float, *, positive: bool = False) -> float:
    """``value`` as a finite float; not negative where ``positive``."""
    number = _check_number(name, value)
    if not np.isfinite(number) or (positive and number < 0):
        raise ValueError(f"expected {name} to be finite{' and not negative' if positive else ''}, got {value}")
    return number


def _check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    checked = np.dtype(dtype)
    if checked.kind != "f":
        raise TypeError(f"expected a real floating-point dtype such as float32, got {checked}")
    return checked


def _standardise(
    name: str,
    parts: Mapping[str, tuple[NDArray[np.uint8], NDArray[Any]]],
    flat: bool,
    dtype: np.dtype[Any],
) -> Dataset:
    """Grey levels, shape (N, height, width), to a Dataset; mean and std are those of ``parts["train"]`` alone."""
    levels = np.arange(256, dtype=np.float64)
    train = parts["train"][0]
    # Counting the grey levels first keeps the two passes exact and small: MNIST as float64 would be 313 MB.
    blocks = np.array_split(train, max(1, len(train) // 1000))
    counts = sum(np.bincount(block.ravel(), minlength=256) for block in blocks)
    mean = float(counts @ levels / train.size)
    std = float(np.sqrt(counts @ (levels - mean) ** 2 / train.size))
    standard_levels = ((levels - mean) / std).astype(dtype)

    def part(key: str) -> Part:
        images, labels = parts[key]
        shape = (len(images), -1) if flat else (len(images), 1, *images.shape[1:])
        return Part(standard_levels[images].reshape(shape), labels.astype(np.int64))

    return Dataset(part("train"), part("validation"), part("test"), mean, std, name)


def load_digits(*, seed: int = 0, flat: bool = False, dtype: DTypeLike = np.float32) -> Dataset:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: bundled with it, so nothing is downloaded.

    The test set of the UCI "Optical Recognition of Handwritten Digits" data (Alpaydin and Kaynak 1998). Grey levels are
    0 to 16 before they are standardised by one mean and one standard deviation over all training pixels. The split into
    1,197 for training, 300 for validation and 300 for testing is stratified: each part holds the ten digits in the
    proportions of the whole, to the nearest sample.

    Parameters
    ----------
    seed : int
        Decides the split, and the order of the samples.
    flat : bool
        Images as (N, 64) instead of (N, 1, 8, 8).
    dtype : dtype
        Of the images, real floating-point.

    Returns
    -------
    Dataset

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    TypeError, ValueError
        If ``seed`` is not an integer from 0 to 2**32 - 1 or ``dtype`` is not floating-point.

    Examples
    --------
    >>> digits = load_digits(seed=0)
    >>> digits.train.x.shape, digits.validation.x.shape, digits.test.x.shape
    ((1197, 1, 8, 8), (300, 1, 8, 8), (300, 1, 8, 8))
    >>> print(f"{digits.mean:.2f} {digits.std:.2f} {digits.train.x.std():.2f}")
    4.89 6.02 1.00
    """
    seed, dtype = _check_seed(seed), _check_dtype(dtype)
    try:
        source, selection = import_module("sklearn.datasets"), import_module("sklearn.model_selection")
    except ModuleNotFoundError as error:
        raise ImportError(
            "load_digits reads the digits that scikit-learn brings along, and scikit-learn is not installed; "
            "install it (pip install scikit-learn), or this package with its extra: pip install -e '.[data]'"
        ) from error
    bunch = source.load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target
    rest, test = selection.train_test_split(np.arange(len(labels)), test_size=300, stratify=labels, random_state=seed)
    train, validation = selection.train_test_split(rest, test_size=300, stratify=labels[rest], random_state=seed)
    split = {"train": train, "validation": validation, "test": test}
    return _standardise("digits", {key: (images[i], labels[i]) for key, i in split.items()}, flat, dtype)


class _File(NamedTuple):
    """What one file of MNIST must be: the MD5 and the shape of what it holds, uncompressed."""

    md5: str
    shape: tuple[int, ...]


_MNIST: Mapping[str, _File] = MappingProxyType(
    {
        "train-images-idx3-ubyte": _File("6bbc9ace898e44ae57da46a324031adb", (60_000, 28, 28)),
        "train-labels-idx1-ubyte": _File("a25bea736e30d166cdddb491f175f624", (60_000,)),
        "t10k-images-idx3-ubyte": _File("2646ac647ad5339dbf082846283269ea", (10_000, 28, 28)),
        "t10k-labels-idx1-ubyte": _File("27ae3e4e09519cfbb04c329615203637", (10_000,)),
    }
)
_MNIST_VALIDATION = 10_000
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_TIMEOUT = 30.0  # seconds without a byte from a mirror
_VARIABLE = "BNLEARN_DATA_DIR"


def _cache_folder() -> Path:
    """Where this platform keeps what a program may fetch again: ``.../batchnorm-learn/mnist``."""
    platform: str = sys.platform  # as a plain str: mypy would take the other platforms' lines for dead
    if platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "")
        if not root.is_absolute():  # the XDG base directory specification: relative paths are to be ignored
            root = Path.home() / ".cache"
    return root / "batchnorm-learn" / "mnist"


def _find(*folders: Path) -> dict[str, Path]:
    """The files of MNIST that are in one of ``folders``, compressed or not: name -> path."""
    found: dict[str, Path] = {}
    for name in _MNIST:
        for path in (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz")):
            if path.is_file():
                found[name] = path
                break
    return found


def _chosen_folder() -> Path | None:
    """The folder that BNLEARN_DATA_DIR names, or None where it is unset or empty."""
    value = os.environ.get(_VARIABLE)
    return Path(value).expanduser() if value else None


def _in_chosen_folder() -> dict[str, Path]:
    """All four files from BNLEARN_DATA_DIR, or none of them; it is an error where only some are there."""
    folder = _chosen_folder()
    if folder is None:
        return {}
    if not folder.is_dir():
        raise NotADirectoryError(f"{_VARIABLE} is set to {folder}, which is not a folder; correct it, or unset it")
    found = _find(folder, folder / "mnist")
    if found and len(found) < len(_MNIST):
        missing = ", ".join(name for name in _MNIST if name not in found)
        raise FileNotFoundError(
            f"{_VARIABLE} is set to {folder}, and of MNIST's four files {missing} (plain or .gz) is not there nor in "
            f"its folder mnist, beside {', '.join(sorted(path.name for path in found.values()))}; add what is missing, "
            "or unset the variable"
        )
    return found


def mnist_available() -> bool:
    """Whether :func:`load_mnist` would find its four files on this machine, without a download.

    A quick look at names: the files are not read, so a damaged one is found out by :func:`load_mnist` only.
    """
    try:
        found = _in_chosen_folder()
    except OSError:
        return False
    return len(found or _find(_cache_folder())) == len(_MNIST)


_CURE = "; delete it and fetch it again"


def _read(name: str, path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file, after its checksum, its magic number and its shape have been verified."""
    expected = _MNIST[name]
    raw = path.read_bytes()
    if path.suffix == ".gz" or raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or damaged: as gzip it gives {error}{_CURE}") from error
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != expected.md5:
        raise ValueError(
            f"{path} is not MNIST's {name}: expected MD5 {expected.md5} of the uncompressed file, got {found} "
            f"({len(raw)} bytes){_CURE}"
        )
    return _parse_idx(raw, path, expected.shape)


def _parse_idx(raw: bytes, path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes: 0, 0, type 8, dimensions, the big-endian sizes, then the values."""
    header = 4 + 4 * len(shape)
    magic = int.from_bytes(raw[:4], "big")
    if len(raw) < header or magic != 0x0800 + len(shape):
        raise ValueError(
            f"{path} is not an IDX file of {len(shape)} dimensions: expected magic number {0x0800 + len(shape)}, "
            f"got {magic} in {len(raw)} bytes"
        )
    sizes = tuple(int(size) for size in np.frombuffer(raw, ">u4", len(shape), 4))
    if sizes != shape or len(raw) - header != prod(shape):
        raise ValueError(
            f"{path}: expected an array of shape {shape}, got {sizes} in the header and {len(raw) - header} values"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _bar(name: str, total: int, progress: bool) -> Any:
    """A progress bar with ``update`` and ``close``, or None where none is wanted or tqdm is not installed."""
    if not progress:
        return None
    try:
        tqdm = import_module("tqdm").tqdm
    except ModuleNotFoundError:
        return None
    return tqdm(desc=name, total=total or None, unit="B", unit_scale=True, leave=False)


def _fetch(url: str, out: IO[bytes], name: str, progress: bool) -> None:
    # Here, because these cost tens of milliseconds that only a download needs.
    from http.client import HTTPException
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=_TIMEOUT) as response:
            bar = _bar(name, int(response.headers.get("Content-Length") or 0), progress)
            try:
                while block := response.read(1 << 16):
                    out.write(block)
                    if bar is not None:
                        bar.update(len(block))
            finally:
                if bar is not None:
                    bar.close()
    except HTTPException as error:  # whatever answers, it does not speak HTTP to the end
        raise OSError(f"{type(error).__name__}: {error}") from error


def _download(name: str, folder: Path, progress: bool) -> Path:
    """Fetch one file into ``folder`` from the first mirror whose copy is whole; nothing else is left there."""
    import tempfile

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.gz"
    failures = []
    for mirror in _MIRRORS:
        # In the same folder, so that the move is one atomic step; whoever looks there sees a whole file or none.
        handle, part = tempfile.mkstemp(prefix=f".{name}-", suffix=".gz", dir=folder)
        try:
            with os.fdopen(handle, "wb") as out:
                _fetch(f"{mirror}{name}.gz", out, name, progress)
            _read(name, Path(part))
            Path(part).replace(target)
        except (OSError, ValueError) as error:
            why = str(error).replace(part, "what came").removesuffix(_CURE)
            failures.append(f"{mirror}{name}.gz: {why}")
        else:
            return target
        finally:
            Path(part).unlink(missing_ok=True)
    raise OSError("; ".join(failures))


def load_mnist(*, seed: int = 0, flat: bool = False, dtype: DTypeLike = np.float32, progress: bool = True) -> Dataset:
    """MNIST, 70,000 handwritten digits of 28 x 28 pixels: 50,000 for training, 10,000 for validation, 10,000 to test.

    The four canonical IDX files (LeCun et al. 1998), compressed by gzip or not, are looked for in this order:

    1. The folder that the environment variable ``BNLEARN_DATA_DIR`` names, or the folder ``mnist`` in it. Where only
       some of the four are there, that is an error; where none is, the search goes on.
    2. The user's cache: ``batchnorm-learn/mnist`` in ``$XDG_CACHE_HOME`` or ``~/.cache``, in ``~/Library/Caches`` on
       macOS, in ``%LOCALAPPDATA%`` on Windows.
    3. A public mirror, 11 MB once, kept in that cache.

    Each file's MD5 is compared with the known one before anything of it is used, wherever it comes from.

    Parameters
    ----------
    seed : int
        Decides which of the 60,000 training images are for validation, and the order of both. The test part is always
        the 10,000 test images, in their order.
    flat : bool
        Images as (N, 784) instead of (N, 1, 28, 28).
    dtype : dtype
        Of the images, real floating-point. In float32 they take 220 MB.
    progress : bool
        Show a bar while downloading, if tqdm is installed.

    Returns
    -------
    Dataset
        Grey levels were 0 to 255; standardised by one mean and one standard deviation over all training pixels.

    Raises
    ------
    FileNotFoundError
        If the files are nowhere and cannot be downloaded, or only some of them are in ``BNLEARN_DATA_DIR``.
    NotADirectoryError
        If ``BNLEARN_DATA_DIR`` is not a folder.
    ValueError
        If a file is truncated or altered; the message names it. Or if ``seed`` is out of range.
    TypeError
        If ``seed`` is not an integer or ``dtype`` is not floating-point.
    """
    seed, dtype = _check_seed(seed), _check_dtype(dtype)
    cache = _cache_folder()
    paths = _in_chosen_folder() or _find(cache)
    missing = [name for name in _MNIST if name not in paths]
    for name in missing:
        try:
            paths[name] = _download(name, cache, progress)
        except OSError as error:
            chosen = _chosen_folder()
            raise FileNotFoundError(
                "MNIST is not on this machine and could not be downloaded. Looked for it in three ways:\n"
                f"  1. {_VARIABLE}: {'not set' if chosen is None else f'{chosen}, which holds none of its files'}\n"
                f"  2. the cache: {cache}, which lacks {', '.join(missing)}\n"
                f"  3. download: {error}\n"
                f"Put the four files ({', '.join(_MNIST)}; plain or .gz) into a folder and set {_VARIABLE} to it, or "
                "into that cache, or try again when a mirror can be reached. bnlearn.datasets.load_digits() needs no "
                "download."
            ) from error
    arrays = {name: _read(name, path) for name, path in paths.items()}
    images, labels = arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]
    order = np.random.default_rng(seed).permutation(len(images))
    train, validation = order[:-_MNIST_VALIDATION], order[-_MNIST_VALIDATION:]
    parts = {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": (arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]),
    }
    return _standardise("MNIST", parts, flat, dtype)


def make_scaled_features(
    n: int,
    *,
    seed: int,
    features: int = 8,
    decades: float = 4.0,
    offset: float = 1.0,
    dtype: DTypeLike = np.float32,
) -> Part:
    """Features on very different scales, as measured data has them, and two classes that depend on all alike.

    Let z be (n, features) independent standard normal and s_j the signs of the rule, +1 or -1 at random. Then
    ``y = [s . z > 0]``, and ``x_j = scale_j * (z_j + offset)`` with scales from ``10 ** (-decades / 2)`` to
    ``10 ** (decades / 2)`` in equal ratios. Every feature says as much about y, but in x the largest drown the others.

    Parameters
    ----------
    n : int
        How many samples.
    seed : int
        Decides everything that is drawn.
    features : int
        How many features, at least 1.
    decades : float
        The base-10 logarithm of the largest scale over the smallest, not negative; 0 gives one scale.
    offset : float
        Mean of each feature, in its own standard deviations.
    dtype : dtype
        Of x, real floating-point.

    Returns
    -------
    Part
        x of shape (n, features), the smallest scale first; y of shape (n,), 0 or 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.

    Examples
    --------
    >>> x, y = make_scaled_features(1000, seed=0, features=3)
    >>> [f"{std:.0e}" for std in x.std(axis=0)]
    ['1e-02', '1e+00', '1e+02']
    """
    n, features = _check_count("n", n, 1), _check_count("features", features, 1)
    decades, offset = _check_finite("decades", decades, positive=True), _check_finite("offset", offset)
    rng, dtype = np.random.default_rng(_check_seed(seed)), _check_dtype(dtype)
    scales = np.logspace(-decades / 2, decades / 2, features)
    signs = rng.choice([-1.0, 1.0], features)
    z = rng.standard_normal((n, features))
    return Part(((z + offset) * scales).astype(dtype), (z @ signs > 0).astype(np.int64))


def _balanced_labels(n: int, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``n`` labels in random order, as many of each class as of any other, to the nearest sample."""
    return rng.permutation(np.arange(n, dtype=np.int64) % classes)


def make_classes(
    n: int,
    *,
    seed: int,
    classes: int = 10,
    features: int = 20,
    separation: float = 1.0,
    dtype: DTypeLike = np.float32,
) -> Part:
    """Gaussian clouds, one per class.

    The centre of each class is drawn from N(0, separation**2) in every feature, and a sample is its class's centre plus
    N(0, 1) in every feature; classes are balanced to the nearest sample, in random order. Train and test data must come
    from one call, and be split: another seed has other centres.

    Parameters
    ----------
    n : int
        How many samples, at least ``classes``.
    seed : int
        Decides everything that is drawn.
    classes, features : int
        How many of each: at least 2 classes and 1 feature.
    separation : float
        Standard deviation of the centres in units of that within a class, not negative; 0 gives nothing to learn.
    dtype : dtype
        Of x, real floating-point.

    Returns
    -------
    Part
        x of shape (n, features), y of shape (n,) from 0 to ``classes - 1``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.

    Examples
    --------
    >>> x, y = make_classes(9, seed=0, classes=3, features=5)
    >>> x.shape, np.bincount(y).tolist()
    ((9, 5), [3, 3, 3])
    """
    classes, features = _check_count("classes", classes, 2), _check_count("features", features, 1)
    n = _check_count("n", n, classes, f" (one sample for each of {classes} classes)")
    separation = _check_finite("separation", separation, positive=True)
    rng, dtype = np.random.default_rng(_check_seed(seed)), _check_dtype(dtype)
    centres = separation * rng.standard_normal((classes, features))
    y = _balanced_labels(n, classes, rng)
    return Part((centres[y] + rng.standard_normal((n, features))).astype(dtype), y)


def make_padded_sequences(
    n: int,
    *,
    length: int,
    features: int,
    seed: int,
    classes: int = 2,
    min_length: int = 1,
    offset: float = 2.0,
    separation: float = 0.5,
    padding: float = 0.0,
    dtype: DTypeLike = np.float32,
) -> PaddedSequences:
    """Sequences of unequal length, padded at the end: a batch whose plain statistics are wrong.

    Each sequence's own length is uniform from ``min_length`` to ``length``. Where a channel is data it is
    ``offset + centre[y] + N(0, 1)``, with one centre per class and channel drawn from N(0, separation**2); after that
    it is ``padding``. With the default offset, padding with zeros pulls each channel's mean towards 0 and widens its
    variance; the statistics over ``mask`` alone do not know of it.

    Parameters
    ----------
    n : int
        How many sequences (N), at least ``classes``.
    length : int
        The padded length (L).
    features : int
        How many channels (C).
    seed : int
        Decides everything that is drawn.
    classes : int
        At least 2; balanced to the nearest sample, in random order, and independent of the lengths.
    min_length : int
        Shortest own length, from 1 to ``length``.
    offset : float
        Mean of the data in every channel, over all classes there could be.
    separation : float
        Standard deviation of the centres, not negative.
    padding : float
        What fills the rest; NaN shows who looks at it.
    dtype : dtype
        Of x, real floating-point.

    Returns
    -------
    PaddedSequences
        x of shape (n, features, length), mask of shape (n, length), y of shape (n,).

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.

    Examples
    --------
    >>> x, mask, y = make_padded_sequences(4, length=6, features=3, seed=1)
    >>> x.shape, mask.shape, y.shape
    ((4, 3, 6), (4, 6), (4,))
    >>> print(mask[0].astype(int), bool((x[:, 0][~mask] == 0).all()))
    [1 1 1 1 0 0] True
    """
    length, features = _check_count("length", length, 1), _check_count("features", features, 1)
    classes, min_length = _check_count("classes", classes, 2), _check_count("min_length", min_length, 1)
    n = _check_count("n", n, classes, f" (one sequence for each of {classes} classes)")
    if min_length > length:
        raise ValueError(f"expected min_length <= length, got min_length {min_length} and length {length}")
    offset, separation = _check_finite("offset", offset), _check_finite("separation", separation, positive=True)
    padding = _check_number("padding", padding)
    rng, dtype = np.random.default_rng(_check_seed(seed)), _check_dtype(dtype)
    centres = offset + separation * rng.standard_normal((classes, features))
    y = _balanced_labels(n, classes, rng)
    mask = np.arange(length) < rng.integers(min_length, length, n, endpoint=True)[:, None]
    x = centres[y][:, :, None] + rng.standard_normal((n, features, length))
    return PaddedSequences(np.where(mask[:, None, :], x, padding).astype(dtype), mask, y)
