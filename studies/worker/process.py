"""A worker process: ``python -m studies.worker.process``, started by :mod:`studies.worker.supervisor`.

It reads two lines of JSON from its standard input, a :class:`Setup` and an :class:`Assignment`, and
writes events, one line of JSON each, to its standard output:

- ``{"event": "ready", "slots": …, "directions": …, "steps": …, "environments": …}`` when the objective is built: how
  many trials it trains at once, and for each study the directions and number of steps of its objective, and the
  environment of the worker;
- ``{"event": "over", "reason": …}`` when its studies are over or it was stopped;
- ``{"event": "error", "message": …}`` before it exits with 1.

On SIGTERM, SIGINT and SIGHUP the worker requeues its trials at their next step and exits; likewise on SIGUSR1 and
SIGUSR2, by which cluster schedulers announce preemption. The end of its standard input means that the supervisor died:
then the worker exits after ``lease_seconds`` even without a step.

The objective is built before the storage is known, so that an objective that does not import makes no study.
"""

from __future__ import annotations

import gc
import io
import json
import logging
import multiprocessing
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

from studies import environment, objective
from studies.environment import Environment
from studies.errors import StorageUnreachable
from studies.objective import Objective
from studies.processes import Events, wait_for_end_of_input

log = logging.getLogger(__name__)

#: The signals on which a worker requeues its trials and exits.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSetup:
    """How to build the objective of one study."""

    study: str
    path: str
    """On this machine."""
    sha256: str | None
    """SHA-256 of the script as the supervisor read it: a script that changed since is refused."""
    args: Mapping[str, Any]
    space: Mapping[str, Any]
    """As JSON has it."""
    share: float
    constraints: tuple[str, ...] = ()  # a supervisor from before an upgrade does not know it
    """The metrics that the objective has to report."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker needs to build its objectives."""

    worker_id: str
    device: str
    label: str
    objectives: tuple[ObjectiveSetup, ...]
    allow: tuple[str, ...]
    """The objectives and checkpoint stores that studies may name, as ``work --allow`` takes them."""
    data_dir: str
    results: str
    """The directory for pending results."""
    until_idle: float | None
    """Seconds without a trial after which the worker ends; ``None`` to end with its studies."""
    slots: int | None = None  # a supervisor from before an upgrade does not know it
    """How many trials to train at once, if the objective can; ``None`` lets the objective choose."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker needs to run trials. Given on standard input: the URL may hold a password."""

    storage: str
    lease_seconds: float


def main() -> int:
    """Run a worker. Returns the exit status."""
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
        directions = {each.study: objective.directions_of(each.path, built[each.study]) for each in setup.objectives}
        environments = {
            each.study: environment.collect(each.path, built[each.study], setup.device) for each in setup.objectives
        }
        steps = {name: objective.steps_of(each) for name, each in built.items()}
        events.send("ready", slots=slots, directions=directions, steps=steps, environments=environments)
        line = sys.stdin.readline()
        if line:
            events.send("over", reason=_work(setup, Assignment(**json.loads(line)), built, environments, slots, stop))
    except Exception as error:
        events.send_error(error, kind=type(error).__name__, traceback=traceback.format_exc())
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
    objective.check_constraints(each.path, built, each.constraints)
    return built


def _work(
    setup: Setup,
    assignment: Assignment,
    built: Mapping[str, Objective],
    environments: Mapping[str, Environment],
    slots: int,
    stop: threading.Event,
) -> str:
    threading.Thread(target=_end_with_supervisor, args=(stop, assignment.lease_seconds), daemon=True).start()
    is_cut_off = False
    while not stop.is_set():
        try:
            return _run(setup, assignment, built, environments, slots, stop)
        except StorageUnreachable as error:  # a worker that starts during an outage waits like the running ones
            if not is_cut_off:
                log.warning("waiting for the database: %s", error)
            is_cut_off = True
            stop.wait(random.uniform(0.5, 1.0))
    return "interrupted"


def _run(
    setup: Setup,
    assignment: Assignment,
    built: Mapping[str, Objective],
    environments: Mapping[str, Environment],
    slots: int,
    stop: threading.Event,
) -> str:
    # Imported here: the objective imports first, and its errors are shown before any of ours.
    from studies import checkpoint_stores as checkpoints
    from studies.storage.postgres import PostgresStorage
    from studies.worker.loop import Worker
    from studies.worker.served_study import Service

    # Little patience per statement: the lease keeper retries during an outage, while training continues.
    with closing(PostgresStorage(assignment.storage, create=False, patience=0.5, stop=stop)) as storage:
        services = [
            Service(
                record=storage.find_study(each.study),
                objective=built[each.study],
                share=each.share,
                script_sha256=each.sha256,
                environment=environments[each.study],
            )
            for each in setup.objectives
        ]
        for service in services:
            if spec := service.record.spec:  # as stored now, which the supervisor may not have seen
                checkpoints.require_allowed(
                    spec.checkpoints.store, setup.allow, Path(setup.data_dir), service.record.name
                )
        storage.workers.register(
            [service.record for service in services],
            worker_id=setup.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=setup.label,
            slots=slots,
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
        with suppress(StorageUnreachable):  # its row expires after a day
            storage.workers.forget(setup.worker_id)
        return reason


def _end_with_supervisor(stop: threading.Event, lease_seconds: float) -> None:
    wait_for_end_of_input()
    stop.set()
    # By then others have the trial: a longer step would be in vain.
    time.sleep(lease_seconds)
    os._exit(1)  # no supervisor is left to kill it; the trial is requeued when its lease expires


def _read_setup(line: str) -> Setup:
    data = json.loads(line)
    return Setup(**{**data, "objectives": tuple(ObjectiveSetup(**each) for each in data["objectives"])})


def _write_out() -> None:
    """Write what is buffered of files that the objective keeps open, as Python does at its end."""

    def flush() -> None:
        for each in gc.get_objects():
            # By its type: isinstance() asks a proxy for its class, and what that stands for may be gone.
            if issubclass(type(each), io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom):
                with suppress(OSError, ValueError):  # closed, or a full disk
                    each.flush()

    # For a second at most: a thread that waits in a write holds the lock of its file.
    flushing = threading.Thread(target=flush, daemon=True)
    flushing.start()
    flushing.join(1.0)


def _exit(status: int) -> NoReturn:
    """Exit even if the objective left threads running, for which Python would wait forever.

    After an error, which was told, at once as well: threads of libraries that are about to begin (pyarrow's, where a
    table cannot be read) would abort the process with a message of their own.
    """
    left = [thread.name for thread in threading.enumerate() if not (thread.daemon or thread is threading.main_thread())]
    if left:
        log.warning("exited with %d threads of an objective still running, such as %s", len(left), left[0])
    if left or status:
        for child in multiprocessing.active_children():  # Python would end them, too
            child.terminate()
        logging.shutdown()
        _write_out()
        with suppress(OSError):  # the supervisor may be dead
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _exit(main())
