"""The user's own arrays: reading .npz, and saying exactly what is wrong in one.

Every function raises :exc:`ValueError` with one line; :func:`objectives.data.load` adds the file's name.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from objectives.data.labels import FLOAT32_MAX, Labels
from objectives.data.raw import MAX_EXACT, Raw, blocks_of, one_line
from objectives.data.splits import Keys, Split, read_keys

EXAMPLES = ("X", "y", "X_test", "y_test")


def read_npz(file: Path, split: Split | None = None) -> Raw:
    """The arrays X, y and, where there are, X_test, y_test; and the one that the examples are divided by.

    Args:
        file: to read.
        split: its column is an array with a cell for each example of X.
    """
    wanted = (*EXAMPLES, split.column) if split else EXAMPLES
    try:
        with file.open("rb") as stream:
            if stream.read(2) != b"PK":  # of an archive; numpy would take all else for pickled Python objects
                raise ValueError(
                    "is not an .npz file; write one with numpy.savez(file, X=…, y=…); "
                    "the name of a table ends in .csv, .tsv or .parquet"
                )
            stream.seek(0)
            # Unpickling runs code: a data set must not.
            archive = np.load(stream, allow_pickle=False)
            found = {name: archive[name] for name in archive.files if name in wanted}
            names = ", ".join(archive.files) or "none"
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"is torn ({one_line(error)}); write it again with numpy.savez") from None
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError("holds Python objects, which are never unpickled; store numbers or text") from None
        raise
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"its {name} is no array; write it again with numpy.savez")
    for name in ("X", "y"):
        if name not in found:
            raise ValueError(f"has no array {name}; it needs X (examples first) and y, and holds: {names}")
    if ("X_test" in found) != ("y_test" in found):
        raise ValueError("has only one of X_test and y_test; give both or neither")
    for x, y in (("X", "y"), ("X_test", "y_test")):
        if x in found:
            _check_arrays(x, found[x], y, found[y])
    labels = Labels.of(found["y"])
    keys = _keys(found, split, names) if split else None
    if "X_test" not in found:
        return Raw(blocks=blocks_of(found["X"]), labels=labels, keys=keys)
    features, test_features = (found[name][0].size for name in ("X", "X_test"))
    if features != test_features:
        raise ValueError(f"X_test has {test_features} features and X has {features}; they must agree")
    return Raw(
        blocks=blocks_of(found["X"]),
        labels=labels,
        test_blocks=blocks_of(found["X_test"]),
        test_labels=Labels.of(found["y_test"]),
        keys=keys,
    )


def _keys(found: Mapping[str, np.ndarray], split: Split, names: str) -> Keys:
    """What the examples are divided by."""
    import pyarrow as pa  # as for a table

    name = split.column
    what = f"split.{'by' if split.by else 'on'} = {name!r}"
    if name in EXAMPLES:
        raise ValueError(f"{what}: it must name another array, with a group or time for each example")
    if name not in found:
        raise ValueError(f"{what}: there is no such array; add one with a cell for each example; it holds: {names}")
    cells, n = found[name], len(found["X"])
    if cells.shape != (n,):
        raise ValueError(f"{what}: the array has shape {cells.shape}; it must be ({n},), a cell for each example")
    if cells.dtype.kind not in "fiubUSM":
        raise ValueError(f"{what}: the array holds {cells.dtype}; legal are text, numbers and datetime64")
    if split.after is not None and "X_test" in found:
        raise ValueError(f"split.after = {split.after!r}: the file has a test set, X_test; leave after or X_test out")
    if cells.dtype.kind == "S":
        cells = np.char.decode(cells, "utf-8")
    elif cells.dtype.kind == "M":
        cells = cells.astype("datetime64[us]")  # of the units that Arrow knows
    return read_keys(pa.chunked_array([pa.array(cells, from_pandas=True)]), split, lambda row: f"{name}[{row}]")


def _check_arrays(x_name: str, x: np.ndarray, y_name: str, y: np.ndarray) -> None:
    if x.ndim < 2 or y.ndim != 1:
        raise ValueError(
            f"{x_name} has shape {x.shape} and {y_name} {y.shape}; they should be (examples, features…) and (examples,)"
        )
    if len(x) != len(y):
        raise ValueError(f"{x_name} has {len(x)} examples and {y_name} {len(y)} labels; they must agree")
    if not x.size:
        raise ValueError(f"{x_name} is empty")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{x_name} holds {x.dtype}, which are no numbers")
    _check_range(x_name, x)
    if y.dtype.kind not in "fiubUS":
        raise ValueError(f"{y_name} holds {y.dtype}; labels are numbers or text")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row = int(np.argwhere(~np.isfinite(y))[0][0])
        raise ValueError(f"{y_name}[{row}] is {y[row]}; every label must be finite")


def _check_range(name: str, x: np.ndarray) -> None:
    # The extremes of an array that holds a NaN are NaN, and no comparison with one is true.
    low, high = x.min().item(), x.max().item()
    if not (low >= -FLOAT32_MAX and high <= FLOAT32_MAX):
        with np.errstate(over="ignore"):
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(x.astype(np.float32)))[0])
        raise ValueError(f"{name}{list(place)} is {x[place]}; every feature must be finite as a float32")
    if x.dtype.kind in "iu" and max(-low, high) > MAX_EXACT:
        raise ValueError(
            f"{name} holds whole numbers above 2**53, up to {max(-low, high)}, which double precision rounds; "
            "subtract a constant first"
        )
