"""Notices: which notifications were sent to which address. Statements: ``sql/notices.sql``."""

from __future__ import annotations

from collections.abc import Sequence

from studies.storage.database import Database
from studies.storage.records import Notice, StudyRecord


class Notices:
    """The notifications of all studies: each event is sent once to each address."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, record: StudyRecord, address: str) -> dict[str, Notice]:
        """The notifications to an address, sent or about to be: ``{event: notice}``."""
        rows = self._database.rows("notices", study_id=record.study_id, address=address)
        return {row.pop("event"): Notice(**row) for row in rows}

    def take(self, record: StudyRecord, address: str, events: Sequence[str], taker: str) -> list[str]:
        """Lease events for a minute, to send them; returns those that no other process sends or has sent."""
        rows = self._database.rows(
            "take_notices", study_id=record.study_id, address=address, events=list(events), taker=taker
        )
        return [row["event"] for row in rows]

    def mark_sent(self, record: StudyRecord, address: str, events: Sequence[str]) -> None:
        """Mark events as sent, or as obsolete."""
        self._database.rows("mark_sent", study_id=record.study_id, address=address, events=list(events))
