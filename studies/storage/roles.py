"""Database users who may not do everything: what a worker and a viewer may, and what they get it by."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import TYPE_CHECKING, Final

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from studies.errors import StorageError
from studies.storage.url import StorageURL, connection_error

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage

READER: Final = "studyhall_reader"
#: What a worker, and whoever creates and steers studies, deletes in the course of that; no study and no trial.
_WORKER_DELETES: Final = ("checkpoints", "notices", "requests", "transitions", "workers")
_GRANTS: Final = {
    "viewer": (
        "grant usage on schema public, studyhall to {role}",
        "grant select on all tables in schema public, studyhall to {role}",
        # Where notifications go: the addresses may hold secrets.
        "revoke select on studyhall.addresses from {role}",
    ),
    "worker": (
        "grant usage on schema public, studyhall to {role}",
        "grant select, insert, update on all tables in schema public, studyhall to {role}",
        # Which tables there are is the owner's business.
        "revoke insert, update on studyhall.version, alembic_version, version_info from {role}",
        f"grant delete on {', '.join(f'studyhall.{table}' for table in _WORKER_DELETES)} to {{role}}",
        "grant usage, select on all sequences in schema public, studyhall to {role}",
    ),
}
_IS_OWNER: Final = """
    select bool_and(pg_has_role(tableowner, 'usage')) from pg_tables where schemaname in ('public', 'studyhall')
"""
KINDS: Final = tuple(_GRANTS)


def reader(storage: PostgresStorage) -> StorageURL:
    """The storage for one who can only read.

    In the embedded server that is a user of its own, who needs no password on its socket. On another server
    users are its administrator's: there the given one's sessions are made read-only.
    """
    if storage.server is None:
        options = dict(storage.location.options)
        options["options"] = f"{options.get('options', '')} -c default_transaction_read_only=on".strip()
        return dataclasses.replace(storage.location, options=tuple(sorted(options.items())))
    storage.database.execute(
        f"do $$ begin create role {READER} login; exception when duplicate_object then null; end $$"
    )
    storage.database.execute(f"grant pg_read_all_data to {READER}")
    return dataclasses.replace(storage.location, user=READER)


def grant(url: StorageURL, kind: str, role: str) -> None:
    """Let a database user be a worker or a viewer, and no more than that.

    Args:
        url: of the tables' owner.
        kind: one of :data:`KINDS`.
        role: the user, who exists.

    Raises:
        StorageUnreachable: the server does not answer, or refuses us.
        StorageError: there is no such user, there are no tables yet, or they are another's.
    """
    try:
        connection = psycopg2.connect(**url.libpq)
    except psycopg2.OperationalError as error:
        raise connection_error(url, error) from error
    name = sql.Identifier(role)
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute(_IS_OWNER)
        if cursor.fetchone() == (False,):  # PostgreSQL would only warn
            raise StorageError(f"the tables of {url.display} are another user's: let their owner grant this")
        try:
            for tables in ("public", "studyhall"):
                cursor.execute(
                    sql.SQL("revoke all on all tables in schema {} from {}").format(sql.Identifier(tables), name)
                )
            for statement in _GRANTS[kind]:
                cursor.execute(sql.SQL(statement).format(role=name))
        except psycopg2.errors.UndefinedObject:
            raise StorageError(f"there is no database user {role!r}: create it first (createuser {role})") from None
        except (psycopg2.errors.InvalidSchemaName, psycopg2.errors.UndefinedTable):
            raise StorageError(f"{url.display} has no tables yet: make them first: studyhall db upgrade") from None
