"""The tables through their versions: older ones are refused and upgraded, newer ones and Optuna 4's refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import click.testing
import optuna
import psycopg2
import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.cli import studyhall
from studies.storage import schema
from studies.storage.records import Attempt
from studies.storage.url import StorageURL
from studies.trial import Trial
from tests.support.worker import worker_on

pytestmark = pytest.mark.both_servers

Ask = Callable[..., click.testing.Result]
SPEC = StudySpec.from_dict(
    {
        "name": "old",
        "direction": "maximize",
        "objective": {"path": "objectives.mlp:MLP"},
        "budget": {"trials": 6, "max_failures": 4, "timeout": 1e8},
        "pruner": {"name": "none"},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    }
)


def execute(url: StorageURL, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of ``sql``, over a connection of its own."""
    with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def ask(empty_database: StorageURL) -> Ask:
    """Run ``studyhall`` with the empty database, within this process."""

    def ask(*command: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(studyhall, [*command, "--storage", empty_database.sqlalchemy])

    return ask


@pytest.fixture
def storage(empty_database: StorageURL) -> Iterator[PostgresStorage]:
    """On the database of which :func:`ask` asks."""
    with closing(PostgresStorage(empty_database)) as storage:
        yield storage


@pytest.fixture
def old_database(empty_database: StorageURL) -> StorageURL:
    """Tables of version 1 with a study that has a trial in each state: 0 complete, 1 failed, 2 running on a worker
    that is gone, 3 waiting, 4 pruned."""
    url = empty_database
    stock = optuna.storages.RDBStorage(url.sqlalchemy)
    execute(url, schema.migrations()[1])
    execute(url, "create table studyhall.version (version integer primary key, at timestamptz)")
    execute(url, "insert into studyhall.version values (1, now())")
    study = optuna.create_study(storage=stock, study_name="old", direction="maximize")
    study.set_user_attr("spec", SPEC.model_dump(exclude={"checkpoints"}, exclude_none=True))
    study.set_user_attr("spec_sha256", SPEC.sha256)
    study.enqueue_trial({"x": 0.5})
    for state in (TrialState.COMPLETE, TrialState.FAIL, None):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(0.25, 0)
        if state:
            study.tell(trial, 0.75 if state == TrialState.COMPLETE else None, state)
    study.enqueue_trial({"x": 0.125})
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED, intermediate_values={0: 0.5}))
    execute(
        url,
        "insert into studyhall.budgets (study_id, trials, max_failures, timeout_seconds) values (%(study)s, 6, 4, 1e8)",
        study=study._study_id,
    )
    execute(
        url,
        "insert into studyhall.workers (worker_id, study_id, host, pid, device, trial_id, seen_at)"
        " select 'gone', study_id, 'host', 7, 'cpu', trial_id, now() - interval '1 hour' from trials where number = 2",
    )
    execute(
        url,
        "insert into studyhall.leases (trial_id, worker_id, epoch, lost, expires_at)"
        " select trial_id, case number when 2 then 'gone' else 'other' end, 2, 1, now() - interval '1 hour'"
        " from trials where number < 3",
    )
    execute(
        url,
        "insert into studyhall.metrics (trial_id, step, name, value)"
        " select trial_id, 0, 'loss', number from trials where number < 3",
    )
    stock.engine.dispose()
    return url


def contents(url: StorageURL) -> dict[str, list[tuple[Any, ...]]]:
    """What version 1 holds, as later versions hold it too."""
    optunas = (
        *("studies", "study_directions", "study_user_attributes", "study_system_attributes", "trials"),
        *("trial_params", "trial_values", "trial_user_attributes", "trial_system_attributes"),
        *("trial_intermediate_values", "trial_heartbeats", "version_info", "alembic_version"),
    )
    found = {table: execute(url, f"select t::text from {table} t order by 1") for table in optunas}
    for table, columns in {
        "studyhall.metrics": "trial_id, step, name, value",
        "studyhall.budgets": "study_id, trials, max_failures, timeout_seconds, target, stopped",
        "studyhall.workers": "worker_id, host, pid, device, started_at, seen_at",
    }.items():
        found[table] = execute(url, f"select {columns} from {table} order by 1")
    found["studyhall.leases"] = execute(  # later versions have a row for each other trial as well
        url, "select trial_id, worker_id, epoch, lost, expires_at from studyhall.leases where epoch > 0 order by 1"
    )
    return found


COMMANDS = (
    *("ls", "status old", "best old", "trials old", "show old", "show old 0", "work old", "run digits"),
    *("create digits", "finalize old", "extend old --trials +1", "pause old", "resume old", "stop old"),
    *("cancel old 2", "enqueue old x=0.5", "retry old 1", "delete old --yes"),
)


def test_every_command_says_how_to_upgrade_older_tables_and_changes_nothing(old_database: StorageURL, ask: Ask) -> None:
    before = contents(old_database)
    for command in COMMANDS:
        done = ask(*command.split())
        assert (done.exit_code, done.stdout) == (1, ""), command
        assert f"its tables are version 1, this studyhall needs {schema.newest()}; " in done.stderr
        assert done.stderr.endswith("stop older workers and upgrade the tables: studyhall db upgrade\n")
    doctor = ask("doctor")
    assert doctor.exit_code == 1, doctor.stderr
    assert "→ studyhall db upgrade" in doctor.stdout, doctor.stderr
    assert contents(old_database) == before


def test_an_upgrade_keeps_everything_and_the_study_goes_on(old_database: StorageURL, ask: Ask, tmp_path: Path) -> None:
    before = contents(old_database)
    done = ask("db", "upgrade")
    assert (done.exit_code, done.stderr) == (0, f"upgraded the tables from version 1 to {schema.newest()}\n")
    assert contents(old_database) == before
    assert ask("status", "old").stdout.startswith("old: 2 of 6 trials done (1 complete, 1 pruned, 1 running, 1 waiting")

    execute(old_database, "update studyhall.leases set seconds = 0")  # however lately the tests' server began
    with closing(PostgresStorage(old_database)) as storage:
        record = storage.find_study("old")
        assert record.spec == SPEC
        storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")

        def objective(trial: Trial) -> float:
            trial.report(0.5, 1)
            return float(trial.params["x"])

        worker = worker_on(storage, record, objective, tmp_path)
        assert worker.run() == "complete"
        trials = storage.trials(record)
        assert [trial.state.name for trial in trials] == [
            *("COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "COMPLETE"),
        ]
        assert trials[2].intermediate_values == {0: 0.25, 1: 0.5}
        assert (trials[0].params, trials[3].params) == ({"x": 0.5}, {"x": 0.125})
        assert storage.leases.attempts(record)[2] == Attempt(worker="w", host="host", device="cpu", times=3)
        assert storage.metrics.last([trials[1]]) == {1: {"loss": 1.0}}


def test_upgrading_twice_is_no_error(old_database: StorageURL, ask: Ask) -> None:
    assert ask("db", "upgrade").exit_code == 0
    before = contents(old_database)
    done = ask("db", "upgrade")
    assert (done.exit_code, done.stderr) == (0, f"nothing to do: the tables are of version {schema.newest()}\n")
    assert contents(old_database) == before


def test_an_upgrade_of_no_tables_makes_them(empty_database: StorageURL, ask: Ask) -> None:
    done = ask("db", "upgrade")
    assert (done.exit_code, done.stderr) == (0, f"made the tables: version {schema.newest()}\n")
    with closing(PostgresStorage(empty_database, create=False)) as storage:
        assert storage.list_studies() == []


def test_an_upgrade_adds_our_tables_to_those_of_stock_optuna(empty_database: StorageURL, ask: Ask) -> None:
    stock = optuna.storages.RDBStorage(empty_database.sqlalchemy)
    optuna.create_study(storage=stock, study_name="stock")
    stock.engine.dispose()
    done = ask("db", "upgrade")
    assert (done.exit_code, done.stderr) == (0, f"made the tables: version {schema.newest()}\n")
    assert ask("status", "stock").exit_code == 0


@pytest.mark.slow
def test_four_upgrades_at_once_are_one(old_database: StorageURL) -> None:
    command = [Path(sys.executable).with_name("studyhall"), "db", "upgrade", "--storage", old_database.sqlalchemy]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = sorted(process.communicate(timeout=300)[1] for process in processes)
    assert [process.returncode for process in processes] == [0] * 4, said
    assert said == [
        *[f"nothing to do: the tables are of version {schema.newest()}\n"] * 3,
        f"upgraded the tables from version 1 to {schema.newest()}\n",
    ]
    assert execute(old_database, "select version from studyhall.version order by 1") == [
        (number,) for number in schema.migrations()
    ]


def test_an_upgrade_that_fails_changes_nothing(old_database: StorageURL, monkeypatch: pytest.MonkeyPatch) -> None:
    files = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: {**files, 3: files[3] + "; select 1 / 0"})
    before = contents(old_database)
    with pytest.raises(psycopg2.errors.DivisionByZero):
        schema.upgrade(old_database)
    assert contents(old_database) == before
    assert execute(old_database, "select version from studyhall.version") == [(1,)]


def test_newer_tables_are_refused_by_every_command(storage: PostgresStorage, ask: Ask) -> None:
    storage.database.execute("insert into studyhall.version values (999, now())")
    for command in (*COMMANDS, "db upgrade"):
        done = ask(*command.split())
        assert done.exit_code == 1, command
        assert (
            f"its tables are version 999, this studyhall knows {schema.newest()}; upgrade it: pip install -U studyhall"
            in done.stderr
        )


# Optuna 4


@pytest.fixture
def optuna_4_database(empty_database: StorageURL) -> StorageURL:
    """Tables as Optuna 4 leaves them: trials with the local times of Berlin, in winter, in summer, none."""
    stock = optuna.storages.RDBStorage(empty_database.sqlalchemy)
    study = optuna.create_study(storage=stock, study_name="four")
    for value in (1.0, 2.0):
        study.add_trial(optuna.create_trial(value=value))
    study.enqueue_trial({"x": 0.5})
    stock.engine.dispose()
    execute(
        empty_database,
        "update trials set datetime_start = %(winter)s where number = 0;"
        "update trials set datetime_start = %(summer)s where number = 1;"
        "update trials set datetime_complete = datetime_start + interval '90 s';"
        "update version_info set library_version = '4.1.0'",
        winter=datetime(2026, 1, 15, 12, 0, 0, 250_000),
        summer=datetime(2026, 7, 15, 12, 0),
    )
    return empty_database


def times(url: StorageURL) -> list[tuple[Any, ...]]:
    return execute(url, "select datetime_start::text, datetime_complete::text from trials order by number")


LOCAL = [
    ("2026-01-15 12:00:00.25", "2026-01-15 12:01:30.25"),
    ("2026-07-15 12:00:00", "2026-07-15 12:01:30"),
    (None, None),
]


def test_tables_of_optuna_4_are_refused(optuna_4_database: StorageURL, ask: Ask) -> None:
    for command in ("run digits", "create digits", "db upgrade"):
        done = ask(*command.split())
        assert done.exit_code == 1
        assert "its tables were made by Optuna 4.1.0, which keeps local times where Optuna 5 keeps UTC" in done.stderr
        assert done.stderr.endswith("then: studyhall db upgrade --optuna-4-time-zone ZONE\n")
    doctor = ask("doctor")
    assert doctor.exit_code == 1, doctor.stderr
    assert "studyhall db upgrade --optuna-4-time-zone ZONE" in doctor.stdout
    assert times(optuna_4_database) == LOCAL


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_local_times_of_optuna_4_become_utc_whatever_the_time_zone_of_the_session(
    optuna_4_database: StorageURL, ask: Ask, monkeypatch: pytest.MonkeyPatch, zone: str | None
) -> None:
    if zone:
        monkeypatch.setenv("PGTZ", zone)
        assert execute(optuna_4_database, "show timezone") == [(zone,)]
    done = ask("db", "upgrade", "--optuna-4-time-zone", "Europe/Berlin")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == [
        "the times of 3 trials are now UTC instead of Europe/Berlin",
        f"made the tables: version {schema.newest()}",
    ]
    assert times(optuna_4_database) == [
        ("2026-01-15 11:00:00.25", "2026-01-15 11:01:30.25"),
        ("2026-07-15 10:00:00", "2026-07-15 10:01:30"),
        (None, None),
    ]
    again = ask("db", "upgrade", "--optuna-4-time-zone", "Europe/Berlin")
    assert again.exit_code == 1
    assert "its tables are not Optuna 4's, so there is nothing to convert; without --opt" in again.stderr
    assert ask("db", "upgrade").stderr == f"nothing to do: the tables are of version {schema.newest()}\n"


def test_the_local_times_of_a_trial_that_just_ended_become_utc_under_our_triggers_too(
    storage: PostgresStorage, ask: Ask
) -> None:
    # To the triggers against Optuna 4 it looks like a worker of Optuna 4 that ends a trial now.
    study = optuna.create_study(storage=storage, study_name="four")
    study.add_trial(optuna.create_trial(value=1.0))
    storage.database.execute("update version_info set library_version = '4.1.0'")
    before = storage.database.execute("select datetime_complete as at from trials")[0]["at"]
    done = ask("db", "upgrade", "--optuna-4-time-zone", "Asia/Tokyo")
    assert (done.exit_code, done.stderr.splitlines()[1:]) == (
        0,
        [f"nothing to do: the tables are of version {schema.newest()}"],
    )
    after = storage.database.execute("select datetime_complete as at from trials")[0]["at"]
    assert (before - after).total_seconds() == 9 * 3600


def test_a_time_zone_that_is_none_changes_nothing(optuna_4_database: StorageURL, ask: Ask) -> None:
    done = ask("db", "upgrade", "--optuna-4-time-zone", "Europe/Atlantis")
    assert done.exit_code == 1
    assert done.stderr == "error: no time zone 'Europe/Atlantis'; legal are names such as Europe/Berlin and UTC\n"
    assert times(optuna_4_database) == LOCAL
    assert execute(optuna_4_database, "select library_version from version_info") == [("4.1.0",)]


def test_there_is_nothing_to_convert_without_tables(empty_database: StorageURL, ask: Ask) -> None:
    done = ask("db", "upgrade", "--optuna-4-time-zone", "UTC")
    assert done.exit_code == 1
    assert "its tables are not Optuna 4's" in done.stderr
    assert execute(empty_database, "select count(*) from pg_tables where schemaname = 'public'") == [(0,)]
