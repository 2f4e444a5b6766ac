"""Which rows are for training, validation and test, and the folds of cross-validation.

By default rows are drawn by a seed, stratified where there are classes. Rows of one group stay together with
``split = { by = "patient" }``: else a model is measured on patients that it knows. In the order of time, with
``{ on = "date" }``, training rows are the oldest and test rows the latest: else it is measured on a past that it could
only know afterwards.

Every function raises :exc:`ValueError` with one line. Axes: N rows.
"""

from __future__ import annotations

import bisect
import datetime
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

TEST_FRACTION = 0.2
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the rows of a table are divided."""

    by: str | None = None
    """The column with the groups, or ..."""
    on: str | None = None
    """... the one with the times: ISO dates, or numbers."""
    after: str | float | None = None
    """Rows later than this are for testing; by default a fifth of all. A date without a time is the whole day."""

    @classmethod
    def of(cls, given: object) -> Split | None:
        """What a study file says.

        Raises:
            ValueError: it is not legal.
        """
        legal = 'it must be { by = "COLUMN" } for groups, or { on = "COLUMN", after = "2024-01-31" } for times'
        if given is None:
            return None
        if not isinstance(given, Mapping) or not given or not given.keys() <= {"by", "on", "after"}:
            raise ValueError(f"split = {given!r}; {legal}")
        for name in ("by", "on"):
            if not isinstance(given.get(name, ""), str):
                raise ValueError(f"split.{name} = {given[name]!r}; it must be the name of a column")
        if ("by" in given) == ("on" in given):
            wrong = "names both by and on" if "by" in given else "has after and not on, the column with the times"
            raise ValueError(f"split = {given!r} {wrong}; {legal}")
        after = given.get("after")
        if "after" in given and ("by" in given or not isinstance(after, str | int | float) or isinstance(after, bool)):
            raise ValueError(f"split.after = {after!r}; it must be text or a number, with split.on; {legal}")
        return cls(by=given.get("by"), on=given.get("on"), after=after)

    @property
    def column(self) -> str:
        """The one that is read for it."""
        column = self.by or self.on
        assert column is not None  # one of them is there
        return column


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What the rows of a table are divided by."""

    split: Split
    rank_N: np.ndarray
    """int64: of each row its group, or the place of its time among all different ones."""
    names: Sequence[str]
    """Of the groups; or of the first time and the last."""
    n_before: int = 0
    """How many different times are not after ``split.after``."""


def read_keys(cells: pa.ChunkedArray, split: Split, place: Callable[[int], str]) -> Keys:
    """The column of a split.

    Args:
        cells: text, or of a type of their own.
        split: asks for it.
        place: says where a row is, counted from 0.
    """
    import pyarrow as pa

    from objectives.data.cells import level

    what = f"split.{'by' if split.by else 'on'} = {split.column!r}"
    whole = cells.combine_chunks()
    encoded = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
    values, code_N = encoded.dictionary, encoded.indices.fill_null(-1).to_numpy()
    names = [*map(level, values.to_pylist()), ""]  # the last is that of -1
    # A row without a group may be of any, and would leak into another part; one without a time has no place.
    if "" in (names[code] for code in np.unique(code_N)):
        is_lost_N = np.array([not name for name in names])[code_N]
        raise ValueError(
            f"{what}: {is_lost_N.sum()} of {len(code_N)} cells are missing, the first in "
            f"{place(int(is_lost_N.argmax()))}; fill them, or remove these rows"
        )
    if split.by:
        distinct, rank = np.unique(names[:-1], return_inverse=True)
        return Keys(split=split, rank_N=rank[code_N], names=distinct.tolist())
    is_time = _numbers(values) is None
    order = _times(values) if is_time else _numbers(values)
    if order is None:
        legal = "write dates as 2024-01-31 or 2024-01-31T12:30, all with a time zone or all without"
        bad = next((i for i in range(len(values)) if _times(values.slice(i, 1)) is None), None)
        if bad is None:
            raise ValueError(f"{what}: some times have a time zone and some have none; {legal}")
        where = place(int((code_N == bad).argmax()))
        raise ValueError(f"{what}: {str(values[bad])!r:.60} in {where} is no date or number; {legal}")
    distinct_T, rank = np.unique(order, return_inverse=True)
    n_before = 0
    if split.after is not None:
        n_before = _not_after(distinct_T, split.after, is_time=is_time, what=what)
    shown = [_shown(value) if is_time else f"{value:g}" for value in (distinct_T[0], distinct_T[-1])]
    return Keys(split=split, rank_N=rank[code_N], names=shown, n_before=n_before)


def _numbers(values: pa.Array) -> np.ndarray | None:
    import pyarrow as pa

    if pa.types.is_temporal(values.type) or pa.types.is_boolean(values.type):
        return None
    try:
        numbers: np.ndarray = _trimmed(values).cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        return None
    return numbers


def _times(values: pa.Array) -> np.ndarray | None:
    """Microseconds since 1970."""
    import pyarrow as pa

    # Either all with a zone or none: to compare the two kinds, one would have to guess the zone.
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            times: np.ndarray = _trimmed(values).cast(kind).cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException:
            continue
        return times
    return None


def _trimmed(values: pa.Array) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(values) if pa.types.is_string(values.type) else values


def _shown(microseconds: int) -> str:
    time = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(microseconds))
    return time.date().isoformat() if time.time() == datetime.time() else time.isoformat(" ")


def _not_after(distinct_T: np.ndarray, after: str | float, *, is_time: bool, what: str) -> int:
    """How many of the times, in their order, are not after ``after``."""
    if not is_time:
        if isinstance(after, str):
            raise ValueError(f"split.after = {after!r}; {what} has numbers, give one such as 2024")
        return bisect.bisect_right(distinct_T, after)
    try:
        time = datetime.datetime.fromisoformat(str(after)) if isinstance(after, str) else None
    except ValueError:
        time = None
    if time is None:
        raise ValueError(f'split.after = {after!r}; {what} has dates, give one such as "2024-01-31"')
    # After a day means after its end.
    is_day = isinstance(after, str) and len(after.strip()) <= len("2024-01-31")
    if time.tzinfo is not None:
        time = time.astimezone(datetime.UTC).replace(tzinfo=None)
    since = (time + DAY * is_day - datetime.datetime(1970, 1, 1)) / datetime.timedelta(microseconds=1)
    return (bisect.bisect_left if is_day else bisect.bisect_right)(distinct_T, since)


def rows_of(
    y_N: np.ndarray, keys: Keys | None, *, is_class: bool, has_test: bool, seed: int, validation: float
) -> dict[str, np.ndarray]:
    """The rows of each part, by name.

    Args:
        y_N: classes or numbers.
        keys: ``None`` where rows are drawn one by one.
        is_class: whether they are classes.
        has_test: whether the test rows are elsewhere.
        seed: of what is drawn.
        validation: the share, without the test rows, that is for validation.
    """
    cuts = {"validation": validation} if has_test else {"test": TEST_FRACTION, "validation": validation}
    rows = {"train": np.arange(len(y_N))}
    for name, share in cuts.items():
        pool = rows["train"]
        if keys is None:
            rows["train"], rows[name] = _drawn(pool, y_N, share, name, is_class=is_class, seed=seed)
        elif keys.split.by:
            rows["train"], rows[name] = _grouped(pool, y_N, keys, share, is_class=is_class, seed=seed)
        else:
            rows["train"], rows[name] = _ordered(pool, keys, share, name)
    if keys is not None and is_class:
        _check_classes(rows, y_N, keys.split)
    return rows


def _drawn(
    pool: np.ndarray, y_N: np.ndarray, share: float, name: str, *, is_class: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of classes each part has as many examples as there are classes, and the training rows have all of them."""
    from sklearn.model_selection import train_test_split  # takes 1.5 s of CPU, once per machine

    n_cut = math.ceil(share * len(pool))  # as scikit-learn rounds
    n_classes = len(np.unique(y_N[pool])) if is_class else 0
    why = f", of which each of the {n_classes} classes needs one" if is_class else ""
    # Two numbers at least to learn from: one has no spread.
    for part, count, least, way in (
        ("training", len(pool) - n_cut, n_classes or 2, "smaller"),
        (name, n_cut, n_classes or 1, "larger"),
    ):
        if count < least:
            raise ValueError(
                f"{name} = {share}: of {len(pool)} examples that leaves {count} for {part}, and at least {least} are "
                f"needed{why}; give a {way} share, such as 0.1"
            )
    kept, cut = train_test_split(pool, test_size=share, stratify=y_N[pool] if is_class else None, random_state=seed)
    learned = len(np.unique(y_N[kept])) if is_class else 0
    if learned < n_classes:
        raise ValueError(
            f"{name} = {share}: of {len(pool)} examples that leaves {len(kept)} for training, which have {learned} of "
            f"the {n_classes} classes; give a smaller share, such as 0.1"
        )
    return kept, cut


def _grouped(
    pool: np.ndarray, y_N: np.ndarray, keys: Keys, share: float, *, is_class: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """One of so many folds of whole groups."""
    groups = len(np.unique(keys.rank_N[pool]))
    if groups < 2:
        raise ValueError(
            f"split.by = {keys.split.by!r}: the column has {len(keys.names)} different values, and each of the three "
            "parts needs at least one"
        )
    # scikit-learn has no stratified cut by groups, but has such folds: the first of 1 / share is one.
    smaller = min(share, 1 - share)
    count = min(max(2, round(1 / smaller)), groups)
    kept, cut = _group_folds(y_N[pool], keys.rank_N[pool], count, is_class=is_class, seed=seed)[0]
    if share > smaller:
        kept, cut = cut, kept
    return pool[kept], pool[cut]


def _ordered(pool: np.ndarray, keys: Keys, share: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The latest rows are cut off; rows of one time stay together."""
    rank = keys.rank_N[pool]
    split, (first, last) = keys.split, keys.names
    if name == "test" and split.after is not None:
        bound = keys.n_before
    else:
        # At least the latest time.
        bound = int(np.sort(rank)[min(len(rank) - 1, math.ceil(len(rank) * (1 - share)))])
    is_late = rank >= bound
    if is_late.all() and name == "validation" and len(np.unique(rank)) > 1:
        raise ValueError(
            f"validation = {share}: of {len(rank)} rows in the order of split.on = {split.on!r} that leaves none for "
            "training; give a smaller share, such as 0.1"
        )
    if is_late.all() or not is_late.any():
        after = f", split.after = {split.after!r}" if split.after is not None else ""
        empty = "testing" if not is_late.any() else "training and validation"
        raise ValueError(
            f"split.on = {split.on!r}{after} leaves no row for {empty}: the column goes from {first} to {last}"
        )
    return pool[~is_late], pool[is_late]


def _check_classes(rows: Mapping[str, np.ndarray], y_N: np.ndarray, split: Split) -> None:
    """A class that no training row has cannot be learned; one class alone measures nothing."""
    found = {name: set(np.unique(y_N[row_N]).tolist()) for name, row_N in rows.items()}
    unlearned = set(range(int(y_N.max()) + 1)) - found["train"]
    single = [name for name, classes in found.items() if len(classes) < 2]
    if unlearned or single:
        what = f"one class alone in the {single[0]} rows" if single else "a class in no training row"
        raise ValueError(
            f"split by {split.column!r} leaves {what}; give another split_seed, validation or split.after, or leave "
            "split out"
        )


def most_folds(y_N: np.ndarray, rank_N: np.ndarray | None, *, is_class: bool, is_ordered: bool) -> tuple[int, str]:
    """(how many folds are possible, why no more)."""
    if rank_N is not None:
        n = len(np.unique(rank_N))
        return (n - 1, "each needs a time of its own, and one before") if is_ordered else (n, "each needs a group")
    if is_class:
        return int(np.bincount(y_N).min()), "the rarest class has so many examples"
    return len(y_N) // 2, "a fold needs two examples"


def folds_of(
    y_N: np.ndarray, rank_N: np.ndarray | None, count: int, *, is_class: bool, is_ordered: bool, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, validation) rows of each fold.

    Args:
        y_N: classes or numbers.
        rank_N: of each row its group, or the place of its time; ``None`` where there are neither.
        count: how many folds.
        is_class: whether ``y_N`` are classes.
        is_ordered: whether ``rank_N`` are times: each fold's training rows are then before its validation rows.
        seed: of what is drawn.
    """
    from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit  # takes 1.5 s of CPU

    if rank_N is None:
        kind = StratifiedKFold if is_class else KFold
        return list(kind(count, shuffle=True, random_state=seed).split(y_N, y_N))
    if not is_ordered:
        return _group_folds(y_N, rank_N, count, is_class=is_class, seed=seed)
    # Over the times, not the rows: rows of one time stay together.
    times = np.unique(rank_N)
    return [
        (np.flatnonzero(np.isin(rank_N, times[before])), np.flatnonzero(np.isin(rank_N, times[later])))
        for before, later in TimeSeriesSplit(count).split(times)
    ]


def _group_folds(
    y_N: np.ndarray, group_N: np.ndarray, count: int, *, is_class: bool, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Whole groups, of about equal sizes; with about equal shares of the classes where these are not too rare."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    # With a class of fewer rows than folds StratifiedGroupKFold warns, and its folds get uneven.
    is_stratified = is_class and np.bincount(y_N)[np.unique(y_N)].min() >= count
    kind = StratifiedGroupKFold if is_stratified else GroupKFold
    return list(kind(count, shuffle=True, random_state=seed).split(y_N, y_N, group_N))
