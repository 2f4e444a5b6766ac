"""Many trials in one row: the numbers of a whole page as binary columns.

A row for each trial, with its contents as text, takes three times as long to write, to send and to read. That matters
only for the first read of a large study (50,000 trials). For the few trials that changed the row is simpler
(:func:`studies.storage.trials.to_trial`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from studies.storage.database import Database
from studies.storage.trials import offset, read_distribution

#: Trials per page. More take more memory and are not faster.
PAGE = 2000

#: Pages that are prefetched: with one thread the next request would wait for the GIL while a page is decoded.
AHEAD = 2

_STATES = {state.name[0]: state for state in TrialState}  # no two states begin alike

#: A number of a trial: its place (the step, the objective, the parameter's id) and its value.
_NUMBER = np.dtype([("trial_id", ">i4"), ("place", ">i4"), ("value", ">f8")])

#: PostgreSQL's timestamps are microseconds since then; the largest one is infinity, and stands for none.
_EPOCH = np.datetime64("2000-01-01", "us").astype(np.int64)
_QUARTER = 15 * 60 * 1_000_000
_MICROSECOND = timedelta(microseconds=1)


Page = Mapping[str, Any]
"""A row of the statement ``page``, and of those that were sent with it."""


def read_pages(database: Database, ids: Sequence[int], *statements: str, reports: bool = True) -> Iterator[Page]:
    """The trials of these ascending ids, page by page; the next two pages are prefetched.

    Args:
        database: where they are.
        ids: of trials.
        statements: what else to read of each page.
        reports: whether to read what the trials reported.
    """

    def read(begin: int) -> Page:
        firsts, lasts = _runs(ids[begin : begin + PAGE])
        page = database.rows("page", firsts=firsts, lasts=lasts, with_reports=reports)[0]
        for statement in statements:
            page |= database.rows(statement, firsts=firsts, lasts=lasts)[0]
        return page

    begins = iter(range(0, len(ids), PAGE))
    with ThreadPoolExecutor(AHEAD) as reader:
        pending = deque(reader.submit(read, begin) for begin in islice(begins, AHEAD))
        while pending:
            page = pending.popleft().result()
            pending.extend(reader.submit(read, begin) for begin in islice(begins, 1))
            yield page


def _runs(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """The first and the last of each run of ``ids`` without a gap."""
    numbers = np.asarray(ids)
    (gaps,) = np.nonzero(np.diff(numbers) != 1)
    return [ids[0], *numbers[gaps + 1].tolist()], [*numbers[gaps].tolist(), ids[-1]]


def to_trials(page: Page) -> list[FrozenTrial]:
    """The trials of a page, by id."""
    columns = zip(
        integers(page["trial_ids"]),
        integers(page["numbers"]),
        states_of(page),
        _local(page["starts"])[0],
        _local(page["completes"])[0],
        *params_of(page),
        attrs_of(page, "user_attrs"),
        attrs_of(page, "system_attrs"),
        reports_of(page),
        values_of(page),
        strict=True,
    )
    return [
        FrozenTrial(
            number,
            state,
            None,
            start,
            complete,
            params,
            distributions,
            user_attrs,
            system_attrs,
            reports,
            trial_id,
            values=values or None,
        )
        for (
            trial_id,
            number,
            state,
            start,
            complete,
            params,
            distributions,
            user_attrs,
            system_attrs,
            reports,
            values,
        ) in columns
    ]


# The columns of a page, decoded: an entry for each trial.


def states_of(page: Page) -> list[TrialState]:
    """The states."""
    return [_STATES[letter] for letter in page["states"] or ""]


def values_of(page: Page) -> list[list[float]]:
    """The values of the objectives; empty without a result."""
    _, values, spans = _by_trial(page, "values")
    return [values[span] for span in spans]


def reports_of(page: Page) -> list[dict[int, float]]:
    """The reported values, by step."""
    steps, values, spans = _by_trial(page, "reports")
    return [dict(zip(steps[span], values[span], strict=True)) for span in spans]


def params_of(page: Page) -> tuple[list[dict[str, Any]], list[dict[str, BaseDistribution]]]:
    """The parameters and distributions, in their order. Trials with equal distributions share one dict."""
    ids = _ids(page)
    if not page["names"]:
        return [{} for _ in ids], [{} for _ in ids]
    names = page["names"]
    distributions = [read_distribution(text) for text in page["distributions"]]
    columns = [_column(data, _NUMBER) for data in page["params"]]
    values: list[Any] = []
    for distribution, column in zip(distributions, columns, strict=True):
        values += map(distribution.to_external_repr, column["value"].tolist())
    trial_ids = np.concatenate([column["trial_id"] for column in columns])
    # By trial, then by place: lexsort begins with its last key.
    order = np.lexsort((np.concatenate([column["place"] for column in columns]), trial_ids))
    values = list(map(values.__getitem__, order.tolist()))
    kinds = np.repeat(np.arange(len(columns)), [len(column) for column in columns])[order].tolist()
    known: dict[tuple[int, ...], tuple[list[str], dict[str, BaseDistribution]]] = {}
    params, shared = [], []
    for span in _spans(trial_ids[order], ids):
        key = tuple(kinds[span])
        if key not in known:
            known[key] = [names[kind] for kind in key], {names[kind]: distributions[kind] for kind in key}
        of, distributions_of = known[key]
        params.append(dict(zip(of, values[span], strict=True)))
        shared.append(distributions_of)
    return params, shared


def attrs_of(page: Page, kind: str) -> list[dict[str, Any]]:
    """The attributes: ``user_attrs`` or ``system_attrs``."""
    entries = (entry.partition(":") for entry in page[kind] or ())
    found = {int(trial_id): json.loads(text) for trial_id, _, text in entries}
    return [found.get(trial_id) or {} for trial_id in integers(page["trial_ids"])]


def times_of(page: Page, kind: str) -> list[datetime | None]:
    """The ``starts`` or ``completes`` in local time, with its zone."""
    local, offsets = _local(page[kind])
    zones = {of: timezone(of) for of in set(offsets)}
    return [at and at.replace(tzinfo=zones[of]) for at, of in zip(local, offsets, strict=True)]


def integers(data: Any) -> list[int]:
    """A column of integers."""
    found: list[int] = _column(data, ">i4").tolist()
    return found


def numbers(data: Any) -> Iterator[tuple[int, float]]:
    """A column of numbers: pairs of trial id and value."""
    column = _column(data, _NUMBER)
    return zip(column["trial_id"].tolist(), column["value"].tolist(), strict=True)


def _ids(page: Page) -> NDArray[Any]:
    return _column(page["trial_ids"], ">i4")


def _column(data: Any, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(data or b"", dtype=dtype)


def _by_trial(page: Page, kind: str) -> tuple[list[int], list[float], list[slice]]:
    """Places and values, sorted by trial and place, and the slice of each trial."""
    numbers = _column(page[kind], _NUMBER)
    keys = numbers["trial_id"].astype(np.int64) << 32 | numbers["place"].astype(np.int64)
    # Mostly in order already, and checking that is cheaper than sorting.
    if np.any(keys[1:] < keys[:-1]):
        numbers = numbers[np.argsort(keys)]
    return numbers["place"].tolist(), numbers["value"].tolist(), _spans(numbers["trial_id"], _ids(page))


def _spans(trial_ids: NDArray[Any], ids: NDArray[Any]) -> list[slice]:
    """The slice of each of ``ids`` in the ascending ``trial_ids``."""
    ends = np.searchsorted(trial_ids, ids, side="right").tolist()
    return list(map(slice, [0, *ends], ends))


def _local(data: Any) -> tuple[list[datetime | None], list[timedelta]]:
    """Local times, and the offset of each from UTC."""
    times = _column(data, ">i8").astype(np.int64)
    none = times == np.iinfo(np.int64).max
    times[none] = 0  # the largest integer would overflow below
    times += _EPOCH
    # The offset is asked for once per quarter of an hour, not once per trial.
    quarters, which = np.unique(times // _QUARTER, return_inverse=True)
    ahead = [offset(quarter) for quarter in (quarters * _QUARTER).astype("M8[us]").tolist()]
    times += np.array([of / _MICROSECOND for of in ahead], dtype=np.int64)[which]
    local = times.astype("M8[us]").astype(object)
    local[none] = None
    return local.tolist(), [ahead[place] for place in which.tolist()]
