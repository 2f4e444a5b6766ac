"""A separately started PostgreSQL for tests, on 127.0.0.1 with a password: to stop, restart and kill."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg2

from studies.storage.embedded.binaries import Account, account_for, find_binaries
from tests.support.waiting import GUARD

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
PASSWORD = "p@ss:/#?% wörd"
"""Every character that a careless URL trips over."""


def _scratch() -> Path:
    memory = Path("/dev/shm")
    if memory.is_dir():
        system = os.statvfs(memory)
        if system.f_bavail * system.f_frsize > 4 * 2**30 and not system.f_flag & os.ST_NOEXEC:
            return memory
    return Path("/tmp")


SCRATCH = _scratch()
"""Where clusters are made: in memory if it has room for those of six processes. Copying a database of 300 files
costs a tenth there."""


class Postgres:
    """A server over ``data``. Its superuser is ``postgres``, its database ``postgres``."""

    def __init__(self, bin_dir: Path, data: Path, account: Account, settings: Mapping[str, str]) -> None:
        self.data = data
        self.port = free_port()
        self._account = account
        self._log = data.parent / "log"
        self._argv = [str(bin_dir / "postgres"), "-D", str(data), "-p", str(self.port)]
        for name, value in {
            "unix_socket_directories": "",
            "listen_addresses": "127.0.0.1",
            **settings,
        }.items():
            self._argv += ["-c", f"{name}={value}"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The storage URL, password included."""
        return self.url_with()

    def url_with(self, user: str = "postgres", password: str = PASSWORD, database: str = "postgres") -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start and wait until it takes connections; after ``kill``, until the recovery is done."""
        deadline = time.monotonic() + GUARD
        while True:
            if self._process is None:
                with self._log.open("ab") as log:
                    self._process = subprocess.Popen(
                        self._argv,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        **self._account.surroundings,
                    )
            try:
                psycopg2.connect(self.url, connect_timeout=2).close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise RuntimeError(self._log.read_text()[-2000:]) from None
            if self._process.poll() is not None:
                self._process = None  # a killed server's last backend may still have held the directory
            time.sleep(0.02)

    def execute(self, *statements: str) -> None:
        """Send statements as its superuser, each in a transaction of its own."""
        connection = psycopg2.connect(self.url)
        try:
            connection.autocommit = True
            for statement in statements:
                connection.cursor().execute(statement)
        finally:
            connection.close()

    def stop(self) -> None:
        """Shut down cleanly, ending every session ("fast")."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=300)
            self._process = None

    def kill(self) -> None:
        """Kill with -9, as an out-of-memory killer or a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=300)
            self._process = None

    def reload(self) -> None:
        """Read postgresql.conf and pg_hba.conf again."""
        assert self._process is not None
        told = self._log.stat().st_size
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + GUARD
        while b"reloading configuration files" not in self._log.read_bytes()[told:]:
            assert time.monotonic() < deadline, "the server did not read its files again"
            time.sleep(0.01)
        time.sleep(0.05)  # it logs before it reads

    def restart(self) -> None:
        self.stop()
        self.start()


@contextmanager
def start_postgres(
    bin_dir: Path | None = None, *, auth: str = "scram-sha-256", parent: Path = SCRATCH, **settings: str
) -> Iterator[Postgres]:
    """A new cluster with a running server, gone at the end.

    Args:
        bin_dir: where its programs are, e.g. ``DEBIAN_15``; the wheel's PostgreSQL 18 when left out.
        auth: how a client on 127.0.0.1 shows who it is.
        parent: the folder in which its own is made.
        settings: of postgresql.conf, by name.
    """
    directory = Path(tempfile.mkdtemp(prefix="studyhall-postgres-", dir=parent))
    try:
        directory.chmod(0o755)  # as root, the server's account has to reach its cluster
        account = account_for(directory / "data")
        bin_dir = bin_dir or find_binaries(account, directory)
        data, password = account.own(_mkdir(directory / "data")), directory / "password"
        password.write_text(PASSWORD)
        account.own(password)
        options = [
            "-U",
            "postgres",
            "-A",
            auth,
            f"--pwfile={password}",
            "--encoding=UTF8",
            "--locale=C",
            "-N",
        ]
        subprocess.run(
            [bin_dir / "initdb", "-D", data, *options],
            check=True,
            capture_output=True,
            **account.surroundings,
        )
        server = Postgres(bin_dir, data, account, {"fsync": "off", **settings})
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


def _mkdir(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
