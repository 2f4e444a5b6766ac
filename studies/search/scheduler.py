"""What a study trains next: the seam between the schedulers, the workers and the search benchmark.

A scheduler never stops a trial for good. It says until which step a trial trains; there the trial is paused with its
checkpoint, and a later choice lets it continue on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from optuna.distributions import BaseDistribution

State = Literal["running", "paused", "complete", "pruned", "fail"]


@dataclass(frozen=True)
class Progress:
    """How far a trial has come."""

    number: int
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    values: Mapping[int, float]
    """The reported values by their steps, in ascending order."""
    state: State


@dataclass(frozen=True)
class Choice:
    """What to train next."""

    number: int | None
    """The trial; ``None`` for a new one, whose parameters the study's sampler suggests."""
    until: int
    """The step at which it is paused, unless it is complete by then."""


#: The ``until`` of a trial that is not paused.
TO_THE_END: Final = 2**31 - 1


class Scheduler(Protocol):
    """Decides which trials continue."""

    def choose(self, trials: Sequence[Progress], count: int, changed: Sequence[int] | None = None) -> list[Choice]:
        """What ``count`` free slots train next, the most urgent first.

        Args:
            trials: all those of the study, by number.
            count: at least 1.
            changed: the places in ``trials`` that may differ from the last call, ascending; ``None`` if unknown.

        Returns:
            ``count`` choices of different trials, and perhaps more: those take the slots of new trials for which the
            budget has no room. Fewer where slots are to wait for what other trials report.
        """

    def until(self, step: int) -> int:
        """The step at which a trial is paused that goes on from ``step``, 0 for a new one."""
