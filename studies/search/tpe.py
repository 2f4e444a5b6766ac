"""Optuna's TPE in large studies: it learns from a bounded number of trials, and fits them once for many new ones."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

#: The best finished trials from which TPE learns: it takes the best tenth of all, at most 25, for the good ones.
BEST: Final = 100
#: The newest ones: of the others, TPE gives the older ones less weight.
NEWEST: Final = 400
#: Densities that are kept: a good and a bad one for each parameter, of the last trials.
_FITS: Final = 64


class TPESampler(optuna.samplers.TPESampler):
    """Optuna's, but trials that are drawn one after the other from the same finished trials share one."""

    def _build_parzen_estimator(
        self,
        study: optuna.Study,
        search_space: dict[str, BaseDistribution],
        trials: list[FrozenTrial],
        handle_below: bool,
    ) -> Any:
        if study._is_multi_objective() or not all(trial.state.is_finished() for trial in trials):
            return super()._build_parzen_estimator(study, search_space, trials, handle_below)
        # Finished trials do not change: their numbers say what they are. Of the space its text: choices may be lists.
        key = (study._study_id, repr(search_space), handle_below, tuple(trial.number for trial in trials))
        fits: dict[Any, Any] = self.__dict__.setdefault("_fits", {})
        if key not in fits:
            if len(fits) >= _FITS:
                fits.clear()
            fits[key] = super()._build_parzen_estimator(study, search_space, trials, handle_below)
        return fits[key]


class Subset:
    """The trials of a study with one objective from which a sampler learns: the best, the newest, and the running.

    Args:
        minimize: whether low values are better.
    """

    def __init__(self, *, minimize: bool) -> None:
        self._sign = 1 if minimize else -1
        self._trials: Sequence[FrozenTrial] = []
        self._chosen: list[FrozenTrial] = []
        self._running: set[int] = set()
        self._finished: set[int] = set()
        self._newest: list[int] = []  # numbers, ascending
        self._best: dict[TrialState, list[tuple[tuple[float, ...], int]]] = {
            TrialState.COMPLETE: [],
            TrialState.PRUNED: [],
        }

    def of(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The subset of ``trials``, by number; all of a study with no more trials than it has.

        Args:
            trials: all of the study; perhaps as they were before the last call, since Optuna keeps them while it draws.
        """
        if trials == self._trials:
            return list(self._chosen)
        changed = [now for before, now in zip(self._trials, trials, strict=False) if before is not now]
        for trial in [*changed, *trials[len(self._trials) :]]:
            self._learn(trial)
        self._trials = trials
        best = {number for ranked in self._best.values() for _, number in ranked}
        numbers = {*best, *self._newest, *self._running}
        self._chosen = [trials[number] for number in sorted(numbers) if number < len(trials)]
        return list(self._chosen)

    def _learn(self, trial: FrozenTrial) -> None:
        if trial.number in self._finished:
            return  # it is for good: what is told now is older
        if trial.state == TrialState.RUNNING:
            self._running.add(trial.number)
        else:
            self._running.discard(trial.number)
        if trial.state not in self._best:
            return
        self._finished.add(trial.number)
        insort(self._newest, trial.number)
        del self._newest[:-NEWEST]
        ranked = self._best[trial.state]
        insort(ranked, (self._rank(trial), trial.number))
        del ranked[BEST:]

    def _rank(self, trial: FrozenTrial) -> tuple[float, ...]:
        """As TPE ranks: what keeps its constraints first; of pruned trials, those that came farthest."""
        violation = sum(max(0.0, value) for value in trial.constraints.values())
        value = self._value(trial)
        rank = math.inf if math.isnan(value) else self._sign * value
        return (violation, rank) if trial.state == TrialState.COMPLETE else (violation, -(trial.last_step or 0), rank)

    @staticmethod
    def _value(trial: FrozenTrial) -> float:
        if trial.values:
            return float(trial.values[0])
        return trial.intermediate_values.get(trial.last_step or 0, math.nan)
