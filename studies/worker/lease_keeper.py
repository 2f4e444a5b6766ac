"""The thread of a worker that keeps its leases alive and sends what its trials report.

- A report or result is first sent by the thread that has it, which waits :data:`PATIENCE` seconds at most.
- The keeper's own thread sends the heartbeats, and everything that did not get through. No training waits for an
  unreachable database.
- Every :data:`BEAT` seconds, or three times per lease, all leases of the worker are renewed in one statement.
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
from studies.storage.database import WritesLost
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Acknowledgement, Claim
from studies.worker.lease import RETRY, Lease, LeaseUpdate
from studies.worker.pending_results import PendingResults
from studies.worker.refusals import NO_REFUSALS, Refusal, fail_refused, isolate

log = logging.getLogger(__name__)

#: Seconds for which a trial waits for the answer to its report; then training continues without it.
PATIENCE: Final = 1.0
#: Seconds between two heartbeats, at most, however long the lease: `status` shows people their age.
BEAT: Final = 10.0

Answer = tuple[LeaseUpdate, Acknowledgement | LeaseLost | None, Sequence[Refusal]]
"""An update with its acknowledgement (``None`` for a result) or the loss of its lease, and the refused changes."""


class LeaseKeeper:
    """Sends the updates and heartbeats of a worker's leases. A context manager: its thread runs inside the block.

    Args:
        storage: where the studies are; used by several threads at once.
        worker_id: the worker's name in the database.
        lease_seconds: how long a lease lasts after a heartbeat. A third of it passes between two heartbeats, so that
            one lost heartbeat costs no trial.
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
        # One statement at a time. Two could overtake each other, and an older report would then follow a newer one.
        self._sending = threading.Lock()
        self._is_cut_off = False
        self._leases: list[Lease] = []
        self._beat_at = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def __enter__(self) -> LeaseKeeper:
        self._beat_at = time.monotonic() + self._within
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self._ended = True
            self.changed.notify_all()
        self._thread.join()

    def add(self, claim: Claim, results: PendingResults) -> Lease:
        """Keep the lease of ``claim`` alive. ``results`` is for its result while the database is unreachable."""
        with self.changed:
            lease = Lease(claim, self, results)
            self._leases.append(lease)
            return lease

    def remove(self, lease: Lease) -> None:
        """Stop keeping ``lease`` alive. Returns when no statement of it is on its way."""
        with self.changed:
            if lease in self._leases:
                self._leases.remove(lease)
        with self._sending:
            pass  # The keeper may have picked up the lease before; wait for its statement to end.

    def flush(self, leases: Sequence[Lease]) -> None:
        """Send what is pending in ``leases`` from the caller's thread.

        Whatever takes longer than :data:`PATIENCE` is left to the keeper's thread.
        """
        # While the database is unreachable only the keeper tries: a trial would lose a second at each report.
        if not leases or self._is_cut_off or not self._sending.acquire(timeout=PATIENCE):
            return
        try:
            self._try(partial(self._send_pending, leases, min(self._within, PATIENCE)))
        finally:
            self._sending.release()

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
            with self._sending:
                self._try(self._work)
            if self._is_cut_off:
                with self.changed:
                    # With jitter: a fleet that returns all at once would overload a server that just started.
                    self.changed.wait_for(lambda: self._ended, random.uniform(RETRY / 4, RETRY))

    def _work(self) -> None:
        is_beat = time.monotonic() >= self._beat_at
        with self.changed:
            leases = [lease for lease in self._leases if is_beat or lease.due is not None]
        self._send_pending(leases, self._within)
        if is_beat:
            self._storage.workers.heartbeat(self._worker_id, within=self._within)
            self._beat_at = time.monotonic() + self._within

    def _send_pending(self, leases: Sequence[Lease], within: float) -> None:
        """Send what is pending in ``leases``; a lease without anything pending is renewed.

        Raises:
            StorageUnreachable: no answer in time; every update without an answer is pending again.
        """
        unanswered = {id(sent.lease): sent for lease in leases if (sent := lease.take_pending())}
        try:
            for is_result in (False, True):
                # Reports before results, which are another statement: one trial has either of them.
                some = [sent for sent in unanswered.values() if (sent.update.state is not None) == is_result]
                for sent, answer, refusals in self._send(some, within) if some else ():
                    del unanswered[id(sent.lease)]
                    sent.lease.acknowledge(sent, answer, refusals)
        finally:
            for sent in unanswered.values():
                sent.lease.send_failed()

    def _send(self, batch: Sequence[LeaseUpdate], within: float) -> Iterator[Answer]:
        """Send a batch in which all updates have results, or none has.

        The database refuses a batch as a whole. Then each update is sent alone: a bad one costs no other trial.
        """
        updates = [sent.update for sent in batch]
        leases = self._storage.leases
        try:
            answers: Sequence[Acknowledgement | LeaseLost | WritesLost | None]
            if updates[0].state is None:
                answers = leases.write_many(updates, within=within)
            else:
                answers = leases.finish_many(updates, within=within)
        except NO_REFUSALS:
            raise
        except StorageError as error:
            if len(batch) > 1:
                for sent in batch:
                    yield from self._send([sent], within)
            else:
                yield self._send_in_parts(batch[0], error, within)
            return
        for sent, answer in zip(batch, answers, strict=True):
            if isinstance(answer, WritesLost):
                # The server crashed and lost recent commits: send everything of the last minute again.
                yield from self._send([sent.lease.repack(sent)], within)
            else:
                yield sent, answer, ()

    def _send_in_parts(self, sent: LeaseUpdate, error: StorageError, within: float) -> Answer:
        """Write the legal changes of a refused update, and find the refused ones."""
        update, leases = sent.update, self._storage.leases
        write = partial(leases.write, update.claim, step=update.step, revision=update.revision, within=within)
        try:
            if update.state:
                refusals = fail_refused(self._storage, update.claim, update.changes, error, revision=update.revision)
                return sent, None, refusals
            refusals = isolate(update.changes, write, error)
            return sent, write({}), refusals
        except LeaseLost as lost:
            return sent, lost, ()
        except WritesLost:
            (answer,) = self._send([sent.lease.repack(sent)], within)
            return answer
        except StorageUnreachable:
            raise
        except StorageError as still:
            # Drop the trial. Its lease expires and other workers try it, until its third death fails it.
            log.error("trial %d: the database refuses everything about it: %s", update.claim.number, still)
            return sent, LeaseLost(str(still)), ()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StorageUnreachable as error:
            if not self._is_cut_off:
                log.warning("continuing without the database: %s", error)
            self._is_cut_off = True
        except Exception:  # without this thread every lease of the worker would expire
            log.exception("unexpected error in the lease keeper; it continues")
            self._beat_at = time.monotonic() + self._within
        else:
            if self._is_cut_off:
                log.info("the database answers again")
            self._is_cut_off = False
