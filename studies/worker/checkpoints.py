"""The checkpoints of a leased trial: when one is due, and which one is intact."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable

from studies.checkpoint_stores import CheckpointStore
from studies.errors import CheckpointError, LeaseLost, StorageError
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim, SavedCheckpoint, StudyRecord
from studies.trial import Checkpoint

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one trial under one lease.

    PostgreSQL has the name, step and SHA-256 of each, fenced by the claim: a checkpoint of a worker that lost its
    lease is never read. The bytes are in PostgreSQL as well, or in a checkpoint store.

    Args:
        storage: where the study is.
        claim: the claim of the lease.
        store: the checkpoint store; ``None`` for PostgreSQL.
        every: seconds between two checkpoints.
    """

    def __init__(self, storage: PostgresStorage, claim: Claim, store: CheckpointStore | None, every: float) -> None:
        self._storage = storage
        self._claim = claim
        self._store = store
        self._every = every
        self._saved_at = time.monotonic()
        self._sequence = 0

    @property
    def is_due(self) -> bool:
        """Whether ``every`` seconds have passed since the last checkpoint."""
        return time.monotonic() - self._saved_at >= self._every

    def save(self, step: int, state: Callable[[], bytes]) -> None:
        """Save a checkpoint. A failing store is logged, and training continues.

        Raises:
            LeaseLost: another worker has the trial by now.
            Exception: whatever ``state`` raises.
        """
        data = state()
        self._sequence += 1
        name = f"{self._claim.number}/{self._claim.epoch}-{self._sequence}"
        try:
            # The bytes before the row: a worker that dies in between leaves a stray file, and no row without bytes.
            if self._store:
                self._store.write(name, data)
            superseded = self._storage.leases.save_checkpoint(
                self._claim,
                sequence=self._sequence,
                name=name,
                step=step,
                sha256=hashlib.sha256(data).digest(),
                data=None if self._store else data,
            )
            if self._store:
                self._store.delete(superseded)
        except LeaseLost:
            raise
        except (CheckpointError, StorageError) as error:
            log.warning("trial %d: no checkpoint at step %d: %s", self._claim.number, step, error)
        # After a failure as well: a store that is full or unreachable is tried once per interval, not at each step.
        self._saved_at = time.monotonic()

    def restore(self) -> Checkpoint | None:
        """The newest intact checkpoint; a damaged one is logged and skipped.

        Raises:
            StorageUnreachable: no answer from the database.
        """
        if self._claim.epoch == 1 and self._sequence == 0:
            return None  # nobody has had the trial before: no need to ask, and no outage that it would wait for
        for saved in self._storage.leases.checkpoints(self._claim.trial_id):
            data = self._read(saved)
            if data is None:
                reason = "is missing"
            elif hashlib.sha256(data).digest() != saved.sha256:
                reason = "is not what was saved (its SHA-256 differs)"
            else:
                return Checkpoint(step=saved.step, state=data)
            log.warning("trial %d: checkpoint %s %s; trying the one before", self._claim.number, saved.name, reason)
        return None

    def discard(self) -> None:
        """Delete the ended trial's files in the store. The database deletes its rows itself."""
        if self._store:
            with_trial = f"{self._claim.number}/"
            try:
                self._store.delete([name for name in self._store.names() if name.startswith(with_trial)])
            except CheckpointError as error:
                log.warning("trial %d: its checkpoints could not be deleted: %s", self._claim.number, error)

    def _read(self, saved: SavedCheckpoint) -> bytes | None:
        if self._store is None or saved.data is not None:
            return saved.data
        try:
            return self._store.read(saved.name)
        except CheckpointError as error:
            log.warning("trial %d: checkpoint %s cannot be read: %s", self._claim.number, saved.name, error)
            return None


def delete_ended(storage: PostgresStorage, record: StudyRecord, store: CheckpointStore) -> None:
    """Delete the files of ended trials in the store, whoever ended them."""
    ended = {trial.number for trial in storage.trials(record) if trial.state.is_finished()}
    store.delete([name for name in store.names() if int(name.partition("/")[0]) in ended])
