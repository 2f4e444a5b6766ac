"""Running studies as a person does: to the end, twice at once, interrupted, killed."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from optuna.trial import FrozenTrial

from studies import PostgresStorage
from studies.storage.records import Claim
from studies.storage.url import StorageURL
from tests.acceptance.conftest import SCRIPT, Shell
from tests.support.postgres import start_postgres
from tests.support.waiting import eventually

Look = Callable[[], PostgresStorage]


def states(storage: PostgresStorage, study: str = "script-objective") -> list[str]:
    return [trial.state.name for trial in storage.trials(storage.find_study(study))]


def trials(storage: PostgresStorage) -> list[FrozenTrial]:
    return storage.trials(storage.find_study("s"))


def running(storage: PostgresStorage) -> bool:
    """Whether two trials run and have reported."""
    rows = [row for row in storage.list_studies() if row["running"] == 2]
    if not rows:
        return False
    trials = storage.trials(storage.find_study(rows[0]["name"]))
    return sum(bool(trial.intermediate_values) for trial in trials) >= 2


def worker_pids(process: subprocess.Popen[str]) -> list[int]:
    return [
        child.pid for child in psutil.Process(process.pid).children() if "studies.worker.process" in child.cmdline()
    ]


def test_an_unchanged_optuna_script_runs(shell: Shell) -> None:
    done = shell.run("run", "script.py:objective", "--trials", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("best of script-objective: trial ")
    assert "study 'script-objective' begins" in done.stderr
    assert "12 of 12 trials done" in done.stderr
    best = json.loads(shell.data("best", "script-objective", "--format", "json"))
    assert set(best) == {"study", "number", "value", "params", "metrics", "user_attrs"}
    assert best["value"] == pytest.approx((best["params"]["x"] - 2) ** 2)


def test_a_module_is_found_in_the_current_folder(shell: Shell) -> None:
    done = shell.run("run", "script:objective", "--trials", "2", "--workers", "1", "--set", "direction=maximize")
    assert done.returncode == 0, done.stderr
    assert 'direction = "maximize"' in shell.data("show", "script-objective")


def test_the_same_command_shows_a_finished_study_at_once(shell: Shell) -> None:
    first = shell.run("run", "script.py:objective", "--trials", "3", "--workers", "1")
    second = shell.run("run", "script.py:objective", "--trials", "3", "--workers", "1")
    assert second.returncode == 0
    assert second.stdout == first.stdout
    assert "begins" not in second.stderr


def test_an_extended_study_goes_on_with_the_same_command(shell: Shell, look: Look) -> None:
    command = ("run", "script.py:objective", "--trials", "2", "--workers", "1", "--set", "pruner.name=none")
    shell.run(*command)
    assert "2 of 4 trials done" in shell.run("extend", "script-objective", "--trials", "+2").stderr
    done = shell.run(*command)
    assert done.returncode == 0, done.stderr
    assert states(look()) == ["COMPLETE"] * 4


def test_two_terminals_run_one_study_from_an_empty_database(
    shell: Shell, empty_database: StorageURL, look: Look
) -> None:
    shell.use(empty_database)
    runs = [shell.start("run", "script.py:objective", "--trials", "30", "--workers", "2") for _ in range(2)]
    ends = [(process.communicate(timeout=300), process.returncode) for process in runs]
    assert [status for _, status in ends] == [0, 0], ends
    storage = look()
    assert [trial.number for trial in storage.trials(storage.find_study("script-objective"))] == list(range(30))
    assert set(states(storage)) <= {"COMPLETE", "PRUNED"}
    assert sorted("begins" in err for (_, err), _ in ends) == [False, True]


def test_ctrl_c_gives_running_trials_back_and_the_same_command_goes_on(shell: Shell, look: Look) -> None:
    command = ("run", "script.py:objective", "--trials", "4", "--workers", "2", "--set", "pruner.name=none")
    process = shell.start(*command, STEP_SECONDS="0.5")
    storage = PostgresStorage(shell.url)
    eventually(lambda: running(storage))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "stopping: running trials are requeued at their next step; Ctrl-C again: now" in err
    assert "interrupted: script-objective: " in err
    assert "Traceback" not in err
    before = storage.trials(storage.find_study("script-objective"))
    assert "RUNNING" not in states(storage)
    assert "WAITING" in states(storage)
    storage.close()
    assert shell.run(*command).returncode == 0
    after = look().trials(look().find_study("script-objective"))
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 4
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]


def test_a_second_ctrl_c_stops_at_once_and_still_gives_trials_back(shell: Shell, look: Look) -> None:
    process = shell.start("run", "script.py:objective", "--trials", "4", "--workers", "2", STEP_SECONDS="600")
    storage = look()
    eventually(lambda: any(row["running"] == 2 for row in storage.list_studies()))
    workers = worker_pids(process)
    process.send_signal(signal.SIGINT)
    while "stopping: " not in process.stderr.readline():  # two signals at once would be one
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert states(storage) == ["WAITING"] * 2
    assert not any(psutil.pid_exists(pid) for pid in workers)


def test_a_killed_worker_is_replaced_and_its_trial_finished(shell: Shell, look: Look) -> None:
    process = shell.start(
        "run", "script.py:objective", "--trials", "4", "--workers", "2", "--set", "pruner.name=none", STEP_SECONDS="0.3"
    )
    storage = look()
    eventually(lambda: running(storage))
    psutil.Process(worker_pids(process)[0]).kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "died: ended by signal 9 (SIGKILL); starting it again" in err
    assert states(storage) == ["COMPLETE"] * 4
    assert 2 in [attempt.times for attempt in storage.leases.attempts(storage.find_study("script-objective")).values()]


def test_workers_end_with_a_killed_supervisor_and_their_trials_come_back(shell: Shell, look: Look) -> None:
    process = shell.start("run", "script.py:objective", "--trials", "4", "--workers", "2", STEP_SECONDS="0.5")
    storage = look()
    eventually(lambda: running(storage))
    workers = worker_pids(process)
    process.kill()
    process.communicate()
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in workers))
    assert "RUNNING" not in states(storage)
    assert "FAIL" not in states(storage)


@pytest.mark.parametrize("objective", ["stepping", "stuck"])
def test_a_worker_ends_with_a_killed_supervisor_whatever_its_objective_does(
    shell: Shell, look: Look, objective: str
) -> None:
    (shell.folder / "orphans.py").write_text("""
import threading, time

def chatter():
    while True:
        try:
            print("still here")
        except OSError:
            pass
        time.sleep(0.01)

def stepping(trial):
    threading.Thread(target=chatter).start()
    for step in range(1_000_000):
        trial.report(0.5, step)
        time.sleep(0.1)

def stuck(trial):
    trial.report(0.5, 0)
    trial.report(0.5, 1)
    chatter()
""")
    options = ("--name", "s", "--trials", "1", "--workers", "1", "--lease", "3")
    process = shell.start("run", f"orphans.py:{objective}", *options, PYTHONUNBUFFERED="")
    storage = look()
    eventually(lambda: "s" in storage.study_names() and any(t.intermediate_values for t in trials(storage)))
    [worker] = worker_pids(process)
    process.kill()
    process.communicate()
    eventually(lambda: not psutil.pid_exists(worker))
    record = storage.find_study("s")
    eventually(lambda: isinstance(storage.leases.claim(record, "other", 30), Claim))
    assert states(storage, "s") == ["RUNNING"]  # the same trial


def test_a_function_learns_from_other_studies_once_its_first_trial_has_shown_its_steps(
    shell: Shell, look: Look
) -> None:
    text = 'direction = "minimize"\nobjective = { path = "script.py:steps" }\nbudget = { epochs = 40 }\n'
    text += 'sampler = { name = "curves" }\nscheduler = { name = "freezethaw" }\n'
    text += 'space = { x = { type = "float", low = 0.0, high = 1.0 } }\n'
    (shell.folder / "search.toml").write_text(text)

    def run(name: str, *options: str) -> tuple[str, list[float]]:
        done = shell.run("run", "search.toml", "--name", name, "--workers", "1", *options)
        assert done.returncode == 0, done.stderr
        storage = look()
        return done.stderr, [trial.params["x"] for trial in storage.trials(storage.find_study(name))]

    _, old = run("old")
    said, warm = run("warm", "--warm-start", "old", "--warm-start", "old")
    assert f"the sampler learns from {len(old)} trials of old" in said
    # The first trial alone is drawn as in the old study, which has seen that 0 is best.
    assert warm[0] == old[0] == 0.5
    assert max(warm[1:4]) < 0.1 < max(old[1:4])
    said, again = run("warm", "--warm-start", "old")
    assert "ended, and learns" not in said
    assert again == warm
    run("cold")
    said, _ = run("warm", "--warm-start=cold")
    assert "'warm' has ended, and learns nothing from 'cold' any more" in said
    for given, message in (
        ("none", "no study 'none' in"),
        ("", "'' names no study; give one, or leave the option out"),
    ):
        done = shell.run("run", "search.toml", "--name", "warm", "--warm-start", given)
        assert done.returncode != 0
        assert message in done.stderr


def test_gpu_hours_alone_are_no_end_on_cpus_and_run_says_so(shell: Shell) -> None:
    def said(budget: str) -> str:
        options = ("--name", budget, "--workers", "1", "--set", f"budget={{{budget}, max_failures = 1}}")
        return shell.run("run", "script.py:failing", *options).stderr

    warning = "may spend 1.5 GPU hours and has no other limit; the workers here are on CPUs and spend none"
    assert warning in said("gpu_hours = 1.5")
    assert "no other limit" not in said("gpu_hours = 1.5, trials = 9")


def test_a_trial_that_kills_its_workers_fails_and_the_study_goes_on(shell: Shell, look: Look) -> None:
    done = shell.run("run", "script.py:dying", "--trials", "4", "--workers", "1")
    assert done.returncode == 0, done.stderr
    storage = look()
    trials = storage.trials(storage.find_study("script-dying"))
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials[1].user_attrs["error"] == "3 workers died on this trial, the last: ended by signal 9 (SIGKILL)"


def test_failing_trials_end_the_study_with_the_last_error(shell: Shell) -> None:
    done = shell.run("run", "script.py:failing", "--trials", "5", "--set", "budget.max_failures=2", "--workers", "1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: study 'script-failing' stopped: 2 trials failed, the last (1) with: RuntimeError: no luck"
    )
    assert "studyhall extend script-failing --max-failures +10" in last
    shown = shell.data("show", "script-failing", "1")
    assert 'raise RuntimeError("no luck today")' in shown


def test_nan_fails_its_trial_and_the_study_goes_on(shell: Shell, look: Look) -> None:
    assert shell.run("run", "script.py:diverging", "--trials", "2", "--workers", "1").returncode == 0
    assert states(look(), "script-diverging") == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_study_of_two_objectives_ends_without_a_best(shell: Shell) -> None:
    directions = "directions=['minimize', 'maximize']"
    done = shell.run("run", "script.py:two", "--trials", "3", "--workers", "1", "--set", directions)
    assert done.returncode == 0, done.stderr
    assert "on the Pareto front; next: studyhall best script-two --pareto" in done.stderr
    assert done.stdout == ""
    assert json.loads(shell.data("status", "script-two", "--format", "json"))["best"] is None
    assert "3 of 3 trials done" in shell.data("status", "script-two")
    assert len(json.loads(shell.data("trials", "script-two", "--format", "json"))[0]["values"]) == 2
    assert "that no other one beats" in shell.data("best", "script-two")


def test_a_reader_of_messages_that_leaves_stops_no_training(shell: Shell, look: Look) -> None:
    process = shell.start("run", "script.py:talkative", "--trials", "4", "--workers", "1")
    assert process.stderr
    process.stderr.close()
    assert process.stdout
    with process.stdout:
        assert process.stdout.read().startswith("best of script-talkative")
    assert process.wait(timeout=300) == 0
    assert states(look(), "script-talkative") == ["COMPLETE"] * 4


def test_a_run_outlives_a_restart_of_its_database(tmp_path: Path, home: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with start_postgres() as postgres:
        shell = Shell(StorageURL.parse(postgres.url), tmp_path, home)
        command = ("run", "script.py:objective", "--trials", "6", "--workers", "2", "--set", "pruner.name=none")
        process = shell.start(*command, STEP_SECONDS="0.3")
        storage = PostgresStorage(shell.url)
        eventually(lambda: running(storage))
        storage.close()
        postgres.kill()
        time.sleep(2)
        postgres.start()
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "waiting for the database: " in err
        storage = PostgresStorage(shell.url)
        assert states(storage) == ["COMPLETE"] * 6
        storage.close()


def test_what_an_objective_prints_is_shown_and_is_no_data(shell: Shell) -> None:
    done = shell.run("run", "script.py:talkative", "--trials", "1", "--workers", "1")
    assert "worker 0 | hello from the objective" in done.stderr
    assert "hello" not in done.stdout


@pytest.mark.parametrize("objective", ["keeping_a_file_open", "keeping_a_file_and_a_thread"])
def test_what_an_objective_wrote_to_a_file_that_it_keeps_open_is_there_in_the_end(shell: Shell, objective: str) -> None:
    done = shell.run("run", f"script.py:{objective}", "--trials", "3", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert (shell.folder / "kept.txt").read_text() == "a line\n" * 3


def test_a_run_ends_although_a_process_that_its_objective_left_keeps_standard_error_open(shell: Shell) -> None:
    done = shell.run("run", "script.py:leaving_a_process", "--trials", "2", "--workers", "1")
    left = [psutil.Process(int(pid)) for pid in re.findall(r"left (\d+)", done.stderr)]
    assert [process.name() for process in left] == ["sleep", "sleep"]
    for process in left:
        process.kill()
    assert done.returncode == 0, done.stderr


def test_another_machine_joins_a_created_study_if_it_names_the_script(shell: Shell, look: Look) -> None:
    kept = f"checkpoints.store={shell.folder}/kept here"
    made = shell.run("create", "script.py:objective", "--trials", "3", "--name", "shared", "--set", kept)
    assert made.returncode == 0, made.stderr
    refused = shell.run("work", "shared")
    assert refused.returncode == 1
    assert "say where it lies on this machine: --objective script.py:objective" in refused.stderr
    told = (made.stderr, shell.run("trials", "shared").stderr)
    [hint] = {text.partition("run it with: ")[2].splitlines()[0] for text in told}
    joined = shell.run(*shlex.split(hint)[1:], "--workers", "1")
    assert joined.returncode == 0, joined.stderr
    assert len(states(look(), "shared")) == 3


def test_the_embedded_server_serves_without_any_setting(shell: Shell, tmp_path: Path) -> None:
    del shell.environment["STUDYHALL_STORAGE"]
    name = f"embedded-{tmp_path.name}"
    done = shell.run("run", "script.py:objective", "--trials", "2", "--workers", "1", "--name", name)
    assert done.returncode == 0, done.stderr
    assert json.loads(shell.data("status", name, "--format", "json"))["trials"]["fail"] == 0
    url = shell.data("db", "url").strip()
    assert url.startswith("postgresql+psycopg2://")
    assert name in subprocess.run(
        [Path(sys.executable).with_name("optuna"), "studies", "--storage", url],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    assert shell.run("delete", name, "--yes").returncode == 0


def test_ctrl_c_while_workers_start_ends_the_command_and_writes_nothing(shell: Shell, look: Look) -> None:
    (shell.folder / "slow.py").write_text("import time\ntime.sleep(600)\nobjective = None\n")
    process = shell.start("run", "slow.py:objective", "--workers", "2")
    eventually(lambda: len(worker_pids(process)) == 2)
    workers = worker_pids(process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err.strip()) == (130, "interrupted")
    assert not any(psutil.pid_exists(pid) for pid in workers)
    assert look().list_studies() == []
