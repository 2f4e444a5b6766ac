"""What `studyhall doctor` says of servers, tables, trials and machines that are not well."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest

from studies import PostgresStorage, StudySpec
from studies.doctor import Finding
from studies.doctor.clocks import difference
from studies.doctor.database import connections, server
from studies.doctor.machine import disk, disks
from studies.storage import schema
from studies.storage.records import Claim, StudyRecord
from studies.storage.url import StorageURL
from tests.acceptance.conftest import Shell
from tests.support.postgres import PASSWORD, start_postgres
from tests.support.waiting import eventually

Look = Callable[[], PostgresStorage]
SPEC = {"name": "s", "objective": {"path": "script:objective"}, "budget": {"trials": 6}}


@pytest.fixture
def patient(shell: Shell) -> Shell:
    """A shell with a home of its own, for its user and for Studyhall."""
    for variable, folder in (("HOME", "user"), ("STUDYHALL_HOME", "studyhall")):
        (shell.folder / folder).mkdir()
        shell.environment[variable] = str(shell.folder / folder)
    return shell


def doctor(shell: Shell, *options: str, status: int, **environment: str) -> dict[str, list[dict[str, Any]]]:
    """The findings by what they are about. Each that is not ok has a fix; as a table they say the same."""
    done = shell.run("doctor", "--format", "json", *options, **environment)
    assert done.returncode == status, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    assert (status == 1) == any(finding["level"] == "error" for finding in findings)
    about: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        assert list(finding) == ["level", "about", "what", "fix"]
        assert finding["fix"] or finding["level"] == "ok", finding
        about.setdefault(finding["about"], []).append(finding)
    return about


def one(about: dict[str, list[dict[str, Any]]], key: str, level: str) -> tuple[str, str]:
    """What and fix of the only finding about ``key``, which is of that level."""
    (finding,) = about[key]
    assert finding["level"] == level, finding
    return finding["what"], finding["fix"]


def created(storage: PostgresStorage, **changes: Any) -> StudyRecord:
    return storage.create_study(StudySpec.from_dict({**SPEC, **changes}))[0]


def hold(storage: PostgresStorage, record: StudyRecord, lease: float) -> Claim:
    storage.workers.register([record], worker_id="w", host="node7", pid=4711, device="cpu")
    claim = storage.leases.claim(record, "w", lease)
    assert isinstance(claim, Claim)
    return claim


@contextmanager
def sessions(url: StorageURL, count: int) -> Iterator[None]:
    opened = [psycopg2.connect(**url.libpq) for _ in range(count)]
    try:
        yield
    finally:
        for connection in opened:
            connection.close()


# The server


def test_a_sound_storage_is_told_so_at_80_columns(patient: Shell, look: Look) -> None:
    created(look())
    done = patient.run("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if "/" not in line)
    assert lines[0].startswith("ok       server       PostgreSQL ")
    for word in ("clock", "connections", "tables", "times", "trials", "GPUs", "disk"):
        assert any(line[9:].startswith(word) for line in lines), word
    about = doctor(patient, status=0)
    assert "a round trip takes" in about["server"][0]["what"]
    assert [finding["level"] for finding in about["tables"]] == ["ok", "ok"]
    assert "none is stuck" in one(about, "trials", "ok")[0]


def test_the_embedded_server_is_named(shell: Shell, home: Path) -> None:
    del shell.environment["STUDYHALL_STORAGE"]
    about = doctor(shell, status=0)
    assert one(about, "server", "ok")[0].startswith(f"the embedded server in {home}: PostgreSQL 18")
    assert "password" not in about or about["password"][0]["what"].endswith(".pgpass is yours alone")


def test_an_embedded_server_that_cannot_start_is_an_error(patient: Shell) -> None:
    del patient.environment["STUDYHALL_STORAGE"]
    (patient.folder / "studyhall" / "postgresql").write_text("a file in its place")
    about = doctor(patient, status=1)
    assert "the embedded server in" in one(about, "server", "error")[0]
    assert {"GPUs", "disk"} <= set(about)


def test_a_server_that_is_down_is_an_error_and_the_machine_is_looked_at_all_the_same(patient: Shell) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        about = doctor(patient, status=1, STUDYHALL_STORAGE=f"postgresql://user@127.0.0.1:{port}/db")
    what, fix = one(about, "server", "error")
    assert what.startswith(f"no PostgreSQL answers at 127.0.0.1 port {port}: start it, or correct ")
    assert fix == f"pg_isready -h 127.0.0.1 -p {port}"
    assert {"GPUs", "disk"} <= set(about)


def test_a_wrong_password_is_an_error_and_is_not_shown(patient: Shell) -> None:
    (host, port), user = patient.url.hosts[0], patient.url.user
    url = f"postgresql://{user}:canary@{host}:{port}/{patient.url.database}"
    about = doctor(patient, status=1, STUDYHALL_STORAGE=url)
    what, fix = one(about, "server", "error")
    assert what.startswith("password authentication failed for user")
    assert fix == "set the right password in the URL, PGPASSWORD or ~/.pgpass"
    for options in ((), ("--debug",)):
        done = patient.run("doctor", *options, STUDYHALL_STORAGE=url)
        assert "canary" not in done.stdout + done.stderr


def test_a_database_that_is_not_there_is_an_error(patient: Shell) -> None:
    url = patient.url.sqlalchemy.replace(str(patient.url.database), "nowhere")
    what, fix = one(doctor(patient, status=1, STUDYHALL_STORAGE=url), "server", "error")
    assert what.startswith("database 'nowhere' does not exist")
    assert fix.startswith("create it (createdb nowhere)")


def test_a_url_that_cannot_be_understood_is_a_usage_error(patient: Shell) -> None:
    done = patient.run("doctor", "--storage", "sqlite:///study.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the storage URL cannot be used: SQLite")


@pytest.mark.slow
def test_connections_that_run_out_are_warned_of_and_none_left_is_an_error(patient: Shell) -> None:
    settings = {"max_connections": "12", "superuser_reserved_connections": "2"}
    with start_postgres(**settings) as postgres, closing(psycopg2.connect(postgres.url)) as watching:
        url = StorageURL.parse(postgres.url)
        environment = {"STUDYHALL_STORAGE": url.sqlalchemy}
        watching.autocommit = True

        def is_alone() -> bool:
            with watching.cursor() as cursor:
                cursor.execute("select count(*) from pg_stat_activity where backend_type = 'client backend'")
                return bool(cursor.fetchone() == (1,))

        assert one(doctor(patient, status=0, **environment), "connections", "ok")[0].startswith("2 of 10 in use")
        eventually(is_alone, "the command's session has ended")
        with sessions(url, 7):
            what, fix = one(doctor(patient, status=0, **environment), "connections", "warning")
            assert what.startswith("9 of 10 in use; a worker takes up to two")
            assert "PgBouncer" in what
            assert "alter system set max_connections = " in fix
        eventually(is_alone, "those sessions have ended")
        with sessions(url, 11):
            what, fix = one(doctor(patient, status=1, **environment), "server", "error")
            assert what.startswith("too many connections at ")
            assert "max_connections" in fix


@pytest.mark.parametrize(
    ("finding", "level", "fix"),
    [
        (server({"version_number": 120_022, "version": "12.22"}, 0.001, ""), "error", "pg_upgrade"),
        (server({"version_number": 130_000, "version": "13.0"}, 0.001, ""), "ok", None),
        (difference(4.9, 0.0), "ok", None),
        (difference(-7.5, 0.1), "warning", "timedatectl set-ntp true"),
        (difference(7.5, 3.0), "ok", None),
        (connections(80, 100, is_embedded=True), "ok", None),
        (disk("data", Path("/d"), int(50e9), int(100e9)), "ok", None),
        (disk("data", Path("/d"), int(4.9e9), int(20e9)), "warning", "du -xsh /d/* | sort -h"),
        (disk("data", Path("/d"), int(49e9), int(1000e9)), "warning", "du -xsh /d/* | sort -h"),
    ],
)
def test_limits(finding: Finding, level: str, fix: str | None) -> None:
    assert (finding.level, finding.fix) == (level, fix)


# The tables


def test_tables_that_are_not_there_yet_are_no_error(patient: Shell, empty_database: StorageURL) -> None:
    patient.use(empty_database)
    assert one(doctor(patient, status=0), "tables", "ok") == ("there are none yet", "studyhall run digits")


def test_tables_of_stock_optuna_alone_are_no_error(patient: Shell, empty_database: StorageURL) -> None:
    patient.use(empty_database)
    optuna.storages.RDBStorage(patient.url.sqlalchemy).engine.dispose()
    optunas, ours = doctor(patient, status=0)["tables"]
    assert optunas["what"].startswith("Optuna's are of version v")
    assert (ours["what"], ours["fix"]) == ("Optuna's are there, studyhall's are not yet", "studyhall db upgrade")


@pytest.mark.parametrize(
    ("sql", "what", "fix"),
    [
        (
            "delete from studyhall.version where version > 1",
            f"studyhall's are of version 1, this studyhall knows {schema.newest()}",
            "studyhall db upgrade",
        ),
        (
            "insert into studyhall.version values (999, now())",
            f"studyhall's are of version 999, this studyhall knows {schema.newest()}",
            "pip install -U studyhall",
        ),
        (
            "update version_info set library_version = '4.1.0'",
            "made by Optuna 4.1.0, which keeps local times where Optuna 5 keeps UTC; "
            "stop its workers, and give the time zone of their machines",
            "studyhall db upgrade --optuna-4-time-zone ZONE",
        ),
        (
            "update alembic_version set version_num = 'v2.6.0.a'",
            "Optuna's are of version v2.6.0.a, the Optuna installed here knows ",
            'optuna storage upgrade --storage "$(studyhall db url)"',
        ),
        (
            "update alembic_version set version_num = 'v9.0.0.a'",
            "Optuna's are of version v9.0.0.a, the Optuna installed here knows ",
            "pip install -U optuna",
        ),
        ("drop table studyhall.leases cascade", 'relation "studyhall.leases" does not exist', ""),
    ],
    ids=["older", "newer", "Optuna 4", "older Optuna", "newer Optuna", "broken"],
)
def test_tables_that_do_not_fit_are_an_error(patient: Shell, look: Look, sql: str, what: str, fix: str) -> None:
    look().database.execute(sql)
    findings = [finding for found in doctor(patient, status=1).values() for finding in found]
    (error,) = [finding for finding in findings if finding["level"] == "error"]
    assert what in error["what"]
    assert error["fix"] == fix or not fix


def test_whoever_may_not_read_the_tables_is_told_what_to_grant(patient: Shell, look: Look) -> None:
    storage, user = look(), f"viewer_{uuid.uuid4().hex}"
    storage.database.execute(f"create role {user} login password 'canary'")
    try:
        url = patient.url.sqlalchemy.replace("://postgres:", f"://{user}:").replace(
            patient.url.sqlalchemy.split(":")[2].split("@")[0], "canary"
        )
        what, fix = one(doctor(patient, status=1, STUDYHALL_STORAGE=url), "users", "error")
        assert what.startswith(f"user {user!r} may not read the studies in database")
        assert fix == f"studyhall db grant worker {user}"
    finally:
        storage.database.execute(f"drop role {user}")


def test_times_that_optuna_4_may_have_written_are_warned_of(patient: Shell, look: Look) -> None:
    study = optuna.create_study(storage=look(), study_name="mixed")
    study.enqueue_trial({})
    look().database.execute("update trials set datetime_start = now() at time zone 'UTC' + interval '2 hours'")
    what, fix = one(doctor(patient, status=0), "times", "warning")
    assert "0 of 'mixed'" in what
    assert fix == "pip install -U optuna"


def test_a_time_zone_that_misleads_heartbeats_is_warned_of(patient: Shell, look: Look) -> None:
    storage = look()
    storage.database.execute(f"alter database {patient.url.database} set timezone = 'Asia/Tokyo'")
    assert "sessions have the time zone Asia/Tokyo" in one(doctor(patient, status=0), "times", "ok")[0]
    study = optuna.create_study(storage=storage, study_name="beating")
    trial_id = study.ask()._trial_id
    storage.database.execute(f"insert into trial_heartbeats (trial_id, heartbeat) values ({trial_id}, now())")
    what, fix = one(doctor(patient, status=0), "times", "warning")
    assert "Asia/Tokyo" in what
    assert fix.endswith(f"-c \"alter database {patient.url.database} set timezone = 'UTC'\"")


# Studies and trials


def test_a_trial_whose_worker_died_waits_for_another(patient: Shell, look: Look) -> None:
    storage = look()
    record = created(storage)
    hold(storage, record, lease=0.05)
    storage.database.execute("update studyhall.leases set expires_at = now() - interval '10 minutes'")
    what, fix = one(doctor(patient, status=0), "trials", "warning")
    assert what.startswith(
        "trial 0 of study 's' runs, but its worker on node7 has sent no heartbeat since its lease expired 0:1"
    )
    assert fix == "studyhall work s --allow script:objective"
    storage.budgets.stop(record, "by hand")
    about = doctor(patient, status=0)
    assert one(about, "trials", "warning")[1] == "studyhall cancel s 0"
    assert one(about, "studies", "ok") == ("study 's' is stopped by hand", "studyhall resume s")


def test_trials_of_stock_optuna_that_run_for_long_may_be_dead(patient: Shell, look: Look) -> None:
    storage = look()
    study = optuna.create_study(storage=storage, study_name="a b")
    for _ in range(7):
        study.ask()
    assert one(doctor(patient, status=0), "trials", "ok")
    storage.database.execute("update trials set datetime_start = datetime_start - interval '90 minutes'")
    findings = doctor(patient, status=0)["trials"]
    assert len(findings) == 6
    assert findings[0]["what"].startswith("trial 0 of study 'a b' has run for 1:3")
    assert findings[0]["fix"] == "studyhall cancel 'a b' 0"
    assert findings[5]["what"].startswith("and 2 more like these")


def test_a_silent_worker_with_a_long_lease_is_named(patient: Shell, look: Look) -> None:
    storage = look()
    hold(storage, created(storage), lease=7200)
    assert one(doctor(patient, status=0), "trials", "ok")
    storage.database.execute("update studyhall.workers set seen_at = now() - interval '70 minutes'")
    about = doctor(patient, status=0)
    what, fix = one(about, "workers", "warning")
    assert what.startswith("the one on node7 that holds trial 0 of study 's' was seen 1:1")
    assert fix == "ssh node7 ps 4711"
    assert "trials" not in about


def test_a_paused_study_is_mentioned(patient: Shell, look: Look) -> None:
    look().budgets.pause(created(look()))
    assert one(doctor(patient, status=0), "studies", "ok") == ("study 's' is paused", "studyhall resume s")


# The machine


def test_checkpoints_that_cannot_be_kept_here_are_an_error(patient: Shell, look: Look) -> None:
    good, away, file = (patient.folder / name for name in ("good", "away", "file"))
    good.mkdir()
    file.write_text("")
    for name, store in (("one", good), ("two", good), ("three", away), ("four", file)):
        created(look(), name=name, checkpoints={"store": str(store)})
    untouched = doctor(patient, status=0)["checkpoints"]
    assert [finding["level"] for finding in untouched] == ["warning"] * 3
    work = "studyhall work three --allow script:objective --allow"
    allow = ("--allow", f"store={patient.folder}")
    assert untouched[1]["fix"] == f"studyhall doctor --allow store={away}; {work} store={away}"
    sound, missing, wrong = doctor(patient, *allow, status=1)["checkpoints"]
    assert (sound["level"], sound["what"]) == ("ok", f"can be written to {good}")
    assert list(good.iterdir()) == []
    assert (missing["level"], missing["fix"]) == ("error", f"mkdir -p {away}")
    assert missing["what"].startswith("of 'three': there is no ")
    assert not away.exists()
    assert (wrong["level"], wrong["fix"]) == ("error", f"ls -ld {file}")
    look().budgets.stop(look().find_study("three"), "stopped")
    look().budgets.stop(look().find_study("four"), "stopped")
    findings = doctor(patient, *allow, status=0)["checkpoints"]
    assert [finding["level"] for finding in findings] == ["ok", "warning", "warning"]


def test_results_that_wait_on_the_disk_are_named(patient: Shell, look: Look) -> None:
    record = created(look())
    results = Path(patient.environment["STUDYHALL_HOME"]) / "results"
    for uid, names in ((record.uid, ("1-1.json", "2-1.json", "3-1.refused")), ("0-unknown", ("1-1.json",))):
        (results / str(uid)).mkdir(parents=True)
        for name in names:
            (results / str(uid) / name).write_text("{}")
    unknown, waiting, refused = sorted(doctor(patient, status=0)["results"], key=lambda finding: len(finding["fix"]))[
        ::-1
    ]
    findings = {finding["fix"]: finding["what"] for finding in (unknown, waiting, refused)}
    assert findings.pop("studyhall work s --allow script:objective").startswith("2 results of study 's' in ")
    assert findings.pop(f"rm -r {results}/0-unknown").startswith("1 result in ")
    assert findings.pop(f"rm {results}/{record.uid}/*.refused").startswith("1 refusal of the database in ")
    look().budgets.stop(record, "by hand")
    fixes = [finding["fix"] for finding in doctor(patient, status=0)["results"]]
    assert "studyhall resume s; studyhall work s --allow script:objective" in fixes


def test_a_password_that_others_can_see_is_warned_of(patient: Shell, look: Look) -> None:
    look()
    pgpass = Path(patient.environment["HOME"]) / ".pgpass"
    (host, port), database = patient.url.hosts[0], patient.url.database
    seen = {
        (): "STUDYHALL_STORAGE can be seen by every program",
        ("--storage", patient.url.sqlalchemy): "--storage can",
    }
    for options, expected in seen.items():
        what, fix = one(doctor(patient, *options, status=0), "password", "warning")
        assert expected in what
        assert fix == f"echo {host}:{port}:{database}:postgres:PASSWORD >> {pgpass}; chmod 600 {pgpass}"


@pytest.mark.parametrize(("mode", "level"), [(0o600, "ok"), (0o644, "warning")])
def test_a_password_file_must_be_its_owners_alone(patient: Shell, look: Look, mode: int, level: str) -> None:
    look()
    pgpass = Path(patient.environment["HOME"]) / ".pgpass"
    pgpass.write_text("*:*:*:*:canary\n")
    pgpass.chmod(mode)
    (host, port), database = patient.url.hosts[0], patient.url.database
    # The server asks for the password, which a file that is open to others does not give.
    status = 0 if level == "ok" else 1
    pgpass.write_text(f"{host}:{port}:{database}:postgres:{PASSWORD.replace(':', chr(92) + ':')}\n")
    about = doctor(patient, "--storage", f"postgresql://postgres@{host}:{port}/{database}", status=status)
    what, fix = one(about, "password", level)
    assert str(pgpass) in what
    assert fix == (None if level == "ok" else f"chmod 600 {pgpass}")


NVIDIA_SMI = {
    "two": "echo 'GPU 0: NVIDIA H100 (UUID: GPU-aa)'; echo 'GPU 1: NVIDIA H100 (UUID: GPU-bb)'",
    "broken": "echo 'NVIDIA-SMI has failed because it could not talk to the driver.'; exit 9",
    "none": "echo 'No devices were found' >&2; exit 6",
}


@pytest.mark.parametrize(
    ("smi", "visible", "level", "what"),
    [
        ("two", None, None, "2 of 2: NVIDIA H100"),
        ("two", "1", None, "1 of 2: NVIDIA H100"),
        ("two", "", "warning", "2 here, hidden by CUDA_VISIBLE_DEVICES='': workers run on "),
        ("two", "0,2", "warning", "CUDA_VISIBLE_DEVICES names GPU 2, and there are 2, from 0"),
        ("broken", None, "warning", "nvidia-smi fails: NVIDIA-SMI has failed because it could not talk to the driver"),
        ("none", "", "warning", "nvidia-smi fails: No devices were found"),
    ],
)
def test_gpus_are_looked_for(patient: Shell, smi: str, visible: str | None, level: str | None, what: str) -> None:
    tools = patient.folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{NVIDIA_SMI[smi]}\n")
    (tools / "nvidia-smi").chmod(0o755)
    patient.environment["PATH"] = f"{tools}:{patient.environment['PATH']}"
    patient.environment.pop("CUDA_VISIBLE_DEVICES")
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    (finding,) = doctor(patient, status=0, **environment)["GPUs"]
    assert finding["what"].startswith(what)
    # Whether the PyTorch that is installed can use them is another matter.
    assert finding["level"] == level or (level is None and "built without CUDA" in finding["what"]) or level is None


def test_gpus_are_named_that_nobody_can_see(patient: Shell) -> None:
    patient.environment["PATH"] = "/nowhere"
    what, fix = one(doctor(patient, status=0, CUDA_VISIBLE_DEVICES="0"), "GPUs", "warning")
    assert "no nvidia-smi" in what
    assert fix == "unset CUDA_VISIBLE_DEVICES"
    assert one(doctor(patient, status=0, CUDA_VISIBLE_DEVICES=""), "GPUs", "ok")[0].startswith("none here")


def test_room_is_counted_once_for_each_file_system(tmp_path: Path) -> None:
    (finding,) = disks({"home": tmp_path / "not" / "made" / "yet", "data": tmp_path})
    assert "free for home, data" in finding.what


def test_it_changes_nothing(patient: Shell, look: Look) -> None:
    storage = look()
    hold(storage, created(storage), lease=0.05)
    storage.database.execute("update studyhall.leases set expires_at = now() - interval '10 minutes'")

    def everything() -> list[Any]:
        with closing(psycopg2.connect(**patient.url.libpq)) as connection, connection.cursor() as cursor:
            rows = []
            for table in ("trials", "studyhall.leases", "studyhall.workers", "studyhall.budgets", "version_info"):
                cursor.execute(f"select t::text from {table} t")
                rows += cursor.fetchall()
            return rows

    before = everything()
    doctor(patient, status=0)
    assert everything() == before
    assert list(Path(patient.environment["STUDYHALL_HOME"]).iterdir()) == []
