"""The tables: Optuna's, made by Optuna's own code, and ours, made by numbered migrations."""

from __future__ import annotations

from functools import cache
from importlib import resources

import psycopg2

from studies.errors import NoTables, StorageError
from studies.storage.database import Database
from studies.storage.url import StorageURL, connection_error

# "studyhal" in ASCII: the key of the advisory lock under which one process makes the tables.
_LOCK = 0x7374756479_68616C


@cache
def migrations() -> dict[int, str]:
    """The SQL of each migration, by its number, in order."""
    folder = resources.files("studies.storage") / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda e: e.name)
    return {int(entry.name.partition("_")[0]): entry.read_text() for entry in files}


def require(database: Database, *, create: bool) -> None:
    """Make sure that the database has Optuna's schema and ours.

    Args:
        create: make what is missing, once, however many processes ask at the same time.

    Raises:
        StorageError: the schema is missing and ``create`` is false, or it is newer than this program.
    """
    state = database.row("schema_state")
    assert state is not None  # a select without a table returns one row
    if state["optuna"] and state["studyhall"]:
        version = database.rows("schema_version")[0]["version"]
        if version == max(migrations()):
            return
        if version is not None and version > max(migrations()):
            raise StorageError(
                f"{database.url.display}: its tables are version {version}, "
                f"this studyhall knows {max(migrations())}; "
                "upgrade it: pip install -U studyhall"
            )
    if not create:
        raise NoTables(f"{database.url.display} holds no studies yet; begin one with: studyhall run digits")
    _create(database.url)


def _create(url: StorageURL) -> None:
    from optuna.storages import RDBStorage

    try:
        connection = psycopg2.connect(**url.libpq)
    except psycopg2.OperationalError as error:
        raise connection_error(url, error) from error
    try:
        with connection, connection.cursor() as cursor:
            # Held to the end of the transaction; Optuna makes its tables over a connection of its own.
            cursor.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
            optuna_storage = RDBStorage(url.sqlalchemy)
            optuna_storage.engine.dispose()
            cursor.execute("create schema if not exists studyhall")
            cursor.execute("create table if not exists studyhall.version (version integer primary key, at timestamptz)")
            cursor.execute("select coalesce(max(version), 0) from studyhall.version")
            (applied,) = cursor.fetchone() or (0,)
            for number, sql in migrations().items():
                if number > applied:
                    cursor.execute(sql)
                    cursor.execute("insert into studyhall.version values (%s, now())", (number,))
    except psycopg2.errors.InsufficientPrivilege as error:
        reason = str(error).partition("\n")[0]
        raise StorageError(
            f"{url.display}: cannot make the tables: {reason}; let their owner run studyhall first"
        ) from error
    finally:
        connection.close()
