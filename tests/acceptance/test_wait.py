"""`--wait`: a command that starts before its database, as containers and machines do."""

from __future__ import annotations

from pathlib import Path

from studies.storage.url import StorageURL
from tests.acceptance.conftest import Shell
from tests.support.postgres import start_postgres


def test_a_command_waits_for_a_database_that_is_away_and_says_so(tmp_path: Path, home: Path) -> None:
    with start_postgres() as postgres:
        mine = Shell(StorageURL.parse(postgres.url), tmp_path, home)
        assert mine.run("create", "digits").returncode == 0
        postgres.stop()
        at_once = mine.run("ls")
        assert (at_once.returncode, at_once.stderr.count("\n")) == (1, 1)
        waiting = mine.start("ls", "--wait", "60")
        assert waiting.stderr
        assert waiting.stderr.readline().startswith("waiting for the database: no PostgreSQL answers at 127.0.0.1")
        postgres.start()
        out, err = waiting.communicate(timeout=300)
        assert (waiting.returncode, err) == (0, "")
        assert "digits" in out


def test_a_command_waits_for_tables_that_another_makes(shell: Shell, empty_database: StorageURL) -> None:
    shell.use(empty_database)
    waiting = shell.start("status", "digits", STUDYHALL_WAIT="60")
    assert waiting.stderr
    assert "holds no studies yet" in waiting.stderr.readline()
    assert shell.run("create", "digits").returncode == 0
    _, err = waiting.communicate(timeout=300)
    # The tables come before the study.
    assert waiting.returncode == 0 or "no study 'digits'" in err


def test_after_that_it_is_the_usual_error(shell: Shell) -> None:
    done = shell.run("status", "digits", "--wait", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert shell.run("ls", "--wait", "-1").returncode == 2
