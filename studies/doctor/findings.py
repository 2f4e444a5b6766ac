"""The results of checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from studies.objective import work_command


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    level: Literal["ok", "warning", "error"]
    """``error``: something does not work; ``warning``: it may stop working."""
    about: str
    """The subject of the check, in a word or two."""
    what: str
    """The result, in words."""
    fix: str | None = None
    """The command that fixes the problem or shows more; several are separated by semicolons. ``None`` only with the
    level ``ok``."""


@dataclass(frozen=True, kw_only=True)
class KnownStudy:
    """A study with a spec."""

    name: str
    uid: str
    store: str
    """The checkpoint store."""
    objective: str | None
    """The stored path of the objective."""
    ended: str | None
    """The stop reason; ``None`` while trials may start."""

    @property
    def work(self) -> str:
        """The command that runs workers of the study."""
        return work_command(self.name, self.objective, self.store)
