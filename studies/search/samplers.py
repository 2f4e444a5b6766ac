"""Samplers that differ from Optuna's: what a trial draws is a function of its number, and not of its worker.

Optuna's own keep count in attributes of the study or the trials, which two workers read before either has written:
some points are run twice. A trial's number is given once, in the database.
"""

# The signatures are Optuna's.
# ruff: noqa: ARG002

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from studies.search.curve_sampler import CurveSampler
from studies.spec.space import categorical, combinations, count_combinations
from studies.values import key_of

if TYPE_CHECKING:
    from studies.spec.space import CategoricalParameter, FloatParameter, IntParameter

#: The most combinations of a grid, and the most values of a parameter that is searched exhaustively: each worker
#: holds them all in memory.
MOST_COMBINATIONS: Final = 100_000


class QMCSampler(optuna.samplers.QMCSampler):
    """Optuna's, but trial n has the point n of the sequence.

    Attributes:
        space: the distributions of the spec. Each has its coordinate, needed or not, from the first trial on. Where
            there is none, the first trial is drawn at random and has the coordinates, as in Optuna.
    """

    space: Mapping[str, BaseDistribution] = {}
    _number = 0

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.space) or super().infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._number = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class _Independent(optuna.samplers.BaseSampler):
    """Samples no parameters together: each is asked for by itself."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class GridSampler(_Independent):
    """Every combination of a space that its conditions allow, each once, in an order that the seed shuffles.

    The trials have the combinations in the order of their numbers. An enqueued trial has its own parameters, and the
    combination that it has is not run again. As in Optuna, a combination whose trial FAILed has been run. Workers begin
    no trial beyond the last combination: they ask :meth:`left` before each.

    Args:
        search_space: of the spec.
        seed: the study's.

    Raises:
        ValueError: a parameter has infinitely many values, or there are more than :data:`MOST_COMBINATIONS`.
    """

    def __init__(
        self, search_space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter], seed: int
    ) -> None:
        self.size = count_combinations(search_space, MOST_COMBINATIONS)
        self._space = search_space
        self._seed = seed
        self._drawn: Mapping[str, Any] | None = None  # by the trial that began last

    def left(self, trials: Sequence[FrozenTrial]) -> int:
        """How many combinations none of ``trials``, all those of a study, has."""
        return self.size - len({*self._deal(trials), *self._enqueued(trials)} - {None})

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        place = self._deal(_all_trials(study))[trial.number]
        self._drawn = None if place is None else self._order[place]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if _is_enqueued(trial):
            raise ValueError(f"an enqueued trial of a grid needs all its parameters, and {param_name!r} is missing")
        if self._drawn is None:
            raise ValueError(f"the grid is exhausted: all its {self.size} combinations have been run")
        return self._drawn[param_name]

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        trials = _all_trials(study)
        others = (other for other in trials if other.number != trial.number)
        if not self.left(trials) and all(other.state.is_finished() for other in others):
            study.stop()

    def _deal(self, trials: Sequence[FrozenTrial]) -> list[int | None]:
        """The place in the order of each trial's combination, ``None`` for an enqueued trial or beyond the end.

        It follows from what the trials before were when they were created, which is the same on every worker.
        """
        enqueued = self._enqueued(trials)
        rest = iter(range(self.size))
        dealt: list[int | None] = []
        for trial in trials:
            place = None
            if not _is_enqueued(trial):
                place = next((place for place in rest if enqueued.get(place, trial.number) >= trial.number), None)
            dealt.append(place)
        return dealt

    def _enqueued(self, trials: Sequence[FrozenTrial]) -> dict[int, int]:
        """Which combinations were enqueued, as places in the order; each with the number of its first trial."""
        found: dict[int, int] = {}
        for trial in trials:
            if _is_enqueued(trial):
                place = self._places.get(_key(trial.system_attrs["fixed_params"]))
                if place is not None:
                    found.setdefault(place, trial.number)
        return found

    @cached_property
    def _order(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = list(combinations(self._space))
        shuffled = np.random.RandomState(self._seed).permutation(len(found))
        return [found[place] for place in shuffled]

    @cached_property
    def _places(self) -> dict[frozenset[tuple[str, Any]], int]:
        return {_key(params): place for place, params in enumerate(self._order)}


class EnqueuedSampler(_Independent):
    """Draws nothing: all trials of its study are enqueued, and workers begin no others."""

    def left(self, trials: Sequence[FrozenTrial]) -> int:
        """How many trials are to be added to ``trials``: none."""
        return 0

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise ValueError(f"the sampler 'enqueued' draws nothing, and the trial was enqueued without {param_name!r}")


class BruteForceSampler(optuna.samplers.BruteForceSampler):
    """Optuna's, for parameters that an objective suggests by itself. It takes lists as choices, and no range that
    does not fit into memory."""

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        _require_few(param_name, param_distribution)
        return super().sample_independent(study, trial, param_name, param_distribution)

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        hashable = {name: _hashable(value) for name, value in params.items()}
        optuna.samplers.BruteForceSampler._populate_tree(tree, list(map(_with_hashable_choices, trials)), hashable)


def grid_of(sampler: optuna.samplers.BaseSampler) -> GridSampler | None:
    """The grid that a sampler is, or fixes some parameters of; ``None`` where it is none."""
    if isinstance(sampler, optuna.samplers.PartialFixedSampler):
        return grid_of(sampler._base_sampler)
    return sampler if isinstance(sampler, GridSampler) else None


def finite_of(sampler: optuna.samplers.BaseSampler) -> GridSampler | EnqueuedSampler | None:
    """The sampler, or the grid in it, that says how many trials are ``left``; ``None`` where they never end."""
    return sampler if isinstance(sampler, EnqueuedSampler) else grid_of(sampler)


def require_several_objectives(sampler: optuna.samplers.BaseSampler) -> None:
    """Raise :exc:`ValueError` where a study with several objectives cannot use ``sampler``."""
    if isinstance(sampler, optuna.samplers.PartialFixedSampler):
        require_several_objectives(sampler._base_sampler)
    for name, single in (("cmaes", optuna.samplers.CmaEsSampler), ("curves", CurveSampler)):
        if isinstance(sampler, single):
            raise ValueError(
                f"sampler.name: {name!r} takes one objective, and this study has several; use tpe, gp or nsgaii"
            )


def _all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Every trial: under Hyperband the study itself shows a sampler but a part of them."""
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def _is_enqueued(trial: FrozenTrial) -> bool:
    return "fixed_params" in trial.system_attrs


def _key(params: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """Equal for equal combinations: 1 and 1.0 are one value, as for Optuna."""
    return frozenset((name, _hashable(value)) for name, value in params.items())


def _hashable(value: Any) -> Any:
    return key_of(value) if isinstance(value, list | dict) else value


def _with_hashable_choices(trial: FrozenTrial) -> FrozenTrial:
    odd = {
        name: categorical(list(map(_hashable, of.choices)))
        for name, of in trial.distributions.items()
        if isinstance(of, CategoricalDistribution) and any(isinstance(choice, list | dict) for choice in of.choices)
    }
    if not odd:
        return trial
    twin = copy.copy(trial)
    twin.distributions = {**trial.distributions, **odd}
    twin.params = {name: _hashable(value) for name, value in trial.params.items()}
    return twin


def _require_few(name: str, distribution: Any) -> None:
    if isinstance(distribution, CategoricalDistribution) or distribution.step is None:
        return
    count = (distribution.high - distribution.low) / distribution.step + 1
    if count > MOST_COMBINATIONS:
        raise ValueError(
            f"the parameter {name!r} has {count:,.0f} values, and 'bruteforce' takes at most {MOST_COMBINATIONS:,}; "
            "give it a narrower range or a larger step, or choose another sampler"
        )
