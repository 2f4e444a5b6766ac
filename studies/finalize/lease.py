"""The lease on a study's final model: one process at a time trains it and looks at the test data."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from studies.errors import StorageUnreachable
from studies.storage.database import new_token

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

log = logging.getLogger(__name__)

#: How long the lease lasts after its last renewal: what a process that was killed keeps others waiting.
SECONDS: Final = 30.0
#: Seconds between two questions of a process that waits.
POLL: Final = 1.0


@contextmanager
def leased(storage: PostgresStorage, record: StudyRecord, *, waits: Callable[[str], None]) -> Iterator[None]:
    """Run the block while no other process is in one for the same study, on whatever machine.

    Args:
        storage: where the study is.
        record: the study.
        waits: is called with each process that has to end first.
    """
    token, holder, other = new_token(), f"{socket.gethostname()} (pid {os.getpid()})", None
    while not storage.finals.lease(record, token, holder=holder, seconds=SECONDS):
        if (has_it := storage.finals.holder(record)) and has_it != other:
            waits(other := has_it)
        time.sleep(POLL)
    over = threading.Event()

    def renew() -> None:
        # Two renewals may fail before the lease expires.
        while not over.wait(SECONDS / 3):
            with suppress(StorageUnreachable):  # the training is worth more than the lease
                if not storage.finals.lease(record, token, holder=holder, seconds=SECONDS):
                    log.warning("%s trains the final model of this study as well", storage.finals.holder(record))

    renewing = threading.Thread(target=renew, name="final-lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with suppress(StorageUnreachable):  # then it expires
            storage.finals.release(record, token)
