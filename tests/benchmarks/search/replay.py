"""A study in simulated time: the sampler, pruner and scheduler that ship, workers that wait for no training.

Workers take turns by a simulated clock. An epoch lasts as long as the task says; deciding and pausing cost nothing.
The incumbent is the best value that any trial has reported so far, at any step: the same for every method, as the
checkpoint of that step is what a user would take.
"""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from studies.search.curve_sampler import inform, progress_of
from studies.search.scheduler import Choice, Progress, Scheduler
from tests.benchmarks.search.tasks import Curve, Task


@dataclass(frozen=True, kw_only=True)
class Method:
    """A sampler with a pruner, or with a scheduler; each made for a task and a seed.

    Attributes:
        reach: how many times the largest budget of epochs one worker trains, to see when a slow method comes to 5 %.
    """

    name: str
    sampler: Callable[[Task, int], optuna.samplers.BaseSampler]
    pruner: Callable[[Task], optuna.pruners.BasePruner] | None = None
    scheduler: Callable[[Task, int], Scheduler] | None = None
    reach: int = 1


@dataclass
class History:
    """How the incumbent improved.

    Attributes:
        epochs: trained so far by all workers, at each improvement.
        seconds: of the simulated clock, at each improvement.
        regrets: of the incumbent, from each improvement on.
        ask_ms: the real time of a decision, in milliseconds: the median.
        trials: how many began.
    """

    epochs: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)
    ask_ms: float = 0.0
    trials: int = 0

    def at_epochs(self, epochs: float) -> float:
        """The regret after so many epochs; 1 before the first report."""
        return self._at(self.epochs, epochs)

    def at_seconds(self, seconds: float) -> float:
        """The regret at that time."""
        return self._at(self.seconds, seconds)

    def epochs_to(self, regret: float) -> float:
        """How many epochs it took to reach that regret; infinite where it was not reached."""
        return next((e for e, r in zip(self.epochs, self.regrets, strict=True) if r <= regret), float("inf"))

    def rounded(self) -> History:
        """With the improvements of at least a thousandth, and four digits: what a file keeps."""
        regrets = [round(regret, 4) for regret in self.regrets]
        kept = [i for i, regret in enumerate(regrets) if i == 0 or int(regret * 1000) < int(regrets[i - 1] * 1000)]
        return History(
            epochs=[self.epochs[i] for i in kept],
            seconds=[float(f"{self.seconds[i]:.4g}") for i in kept],
            regrets=[regrets[i] for i in kept],
            ask_ms=round(self.ask_ms, 2),
            trials=self.trials,
        )

    def _at(self, places: list[Any], place: float) -> float:
        index = int(np.searchsorted(places, place, side="right")) - 1
        return 1.0 if index < 0 else min(1.0, self.regrets[index])


@dataclass
class _Run:
    """A trial in a slot."""

    trial: optuna.Trial
    curve: Curve
    step: int
    until: int
    began: float = 0.0


def replay(task: Task, method: Method, *, workers: int, seed: int, epochs: float, seconds: float) -> History:
    """Tune ``task`` until so many epochs are trained or so many seconds of the simulated clock have passed."""
    return _Replay(task, method, seed).run(workers, epochs, seconds)


class _Replay:
    def __init__(self, task: Task, method: Method, seed: int) -> None:
        self._task = task
        self._study = optuna.create_study(
            direction="maximize",
            sampler=method.sampler(task, seed),
            pruner=method.pruner(task) if method.pruner else optuna.pruners.NopPruner(),
        )
        self._prunes = method.pruner is not None
        self._scheduler = method.scheduler(task, seed) if method.scheduler else _ToTheEnd(task.steps)
        inform(self._study.sampler, steps=task.steps, scheduler=self._scheduler)
        self._schedules = method.scheduler is not None
        self._trials: list[FrozenTrial] = []
        self._progress: list[Progress] = []
        self._paused: dict[int, _Run] = {}
        self._recorded: set[int] = set()  # which recorded configurations trials had
        self._history = History()
        self._ask_ms: list[float] = []
        self._best = -float("inf")

    def run(self, workers: int, epochs: float, seconds: float) -> History:
        queue: list[tuple[float, int, _Run]] = []
        trained = 0
        for run in self._start(workers):
            self._push(queue, run, 0.0)
        while queue and trained < epochs:
            now, _, run = heapq.heappop(queue)
            if now > seconds:
                break
            trained += 1
            run.step += 1
            value = float(run.curve.values[run.step - 1])
            if value > self._best:
                self._best = value
                self._history.epochs.append(trained)
                self._history.seconds.append(now)
                self._history.regrets.append(self._task.regret(value))
            if self._goes_on(run, value):
                self._push(queue, run, now)
            else:
                for other in self._start(1):
                    self._push(queue, other, now)
        self._history.ask_ms = statistics.median(self._ask_ms)
        return self._history

    def _push(self, queue: list[tuple[float, int, _Run]], run: _Run, now: float) -> None:
        before = run.curve.seconds[run.step - 1] if run.step else 0.0
        heapq.heappush(queue, (now + float(run.curve.seconds[run.step] - before), run.trial.number, run))

    def _goes_on(self, run: _Run, value: float) -> bool:
        run.trial.report(value, run.step)
        if run.step == self._task.steps:
            self._study.tell(run.trial, value)
        elif self._prunes and run.trial.should_prune():
            self._study.tell(run.trial, state=TrialState.PRUNED)
        elif run.step >= run.until:
            self._study._storage.set_trial_state_values(run.trial._trial_id, TrialState.WAITING)
            self._paused[run.trial.number] = run
        else:
            return True
        return False

    def _start(self, count: int) -> list[_Run]:
        start = time.perf_counter()
        runs = [self._begin(choice) for choice in self._scheduler.choose(self._read(), count)[:count]]
        self._ask_ms.append((time.perf_counter() - start) * 1000 / count)
        return runs

    def _begin(self, choice: Choice) -> _Run:
        if choice.number is not None:
            run = self._paused.pop(choice.number)
            self._study._storage.set_trial_state_values(run.trial._trial_id, TrialState.RUNNING)
            run.until = choice.until
            return run
        self._history.trials += 1
        # study.ask() would take a paused trial, which is WAITING.
        trial = optuna.Trial(self._study, self._study._storage.create_new_trial(self._study._study_id))
        params = {name: trial._suggest(name, distribution) for name, distribution in self._task.space.items()}
        if recorded := self._task.recorded:
            number = recorded.nearest(params, self._recorded)
            self._recorded.add(number)
            params = dict(recorded.params(number))
            for name, value in params.items():
                distribution = self._task.space[name]
                internal = distribution.to_internal_repr(value)
                self._study._storage.set_trial_param(trial._trial_id, name, internal, distribution)
        return _Run(trial, self._task.curve(params), 0, choice.until)

    def _read(self) -> list[Progress]:
        """What the scheduler sees: a trial that has not changed is the same object as before."""
        trials = self._study.get_trials(deepcopy=False) if self._schedules else []
        self._progress += [progress_of(trial) for trial in trials[len(self._progress) :]]
        for place, (before, now) in enumerate(zip(self._trials, trials, strict=False)):
            if before is not now:
                self._progress[place] = progress_of(now)
        self._trials = trials
        return self._progress


class _ToTheEnd:
    """Every trial begins anew and trains to the end, unless the pruner stops it."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def choose(self, _trials: Any, count: int) -> list[Choice]:
        return [Choice(None, self._steps)] * count
