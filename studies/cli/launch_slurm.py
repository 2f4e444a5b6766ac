"""The commands that start and end workers on a Slurm cluster."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import (
    Common,
    allow_option,
    common_options,
    counted,
    data_dir_option,
    data_dir_or_default,
    find_scripts,
    objective_options,
    require_runnable,
    say,
    study_argument,
)
from studies.cli.formats import echo, echo_data
from studies.cli.look import status_line
from studies.cli.run import LEASE
from studies.errors import StudyhallError, command
from studies.launch import slurm as launcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from studies.script import Script
    from studies.storage.postgres import PostgresStorage, StudyRecord


def _gpus(_ctx: click.Context, _param: click.Parameter, count: int) -> int:
    if count not in (0, 1):
        raise click.BadParameter(
            f"{count}: a worker trains on one GPU (1), or on a CPU (0); for more GPUs, more --workers"
        )
    return count


def _time(_ctx: click.Context, _param: click.Parameter, time: str | None) -> str | None:
    try:
        if time is not None:
            launcher.seconds_of(time)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return time


def _logs(_ctx: click.Context, _param: click.Parameter, logs: Path | None) -> Path | None:
    if logs is not None and not re.fullmatch(r"[^\\\n]+", str(logs.absolute())):
        raise click.BadParameter(f"{str(logs)!r} holds a backslash or a line break, which Slurm cannot take")
    return logs


def _settings(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", key) or "\n" in value:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE with a long option of sbatch, such as account=lab")
        if key in launcher.RESERVED:
            ours = launcher.RESERVED[key]
            raise click.BadParameter(f"{key} is said by the launcher itself" + (f": use {ours}" if ours else ""))
        settings[key] = value
    return settings


@click.command()
@study_argument
@click.option("--workers", type=click.IntRange(1), required=True, metavar="N", help="How many workers in all.")
@click.option(
    "--workers-per-task",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="For clusters that hand out whole nodes.",
)
@click.option(
    "--gpus-per-worker", type=int, callback=_gpus, default=0, show_default=True, metavar="N", help="1, or 0 for a CPU."
)
@click.option("--partition", metavar="NAME", help="Default: Slurm's.")
@click.option(
    "--time", callback=_time, metavar="LIMIT", help="A task's time, such as 4:00:00; then it is queued again."
)
@click.option(
    "--grace",
    type=click.IntRange(1, launcher.MAX_GRACE),
    metavar="SECONDS",
    help="Give trials back that long before the limit; more than a step takes. Default: 120, or a quarter of --time.",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_logs,
    metavar="DIR",
    help="On a disk that the nodes share. Default: slurm-NAME, here.",
)
@click.option(
    "--sbatch", "settings", multiple=True, callback=_settings, metavar="KEY=VALUE", help="Any other option of sbatch."
)
@click.option("--print", "only_print", is_flag=True, help="Show the script, and submit nothing.")
@data_dir_option
@click.option(
    "--lease",
    type=click.FloatRange(*LEASE),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long a trial stays with a worker that is silent.",
)
@allow_option
@objective_options
@common_options
def slurm(
    common: Common,
    name: str,
    workers: int,
    workers_per_task: int,
    gpus_per_worker: int,
    partition: str | None,
    time: str | None,
    grace: int | None,
    logs: Path | None,
    settings: dict[str, str],
    only_print: bool,
    data_dir: Path | None,
    lease: float,
    allow: tuple[str, ...],
    scripts: tuple[Script, ...],
    allow_changed: bool,
) -> None:
    """Start workers on a Slurm cluster.

    They are an array of jobs with one worker each. A task gives its trials back before its time
    limit and is queued again, as it is after a preemption, until the study is over. What a
    task writes goes to DIR/JOB_TASK.log. The job's id is printed.
    """
    if workers % workers_per_task:
        raise click.UsageError(f"{workers} workers are no multiple of {workers_per_task} in each task")
    asking = [key for key in settings if launcher.asks_for_gpus(key, settings[key])]
    if asking and not gpus_per_worker:
        raise click.UsageError(f"--sbatch {asking[0]} asks for GPUs, and --gpus-per-worker is 0: set it to 1")
    grace = _grace(grace, time)
    with _open_server(common) as storage:
        record = storage.find_study(name)
        found = find_scripts([record], scripts, allow_changed=allow_changed)
        require_runnable(record, allow, data_dir_or_default(data_dir), has_script=bool(found))
        assert record.uid is not None  # as of every study of ours
        array = launcher.WorkerArray(
            study=name,
            uid=record.uid,
            work=_work(name, workers_per_task, data_dir, lease, allow, scripts, allow_changed),
            tasks=workers // workers_per_task,
            workers_per_task=workers_per_task,
            gpus_per_worker=gpus_per_worker,
            partition=partition,
            time=time,
            grace=grace,
            logs=(logs or Path(f"slurm-{launcher.slug(name)}")).absolute(),
            settings=settings,
        )
        if only_print:
            echo_data(array.script.rstrip())
        elif _goes_on(storage, record):
            _warn(storage, workers)
            _submit(array, {**os.environ, "STUDYHALL_STORAGE": str(common.storage_url)}, workers)


@click.command("cancel")
@study_argument
@common_options
def cancel_jobs(common: Common, name: str) -> None:
    """End a study's Slurm jobs, and nothing else.

    Those that you have launched, with the tasks that wait. Running trials are given back;
    `studyhall launch slurm` goes on.
    """
    with _open_server(common) as storage:
        record = storage.find_study(name)
    tasks = launcher.find_tasks(record.uid) if record.uid else []
    if not tasks:
        say(f"study {name!r} has no Slurm jobs of yours")
        return
    jobs = sorted(set(tasks), key=int)
    launcher.cancel(jobs)
    named = f"{'jobs' if len(jobs) > 1 else 'job'} {', '.join(jobs)} of study {name!r} ({counted(len(tasks), 'task')})"
    say(f"cancelled {named}; running trials are given back")


def _open_server(common: Common) -> closing[PostgresStorage]:
    """The storage, which has to be a server: the embedded one would start on every node anew."""
    if common.storage_url is None:
        raise StudyhallError(
            "the embedded database serves this machine alone, and the workers run on others: name a PostgreSQL server "
            "that they reach, with --storage or STUDYHALL_STORAGE (deploy/README.md says how to make one)"
        )
    return common.open()


def _goes_on(storage: PostgresStorage, record: StudyRecord) -> bool:
    from studies.control import way_on

    now = storage.status(record)
    if now.ended:
        say(f"{status_line(now, record)}; nothing is submitted; go on with: {way_on(record.name, now.ended)}")
    return not now.ended


def _warn(storage: PostgresStorage, workers: int) -> None:
    """Say what may go wrong later, on the nodes."""
    (facts,) = storage.database.rows("server_facts")
    if facts["connections"] + 2 * workers > 0.9 * facts["slots"]:
        say(
            f"warning: {counted(workers, 'worker')} hold up to {2 * workers} connections, and {facts['connections']} "
            f"of the server's {facts['slots']} are in use: they will close theirs between statements, which is slower; "
            "raise its max_connections, or put PgBouncer between (deploy/README.md)"
        )
    hosts = [host for host, _ in storage.location.hosts]
    if hosts and all(host in ("localhost", "127.0.0.1", "::1") or host.startswith("/") for host in hosts):
        say(f"warning: the storage is at {storage.location.where}, which on each node is the node itself")
    if storage.location.password:
        say("note: Slurm keeps the environment of a job, so the storage's password, too; ~/.pgpass is a better place")


def _submit(array: launcher.WorkerArray, environment: Mapping[str, str], workers: int) -> None:
    try:
        array.logs.mkdir(parents=True, exist_ok=True)  # Slurm does not, and would lose what the workers say
    except OSError as error:
        raise StudyhallError(
            f"the logs cannot be in {array.logs}: {error.strerror}; choose another with --logs"
        ) from None
    job = array.submit(environment)
    echo(job)
    say(f"job {job}: {counted(workers, 'worker')} of study {array.study!r}; they write to {array.logs}/{job}_*.log")
    if reason := launcher.why_never(job):
        say(f"warning: job {job} asks for what is not there and will not start ({reason}): scontrol show job {job}")
    say(f"watch them: {command('watch', array.study)}; end them: {command('launch', 'cancel', array.study)}")


def _grace(grace: int | None, time: str | None) -> int:
    """The seconds of ``--grace``, or what fits the time limit."""
    seconds = launcher.seconds_of(time) if time else None
    if seconds and grace and grace >= seconds:
        raise click.UsageError(f"a grace of {grace} s leaves nothing of a time limit of {seconds} s")
    return grace or launcher.default_grace(seconds)


def _work(
    name: str,
    workers: int,
    data_dir: Path | None,
    lease: float,
    allow: tuple[str, ...],
    scripts: tuple[Script, ...],
    allow_changed: bool,
) -> list[str]:
    """What each task runs."""
    argv = [_program(), "work", name, "--workers", str(workers), "--lease", f"{lease:g}"]
    if data_dir:
        argv += ["--data-dir", str(data_dir.absolute())]
    for prefix in allow:
        argv += ["--allow", prefix]
    for script in scripts:
        argv += ["--objective", script.path]
    if allow_changed:
        argv.append("--allow-changed")
    return argv


def _program() -> str:
    """This very ``studyhall``, as the nodes can start it from a disk that they share."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return str(Path(shutil.which("studyhall", path=path) or sys.argv[0]).absolute())
