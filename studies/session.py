"""A session: this machine's workers on one or more studies, from their start to their end.

It is what `studyhall run`, `studyhall work` and :meth:`studies.Study.run` share. It neither prints nor exits.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from uuid import uuid4

from studies import checkpoint_stores, environment, objective
from studies.errors import ObjectiveError, StorageUnreachable, StudyhallError, StudyNotFound, command
from studies.notify.notifier import Notifier
from studies.overview import EpochPace, pace_trials, seconds_left
from studies.spec.script import Script, find, found_as, is_script
from studies.stop_reasons import FAILURES, STOP_REASONS, failure_of, way_on
from studies.storage import chosen_home
from studies.text import counted, number
from studies.worker import devices
from studies.worker.supervisor import Supervisor

if TYPE_CHECKING:
    from studies.spec import StudySpec
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import Status, StudyRecord, Timing

T = TypeVar("T")

#: Seconds between two calls of :meth:`Session.poll`, at most.
POLL: Final = 0.5

#: Variables that workers don't get: the storage's URL may hold a password, and goes through a pipe.
_SECRETS = ("STUDYHALL_STORAGE", "STUDYHALL_NOTIFY")


class Joined(NamedTuple):
    """A study of the session."""

    record: StudyRecord
    is_new: bool
    """Whether this session created it."""


class Seen(NamedTuple):
    """A study of the session at one moment."""

    status: Status
    record: StudyRecord
    seconds_left: float | None
    """``None`` without an estimate."""


class Session:
    """The workers of this machine, from their start to their end.

    A context manager: its start begins the processes, its end leaves none. Call in this order :meth:`prepare`,
    :meth:`join`, :meth:`begin`, then :meth:`poll` and :meth:`wait` while :attr:`workers` is above 0.

    Args:
        storage: where the studies are, or will be.
        specs: the studies, each with its share of the workers' trials.
        workers: how many; ``None``: one per GPU, else per core.
        scripts: by the name of a study, the script of its objective on this machine.
        allow: what the studies may run, and where they may keep checkpoints, as ``work --allow`` says it.
        data_dir: where this machine keeps data sets.
        lease_seconds: how long a trial stays with a worker that is silent.
        output: is given each line that a worker writes, and warnings; from any thread.
        notify_url: gets the studies' events, beside the address that each study names.
        slots: how many trials a worker trains at once, where the objective can; ``None`` for what it chooses.
        until_idle: seconds without a trial after which a worker ends; ``None`` to end with the studies.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        specs: Sequence[tuple[StudySpec, float]],
        *,
        workers: int | None,
        scripts: Mapping[str, Script],
        allow: Sequence[str],
        data_dir: Path,
        lease_seconds: float,
        output: Callable[[str], None],
        notify_url: str | None = None,
        slots: int | None = None,
        until_idle: float | None = None,
    ) -> None:
        self._storage = storage
        self._specs = [spec for spec, _ in specs]
        self._lease_seconds = lease_seconds
        self._output = output
        self._notify_url = notify_url
        self._stack = ExitStack()
        self.records: list[StudyRecord] = []
        #: By the name of a study, as of how many ended trials.
        self._timings: dict[str, tuple[int, list[Timing]]] = {}
        self._paces: defaultdict[str, EpochPace] = defaultdict(EpochPace)
        self._devices = devices.choose(workers, os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.supervisor = Supervisor(
            specs,
            self._devices,
            scripts=scripts,
            allow=allow,
            data_dir=data_dir,
            # Of the machine, not of this session: the next one sends what is pending.
            results=chosen_home() / "results",
            slots=slots,
            until_idle=until_idle,
            environment={name: value for name, value in os.environ.items() if name not in _SECRETS},
            output=output,
            # A share in the embedded server: it stays while a worker lives, even if this process is killed.
            inherit=[storage.server.fileno()] if storage.server else [],
        )

    def __enter__(self) -> Session:
        # Before any process starts: a viewer's workers could write nothing.
        self._storage.require("worker")
        self._stack.enter_context(self.supervisor)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def workers(self) -> int:
        """How many workers are alive or about to restart."""
        return self.supervisor.alive

    @property
    def size(self) -> str:
        """The number of workers and of their slots, in words."""
        workers = counted(self.workers, "worker")
        return f"{workers} of {self.supervisor.slots} slots each" if self.supervisor.slots > 1 else workers

    def prepare(self) -> None:
        """Check the objectives and the checkpoint stores, before anything is written.

        Raises:
            CheckpointError: a study's checkpoint store fails.
            ObjectiveError: an objective does not import, refuses its arguments, data or space, has another direction
                than its study, or ends before the study's scheduler pauses it.
            WorkerError: a worker died without a reason.
        """
        for spec in self._specs:
            if spec.checkpoints.store != "postgresql":
                # In a folder of its own: the study has no id before it is made.
                checkpoint_stores.open_store(spec.checkpoints.store, str(uuid4())).check()
        self.supervisor.wait_until_ready()
        self._specs = [self._directed(spec) for spec in self._specs]
        for spec in self._specs:
            self._check_scheduler(spec)

    def join(self) -> list[Joined]:
        """Create the studies, or join existing ones.

        Raises:
            SpecMismatch: a study exists with another spec.
            ObjectiveError: a study was made with a data set of another content.
        """
        joined = [Joined(*self._storage.create_study(spec)) for spec in self._specs]
        for record, _ in joined:
            here = self.supervisor.environments[record.name]
            environment.require_same_data(record.name, self._storage.settle_environment(record, here), here)
        self.records = [record for record, _ in joined]
        return joined

    def _directed(self, spec: StudySpec) -> StudySpec:
        """The spec, with its objective's direction where it says none and is new.

        Raises:
            ObjectiveError: it, or the study that exists, has another one than the objective.
        """
        natural = self.supervisor.directions.get(spec.name)
        if natural is None:
            return spec
        try:
            record = self._storage.find_study(spec.name)
        except StudyNotFound:
            record = None
        if record is None and not spec.says_direction and len(natural) == 1:
            return spec.model_copy(update={"direction": natural[0]})
        stored = (record and record.spec) or spec
        if stored.all_directions == natural:
            return spec
        given = [word for direction in natural for word in ("--direction", direction)]
        way_out = f"give {shlex.join(given)}"
        if record:
            way_out = f"change it with: {command('extend', record.name, *given)}"
            if self._storage.status(record).finished or len(stored.all_directions) != len(natural):
                way_out = f"give another --name, with {shlex.join(given)}"
        aims = " and ".join(f"{direction}d" for direction in natural)
        raise ObjectiveError(
            f"study {spec.name!r} {stored.goal}, but its objective {spec.objective.path!r} is to be {aims}; {way_out}"
        )

    def _check_scheduler(self, spec: StudySpec) -> None:
        try:
            spec.to_scheduler(self.supervisor.steps.get(spec.name))
        except ValueError as error:
            raise ObjectiveError(f"study {spec.name!r}: {error}") from None

    def begin(self) -> None:
        """Let the workers run trials."""
        # Before the workers begin: it ignores what has happened already.
        notifier = Notifier(self._storage, self.records, url=self._notify_url, warn=self._output)
        notifier.start()
        self._stack.callback(notifier.stop)
        self._warn_of_no_end()
        self.supervisor.assign(self._storage, self._lease_seconds)

    def _warn_of_no_end(self) -> None:
        if any(device.torch != "cpu" for device in self._devices):
            return
        for record in self.records:
            budget = record.budget
            if budget and budget.gpu_hours and not (budget.trial_limit or budget.epochs or budget.timeout):
                self._output(
                    f"study {record.name!r} may spend {number(budget.gpu_hours)} GPU hours and has no other limit; the "
                    "workers here are on CPUs and spend none; to limit its trials, too: "
                    f"{command('extend', record.name, '--trials', '100')}"
                )

    def poll(self) -> list[Seen]:
        """Reap and restart workers.

        Returns:
            Each study as it is now; empty once one was deleted, after which its workers exit.

        Raises:
            WorkerError: workers keep dying.
            StorageUnreachable: the database is unreachable. Call again: the workers wait as well.
        """
        try:
            self.supervisor.poll()
            return [self._see(record) for record in self.records]
        except StudyNotFound:
            return []
        except StorageUnreachable:
            # Killed or crashed, the embedded server is started by nobody else: the workers only wait for it.
            if self._storage.server:
                self._storage.server.start()
            raise

    def wait(self) -> None:
        """Wait until it is time for the next :meth:`poll`; not at all when no worker is left."""
        if self.workers:
            self.supervisor.wait(POLL)

    def _see(self, record: StudyRecord) -> Seen:
        status = self._storage.status(record)
        ended = status.finished + status.trials["fail"]
        # Rows of many trials: read again only when another one has ended.
        if self._timings.get(record.name, (-1, []))[0] != ended:
            self._timings[record.name] = ended, self._storage.leases.timings(record, pace_trials(status))
        pace = self._paces[record.name].per_second(status)
        left = seconds_left(status, self._timings[record.name][1], datetime.now(), pace)
        return Seen(status, record, left)

    def stop(self) -> None:
        """Ask the workers to requeue their trials at the next step, and to exit."""
        self.supervisor.stop()

    def kill(self) -> None:
        """Kill the workers, and requeue their trials."""
        self.supervisor.kill()


def waiting_out(storage: PostgresStorage, read: Callable[[], T], told: Callable[[StorageUnreachable], None]) -> T:
    """What ``read`` returns, once the database answers: a run of days must not fail because of its last look.

    Args:
        storage: the storage that ``read`` reads.
        read: called again until it raises no :exc:`StorageUnreachable`.
        told: called with each of these.
    """
    while True:
        try:
            return read()
        except StorageUnreachable as error:
            if storage.server:
                storage.server.start()
            told(error)
        time.sleep(POLL)


def find_scripts(
    records: Sequence[StudyRecord], scripts: Sequence[Script], *, allow_changed: bool = False
) -> dict[str, Script]:
    """The script of each study that has one among ``scripts``, by the study's name.

    Raises:
        ObjectiveError: it has changed since the study was made; or one of ``scripts`` is no study's.
    """

    found = {}
    for record in records:
        if stored := record.spec and record.spec.objective:
            script = find(stored.path, stored.sha256, scripts, record.name, allow_changed=allow_changed)
            if script:
                found[record.name] = script
    for script in scripts:
        if script not in found.values():
            known = "; ".join(_own_objective(record, script) for record in records if record.spec)
            raise ObjectiveError(f"--objective {script.shown} belongs to no study named here: {known}")
    return found


def _own_objective(record: StudyRecord, given: Script) -> str:
    """What a study runs instead of the ``given`` script, and the option for that."""

    path = record.require_spec("it runs no script").objective.path
    if not is_script(path):
        allow = shlex.join(objective.way_to_allow(path))
        instead = f"give {allow} instead" if allow else "leave --objective out"
        return f"{record.name!r} runs {path}, imported by its name: {instead}"
    file, _, attribute = path.rpartition(":")
    at = f"{given.shown.rpartition(':')[0]}:{attribute}" if given.file.name == Path(file).name else found_as(path)
    return f"{record.name!r} runs {path}: give --objective {shlex.quote(at)}"


def permissions(spec: StudySpec, script: Script | None) -> list[str]:
    """The values of ``work --allow`` that naming an objective implies."""
    return [*([] if script else [spec.objective.path]), checkpoint_stores.PERMISSION + spec.checkpoints.store]


def require_runnable(record: StudyRecord, allow: Sequence[str], data_dir: Path, *, has_script: bool) -> StudySpec:
    """The spec of a study that workers may run.

    Raises:
        StorageError: stock Optuna made it.
        ObjectiveError: its objective is not among those that ``allow`` says, and the operator has given no script.
        CheckpointError: its place for checkpoints is neither in ``allow`` nor below ``data_dir``.
    """
    spec = record.require_spec("no worker knows what it runs")
    if not has_script:
        objective.require_allowed(spec.objective.path, allow, record.name)
    checkpoint_stores.require_allowed(spec.checkpoints.store, allow, data_dir, record.name)
    return spec


def build_objective(
    record: StudyRecord,
    scripts: Sequence[Script],
    *,
    allow: Sequence[str],
    data_dir: Path,
    allow_changed: bool = False,
) -> objective.Objective:
    """The objective of a study, built in this process.

    Args:
        record: the study.
        scripts: where this machine has the study's script, if it has one.
        allow: what the study may run beside ``objectives.*``.
        data_dir: where this machine keeps data sets.
        allow_changed: whether the script may have another content than the study's.

    Raises:
        StorageError: stock Optuna made the study.
        ObjectiveError: it is not allowed here, has changed, does not import, or refuses its arguments.
    """
    spec = record.require_spec("its objective is not known")
    script = find_scripts([record], scripts, allow_changed=allow_changed).get(record.name)
    if script is None:
        objective.require_allowed(spec.objective.path, allow, record.name)
    return objective.build(
        script.path if script else spec.objective.path,
        spec.objective.args,
        allow=[*allow, *([script.path] if script else [])],
        data_dir=data_dir,
        sha256=script.sha256 if script else None,
    )


def require_success(storage: PostgresStorage, record: StudyRecord, now: Status, *, must_be_over: bool = True) -> None:
    """Check how a study ended.

    Raises:
        StudyhallError: too many trials failed; or its workers ended before the study did.
    """
    if now.ended in FAILURES:
        failed = [(trial.number, error) for trial in storage.trials(record) if (error := failure_of(trial))]
        last = "".join(
            f", the last ({number}) with: {error}; see: {command('show', record.name, number)}"
            for number, error in failed[-1:]
        )
        raise StudyhallError(
            f"study {record.name!r} stopped: {counted(now.trials['fail'], 'trial')} failed{last}; "
            f"go on with: {way_on(record.name, now.ended)}"
        )
    if must_be_over and (now.ended not in STOP_REASONS or now.ended == "deleted"):
        raise StudyhallError(f"study {record.name!r} did not end: its workers are gone; go on with the same command")
