"""How `run` and `work` end on Ctrl-C and other signals.

The first signal stops the workers at their next step, the second one kills them. Either way the running trials are
requeued, and the exit status is 130; after SIGUSR1 or SIGUSR2, a scheduler's notice of preemption, it is 0.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from studies.progress import Progress
    from studies.session import Session


class Interrupts:
    """Counts SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2. A context manager.

    Args:
        stop: set by the first signal; ends every wait for an unreachable database.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.count = 0
        #: Whether the first was SIGUSR1 or SIGUSR2: a scheduler's notice, an ordinary event.
        self.is_preemption = False
        #: Whether trials may be running, which must be requeued first; until then a signal ends the command at once.
        self.wait = False
        self._applied = 0
        self._is_deferred = self._was_deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals to the end of the block, where they end the command."""
        self._is_deferred = True
        yield
        self._is_deferred = False
        if self._was_deferred:
            raise KeyboardInterrupt

    def apply(self, session: Session, progress: Progress) -> None:
        """Stop or kill the workers, as the signals since the last call ask for."""
        if self.count > self._applied:
            self._applied = self.count
            if self.count == 1:
                progress.print("stopping: running trials are requeued at their next step; Ctrl-C again: now")
                session.stop()
            else:
                session.kill()

    # Only counted: a signal may come in the middle of anything. apply() acts on it, between two looks at the session.
    def _note(self, number: int, _frame: object) -> None:
        if self._is_deferred:
            self._was_deferred = True
            return
        if not self.wait:
            raise KeyboardInterrupt
        if not self.count:
            self.is_preemption = number in (signal.SIGUSR1, signal.SIGUSR2)
        self.count += 1
        self._stop.set()
