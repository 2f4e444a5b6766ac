"""Workers: who is at work, and the trials of those that ended. Statements: ``sql/workers.sql``."""

from __future__ import annotations

from collections.abc import Sequence

from studies.storage.database import ANSWER_SECONDS, Database, new_token
from studies.storage.records import LostWorker, StudyRecord, Worker


class Workers:
    """The workers of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, records: Sequence[StudyRecord], *, worker_id: str, host: str, pid: int, device: str) -> None:
        """A worker begins."""
        self._database.rows(
            "register_worker",
            study_ids=[record.study_id for record in records],
            worker_id=worker_id,
            host=host,
            pid=pid,
            device=device,
        )

    def forget(self, worker_id: str, died_of: str | None = None) -> None:
        """A worker has ended, in order unless it ``died_of`` something."""
        self._database.rows("forget_worker", worker_id=worker_id, died_of=died_of)

    def heartbeat(self, worker_id: str, *, within: float = ANSWER_SECONDS) -> None:
        """A worker is alive; the trials of its studies whose workers are not are given back."""
        (row,) = self._database.rows("heartbeat", worker_id=worker_id, within=within, patience=0.0)
        if row["is_crowded"]:
            self._database.spare_connections()

    def reap(self, worker_ids: Sequence[str], *, died_of: str | None) -> int:
        """Return the running trials of workers that have ended to those that wait.

        Args:
            worker_ids: the workers.
            died_of: why they died on them, which counts against a trial; ``None`` where they did not.

        Returns:
            How many trials there were.
        """
        (row,) = self._database.rows("reap", token=new_token(), worker_ids=list(worker_ids), died_of=died_of)
        return int(row["requeued"])

    def of(self, record: StudyRecord) -> list[Worker]:
        """The workers of a study that were seen in the last two minutes."""
        return [Worker(**row) for row in self._database.rows("workers", study_id=record.study_id)]

    def lost(self, record: StudyRecord) -> list[LostWorker]:
        """The workers that died or vanished within the last hour."""
        return [LostWorker(**row) for row in self._database.rows("lost_workers", study_id=record.study_id)]
