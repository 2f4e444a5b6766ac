"""Workers in the terminal, for run and work: options, progress, and the lines at the end."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import (
    data_dir_option,
    data_dir_or_default,
    goal,
    say,
    together,
)
from studies.cli.formats import best_lines, echo
from studies.cli.interrupts import Interrupts
from studies.cli.mirror import Mirroring, tracking_option
from studies.cli.status import best_line, status_line
from studies.cli.target import say_grid
from studies.errors import StorageUnreachable, StudyhallError, command
from studies.stop_reasons import BY_HAND
from studies.text import counted, duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from studies.progress import Progress
    from studies.session import Session
    from studies.spec.script import Script
    from studies.spec.study import StudySpec
    from studies.storage.evidence import ForeignTrial
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

#: The least and the most seconds of a lease.
LEASE = (3.0, 86_400.0)


def _lease(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if not LEASE[0] <= value <= LEASE[1]:  # nan, too
        raise click.BadParameter(
            f"a lease of {value:g} s: a worker sends three heartbeats per lease, and the network needs time "
            f"for each; legal are {LEASE[0]:g} to {LEASE[1]:g} seconds"
        )
    return value


def _address(_ctx: click.Context, _param: click.Parameter, url: str | None) -> str | None:
    from studies.spec.locations import validate_url

    try:
        return url and validate_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


worker_options = together(
    click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Default: one per GPU, else per core."),
    click.option(
        "--slots",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="Trials that a worker trains at once, if the objective can. Default: as it chooses.",
    ),
    data_dir_option,
    click.option(
        "--lease",
        type=float,
        callback=_lease,
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="How long a trial waits for its worker's next heartbeat.",
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


def run_workers(
    storage: PostgresStorage, specs: Sequence[tuple[StudySpec, float]], *, until_idle: float | None = None, **how: Any
) -> None:
    """Start workers on the studies of ``specs``, as :func:`run_to_end` does, and print how they ended."""
    began = time.monotonic()
    records = run_to_end(storage, specs, until_idle=until_idle, **how)
    if until_idle is not None:
        say(f"no trial for {duration(until_idle)}: the workers ended")
    _conclude_all(storage, records, time.monotonic() - began, must_be_over=until_idle is None)


def run_to_end(
    storage: PostgresStorage,
    specs: Sequence[tuple[StudySpec, float]],
    *,
    scripts: Mapping[str, Script],
    allow: Sequence[str],
    workers: int | None,
    slots: int | None,
    data_dir: Path | None,
    lease: float,
    notify_url: str | None,
    mirrors: Sequence[str | None],
    until_idle: float | None = None,
    evidence: Sequence[ForeignTrial] = (),
) -> Sequence[StudyRecord]:
    """Start workers on the studies of ``specs``, and show progress until they are done; after Ctrl-C the command exits.

    Args:
        storage: where the studies are.
        specs: each with its share of the workers' trials.
        scripts, allow, workers, slots, until_idle: as :class:`studies.session.Session` takes them.
        data_dir, lease, notify_url: likewise, as :data:`worker_options` gives them.
        mirrors: tracking URIs, as :class:`Mirroring` takes them.
        evidence: trials of other studies, for the sampler of a single study.

    Returns:
        The studies.
    """
    from studies.progress import Progress
    from studies.session import Session

    progress = Progress()
    session = Session(
        storage,
        specs,
        workers=workers,
        slots=slots,
        scripts=scripts,
        allow=allow,
        data_dir=data_dir_or_default(data_dir),
        lease_seconds=lease,
        output=progress.relay,
        notify_url=notify_url,
        until_idle=until_idle,
    )
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(storage.stop))
        with interrupts.deferred():  # a worker that is half started would be orphaned
            stack.enter_context(session)
        # Before anything is written: an objective that fails to import must not leave a study behind.
        with progress.waiting(f"starting {counted(session.workers, 'worker')}"):
            session.prepare()
        for (record, is_new), (spec, _) in zip(session.join(), specs, strict=True):
            how = f"{'begins' if is_new else 'goes on'}: {session.size}"
            say(f"study {record.name!r} {how}; {goal(record.spec or spec, is_new=is_new, runs=True)}")
            if is_new:
                say_grid(spec)
            storage.evidence.add(record, evidence)
            if known := storage.evidence.in_words(record):
                say(known)
            if evidence:
                from studies.warm_start import doubts

                for line in doubts(storage, record, (trial.source for trial in evidence)):
                    say(f"warning: {line}")
        names = tuple(record.name for record in session.records)
        # After the studies exist: a mirror of a study that is not there would end at once.
        mirrorings = [stack.enter_context(Mirroring(storage, uri, names, progress.print)) for uri in mirrors]
        # From here on trials may be running: signals stop the workers in order, instead of raising.
        interrupts.wait = True
        session.begin()
        with progress:
            _watch(session, progress, interrupts, mirrorings)
    if interrupts.count:
        for record in session.records:
            say(f"interrupted: {last_line(storage, record)}")
        # 130 is the shell's status for SIGINT. A preempted job is no failure: schedulers must not count it as one.
        raise click.exceptions.Exit(0 if interrupts.is_preemption else 130)
    return session.records


def _watch(session: Session, progress: Progress, interrupts: Interrupts, mirrorings: Sequence[Mirroring]) -> None:
    """Show the progress of the studies until all workers have ended."""
    while session.workers:
        interrupts.apply(session, progress)
        try:
            progress.update(session.poll())
        except StorageUnreachable as error:  # the workers train on; their results wait on the disk
            progress.unreachable(error)
        for mirroring in mirrorings:
            mirroring.poll()
        session.wait()
    # After Ctrl-C nobody waits for MLflow; `mirror --once` catches up later.
    if not interrupts.count:
        for mirroring in mirrorings:
            mirroring.finish()


def last_line(storage: PostgresStorage, record: StudyRecord) -> str:
    """The status of a study whose run was interrupted, and how to continue."""
    try:
        now = storage.status(record)
    except StorageUnreachable:
        return (
            f"{record.name}: the database is unreachable; pending results are on this machine's disk; "
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
    from studies.progress import Progress
    from studies.session import waiting_out

    failed: StudyhallError | None = None
    for record in records:
        how_it_ended = partial(conclude, storage, record, seconds, must_be_over=must_be_over)
        try:
            waiting_out(storage, how_it_ended, Progress().unreachable)
        except StudyhallError as error:
            if failed:
                say(f"error: {failed}")
            failed = error
    if failed:
        raise failed


def conclude(
    storage: PostgresStorage, record: StudyRecord, seconds: float | None, *, must_be_over: bool = True
) -> None:
    """Print how the study ended, its best trial, and the next commands."""
    from studies.session import require_success

    # All is read before a word is said: who waits for the database calls this again.
    failed: StudyhallError | None = None
    now = storage.status(record)
    best = best_lines(storage, record, now.best) if now.best else []
    front = storage.front(record) if now.trials["complete"] and not now.best else []
    try:
        require_success(storage, record, now, must_be_over=must_be_over)
    except StorageUnreachable:
        raise
    except StudyhallError as error:
        failed = error

    say(status_line(now, record, seconds))
    if best:
        echo(*best)
        say()
        say(f"next: {command('trials', record.name)}; for scripts: {command('best', record.name)} --format json")
    elif now.trials["complete"]:
        say()
        if front:
            say(
                f"it has several objectives, so no best trial: {counted(len(front), 'trial')} on the Pareto front; "
                f"next: {command('best', record.name, '--pareto')}"
            )
        else:
            say(f"{best_line(now, record, 0)}; next: {command('trials', record.name)}")
    if failed:
        raise failed
