"""`studyhall run` and `work` tell a web address what happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from studies import PostgresStorage
from tests.acceptance.conftest import Shell
from tests.support.waiting import GUARD
from tests.support.webhook import Webhook

Look = Callable[[], PostgresStorage]
RUN = ("run", "script.py:objective", "--workers", "2", "--trials", "8", "--set", "pruner.name=none")


@pytest.fixture
def there() -> Iterator[Webhook]:
    with Webhook() as there:
        yield there


def test_a_run_tells_its_bests_and_its_end(shell: Shell, there: Webhook, look: Look) -> None:
    done = shell.run(*RUN, "--set", f'notify.url="{there.url}"', STUDYHALL_NOTIFY=there.url)
    assert done.returncode == 0, done.stderr
    [end] = there.events("finished")
    assert there.messages[-1] == end
    best = json.loads(shell.data("best", "script-objective", "--format", "json"))
    told = there.events("best")
    assert [m["value"] for m in told] == sorted((m["value"] for m in told), reverse=True)
    for message in (told[-1], end["best"]):
        assert (message["trial"], message["value"], message["params"]) == (
            best["number"],
            best["value"],
            best["params"],
        )
    assert end["ended"] == "complete"
    assert end["trials"]["complete"] == 8
    storage = look()
    values = {trial.number: trial.value for trial in storage.trials(storage.find_study("script-objective"))}
    assert all(values[m["trial"]] == m["value"] for m in told)
    assert "c4n4ry" not in done.stdout + done.stderr


def test_two_machines_tell_each_event_once(shell: Shell, there: Webhook) -> None:
    slow = {"STEP_SECONDS": "0.1", "STUDYHALL_NOTIFY": there.url}
    shell.data("create", *RUN[1:2], *RUN[4:])
    work = ("work", "script-objective", "--objective", "script.py:objective", "--workers", "1")
    with shell.start(*work, **slow) as one, shell.start(*work, **slow) as other:
        assert (one.wait(GUARD), other.wait(GUARD)) == (0, 0)
    assert len(there.events("finished")) == 1
    told = [m["trial"] for m in there.events("best")]
    assert told
    assert len(told) == len(set(told))


def test_an_address_that_hangs_costs_three_seconds_at_the_end_and_nothing_else(shell: Shell, there: Webhook) -> None:
    def seconds(*more: str) -> float:
        began = time.monotonic()
        done = shell.run(*RUN, *more)
        assert done.returncode == 0, done.stderr
        assert "c4n4ry" not in done.stdout + done.stderr
        return time.monotonic() - began

    alone = seconds("--name", "alone")
    there.status = 0
    assert seconds("--name", "hanging", "--notify", there.url) < alone + 3 + 60  # it is tried again and again
    assert there.tries


def test_a_worker_that_was_killed_is_told_and_a_study_that_failed_out(shell: Shell, there: Webhook) -> None:
    with shell.start(
        *("run", "script.py:objective", "--workers", "2", "--trials", "30", "--name", "killed", "--notify", there.url),
        STEP_SECONDS="0.3",
    ) as process:
        deadline = time.monotonic() + 120
        while not there.events("best"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        worker = next(c for c in psutil.Process(process.pid).children() if "studies.worker.process" in c.cmdline())
        environment = worker.environ()
        assert "STUDYHALL_NOTIFY" not in environment
        os.kill(worker.pid, 9)
        while not there.events("worker_lost"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        assert process.wait(GUARD) == 130
    [lost] = there.events("worker_lost")
    assert (lost["pid"], lost["reason"]) == (worker.pid, "ended by signal 9 (SIGKILL)")
    assert lost["host"] == os.uname().nodename
    failed = shell.run(
        "run", "script.py:failing", "--workers", "1", "--set", "budget.max_failures=2", "--notify", there.url
    )
    assert failed.returncode == 1
    [message] = there.events("failures")
    assert message["error"] == "RuntimeError: no luck today"
    assert not there.events("finished")


def test_the_secret_is_not_shown_and_is_there_for_the_next_machine(shell: Shell, there: Webhook) -> None:
    shell.data("create", "script.py:objective", "--trials", "1", "--set", f'notify.url="{there.url}"')
    shown = shell.run("show", "script-objective")
    assert f'url = "http://{there.host}/***"' in shown.stdout
    (shell.folder / "shown.toml").write_text(shown.stdout)
    again = shell.run("create", "shown.toml", "--name", "another")
    assert again.returncode == 2
    assert "notify.url: this is what is shown instead of the URL" in again.stderr
    other = shell.run("run", "script.py:objective", "--trials", "1", "--set", f'notify.url="{there.url}2"')
    assert other.returncode == 1
    assert f'notify.url is another one at "http://{there.host}/***"' in other.stderr
    worked = shell.run("work", "script-objective", "--objective", "script.py:objective", "--workers", "1")
    assert worked.returncode == 0, worked.stderr
    assert [m["event"] for m in there.messages] == ["best", "finished"]
    for done in (shown, again, other, worked):
        assert "c4n4ry" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--notify", "hooks.example.org/c4n4ry"), "does not begin with http:// or https://"),
        (("--set", "notify.url=https:///c4n4ry"), "script.py:objective: notify.url: the URL names no host"),
        (("--set", "notify=https://host/c4n4ry"), "notify: should be a table of keys"),
        (("--set", "notify.url.x=https://host/c4n4ry"), "notify.url: should be a valid string"),
    ],
)
def test_what_is_no_address_is_an_error(shell: Shell, arguments: tuple[str, ...], words: str) -> None:
    done = shell.run("run", "script.py:objective", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "c4n4ry" not in done.stderr
