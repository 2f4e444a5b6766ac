"""Leases: a worker claims trials, writes to them, and finishes or requeues them. Statements: ``sql/leases.sql``.

A lease expires when its worker is silent for longer than ``lease_seconds``; see :meth:`Leases.requeue_expired`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from studies.errors import LeaseLost
from studies.storage.database import ANSWER_SECONDS, Database, WritesLost, new_token
from studies.storage.known_trials import KnownTrials, Writer
from studies.storage.records import (
    Acknowledgement,
    Attempt,
    Changes,
    Claim,
    Plan,
    SavedCheckpoint,
    StudyRecord,
    Timing,
    Update,
)
from studies.storage.trials import to_local


class Leases:
    """The leases of all trials.

    Args:
        database: of the studies.
        known: this process's cache of trials, which a claim brings up to date in the same statement.
    """

    def __init__(self, database: Database, known: KnownTrials) -> None:
        self._database = database
        self._known = known

    def claim(
        self, record: StudyRecord, worker_id: str, lease_seconds: float, *, most: int | None = None
    ) -> Claim | str:
        """One trial, by :meth:`claim_many`."""
        claims = self.claim_many(record, worker_id, lease_seconds, count=1, most=most)
        return claims if isinstance(claims, str) else claims[0]

    def claim_many(
        self,
        record: StudyRecord,
        worker_id: str,
        lease_seconds: float,
        *,
        count: int,
        most: int | None = None,
        plan: Plan | None = None,
    ) -> list[Claim] | str:
        """Claim the next trials for a worker: WAITING ones, then new ones while the budget has room.

        With a scheduler those that wait for any worker come first, then what it has chosen.

        Args:
            record: the study.
            worker_id: the worker's name in the database.
            lease_seconds: how long the lease lasts after each write or heartbeat.
            count: at most.
            most: create a new trial only while the study has fewer trials than this, in any state.
            plan: of the scheduler, from the trials as last read; ``None`` without one.

        Returns:
            At least one claim, by number; or why there is none: ``wait`` while other workers run the last trials,
            ``paused``, ``exhausted`` if only ``most`` or the plan forbids a new trial, ``changed`` if the plan is out
            of date, or the stop reason of the study.
        """
        # One for each trial: sent again after a lost answer, the claim finds by them what it took.
        tokens = [new_token() for _ in range(count)]
        choices = plan.choices if plan else ()
        rows = self._known.ask(
            "claim",
            record.study_id,
            worker_id=worker_id,
            lease_seconds=lease_seconds,
            claims=tokens,
            most=most,
            fresh=plan and plan.fresh,
            numbers=[choice.number for choice in choices],
            untils=[choice.until for choice in choices],
        )
        if rows[0]["reason"]:
            return str(rows[0]["reason"])
        # The answer also has trials that others changed; those that were claimed have a token.
        return sorted(
            (
                Claim(
                    study_id=record.study_id,
                    trial_id=row["trial_id"],
                    number=row["number"],
                    epoch=row["epoch"],
                    token=row["token"],
                    until=row["until"],
                    space_version=row["space_version"],
                )
                for row in rows
                if row["token"]
            ),
            key=lambda claim: claim.number,
        )

    def write(
        self,
        claim: Claim,
        changes: Changes,
        *,
        step: int | None,
        revision: int = 0,
        within: float = ANSWER_SECONDS,
    ) -> Acknowledgement:
        """Write to one trial, by :meth:`write_many`.

        Raises:
            LeaseLost: the trial has another claim by now, or none.
            WritesLost: a crash of the server has lost writes up to ``revision``.
        """
        update = Update(claim=claim, changes=changes, step=step, revision=revision)
        (answer,) = self.write_many([update], within=within)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def write_many(
        self, updates: Sequence[Update], *, within: float = ANSWER_SECONDS
    ) -> list[Acknowledgement | LeaseLost | WritesLost]:
        """Write to leased trials, which renews their leases. Sent once: the lease keeper retries.

        Args:
            updates: one for each trial.
            within: seconds without an answer after which the connection counts as broken.

        Returns:
            For each trial the acknowledgement, or why none of it was written.

        Raises:
            Refused: the database refuses a change for its content; nothing is written to any trial.
        """
        rows = self._database.rows(
            "write", **_columns(updates), steps=[update.step for update in updates], within=within, patience=0.0
        )
        return [
            _failure(row["failure"], update)
            or Acknowledgement(cancelled=row["cancelled"], interrupted=row["interrupted"], revision=row["revision"])
            for update, row in _answers(updates, rows)
        ]

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
        """Write the result of one trial, by :meth:`finish_many`.

        Raises:
            LeaseLost: the trial has another claim by now, or the budget no room for a late result.
            WritesLost: a crash of the server has lost writes up to ``revision``.
        """
        update = Update(claim=claim, changes=changes, revision=revision, state=state, values=values)
        (failure,) = self.finish_many([update], within=within)
        if failure:
            raise failure

    def finish_many(
        self, updates: Sequence[Update], *, within: float = ANSWER_SECONDS
    ) -> list[LeaseLost | WritesLost | None]:
        """Write the results of leased trials of one study. Idempotent. See :meth:`write_many`."""
        rows = self._database.rows(
            "finish",
            **_columns(updates),
            states=[update.state for update in updates],
            values=[None if update.values is None else _array(update.values) for update in updates],
            within=within,
            patience=0.0,
        )
        return [_failure(row["failure"], update) for update, row in _answers(updates, rows)]

    def requeue(self, claim: Claim, changes: Changes, *, paused: bool = False) -> None:
        """Requeue a leased trial: RUNNING → WAITING. Does nothing to a trial with another claim.

        Args:
            claim: of the trial.
            changes: to write to it.
            paused: whether only its scheduler may continue it.
        """
        self._database.rows(
            "requeue", trial_id=claim.trial_id, claim=claim.token, changes=json.dumps(changes), paused=paused
        )

    def attach(self, claim: Claim, writer: Writer) -> None:
        """Send all writes to the claimed trial through ``writer`` from now on."""
        self._known.attach(claim.study_id, claim.trial_id, writer)

    def release(self, claim: Claim) -> None:
        """Undo :meth:`attach`: the trial is read from the database again."""
        self._known.release(claim.trial_id)

    def requeue_expired(self, record: StudyRecord) -> None:
        """Requeue the trials of a study whose leases have expired. Claims and heartbeats do this as well."""
        self._database.rows("requeue_expired", study_id=record.study_id)

    def timings(self, record: StudyRecord, count: int) -> list[Timing]:
        """When the last trials ran: all that ended since the ``count``-th last finished one, those that run, and the
        first of the study."""
        rows = self._database.rows("timings", study_id=record.study_id, count=count)
        return [Timing(**{**row, "begin": to_local(row["begin"]), "end": to_local(row["end"])}) for row in rows]

    def attempts(self, record: StudyRecord) -> dict[int, Attempt]:
        """The last attempt of each trial: ``{number: attempt}``."""
        rows = self._database.rows("attempts", study_id=record.study_id)
        return {row.pop("number"): Attempt(**row) for row in rows}

    def save_checkpoint(
        self, claim: Claim, *, sequence: int, name: str, step: int, sha256: bytes, data: bytes | None
    ) -> list[str]:
        """Save a checkpoint of a leased trial. The newest two are kept, in case the last one is damaged.

        Returns:
            The names of older ones, to be deleted from a checkpoint store.

        Raises:
            LeaseLost: the trial has another claim by now, or none.
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


def _columns(updates: Sequence[Update]) -> dict[str, list[Any]]:
    """The common parameters of the statements for several trials, as columns."""
    return {
        "trial_ids": [update.claim.trial_id for update in updates],
        "claims": [update.claim.token for update in updates],
        # By these the database finds that a crash has lost some: reports commit asynchronously.
        "revisions": [update.revision for update in updates],
        "changes": [json.dumps(update.changes) for update in updates],
    }


def _answers(updates: Sequence[Update], rows: Sequence[dict[str, Any]]) -> list[tuple[Update, dict[str, Any]]]:
    """Each update with its row; the server may return the rows in any order."""
    row_of = {row["trial_id"]: row for row in rows}
    return [(update, row_of[update.claim.trial_id]) for update in updates]


def _failure(name: str | None, update: Update) -> LeaseLost | WritesLost | None:
    if name is None:
        return None
    number = update.claim.number
    if name == "forgotten":
        return WritesLost(f"a crash of the server lost writes to trial {number}")
    return LeaseLost(f"trial {number} has another claim by now, or none")


def _array(values: Sequence[float]) -> str:
    """An array of float8 as text: PostgreSQL has no array of arrays of different lengths."""
    return "{" + ",".join(map(repr, map(float, values))) + "}"
