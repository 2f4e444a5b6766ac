"""Tables with types: in memory, or .parquet, a few columns of a row group at a time. Nothing in such a file is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from objectives.data.raw import one_line

#: Cells that are decoded at a time. By rows pyarrow would hold the pages of all columns: 5 times as much memory.
CELLS_AT_A_TIME = 2**16


class ArrowTable:
    """A table in memory."""

    is_text = False
    may_have_decimal_commas = False

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self.names: tuple[str, ...] = tuple(table.column_names)

    def batches(self, columns: Sequence[int]) -> Iterator[Iterator[pa.Array]]:
        """All rows at once: these columns, each of its own type."""
        if self._table.num_rows:
            yield (self._table.column(i).chunk(0) for i in columns)

    def place(self, row: int) -> str:
        """Where a row is, counted from 0."""
        return f"row {row + 1}"


class ParquetTable:
    """A table in a Parquet file; raises :exc:`ValueError` if it is none."""

    is_text = False
    may_have_decimal_commas = False

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            with parquet.ParquetFile(file) as opened:
                self.names: tuple[str, ...] = tuple(opened.schema_arrow.names)
        except (pa.ArrowException, OSError) as error:
            raise _torn(error) from None
        repeated = next((name for i, name in enumerate(self.names) if name in self.names[:i]), None)
        if repeated is not None:
            raise ValueError(f"has the column {repeated!r} twice; each needs a name of its own")

    def batches(self, columns: Sequence[int]) -> Iterator[Iterator[pa.Array]]:
        """For each run of consecutive rows: these columns, each of its own type."""
        try:
            # No reading ahead: that is for remote file systems, and takes memory.
            with parquet.ParquetFile(self._file, pre_buffer=False) as opened:
                for group in range(opened.num_row_groups):
                    if opened.metadata.row_group(group).num_rows:
                        yield self._columns(opened, group, [self.names[i] for i in columns])
        except (pa.ArrowException, OSError) as error:
            raise _torn(error) from None

    @staticmethod
    def _columns(opened: parquet.ParquetFile, group: int, names: Sequence[str]) -> Iterator[pa.Array]:
        at_a_time = max(1, CELLS_AT_A_TIME // opened.metadata.row_group(group).num_rows)
        for start in range(0, len(names), at_a_time):
            some = names[start : start + at_a_time]
            # One thread: workers share the machine, one per core.
            read = opened.read_row_group(group, columns=some, use_threads=False).combine_chunks()
            yield from (read.column(name).chunk(0) for name in some)

    def place(self, row: int) -> str:
        """Where a row is, counted from 0."""
        return f"row {row + 1}"


def _torn(error: Exception) -> ValueError:
    return ValueError(f"is not a Parquet file or is torn ({one_line(error)[:200]})")
