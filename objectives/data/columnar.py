"""Tables with types: .parquet, a block at a time. Nothing in such a file is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

#: Cells that are read at a time: bounds the memory.
BLOCK_CELLS = 2**19


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

    def batches(self, columns: Sequence[int]) -> Iterator[list[pa.Array]]:
        """Consecutive rows of these columns, each of its own type."""
        chosen = [self.names[i] for i in columns]
        rows = max(1, BLOCK_CELLS // max(1, len(chosen)))
        try:
            with parquet.ParquetFile(self._file, pre_buffer=False, buffer_size=2**16) as opened:
                for batch in opened.iter_batches(rows, columns=chosen, use_threads=False):
                    if batch.num_rows:
                        yield [batch.column(name) for name in chosen]
        except (pa.ArrowException, OSError) as error:
            raise _torn(error) from None

    def place(self, row: int) -> str:
        """Where a row is, counted from 0."""
        return f"row {row + 1}"


def _torn(error: Exception) -> ValueError:
    return ValueError(f"is not a Parquet file or is torn ({' '.join(str(error).split())[:200]})")
