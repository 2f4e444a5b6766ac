"""Workers on a real Slurm of two nodes or more, interrupted in every way that it has.

    make test-slurm        about six minutes: a task that was queued again waits two of them

Takes the Slurm that answers on this machine, or starts one by the program that ``STUDYHALL_SLURM_TOOL`` names. The
database is on 127.0.0.1, so the nodes have to be this machine's.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from studies import PostgresStorage
from tests.acceptance.conftest import Shell

TOOL = os.environ.get("STUDYHALL_SLURM_TOOL")  # read now: the environment is scrubbed for each test

Look = Callable[[], PostgresStorage]

SCRIPT = '''
"""An objective of ten steps of a second, which keeps a diary of what ran where, and can go on."""

import json
import os
import time
from pathlib import Path

STEPS = 10


def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    kept = trial.restore()
    begin = 0 if kept is None else kept.step + 1
    diary, go = (Path(__file__).with_name(name) for name in ("diary", "go"))
    for step in range(begin, STEPS):
        while step == 5 and "HOLD" in os.environ and not go.exists() and not trial.stop_requested:
            time.sleep(0.1)
        if trial.stop_requested:
            trial.checkpoint(step - 1, b"so far")
            raise trial.Interrupted
        time.sleep(float(os.environ.get("STEP_SECONDS", "1")))
        where = {"node": os.environ["SLURMD_NODENAME"], "task": os.environ["SLURM_ARRAY_TASK_ID"]}
        with diary.open("a") as file:
            file.write(json.dumps({"trial": trial.number, "step": step, "begin": begin, **where}) + "\\n")
        trial.report(x * x, step)
        trial.checkpoint(step, b"so far")
    return x * x
'''


def slurm(*argv: str, **options: Any) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, **options).stdout.strip()


def answers() -> bool:
    try:
        return len(slurm("sinfo", "-h", "-N", "-o", "%N", "-t", "idle,mix,alloc", timeout=300).split()) >= 2
    except (OSError, subprocess.SubprocessError):
        return False


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> None:
    if not answers() and TOOL:
        subprocess.run([TOOL], check=True, stdout=subprocess.DEVNULL)
    if not answers():
        pytest.skip("no Slurm with two nodes answers here; STUDYHALL_SLURM_TOOL may name a program that starts one")


@pytest.fixture
def study(shell: Shell) -> Iterator[str]:
    """A study of ten trials, whose jobs are gone in the end."""
    (shell.folder / "long.py").write_text(SCRIPT)
    create(shell, "night")
    yield "night"
    shell.run("launch", "cancel", "night")


def create(shell: Shell, name: str) -> None:
    settings = ["--set", "sampler.name=random", "--set", "pruner.name=none"]
    shell.data("create", "long.py:objective", "--name", name, "--trials", "10", *settings)


def launch(shell: Shell, study: str, *options: str, **environment: str) -> str:
    """Launch workers as a person does. Returns the job's id."""
    allow = ["--objective", "long.py:objective", "--gpus-per-worker", "0"]
    done = shell.run("launch", "slurm", study, *allow, "--lease", "10", *options, **environment)
    assert done.returncode == 0, done.stderr
    assert "they write to " in done.stderr
    return done.stdout.strip()


def states(job: str) -> dict[str, str]:
    """The state of each task of an array that has not ended."""
    lines = slurm("squeue", "-h", "-r", "-o", "%F %K %T").splitlines()
    return {task: state for array, task, state in map(str.split, lines) if array == job}


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


def status(shell: Shell, study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shell.data("status", study, "--format", "json"))
    return found


def diary(shell: Shell) -> list[dict[str, Any]]:
    file = shell.folder / "diary"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_an_array_finishes_a_study_exactly_however_it_is_interrupted(shell: Shell, study: str, look: Look) -> None:
    job = launch(shell, study, "--workers", "4", "--time", "1", "--logs", "logs", HOLD="1")

    def steps() -> Counter[str]:
        return Counter(each["task"] for each in diary(shell))

    wait_until(lambda: sorted(steps().values()) == [5] * 4, 120, "each task is in its first trial")
    assert len(status(shell, study)["workers"]) == 4
    slurm("scontrol", "requeue", f"{job}_0")
    slurm("scancel", "--batch", "--signal=USR1", f"{job}_1")
    slurm("scancel", "--full", "--signal=TERM", f"{job}_2")
    wait_until(lambda: status(shell, study)["trials"]["running"] == 1, 60, "three trials are handed back")
    (shell.folder / "go").touch()
    # The one left is warned before its minute is over.
    wait_until(lambda: states(job) == dict.fromkeys("013", "PENDING"), 120, "three tasks are queued again, one ended")
    assert status(shell, study)["trials"]["running"] == 0, "an interrupted task left its trial running"
    wait_until(lambda: not states(job), 600, "the study ends")

    storage = look()
    record = storage.find_study(study)
    trials, attempts = storage.trials(record), storage.leases.attempts(record)
    assert [trial.number for trial in trials] == list(range(10))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert all(sorted(trial.intermediate_values) == list(range(10)) for trial in trials)
    assert storage.status(record).ended == "complete"
    ran = Counter((each["trial"], each["step"]) for each in diary(shell))
    assert len(ran) == 100
    assert set(ran.values()) == {1}, "a step was run twice"
    # The fourth task may have been between two trials when its minute was over.
    assert sum(attempt.times - 1 for attempt in attempts.values()) >= 3
    assert len({each["trial"] for each in diary(shell) if each["begin"] > 0}) >= 3, "trials began anew"
    assert len({each["node"] for each in diary(shell)}) >= 2
    assert sorted(file.name for file in (shell.folder / "logs").iterdir()) == [f"{job}_{i}.log" for i in range(4)]
    for task, word in {"0": "restart 1", "1": "; queueing it again", "2": "130", "3": "; queueing it again"}.items():
        assert word in (shell.folder / "logs" / f"{job}_{task}.log").read_text()
    again = shell.run("launch", "slurm", study, "--workers", "4", "--objective", "long.py:objective")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing is submitted" in again.stderr


def test_a_printed_script_runs_as_printed(shell: Shell, study: str) -> None:
    options = [
        "--workers",
        "2",
        "--gpus-per-worker",
        "0",
        "--time",
        "5",
        "--objective",
        f"{shell.folder / 'long.py'}:objective",
        "--lease",
        "10",
    ]
    setup = ["--setup", "module() { echo loaded $*; }; module load cuda", "--cpus-per-worker", "2"]
    done = shell.run("launch", "slurm", study, *options, *setup, "--print")
    assert done.returncode == 0, done.stderr
    (shell.folder / "job.sh").write_text(done.stdout)
    # The script leaves the password out, as a person's ~/.pgpass holds it.
    environment = {key: value for key, value in shell.environment.items() if key != "STUDYHALL_STORAGE"}
    environment |= {"PGPASSWORD": str(shell.url.password), "STEP_SECONDS": "0.1"}
    job = slurm("sbatch", "--parsable", "job.sh", cwd=shell.folder, env=environment)
    wait_until(lambda: not states(job), 120, "the study ends")
    assert status(shell, study)["trials"]["complete"] == 10
    for task in (0, 1):
        log = (shell.folder / f"slurm-{study}-{job}_{task}.log").read_text()
        assert "loaded load cuda" in log
        assert "the workers ended with exit status 0" in log
    again = shell.run("launch", "slurm", study, *options, "--print")
    assert (again.returncode, again.stdout) == (1, "")
    assert "has ended (" in again.stderr


def test_a_step_that_takes_longer_than_the_grace_is_cut_off_and_its_task_queued_again(shell: Shell, study: str) -> None:
    job = launch(shell, study, "--workers", "1", "--time", "1", STEP_SECONDS="300")
    wait_until(lambda: set(states(job).values()) == {"RUNNING"}, 120, "the task runs")
    wait_until(lambda: states(job) == {"0": "PENDING"}, 120, "the task is queued again")
    trials = status(shell, study)["trials"]
    assert (trials["running"], trials["waiting"]) == (0, 1)


def test_cancel_ends_a_studys_jobs_and_nothing_else(shell: Shell, study: str, look: Look) -> None:
    create(shell, "other")
    shell.data("extend", study, "--trials", "100")  # it must not end before it is cancelled
    foreign = slurm("sbatch", "--parsable", "--output=/dev/null", "--job-name", study, "--wrap", "sleep 600")
    jobs = [
        launch(shell, study, "--workers", "2"),
        launch(shell, study, "--workers", "3", "--sbatch", "begin=now+1hour"),
    ]
    other = launch(shell, "other", "--workers", "1")
    try:
        wait_until(lambda: len({each["task"] for each in diary(shell)}) >= 2, 120, "workers are at work")
        wait_until(lambda: set(states(other).values()) == {"RUNNING"}, 120, "the other study's worker runs")
        done = shell.run("launch", "cancel", study)
        assert done.returncode == 0, done.stderr
        assert f"cancelled jobs {jobs[0]}, {jobs[1]} of study '{study}' (5 tasks)" in done.stderr
        wait_until(lambda: not states(jobs[0]) and not states(jobs[1]), 120, "the jobs end")
        storage = look()
        now = storage.status(storage.find_study(study))
        assert now.trials["running"] == 0
        assert now.trials["waiting"] > 0, "no trial was given back"
        assert set(states(other).values()) == {"RUNNING"}
        assert slurm("squeue", "-h", "-j", foreign, "-o", "%T") == "RUNNING"
        assert "no Slurm jobs of yours" in shell.run("launch", "cancel", study).stderr
    finally:
        slurm("scancel", foreign)
        shell.run("launch", "cancel", "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--partition", "nope"], "error: sbatch refuses the job: invalid partition specified: nope; "),
        (["--gpus-per-worker", "1"], "error: sbatch refuses the job: "),
        (["--sbatch", "mem=900000G"], "Requested node configuration is not available; the nodes here have: "),
        (["--sbatch", "colour=red"], "error: sbatch refuses the job: unrecognized option '--colour=red'"),
        (["--workers", "1000000"], "Invalid job array specification"),
    ],
)
def test_what_slurm_refuses_is_one_clear_line(shell: Shell, study: str, options: list[str], message: str) -> None:
    allow = ["--objective", "long.py:objective", "--gpus-per-worker", "0"]
    done = shell.run("launch", "slurm", study, "--workers", "1", *allow, *options)
    assert (done.returncode, done.stdout) == (1, "")
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    if "--partition" in options:
        assert "; the partitions here are: " in error
    assert slurm("squeue", "-h", "-n", study) == ""


def test_a_job_that_slurm_takes_and_will_never_start_is_said_to_be_one(shell: Shell, study: str) -> None:
    allow = ["--objective", "long.py:objective", "--gpus-per-worker", "0"]
    done = shell.run("launch", "slurm", study, "--workers", "1", *allow, "--sbatch", "nodes=4000")
    job = done.stdout.strip()
    assert f"warning: job {job} asks for what the cluster lacks, and never starts (PartitionConfig)" in done.stderr
