"""Data sets as tensors, with a fixed, seeded, stratified split.

``digits``, ``diabetes``, ``breast-cancer`` and ``wine`` come with scikit-learn; ``mnist``, ``fashion-mnist``,
``kmnist``, ``emnist-letters`` and ``cifar10`` are read, and downloaded once, by torchvision; ``.npz`` and tables are
the user's own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from objectives.data.endings import COMPRESSIONS, SUFFIXES, is_table
from objectives.data.named import NAMES, REFUSED
from objectives.data.npz import read_npz
from objectives.data.parts import VALIDATION_SHARE, Dataset, Part, divided
from objectives.data.prepared import key_of, prepared
from objectives.data.preprocessing import SCALINGS, Preprocessing
from objectives.data.raw import Raw, Role
from objectives.data.splits import Split

__all__ = [
    "ROLES",
    "SCALINGS",
    "TASKS",
    "VALIDATION_SHARE",
    "DataError",
    "Dataset",
    "Part",
    "Preprocessing",
    "Role",
    "Split",
    "load",
]

#: What a user may declare; the target has an argument of its own.
TASKS = ("classification", "regression")
ROLES: tuple[Role, ...] = ("feature", "category", "ignore")


class DataError(ValueError):
    """The data cannot be had or cannot be used. One line: what was given, what is legal, what to do."""


def load(
    dataset: str,
    *,
    data_dir: Path,
    target: str | None = None,
    columns: Mapping[str, Role] | None = None,
    split_seed: int = 0,
    validation: float = VALIDATION_SHARE,
    task: str | None = None,
    split: Mapping[str, Any] | None = None,
    scaling: str = "standard",
) -> Dataset:
    """Read, split and standardise a data set; or map what a process of this machine has prepared so.

    Args:
        dataset: a name of :data:`NAMES`, or a path to an ``.npz`` (arrays X, y and, if there is a test
            set, X_test, y_test) or a table; sought as given and then below ``data_dir``.
        data_dir: where torchvision's data sets are, or are downloaded to; its folder ``prepared`` gets the result.
        target: the column of a table that holds the labels.
        columns: roles of other columns of a table, where they are not to be guessed.
        split_seed: of the split; not of the training.
        validation: the share of the data, without the test data, that is for validation.
        task: one of :data:`TASKS`; ``None`` to ask where the target looks like numbers.
        split: of a table or ``.npz``, what keeps rows together or in order: :class:`objectives.data.splits.Split`.
        scaling: one of :data:`SCALINGS`, of the numbers.

    Raises:
        DataError: the data is missing, malformed, too small to be split, or of doubtful meaning.
    """
    # Whatever is to be chosen: another argument is another data set.
    arguments = {name: value for name, value in locals().items() if name != "data_dir"}

    def make() -> Dataset:
        raw = _read(dataset, data_dir, target, columns or {}, Split.of(split))
        labels = raw.labels.judged(f"target {target!r}" if target else "y", task)
        test_labels = raw.test_labels.like(labels) if raw.test_labels else None
        # Kept with the data: to hash a large file takes as long as to read it, and each worker asks. Before the split,
        # which uses up the blocks.
        found = _fingerprint(None if dataset in NAMES else _find(dataset, data_dir), raw)
        data = divided(replace(raw, labels=labels, test_labels=test_labels), split_seed, validation, scaling)
        return replace(data, fingerprint=found)

    try:
        _check(dataset, target, columns, Split.of(split), scaling)
        return prepared(data_dir / "prepared", lambda: key_of(arguments, _files(dataset, data_dir)), make)
    except DataError:
        raise
    except ValueError as error:
        # The readers say what is wrong, here it is said of which data set.
        raise DataError(f"data set {dataset!r}: {error}") from None


def _check(
    dataset: str, target: str | None, columns: Mapping[str, Role] | None, split: Split | None, scaling: str
) -> None:
    if scaling not in SCALINGS:
        raise ValueError(f"scaling = {scaling!r}; it must be one of {', '.join(SCALINGS)}")
    if is_table(dataset):
        return
    if dataset in REFUSED:
        raise ValueError(REFUSED[dataset])
    if not _is_npz(dataset) and dataset not in NAMES:
        close = get_close_matches(dataset, NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(
            f"dataset = {dataset!r} is unknown; {hint}known: {', '.join(NAMES)}, or a path to a file that ends in "
            f".npz, {', '.join(SUFFIXES)} (as text also {', '.join(filter(None, COMPRESSIONS))})"
        )
    # The arrays of .npz may name groups or times; a named data set has none.
    foreign = {"target": target, "columns": columns, "split": None if _is_npz(dataset) else split}
    for argument, value in foreign.items():
        if value:
            raise DataError(f"{argument} = {value!r} is about a table, and {dataset!r} is none; leave it out")


def _is_npz(dataset: str) -> bool:
    return dataset.lower().endswith(".npz")


def _files(dataset: str, data_dir: Path) -> list[Path]:
    """What a data set is read from, as far as it is there."""
    if dataset in NAMES:
        return NAMES[dataset].files(data_dir)
    return [_find(dataset, data_dir)]


def _read(dataset: str, data_dir: Path, target: str | None, columns: Mapping[str, Role], split: Split | None) -> Raw:
    if dataset in NAMES:
        return NAMES[dataset].read(data_dir)
    file = _find(dataset, data_dir)
    if _is_npz(dataset):
        return read_npz(file, split)
    from objectives.data.table import read_table  # pyarrow is needed for nothing else

    return read_table(file, target, columns, split)


def _fingerprint(file: Path | None, raw: Raw) -> str:
    """The SHA-256 of a data set's content, in hexadecimal: of the user's own file, else of what was read.

    Standardised numbers would not do: processors round their means differently. What is for testing alone is left out.
    """
    if file:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    found = hashlib.sha256()
    for array in (*raw.blocks, raw.labels.y_N):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _find(path: str, data_dir: Path) -> Path:
    """The user's own file: as given, else below ``data_dir``."""
    given = Path(os.path.expanduser(path))  # noqa: PTH111  # unlike Path's, it never raises
    for candidate in (given, data_dir / given):
        if candidate.is_file():
            return candidate
    raise ValueError(f"no such file: neither {given.absolute()} nor {data_dir / given}")
