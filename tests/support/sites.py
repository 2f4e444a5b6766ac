"""``studyhall serve`` for tests: started, asked over HTTP as anybody, and gone at the end."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg2

from studies.storage.url import StorageURL
from tests.support.waiting import eventually

COMMAND = str(Path(sys.executable).with_name("studyhall"))
Rows = dict[str, list[str]]


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a command, without what the person or machine has set; for fixtures of a whole module."""
    private = ("STUDYHALL_", "PG", "OPTUNA", "MLFLOW")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    return {**kept, "COLUMNS": "80", "CUDA_VISIBLE_DEVICES": "", **more}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a site said."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: str


class Hall:
    """A running ``studyhall serve``, whose two sites have answered."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err
        eventually(lambda: "MLflow " in self.said or process.poll() is not None, "the sites answer")
        assert process.poll() is None, self.complaints
        rows = dict(line.split(maxsplit=1) for line in self.said.splitlines())
        # It may listen everywhere, and tell the name of this machine, by which not every machine finds itself.
        self.dashboard, self.mlflow = (
            urlsplit(rows[site])._replace(netloc=f"127.0.0.1:{urlsplit(rows[site]).port}").geturl()
            for site in ("optuna-dashboard", "MLflow")
        )
        """As printed: with the token, unless there is none."""

    def of_study(self, site: str, study: str) -> str:
        """The address of a study's page, as `serve NAME` prints it."""
        return urlsplit(site)._replace(path=f"/study/{study}").geturl()

    @property
    def said(self) -> str:
        """Its standard output."""
        return self._out.read_text()

    @property
    def complaints(self) -> str:
        """Its standard error."""
        return self._err.read_text()

    def children(self, module: str = "") -> list[psutil.Process]:
        """The processes that it has started, or those of ``module``."""
        return [child for child in psutil.Process(self.process.pid).children() if module in " ".join(child.cmdline())]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal. Returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=300)


@contextmanager
def serving(folder: Path, environment: Mapping[str, str], *arguments: str | Path) -> Iterator[Hall]:
    """Start ``serve`` in ``folder``; unless the test has ended it, it ends in order."""
    out, err = folder / "serve.out", folder / "serve.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [COMMAND, "serve", *map(str, arguments)],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        hall = Hall(process, out, err)
        yield hall
        if process.poll() is None:
            assert hall.stop() == 130, hall.complaints
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=300)


def ask(
    address: str,
    method: str,
    path: str,
    *,
    login: str | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> Answer:
    """Ask a site.

    Args:
        address: as ``serve`` printed it; its token is sent, unless there is a login.
        method: of HTTP.
        path: sent as it is.
        login: ``name:password``; empty: nothing is sent.
        body: of JSON.
        headers: further ones.
        timeout: in seconds.
    """
    parts = urlsplit(address)
    all_headers = {"Content-Type": "application/json", **(headers or {})}
    if login is None and parts.query:
        all_headers.setdefault("Authorization", f"Bearer {parts.query.removeprefix('token=')}")
    elif login:
        all_headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout)) as connection:
        connection.request(method, path, body, all_headers)
        response = connection.getresponse()
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=response.read().decode(errors="replace"),
        )


def without_token(address: str) -> str:
    """An address without its token."""
    return urlsplit(address)._replace(path="", query="").geturl()


def contents(url: StorageURL) -> Rows:
    """Every row of every table of a database, as text."""
    with closing(psycopg2.connect(**url.libpq)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables"
            " where schemaname not in ('pg_catalog', 'information_schema') order by 1"
        )
        found: Rows = {}
        for (table,) in cursor.fetchall():
            cursor.execute(f"select t::text from {table} t order by 1")
            found[table] = [row for (row,) in cursor.fetchall()]
    return found


def mlflow_database(url: StorageURL) -> StorageURL:
    """MLflow's database beside a storage."""
    return replace(url, database=f"{url.database}_mlflow")
