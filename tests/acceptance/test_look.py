"""What the commands print: for scripts in every format, for people at 80 columns."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from studies.cli import studyhall
from tests.acceptance.conftest import SCRIPT, Shell
from tests.conftest import Server

SPACE = """
name = "looks"
direction = "maximize"
metric = "accuracy"

[objective]
path = "script:told"

[budget]
trials = 6

[pruner]
name = "none"

[space]
lr = { type = "float", low = 1e-4, high = 1e-1, log = true }
layers = { type = "int", low = 1, high = 4 }
act = { type = "categorical", choices = ["relu", "it's gelu", true] }
"""
TOLD = """

def told(trial):
    for step in (1, 2):
        trial.report(step / 2, step, loss=1 / step, accuracy=step / 2)
    return 1.0 if trial.number in (2, 4) else 0.5
"""


@pytest.fixture(scope="module")
def seen(separate_server: Server, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Shell]:
    """A shell with a finished study, ``looks``, in which trials 2 and 4 are equally good."""
    folder = tmp_path_factory.mktemp("looks")
    (folder / "script.py").write_text(SCRIPT + TOLD)
    (folder / "looks.toml").write_text(SPACE)
    with separate_server.database() as url:
        shell = Shell(url, folder, home)
        done = shell.run("run", "looks.toml", "--workers", "2")
        assert done.returncode == 0, done.stderr
        yield shell


@pytest.fixture
def best(seen: Shell) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(seen.data("best", "looks", "--format", "json"))
    return data


def test_best_as_json_has_the_documented_keys_and_the_lowest_number(best: dict[str, Any]) -> None:
    assert list(best) == ["study", "number", "value", "params", "metrics", "user_attrs"]
    assert (best["study"], best["number"], best["value"]) == ("looks", 2, 1.0)
    assert list(best["params"]) == ["lr", "layers", "act"]
    assert best["metrics"] == {"accuracy": 1.0, "loss": 0.5}


def test_best_as_yaml_and_toml_say_the_same(seen: Shell, best: dict[str, Any]) -> None:
    assert yaml.safe_load(seen.data("best", "looks", "--format", "yaml")) == best
    assert tomllib.loads(seen.data("best", "looks", "--format", "toml")) == best


def test_best_as_environment_is_read_by_a_shell(seen: Shell, best: dict[str, Any]) -> None:
    script = f'{seen.data("best", "looks", "--format", "env")}\nprintf \'%s\\n\' "$LR" "$LAYERS" "$ACT"'
    lr, layers, act = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert (float(lr), int(layers)) == (best["params"]["lr"], best["params"]["layers"])
    assert act == ("true" if best["params"]["act"] is True else best["params"]["act"])


def test_best_as_arguments_is_split_by_a_shell(seen: Shell, best: dict[str, Any]) -> None:
    words = shlex.split(seen.data("best", "looks", "--format", "args"))
    assert words[:4] == ["--lr", repr(best["params"]["lr"]), "--layers", str(best["params"]["layers"])]


def test_stock_optuna_agrees_on_the_best_value_and_reads_the_trials(seen: Shell, best: dict[str, Any]) -> None:
    command = [Path(sys.executable).with_name("optuna"), "best-trial", "--storage", seen.url.sqlalchemy]
    out = subprocess.run(
        [*command, "--study-name", "looks", "--format", "json"], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    # Of equal trials stock Optuna shows whichever the database finds first.
    stock = json.loads(out)
    assert stock["number"] in (2, 4)
    assert stock["value"] == {"accuracy": best["value"]}


def test_status_as_json_has_the_documented_keys(seen: Shell, best: dict[str, Any]) -> None:
    status = json.loads(seen.data("status", "looks", "--format", "json"))
    assert {"study", "budget", "trials", "best", "workers"} <= set(status)
    assert status["budget"] == 6
    assert status["trials"] == {"complete": 6, "pruned": 0, "running": 0, "waiting": 0, "fail": 0}
    assert status["best"] == best
    assert status["workers"] == []


def test_trials_as_csv_and_json_hold_every_trial(seen: Shell) -> None:
    rows = list(csv.DictReader(io.StringIO(seen.data("trials", "looks", "--format", "csv"))))
    data = json.loads(seen.data("trials", "looks", "--format", "json"))
    assert [int(row["number"]) for row in rows] == [trial["number"] for trial in data] == list(range(6))
    for row, trial in zip(rows, data, strict=True):
        assert float(row["params_lr"]) == trial["params"]["lr"]
        assert float(row["value"]) == trial["value"]
        assert float(row["metrics_loss"]) == trial["metrics"]["loss"] == 0.5
        assert trial["steps"] == {"1": 0.5, "2": 1.0}
        assert trial["state"] == row["state"] == "COMPLETE"
        assert trial["attempts"] == 1


def test_ls_as_json_holds_every_study(seen: Shell) -> None:
    (row,) = json.loads(seen.data("ls", "--format", "json"))
    assert (row["name"], row["budget"], row["complete"]) == ("looks", 6, 6)


def test_a_shown_spec_makes_the_same_study_again(seen: Shell) -> None:
    (seen.folder / "again.toml").write_text(seen.data("show", "looks"))
    done = seen.run("create", "again.toml")
    assert done.returncode == 0, done.stderr
    assert "study 'looks' already exists with this spec: " in done.stderr


def test_a_shown_trial_has_its_parameters_and_its_curve(seen: Shell) -> None:
    shown = seen.data("show", "looks", "2")
    assert shown.startswith("trial 2 of looks: complete")
    assert "step  accuracy  loss" in shown
    assert [line.split() for line in shown.splitlines()[-2:]] == [["1", "0.5", "1"], ["2", "1", "0.5"]]


@pytest.mark.parametrize("command", ["ls", "status looks", "best looks", "trials looks", "show looks"])
def test_people_see_no_line_over_80_columns_and_no_colour_in_a_pipe(seen: Shell, command: str) -> None:
    out = seen.data(*command.split())
    assert out
    assert "\x1b" not in out
    if not command.startswith("trials"):  # through a pipe its last column, the parameters, is whole
        assert all(len(line) <= 80 for line in out.splitlines())


def test_a_reader_that_has_enough_is_no_error(seen: Shell) -> None:
    command = f"{shlex.quote(seen.command)} trials looks --format csv | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=seen.environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")


def commands(group: click.Group = studyhall, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...], shell: Shell) -> None:
    help_text = shell.data(*command, "--help")
    assert help_text.startswith(f"Usage: studyhall {' '.join(command)} ")
    assert all(len(line) <= 80 for line in help_text.splitlines())


def test_the_overview_shows_every_command_in_whole_sentences(shell: Shell) -> None:
    overview = shell.data("--help")
    for name in studyhall.commands:
        assert f"\n  {name} " in overview
    assert "..." not in overview.replace("[ARGS]...", "")
    assert all(len(line) <= 80 for line in overview.splitlines())
