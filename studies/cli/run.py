"""The commands that run studies: run, create, work."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import (
    REMIND,
    Common,
    allow_changed_option,
    allow_option,
    common_options,
    complete_studies,
    complete_targets,
    counted,
    data_dir_option,
    data_dir_or_default,
    direction_option,
    duration,
    find_scripts,
    goal,
    home,
    objective_options,
    require_runnable,
    say,
    time_value,
)
from studies.cli.formats import best_lines, echo
from studies.cli.look import status_line
from studies.cli.mirror import Mirroring, checked, tracking_option
from studies.control import BY_HAND, END_WORDS, way_on
from studies.errors import StorageUnreachable, StudyhallError, StudyNotFound, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from studies.cli.progress import Progress
    from studies.script import Script
    from studies.spec import StudySpec
    from studies.storage.postgres import PostgresStorage, StudyRecord
    from studies.worker.supervisor import Supervisor

#: Seconds between two looks at the study.
POLL = 0.5
#: What workers need not know.
_SECRETS = ("STUDYHALL_STORAGE", "STUDYHALL_NOTIFY")


#: The least and the most seconds of a lease.
LEASE = (3.0, 86_400.0)


def _lease(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if not LEASE[0] <= value <= LEASE[1]:  # nan, too
        raise click.BadParameter(
            f"a lease of {value:g} s: a worker gives a sign of life three times a lease, and the network must have "
            f"time for it; legal are {LEASE[0]:g} to {LEASE[1]:g} seconds"
        )
    return value


def _shares(_ctx: click.Context, _param: click.Parameter, text: str | None) -> list[float] | None:
    """``2:1`` → [2.0, 1.0]."""
    if text is None:
        return None
    try:
        shares = [float(part) for part in text.split(":")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < math.inf for share in shares):
        raise click.BadParameter(f"{text!r} is not numbers above 0 with colons between them, such as 2:1")
    return shares


def _address(_ctx: click.Context, _param: click.Parameter, url: str | None) -> str | None:
    from studies.webhook import validate_url

    try:
        return url and validate_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


spec_options: Sequence[Callable[[Any], Any]] = (
    click.argument("target", metavar="TARGET", shell_complete=complete_targets),
    click.option("--name", help="The study's name; default: the spec's."),
    click.option("--trials", type=int, metavar="N", help="Short for --set budget.trials=N."),
    direction_option("Short for --set direction=; once for each objective. Optuna's default: minimize."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key of the spec."),
)
worker_options: Sequence[Callable[[Any], Any]] = (
    click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Default: one per GPU, else per core."),
    data_dir_option,
    click.option(
        "--lease",
        type=float,
        callback=_lease,
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="How long a trial stays with a worker that is silent.",
    ),
    click.option(
        "--notify",
        "notify_url",
        envvar="STUDYHALL_NOTIFY",
        callback=_address,
        metavar="URL",
        help="Gets a JSON POST on a new best, the end, a lost worker. [env: STUDYHALL_NOTIFY]",
    ),
    click.option("--mlflow", is_flag=True, help="Mirror the study into MLflow while it runs."),
    tracking_option,
)


def _options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command()
@_options([*spec_options, *worker_options])
@allow_changed_option
@common_options
def run(
    common: Common,
    target: str,
    name: str | None,
    trials: int | None,
    directions: tuple[str, ...],
    settings: tuple[str, ...],
    workers: int | None,
    data_dir: Path | None,
    lease: float,
    notify_url: str | None,
    mlflow: bool,
    tracking_uri: str | None,
    allow_changed: bool,
) -> None:
    """Run a study on this machine until its budget is spent.

    TARGET is a preset (digits, mnist, fashion-mnist), a study file (my.toml), or any Optuna
    objective (script.py:objective, package.module:objective). A study of that name that exists is
    joined. Ctrl-C gives the running trials back; the same command goes on.
    """
    from studies.checkpoints import PERMISSION

    mirrors = [checked(tracking_uri)] if mlflow else []
    spec, script = _read_spec(target, name, trials, directions, settings)
    with common.open(create=True) as storage:
        try:
            record = storage.find_study(spec.name)
        except StudyNotFound:
            record = None
        if record:
            if allow_changed:
                spec = spec.with_script_of(record.spec)
            storage.require_same(record, spec)
            ended = storage.status(record).ended
            if ended == BY_HAND:
                raise StudyhallError(
                    f"study {record.name!r} was stopped by hand, and no trial is run; "
                    f"go on with: {command('resume', record.name)}, then the same command"
                )
            if ended:
                _conclude(storage, record, None)
                return

        _run_workers(
            storage,
            [(spec, 1.0)],
            # Whoever types TARGET has chosen all of these.
            scripts={spec.name: script} if script else {},
            allow=[*([] if script else [spec.objective.path]), PERMISSION + spec.checkpoints.store],
            workers=workers,
            data_dir=data_dir,
            lease=lease,
            notify_url=notify_url,
            mirrors=mirrors,
        )


@click.command()
@_options(spec_options)
@common_options
def create(
    common: Common,
    target: str,
    name: str | None,
    trials: int | None,
    directions: tuple[str, ...],
    settings: tuple[str, ...],
) -> None:
    """Create a study without running it.

    The objective is not imported: its data and GPUs may be on other machines, where
    `studyhall work NAME` joins.
    """
    from studies.objective import work_command
    from studies.storage.url import LEGAL

    spec, script = _read_spec(target, name, trials, directions, settings)
    with common.open(create=True) as storage:
        record, created = storage.create_study(spec)
        of = counted((record.budget or spec.budget).trials, "trial")
        state = f"created study {record.name!r}" if created else f"study {record.name!r} already exists with this spec"
        say(f"{state}: {of}; {goal(record.spec or spec, is_new=created)}")
        _say_grid(spec)
        at = script.shown if script else None
        say(f"run it with: {work_command(record.name, spec.objective.path, spec.checkpoints.store, at=at)}")
        if storage.server:
            say(
                f"{storage.where} serves this machine alone; for workers on others, create the study in a PostgreSQL "
                f"server that all of them reach: --storage {LEGAL}"
            )
        elif script:
            say(f"on another machine, give the path of its own copy of {script.file.name}")


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_studies)
@click.option(
    "--share",
    "shares",
    metavar="N:N",
    callback=_shares,
    help="Of several studies: 2:1 runs two trials of the first for each of the second.",
)
@click.option(
    "--until-idle",
    metavar="TIME",
    callback=time_value,
    help="Stay when a study is over, as it may be extended; a worker ends after so long without a trial: 10m.",
)
@_options(worker_options)
@allow_option
@objective_options
@common_options
def work(
    common: Common,
    names: tuple[str, ...],
    shares: list[float] | None,
    until_idle: float | None,
    workers: int | None,
    data_dir: Path | None,
    lease: float,
    notify_url: str | None,
    mlflow: bool,
    tracking_uri: str | None,
    allow: tuple[str, ...],
    scripts: tuple[Script, ...],
    allow_changed: bool,
) -> None:
    """Join existing studies with this machine's workers.

    The study says which objective is run, by its name; the code must be on this machine. So that a
    database can't choose any code, only objectives.* is imported unless --allow says more, and a
    script is run only where --objective names it, with the content that the study was made with.
    """
    if len(set(names)) < len(names):
        raise click.UsageError(f"a study is named twice: {' '.join(names)}")
    if shares and len(shares) != len(names):
        raise click.UsageError(
            f"--share has {counted(len(shares), 'number')} for {counted(len(names), 'study')}; give one number for each"
        )
    mirrors = [checked(tracking_uri)] if mlflow else []
    with common.open() as storage:
        served: list[tuple[StudySpec, float]] = []
        records = [storage.find_study(name) for name in names]
        found = find_scripts(records, scripts, allow_changed=allow_changed)
        for record, share in zip(records, shares or [1.0] * len(names), strict=True):
            has_script = record.name in found
            spec = require_runnable(record, allow, data_dir_or_default(data_dir), has_script=has_script)
            if until_idle is None and storage.status(record).ended:
                _conclude(storage, record, None)
            else:
                served.append((spec, share))
        if served:
            _run_workers(
                storage,
                served,
                scripts=found,
                allow=allow,
                workers=workers,
                data_dir=data_dir,
                lease=lease,
                notify_url=notify_url,
                mirrors=mirrors,
                until_idle=until_idle,
            )


def _read_spec(
    target: str, name: str | None, trials: int | None, directions: tuple[str, ...], settings: tuple[str, ...]
) -> tuple[StudySpec, Script | None]:
    """The study that the options define, and the script of its objective, if it is one."""
    from studies.spec import StudySpec
    from studies.target import override, read_target, take_script

    data = read_target(target)
    for setting in settings:
        override(data, setting)
    if trials is not None:
        override(data, f"budget.trials={trials}")
    if directions:
        data.pop("direction", None)
        data.pop("directions", None)
        data |= {"directions": list(directions)} if len(directions) > 1 else {"direction": directions[0]}
    if name is not None:
        data["name"] = name
    script = take_script(data)
    return StudySpec.from_dict(data, target), script


def _say_grid(spec: StudySpec) -> None:
    """Say that a grid ends before the budget that was given."""
    size = spec.combinations
    if size is not None and size < spec.budget.trials:
        say(
            f"its grid has {counted(size, 'combination')}: it ends with them, and not after {spec.budget.trials} trials"
        )


def _run_workers(
    storage: PostgresStorage,
    specs: Sequence[tuple[StudySpec, float]],
    *,
    scripts: Mapping[str, Script],
    allow: Sequence[str],
    workers: int | None,
    data_dir: Path | None,
    lease: float,
    notify_url: str | None,
    mirrors: Sequence[str | None],
    until_idle: float | None = None,
) -> None:
    """Start workers on the studies of ``specs``, show progress until they are done, and print the best.

    ``mirrors`` are tracking URIs, as :class:`Mirroring` takes them.
    """
    from studies.cli.progress import Progress
    from studies.notify import Notifier
    from studies.worker import devices
    from studies.worker.supervisor import Supervisor

    storage.require("worker")
    progress = Progress()
    supervisor = Supervisor(
        specs,
        devices.choose(workers, os.environ.get("CUDA_VISIBLE_DEVICES")),
        scripts=scripts,
        allow=allow,
        data_dir=data_dir_or_default(data_dir),
        results=home() / "results",
        until_idle=until_idle,
        # The storage's URL, which may hold a password, is told over a pipe.
        environment={name: value for name, value in os.environ.items() if name not in _SECRETS},
        output=progress.relay,
        inherit=[storage.server.fileno()] if storage.server else [],
    )
    began = time.monotonic()
    with ExitStack() as stack:
        interrupts = stack.enter_context(_Interrupts(storage.database.stop))
        with interrupts.held():  # in the middle of starting a worker, nobody would know of it
            stack.enter_context(supervisor)
        # Nothing is written before the objective and the place for checkpoints are known to be sound.
        with progress.waiting(f"starting {counted(supervisor.alive, 'worker')}"):
            for spec, _ in specs:
                _require_checkpoints(spec)
            supervisor.wait_until_ready()
        records = []
        for spec, _ in specs:
            record, created = storage.create_study(spec)
            records.append(record)
            how = f"{'begins' if created else 'goes on'}: {counted(supervisor.alive, 'worker')}"
            say(f"study {record.name!r} {how}; {goal(record.spec or spec, is_new=created, runs=True)}")
            if created:
                _say_grid(spec)
        names = tuple(record.name for record in records)
        mirrorings = [stack.enter_context(Mirroring(storage, uri, names, progress.print)) for uri in mirrors]
        notifier = Notifier(storage, records, url=notify_url, warn=progress.print)
        notifier.start()
        stack.callback(notifier.stop)
        interrupts.wait = True
        supervisor.assign(storage, lease)
        with progress:
            _watch(storage, supervisor, records, progress, interrupts, mirrorings)
    if interrupts.count:
        for record in records:
            say(f"interrupted: {last_line(storage, record)}")
        raise click.exceptions.Exit(0 if interrupts.is_preemption else 130)
    if until_idle is not None:
        say(f"no trial for {duration(until_idle)}: the workers ended")
    _conclude_all(storage, records, time.monotonic() - began, must_be_over=until_idle is None)


def _watch(
    storage: PostgresStorage,
    supervisor: Supervisor,
    records: Sequence[StudyRecord],
    progress: Progress,
    interrupts: _Interrupts,
    mirrorings: Sequence[Mirroring],
) -> None:
    """Look after the workers and show how far they are, until there are none. An outage of the database
    ends nothing: the workers wait for it, too."""
    told = 0.0
    while supervisor.alive:
        interrupts.apply(supervisor, progress)
        try:
            supervisor.poll()
            progress.update([(storage.status(record), record) for record in records])
            told = 0.0
        except StorageUnreachable as error:
            if time.monotonic() - told > REMIND:
                progress.print(f"waiting for the database: {error}")
                told = time.monotonic()
            if storage.server:
                storage.server.start()
        except StudyNotFound:
            pass  # deleted under its workers, which end of that
        for mirroring in mirrorings:
            mirroring.poll()
        time.sleep(POLL)
    if not interrupts.count:
        for mirroring in mirrorings:
            mirroring.finish()


def _require_checkpoints(spec: StudySpec) -> None:
    """Raise :exc:`CheckpointError` unless checkpoints can be kept where ``spec`` says."""
    from uuid import uuid4

    from studies.checkpoints import open_store

    if spec.checkpoints.store != "postgresql":
        open_store(spec.checkpoints.store, str(uuid4())).check()


def last_line(storage: PostgresStorage, record: StudyRecord) -> str:
    """Where a study stands whose run was interrupted, and how it goes on."""
    try:
        now = storage.status(record)
    except StorageUnreachable:
        return (
            f"{record.name}: the database is unreachable; results that it has not got are kept on this machine; "
            "go on with the same command"
        )
    line = status_line(now, record)
    if now.ended not in (None, BY_HAND):
        return line
    return f"{line}, then the same command" if now.ended or now.paused else f"{line}; go on with the same command"


def _conclude_all(
    storage: PostgresStorage, records: Sequence[StudyRecord], seconds: float, *, must_be_over: bool
) -> None:
    """Conclude each study; of several that failed, the last one's error is raised, the others' printed."""
    failed: StudyhallError | None = None
    for record in records:
        try:
            _conclude(storage, record, seconds, must_be_over=must_be_over)
        except StudyhallError as error:
            if failed:
                say(f"error: {failed}")
            failed = error
    if failed:
        raise failed


def _conclude(
    storage: PostgresStorage, record: StudyRecord, seconds: float | None, *, must_be_over: bool = True
) -> None:
    """Print how the study ended, the best trial, and what to type next."""
    now = storage.status(record)
    say(status_line(now, record, seconds))
    if now.best:
        echo(*best_lines(storage, record, now.best))
        say()
        say(f"next: {command('trials', record.name)}; for scripts: {command('best', record.name)} --format json")
    elif now.trials["complete"]:
        say()
        say(f"it has several objectives, so no best trial; next: {command('best', record.name)}")
    if now.ended == "failures":
        failed = [
            (trial.number, trial.user_attrs["error"])
            for trial in storage.trials(record)
            if trial.state.name == "FAIL" and trial.user_attrs.get("error", "cancelled") != "cancelled"
        ]
        last = "".join(
            f", the last ({number}) with: {error}; see: {command('show', record.name, number)}"
            for number, error in failed[-1:]
        )
        raise StudyhallError(
            f"study {record.name!r} stopped: {counted(now.trials['fail'], 'trial')} failed{last}; "
            f"go on with: {way_on(record.name, now.ended)}"
        )
    if must_be_over and (now.ended not in END_WORDS or now.ended == "deleted"):
        raise StudyhallError(f"study {record.name!r} did not end: its workers are gone; go on with the same command")


class _Interrupts:
    """Counts SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2: the first stops the workers in order, the second at once.

    Args:
        stop: set with the first, so that a database that is silent is not waited for.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.count = 0
        #: Whether the first was SIGUSR1 or SIGUSR2: a scheduler's notice, an ordinary event.
        self.is_preemption = False
        #: Whether trials may be running, which are to be given back; until then a signal ends the command.
        self.wait = False
        self._applied = 0
        self._is_held = self._came_meanwhile = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let what comes meanwhile end the command afterwards."""
        self._is_held = True
        yield
        self._is_held = False
        if self._came_meanwhile:
            raise KeyboardInterrupt

    def apply(self, supervisor: Supervisor, progress: Progress) -> None:
        """Do what was asked since the last call."""
        if self.count > self._applied:
            self._applied = self.count
            if self.count == 1:
                progress.print("stopping: running trials are given back at their next step; Ctrl-C again: now")
                supervisor.stop()
            else:
                supervisor.kill()

    def _note(self, number: int, _frame: object) -> None:
        if self._is_held:
            self._came_meanwhile = True
            return
        if not self.wait:
            raise KeyboardInterrupt
        if not self.count:
            self.is_preemption = number in (signal.SIGUSR1, signal.SIGUSR2)
        self.count += 1
        self._stop.set()
