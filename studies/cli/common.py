"""Shared by all commands: options, opening the storage, printing, reporting errors."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from studies.errors import NoTables, StorageUnreachable, StudyhallError, command, described
from studies.storage import REMIND, STORAGE_VARIABLE, chosen_home
from studies.text import counted, printable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import Console

    from studies.spec.script import Script
    from studies.spec.study import StudySpec
    from studies.storage.database import Database
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import Status, StudyRecord

#: Seconds that Tab waits for a database.
QUICK = 2.0
#: The folder of Studyhall on this machine.
home = chosen_home
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(kw_only=True)
class Common:
    """The options of every command that opens a storage."""

    storage_url: str | None
    wait: float
    """Seconds to wait for a database that is unreachable or has no tables yet."""

    def open(self, *, create: bool = False) -> closing[PostgresStorage]:
        """The storage of this command, as a context manager.

        Args:
            create: create missing tables.
        """
        from studies.storage import open_storage

        # A machine that names a server needs no folder for an embedded one.
        where = None if self.storage_url else home()
        # Patience is ours: only here is a person told what the command waits for.
        return closing(self.patiently(lambda: open_storage(self.storage_url, home=where, create=create, patience=0.0)))

    def patiently(self, action: Callable[[], T]) -> T:
        """Call ``action``; retry for ``--wait`` seconds while the database is unreachable or has no tables."""
        deadline, reminded = time.monotonic() + self.wait, -math.inf
        while True:
            try:
                return action()
            except (StorageUnreachable, NoTables) as error:
                if time.monotonic() > deadline:
                    raise
                if time.monotonic() - reminded > REMIND:
                    say(f"waiting for the database: {error}")
                    reminded = time.monotonic()
            time.sleep(1.0)


def common_options(command: F) -> F:
    """Give ``command`` the options of a storage, as its first argument, a :class:`Common`; and :func:`debug_option`."""

    @click.option(
        "--storage",
        "storage_url",
        envvar=STORAGE_VARIABLE,
        metavar="URL",
        help="A PostgreSQL server instead of the embedded one. [env: STUDYHALL_STORAGE]",
    )
    @click.option(
        "--wait",
        envvar="STUDYHALL_WAIT",
        type=click.FloatRange(0),
        default=0.0,
        metavar="SECONDS",
        help="How long to wait for an unreachable database. [env: STUDYHALL_WAIT]",
    )
    @debug_option
    @functools.wraps(command)
    def wrapped(storage_url: str | None, wait: float, **options: Any) -> Any:
        # An empty variable names no server.
        return command(Common(storage_url=storage_url or None, wait=wait), **options)

    return wrapped  # type: ignore[return-value]  # click's decorators keep the callable, not its type


def debug_option(command: F) -> F:
    """Print what ``command`` raises as one line, with its traceback only on ``--debug``."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def wrapped(debug: bool, **options: Any) -> Any:
        _log_to_stderr(logging.DEBUG if debug else logging.WARNING)
        try:
            return command(**options)
        # click's own errors are for main(), which prints usage errors in one line as well.
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError as error:
            drop_output()
            raise click.exceptions.Exit(0) from error  # with the error itself click would exit with 1
        except Exception as error:
            if debug:
                for line in traceback.format_exc().splitlines():
                    say(line)
            raise click.exceptions.Exit(report_error(error)) from error

    return wrapped  # type: ignore[return-value]  # click's decorators keep the callable, not its type


class _Printable(logging.Formatter):
    # A library's message may quote the database, and what is there must not control a terminal.
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
    # Python would print a warning with its line of code, past the formatter.
    logging.captureWarnings(True)


def drop_output() -> None:
    """Discard standard output after the reader of a pipe (head, less) has closed it: Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


data_dir_option = click.option(
    "--data-dir",
    envvar="STUDYHALL_DATA",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where data sets are, or are downloaded to once. [env: STUDYHALL_DATA]",
)
allow_option = click.option(
    "--allow",
    multiple=True,
    metavar="PREFIX",
    help="What studies may use here besides objectives.*: a package (lab.), a checkpoint folder (store=/DIR).",
)


def time_value(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    """The callback of an option that takes a time: ``90s``, ``30m``, ``2h``, in seconds."""
    from studies.spec.sections import parse_seconds

    if text is None:
        return None
    try:
        seconds = float(str(parse_seconds(text)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if seconds <= 0:
        raise click.BadParameter(f"{text!r} is no time; it must be above 0")
    return seconds


def _scripts(_ctx: click.Context, _param: click.Parameter, paths: tuple[str, ...]) -> tuple[Script, ...]:
    from studies.spec.script import Script, is_script

    for path in paths:
        if not is_script(path):
            if path.endswith(".py"):
                raise click.BadParameter(f"{path!r} names no callable; for example: {path}:objective")
            raise click.BadParameter(
                f"{path!r} is not path/to/file.py:callable; an objective in a module has no path: --allow {path}"
            )
    return tuple(map(Script.read, paths))


allow_changed_option = click.option(
    "--allow-changed",
    is_flag=True,
    help="Run a script that has changed since the study was made; each trial records that.",
)


def objective_options(command: F) -> F:
    """Give ``command`` the options ``scripts`` and ``allow_changed``."""
    option = click.option(
        "--objective",
        "scripts",
        multiple=True,
        callback=_scripts,
        metavar="FILE.py:NAME",
        help="The script of a study, as this machine has it.",
    )
    return option(allow_changed_option(command))


def direction_option(text: str) -> Callable[[F], F]:
    """``--direction``, given once for each objective; ``text`` is its help."""
    return click.option(
        "--direction", "directions", type=click.Choice(["minimize", "maximize"]), multiple=True, help=text
    )


def has_embedded_database() -> bool:
    """Whether this machine has one. Does not create one."""
    return (home() / "postgresql").is_dir()


def ask_quickly(ctx: click.Context, ask: Callable[[Database], list[str]]) -> list[str]:
    """Ask the storage of an unfinished command line, for completion; nothing if it does not answer quickly."""
    from studies.storage.database import Database
    from studies.storage.embedded.server import EmbeddedServer
    from studies.storage.url import StorageURL

    # An error would be printed into the line that is being typed.
    with ExitStack() as stack, suppress(StudyhallError):
        url = ctx.params.get("storage_url")
        if url:
            location = StorageURL.parse(url)
        elif has_embedded_database():  # pressing Tab must not create one
            server = stack.enter_context(closing(EmbeddedServer(home())))
            location = server.start()
        else:
            return []
        database = stack.enter_context(closing(Database(location)))
        # The shell prints candidates as they are: a name with control characters is left out.
        return [name for name in ask(database) if printable(name) == name]
    return []


def study_in(ctx: click.Context) -> str | None:
    """The study that an unfinished command line names: click leaves it in ``args`` before an option's missing value."""
    named: str | None = ctx.params.get("name") or next(iter(ctx.args), None)
    return named


def complete_studies(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Complete the name of a study."""
    names = ask_quickly(ctx, lambda database: [row["name"] for row in database.rows("study_names", within=QUICK)])
    return [name for name in names if name.startswith(begun)]


def complete_trials(*states: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Complete the number of a trial of the named study, among those in ``states``, or all."""

    def complete(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
        def ask(database: Database) -> list[str]:
            study, among = study_in(ctx), list(states) or None
            rows = database.rows("numbers", within=QUICK, study=study, states=among, begun=begun)
            return [row["number"] for row in rows]

        return ask_quickly(ctx, ask)

    return complete


def complete_targets(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete TARGET: presets and files."""
    from studies.spec.source import preset_names

    presets = [CompletionItem(name) for name in preset_names() if name.startswith(begun)]
    return [*presets, CompletionItem(begun, type="file")]


study_argument = click.argument("name", metavar="NAME", shell_complete=complete_studies)
trial_option = click.option(
    "--trial",
    "trial_number",
    type=int,
    metavar="N",
    shell_complete=complete_trials(),
    help="This trial, not the best one.",
)


def choose_trial(storage: PostgresStorage, record: StudyRecord, number: int | None) -> FrozenTrial:
    """Trial ``number``, else the best one.

    Raises:
        TrialNotFound: there is no such trial.
        NothingFinished: no trial is complete yet.
        StorageError: the study has several objectives, and no single best trial.
    """
    return storage.best(record) if number is None else storage.trial(record, number)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several options, in their order in the help."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def live_console() -> Console | None:
    """A console for a picture that is drawn again and again; ``None`` where standard output shows none."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    # FORCE_COLOR makes a terminal of a file in rich's eyes, and TERM=dumb can't go up a line.
    is_able = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
    return console if is_able else None


def data_dir_or_default(data_dir: Path | None) -> Path:
    """``--data-dir``, else ``data`` in the home of Studyhall."""
    return data_dir.absolute() if data_dir else home() / "data"


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C inside the block, to end child processes in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def goal(spec: StudySpec, *, is_new: bool, runs: bool = False) -> str:
    """A study's direction, in words. If a new study has it by default: how to change it.

    ``runs``: whether this command runs the study, and must be interrupted first.
    """
    if spec.says_direction or not is_new:
        return f"it {spec.goal}"
    change = command("extend", spec.name, "--direction", "maximize")
    way = "interrupt this command, then: " if runs else "change that with: "
    return f"it {spec.goal}, as no direction was given; before a trial has finished, {way}{change}"


def way_to_work(record: StudyRecord) -> str:
    """The end of a line about a study without workers: how to run it."""
    from studies.objective import work_command

    spec = record.spec
    return f"; run it with: {work_command(record.name, spec.objective.path, spec.checkpoints.store)}" if spec else ""


def who_goes_on(now: Status, record: StudyRecord) -> str:
    """The end of a line about a study that continues: how many workers it has, or how to run it."""
    return f"; {counted(len(now.workers), 'worker')} seen" if now.workers else way_to_work(record)


def report_error(error: Exception) -> int:
    """Print ``error`` as one line, and return its exit status."""
    if isinstance(error, StudyhallError):
        say(f"error: {described(error)}")
        return error.exit_code
    say(f"error: {described(error)}; unexpected error; please report it with --debug's output")
    return 1


def report_usage_error(error: click.ClickException) -> int:
    """Print what is wrong with a command line as one line, and return its exit status."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    text = " ".join(error.format_message().split()).removesuffix(".")
    context = getattr(error, "ctx", None)
    say(f"error: {text[:1].lower()}{text[1:]}" + (f"; see: {context.command_path} --help" if context else ""))
    return error.exit_code


def say(line: str = "") -> None:
    """Print a line to standard error: everything that is not data."""
    with suppress(BrokenPipeError):  # the reader of standard error has closed it; that must not end a run
        click.echo(printable(line), err=True)
