"""The user's own tables: which columns are features, and whether they are what they seem.

Each column has a role, declared or found, and nothing is decided in silence: what is dropped or read in
another way than it is written is logged, once; what may be meant in two ways is refused by name.

Every function raises :exc:`ValueError` with one line; :func:`objectives.data.load` adds the file's name.
Axes: N examples, F features.
"""

from __future__ import annotations

import logging
import mmap
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from objectives.data.cells import DECIMAL_COMMA, MISSING, ColumnReader
from objectives.data.columnar import ArrowTable, ParquetTable
from objectives.data.delimited import TextTable
from objectives.data.endings import endings
from objectives.data.labels import FLOAT32_MAX, Labels, is_number
from objectives.data.questions import check, check_commas, keep, kept_features
from objectives.data.raw import Column, Raw, Role, few, one_line
from objectives.data.splits import Split, read_keys

log = logging.getLogger(__name__)

#: Cells of a block, which is handled at once.
BLOCK_CELLS = 2**19
MISSING_LABELS = frozenset(MISSING.to_pylist())


class Table(Protocol):
    """A file with columns."""

    names: tuple[str, ...]
    """Empty for a column without a name."""
    is_text: bool
    """Whether all cells come as text."""
    may_have_decimal_commas: bool

    def batches(self, columns: Sequence[int]) -> Iterator[Iterator[pa.Array]]:
        """For each run of consecutive rows: these columns, which are wanted at once and in order."""

    def place(self, row: int) -> str:
        """Where a row is, counted from 0."""


Rows: TypeAlias = "Table | pa.Table | Mapping[str, Any]"
"""What :func:`as_table` takes; a pandas frame behaves as a mapping from names to columns."""


def open_table(file: Path, column: str) -> Table:
    """A file by its ending, one of :data:`objectives.data.endings.SUFFIXES`.

    Args:
        file: read as it is used, not here.
        column: one that it should have; tells the separator of a text where several would do.
    """
    suffix, compression = endings(file.name)
    return ParquetTable(file) if suffix == ".parquet" else TextTable(file, suffix, compression, column)


def as_table(rows: Rows) -> Table:
    """A table in memory as the readers take it.

    Raises:
        ValueError: names a column that is none.
    """
    if isinstance(rows, TextTable | ParquetTable | ArrowTable):
        return rows
    if not hasattr(rows, "keys") and not isinstance(rows, pa.Table):
        raise ValueError(f"rows are {type(rows).__name__}; give a pandas or pyarrow table, or a dict of columns")
    given: Any = rows
    # pandas tells 1 and "1" apart; a model's names are text.
    names = [str(key) for key in (given.column_names if isinstance(rows, pa.Table) else given)]
    repeated = next((name for name, n in Counter(names).items() if n > 1), None)
    if repeated is not None:
        raise ValueError(f"the rows have the column {repeated!r} twice; each needs a name of its own")
    if isinstance(rows, pa.Table):
        return ArrowTable(rows)
    columns: dict[str, Any] = {}
    for key, name in zip(given, names, strict=True):
        if isinstance(given[key], str) or not hasattr(given[key], "__len__"):
            raise ValueError(f"column {name!r} is {given[key]!r:.60}; give a list with a cell for each row")
        try:
            columns[name] = pa.chunked_array(pa.array(given[key], from_pandas=True))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ValueError(f"column {name!r} is not of one type ({one_line(error)[:120]})") from None
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns are not equally long: {few(f'{name} {n}' for name, n in lengths.items())}")
    return ArrowTable(pa.table(columns))


def read_table(file: Path, target: str | None, roles: Mapping[str, Role], split: Split | None = None) -> Raw:
    """Read a table.

    Args:
        file: ends in one of :data:`objectives.data.endings.SUFFIXES`, with the ending of a compression or not.
        target: the column with the labels.
        roles: of other columns; a column that is not in it is a feature if it can be one.
        split: its column is a feature only if it has that role.
    """
    table = open_table(file, target or "")
    names = named(table.names)
    _check_declared(names, target, roles, split)
    assert target is not None  # checked
    # As a feature, a patient's number or a date mostly tells the model which part a row is in.
    if split is not None:
        roles = {split.column: "ignore", **roles}
    features = [i for i, name in enumerate(names) if _is_read(table.names[i], name, target, roles)]
    readers = [
        ColumnReader(
            names[i], table.is_text, table.may_have_decimal_commas, is_declared=roles.get(names[i]) == "category"
        )
        for i in features
    ]
    if not features:
        raise _no_feature(target)
    key = None if split is None else names.index(split.column)
    cells, blocks, keys = _read(table, names.index(target), key, features, readers)
    _put_codes(blocks, readers)
    check(readers, table.place)
    cells, with_commas = _with_points(target, cells) if table.may_have_decimal_commas else (cells, [])
    check_commas([*readers, *with_commas], table.place)
    labels = _labels(table, target, cells)
    kept = kept_features(blocks, readers, roles)
    if not kept:
        raise _no_feature(target)
    if len(kept) < len(readers):
        # One block after the other: memory never holds all of them twice.
        blocks = deque(block[:, kept] for block in _drained(blocks))
    described = {name: Column(name=name, role="ignore", kind="unread") for name in names}
    described[target] = Column(name=target, role="target", kind="text")
    described |= {readers[j].name: Column(name=readers[j].name, role="feature", kind=readers[j].kind) for j in kept}
    levels = {readers[j].name: readers[j].levels for j in kept if readers[j].is_category}
    return Raw(
        blocks=blocks,
        labels=labels,
        columns=tuple(described.values()),
        levels=levels,
        keys=read_keys(pa.chunked_array(keys), split, table.place) if split is not None else None,
    )


def _no_feature(target: str) -> ValueError:
    return ValueError(f"has no column left but the target {target!r}; it needs a feature")


def named(names: Sequence[str]) -> tuple[str, ...]:
    """A name for each column; one without is named by its place, as pandas does."""
    return tuple(name or f"Unnamed: {i}" for i, name in enumerate(names))


def _check_declared(names: Sequence[str], target: str | None, roles: Mapping[str, Role], split: Split | None) -> None:
    columns = f"its columns: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
    if target is None:
        raise ValueError(f"needs objective.args.target = the column with the labels; {columns}")
    for name in (target, *roles, *([split.column] if split else [])):
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            is_data = names[0].startswith("#") or any(map(is_number, names))
            doubt = "; is its first line a header?" if is_data else ""
            raise ValueError(f"has no column {name!r}; {hint}{columns}{doubt}")
    if target in roles:
        raise ValueError(f"columns gives the target {target!r} a role; leave it out there")
    if split is not None and split.column == target:
        raise ValueError(f"split names the target {target!r}; it must name another column")


def _is_read(given: str, name: str, target: str, roles: Mapping[str, Role]) -> bool:
    """Whether a column may become a feature."""
    if name == target or roles.get(name) == "ignore":
        return False
    is_unnamed = not given or re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name)
    if is_unnamed and name not in roles:
        log.warning("left out the column %r, which has no name of its own; to keep it: %s", name, keep([name]))
        return False
    return True


def _read(
    table: Table, target: int, key: int | None, features: Sequence[int], readers: Sequence[ColumnReader]
) -> tuple[pa.ChunkedArray, deque[np.ndarray], list[pa.Array]]:
    """The target's cells; rows × K in blocks, NaN where a cell is missing or no number; and the cells of ``key``."""
    cells: list[pa.Array] = []
    keys: list[pa.Array] = []
    between = [] if key is None or key in features else [key]
    blocks: deque[np.ndarray] = deque()
    names = [reader.name for reader in readers]
    first_row = 0
    for columns in table.batches([target, *between, *features]):
        labels = next(columns)
        cells.append(labels if table.is_text else _as_text(labels))
        keys += [next(columns) for _ in between]
        pieces = deque(_pages((rows, len(features)), np.float64) for rows in _cut(len(labels), len(features)))
        for j, reader in enumerate(readers):
            column = next(columns)
            if features[j] == key:  # a feature that also divides the rows is read once
                keys.append(column)
            values, start = reader.read(column), 0
            for piece in pieces:
                piece[:, j] = values[start : start + len(piece)]
                start += len(piece)
        for piece in _drained(pieces):
            check_range(table, names, piece, first_row)
            _note_missing(readers, piece, first_row)
            first_row += len(piece)
            blocks.append(_compact(piece))
    if not cells:
        raise ValueError("has a header but no rows")
    return pa.chunked_array(cells), blocks, keys


def _put_codes(blocks: deque[np.ndarray], readers: Sequence[ColumnReader]) -> None:
    """Of texts that turned out to be categories once all rows were read."""
    for j, reader in enumerate(readers):
        if reader.is_category and reader.codes:
            starts = np.cumsum([len(block) for block in blocks])[:-1]
            for block, code_N in zip(blocks, np.split(np.concatenate(reader.codes), starts), strict=True):
                block[:, j] = code_N
            reader.codes = []  # as large as the column


def _cut(rows: int, features: int) -> Iterator[int]:
    """The sizes of blocks for so many rows."""
    most = max(1, BLOCK_CELLS // features)
    yield from (min(most, rows - start) for start in range(0, rows, most))


def _pages(shape: tuple[int, int], dtype: type[np.floating[Any]]) -> np.ndarray:
    """A matrix in pages of its own, which go back to the system when it does; malloc would keep most of them."""
    pages = mmap.mmap(-1, shape[0] * shape[1] * np.dtype(dtype).itemsize)
    return np.frombuffer(pages, dtype=dtype).reshape(shape)


def _compact(block: np.ndarray) -> np.ndarray:
    """In half the memory if nothing is lost, as with whole numbers; NaN stays NaN."""
    narrow = _pages((block.shape[0], block.shape[1]), np.float32)
    narrow[:] = block
    return narrow if np.array_equal(narrow, block, equal_nan=True) else block


def check_range(table: Table, names: Sequence[str], block: np.ndarray, first_row: int) -> None:
    """Refuse numbers that float32 cannot hold; names the first."""
    is_large = np.abs(block) > FLOAT32_MAX
    if is_large.any():
        row, j = np.argwhere(is_large)[0]
        raise ValueError(
            f"{table.place(first_row + int(row))}, column {names[j]!r} is {block[row, j]:g}; every feature must "
            "be finite as a float32"
        )


def _note_missing(readers: Sequence[ColumnReader], block: np.ndarray, first_row: int) -> None:
    is_missing = np.isnan(block)
    for j in np.flatnonzero(is_missing.any(axis=0)):
        # A column of text is NaN in each of its cells, and none of these is missing.
        if readers[int(j)].text is None:
            readers[int(j)].note_missing(is_missing[:, j], first_row)


def _as_text(cells: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    return pa.array([None if cell is None else str(cell) for cell in cells.to_pylist()], pa.string())


def _with_points(target: str, cells: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[ColumnReader]]:
    """Labels that are numbers, with decimal points for commas, and who read them; others as they are."""
    reader = ColumnReader(target, is_text=True, may_have_decimal_commas=True)
    for chunk in cells.chunks:
        reader.read(chunk)
    if reader.text or not reader.comma:
        return cells, []
    return pc.replace_substring_regex(pc.utf8_trim_whitespace(cells), DECIMAL_COMMA, r"\1.\2"), [reader]


def _labels(table: Table, target: str, cells: pa.ChunkedArray) -> Labels:
    encoded = pc.fill_null(cells, "").dictionary_encode().unify_dictionaries()
    spellings = encoded.chunk(0).dictionary.to_pylist()
    spelling_N = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    lost = [i for i, text in enumerate(spellings) if text.strip().lower() in MISSING_LABELS]
    if lost:
        is_lost = np.isin(spelling_N, lost)
        place = table.place(int(is_lost.argmax()))
        shown = few(repr(spellings[i]) for i in lost)
        raise ValueError(
            f"target {target!r} is missing in {is_lost.sum()} of {len(is_lost)} rows ({shown}, the first in {place}); "
            "remove these rows, or rename the label if it is a class"
        )
    return Labels.of_text(spellings, spelling_N)


def _drained(blocks: deque[np.ndarray]) -> Iterator[np.ndarray]:
    while blocks:
        yield blocks.popleft()
