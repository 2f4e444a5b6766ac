"""The mirror's process: ``python -m studies.mirror.process``, started by :mod:`studies.mirror.launcher`.

A process of its own, with a lower priority: whatever MLflow does costs no worker any time. It reads a line of JSON
from its standard input, a :class:`Setup`, and writes events, one line of JSON each, to its standard output:

- ``{"event": "asking"}`` before a request to MLflow, and ``{"event": "loading"}`` before MLflow's client is imported;
- ``{"event": "beat"}`` now and then while MLflow answers;
- ``{"event": "connected"}`` when MLflow has answered for the first time, or again;
- ``{"event": "waiting", "message": …}`` when MLflow or the database is unreachable;
- ``{"event": "refused", "message": …}`` when MLflow refuses a study, or a part of one; once;
- ``{"event": "writing", "study": …, "done": …, "trials": …}`` every few seconds while many trials are written;
- ``{"event": "mirrored", "study": …, "trials": …}`` when a study is complete in MLflow;
- ``{"event": "error", "message": …}`` before it exits with 1.

A second line asks it to finish: to catch up once more, and to exit. The end of its standard input, or any signal, ends
it at once; the next mirror continues from what is in MLflow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from studies.errors import StorageUnreachable, StudyNotFound, TrackingError, TrackingUnreachable, described
from studies.mirror.refusals import Refusals
from studies.mirror.server import configure, probe
from studies.processes import Events, wait_for_end_of_input

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from studies.mirror.study_mirror import StudyMirror
    from studies.storage.postgres import PostgresStorage

#: Seconds between two reads of a study that is running, and of one that is not.
POLL, POLL_IDLE = 1.0, 3.0
#: Backoff in seconds while MLflow or the database is unreachable: the first pause, doubled up to the last.
MIN_PAUSE, MAX_PAUSE = 0.25, 5.0
BEAT: Final = 0.2
#: Seconds between two progress events.
PROGRESS: Final = 5.0
RETRIES: Final = 10


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings of a mirror, sent to its standard input: both addresses may hold passwords."""

    storage: str
    tracking: str | None
    """MLflow's address; ``None`` for its database beside the studies, created if missing."""
    artifacts: str | None
    """The artifact location; ``None`` for the server's default."""
    studies: tuple[str, ...]
    """Names; empty for all studies, and new ones."""
    once: bool
    """Catch up, verify, and exit."""


def main() -> int:
    """Run a mirror. Returns the exit status."""
    events = Events()
    _give_way()
    os.umask(0o077)  # artifacts may hold secrets of an objective
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends this process in order
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore")
    try:
        setup = Setup(**json.loads(sys.stdin.readline()))
        Mirror(setup, events).run()
    except Exception as error:
        events.send_error(error)
        return 1
    return 0


def _give_way() -> None:
    """Yield the CPU to the workers.

    At the lowest priority, 19, a mirror beside busy workers gets 1.5 % of a core, by which MLflow's tables take
    minutes to make; at 10 it gets a tenth.
    """
    os.nice(10)
    # With autogroups Linux gives each session the same share, whatever the niceness of its processes.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")


class Mirror:
    """Mirrors studies until it is told to finish, or its standard input ends."""

    def __init__(self, setup: Setup, events: Events) -> None:
        self._setup = setup
        self._events = events
        self._finish = threading.Event()
        self._beaten = 0.0
        self._told_progress = 0.0
        self._mirrors: dict[str, StudyMirror] = {}
        self._due: dict[str, float] = {}
        self._told: dict[str, int] = {}
        self._refusals = Refusals(self._say_refused)
        self._said = ""
        self._pause = MIN_PAUSE
        self._names: Sequence[str] = setup.studies
        self._names_due = 0.0
        self._has_deleted_leftovers = False

    def run(self) -> None:
        """Mirror.

        Raises:
            StudyNotFound, TrackingError, StorageError: it makes no sense to go on.
            TrackingUnreachable, StorageUnreachable: with ``once`` alone; else it waits.
        """
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            try:
                self._mirror()
                break
            except (TrackingUnreachable, StorageUnreachable) as error:
                if self._setup.once or self._finish.is_set():
                    raise
                self._say("waiting", str(error))
            self._pause = min(MAX_PAUSE, self._pause * 2)
            self._finish.wait(self._pause)
        if missing := self._refusals.summary(len(self._names)):
            raise TrackingError(missing)

    def _mirror(self) -> None:
        if self._setup.tracking:
            self._events.send("asking")
            probe(self._setup.tracking)
            self._events.send("loading")
        # Imported here: MLflow and Optuna cost two seconds of CPU, in vain if nothing answers.
        from studies.mirror.server import connect, prepare_database
        from studies.storage.postgres import PostgresStorage
        from studies.storage.url import StorageURL

        configure()
        import mlflow  # noqa: F401

        self._events.send("asking")
        location = StorageURL.parse(self._setup.storage)
        client = connect(self._setup.tracking or prepare_database(location))
        self._events.send("connected")
        self._said, self._pause = "", MIN_PAUSE
        with closing(PostgresStorage(location, create=False, patience=0.0)) as storage:
            # After an error nobody knows what was written: each study asks MLflow anew.
            self._mirrors.clear()
            self._due.clear()
            while True:
                finish = self._finish.is_set() or self._setup.once
                self._round(storage, client, every=finish)
                if finish:
                    return
                self._finish.wait(0.2)

    def _round(self, storage: PostgresStorage, client: MlflowClient, *, every: bool) -> None:
        """Mirror each study that is due, or ``every`` one."""
        self._sweep(storage, client)
        if not self._setup.studies and (every or self._names_due < time.monotonic()):
            self._names, self._names_due = storage.study_names(), time.monotonic() + POLL_IDLE
        for name in self._names:
            if every or self._due.get(name, 0.0) <= time.monotonic():
                self._due[name] = self._mirror_study(storage, client, name)

    def _sweep(self, storage: PostgresStorage, client: MlflowClient) -> None:
        """Delete the runs of deleted studies: at the start, and when a study disappears."""
        if self._has_deleted_leftovers:
            return
        from mlflow.exceptions import MlflowException

        from studies.mirror.leftovers import sweep
        from studies.mirror.server import trouble

        try:
            sweep(storage, client, self._beat)
        except MlflowException as error:  # another mirror may delete the same runs
            told = trouble(client, error)
            if isinstance(told, TrackingUnreachable):
                raise told from error
            logging.getLogger(__name__).warning("the runs of deleted studies may be left in MLflow: %s", told)
        self._has_deleted_leftovers = True

    def _mirror_study(self, storage: PostgresStorage, client: MlflowClient, name: str) -> float:
        """Mirror one study. Returns when it is due again (monotonic clock)."""
        from studies.mirror.study_mirror import StudyMirror

        try:
            mirror = self._mirrors.get(name)
            if mirror is None:
                mirror = self._mirrors[name] = StudyMirror(
                    storage,
                    storage.find_study(name),
                    client,
                    artifacts=self._setup.artifacts,
                    beat=self._beat,
                    progress=partial(self._tell_progress, name),
                )
            self._told_progress = time.monotonic()
            self._catch_up(mirror, client)
            return time.monotonic() + (POLL if mirror.is_active else POLL_IDLE)
        except StudyNotFound:
            self._mirrors.pop(name, None)  # deleted; a later study may have its name
            self._refusals.remove(name)
            self._has_deleted_leftovers = False
            if self._setup.once and self._setup.studies:
                raise
            return time.monotonic() + POLL_IDLE
        except (TrackingUnreachable, StorageUnreachable):
            raise
        except Exception as error:  # one study must not stop the others
            self._refusals.add(name, f"study {name!r}: {described(error)}")
            return self._refusals.retry_at(name) or 0.0

    def _catch_up(self, mirror: StudyMirror, client: MlflowClient) -> None:
        from mlflow.exceptions import MlflowException

        from studies.mirror.server import trouble

        name = mirror.record.name
        if (self._refusals.retry_at(name) or math.inf) <= time.monotonic():
            mirror.retry()
        # Retried: another mirror or a person may delete a run meanwhile. Several mirrors of one study delete each
        # other's duplicates until all of them know the same runs.
        for is_last in [False] * RETRIES + [True]:
            try:
                mirror.catch_up()
                if not self._setup.once or mirror.is_settled():
                    break
            except MlflowException as error:
                told = trouble(client, error)
                if is_last or isinstance(told, TrackingUnreachable):
                    raise told from error
                time.sleep(random.uniform(0.1, 0.5))
        if mirror.refused:
            self._refusals.add(name, _of_refused(mirror))
        else:
            self._refusals.remove(name)
        if name not in self._told:
            self._events.send("page", study=name, page=mirror.page)
        if self._told.get(name) != mirror.count:
            self._told[name] = mirror.count
            self._events.send("mirrored", study=name, trials=mirror.count)

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            self._events.send("beat")

    def _tell_progress(self, study: str, done: int, trials: int) -> None:
        if done < trials and time.monotonic() - self._told_progress > PROGRESS:
            self._told_progress = time.monotonic()
            self._events.send("writing", study=study, done=done, trials=trials)

    def _say(self, event: str, message: str) -> None:
        if message != self._said:
            self._said = message
            self._events.send(event, message=message)

    def _say_refused(self, message: str) -> None:
        if not (self._setup.once and len(self._names) == 1):  # otherwise this error ends the process, and is shown then
            self._events.send("refused", message=message)

    def _listen(self) -> None:
        if os.read(sys.stdin.fileno(), 4096):
            self._finish.set()
            wait_for_end_of_input()
        os._exit(0)  # the parent died or stopped waiting: MLflow may hang for minutes


def _of_refused(mirror: StudyMirror) -> str:
    """What MLflow refuses of a study, in one line."""
    numbers = mirror.refused_trials
    if not numbers:
        (reason,) = mirror.refused.values()
        return f"study {mirror.record.name!r}, the run of the study itself: {reason}"
    what = f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {', '.join(map(str, numbers[:5]))}"
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"study {mirror.record.name!r}, {what}{more}: {mirror.refused[str(numbers[0])]}"


if __name__ == "__main__":
    sys.exit(main())
