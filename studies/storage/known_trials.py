"""The trials that a process knows: no call reads a trial again that has not changed.

These are a cache of all trials that were read, and the running trials that this process created or claimed. The latter
are never read again: by Optuna's contract no other process writes to them.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from studies.errors import StorageUnreachable
from studies.storage import pages
from studies.storage.database import Database
from studies.storage.records import Change
from studies.storage.trial_cache import TrialCache
from studies.storage.trials import changed

#: Seconds for which a worker's cache counts as fresh. With Hyperband, TPE reads all trials once per parameter, and each
#: read would be a statement. A pruner misses at most what others reported in this time.
FRESH_SECONDS = 0.05

Rows = list[dict[str, Any]]


class Writer(Protocol):
    """Writes to a leased trial, such as :class:`studies.worker.lease.Lease`."""

    def put(self, kind: str, change: Change) -> None:
        """Buffer a change of ``kind``: params, reports, user_attrs, system_attrs or metrics."""

    def finish(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Buffer the result, to be written with all changes that were put before."""


class KnownTrials:
    """The trials of all studies, as far as this process knows them. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._caches: dict[int, TrialCache] = {}  # by study
        # The running trials that this process created or claimed, by id, and the study of each.
        self._own: dict[int, FrozenTrial] = {}
        self._study_of: dict[int, int] = {}
        self._writers: dict[int, Writer] = {}
        self._fresh: dict[int, float] = {}  # study → until when its cache counts as fresh (monotonic clock)

    # Own trials

    def own(self, trial_id: int) -> FrozenTrial | None:
        """A running trial of this process; ``None`` if it is another's."""
        return self._own.get(trial_id)

    def study_of(self, trial_id: int) -> int:
        """The id of the study of an own trial."""
        return self._study_of[trial_id]

    def own_studies(self) -> set[int]:
        """The ids of the studies with a running trial of this process."""
        return set(self._study_of.values())

    def writer(self, trial_id: int) -> Writer | None:
        """The writer of this trial; ``None`` if this process has no lease on it."""
        return self._writers.get(trial_id)

    def put(self, study_id: int, trial: FrozenTrial) -> None:
        """Store the current state of a running trial of this process."""
        with self._lock:
            self._own[trial._trial_id], self._study_of[trial._trial_id] = trial, study_id
            cache = self._cache(study_id)
            if cache.get(trial._trial_id):
                cache.put(trial)

    def change(self, trial_id: int, field: str, key: Any, value: Any) -> None:
        """Set ``field[key]`` of an own trial to ``value``, which was just written."""
        with self._lock:
            if trial := self._own.get(trial_id):
                self.put(self._study_of[trial_id], changed(trial, field, key, value))

    def attach(self, study_id: int, trial_id: int, writer: Writer) -> None:
        """Own a claimed trial, and send its writes through ``writer``. The claim has put it into the cache."""
        with self._lock:
            trial = self._cache(study_id).get(trial_id)
            assert trial is not None
            self.put(study_id, trial)
            self._writers[trial_id] = writer
            self._note_fresh(study_id)

    def release(self, trial_id: int) -> None:
        """Own a trial no longer: the next read asks the database."""
        with self._lock:
            self._writers.pop(trial_id, None)
            self._own.pop(trial_id, None)
            study_id = self._study_of.pop(trial_id, -1)
            self._fresh.pop(study_id, None)
            if study_id in self._caches:
                self._caches[study_id].forget(trial_id)

    def forget_study(self, study_id: int) -> None:
        """Forget a deleted study."""
        with self._lock:
            self._caches.pop(study_id, None)
            for trial_id in [trial_id for trial_id, of in self._study_of.items() if of == study_id]:
                self.release(trial_id)

    # All trials of a study

    def distribution(self, study_id: int, name: str) -> BaseDistribution | None:
        """The distribution of a parameter in the first trial that was read; ``None`` if no trial has it."""
        return self._cache(study_id).distributions.get(name)

    def distribution_of(self, trial_id: int, name: str) -> BaseDistribution | None:
        """The same, in the study of an own trial."""
        return self.distribution(self._study_of[trial_id], name)

    def read(self, study_id: int, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The current trials in these states, by number; all for ``None``. The caller may change the list."""
        with self._lock:
            return self._current(study_id).select(states)

    def changes(self, study_id: int, since: int) -> tuple[Sequence[FrozenTrial], Sequence[int], int]:
        """The current trials of a study, and what has changed after an earlier call. No copy, no walk over all trials.

        Args:
            study_id: of the study.
            since: what the earlier call returned last; 0 for all trials.

        Returns:
            All trials, by number: a view that changes with them. The places of those that changed, ascending. The
            ``since`` of the next call.
        """
        with self._lock:
            cache = self._current(study_id)
            return cache.trials, *cache.changes(since)

    def _current(self, study_id: int) -> TrialCache:
        if time.monotonic() > self._fresh.get(study_id, 0.0):
            self._refresh(study_id)
        return self._cache(study_id)

    def ask(self, statement: str, study_id: int, **parameters: Any) -> Rows:
        """Send a statement that returns the trials that changed since the last read, and update the cache.

        Each of its rows has a ``snapshot``; a row without one is no trial, and is only returned.
        """
        with self._lock:
            while True:
                cache, losses = self._cache(study_id), self._database.losses
                if not cache.is_read or (cache.losses != losses and len(cache) >= pages.PAGE):
                    cache = self._caches[study_id] = self._read_all(study_id, losses)
                elif cache.losses != losses:
                    # A small study comes whole with this one answer. Reading it first, in a statement of its own,
                    # might never end on a network that loses every third answer.
                    cache = self._caches[study_id] = TrialCache(losses, is_read=True)
                question = cache.question(self._own)
                rows = self._database.rows(statement, study_id=study_id, **parameters, **question)
                if losses == self._database.losses:
                    cache.learn((row for row in rows if row["snapshot"]), self._own)
                    return rows

    def _refresh(self, study_id: int) -> None:
        try:
            self.ask("changed_trials", study_id)
        except StorageUnreachable:
            if not self._writers:
                raise
            return  # an outage must not stop a training: the pruner uses the trials of the last read
        self._note_fresh(study_id)

    def _read_all(self, study_id: int, losses: int) -> TrialCache:
        """Read all trials of a study, page by page."""
        # The snapshot before the pages: trials that change meanwhile are then read again by the next statement.
        (row,) = self._database.rows("trial_ids", study_id=study_id)
        cache = TrialCache(losses, snapshot=row["snapshot"], is_read=True)
        with _no_collections():
            for page in pages.read_pages(self._database, row["ids"] or ()):
                cache.load(pages.to_trials(page), self._own)
        return cache

    def _note_fresh(self, study_id: int) -> None:
        """Mark the cache as fresh for a while. Only in a worker: a person expects every read to be current."""
        if self._writers:
            self._fresh[study_id] = time.monotonic() + FRESH_SECONDS

    def _cache(self, study_id: int) -> TrialCache:
        cache = self._caches.get(study_id)
        if cache is None:
            cache = self._caches[study_id] = TrialCache()
        return cache


@contextmanager
def _no_collections() -> Iterator[None]:
    """Disable the garbage collector: it would walk over 50,000 new trials again and again, and find no garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
