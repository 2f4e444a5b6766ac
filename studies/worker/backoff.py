"""How long a worker waits after a claim that gave no trial."""

from __future__ import annotations

from typing import Final

#: Seconds until the next claim: at first, and at most.
SHORTEST: Final = 0.25
LONGEST: Final = 2.0


class Backoff:
    """A wait that grows by half with each claim in vain, and begins anew with a trial."""

    def __init__(self) -> None:
        self._seconds = SHORTEST

    def next(self) -> float:
        """The seconds to wait this time."""
        seconds, self._seconds = self._seconds, min(LONGEST, self._seconds * 1.5)
        return seconds

    def reset(self) -> None:
        """A claim gave a trial."""
        self._seconds = SHORTEST
