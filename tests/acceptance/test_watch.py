"""Watching a study, in a terminal of 80 columns and 24 lines and without one."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pexpect
import psycopg2
import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.storage.records import Claim, StudyRecord
from studies.storage.url import StorageURL
from tests.acceptance.conftest import Shell
from tests.support.postgres import start_postgres

Look = Callable[[], PostgresStorage]

ON, OFF = "\x1b[?1049h", "\x1b[?1049l"
"""To the terminal's other screen, and back."""


class Terminal:
    """What `studyhall watch` shows in a terminal."""

    def __init__(self, shell: Shell, *args: str, **environment: str) -> None:
        surroundings = {key: value for key, value in shell.environment.items() if key not in ("COLUMNS", "NO_COLOR")}
        self.process = pexpect.spawn(
            shell.command,
            ["watch", *args],
            cwd=str(shell.folder),
            env={**surroundings, "TERM": "xterm-256color", **environment},
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=300,
        )
        self.text = ""

    def expect(self, pattern: str) -> None:
        """Wait until it shows ``pattern``."""
        self.process.expect(pattern)
        self.text += self.process.before + self.process.after

    def end(self) -> int:
        """Wait for its end; returns its exit status."""
        self.process.expect(pexpect.EOF)
        self.text += self.process.before
        self.process.close()
        assert self.process.exitstatus is not None, f"killed by {self.process.signalstatus}"
        return int(self.process.exitstatus)

    @property
    def pictures(self) -> list[list[str]]:
        """Each picture's lines, without colours."""
        live = self.text.partition(ON)[2].partition(OFF)[0]
        return [self._lines(frame) for frame in live.split("\x1b[H")[1:]]

    @property
    def left(self) -> list[str]:
        """What is left on the terminal at the end."""
        return self._lines(self.text.partition(OFF)[2] or self.text)

    @staticmethod
    def _lines(text: str) -> list[str]:
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "").split("\n")]


@contextmanager
def at_work(shell: Shell, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Two workers on a study that was created, until it ends."""
    with shell.start("run", "script.py:objective", "--workers", "2", *args, STEP_SECONDS="0.1") as process:
        yield process
        assert process.wait(timeout=300) == 0


def create(storage: PostgresStorage, trials: int = 3, **more: Any) -> StudyRecord:
    """A study for the test itself to work on."""
    spec = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": trials}, **more}
    record, _ = storage.create_study(StudySpec.from_dict(spec))
    storage.workers.register([record], worker_id="w", host="alpha", pid=1, device="cpu")
    return record


def begin(storage: PostgresStorage, record: StudyRecord) -> Claim:
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    storage.leases.write(claim, {"reports": [{"step": n, "value": n / 7} for n in range(4)]}, step=3)
    return claim


def finish(storage: PostgresStorage, record: StudyRecord, count: int) -> None:
    for _ in range(count):
        storage.leases.finish(begin(storage, record), "COMPLETE", [0.5], {})


def test_a_study_is_watched_live_until_it_ends(shell: Shell) -> None:
    settings = ("--trials", "16", "--set", "pruner.options={n_startup_trials=2}")
    assert shell.run("create", "script.py:objective", *settings).returncode == 0
    terminal = Terminal(shell, "script-objective")
    terminal.expect("0 of 16 trials")
    with at_work(shell, *settings):
        assert terminal.end() == 0
    assert len(terminal.pictures) > 4
    for lines in terminal.pictures:
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
    seen = "\n".join(line for lines in terminal.pictures for line in lines)
    assert "2 workers at work" in seen
    assert re.search(r"━ +\d+ of 16 trials, \d+ s left", seen)
    assert re.search(r"best  \S+ value, trial \d+\nx=", seen)
    assert re.search(r"^ +\d+ +[1-4] +\S+  █", seen, re.MULTILINE)  # a running trial, whose values fall
    assert re.search(r"^\S+ +\d+  cpu +1 +\d+ +\d +\d+ +[\d,]+  [01] s ago", seen, re.MULTILINE)
    left = "\n".join(terminal.left)
    assert left.startswith("script-objective  the budget is spent\n━")
    assert " 16 of 16 trials\n" in left
    assert re.search(r"pruned  \d+ at step \d", left)
    assert re.search(r"saved   \d+ steps by pruning: \d+% of all", left)
    assert "next: studyhall best script-objective; go on with: studyhall extend script-objective --trials +1" in left


def test_without_a_terminal_it_prints_a_line_when_something_changed(shell: Shell) -> None:
    assert shell.run("create", "script.py:objective", "--trials", "16").returncode == 0
    with shell.start("watch", "script-objective", "--every", "0", FORCE_COLOR="1") as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        with at_work(shell, "--trials", "16"):
            rest, said = watching.communicate(timeout=300)
    assert watching.returncode == 0, said
    lines = (first + rest).splitlines()
    assert len(lines) > 3
    pattern = r"\d\d:\d\d:\d\d script-objective: (\d+) of 16 trials done, .*"
    counts = [int(found[1]) for line in lines if (found := re.fullmatch(pattern, line))]
    assert len(counts) == len(lines)
    assert counts == sorted(counts)
    assert counts[-1] == 16
    assert "best " in lines[-1]
    assert lines[-1].endswith("the budget is spent")
    assert said.startswith("next: studyhall best script-objective")
    again = shell.run("watch", "script-objective")
    assert again.stdout.splitlines()[0][9:] == lines[-1][9:]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"PYTHONIOENCODING": "ascii"}])
def test_without_colours_it_is_the_same_picture(shell: Shell, look: Look, environment: dict[str, str]) -> None:
    storage = look()
    record = create(storage)
    finish(storage, record, 2)
    terminal = Terminal(shell, "study", **environment)
    terminal.expect("2 of 3 trials")
    finish(storage, record, 1)
    assert terminal.end() == 0
    assert terminal.pictures
    if "NO_COLOR" in environment:
        styles = {code for codes in re.findall(r"\x1b\[([\d;]*)m", terminal.text) for code in codes.split(";")}
        assert styles <= {"0", "1", "2", ""}  # bold, dim


def test_a_dumb_terminal_gets_lines(shell: Shell, look: Look) -> None:
    finish(look(), create(look()), 3)
    terminal = Terminal(shell, "study", TERM="dumb")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.text
    assert "study: 3 of 3 trials done" in terminal.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_and_leaves_the_terminal_as_it_was(shell: Shell, look: Look, number: int) -> None:
    storage = look()
    begin(storage, create(storage))
    terminal = Terminal(shell, "study")
    terminal.expect("▁▃▆█")
    if number == signal.SIGINT:
        terminal.process.sendintr()
    else:
        terminal.process.kill(number)
    assert terminal.end() == 130
    assert terminal.text.count(ON) == terminal.text.count(OFF) == 1
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor is there again
    assert "\n".join(terminal.left).rstrip().endswith("interrupted")
    assert storage.trials(storage.find_study("study"))[0].state == TrialState.RUNNING


def test_what_is_paused_or_fails_is_shown(shell: Shell, look: Look) -> None:
    storage = look()
    record = create(storage, budget={"trials": 9, "max_failures": 2})
    for reason in ("cancelled", "ValueError: \x1b[2J no luck", "ValueError: none either"):
        claim = begin(storage, record)
        if reason == "cancelled":
            storage.cancel(storage.trial(record, 0))
        error = {"key": "error", "value": f'"{reason}"'.replace("\x1b", "\\u001b")}
        storage.leases.finish(claim, "FAIL", None, {"user_attrs": [error]})
        if reason == "cancelled":
            storage.budgets.pause(record)
            terminal = Terminal(shell, "study")
            terminal.expect("paused; go on with: studyhall resume study")
            terminal.expect("failed  1 × cancelled")
            storage.budgets.resume(record)
            terminal.expect("1 worker at work")
    assert terminal.end() == 0
    left = "\n".join(terminal.left)
    assert left.startswith("study  stopped after too many failed trials")
    assert "failed  2 × ValueError: none either" in left
    assert "next: studyhall trials study --state fail; go on with: studyhall extend study --max-failures +10" in left
    assert "\x1b[2J" not in terminal.text


@pytest.mark.parametrize("plain", [False, True])
def test_a_database_that_is_away_is_waited_for(tmp_path: Path, home: Path, plain: bool) -> None:
    with start_postgres() as postgres:
        url = StorageURL.parse(postgres.url)
        storage = PostgresStorage(url)
        record = create(storage, trials=2)
        finish(storage, record, 1)
        terminal = Terminal(Shell(url, tmp_path, home), "study", **({"TERM": "dumb"} if plain else {}))
        terminal.expect("1 of 2 trials")
        postgres.stop()
        terminal.expect("waiting for the database: ")
        terminal.expect(f"port {postgres.port}")
        postgres.start()
        finish(storage, record, 1)
        assert terminal.end() == 0
        storage.close()
    assert "2 of 2 trials" in "\n".join(terminal.left)
    assert "Traceback" not in terminal.text
    assert "waiting for the database" not in terminal.left


def test_a_database_that_hangs_is_said_to(tmp_path: Path, home: Path) -> None:
    with start_postgres() as postgres:
        url = StorageURL.parse(postgres.url)
        storage = PostgresStorage(url)
        begin(storage, create(storage))
        terminal = Terminal(Shell(url, tmp_path, home), "study")
        terminal.expect("0 of 3 trials")
        storage.close()
        with closing(psycopg2.connect(**url.libpq)) as connection, connection.cursor() as cursor:
            cursor.execute("lock table studies")
            terminal.expect("waiting for the database: no answer for [5-9] s")
            terminal.process.sendintr()
            assert terminal.end() == 130


@pytest.mark.parametrize("again", [False, True])
def test_a_study_that_is_deleted_meanwhile_is_a_clear_end(shell: Shell, look: Look, again: bool) -> None:
    storage = look()
    record = create(storage)
    terminal = Terminal(shell, "study")
    terminal.expect("0 of 3 trials")
    storage.delete(record)
    if again:
        create(storage)
    assert terminal.end() == 1
    assert terminal.left[-2] == "error: study 'study' was deleted while it was watched; see: studyhall ls"


def test_a_study_of_stock_optuna_s_and_one_of_several_objectives_are_shown(shell: Shell, look: Look) -> None:
    storage = look()
    study = optuna.create_study(storage=storage, study_name="stock", directions=["minimize", "maximize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=3)
    terminal = Terminal(shell, "stock")
    terminal.expect("no worker is running")
    terminal.expect("3 complete")
    terminal.expect("on the Pareto front of ")
    terminal.process.sendintr()
    assert terminal.end() == 130


def test_a_study_that_is_not_there_is_an_error(shell: Shell, look: Look) -> None:
    create(look())
    missing = shell.run("watch", "studi")
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert "no study 'studi'" in missing.stderr
    assert "did you mean 'study'?" in missing.stderr
    away = replace(shell.url, database="not_there")
    nothing = Shell(away, shell.folder, Path("/nonexistent")).run("watch", "study")
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("error: ")
    assert nothing.stderr.count("\n") == 1


def test_who_reads_a_pipe_may_have_enough(shell: Shell, look: Look) -> None:
    finish(look(), create(look()), 3)
    with shell.start("watch", "study") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=300)
        assert process.stderr is not None
        assert process.stderr.read() == ""
