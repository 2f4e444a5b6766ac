"""A worker's leases on its trials, and the courier that keeps them.

Whatever a trial has to tell goes into its lease, and from there to the database in order, that of all leases in one
statement. Reports and results are carried at once, by the thread that has them. Whatever else there is, heartbeats,
and all that the database could not be told because it is unreachable, is the courier's, a thread of its own: no
training waits for a database that hangs.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from optuna.trial import TrialState

from studies.errors import LeaseLost, Refused, StorageError, StorageUnreachable
from studies.storage.database import Forgotten
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Change, Claim, Update, Wishes
from studies.worker.refusals import NO_REFUSALS, Refusal, fail_refused, isolate
from studies.worker.results import KeptResult, Results

if TYPE_CHECKING:
    from studies.worker.courier import Courier

log = logging.getLogger(__name__)

#: Seconds for which things that nobody waits for are gathered before they are carried.
LINGER: Final = 0.5
#: Seconds for which a trial waits for the answer to its report; then it goes on without.
PATIENCE: Final = 1.0
#: Seconds between two heartbeats, at most: people look at them, too.
BEAT: Final = 10.0
#: Seconds between two tries while the database is away, at most.
RETRY: Final = 1.0

#: Seconds for which is remembered what the database has acknowledged; longer than a server takes to have that
#: on its disk (three times its wal_writer_delay, which is 10 s at most).
MEMORY: Final = 60.0

Changes = dict[str, list[Change]]


@dataclass(frozen=True, kw_only=True)
class _Result:
    state: TrialState
    values: list[float] | None


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What a lease has to tell, on its way to the database."""

    lease: Lease
    update: Update


class Lease:
    """The right to write to a trial (a :class:`studies.storage.known.Writer`).

    Any thread may read the attributes. They change under the courier's lock, in methods of this class alone.

    Attributes:
        lost: somebody else has the trial, or it is over: nothing of this lease is wanted.
        cancelled: a person wants the trial to end.
        interrupted: the trial's study is paused or stopped.
        refusals: what the database does not take of the trial, which FAILs for it.
    """

    def __init__(self, claim: Claim, courier: Courier, results: Results) -> None:
        self.claim = claim
        self.lost = False
        self.cancelled = False
        self.interrupted = False
        self.refusals: list[Refusal] = []
        self._courier = courier
        self._results = results
        self._changed = courier.changed  # guards everything here
        self._pending: Changes = {}
        self._carried: Changes = {}  # taken to the database, which has not answered yet
        self._told: deque[tuple[float, Changes]] = deque()  # acknowledged, and when
        self._revision = 0  # of the trial, by the last answer
        self._step: int | None = None
        self._result: _Result | None = None
        self._due: float | None = None  # when what is pending is to be carried (monotonic clock)
        self._heard = time.monotonic()
        self._file: Path | None = None  # that holds a result which could not be told
        self._is_finished = False  # the database has the result: the trial is nobody's to write to

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to tell, not even a heartbeat: the trial is lost or has its result."""
        return self.lost or self._is_finished

    def is_told(self) -> bool:
        """Whether the database has everything that was put here, or does not want it."""
        return self.lost or not (self._pending or self._carried or self._result)

    @property
    def due(self) -> float | None:
        """When something is to be carried (monotonic clock), if there is something."""
        return None if self.is_over else self._due

    def lose(self) -> None:
        """Somebody else has the trial."""
        with self._changed:
            self.lost = True
            self._changed.notify_all()

    def put(self, kind: str, change: Change) -> None:
        """Have something written with what is told next, or soon."""
        with self._changed:
            self._pending.setdefault(kind, []).append(change)
            if self._due is None:
                self._due = time.monotonic() + LINGER
                self._changed.notify_all()

    def note(self, step: int) -> None:
        """The newest step, for people to see."""
        with self._changed:
            self._step = step

    def tell(self) -> None:
        """Have everything written now; see :meth:`settle`."""
        self._courier.carry([self])
        self.settle()

    def settle(self) -> None:
        """After what was put here was carried. A database that is unreachable is not waited for, unless it has been
        for longer than the lease: the trial may be another's by then.

        Raises:
            Refused: the database does not take something that was put here, for what it is.
        """
        self._wait(lambda: self.is_told() or time.monotonic() - self._heard < self._courier.lease_seconds)
        if self.refusals:
            raise Refused(str(self.refusals[0]))

    def finish(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Have the result written with what is carried next, and with everything put before.

        Where the database refuses something, the trial FAILs with the reason.
        """
        result = _Result(state=state, values=None if values is None else [float(value) for value in values])
        with self._changed:
            self._result, self._due = result, time.monotonic() + LINGER
            self._changed.notify_all()

    def keep_result(self) -> None:
        """Keep a result that could not be told on the disk, in case this worker goes, too."""
        with self._changed:
            if self._result is None or self.is_told():
                return
            result = self._judged(self._result)
            changes = _merged(*self._recently_told(), self._carried, self._pending)
        kept = KeptResult(claim=self.claim, state=result.state.name, values=result.values, changes=changes)
        self._file = self._results.keep(kept)

    def wait_until_told(self) -> None:
        """Wait until the database has everything, or the worker is asked to stop."""
        self._wait(self.is_told)

    def close(self) -> Changes:
        """Let nothing more of this be carried; returns what was not, and what a crash may have lost."""
        self._courier.drop(self)
        if self._file and self.is_told():
            self._file.unlink(missing_ok=True)
        with self._changed:
            pending, self._pending, self._due = _merged(*self._recently_told(), self._pending), {}, None
            return pending

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for the courier, unless the worker is asked to stop."""
        with self._changed:
            while not (condition() or self._courier.stop.is_set()):
                self._changed.wait(RETRY)

    # For the courier, which carries one parcel of a lease after the other

    def pack(self) -> Parcel | None:
        """Take up what is pending; ``None`` where nothing is to be told any more, not even a heartbeat."""
        with self._changed:
            if self.is_over:
                return None
            result = self._result and self._judged(self._result)
            self._carried, self._pending, self._due = _merged(self._pending), {}, None
            return self._parcel(self._carried, self._revision, result)

    def pack_again(self, parcel: Parcel) -> Parcel:
        """Take up what ``parcel`` holds, and once more all that a crash of the server may have lost."""
        with self._changed:
            self._carried, self._revision = _merged(*self._recently_told(), self._carried), 0
            return Parcel(lease=self, update=replace(parcel.update, changes=self._carried, revision=0))

    def answered(self, parcel: Parcel, answer: Wishes | LeaseLost | None, refusals: Sequence[Refusal] = ()) -> None:
        """The database has answered; what it refused of the parcel was taken out of it."""
        with self._changed:
            self._heard = time.monotonic()
            if refusals:
                self._carried = {}  # not to be remembered: after a crash of the server it would be refused again
            if self._carried:
                self._told.append((self._heard, self._carried))
                while self._told[0][0] < self._heard - MEMORY:
                    self._told.popleft()
            self._carried = {}
            self.refusals += refusals
            self.lost = self.lost or isinstance(answer, LeaseLost)
            if isinstance(answer, Wishes):
                self.cancelled, self.interrupted = answer.cancelled, answer.interrupted
                self._revision = answer.revision
            if parcel.update.state:
                self._result, self._is_finished = None, not self.lost
            self._changed.notify_all()
        if refusals:
            self._results.put_aside(self.claim, refusals)

    def returned(self) -> None:
        """The database could not be reached: what was carried is pending again."""
        with self._changed:
            self._pending, self._carried = _merged(self._carried, self._pending), {}
            self._due = time.monotonic()

    def _parcel(self, changes: Changes, revision: int, result: _Result | None) -> Parcel:
        state, values = (result.state.name, result.values) if result else (None, None)
        update = Update(
            claim=self.claim, changes=changes, step=self._step, revision=revision, state=state, values=values
        )
        return Parcel(lease=self, update=update)

    def _judged(self, result: _Result) -> _Result:
        """``result``, or FAIL with the reason where the database has refused something: not all that the trial
        recorded is there, whatever the objective made of that. Under the lock."""
        if not self.refusals:
            return result
        reason = json.dumps(str(self.refusals[0]))
        self._pending.setdefault("user_attrs", []).append({"key": "error", "value": reason})
        return _Result(state=TrialState.FAIL, values=None)

    def _recently_told(self) -> list[Changes]:
        """What the database has acknowledged, and might have lost in a crash since."""
        return [changes for _, changes in self._told]


def _merged(*some: Changes) -> Changes:
    """All changes; of two under the same name or step the later one, as one statement can't write both."""
    merged: dict[str, dict[tuple[object, ...], Change]] = {}
    for changes in some:
        for kind, each in changes.items():
            for change in each:
                merged.setdefault(kind, {})[tuple(change.get(part) for part in _KEY[kind])] = change
    return {kind: list(by_key.values()) for kind, by_key in merged.items()}


_KEY = {
    "params": ("name",),
    "reports": ("step",),
    "user_attrs": ("key",),
    "system_attrs": ("key",),
    "metrics": ("step", "name"),
}


class Courier:
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


Answer = tuple[Parcel, Wishes | LeaseLost | None, Sequence[Refusal]]
"""To a parcel: what a person wants, or that the trial is lost, or nothing to a result; and what was refused."""
