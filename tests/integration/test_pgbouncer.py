"""The URL and the storage behind PgBouncer's transaction pooling. Needs Debian's package pgbouncer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import psycopg2
import pytest
import sqlalchemy

from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.pgbouncer import PgBouncer, start_pgbouncer


@pytest.fixture(scope="module")
def pgbouncer(separate_server: Server) -> Iterator[PgBouncer]:
    with start_pgbouncer(separate_server.url.sqlalchemy, default_pool_size=2) as running:
        yield running


@pytest.fixture
def pooled(separate_server: Server, pgbouncer: PgBouncer) -> Iterator[StorageURL]:
    """A new database, by way of PgBouncer."""
    with separate_server.database() as url:
        yield replace(StorageURL.parse(pgbouncer.url), database=url.database)


def backends(url: StorageURL, connections: int) -> list[int]:
    """The server's process that answers each of so many connections, asked in turn."""
    with ExitStack() as stack:
        opened = [psycopg2.connect(**url.libpq) for _ in range(connections)]
        for connection in opened:
            stack.callback(connection.close)
            connection.autocommit = True
        pids = []
        for connection in opened:
            with connection.cursor() as cursor:
                cursor.execute("select pg_backend_pid()")
                pids += [pid for (pid,) in cursor.fetchall()]
        return pids


def test_many_clients_share_few_connections_to_the_server(separate_server: Server, pooled: StorageURL) -> None:
    assert len(set(backends(pooled, 5))) <= 2
    assert len(set(backends(separate_server.url, 5))) == 5


def test_it_passes_all_that_the_url_sends_by_default(pooled: StorageURL) -> None:
    engine = sqlalchemy.create_engine(pooled.sqlalchemy)
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("show application_name")) == "studyhall"
    engine.dispose()


def test_it_refuses_server_options_that_a_person_puts_into_the_url(pooled: StorageURL) -> None:
    url = replace(pooled, options=(("options", "-c statement_timeout=1s"),))
    with pytest.raises(psycopg2.OperationalError, match="unsupported startup parameter"):
        psycopg2.connect(**url.libpq)


def test_a_server_process_it_lends_may_carry_on_what_another_client_has_set(pooled: StorageURL) -> None:
    """Why the storage may not rely on the state of a session."""
    with ExitStack() as stack:
        first, second = (psycopg2.connect(**pooled.libpq) for _ in range(2))
        for connection in (first, second):
            stack.callback(connection.close)
            connection.autocommit = True
        with first.cursor() as cursor:
            cursor.execute("set work_mem = '1234kB'")
        with second.cursor() as cursor:
            cursor.execute("show work_mem")
            assert cursor.fetchall() == [("1234kB",)]
