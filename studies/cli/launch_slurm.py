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
    data_dir_option,
    data_dir_or_default,
    objective_options,
    say,
    study_argument,
)
from studies.cli.formats import echo, echo_data
from studies.cli.launch import RunnableStudy, runnable_study
from studies.cli.status import status_line
from studies.cli.workers import LEASE
from studies.errors import StudyhallError, command
from studies.launch import cpus_per_worker as cpus_per_worker_of
from studies.launch import slurm as launcher
from studies.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from studies.spec.script import Script
    from studies.spec.study import StudySpec
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord


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
    # A backslash turns off sbatch's %A and %a in the whole path: all tasks would write to one file.
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
            raise click.BadParameter(f"{key} is set by the launcher itself" + (f": use {ours}" if ours else ""))
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
    "--gpus-per-worker", type=int, callback=_gpus, default=1, show_default=True, metavar="N", help="1, or 0 for a CPU."
)
@click.option(
    "--cpus-per-worker",
    type=click.IntRange(1),
    metavar="N",
    help="Default: 1 plus the objective's num_workers; 4 with a GPU where that is unknown.",
)
@click.option(
    "--setup",
    multiple=True,
    metavar="COMMANDS",
    help="Shell commands before the workers: 'module load cuda; conda activate lab'.",
)
@click.option("--container", metavar="IMAGE", help="Run the workers in this Apptainer image: lab.sif, docker://….")
@click.option("--partition", metavar="NAME", help="Default: Slurm's.")
@click.option(
    "--time", callback=_time, metavar="LIMIT", help="A task's time, such as 4:00:00; then it is queued again."
)
@click.option(
    "--grace",
    type=click.IntRange(1, launcher.MAX_GRACE),
    metavar="SECONDS",
    help="Requeue trials this long before the limit; longer than a step. Default: 120, or a quarter of --time.",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_logs,
    metavar="DIR",
    help="Folder of the logs, on a disk that the nodes share. Default: slurm-NAME.",
)
@click.option(
    "--sbatch", "settings", multiple=True, callback=_settings, metavar="KEY=VALUE", help="Any other option of sbatch."
)
@click.option("--print", "only_print", is_flag=True, help="Show the script, for sbatch, and submit nothing.")
@data_dir_option
@click.option(
    "--lease",
    type=click.FloatRange(*LEASE),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long a trial waits for its worker's next heartbeat.",
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
    cpus_per_worker: int | None,
    setup: tuple[str, ...],
    container: str | None,
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

    The workers are a job array, with one worker in each task. Before its time limit a task requeues its
    trials and is queued again, as it is after a preemption, until the study is over. A task
    writes to DIR/JOB_TASK.log. The job's id is printed.
    """
    if workers % workers_per_task:
        raise click.UsageError(f"{workers} workers are no multiple of {workers_per_task} in each task")
    asking = [key for key in settings if launcher.asks_for_gpus(key, settings[key])]
    if asking and not gpus_per_worker:
        raise click.UsageError(f"--sbatch {asking[0]} asks for GPUs, and --gpus-per-worker is 0: set it to 1")
    grace = _grace(grace, time)

    def check(record: StudyRecord) -> StudySpec:
        from studies.session import find_scripts, require_runnable

        found = find_scripts([record], scripts, allow_changed=allow_changed)
        return require_runnable(record, allow, data_dir_or_default(data_dir), has_script=bool(found))

    def array(study: RunnableStudy) -> launcher.WorkerArray:
        has_gpu = gpus_per_worker > 0
        return launcher.WorkerArray(
            study=name,
            uid=study.uid,
            storage=study.location.without_secrets if study.location else None,
            program=_program(),
            work=_work(name, workers_per_task, data_dir, lease, allow, scripts, allow_changed),
            tasks=workers // workers_per_task,
            workers_per_task=workers_per_task,
            gpus_per_worker=gpus_per_worker,
            cpus_per_worker=cpus_per_worker or cpus_per_worker_of(study.spec, has_gpu=has_gpu),
            setup=setup,
            container=container,
            binds=[data_dir.absolute()] if data_dir else [],
            partition=partition,
            time=time,
            grace=grace,
            # A printed script may be submitted from anywhere, and is given no folder of this machine unasked.
            logs=None if only_print and not logs else (logs or Path(f"slurm-{launcher.slug(name)}")).absolute(),
            settings=settings,
        )

    if only_print:
        study = runnable_study(common, name, check)
        printed = array(study)
        _make(printed.logs)
        echo_data(printed.script.rstrip())
        if study.location and study.location.password:
            say("note: the script leaves the storage's password out: ~/.pgpass is the place for it")
        return
    with _open_server(common) as storage:
        record = storage.find_study(name)
        # As on the nodes, where an error would appear once for each task, in logs that nobody watches.
        spec = check(record)
        if _goes_on(storage, record):
            _warn(storage, workers)
            study = RunnableStudy(uid=record.uid, spec=spec, location=storage.location)
            # In the environment, not the arguments: scontrol and ps show those to everybody.
            _submit(array(study), {**os.environ, "STUDYHALL_STORAGE": str(common.storage_url)}, workers)


@click.command("cancel")
@study_argument
@common_options
def cancel_jobs(common: Common, name: str) -> None:
    """End a study's Slurm jobs, and nothing else.

    All jobs that you launched for it end, waiting tasks included. Running trials are requeued;
    `studyhall launch slurm` starts new workers.
    """
    with _open_server(common) as storage:
        record = storage.find_study(name)
    # By the study's uid: another study may have had this name when the jobs began.
    tasks = launcher.find_tasks(record.uid) if record.uid else []
    if not tasks:
        say(f"study {name!r} has no Slurm jobs of yours")
        return
    jobs = sorted(set(tasks), key=int)
    launcher.cancel(jobs)
    named = f"{'jobs' if len(jobs) > 1 else 'job'} {', '.join(jobs)} of study {name!r} ({counted(len(tasks), 'task')})"
    say(f"cancelled {named}; running trials are requeued")


def _open_server(common: Common) -> closing[PostgresStorage]:
    """The storage, which has to be a server: each node would start an embedded one of its own."""
    if common.storage_url is None:
        raise StudyhallError(
            "the embedded database serves this machine alone, and the workers run on others: name a PostgreSQL server "
            "that they reach, with --storage or STUDYHALL_STORAGE (deploy/README.md says how to make one)"
        )
    return common.open()


def _goes_on(storage: PostgresStorage, record: StudyRecord) -> bool:
    from studies.stop_reasons import way_on

    now = storage.status(record)
    if now.ended:
        say(f"{status_line(now, record)}; nothing is submitted; go on with: {way_on(record.name, now.ended)}")
    return not now.ended


def _warn(storage: PostgresStorage, workers: int) -> None:
    """Say what may go wrong later, on the nodes."""
    # Two for each worker: one for its trials, one for its heartbeats.
    used, slots = storage.connections
    # A tenth is left for people, the mirror and the dashboard.
    if used + 2 * workers > 0.9 * slots:
        say(
            f"warning: {counted(workers, 'worker')} hold up to {2 * workers} connections, and {used} "
            f"of the server's {slots} are in use: they will close theirs between statements, which is slower; "
            "raise its max_connections, or put PgBouncer between (deploy/README.md)"
        )
    if storage.location.is_of_this_machine:
        say(f"warning: the storage is at {storage.location.where}, which on each node is the node itself")
    if storage.location.password:
        say("note: Slurm keeps a job's environment, and with it the storage's password; ~/.pgpass is a better place")


def _submit(array: launcher.WorkerArray, environment: Mapping[str, str], workers: int) -> None:
    _make(array.logs)
    job = array.submit(environment)
    echo(job)
    say(f"job {job}: {counted(workers, 'worker')} of study {array.study!r}; they write to {array.logs}/{job}_*.log")
    if reason := launcher.why_never(job):
        say(f"warning: job {job} asks for what the cluster lacks, and never starts ({reason}): scontrol show job {job}")
    say(f"watch them: {command('watch', array.study)}; end them: {command('launch', 'cancel', array.study)}")


def _make(logs: Path | None) -> None:
    """Make the folder of the logs: Slurm does not, and would lose what the workers say."""
    try:
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyhallError(f"the logs cannot be in {logs}: {error.strerror}; choose another with --logs") from None


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
    """The arguments of ``studyhall`` in each task."""
    argv = ["work", name, "--workers", str(workers), "--lease", f"{lease:g}"]
    # Absolute, since a task starts in the folder from which sbatch was called.
    if data_dir:
        argv += ["--data-dir", str(data_dir.absolute())]
    for prefix in allow:
        argv += ["--allow", prefix]
    for script in scripts:
        argv += ["--objective", script.path]
    if allow_changed:
        argv.append("--allow-changed")
    return argv


def _program() -> Path:
    """This very ``studyhall``, as the nodes can start it from a disk that they share."""
    # Beside this Python first: PATH may lead to another installation.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return Path(shutil.which("studyhall", path=path) or sys.argv[0]).absolute()
