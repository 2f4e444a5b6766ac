"""A worker's lease on a trial.

Whatever a trial has to tell goes into its lease, and from there to the database in order, that of all leases in one
statement. Reports and results are carried at once, by the thread that has them. Whatever else there is
is the courier's (:mod:`studies.worker.lease_keeper`).
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from optuna.trial import TrialState

from studies.errors import LeaseLost, Refused
from studies.storage.records import Change, Claim, Update, Wishes
from studies.worker.pending_results import KeptResult, Results
from studies.worker.refusals import Refusal

if TYPE_CHECKING:
    from studies.worker.lease_keeper import LeaseKeeper

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


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What a lease has to tell, on its way to the database."""

    lease: Lease
    update: Update


class Lease:
    """The right to write to a trial (a :class:`studies.storage.known_trials.Writer`).

    Any thread may read the attributes. They change under the courier's lock, in methods of this class alone.

    Attributes:
        lost: somebody else has the trial, or it is over: nothing of this lease is wanted.
        cancelled: a person wants the trial to end.
        interrupted: the trial's study is paused or stopped.
        refusals: what the database does not take of the trial, which FAILs for it.
    """

    def __init__(self, claim: Claim, courier: LeaseKeeper, results: Results) -> None:
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
