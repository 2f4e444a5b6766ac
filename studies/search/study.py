"""The study as samplers and pruners see it: with evidence from other studies, in its present space, with one direction.

Samplers read trials by Optuna's ``Study._get_trials``, pruners and people by ``Study.get_trials``, which here stays the
study's own.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.search.tpe import Subset

#: The number of the newest trial that is evidence; older ones have lower numbers. Optuna looks for parameters that all
#: trials have from number -1 on, and a trial of another study need not have all.
NEWEST_EVIDENCE = -2


class Study(optuna.Study):
    """Optuna's study, and what it lacks.

    Attributes:
        pruned_direction: of several objectives, the direction of the one that is pruned on.
        subset: chooses the trials from which samplers learn; ``None`` for all.
        evidence: trials of other studies, the newest last, with numbers up to :data:`NEWEST_EVIDENCE`.
        space: the distributions of a space that has changed; trials beyond it are hidden from samplers. ``None`` where
            it never changed.
    """

    pruned_direction: StudyDirection | None = None
    subset: Subset | None = None
    evidence: Sequence[FrozenTrial] = ()
    space: Mapping[str, BaseDistribution] | None = None
    _since = 0  # when the subset was chosen, as the storage has it

    @property
    def direction(self) -> StudyDirection:
        return self.pruned_direction or super().direction

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return super()._get_trials(deepcopy, states, use_cache=False)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if self.subset is None:
            return self.seen(super()._get_trials(deepcopy, states, use_cache), states)
        storage: Any = self._storage  # a worker's, which copies no large study for each parameter of each trial
        seen, changed, self._since = storage.changes(self._study_id, self._since)
        chosen = self.subset.of(seen, changed)
        trials = [trial for trial in chosen if states is None or trial.state in states]
        return self.seen(copy.deepcopy(trials) if deepcopy else trials, states)

    def seen(self, trials: Sequence[FrozenTrial], states: Container[TrialState] | None) -> list[FrozenTrial]:
        """What a sampler sees of the study's ``trials`` in these states."""
        evidence = [trial for trial in self.evidence if states is None or trial.state in states]
        own = trials if self.space is None else [seen for trial in trials if (seen := within(trial, self.space))]
        return [*evidence, *own]


def within(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> FrozenTrial | None:
    """``trial`` with the distributions of a space; ``None`` if a parameter lies beyond it."""
    changed = {name: space[name] for name, of in trial.distributions.items() if space.get(name, of) != of}
    if not changed:
        return trial
    if not all(is_within(distribution, trial.params[name]) for name, distribution in changed.items()):
        return None
    twin = copy.copy(trial)
    twin.distributions = {**trial.distributions, **changed}
    return twin


def is_within(distribution: BaseDistribution, value: object) -> bool:
    """Whether a parameter may have this value."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):  # no such choice
        return False


def evidence_of(
    number: int,
    params: Mapping[str, object],
    space: Mapping[str, BaseDistribution],
    values: Sequence[float],
    constraints: Mapping[str, float],
    step: int | None = None,
) -> FrozenTrial:
    """A trial of another study, as a sampler takes it: a PRUNED one if its value is that of a ``step``."""
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState.COMPLETE if step is None else TrialState.PRUNED,
        value=None,
        values=list(values) if step is None else None,
        datetime_start=None,
        datetime_complete=None,
        params=dict(params),
        distributions={name: space[name] for name in params},
        user_attrs={},
        system_attrs={f"constraints:{name}": by for name, by in constraints.items()},
        intermediate_values={} if step is None else {step: values[0]},
    )
