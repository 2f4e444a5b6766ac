"""Whatever is called at the same time, in whatever order: no two calls wait for each other.

A short time here; 180 s of 24 processes with ``STUDYHALL_RANDOM_CALLS="24 180"``, as ``make faults`` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studies import PostgresStorage
from tests.integration.random_calls import spec

pytestmark = [pytest.mark.both_servers, pytest.mark.slow]

PROCESSES, SECONDS = map(int, os.environ.get("STUDYHALL_RANDOM_CALLS", "6 4").split())
SCRIPT = Path(__file__).with_name("random_calls.py")


def deadlocks(storage: PostgresStorage) -> int:
    """How many the server has ended in this database."""
    time.sleep(1.5)  # sessions tell their figures once a second
    sql = "select deadlocks from pg_stat_database where datname = current_database()"
    return int(storage.database.execute(sql)[0]["deadlocks"])


def test_random_calls_of_many_processes_meet_no_deadlock_and_keep_the_counts_right(storage: PostgresStorage) -> None:
    seed = int(time.time())
    print(f"seeds {seed} to {seed + PROCESSES - 1}")  # shown where the test fails
    storage.create_study(spec("study"))
    callers = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(seed + n), str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    try:
        for caller in callers:
            assert caller.stdin is not None
            caller.stdin.write(storage.location.sqlalchemy + "\n")
            caller.stdin.flush()
        done = [caller.communicate(timeout=SECONDS + 240) for caller in callers]
    finally:
        for caller in callers:
            caller.kill()
            caller.wait()
    assert [caller.returncode for caller in callers] == [0] * PROCESSES, [err for _, err in done]
    print(f"{sum(int(out) for out, _ in done)} calls")
    assert deadlocks(storage) == 0
    for name in storage.study_names():
        record = storage.find_study(name)
        counted = storage.database.rows("status", study_id=record.study_id)[0]
        trials = storage.trials(record)
        assert [trial.number for trial in trials] == list(range(len(trials)))
        for state in ("complete", "pruned", "running", "waiting", "fail"):
            assert counted[state] == sum(trial.state.name == state.upper() for trial in trials), state
