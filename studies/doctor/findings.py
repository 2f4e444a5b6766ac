"""What the checks tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studies.objective import work_command


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found."""

    level: Literal["ok", "warning", "error"]
    """Of an error, something does not work; of a warning, it may not for long."""
    about: str
    """What was looked at, in a word or two."""
    what: str
    """What is so."""
    fix: str | None = None
    """What to type to mend it, or to see more; several commands have semicolons between them. Always there unless
    the level is ``ok``."""


@dataclass(frozen=True, kw_only=True)
class KnownStudy:
    """A study that studyhall made."""

    name: str
    uid: str
    store: str
    """Where its checkpoints lie."""
    objective: str | None
    """The path of what it runs, as it is stored."""
    ended: str | None
    """Why it begins no more trials; ``None`` where it does."""

    @property
    def work(self) -> str:
        """The command that runs it."""
        return work_command(self.name, self.objective, self.store)
