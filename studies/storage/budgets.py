"""Budgets: how many trials a study may finish, and whether it is paused or stopped. Statements: ``sql/budgets.sql``."""

from __future__ import annotations

import math
from typing import Any

from studies.errors import SpecError, command
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
        epochs: int | None = None,
        more_epochs: int = 0,
        gpu_hours: float | None = None,
        more_gpu_hours: float = 0.0,
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
            epochs: the new number of steps that trials report in all.
            more_epochs: added likewise.
            gpu_hours: the new number of hours in which workers have trials on a GPU, in all.
            more_gpu_hours: added likewise.

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
            "epochs": epochs,
            "gpu_hours": gpu_hours,
        }
        now = record.budget or spec.budget
        budget = {**now.model_dump(), "trials": now.trial_limit} | {
            key: value for key, value in changes.items() if value is not None
        }
        more = {
            "trials": more_trials,
            "max_failures": more_failures,
            "epochs": more_epochs,
            "gpu_hours": more_gpu_hours,
        }
        for key, added in more.items():
            if added and budget[key] is None:
                name, whole = record.name, f"{self._done(record)[key] + added:g}"
                commands = {
                    "trials": command("extend", name, "--trials", whole),
                    "epochs": command("extend", name, "--epochs", whole),
                    "gpu_hours": command("extend", name, "--gpu-hours", whole),
                }
                raise SpecError(
                    f"{name}: budget.{key} + {added:g}: it has no such limit; say how many it may use in all, such as "
                    f"{added:g} more than so far: {commands[key]}"
                )
            budget[key] = budget[key] + added if added else budget[key]
        # A grid draws nothing beyond its last combination: the study could never end by its budget.
        size = spec.combinations
        if size is not None and budget["trials"] is not None and budget["trials"] > size:
            raise SpecError(
                f"{record.name}: budget.trials = {budget['trials']}: its grid has {size} combinations; "
                f"legal are at most so many trials"
            )
        # For its checks alone: the statement adds to the budget as it is then, which others may have changed.
        given = {key: value for key, value in budget.items() if value is not None}
        StudySpec.from_dict({**spec.model_dump(exclude_none=True), "budget": given}, record.name)
        self._check_spent(record, epochs, gpu_hours)
        (row,) = self._database.rows(
            "extend",
            # Sent again after a lost answer, the statement adds nothing a second time.
            token=new_token(),
            study_id=record.study_id,
            **{f"more_{key.removeprefix('max_')}": added for key, added in more.items()},
            **changes,
        )
        # Judged by the statement: trials may have finished since the record was read.
        if row["finished"] is not None:
            done = row["finished"]
            raise SpecError(
                f"{record.name}: budget.trials = {budget['trials']}: {counted(done, 'trial')} done already; "
                f"legal are {done} and more"
            )

    def _done(self, record: StudyRecord) -> dict[str, float]:
        """What the study has used of each limit that it may lack."""
        (spent,) = self._database.rows("spent", study_id=record.study_id)
        (status,) = self._database.rows("status", study_id=record.study_id)
        # Rounded up, to three digits: what is said is accepted.
        hours = math.ceil(spent["gpu_hours"] * 1000) / 1000
        return {"trials": status["complete"] + status["pruned"], "epochs": spent["epochs"], "gpu_hours": hours}

    def _check_spent(self, record: StudyRecord, epochs: int | None, gpu_hours: float | None) -> None:
        """Refuse to give in all less than is spent. Spending only grows, so that it may be read before."""
        if epochs is None and gpu_hours is None:
            return
        least = self._done(record)
        for key, given in (("epochs", epochs), ("gpu_hours", gpu_hours)):
            if given is not None and given < least[key]:
                raise SpecError(
                    f"{record.name}: budget.{key} = {given}: {least[key]} are spent already; legal are {least[key]} "
                    f"and more, and {command('stop', record.name)} ends the study"
                )

    def epochs_left(self, record: StudyRecord) -> tuple[int, list[int]] | None:
        """How many epochs a study may still train, and the numbers of the trials that a worker trains or will take.

        ``None`` without such a limit; negative where more was reported.
        """
        rows = self._database.rows("epochs_left", study_id=record.study_id)
        return (rows[0]["epochs"], rows[0]["numbers"]) if rows else None

    def stop(self, record: StudyRecord, reason: str) -> None:
        """Stop a study. The first reason stays."""
        self._database.rows("stop_study", study_id=record.study_id, reason=reason)

    def pause(self, record: StudyRecord) -> None:
        """Pause a study: running trials are requeued at their next step."""
        self._database.rows("pause", study_id=record.study_id)

    def resume(self, record: StudyRecord) -> None:
        """Undo :meth:`pause` or :meth:`stop`."""
        self._database.rows("resume", study_id=record.study_id)
