"""The events of a study that notifications report, and their messages."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from studies.overview import is_over
from studies.spec.sections import Event
from studies.stop_reasons import FAILURES, STOP_REASONS, failure_of
from studies.text import in_one_line, printable
from studies.values import finite, strict

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import LostWorker, Notice, Status, StudyRecord

#: Seconds between two messages about new bests, or about lost workers: an early study improves every second.
QUIET: Final = 10.0
#: Seconds to wait after the first lost worker: a machine that dies loses all its workers, in one message.
GATHER: Final = 3.0
#: A worker counts as lost by a missing heartbeat only if this process was connected for so many seconds: after an
#: outage every heartbeat is late.
CONNECTED_SECONDS: Final = 60.0
#: Parameters or workers that a text names, at most.
NAMED: Final = 8
#: In the order of sending.
_KINDS: Final[tuple[Event, ...]] = ("best", "worker_lost", "finished", "failures")


class StudyEvents:
    """The events of one study for one address."""

    def __init__(self, storage: PostgresStorage, record: StudyRecord, address: str) -> None:
        self._storage = storage
        self._record = record
        self._address = address
        self._sender = str(uuid.uuid4())
        self.name = record.name
        self._wanted = (record.spec.notify.events if record.spec else None) or list(_KINDS)
        self._metric = storage.objective_names(record)[0]
        self._old: set[str] = set()
        self._sent: set[str] = set()
        self._gathering: float | None = None
        self._read_at = self._connected_since = time.time()

    def begin(self) -> None:
        """Ignore everything that already happened."""
        self._read()
        self._old = set(self._names())

    def connection_lost(self) -> None:
        """Note an outage: heartbeats of workers may have been cut off as well."""
        self._connected_since = time.time()

    def pending(self, *, is_last: bool) -> list[tuple[Event, list[str]]]:
        """The events to send now, by their names in the table. ``is_last``: do not wait for more of a kind."""
        self._read()
        notices = self._storage.notices.of(self._record, self._address)
        names = self._names()
        # Events that another process leased and did not send are obsolete if they no longer hold. Events that we
        # sent during an outage are not marked yet.
        past = [name for name, n in notices.items() if n.free and name not in names]
        past += [name for name in self._sent if name in notices and not notices[name].told]
        if past:
            self._storage.notices.mark_sent(self._record, self._address, past)
        new = [
            name
            for name in names
            if name not in self._sent
            and (not notices[name].told if name in notices else name not in self._old)
            and self._is_confirmed(name)
        ]
        found = [(event, [name for name in new if _kind(name) == event]) for event in _KINDS]
        return [(event, of_kind) for event, of_kind in found if of_kind and (is_last or self._is_due(event, notices))]

    def lease(self, names: Sequence[str]) -> list[str]:
        """Lease events for a minute; returns those that no other process sends."""
        return self._storage.notices.take(self._record, self._address, names, self._sender)

    def mark_sent(self, names: Sequence[str]) -> None:
        self._sent |= set(names)
        if names:
            self._storage.notices.mark_sent(self._record, self._address, names)

    def message(self, event: Event, names: Sequence[str]) -> dict[str, Any]:
        """The message: ``text`` for people, the rest for programs."""
        details = {"best": self._best, "finished": self._end, "failures": self._end, "worker_lost": self._losses}
        text, data = details[event](names)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = printable(in_one_line(f"{self.name}: {text}"))
        return {"event": event, "study": self.name, "text": text, "time": now, **data}

    def _read(self) -> None:
        now = time.time()
        if now - self._read_at > CONNECTED_SECONDS / 2:  # this machine was suspended: all heartbeats look late
            self._connected_since = now
        self._read_at = now
        self._status: Status = self._storage.status(self._record)
        self._lost = self._storage.workers.lost(self._record) if "worker_lost" in self._wanted else []

    def _names(self) -> list[str]:
        """The events that hold now, by their names in the table."""
        now = self._status
        names = [f"best {now.best.number}"] if now.best else []
        names += [f"worker_lost {worker.worker}" for worker in self._lost]
        if is_over(now):
            # The count of trials makes the name unique: a study that is extended ends again.
            event = "failures" if now.ended in FAILURES else "finished"
            names.append(f"{event} {now.ended} {now.finished + now.trials['fail']}")
        return [name for name in names if _kind(name) in self._wanted]

    def _is_confirmed(self, name: str) -> bool:
        """Whether a missing heartbeat is the worker's fault, and not that of our own connection."""
        silent = {f"worker_lost {worker.worker}" for worker in self._lost if worker.died_of is None}
        return name not in silent or time.time() - self._connected_since >= CONNECTED_SECONDS

    def _is_due(self, event: Event, notices: Mapping[str, Notice]) -> bool:
        """Whether an event may be sent now: frequent ones are throttled."""
        if event not in ("best", "worker_lost"):
            return True
        if event == "worker_lost":
            self._gathering = self._gathering or time.monotonic()
            if time.monotonic() - self._gathering < GATHER:
                return False
        for name, notice in notices.items():
            if _kind(name) == event:
                others = not notice.told and not notice.free and notice.taker != self._sender
                if others or (notice.told_seconds_ago is not None and notice.told_seconds_ago < QUIET):
                    return False
        return True

    def _best(self, _names: Sequence[str]) -> tuple[str, dict[str, Any]]:
        best = self._status.best
        assert best is not None  # it is what the event is about
        data = self._best_data(best)
        params = ", ".join(f"{name}={_short(value)}" for name, value in list(best.params.items())[:NAMED])
        return f"new best {self._metric} {_short(best.value)} in trial {best.number} ({params})", data

    def _best_data(self, best: FrozenTrial) -> dict[str, Any]:
        metrics = self._storage.metrics.last([best])[best.number]
        return {
            "trial": best.number,
            "value": finite(best.value),
            "params": strict(best.params),
            "metrics": {name: finite(value) for name, value in metrics.items()},
        }

    def _end(self, _names: Sequence[str]) -> tuple[str, dict[str, Any]]:
        now = self._status
        assert now.ended is not None  # it is what the event is about
        text = f"{STOP_REASONS.get(now.ended, now.ended)}: {now.done} done, {now.trials['fail']} failed"
        data: dict[str, Any] = {
            "ended": now.ended,
            "trials": dict(now.trials),
            "budget": now.budget and now.budget.trial_limit,
            "best": now.best and self._best_data(now.best),
        }
        if now.best:
            text += f", best {self._metric} {_short(now.best.value)} in trial {now.best.number}"
        if now.ended in FAILURES:
            number, error = self._last_error()
            text += f"; the last error, of trial {number}: {error}"
            data |= {"trial": number, "error": error}
        return text, data

    def _last_error(self) -> tuple[int | None, str]:
        errors = [
            (trial.datetime_complete or datetime.min, trial.number, error)
            for trial in self._storage.trials(self._record)
            if (error := failure_of(trial))
        ]
        return max(errors)[1:] if errors else (None, "no reason was given")

    def _losses(self, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
        self._gathering = None
        lost = [_loss(worker) for worker in self._lost if f"worker_lost {worker.worker}" in names]
        shown = [f"{w['host']} (pid {w['pid']}, {w['device']}): {w['reason']}" for w in lost[:NAMED]]
        more = f"; and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        count = "a worker was lost" if len(lost) == 1 else f"{len(lost)} workers were lost"
        return f"{count}: {'; '.join(shown)}{more}", {**lost[0], "workers": lost}


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def _loss(worker: LostWorker) -> dict[str, Any]:
    seen = round(worker.seen_seconds_ago, 1)
    return {
        **{key: getattr(worker, key) for key in ("worker", "host", "pid", "device")},
        "reason": worker.died_of or f"no heartbeat for {seen:.0f} s",
        "seen_seconds_ago": seen,
    }


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
