"""What a person reads when a real server refuses, or none answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy

from studies.storage.url import StorageURL, connection_error
from tests.support.postgres import DEBIAN_15, PASSWORD, Postgres, start_postgres


@pytest.fixture(scope="module", params=["wheel", pytest.param("debian-15", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    if request.param == "debian-15" and not DEBIAN_15.is_dir():
        pytest.skip(f"no PostgreSQL in {DEBIAN_15}")
    settings = {"max_connections": "5", "superuser_reserved_connections": "1"}
    with start_postgres(DEBIAN_15 if request.param == "debian-15" else None, **settings) as running:
        yield running


def refusal(text: str) -> str:
    """The message for a URL that does not work, the same by psycopg2 and by SQLAlchemy."""
    url = StorageURL.parse(text)
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(**url.libpq).close()
    engine = sqlalchemy.create_engine(url.sqlalchemy)
    with pytest.raises(sqlalchemy.exc.OperationalError) as wrapped:
        engine.connect()
    engine.dispose()
    message = str(connection_error(url, caught.value))
    assert message == str(connection_error(url, wrapped.value))
    assert "\n" not in message
    assert url.password is None or url.password not in message
    return message


def test_the_right_password_connects_whatever_it_holds(server: Postgres) -> None:
    for text in (server.url, f"postgresql://postgres:{PASSWORD}@127.0.0.1:{server.port}/postgres"):
        psycopg2.connect(**StorageURL.parse(text).libpq).close()
        engine = sqlalchemy.create_engine(StorageURL.parse(text).sqlalchemy)
        engine.connect().close()
        engine.dispose()


def test_a_wrong_password_says_where_to_set_it(server: Postgres) -> None:
    assert refusal(server.url_with(password="hunter2")) == (
        f"password authentication failed for user 'postgres' at 127.0.0.1 port {server.port}: "
        "set the right password in the URL, PGPASSWORD or ~/.pgpass"
    )


def test_a_missing_password_says_where_to_set_it(server: Postgres, tmp_path: Path) -> None:
    said = refusal(f"postgresql://postgres@127.0.0.1:{server.port}/postgres?passfile={tmp_path}/none")
    assert said.endswith("asks for a password: set it in the URL, PGPASSWORD or ~/.pgpass")


def test_a_missing_database_says_how_to_create_it(server: Postgres) -> None:
    said = refusal(server.url_with(database="studies"))
    assert said.startswith(f"database 'studies' does not exist at 127.0.0.1 port {server.port}: create it (createdb")
    assert said.endswith(f"or correct postgresql://postgres:***@127.0.0.1:{server.port}/studies")


def test_a_server_that_is_full_says_so(server: Postgres) -> None:
    url = StorageURL.parse(server.url)
    with ExitStack() as stack:
        for _ in range(5):
            stack.callback(psycopg2.connect(**url.libpq).close)
        said = refusal(server.url)
    assert said.startswith(f"too many connections at 127.0.0.1 port {server.port}: end some")


def test_ssl_where_there_is_none_says_what_to_change(server: Postgres) -> None:
    assert "does not speak SSL: switch it on there" in refusal(f"{server.url}?sslmode=require")


def test_a_server_that_wants_ssl_says_what_to_add(server: Postgres) -> None:
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(re.sub(r"^host ", "hostssl ", before, flags=re.MULTILINE))
    server.reload()
    try:
        assert "refuses unencrypted connections: add sslmode=require" in refusal(server.url)
    finally:
        rules.write_text(before)
        server.reload()


def test_a_stopped_server_says_that_none_answers(server: Postgres) -> None:
    server.kill()
    try:
        assert refusal(server.url) == (
            f"no PostgreSQL answers at 127.0.0.1 port {server.port}: start it, or correct "
            f"postgresql://postgres:***@127.0.0.1:{server.port}/postgres; see: pg_isready -h 127.0.0.1 -p {server.port}"
        )
    finally:
        server.start()


def test_a_socket_directory_without_a_server_says_that_none_answers(tmp_path: Path) -> None:
    assert refusal(f"postgresql:///d?host={tmp_path}").startswith(f"no PostgreSQL answers at {tmp_path} port 5432")


def test_an_unknown_host_is_named() -> None:
    assert refusal("postgresql://u:secret@no-such-host.invalid/d").startswith(
        "host 'no-such-host.invalid' is not known"
    )


def test_an_unknown_service_is_named() -> None:
    url = StorageURL.parse("postgresql://?service=studies")
    with pytest.raises(psycopg2.Error) as caught:
        psycopg2.connect(**url.libpq)
    assert "service 'studies' is in no service file" in str(connection_error(url, caught.value))
