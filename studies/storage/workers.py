"""Workers: which are alive, and requeueing the trials of dead ones. Statements: ``sql/workers.sql``."""

from __future__ import annotations

from collections.abc import Sequence

from studies.storage.database import ANSWER_SECONDS, Database, new_token
from studies.storage.records import HeldTrial, LostWorker, StudyRecord, Worker


class Workers:
    """The workers of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(
        self, records: Sequence[StudyRecord], *, worker_id: str, host: str, pid: int, device: str, slots: int = 1
    ) -> None:
        """Register a worker that starts, and how many trials it can train at once. Idempotent."""
        self._database.rows(
            "register_worker",
            study_ids=[record.study_id for record in records],
            worker_id=worker_id,
            host=host,
            pid=pid,
            device=device,
            slots=slots,
        )

    def forget(self, worker_id: str, died_of: str | None = None) -> None:
        """Mark a worker as ended: orderly, or with the reason that it ``died_of``."""
        self._database.rows("forget_worker", worker_id=worker_id, died_of=died_of)

    def heartbeat(self, worker_id: str, *, within: float = ANSWER_SECONDS) -> None:
        """Note that a worker is alive, and requeue the expired trials of its studies."""
        # Sent once: the lease keeper sends the next one.
        (row,) = self._database.rows("heartbeat", worker_id=worker_id, within=within, patience=0.0)
        # The server runs short of connections: this worker leaves its own to others between statements.
        if row["is_crowded"]:
            self._database.spare_connections()

    def reap(self, worker_ids: Sequence[str], *, died_of: str | None) -> int:
        """Requeue the running trials of dead workers at once, without waiting for their leases to expire.

        Args:
            worker_ids: the workers.
            died_of: what killed the workers, which counts against their trials; ``None`` for an orderly end.

        Returns:
            How many trials were requeued.
        """
        # Sent again without its token, the statement would find nothing left to requeue, and return 0.
        (row,) = self._database.rows("reap", token=new_token(), worker_ids=list(worker_ids), died_of=died_of)
        return int(row["requeued"])

    def bury_all(self, *, before: float) -> None:
        """Requeue the running trials of all workers that were alive before a time, as if their leases had expired.

        Args:
            before: seconds since 1970.
        """
        self._database.rows("expire_all", before=before)
        self._database.rows("sweep_all")

    def of(self, record: StudyRecord) -> list[Worker]:
        """The workers of a study that were seen in the last two minutes."""
        rows = self._database.rows("workers", study_id=record.study_id)
        return [Worker(**row | {"trials": tuple(HeldTrial(**trial) for trial in row["trials"])}) for row in rows]

    def lost(self, record: StudyRecord) -> list[LostWorker]:
        """The workers that died or vanished within the last hour."""
        return [LostWorker(**row) for row in self._database.rows("lost_workers", study_id=record.study_id)]
