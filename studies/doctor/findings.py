"""What the checks tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studies.errors import ObjectiveError, command
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
    objective: str
    """The path of what it runs."""
    store: str
    """Where its checkpoints lie."""
    ended: str | None
    """Why it begins no more trials; ``None`` where it does."""

    @property
    def work(self) -> str:
        """The command that runs it."""
        try:
            return work_command(self.name, self.objective, self.store)
        except ObjectiveError:  # not what a person typed: `work` will say what is wrong with it
            return command("work", self.name)
