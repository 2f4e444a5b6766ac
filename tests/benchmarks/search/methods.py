"""The methods that are compared: stock Optuna, one simple rule, and what Studyhall ships, as it ships.

Beside them Studyhall's with priors: those of a person who knows the task well, and of one who is quite wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import optuna

from studies.search.curve_sampler import CurveSampler
from studies.search.freeze_thaw import FreezeThaw
from studies.search.scheduler import Choice, Progress
from tests.benchmarks.search.replay import Method
from tests.benchmarks.search.tasks import Task, at


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


def _curves(task: Task, seed: int) -> CurveSampler:
    sampler = CurveSampler(seed)
    sampler.space = task.space
    return sampler


def _ranked(task: Task, seed: int) -> list[dict[str, Any]]:
    """150 random configurations, the worst one first."""
    rng = np.random.default_rng(seed)
    configs = [{name: at(of, rng.random()) for name, of in task.space.items()} for _ in range(150)]
    return sorted(configs, key=lambda params: task.curve(params).values[-1])


def _with_prior(task: Task, seed: int, rank: int) -> optuna.samplers.BaseSampler:
    sampler = _curves(task, seed)
    sampler.priors = _ranked(task, seed)[rank]
    return sampler


def _freeze_thaw(task: Task, _seed: int) -> FreezeThaw:
    return FreezeThaw(direction="maximize", steps=task.steps)


OURS: Final = "freeze-thaw"
METHODS: Final[Sequence[Method]] = (*STOCK, Method(name=OURS, sampler=_curves, scheduler=_freeze_thaw))
WITH_PRIORS: Final[Sequence[Method]] = (
    Method(name="good prior", sampler=lambda task, seed: _with_prior(task, seed, -1), scheduler=_freeze_thaw),
    Method(name="wrong prior", sampler=lambda task, seed: _with_prior(task, seed, 0), scheduler=_freeze_thaw),
)
