"""Optuna's TPE in large studies: it learns from a bounded number of trials, and fits them once for many new ones."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState

from studies.search.parzen import ParzenEstimator

#: The best finished trials from which TPE learns: it takes the best tenth of all, at most 25, for the good ones.
BEST: Final = 100
#: The newest ones: of the others, TPE gives the older ones less weight.
NEWEST: Final = 400
#: How many fits are kept: parameters that are drawn by themselves have one each, and so have Hyperband's brackets.
_FITS: Final = 64


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """What finished trials say of some parameters."""

    study: int
    space: str
    finished: list[FrozenTrial]
    good: ParzenEstimator
    bad_numbers: np.ndarray
    """Of N bad trials: shape (N)."""
    bad: np.ndarray
    """Their parameters, as numbers: shape (N, D)."""


class TPESampler(optuna.samplers.TPESampler):
    """Optuna's, but trials that are drawn one after the other from the same finished trials share what those say.

    With one objective its draws are Optuna's, but for rounding.
    """

    @cached_property
    def _fits(self) -> deque[_Fit]:
        return deque(maxlen=_FITS)

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if study._is_multi_objective():
            return super()._sample(study, trial, search_space)
        states = (TrialState.COMPLETE, TrialState.PRUNED, *((TrialState.RUNNING,) if self._constant_liar else ()))
        finished: list[FrozenTrial] = []
        running: list[FrozenTrial] = []
        for each in study._get_trials(deepcopy=False, states=states, use_cache=not self._constant_liar):
            (running if each.state is TrialState.RUNNING else finished).append(each)
        fit = self._fit(study, search_space, finished)
        bad = self._bad(study, search_space, fit, [each for each in running if each.number != trial.number])
        samples = fit.good.sample(self._rng.rng, self._n_ei_candidates)
        drawn = self._compare(samples, self._compute_acquisition_func(samples, fit.good, bad))
        return {name: of.to_external_repr(drawn[name]) for name, of in search_space.items()}

    def _fit(self, study: optuna.Study, space: dict[str, BaseDistribution], finished: list[FrozenTrial]) -> _Fit:
        text = repr(space)  # choices may be lists, which have no hash
        for fit in self._fits:
            if fit.study == study._study_id and fit.space == text and fit.finished == finished:
                return fit
        good, bad = _split_trials(study, finished, (self._gamma or default_gamma)(len(finished)))
        _, good_rows = self._rows(study, space, good)
        bad_numbers, bad_rows = self._rows(study, space, bad)
        fit = _Fit(
            study=study._study_id,
            space=text,
            finished=finished,
            good=self._density(space, good_rows),
            bad_numbers=bad_numbers,
            bad=bad_rows,
        )
        self._fits.appendleft(fit)
        return fit

    def _bad(
        self, study: optuna.Study, space: dict[str, BaseDistribution], fit: _Fit, running: list[FrozenTrial]
    ) -> ParzenEstimator:
        """The density of the bad trials, to which running ones count, by number: the newest weigh most."""
        numbers, rows = self._rows(study, space, running)
        order = np.argsort(np.concatenate([fit.bad_numbers, numbers]), kind="stable")
        return self._density(space, np.concatenate([fit.bad, rows])[order])

    def _density(self, space: dict[str, BaseDistribution], rows: np.ndarray) -> ParzenEstimator:
        observations = dict(zip(space, rows.T, strict=True))
        return ParzenEstimator(observations, space, self._parzen_estimator_parameters)

    def _rows(
        self, study: optuna.Study, space: dict[str, BaseDistribution], trials: list[FrozenTrial]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the N trials that have all parameters, and those as numbers: shapes (N) and (N, D)."""
        wanted = space.keys()
        # Parameters that a trial has drawn but not suggested yet are read from JSON.
        params = {
            trial.number: trial.params if wanted <= trial.params.keys() else self._get_params(trial, study)
            for trial in trials
        }
        rows = {
            number: [of.to_internal_repr(params_of[name]) for name, of in space.items()]
            for number, params_of in params.items()
            if wanted <= params_of.keys()
        }
        return np.array(list(rows), dtype=int), np.array(list(rows.values()), dtype=float).reshape(-1, len(space))


class Subset:
    """The trials of a study with one objective from which a sampler learns: the best, the newest, and the running.

    Args:
        minimize: whether low values are better.
    """

    def __init__(self, *, minimize: bool) -> None:
        self._sign = 1 if minimize else -1
        self._forget()

    def _forget(self) -> None:
        self._final: set[int] = set()  # numbers, as all that follow
        self._running: set[int] = set()
        self._newest: list[int] = []  # ascending
        self._best: dict[TrialState, list[tuple[tuple[float, ...], int]]] = {
            TrialState.COMPLETE: [],
            TrialState.PRUNED: [],
        }
        self._chosen: list[FrozenTrial] = []

    def of(self, trials: Sequence[FrozenTrial], changed: Sequence[int]) -> list[FrozenTrial]:
        """The subset of ``trials``, by number; all of a study with no more trials than it has.

        Args:
            trials: all of the study.
            changed: the numbers of those that may differ from the last call.
        """
        if len(changed) == len(trials):  # at first; and after a crash of the server, which may have lost the newest
            self._forget()
        for number in changed:
            self._learn(trials[number])
        if changed:
            best = {number for ranked in self._best.values() for _, number in ranked}
            self._chosen = [trials[number] for number in sorted({*best, *self._newest, *self._running})]
        return list(self._chosen)

    def _learn(self, trial: FrozenTrial) -> None:
        if trial.number in self._final:
            return
        if trial.state == TrialState.RUNNING:
            self._running.add(trial.number)
        else:
            self._running.discard(trial.number)
        if trial.state not in self._best:
            return
        self._final.add(trial.number)
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
