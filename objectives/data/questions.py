"""What is asked, or said, of columns that were read as numbers."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from objectives.data.cells import ColumnReader, hint
from objectives.data.raw import SHOWN, Role, declare, few

log = logging.getLogger(__name__)

#: Names of columns that count or identify rows where each row has a number of its own.
ROW_NAMES = re.compile(r"index|id|row|rows?[ _.-]?(id|no|num|number|index|names?)|no\.?|nr\.?|#|level_0")

#: A category that nobody has declared is reported where it has more.
MANY_LEVELS = 50

Place = Callable[[int], str]
"""Says where a row is, counted from 0."""


def check(readers: Sequence[ColumnReader], place: Place) -> None:
    """Refuse what is no number or may be meant in two ways; say how the rest was read.

    Raises:
        ValueError: names the columns, shows a cell of each, and says what to do.
    """
    _check_text(readers, place)
    _check_exact(readers, place)
    zeros = [f"{reader.name!r} ({reader.zero[1]!r})" for reader in readers if reader.zero]
    if zeros:
        log.warning("leading zeros, as codes have, were read as numbers: %s", few(zeros))
    _say_missing(readers, place)
    _say_categories([reader for reader in readers if reader.is_category])
    truth = [repr(reader.name) for reader in readers if reader.kind == "boolean"]
    if truth:
        log.info("true and false, or yes and no, were read as 1 and 0: %s", few(truth))


def _check_text(readers: Sequence[ColumnReader], place: Place) -> None:
    found = [(reader.name, *reader.text) for reader in readers if reader.text and not reader.is_category]
    if found:
        shown = []
        for name, row, cell in found[:SHOWN]:
            advice = hint(cell)
            shown.append(f"{name!r} ({cell[:40]!r} in {place(row)}{f': {advice}' if advice else ''})")
        more = f", … ({len(found)} in all)" if len(found) > SHOWN else ""
        raise ValueError(
            f"has columns that are not numbers: {', '.join(shown)}{more}; turn them into numbers, give them the role "
            f'"category", or {_leave_out([name for name, _, _ in found])}'
        )


def _say_missing(readers: Sequence[ColumnReader], place: Place) -> None:
    found = [
        f"{reader.name!r} ({reader.missing} of {reader.rows}, the first in {place(reader.first_missing)})"
        for reader in readers
        if 0 < reader.missing < reader.rows
    ]
    if found:
        log.warning("missing cells count as the median of the training rows: %s", few(found))


def _say_categories(readers: Sequence[ColumnReader]) -> None:
    if readers:
        log.info("read as categories: %s", few(f"{reader.name!r} ({len(reader.levels)} levels)" for reader in readers))
    guessed = [reader.name for reader in readers if not reader.is_declared and len(reader.levels) > MANY_LEVELS]
    if guessed:
        log.warning("categories of many levels: %s; if they only identify, %s", few(guessed), _leave_out(guessed))


def _check_exact(readers: Sequence[ColumnReader], place: Place) -> None:
    for reader in readers:
        if reader.too_exact:
            row, cell = reader.too_exact
            raise ValueError(
                f"column {reader.name!r} has whole numbers above 2**53, which double precision rounds ({cell} in "
                f"{place(row)}); subtract a constant, or {_leave_out([reader.name])}"
            )


def check_commas(readers: Sequence[ColumnReader], place: Place) -> None:
    """Refuse decimal commas that may separate thousands, and ones beside decimal points; say which were read.

    Raises:
        ValueError: names a column, shows a cell, and says what to do.
    """
    commas = [(reader.name, reader.comma) for reader in readers if reader.comma]
    points = [(reader.name, reader.point) for reader in readers if reader.point]
    if not commas:
        return
    (name, (row, cell)) = commas[0]
    if points:
        (other, (other_row, other_cell)) = points[0]
        raise ValueError(
            f"has decimal commas in column {name!r} ({cell!r} in {place(row)}) and points in {other!r} "
            f"({other_cell!r} in {place(other_row)}); write all numbers with a decimal point"
        )
    # 1,234 may be a thousand or one and a bit; one cell such as 1,5 settles it for the whole file.
    if not any(reader.has_clear_comma for reader in readers):
        raise ValueError(
            f"column {name!r} has {cell!r} in {place(row)}: is that {cell.replace(',', '.')} or "
            f"{cell.replace(',', '')}? write it so"
        )
    log.info("decimal commas were read as such: %s", few(f"{name!r} ({cell!r})" for name, (_, cell) in commas))


def kept_features(blocks: deque[np.ndarray], readers: Sequence[ColumnReader], roles: Mapping[str, Role]) -> list[int]:
    """The features but those without a cell, and those that only number the rows: sorted, they give the label away."""
    empty = [j for j, reader in enumerate(readers) if reader.missing == reader.rows or reader.levels == ("",)]
    if empty:
        log.warning("left out, since all their cells are missing: %s", few(repr(readers[j].name) for j in empty))
    numbers = [
        (j, reader.name)
        for j, reader in enumerate(readers)
        if j not in empty and not reader.is_category and reader.name not in roles
    ]
    counts = [j for j, name in numbers if _numbers_rows(blocks, j, name)]
    if counts:
        names = [readers[j].name for j in counts]
        log.warning(
            "left out, since they only number the rows: %s; to keep them: %s", few(map(repr, names)), keep(names)
        )
    return [j for j in range(len(readers)) if j not in (*empty, *counts)]


def _numbers_rows(blocks: deque[np.ndarray], j: int, name: str) -> bool:
    """Whether a column counts the rows, up or down; or is called an index, and has each number once."""
    is_named_so = ROW_NAMES.fullmatch(name.strip().lower()) is not None
    if not is_named_so and not {blocks[0][0, j], blocks[-1][-1, j]} & {0, 1}:
        return False  # as years do not
    column = np.concatenate([block[:, j] for block in blocks])
    if is_named_so:
        return bool((column == np.floor(column)).all()) and len(np.unique(column)) == len(column)
    steps = np.diff(column)
    return bool((steps == 1).all() or (steps == -1).all())


def keep(names: Sequence[str]) -> str:
    """What a user writes to keep columns."""
    return declare(dict.fromkeys(names, "feature"))


def _leave_out(names: Sequence[str]) -> str:
    return f"leave them out: {declare(dict.fromkeys(names, 'ignore'))}"
