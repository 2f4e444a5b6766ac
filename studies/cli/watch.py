"""The command that watches a study: a live picture in a terminal, else plain lines."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, common_options, live_console, say, study_argument
from studies.cli.formats import echo
from studies.errors import StorageUnreachable, StudyNotFound, command
from studies.text import number, time_left

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from studies.overview import Overview
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import Attempt, StudyRecord

#: Seconds between two reads of the study.
POLL = 1.0
#: Seconds without an answer after which the picture says so.
OLD = 4.0


@click.command()
@study_argument
@click.option(
    "--every",
    type=click.FloatRange(min=0, max=86_400),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="Without a terminal: the least time between two lines.",
)
@common_options
def watch(common: Common, name: str, every: float) -> None:
    """Watch a study until it ends.

    In a terminal a live picture: the progress, the time left, the best trial, the running trials and the
    workers. Elsewhere a line whenever something has changed. Ctrl-C ends this command, and not the study.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        metric = ", ".join(storage.objective_names(record))
        _end_in_order()
        with _view(metric, every) as view:
            seen = _follow(storage, record, view)
    _say_next(seen)


def _end_in_order() -> None:
    """Treat SIGTERM and SIGHUP like Ctrl-C, to restore the terminal."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number_ in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number_, interrupt)


def _follow(storage: PostgresStorage, record: StudyRecord, view: LiveView | PlainView) -> Overview:
    """Show the study until it has ended; returns the last overview."""
    reader = OverviewReader(storage, record)
    while True:
        try:
            seen = reader.read()
            view.show(seen)
            if seen.is_over:
                return seen
        except StorageUnreachable as error:
            view.wait(str(error))
            # The embedded server may have been killed, and no worker may be left to start it again.
            if storage.server:
                storage.server.start()
        time.sleep(POLL)


def _say_next(seen: Overview) -> None:
    from studies.stop_reasons import FAILURES, way_on

    now = seen.status
    assert now.ended is not None  # else it is still watched
    look = command("best", now.study) if now.best or seen.front else command("trials", now.study)
    if now.ended in FAILURES:
        look = command("trials", now.study, "--state", "fail")
    say(f"next: {look}; go on with: {way_on(now.study, now.ended)}")


class OverviewReader:
    """Reads overviews of a study, and only what has changed since the last one."""

    def __init__(self, storage: PostgresStorage, record: StudyRecord) -> None:
        from studies.overview import EpochPace

        self._storage = storage
        self._record = record
        self._attempts: tuple[int, dict[int, Attempt]] = (-1, {})
        self._pace = EpochPace()
        self._objectives = len(storage.get_study_directions(record.study_id))

    def read(self) -> Overview:
        """The current overview.

        Raises:
            StudyNotFound: the study was deleted.
        """
        from datetime import datetime

        from studies.overview import overview

        try:
            found = self._storage.find_study(self._record.name)
            if found.study_id != self._record.study_id:
                raise KeyError(found.name)  # deleted, and another study created with its name
            status, trials = self._storage.status(self._record), self._storage.trials(self._record)
        except (StudyNotFound, KeyError):
            raise StudyNotFound(
                f"study {self._record.name!r} was deleted while it was watched; see: {command('ls')}"
            ) from None
        # A row for each trial is expensive: read only when a trial has ended since.
        ended = status.finished + status.trials["fail"]
        if self._attempts[0] != ended:
            self._attempts = ended, self._storage.leases.attempts(self._record)
        return overview(
            status,
            trials,
            self._attempts[1],
            now=datetime.now(),
            epochs_per_second=self._pace.per_second(status),
            front=self._storage.front(self._record) if self._objectives > 1 else (),
        )


def _view(metric: str, every: float) -> LiveView | PlainView:
    console = live_console()
    return LiveView(metric, console) if console else PlainView(every)


class LiveView:
    """A live picture on the terminal's alternate screen. A context manager; at its end the last picture stays."""

    def __init__(self, metric: str, console: Console) -> None:
        self._metric = metric
        self._console = console
        self._live: Live | None = None
        self._seen: Overview | None = None
        self._trouble: str | None = None
        self._heard = time.monotonic()

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._trouble = None
            self._console.print(self._picture())

    def show(self, seen: Overview) -> None:
        """Show an overview."""
        from rich.live import Live

        self._seen, self._trouble, self._heard = seen, None, time.monotonic()
        if self._live is None:
            # rich draws in a thread: also while a statement hangs, and when the window is resized.
            self._live = Live(console=self._console, screen=True, refresh_per_second=2, get_renderable=self._picture)
            self._live.start(refresh=True)

    def wait(self, reason: str) -> None:
        """Show that the database is unreachable."""
        self._trouble = reason

    def _picture(self) -> RenderableType:
        from studies.cli.watch_picture import picture

        if self._seen is None:
            return ""
        silent = time.monotonic() - self._heard
        trouble = self._trouble and f"waiting for the database: {self._trouble}"
        if not trouble and silent > OLD:
            trouble = f"waiting for the database: no answer for {silent:.0f} s"
        return picture(self._seen, self._metric, self._console, trouble=trouble, height=self._console.height)


class PlainView:
    """A line when something has changed. A context manager.

    Args:
        every: the least seconds between two lines.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._said: tuple[object, ...] = ()
        self._at = -float("inf")
        self._is_waiting = False

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, seen: Overview) -> None:
        """Print an overview if it has changed. The end of the study is printed at once."""
        now = seen.status
        facts = (
            now.trials,
            now.budget,
            now.paused,
            now.ended,
            now.best and now.best.number,
            [trial.number for trial in seen.front],
            [w.id for w in now.workers],
        )
        # The end is never left out, nor that the database answers again.
        due = self._is_waiting or seen.is_over or time.monotonic() - self._at >= self._every
        if due and (facts != self._said or self._is_waiting):
            self._said, self._at, self._is_waiting = facts, time.monotonic(), False
            _print_line(_facts(seen))

    def wait(self, reason: str) -> None:
        """Print once that the database is unreachable."""
        if not self._is_waiting:
            self._is_waiting = True
            _print_line(f"waiting for the database: {reason}")


def _print_line(text: str) -> None:
    echo(f"{time.strftime('%H:%M:%S')} {text}")


def _facts(seen: Overview) -> str:
    from studies.cli.watch_picture import state_of, way_to_join

    now = seen.status
    facts = [f"{now.done} done"]
    words = {"running": "running", "pruned": "pruned", "waiting": "waiting", "paused": "paused", "fail": "failed"}
    facts += [f"{now.trials[key]:,} {word}" for key, word in words.items() if now.trials[key]]
    if now.best:
        facts.append(f"best {number(now.best.value)} (trial {now.best.number})")
    if seen.front:
        facts.append(f"{len(seen.front):,} on the Pareto front")
    if seen.seconds_left is not None:
        facts.append(time_left(seen.seconds_left))
    facts.append(state_of(seen)[0])
    way = way_to_join(seen)
    return f"{now.study}: {', '.join(facts)}" + (f"; join with: {way}" if way else "")
