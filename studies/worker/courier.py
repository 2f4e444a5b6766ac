"""The courier: the thread that keeps a worker's lease.

It gives heartbeats, and carries all that the database could not be told because it was away: so no training waits for
a database that hangs.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from studies.errors import StorageUnreachable
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim
from studies.worker.lease import RETRY, Lease
from studies.worker.results import Results

log = logging.getLogger(__name__)

#: Seconds for which a trial waits for the answer to its report; then it goes on without.
PATIENCE: Final = 1.0
#: Seconds between two heartbeats, at most: people look at them, too.
BEAT: Final = 10.0


class Courier:
    """Carries what the lease has to tell, and gives signs of life. A context manager.

    Args:
        storage: where to; used from this thread beside others.
        worker_id: the worker's name in the database.
        lease_seconds: how long a lease lasts after a sign of life; one is given at least three times as often.
        stop: set when the worker is asked to stop.
    """

    def __init__(
        self, storage: PostgresStorage, *, worker_id: str, lease_seconds: float, stop: threading.Event
    ) -> None:
        self.changed = threading.Condition()
        self.lease_seconds = lease_seconds
        self.stop = stop
        self._storage = storage
        self._worker_id = worker_id
        self._within = min(BEAT, lease_seconds / 3)
        self._carrying = threading.Lock()  # one thing after the other
        self._is_cut_off = False
        self._lease: Lease | None = None
        self._beat_at = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> Courier:
        self._beat_at = time.monotonic() + self._within
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self._ended = True
            self.changed.notify_all()
        self._thread.join()

    def take(self, claim: Claim, results: Results) -> Lease:
        """Begin to serve the lease of ``claim``; its result waits in ``results`` while the database is away."""
        with self.changed:
            self._lease = Lease(claim, self, results)
            return self._lease

    def drop(self, lease: Lease) -> None:
        """Serve this lease no longer."""
        with self.changed:
            if self._lease is lease:
                self._lease = None
        with self._carrying:
            pass  # what was under way is over

    def carry(self, lease: Lease) -> None:
        """Carry what ``lease`` has to tell in the caller's thread, if that takes no longer than its patience;
        else it is the courier's."""
        if self._is_cut_off or not self._carrying.acquire(timeout=PATIENCE):
            return
        try:
            self._try(partial(lease.carry, self._storage, min(self._within, PATIENCE)))
        finally:
            self._carrying.release()

    def _run(self) -> None:
        while True:
            with self.changed:
                lease, now = self._lease, time.monotonic()
                due = min(self._beat_at, lease.due if lease and lease.due else self._beat_at)
                if self._ended:
                    return
                if now < due:
                    self.changed.wait(due - now)
                    continue
            with self._carrying:
                self._try(partial(self._work, lease))
            if self._is_cut_off:
                with self.changed:
                    # With jitter: a fleet must not come back all at once.
                    self.changed.wait_for(lambda: self._ended, random.uniform(RETRY / 4, RETRY))

    def _work(self, lease: Lease | None) -> None:
        is_beat = time.monotonic() >= self._beat_at
        if lease and (is_beat or lease.due):
            lease.carry(self._storage, self._within)
        if is_beat:
            self._storage.workers.beat(self._worker_id, within=self._within)
            self._beat_at = time.monotonic() + self._within

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StorageUnreachable as error:
            if not self._is_cut_off:
                log.warning("going on without the database: %s", error)
            self._is_cut_off = True
        except Exception:  # what keeps the lease must outlive whatever it meets
            log.exception("an error met the courier, which goes on")
            self._beat_at = time.monotonic() + self._within
        else:
            if self._is_cut_off:
                log.info("the database answers again")
            self._is_cut_off = False
