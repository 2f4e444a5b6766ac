"""The epochs that the best trial needs to come to its end are kept back for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Final

from studies.search.scheduler import TO_THE_END, Choice, Progress, Scheduler

#: The best trial goes on to its end once so many times the epochs are left that all slots train meanwhile: not all
#: take equally long for one.
_AHEAD: Final = 1.25


class Reserve:
    """A scheduler that brings the best trial to its end before a budget of epochs is spent.

    Schedulers pause trials, and where many run at once a small budget is spent on beginnings: a study of twenty full
    trainings by sixteen workers would have no complete trial, hence no result. So the trial with the best value, if
    that is better than those of the complete ones, goes on to its end in time. What it needs is kept back: others
    train with what is left beyond that, or their slots wait.

    Args:
        scheduler: chooses, as long as there is room.
        direction: minimize or maximize.
        steps: how many the objective trains.
        left: how many epochs the study may still train, and the numbers of the trials that a worker trains or will
            take; ``None`` without such a limit. Asked for each choice.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        direction: str,
        steps: int,
        left: Callable[[], tuple[int, Collection[int]] | None],
    ) -> None:
        self._scheduler = scheduler
        self._sign = -1.0 if direction == "minimize" else 1.0
        self._steps = steps
        self._left = left
        self._running: dict[int, Progress] = {}  # by number
        self._paused: dict[int, Progress] = {}
        self._best_complete = -math.inf
        self._slots = 1  # the most that were seen
        self._tops: dict[int, tuple[Progress, float]] = {}

    def until(self, step: int) -> int:
        """See :class:`studies.search.scheduler.Scheduler`."""
        return self._scheduler.until(step)

    def choose(self, trials: Sequence[Progress], count: int, changed: Sequence[int] | None = None) -> list[Choice]:
        """See :class:`studies.search.scheduler.Scheduler`."""
        choices = self._scheduler.choose(trials, count, changed)
        self._read(trials, changed)
        known = self._left() if self._running or self._paused else None
        if known is None:
            return choices
        left, held = known
        # Without those that a worker of stock Optuna has taken: if it died, nobody trains them.
        running = [trial for trial in self._running.values() if trial.number in held]
        open_ = [*running, *self._paused.values()]
        most = _AHEAD * self._steps * (len(running) + count + 1)
        if not open_ or left > most:  # far from the end: of a large study not even the best is looked for
            return choices
        promised = {each.number: self._epochs(each, self.until(max(each.values, default=0))) for each in running}
        room = left - sum(promised.values())

        def needed(trial: Progress) -> int:
            # And one more: a report that spends the last epoch ends the study, before the trial is complete.
            return self._epochs(trial, TO_THE_END) + 1 - promised.get(trial.number, 0)

        best = max(open_, key=self._top)
        if needed(best) > room:  # rarely: a look at all takes a while in a large study
            best = max((each for each in open_ if needed(each) <= room), key=self._top, default=best)
        if needed(best) > room or self._top(best) <= self._best_complete:
            return choices
        go_on: list[Choice] = []
        if best.number in self._paused:
            # Until its next pause, where the best one is chosen again: no trial is ever on its way to an unknown end.
            go_on = [Choice(best.number, self.until(max(best.values)))]
        is_due = left <= _AHEAD * needed(best) * (len(running) + count)
        # All other slots may choose at this very moment, and see the same room: each has its share of it.
        self._slots = max(self._slots, len(running) + count)
        room = (room - needed(best)) * count // self._slots
        others: list[Choice] = []
        for choice in choices:
            if choice.number == best.number:
                is_due |= not others  # the scheduler's first choice, too
                continue
            cost = self._epochs(None if choice.number is None else self._paused[choice.number], choice.until)
            if cost <= room:
                others.append(choice)
                room -= cost
        # Behind the others it takes the slots that are left, and those of new trials for which there is no room.
        return [*go_on, *others] if is_due else [*others, *go_on]

    def _read(self, trials: Sequence[Progress], changed: Sequence[int] | None) -> None:
        if changed is None:
            self._running, self._paused = {}, {}
        for trial in trials if changed is None else [trials[place] for place in changed]:
            for state, known in (("running", self._running), ("paused", self._paused)):
                known.pop(trial.number, None)
                if trial.state == state:
                    known[trial.number] = trial
            if trial.state == "complete":
                self._best_complete = max(self._best_complete, self._top(trial))

    def _top(self, trial: Progress) -> float:
        """The best value of a trial, the larger the better."""
        known, top = self._tops.get(trial.number, (None, 0.0))
        if known is not trial:
            finite = [self._sign * value for value in trial.values.values() if math.isfinite(value)]
            top = max(finite, default=-math.inf)
            self._tops[trial.number] = trial, top
        return top

    def _epochs(self, trial: Progress | None, until: int) -> int:
        """How many a trial, ``None`` for a new one, has yet to report until a step."""
        values = trial.values if trial else {}
        from_0 = 0 in values
        step = max(values, default=0) + from_0
        steps = max(0, min(until + from_0, self._steps) - step)
        return math.ceil(steps * len(values) / step) if step else steps
