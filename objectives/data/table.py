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
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from objectives.data.cells import MISSING, NumberReader, hint
from objectives.data.columnar import ParquetTable
from objectives.data.delimited import OPENERS, TextTable
from objectives.data.labels import Labels
from objectives.data.raw import FLOAT32_MAX, SHOWN, Column, Raw, Role, declare, few

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".parquet")
#: Names of columns that count or identify rows where each row has a number of its own.
ROW_NAMES = re.compile(r"index|id|row|rows?[ _.-]?(id|no|num|number|index|names?)|no\.?|nr\.?|#|level_0")


class Table(Protocol):
    """A file with columns."""

    names: tuple[str, ...]
    """Empty for a column without a name."""
    is_text: bool
    """Whether all cells come as text."""
    may_have_decimal_commas: bool

    def batches(self, columns: Sequence[int]) -> Iterator[list[pa.Array]]:
        """Consecutive rows of these columns."""

    def place(self, row: int) -> str:
        """Where a row is, counted from 0."""


def is_table(path: str) -> bool:
    """Whether a path is one of a table, by its ending."""
    suffix, compression = _endings(path)
    return suffix in SUFFIXES and (compression == "" or suffix != ".parquet")


def _endings(path: str) -> tuple[str, str]:
    """(.csv, .gz) of x.CSV.gz."""
    *_, last = ["", *Path(path.lower()).suffixes]
    compression = last if last in OPENERS else ""
    return Path(path.lower().removesuffix(compression)).suffix, compression


def read_table(file: Path, target: str | None, roles: Mapping[str, Role]) -> Raw:
    """Read a table.

    Args:
        file: ends in one of :data:`SUFFIXES`, with the ending of a compression or not.
        target: the column with the labels.
        roles: of other columns; a column that is not in it is a feature if it can be one.
    """
    suffix, compression = _endings(file.name)
    table: Table = ParquetTable(file) if suffix == ".parquet" else TextTable(file, suffix, compression, target or "")
    names = _named(table.names)
    _check_declared(names, target, roles)
    assert target is not None  # checked
    features = [i for i, name in enumerate(names) if _is_read(table.names[i], name, target, roles)]
    readers = [NumberReader(names[i], table.is_text, table.may_have_decimal_commas) for i in features]
    labels, blocks = _read(table, names.index(target), features, readers)
    labels.check_classes(f"target {target!r}")
    _refuse_text(table, readers)
    _refuse_doubtful(table, readers)
    kept = _without_row_numbers(blocks, readers, roles)
    if not kept:
        raise ValueError(f"has no feature: no column but the target {target!r} is left")
    if len(kept) < len(readers):
        blocks = deque(block[:, kept] for block in _drained(blocks))
    found = {readers[j].name: readers[j].kind for j in kept}
    columns = [
        Column(name=name, role="feature", kind=found[name])
        if name in found
        else Column(name=name, role="target", kind="text")
        if name == target
        else Column(name=name, role="ignore", kind="unread")
        for name in names
    ]
    return Raw(blocks=blocks, labels=labels, columns=tuple(columns))


def _named(names: Sequence[str]) -> tuple[str, ...]:
    """A name for each column; one without is named by its place, as pandas does."""
    return tuple(name or f"Unnamed: {i}" for i, name in enumerate(names))


def _check_declared(names: Sequence[str], target: str | None, roles: Mapping[str, Role]) -> None:
    columns = f"its columns: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
    if target is None:
        raise ValueError(f"needs objective.args.target = the column with the labels; {columns}")
    for name in (target, *roles):
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"has no column {name!r}; {hint}{columns}")
    if target in roles:
        raise ValueError(f"columns gives the target {target!r} a role; leave it out there")


def _is_read(given: str, name: str, target: str, roles: Mapping[str, Role]) -> bool:
    """Whether a column may become a feature."""
    if name == target or roles.get(name) == "ignore":
        return False
    is_unnamed = not given or re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name)
    if is_unnamed and name not in roles:
        log.warning("left out the column %r, which has no name of its own; to keep it: %s", name, _keep(name))
        return False
    return True


def _keep(*names: str) -> str:
    return declare(dict.fromkeys(names, "feature"))


def _leave_out(names: Iterable[str]) -> str:
    return f"leave them out: {declare(dict.fromkeys(names, 'ignore'))}"


def _read(
    table: Table, target: int, features: Sequence[int], readers: Sequence[NumberReader]
) -> tuple[Labels, deque[np.ndarray]]:
    """The labels, and rows × F in blocks; NaN where a cell is missing or no number."""
    cells: list[pa.Array] = []
    blocks: deque[np.ndarray] = deque()
    for label_cells, *batch in table.batches([target, *features]):
        cells.append(label_cells if table.is_text else _as_text(label_cells))
        block = np.empty((len(label_cells), len(features)))
        for j, reader in enumerate(readers):
            block[:, j] = reader.read(batch[j])
        _check_range(table, readers, block)
        blocks.append(_compact(block))
    if not cells:
        raise ValueError("has a header but no rows")
    return _labels(table, table.names[target], pa.chunked_array(cells)), blocks


def _compact(block: np.ndarray) -> np.ndarray:
    """In half the memory if nothing is lost, as with whole numbers.

    In pages of its own, which go back to the system when the block does; malloc would keep most of them.
    """
    narrow = block.astype(np.float32)
    if not (narrow == block).all():
        narrow = block
    compact = np.frombuffer(mmap.mmap(-1, narrow.nbytes), dtype=narrow.dtype).reshape(narrow.shape)
    compact[:] = narrow
    return compact


def _check_range(table: Table, readers: Sequence[NumberReader], block: np.ndarray) -> None:
    is_large = np.abs(block) > FLOAT32_MAX
    if is_large.any():
        row, j = np.argwhere(is_large)[0]
        place = table.place(readers[j].rows - len(block) + int(row))
        raise ValueError(
            f"{place}, column {readers[j].name!r} is {block[row, j]:g}; every feature must be finite as a float32"
        )
    for j, count in enumerate(np.isnan(block).sum(axis=0)):
        if count and readers[j].text is None:
            readers[j].note_missing(np.isnan(block[:, j]))


def _as_text(cells: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    return pa.array([None if cell is None else str(cell) for cell in cells.to_pylist()], pa.string())


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
            f"column {target!r} has {is_lost.sum()} labels that are missing ({shown}), the first in {place}; "
            "every row needs one: remove these rows, or rename the label if it is a class"
        )
    return Labels.of_text(spellings, spelling_N)


MISSING_LABELS = frozenset(MISSING.to_pylist())


def _refuse_text(table: Table, readers: Sequence[NumberReader]) -> None:
    found = [(reader.name, *reader.text) for reader in readers if reader.text]
    if found:
        shown = []
        for name, row, cell in found[:SHOWN]:
            advice = hint(cell)
            shown.append(f"{name!r} ({cell[:40]!r} in {table.place(row)}{f': {advice}' if advice else ''})")
        more = f", … ({len(found)} in all)" if len(found) > SHOWN else ""
        raise ValueError(
            f"has columns that are not numbers: {', '.join(shown)}{more}; turn them into numbers, "
            f"or {_leave_out(name for name, _, _ in found)}"
        )


def _refuse_doubtful(table: Table, readers: Sequence[NumberReader]) -> None:
    """Missing cells, numbers that lose digits, commas that may mean two things; says how the rest was read."""
    missing = [reader for reader in readers if reader.missing]
    if missing:
        shown = few(
            f"{reader.name!r} ({reader.missing} of {reader.rows}, the first in {table.place(reader.first_missing)})"
            for reader in missing
        )
        raise ValueError(
            f"has missing cells in the columns {shown}; fill them, remove these rows, "
            f"or {_leave_out(reader.name for reader in missing)}"
        )
    for reader in readers:
        if reader.too_exact:
            row, cell = reader.too_exact
            raise ValueError(
                f"column {reader.name!r} has whole numbers above 2**53, which double precision rounds ({cell} in "
                f"{table.place(row)}); subtract a constant, or {_leave_out([reader.name])}"
            )
    _check_commas(table, readers)
    for attribute, message in (("zero", "leading zeros, as codes have; they are read as numbers"),):
        found = [(reader.name, getattr(reader, attribute)) for reader in readers if getattr(reader, attribute)]
        if found:
            log.warning("columns with %s: %s", message, few(f"{name!r} ({cell!r})" for name, (_, cell) in found))
    truth = [reader.name for reader in readers if reader.kind == "boolean"]
    if truth:
        log.info("read as 1 and 0, for true and false or yes and no: %s", few(truth))


def _check_commas(table: Table, readers: Sequence[NumberReader]) -> None:
    commas = [(reader.name, reader.comma) for reader in readers if reader.comma]
    points = [(reader.name, reader.point) for reader in readers if reader.point]
    if not commas:
        return
    (name, (row, cell)) = commas[0]
    if points:
        (other, (other_row, other_cell)) = points[0]
        raise ValueError(
            f"has decimal commas in column {name!r} ({cell!r} in {table.place(row)}) and points in {other!r} "
            f"({other_cell!r} in {table.place(other_row)}); write all numbers with a decimal point"
        )
    if not any(reader.has_clear_comma for reader in readers):
        raise ValueError(
            f"column {name!r} has {cell!r} in {table.place(row)}: is that {cell.replace(',', '.')} or "
            f"{cell.replace(',', '')}? write it so"
        )
    log.info("read with a decimal comma: %s", few(f"{name!r} ({cell!r})" for name, (_, cell) in commas))


def _without_row_numbers(
    blocks: Iterable[np.ndarray], readers: Sequence[NumberReader], roles: Mapping[str, Role]
) -> list[int]:
    """The features but those that only number the rows: in a sorted table they give the label away."""
    blocks = list(blocks)
    dropped = [
        j for j, reader in enumerate(readers) if reader.name not in roles and _numbers_rows(blocks, j, reader.name)
    ]
    if dropped:
        names = [readers[j].name for j in dropped]
        log.warning(
            "left out, since it only numbers the rows: %s; to keep it: %s", few(map(repr, names)), _keep(*names)
        )
    return [j for j in range(len(readers)) if j not in dropped]


def _numbers_rows(blocks: Sequence[np.ndarray], j: int, name: str) -> bool:
    is_named_so = ROW_NAMES.fullmatch(name.strip().lower()) is not None
    if not is_named_so and blocks[0][0, j] not in (0, 1):
        return False
    column = np.concatenate([block[:, j] for block in blocks])
    if is_named_so:
        return bool((column == np.floor(column)).all()) and len(np.unique(column)) == len(column)
    return bool((column == np.arange(len(column)) + column[0]).all())


def _drained(blocks: deque[np.ndarray]) -> Iterator[np.ndarray]:
    while blocks:
        yield blocks.popleft()
