"""Data sets: how they are read, split and standardised, and what is said of bad ones."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import pickle
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from objectives.data import DataError, Dataset, load

SEED = 12345


def write_npz(folder: Path, **arrays: Any) -> str:
    rng = np.random.default_rng(SEED)
    content = {"X": rng.normal(5, 3, (60, 4)), "y": np.arange(60) % 3, **arrays}
    file = folder / "own.npz"
    np.savez(file, **{name: array for name, array in content.items() if array is not None})
    return str(file)


def write_csv(folder: Path, rows: list[str], name: str = "own.csv") -> str:
    (folder / name).write_text("\n".join(rows) + "\n")
    return str(folder / name)


CSV = ["a,b,label", *(f"{i % 7},{i * 0.5},{'cat' if i % 2 else 'dog'}" for i in range(40))]


def rows_of(data: Dataset) -> list[set[tuple[float, ...]]]:
    """The examples of each part."""
    return [{tuple(row.tolist()) for row in part.x_NF} for part in (data.train, data.validation, data.test)]


def test_digits_come_without_a_download(tmp_path: Path) -> None:
    data = load("digits", data_dir=tmp_path / "new")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1293, 144, 360]
    assert data.n_features == 64
    assert data.classes == tuple("0123456789")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["prepared"]


def test_tables_that_come_with_scikit_learn_are_read_by_name(tmp_path: Path) -> None:
    for name, rows, features, classes in (
        ("diabetes", 442, 10, ()),
        ("breast-cancer", 569, 30, ("benign", "malignant")),
        ("wine", 178, 13, ("class_0", "class_1", "class_2")),
    ):
        data = load(name, data_dir=tmp_path)
        assert (sum(map(len, (data.train, data.validation, data.test))), data.n_features) == (rows, features)
        assert data.classes == classes
        assert len(data.columns) == features + 1
    with pytest.raises(DataError, match=r"y is a number; leave task out, or give \"regression\""):
        load("diabetes", data_dir=tmp_path, task="classification")


def test_the_parts_are_disjoint_stratified_and_seeded(tmp_path: Path) -> None:
    data = load("digits", data_dir=tmp_path)
    train, validation, test = rows_of(data)
    assert not train & validation
    assert not (train | validation) & test
    shares = torch.bincount(data.train.y_N) / len(data.train)
    for part in (data.validation, data.test):
        assert torch.allclose(torch.bincount(part.y_N) / len(part), shares, atol=0.02)
    again, other = load("digits", data_dir=tmp_path), load("digits", data_dir=tmp_path, split_seed=1)
    assert torch.equal(again.validation.x_NF, data.validation.x_NF)
    assert rows_of(other)[1] != validation


def test_the_training_part_alone_standardises(tmp_path: Path) -> None:
    data = load(write_npz(tmp_path), data_dir=tmp_path)
    assert torch.allclose(data.train.x_NF.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(data.train.x_NF.std(0, correction=0), torch.ones(4), atol=1e-5)
    assert not torch.allclose(data.test.x_NF.mean(0), torch.zeros(4), atol=1e-3)


def test_a_constant_feature_becomes_zero(tmp_path: Path) -> None:
    x = np.ones((60, 2))
    x[:, 1] = np.arange(60)
    data = load(write_npz(tmp_path, X=x), data_dir=tmp_path)
    assert torch.equal(data.train.x_NF[:, 0], torch.zeros(len(data.train)))


def test_a_feature_that_is_constant_but_for_rounding_becomes_zero_too(tmp_path: Path) -> None:
    x = np.column_stack([np.full(60, 0.1), np.arange(60), np.where(np.arange(60) % 2, 0.3, 0.1 + 0.2)])
    data = load(write_npz(tmp_path, X=x), data_dir=tmp_path)
    assert torch.equal(data.train.x_NF[:, [0, 2]], torch.zeros(len(data.train), 2))


def test_a_large_offset_keeps_its_digits(tmp_path: Path) -> None:
    x = np.array([[1.7e9 + i % 5] for i in range(60)])
    data = load(write_npz(tmp_path, X=x), data_dir=tmp_path)
    assert len(torch.unique(data.train.x_NF)) == 5


def test_images_are_flattened_and_share_one_mean(tmp_path: Path) -> None:
    x = np.random.default_rng(SEED).integers(0, 256, (60, 2, 3), dtype=np.uint8)
    assert load(write_npz(tmp_path, X=x), data_dir=tmp_path).n_features == 6
    assert load("digits", data_dir=tmp_path).mean_F.shape == (1,)


@pytest.mark.parametrize("labels", [np.array([7, -3, 1000]), np.array(["x", "z", "y"]), np.array([0.5, 2.5, 1.5])])
def test_labels_of_any_kind_become_0_to_c(tmp_path: Path, labels: np.ndarray) -> None:
    data = load(write_npz(tmp_path, y=labels[np.arange(60) % 3]), data_dir=tmp_path)
    assert data.classes == tuple(str(label) for label in np.sort(labels))
    assert torch.unique(data.train.y_N).tolist() == [0, 1, 2]


def test_a_test_set_of_ones_own_is_used(tmp_path: Path) -> None:
    file = write_npz(tmp_path, X_test=np.full((5, 4), 5.0), y_test=np.array([0, 1, 2, 0, 1]))
    data = load(file, data_dir=tmp_path)
    assert (len(data.train) + len(data.validation), len(data.test)) == (60, 5)


def test_a_relative_path_is_sought_below_the_data_directory_too(tmp_path: Path) -> None:
    write_csv(tmp_path, CSV)
    assert load("own.csv", data_dir=tmp_path, target="label").n_features == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": None}, "has no array X; it needs X (examples first) and y, and holds: y"),
        ({"y": None}, "has no array y; it needs X (examples first) and y, and holds: X"),
        ({"y": np.arange(59) % 3}, "X has 60 examples and y 59 labels; they must agree"),
        ({"X": np.zeros((0, 4)), "y": np.zeros(0)}, "X is empty"),
        ({"X": np.zeros(60)}, "X has shape (60,) and y (60,); they should be (examples, features…) and (examples,)"),
        ({"X": np.full((60, 4), "text")}, "which are no numbers"),
        ({"X": np.where(np.arange(240).reshape(60, 4) == 9, np.nan, 1.0)}, "X[2, 1] is nan; every feature must be"),
        ({"X": np.where(np.arange(240).reshape(60, 4) == 9, np.inf, 1.0)}, "X[2, 1] is inf; every feature must be"),
        ({"X": np.full((60, 4), 1e300)}, "X[0, 0] is 1e+300; every feature must be finite as a float32"),
        ({"y": np.where(np.arange(60) == 7, np.nan, 1.0)}, "y[7] is nan; every label must be finite"),
        ({"y": np.zeros(60)}, "all labels are 0.0; a classifier needs at least two classes"),
        (
            {"y": (np.arange(60) == 3).astype(int)},
            "class 1 has 1 of 60 examples; each of the 2 classes needs at least 13",
        ),
        ({"X": np.array([[{}]] * 60, dtype=object)}, "holds Python objects, which are never unpickled"),
        ({"X": np.zeros((60, 0))}, "X is empty"),
        ({"X": np.full((60, 4), 2**53 + 1)}, "X holds whole numbers above 2**53, up to 9007199254740993, which double"),
        ({"y": np.full(60, np.datetime64("2024-01-31"))}, "y holds datetime64[D]; labels are numbers or text"),
        ({"X_test": np.zeros((3, 4))}, "has only one of X_test and y_test; give both or neither"),
        ({"X_test": np.zeros((3, 5)), "y_test": np.arange(3)}, "X_test has 5 features and X has 4; they must agree"),
        ({"X_test": np.zeros((3, 4)), "y_test": np.arange(3) + 1}, "y_test holds the label 3, which y does not"),
    ],
)
def test_a_bad_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    file = write_npz(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        load(file, data_dir=tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"data set {file!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "validation", "message"),
    [
        (
            "digits",
            0.999,
            "validation = 0.999: of 1437 examples that leaves 1 for training, and at least 10 are needed, of which "
            "each of the 10 classes needs one; give a smaller share, such as 0.1",
        ),
        ("digits", 0.0001, "of 1437 examples that leaves 1 for validation, and at least 10 are needed, of which each"),
        ("diabetes", 0.999, "leaves 0 for training, and at least 2 are needed; give a smaller share, such as 0.1"),
    ],
)
def test_a_share_that_leaves_a_part_empty_is_named_with_what_it_leaves(
    tmp_path: Path, dataset: str, validation: float, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(dataset, data_dir=tmp_path, validation=validation)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_share_that_leaves_a_class_out_of_the_training_rows_is_refused(tmp_path: Path) -> None:
    labels = np.array([0] * 187 + [1] * 13)
    file = write_npz(tmp_path, X=np.random.default_rng(SEED).normal(size=(200, 4)), y=labels)
    with pytest.raises(DataError, match=r"validation = 0\.98: .* which have 1 of the 2 classes; give a smaller share"):
        load(file, data_dir=tmp_path, validation=0.98)


@pytest.mark.parametrize(
    ("dataset", "target", "message"),
    [
        ("mnits", None, "dataset = 'mnits' is unknown; did you mean 'mnist'? known: digits, diabetes, breast-cancer"),
        ("linnerud", None, "has three targets (Weight, Waist, Pulse), and a model here predicts one; write the"),
        ("digits", "label", "target = 'label' is about a table, and 'digits' is none; leave it out"),
        ("none.csv", "label", "no such file: neither "),
        ("none.npz", None, "no such file: neither "),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, dataset: str, target: str | None, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load(dataset, data_dir=tmp_path, target=target)
    assert message in str(caught.value)


def test_a_csv_without_a_target_lists_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs objective\.args\.target = .*; its columns: a, b, label"):
        load(write_csv(tmp_path, CSV), data_dir=tmp_path)


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def archive(member: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("X.npy", member)
    return content.getvalue()


NO_NPZ = "is not an .npz file; write one with numpy.savez"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NO_NPZ),
        (b"x,label\n1,cat\n", NO_NPZ),
        (b"x,label\n1,cat\n".decode().encode("utf-16"), NO_NPZ),
        (pickle.dumps({"X": [[1.0]]}), NO_NPZ),
        (npy(np.zeros((60, 4))), NO_NPZ),
        (b"PK\x03\x04torn", "is torn (File is not a zip file); write it again with numpy.savez"),
        (archive(npy(np.zeros((60, 4))))[:-9], "is torn (File is not a zip file)"),
        (archive(b"1 2 3"), "its X is no array"),
    ],
)
def test_a_file_that_is_no_npz_is_refused_for_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.npz"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(str(file), data_dir=tmp_path)
    assert str(caught.value).startswith(f"data set {str(file)!r}: {message}")
    assert "\n" not in str(caught.value)


# torchvision's


def idx_files(folder: Path) -> None:
    """MNIST's four files in small: 40 training and 20 test images of 28 × 28."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 2).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def test_files_that_are_there_are_not_downloaded(tmp_path: Path) -> None:
    idx_files(tmp_path / "MNIST" / "raw")
    data = load("mnist", data_dir=tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [36, 4, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MNIST", "prepared"]


def test_a_torn_file_is_an_error_that_names_its_folder(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    idx_files(raw)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"its files in .*MNIST are incomplete or corrupted .*delete that folder"):
        load("mnist", data_dir=tmp_path)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server on this machine with MNIST's files in small, gzipped; and their checksums."""
    idx_files(tmp_path / "served")
    checksums = {}
    for file in list((tmp_path / "served").iterdir()):
        packed = file.with_name(f"{file.name}.gz")
        packed.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        checksums[packed.name] = hashlib.md5(packed.read_bytes()).hexdigest()
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "served")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", checksums
        server.shutdown()
        thread.join()
    # Each file once, and torchvision's HEAD request before it, however many asked.
    assert len(requests) <= 2 * len(set(requests))


LOADER = """
import sys, json, os
from pathlib import Path
import torch
import torchvision
from objectives.data import load
torch.set_num_threads(1)  # more wait for each other, spinning
mirror, checksums, folder, count = json.loads(sys.argv[1])
torchvision.datasets.MNIST.mirrors = [mirror]
torchvision.datasets.MNIST.resources = list(checksums.items())
children = []
while len(children) < count and 0 not in children:
    children.append(os.fork())
if 0 in children:
    told = str(len(load("mnist", data_dir=Path(folder)).train))
    os.write(1, (told + "\\n").encode())
else:
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.slow
def test_four_processes_download_once(tmp_path: Path, mirror: tuple[str, dict[str, str]]) -> None:
    arguments = json.dumps([*mirror, str(tmp_path / "data"), 4])
    done = subprocess.run(
        [sys.executable, "-c", LOADER, arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("36") == 4, done.stdout


def refusal_of(mirror: str, checksums: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said where MNIST cannot be had from ``mirror``."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [mirror])
    monkeypatch.setattr(MNIST, "resources", list(checksums.items()))
    with pytest.raises(DataError) as caught:
        load("mnist", data_dir=folder)
    return str(caught.value)


def test_a_wrong_checksum_is_explained(
    tmp_path: Path, mirror: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, checksums = mirror
    said = refusal_of(url, dict.fromkeys(checksums, "0" * 32), tmp_path / "data", monkeypatch)
    assert "cannot be downloaded: " in said
    assert "name their folder with --data-dir" in said


def test_an_unreachable_mirror_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal_of("http://127.0.0.1:9/", {"x.gz": "0" * 32}, tmp_path / "data", monkeypatch)
    assert "is not in " in said
    assert "put torchvision's files of MNIST there" in said


def test_the_real_mnist_is_read(real_data: Path) -> None:
    data = load("mnist", data_dir=real_data)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [54_000, 6_000, 10_000]
    assert data.n_features == 784
    assert float(data.train.x_NF.mean()) == pytest.approx(0, abs=1e-4)


def test_a_fingerprint_is_of_the_content_and_leaves_the_test_part_alone(tmp_path: Path) -> None:
    written = write_npz(tmp_path)
    assert load(written, data_dir=tmp_path).fingerprint == hashlib.sha256(Path(written).read_bytes()).hexdigest()
    assert load("digits", data_dir=tmp_path, split_seed=1).fingerprint == load("digits", data_dir=tmp_path).fingerprint
    found = []
    for changed in (None, "t10k-images-idx3-ubyte", "train-images-idx3-ubyte"):
        folder = tmp_path / str(changed)
        idx_files(folder / "MNIST" / "raw")
        if changed:
            content = (folder / "MNIST" / "raw" / changed).read_bytes()
            (folder / "MNIST" / "raw" / changed).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        found.append(load("mnist", data_dir=folder).fingerprint)
    assert found[0] == found[1] != found[2]
