"""A person's session: a terminal with the installed command, and a storage of one's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support import command
from tests.support.command import Command
from tests.support.waiting import GUARD

SCRIPT = """
import os
import subprocess
import threading
import time

import optuna

kept = None


def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    for step in range(5):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        while os.path.exists(f"before step {step}"):  # a file that a test removes
            time.sleep(0.05)
        trial.report((x - 2) ** 2 + 5 - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return (x - 2) ** 2


def failing(trial):
    raise RuntimeError("no luck today")


def steps(trial):
    kept = trial.restore()
    for step in range(1 if kept is None else kept.step + 1, 11):
        trial.report(trial.params["x"] / step, step)
        trial.checkpoint(step, b"so far")
        if trial.should_prune():
            raise trial.Pruned
    return trial.params["x"] / 10


def diverging(trial):
    return float("nan") if trial.number < 2 else 1.0


def two(trial):
    return 1.0, trial.suggest_float("x", 0, 1)


def talkative(trial):
    print("hello from the objective")
    return 1.0


def keeping_a_file_open(trial):
    global kept
    kept = kept or open("kept.txt", "w")
    kept.write("a line\\n")
    return 1.0


def keeping_a_file_and_a_thread(trial):
    if not kept:
        threading.Thread(target=time.sleep, args=(600,)).start()
    return keeping_a_file_open(trial)


def leaving_a_process(trial):
    sleeping = subprocess.Popen(["sleep", "600"])
    print("left", sleeping.pid)
    return 1.0


def dying(trial):
    if trial.number == 1:
        os.kill(os.getpid(), 9)
    return 1.0


def equal(trial):
    trial.suggest_float("x", -10, 10)
    return 1.0
"""


class Shell:
    """Runs ``studyhall`` with one storage, in one folder."""

    def __init__(self, url: StorageURL, folder: Path, home: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "STUDYHALL_HOME": str(home), "COLUMNS": "80"}
        self.use(url)
        self.command = command.COMMAND

    def use(self, url: StorageURL) -> None:
        """Run commands with this storage from now on."""
        self.url = url
        self.environment["STUDYHALL_STORAGE"] = url.sqlalchemy

    def run(self, *args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        with self.start(*args, **environment) as process:
            try:
                out, err = process.communicate(timeout=2 * GUARD)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *args: str | Path, **environment: str) -> Command | subprocess.Popen[str]:
        """Start the command."""
        return command.start([self.command, *map(str, args)], cwd=self.folder, env={**self.environment, **environment})

    def data(self, *args: str | Path) -> str:
        """The standard output of a command that must succeed."""
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def shell(separate_server: Server, tmp_path: Path, home: Path) -> Iterator[Shell]:
    """A shell in an empty folder but for ``script.py``, on a database of the separate server that has the tables."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with separate_server.database(tables=True) as url:
        yield Shell(url, tmp_path, home)


@pytest.fixture
def look(shell: Shell) -> Iterator[Callable[[], PostgresStorage]]:
    """Open the shell's storage, to see what a command left there."""
    opened: list[PostgresStorage] = []

    def look() -> PostgresStorage:
        opened.append(PostgresStorage(shell.url))
        return opened[-1]

    yield look
    for storage in opened:
        storage.close()
