"""Reading a study of any size for people and scripts: every trial in short, or whole ones a page at a time.

A page is one statement, so that no transaction stays open while a reader takes its time. Trials that change
between two pages are read as they are by then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from studies.storage.postgres import Point
from studies.storage.trials import read_distribution, to_local, to_trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from studies.storage.postgres import PostgresStorage, StudyRecord

#: Trials of one statement. A page of twice as many is no faster and takes twice the memory.
PAGE: Final = 1000


class TrialRow(NamedTuple):
    """A trial as a table lists it."""

    number: int
    state: str
    values: Sequence[float]
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    """Those of the last step."""
    steps: int
    """How many it reported."""
    reports: Mapping[int, float]
    """By step; empty unless they were asked for."""
    start: datetime | None
    """In local time, with its zone."""
    complete: datetime | None
    worker: str | None
    """Who ran it last; ``None`` where that was stock Optuna."""
    attempts: int | None
    error: str | None


class StudyReader:
    """Reads one study.

    Args:
        storage: where it is.
        record: the study.
    """

    def __init__(self, storage: PostgresStorage, record: StudyRecord) -> None:
        self._database = storage.database
        self._study_id = record.study_id

    def outlines(self) -> list[FrozenTrial]:
        """Every trial in short, by number: without parameters and distributions.

        Of its reports there are the steps alone, as many as it reported up to the last one, with NaN as their
        values; of its attributes there are ``error``, where it FAILed, and Optuna's constraints.
        """
        return [_outline(row) for row in self._database.rows("outlines", study_id=self._study_id)]

    def whole(self, outlines: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """The trials of these outlines with all that they hold, by number."""
        ids = [trial._trial_id for trial in outlines]
        pages = (self._database.rows("some_trials", trial_ids=part) for part in _parts(ids, PAGE))
        return [to_trial(row) for page in pages for row in page]

    def curves(self, trials: Iterable[FrozenTrial], most: int) -> dict[int, list[Point]]:
        """The metrics of ``trials`` by step and name: ``{number: points}``, at most ``most`` points of each line."""
        numbers = {trial._trial_id: trial.number for trial in trials}
        points: dict[int, list[Point]] = {number: [] for number in numbers.values()}
        for ids in _parts(list(numbers), PAGE // 4):
            for row in self._database.rows("thinned_curves", trial_ids=ids, most=most):
                points[numbers[row.pop("trial_id")]].append(Point(**row))
        return points

    def param_names(self) -> list[str]:
        """The parameters, in the order in which the trials first had them."""
        return [row["name"] for row in self._database.rows("param_names", study_id=self._study_id)]

    def last_metric_names(self) -> list[str]:
        """The metrics that any trial reported at its last step, sorted."""
        return [row["name"] for row in self._database.rows("last_metric_names", study_id=self._study_id)]

    def pages(self, *, reports: bool = False) -> Iterator[list[TrialRow]]:
        """All trials by number, a page at a time; the next one is read while this one is used.

        Args:
            reports: whether to read what they reported at each step.
        """

        def read(after: int) -> list[dict[str, Any]]:
            return self._database.rows("trial_rows", study_id=self._study_id, after=after, count=PAGE, reports=reports)

        with ThreadPoolExecutor(1) as ahead:
            page = ahead.submit(read, -1)
            while rows := page.result():
                page = ahead.submit(read, rows[-1]["trial_id"])
                yield [_row(row) for row in rows]


def _parts(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (ids[i : i + size] for i in range(0, len(ids), size))


def _outline(row: Mapping[str, Any]) -> FrozenTrial:
    return FrozenTrial(
        number=row["number"],
        trial_id=row["trial_id"],
        state=TrialState[row["state"]],
        value=None,
        values=_values(row) or None,
        datetime_start=to_local(row["datetime_start"]),
        datetime_complete=to_local(row["datetime_complete"]),
        params={},
        distributions={},
        user_attrs={} if row["error"] is None else {"error": json.loads(row["error"])},
        system_attrs=json.loads(row["constraints"] or "{}"),
        intermediate_values=_steps(row["steps"], row["last_step"]) if row["steps"] else {},
    )


@lru_cache(maxsize=4096)
def _steps(count: int, last: int) -> dict[int, float]:
    # One object for all trials that reported as much: in a long study they would take more memory than all else.
    return dict.fromkeys(range(last - count + 1, last + 1), math.nan)


def _row(row: Mapping[str, Any]) -> TrialRow:
    reports = json.loads(row["reports"] or "[]")
    return TrialRow(
        row["number"],
        row["state"],
        _values(row),
        {
            name: distribution.to_external_repr(float(value))
            for (name, distribution), value in zip(
                _names(row["names"] or "[]"), json.loads(row["params"] or "[]"), strict=True
            )
        },
        {name: float(value) for name, value in json.loads(row["metrics"] or "{}").items()},
        row["steps"],
        {step: float(value) for step, value in zip(reports[::2], reports[1::2], strict=True)},
        _local(row["datetime_start"]),
        _local(row["datetime_complete"]),
        row["worker"],
        row["attempts"],
        row["error"] and json.loads(row["error"]),
    )


@lru_cache(maxsize=4096)
def _names(text: str) -> list[tuple[str, BaseDistribution]]:
    # Nearly all trials of a study have the same text, which is read once.
    parts = json.loads(text)
    return [(name, read_distribution(json.dumps(of))) for name, of in zip(parts[::2], parts[1::2], strict=True)]


def _values(row: Mapping[str, Any]) -> list[float]:
    return [float(value) for value in json.loads(row["values"] or "[]")]


def _local(utc: datetime | None) -> datetime | None:
    return utc and utc.replace(tzinfo=UTC).astimezone()
