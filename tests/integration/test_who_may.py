"""Each kind of database user × each command: who may, and what is said to whoever may not (docs/roles.md)."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click
import psycopg2
import pytest
from click.testing import CliRunner

from studies import PostgresStorage, StudySpec
from studies.cli import studyhall
from studies.storage.url import StorageURL
from studies.trial import Trial
from tests.conftest import ROOT, Server
from tests.support.worker import worker_on

USERS = ("may_own", "may_work", "may_view", "stranger")
OWNER, WORKER, VIEWER, STRANGER = USERS
#: Each command, and the least of the users who may. In this order they all make sense.
COMMANDS = """
    ls                                  may_view
    status s                            may_view
    best s                              may_view
    trials s                            may_view
    show s                              may_view
    report s                            may_view
    plot s history -o history.svg       may_view
    importance s                        may_view
    launch slurm s --workers 1 --print --allow script. may_view
    launch kubernetes s --allow script. may_view
    create script.py:f --name NEW       may_work
    space s                             may_view
    enqueue s x=0.5                     may_work
    space s x.high=2                    may_work
    retry s 2                           may_work
    cancel s WAITING                    may_work
    pause s                             may_work
    stop s                              may_work
    resume s                            may_work
    extend s --trials +1                may_work
    finalize s --trial 0 --allow script. --again --out NEW  may_work
    reproduce s 0 --allow script.       may_view
    db backup NEW                       may_work
    doctor                              may_view
    db url                              stranger
    delete OWN --yes                    may_own
    db grant viewer may_view            may_own
    db upgrade                          may_own
"""
#: These go on for ever, or start processes, where they are allowed: only who may not is shown here.
LASTING = {
    "register FOLDER MODEL": WORKER,
    "exec s -- true": VIEWER,
    "run script.py:f": WORKER,
    "work s --allow script.": WORKER,
    "watch s": VIEWER,
    "serve": VIEWER,
    "mirror --once": VIEWER,
}
#: They speak with no database, no server, with Slurm, or with an empty database.
OTHERS = {"train", "db start", "db stop", "db restore", "launch cancel"}

SCRIPT = """
class F:
    def __call__(self, trial):
        trial.report(0.5, 1)
        return trial.params["x"]

    def finalize(self, params, *, seed, device, directory, progress):
        return {"accuracy": 1.0}


def f(trial):
    return trial.suggest_float("x", 0, 1)
"""
SPEC = {
    "name": "s",
    "objective": {"path": "script:F"},
    "budget": {"trials": 50, "max_failures": 1},
    "space": {"x": {"type": "float", "low": 0, "high": 1}},
}


def objective(trial: Trial) -> float:
    if trial.number == 2:
        raise RuntimeError("no luck today")
    return float(trial.params["x"])


@pytest.fixture(scope="module")
def database(separate_server: Server) -> Iterator[StorageURL]:
    """A database of ``may_own`` on a server with all four users."""
    with closing(psycopg2.connect(**separate_server.url.libpq)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for user in USERS:
            cursor.execute(f"create role {user} login password 'p'")
        with separate_server.database() as url:
            cursor.execute(f"alter database {url.database} owner to {OWNER}")
            yield url
        for user in USERS:
            cursor.execute(f"drop role {user}")


class Desk:
    """Where each user asks."""

    def __init__(self, url: StorageURL) -> None:
        self.url = url

    def ask(self, user: str, text: str) -> tuple[int, str]:
        """Run a command; its exit status, and what it said to the person."""
        url = replace(self.url, user=user, password="p")
        done = CliRunner().invoke(studyhall, shlex.split(text), env={"STUDYHALL_STORAGE": url.sqlalchemy})
        assert done.exception is None or isinstance(done.exception, SystemExit), (user, text, done.exception)
        place = f"database {url.database!r} at {url.where}"
        return done.exit_code, done.stderr.replace(place, "DATABASE").removeprefix("error: ").strip()

    def must(self, user: str, text: str) -> str:
        status, told = self.ask(user, text)
        assert status == 0, (user, text, told)
        return told


def documented(user: str) -> set[str]:
    """What docs/roles.md says is said to whoever has to ask, with this user's name."""
    told = re.findall(r"^> (.*)$", (ROOT / "docs" / "roles.md").read_text(), re.MULTILINE)
    return {line.replace("USER", user).replace("OWNER", OWNER) for line in told}


def test_each_command_does_what_the_user_may_or_says_who_grants_it(
    database: StorageURL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which the script's folder is added
    monkeypatch.setenv("STUDYHALL_HOME", str(tmp_path / "home"))
    Path("script.py").write_text(SCRIPT)
    desk = Desk(database)

    # Without tables, whoever may not make them is told whom to ask.
    for text in ("status s", "create script.py:f", "run script.py:f", "work s", "db upgrade", "serve"):
        status, told = desk.ask(STRANGER, text)
        assert (status, told in documented(STRANGER)) == (1, True), (text, told)
    assert desk.must(STRANGER, "ls") in documented(STRANGER)
    desk.must(OWNER, "db upgrade")
    desk.must(OWNER, f"db grant viewer {VIEWER}")
    desk.must(OWNER, f"db grant worker {WORKER}")

    with closing(PostgresStorage(replace(database, user=OWNER, password="p"))) as storage:
        record, _ = storage.create_study(StudySpec.from_dict(SPEC))
        worker = worker_on(storage, record, objective, tmp_path)
        assert worker.run() == "failures"
        storage.budgets.extend(record, max_failures=50)

        rows = [line.strip().rsplit(maxsplit=1) for line in COMMANDS.strip().splitlines()]
        for user in USERS:
            for text, least in rows:
                new = f"{user}-{len(text)}"
                if "OWN" in text and user == OWNER:
                    desk.must(OWNER, f"create script.py:f --name {new}")
                if text.startswith("resume"):
                    storage.budgets.pause(record)  # also for whom it is in vain
                waiting = [trial.number for trial in storage.trials(record) if trial.state.name == "WAITING"]
                given = text.replace("NEW", new).replace("OWN", new if user == OWNER else "s")
                status, told = desk.ask(user, given.replace("WAITING", str(max(waiting, default=0))))
                if USERS.index(user) <= USERS.index(least):
                    assert status == 0, (user, given, told)
                elif text.split()[0] != "doctor":
                    assert (status, told in documented(user)) == (1, True), (user, given, told)
            for text, least in LASTING.items():
                if USERS.index(user) > USERS.index(least):
                    status, told = desk.ask(user, text)
                    assert (status, told in documented(user)) == (1, True), (user, text, told)
        walked = [row[0] for row in rows] + list(LASTING)
        assert all(any(text.split()[: len(name.split())] == name.split() for text in walked) for name in commands())

        # Rights that were lost are found, and given back by the command that doctor names.
        with closing(psycopg2.connect(**database.libpq)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(f"revoke all on all tables in schema public, studyhall from {OWNER}")
            cursor.execute(f"revoke update on studyhall.budgets from {WORKER}")
        for user in (OWNER, WORKER):
            status, told = desk.ask(user, "resume s")
            assert (status, told in documented(user)) == (1, True), (user, told)
        assert desk.ask(OWNER, f"db grant viewer {OWNER}")[0] == 1
        with closing(psycopg2.connect(**database.libpq)) as connection, connection.cursor() as cursor:
            cursor.execute("select count(*) from trials")  # a superuser sees them all the while
    done = CliRunner().invoke(
        studyhall, ["doctor", "--storage", replace(database, user=VIEWER, password="p").sqlalchemy]
    )
    assert done.exit_code == 1
    fixes = re.findall(rf"→ studyhall (db upgrade|db grant worker {WORKER})$", done.stdout, re.MULTILINE)
    assert len(fixes) == 2
    for fix in fixes:
        desk.must(OWNER, fix)
    desk.must(OWNER, "doctor")
    desk.must(WORKER, "resume s")


def commands() -> list[str]:
    """Every command that asks a database with studies."""
    names = []
    for name, command in studyhall.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        names += [f"{name} {below}".strip() for below in inner]
    return [name for name in names if name not in OTHERS]
