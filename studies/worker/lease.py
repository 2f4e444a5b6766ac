"""A worker's lease on a trial.

Whatever a trial has to tell goes into its lease, and from there to the database in order, several things
in one statement. A report and a result are carried at once, by the thread that has them. Whatever else there is
is the courier's (:mod:`studies.worker.courier`).
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from optuna.trial import TrialState

from studies.errors import LeaseLost, Refused, StorageError, StorageUnreachable
from studies.storage.database import Forgotten
from studies.storage.postgres import PostgresStorage
from studies.storage.records import Change, Claim, Wishes
from studies.worker.refusals import NO_REFUSALS, Refusal, fail_refused, isolate
from studies.worker.results import KeptResult, Results

if TYPE_CHECKING:
    from studies.worker.courier import Courier

log = logging.getLogger(__name__)

#: Seconds for which things that nobody waits for are gathered before they are carried.
LINGER: Final = 0.5
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

    def tell(self, step: int | None = None) -> None:
        """Have everything written now. A database that is away is not waited for, unless it has been for
        longer than the lease: the trial may be another's by then.

        Args:
            step: the newest one, for people to see.

        Raises:
            Refused: the database does not take something that was put here, for what it is.
        """
        with self._changed:
            self._step = self._step if step is None else step
        self._courier.carry(self)
        self._wait(lambda: self.is_told() or time.monotonic() - self._heard < self._courier.lease_seconds)
        if self.refusals:
            raise Refused(str(self.refusals[0]))

    def finish(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Have the result written, with everything put before, and wait until it is.

        While the database is away the result is kept on the disk, in case this worker goes, too. Where it refuses
        something, the trial FAILs with the reason.
        """
        result = _Result(state=state, values=None if values is None else [float(value) for value in values])
        with self._changed:
            self._result, self._due = result, time.monotonic()
        self._courier.carry(self)
        if self.is_told():
            return
        with self._changed:
            result = self._judged(result)
            changes = _merged(*self._recently_told(), self._carried, self._pending)
        kept = KeptResult(claim=self.claim, state=result.state.name, values=result.values, changes=changes)
        file = self._results.keep(kept)
        self._wait(self.is_told)
        if file and self.is_told():
            file.unlink(missing_ok=True)

    def close(self) -> Changes:
        """Let nothing more of this be carried; returns what was not, and what a crash may have lost."""
        self._courier.drop(self)
        with self._changed:
            pending, self._pending, self._due = _merged(*self._recently_told(), self._pending), {}, None
            return pending

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for the courier, unless the worker is asked to stop."""
        with self._changed:
            while not (condition() or self._courier.stop.is_set()):
                self._changed.wait(RETRY)

    def carry(self, storage: PostgresStorage, within: float) -> None:
        """Tell the database what is pending; for the courier, which carries one thing after the other.

        Raises:
            StorageUnreachable: it is away; what is pending stays so.
        """
        with self._changed:
            if self.is_over:  # since the courier decided to carry this
                return
            result = self._result and self._judged(self._result)
            self._carried, self._pending = _merged(self._pending), {}
            step, self._due = self._step, None
        wishes: Wishes | None = None
        refusals: list[Refusal] = []
        is_lost = False
        try:
            wishes, refusals = self._deliver(storage, result, step, within)
        except LeaseLost:
            is_lost = True
        except StorageUnreachable:
            with self._changed:
                self._pending, self._carried = _merged(self._carried, self._pending), {}
                self._due = time.monotonic()
            raise
        with self._changed:
            if self._carried:
                now = time.monotonic()
                self._told.append((now, self._carried))
                while self._told[0][0] < now - MEMORY:
                    self._told.popleft()
            self._carried = {}
            self.refusals += refusals
            self._heard, self.lost = time.monotonic(), self.lost or is_lost
            if wishes:
                self.cancelled, self.interrupted = wishes.cancelled, wishes.interrupted
                self._revision = wishes.revision
            if result:
                self._result, self._is_finished = None, not self.lost
            self._changed.notify_all()
        if refusals:
            self._results.put_aside(self.claim, refusals)

    def _judged(self, result: _Result) -> _Result:
        """``result``, or FAIL with the reason where the database has refused something: not all that the trial
        recorded is there, whatever the objective made of that. Under the lock."""
        if not self.refusals:
            return result
        reason = json.dumps(str(self.refusals[0]))
        self._pending.setdefault("user_attrs", []).append({"key": "error", "value": reason})
        return _Result(state=TrialState.FAIL, values=None)

    def _deliver(
        self, storage: PostgresStorage, result: _Result | None, step: int | None, within: float
    ) -> tuple[Wishes | None, list[Refusal]]:
        """Send what is carried, and once more all that a crash of the server has lost. Returns what was refused."""
        try:
            return self._deliver_accepted(storage, result, step, within)
        except Forgotten:
            with self._changed:
                self._carried, self._revision = _merged(*self._recently_told(), self._carried), 0
            return self._deliver_accepted(storage, result, step, within)

    def _deliver_accepted(
        self, storage: PostgresStorage, result: _Result | None, step: int | None, within: float
    ) -> tuple[Wishes | None, list[Refusal]]:
        """Send what is carried. What the database refuses of it is taken out, and returned."""
        try:
            return self._send(storage, self._carried, result, step, within), []
        except NO_REFUSALS:
            raise
        except StorageError as error:
            wishes, refusals = self._deliver_in_parts(storage, result, step, within, error)
            with self._changed:
                self._carried = {}  # not to be remembered: after a crash of the server all of it would be refused again
            return wishes, refusals

    def _deliver_in_parts(
        self, storage: PostgresStorage, result: _Result | None, step: int | None, within: float, error: StorageError
    ) -> tuple[Wishes | None, list[Refusal]]:
        try:
            if result:
                return None, fail_refused(storage, self.claim, self._carried, error, revision=self._revision)
            write = partial(storage.leases.write, self.claim, step=step, revision=self._revision, within=within)
            refusals = isolate(self._carried, write, error)
            return self._send(storage, {}, None, step, within), refusals
        except NO_REFUSALS:
            raise
        except StorageError as error:
            # Nothing can be told of this trial. Others take it when its lease runs out, three times at most.
            log.error("trial %d: the database refuses everything about it: %s", self.claim.number, error)
            raise LeaseLost(str(error)) from error

    def _send(
        self, storage: PostgresStorage, changes: Changes, result: _Result | None, step: int | None, within: float
    ) -> Wishes | None:
        if result is None:
            return storage.leases.write(self.claim, changes, step=step, revision=self._revision, within=within)
        state, values = result.state.name, result.values
        storage.leases.finish(self.claim, state, values, changes, revision=self._revision, within=within)
        return None

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
