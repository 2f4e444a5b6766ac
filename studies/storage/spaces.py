"""Changes of a study's space. Statements: ``sql/spaces.sql``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from studies.spec.study import StudySpec
from studies.storage.database import Database
from studies.storage.records import StudyRecord


@dataclass(frozen=True, kw_only=True)
class SpaceChange:
    """One change."""

    version: int
    """Counts the changes of a study, from 1."""
    at: datetime
    who: str
    """USER@HOST, as the client said."""
    change: str
    """What it was and became: ``lr.high: 0.1 → 0.3``."""

    def __str__(self) -> str:
        return f"{self.at.astimezone():%Y-%m-%d %H:%M:%S} by {self.who}: {self.change}"


class Spaces:
    """The spaces of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def text(self, record: StudyRecord) -> str:
        """The spec as it is stored."""
        return str(self._database.rows("spec_text", study_id=record.study_id)[0]["text"])

    def change(self, record: StudyRecord, before: str, spec: StudySpec, *, who: str, change: str) -> bool:
        """Store a spec with another space, and note the change.

        Args:
            record: the study.
            before: what :meth:`text` returned.
            spec: with the new space.
            who: changes it.
            change: what it was and becomes.

        Returns:
            Whether the spec is stored: false if somebody else changed it meanwhile.
        """
        rows = self._database.rows(
            "change_space",
            study_id=record.study_id,
            before=before,
            spec=spec.to_json(),
            sha256=spec.sha256,
            who=who,
            change=change,
        )
        # After a lost answer the statement is sent again, and finds its own change.
        return bool(rows) or self.text(record) == spec.to_json()

    def changes(self, record: StudyRecord) -> list[SpaceChange]:
        """What was changed, the oldest first."""
        return [SpaceChange(**row) for row in self._database.rows("space_changes", study_id=record.study_id)]
