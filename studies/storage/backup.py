"""Backup and restore by pg_dump and pg_restore from the wheel, which support older servers as well."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg2

from studies.errors import NotPermitted, StorageError
from studies.storage import roles
from studies.storage.database import Database
from studies.storage.embedded.binaries import Account, find_binaries
from studies.storage.url import StorageURL, connection_error

#: A setting that pg_restore 18 writes into its script, and that servers before 17 do not know.
_UNKNOWN_TO_OLDER: Final = b"SET transaction_timeout = 0;\n"


def backup(url: StorageURL, file: Path) -> None:
    """Write the whole database, studies and all, into ``file``, in one snapshot. Workers may continue.

    Raises:
        StorageError: the file is there already or cannot be written, or the database cannot be read.
    """
    if file.exists():
        raise StorageError(f"{file} is there already: choose another name, or remove it")
    try:
        # Created here with mode 0600 before pg_dump opens it: never through another user's link.
        descriptor, name = tempfile.mkstemp(prefix=".studyhall-", suffix=".part", dir=file.parent)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error
    os.close(descriptor)
    part = Path(name)
    try:
        with _service(url) as environment:
            _run(url, ["pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--file", part], environment)
        part.replace(file)  # a backup that is there is whole
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def restore(url: StorageURL, file: Path) -> None:
    """Restore a file of :func:`backup` into an empty database. Atomic.

    Raises:
        StorageError: the database holds tables already, or the file is no backup.
    """
    if not file.is_file():
        raise StorageError(f"there is no backup {file}")
    _require_empty(url)
    # As a script for psql, not by pg_restore --dbname, which would send a setting that older servers refuse.
    script = _run(url, ["pg_restore", "--no-owner", "--no-privileges", "--file=-", file], dict(os.environ))
    script = script.replace(_UNKNOWN_TO_OLDER, b"", 1)  # the first one alone: the same bytes may be data
    with _service(url) as environment:
        _run(
            url,
            ["psql", "--no-psqlrc", "--quiet", "--single-transaction", "-v", "ON_ERROR_STOP=1"],
            environment,
            script,
        )


def _require_empty(url: StorageURL) -> None:
    with closing(Database(url)) as database:
        (found,) = database.execute(
            "select count(*) as tables from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
        )
        if found["tables"]:
            raise StorageError(
                f"{url.display} is not empty: a backup is restored into an empty database; make one (createdb NAME), "
                "name it by --storage, and let the old one lie until you have looked at the new one"
            )
        me = roles.own(database)
        if not me["may_create"]:
            raise NotPermitted(
                f"user {me['name']!r} may not make tables in {url.display}: only its owner may, "
                f"{me['database_owner']!r};",
                fix="name that user in --storage",
            )


def _run(url: StorageURL, argv: list[str | Path], environment: dict[str, str], given: bytes | None = None) -> bytes:
    # Run by the current user from the wheel: only a server needs another account.
    binaries = find_binaries(Account(uid=os.geteuid(), gid=os.getegid()), Path())
    done = subprocess.run(
        [binaries / argv[0], *argv[1:]], env=environment, input=given, capture_output=True, check=False
    )
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        if "permission denied" in done.stderr.decode(errors="replace"):
            with closing(Database(url)) as database:
                raise roles.denied(database)
        raise StorageError(f"{url.display}: {argv[0]}: {told[0] if told else f'exit status {done.returncode}'}")
    return done.stdout


@contextmanager
def _service(url: StorageURL) -> Iterator[dict[str, str]]:
    """An environment in which libpq's programs connect to ``url``: by a file, so that no argument holds a password."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "service.conf")
        file.touch(mode=0o600)
        file.write_text("[studyhall]\n" + "".join(f"{key}={value}\n" for key, value in _resolved(url).items()))
        yield {**os.environ, "PGSERVICEFILE": str(file), "PGSERVICE": "studyhall"}


def _resolved(url: StorageURL) -> dict[str, Any]:
    """The libpq options of ``url``, with those of the service that it names.

    Raises:
        StorageUnreachable: it names a service, and the server does not answer.
    """
    if "service" not in dict(url.options):
        return url.libpq
    # No service file can name another service: a connection tells what this one stands for.
    try:
        with closing(psycopg2.connect(**url.libpq)) as connection:
            found = {**connection.info.dsn_parameters, "password": connection.info.password}
    except psycopg2.OperationalError as error:
        raise connection_error(url, error) from error
    return {key: value for key, value in found.items() if value and key not in ("service", "servicefile")}
