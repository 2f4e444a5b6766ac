"""Metrics, beside what Optuna knows of a trial. Statements: ``sql/metrics.sql``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optuna.trial import FrozenTrial

from studies.storage.database import Database
from studies.storage.records import Point


class Metrics:
    """What trials reported by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, trial: FrozenTrial) -> dict[int, dict[str, float]]:
        """Every metric of every step: ``{step: {name: value}}``."""
        steps: dict[int, dict[str, float]] = {}
        for row in self._database.rows("metrics", trial_id=trial._trial_id):
            steps.setdefault(row["step"], {})[row["name"]] = row["value"]
        return steps

    def last(self, trials: Iterable[FrozenTrial]) -> dict[int, dict[str, float]]:
        """The metrics of each trial's last step: ``{number: {name: value}}``."""
        numbers = {trial._trial_id: trial.number for trial in trials}
        last: dict[int, dict[str, float]] = {number: {} for number in numbers.values()}
        for row in self._database.rows("last_metrics", trial_ids=list(numbers)):
            last[numbers[row["trial_id"]]][row["name"]] = row["value"]
        return last

    def curves(self, trials: Iterable[FrozenTrial], after: Mapping[int, int] | None = None) -> dict[int, list[Point]]:
        """Every metric of every step of ``trials``, by step and name: ``{number: points}``.

        Args:
            trials: of one study.
            after: leave out the steps up to this one: ``{number: step}``.
        """
        numbers = {trial._trial_id: trial.number for trial in trials}
        rows = self._database.rows(
            "curves",
            trial_ids=list(numbers),
            # Steps begin at 0.
            after=[(after or {}).get(number, -1) for number in numbers.values()],
        )
        points: dict[int, list[Point]] = {number: [] for number in numbers.values()}
        for row in rows:
            points[numbers[row.pop("trial_id")]].append(Point(**row))
        return points
