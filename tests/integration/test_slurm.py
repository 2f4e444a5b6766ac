"""The Slurm launcher on a real PostgreSQL: what it looks at before it submits anything."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from click.testing import CliRunner, Result

from studies import PostgresStorage, StudySpec, open_storage
from studies.cli import studyhall
from studies.cli.launch_slurm import cancel_jobs, slurm
from studies.storage.url import StorageURL
from tests.conftest import Server


@pytest.fixture
def url(separate_server: Server) -> Iterator[StorageURL]:
    with separate_server.database() as url:
        yield url


@pytest.fixture
def storage(url: StorageURL) -> Iterator[PostgresStorage]:
    storage = PostgresStorage(url)
    storage.create_study(StudySpec.from_dict({"name": "digits", "objective": {"path": "objectives.mlp:MLP"}}))
    yield storage
    storage.close()


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, on a machine without Slurm's commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))


def launch(url: StorageURL, *arguments: str) -> Result:
    env = {"STUDYHALL_STORAGE": url.sqlalchemy}
    # With the settings of the whole, or the command has no -h from then on: click keeps its help option.
    return CliRunner().invoke(slurm, ["--workers", "4", *arguments], env=env, **studyhall.context_settings)


def test_print_shows_the_script_and_submits_nothing(url: StorageURL, storage: PostgresStorage, tmp_path: Path) -> None:
    options = ["--gpus-per-worker", "1", "--time", "60", "--sbatch", "mem=8G", "--data-dir", "data", "--allow", "lab."]
    done = launch(url, "digits", *options, "--print")
    assert done.exit_code == 0
    assert done.stderr == "note: the script leaves the storage's password out: ~/.pgpass is the place for it\n"
    assert f"#SBATCH --comment=studyhall:{storage.find_study('digits').uid}\n" in done.stdout
    assert "#SBATCH --array=0-3\n" in done.stdout
    assert "#SBATCH --mem=8G\n" in done.stdout
    assert "#SBATCH --output=slurm-%x-%A_%a.log\n" in done.stdout  # sbatch makes no folders
    (work,) = [line for line in done.stdout.splitlines() if " work digits " in line]
    program, *rest = work.split()
    assert Path(program).is_absolute()
    assert rest == f"work digits --workers 1 --lease 30 --data-dir {tmp_path}/data --allow lab. &".split()
    assert subprocess.run(["/bin/bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["--storage", "environment"])
def test_the_storages_password_is_never_in_the_script(url: StorageURL, storage: PostgresStorage, way: str) -> None:  # noqa: ARG001
    if way == "environment":
        done = launch(url, "digits", "--print")
    else:
        done = CliRunner().invoke(
            slurm, ["digits", "--workers", "4", "--print", "--storage", url.sqlalchemy], **studyhall.context_settings
        )
    assert done.exit_code == 0
    assert f"/{url.database}" in done.stdout
    assert url.password
    assert url.password not in done.stdout
    assert quote(url.password, safe="") not in done.stdout


def test_a_study_that_is_over_is_not_launched(url: StorageURL, storage: PostgresStorage, tmp_path: Path) -> None:
    storage.budgets.stop(storage.find_study("digits"), "by hand")
    done = launch(url, "digits")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "stopped by hand" in done.stderr
    assert "nothing is submitted; go on with: studyhall resume digits" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_no_worker_would_run_is_not_launched(url: StorageURL, storage: PostgresStorage) -> None:
    optuna.create_study(storage=storage, study_name="stock")
    script = {"name": "own", "objective": {"path": "/lab/nets.py:Net"}}
    storage.create_study(StudySpec.from_dict(script))
    for name, message in {
        "stock": "study 'stock' was made by Optuna, not by studyhall: no worker knows what it runs",
        "own": "study 'own' runs '/lab/nets.py:Net', which this machine does not allow; if you trust it: --allow",
        "digit": "'digit'",
    }.items():
        done = launch(url, name, "--print")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
    assert launch(url, "own", "--print", "--allow", "/lab/").exit_code == 0


def test_without_a_storage_the_embedded_database_is_asked(home: Path, embedded_server: Server) -> None:
    assert embedded_server

    def printed(launcher: str, *options: str) -> Result:
        return CliRunner().invoke(studyhall, ["launch", launcher, *options], env={"STUDYHALL_HOME": str(home)})

    with closing(open_storage(home=home)) as storage:
        record, _ = storage.create_study(
            StudySpec.from_dict({"name": "asked here", "objective": {"path": "lab.nets:fit"}})
        )
        try:
            for launcher, options in {"slurm": ["--workers", "1", "--print"], "kubernetes": []}.items():
                unknown = printed(launcher, "asked now", *options).stderr
                assert unknown.startswith("error: no study 'asked now' in the embedded database in ")
                assert unknown.endswith("; if the workers have another database, name it with --storage\n")
                assert "if you trust it: --allow lab.nets:fit" in printed(launcher, "asked here", *options).stderr
                done = printed(launcher, "asked here", *options, "--allow", "lab.nets:fit")
                assert done.exit_code == 0, done.stderr
                assert "lab.nets:fit" in done.stdout
                assert str(record.uid) not in done.stdout  # of a study in another database than the workers'
                assert "was checked in the embedded database, which no other machine reaches" in done.stderr
            storage.budgets.stop(record, "by hand")
            ended = printed("kubernetes", "asked here", "--allow", "lab.")
            assert (ended.exit_code, ended.stdout) == (1, "")
            assert "has ended (stopped by hand)" in ended.stderr
        finally:
            storage.delete_study(record.study_id)


def test_what_may_go_wrong_on_the_nodes_is_said_before(url: StorageURL, storage: PostgresStorage) -> None:  # noqa: ARG001
    many = launch(url, "digits", "--workers", "300")
    assert many.exit_code == 1
    warning, where, password, error = many.stderr.splitlines()
    assert warning.startswith("warning: 300 workers hold up to 600 connections, and ")
    assert "raise its max_connections, or put PgBouncer between" in warning
    port = url.hosts[0][1]
    assert where == f"warning: the storage is at 127.0.0.1 port {port}, which on each node is the node itself"
    assert "~/.pgpass is a better place" in password
    assert error.startswith("error: there is no sbatch on this machine")
    assert "warning: 4 workers" not in launch(url, "digits").stderr


def test_the_password_is_nowhere_to_be_seen(url: StorageURL, storage: PostgresStorage) -> None:  # noqa: ARG001
    told = launch(url, "digits")
    assert url.password
    assert url.password not in told.output
    assert "p%40ss" not in told.output


def test_jobs_are_cancelled_by_the_studys_name(url: StorageURL, storage: PostgresStorage) -> None:  # noqa: ARG001
    for name, message in {"digits": "error: there is no squeue on this machine", "digit": "error: "}.items():
        done = CliRunner().invoke(
            cancel_jobs, [name], env={"STUDYHALL_STORAGE": url.sqlalchemy}, **studyhall.context_settings
        )
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith(message)
