"""Freeze-thaw: train a little of many trials, and continue those that are expected to end best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from studies.search.forecast import Forecast
from studies.search.scheduler import TO_THE_END, Choice, Progress

#: The first pause, as a share of all steps, and how many times as far as one pause the next one is.
FIRST: Final = 1 / 17
GROWTH: Final = 2.0
#: Trials that begin before the first forecast, spread evenly: the middle of the space, then a quasi-random sequence.
STARTERS: Final = 8
#: The most running trials in their first steps, as a share of all, until so many times as many have reported. Where
#: many run at once, a model of the first ones expects more of any new one than of them, and would continue none.
_MOST_NEW, _UNTIL_KNOWN = 0.7, 2
#: The most paused trials that are compared: the best of them.
_MOST_PAUSED: Final = 100


class FreezeThaw:
    """Continues the trial, or begins the new one, that promises most for its cost.

    What a trial promises is the expected improvement of its last step on the best value so far, by a Gaussian process
    over the trials' curves (:mod:`studies.search.curve_model`), divided by a power of the steps that it still takes.
    The power is drawn anew for each slot, from 0, the best end at any cost, to 1, the best use of each step: neither
    alone does well on every task (``docs/search.md``). Trials are paused after about a seventeenth of their steps, and
    then each time after as many steps again. Where the budget has no room for a new trial, a paused one takes its slot.

    The choice depends on the trials alone, and on what the process has learned of them before.

    Args:
        direction: minimize or maximize.
        steps: how many the objective trains; ``None`` if that is unknown: then the first trials train to their end.

    Attributes:
        forecast: what it expects of the trials. A :class:`studies.search.curve_sampler.CurveSampler` that shares it
            draws the very configurations for which the scheduler begins new trials.
        evidence: trials of other studies, of which a COMPLETE one has its value at the last of so many steps. It is
            asked for once these are known.
    """

    def __init__(self, *, direction: str, steps: int | None) -> None:
        self.forecast = Forecast(direction=direction, steps=steps)
        self.evidence: Callable[[int], Sequence[Progress]] | None = None

    def choose(self, trials: Sequence[Progress], count: int, changed: Sequence[int] | None = None) -> list[Choice]:
        """See :class:`studies.search.scheduler.Scheduler`."""
        forecast = self.forecast
        if forecast.steps is None:
            complete = [trial.values for trial in trials if trial.state == "complete" and trial.values]
            forecast.steps = max((max(values) + (0 in values) for values in complete), default=None)
        if self.evidence and forecast.steps is not None:
            forecast.evidence, self.evidence = self.evidence(forecast.steps), None
        forecast.read(trials, changed)
        forecast.proposals = {}
        starters = (
            count if forecast.n_reported < 2 else min(count, max(0, STARTERS - forecast.n_evidence - len(trials)))
        )
        chosen = [Choice(None, self.until(0))] * starters
        if starters < count:
            return chosen + self._promising(trials, count - starters)
        return chosen + [self._continued(trial) for trial in forecast.best_paused(count)]

    def _promising(self, trials: Sequence[Progress], count: int) -> list[Choice]:
        forecast = self.forecast
        # Without evidence the first trials differ by the seed, and with them all that follows.
        seed = [forecast.seed] if forecast.n_evidence else []
        rng = np.random.default_rng([len(trials), forecast.n_steps, *seed])
        paused = forecast.best_paused(_MOST_PAUSED)
        forecast.fit(rng)
        new = forecast.newcomers(rng)
        points = np.concatenate([forecast.points([trial.params for trial in paused]), new])
        numbers = np.concatenate([[trial.number for trial in paused], np.full(len(new), -1)])
        if not len(points):
            return [Choice(None, self.until(0))] * count
        promise = forecast.log_improvement(points, numbers)
        done = np.array([max(trial.values) for trial in paused] + [0] * len(new))
        cost = np.log(np.maximum(1, forecast.horizon - done))
        chosen: list[Choice] = []
        running, first = forecast.running, self.until(0)
        n_running = len(running)
        knows_little = forecast.n_reported < _UNTIL_KNOWN * n_running
        n_beginning = sum(not trial.values or max(trial.values) < first for trial in running)
        number = trials[-1].number + 1 if trials else 0  # of the next trial, unless another worker begins one before
        for _ in range(min(count, len(points))):
            score = promise - rng.random() * cost
            if knows_little and n_beginning > _MOST_NEW * n_running and (promise[: len(paused)] > -math.inf).any():
                score[len(paused) :] = -math.inf
            place = int(np.argmax(score))
            n_running += 1
            if place < len(paused):
                chosen.append(self._continued(paused[place]))
            else:
                chosen.append(Choice(None, first))
                n_beginning += 1
                forecast.proposals[number] = forecast.params(points[place])
                number += 1
            # Once this one is known, the others near it promise less.
            promise += np.log1p(-0.999 * forecast.correlation(points, points[place]) ** 2)
            promise[place] = -math.inf
        # In a small space there may be fewer: the sampler draws for the rest.
        chosen += [Choice(None, self.until(0))] * (count - len(chosen))
        others = [place for place in np.argsort(-promise[: len(paused)]) if promise[place] > -math.inf]
        n_new = sum(choice.number is None for choice in chosen)
        return chosen + [self._continued(paused[place]) for place in others[:n_new]]

    def _continued(self, trial: Progress) -> Choice:
        return Choice(trial.number, self.until(max(trial.values)))

    def until(self, step: int) -> int:
        """See :class:`studies.search.scheduler.Scheduler`."""
        last = self.forecast.last_step
        if last is None:
            return TO_THE_END
        pause = max(1, round(last * FIRST))
        while pause <= step:
            pause = math.ceil(pause * GROWTH)
        return TO_THE_END if pause >= last else pause
