"""The checkpoints of a worker's trial: when one is due, and which one is whole."""

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

    PostgreSQL knows each by its name, step and SHA-256, fenced by the lease: what a worker writes that has
    lost it is never read. The bytes are there, too, or in a store outside.

    Args:
        storage: where the study is.
        claim: the lease.
        store: the store outside; ``None`` where the bytes are in PostgreSQL.
        every: seconds between two.
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
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved_at >= self._every

    def save(self, step: int, state: Callable[[], bytes]) -> None:
        """Keep a checkpoint. What goes wrong is logged: training goes on.

        Raises:
            LeaseLost: the trial is no longer held.
            Exception: what ``state`` raises.
        """
        data = state()
        self._sequence += 1
        name = f"{self._claim.number}/{self._claim.epoch}-{self._sequence}"
        try:
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
        self._saved_at = time.monotonic()

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole.

        Raises:
            StorageUnreachable: the database is away.
        """
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
        """Delete what lies outside, when the trial has ended; the database deletes its own."""
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
    """Delete what lies outside of trials that have ended, by whatever hand."""
    ended = {trial.number for trial in storage.trials(record) if trial.state.is_finished()}
    store.delete([name for name in store.names() if int(name.partition("/")[0]) in ended])
