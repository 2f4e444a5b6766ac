"""Leases: a worker claims a trial, writes to it, and finishes it or gives it back. Statements: ``sql/leases.sql``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from studies.storage.database import ANSWER_SECONDS, Database, new_token
from studies.storage.known import KnownTrials, Writer
from studies.storage.records import Attempt, Changes, Claim, SavedCheckpoint, StudyRecord, Wishes


class Leases:
    """The trials that workers hold.

    Args:
        database: where they are.
        known: what this process remembers of trials, which a claim brings up to date.
    """

    def __init__(self, database: Database, known: KnownTrials) -> None:
        self._database = database
        self._known = known

    def claim(
        self, record: StudyRecord, worker_id: str, lease_seconds: float, *, most: int | None = None
    ) -> Claim | str:
        """The next trial for a worker: one that waits, else a new one if the budget has room.

        Args:
            record: the study.
            worker_id: the worker's.
            lease_seconds: how long the trial stays this worker's after a sign of life.
            most: begin a new trial only where the study has fewer than so many, in whatever state.

        Returns:
            The trial; or why there is none: ``wait`` while others run the last ones, ``paused``, ``exhausted``
            where only ``most`` forbids a new one, or the reason why the study is over.
        """
        study_id, token = record.study_id, new_token()
        rows = self._known.ask(
            "claim", study_id, worker_id=worker_id, lease_seconds=lease_seconds, claim=token, most=most
        )
        if rows[0]["reason"]:
            return str(rows[0]["reason"])
        taken = next(row for row in rows if row["epoch"])
        return Claim(
            study_id=study_id, trial_id=taken["trial_id"], number=taken["number"], epoch=taken["epoch"], token=token
        )

    def write(
        self,
        claim: Claim,
        changes: Changes,
        *,
        step: int | None,
        revision: int = 0,
        within: float = ANSWER_SECONDS,
    ) -> Wishes:
        """Write to a trial that is held, which keeps its lease. Tried once: who holds a lease tries again.

        Args:
            claim: by which it is held.
            changes: lists under params, reports, user_attrs, system_attrs and metrics.
            step: the newest one, for people to see.
            revision: as it was answered last.
            within: seconds of silence after which the server counts as gone.

        Raises:
            LeaseLost: it is no longer held under this claim.
            Forgotten: a crash of the server has lost what was written up to ``revision``.
        """
        (row,) = self._database.rows(
            "write",
            trial_id=claim.trial_id,
            claim=claim.token,
            revision=revision,
            step=step,
            changes=json.dumps(changes),
            within=within,
            patience=0.0,
        )
        return Wishes(**row)

    def finish(
        self,
        claim: Claim,
        state: str,
        values: Sequence[float] | None,
        changes: Changes,
        *,
        revision: int = 0,
        within: float = ANSWER_SECONDS,
    ) -> None:
        """Write the result of a trial that is held; again does nothing. See :meth:`write`.

        Raises:
            LeaseLost: it is no longer held under this claim, and the result not needed any more.
            Forgotten: a crash of the server has lost what was written up to ``revision``.
        """
        self._database.rows(
            "finish",
            trial_id=claim.trial_id,
            claim=claim.token,
            revision=revision,
            state=state,
            values=None if values is None else list(values),
            changes=json.dumps(changes),
            within=within,
            patience=0.0,
        )

    def give_back(self, claim: Claim, changes: Changes) -> None:
        """Return a trial that is held to those that wait; one that no longer is stays as it is."""
        self._database.rows("give_back", trial_id=claim.trial_id, claim=claim.token, changes=json.dumps(changes))

    def hold(self, claim: Claim, writer: Writer) -> None:
        """From now on ``writer`` writes to the trial of ``claim``, which was read when it was claimed."""
        self._known.hold(claim.study_id, claim.trial_id, writer)

    def release(self, claim: Claim) -> None:
        """This process holds the trial of ``claim`` no longer."""
        self._known.release(claim.trial_id)

    def sweep(self, record: StudyRecord) -> None:
        """Requeue the trials of a study whose workers have been silent for longer than their leases."""
        self._database.rows("sweep", study_id=record.study_id)

    def attempts(self, record: StudyRecord) -> dict[int, Attempt]:
        """Who ran each trial last, and how often it was begun: ``{number: attempt}``."""
        rows = self._database.rows("attempts", study_id=record.study_id)
        return {row.pop("number"): Attempt(**row) for row in rows}

    def save_checkpoint(
        self, claim: Claim, *, sequence: int, name: str, step: int, sha256: bytes, data: bytes | None
    ) -> list[str]:
        """Keep a checkpoint of a trial that is held, beside the one before.

        Returns:
            The names of those that nothing needs any more.

        Raises:
            LeaseLost: the trial is no longer held under this claim.
        """
        rows = self._database.rows(
            "save_checkpoint",
            trial_id=claim.trial_id,
            claim=claim.token,
            sequence=sequence,
            name=name,
            step=step,
            sha256=sha256,
            data=data,
        )
        return [row["name"] for row in rows]

    def checkpoints(self, trial_id: int) -> list[SavedCheckpoint]:
        """The checkpoints of a trial, the newest first."""
        return [
            SavedCheckpoint(
                name=row["name"],
                step=row["step"],
                sha256=bytes(row["sha256"]),
                data=None if row["data"] is None else bytes(row["data"]),
            )
            for row in self._database.rows("checkpoints", trial_id=trial_id)
        ]
