"""The user's own data: reading .npz and .csv, and saying exactly what is wrong in them.

Every function raises :exc:`ValueError` with one line; :func:`objectives.data.load` adds the file's name.
"""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A data set as it is on disk. ``x`` has N examples first; the rest of its axes are flattened."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    is_image: bool = False
    """All features are of one kind and share one mean and standard deviation."""


_FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_npz(file: Path) -> Raw:
    """The arrays X, y and, where there are, X_test, y_test."""
    try:
        # Opened here: numpy leaves a file that is no archive open.
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("is not an .npz file; write one with numpy.savez(file, X=…, y=…)")
            found = {name: archive[name] for name in archive.files if name in ("X", "y", "X_test", "y_test")}
            names = ", ".join(archive.files) or "none"
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"is not an .npz file or is torn ({error}); write it again with numpy.savez") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError("holds Python objects, which are never unpickled; store numbers or text") from None
        raise
    for name in ("X", "y"):
        if name not in found:
            raise ValueError(f"has no array {name}; it needs X (examples first) and y, and holds: {names}")
    if ("X_test" in found) != ("y_test" in found):
        raise ValueError("has only one of X_test and y_test; give both or neither")
    for x, y in (("X", "y"), ("X_test", "y_test")):
        if x in found:
            _check_arrays(x, found[x], y, found[y])
    return Raw(x=found["X"], y=found["y"], x_test=found.get("X_test"), y_test=found.get("y_test"))


def _check_arrays(x_name: str, x: np.ndarray, y_name: str, y: np.ndarray) -> None:
    if x.ndim < 2 or y.ndim != 1:
        raise ValueError(
            f"{x_name} has shape {x.shape} and {y_name} {y.shape}; they should be (examples, features…) and (examples,)"
        )
    if len(x) != len(y):
        raise ValueError(f"{x_name} has {len(x)} examples and {y_name} {len(y)} labels; they must agree")
    if not len(x):
        raise ValueError(f"{x_name} is empty")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{x_name} holds {x.dtype}, which are no numbers")
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(x.astype(np.float32))
    if not is_finite.all():
        place = tuple(int(i) for i in np.argwhere(~is_finite)[0])
        raise ValueError(f"{x_name}{list(place)} is {x[place]}; every feature must be finite as a float32")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row = int(np.argwhere(~np.isfinite(y))[0][0])
        raise ValueError(f"{y_name}[{row}] is {y[row]}; every label must be finite")


def read_csv(file: Path, target: str | None) -> Raw:
    """A table with a header: the column ``target`` holds labels, all others are numbers."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream)
            header = next(rows, None)
            if not header:
                raise ValueError("is empty; it needs a header and rows")
            column = _target_column(header, target)
            x, y = [], []
            for number, row in enumerate(rows, start=2):
                if not row:
                    continue  # a blank line, as at the end of many files
                if len(row) != len(header):
                    raise ValueError(f"row {number} has {len(row)} cells, and the header {len(header)}")
                if not row[column].strip():
                    raise ValueError(f"row {number}, column {target!r} is empty; every row needs a label")
                y.append(row[column])
                x.append(
                    [_number(cell, number, name) for name, cell in zip(header, row, strict=True) if name != target]
                )
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"is not CSV: {error}") from None
    if not x:
        raise ValueError("has a header but no rows")
    if not x[0]:
        raise ValueError(f"has no column but the target {target!r}")
    return Raw(x=np.array(x, dtype=np.float64), y=np.array(y))


def _target_column(header: list[str], target: str | None) -> int:
    columns = f"its columns: {', '.join(header[:12])}{', …' if len(header) > 12 else ''}"
    if target is None:
        raise ValueError(f"needs objective.args.target = the column with the labels; {columns}")
    repeated = next((name for i, name in enumerate(header) if name in header[:i]), None)
    if repeated is not None:
        raise ValueError(f"has the column {repeated!r} twice; each needs a name of its own")
    if target not in header:
        close = get_close_matches(target, header, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"has no column {target!r}; {hint}{columns}")
    return header.index(target)


def _number(cell: str, row: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        shown = "is empty" if not cell.strip() else f"is {cell[:40]!r}, which is no number"
        raise ValueError(f"row {row}, column {column!r} {shown}") from None
    if not abs(value) <= _FLOAT32_MAX:
        raise ValueError(f"row {row}, column {column!r} is {cell}; every feature must be finite as a float32")
    return value
