"""A sampler that learns from the curves of all trials, be they finished, pruned, paused or running."""

# The signatures are Optuna's.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.search.forecast import Forecast
from studies.search.freeze_thaw import STARTERS, FreezeThaw
from studies.search.scheduler import Progress, Scheduler, State
from studies.search.study import is_within
from studies.search.unit_cube import UnitCube, distinct

_STATES: Final[Mapping[TrialState, State]] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "paused",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "fail",
}


class CurveSampler(optuna.samplers.BaseSampler):
    """Draws the configuration with the largest expected improvement of its last step (:mod:`studies.search.forecast`).

    A trial of a few steps teaches it as much as those steps foretell, which a pruner or a scheduler makes many. Without
    reports it learns from the trials' values.

    Args:
        seed: the study's: what a trial draws depends on it, on the trial's number and on the trials before.

    Attributes:
        space: the distributions of the spec; without it, those that the trials have.
        priors: values that a person expects to be good; the first trial has them, and they fade with the trials.
        steps: how many the objective trains; ``None`` if that is unknown.
        forecast: of the study's scheduler, if that makes one: new trials get what it proposes.
    """

    def __init__(self, seed: int = 0) -> None:
        self.space: Mapping[str, BaseDistribution] = {}
        self.priors: Mapping[str, Any] = {}
        self.steps: int | None = None
        self.seed = seed
        self._common = IntersectionSearchSpace()
        self.forecast: Forecast | None = None
        self._own: Forecast | None = None
        self._drawn: tuple[int, Mapping[str, Any]] = (-1, {})  # the number of a trial, and its parameters
        self._trials: list[FrozenTrial] = []
        self._progress: list[Progress] = []

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together."""
        found = self.space or self._common.calculate(study)
        return {name: distribution for name, distribution in found.items() if not distribution.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Parameters of a new trial."""
        forecast = self.forecast or self._own_forecast(study)
        if trial.number < STARTERS - forecast.n_evidence or forecast.n_reported < 2:
            return self._starter(UnitCube(search_space), trial.number)
        # Of two workers that began a trial at once, one has another number than it expected. It draws anew.
        drawn = forecast.proposals.pop(trial.number, None) or self._draw(forecast, trial.number, search_space)
        self._drawn = trial.number, drawn
        return {name: drawn[name] for name in search_space if name in drawn}

    def _draw(self, forecast: Forecast, number: int, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, number])
        if not forecast.is_fit:
            forecast.fit(rng)
        new = forecast.newcomers(rng)
        if not len(new):  # all configurations have been tried: again any of them
            cube = UnitCube(space)
            return cube.params(cube.snapped(rng.random((1, len(space))))[0])
        promise = forecast.log_improvement(new, np.full(len(new), -1))
        return forecast.params(new[int(np.argmax(promise))])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that not all trials before had: as it was drawn with the others, or else at random."""
        number, drawn = self._drawn
        if number == trial.number and param_name in drawn and is_within(param_distribution, drawn[param_name]):
            return drawn[param_name]
        name = int.from_bytes(param_name.encode()[:8], "big")
        point = np.random.default_rng([self.seed, trial.number, name]).random((1, 1))
        cube = UnitCube({param_name: param_distribution})
        return cube.params(cube.snapped(point)[0])[param_name]

    def _own_forecast(self, study: optuna.Study) -> Forecast:
        """What is expected by the trials as they are now."""
        if self._own is None:
            minimizes = study.direction == StudyDirection.MINIMIZE
            self._own = Forecast(direction="minimize" if minimizes else "maximize", steps=self.steps)
        self._own.space, self._own.priors = self.space, self.priors
        trials = study._get_trials(deepcopy=False, use_cache=True)
        for place, (before, now) in enumerate(zip(self._trials, trials, strict=False)):
            if before is not now:
                self._progress[place] = progress_of(now, self.steps)
        self._progress += [progress_of(trial, self.steps) for trial in trials[len(self._trials) :]]
        del self._progress[len(trials) :]  # of another bracket of Hyperband, which sees its own trials alone
        self._trials = list(trials)
        self._own.read(self._progress)
        return self._own

    def _starter(self, cube: UnitCube, number: int) -> dict[str, Any]:
        """The middle of the space, or the priors, and then a quasi-random sequence; none twice while there are others.

        An additive recurrence by powers of the generalized golden ratio, from a random start, is as even as Sobol's
        sequence (Roberts, The unreasonable effectiveness of quasirandom sequences, 2018).
        """
        (prior,) = cube.points([self.priors])
        n_parameters = len(cube.distributions)
        ratio = 2.0
        for _ in range(50):
            ratio = (1 + ratio) ** (1 / (n_parameters + 1))
        start = np.random.default_rng(self.seed).random(n_parameters)
        places = np.arange(1, number + 8 * STARTERS)[:, None]
        sequence = cube.snapped((start + places * ratio ** -np.arange(1.0, n_parameters + 1)) % 1)
        points = np.concatenate([np.where(np.isnan(prior), cube.centre, prior)[None], sequence])
        different = distinct(points)
        return cube.params(different[number] if number < len(different) else points[number])


def inform(
    sampler: optuna.samplers.BaseSampler,
    *,
    steps: int | None,
    scheduler: Scheduler | None,
    evidence: Sequence[FrozenTrial] = (),
) -> None:
    """Tell :class:`CurveSampler` and :class:`~studies.search.freeze_thaw.FreezeThaw` what they share.

    Args:
        sampler: of the study; another one needs nothing.
        steps: how many the objective trains; ``None`` if that is unknown.
        scheduler: of the study; another one needs nothing.
        evidence: trials of other studies.
    """
    if isinstance(scheduler, FreezeThaw):
        scheduler.evidence = lambda steps: [progress_of(trial, steps) for trial in evidence]
    if isinstance(sampler, CurveSampler):
        sampler.steps = steps
        if isinstance(scheduler, FreezeThaw):
            sampler.forecast = scheduler.forecast
            sampler.forecast.space, sampler.forecast.priors = sampler.space, sampler.priors
            sampler.forecast.proposals = {}  # of the space before
            sampler.forecast.seed = sampler.seed


def progress_of(trial: FrozenTrial, steps: int | None = None) -> Progress:
    """A trial as a scheduler sees it; one that only has a value has it at the last of so many ``steps``."""
    values: Mapping[int, float] = trial.intermediate_values
    if not values and trial.state == TrialState.COMPLETE:
        values = {steps or 1: trial.values[0]}
    return Progress(trial.number, trial.params, trial.distributions, values, _STATES[trial.state])
