"""The database behind the studies: db url, start, stop, upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, common_options, home, say
from studies.cli.formats import echo
from studies.text import counted

if TYPE_CHECKING:
    from studies.storage.url import StorageURL


@click.group()
def db() -> None:
    """The database: its URL, its tables, the embedded PostgreSQL.

    The embedded server starts when a program needs it and stops after the last one, unless `db start` or
    `db url` keeps it running.
    """


@db.command()
@common_options
def url(common: Common) -> None:
    """Print the storage's URL for other programs, and keep the server running for them.

    A URL given by --storage is printed with its password, as SQLAlchemy and Optuna take it.
    """
    from studies.storage.embedded.server import EmbeddedServer
    from studies.storage.url import StorageURL

    if common.storage_url:
        # With its password, against all other output: this is for programs, which need it.
        echo(StorageURL.parse(common.storage_url).sqlalchemy)
        return
    # Kept: a program that gets the URL has no share in the server, which would stop with this command.
    echo(EmbeddedServer(home()).keep().sqlalchemy)
    say("this address is a socket on this machine; other machines need a PostgreSQL server, by --storage")
    say("the embedded server stays running; stop it with: studyhall db stop")


@db.command()
@common_options
def start(common: Common) -> None:
    """Start the embedded server and keep it running until `db stop`."""
    _refuse_storage(common)
    from studies.storage.embedded.server import EmbeddedServer

    location = EmbeddedServer(home()).keep()
    say(f"the embedded server runs at {location.display}; stop it with: studyhall db stop")


@db.command()
@click.option("--force", is_flag=True, help="Stop it even while studies run; their workers lose their connections.")
@common_options
def stop(common: Common, force: bool) -> None:
    """Stop the embedded server."""
    _refuse_storage(common)
    from studies.storage.embedded.server import EmbeddedServer

    stopped = EmbeddedServer(home()).stop(force=force)
    say("the embedded server is stopped" if stopped else "the embedded server was not running")


@db.command()
@click.option(
    "--optuna-4-time-zone",
    "time_zone",
    metavar="ZONE",
    help="The time zone in which Optuna 4 wrote the tables: Europe/Berlin.",
)
@common_options
def upgrade(common: Common, time_zone: str | None) -> None:
    """Bring the tables to the version of this studyhall.

    Stop the workers first. All studies and trials stay. The owner of the tables gets back rights that were
    revoked. Optuna 4 kept local times, Optuna 5 keeps UTC: --optuna-4-time-zone converts them.
    """
    from studies.storage import roles, schema
    from studies.storage.database import Database

    with located(common) as url, closing(Database(url)) as database:
        # In this order: the upgrade refuses times of Optuna 4, and migrations need the rights of an owner.
        if time_zone is not None:
            converted = schema.convert_optuna_4(url, time_zone)
            say(f"the times of {counted(converted, 'trial')} are now UTC instead of {time_zone}")
        if restored := common.patiently(lambda: roles.restore_owner(database)):
            say(f"the owner has its rights to {counted(restored, 'table')} again")
        before, now = common.patiently(lambda: schema.upgrade(url))
        if before == now:
            say(f"nothing to do: the tables are of version {now}")
        elif before:
            say(f"upgraded the tables from version {before} to {now}")
        else:
            say(f"made the tables: version {now}")


@db.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@common_options
def backup(common: Common, file: Path) -> None:
    """Write all studies into FILE; workers may continue.

    FILE holds neither checkpoints in directories and buckets nor MLflow's data, which the mirror can write
    again.
    """
    from studies.storage import backup as backups

    with located(common) as url:
        backups.backup(url, file)
    say(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB); restore it with: studyhall db restore {file}")


@db.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@common_options
def restore(common: Common, file: Path) -> None:
    """Read the studies of FILE into an empty database.

    Trials that were running at the time of the backup are requeued; trials that finished later run again.
    """
    from studies.storage import backup as backups

    with located(common) as url:
        backups.restore(url, file)
    say(f"restored {file}; look at it with: studyhall ls")


@db.command()
@click.argument("kind", type=click.Choice(["worker", "viewer"]))
@click.argument("role", metavar="USER")
@common_options
def grant(common: Common, kind: str, role: str) -> None:
    """Let a database user be a worker, or a viewer.

    A worker reads and writes trials, and neither changes tables nor deletes studies; a viewer reads. Run
    this as the tables' owner, and again after each `db upgrade`.
    """
    from studies.storage import roles
    from studies.storage.database import Database

    with located(common) as url, closing(Database(url)) as database:
        common.patiently(lambda: roles.grant(database, kind, role))
    say(f"{role} is a {kind} now")


@contextmanager
def located(common: Common) -> Iterator[StorageURL]:
    """Where the command's database is, whatever its tables are; the embedded server runs meanwhile."""
    from studies.storage.embedded.server import EmbeddedServer
    from studies.storage.url import StorageURL

    # Not by open_storage, which refuses tables of other versions: they are what these commands are for.
    if common.storage_url:
        yield StorageURL.parse(common.storage_url)
    else:
        with EmbeddedServer(home()) as url:
            yield url


def _refuse_storage(common: Common) -> None:
    if common.storage_url:
        raise click.UsageError("--storage (or STUDYHALL_STORAGE) names another server, which studyhall does not run")
