"""A study as a worker serves it: its objective, sampler and pruner, and where its results and checkpoints go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.checkpoint_stores import CheckpointStore, open_store
from studies.objective import Objective, slots_of, trains_several
from studies.search.samplers import grid_of
from studies.spec.samplers import reseed
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim, StudyRecord
from studies.trial import Trial
from studies.worker.checkpoints import delete_ended
from studies.worker.leased_trial import LeasedTrial
from studies.worker.pending_results import Results


@dataclass(frozen=True, kw_only=True)
class Service:
    """A study that a worker serves."""

    record: StudyRecord
    objective: Objective
    share: float = 1.0
    """Of the worker's trials, relative to the shares of its other studies."""
    script_sha256: str | None = None
    """Of the content of the objective's script, in hexadecimal; ``None`` where it is in no script."""


class ServedStudy:
    """A study as a worker serves it.

    Raises:
        StorageError: it was not made by studyhall.
        CheckpointError: checkpoints can't be kept where its spec says.
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
        #: The hash of the objective's script, where it is not the one with which the study was made.
        self.changed_script = here if made_with and here != made_with else None
        self.results = Results(results, record.uid)
        self.store: CheckpointStore | None = None
        if self.spec.checkpoints.store != "postgresql":
            self.store = open_store(self.spec.checkpoints.store, record.uid)
            self.store.check()
        self.optuna = storage.load_study(record)
        self.optuna.sampler = self.spec.to_sampler(0)
        self.optuna.pruner = self.spec.to_pruner()
        self._grid = grid_of(self.optuna.sampler)
        # An objective or a sampler may call study.stop(), which Optuna allows inside optimize() alone.
        self.optuna._thread_local.in_optimize_loop = True
        self._storage = storage
        self._is_clean = False

    def clean_up(self) -> None:
        """Do once what an earlier worker of this machine could not: tell its results, delete what ended."""
        if not self._is_clean:
            self.results.tell(self._storage)
            if self.store:
                delete_ended(self._storage, self.record, self.store)
            self._is_clean = True

    @property
    def trains_several(self) -> bool:
        """Whether the objective may train several trials at once."""
        return trains_several(self.objective)

    def slots(self, device: str, wanted: int | None) -> int:
        """How many trials to train at once; see :func:`slots_of`."""
        return slots_of(self.objective, device, wanted)

    def most_trials(self) -> int | None:
        """Up to how many trials there are new ones to begin: a grid has no more than its combinations."""
        if self._grid is None:
            return None
        trials = self._storage.trials(self.record)
        return len(trials) + self._grid.left(trials)

    def end_exhausted(self) -> None:
        """Stop a grid whose last worker ended before it could, unless another trial was enqueued meanwhile."""
        if self._grid and not self._grid.left(self._storage.trials(self.record)):
            self._storage.budgets.stop(self.record, "stopped")

    def begin(self, claim: Claim, holder: LeasedTrial) -> Trial:
        """The trial that was just claimed. Its sampler knows what others did until then, and the parameters of those
        that this worker began before it."""
        self.optuna._thread_local.cached_all_trials = self._storage.known_trials(claim.study_id)
        reseed(self.optuna.sampler, self.spec.seed_of(claim.number))
        return Trial(self.optuna, claim.trial_id, holder=holder, seed=self.spec.seed_of)
