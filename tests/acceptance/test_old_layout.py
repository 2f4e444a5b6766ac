"""A database of the time before the modules moved: its studies are shown, extended and worked on."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.acceptance.conftest import Shell

pytestmark = pytest.mark.both_servers

OLD = Path(__file__).with_name("old_layout.sql")
"""A dump by PostgreSQL 15. It holds the preset ``digits`` as it was created, and ``old``, a study with a trial in
each state: 0 complete, 1 failed, 2 pruned, 3 running on a worker that was killed, 4 waiting with its parameters."""
SCRIPT = """import os
import time

import optuna


def objective(trial):
    x = trial.params["x"]
    trial.report(x, 0, loss=1 - x)
    if trial.number == 1:
        raise ValueError("too wide")
    if trial.number == 2:
        raise optuna.TrialPruned
    while trial.number == 3 and os.path.exists("held"):
        time.sleep(0.05)
    return x
"""
"""Of the study ``old``, to the byte: the study holds its digest."""


@pytest.fixture
def shell(empty_database: StorageURL, tmp_path: Path, home: Path) -> Shell:
    """On the restored database, in a folder with the study's script."""
    with closing(psycopg2.connect(**empty_database.libpq)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(OLD.read_text())
        # A server that has just started lets no lease expire for as long as it lasts.
        cursor.execute("update studyhall.leases set seconds = 0 where held")
    (tmp_path / "train.py").write_text(SCRIPT)
    return Shell(empty_database, tmp_path, home)


def test_studies_of_the_old_layout_are_shown_extended_and_worked_on(shell: Shell) -> None:
    shell.run("db", "upgrade")
    assert {study["name"] for study in json.loads(shell.data("ls", "--format", "json"))} == {"digits", "old"}
    counts = json.loads(shell.data("status", "old", "--format", "json"))["trials"]
    assert counts == {"complete": 1, "pruned": 1, "running": 1, "waiting": 1, "fail": 1}
    assert "too wide" in shell.data("show", "old", "1")

    assert shell.run("extend", "digits", "--trials", "41").returncode == 0
    assert json.loads(shell.data("status", "digits", "--format", "json"))["budget"] == 41

    with closing(PostgresStorage(shell.url, create=False)) as storage:
        record = storage.find_study("old")
        running = storage.trials(record)[3]
        done = shell.run("work", "old", "--workers", "1", "--objective", "train.py:objective")
        assert done.returncode == 0, done.stderr
        trials = storage.trials(record)
        assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "PRUNED", *["COMPLETE"] * 4]
        assert trials[3].params == running.params
        assert trials[4].params == {"x": 0.25, "kind": "b"}
        assert all(trial.value == trial.params["x"] for trial in trials[3:])
        best = json.loads(shell.data("best", "old", "--format", "json"))
        assert best["value"] == max(trial.params["x"] for trial in trials if trial.value is not None)
