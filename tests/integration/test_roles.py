"""What the database's users may do: the table of role × table × verb, and that this is enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from click.testing import CliRunner

from studies import PostgresStorage, StudySpec
from studies.cli import studyhall
from studies.errors import NotPermitted
from studies.storage import roles, schema
from studies.storage.backup import backup
from studies.storage.database import Database
from studies.storage.url import StorageURL
from studies.trial import Trial
from tests.conftest import Server
from tests.support.worker import worker_on

SPEC = {
    "name": "s",
    "objective": {"path": "x:y"},
    "budget": {"trials": 3},
    "notify": {"url": "https://hooks.example/secret"},
    "space": {"x": {"type": "float", "low": 0, "high": 1}},
}
VERBS = ("select", "insert", "update", "delete", "truncate")
OPTUNAS = (
    *("studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials", "trial_params"),
    *("trial_values", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes"),
    "trial_heartbeats",
)
OURS = (
    *("budgets", "leases", "metrics", "addresses", "tallies", "spent", "clocks", "evidence", "space_changes"),
    "finals",
)
PASSING = ("checkpoints", "notices", "requests", "transitions", "workers")
VERSIONS = ("alembic_version", "version_info", "studyhall.version")


def may(kind: str, table: str) -> str:
    """The verbs that a user of this kind has on a table, as the runbook says."""
    name = table.removeprefix("studyhall.")
    if kind == "viewer":
        return "" if name == "addresses" else "select"
    if table in VERSIONS:
        return "select"
    return "select insert update delete" if name in PASSING else "select insert update"


def grant(url: StorageURL, kind: str, user: str) -> None:
    with closing(Database(url)) as database:
        roles.grant(database, kind, user)


@pytest.fixture(scope="module")
def users(separate_server: Server) -> Iterator[dict[str, str]]:
    """Two users of the server, by kind."""
    names = {kind: f"test_{kind}" for kind in roles.KINDS}
    with closing(psycopg2.connect(**separate_server.url.libpq)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for name in names.values():
            cursor.execute(f"create role {name} login password 'p'")
        yield names
        for name in names.values():
            cursor.execute(f"drop role {name}")


@pytest.fixture
def url(separate_server: Server, users: dict[str, str]) -> Iterator[StorageURL]:
    """A database with tables, where each user is what it is called."""
    with separate_server.database() as url:
        schema.upgrade(url)
        for kind, user in users.items():
            grant(url, kind, user)
        yield url
        with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
            for user in users.values():
                cursor.execute(f"drop owned by {user}")


def test_the_table_of_role_table_and_verb_is_as_specified(url: StorageURL, users: dict[str, str]) -> None:
    with closing(psycopg2.connect(**url.libpq)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select case schemaname when 'public' then tablename else schemaname || '.' || tablename end from pg_tables"
            " where schemaname in ('public', 'studyhall')"
        )
        tables = {table for (table,) in cursor.fetchall()}
        assert tables == {*OPTUNAS, *VERSIONS, *(f"studyhall.{table}" for table in (*OURS, *PASSING))}
        for kind, user in users.items():
            for table in tables:
                cursor.execute(
                    "select string_agg(v, ' ') filter (where has_table_privilege(%s, %s, v)) from unnest(%s) v",
                    (user, table, list(VERBS)),
                )
                assert cursor.fetchone() == (may(kind, table) or None,), (kind, table)
            cursor.execute("select has_schema_privilege(%s, 'public', 'create')", (user,))
            # PostgreSQL 15 and newer give that to nobody; older ones, which we do not serve, to everybody.
            assert cursor.fetchone() == (False,)


def objective(trial: Trial) -> float:
    trial.report(0.5, 1, loss=0.5)
    trial.checkpoint(1, lambda: b"state")
    return float(trial.params["x"])


def test_a_worker_runs_a_study_that_a_viewer_looks_at(url: StorageURL, users: dict[str, str], tmp_path: Path) -> None:
    as_worker = replace(url, user=users["worker"], password="p")
    with closing(PostgresStorage(as_worker)) as storage:
        record, _ = storage.create_study(StudySpec.from_dict(SPEC))
        storage.workers.register([record], worker_id="w", host="h", pid=1, device="cpu")
        worker = worker_on(storage, record, objective, tmp_path)
        assert worker.run() == "complete"
        storage.workers.heartbeat("w")
        storage.workers.forget("w")
        storage.budgets.extend(record, more_trials=1)
        storage.budgets.pause(record)
        storage.budgets.resume(record)
        assert storage.find_study("s").spec.notify.url == "https://hooks.example/secret"
        with pytest.raises(NotPermitted, match="only the owner of its tables may"):
            storage.delete(record)
        with pytest.raises(NotPermitted, match="only the owner of its tables may"):
            storage.database.execute("drop table studyhall.metrics")
    backup(as_worker, tmp_path / "studies.dump")
    as_viewer = replace(url, user=users["viewer"], password="p")
    with closing(PostgresStorage(as_viewer)) as storage:
        record = storage.find_study("s")
        assert record.spec.notify.url is None
        assert storage.status(record).finished == 3
        assert len(storage.trials(record)) == 3
        assert storage.metrics.curves(storage.trials(record))[0][0].value == 0.5
        assert storage.leases.attempts(record)[0].host == "h"
        assert storage.best(record).value is not None
        for write in (
            lambda: storage.budgets.pause(record),
            lambda: storage.create_new_trial(record.study_id),
            lambda: storage.set_study_user_attr(record.study_id, "key", 1),
        ):
            with pytest.raises(NotPermitted, match="is a viewer"):
                write()


def ask(url: StorageURL, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(studyhall, [*arguments, "--storage", url.sqlalchemy])
    return done.exit_code, done.stderr


def test_granting_says_what_is_wrong(separate_server: Server, url: StorageURL, users: dict[str, str]) -> None:
    assert ask(url, "db", "grant", "viewer", users["viewer"]) == (0, f"{users['viewer']} is a viewer now\n")
    code, told = ask(url, "db", "grant", "worker", "nobody_here")
    assert code == 1
    assert told == "error: there is no database user 'nobody_here': create it first (createuser nobody_here)\n"
    code, told = ask(replace(url, user=users["worker"], password="p"), "db", "grant", "worker", users["viewer"])
    assert (code, told.count("\n")) == (1, 1)
    assert "may not grant rights" in told
    code, told = ask(url, "db", "grant", "viewer", url.user or "")
    assert code == 1
    assert told.startswith(f"error: {url.user!r} has all rights of the tables' owner and keeps them; create another")
    with separate_server.database() as empty:
        code, told = ask(empty, "db", "grant", "viewer", users["viewer"])
        assert code == 1
        assert "holds no studies yet; begin one with: studyhall run digits" in told


def test_who_was_a_worker_is_only_a_viewer_when_granted_so(url: StorageURL, users: dict[str, str]) -> None:
    grant(url, "viewer", users["worker"])
    with (
        closing(psycopg2.connect(**replace(url, user=users["worker"], password="p").libpq)) as connection,
        connection.cursor() as cursor,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        cursor.execute("update trials set number = 0")
