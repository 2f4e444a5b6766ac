"""The subset of a large study that is drawn and listed, and the sentences that say which.

A browser draws a few thousand points and lines, and Optuna's plots take time and memory for each. A study of more than
``MOST_TRIALS`` trials is therefore shown in part:

- always: each trial that was the best when it ended, the extremes of each objective, the best trials, the newest;
- of the others an even sample of each state.

Numbers in text (counts, times, failures) are always of all trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.report.formats import count
from studies.text import counted
from studies.trial import is_feasible

if TYPE_CHECKING:
    from studies.report.data import StudyData

T = TypeVar("T")

#: The most trials of a study that is shown whole.
MOST_TRIALS: Final = 5000
#: The size of the sample of each state, taken evenly by number.
SAMPLE: Final[Mapping[TrialState, int]] = {
    TrialState.COMPLETE: 2000,
    TrialState.PRUNED: 1000,
    TrialState.FAIL: 300,
    TrialState.RUNNING: 300,
    TrialState.WAITING: 100,
}
#: How many of the best and of the newest trials are listed beside the sample.
BEST: Final = 300
NEWEST: Final = 300
#: The most trials that were the best when they ended; the current front is always complete.
RECORDS: Final = 500
#: The most trials in a plot with a line or a bar for each.
LINES: Final = 1000

#: Plots with a mark for each trial of any state.
_OF_ALL: Final = ("curves", "intermediate", "timeline")
#: Plots of reports.
_OF_STEPS: Final = ("curves", "intermediate")
#: Plots with a line per trial, which take longer than points.
_OF_LINES: Final = ("parallel", "rank")


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The numbers of the trials that are shown of a large study."""

    shown: frozenset[int]
    """In any plot or table."""
    sample: frozenset[int]
    """The even sample. Estimates use it alone: the best trials would bias them."""
    reported: frozenset[int]
    """An even sample of the trials with reports."""
    always: frozenset[int]
    """In every plot of values: the records and the extremes."""


def choose(outlines: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> Subset | None:
    """The subset to show; ``None`` for a study that is shown whole."""
    if len(outlines) <= MOST_TRIALS:
        return None
    sample = {
        trial.number
        for state, most in SAMPLE.items()
        for trial in evenly([trial for trial in outlines if trial.state == state], most)
    }
    valued = [trial for trial in outlines if is_placed(trial)]
    # In every plot: without these a history would show a worse best value than the text beside it.
    always = {trial.number for trial in (*_records(valued, directions), *_extremes(valued))}
    reported = {trial.number for trial in evenly([trial for trial in outlines if trial.intermediate_values], LINES)}
    listed = {trial.number for trial in (*outlines[-NEWEST:], *_best(valued, directions[0]))}
    return Subset(
        shown=frozenset(sample | reported | always | listed),
        sample=frozenset(sample),
        reported=frozenset(reported),
        always=frozenset(always),
    )


def is_placed(trial: FrozenTrial) -> bool:
    """Whether a trial has a place on an axis: it is COMPLETE, with finite values."""
    return trial.state == TrialState.COMPLETE and bool(trial.values) and all(map(math.isfinite, trial.values))


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """At most ``most`` items at even distances, including the first and the last."""
    if len(items) <= most:
        return items
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def of_kind(data: StudyData, kind: str) -> Sequence[FrozenTrial]:
    """The trials that the plot ``kind`` shows."""
    if data.subset is None:
        return data.trials
    # Quantiles of all values: a sample with the best ones added would bend the distribution.
    if kind == "edf":
        placed = sorted(filter(is_placed, data.outlines), key=lambda trial: trial.values[data.target])
        return evenly(placed, SAMPLE[TrialState.COMPLETE])
    chosen = data.trials
    if kind in _OF_STEPS:
        numbers = data.subset.reported
        chosen = [trial for trial in data.trials if trial.intermediate_values]
    else:
        numbers = data.subset.sample
        chosen = data.valued if kind in _OF_LINES else chosen
        if kind in (*_OF_LINES, "timeline"):
            numbers = frozenset(evenly([trial.number for trial in chosen if trial.number in numbers], LINES))
    # Importances are estimates: the best trials beside an even sample would bias them.
    if kind != "importances":
        numbers |= data.subset.always
    return [trial for trial in chosen if trial.number in numbers]


def remark(data: StudyData, kind: str) -> str:
    """The sentence that says how many trials a plot shows, and which of a large study."""
    if kind == "workers":
        slices = ", in time slices, in which each state is as wide as its share of the time"
        return f"Of {counted(len(data.outlines), 'trial')}{slices if data.subset else ''}."
    noun, counts = "complete trial", is_placed
    if kind in _OF_STEPS:
        noun, counts = "reporting trial", _has_reported
    elif kind in _OF_ALL:
        noun, counts = "started trial", _has_begun
    shown, total = (sum(map(counts, trials)) for trials in (of_kind(data, kind), data.outlines))
    if shown == total:
        return f"{'Estimated on' if kind == 'importances' else 'Of'} {counted(total, noun)}."
    if kind == "edf":
        return f"Drawn from {count(shown)} quantiles of the values of {counted(total, noun)}."
    if kind == "importances":
        return f"Estimated on {count(shown)} of {counted(total, noun)}, an even sample."
    return (
        f"{count(shown)} of {counted(total, noun)} are shown: each one that was the best so far, "
        "the extremes, and a sample of the others."
    )


def _has_reported(trial: FrozenTrial) -> bool:
    return bool(trial.intermediate_values)


def _has_begun(trial: FrozenTrial) -> bool:
    return trial.datetime_start is not None and trial.state != TrialState.WAITING


def _best(valued: Sequence[FrozenTrial], direction: StudyDirection) -> Sequence[FrozenTrial]:
    sign = 1 if direction == StudyDirection.MINIMIZE else -1
    return sorted(filter(is_feasible, valued), key=lambda trial: (sign * trial.values[0], trial.number))[:BEST]


def _extremes(valued: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials with the lowest and the highest value of each objective."""
    if not valued:
        return []
    objectives = range(len(valued[0].values))
    return [pick(valued, key=lambda trial: trial.values[i]) for i in objectives for pick in (min, max)]


def _records(valued: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> Sequence[FrozenTrial]:
    """The feasible trials that no earlier trial dominated: the line of the best value so far, and the Pareto front.

    Of very many, the current front and a part of the others.
    """
    signs = np.array([1.0 if direction == StudyDirection.MINIMIZE else -1.0 for direction in directions])
    front, values = np.empty(0, dtype=int), np.empty((0, len(signs)))
    found: list[FrozenTrial] = []
    for trial in filter(is_feasible, valued):
        value = signs * trial.values
        # One comparison with the whole front, as an array: with several objectives it may hold thousands.
        if not (values <= value).all(axis=1).any():
            stays = ~(value <= values).all(axis=1)
            front, values = np.append(front[stays], len(found)), np.vstack([values[stays], value])
            found.append(trial)
    return [*evenly(found, RECORDS), *(found[i] for i in front)]
