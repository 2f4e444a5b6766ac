"""What MLflow refuses of the studies: reported once, retried with backoff."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Backoff in seconds until a refused study is retried: the first pause, doubled up to the last.
MIN_PAUSE: Final = 30.0
MAX_PAUSE: Final = 600.0


@dataclass(frozen=True)
class _Refusal:
    message: str
    pause: float
    until: float


class Refusals:
    """The studies of which MLflow refuses something.

    Args:
        say: is given each reason, once until the study is there.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._refusals: dict[str, _Refusal] = {}

    def add(self, study: str, message: str) -> None:
        """Note that MLflow refuses a study, or a part of it."""
        now, before = time.monotonic(), self._refusals.get(study)
        pause, until = (before.pause, before.until) if before else (MIN_PAUSE / 2, now)
        if until <= now:
            pause = min(MAX_PAUSE, 2 * pause)
            until = now + pause
        self._refusals[study] = _Refusal(message, pause, until)
        if before is None or before.message != message:
            self._say(message)

    def remove(self, study: str) -> None:
        """Forget the refusal of a study that is complete in MLflow, or was deleted."""
        self._refusals.pop(study, None)

    def retry_at(self, study: str) -> float | None:
        """When to retry a study (monotonic clock); ``None`` if nothing is refused."""
        found = self._refusals.get(study)
        return found.until if found else None

    def summary(self, studies: int) -> str | None:
        """The missing studies, in one line; ``None`` if all are complete."""
        if not self._refusals:
            return None
        if studies == 1:
            return next(iter(self._refusals.values())).message
        count, shown = len(self._refusals), ", ".join(map(repr, list(self._refusals)[:5]))
        more = f" and {count - 5} more" if count > 5 else ""
        return f"{count} of {studies} studies not in MLflow as they are: {shown}{more}; the reasons are above"
