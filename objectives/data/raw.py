"""A data set as it was read: rows of numbers, labels, and what is known of the columns.

Axes: N examples, K columns that are read.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from objectives.data.labels import Labels
from objectives.data.splits import Keys

Role = Literal["feature", "category", "target", "ignore"]
Kind = Literal["number", "boolean", "category", "text", "unread"]

#: Errors and warnings name this many columns or labels.
SHOWN = 8
#: Beyond it double precision rounds whole numbers.
MAX_EXACT = 2**53
#: Rows of an array that are handled at a time: bounds the memory.
BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table, and how it was read."""

    name: str
    role: Role
    kind: Kind
    """``boolean``: true and false, or yes and no, read as 1 and 0. ``category``: few different texts, or declared so.
    ``unread``: an ignored column."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A data set before it is split and standardised."""

    blocks: deque[np.ndarray]
    """Consecutive rows × K, NaN where a number is missing. Whoever converts them takes them out, so that memory never
    holds them all twice."""
    labels: Labels
    test_blocks: deque[np.ndarray] | None = None
    test_labels: Labels | None = None
    """Numbered by themselves, until they are split."""
    columns: tuple[Column, ...] = ()
    """Of a table, in its order; an array has none."""
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each category, whose cells are numbers from 0: what they stand for. Empty text is a missing cell."""
    keys: Keys | None = None
    """What the rows are divided by; ``None`` where rows are drawn one by one."""
    is_image: bool = False
    """All features are of one kind and share one mean and standard deviation."""

    @property
    def n_columns(self) -> int:
        """K."""
        return int(self.blocks[0].shape[1])


def blocks_of(x: np.ndarray) -> deque[np.ndarray]:
    """Views of consecutive examples; all axes but the first are flattened."""
    flat = x.reshape(len(x), -1)
    return deque(flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK))


def few(values: Iterable[object]) -> str:
    """The first of them, and whether there are more."""
    shown = [str(value) for value in values]
    return ", ".join(shown[:SHOWN]) + (f", … ({len(shown)} in all)" if len(shown) > SHOWN else "")


def one_line(error: BaseException) -> str:
    """The message of ``error`` without line breaks; its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def declare(roles: Mapping[str, Role]) -> str:
    """What a user writes to give columns these roles."""
    entries = [f"{_key(name)} = {json.dumps(role)}" for name, role in list(roles.items())[:SHOWN]]
    more = ", …" if len(roles) > SHOWN else ""
    return f"objective.args.columns = {{ {', '.join(entries)}{more} }}"


def _key(name: str) -> str:
    """As TOML writes it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
