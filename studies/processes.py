"""Processes of ours that we start: they read lines of JSON, and tell events in lines of JSON.

What they need they read from their standard input, never from their arguments: it may hold passwords.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from studies.errors import described

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Child:
    """A process, with a thread for each of its two pipes.

    Args:
        module: run as ``python -m module``.
        setup: the first line it reads.
        environment: all of it.
        output: is given each line that the process writes to standard error, from another thread.
        inherit: open files for it to hold, such as the embedded server's lock.
    """

    def __init__(
        self,
        module: str,
        setup: DataclassInstance,
        *,
        environment: Mapping[str, str],
        output: Callable[[str], None],
        inherit: Sequence[int] = (),
    ) -> None:
        self.events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.last_words: dict[str, dict[str, Any]] = {}
        """The last event of each name; all are there once :meth:`wait` has returned."""
        self.popen = subprocess.Popen(
            # -P: no module of the current folder takes the place of ours or Python's. By a flag and not by the
            # environment, which what they start themselves would inherit.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=inherit,
            # Out of the terminal's reach: Ctrl-C goes to the parent alone, which stops them in order.
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._output = output
        self._readers = [
            threading.Thread(target=self._read_events, args=(self.popen.stdout,), daemon=True),
            threading.Thread(target=self._read_output, args=(self.popen.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.send(setup)

    def send(self, message: DataclassInstance) -> None:
        """Let it read one more line."""
        assert self.popen.stdin is not None  # it is a pipe
        with suppress(BrokenPipeError):  # it died; whoever polls it learns why
            self.popen.stdin.write(json.dumps(asdict(message)) + "\n")
            self.popen.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; does nothing where it has ended."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it now."""
        self.popen.kill()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and for the last it had to say; raises :exc:`subprocess.TimeoutExpired`."""
        status = self.popen.wait(timeout)
        for reader in self._readers:
            reader.join(timeout=1)  # a grandchild may hold the pipe open
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):  # the line it never read
                pipe.close()
        return status

    def _read_events(self, pipe: IO[str]) -> None:
        for line in pipe:
            event = json.loads(line)
            self.last_words[event["event"]] = event
            self.events.put(event)

    def _read_output(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._output(line.rstrip())


class Kept:
    """A process that is started again when it dies: at once if it ran for a while, else less and less often.

    Args:
        name: of what it does, for people.
        start: makes one.
        output: is told of deaths.
    """

    MAX_PAUSE = 30.0

    def __init__(self, name: str, start: Callable[[], Child], output: Callable[[str], None]) -> None:
        self.name = name
        self.child = start()
        self._start = start
        self._output = output
        self._began = time.monotonic()
        self._deaths = 0
        self._due: float | None = None

    @property
    def cause_of_death(self) -> str | None:
        """Why it has ended; ``None`` while it runs."""
        if self.child.popen.poll() is None:
            return None
        status = self.child.wait()
        error = self.child.last_words.get("error")
        return str(error["message"]) if error else f"exit status {status}"

    def poll(self) -> None:
        """Start it again if it is time; call it about twice a second."""
        if self._due is None and (why := self.cause_of_death):
            self._deaths = 0 if time.monotonic() - self._began > self.MAX_PAUSE else self._deaths + 1
            self._due = time.monotonic() + min(self.MAX_PAUSE, 0.25 * 2**self._deaths)
            self._output(f"{self.name} ended: {why}; starting it again")
        if self._due is not None and time.monotonic() >= self._due:
            self._due, self._began, self.child = None, time.monotonic(), self._start()

    def stop(self) -> None:
        """Ask it to end, for good."""
        self._due = math.inf
        self.child.signal(signal.SIGTERM)

    def close(self, within: float) -> None:
        """After :meth:`stop`: wait, at most ``within`` seconds, then end it at once."""
        try:
            self.child.wait(within)
        except subprocess.TimeoutExpired:
            self.child.kill()


class Events:
    """In the child: takes standard output for events; what is printed goes to standard error."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)

    def tell(self, event: str, **facts: Any) -> None:
        """Tell an event; from any thread."""
        with suppress(BrokenPipeError):  # nobody is left to read it
            os.write(self._descriptor, (json.dumps({"event": event, **facts}) + "\n").encode())

    def tell_error(self, error: Exception, **facts: Any) -> None:
        """Tell what ends the process."""
        self.tell("error", message=described(error), **facts)


def wait_for_end_of_input() -> None:
    """Return when the parent has closed our standard input, or is gone.

    Reads below ``sys.stdin``: a thread that waits in that itself would hold its lock at exit.
    """
    while os.read(sys.stdin.fileno(), 4096):
        pass
