"""The supervisor: starts the workers of one machine, restarts dead ones with backoff, stops them in order."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty

from studies.environment import Environment
from studies.errors import ObjectiveError, StorageUnreachable, WorkerError
from studies.processes import Child
from studies.spec.script import Script
from studies.spec.study import StudySpec
from studies.storage.postgres import PostgresStorage
from studies.worker.devices import Device
from studies.worker.process import Assignment, ObjectiveSetup, Setup

#: How often in a row a worker may die without a trial before the supervisor gives up. A death with a trial counts
#: against the trial instead, which FAILs at the third.
MAX_DEATHS = 3
#: Seconds until a dead worker is replaced; doubled with each death in a row.
BACKOFF = 1.0
#: Environment variables of the workers, unless the user sets them.
DEFAULTS = {
    # A progress bar in the objective would print a line per update into the log.
    "TQDM_DISABLE": "1",
    # The same on every machine: an objective may take its choices from a set, whose order depends on it.
    "PYTHONHASHSEED": "0",
}


class _Process(Child):
    """One worker process."""

    def __init__(
        self,
        slot: int,
        setup: Setup,
        environment: Mapping[str, str],
        output: Callable[[_Process, str], None],
        inherit: Sequence[int],
        ended: Callable[[], object],
    ) -> None:
        self.slot = slot
        self.id = setup.worker_id
        super().__init__(
            "studies.worker.process",
            setup,
            environment=environment,
            output=lambda line: output(self, line),
            inherit=inherit,
            ended=ended,
        )


class Supervisor:
    """Starts one worker per device and keeps them alive.

    Args:
        specs: the studies, each with its share of the trials.
        scripts: study name → script of its objective on this machine, which is thereby allowed.
        devices: one for each worker.
        allow: the objectives and checkpoint stores that studies may name, as ``work --allow`` takes them.
        data_dir: this machine's folder of data sets.
        results: the directory for pending results.
        environment: of the workers; devices and :data:`DEFAULTS` add to it.
        output: called with each line that a worker logs, from any thread.
        slots: how many trials a worker trains at once, if the objective can; ``None`` lets the objective choose.
        until_idle: seconds without a trial after which a worker exits, even though all studies are over; ``None`` to
            exit when the studies are over.
        inherit: file descriptors that the workers inherit, such as the embedded server's lock.
    """

    def __init__(
        self,
        specs: Sequence[tuple[StudySpec, float]],
        devices: Sequence[Device],
        *,
        scripts: Mapping[str, Script],
        allow: Sequence[str],
        data_dir: Path,
        results: Path,
        environment: Mapping[str, str],
        output: Callable[[str], None],
        slots: int | None = None,
        until_idle: float | None = None,
        inherit: Sequence[int] = (),
    ) -> None:
        self._wanted_slots = slots
        #: How many trials a worker trains at once; 1 until a worker is ready.
        self.slots = 1
        #: By the name of a study, what its objective says of its direction; known when a worker is ready.
        self.directions: Mapping[str, list[str] | None] = {}
        #: Likewise how many steps it trains.
        self.steps: Mapping[str, int | None] = {}
        #: Likewise what its trials' numbers depend on.
        self.environments: Mapping[str, Environment] = {}
        self._until_idle = until_idle
        self._specs = specs
        self._devices = devices
        self._scripts = scripts
        self._allow = (*allow, *(script.path for script in scripts.values()))
        self._data_dir = data_dir
        self._results = results
        self._environment = environment
        self._output = output
        self._inherit = inherit
        self._assignment: Assignment | None = None
        self._storage: PostgresStorage | None = None
        self._stopping = False
        self._has_ended = threading.Event()
        self._said_first: dict[str, int] = {}  # line of a worker that was not ready yet → its slot
        self._failing: set[int] = set()  # slots of workers that have said a traceback
        self._deaths = [0] * len(devices)
        self._processes: list[_Process] = []
        self._restarts: dict[int, float] = {}  # slot → when its next worker starts (monotonic clock)

    def __enter__(self) -> Supervisor:
        self._processes = [self._start(slot) for slot in range(len(self._devices))]
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def alive(self) -> int:
        """How many workers there are, including those about to restart."""
        return len(self._processes) + len(self._restarts)

    def wait_until_ready(self) -> None:
        """Wait until a worker has built the objective, before anything is written.

        Raises:
            ObjectiveError: the objective does not import, or refuses its arguments or data.
            WorkerError: the worker died without a reason.
        """
        # One worker is enough: all of them build the same objectives, and a message per worker would repeat itself.
        first = self._processes[0]
        while True:
            try:
                event = first.events.get(timeout=0.2)
            except Empty:
                if first.popen.poll() is None:
                    continue
                status = first.wait()  # what it said last may not have been read yet
                if not first.events.empty():
                    continue
                raise WorkerError(f"worker 0 ended with status {status} while it started") from None
            if event["event"] == "ready":
                self.slots, self.directions, self.steps = event["slots"], event["directions"], event["steps"]
                self.environments = event["environments"]
                return
            raise ObjectiveError(event["message"])

    def assign(self, storage: PostgresStorage, lease_seconds: float) -> None:
        """Let the workers run trials. The studies must be in the storage."""
        self._storage = storage
        self._assignment = Assignment(storage=storage.location.sqlalchemy, lease_seconds=lease_seconds)
        for process in self._processes:
            process.send(self._assignment)

    def wait(self, seconds: float) -> None:
        """Wait until a worker ends, but no longer than that."""
        self._has_ended.wait(seconds)
        self._has_ended.clear()

    def poll(self) -> None:
        """Reap and restart workers. To be called about twice a second, and after each :meth:`wait`.

        Raises:
            WorkerError: a worker died :data:`MAX_DEATHS` times in a row without a trial.
            StorageUnreachable: the trials of a dead worker could not be requeued; the next call tries again.
        """
        for slot in [slot for slot, due in self._restarts.items() if due <= time.monotonic()]:
            del self._restarts[slot]
            successor = self._start(slot)
            assert self._assignment is not None  # poll() comes after assign()
            successor.send(self._assignment)
            self._processes.append(successor)
        for process in [p for p in self._processes if p.popen.poll() is not None]:
            status = process.wait()
            if "over" not in process.last_events and not self._stopping:
                self._reap(process, status)
            # After reaping: if the storage is unreachable, the next call reaps this process again.
            self._processes.remove(process)

    def stop(self) -> None:
        """Ask the workers to requeue their trials at the next step, and to exit."""
        self._stopping = True
        # No successor may start after this: nobody would stop it.
        self._restarts.clear()
        for process in self._processes:
            process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the workers, and requeue their trials."""
        self._stopping = True
        self._restarts.clear()
        for process in self._processes:
            process.signal(signal.SIGKILL)
        # Requeue after the processes are gone: a live one would still write.
        for process in self._processes:
            process.wait()
        if self._processes and self._storage:
            with suppress(StorageUnreachable):  # then the trials are requeued when their leases expire
                self._storage.workers.reap([process.id for process in self._processes], died_of=None)
                for process in self._processes:
                    self._storage.workers.forget(process.id)
        self._processes = []

    def _start(self, slot: int) -> _Process:
        device = self._devices[slot]
        setup = Setup(
            worker_id=f"{os.uname().nodename}-{uuid.uuid4().hex[:12]}",
            device=device.torch,
            label=device.label,
            objectives=tuple(self._objective(spec, share) for spec, share in self._specs),
            allow=self._allow,
            data_dir=str(self._data_dir),
            results=str(self._results),
            until_idle=self._until_idle,
            slots=self._wanted_slots,
        )
        # The device last: a worker must see its own GPU alone, whatever CUDA_VISIBLE_DEVICES said here.
        environment = {**DEFAULTS, **self._environment, **device.environment}
        return _Process(slot, setup, environment, self._relay, self._inherit, self._has_ended.set)

    def _relay(self, process: _Process, line: str) -> None:
        """Pass on what a worker says. All build the same objectives: what one says then, the others need not repeat."""
        if line.startswith("Traceback"):
            self._failing.add(process.slot)  # which is told in full
        is_new = self._said_first.setdefault(line, process.slot) == process.slot
        if is_new or process.slot in self._failing or "ready" in process.last_events:
            self._output(f"worker {process.slot} | {line}")

    def _objective(self, spec: StudySpec, share: float) -> ObjectiveSetup:
        script = self._scripts.get(spec.name)
        return ObjectiveSetup(
            study=spec.name,
            path=script.path if script else spec.objective.path,
            sha256=script.sha256 if script else None,
            args=spec.objective.args,
            space={name: parameter.model_dump(mode="json") for name, parameter in spec.space.items()},
            share=share,
            constraints=tuple(name for name in spec.constraints if name not in spec.metric_names),
        )

    def _reap(self, process: _Process, status: int) -> None:
        """Requeue the trials of a dead worker, and schedule its successor.

        A worker that exited with an error of its own, such as an unreachable storage, does not count against its trial.
        """
        assert self._storage is not None  # poll() comes after assign()
        error = process.last_events.get("error")
        why = error["message"] if error else f"ended by {_status_name(status)}"
        had_trial = self._storage.workers.reap([process.id], died_of=None if error else why)
        self._storage.workers.forget(process.id, died_of=why)
        is_outage = error is not None and error["kind"] == StorageUnreachable.__name__
        # An outage kills starting workers in vain again and again; only deaths by other reasons end the supervisor.
        deaths = 0 if had_trial or is_outage else self._deaths[process.slot] + 1
        if deaths >= MAX_DEATHS:
            raise WorkerError(f"worker {process.slot} died {deaths} times in a row, last: {why}")
        self._deaths[process.slot] = deaths
        self._output(f"worker {process.slot} | died: {why}; starting it again")
        self._restarts[process.slot] = time.monotonic() + BACKOFF * 2**deaths


def _status_name(status: int) -> str:
    if status < 0:
        return f"signal {-status} ({signal.Signals(-status).name})"
    return f"exit status {status}"
