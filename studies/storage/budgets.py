"""Budgets: how many trials a study may finish, and whether it is paused or stopped. Statements: ``sql/budgets.sql``."""

from __future__ import annotations

from typing import Any

from studies.errors import SpecError
from studies.spec.study import StudySpec
from studies.storage.database import Database, new_token
from studies.storage.records import StudyRecord
from studies.text import counted


class Budgets:
    """The budgets of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def extend(
        self,
        record: StudyRecord,
        *,
        trials: int | None = None,
        more_trials: int = 0,
        max_failures: int | None = None,
        more_failures: int = 0,
        timeout: float | None = None,
        target: float | None = None,
    ) -> None:
        """Change the budget, and continue a study that its budget stopped.

        If a smaller budget has no room for all running trials, the newest are requeued.

        Args:
            record: the study.
            trials: the new number of trials.
            more_trials: added to ``trials``, or to the stored number at the time of the statement.
            max_failures: the new number of FAILed trials that stops the study.
            more_failures: added likewise.
            timeout: seconds after the start of the first trial.
            target: the value that stops the study.

        Raises:
            SpecError: a value is not legal; nothing is changed.
            StorageError: stock Optuna made the study.
        """
        spec = record.require_spec("it has no budget")
        changes: dict[str, Any] = {
            "trials": trials,
            "max_failures": max_failures,
            "timeout": timeout,
            "target": target,
        }
        now = record.budget or spec.budget
        budget = now.model_dump() | {key: value for key, value in changes.items() if value is not None}
        budget["trials"] += more_trials
        budget["max_failures"] += more_failures
        size = spec.combinations
        if size is not None and budget["trials"] > size:
            raise SpecError(
                f"{record.name}: budget.trials = {budget['trials']}: its grid has {size} combinations; "
                f"legal are at most so many trials"
            )
        StudySpec.from_dict({**spec.model_dump(exclude_none=True), "budget": budget}, record.name)
        (row,) = self._database.rows(
            "extend",
            token=new_token(),
            study_id=record.study_id,
            more_trials=more_trials,
            more_failures=more_failures,
            **changes,
        )
        if row["finished"] is not None:
            done = row["finished"]
            raise SpecError(
                f"{record.name}: budget.trials = {budget['trials']}: {counted(done, 'trial')} done already; "
                f"legal are {done} and more"
            )

    def stop(self, record: StudyRecord, reason: str) -> None:
        """Stop a study. The first reason stays."""
        self._database.rows("stop_study", study_id=record.study_id, reason=reason)

    def pause(self, record: StudyRecord) -> None:
        """Pause a study: running trials are requeued at their next step."""
        self._database.rows("pause", study_id=record.study_id)

    def resume(self, record: StudyRecord) -> None:
        """Undo :meth:`pause` or :meth:`stop`."""
        self._database.rows("resume", study_id=record.study_id)
