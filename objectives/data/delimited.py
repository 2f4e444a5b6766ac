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
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as pa_csv

from objectives.data.labels import is_number
from objectives.data.raw import few, one_line

OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
#: What pyarrow decompresses by itself, and calls so; an empty name is for none.
CODECS = {"": "", ".gz": "gzip", ".bz2": "bz2"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
#: What a file raises that ends early or is damaged.
TORN = (EOFError, OSError, lzma.LZMAError, zlib.error)
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
        self._file, self._compression = file, compression
        self._open: Callable[[], Any] = partial(OPENERS[compression], file, "rb")
        try:
            self._encoding = self._find_encoding()
            declared = self._declared_separator()
            #: Lines before the header, for pyarrow and for us.
            self._preamble = 1 if declared else 0
            # A .csv of a country with decimal commas has semicolons; a .tsv has tabs by its name.
            candidates = "\t" if suffix == ".tsv" else "".join(SEPARATORS)
            self._separator = declared or self._find_separator(candidates, target)
            (line, header), *rows = [*islice(self._records(self._separator), 2)] or [(1, [])]
        except UnicodeDecodeError:
            raise self._not_decodable() from None
        except TORN as error:
            raise _torn(error) from None
        except csv.Error as error:
            raise self._open_quote() or ValueError(f"is not CSV: {error}") from None
        if not header:
            raise ValueError("is empty; it needs a header and rows")
        if not rows:
            raise self._open_quote() or ValueError("has a header but no rows")
        _check_header(header)
        self._blank_lines = line - 1
        self.names = tuple(name.strip() for name in header)
        """Of all columns; one without a name has an empty one."""
        #: 1,5 is one and a half where commas separate nothing.
        self.may_have_decimal_commas = self._separator != ","

    def batches(self, columns: Sequence[int]) -> Iterator[Iterator[pa.Array]]:
        """For each run of consecutive rows: these columns, as text."""
        # Columns by their numbers: pyarrow wants names, and those of a header may be empty.
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
            ),
            "parse_options": pa_csv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
            "convert_options": pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in ids}, include_columns=chosen
            ),
        }
        try:
            with self._arrow_file() as stream, pa_csv.open_csv(stream, **options) as reader:
                rows = 0
                while batches := list(islice(reader, BLOCKS_AT_A_TIME)):
                    table = pa.Table.from_batches(batches).combine_chunks()
                    rows += table.num_rows
                    if table.num_rows:
                        yield (column.chunk(0) for column in table.columns)
            # pyarrow takes the end of the file for the end of a quote; all that follows the quote is then one cell.
            if self._count_lines() > self._blank_lines + 1 + rows and (error := self._open_quote()):
                raise error
        except TORN as error:
            raise _torn(error) from None
        except UnicodeDecodeError:
            raise self._not_decodable() from None
        except pa.ArrowInvalid as error:
            raise self._explain(error) from None

    def place(self, row: int) -> str:
        """Where a row of data is, counted from 0."""
        # The file is read again, slowly: only errors and warnings ask, and cells with line breaks shift the lines.
        with suppress(csv.Error, StopIteration, UnicodeDecodeError):
            return f"line {next(islice(self._records(self._separator), row + 1, None))[0]}"
        return f"row {row + 1}"

    def _find_encoding(self) -> str:
        with self._open() as stream:
            start = stream.read(4096)
        if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # the former begins as UTF-16's does
            return "utf-32"
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if b"\0" in start:
            raise ValueError("is not text (it has NUL bytes at its beginning); save it as CSV in UTF-8")
        return "utf-8"

    def _declared_separator(self) -> str | None:
        """What a first line ``sep=;`` says, as Excel writes and reads it."""
        with self._text() as text:
            # No more than this of the line: a file may have one line of a gigabyte.
            found = re.fullmatch(r'"?sep=(.+?)"?\s*', text.readline(16), re.IGNORECASE)
        if found and found[1] not in SEPARATORS:
            legal = ", ".join(SEPARATORS.values())
            raise ValueError(f"says in its first line that {found[1]!r} separates its cells; legal are {legal}")
        return found[1] if found else None

    def _find_separator(self, candidates: str, target: str) -> str:
        """The separator that gives all of the first records the same number of cells, and a column ``target``."""
        first = {separator: self._sample(separator) for separator in candidates}
        if not any(first.values()):
            raise ValueError("is empty; it needs a header and rows")
        split = [separator for separator in candidates if first[separator] and len(first[separator][0]) > 1]
        even = [separator for separator in split if len({len(record) for record in first[separator]}) == 1]
        # Rows of equal length are better evidence than the target's name: a name may hold a separator.
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
        with self._text() as text:
            reader, line = csv.reader(islice(text, self._preamble, None), delimiter=separator), 1 + self._preamble
            for record in reader:
                if record:
                    yield line, record
                line = reader.line_num + self._preamble + 1

    @contextmanager
    def _text(self) -> Iterator[io.TextIOWrapper]:
        # Excel writes a byte order mark, which would become part of the first name.
        encoding = "utf-8-sig" if self._encoding == "utf-8" else self._encoding
        with self._open() as stream, io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            yield text

    def _arrow_file(self) -> pa.NativeFile:
        """The text in UTF-8, as a file of pyarrow's own.

        Its threads read ahead, and may be the last to let go of a block. With a file of Python that takes Python's
        lock, which a process that is about to exit no longer gives: it would end by SIGABRT.
        """
        codec = CODECS.get(self._compression)
        if codec is not None and self._encoding == "utf-8":
            file = pa.OSFile(str(self._file))
            return pa.CompressedInputStream(file, codec) if codec else file
        with self._text() as text, tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="") as plain:
            for part in iter(partial(text.read, 2**20), ""):
                plain.write(part)
            plain.flush()
            return pa.OSFile(plain.name)  # which stays open without its name

    def _count_lines(self) -> int:
        """How many lines there are, at least those with a record; quick."""
        # The more frequent of both, as a line may end with either or with both.
        ends, last = {b"\n": 0, b"\r": 0}, b""
        with self._open() as stream:
            for part in iter(partial(stream.read, 2**20), b""):
                last = part
                for end in ends:
                    ends[end] += part.count(end)
        # In UTF-16 and UTF-32 zero bytes may follow the last line break.
        is_ended = last.rstrip(b"\0").endswith(tuple(ends))
        return max(ends.values()) + (0 if is_ended else 1)

    def _open_quote(self) -> ValueError | None:
        """What is wrong where a quote runs over the end of its line and is not closed behind a cell."""
        with self._text() as text:
            reader, line = csv.reader(islice(text, self._preamble, None), delimiter=self._separator, strict=True), 0
            while True:
                try:
                    next(reader)
                except StopIteration:
                    return None
                except csv.Error as error:
                    if reader.line_num > line + 1 or "unexpected end" in str(error):
                        what = f'line {line + 1 + self._preamble} opens a quote (") that is not closed'
                        return ValueError(f"{what}; close it, or double each quote that is part of a cell")
                line = reader.line_num

    def _block_bytes(self) -> int:
        """Enough for some records: pyarrow refuses one that is longer than its block."""
        sample = self._sample(self._separator)
        longest = max(sum(map(len, record)) + len(record) for record in sample)
        return max(BLOCK_BYTES, 8 * longest)

    def _explain(self, error: pa.ArrowInvalid) -> ValueError:
        text = str(error)
        if "UTF8" in text:
            return self._not_decodable()
        try:
            if quote := self._open_quote():
                return quote
            for line, record in self._records(self._separator):
                if len(record) != len(self.names):
                    hint = "; comment lines are not skipped" if record[0].lstrip().startswith("#") else ""
                    cells = f"{len(record)} cell{'' if len(record) == 1 else 's'}"
                    return ValueError(f"line {line} has {cells}, and the header {len(self.names)}{hint}")
        except (csv.Error, UnicodeDecodeError):
            pass
        except TORN as torn:  # whose cells were parsed before the damage was found
            return _torn(torn)
        return ValueError(f"is not CSV: {one_line(error)[:200]}")

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
    return ValueError(f"cannot be read to its end ({one_line(error)})")
