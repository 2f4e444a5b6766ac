"""The database behind the studies: db url, start, stop."""

from __future__ import annotations

import click

from studies.cli.common import Common, common_options, home, say
from studies.cli.formats import echo


@click.group()
def db() -> None:
    """The embedded PostgreSQL: start it, stop it, get its URL.

    It is started by whatever needs it and stopped by the last who did, unless `db start` or
    `db url` keeps it.
    """


@db.command()
@common_options
def url(common: Common) -> None:
    """Print the storage's URL for other programs, and keep the server running for them.

    A URL given by --storage is printed with its password, as SQLAlchemy and Optuna take it.
    """
    from studies.storage.embedded import EmbeddedServer
    from studies.storage.url import StorageURL

    if common.storage_url:
        echo(StorageURL.parse(common.storage_url).sqlalchemy)
        return
    echo(EmbeddedServer(home()).keep().sqlalchemy)
    say("the embedded server stays running; stop it with: studyhall db stop")


@db.command()
@common_options
def start(common: Common) -> None:
    """Start the embedded server and keep it running until `db stop`."""
    _refuse_storage(common)
    from studies.storage.embedded import EmbeddedServer

    location = EmbeddedServer(home()).keep()
    say(f"the embedded server runs at {location.display}; stop it with: studyhall db stop")


@db.command()
@click.option("--force", is_flag=True, help="Even while studies run; their workers lose their connections.")
@common_options
def stop(common: Common, force: bool) -> None:
    """Stop the embedded server."""
    _refuse_storage(common)
    from studies.storage.embedded import EmbeddedServer

    stopped = EmbeddedServer(home()).stop(force=force)
    say("the embedded server is stopped" if stopped else "the embedded server was not running")


def _refuse_storage(common: Common) -> None:
    if common.storage_url:
        raise click.UsageError("--storage (or STUDYHALL_STORAGE) names another server, which studyhall does not run")
