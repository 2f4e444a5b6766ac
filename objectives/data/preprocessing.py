"""From rows as a user has them to the features of a network; fitted on training rows alone, stored as JSON.

- A number is filled with the training median where it is missing, and standardised: as it is, or its normal score,
  which heavy tails do not stretch (``quantile``; Beasley, Erickson and Allison, Behavior Genetics 2009). Where enough
  training cells were missing, an indicator tells filled cells from others: that a value is missing says something, too
  (arXiv 2211.09259).
- A category is an indicator for each of its levels, 0 or 1. The first layer makes a learnt embedding of them, as wide
  as itself: a row of weights for each level (Guo and Berkhahn, arXiv 1604.06737). A table of narrower rows would be one
  more thing for optimizers, stacks and exports. Rare levels share one indicator: a row that four examples have trained
  says nothing, and levels that are unknown until later have a place.

The features are the numbers in the order of their columns, then the indicators of missing cells, then the levels. Every
function raises :exc:`ValueError` with one line.

Axes: N rows, K columns that are read, M numbers of them, L levels, F features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from objectives.data.labels import FLOAT32_MAX, is_plain
from objectives.data.raw import BLOCK, Column, Raw, few
from objectives.data.standardize import SMALLEST_RANGE, Scaling, fit

if TYPE_CHECKING:  # pyarrow is for raw rows alone: a worker whose data are prepared does without
    import pyarrow as pa

    from objectives.data.cells import ColumnReader
    from objectives.data.table import Rows

#: Cells of a chunk of columns, whose medians are computed at once: bounds the memory.
CHUNK_CELLS = 2**21
#: Training rows that a level, or missing cells of a number, need for an indicator of their own.
MIN_ROWS = 5
#: How numbers may be scaled.
SCALINGS = ("standard", "quantile")
#: Points between which a normal score is a line.
LANDMARKS = 256
#: The most frequent levels that have one; the others count as rare.
MAX_LEVELS = 255


@dataclass(frozen=True, kw_only=True)
class Category:
    """The indicators of one column."""

    name: str
    levels: tuple[str, ...]
    """Each has an indicator, in this order; empty text is a missing cell."""
    has_other: bool
    """Whether one more is for all other levels, which the training rows had, too."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Of its indicators."""
        named = (f"{self.name} = {level}" if level else f"{self.name} is missing" for level in self.levels)
        return (*named, *([f"{self.name} is rare"] if self.has_other else []))

    @property
    def is_text(self) -> bool:
        """Whether its levels were not all numbers."""
        return any(level and not is_plain(level) for level in self.levels)

    def apply(self, code_N: np.ndarray, levels: Sequence[str]) -> np.ndarray:
        """The indicators, N × L, float32.

        Args:
            code_N: whole numbers.
            levels: what they stand for; one that is unknown counts as rare, or as none where no level was.
        """
        place = {level: i for i, level in enumerate(self.levels)}
        other = len(self.levels)
        width = other + self.has_other
        # The last row is that of unknown levels: zeros where none is for the others.
        indicator_LL = np.eye(other + 1, width, dtype=np.float32)
        known = np.array([place.get(level, other) for level in levels], dtype=int)
        indicator_NL: np.ndarray = indicator_LL[known[code_N.astype(int)]]
        return indicator_NL


@dataclass(frozen=True, kw_only=True)
class NormalScore:
    """What a number's rank among the training rows would be worth in a normal distribution; flat beyond them."""

    name: str
    values: tuple[float, ...]
    """Training values, ascending."""
    scores: tuple[float, ...]
    """Theirs: Φ⁻¹ of the share of training cells below, half of the equal ones included."""

    @classmethod
    def fit(cls, name: str, there_N: np.ndarray) -> NormalScore:
        """Of the training cells that are there."""
        values, counts = np.unique(there_N, return_counts=True)
        shares = (np.cumsum(counts) - counts / 2) / len(there_N)
        # A few points, as every model stores them; between them the score is nearly a line.
        places = np.unique(np.linspace(0, len(values) - 1, LANDMARKS).round().astype(int))
        # A line between two closer ones would be infinitely steep.
        places = places[np.diff(values[places], prepend=-np.inf) > SMALLEST_RANGE]
        return cls(
            name=name,
            values=tuple(values[places].tolist()),
            scores=tuple(NormalDist().inv_cdf(share) for share in shares[places].tolist()),
        )


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The exact transformation of raw rows: plain values, equal where the transformations are."""

    columns: tuple[Column, ...]
    """Of a table: those with the role ``feature`` are read, in this order. Empty for arrays."""
    fill: tuple[float, ...]
    """What a missing cell of each number counts as."""
    mean: tuple[float, ...]
    """What is subtracted of each number, or of all where they are pixels."""
    std: tuple[float, ...]
    """Likewise, what is divided by; infinite for a constant, which thereby counts as 0 whatever comes later."""
    precision: str
    """``float64``, or ``float32`` where the data are bytes: the type that this is computed in."""
    normal_scores: tuple[NormalScore, ...] = ()
    """Of the numbers that are turned into them before they are standardised."""
    indicators: tuple[str, ...] = ()
    """Numbers with an indicator of missing cells."""
    categories: tuple[Category, ...] = ()

    @classmethod
    def fit(cls, raw: Raw, is_train_N: np.ndarray, scaling: str = "standard") -> Preprocessing:
        """Learn from the training rows, and look at no other.

        Args:
            raw: all rows; kept as they are.
            is_train_N: which of them are for training.
            scaling: one of :data:`SCALINGS`.
        """
        blocks = list(raw.blocks)
        masks = np.split(is_train_N, np.cumsum([len(block) for block in blocks])[:-1])
        names = _names(raw.columns) or tuple(map(str, range(raw.n_columns)))
        numbers = [name for name in names if name not in raw.levels]
        kinds = {column.name: column.kind for column in raw.columns}
        number_M = [names.index(name) for name in numbers]
        are_bytes = blocks[0].dtype == np.uint8
        fill_M, missing_M, scores = np.zeros(len(numbers)), np.zeros(len(numbers), dtype=int), []
        if are_bytes and scaling != "standard":
            raise ValueError(f"scaling = {scaling!r} is for numbers with a tail, and the data are bytes; leave it out")
        # Of bytes none is missing, and sorting them would take long.
        for j, column_N in enumerate(() if are_bytes else _columns(blocks, masks, number_M)):
            there_N = column_N[~np.isnan(column_N)]
            missing_M[j] = len(column_N) - len(there_N)
            if len(there_N):
                fill_M[j] = np.median(there_N)
                if scaling == "quantile" and kinds.get(numbers[j]) != "boolean":
                    scores.append(NormalScore.fit(numbers[j], there_N))

        def training_rows() -> Iterator[np.ndarray]:
            for block, mask in zip(blocks, masks, strict=True):
                if mask.any():
                    rows = np.ascontiguousarray(block[mask][:, number_M]) if raw.levels else block[mask]
                    yield _scored(_filled(rows.astype(np.float64), fill_M), numbers, scores)

        # Bytes are exact in float32, and an epoch is not waited for: MNIST takes half the time of float64.
        found = fit(training_rows, is_image=raw.is_image, precision=np.float32 if are_bytes else np.float64)
        if are_bytes:
            # No byte is missing in training; a NaN in later rows counts as the mean.
            fill_M = np.broadcast_to(found.mean_F, len(numbers))
        return cls(
            columns=raw.columns,
            fill=tuple(fill_M.tolist()),
            mean=tuple(found.mean_F.tolist()),
            std=tuple(found.std_F.tolist()),
            precision=found.mean_F.dtype.name,
            normal_scores=tuple(scores),
            indicators=tuple(name for name, n in zip(numbers, missing_M, strict=True) if n >= MIN_ROWS),
            categories=tuple(
                _category(
                    name,
                    levels,
                    np.concatenate([block[mask, names.index(name)] for block, mask in zip(blocks, masks, strict=True)]),
                )
                for name, levels in raw.levels.items()
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The K columns that are read: of a table by name, of an array by number, from 0."""
        return _names(self.columns) or tuple(map(str, range(len(self.fill))))

    @property
    def numbers(self) -> tuple[str, ...]:
        """Those of them that are no categories."""
        categories = {category.name for category in self.categories}
        return tuple(name for name in self.names if name not in categories)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """A name for each of the F features."""
        missing = [f"{name} is missing" for name in self.indicators]
        return (*self.numbers, *missing, *(name for category in self.categories for name in category.feature_names))

    @property
    def scaling(self) -> Scaling:
        """Of the numbers."""
        mean, std = (np.array(values, dtype=self.precision) for values in (self.mean, self.std))
        return Scaling(mean_F=mean, std_F=std)

    @property
    def example(self) -> dict[str, list[Any]]:
        """One raw row, made up of medians and levels: nobody's own."""
        fill = dict(zip(self.numbers, self.fill, strict=True))
        level = {category.name: next(filter(None, category.levels), "other") for category in self.categories}
        return {name: [fill.get(name, level.get(name))] for name in self.names}

    def transform(self, rows: Rows | np.ndarray) -> np.ndarray:
        """The features of rows, N × F, float32. Missing cells and unknown levels are legal.

        Args:
            rows: a pandas or pyarrow table, a mapping from names to columns, or a table that was opened; the columns
                in any order, those that training ignored among them or not. Of an array also an array, examples first.

        Raises:
            ValueError: a column is absent, was not there in training or has other cells than then.
        """
        if isinstance(rows, np.ndarray):
            found = [self.apply(block) for block in self._array(rows)]
        else:
            found = [self.apply(block, levels) for block, levels in self.read(rows)]
        return np.concatenate(found) if found else np.empty((0, len(self.feature_names)), dtype=np.float32)

    def apply(self, block_NK: np.ndarray, levels: Mapping[str, Sequence[str]] | None = None) -> np.ndarray:
        """The features of rows that were read, N × F, float32.

        Args:
            block_NK: numbers, NaN where a cell is missing, and of categories what ``levels`` has a text for; in the
                order of :attr:`names`.
            levels: of each category.
        """
        names = self.names
        number_NM = block_NK
        if self.categories:
            number_NM = block_NK[:, [names.index(name) for name in self.numbers]]
        filled_NM = _filled(number_NM, np.array(self.fill))
        scaled_NM = self.scaling.apply(_scored(filled_NM, self.numbers, self.normal_scores))
        if not self.indicators and not self.categories:
            return scaled_NM
        missing = np.isnan(block_NK[:, [names.index(name) for name in self.indicators]]).astype(np.float32)
        hot = [
            category.apply(block_NK[:, names.index(category.name)], (levels or {})[category.name])
            for category in self.categories
        ]
        return np.concatenate([scaled_NM, missing, *hot], axis=1)

    def _array(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        if self.columns:
            raise ValueError(f"an array has no columns; give a table with the columns {few(self.names)}")
        n = len(self.fill)
        if rows.ndim < 2 or rows[:1].size not in (0, n):
            raise ValueError(f"the array has shape {rows.shape}; it must have {n} features per example")
        if rows.dtype.kind not in "fiub":
            raise ValueError(f"the array holds {rows.dtype}; it must hold numbers")
        if (np.abs(rows.astype(np.float64, copy=False)) > FLOAT32_MAX).any():
            raise ValueError("the array holds a number that is not finite as a float32; NaN alone stands for missing")
        flat = rows.reshape(len(rows), n)
        yield from (flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK))

    def read(self, rows: Rows) -> Iterator[tuple[np.ndarray, Mapping[str, Sequence[str]]]]:
        """Consecutive rows of a table, as :meth:`apply` takes them; for arguments and errors see :meth:`transform`."""
        from objectives.data.cells import ColumnReader
        from objectives.data.questions import check_commas
        from objectives.data.table import as_table, check_range, named

        # Read as in training, by the same readers: a cell must not mean something else when the model is used.
        table = as_table(rows)
        names = named(table.names)
        self._check_names(names)
        categories = {category.name: category for category in self.categories}
        kinds = {column.name: column.kind for column in self.columns}
        readers = [
            ColumnReader(name, table.is_text, table.may_have_decimal_commas, is_declared=name in categories)
            for name in self.names
        ]
        first_row = 0
        for columns in table.batches([names.index(name) for name in self.names]):
            block = np.stack([reader.read(_as_then(next(columns), reader, kinds)) for reader in readers], axis=1)
            for number_N, reader in zip(block.T, readers, strict=True):
                is_boolean = kinds.get(reader.name) == "boolean"
                held = "yes and no, or true and false" if is_boolean else "numbers"
                if (
                    is_boolean
                    and not reader.text
                    and (is_other_N := ~np.isin(number_N, (0, 1)) & ~np.isnan(number_N)).any()
                ):
                    row = int(is_other_N.argmax())
                    reader.text = first_row + row, f"{number_N[row]:g}"
                if reader.text:
                    row, cell = reader.text
                    what = f"{cell!r:.60} in {table.place(row)}"
                    raise ValueError(f"column {reader.name!r} has {what}; in training it held {held}")
                if "boolean" in reader.kinds and kinds.get(reader.name) == "number":
                    raise ValueError(f"column {reader.name!r} is true or false; in training it held numbers")
                if reader.is_category and categories[reader.name].is_text:
                    levels = categories[reader.name].levels
                    are_truth = "boolean" in reader.kinds and not {"true", "false"}.intersection(levels)
                    if are_truth or "number" in reader.kinds:
                        what = "true and false" if are_truth else "numbers"
                        shown = few(map(repr, levels))
                        raise ValueError(f"column {reader.name!r} holds {what}; in training it held text: {shown}")
            check_range(table, self.names, block, first_row)
            first_row += len(block)
            yield block, {reader.name: reader.levels for reader in readers if reader.is_category}
        # Last: one clear comma settles it for the whole file.
        check_commas(readers, table.place)

    def _check_names(self, names: Sequence[str]) -> None:
        known = [column.name for column in self.columns] or list(self.names)
        unknown = [name for name in names if name not in known]
        for name in self.names:
            if name not in names:
                close = get_close_matches(name, unknown, n=1)
                hint = f"; is it {close[0]!r}?" if close else f"; needed are {few(self.names)}"
                raise ValueError(f"the rows have no column {name!r}{hint}")
        if unknown:
            raise ValueError(f"the rows have the column {unknown[0]!r}, which was not there in training; leave it out")

    def to_data(self) -> dict[str, Any]:
        """As JSON has it; :meth:`from_data` gives the same transformation, to the bit."""
        data = asdict(self)
        data["std"] = [None if np.isinf(std) else std for std in self.std]  # JSON has no infinity
        plain: dict[str, Any] = json.loads(json.dumps(data))
        return plain

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Preprocessing:
        """What :meth:`to_data` described.

        Raises:
            ValueError: it did not.
        """
        try:
            return cls(
                columns=tuple(Column(**column) for column in data["columns"]),
                fill=tuple(data["fill"]),
                mean=tuple(data["mean"]),
                std=tuple(np.inf if std is None else std for std in data["std"]),
                precision=np.dtype(data["precision"]).name,
                normal_scores=tuple(
                    NormalScore(name=each["name"], values=tuple(each["values"]), scores=tuple(each["scores"]))
                    for each in data["normal_scores"]
                ),
                indicators=tuple(data["indicators"]),
                categories=tuple(
                    Category(**{**category, "levels": tuple(category["levels"])}) for category in data["categories"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"is no description of a preprocessing ({type(error).__name__}: {error!s:.80})") from None


def _as_then(cells: pa.Array, reader: ColumnReader, kinds: Mapping[str, str]) -> pa.Array:
    """Cells as training had them: yes and no of a text file, which it read as numbers, are text in a data frame."""
    from objectives.data.cells import is_string

    if kinds.get(reader.name) == "boolean" and is_string(cells.type):
        reader.is_text = True
        return cells.cast("string")
    return cells


def _names(columns: Sequence[Column]) -> tuple[str, ...]:
    return tuple(column.name for column in columns if column.role == "feature")


def _filled(number_NM: np.ndarray, fill_M: np.ndarray) -> np.ndarray:
    """The same array where no cell is missing."""
    is_missing = np.isnan(number_NM)
    return np.where(is_missing, fill_M, number_NM) if is_missing.any() else number_NM


def _scored(number_NM: np.ndarray, names: Sequence[str], scores: Sequence[NormalScore]) -> np.ndarray:
    """The same array where there are no normal scores."""
    if not scores:
        return number_NM
    scored_NM = number_NM.astype(np.float64)
    for score in scores:
        j = names.index(score.name)
        scored_NM[:, j] = np.interp(scored_NM[:, j], score.values, score.scores)
    return scored_NM


def _columns(
    blocks: Sequence[np.ndarray], masks: Sequence[np.ndarray], number_M: Sequence[int]
) -> Iterator[np.ndarray]:
    """The training cells of each number, float64."""
    at_a_time = max(1, CHUNK_CELLS // sum(map(len, blocks)))
    for start in range(0, len(number_M), at_a_time):
        some = list(number_M[start : start + at_a_time])
        cells = [block[np.flatnonzero(mask)[:, None], some] for block, mask in zip(blocks, masks, strict=True)]
        yield from np.concatenate(cells).T.astype(np.float64)


def _category(name: str, levels: Sequence[str], code_N: np.ndarray) -> Category:
    """The indicators that the training rows' codes are worth."""
    counts = np.bincount(code_N.astype(int), minlength=len(levels))
    # Ties by name: in what order the levels were read must not matter.
    frequent = sorted((i for i in range(len(levels)) if counts[i] >= MIN_ROWS), key=lambda i: (-counts[i], levels[i]))
    kept = [levels[i] for i in frequent[:MAX_LEVELS]]
    has_other = bool(counts.sum() > sum(counts[i] for i in frequent[:MAX_LEVELS]))
    if len(kept) + has_other < 2:  # constant: it would be a second bias, and one that an unknown level has not
        kept, has_other = [], False
    return Category(name=name, levels=tuple(sorted(kept)), has_other=has_other)
