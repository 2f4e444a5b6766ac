"""What every test may rely on: a scrubbed environment, and the command as it was installed."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg2
import pytest

from studies import PostgresStorage
from studies.storage.embedded.server import EmbeddedServer
from studies.storage.url import StorageURL
from tests.postgres import DEBIAN_15, start_postgres

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the person or machine has set reaches a test."""
    for name in list(os.environ):
        if name.startswith(("STUDYHALL_", "PG", "OPTUNA", "MLFLOW")) and name != "STUDYHALL_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real MNIST; without it the test is skipped, and fails under CI."""
    folder = Path(os.environ.get("STUDYHALL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        reason = f"no MNIST in {folder}; set STUDYHALL_TEST_DATA"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder.resolve()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A PostgreSQL for the tests, on which each test has databases of its own."""

    url: StorageURL

    @contextmanager
    def database(self) -> Iterator[StorageURL]:
        """A new, empty database, gone at the end with whoever is still connected."""
        name = f"test_{uuid.uuid4().hex}"
        self._execute(f"create database {name}")
        try:
            yield replace(self.url, database=name)
        finally:
            self._execute(f"drop database {name} with (force)")
            self._execute(f"drop database if exists {name}_mlflow with (force)")  # that of its mirror

    def _execute(self, sql: str) -> None:
        connection = psycopg2.connect(**self.url.libpq)
        try:
            connection.autocommit = True
            connection.cursor().execute(sql)
        finally:
            connection.close()


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A home of Studyhall's for the tests of one process: its embedded server, its data directory."""
    # Not tmp_path: as root the server's own account has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="studyhall-home-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    EmbeddedServer(folder).stop(force=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def embedded_server(home: Path) -> Iterator[Server]:
    """The embedded PostgreSQL 18."""
    server = EmbeddedServer(home)
    yield Server(url=server.start())
    server.close()


@pytest.fixture(scope="session")
def separate_server() -> Iterator[Server]:
    """A separately started PostgreSQL: Debian's 15 where it is installed, else the wheel's 18."""
    with start_postgres(DEBIAN_15 if DEBIAN_15.is_dir() else None) as postgres:
        yield Server(url=StorageURL.parse(postgres.url))


@pytest.fixture(params=["embedded", "separate"])
def empty_database(request: pytest.FixtureRequest) -> Iterator[StorageURL]:
    """An empty database, on the embedded and on the separate server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    with server.database() as url:
        yield url


@pytest.fixture
def storage(empty_database: StorageURL) -> Iterator[PostgresStorage]:
    """A storage with its tables, on the embedded and on the separate server in turn."""
    storage = PostgresStorage(empty_database)
    yield storage
    storage.close()
