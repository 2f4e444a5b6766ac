"""A worker process: ``python -m studies.worker.process``, started by :mod:`studies.worker.supervisor`.

It reads two lines of JSON from its standard input, a :class:`Setup` and an :class:`Assignment`, and
writes events, one line of JSON each, to its standard output:

- ``{"event": "ready", "slots": …, "directions": …}`` when the objective is built, before anything is known of the
  storage, with how many trials it trains at once, and what each study's objective says of its direction;
- ``{"event": "over", "reason": …}`` when there is nothing more to do;
- ``{"event": "error", "message": …}`` before it exits with 1.

On SIGTERM, SIGINT and SIGHUP, and on SIGUSR1 and SIGUSR2, by which cluster schedulers tell that a machine is about to
be taken away, the worker gives its trial back at the next step and ends. The end of its standard input, when the
supervisor is gone, means the same; but then it ends after the seconds of a lease even without a step.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from studies import objective
from studies.errors import StorageUnreachable
from studies.objective import Objective
from studies.processes import Events, wait_for_end_of_input

log = logging.getLogger(__name__)

#: What asks a worker to give its trial back and to end.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSetup:
    """One study's objective, as a worker builds it."""

    study: str
    path: str
    """On this machine."""
    sha256: str | None
    """Of a script's content, as the supervisor read it."""
    args: Mapping[str, Any]
    space: Mapping[str, Any]
    """As JSON has it."""
    share: float


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker needs to build its objectives."""

    worker_id: str
    device: str
    label: str
    objectives: tuple[ObjectiveSetup, ...]
    allow: tuple[str, ...]
    """What the studies may run, and where they may keep checkpoints, as ``work --allow`` says it."""
    data_dir: str
    results: str
    """The directory where results wait while the database is away."""
    until_idle: float | None
    """Seconds without a trial after which the worker ends; ``None`` to end with its studies."""
    slots: int | None
    """How many trials to train at once, where the objective can; ``None`` for what it chooses."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker needs to run trials. Given on standard input: the URL may hold a password."""

    storage: str
    lease_seconds: float


def main() -> int:
    """Be a worker. Returns the exit status."""
    events = Events()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    warnings.filterwarnings("ignore", module="optuna")
    stop = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    try:
        setup = _read_setup(sys.stdin.readline())
        built = {each.study: _build(each, setup) for each in setup.objectives}
        slots = max(objective.slots_of(each, setup.device, setup.slots) for each in built.values())
        directions = {each.study: objective.direction_of(each.path, built[each.study]) for each in setup.objectives}
        events.tell("ready", slots=slots, directions=directions)
        line = sys.stdin.readline()
        if line:
            events.tell("over", reason=_work(setup, Assignment(**json.loads(line)), built, stop))
    except Exception as error:
        events.tell_error(error, kind=type(error).__name__, traceback=traceback.format_exc())
        return 1
    return 0


def _build(each: ObjectiveSetup, setup: Setup) -> Objective:
    built = objective.build(
        each.path,
        each.args,
        allow=setup.allow,
        space=tuple(each.space),
        data_dir=Path(setup.data_dir),
        sha256=each.sha256,
    )
    objective.check_space(each.path, built, each.space)
    return built


def _work(setup: Setup, assignment: Assignment, built: Mapping[str, Objective], stop: threading.Event) -> str:
    threading.Thread(target=_end_with_supervisor, args=(stop, assignment.lease_seconds), daemon=True).start()
    is_cut_off = False
    while not stop.is_set():
        try:
            return _run(setup, assignment, built, stop)
        except StorageUnreachable as error:  # a worker that starts during an outage waits, as the others do
            if not is_cut_off:
                log.warning("waiting for the database: %s", error)
            is_cut_off = True
            stop.wait(random.uniform(0.5, 1.0))
    return "interrupted"


def _run(setup: Setup, assignment: Assignment, built: Mapping[str, Objective], stop: threading.Event) -> str:
    # Imported here: the objective's own imports come first, so that their errors do.
    from studies import checkpoint_stores as checkpoints
    from studies.storage.postgres import PostgresStorage
    from studies.worker.loop import Worker
    from studies.worker.served_study import Service

    # Hardly patient: the worker itself waits for a database that is away, and trains on meanwhile.
    with closing(PostgresStorage(assignment.storage, create=False, patience=0.5, stop=stop)) as storage:
        services = [
            Service(
                record=storage.find_study(each.study),
                objective=built[each.study],
                share=each.share,
                script_sha256=each.sha256,
            )
            for each in setup.objectives
        ]
        for service in services:
            if spec := service.record.spec:  # as it stands now, whatever it said when we were started
                checkpoints.require_allowed(
                    spec.checkpoints.store, setup.allow, Path(setup.data_dir), service.record.name
                )
        storage.workers.register(
            [service.record for service in services],
            worker_id=setup.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=setup.label,
        )
        worker = Worker(
            storage,
            services,
            worker_id=setup.worker_id,
            device=setup.device,
            slots=setup.slots,
            lease_seconds=assignment.lease_seconds,
            results=Path(setup.results),
            until_idle=setup.until_idle,
            stop=stop,
        )
        reason = worker.run()
        with suppress(StorageUnreachable):  # it is forgotten by itself, after a day
            storage.workers.forget(setup.worker_id)
        return reason


def _end_with_supervisor(stop: threading.Event, lease_seconds: float) -> None:
    wait_for_end_of_input()
    stop.set()
    time.sleep(lease_seconds)
    os._exit(1)  # nobody is left to end it; others take the trial when they miss its heartbeat


def _read_setup(line: str) -> Setup:
    data = json.loads(line)
    return Setup(**{**data, "objectives": tuple(ObjectiveSetup(**each) for each in data["objectives"])})


def _exit(status: int) -> NoReturn:
    """End, whatever an objective has left: Python would wait for its threads, and nobody for this worker's result."""
    left = [thread.name for thread in threading.enumerate() if not (thread.daemon or thread is threading.main_thread())]
    if left:
        log.warning("ended beside %d threads that an objective left running, such as %s", len(left), left[0])
        logging.shutdown()
        with suppress(OSError):  # nobody is left to read it
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _exit(main())
