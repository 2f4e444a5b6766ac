"""Who trains a study's final model: one process at a time. Statements: ``sql/finals.sql``."""

from __future__ import annotations

from studies.storage.database import Database
from studies.storage.records import StudyRecord


class Finals:
    """The leases on the final models of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lease(self, record: StudyRecord, token: str, *, holder: str, seconds: float) -> bool:
        """Take the lease, or renew it.

        Args:
            record: the study.
            token: of the process, a UUID.
            holder: the process, in words.
            seconds: after which another process may take it.

        Returns:
            Whether the process has it now.
        """
        return bool(
            self._database.rows(
                "lease_final", study_id=record.study_id, token=token, holder=holder, seconds=float(seconds)
            )
        )

    def holder(self, record: StudyRecord) -> str | None:
        """Who has the lease, or had it last; ``None`` where nobody ever had."""
        rows = self._database.rows("final_holder", study_id=record.study_id)
        return rows[0]["holder"] if rows else None

    def release(self, record: StudyRecord, token: str) -> None:
        """Give the lease back."""
        self._database.rows("release_final", study_id=record.study_id, token=token)
