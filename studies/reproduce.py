"""Reproduce: run a stored trial again, anywhere, and say how closely it matches.

Nothing is written to the study: the trial runs in memory, with the parameters, number and seed of the stored one. A
pruned trial ends at the step at which it was pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from studies import environment
from studies.errors import ObjectiveError, StudyhallError, command, described
from studies.trial import SEED, Checkpoint, Trial, as_values

if TYPE_CHECKING:
    from studies.objective import Objective
    from studies.spec.study import StudySpec
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

#: What was passed to ``trial.report``, beside the named metrics.
REPORTED = "reported value"

Steps = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where a number differs most."""

    name: str
    """Of the metric, of the objective's value, or ``REPORTED``."""
    step: int | None
    """``None`` for a value that the objective returned."""
    then: float | None
    """``None`` where there is none; likewise ``now``."""
    now: float | None
    numbers: int
    """How many numbers of this name differ."""

    @property
    def size(self) -> float:
        """How far the two are apart; infinite where one of them is missing or not finite."""
        if self.then is None or self.now is None:
            return math.inf
        distance = abs(self.now - self.then)
        return math.inf if math.isnan(distance) else distance


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How closely a trial matches its repetition."""

    study: str
    number: int
    steps: int
    """How many steps were compared."""
    differences: Sequence[Difference]
    """The largest of each name, the largest first; empty where all is equal bit by bit."""
    then: environment.Environment | None
    """The environment of the trial; ``None`` where an older version ran it."""
    now: environment.Environment

    @property
    def is_exact(self) -> bool:
        """Whether every number is equal bit by bit."""
        return not self.differences

    @property
    def changes(self) -> list[str]:
        """What differs in the environment, a line for each fact."""
        return [] if self.then is None else environment.in_words(self.then, self.now)


def require_reproducible(record: StudyRecord, trial: FrozenTrial) -> StudySpec:
    """The spec of a study one of whose trials can be reproduced.

    Raises:
        StorageError: stock Optuna made the study.
        StudyhallError: the trial has no result.
    """
    spec = record.require_spec("it stores no spec, and nobody knows what its trials ran")
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        raise StudyhallError(
            f"trial {trial.number} of study {record.name!r} is {trial.state.name}; only COMPLETE and PRUNED trials "
            f"have results to compare with; see: {command('trials', record.name, '--state', 'complete')}"
        )
    return spec


def reproduce(
    storage: PostgresStorage,
    record: StudyRecord,
    trial: FrozenTrial,
    objective: Objective,
    *,
    device: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Reproduction:
    """Run ``trial`` again, and compare every number that it reported and returned.

    Args:
        storage: where the study is; only read.
        record: the study.
        trial: of the study.
        objective: the study's, built.
        device: the PyTorch name of the device.
        progress: is called with each step that the repetition has reported.

    Raises:
        StorageError, StudyhallError: as :func:`require_reproducible`.
        ObjectiveError: the objective raises now, or returns no number.
    """
    spec = require_reproducible(record, trial)
    replay = _Replay(trial, device, progress)
    values = replay.run(spec, objective)
    then = storage.environment(record)
    steps = {step: {REPORTED: value} for step, value in trial.intermediate_values.items()}
    for step, metrics in storage.metrics.of(trial).items():
        steps[step] = {**steps.get(step, {}), **metrics}
    # A pruned trial of one objective has its last report as its value.
    returned = trial.values if trial.state == TrialState.COMPLETE else None
    return Reproduction(
        study=record.name,
        number=trial.number,
        steps=len(steps.keys() & replay.steps.keys()),
        differences=_differences(steps, replay.steps, _named(spec, returned), _named(spec, values)),
        then=then and environment.of_trial(then, trial.system_attrs),
        now=environment.collect(spec.objective.path, objective, device),
    )


class _Replay:
    """Holds the repetition of a trial (a :class:`studies.trial.LeaseHolder`), and keeps what it reports."""

    stop_requested = False

    def __init__(self, stored: FrozenTrial, device: str, progress: Callable[[int], None]) -> None:
        self.device = device
        self.steps: dict[int, dict[str, float]] = {}
        self._stored = stored
        self._progress = progress
        self._last = max(stored.intermediate_values, default=None)

    @property
    def is_over(self) -> bool:
        """Whether the stored trial was pruned here."""
        reached = max(self.steps, default=None)
        is_there = self._last is None or (reached is not None and reached >= self._last)
        return self._stored.state == TrialState.PRUNED and is_there

    @property
    def ends_at_rung(self) -> bool:
        """No scheduler looks on."""
        return False

    def run(self, spec: StudySpec, objective: Objective) -> list[float] | None:
        """The objective's values; ``None`` of a pruned trial."""
        trial = self._trial(spec)
        try:
            if spec.space:  # as it was then: the study's may have changed since
                for name, distribution in self._stored.distributions.items():
                    trial._suggest(name, distribution)
            returned = objective(trial)
        except optuna.TrialPruned:
            returned = None
        except Exception as error:
            raise ObjectiveError(
                f"trial {self._stored.number} of study {spec.name!r} fails now: {described(error)}"
            ) from error
        # From the storage, which keeps the first report of a step, as that of the study did.
        for step, value in trial.storage.get_trial(trial._trial_id).intermediate_values.items():
            self.steps.setdefault(step, {})[REPORTED] = value
        if returned is None or self._stored.state == TrialState.PRUNED:
            return None
        values = as_values(returned, len(spec.all_directions))
        if isinstance(values, str):
            raise ObjectiveError(f"trial {self._stored.number} of study {spec.name!r} fails now: {values}")
        return values

    def _trial(self, spec: StudySpec) -> Trial:
        storage = optuna.storages.InMemoryStorage()
        directions = [optuna.study.StudyDirection[direction.upper()] for direction in spec.all_directions]
        study_id = storage.create_new_study(directions, spec.name)
        own_seed = {key: value for key, value in self._stored.system_attrs.items() if key == SEED}
        template = optuna.create_trial(
            state=TrialState.RUNNING, system_attrs={"fixed_params": dict(self._stored.params), **own_seed}
        )
        trial_id = storage.create_new_trial(study_id, template)
        storage._get_trial(trial_id).number = self._stored.number  # its seed follows from it, unless it has its own
        # Draws only what the objective suggests now and did not then.
        sampler = optuna.samplers.RandomSampler(spec.seed_of(self._stored.number))
        study = optuna.Study(spec.name, storage, sampler=sampler, pruner=optuna.pruners.NopPruner())
        return Trial(
            study,
            trial_id,
            holder=self,
            seed=spec.seed_of,
            prune_on=spec.pruner.metric,
            constrained=spec.constraints,
        )

    # For the trial

    def agree(self, name: str, distribution: BaseDistribution) -> BaseDistribution:
        """The distribution of the stored trial."""
        return self._stored.distributions.get(name, distribution)

    def put_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a step."""
        self.steps.setdefault(step, {}).update(metrics)

    def flush(self, step: int) -> None:
        """End a step."""
        self._progress(step)

    def save(self, step: int, state: Callable[[], bytes]) -> None:
        """No checkpoint is due."""

    def restore(self) -> Checkpoint | None:
        """A fresh start."""
        return None


def _named(spec: StudySpec, values: Sequence[float] | None) -> dict[str, float]:
    return dict(zip(spec.metric_names, values or (), strict=False))


def _differences(
    then: Steps, now: Steps, values_then: Mapping[str, float], values_now: Mapping[str, float]
) -> list[Difference]:
    """The largest difference of each name, those of the values apart from those of the steps."""
    pairs: dict[tuple[str, bool], list[tuple[int | None, Any, Any]]] = {}
    for name in {**values_then, **values_now}:
        pairs.setdefault((name, True), []).append((None, values_then.get(name), values_now.get(name)))
    for step in sorted({*then, *now}):
        before, after = then.get(step, {}), now.get(step, {})
        for name in {**before, **after}:
            pairs.setdefault((name, False), []).append((step, before.get(name), after.get(name)))
    found = []
    for (name, _), numbers in pairs.items():
        apart = [(step, old, new) for step, old, new in numbers if not _is_equal(old, new)]
        if apart:
            each = [Difference(name=name, step=s, then=old, now=new, numbers=len(apart)) for s, old, new in apart]
            found.append(max(each, key=lambda difference: difference.size))
    return sorted(found, key=lambda difference: -difference.size)


def _is_equal(old: float | None, new: float | None) -> bool:
    # Not by ==: where it was NaN then and is NaN now, the number is reproduced.
    both_nan = old is not None and new is not None and math.isnan(old) and math.isnan(new)
    return both_nan or old == new
