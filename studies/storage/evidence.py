"""Evidence: trials of other studies, for the sampler alone. Statements: ``sql/evidence.sql``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.storage.database import Database
from studies.storage.records import StudyRecord
from studies.text import counted


@dataclass(frozen=True, kw_only=True)
class ForeignTrial:
    """A trial of another study, as far as the spaces overlap."""

    source: str
    """The other study's name."""
    number: int
    """In the other study."""
    params: Mapping[str, Any]
    """Those that the space has, with legal values."""
    values: Sequence[float]
    """Of a COMPLETE trial; of another one its last report."""
    constraints: Mapping[str, float]
    """As Optuna has them: at most 0 where the trial keeps one."""
    step: int | None = None
    """The step of that last report; ``None`` for a COMPLETE trial."""


class Evidence:
    """The evidence of all studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: StudyRecord, trials: Sequence[ForeignTrial]) -> None:
        """Store trials; those that the study has already stay as they are."""
        for source in dict.fromkeys(trial.source for trial in trials):
            own = [trial for trial in trials if trial.source == source]
            self._database.rows(
                "add_evidence",
                study_id=record.study_id,
                source=source,
                numbers=[trial.number for trial in own],
                # JSON of Python's kind: a choice or a value may be infinite.
                contents=[json.dumps(_contents(trial)) for trial in own],
            )

    def of(self, record: StudyRecord) -> list[ForeignTrial]:
        """The evidence of a study, by source and number."""
        rows = self._database.rows("evidence", study_id=record.study_id)
        return [ForeignTrial(source=row["source"], number=row["number"], **json.loads(row["contents"])) for row in rows]

    def counts(self, record: StudyRecord) -> dict[str, int]:
        """How many trials of each other study there are."""
        rows = self._database.rows("evidence_counts", study_id=record.study_id)
        return {row["source"]: row["trials"] for row in rows}

    def in_words(self, record: StudyRecord) -> str | None:
        """:meth:`counts` in one line; ``None`` without any."""
        shown = [f"{counted(trials, 'trial')} of {source}" for source, trials in self.counts(record).items()]
        if not shown:
            return None
        return f"warm start: the sampler learns from {', '.join(shown)}, which count toward no budget"


def _contents(trial: ForeignTrial) -> dict[str, Any]:
    contents = {"params": trial.params, "values": list(trial.values), "constraints": trial.constraints}
    return contents if trial.step is None else {**contents, "step": trial.step}
