"""Notifications to web addresses: a new best, the end, too many failures, lost workers.

- Each event is sent once to each address, however many processes watch the study: they share the table
  ``studyhall.notices``. A process leases an event for a minute, sends it, and marks it as sent.
- A process that dies before it sends delays the event by a minute. One that dies after it sends, and before it marks,
  causes a second message.
- Events from before the start of a process are ignored, unless another process leased one and did not send it.
- Each address has a thread of its own: one that hangs delays no other.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from studies.errors import StorageError, StorageUnreachable, StudyNotFound, described
from studies.notify.events import StudyEvents
from studies.notify.webhook import Undelivered, post
from studies.spec.locations import mask_url

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

#: Seconds between two reads of the studies.
POLL: Final = 2.0
#: Backoff of an address in seconds: the first pause, which is doubled each time; the longest; and while stopping.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 600.0
LAST_PAUSE: Final = 0.5


class Notifier:
    """Watches studies and sends notifications, from threads of its own over the connections of ``storage``.

    Args:
        storage: where the studies are.
        records: the studies, each with the address of its [notify].
        url: a further address, for all studies.
        warn: called with a line when an address can't be reached, from any thread.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        records: Iterable[StudyRecord],
        *,
        url: str | None = None,
        warn: Callable[[str], None],
    ) -> None:
        studies: dict[str, list[StudyRecord]] = {}
        for record in records:
            own = record.spec.notify.url if record.spec else None
            for address in {own, url} - {None}:
                assert address is not None  # mypy does not see it
                studies.setdefault(address, []).append(record)
        self._addresses = [_Address(storage, url, records, warn) for url, records in studies.items()]

    def start(self) -> None:
        """Start to watch. Everything that already happened is ignored."""
        for address in self._addresses:
            address.begin()

    def stop(self, seconds: float = 3.0) -> None:
        """Send pending events, for ``seconds`` at most, and end."""
        deadline = time.monotonic() + seconds
        for address in self._addresses:
            address.end(deadline)
        for address in self._addresses:
            address.join(max(0.0, deadline - time.monotonic()))


class _Address(threading.Thread):
    """The thread of one address."""

    def __init__(
        self, storage: PostgresStorage, url: str, records: Sequence[StudyRecord], warn: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"notify {mask_url(url)}", daemon=True)
        self._url = url
        # A hash names the address in the table of notices, which viewers read: the URL may hold a token.
        self._id = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._warn = warn
        self._studies = [StudyEvents(storage, record, self._id) for record in records]
        self._stopping = threading.Event()
        self._deadline = math.inf
        self._failures = 0
        self._next_try = 0.0

    def begin(self) -> None:
        for study in self._studies:
            study.begin()
        self.start()

    def end(self, deadline: float) -> None:
        self._deadline = deadline
        self._next_try = 0.0
        self._stopping.set()

    def run(self) -> None:
        try:
            while self._studies and not self._stopping.wait(POLL):
                self._round()
            while self._studies and not self._round() and time.monotonic() < self._deadline:
                time.sleep(0.2)
        except Exception as error:  # a notification must never end the run beside it
            self._warn(f"notifications end: {described(error)}")

    def _round(self) -> bool:
        """Send the pending events of each study; returns whether nothing is pending."""
        done = True
        for study in list(self._studies):
            if not self._studies:
                break  # the address refuses them
            try:
                done = self._send_pending(study) and done
            except StorageUnreachable:
                study.connection_lost()
                return self._stopping.is_set()  # the end of a run must not wait for an outage
            except (StudyNotFound, KeyError):
                self._studies.remove(study)  # deleted
            except StorageError as error:
                self._studies.remove(study)
                self._warn(f"notifications of {study.name} end: {error}")
        return done

    def _send_pending(self, study: StudyEvents) -> bool:
        for event, names in study.pending(is_last=self._stopping.is_set()):
            if time.monotonic() < self._next_try:
                return False
            taken = study.lease(names)
            if taken and not self._send(study.message(event, taken)):
                return False
            study.mark_sent(taken)
        return True

    def _send(self, message: Mapping[str, Any]) -> bool:
        """Send a message; returns whether it needs no retry: it was accepted, or refused for good."""
        try:
            post(self._url, message)
        except Undelivered as error:
            if error.is_final:
                self._studies.clear()
                self._warn(f"notifications: {mask_url(self._url)}: {error}; nothing more is sent there")
                return True
            if not self._failures:
                self._warn(f"notifications: {mask_url(self._url)}: {error}; it is sent again later")
            self._failures += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 20))
            self._next_try = time.monotonic() + (LAST_PAUSE if self._stopping.is_set() else pause)
            return False
        self._failures = 0
        return True
