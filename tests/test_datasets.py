"""What `bnlearn.datasets` promises: splits, standardisation, seeds; and for MNIST, that nothing unverified is used."""

import gzip
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bnlearn import datasets
from bnlearn.datasets import Part, load_digits, load_mnist, make_classes, make_padded_sequences, make_scaled_features

PARTS = ("train", "validation", "test")


def raw_digits():
    from sklearn.datasets import load_digits as bundled

    bunch = bundled()
    return bunch.images, bunch.target


def grey_levels(dataset, part):
    """Back to whole grey levels, which proves that standardisation was one affine map, the same for all parts."""
    levels = getattr(dataset, part).x.astype(np.float64) * dataset.std + dataset.mean
    np.testing.assert_allclose(levels, levels.round(), atol=2e-5)
    return levels.round() + 0.0  # and no -0


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_split_1197_300_300_without_overlap_or_loss():
    digits = load_digits(seed=3)
    assert [getattr(digits, part).x.shape for part in PARTS] == [(1197, 1, 8, 8), (300, 1, 8, 8), (300, 1, 8, 8)]
    images, labels = raw_digits()
    split = [
        (*image.ravel().astype(int), int(label))
        for part in PARTS
        for image, label in zip(grey_levels(digits, part), getattr(digits, part).y, strict=True)
    ]
    # The same multiset of labelled images: none lost, none twice, none with another's label.
    assert sorted(split) == sorted(
        (*image.ravel().astype(int), int(y)) for image, y in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("seed", [0, 7])
def test_digits_are_stratified(seed):
    digits = load_digits(seed=seed)
    whole = np.bincount(raw_digits()[1])
    for part in PARTS:
        y = getattr(digits, part).y
        assert np.abs(np.bincount(y) - whole * len(y) / 1797).max() < 1.5
        assert np.any(np.diff(y) < 0)  # and in random order


def test_digits_are_standardised_by_the_training_part():
    digits = load_digits(seed=1, dtype=np.float64)
    levels = grey_levels(digits, "train")
    assert digits.mean == pytest.approx(levels.mean(), rel=1e-12)
    assert digits.std == pytest.approx(levels.std(), rel=1e-12)
    assert abs(digits.train.x.mean()) < 1e-12
    assert digits.train.x.std() == pytest.approx(1, rel=1e-12)
    assert abs(digits.test.x.mean()) > 1e-6  # the test part is not its own measure


def test_other_test_pixels_leave_the_training_part_as_it_was(monkeypatch):
    import sklearn.datasets

    before = load_digits(seed=5)
    bunch = sklearn.datasets.load_digits()
    held_out = {image.tobytes() for part in ("validation", "test") for image in grey_levels(before, part)}
    bunch.images = bunch.images.copy()
    changed = 0
    for i, image in enumerate(bunch.images):
        if image.tobytes() in held_out:
            bunch.images[i] = 16 - image
            changed += 1
    assert changed == 600
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    after = load_digits(seed=5)
    assert (after.mean, after.std) == (before.mean, before.std)
    np.testing.assert_array_equal(after.train.x, before.train.x)
    assert not np.array_equal(after.test.x, before.test.x)


def test_digits_depend_on_the_seed_and_on_nothing_else():
    np.random.seed(1)  # noqa: NPY002 (the global state, which must not matter)
    one = load_digits(seed=4)
    np.random.seed(2)  # noqa: NPY002
    same, other = load_digits(seed=4), load_digits(seed=5)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(one, part).x, getattr(same, part).x)
        np.testing.assert_array_equal(getattr(one, part).y, getattr(same, part).y)
        assert not np.array_equal(getattr(one, part).y, getattr(other, part).y)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, "float32"])
def test_digits_flat_and_dtype(dtype):
    image, flat = load_digits(dtype=dtype), load_digits(flat=True, dtype=dtype)
    for part in PARTS:
        x, y = getattr(flat, part)
        assert x.dtype == dtype
        assert y.dtype == np.int64
        assert x.flags.writeable
        assert x.flags.c_contiguous
        np.testing.assert_array_equal(x, getattr(image, part).x.reshape(len(y), 64))


def test_a_part_unpacks_and_a_dataset_says_what_it_is():
    digits = load_digits(flat=True)
    x, y = digits.test
    assert isinstance(digits.test, Part)
    assert len(x) == len(y) == 300
    assert repr(digits) == (
        "<Dataset 'digits': train (1197, 64), validation (300, 64), test (300, 64); "
        f"float32, standardised by mean {digits.mean:.4g}, std {digits.std:.4g}>"
    )
    with pytest.raises(AttributeError):
        digits.mean = 0.0


@pytest.mark.parametrize("load", [load_digits, load_mnist], ids=["digits", "mnist"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": None}, TypeError, r"seed to be an integer, got None \(NoneType\)"),
        ({"seed": 1.0}, TypeError, r"seed to be an integer, got 1.0 \(float\)"),
        ({"seed": True}, TypeError, r"seed to be an integer, got True \(bool\)"),
        ({"seed": -1}, ValueError, r"from 0 to 2\*\*32 - 1, got -1"),
        ({"seed": 2**32}, ValueError, "got 4294967296"),
        ({"dtype": np.int64}, TypeError, "floating-point dtype such as float32, got int64"),
        ({"dtype": np.complex64}, TypeError, "got complex64"),
    ],
)
def test_loaders_refuse_bad_arguments(load, arguments, error, message):
    with pytest.raises(error, match=message):
        load(**arguments)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"load_digits.*scikit-learn.*pip install scikit-learn"):
        load_digits()


def test_importing_datasets_loads_nothing_that_only_some_functions_need():
    heavy = {"sklearn", "scipy", "tqdm", "matplotlib", "torch", "urllib.request", "http.client"}
    code = f"import sys, bnlearn.datasets; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- MNIST, on four small files of our own --------------------------------------------------------------------------

SIZES = {"train": 50, "t10k": 12}


def idx(array):
    header = (0x0800 + array.ndim).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Four small files with MNIST's names (name -> bytes); their checksums stand where MNIST's did.

    The cache is an empty folder, no variable is set, and no mirror is known.
    """
    rng = np.random.default_rng(0)
    contents = {}
    for name, count in SIZES.items():
        # Each image is recognised by its first pixels, and its label follows from them.
        images = rng.integers(0, 256, (count, 4, 5))
        images[:, 0, 0] = np.arange(count) + (100 if name == "t10k" else 0)
        contents[f"{name}-images-idx3-ubyte"] = idx(images)
        contents[f"{name}-labels-idx1-ubyte"] = idx(images[:, 0, 0] % 10)
    shapes = {name: (SIZES[name.split("-")[0]], 4, 5)[: 3 if "images" in name else 1] for name in contents}
    table = {name: datasets._File(hashlib.md5(raw).hexdigest(), shapes[name]) for name, raw in contents.items()}
    monkeypatch.setattr(datasets, "_MNIST", table)
    monkeypatch.setattr(datasets, "_MNIST_VALIDATION", 10)
    monkeypatch.setattr(datasets, "_MIRRORS", ())
    monkeypatch.setattr(datasets, "_cache_folder", lambda: tmp_path / "cache" / "mnist")
    monkeypatch.delenv("BNLEARN_DATA_DIR", raising=False)
    return contents


def store(folder, contents, *, compressed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in contents.items():
        (folder / f"{name}.gz" if compressed else folder / name).write_bytes(gzip.compress(raw) if compressed else raw)
    return folder


def listing(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def reseal(monkeypatch, name, raw):
    """Let ``raw`` pass the checksum of ``name``."""
    table = {**datasets._MNIST, name: datasets._MNIST[name]._replace(md5=hashlib.md5(raw).hexdigest())}
    monkeypatch.setattr(datasets, "_MNIST", table)


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("inside", ["", "mnist"])
def test_mnist_from_the_folder_of_the_variable(files, monkeypatch, tmp_path, compressed, inside):
    store(tmp_path / "data" / inside, files, compressed=compressed)
    assert not datasets.mnist_available()
    monkeypatch.setenv("BNLEARN_DATA_DIR", str(tmp_path / "data"))
    assert datasets.mnist_available()
    mnist = load_mnist(seed=2, dtype=np.float64)
    assert [getattr(mnist, part).x.shape for part in PARTS] == [(40, 1, 4, 5), (10, 1, 4, 5), (12, 1, 4, 5)]

    marks = {part: grey_levels(mnist, part)[:, 0, 0, 0].astype(int) for part in PARTS}
    assert sorted([*marks["train"], *marks["validation"]]) == list(range(50))  # the training file, split
    assert marks["train"].tolist() != sorted(marks["train"])
    assert marks["test"].tolist() == list(range(100, 112))  # the test file, in its order
    for part in PARTS:
        np.testing.assert_array_equal(getattr(mnist, part).y, marks[part] % 10)  # each image kept its label
    assert mnist.mean == pytest.approx(grey_levels(mnist, "train").mean(), rel=1e-12)
    assert mnist.std == pytest.approx(grey_levels(mnist, "train").std(), rel=1e-12)


def test_mnist_depends_on_the_seed_flat_and_dtype(files, tmp_path):
    store(tmp_path / "cache" / "mnist", files)
    one, same, other = load_mnist(seed=1), load_mnist(seed=1, flat=True, dtype=np.float16), load_mnist(seed=2)
    assert same.train.x.shape == (40, 20)
    assert (one.train.x.dtype, same.train.x.dtype, one.train.y.dtype) == (np.float32, np.float16, np.int64)
    np.testing.assert_array_equal(one.train.x.reshape(40, 20).astype(np.float16), same.train.x)
    assert set(one.validation.x[:, 0, 0, 0]) != set(other.validation.x[:, 0, 0, 0])
    np.testing.assert_array_equal(one.test.y, other.test.y)


def test_mnist_from_the_cache_is_not_downloaded(files, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_download", lambda *_: pytest.fail("downloaded"))
    store(tmp_path / "cache" / "mnist", files)
    assert datasets.mnist_available()
    assert len(load_mnist().test.y) == 12


def test_the_variable_comes_before_the_cache(files, monkeypatch, tmp_path):
    store(tmp_path / "cache" / "mnist", dict.fromkeys(files, b"not MNIST"))
    monkeypatch.setenv("BNLEARN_DATA_DIR", str(store(tmp_path / "data", files)))
    assert len(load_mnist().test.y) == 12
    monkeypatch.setenv("BNLEARN_DATA_DIR", "")  # set to nothing is unset
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'cache'))}.* is not MNIST's"):
        load_mnist()


def test_the_folder_itself_comes_before_its_folder_mnist(files, monkeypatch, tmp_path):
    store(tmp_path / "data" / "mnist", dict.fromkeys(files, b"not MNIST"))
    monkeypatch.setenv("BNLEARN_DATA_DIR", str(store(tmp_path / "data", files)))
    assert len(load_mnist().test.y) == 12


def test_some_files_missing_from_the_folder_of_the_variable(files, monkeypatch, tmp_path):
    store(tmp_path / "cache" / "mnist", files)  # there is a whole set, but not where it was asked for
    folder = store(tmp_path / "data", files)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    monkeypatch.setenv("BNLEARN_DATA_DIR", str(folder))
    missing = "train-labels-idx1-ubyte, t10k-images-idx3-ubyte"
    with pytest.raises(FileNotFoundError, match=f"BNLEARN_DATA_DIR is set to {re.escape(str(folder))}.*{missing}"):
        load_mnist()
    assert not datasets.mnist_available()


def test_no_file_in_the_folder_of_the_variable_falls_through(files, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("BNLEARN_DATA_DIR", str(tmp_path / "data"))
    assert not datasets.mnist_available()
    store(tmp_path / "cache" / "mnist", files)
    assert datasets.mnist_available()
    assert len(load_mnist().test.y) == 12


def test_a_variable_that_is_no_folder_is_refused(files, monkeypatch, tmp_path):
    store(tmp_path / "cache" / "mnist", files)
    monkeypatch.setenv("BNLEARN_DATA_DIR", str(tmp_path / "typo"))
    with pytest.raises(NotADirectoryError, match=re.escape(str(tmp_path / "typo"))):
        load_mnist()
    assert not datasets.mnist_available()


def test_the_variable_may_start_with_the_home_folder(files, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    store(tmp_path / "data", files)
    monkeypatch.setenv("BNLEARN_DATA_DIR", "~/data")
    assert len(load_mnist().test.y) == 12


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("where", ["variable", "cache"])
def test_truncated_gzip_is_refused_by_name(files, monkeypatch, tmp_path, name, where):
    folder = store(tmp_path / "data" if where == "variable" else tmp_path / "cache" / "mnist", files)
    if where == "variable":
        monkeypatch.setenv("BNLEARN_DATA_DIR", str(folder))
    path = folder / f"{name}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is truncated or damaged.*delete it"):
        load_mnist()


@pytest.mark.parametrize("offset", [0, 3, 10, 40, -5, -1])
def test_a_flipped_byte_in_gzip_is_refused_by_name(files, tmp_path, offset):
    folder = store(tmp_path / "cache" / "mnist", files)
    path = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is "):
        load_mnist()


def test_a_flipped_byte_in_a_plain_file_is_refused_with_both_checksums(files, tmp_path):
    folder = store(tmp_path / "cache" / "mnist", files, compressed=False)
    path = folder / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    expected, found = datasets._MNIST[path.name].md5, hashlib.md5(content).hexdigest()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*MD5 {expected}.*{found} \({len(content)} bytes\)"):
        load_mnist()


def test_a_whole_gzip_of_something_else_is_refused(files, tmp_path):
    folder = store(tmp_path / "cache" / "mnist", files)
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(files["t10k-labels-idx1-ubyte"]))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not MNIST's train-labels-idx1-ubyte"):
        load_mnist()


def test_gzip_under_the_plain_name_is_read_all_the_same(files, tmp_path):
    folder = store(tmp_path / "cache" / "mnist", files)
    for path in folder.iterdir():
        path.rename(path.with_suffix(""))
    assert len(load_mnist().test.y) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"\0\0\x0d" + raw[3:], r"IDX file of 3 dimensions: expected magic number 2051, got 3331"),
        (lambda raw: raw[:3] + b"\1" + raw[4:], r"magic number 2051, got 2049"),
        (lambda raw: raw[:9], r"got 2051 in 9 bytes"),
        (lambda raw: b"", r"got 0 in 0 bytes"),
        (lambda raw: raw[:7] + b"\x0b" + raw[8:], r"shape \(12, 4, 5\), got \(11, 4, 5\) in the header and 240 values"),
        (lambda raw: raw[:-1], r"shape \(12, 4, 5\), got \(12, 4, 5\) in the header and 239 values"),
    ],
)
def test_a_wrong_idx_header_or_size_is_refused(files, monkeypatch, tmp_path, change, message):
    name = "t10k-images-idx3-ubyte"
    files[name] = change(files[name])
    reseal(monkeypatch, name, files[name])
    path = store(tmp_path / "cache" / "mnist", files) / f"{name}.gz"
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
        load_mnist()


def test_offline_the_error_says_all_three_ways_and_the_cure(files, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "_MIRRORS", ("http://127.0.0.1:9/", "http://127.0.0.1:9/b/"))  # nobody listens there
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(progress=False)
    text = str(caught.value)
    assert "1. BNLEARN_DATA_DIR: not set" in text
    assert f"2. the cache: {tmp_path / 'cache' / 'mnist'}, which lacks {', '.join(files)}" in text
    assert re.search(r"3. download: http://127.0.0.1:9/train-images.*gz: .*; http://127.0.0.1:9/b/train-images", text)
    assert "set BNLEARN_DATA_DIR to it" in text
    assert listing(tmp_path / "cache" / "mnist") == []

    (tmp_path / "data").mkdir()
    monkeypatch.setenv("BNLEARN_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path / 'data'))}, which holds none of its files"):
        load_mnist(progress=False)


def test_a_cache_that_cannot_be_made_is_part_of_the_same_error(files, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, where the folder should go")
    monkeypatch.setattr(datasets, "_MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(FileNotFoundError, match=r"(?s)1\. BNLEARN_DATA_DIR.*2\. the cache.*3\. download: .*cache"):
        load_mnist()


@pytest.fixture
def server():
    """A mirror on this machine: ``server.files`` maps a path to what it answers; ``server.asked`` lists requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            if self.path not in self.server.files:
                self.send_error(404)
                return
            body, promised = self.server.files[self.path]
            if promised == "not HTTP":
                self.wfile.write(body)
                return
            self.send_response(200)
            if promised is not None:
                self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as mirror:
        mirror.files, mirror.asked = {}, []
        mirror.root = f"http://127.0.0.1:{mirror.server_port}"
        thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield mirror
        mirror.shutdown()
        thread.join()


def serve(server, prefix, contents, *, cut=0, say_length=True):
    for name, raw in contents.items():
        body = gzip.compress(raw)
        server.files[f"{prefix}{name}.gz"] = (body[: len(body) - cut], len(body) if say_length else None)


@pytest.mark.parametrize("say_length", [True, False])
@pytest.mark.parametrize("progress", [True, False])
def test_download_once_into_the_cache(files, server, monkeypatch, tmp_path, capsys, say_length, progress):
    serve(server, "/a/", files, say_length=say_length)
    monkeypatch.setattr(datasets, "_MIRRORS", (f"{server.root}/a/", "http://127.0.0.1:9/"))
    first = load_mnist(progress=progress)
    assert listing(tmp_path / "cache" / "mnist") == sorted(f"{name}.gz" for name in files)
    assert len(server.asked) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("train-images-idx3-ubyte" in shown.err) == progress

    again = load_mnist(progress=progress)
    assert len(server.asked) == 4
    np.testing.assert_array_equal(first.train.x, again.train.x)


def test_only_what_the_cache_lacks_is_downloaded(files, server, monkeypatch, tmp_path):
    serve(server, "/", files)
    monkeypatch.setattr(datasets, "_MIRRORS", (f"{server.root}/",))
    store(tmp_path / "cache" / "mnist", {name: raw for name, raw in files.items() if "labels" in name})
    load_mnist(progress=False)
    assert server.asked == ["/train-images-idx3-ubyte.gz", "/t10k-images-idx3-ubyte.gz"]


@pytest.mark.parametrize(
    "fault", ["interrupted", "interrupted, length unsaid", "altered", "missing", "web page", "not HTTP"]
)
def test_a_bad_mirror_leaves_nothing_and_the_next_is_asked(files, server, monkeypatch, tmp_path, fault):
    if fault.startswith("interrupted"):
        serve(server, "/bad/", files, cut=20, say_length="unsaid" not in fault)
    elif fault == "altered":
        serve(server, "/bad/", {name: raw[:-1] + b"\xfa" for name, raw in files.items()})
    elif fault == "web page":
        server.files |= {f"/bad/{name}.gz": (b"<html>Sign in to this network</html>", None) for name in files}
    elif fault == "not HTTP":
        server.files |= {f"/bad/{name}.gz": (b"220 ready for something else\r\n", fault) for name in files}
    monkeypatch.setattr(datasets, "_MIRRORS", (f"{server.root}/bad/",))
    with pytest.raises(
        FileNotFoundError, match=r"3\. download: http://127.0.0.1.*/bad/train-images-idx3-ubyte.gz: \S"
    ) as caught:
        load_mnist(progress=False)
    assert ("what came is" in str(caught.value)) == (fault not in {"missing", "not HTTP"})
    assert "delete it" not in str(caught.value)  # there is nothing to delete
    assert listing(tmp_path / "cache" / "mnist") == []

    serve(server, "/good/", files)
    monkeypatch.setattr(datasets, "_MIRRORS", (f"{server.root}/bad/", f"{server.root}/good/"))
    assert len(load_mnist(progress=False).test.y) == 12
    assert listing(tmp_path / "cache" / "mnist") == sorted(f"{name}.gz" for name in files)


def test_a_download_that_is_stopped_leaves_nothing(files, server, monkeypatch, tmp_path):
    serve(server, "/", files)
    monkeypatch.setattr(datasets, "_MIRRORS", (f"{server.root}/",))
    seen = []

    def stop(name, path):
        seen.extend(listing(path.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "_read", stop)
    with pytest.raises(KeyboardInterrupt):
        load_mnist(progress=False)
    assert len(seen) == 1  # there was one, under a name that no one takes for the real one
    assert seen[0].startswith(".")
    assert listing(tmp_path / "cache" / "mnist") == []


def test_without_tqdm_there_is_no_bar(files, server, monkeypatch, capsys):
    serve(server, "/", files)
    monkeypatch.setattr(datasets, "_MIRRORS", (f"{server.root}/",))
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(load_mnist(progress=True).test.y) == 12
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": None}, "{home}/.cache"),
        ("linux", {"XDG_CACHE_HOME": ""}, "{home}/.cache"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "{home}/.cache"),
        ("linux", {"XDG_CACHE_HOME": "{home}/elsewhere"}, "{home}/elsewhere"),
        ("darwin", {"XDG_CACHE_HOME": "{home}/elsewhere"}, "{home}/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "{home}/Local"}, "{home}/Local"),
        ("win32", {"LOCALAPPDATA": None}, "{home}/AppData/Local"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch, tmp_path, platform, variables, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for key, value in variables.items():
        if value is None:
            monkeypatch.delenv(key, raising=False)
        else:
            monkeypatch.setenv(key, value.format(home=tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert datasets._cache_folder() == Path(expected.format(home=tmp_path)) / "batchnorm-learn" / "mnist"


def test_the_known_checksums_and_shapes_are_mnists():
    assert {name: file.shape for name, file in datasets._MNIST.items()} == {
        "train-images-idx3-ubyte": (60_000, 28, 28),
        "train-labels-idx1-ubyte": (60_000,),
        "t10k-images-idx3-ubyte": (10_000, 28, 28),
        "t10k-labels-idx1-ubyte": (10_000,),
    }
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in datasets._MIRRORS)
    assert len(datasets._MIRRORS) >= 2


@pytest.mark.skipif(
    not os.environ.get("BNLEARN_DATA_DIR"),
    reason="NOT CHECKED ON THE REAL MNIST: set BNLEARN_DATA_DIR to a folder that holds its four files",
)
def test_the_real_mnist():
    mnist = load_mnist(seed=0)
    assert [getattr(mnist, part).x.shape for part in PARTS] == [
        (50_000, 1, 28, 28), (10_000, 1, 28, 28), (10_000, 1, 28, 28)]  # fmt: skip
    # The well-known 0.1307 and 0.3081 (of the 60,000), times 255; and the first test images show 7, 2, 1, 0, 4.
    assert mnist.mean / 255 == pytest.approx(0.1307, abs=5e-4)
    assert mnist.std / 255 == pytest.approx(0.3081, abs=5e-4)
    assert mnist.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(np.r_[mnist.train.y, mnist.validation.y])[1] == 6742


# --- made data ------------------------------------------------------------------------------------------------------

MAKERS = {
    "scaled": lambda n=60, seed=0, **kwargs: make_scaled_features(n, seed=seed, **kwargs),
    "classes": lambda n=60, seed=0, **kwargs: make_classes(n, seed=seed, **kwargs),
    "padded": lambda n=60, seed=0, **kwargs: make_padded_sequences(
        n, seed=seed, **{"length": 9, "features": 4, **kwargs}
    ),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_made_data_depends_on_the_seed_only(maker):
    np.random.seed(1)  # noqa: NPY002
    one = maker(seed=11)
    np.random.seed(2)  # noqa: NPY002
    same, other = maker(seed=11, dtype=np.float64), maker(seed=12)
    np.testing.assert_array_equal(one.x, same.x.astype(np.float32))
    np.testing.assert_array_equal(one.y, same.y)
    assert not np.array_equal(one.x, other.x)
    assert (one.x.dtype, same.x.dtype, one.y.dtype) == (np.float32, np.float64, np.int64)


@pytest.mark.parametrize(
    ("maker", "arguments", "error", "message"),
    [
        *[
            (maker, arguments, error, message)
            for maker in MAKERS
            for arguments, error, message in [
                ({"n": 2.0}, TypeError, r"n to be an integer, got 2.0 \(float\)"),
                ({"n": 0}, ValueError, r"n >= .*got 0"),
                ({"n": True}, TypeError, r"n to be an integer, got True"),
                ({"features": 0}, ValueError, "features >= 1, got 0"),
                ({"seed": None}, TypeError, "seed to be an integer, got None"),
                ({"seed": -3}, ValueError, "got -3"),
                ({"dtype": int}, TypeError, "floating-point dtype such as float32, got int64"),
            ]
        ],
        ("scaled", {"decades": -1}, ValueError, "decades to be finite and not negative, got -1"),
        ("scaled", {"decades": "four"}, TypeError, r"decades to be a number, got 'four' \(str\)"),
        ("scaled", {"offset": np.nan}, ValueError, "offset to be finite, got nan"),
        ("classes", {"classes": 1}, ValueError, "classes >= 2, got 1"),
        ("classes", {"n": 9}, ValueError, r"n >= 10 \(one sample for each of 10 classes\), got 9"),
        ("classes", {"separation": -0.5}, ValueError, "separation to be finite and not negative, got -0.5"),
        ("padded", {"length": 0}, ValueError, "length >= 1, got 0"),
        ("padded", {"min_length": 0}, ValueError, "min_length >= 1, got 0"),
        ("padded", {"min_length": 10}, ValueError, "min_length 10 and length 9"),
        ("padded", {"n": 2, "classes": 3}, ValueError, r"one sequence for each of 3 classes\), got 2"),
        ("padded", {"offset": np.inf}, ValueError, "offset to be finite, got inf"),
        ("padded", {"padding": "zero"}, TypeError, "padding to be a number, got 'zero'"),
    ],
)
def test_made_data_refuses_bad_arguments(maker, arguments, error, message):
    with pytest.raises(error, match=message):
        MAKERS[maker](**arguments)


def test_scaled_features_have_the_scales_and_offsets_of_the_docs():
    x, y = make_scaled_features(20_000, seed=3, features=5, decades=6, offset=-2, dtype=np.float64)
    np.testing.assert_allclose(np.log10(x.std(axis=0)), [-3, -1.5, 0, 1.5, 3], atol=0.01)
    np.testing.assert_allclose(x.mean(axis=0) / x.std(axis=0), -2, atol=0.05)
    assert abs(y.mean() - 0.5) < 0.02


def test_every_scaled_feature_says_as_much_about_the_class():
    x, y = make_scaled_features(20_000, seed=4, features=6, dtype=np.float64)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    correlation = np.abs([np.corrcoef(column, y)[0, 1] for column in z.T])
    # For y = [s . z > 0] with k features it is sqrt(2 / (pi k)) for each.
    np.testing.assert_allclose(correlation, np.sqrt(2 / (np.pi * 6)), atol=0.02)
    signs = np.sign([np.corrcoef(column, y)[0, 1] for column in z.T])
    assert np.mean((z @ signs > 0) == y) > 0.99


def test_classes_are_balanced_clouds_of_unit_spread():
    x, y = make_classes(30_001, seed=5, classes=6, features=40, separation=3, dtype=np.float64)
    assert np.bincount(y).tolist() == [5001, 5000, 5000, 5000, 5000, 5000]
    assert np.any(np.diff(y[:20]) < 0)
    centres = np.stack([x[y == label].mean(axis=0) for label in range(6)])
    np.testing.assert_allclose((x - centres[y]).std(axis=0), 1, atol=0.03)
    assert centres.std() == pytest.approx(3, rel=0.15)
    assert np.abs(make_classes(30_000, seed=5, separation=0)[0].mean(axis=0)).max() < 0.05


def test_padded_sequences_are_data_under_the_mask_and_padding_beyond():
    x, mask, y = make_padded_sequences(
        8_000, length=12, features=3, seed=6, min_length=4, offset=5, separation=2, padding=np.nan, dtype=np.float64
    )
    assert (x.shape, mask.shape, mask.dtype, y.shape) == ((8000, 3, 12), (8000, 12), bool, (8000,))
    lengths = mask.sum(axis=1)
    np.testing.assert_array_equal(mask, np.arange(12) < lengths[:, None])  # padded at the end only
    assert np.bincount(lengths, minlength=13)[4:].min() > 700  # 4 to 12, alike
    assert lengths.min() == 4
    np.testing.assert_array_equal(np.isnan(x), np.broadcast_to(~mask[:, None], x.shape))
    assert np.bincount(y).tolist() == [4000, 4000]
    for label in (0, 1):
        data = x[y == label].transpose(0, 2, 1)[mask[y == label]]
        np.testing.assert_allclose(data.std(axis=0), 1, atol=0.02)
    assert np.nanmean(x) == pytest.approx(5, abs=3)


def test_zero_padding_pulls_the_plain_mean_and_not_the_masked_one():
    x, mask, _ = make_padded_sequences(2_000, length=20, features=2, seed=7, separation=0, dtype=np.float64)
    assert (x.transpose(0, 2, 1)[~mask] == 0).all()
    np.testing.assert_allclose(x.transpose(0, 2, 1)[mask].mean(axis=0), 2, atol=0.05)
    assert (x.mean(axis=(0, 2)) < 1.2).all()
