"""The methods that are compared: stock Optuna, one simple rule, and what Studyhall ships, as it ships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import optuna

from studies.search.curve_sampler import CurveSampler
from studies.search.freeze_thaw import FreezeThaw
from studies.search.scheduler import Choice, Progress
from tests.benchmarks.search.replay import Method
from tests.benchmarks.search.tasks import Task


def _random(_task: Task, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _tpe(_task: Task, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


class OneEpochThenTop:
    """One epoch of each of the first ``width`` trials, then the best of them to the end, one after the other."""

    def __init__(self, steps: int, width: int) -> None:
        self._steps = steps
        self._width = width

    def choose(self, trials: Sequence[Progress], count: int) -> list[Choice]:
        """As the class says."""
        paused = sorted((t for t in trials if t.state == "paused"), key=lambda t: -t.values[1])
        new = min(count, max(0, self._width - len(trials)))
        chosen = [Choice(None, 1)] * new + [Choice(trial.number, self._steps) for trial in paused[: count - new]]
        return chosen + [Choice(None, 1)] * (count - len(chosen))


STOCK: Final[Sequence[Method]] = (
    Method(name="random", sampler=_random, reach=10),
    Method(name="TPE", sampler=_tpe, reach=2),
    Method(
        name="TPE + Hyperband",
        sampler=_tpe,
        pruner=lambda task: optuna.pruners.HyperbandPruner(1, max_resource=task.steps, reduction_factor=3),
    ),
    Method(name="TPE + median", sampler=_tpe, pruner=lambda _task: optuna.pruners.MedianPruner()),
    Method(
        name="random + ASHA",
        sampler=_random,
        pruner=lambda _task: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    ),
    Method(
        name="one epoch then top k",
        sampler=_random,
        scheduler=lambda task, _seed: OneEpochThenTop(task.steps, 130),
    ),
)


def _curves(task: Task, seed: int) -> optuna.samplers.BaseSampler:
    sampler = CurveSampler(seed)
    sampler.space = task.space
    return sampler


OURS: Final = "freeze-thaw"
METHODS: Final[Sequence[Method]] = (
    *STOCK,
    Method(
        name=OURS,
        sampler=_curves,
        scheduler=lambda task, _seed: FreezeThaw(direction="maximize", steps=task.steps),
    ),
)
