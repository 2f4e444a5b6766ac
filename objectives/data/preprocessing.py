"""From rows as a user has them to the features of a network; fitted on training rows alone, stored as JSON.

A number is filled with the training median where it is missing, and standardised. The features are in the order of the
columns. Every function raises :exc:`ValueError` with one line.

Axes: N rows, K columns that are read, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np

from objectives.data.cells import NumberReader
from objectives.data.raw import BLOCK, FLOAT32_MAX, Column, Raw, few
from objectives.data.standardize import Scaling, fit
from objectives.data.table import Rows, Table, as_table, check_range, named

#: Cells of a chunk of columns, whose medians are computed at once: bounds the memory.
CHUNK_CELLS = 2**21


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessing:
    """The exact transformation of raw rows."""

    columns: tuple[Column, ...]
    """Of a table: those with the role ``feature`` are read, in this order. Empty for arrays."""
    fill_K: np.ndarray
    """float64: what a missing cell counts as."""
    scaling: Scaling

    @classmethod
    def fit(cls, raw: Raw, is_train_N: np.ndarray) -> Preprocessing:
        """Learn from the training rows, and look at no other.

        Args:
            raw: all rows; kept as they are.
            is_train_N: which of them are for training.
        """
        blocks = list(raw.blocks)
        scaling = fit(blocks, is_train_N, is_image=raw.is_image)
        are_bytes = blocks[0].dtype == np.uint8  # of which none is missing: the mean saves sorting them
        fill_K = np.broadcast_to(scaling.mean_F.astype(np.float64), raw.n_features) if are_bytes else None
        return cls(
            columns=raw.columns,
            fill_K=_medians(blocks, is_train_N) if fill_K is None else fill_K.copy(),
            scaling=scaling,
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns that are read: of a table by name, of an array by number, from 0."""
        named = tuple(column.name for column in self.columns if column.role == "feature")
        return named or tuple(map(str, range(len(self.fill_K))))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """A name for each of the F features."""
        return self.names

    def transform(self, rows: Rows | np.ndarray) -> np.ndarray:
        """The features of rows, N × F, float32. Missing cells are legal.

        Args:
            rows: a pandas or pyarrow table, a mapping from names to columns, or a table that was opened; the columns
                in any order, those that training ignored among them or not. Of an array also an array, examples first.

        Raises:
            ValueError: a column is absent, was not there in training or has other cells than then.
        """
        blocks = self._array(rows) if isinstance(rows, np.ndarray) else self._read(as_table(rows))
        found = [self.apply(block) for block in blocks]
        return np.concatenate(found) if found else np.empty((0, len(self.feature_names)), dtype=np.float32)

    def apply(self, block_NK: np.ndarray) -> np.ndarray:
        """The features of rows that were read, N × F, float32.

        Args:
            block_NK: numbers in the order of :attr:`names`, NaN where a cell is missing.
        """
        return self.scaling.apply(_filled(block_NK, self.fill_K))

    def _array(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        if self.columns:
            raise ValueError(f"an array has no columns; give a table with the columns {few(self.names)}")
        n = len(self.fill_K)
        if rows.ndim < 2 or rows[:1].size not in (0, n):
            raise ValueError(f"the array has shape {rows.shape}; it must have {n} features per example")
        if rows.dtype.kind not in "fiub":
            raise ValueError(f"the array holds {rows.dtype}; it must hold numbers")
        if (np.abs(rows.astype(np.float64, copy=False)) > FLOAT32_MAX).any():
            raise ValueError("the array holds a number that is not finite as a float32; NaN alone stands for missing")
        flat = rows.reshape(len(rows), n)
        yield from (flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK))

    def _read(self, table: Table) -> Iterator[np.ndarray]:
        names = named(table.names)
        self._check_names(names)
        readers = [NumberReader(name, table.is_text, table.may_have_decimal_commas) for name in self.names]
        first_row = 0
        for columns in table.batches([names.index(name) for name in self.names]):
            block = np.stack([reader.read(next(columns)) for reader in readers], axis=1)
            for reader in readers:
                if reader.text:
                    row, cell = reader.text
                    raise ValueError(
                        f"column {reader.name!r} has {cell!r:.60} in {table.place(row)}; in training it held numbers"
                    )
            check_range(table, self.names, block, first_row)
            first_row += len(block)
            yield block

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
        std = [None if np.isinf(std) else float(std) for std in self.scaling.std_F]  # JSON has no infinity
        return {
            "columns": [asdict(column) for column in self.columns],
            "fill": self.fill_K.tolist(),
            "mean": self.scaling.mean_F.tolist(),
            "std": std,
            "precision": self.scaling.mean_F.dtype.name,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Preprocessing:
        """What :meth:`to_data` described.

        Raises:
            ValueError: it did not.
        """
        try:
            precision = {"float32": np.float32, "float64": np.float64}[data["precision"]]
            std = [np.inf if std is None else std for std in data["std"]]
            return cls(
                columns=tuple(Column(**column) for column in data["columns"]),
                fill_K=np.array(data["fill"], dtype=np.float64),
                scaling=Scaling(mean_F=np.array(data["mean"], dtype=precision), std_F=np.array(std, dtype=precision)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"is no description of a preprocessing ({type(error).__name__}: {error!s:.80})") from None


def _filled(block_NK: np.ndarray, fill_K: np.ndarray) -> np.ndarray:
    """The same block where no cell is missing."""
    is_missing = np.isnan(block_NK)
    return np.where(is_missing, fill_K, block_NK) if is_missing.any() else block_NK


def _medians(blocks: Sequence[np.ndarray], is_train_N: np.ndarray) -> np.ndarray:
    """Of each column's cells that are there in training rows; 0 where none is."""
    masks = np.split(is_train_N, np.cumsum([len(block) for block in blocks])[:-1])
    n_columns, at_a_time = blocks[0].shape[1], max(1, CHUNK_CELLS // len(is_train_N))
    found = np.zeros(n_columns)
    for start in range(0, n_columns, at_a_time):
        some = slice(start, start + at_a_time)
        chunk = np.concatenate([block[mask, some] for block, mask in zip(blocks, masks, strict=True)])
        for j, column in enumerate(chunk.T):
            there = column[~np.isnan(column)]
            found[start + j] = np.median(there) if len(there) else 0.0
    return found
