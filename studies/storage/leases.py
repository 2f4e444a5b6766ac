"""Leases: a worker claims a trial, writes to it, and finishes it or gives it back. Statements: ``sql/leases.sql``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from studies.errors import LeaseLost
from studies.storage.database import ANSWER_SECONDS, Database, Forgotten, new_token
from studies.storage.known_trials import KnownTrials, Writer
from studies.storage.records import Acknowledgement, Attempt, Changes, Claim, SavedCheckpoint, StudyRecord, Update


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
        """One trial, as :meth:`claim_many` gives several."""
        claims = self.claim_many(record, worker_id, lease_seconds, count=1, most=most)
        return claims if isinstance(claims, str) else claims[0]

    def claim_many(
        self, record: StudyRecord, worker_id: str, lease_seconds: float, *, count: int, most: int | None = None
    ) -> list[Claim] | str:
        """The next trials for a worker: those that wait, else new ones as far as the budget has room.

        Args:
            record: the study.
            worker_id: the worker's.
            lease_seconds: how long the trials stay this worker's after a heartbeat.
            count: at most so many.
            most: begin a new trial only where the study has fewer than so many, in whatever state.

        Returns:
            At least one trial, by number; or why there is none: ``wait`` while others run the last ones, ``paused``,
            ``exhausted`` where only ``most`` forbids a new one, or the reason why the study is over.
        """
        tokens = [new_token() for _ in range(count)]
        rows = self._known.ask(
            "claim", record.study_id, worker_id=worker_id, lease_seconds=lease_seconds, claims=tokens, most=most
        )
        if rows[0]["reason"]:
            return str(rows[0]["reason"])
        return sorted(
            (
                Claim(
                    study_id=record.study_id,
                    trial_id=row["trial_id"],
                    number=row["number"],
                    epoch=row["epoch"],
                    token=row["token"],
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
        """One trial's, as :meth:`write_many` takes several.

        Raises:
            LeaseLost: it is no longer held under this claim.
            Forgotten: a crash of the server has lost what was written up to ``revision``.
        """
        update = Update(claim=claim, changes=changes, step=step, revision=revision)
        (answer,) = self.write_many([update], within=within)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def write_many(
        self, updates: Sequence[Update], *, within: float = ANSWER_SECONDS
    ) -> list[Acknowledgement | LeaseLost | Forgotten]:
        """Write to trials that are held, which keeps their leases. Tried once: who holds a lease tries again.

        Args:
            updates: one for each trial.
            within: seconds of silence after which the server counts as gone.

        Returns:
            For each what a person wants of it, or why nothing of it was written.

        Raises:
            Refused: the database does not take one of them, for what it is; nothing is written of any.
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
        """One trial's, as :meth:`finish_many` takes several.

        Raises:
            LeaseLost: it is no longer held under this claim, and the result not needed any more.
            Forgotten: a crash of the server has lost what was written up to ``revision``.
        """
        update = Update(claim=claim, changes=changes, revision=revision, state=state, values=values)
        (failure,) = self.finish_many([update], within=within)
        if failure:
            raise failure

    def finish_many(
        self, updates: Sequence[Update], *, within: float = ANSWER_SECONDS
    ) -> list[LeaseLost | Forgotten | None]:
        """Write the results of trials of one study that are held; again does nothing. See :meth:`write_many`."""
        rows = self._database.rows(
            "finish",
            **_columns(updates),
            states=[update.state for update in updates],
            values=[None if update.values is None else _array(update.values) for update in updates],
            within=within,
            patience=0.0,
        )
        return [_failure(row["failure"], update) for update, row in _answers(updates, rows)]

    def requeue(self, claim: Claim, changes: Changes) -> None:
        """Return a trial that is held to those that wait; one that no longer is stays as it is."""
        self._database.rows("requeue", trial_id=claim.trial_id, claim=claim.token, changes=json.dumps(changes))

    def attach(self, claim: Claim, writer: Writer) -> None:
        """From now on ``writer`` writes to the trial of ``claim``, which was read when it was claimed."""
        self._known.attach(claim.study_id, claim.trial_id, writer)

    def release(self, claim: Claim) -> None:
        """This process holds the trial of ``claim`` no longer."""
        self._known.release(claim.trial_id)

    def requeue_expired(self, record: StudyRecord) -> None:
        """Requeue the trials of a study whose workers have been silent for longer than their leases."""
        self._database.rows("requeue_expired", study_id=record.study_id)

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


def _columns(updates: Sequence[Update]) -> dict[str, list[Any]]:
    """What the statements for several trials take of each."""
    return {
        "trial_ids": [update.claim.trial_id for update in updates],
        "claims": [update.claim.token for update in updates],
        "revisions": [update.revision for update in updates],
        "changes": [json.dumps(update.changes) for update in updates],
    }


def _answers(updates: Sequence[Update], rows: Sequence[dict[str, Any]]) -> list[tuple[Update, dict[str, Any]]]:
    """Each update with its row."""
    row_of = {row["trial_id"]: row for row in rows}
    return [(update, row_of[update.claim.trial_id]) for update in updates]


def _failure(name: str | None, update: Update) -> LeaseLost | Forgotten | None:
    if name is None:
        return None
    number = update.claim.number
    if name == "forgotten":
        return Forgotten(f"trial {number} has lost what was written to it")
    return LeaseLost(f"trial {number} is not held under this claim")


def _array(values: Sequence[float]) -> str:
    """As PostgreSQL reads an array of float8."""
    return "{" + ",".join(map(repr, map(float, values))) + "}"
