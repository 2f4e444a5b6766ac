"""Tells web addresses what happens to studies: a new best, the end, too many failures, workers that were lost.

Each event is told once to each address, however many processes look at the study: they share the table
``studyhall.notices``. Whoever takes an event has a minute to tell it, then it is anybody's again; so one that
dies in between delays it, and one that dies between the answer and its note tells it twice.

What a study is like when a process begins to look is no news to it, unless another process took it and has not
told it. There is one thread for each address, so that one which hangs holds up nothing else.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from studies.errors import StorageError, StorageUnreachable, StudyNotFound, described
from studies.notify.events import News
from studies.notify.webhook import Undelivered, post
from studies.spec.locations import mask_url

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

#: Seconds between two looks at the studies.
LOOK: Final = 2.0
#: Seconds between two tries to reach an address: the first, doubled each time; the longest; and when all is to end.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 600.0
LAST_PAUSE: Final = 0.5


class Notifier:
    """Looks at studies and tells what happens.

    It uses the given storage, from threads of its own: its connections are shared, and its statements are as
    short as those of the progress that a command shows.

    Args:
        storage: where the studies are.
        records: the studies; each one's own [notify] says whom to tell.
        url: an address to tell as well, for all of them.
        warn: is given a line when an address can't be reached, from any thread.
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
        """Look at what is there by now, which is no news; then tell what happens from here on."""
        for address in self._addresses:
            address.begin()

    def stop(self, seconds: float = 3.0) -> None:
        """Tell what there is to tell, for so many seconds at most, and end."""
        deadline = time.monotonic() + seconds
        for address in self._addresses:
            address.end(deadline)
        for address in self._addresses:
            address.join(max(0.0, deadline - time.monotonic()))


class _Address(threading.Thread):
    """One address, and what it is to be told."""

    def __init__(
        self, storage: PostgresStorage, url: str, records: Sequence[StudyRecord], warn: Callable[[str], None]
    ) -> None:
        super().__init__(name=f"notify {mask_url(url)}", daemon=True)
        self._url = url
        self._id = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._warn = warn
        self._studies = [News(storage, record, self._id) for record in records]
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
            while self._studies and not self._stopping.wait(LOOK):
                self._round()
            while self._studies and not self._round() and time.monotonic() < self._deadline:
                time.sleep(0.2)
        except Exception as error:  # whatever it is, the work beside it goes on
            self._warn(f"notifications end: {described(error)}")

    def _round(self) -> bool:
        """Look at each study and tell what is new; whether nothing is left to be told."""
        done = True
        for study in list(self._studies):
            if not self._studies:
                break  # the address refuses them
            try:
                done = self._tell(study) and done
            except StorageUnreachable:
                study.lose_touch()
                return self._stopping.is_set()  # nobody waits for the database on account of a message
            except (StudyNotFound, KeyError):
                self._studies.remove(study)  # deleted
            except StorageError as error:
                self._studies.remove(study)
                self._warn(f"notifications of {study.name} end: {error}")
        return done

    def _tell(self, study: News) -> bool:
        for event, names in study.news(is_last=self._stopping.is_set()):
            if time.monotonic() < self._next_try:
                return False
            taken = study.take(names)
            if taken and not self._send(study.message(event, taken)):
                return False
            study.mark_sent(taken)
        return True

    def _send(self, message: Mapping[str, Any]) -> bool:
        """Whether the message is dealt with: it was taken, or refused for good."""
        try:
            post(self._url, message)
        except Undelivered as error:
            if error.is_final:
                self._studies.clear()
                self._warn(f"notifications: {mask_url(self._url)}: {error}; nothing more is sent there")
                return True
            if not self._failures:
                self._warn(f"notifications: {mask_url(self._url)}: {error}; it is tried again")
            self._failures += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 20))
            self._next_try = time.monotonic() + (LAST_PAUSE if self._stopping.is_set() else pause)
            return False
        self._failures = 0
        return True
