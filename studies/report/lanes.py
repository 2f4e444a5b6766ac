"""The timeline of the workers, made ready to draw: a row for each, with a bar for each trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from optuna.trial import TrialState

if TYPE_CHECKING:
    from studies.report.data import StudyData
    from studies.storage.postgres import Attempt


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A trial. One that was begun more than once stands with its last worker, from its first begin."""

    number: int
    begin: datetime
    end: datetime
    state: TrialState
    times: int
    """How often it was begun."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A worker, or several that came after one another on the same device."""

    label: str
    bars: Sequence[Bar]


def rows(data: StudyData) -> list[Row]:
    """The workers by host and device."""
    workers: dict[tuple[str, str], list[Bar]] = {}
    for trial in data.trials:
        if span := data.span(trial):
            attempt = data.attempts.get(trial.number)
            bar = Bar(
                number=trial.number,
                begin=span[0],
                end=span[1],
                state=trial.state,
                times=attempt.times if attempt else 1,
            )
            workers.setdefault((_place(attempt), attempt.worker if attempt else ""), []).append(bar)
    places: dict[str, list[list[Bar]]] = {}
    for (place, _), bars in sorted(workers.items(), key=lambda item: min(bar.begin for bar in item[1])):
        _put(places.setdefault(place, []), bars)
    return [
        Row(label=place if number == 1 else f"{place} ({number})", bars=lane)
        for place, lanes in sorted(places.items())
        for number, lane in enumerate(lanes, 1)
    ]


def _place(attempt: Attempt | None) -> str:
    if attempt is None:
        return "Optuna"  # which does not say where
    return f"{attempt.host} {attempt.device}" if attempt.host else attempt.worker


def _put(lanes: list[list[Bar]], bars: list[Bar]) -> None:
    """Put a worker into the first lane that is free when it begins: a restarted one goes on where it was."""
    begin = min(bar.begin for bar in bars)
    for lane in lanes:
        if max(bar.end for bar in lane) <= begin:
            lane.extend(bars)
            return
    lanes.append(list(bars))
