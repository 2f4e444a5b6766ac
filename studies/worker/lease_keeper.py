"""The courier: it carries what a worker's leases have to tell, and a thread of its own keeps them alive.

That thread gives heartbeats, and carries all that the database could not be told because it was unreachable: no
training waits for a database that hangs.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from studies.errors import LeaseLost, StorageError, StorageUnreachable
from studies.storage.database import Forgotten
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Claim, Wishes
from studies.worker.lease import RETRY, Lease, Parcel
from studies.worker.pending_results import Results
from studies.worker.refusals import NO_REFUSALS, Refusal, fail_refused, isolate

log = logging.getLogger(__name__)

#: Seconds for which a trial waits for the answer to its report; then it goes on without.
PATIENCE: Final = 1.0
#: Seconds between two heartbeats, at most: people look at them, too.
BEAT: Final = 10.0

Answer = tuple[Parcel, Wishes | LeaseLost | None, Sequence[Refusal]]
"""To a parcel: what a person wants, or that the trial is lost, or nothing to a result; and what was refused."""


class LeaseKeeper:
    """Carries what leases have to tell, and gives heartbeats. A context manager.

    Args:
        storage: where to; used from this thread beside others.
        worker_id: the worker's name in the database.
        lease_seconds: how long a lease lasts after a heartbeat; one is given at least three times as often.
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
        self._carrying = threading.Lock()  # one delivery after the other
        self._is_cut_off = False
        self._leases: list[Lease] = []
        self._beat_at = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._beat_at = time.monotonic() + self._within
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self._ended = True
            self.changed.notify_all()
        self._thread.join()

    def take(self, claim: Claim, results: Results) -> Lease:
        """Begin to serve the lease of ``claim``; its result waits in ``results`` while the database is unreachable."""
        with self.changed:
            lease = Lease(claim, self, results)
            self._leases.append(lease)
            return lease

    def drop(self, lease: Lease) -> None:
        """Serve this lease no longer."""
        with self.changed:
            if lease in self._leases:
                self._leases.remove(lease)
        with self._carrying:
            pass  # what was under way is over

    def carry(self, leases: Sequence[Lease]) -> None:
        """Carry what ``leases`` have to tell in the caller's thread, if that takes no longer than its patience;
        else it is the courier's."""
        if not leases or self._is_cut_off or not self._carrying.acquire(timeout=PATIENCE):
            return
        try:
            self._try(partial(self._deliver, leases, min(self._within, PATIENCE)))
        finally:
            self._carrying.release()

    def _run(self) -> None:
        while True:
            with self.changed:
                now = time.monotonic()
                due = min([self._beat_at, *(lease.due for lease in self._leases if lease.due is not None)])
                if self._ended:
                    return
                if now < due:
                    self.changed.wait(due - now)
                    continue
            with self._carrying:
                self._try(self._work)
            if self._is_cut_off:
                with self.changed:
                    # With jitter: a fleet must not come back all at once.
                    self.changed.wait_for(lambda: self._ended, random.uniform(RETRY / 4, RETRY))

    def _work(self) -> None:
        is_beat = time.monotonic() >= self._beat_at
        with self.changed:
            leases = [lease for lease in self._leases if is_beat or lease.due is not None]
        self._deliver(leases, self._within)
        if is_beat:
            self._storage.workers.beat(self._worker_id, within=self._within)
            self._beat_at = time.monotonic() + self._within

    def _deliver(self, leases: Sequence[Lease], within: float) -> None:
        """Tell the database what these leases have to tell.

        Raises:
            StorageUnreachable: it is unreachable; what it has not answered is pending again.
        """
        unanswered = {id(parcel.lease): parcel for lease in leases if (parcel := lease.pack())}
        try:
            for is_result in (False, True):
                some = [parcel for parcel in unanswered.values() if (parcel.update.state is not None) == is_result]
                for parcel, answer, refusals in self._send(some, within) if some else ():
                    del unanswered[id(parcel.lease)]
                    parcel.lease.answered(parcel, answer, refusals)
        finally:
            for parcel in unanswered.values():
                parcel.lease.returned()

    def _send(self, parcels: Sequence[Parcel], within: float) -> Iterator[Answer]:
        """Send parcels that all have results, or none. One that the database refuses keeps no other one out."""
        updates = [parcel.update for parcel in parcels]
        leases = self._storage.leases
        try:
            answers: Sequence[Wishes | LeaseLost | Forgotten | None]
            if updates[0].state is None:
                answers = leases.write_many(updates, within=within)
            else:
                answers = leases.finish_many(updates, within=within)
        except NO_REFUSALS:
            raise
        except StorageError as error:
            if len(parcels) > 1:
                for parcel in parcels:
                    yield from self._send([parcel], within)
            else:
                yield self._send_in_parts(parcels[0], error, within)
            return
        for parcel, answer in zip(parcels, answers, strict=True):
            if isinstance(answer, Forgotten):
                yield from self._send([parcel.lease.pack_again(parcel)], within)
            else:
                yield parcel, answer, ()

    def _send_in_parts(self, parcel: Parcel, error: StorageError, within: float) -> Answer:
        """Send what the database takes of a parcel that it refused, and find the rest."""
        update, leases = parcel.update, self._storage.leases
        write = partial(leases.write, update.claim, step=update.step, revision=update.revision, within=within)
        try:
            if update.state:
                refusals = fail_refused(self._storage, update.claim, update.changes, error, revision=update.revision)
                return parcel, None, refusals
            refusals = isolate(update.changes, write, error)
            return parcel, write({}), refusals
        except LeaseLost as lost:
            return parcel, lost, ()
        except Forgotten:
            (answer,) = self._send([parcel.lease.pack_again(parcel)], within)
            return answer
        except StorageUnreachable:
            raise
        except StorageError as still:
            # Nothing can be told of this trial. Others take it when its lease runs out, three times at most.
            log.error("trial %d: the database refuses everything about it: %s", update.claim.number, still)
            return parcel, LeaseLost(str(still)), ()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StorageUnreachable as error:
            if not self._is_cut_off:
                log.warning("going on without the database: %s", error)
            self._is_cut_off = True
        except Exception:  # what keeps the leases must outlive whatever it meets
            log.exception("an error met the courier, which goes on")
            self._beat_at = time.monotonic() + self._within
        else:
            if self._is_cut_off:
                log.info("the database answers again")
            self._is_cut_off = False
