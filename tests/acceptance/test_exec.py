"""The best parameters in a user's own program: exec, and the formats of best; in Python, open_storage()."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from click.testing import CliRunner

from studies import PostgresStorage, open_storage
from studies.cli import studyhall
from studies.spec.space import categorical
from tests.acceptance.conftest import Shell
from tests.conftest import Server
from tests.unit.test_parameters import PARAMS, TEXTS, parsed

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


@pytest.fixture(scope="module")
def told(separate_server: Server, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Shell]:
    """A shell with a study ``one`` of :data:`PARAMS`, and ``two`` of two objectives."""
    folder = tmp_path_factory.mktemp("told")
    trial = {"params": PARAMS, "distributions": {name: categorical([value]) for name, value in PARAMS.items()}}
    with separate_server.database() as url:
        storage = PostgresStorage(url)
        one = optuna.create_study(storage=storage, study_name="one")
        one.add_trial(optuna.create_trial(value=1.0, user_attrs={"n_params": 123, "note": "$HOME"}, **trial))
        two = optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
        storage.set_study_system_attr(two._study_id, "study:metric_names", ["loss", "accuracy"])
        for values in ([2.0, 1.0], [1.0, 0.5], [3.0, 0.5]):
            two.add_trial(optuna.create_trial(values=values, **trial))
        storage.close()
        yield Shell(url, folder, home)


def test_a_program_gets_the_parameters_as_arguments_words_or_variables(told: Shell) -> None:
    python = ["--", sys.executable, "-c", SHOW]
    words, _ = json.loads(told.data("exec", "one", *python, "--epochs", "3"))
    assert words[:4] == ["--epochs", "3", "--lr", "0.001"]
    assert parsed(words[2:], bn=argparse.BooleanOptionalAction) == {
        **TEXTS, "none": None, "bn": True, "bias": False
    }  # fmt: skip
    words, _ = json.loads(told.data("exec", "two", "--trial", "1", *python, "lr={lr}", "{newlines}"))
    assert words == ["lr=0.001", TEXTS["newlines"]]
    words, environment = json.loads(told.data("exec", "one", "--env", "--prefix", "HP_", *python, "{lr}"))
    assert words == ["{lr}"]
    assert {name: environment[f"HP_{name.upper()}"] for name in PARAMS} == TEXTS
    assert environment["PATH"] == told.environment["PATH"]


def test_its_exit_status_and_its_end_are_the_program_s(told: Shell) -> None:
    assert told.run("exec", "one", "--", "sh", "-c", "exit 7").returncode == 7
    # SIGPIPE, which Python ignores: else `yes` would complain of a broken pipe.
    done = told.run("exec", "one", "--", "bash", "-c", "yes | head -n 1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout, done.stderr) == (128 + 13, "y\n", "")


def test_what_cannot_be_done_is_one_line_with_the_way_out(told: Shell) -> None:
    reserved = "parameter 'path' would be the variable PATH, which shells or programs obey; give --prefix HP_"
    several = "2 objectives, so no best trial; choose one with --trial N out of: studyhall best two --pareto"
    for line, status, words in (
        ("exec one", 2, "no program to run; for example: studyhall exec one -- python train.py"),
        ("exec one -- no-such-program", 1, "cannot run 'no-such-program': No such file or directory"),
        ("exec one -- echo {lrr}", 1, "the trial has no parameter 'lrr'; did you mean 'lr'?"),
        ("exec one --env -- true", 1, reserved),
        ("exec one --prefix HP_ -- true", 2, "--prefix is for environment variables; add --env"),
        ("exec one --env --booleans flag -- true", 2, "--booleans is for arguments; leave --env or this out"),
        ("exec two -- true", 1, several),
        ("exec one --trial 9 -- true", 1, "study 'one' has no trial 9; its trials are 0 to 0"),
        ("best one --format env", 1, reserved),
        ("best one --prefix HP_", 2, "--prefix is for variables; add --format env"),
        ("best one --booleans flag", 2, "--booleans is for arguments; add --format args"),
        ("best two --format env", 1, several),
        ("best two --pareto --trial 1", 2, "--pareto and --trial exclude each other; give one of them"),
    ):
        done = CliRunner().invoke(studyhall, line.split(), env=told.environment)
        assert (done.exit_code, done.stdout) == (status, ""), line
        assert words in done.stderr.splitlines()[-1]


def test_every_format_holds_the_same_parameters(told: Shell) -> None:
    read = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
    found: dict[str, dict[str, Any]] = {
        kind: load(told.data("best", "one", "--format", kind)) for kind, load in read.items()
    }
    assert found["json"] == found["yaml"]
    assert found["json"]["params"] == PARAMS
    assert found["toml"]["params"] == {name: value for name, value in PARAMS.items() if value is not None}
    assert found["json"]["user_attrs"] == {"n_params": 123, "note": "$HOME"}
    # The lines of docs/parameters.md.
    show = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
    script = f'eval "{show} $({told.command} best one --format args)"'
    words = json.loads(subprocess.check_output(["bash", "-c", script], env=told.environment, text=True))
    assert words == json.loads(told.data("exec", "one", "--", sys.executable, "-c", SHOW))[0]
    script = f'eval "$({told.command} best one --format env --prefix HP_)"; ls >&2; printf %s "$HP_NEWLINES|$HP_PATH"'
    out = subprocess.run(["bash", "-c", script], env=told.environment, text=True, capture_output=True, check=True)
    assert out.stdout == f"{TEXTS['newlines']}|p"


def test_the_front_of_several_objectives_is_printed(told: Shell) -> None:
    data = json.loads(told.data("best", "two", "--format", "json"))
    assert data["study"] == "two"
    assert [(trial["number"], trial["values"]) for trial in data["best_trials"]] == [(0, [2.0, 1.0]), (1, [1.0, 0.5])]
    lines = told.data("best", "two").splitlines()
    assert lines[0] == "best of two: 2 trials that no other one beats in all of loss, accuracy"
    assert [line.split()[:3] for line in lines[2:]] == [
        ["trial", "loss", "accuracy"],
        ["0", "2", "1"],
        ["1", "1", "0.5"],
    ]
    assert told.data("best", "two", "--trial", "2").startswith("trial 2 of two: complete, 3 0.5\n")
    for kind, each in (("args", "--lr 0.001 "), ("env", "HP_LR=0.001 ")):
        prefix = ["--prefix", "HP_"] if kind == "env" else []
        assert told.data("best", "two", "--pareto", "--format", kind, *prefix).count(each) == 2
    (alone,) = json.loads(told.data("best", "one", "--pareto", "--format", "json"))["best_trials"]
    assert alone == {
        key: value for key, value in json.loads(told.data("best", "one", "--format", "json")).items() if key != "study"
    }


def test_python_opens_the_storage_of_the_command_line(told: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDYHALL_STORAGE", told.url.sqlalchemy)
    for url in (None, told.url.sqlalchemy):
        storage = open_storage(url)
        assert storage.study_names() == ["one", "two"]
        storage.close()
    storage = open_storage(home=str(home))  # what is given counts for more than the environment
    assert storage.server
    storage.close()
    monkeypatch.setenv("STUDYHALL_STORAGE", "")
    monkeypatch.setenv("STUDYHALL_HOME", str(home))
    storage = open_storage()
    assert storage.server
    assert storage.server.home == home
    storage.close()
    with pytest.raises(TypeError, match="a url or a home, not both"):
        open_storage(told.url.sqlalchemy, home=home)
