"""What every test may rely on: a scrubbed environment, and the command as it was installed."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import psycopg2
import pytest

from studies import PostgresStorage
from studies.storage.embedded.server import EmbeddedServer
from studies.storage.url import StorageURL
from tests.support.postgres import DEBIAN_15, SCRATCH, start_postgres

ROOT = Path(__file__).parents[1]

gc.disable()  # All modules are about to be imported: a quarter of that time would go into collections without garbage.


# A shell starts what it puts in the background with Ctrl-C ignored, and every command that a test interrupts would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_collection_finish() -> None:
    """Keep half a million imported objects out of each collection to come, which would take 0.3 s."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that the person, the machine or a test before has set reaches a test."""
    for name in list(os.environ):
        if name.startswith(("STUDYHALL_", "PG", "OPTUNA", "MLFLOW")) and name != "STUDYHALL_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mask = os.umask(0o022)  # The command in this process, and what it starts, may close files to others.
    yield
    os.umask(mask)


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the real MNIST; without it the test is skipped, and fails under CI."""
    folder = Path(os.environ.get("STUDYHALL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        reason = f"no MNIST in {folder}; set STUDYHALL_TEST_DATA"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    own = tmp_path_factory.mktemp("data")  # gets prepared data
    (own / "MNIST").symlink_to((folder / "MNIST").resolve())
    return own


class Server:
    """A PostgreSQL for the tests, on which each test has databases of its own."""

    def __init__(self, url: StorageURL) -> None:
        self.url = url

    @contextmanager
    def database(self, *, tables: bool = False) -> Iterator[StorageURL]:
        """A new database, gone at the end with whoever is still connected.

        Args:
            tables: whether it has Studyhall's tables; otherwise it is empty.
        """
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"create database {name} template {self._template if tables else 'template1'} strategy file_copy")
        try:
            yield replace(self.url, database=name)
        finally:
            mirrored = f"drop database if exists {name}_mlflow with (force)"
            self.execute(f"drop database {name} with (force)", mirrored)

    @cached_property
    def _template(self) -> str:
        """A database with the tables, to copy: making them takes ten times as long."""
        name = f"template_{uuid.uuid4().hex}"
        self.execute(f"create database {name}")
        PostgresStorage(replace(self.url, database=name)).close()
        return name

    def execute(self, *statements: str) -> None:
        """Send statements as its superuser, each in a transaction of its own."""
        with closing(psycopg2.connect(**self.url.libpq)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            for statement in statements:
                cursor.execute(statement)


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A home of Studyhall's for the tests of one process: its embedded server, its data directory."""
    # Not tmp_path: as root the server's own account has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="studyhall-home-", dir=SCRATCH))
    folder.chmod(0o755)
    yield folder
    EmbeddedServer(folder).stop(force=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def embedded_server(home: Path) -> Iterator[Server]:
    """The embedded PostgreSQL 18."""
    embedded = EmbeddedServer(home)
    server = Server(embedded.start())
    server.execute("alter system set fsync = off", "select pg_reload_conf()")  # no test cuts the power
    yield server
    embedded.close()


@pytest.fixture(scope="session")
def separate_server() -> Iterator[Server]:
    """A separately started PostgreSQL: Debian's 15 where it is installed, else the wheel's 18."""
    with start_postgres(DEBIAN_15 if DEBIAN_15.is_dir() else None) as postgres:
        yield Server(StorageURL.parse(postgres.url))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m slow``, leave out a file that mentions no mark: importing all takes each process ten seconds."""
    if config.option.markexpr != "slow" or collection_path.suffix != ".py":
        return None
    return not any(mark in collection_path.read_text() for mark in ("slow", "both_servers")) or None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked ``both_servers`` on the separate server as well, where time does not matter."""
    if "server" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_servers"):
        servers = ["embedded", pytest.param("separate", marks=pytest.mark.slow)]
        metafunc.parametrize("server", servers, indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """The embedded server, or the one that the test is parametrized with."""
    server: Server = request.getfixturevalue(f"{getattr(request, 'param', 'embedded')}_server")
    return server


@pytest.fixture
def empty_database(server: Server) -> Iterator[StorageURL]:
    """A database without tables."""
    with server.database() as url:
        yield url


@pytest.fixture
def storage(server: Server) -> Iterator[PostgresStorage]:
    """A storage with its tables."""
    with server.database(tables=True) as url, closing(PostgresStorage(url)) as storage:
        yield storage
