"""Reading a study of any size: outlines of all trials, or whole trials page by page.

A page is one statement: no transaction stays open while a slow reader uses it. Trials that change between two pages are
read in their later state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from studies.spec.script import CHANGED_SCRIPT, OWN_ATTRIBUTES
from studies.storage.pages import (
    PAGE,
    Page,
    attrs_of,
    integers,
    numbers,
    params_of,
    read_pages,
    reports_of,
    states_of,
    times_of,
    to_trials,
    values_of,
)
from studies.storage.records import Point
from studies.storage.trials import known_params, paused_at, read_distribution, to_local

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord


class TrialRow(NamedTuple):
    """A trial as a row of a table."""

    number: int
    state: str
    """As Optuna names it; or PAUSED, of a WAITING trial that the study's scheduler paused."""
    values: Sequence[float]
    params: Mapping[str, Any]
    """Of a WAITING trial also those that it was enqueued with."""
    metrics: Mapping[str, float]
    """Of the last step."""
    steps: int
    """The number of reported steps."""
    reports: Mapping[int, float]
    """By step; empty unless requested."""
    start: datetime | None
    """In local time, with its zone."""
    complete: datetime | None
    worker: str | None
    """The last worker; ``None`` for stock Optuna."""
    attempts: int | None
    error: str | None
    user_attrs: Mapping[str, Any]
    """Without those of :data:`~studies.spec.script.OWN_ATTRIBUTES`."""
    script_sha256: str | None
    """Of the script that ran it, if it differs from the study's."""
    paused: int | None
    """The step at which the study's scheduler paused it; ``None`` if it is not paused."""


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
        """The whole trials of these outlines, by number."""
        ids = [trial._trial_id for trial in outlines]
        return [trial for page in read_pages(self._database, ids) for trial in to_trials(page)]

    def curves(self, trials: Iterable[FrozenTrial], most: int) -> dict[int, list[Point]]:
        """The metrics of ``trials`` by step and name: ``{number: points}``, at most ``most`` points of each line."""
        of = {trial._trial_id: trial.number for trial in trials}
        points: dict[int, list[Point]] = {number: [] for number in of.values()}
        # Fewer trials than in a page: each may have thousands of points.
        for ids in _parts(list(of), PAGE // 8):
            for row in self._database.rows("thinned_curves", trial_ids=ids, most=most):
                points[of[row.pop("trial_id")]].append(Point(**row))
        return points

    def param_names(self) -> list[str]:
        """The names of the parameters, in the order of their first use; then those that were only enqueued."""
        names = dict.fromkeys(row["name"] for row in self._database.rows("param_names", study_id=self._study_id))
        # A trial has the parameters with which it was enqueued only once it has run.
        for row in self._database.rows("fixed_params", study_id=self._study_id):
            names |= dict.fromkeys(known_params(TrialState.WAITING, {}, {"fixed_params": json.loads(row["params"])}))
        return list(names)

    def distributions(self) -> list[tuple[str, BaseDistribution]]:
        """The different distributions of each parameter, as pairs of name and distribution."""
        rows = self._database.rows("distributions", study_id=self._study_id)
        return [(row["name"], read_distribution(row["distribution"])) for row in rows]

    def last_metric_names(self) -> list[str]:
        """The names of the metrics of last steps, sorted."""
        return [row["name"] for row in self._database.rows("last_metric_names", study_id=self._study_id)]

    def user_attr_names(self) -> list[str]:
        """The names of attributes that the objective set, in the order of their first use."""
        own = list(OWN_ATTRIBUTES)  # psycopg2 sends a list as an array, and a tuple as a row
        return [row["name"] for row in self._database.rows("user_attr_names", study_id=self._study_id, own=own)]

    def pages(self, *, reports: bool = False) -> Iterator[list[TrialRow]]:
        """All trials by number, a page at a time; the next one is read while this one is used.

        Args:
            reports: whether to read what they reported at each step.
        """
        (found,) = self._database.rows("trial_ids", study_id=self._study_id)
        for page in read_pages(self._database, found["ids"] or (), "page_rows", reports=reports):
            yield _rows(page)


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
    # Cached: in a long study these dicts would take more memory than everything else.
    return dict.fromkeys(range(last - count + 1, last + 1), math.nan)


def _rows(page: Page) -> list[TrialRow]:
    metrics: dict[int, dict[str, float]] = {trial_id: {} for trial_id in integers(page["trial_ids"])}
    for name, column in zip(page["metric_names"] or (), page["metrics"] or (), strict=True):
        for trial_id, value in numbers(column):
            metrics[trial_id][name] = value
    steps = dict(numbers(page["steps"]))
    begun = zip(page["workers"] or (), page["epochs"] or (), strict=True)
    attempts = dict(zip(integers(page["begun"]), begun, strict=True))
    no_attempt = None, None
    return [
        TrialRow(
            number,
            "PAUSED" if (paused := paused_at(state, system_attrs)) is not None else state.name,
            values,
            known_params(state, params, system_attrs),
            metrics[trial_id],
            int(steps.get(trial_id, 0)),
            reports,
            start,
            complete,
            *attempts.get(trial_id, no_attempt),
            user_attrs.get("error"),
            {name: value for name, value in user_attrs.items() if name not in OWN_ATTRIBUTES},
            user_attrs.get(CHANGED_SCRIPT),
            paused,
        )
        for trial_id, number, state, values, params, reports, start, complete, user_attrs, system_attrs in zip(
            integers(page["trial_ids"]),
            integers(page["numbers"]),
            states_of(page),
            values_of(page),
            params_of(page)[0],
            reports_of(page),
            times_of(page, "starts"),
            times_of(page, "completes"),
            attrs_of(page, "user_attrs"),
            attrs_of(page, "system_attrs"),
            strict=True,
        )
    ]


def _values(row: Mapping[str, Any]) -> list[float]:
    return [float(value) for value in json.loads(row["values"] or "[]")]
