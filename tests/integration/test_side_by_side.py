"""Stock Optuna's workers, its command line and optuna-dashboard on a study that our worker runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest
from optuna.trial import TrialState, create_trial

from studies import PostgresStorage, StudySpec
from studies.storage.records import StudyRecord
from studies.storage.url import StorageURL
from studies.trial import Trial
from tests.conftest import Server
from tests.support.postgres import free_port
from tests.support.waiting import eventually
from tests.support.worker import worker_on

pytestmark = pytest.mark.slow

TRIALS = 12
STOCK = 3
SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}

STOCK_WORKER = """
import json, sys, optuna
from optuna.storages import RDBStorage
study = optuna.load_study(study_name="study", storage=RDBStorage(sys.stdin.readline().strip()))

def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 0)
    trial.should_prune()
    trial.set_user_attr("by", "stock")
    return x

study.optimize(objective, n_trials=3)
seen = {t.number: t.datetime_start.astimezone().timestamp() for t in study.trials}
print(json.dumps(seen))
"""


@pytest.fixture
def database(separate_server: Server) -> Iterator[StorageURL]:
    with separate_server.database() as url:
        yield url


@pytest.fixture
def storage(database: StorageURL) -> Iterator[PostgresStorage]:
    with closing(PostgresStorage(database)) as storage:
        yield storage


@pytest.fixture
def record(storage: PostgresStorage) -> StudyRecord:
    data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": TRIALS}}
    return storage.create_study(StudySpec.from_dict(data))[0]


def ours(url: StorageURL, record: StudyRecord, results: Path, gate: threading.Event) -> str:
    """Run our worker; from its second trial on it waits for ``gate``. Returns why it ended."""

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 0)
        if trial.number > 0:
            gate.wait()
        return x

    with closing(PostgresStorage(url)) as storage:
        storage.workers.register([record], worker_id="ours", host="host", pid=1, device="cpu")
        return worker_on(storage, record, objective, results, worker_id="ours", lease_seconds=1).run()


def stock(url: StorageURL, *argv: str, time_zone: str = "UTC", stdin: str = "") -> str:
    """The standard output of a program of stock Optuna's."""
    environment = {**os.environ, "TZ": time_zone, "OPTUNA_STORAGE": url.sqlalchemy}
    done = subprocess.run(argv, env=environment, input=stdin, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli(url: StorageURL, *argv: str) -> Any:
    program = str(Path(sys.executable).with_name("optuna"))
    return json.loads(stock(url, program, *argv, "-f", "json"))


def test_stock_workers_and_commands_share_a_running_study_and_its_budget(
    database: StorageURL, storage: PostgresStorage, record: StudyRecord, tmp_path: Path
) -> None:
    began, gate = time.time(), threading.Event()
    optuna_program = str(Path(sys.executable).with_name("optuna"))
    with ThreadPoolExecutor() as pool:
        try:
            ended = pool.submit(ours, database, record, tmp_path, gate)
            eventually(lambda: storage.status(record).trials["running"] == 1 and storage.status(record).finished == 1)
            zones = ("UTC", "America/New_York")
            worker = (sys.executable, "-W", "ignore", "-c", STOCK_WORKER)
            # Each sees our trials, too, and at the same times, whatever its own time zone is.
            workers = [
                pool.submit(stock, database, *worker, time_zone=zone, stdin=database.sqlalchemy + "\n")
                for zone in zones
            ]
            for answer in workers:
                seen = json.loads(answer.result())
                assert {"0", "1"} <= seen.keys()
                assert all(began - 2 < started < time.time() + 2 for started in seen.values())
            # Asked for, never told: its worker is at work, as far as anybody knows.
            asked = cli(database, "ask", "--study-name", "study", "--search-space", space())
            told = cli(database, "ask", "--study-name", "study", "--search-space", space())
            stock(
                database, optuna_program, "tell", "--study-name", "study",
                "--trial-number", str(told["number"]), "--values", "0.5",
            )  # fmt: skip
            assert [study["name"] for study in cli(database, "studies")] == ["study"]
            numbers = [trial["number"] for trial in cli(database, "trials", "--study-name", "study")]
            assert numbers == list(range(2 + len(zones) * STOCK + 2))
            assert cli(database, "best-trial", "--study-name", "study")["number"] in numbers
            time.sleep(1.5)  # longer than our worker's lease
        finally:
            gate.set()
        # Its place in the budget is kept; ours waits for it.
        eventually(lambda: storage.status(record).finished == TRIALS - 1)
        assert storage.trial(record, asked["number"]).state == TrialState.RUNNING
        assert not ended.done()
        stock(
            database, optuna_program, "tell", "--study-name", "study",
            "--trial-number", str(asked["number"]), "--values", "0.5",
        )  # fmt: skip
        assert ended.result(timeout=300) == "complete"
    trials = storage.trials(record)
    assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(TRIALS)]
    assert sum(trial.user_attrs.get("by") == "stock" for trial in trials) == len(zones) * STOCK
    rows = storage.database.execute("select datetime_start as start, datetime_complete as complete from trials")
    for row in rows:
        start, complete = (row[key].replace(tzinfo=UTC).timestamp() for key in ("start", "complete"))
        assert began - 2 < start <= complete < time.time() + 2
    for trial in trials:
        assert trial.datetime_start
        assert began - 2 < trial.datetime_start.timestamp() < time.time() + 2


def space() -> str:
    return json.dumps({name: json.loads(optuna.distributions.distribution_to_json(d)) for name, d in SPACE.items()})


def test_the_dashboard_shows_a_study_while_it_runs(
    database: StorageURL, storage: PostgresStorage, record: StudyRecord, tmp_path: Path
) -> None:
    gate, port = threading.Event(), free_port()
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    log = tmp_path / "log"

    def fetch(path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=300) as answer:
            return bytes(answer.read())

    def is_up() -> bool:
        assert dashboard.poll() is None, log.read_text()
        try:
            return bool(fetch("/api/meta"))
        except OSError:
            return False

    def states() -> list[str]:
        shown = json.loads(fetch(f"/api/studies/{record.study_id}?after=0"))
        return [trial["state"] for trial in sorted(shown["trials"], key=lambda trial: trial["number"])]

    with ThreadPoolExecutor() as pool, log.open("w") as output:
        argv = [program, database.sqlalchemy, "--port", str(port), "--host", "127.0.0.1"]
        dashboard = subprocess.Popen(argv, stdout=output, stderr=output)
        try:
            ended = pool.submit(ours, database, record, tmp_path, gate)
            eventually(lambda: storage.status(record).finished == 1 and storage.status(record).trials["running"] == 1)
            eventually(is_up)
            assert b"<html" in fetch("/dashboard/").lower()
            (listed,) = json.loads(fetch("/api/studies"))["study_summaries"]
            assert listed["study_name"] == "study"
            shown = json.loads(fetch(f"/api/studies/{record.study_id}?after=0"))
            assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Running"]
            started = datetime.fromisoformat(shown["trials"][0]["datetime_start"]).timestamp()
            assert abs(time.time() - started) < 1200  # time zones differ by more
            gate.set()
            assert ended.result(timeout=300) == "complete"
            # It remembers trials for two to ten seconds.
            eventually(lambda: states() == ["Complete"] * TRIALS)
        finally:
            gate.set()
            dashboard.kill()
            dashboard.wait()


def test_a_writer_of_local_times_is_refused(
    database: StorageURL, storage: PostgresStorage, record: StudyRecord
) -> None:
    local = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=5)
    with closing(psycopg2.connect(**database.libpq)) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.Error, match="Optuna 4 and older write local times; use Optuna 5"):
            cursor.execute(
                "insert into trials (number, study_id, state, datetime_start) values (0, %s, 'RUNNING', %s)",
                (record.study_id, local),
            )
        connection.rollback()
    assert storage.trials(record) == []


def test_stock_optuna_may_add_a_trial_of_long_ago(
    database: StorageURL, storage: PostgresStorage, record: StudyRecord
) -> None:
    stock_storage = optuna.storages.RDBStorage(database.sqlalchemy)
    try:
        study = optuna.load_study(study_name="study", storage=stock_storage)
        trial = create_trial(value=0.5, params={"x": 0.5}, distributions=SPACE)
        for hours in (5, 24 * 30):
            trial.datetime_start = datetime.now() - timedelta(hours=hours)
            trial.datetime_complete = trial.datetime_start + timedelta(seconds=1)
            study.add_trial(trial)
    finally:
        stock_storage.engine.dispose()
    added = storage.trials(record)
    assert [trial.value for trial in added] == [0.5, 0.5]
    assert added[1].datetime_start == trial.datetime_start
