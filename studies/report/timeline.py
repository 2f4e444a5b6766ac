"""The timeline of the workers as data: a row for each worker, a bar for each trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from optuna.trial import TrialState

if TYPE_CHECKING:
    from studies.report.data import StudyData
    from studies.storage.records import Attempt


#: The most time slices of a large study in all rows together; and the least of a row, which wins.
MOST_SLICES: Final = 480
_LEAST_OF_A_ROW: Final = 24


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A trial. One with several attempts is in the row of its last worker, from its first start on."""

    number: int
    begin: datetime
    end: datetime
    state: TrialState
    times: int
    """The number of attempts."""
    trials: int
    """How many trials the bar represents; ``number`` is the first one's."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A worker, or several that ran one after the other on the same device."""

    label: str
    bars: Sequence[Bar]


def rows(data: StudyData) -> list[Row]:
    """The rows, sorted by host and device."""
    workers: dict[tuple[str, str], list[Bar]] = {}
    for trial in data.outlines:
        if span := data.span(trial):
            attempt = data.attempts.get(trial.number)
            bar = Bar(
                number=trial.number,
                begin=span[0],
                end=span[1],
                state=trial.state,
                times=attempt.times if attempt else 1,
                trials=1,
            )
            workers.setdefault((_place(attempt), attempt.worker if attempt else ""), []).append(bar)
    places: dict[str, list[list[Bar]]] = {}
    # By their begin, so that a restarted worker meets the lane of its predecessor, and no other one.
    for (place, _), bars in sorted(workers.items(), key=lambda item: min(bar.begin for bar in item[1])):
        _put(places.setdefault(place, []), bars)
    found = [
        Row(label=place if number == 1 else f"{place} ({number})", bars=lane)
        for place, lanes in sorted(places.items())
        for number, lane in enumerate(lanes, 1)
    ]
    # Of a large study a bar is narrower than a pixel, and the page would hold one for each trial.
    return _sliced(found) if data.subset else found


def _sliced(found: list[Row]) -> list[Row]:
    """The rows in time slices, for more bars than are visible: in each slice a state is as wide as its share of it."""
    begin = min(bar.begin for row in found for bar in row.bars)
    end = max(bar.end for row in found for bar in row.bars)
    width = (end - begin) / max(_LEAST_OF_A_ROW, MOST_SLICES // len(found)) or timedelta.resolution
    return [Row(label=row.label, bars=_in_slices(row.bars, begin, width)) for row in found]


def _in_slices(bars: Sequence[Bar], begin: datetime, width: timedelta) -> list[Bar]:
    taken: dict[int, dict[TrialState, timedelta]] = {}
    numbers: dict[tuple[int, TrialState], list[int]] = {}
    for bar in bars:
        for place in range((bar.begin - begin) // width, (bar.end - begin) // width + 1):
            start = begin + place * width
            states = taken.setdefault(place, {})
            states[bar.state] = states.get(bar.state, timedelta()) + min(bar.end, start + width) - max(bar.begin, start)
            numbers.setdefault((place, bar.state), []).append(bar.number)
    made: list[Bar] = []
    for place, states in taken.items():
        at = begin + place * width
        for state, length in sorted(states.items()):
            of = numbers[place, state]
            made.append(Bar(number=min(of), trials=len(of), begin=at, end=at + length, state=state, times=1))
            at += length
    return made


def _place(attempt: Attempt | None) -> str:
    if attempt is None:
        return "Optuna"  # stock Optuna records no host
    return f"{attempt.host} {attempt.device}" if attempt.host else attempt.worker


def _put(lanes: list[list[Bar]], bars: list[Bar]) -> None:
    """Put a worker into the first free lane, where a restarted worker follows its predecessor."""
    begin = min(bar.begin for bar in bars)
    for lane in lanes:
        if max(bar.end for bar in lane) <= begin:
            lane.extend(bars)
            return
    lanes.append(list(bars))
