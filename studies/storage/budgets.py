"""Budgets: how much a study may spend, and whether its trials run at all. Statements: ``sql/budgets.sql``."""

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
        """Change what may change of the budget, and let a stopped study go on. Where more trials are running than a
        smaller budget has room for, the newest are requeued.

        Args:
            record: the study.
            trials: so many trials in all.
            more_trials: so many on top of that, or of what the budget has by then.
            max_failures: FAILed trials before the study stops.
            more_failures: so many on top of that, likewise.
            timeout: seconds after the first trial began.
            target: the value to stop at.

        Raises:
            SpecError: a value is not legal; nothing is changed.
            StorageError: the study was not made by studyhall.
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
        """Let no more trials begin."""
        self._database.rows("stop_study", study_id=record.study_id, reason=reason)

    def pause(self, record: StudyRecord) -> None:
        """Run no trial for now; the running ones are given back at their next step."""
        self._database.rows("pause", study_id=record.study_id)

    def resume(self, record: StudyRecord) -> None:
        """Run trials again, after :meth:`pause` or :meth:`stop`."""
        self._database.rows("resume", study_id=record.study_id)
