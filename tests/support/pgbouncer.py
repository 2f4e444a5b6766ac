"""A real PgBouncer in front of a PostgreSQL of the tests, where Debian's package ``pgbouncer`` is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg2
import pytest

from studies.storage.embedded.binaries import Account, account_for
from studies.storage.url import StorageURL
from tests.support.postgres import free_port


@dataclass(frozen=True, kw_only=True)
class PgBouncer:
    """A running PgBouncer."""

    url: str
    """The storage URL of the same database, by way of PgBouncer; password included."""
    log: Path
    """What it says; it names there what it refuses."""


@contextmanager
def start_pgbouncer(
    postgres_url: str, *, pool_mode: str = "transaction", default_pool_size: int = 20, max_client_conn: int = 100
) -> Iterator[PgBouncer]:
    """Start PgBouncer on a free port of 127.0.0.1, gone at the end; skip the test where it is not installed.

    It is configured as it comes: a start-up parameter that it refuses by default is refused here.

    Args:
        postgres_url: host, port, user and password of the server; every database of it is reached.
        pool_mode: session, transaction or statement.
        default_pool_size: connections to the server, for each database and user.
        max_client_conn: connections of clients; more are refused.
    """
    program = shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("no pgbouncer is installed (apt-get install pgbouncer)")
    server = StorageURL.parse(postgres_url)
    directory = Path(tempfile.mkdtemp(prefix="studyhall-pgbouncer-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        account = account_for(directory / "data")  # as root PgBouncer refuses to run
        [(host, server_port)], port = server.hosts, free_port()
        options = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            # The plain password: with it PgBouncer can log in to the server too.
            "auth_file": _secret(account, directory / "users", f"{_quoted(server.user)} {_quoted(server.password)}\n"),
            "pool_mode": pool_mode,
            "default_pool_size": default_pool_size,
            "max_client_conn": max_client_conn,
            # As deploy/README.md advises: else it looks only 15 s later whether a server is back.
            "server_login_retry": 1,
        }
        lines = ["[databases]", f"* = host={host} port={server_port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in options.items()]
        settings = _secret(account, directory / "pgbouncer.ini", "\n".join(lines) + "\n")
        running = PgBouncer(url=_url(server, port), log=directory / "log")
        with running.log.open("wb") as log:
            process = subprocess.Popen(
                [program, str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **account.surroundings
            )
        try:
            _wait_for(running, process)
            yield running
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(directory)


def _url(server: StorageURL, port: int) -> str:
    login = f"{quote(server.user or '', safe='')}:{quote(server.password or '', safe='')}"
    return f"postgresql://{login}@127.0.0.1:{port}/{server.database}"


def _wait_for(running: PgBouncer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            psycopg2.connect(**StorageURL.parse(running.url).libpq).close()
            return
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(running.log.read_text()[-2000:]) from None
        time.sleep(0.02)


def _secret(account: Account, path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return account.own(path)


def _quoted(text: str | None) -> str:
    return '"' + (text or "").replace('"', '""') + '"'
