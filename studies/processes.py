"""Child processes: JSON lines in, JSON events out, restarted with backoff when they die.

Settings go through standard input, never through arguments or the environment: they may hold passwords.
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
from typing import IO, TYPE_CHECKING, Any, Final

from studies.errors import described

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


#: Seconds until the last events of a child that has ended are read, which say why. A busy machine takes its time, and
#: only a forked grandchild holds their pipe open.
EVENTS: Final = 10.0
#: Seconds for its last output. Any grandchild that is still there holds that pipe open.
OUTPUT: Final = 1.0


class Child:
    """A child process, with a reader thread for each of its two pipes.

    Args:
        module: run as ``python -m module``.
        setup: sent as the first line.
        environment: the whole environment of the child.
        output: called with each line of its standard error, from another thread.
        inherit: file descriptors for the child, such as the embedded server's lock.
        ended: called when it has ended, from another thread.
    """

    def __init__(
        self,
        module: str,
        setup: DataclassInstance,
        *,
        environment: Mapping[str, str],
        output: Callable[[str], None],
        inherit: Sequence[int] = (),
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        self.events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.last_events: dict[str, dict[str, Any]] = {}
        """The last event of each name; complete once :meth:`wait` has returned."""
        self.popen = subprocess.Popen(
            # -P: a module in the current folder must not shadow ours or Python's. A flag, as an environment variable
            # would be inherited by whatever the child starts.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=inherit,
            # Its own session: the terminal sends Ctrl-C to the parent alone, which stops its children in order.
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._output, self._ended = output, ended
        self._readers = [
            threading.Thread(target=self._read_events, args=(self.popen.stdout,), daemon=True),
            threading.Thread(target=self._read_output, args=(self.popen.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self.send(setup)

    def send(self, message: DataclassInstance) -> None:
        """Send one more line of JSON."""
        assert self.popen.stdin is not None  # it is a pipe
        with suppress(BrokenPipeError):  # the child died; poll() reports why
            self.popen.stdin.write(json.dumps(asdict(message)) + "\n")
            self.popen.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing to a child that has ended."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """Kill the child and wait for its end."""
        self.popen.kill()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and its last output; returns the exit status.

        Raises:
            subprocess.TimeoutExpired: it runs longer than ``timeout`` seconds.
        """
        status = self.popen.wait(timeout)
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):  # a line is still buffered that the child never read
            self.popen.stdin.close()
        pipes = (self.popen.stdout, self.popen.stderr)
        for reader, pipe, seconds in zip(self._readers, pipes, (EVENTS, OUTPUT), strict=True):
            reader.join(timeout=seconds)
            # One that still reads holds the pipe's lock: close() would wait for a grandchild's end, deaf to signals.
            if pipe and not reader.is_alive():
                pipe.close()
        return status

    def _read_events(self, pipe: IO[str]) -> None:
        for line in pipe:
            event = json.loads(line)
            self.last_events[event["event"]] = event
            self.events.put(event)
        self.popen.wait()  # the pipe is closed a moment before
        self._ended()

    def _read_output(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._output(line.rstrip())


class Restarted:
    """A child process that is restarted when it dies, with exponential backoff.

    Args:
        name: shown to people.
        start: starts a process.
        output: called with a line for each death.
    """

    #: Seconds of the longest backoff; a process that ran for longer starts again without one.
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
        error = self.child.last_events.get("error")
        return str(error["message"]) if error else f"exit status {status}"

    def poll(self) -> None:
        """Restart the process when its backoff has passed. To be called about twice a second."""
        if self._due is None and (why := self.cause_of_death):
            self._deaths = 0 if time.monotonic() - self._began > self.MAX_PAUSE else self._deaths + 1
            self._due = time.monotonic() + min(self.MAX_PAUSE, 0.25 * 2**self._deaths)
            self._output(f"{self.name} ended: {why}; starting it again")
        if self._due is not None and time.monotonic() >= self._due:
            self._due, self._began, self.child = None, time.monotonic(), self._start()

    def stop(self) -> None:
        """Ask the process to exit, and never restart it."""
        self._due = math.inf
        self.child.signal(signal.SIGTERM)

    def close(self, within: float) -> None:
        """After :meth:`stop`: wait ``within`` seconds at most, then kill it."""
        try:
            self.child.wait(within)
        except subprocess.TimeoutExpired:
            self.child.kill()


class Events:
    """The child's side of the events. It takes over standard output: whatever is printed goes to standard error."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)

    def send(self, event: str, **facts: Any) -> None:
        """Send an event; from any thread."""
        with suppress(BrokenPipeError):  # the parent died
            os.write(self._descriptor, (json.dumps({"event": event, **facts}) + "\n").encode())

    def send_error(self, error: Exception, **facts: Any) -> None:
        """Send the error that ends the process."""
        self.send("error", message=described(error), **facts)


def wait_for_end_of_input() -> None:
    """Return when the parent has closed our standard input, or is gone.

    Reads below ``sys.stdin``: a thread that waits in that itself would hold its lock at exit.
    """
    while os.read(sys.stdin.fileno(), 4096):
        pass
