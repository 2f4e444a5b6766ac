"""A worker's lease on a trial, with a buffer of the writes that the database has not acknowledged.

- Everything that a trial records is first put into its lease, and then sent in order.
- One statement sends the buffers of many leases.
- Reports and results are sent at once, by the thread that has them. Everything else is sent, and whatever failed is
  sent again, by the lease keeper (:mod:`studies.worker.lease_keeper`).
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
from studies.storage.records import Acknowledgement, Change, Claim, Update
from studies.worker.pending_results import PendingResult, PendingResults
from studies.worker.refusals import Refusal

if TYPE_CHECKING:
    from studies.worker.lease_keeper import LeaseKeeper

log = logging.getLogger(__name__)

#: Seconds for which attributes and other small writes are gathered before one statement sends them.
LINGER: Final = 0.5
#: Seconds between two attempts while the database is unreachable, at most.
RETRY: Final = 1.0

#: Seconds for which acknowledged writes are remembered, to send them again after a crash of the server. Reports commit
#: asynchronously: they reach the server's disk within three times its wal_writer_delay, which is 10 s at most.
MEMORY: Final = 60.0

Changes = dict[str, list[Change]]


@dataclass(frozen=True, kw_only=True)
class _Result:
    state: TrialState
    values: list[float] | None


@dataclass(frozen=True, kw_only=True)
class LeaseUpdate:
    """An update with its lease, sent or about to be."""

    lease: Lease
    update: Update


class Lease:
    """The right to write to a trial (a :class:`studies.storage.known_trials.Writer`).

    Any thread may read the attributes. Only methods of this class change them, under the keeper's lock.

    Attributes:
        lost: another worker has the trial, or it has ended: the database refuses every further write.
        cancelled: a person cancelled the trial.
        interrupted: the trial's study is paused or stopped.
        refusals: the changes that the database refused; the trial FAILs with the first one as its reason.
    """

    def __init__(self, claim: Claim, keeper: LeaseKeeper, results: PendingResults) -> None:
        self.claim = claim
        self.lost = False
        self.cancelled = False
        self.interrupted = False
        self.refusals: list[Refusal] = []
        self._keeper = keeper
        self._results = results
        self._changed = keeper.changed  # guards everything here
        self._pending: Changes = {}
        self._in_flight: Changes = {}  # sent, without an answer yet
        self._acknowledged: deque[tuple[float, Changes]] = deque()  # of the last MEMORY seconds, each with its time
        self._revision = 0  # of the trial as last acknowledged; a lower one in the database means a crash
        self._step: int | None = None
        self._result: _Result | None = None
        self._due: float | None = None  # when the pending changes must be sent (monotonic clock)
        self._answered_at = time.monotonic()
        self._file: Path | None = None  # of a result that could not be sent
        self._is_finished = False  # the database has the result, and refuses every further write

    @property
    def is_over(self) -> bool:
        """Whether the lease needs no more writes or heartbeats: it is lost, or the database has the result."""
        return self.lost or self._is_finished

    def is_flushed(self) -> bool:
        """Whether nothing is pending: the database has acknowledged everything, or the lease is lost."""
        return self.lost or not (self._pending or self._in_flight or self._result)

    @property
    def due(self) -> float | None:
        """When the pending changes must be sent (monotonic clock); ``None`` without any."""
        return None if self.is_over else self._due

    def lose(self) -> None:
        """Mark the lease as lost, where another statement than a write learned it."""
        with self._changed:
            self.lost = True
            self._changed.notify_all()

    def put(self, kind: str, change: Change) -> None:
        """Buffer a change. It is sent with the next report, or after :data:`LINGER` seconds."""
        with self._changed:
            self._pending.setdefault(kind, []).append(change)
            if self._due is None:
                self._due = time.monotonic() + LINGER
                self._changed.notify_all()

    def set_step(self, step: int) -> None:
        """Set the trial's newest step, which `status` and `watch` show."""
        with self._changed:
            self._step = step

    def flush(self) -> None:
        """Send everything pending now, and :meth:`confirm` it."""
        self._keeper.flush([self])
        self.confirm()

    def confirm(self) -> None:
        """Check what :meth:`LeaseKeeper.flush` sent.

        Training continues through an outage as long as the lease lasts. Afterwards another worker may have the trial:
        then this waits for the database's answer, or for the worker to stop.

        Raises:
            Refused: the database refused a change for its content.
        """
        self._wait(lambda: self.is_flushed() or time.monotonic() - self._answered_at < self._keeper.lease_seconds)
        if self.refusals:
            raise Refused(str(self.refusals[0]))

    def finish(self, state: TrialState, values: Sequence[float] | None) -> None:
        """Buffer the result. It is sent in one statement with everything that is pending.

        If the database refuses a change, the trial FAILs with the reason instead.
        """
        result = _Result(state=state, values=None if values is None else [float(value) for value in values])
        with self._changed:
            self._result, self._due = result, time.monotonic() + LINGER
            self._changed.notify_all()

    def save_result(self) -> None:
        """Write a result that could not be sent to the disk, where it outlives this worker."""
        with self._changed:
            if self._result is None or self.is_flushed():
                return
            result = self._checked(self._result)
            changes = _merged(*self._recently_acknowledged(), self._in_flight, self._pending)
        kept = PendingResult(claim=self.claim, state=result.state.name, values=result.values, changes=changes)
        self._file = self._results.save(kept)

    def wait_until_flushed(self) -> None:
        """Wait until nothing is pending, or the worker is asked to stop."""
        self._wait(self.is_flushed)

    def close(self) -> Changes:
        """End the lease here. Returns the changes that are pending, and those that a crash of the server may lose."""
        self._keeper.remove(self)
        if self._file and self.is_flushed():
            self._file.unlink(missing_ok=True)
        with self._changed:
            pending, self._pending, self._due = _merged(*self._recently_acknowledged(), self._pending), {}, None
            return pending

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition``, or for the worker to be asked to stop."""
        with self._changed:
            while not (condition() or self._keeper.stop.is_set()):
                self._changed.wait(RETRY)

    # For the keeper, which sends one update of a lease after the other

    def take_pending(self) -> LeaseUpdate | None:
        """Everything pending as one update, empty for a mere heartbeat; ``None`` when :attr:`is_over`."""
        with self._changed:
            if self.is_over:
                return None
            result = self._result and self._checked(self._result)
            self._in_flight, self._pending, self._due = _merged(self._pending), {}, None
            return self._update(self._in_flight, self._revision, result)

    def repack(self, sent: LeaseUpdate) -> LeaseUpdate:
        """``sent`` with everything added that a crash of the server may have lost."""
        with self._changed:
            self._in_flight, self._revision = _merged(*self._recently_acknowledged(), self._in_flight), 0
            return LeaseUpdate(lease=self, update=replace(sent.update, changes=self._in_flight, revision=0))

    def acknowledge(
        self, sent: LeaseUpdate, answer: Acknowledgement | LeaseLost | None, refusals: Sequence[Refusal] = ()
    ) -> None:
        """Take in the database's answer to ``sent``, which was written without the changes in ``refusals``."""
        with self._changed:
            self._answered_at = time.monotonic()
            if refusals:
                self._in_flight = {}  # Not remembered: sent again after a crash, it would be refused again.
            if self._in_flight:
                self._acknowledged.append((self._answered_at, self._in_flight))
                while self._acknowledged[0][0] < self._answered_at - MEMORY:
                    self._acknowledged.popleft()
            self._in_flight = {}
            self.refusals += refusals
            self.lost = self.lost or isinstance(answer, LeaseLost)
            if isinstance(answer, Acknowledgement):
                self.cancelled, self.interrupted = answer.cancelled, answer.interrupted
                self._revision = answer.revision
            if sent.update.state:
                self._result, self._is_finished = None, not self.lost
            self._changed.notify_all()
        if refusals:
            self._results.save_refusals(self.claim, refusals)

    def send_failed(self) -> None:
        """Make everything in flight pending again, before what was put meanwhile: the order of writes stays."""
        with self._changed:
            self._pending, self._in_flight = _merged(self._in_flight, self._pending), {}
            self._due = time.monotonic()

    def _update(self, changes: Changes, revision: int, result: _Result | None) -> LeaseUpdate:
        state, values = (result.state.name, result.values) if result else (None, None)
        update = Update(
            claim=self.claim, changes=changes, step=self._step, revision=revision, state=state, values=values
        )
        return LeaseUpdate(lease=self, update=update)

    def _checked(self, result: _Result) -> _Result:
        """``result``, or FAIL with the reason if the database refused a change. Needs the lock.

        A COMPLETE trial must have everything that it recorded, even if the objective ignored the error.
        """
        if not self.refusals:
            return result
        reason = json.dumps(str(self.refusals[0]))
        self._pending.setdefault("user_attrs", []).append({"key": "error", "value": reason})
        return _Result(state=TrialState.FAIL, values=None)

    def _recently_acknowledged(self) -> list[Changes]:
        """The acknowledged changes that a crash of the server may still lose."""
        return [changes for _, changes in self._acknowledged]


def _merged(*some: Changes) -> Changes:
    """All changes, the latest for each name and step: one INSERT … ON CONFLICT can't write the same row twice."""
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
