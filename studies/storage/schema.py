"""The tables: Optuna's, made by Optuna's own code, and ours, made by numbered migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib import resources
from typing import Any

import psycopg2
import psycopg2.errors

from studies.errors import StorageError, one_line
from studies.storage import roles
from studies.storage.database import Database
from studies.storage.url import StorageURL, connection_error

# "studyhal" in ASCII: the key of the advisory lock under which one process makes the tables.
_LOCK = 0x7374756479_68616C


@cache
def migrations() -> dict[int, str]:
    """The SQL of each migration, by its number, in order."""
    folder = resources.files("studies.storage") / "migrations"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda e: e.name)
    return {int(entry.name.partition("_")[0]): entry.read_text(encoding="utf-8") for entry in files}


def newest() -> int:
    """The version of the tables that this program knows."""
    return max(migrations())


def require(database: Database, *, create: bool) -> None:
    """Check that the database has Optuna's tables and ours, in the right versions.

    Args:
        database: which one.
        create: make the tables where there are none, once, however many processes ask at the same time.

    Raises:
        NoTables: there are none, and ``create`` is false.
        StorageError: they are older or newer than this program, or Optuna's are of Optuna 4.
    """
    where = database.url.display
    version, optuna = state(database)
    if version is None:
        if not create:
            raise roles.no_tables(database)
        upgrade(database.url, only_missing=True)
        version, optuna = state(database)
        assert version is not None  # created here, or by a faster process
    _refuse_optuna_4(where, optuna)
    if version > newest():
        raise StorageError(
            f"{where}: its tables are version {version}, this studyhall knows {newest()}; "
            "upgrade it: pip install -U studyhall"
        )
    if version < newest():
        raise StorageError(
            f"{where}: its tables are version {version}, this studyhall needs {newest()}; "
            "stop older workers and upgrade the tables: studyhall db upgrade"
        )


def state(database: Database) -> tuple[int | None, str | None]:
    """The version of our tables (None where there are none), and of the Optuna that made Optuna's."""
    (there,) = database.rows("schema_state")
    if not (there["optuna"] and there["studyhall"]):
        return None, None
    (row,) = database.rows("schema_version")
    return row["version"], row["optuna"]


def upgrade(url: StorageURL, *, only_missing: bool = False) -> tuple[int, int]:
    """Create the tables, or upgrade older ones to the newest version. Atomic.

    Args:
        url: the database.
        only_missing: leave tables alone that another process made while this one waited for its turn. Going
            through Optuna's code takes half a second, one process after the other.

    Returns:
        The versions before (0 where there were none) and now.

    Raises:
        StorageUnreachable: the server does not answer, or refuses us.
        NoTables, NotPermitted: we may not make tables here, or those that are there belong to another user.
        StorageError: they are newer than this program, or of Optuna 4.
    """
    with closing(Database(url)) as database:
        roles.require_maker(database)
    with _owner(url) as cursor:
        # To the end of the transaction: Optuna creates its tables over another connection, and must not meet a second
        # process that does the same.
        cursor.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        cursor.execute("select num_nulls(to_regclass('studyhall.version'), to_regclass('alembic_version')) = 0")
        if only_missing and cursor.fetchone() == (True,):
            return newest(), newest()
        cursor.execute("select to_regclass('version_info') is not null")
        if cursor.fetchone() == (True,):
            cursor.execute("select library_version from version_info")
            for (optuna,) in cursor.fetchall():
                _refuse_optuna_4(url.display, optuna)
        _make_optunas_tables(url)
        cursor.execute("create schema if not exists studyhall")
        cursor.execute("create table if not exists studyhall.version (version integer primary key, at timestamptz)")
        cursor.execute("select coalesce(max(version), 0) from studyhall.version")
        (before,) = cursor.fetchone() or (0,)
        if before > newest():
            raise StorageError(
                f"{url.display}: its tables are version {before}, this studyhall knows {newest()}; "
                "upgrade it: pip install -U studyhall"
            )
        for number, sql in migrations().items():
            if number > before:
                cursor.execute(sql)
                cursor.execute("insert into studyhall.version values (%s, now())", (number,))
    return int(before), newest()


def convert_optuna_4(url: StorageURL, time_zone: str) -> int:
    """Turn the local times that Optuna 4 wrote into UTC, as Optuna 5 keeps them. No worker may run.

    Args:
        url: the database.
        time_zone: in which those workers lived, such as ``Europe/Berlin``.

    Returns:
        How many trials were converted.

    Raises:
        StorageError: the tables are not Optuna 4's, or there is no such time zone.
    """
    from optuna import __version__ as ours

    with _owner(url) as cursor:
        cursor.execute("select to_regclass('version_info') is not null")
        found = None
        if cursor.fetchone() == (True,):
            cursor.execute("select library_version from version_info for update")
            found = cursor.fetchone()
        if found is None or not is_optuna_4(found[0]):
            raise StorageError(
                f"{url.display}: its tables are not Optuna 4's, so there is nothing to convert; "
                "without --optuna-4-time-zone: studyhall db upgrade"
            )
        # Our triggers refuse local times, by which they recognize workers with Optuna 4: these are no new times.
        cursor.execute("set local studyhall.times = 'given'")
        try:
            cursor.execute(
                "update trials set datetime_start = datetime_start at time zone %(zone)s at time zone 'UTC',"
                " datetime_complete = datetime_complete at time zone %(zone)s at time zone 'UTC'",
                {"zone": time_zone},
            )
        except psycopg2.errors.InvalidParameterValue:
            raise StorageError(f"no time zone {time_zone!r}; legal are names such as Europe/Berlin and UTC") from None
        converted = cursor.rowcount
        cursor.execute("update version_info set library_version = %s", (ours,))
    return int(converted)


def _refuse_optuna_4(where: str, optuna: str | None) -> None:
    if is_optuna_4(optuna):
        raise StorageError(
            f"{where}: its tables were made by Optuna {optuna}, which keeps local times where Optuna 5 keeps UTC; "
            "stop its workers, then: studyhall db upgrade --optuna-4-time-zone ZONE"
        )


def is_optuna_4(version: str | None) -> bool:
    """Whether Optuna ``version`` keeps local times."""
    return version is not None and int(version.partition(".")[0]) < 5


def _make_optunas_tables(url: StorageURL) -> None:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import OperationalError

    try:
        RDBStorage(url.sqlalchemy).engine.dispose()
    except (OperationalError, StorageInternalError) as error:
        cause = error.__cause__  # Optuna wraps some errors of the database
        raise connection_error(url, cause if isinstance(cause, OperationalError) else error) from error
    # Optuna found tables of another version than its own.
    except RuntimeError as error:
        raise StorageError(f"{url.display}: {one_line(error)}") from error


@contextmanager
def _owner(url: StorageURL) -> Iterator[Any]:
    """A cursor in one transaction, for a user who may create tables."""
    try:
        connection = psycopg2.connect(**url.libpq)
    except psycopg2.OperationalError as error:
        raise connection_error(url, error) from error
    try:
        with connection.cursor() as cursor:
            yield cursor
        connection.commit()
    except psycopg2.OperationalError as error:
        raise connection_error(url, error) from error
    except psycopg2.errors.InsufficientPrivilege as error:
        with closing(Database(url)) as database:
            raise roles.denied(database) from error
    finally:
        connection.close()  # rolls back an uncommitted transaction
