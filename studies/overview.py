"""The figures of the live view and the report: pace, time left, pruning, failures, workers."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from optuna.trial import FrozenTrial, TrialState

from studies.spec.sections import BudgetSpec
from studies.stop_reasons import CANCELLED
from studies.storage.records import Attempt, Status, Timing
from studies.text import in_one_line

#: The pace is that of the last trials: this many, and at least four for each running one.
PACE_TRIALS: Final = 50
#: No pace of epochs before so many.
PACE_EPOCHS: Final = 10
#: Longer breaks between two trials don't count as time spent: no worker was running.
BREAK: Final = timedelta(seconds=10)

_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_BLOCKS: Final = "▁▂▃▄▅▆▇█"

Span = tuple[datetime, datetime]


@dataclass(frozen=True, kw_only=True)
class Running:
    """A running trial."""

    number: int
    step: int | None
    """The last reported step; likewise its value."""
    value: float | None
    curve: Sequence[float]
    """All reported values, by step."""
    params: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The work of one worker."""

    done: int
    """COMPLETE and PRUNED trials."""
    per_hour: float | None
    """By its last trials; ``None`` until one has finished."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """FAILed trials with the same kind of error."""

    count: int
    reason: str
    """Of the newest of them."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The effect of the pruner."""

    at_step: Mapping[int | None, int]
    """How many trials were pruned at each step; ``None``: before the first."""
    saved: int | None
    """Steps that pruned trials did not run, estimated by complete ones; ``None`` without a complete one."""
    share: float | None
    """The fraction of all steps that would have run."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A study at one moment, with the figures computed from its trials."""

    status: Status
    seconds_left: float | None
    """Seconds until the budget is spent, by the pace so far; ``None`` without a budget or a pace."""
    running: Sequence[Running]
    throughput: Mapping[str, Throughput]
    """By the worker's id."""
    failures: Sequence[Failures]
    """The most frequent first; without cancelled trials."""
    cancelled: int
    pruning: Pruning
    front: Sequence[FrozenTrial] = ()
    """The Pareto front of several objectives, by number."""

    @property
    def is_over(self) -> bool:
        """Whether the study has ended."""
        return is_over(self.status)


def is_over(status: Status) -> bool:
    """Whether a study and its last trials have ended. Running trials without a worker never finish: ignored."""
    return status.ended is not None and not (status.trials["running"] and status.workers)


def overview(
    status: Status,
    trials: Sequence[FrozenTrial],
    attempts: Mapping[int, Attempt],
    *,
    now: datetime,
    epochs_per_second: float | None = None,
    front: Sequence[FrozenTrial] = (),
) -> Overview:
    """Compute the figures.

    Args:
        status: of the study.
        trials: all of it, by number.
        attempts: who ran each trial last, by number.
        now: local time without a zone, as Optuna's trials have it.
        epochs_per_second: by :class:`EpochPace`; ``None`` if that is unknown.
        front: the Pareto front of several objectives.
    """
    cancelled, failures = _failures(trials)
    done = _by_worker(trials, attempts)
    return Overview(
        status=status,
        seconds_left=seconds_left(status, _timings(trials, attempts), now, epochs_per_second),
        running=[_running(trial) for trial in trials if trial.state == TrialState.RUNNING],
        throughput={worker.id: _throughput(done.get(worker.id, []), attempts) for worker in status.workers},
        failures=failures,
        cancelled=cancelled,
        pruning=_pruning(trials),
        front=front,
    )


class EpochPace:
    """How fast a study reports epochs while somebody looks: nothing that ran before counts, and no night.

    Args:
        clock: seconds from any moment on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: tuple[float, int] | None = None

    def per_second(self, status: Status) -> float | None:
        """Epochs a second since the first call at which trials ran; ``None`` before a few were reported."""
        now = self._clock()
        if self._since is None or not status.trials["running"]:
            self._since = now, status.epochs
        began, epochs = self._since
        return (status.epochs - epochs) / (now - began) if status.epochs - epochs >= PACE_EPOCHS else None


def seconds_left(
    status: Status, timings: Sequence[Timing], now: datetime, epochs_per_second: float | None = None
) -> float | None:
    """Seconds left, from the pace of the last trials and of epochs; at most until the timeout. The answer of `run` and
    of `watch`.

    Args:
        status: of the study.
        timings: of all trials, or at least of the last :func:`pace_trials`, as ``storage.leases.timings`` reads them.
        now: local time without a zone, as Optuna's trials have it.
        epochs_per_second: by :class:`EpochPace`; ``None`` if that is unknown.
    """
    if status.budget is None or status.paused or status.ended or not (status.trials["running"] or status.workers):
        return None
    until = [_until_trials(status, status.budget, timings, now)]
    if status.budget.epochs is not None and epochs_per_second:
        until.append((status.budget.epochs - status.epochs) / epochs_per_second)
    known = [left for left in until if left is not None]
    if not known:
        return None
    if status.budget.timeout is not None:
        began = min((timing.begin for timing in timings), default=now)
        known.append(status.budget.timeout - (now - began).total_seconds())
    left = min(known)
    return left if left > 0 else None  # overdue: no estimate


def _until_trials(status: Status, budget: BudgetSpec, timings: Sequence[Timing], now: datetime) -> float | None:
    """Seconds until the budget of trials is spent."""
    # Trials of a scheduler finish at the study's end, most of them.
    if budget.trial_limit is None or status.trials.get("paused"):
        return None
    running = status.trials["running"]
    remaining = budget.trial_limit - status.finished
    finished = sorted(timing.end for timing in timings if timing.is_finished and timing.end)
    # No estimate before each worker has finished a trial: until then only the shortest have, which biases it.
    if remaining <= 0 or len(finished) < max(2, running):
        return None
    count, last = pace_trials(status), finished[-1]
    spans = _spans(timings, last)
    # Of many trials, the time since the first of the last ones; of few, since the start of the study.
    if len(finished) > count:
        since = finished[-count - 1]
    else:
        count, since = len(finished), min((begin for begin, _ in spans), default=last)
    pace = _busy((max(begin, since), end) for begin, end in spans if end > since) / count
    if not pace:
        return None
    # Subtract the time already spent on running trials. Clocks may differ: never more than those trials take.
    spent = min(max(0.0, (now - last).total_seconds()), pace * running)
    return remaining * pace - spent


def pace_trials(status: Status) -> int:
    """By how many of the last trials the pace of a study is measured."""
    return max(PACE_TRIALS, 4 * status.trials["running"])


def sparkline(values: Sequence[float], width: int) -> str:
    """``values`` as at most ``width`` blocks, from the lowest to the highest; a space where one is not finite."""
    return chart(values, width, 1)[0]


def chart(values: Sequence[float], width: int, height: int) -> list[str]:
    """``values`` as columns of blocks: ``height`` lines of at most ``width`` characters, the top one first."""
    if len(values) > width:
        # The last one of each column: the newest is always shown.
        values = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    most = len(_BLOCKS) * height

    def eighths(value: float) -> int:
        if not math.isfinite(value):
            return 0
        # Halved, so that no difference of two floats overflows.
        part = (value / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.5
        return 1 + min(most - 1, int(part * most))

    levels = list(map(eighths, values))
    below = range(most - len(_BLOCKS), -1, -len(_BLOCKS))
    return ["".join((" " + _BLOCKS)[min(len(_BLOCKS), max(0, level - line))] for level in levels) for line in below]


def share_rows(rows: int, wanted: Sequence[int]) -> list[int]:
    """Share ``rows`` among tables by their wishes: whatever one does not need, the others get."""
    given = [0] * len(wanted)
    open_, left = [i for i, want in enumerate(wanted) if want], max(0, rows)
    while open_ and left >= len(open_):
        for i in open_:
            given[i] += 1
        left -= len(open_)
        open_ = [i for i in open_ if given[i] < wanted[i]]
    for i in open_[:left]:
        given[i] += 1
    return given


def _timings(trials: Iterable[FrozenTrial], attempts: Mapping[int, Attempt]) -> list[Timing]:
    return [
        Timing(
            begin=trial.datetime_start,
            end=trial.datetime_complete,
            is_finished=trial.state in _FINISHED,
            times=_times(trial, attempts),
        )
        for trial in trials
        if trial.datetime_start and trial.state != TrialState.WAITING
    ]


def _spans(timings: Iterable[Timing], end: datetime) -> list[Span]:
    """When the trials ran, up to ``end``; without those of several attempts, which waited in between."""
    return [
        (timing.begin, min(end, timing.end or end)) for timing in timings if timing.begin < end and timing.times == 1
    ]


def _times(trial: FrozenTrial, attempts: Mapping[int, Attempt]) -> int:
    attempt = attempts.get(trial.number)
    return attempt.times if attempt else 1  # a stock Optuna worker's


def _busy(spans: Iterable[Span]) -> float:
    """Seconds covered by at least one of ``spans``, including short breaks."""
    total, until = timedelta(), None
    for begin, end in sorted(spans):
        if until is None or begin > until + BREAK:
            total, until = total + (end - begin), end
        elif end > until:
            total, until = total + (end - until), end
    return total.total_seconds()


def _running(trial: FrozenTrial) -> Running:
    steps = sorted(trial.intermediate_values)
    curve = [trial.intermediate_values[step] for step in steps]
    return Running(
        number=trial.number,
        step=steps[-1] if steps else None,
        value=curve[-1] if curve else None,
        curve=curve,
        params=trial.params,
    )


def _by_worker(trials: Iterable[FrozenTrial], attempts: Mapping[int, Attempt]) -> dict[str, list[FrozenTrial]]:
    """The finished trials of each worker, by their last attempt."""
    done: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state in _FINISHED and (attempt := attempts.get(trial.number)):
            done.setdefault(attempt.worker, []).append(trial)
    return done


def _throughput(done: Sequence[FrozenTrial], attempts: Mapping[int, Attempt]) -> Throughput:
    ends = [(timing, timing.end) for timing in _timings(done, attempts) if timing.end and timing.times == 1]
    last = ends[-PACE_TRIALS:]
    seconds = _busy(_spans([timing for timing, _ in last], max(end for _, end in last))) if last else 0.0
    return Throughput(done=len(done), per_hour=len(last) * 3600 / seconds if seconds else None)


def _failures(trials: Iterable[FrozenTrial]) -> tuple[int, list[Failures]]:
    """The number of cancelled trials, and the failed ones grouped by error."""
    counts: Counter[str] = Counter()
    newest: dict[str, str] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL:
            reason = in_one_line(str(trial.user_attrs.get("error", "no reason was given")))
            # The type of the exception: messages differ by the numbers in them.
            kind = reason.partition(": ")[0]
            counts[kind] += 1
            newest[kind] = reason
    cancelled = counts.pop(CANCELLED, 0)
    return cancelled, [Failures(count=count, reason=newest[kind]) for kind, count in counts.most_common()]


def _pruning(trials: Iterable[FrozenTrial]) -> Pruning:
    at_step: Counter[int | None] = Counter()
    pruned: list[int] = []
    complete: list[int] = []
    for trial in trials:
        steps = trial.intermediate_values
        if trial.state == TrialState.PRUNED:
            at_step[max(steps) if steps else None] += 1
            pruned.append(len(steps))
        elif trial.state == TrialState.COMPLETE and steps:
            complete.append(len(steps))
    saved = share = None
    if complete and pruned:
        full = round(statistics.median(complete))
        saved = sum(max(0, full - ran) for ran in pruned)
        share = saved / (saved + sum(pruned) + sum(complete))
    in_order = sorted(at_step.items(), key=lambda item: -1 if item[0] is None else item[0])
    return Pruning(at_step=dict(in_order), saved=saved, share=share)
