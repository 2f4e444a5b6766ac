"""The command mirror, and the mirrors beside serve and run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from studies.cli.common import Common, common_options, complete_studies, home, say, until_interrupted
from studies.cli.formats import echo
from studies.errors import TrackingError, command
from studies.processes import Restarted
from studies.text import counted

if TYPE_CHECKING:
    from studies.mirror.launcher import MirrorProcess
    from studies.storage.postgres import PostgresStorage

#: Seconds between two polls of the processes.
POLL: Final = 0.25
#: Variables with passwords, which child processes do not need.
_PRIVATE: Final = ("STUDYHALL_STORAGE", "STUDYHALL_PASSWORD", "STUDYHALL_ADMIN_PASSWORD")


tracking_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    help="An MLflow server instead of a database beside the studies. [env: MLFLOW_TRACKING_URI]",
)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_studies)
@click.option("--once", is_flag=True, help="Catch up and exit.")
@click.option("--print-uri", is_flag=True, help="Print the tracking URI in use, for MLflow, and exit.")
@tracking_option
@common_options
def mirror(common: Common, names: tuple[str, ...], once: bool, print_uri: bool, tracking_uri: str | None) -> None:
    """Keep studies in MLflow up to date: all, or those named.

    An experiment for each study; in it a run for the study, and under that one for each trial. It may be
    started late, stopped, killed, or run twice: the runs come out the same.
    """
    tracking_uri = checked(tracking_uri)
    if print_uri:
        _print_uri(common, tracking_uri)
        return
    # Studies that are named must exist. A mirror of all may begin before the first one, beside a new database.
    with common.open(create=not names) as storage, until_interrupted():
        for name in names:
            storage.find_study(name)
        if tracking_uri is None:
            say(
                "opening the MLflow database; creating it takes some seconds the first time, a minute on a busy machine"
            )
        process = start_mirror(storage, tracking_uri, say, names, once=once)
        try:
            _follow(storage, process, tracking_uri)
        finally:
            process.kill()


def _print_uri(common: Common, tracking_uri: str | None) -> None:
    if tracking_uri:
        echo(tracking_uri)
        return
    from studies.mirror.server import configure, prepare_database

    configure()
    with common.open(create=True) as storage:
        uri = prepare_database(storage.location)
        if storage.server:
            storage.server.keep()
            say("the embedded server stays running; stop it with: studyhall db stop")
        echo(uri)


def checked(tracking_uri: str | None) -> str | None:
    """The tracking URI that was given; ``None``: MLflow's database beside the studies.

    Raises:
        TrackingError: it is none that a mirror can use.
    """
    from studies.mirror.server import check_uri

    return check_uri(tracking_uri) if tracking_uri else None


def start_mirror(
    storage: PostgresStorage,
    tracking_uri: str | None,
    output: Callable[[str], None],
    names: tuple[str, ...] = (),
    *,
    once: bool = False,
) -> MirrorProcess:
    """Start a mirror of the studies ``names``; without names, of all."""
    from studies.mirror.launcher import MirrorProcess

    return MirrorProcess(
        storage,
        tracking=tracking_uri,
        home=home(),
        studies=names,
        once=once,
        environment=environment(),
        output=lambda line: output(f"mirror | {line}"),
    )


def event_lines(process: MirrorProcess, tracking_uri: str | None, *, skip: Collection[str] = ()) -> Iterator[str]:
    """Lines for people about a mirror's events since the last call, without those of the kinds ``skip``."""
    for event in process.new_events():
        line = None if event["event"] in skip else _line(event, tracking_uri)
        if line:
            yield line


def _line(event: Mapping[str, Any], tracking_uri: str | None) -> str | None:
    match event["event"]:
        case "connected":
            return f"mirroring into {_place(tracking_uri)}"
        case "waiting" | "refused" as kind:
            return f"{kind}: {event['message']}"
        case "page" if (tracking_uri or "").startswith("http"):
            return f"{event['study']} is at {tracking_uri}/{event['page']}"
        case "writing":
            return f"{event['study']}: {event['done']:,} of {counted(event['trials'], 'trial')} in MLflow"
        case "mirrored":
            return f"{event['study']}: {counted(event['trials'], 'trial')} in MLflow"
    return None


def _place(tracking_uri: str | None) -> str:
    from studies.mirror.server import display

    return f"MLflow at {display(tracking_uri)}" if tracking_uri else "the MLflow database"


def restart_server(storage: PostgresStorage, process: MirrorProcess) -> None:
    """Restart the embedded server if the mirror waits: the server may have been killed."""
    if storage.server and process.is_waiting:
        storage.server.start()


def _follow(storage: PostgresStorage, process: MirrorProcess, tracking_uri: str | None) -> None:
    """Print a mirror's events until it ends."""
    while process.popen.poll() is None:
        for line in event_lines(process, tracking_uri):
            say(line)
        restart_server(storage, process)
        time.sleep(POLL)
    # It may have said something between the last look and its end.
    status = process.wait()
    for line in event_lines(process, tracking_uri):
        say(line)
    if status:
        error = process.last_events.get("error")
        raise TrackingError(error["message"] if error else f"the mirror ended with status {status}")


def environment() -> dict[str, str]:
    """The environment of a child process: ours without passwords."""
    return {name: value for name, value in os.environ.items() if name not in _PRIVATE}


class RestartedMirror(Restarted):
    """A mirror of all studies that is restarted when it dies. Prints its events."""

    child: MirrorProcess

    def __init__(self, storage: PostgresStorage, tracking_uri: str | None) -> None:
        self._storage = storage
        self._uri = tracking_uri
        super().__init__("the mirror", lambda: start_mirror(storage, tracking_uri, say), say)

    def is_ready(self) -> bool:
        """Whether the mirror is connected to MLflow, or waits for it.

        Raises:
            TrackingError: the mirror died.
        """
        if self.child.last_events.keys() & {"connected", "waiting"}:
            return True
        # At the start a death is no accident, and another start would not help.
        if why := self.cause_of_death:
            raise TrackingError(why)
        return False

    def poll(self) -> None:
        """Restart a dead mirror after its backoff, and print new events."""
        super().poll()
        for line in event_lines(self.child, self._uri):
            say(line)
        restart_server(self._storage, self.child)


class Mirroring:
    """The mirror beside a run. No trial ever waits for it.

    Args:
        storage: where the studies are.
        tracking_uri: MLflow's; ``None``: its database beside the studies.
        names: of the studies.
        output: called with each line.
    """

    def __init__(
        self, storage: PostgresStorage, tracking_uri: str | None, names: tuple[str, ...], output: Callable[[str], None]
    ) -> None:
        self._uri = tracking_uri
        self._names = names
        self._output = output
        self._process = start_mirror(storage, tracking_uri, output, names)
        self._is_over = False

    def poll(self) -> None:
        """Print new events. To be called about twice a second."""
        if self._is_over:
            return
        for line in event_lines(
            self._process, self._uri, skip=("writing", "mirrored")
        ):  # the study's progress is shown anyway
            self._output(line)
        if self._process.popen.poll() is not None:
            self._process.wait()
            self._is_over = True
            error = self._process.last_events.get("error", {"message": "it was ended"})
            self._output(f"the mirror ended: {error['message']}; the study continues")

    def finish(self) -> None:
        """Let the mirror catch up after the end of the studies, if MLflow answers."""
        self.poll()
        if not self._is_over and self._process.finish():
            seen = "" if self._uri else f"; see it: {command('serve', *self._names[:1])}"
            say(f"mirrored into {_place(self._uri)}{seen}")
            return
        events = self._process.last_events
        why = events.get("error", events.get("waiting", {"message": "it does not answer"}))["message"]
        say(f"MLflow is incomplete ({why}); catch up with: {command('mirror', *self._names)} --once")

    def __enter__(self) -> Mirroring:
        return self

    def __exit__(self, *_: object) -> None:
        # Killing it is safe: the next mirror continues from what is in MLflow.
        if self._process.popen.poll() is None:
            self._process.kill()
