"""The trials that a process knows, so that no call reads what has not changed.

They are the trials that it read, until the database says that one has changed, and the running ones that it began
or holds, which by Optuna's contract nobody else writes to.
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

#: Seconds for which what was read for a worker's trial is not read again. With Hyperband, TPE reads all trials
#: once for each parameter; and steps as short as this are not pruned by what happened in between.
FRESH_SECONDS = 0.05

Rows = list[dict[str, Any]]


class Writer(Protocol):
    """Who writes to a trial that is held by a lease."""

    def put(self, kind: str, change: Change) -> None:
        """Have one of params, reports, user_attrs, system_attrs or metrics written, soon."""

    def finish(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Have the result written with what is told next, and all that was put before."""


class KnownTrials:
    """The trials of all studies, as far as this process knows them. For any number of threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._caches: dict[int, TrialCache] = {}  # by study
        # The running trials that this process began, by id, and the study of each.
        self._own: dict[int, FrozenTrial] = {}
        self._study_of: dict[int, int] = {}
        self._writers: dict[int, Writer] = {}
        self._fresh: dict[int, float] = {}  # studies whose trials need not be read again, until when

    # Own trials

    def own(self, trial_id: int) -> FrozenTrial | None:
        """A running trial of this process's, as it is; ``None`` where it is another's."""
        return self._own.get(trial_id)

    def own_studies(self) -> set[int]:
        """The ids of the studies of which this process runs a trial."""
        return set(self._study_of.values())

    def writer(self, trial_id: int) -> Writer | None:
        """Who writes to this trial, if this process holds it by a lease."""
        return self._writers.get(trial_id)

    def put(self, study_id: int, trial: FrozenTrial) -> None:
        """This process runs ``trial``, which is like this now."""
        with self._lock:
            self._own[trial._trial_id], self._study_of[trial._trial_id] = trial, study_id
            cache = self._cache(study_id)
            if cache.get(trial._trial_id):
                cache.put(trial)

    def change(self, trial_id: int, field: str, key: Any, value: Any) -> None:
        """``field[key]`` of an own trial was written to be ``value``."""
        with self._lock:
            if trial := self._own.get(trial_id):
                self.put(self._study_of[trial_id], changed(trial, field, key, value))

    def attach(self, study_id: int, trial_id: int, writer: Writer) -> None:
        """From now on ``writer`` writes to this trial, which was read when it was claimed."""
        with self._lock:
            trial = self._cache(study_id).get(trial_id)
            assert trial is not None
            self.put(study_id, trial)
            self._writers[trial_id] = writer
            self._note_fresh(study_id)

    def release(self, trial_id: int) -> None:
        """The trial is no longer this process's: it is read again when it is next looked at."""
        with self._lock:
            self._writers.pop(trial_id, None)
            self._own.pop(trial_id, None)
            study_id = self._study_of.pop(trial_id, -1)
            self._fresh.pop(study_id, None)
            if study_id in self._caches:
                self._caches[study_id].forget(trial_id)

    def forget_study(self, study_id: int) -> None:
        """The study was deleted."""
        with self._lock:
            self._caches.pop(study_id, None)
            for trial_id in [trial_id for trial_id, of in self._study_of.items() if of == study_id]:
                self.release(trial_id)

    # All trials of a study

    def distribution(self, study_id: int, name: str) -> BaseDistribution | None:
        """That of a parameter, as the first trial that was read has it."""
        return self._cache(study_id).distributions.get(name)

    def distribution_of(self, trial_id: int, name: str) -> BaseDistribution | None:
        """Likewise, in the study of an own trial."""
        return self.distribution(self._study_of[trial_id], name)

    def last_read(self, study_id: int) -> list[FrozenTrial]:
        """The trials as they were last read. The list is the caller's."""
        with self._lock:
            return self._cache(study_id).select(None)

    def read(self, study_id: int, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials in these states as they are, by number; all for ``None``. The list is the caller's."""
        with self._lock:
            if time.monotonic() > self._fresh.get(study_id, 0.0):
                self._refresh(study_id)
            return self._cache(study_id).select(states)

    def ask(self, statement: str, study_id: int, **parameters: Any) -> Rows:
        """Send a statement that answers with the trials that changed since they were last read, each with its
        ``snapshot``, and learn them; or with one row that has none, from which there is nothing to learn."""
        with self._lock:
            while True:
                cache, losses = self._cache(study_id), self._database.losses
                if not cache.is_read or (cache.losses != losses and len(cache) >= pages.PAGE):
                    cache = self._caches[study_id] = self._read_all(study_id, losses)
                elif cache.losses != losses:
                    # All of it comes with this one answer. Were it read before, a line on which each third answer is
                    # lost could make this go on for ever.
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
            return  # an outage must not stop a training: what is known of the others will do to prune it
        self._note_fresh(study_id)

    def _read_all(self, study_id: int, losses: int) -> TrialCache:
        """Read a study's trials for the first time, a page at a time."""
        # The snapshot comes first: what changes while the pages are read is asked for again.
        (row,) = self._database.rows("trial_ids", study_id=study_id)
        cache = TrialCache(losses, snapshot=row["snapshot"], is_read=True)
        with _no_collections():
            for page in pages.read_pages(self._database, row["ids"] or ()):
                cache.load(pages.to_trials(page), self._own)
        return cache

    def _note_fresh(self, study_id: int) -> None:
        """The trials of a study were just read. Only a worker's trial is content with that for a while."""
        if self._writers:
            self._fresh[study_id] = time.monotonic() + FRESH_SECONDS

    def _cache(self, study_id: int) -> TrialCache:
        return self._caches.setdefault(study_id, TrialCache())


@contextmanager
def _no_collections() -> Iterator[None]:
    """Switch the garbage collector off: what is read here stays, and each of its walks over that finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
