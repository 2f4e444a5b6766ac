"""What a person gets wrong: one clear line, the right exit status, and nothing written."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.acceptance.conftest import Shell
from tests.support.postgres import PASSWORD

Look = Callable[[], PostgresStorage]
DIGITS = ("run", "digits", "--workers", "1")
SPEC = """
name = "own"
[objective]
path = "objectives.mlp:MLP"
args = { dataset = "digits" }
[space]
lr = { type = "float", low = 1e-4, high = 1e-1, log = true }
"""
NET = """
class Net:
    direction = "maximize"
    parameters = ("width", "lr")

    def __init__(self, epochs=1):
        if not epochs:
            raise ValueError(f"{epochs} epochs train nothing")

    def check_params(self, params):
        if params.get("width", 0) > 64:
            raise ValueError(f"width = {params['width']}; it must be at most 64")

    def __call__(self, trial):
        return 1.0
"""


def refuse(shell: Shell, *command: str | Path, status: int, message: str, **environment: str) -> str:
    """Run a command that must fail with one line that holds ``message``; returns that line."""
    done = shell.run(*command, **environment)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["budget.trails=3"], "digits: budget.trails: unknown key; did you mean 'trials'?"),
        (["space.lr.low=1"], "digits: space.lr: low = 1.0 is above high = 0.03; low must not exceed high"),
        (["space.lr.low=0"], "with log = true; a logarithmic range begins above 0"),
        (["space.lr.high=nan"], "digits: space.lr: high = nan is not a finite number"),
        (["space.o={type='categorical',choices=[]}"], "digits: space.o: choices is empty; give at least one"),
        (["space.o={type='categorical',choices=[1,1]}"], "digits: space.o: choices holds 1 twice; each must differ"),
        (["space.lr.when={o=[1]}"], "space.lr.when names the unknown parameter 'o'"),
        (["sampler.name=tep"], "sampler.name: 'tep' is unknown; did you mean 'tpe'?"),
        (["pruner.name=hyper"], "pruner.name: 'hyper' is unknown; did you mean 'hyperband'?"),
        (["pruner.name=hyperband", "pruner.options.max=3"], "pruner.options.max: 'hyperband' has no such option"),
        (["budget.trials=0"], "digits: budget.trials = 0: should be greater than 0"),
        (["budget.trials=-1"], "digits: budget.trials = -1: should be greater than 0"),
        (["nonsense"], "--set 'nonsense' is not KEY=VALUE; for example --set budget.trials=20"),
        (["name=''"], "digits: name is empty; a study needs one of 1 to 128 characters"),
        ([f"name={'x' * 200}"], "has 200 characters; at most 128 are legal"),
        (['name="a\\tb"'], "name 'a\\tb' holds a control character; only printable ones are legal"),
    ],
)
def test_a_spec_that_is_not_legal(shell: Shell, look: Look, settings: list[str], message: str) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    refuse(shell, *DIGITS, *options, status=2, message=message)
    assert look().list_studies() == []


def test_an_unknown_preset_names_the_nearest_and_the_others(shell: Shell) -> None:
    line = refuse(shell, "run", "mnits", status=2, message="did you mean 'mnist'?")
    assert "diabetes, digits, fashion-mnist, linear-regression, mnist" in line


@pytest.mark.parametrize("content", ["name = ", "[space\n", 'a = "\x01"'])
def test_a_study_file_that_is_no_toml(shell: Shell, content: str) -> None:
    (shell.folder / "my.toml").write_text(content)
    refuse(shell, "run", "my.toml", status=2, message="my.toml: not TOML: ")


@pytest.mark.parametrize("command", ["run", "create"])
def test_a_spec_that_differs_from_the_stored_one(shell: Shell, look: Look, command: str) -> None:
    (shell.folder / "my.toml").write_text(SPEC)
    assert shell.run("create", "my.toml").returncode == 0
    setting = ("--set", "objective.args.epochs=5", "--set", "space.lr.high=0.2")
    line = refuse(shell, command, "my.toml", *setting, status=1, message="study 'own' exists with another spec: ")
    assert "objective.args.epochs is absent, not 5" in line
    assert "space.lr.high is 0.1, not 0.2" in line
    assert look().find_study("own").spec.space["lr"].high == 0.1


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("nowhere.py:f", [], "no file "),
        ("nowhere_at_all.module:f", [], "no module 'nowhere_at_all' for objective"),
        ("script.py:objectiv", [], "has no 'objectiv'; did you mean 'objective'?"),
        ("script.py:SCRIPT_IS_NO_NAME", [], "has no 'SCRIPT_IS_NO_NAME'"),
        ("script.py:time", [], "is not callable (it is a module (time)); name a function or a class"),
        ("broken.py:f", [], "does not import: ZeroDivisionError: division by zero"),
        ("script.py:objective", ["objective.args.epochs=3"], "is a function, which takes no objective.args (epochs)"),
        (
            "net.py:Net",
            ["objective.args.epoch=3"],
            "does not accept objective.args: got an unexpected keyword",
        ),
        ("net.py:Net", ["objective.args.epochs=0"], "net.py:Net': 0 epochs train nothing"),
        (
            "net.py:Net",
            ["space.widht={type='int',low=1,high=2}"],
            "has no parameter 'widht' (space.widht); did you mean 'width'",
        ),
        (
            "net.py:Net",
            ["space.width={type='int',low=1,high=99}"],
            "refuses width=99 of the space: width = 99; it must be at most 64",
        ),
        (
            "net.py:Net",
            ["direction=minimize"],
            "study 'net-Net' minimizes value, but its objective 'net.py:Net' is to be maximized; give "
            "--direction maximize",
        ),
    ],
)
def test_an_objective_that_is_not_sound(
    shell: Shell, look: Look, target: str, options: list[str], message: str
) -> None:
    (shell.folder / "broken.py").write_text("f = 1 / 0\n")
    (shell.folder / "net.py").write_text(NET)
    settings = [part for option in options for part in ("--set", option)]
    refuse(shell, "run", target, "--workers", "1", *settings, status=1, message=message)
    assert look().list_studies() == []


def test_an_unreachable_server(shell: Shell) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql://user:{PASSWORD}@127.0.0.1:{unused.getsockname()[1]}/db"
        line = refuse(shell, "ls", "--storage", url, status=1, message=": start it, or correct postgresql://")
    assert PASSWORD not in line


def test_a_wrong_password_is_never_shown(shell: Shell) -> None:
    (host, port), user = shell.url.hosts[0], shell.url.user
    url = f"postgresql://{user}:canary-secret@{host}:{port}/{shell.url.database}"
    for command in (("best", "x"), ("run", "digits")):
        line = refuse(shell, *command, "--storage", url, status=1, message="password authentication failed")
        assert "canary" not in line
    debug = shell.run("best", "x", "--storage", url, "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "canary" not in debug.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///study.db", "SQLite cannot be shared between machines"),
        ("mysql://user@host/db", "MySQL is not supported"),
        ("redis://host", "Redis is not supported"),
        ("study.db", "postgresql://"),
        ("postgresql://user:canary@host:99999/db", "port"),
    ],
)
def test_a_storage_that_is_no_postgresql(shell: Shell, url: str, message: str) -> None:
    assert "canary" not in refuse(shell, "ls", "--storage", url, status=2, message=message)
    assert not (shell.folder / "study.db").exists()


@pytest.mark.parametrize("command", ["status", "best", "trials", "show", "work", "delete", "finalize"])
def test_a_missing_study_names_the_nearest(shell: Shell, command: str) -> None:
    assert shell.run("create", "script.py:objective", "--name", "shapes").returncode == 0
    refuse(shell, command, "shape", status=1, message="did you mean 'shapes'?")


def test_the_best_of_a_study_without_finished_trials(shell: Shell) -> None:
    shell.run("create", "script.py:objective", "--name", "fresh")
    refuse(shell, "best", "fresh", status=1, message="study 'fresh' has no complete trial yet (0 pruned, 0 running")


def test_a_trial_that_is_not_there(shell: Shell) -> None:
    shell.run("create", "script.py:objective", "--name", "fresh")
    refuse(shell, "show", "fresh", "7", status=1, message="study 'fresh' has no trial 7; it has none yet")


def test_a_database_without_studies_is_not_written_to(shell: Shell, empty_database: StorageURL) -> None:
    empty = ("--storage", empty_database.sqlalchemy)
    refuse(shell, "best", "x", *empty, status=1, message="holds no studies yet; begin one with: studyhall run digits")
    import psycopg2

    connection = psycopg2.connect(**empty_database.libpq)
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_tables where schemaname in ('public', 'studyhall')")
        assert cursor.fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["run", "digits", "--workers", "0"],
        ["run", "digits", "--lease", "1"],
        ["best", "x", "--format", "xml"],
        ["nonsense"],
        ["extend", "x"],
        ["extend", "x", "--trials", "-5"],
        ["extend", "x", "--timeout", "never"],
        ["db", "stop", "--storage", "postgresql://host/db"],
    ],
)
def test_usage_errors_exit_with_2_and_show_the_way(shell: Shell, command: list[str]) -> None:
    done = shell.run(*command)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(r"; see: studyhall[ a-z]* --help$", line)
