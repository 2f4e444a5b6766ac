"""A real MLflow server, as ``mlflow server`` starts it, on a database of PostgreSQL's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.postgres import free_port
from tests.support.waiting import GUARD


@dataclass
class MlflowServer:
    """A server, with what it started."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def mlflow_server(database: str, port: int | None = None, workers: int = 1) -> Iterator[MlflowServer]:
    """A server on the database (an SQLAlchemy URL), ready to answer."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(database, folder, port or free_port(), workers)
        try:
            yield server
        finally:
            server.stop()


def start(database: str, folder: str, port: int, workers: int = 1) -> MlflowServer:
    """Start a server, and wait until it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", str(workers), "--artifacts-destination", f"{folder}/artifacts"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": database,  # not in its arguments, where everybody could read it
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = MlflowServer(process, port)
    deadline = time.monotonic() + GUARD
    while True:
        try:
            with urllib.request.urlopen(f"{server.uri}/health", timeout=2):
                return server
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                server.stop()
                raise RuntimeError("mlflow server did not start") from None
            time.sleep(0.1)
