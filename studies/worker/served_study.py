"""A study that a worker serves: its objective, sampler, pruner, pending results and checkpoint store."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial

from studies import environment
from studies.checkpoint_stores import CheckpointStore, open_store
from studies.environment import Environment
from studies.objective import Objective, slots_of, steps_of, trains_several
from studies.search.curve_sampler import inform
from studies.search.reserve import Reserve
from studies.search.samplers import finite_of
from studies.search.scheduler import Scheduler
from studies.search.study import NEWEST_EVIDENCE, evidence_of
from studies.search.tpe import Subset, TPESampler
from studies.spec.constraints import Constraint
from studies.spec.samplers import reseed
from studies.stop_reasons import UNREPORTED
from studies.storage.evidence import ForeignTrial
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim, StudyRecord
from studies.trial import Trial
from studies.worker.checkpoints import delete_ended
from studies.worker.leased_trial import LeasedTrial
from studies.worker.pending_results import PendingResults
from studies.worker.planner import Planner

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a worker is given of a study."""

    record: StudyRecord
    objective: Objective
    share: float = 1.0
    """Of the worker's trials, relative to the shares of the other studies."""
    script_sha256: str | None = None
    """SHA-256 of the objective's script, in hexadecimal; ``None`` for an objective in a package."""
    environment: Environment = field(default_factory=dict)
    """Of the worker; empty where nobody is to know."""


class ServedStudy:
    """A study that a worker serves, opened.

    Raises:
        StorageError: stock Optuna made the study.
        CheckpointError: its checkpoint store can't be written to.
    """

    def __init__(self, storage: PostgresStorage, service: Service, results: Path) -> None:
        record = service.record
        self.record = record
        self.spec = record.require_spec("no worker knows what it runs")
        assert record.uid is not None  # as of every study with a spec
        self.objective: Any = service.objective
        self.share = service.share
        self.taken = 0
        made_with, here = self.spec.objective.sha256, service.script_sha256
        #: The SHA-256 of the objective's script if it differs from the one that made the study.
        self.changed_script = here if made_with and here != made_with else None
        #: The facts of the worker's environment that differ from the study's.
        self.other_environment = environment.differing(storage.environment(record) or {}, service.environment)
        self.results = PendingResults(results, record.uid)
        self.store: CheckpointStore | None = None
        if self.spec.checkpoints.store != "postgresql":
            self.store = open_store(self.spec.checkpoints.store, record.uid)
            self.store.check()
        self.optuna = self.spec.to_study(storage)
        self._storage = storage
        self._foreign = storage.evidence.of(record)
        self.optuna.evidence = self._evidence()
        self._finite = finite_of(self.optuna.sampler)
        self._scheduler = scheduler = self.spec.to_scheduler(steps_of(self.objective))
        self._inform_sampler()
        #: Asks the study's scheduler; ``None`` without one.
        self.planner = Planner(storage, record, self._with_reserve(scheduler)) if scheduler else None
        # TPE takes as long as there are trials, and a Gaussian process the cube of it.
        is_bounded = isinstance(self.optuna.sampler, TPESampler | GPSampler) and len(self.spec.all_directions) == 1
        if is_bounded:
            self.optuna.subset = Subset(minimize=self.spec.all_directions[0] == "minimize")
        # Optuna allows study.stop() inside optimize() only; objectives and samplers may call it here as well.
        self.optuna._thread_local.in_optimize_loop = True
        self._is_clean = False
        self._space_version = 0
        self._warned: set[str] = set()

    def warn_once(self, message: str, *arguments: object) -> None:
        """Log a warning, unless this worker has logged the same message of the study."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message, *arguments)

    def follow(self, claims: Sequence[Claim]) -> None:
        """Read the study's space if it has changed, before the claimed trials are sampled.

        Raises:
            StorageUnreachable: it cannot be read. The claims then expire.
        """
        version = max((claim.space_version for claim in claims), default=0)
        if version <= self._space_version:
            return
        spec = self._storage.find_study(self.record.name).require_spec("no worker knows what it runs")
        self.spec, self._space_version = spec, version
        space = {name: parameter.distribution() for name, parameter in spec.space.items()}
        self._storage.set_space(self.record.study_id, space)
        self.optuna.sampler, self.optuna.space = spec.to_sampler(0), space
        self.optuna.evidence = self._evidence()
        self._inform_sampler()
        self._finite = finite_of(self.optuna.sampler)

    def _with_reserve(self, scheduler: Scheduler) -> Scheduler:
        """Where it is known how many steps a trial takes to its end: they are kept back for the best one."""
        steps = steps_of(self.objective)
        if steps is None:
            return scheduler
        left = partial(self._storage.budgets.epochs_left, self.record)
        return Reserve(scheduler, direction=self.spec.all_directions[0], steps=steps, left=left)

    def _inform_sampler(self) -> None:
        inform(
            self.optuna.sampler,
            steps=steps_of(self.objective),
            scheduler=self._scheduler,
            evidence=self.optuna.evidence,
        )

    def _evidence(self) -> list[FrozenTrial]:
        """The trials of other studies within the present space, for the sampler."""
        space = self.spec.space
        legal: list[ForeignTrial] = [
            trial
            for trial in self._foreign
            if all(name in space and space[name].contains(value) for name, value in trial.params.items())
        ]
        distributions = {name: parameter.distribution() for name, parameter in space.items()}
        oldest = NEWEST_EVIDENCE - len(legal) + 1
        return [
            evidence_of(number, trial.params, distributions, trial.values, trial.constraints, trial.step)
            for number, trial in enumerate(legal, oldest)
        ]

    def clean_up(self) -> None:
        """Finish the work of earlier workers, once: send pending results, delete checkpoints of ended trials."""
        if not self._is_clean:
            self.results.send(self._storage)
            if self.store:
                delete_ended(self._storage, self.record, self.store)
            self._is_clean = True

    @property
    def trains_several(self) -> bool:
        """Whether the objective may train several trials at once."""
        return trains_several(self.objective)

    def slots(self, device: str, wanted: int | None) -> int:
        """How many trials to train at once, by :func:`studies.objective.slots_of`."""
        return slots_of(self.objective, device, wanted)

    def most_trials(self) -> int | None:
        """The number of trials beyond which the study gets no new one: a grid ends with its combinations."""
        if self._finite is None:
            return None
        trials = self._storage.trials(self.record)
        return len(trials) + self._finite.left(trials)

    def end_exhausted(self) -> None:
        """Stop a study that gets no new trials: its grid is exhausted, or its scheduler wants nothing more.

        Optuna's grid sampler does this itself after its last trial, unless that worker dies before.
        """
        if self.planner or (self._finite and not self._finite.left(self._storage.trials(self.record))):
            self._storage.budgets.stop(self.record, "stopped")

    def end_unjudged(self, missing: Sequence[str]) -> None:
        """Stop a study where no trial ever reported one of the constrained metrics ``missing``: none ever will.

        A metric that other trials reported is one trial's failure.
        """
        trials = self._storage.trials(self.record) if missing else ()
        if any(not any(name in trial.constraints for trial in trials) for name in missing):
            self._storage.budgets.stop(self.record, UNREPORTED)

    def begin(self, claim: Claim, holder: LeasedTrial) -> Trial:
        """The claimed trial, with its sampler seeded. The sampler reads all trials anew, if it reads any."""
        self.optuna._thread_local.cached_all_trials = None
        reseed(self.optuna.sampler, self.spec.seed_of(claim.number))
        return Trial(
            self.optuna,
            claim.trial_id,
            holder=holder,
            seed=self.spec.seed_of,
            prune_on=self.spec.pruner.metric,
            constrained=self.spec.constraints,
        )

    def note_environment(self, trial: Trial) -> None:
        """Store with a trial what differs in its environment; an earlier attempt may have had another one."""
        if self.other_environment or environment.ATTRIBUTE in trial.storage.get_trial_system_attrs(trial._trial_id):
            trial.storage.set_trial_system_attr(trial._trial_id, environment.ATTRIBUTE, self.other_environment)

    def constrain(self, trial: Trial, values: Sequence[float] | None) -> list[str]:
        """Set the constraints of the spec by the objective's values, and by what the trial reported last.

        Args:
            trial: that ends.
            values: of a COMPLETE trial; ``None`` of a pruned one.

        Returns:
            The metrics that the trial never reported.

        Raises:
            StorageUnreachable: only the database knows what an earlier attempt reported.
        """
        bounds = {name: Constraint.parse(text) for name, text in self.spec.constraints.items()}
        if not bounds:
            return []
        known = {**trial.last_metrics, **dict(zip(self.spec.metric_names, values or (), strict=False))}
        if not bounds.keys() <= known.keys() and values is not None:
            known = self._reported_before(trial) | known
        for name, bound in bounds.items():
            if name in known and name not in trial.constraints:
                trial.set_constraint(name, bound.violation(known[name]))
        return [name for name in bounds if name not in known]

    def _reported_before(self, trial: Trial) -> dict[str, float]:
        """The latest value of each metric that earlier attempts of a trial reported."""
        steps = self._storage.metrics.of(self._storage.get_trial(trial._trial_id))
        return {name: value for _, metrics in sorted(steps.items()) for name, value in metrics.items()}
