"""The commands that run studies: run, create, work."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import (
    Common,
    allow_option,
    common_options,
    counted,
    data_dir_option,
    data_dir_or_default,
    duration,
    say,
    study_argument,
)
from studies.cli.formats import best_as, echo
from studies.cli.look import END_WORDS, status_line
from studies.errors import StorageUnreachable, StudyhallError, StudyNotFound, command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from studies.cli.progress import Progress
    from studies.spec import StudySpec
    from studies.storage.postgres import PostgresStorage, StudyRecord
    from studies.worker.supervisor import Supervisor

#: Seconds between two looks at the study.
POLL = 0.5


def _not_nan(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("nan is not a number of seconds")
    return value


spec_options: Sequence[Callable[[Any], Any]] = (
    click.argument("target", metavar="TARGET"),
    click.option("--name", help="The study's name; default: the spec's."),
    click.option("--trials", type=int, metavar="N", help="Short for --set budget.trials=N."),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key of the spec."),
)
worker_options: Sequence[Callable[[Any], Any]] = (
    click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Default: one per GPU, else per core."),
    data_dir_option,
    click.option(
        "--lease",
        type=click.FloatRange(3, 86_400),
        callback=_not_nan,
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="How long a trial stays with a worker that is silent.",
    ),
)


def _options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command()
@_options([*spec_options, *worker_options])
@common_options
def run(
    common: Common,
    target: str,
    name: str | None,
    trials: int | None,
    settings: tuple[str, ...],
    workers: int | None,
    data_dir: Path | None,
    lease: float,
) -> None:
    """Run a study on this machine until its budget is spent.

    TARGET is a preset (digits, mnist, fashion-mnist), a study file (my.toml), or any Optuna
    objective (script.py:objective, package.module:objective). A study of that name that exists is
    joined. Ctrl-C gives the running trials back; the same command goes on.
    """
    spec = _read_spec(target, name, trials, settings)
    with common.open(create=True) as storage:
        try:
            record = storage.find_study(spec.name)
        except StudyNotFound:
            record = None
        if record:
            storage.require_same(record, spec)
            if storage.status(record).ended:
                _conclude(storage, record, None)
                return

        _run_workers(storage, spec, workers=workers, data_dir=data_dir, lease=lease)


@click.command()
@_options(spec_options)
@common_options
def create(common: Common, target: str, name: str | None, trials: int | None, settings: tuple[str, ...]) -> None:
    """Create a study without running it.

    The objective is not imported: its data and GPUs may be on other machines, where
    `studyhall work NAME` joins.
    """
    spec = _read_spec(target, name, trials, settings)
    with common.open(create=True) as storage:
        record, created = storage.create_study(spec)
    state = "created study" if created else "there is, with this spec, study"
    say(f"{state} {record.name!r} of {counted(spec.budget.trials, 'trial')}")
    say(f"run it with: {command('work', record.name)}")


@click.command()
@study_argument
@_options(worker_options)
@allow_option
@common_options
def work(
    common: Common,
    name: str,
    workers: int | None,
    data_dir: Path | None,
    lease: float,
    allow: tuple[str, ...],
) -> None:
    """Join an existing study with this machine's workers.

    The study says which objective is run; so that a database can't choose any code, only
    objectives.* is imported unless --allow says more.
    """
    from studies.objective import require_allowed

    with common.open() as storage:
        record = storage.find_study(name)
        spec = record.spec
        if spec is None:
            raise StudyhallError(f"study {name!r} was made by Optuna, not by studyhall: no worker knows what it runs")
        require_allowed(spec.objective.path, allow, name)
        if storage.status(record).ended:
            _conclude(storage, record, None)
            return

        _run_workers(storage, spec, workers=workers, data_dir=data_dir, lease=lease)


def _read_spec(target: str, name: str | None, trials: int | None, settings: tuple[str, ...]) -> StudySpec:
    from studies.spec import StudySpec
    from studies.target import override, read_target

    data = read_target(target)
    for setting in settings:
        override(data, setting)
    if trials is not None:
        override(data, f"budget.trials={trials}")
    if name is not None:
        data["name"] = name
    return StudySpec.from_dict(data, target)


def _run_workers(
    storage: PostgresStorage, spec: StudySpec, *, workers: int | None, data_dir: Path | None, lease: float
) -> None:
    """Start workers on the study of ``spec``, show progress until they are done, and print the best."""
    from studies.cli.progress import Progress
    from studies.worker import devices
    from studies.worker.supervisor import Supervisor

    progress = Progress()
    supervisor = Supervisor(
        spec,
        devices.choose(workers, os.environ.get("CUDA_VISIBLE_DEVICES")),
        data_dir=data_dir_or_default(data_dir),
        # The URL, which may hold a password, is told over a pipe.
        environment={name: value for name, value in os.environ.items() if name != "STUDYHALL_STORAGE"},
        output=progress.print,
        inherit=[storage.server.fileno()] if storage.server else [],
    )
    began = time.monotonic()
    with _Interrupts() as interrupts, supervisor:
        # Nothing is written before the objective is known to be sound.
        with progress.waiting(f"starting {counted(supervisor.alive, 'worker')}"):
            supervisor.wait_until_ready()
        record, created = storage.create_study(spec)
        say(f"study {record.name!r} {'begins' if created else 'goes on'}: {counted(supervisor.alive, 'worker')}")
        interrupts.wait = True
        supervisor.assign(storage, record.name, lease)
        with progress:
            answered = time.monotonic()
            while supervisor.alive:
                interrupts.apply(supervisor, progress)
                try:
                    supervisor.poll()
                    progress.update(storage.status(record), record)
                    answered = time.monotonic()
                except StorageUnreachable as error:
                    # As long as leases hold, nobody else has taken the trials: wait for the database.
                    if time.monotonic() - answered > lease:
                        raise
                    progress.print(f"waiting for the database: {error}")
                    if storage.server:
                        storage.server.start()
                time.sleep(POLL)
            progress.update(storage.status(record), record)
    if interrupts.count:
        say(f"interrupted: {status_line(storage.status(record), record)}; go on with the same command")
        raise click.exceptions.Exit(130)
    _conclude(storage, record, time.monotonic() - began)


def _conclude(storage: PostgresStorage, record: StudyRecord, seconds: float | None) -> None:
    """Print how the study ended, the best trial, and what to type next."""
    now = storage.status(record)
    say(status_line(now, record) + (f" in {duration(seconds)}" if seconds else ""))
    if now.best:
        metric = record.spec.metric_names[0] if record.spec else "value"
        echo(best_as("table", record.name, now.best, metric, storage.last_metrics([now.best])[now.best.number]))
        say(f"\nnext: {command('trials', record.name)}; for scripts: {command('best', record.name)} --format json")
    elif now.trials["complete"]:
        say(f"\nit has several objectives, so no best trial; next: {command('trials', record.name)}")
    if now.ended == "failures":
        failed = [trial for trial in storage.trials(record) if "error" in trial.user_attrs]
        last = f", the last ({failed[-1].number}) with: {failed[-1].user_attrs['error']}" if failed else ""
        raise StudyhallError(
            f"study {record.name!r} stopped: {counted(now.trials['fail'], 'trial')} failed{last}; "
            f"see: {command('show', record.name)} NUMBER; "
            f"go on with: {command('extend', record.name)} --max-failures N"
        )
    if now.ended not in END_WORDS or now.ended == "deleted":
        raise StudyhallError(f"study {record.name!r} did not end: its workers are gone; go on with the same command")


class _Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP: the first stops the workers in order, the second at once."""

    def __init__(self) -> None:
        self.count = 0
        #: Whether trials may be running, which are to be given back; until then a signal ends the command.
        self.wait = False
        self._applied = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def apply(self, supervisor: Supervisor, progress: Progress) -> None:
        """Do what was asked since the last call."""
        if self.count > self._applied:
            self._applied = self.count
            if self.count == 1:
                progress.print("stopping: running trials are given back at their next step; Ctrl-C again: now")
                supervisor.stop()
            else:
                supervisor.kill()

    def _note(self, *_: object) -> None:
        if not self.wait:
            raise KeyboardInterrupt
        self.count += 1
