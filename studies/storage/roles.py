"""Roles of database users: the rights of a worker and a viewer, granting them, and the errors for missing rights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg2
import psycopg2.errors
from psycopg2 import sql

from studies.errors import NoTables, NotPermitted, StorageError, command
from studies.storage.url import StorageURL, connection_error

if TYPE_CHECKING:
    from studies.storage.database import Database, Row
    from studies.storage.postgres import PostgresStorage

READER: Final = "studyhall_reader"
KINDS: Final = ("viewer", "worker")
_RANKS: Final = (None, *KINDS, "owner")
#: Tables from which a worker deletes rows. Never studies or trials.
_WORKER_DELETES: Final = ("checkpoints", "notices", "requests", "transitions", "workers")
#: Read-only for workers: only the owner changes the tables.
_VERSIONS: Final = ("version", "alembic_version", "version_info")
_VERBS: Final = ("select", "insert", "update", "delete")


def verbs(kind: str, table: str) -> tuple[str, ...]:
    """The legal statements of a ``kind`` of user on ``table`` (without its schema)."""
    if kind == "owner":
        return _VERBS
    if kind == "viewer":
        # The addresses of notifications may hold secrets.
        return () if table == "addresses" else _VERBS[:1]
    if table in _VERSIONS:
        return _VERBS[:1]
    return _VERBS if table in _WORKER_DELETES else _VERBS[:3]


def reader(storage: PostgresStorage) -> StorageURL:
    """The storage for one who can only read.

    In the embedded server that is a user of its own, who needs no password on its socket. On another server
    users are its administrator's: there the given one's sessions are made read-only.
    """
    if storage.server is None:
        options = dict(storage.location.options)
        options["options"] = f"{options.get('options', '')} -c default_transaction_read_only=on".strip()
        return dataclasses.replace(storage.location, options=tuple(sorted(options.items())))
    # Two commands may serve at once, and CREATE ROLE has no IF NOT EXISTS.
    storage.database.execute(
        f"do $$ begin create role {READER} login; exception when duplicate_object then null; end $$"
    )
    storage.database.execute(f"grant pg_read_all_data to {READER}")
    return dataclasses.replace(storage.location, user=READER)


def grant(database: Database, kind: str, role: str) -> None:
    """Make a database user a worker or a viewer, and revoke everything else.

    Args:
        database: as its tables' owner.
        kind: one of :data:`KINDS`.
        role: the user, who exists.

    Raises:
        StorageUnreachable: the server does not answer, or refuses us.
        NoTables: there are none yet.
        NotPermitted: they are another user's.
        StorageError: there is no such user, or its rights cannot be limited.
    """
    me = own(database)
    if me["owner"] is None:
        raise no_tables(database)
    if me["kind"] != "owner":  # PostgreSQL only warns about a grant without effect
        raise NotPermitted(
            f"user {me['name']!r} may not grant rights in {_place(database)}: let the owner of its tables, "
            f"{me['owner']!r}, run:",
            fix=command("db", "grant", kind, role),
        )
    (found,) = database.rows("grantee", role=role)
    if not found["exists"]:
        raise StorageError(f"there is no database user {role!r}: create it first (createuser {role})")
    if found["is_owner"]:
        # The revoke below would take the owner's own rights.
        raise StorageError(
            f"{role!r} has all rights of the tables' owner and keeps them; "
            f"create another user (createuser NAME), then: studyhall db grant {kind} NAME"
        )
    tables = sorted({(row["schema"], row["table"]) for row in database.rows("rights")})
    # One transaction: a worker whose rights are set anew never lacks them in between.
    with _cursor(database.url) as cursor:
        name = sql.Identifier(role)
        schemas = sql.SQL(", ").join(sql.Identifier(schema) for schema in sorted({schema for schema, _ in tables}))
        cursor.execute(sql.SQL("revoke all on all tables in schema {} from {}").format(schemas, name))
        cursor.execute(sql.SQL("grant usage on schema {} to {}").format(schemas, name))
        for schema, table in tables:
            if allowed := verbs(kind, table):
                granting = sql.SQL(f"grant {', '.join(allowed)} on {{}} to {{}}")
                cursor.execute(granting.format(sql.Identifier(schema, table), name))
        if kind == "worker":
            cursor.execute(sql.SQL("grant usage, select on all sequences in schema {} to {}").format(schemas, name))


def lost(database: Database) -> dict[str, str]:
    """The users who lack a right of their kind: ``{user: kind}``, with ``owner``, ``worker`` or ``viewer``.

    An owner loses rights by a revoke, the others when a migration adds tables.
    """
    users: dict[str, list[Row]] = {}
    for row in database.rows("rights"):
        users.setdefault(row["role"], []).append(row)
    kinds = {role: _kind(rows) for role, rows in users.items()}
    return {role: kind for role, kind in kinds.items() if kind and any(_lacks(kind, row) for row in users[role])}


def restore_owner(database: Database) -> int:
    """Restore revoked rights of the tables' owner.

    Returns:
        On how many tables.

    Raises:
        NotPermitted: we are another user.
    """
    lacking = [row for row in database.rows("rights") if row["is_owner"] and _lacks("owner", row)]
    if lacking:
        require(database, "owner")
        with _cursor(database.url) as cursor:
            for row in lacking:
                table, owner = sql.Identifier(row["schema"], row["table"]), sql.Identifier(row["role"])
                cursor.execute(sql.SQL("grant all on {} to {}").format(table, owner))
    return len(lacking)


def require(database: Database, kind: str) -> None:
    """Check that the current user is at least a ``viewer``, ``worker`` or ``owner``; raises :exc:`NotPermitted`."""
    me = own(database)
    if _RANKS.index(me["kind"]) < _RANKS.index(kind):
        raise _refusal(database, me, kind)


def require_maker(database: Database) -> None:
    """Check that the current user may create or change tables; raises :exc:`NotPermitted` or :exc:`NoTables`."""
    me = own(database)
    if me["owner"] is not None:
        require(database, "owner")
    elif not me["may_create"]:
        raise no_tables(database)


def own(database: Database) -> Row:
    """The current database user and its rights."""
    (me,) = database.rows("own_rights")
    return me


def no_tables(database: Database) -> NoTables:
    """The error for missing tables, with the fix for a user who may create them, or must ask the owner."""
    me = own(database)
    if me["may_create"]:
        return NoTables(f"{database.url.display} holds no studies yet; begin one with:", fix="studyhall run digits")
    return NoTables(
        f"{_place(database)} has no tables yet, and user {me['name']!r} may not make them: let its owner "
        f"{me['database_owner']!r} run:",
        fix=f"studyhall db upgrade; {command('db', 'grant', 'worker', me['name'])}",
    )


def denied(database: Database) -> StorageError:
    """The error for SQLSTATE 42501 (insufficient privilege): who may grant the right, and how."""
    me = own(database)
    name, owner, kind = me["name"], me["owner"], me["kind"]
    if owner is None:
        return no_tables(database)
    if kind == "owner":
        return NotPermitted(
            f"user {name!r} owns the tables of {_place(database)} and has lost rights to them; take them back with:",
            fix="studyhall db upgrade",
        )
    # Tables of a later migration: the user was granted its rights before they were made.
    if lost(database).get(name):
        return NotPermitted(
            f"user {name!r} lacks a part of a {kind}'s rights in {_place(database)}: let the owner {owner!r} run:",
            fix=command("db", "grant", kind, name),
        )
    return _refusal(database, me, _RANKS[_RANKS.index(kind) + 1])


def _refusal(database: Database, me: Row, needed: str | None) -> NotPermitted:
    """The error for a user of a lower kind than ``needed``."""
    name, owner, place = me["name"], me["owner"], _place(database)
    if needed == "owner":
        return NotPermitted(
            f"user {name!r} may not do this in {place}: only the owner of its tables may, {owner!r};",
            fix="name that user in --storage",
        )
    as_worker = command("db", "grant", "worker", name)
    if me["kind"] is None:
        return NotPermitted(
            f"user {name!r} may not read the studies in {place}: let the owner {owner!r} run: "
            f"{command('db', 'grant', 'viewer', name)}; to run studies, too:",
            fix=as_worker,
        )
    return NotPermitted(
        f"user {name!r} is a viewer in {place} and may only look: let the owner {owner!r} run:", fix=as_worker
    )


def _place(database: Database) -> str:
    return f"database {database.url.database or 'of the service'!r} at {database.url.where}"


def _kind(rows: Iterable[Row]) -> str | None:
    """The kind of a user, judged by its rights on the trials."""
    (trials,) = (row for row in rows if row["table"] == "trials")
    if trials["is_owner"]:
        return "owner"
    return "worker" if "update" in trials["verbs"] else "viewer" if "select" in trials["verbs"] else None


def _lacks(kind: str, row: Row) -> bool:
    return not set(verbs(kind, row["table"])) <= set(row["verbs"])


@contextmanager
def _cursor(url: StorageURL) -> Iterator[Any]:
    """A cursor in one transaction."""
    try:
        connection = psycopg2.connect(**url.libpq)
    except psycopg2.OperationalError as error:
        raise connection_error(url, error) from error
    with closing(connection), connection, connection.cursor() as cursor:
        yield cursor
