"""Cells as numbers or levels: what counts as one, what is missing, and what a person may have meant.

Only what cannot be meant otherwise is read: ``10_19``, ``0x1F``, ``1,234``, ``5 %`` and dates are text.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from objectives.data.labels import is_number, plain
from objectives.data.raw import MAX_EXACT, Kind

#: In any case and between spaces; a NaN counts as well.
MISSING = pa.array(["", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?"])
_MISSING = frozenset(MISSING.to_pylist())
TRUTH = pa.array(["false", "no", "true", "yes"])
#: 1,5 but not 1,234,567; and what might be 1234 as well as 1.234.
DECIMAL_COMMA = r"^([+-]?[0-9]*),([0-9]+(?:[eE][+-]?[0-9]+)?)$"
DOUBTFUL_COMMA = r"^[+-]?[1-9][0-9]{0,2},[0-9]{3}$"
#: What text looks like, and what to do; the first that fits.
HINTS = {
    r"^[+-]?\d{1,3}([,' ]\d{3})+(\.\d+)?$": "thousands need no separator",
    r"^[+-]?\d*,\d+$": "decimals need a point",
    r"^[+-]?\d[\d_]*_[\d_]*$": "digits need no underscores",
    r"^[+-]?0[xX][\da-fA-F]+$": "hexadecimal",
    r"^[+-]?[\d.,]+ ?%$": "the percent sign should go",
    r"^[$€£¥] ?[\d.,]+$|^[\d.,]+ ?[$€£¥]$": "the currency should go",
    r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}|^\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|^\d{1,2}:\d{2}": "a date or time",
    r"^[+-]?[\d.]+( ?[;|\t] ?[+-]?[\d.]+)+$": "several numbers",
}
#: A column of more different texts is no category unless it is declared one.
MAX_TEXTS = 10_000


@dataclass
class ColumnReader:
    """Reads one column, block by block, and remembers what is to be said of it."""

    name: str
    is_text: bool
    """Whether cells come as text, from a CSV, and not in a type of their own."""
    may_have_decimal_commas: bool = False
    is_declared: bool = False
    """Whether it is a category whatever is in it."""
    rows: int = 0
    text: tuple[int, str] | None = None
    """(row, cell) of the first that is no number."""
    too_exact: tuple[int, str] | None = None
    """Likewise, of the first whole number that double precision cannot hold."""
    zero: tuple[int, str] | None = None
    """Likewise, of the first with a leading zero, as codes have."""
    point: tuple[int, str] | None = None
    """Likewise, of the first with a decimal point; known where decimal commas are possible."""
    comma: tuple[int, str] | None = None
    """Likewise, of the first with a decimal comma."""
    has_clear_comma: bool = False
    """Whether there is one that separates no thousands."""
    missing: int = 0
    first_missing: int = 0
    """Its row."""
    kinds: set[Kind] = field(default_factory=set)
    """What cells were, but for missing ones and text."""
    codes: list[np.ndarray] | None = field(default_factory=list)
    """float64: the cells so far by their place in ``levels``; ``None`` where it can be no category."""
    _codes: dict[str, int] = field(default_factory=dict)

    @property
    def levels(self) -> tuple[str, ...]:
        """The different texts so far; a missing cell is empty text."""
        return tuple(self._codes)

    @property
    def is_category(self) -> bool:
        """Whether it is declared one; or holds text, no number among it, each two times or more on average."""
        if self.is_declared:
            return True
        texts = [level for level in self.levels if level]
        return (
            self.text is not None
            and self.codes is not None
            and 2 * len(texts) <= self.rows
            and not any(is_number(text) or hint(text) for text in texts)
        )

    @property
    def kind(self) -> Kind:
        """How the column was read."""
        if self.is_category:
            return "category"
        if self.text:
            return "text"
        return next(iter(self.kinds), "number")

    def read(self, cells: pa.Array) -> np.ndarray:
        """The next cells as float64: NaN for what is missing or is no number; of a declared category as ``codes``."""
        if self.is_declared:
            values = self._encode(cells)
        else:
            values = self._numbers(cells)
            self._keep_codes(cells)
        self.rows += len(cells)
        return values

    def _numbers(self, cells: pa.Array) -> np.ndarray:
        values = np.full(len(cells), np.nan)
        if self.text is None:
            kind, found = self._from_text(cells) if self.is_text else self._from_type(cells)
            if self.text is None and found.null_count < len(found):
                self.kinds.add(kind)
                # Numbers in one block and yes or no in another: neither reading fits all of the column.
                if len(self.kinds) > 1:
                    self.text = self._first(cells, np.ones(len(cells), dtype=bool))
            if self.text is None:
                values = found.to_numpy(zero_copy_only=False)
        return values

    def _keep_codes(self, cells: pa.Array) -> None:
        """As long as the column may turn out to be a category: nothing was a number so far."""
        is_text = self.is_text or is_string(cells.type) or pa.types.is_null(cells.type)
        if self.codes is None or "number" in self.kinds or not is_text or len(self._codes) > MAX_TEXTS:
            self.codes = None
        else:
            self.codes.append(self._encode(cells))

    def _encode(self, cells: pa.Array) -> np.ndarray:
        if pa.types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        if not self.is_text and not is_string(cells.type) and cells.null_count < len(cells):
            self.kinds.add("boolean" if pa.types.is_boolean(cells.type) else "number")
        encoded = cells.dictionary_encode()
        # Each different text once: Python looks at no cell.
        own = [self._codes.setdefault(level(text), len(self._codes)) for text in encoded.dictionary.to_pylist()]
        index = encoded.indices
        if index.null_count:
            own.append(self._codes.setdefault("", len(self._codes)))
            index = pc.fill_null(index, len(own) - 1)
        code_N: np.ndarray = np.array(own, dtype=np.float64)[index.to_numpy()]
        return code_N

    def note_missing(self, is_missing_N: np.ndarray, first_row: int) -> None:
        """Count missing cells of rows that were read."""
        if not self.missing:
            self.first_missing = first_row + int(is_missing_N.argmax())
        self.missing += int(is_missing_N.sum())

    def _from_text(self, cells: pa.Array) -> tuple[Kind, pa.Array]:
        if self.may_have_decimal_commas and self.point is None:
            self.point = self._first(cells, pc.match_substring(cells, "."))
        # At once as it is: most columns of a clean file need nothing below.
        found = _cast(cells)
        if found is None:
            trimmed = pc.utf8_trim_whitespace(cells)
            folded = pc.utf8_lower(trimmed)
            cells = pc.if_else(pc.is_in(folded, MISSING), pa.scalar(None, pa.string()), trimmed)
            if _are_all(pc.is_in(folded, TRUTH), cells):
                return "boolean", pc.if_else(pc.is_valid(cells), _truth(folded), pa.scalar(None, pa.float64()))
            cells = self._with_points(cells)
            found = _cast(cells)
        if found is None:
            self.text = self._first_text(cells)
            return "text", cells
        self._look_at_digits(cells, found)
        return "number", found

    def _first_text(self, cells: pa.Array) -> tuple[int, str] | None:
        """(row, cell) of the first that is no number; or, where the first cell is yes or no, that is neither."""
        is_truth = pc.is_in(pc.utf8_lower(cells), TRUTH)
        there = np.flatnonzero(cells.is_valid())
        if is_truth[int(there[0])].as_py():
            return self._first(cells, pc.and_(cells.is_valid(), pc.invert(is_truth)))
        # pyarrow does not tell which cell is no number. By halves: a prefix casts up to that cell.
        length = bisect.bisect_left(range(1, len(cells)), True, key=lambda n: _cast(cells[:n]) is None) + 1
        return (self.rows + length - 1, str(cells[length - 1]))

    def _with_points(self, cells: pa.Array) -> pa.Array:
        """With decimal points for commas, where commas separate nothing."""
        if not self.may_have_decimal_commas:
            return cells
        has_comma = pc.match_substring_regex(cells, DECIMAL_COMMA)
        if not pc.any(has_comma).as_py():
            return cells
        self.comma = self.comma or self._first(cells, has_comma)
        is_clear = pc.and_(has_comma, pc.invert(pc.match_substring_regex(cells, DOUBTFUL_COMMA)))
        self.has_clear_comma |= bool(pc.any(is_clear).as_py())
        return pc.replace_substring_regex(cells, DECIMAL_COMMA, r"\1.\2")

    def _look_at_digits(self, cells: pa.Array, found: pa.Array) -> None:
        values = found.to_numpy(zero_copy_only=False)
        if self.zero is None:
            # On the bytes: a regular expression would take three times as long as all the rest.
            offsets = np.frombuffer(cells.buffers()[1], dtype=np.int32)[cells.offset : cells.offset + len(cells)]
            data = np.frombuffer(cells.buffers()[2] or b"", dtype=np.uint8)
            first = data[np.minimum(offsets, len(data) - 1)] if len(data) else np.zeros(len(cells))
            self.zero = self._first(cells, (first == ord("0")) & (values >= 1))
        if self.too_exact is None and np.abs(values).max(initial=0, where=~np.isnan(values)) >= MAX_EXACT:
            is_whole = pc.fill_null(pc.match_substring_regex(cells, r"^[+-]?[0-9]+$"), False)
            for row in np.flatnonzero(is_whole):
                if int(str(cells[row])) != int(values[row]):
                    self.too_exact = (self.rows + int(row), str(cells[row]))
                    break

    def _from_type(self, cells: pa.Array) -> tuple[Kind, pa.Array]:
        if pa.types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        kind = cells.type
        if pa.types.is_boolean(kind):
            return "boolean", cells.cast(pa.int8()).cast(pa.float64())
        if pa.types.is_integer(kind):
            if kind.bit_width == 64 and self.too_exact is None:
                is_large = pc.greater(cells, pa.scalar(MAX_EXACT, kind))
                if pa.types.is_signed_integer(kind):
                    is_large = pc.or_(is_large, pc.less(cells, pa.scalar(-MAX_EXACT, kind)))
                self.too_exact = self._first(cells, is_large)
            # Unsafe: what it would refuse is noted above, with its row.
            return "number", cells.cast(pa.float64(), safe=False)
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return "number", cells.cast(pa.float64())
        self.text = self._first(cells, cells.is_valid())
        return "number", pa.nulls(len(cells), pa.float64())

    def _first(self, cells: pa.Array, is_it: object) -> tuple[int, str] | None:
        """(row, cell) of the first cell that a mask holds for."""
        mask = np.asarray(pc.fill_null(is_it, False) if isinstance(is_it, pa.Array) else is_it)
        row = int(mask.argmax())
        return (self.rows + row, str(cells[row])) if mask[row] else None


def is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def level(cell: object) -> str:
    """As text that is the same from every kind of file; empty where it stands for a missing cell."""
    text = plain(str(cell).strip())
    return "" if text.lower() in _MISSING else text


def hint(cell: str) -> str:
    """What a person may have meant by a cell that is no number; empty if that is anybody's guess."""
    return next((advice for pattern, advice in HINTS.items() if re.search(pattern, cell)), "")


def _cast(cells: pa.Array) -> pa.Array | None:
    try:
        return pc.cast(cells, pa.float64())
    except pa.ArrowInvalid:
        return None


def _are_all(mask: pa.Array, cells: pa.Array) -> bool:
    """Whether ``mask`` holds for all cells that are there, and there is one."""
    there = cells.is_valid()
    return bool(pc.any(there).as_py()) and bool(pc.all(pc.or_(mask, pc.invert(there))).as_py())


def _truth(folded: pa.Array) -> pa.Array:
    return pc.is_in(folded, pa.array(["true", "yes"])).cast(pa.int8()).cast(pa.float64())
