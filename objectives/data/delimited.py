"""Tables as text: .csv and .tsv, compressed or not, as columns of text a block at a time.

pyarrow parses, in constant memory. What it leaves open is decided here: the encoding, which character
separates the cells, and whether the first line is a header. What cannot be decided is refused.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as pa_csv

from objectives.data.labels import is_number
from objectives.data.raw import few

OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
#: Records that the separator is told by.
SAMPLE = 20
#: Bytes that pyarrow parses at a time: it reads 32 such blocks ahead. They are handed on by several, since each
#: column of each costs 0.1 ms.
BLOCK_BYTES, BLOCKS_AT_A_TIME = 2**18, 4


class TextTable:
    """A table as text.

    Args:
        file: with a header.
        suffix: ``.csv`` or ``.tsv``.
        compression: a key of :data:`OPENERS`.
        target: a column that it should have; tells the separator where several would do.

    Raises:
        ValueError: it is no such table.
    """

    is_text = True

    def __init__(self, file: Path, suffix: str, compression: str, target: str) -> None:
        self._open: Callable[[], Any] = partial(OPENERS[compression], file, "rb")
        try:
            self._encoding = self._find_encoding()
            self._separator = self._find_separator("\t" if suffix == ".tsv" else "".join(SEPARATORS), target)
            (line, header), *rows = islice(self._records(self._separator), 2)
        except UnicodeDecodeError:
            raise self._not_decodable() from None
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise _torn(error) from None
        except csv.Error as error:
            raise ValueError(f"is not CSV: {error}") from None
        if not rows:
            raise ValueError("has a header but no rows")
        _check_header(header)
        self._blank_lines = line - 1
        self.names = tuple(name.strip() for name in header)
        """Of all columns; one without a name has an empty one."""
        #: 1,5 is one and a half where commas separate nothing.
        self.may_have_decimal_commas = self._separator != ","

    def batches(self, columns: Sequence[int]) -> Iterator[Iterator[pa.Array]]:
        """For each run of consecutive rows: these columns, as text."""
        ids = [str(i) for i in range(len(self.names))]
        chosen = [ids[i] for i in columns]
        options = {
            # One thread: workers share the machine, one per core.
            "read_options": pa_csv.ReadOptions(
                use_threads=False,
                block_size=self._block_bytes(),
                column_names=ids,
                skip_rows=self._blank_lines,
                skip_rows_after_names=1,
                encoding=self._encoding,
            ),
            "parse_options": pa_csv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
            "convert_options": pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in ids}, include_columns=chosen
            ),
        }
        try:
            with self._open() as stream, pa_csv.open_csv(stream, **options) as reader:
                while batches := list(islice(reader, BLOCKS_AT_A_TIME)):
                    table = pa.Table.from_batches(batches).combine_chunks()
                    if table.num_rows:
                        yield (column.chunk(0) for column in table.columns)
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise _torn(error) from None
        except UnicodeDecodeError:
            raise self._not_decodable() from None
        except pa.ArrowInvalid as error:
            raise self._explain(error) from None

    def place(self, row: int) -> str:
        """Where a row of data is, counted from 0."""
        with suppress(csv.Error, StopIteration, UnicodeDecodeError):
            return f"line {next(islice(self._records(self._separator), row + 1, None))[0]}"
        return f"row {row + 1}"

    def _find_encoding(self) -> str:
        with self._open() as stream:
            start = stream.read(4096)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if b"\0" in start:
            raise ValueError("is not text (it has NUL bytes at its beginning); save it as CSV in UTF-8")
        return "utf-8"

    def _find_separator(self, candidates: str, target: str) -> str:
        """The separator that gives all of the first records the same number of cells, and a column ``target``."""
        first = {separator: self._sample(separator) for separator in candidates}
        if not any(first.values()):
            raise ValueError("is empty; it needs a header and rows")
        split = [separator for separator in candidates if first[separator] and len(first[separator][0]) > 1]
        even = [separator for separator in split if len({len(record) for record in first[separator]}) == 1]
        for likely in (even, split):
            named = [separator for separator in likely if target in map(str.strip, first[separator][0])]
            for found in (named, likely):
                if len(found) == 1:
                    return found[0]
        if len(split) > 1:
            both = " or ".join(SEPARATORS[separator] for separator in even or split)
            header = few(first[split[0]][0])
            raise ValueError(f"may be separated by {both}, its header is {header}; put quotes around the names")
        return candidates[0]

    def _sample(self, separator: str) -> list[list[str]]:
        with suppress(csv.Error):  # quotes that only make sense with another separator
            return [record for _, record in islice(self._records(separator), SAMPLE)]
        return []

    def _records(self, separator: str) -> Iterator[tuple[int, list[str]]]:
        """(line where it begins, cells) of each record, the header first; slow, for a few or for finding one."""
        encoding = "utf-8-sig" if self._encoding == "utf-8" else self._encoding
        with self._open() as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            reader, line = csv.reader(text, delimiter=separator), 1
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + 1

    def _block_bytes(self) -> int:
        """Enough for some records: pyarrow refuses one that is longer than its block."""
        sample = self._sample(self._separator)
        longest = max(sum(map(len, record)) + len(record) for record in sample)
        return max(BLOCK_BYTES, 8 * longest)

    def _explain(self, error: pa.ArrowInvalid) -> ValueError:
        text = str(error)
        if "UTF8" in text:
            return self._not_decodable()
        with suppress(csv.Error, UnicodeDecodeError):
            for line, record in self._records(self._separator):
                if len(record) != len(self.names):
                    hint = "; comment lines are not skipped" if record[0].lstrip().startswith("#") else ""
                    cells = f"{len(record)} cell{'' if len(record) == 1 else 's'}"
                    return ValueError(f"line {line} has {cells}, and the header {len(self.names)}{hint}")
        return ValueError(f"is not CSV: {' '.join(text.split())[:200]}")

    def _not_decodable(self) -> ValueError:
        if self._encoding == "utf-8":
            with self._open() as stream:
                for number, line in enumerate(stream, start=1):
                    try:
                        line.decode("utf-8")
                    except UnicodeDecodeError as error:
                        byte = line[error.start]
                        return ValueError(
                            f"is not UTF-8 text: line {number} has the byte 0x{byte:02x}, which in Latin-1 is "
                            f"{bytes([byte]).decode('latin-1')!r}; save it in UTF-8"
                        )
        return ValueError(f"is not {self._encoding.upper()} text; save it in UTF-8")


def _check_header(header: list[str]) -> None:
    names = [name.strip() for name in header]
    given = [name for name in names if name]
    # pandas counts the columns of an array.
    is_counted = given in ([str(i + start) for i in range(len(given))] for start in (0, 1))
    if given and all(is_number(name) for name in given) and not is_counted:
        raise ValueError(f"has only numbers in its first line ({few(names)}); it needs a header with the names")
    repeated = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
    if repeated is not None:
        raise ValueError(f"has the column {repeated!r} twice; each needs a name of its own")


def _torn(error: Exception) -> ValueError:
    return ValueError(f"cannot be read to its end ({' '.join(str(error).split()) or type(error).__name__})")
