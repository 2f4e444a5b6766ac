"""Asynchronous successive halving: pause trials at rungs, and promote the best of each rung."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from studies.search.scheduler import TO_THE_END, Choice, Progress

#: The most changed trials that are inserted one by one; more are sorted together.
_MOST_INSERTIONS: Final = 64

Rank = tuple[float, int]
"""The value of a trial at a rung, negative where values are maximized, and the trial's number."""


class Halving:
    """Asynchronous successive halving, which promotes (Li et al., arXiv 1810.05934, algorithm 2).

    A trial is paused at each rung. As soon as it is among the best 1 / ``reduction_factor`` of all that have reached
    the rung, a free slot continues it to the next rung; those at the highest rung come first. Without such a trial a
    new one begins. What a trial reported at the first step from the rung on is its value there; nan is never promoted.

    Args:
        min_steps: the first rung.
        reduction_factor: how many times as far as a rung the next one is, and of how many trials one is promoted.
        rungs: the steps of all rungs, instead of ``min_steps`` and its multiples.
        direction: ``minimize`` or ``maximize``.
        steps: how many the objective trains: no rung lies there or beyond. ``None`` if that is unknown; then the
            longest complete trial tells it, and a trial that begins while no other runs is not paused until then.

    Raises:
        ValueError: ``rungs`` do not ascend from 1, or no trial reaches them all.
    """

    def __init__(
        self,
        *,
        direction: str,
        steps: int | None,
        min_steps: int = 1,
        reduction_factor: int = 3,
        rungs: Sequence[int] | None = None,
    ) -> None:
        if rungs is None:
            found = [min_steps]
            while found[-1] * reduction_factor < (steps or TO_THE_END):
                found.append(found[-1] * reduction_factor)
        else:
            found = _checked(rungs)
        if steps is not None and found[-1] >= steps:
            raise ValueError(
                f"the rung at step {found[-1]} pauses no trial, as the objective trains {steps}; legal are "
                f"1 to {steps - 1}"
            )
        self._rungs = found
        self._factor = reduction_factor
        self._sign = -1.0 if direction == "maximize" else 1.0
        self._steps = steps
        self._last = steps or 0  # the last step, as far as is known
        # Trials are only ever added, and few change between two choices: what is known of the others stays.
        self._known: dict[int, Progress] = {}
        self._reached: list[list[Rank]] = [[] for _ in found]  # all trials with a value at a rung, the best first
        self._paused: list[list[Rank]] = [[] for _ in found]  # those that are paused there

    def choose(self, trials: Sequence[Progress], count: int, changed: Sequence[int] | None = None) -> list[Choice]:
        """See :class:`studies.search.scheduler.Scheduler`."""
        self._learn(trials if changed is None else [trials[place] for place in changed])
        choices: list[Choice] = []
        for place in reversed(range(len(self._rungs))):
            reached = self._reached[place]
            for rank in self._paused[place]:
                is_among_best = bisect_left(reached, rank) < len(reached) // self._factor and rank[0] < math.inf
                if not is_among_best or len(choices) == count:
                    break
                choices.append(Choice(number=rank[1], until=self._until(place + 1)))
        new = [Choice(number=None, until=self._until(0))] * (count - len(choices))
        # How long trials are is learned from one that nothing pauses.
        if new and not self._last and not any(trial.state == "running" for trial in trials):
            new[0] = Choice(number=None, until=TO_THE_END)
        return choices + new

    def until(self, step: int) -> int:
        """See :class:`studies.search.scheduler.Scheduler`."""
        return self._until(bisect_right(self._rungs, step))

    def _until(self, place: int) -> int:
        """The step until which a trial trains that goes to a rung."""
        if place == len(self._rungs) or 0 < self._last <= self._rungs[place]:
            return TO_THE_END
        return self._rungs[place]

    def _learn(self, trials: Sequence[Progress]) -> None:
        known = self._known
        changed = [trial for trial in trials if known.get(trial.number) is not trial]
        # A worker that joins a large study learns of all its trials at once. Each insertion would move half of them.
        is_bulk = len(changed) > _MOST_INSERTIONS
        insert: Callable[[list[Rank], Rank], None] = list.append if is_bulk else insort
        for before in [known[trial.number] for trial in changed if trial.number in known]:
            for place, rank in self._ranks(before):
                _remove(self._reached[place], rank)
                _remove(self._paused[place], rank)
        for trial in changed:
            known[trial.number] = trial
            ranks = self._ranks(trial)
            for place, rank in ranks:
                insert(self._reached[place], rank)
            if trial.state == "paused" and ranks:
                place, rank = ranks[-1]
                insert(self._paused[place], rank)
            if self._steps is None and trial.state == "complete":
                self._last = max(self._last, max(trial.values, default=0))
            elif self._steps is not None and 0 in trial.values:  # counted from 0
                self._last = self._steps - 1
        if is_bulk:
            for ranked in (*self._reached, *self._paused):
                ranked.sort()

    def _ranks(self, trial: Progress) -> list[tuple[int, Rank]]:
        """The rungs that a trial has reached, as places, with its rank at each."""
        ranks: list[tuple[int, Rank]] = []
        for step in sorted(trial.values):
            while len(ranks) < len(self._rungs) and step >= self._rungs[len(ranks)]:
                value = trial.values[step]
                rank = math.inf if math.isnan(value) else self._sign * value
                ranks.append((len(ranks), (rank, trial.number)))
        return ranks


def _remove(ranked: list[Rank], rank: Rank) -> None:
    place = bisect_left(ranked, rank)
    if ranked[place : place + 1] == [rank]:
        del ranked[place]


def _checked(rungs: Sequence[int]) -> list[int]:
    is_legal = (
        isinstance(rungs, list)
        and bool(rungs)
        and all(isinstance(rung, int) and not isinstance(rung, bool) for rung in rungs)
        and rungs[0] >= 1
        and all(a < b for a, b in pairwise(rungs))
    )
    if not is_legal:
        raise ValueError("rungs should be whole numbers of steps that ascend from 1, such as [1, 3, 9]")
    return list(rungs)
