"""Notices: who was told what happened to a study. Statements: ``sql/notices.sql``."""

from __future__ import annotations

from collections.abc import Sequence

from studies.storage.database import Database
from studies.storage.records import Notice, StudyRecord


class Notices:
    """What was told to the addresses of studies, each event once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, record: StudyRecord, address: str) -> dict[str, Notice]:
        """What was told to an address, or is about to be: ``{event: notice}``."""
        rows = self._database.rows("notices", study_id=record.study_id, address=address)
        return {row.pop("event"): Notice(**row) for row in rows}

    def take(self, record: StudyRecord, address: str, events: Sequence[str], taker: str) -> list[str]:
        """Take events for a minute, to tell them; returns those that nobody else is telling or has told."""
        rows = self._database.rows(
            "take_notices", study_id=record.study_id, address=address, events=list(events), taker=taker
        )
        return [row["event"] for row in rows]

    def note_told(self, record: StudyRecord, address: str, events: Sequence[str]) -> None:
        """Events were told, or need not be any more."""
        self._database.rows("note_told", study_id=record.study_id, address=address, events=list(events))
