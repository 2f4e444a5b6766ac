"""Steering a study from another terminal: real workers of two commands obey, bad input changes nothing."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import psycopg2
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies import PostgresStorage, StudySpec
from studies.checkpoint_stores import open_store
from studies.cli.workers import last_line
from studies.storage.records import Claim, StudyRecord
from studies.storage.url import StorageURL
from tests.acceptance.conftest import SCRIPT, Shell
from tests.conftest import Server
from tests.support.waiting import eventually

Look = Callable[[], PostgresStorage]
RUN = ("run", "script.py:objective", "--trials", "8", "--workers", "1", "--name", "s", "--set", "pruner.name=none")
TABLES = (
    *("studies", "study_directions", "study_user_attributes", "study_system_attributes"),
    *("trials", "trial_params", "trial_values", "trial_user_attributes", "trial_system_attributes"),
    *("trial_intermediate_values", "trial_heartbeats", "studyhall.budgets", "studyhall.workers"),
    *("studyhall.leases", "studyhall.metrics", "studyhall.checkpoints", "studyhall.requests"),
)
SPEC = {
    "name": "s",
    "objective": {"path": "script:spaced"},
    "budget": {"trials": 6, "max_failures": 3},
    "pruner": {"name": "none"},
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "decay": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.25},
        "width": {"type": "int", "low": 8, "high": 1024},
        "depth": {"type": "int", "low": 1, "high": 9, "step": 2},
        "optimizer": {"type": "categorical", "choices": ["adamw", "sgd"]},
        "momentum": {"type": "float", "low": 0.0, "high": 0.99, "when": {"optimizer": ["sgd"]}},
        "nesterov": {"type": "categorical", "choices": [True, False], "when": {"momentum": [0.9]}},
        "kind": {"type": "categorical", "choices": ["1", "true", 2]},
    },
}
SPACED = """

def spaced(trial):
    return trial.params["lr"]


def flaky(trial):
    x = trial.suggest_float("x", -10, 10)
    trial.set_user_attr("tried", True)
    if not os.path.exists("mended"):
        raise RuntimeError("it is broken")
    return x
"""


def trials(storage: PostgresStorage, study: str = "s") -> list[FrozenTrial]:
    return storage.trials(storage.find_study(study))


def states(storage: PostgresStorage, study: str = "s") -> list[str]:
    return [trial.state.name for trial in trials(storage, study)]


def in_state(storage: PostgresStorage, state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials(storage) if trial.state == state]


def steps(storage: PostgresStorage) -> dict[int, int]:
    """How many steps each unfinished trial has reported."""
    return {trial.number: len(trial.intermediate_values) for trial in trials(storage) if not trial.state.is_finished()}


def dump(url: StorageURL) -> dict[str, list[str]]:
    """All that the database holds, as text."""
    with closing(psycopg2.connect(**url.libpq)) as connection, connection.cursor() as cursor:
        found = {}
        for table in TABLES:
            cursor.execute(f"select t::text from {table} t order by 1")
            found[table] = [row[0] for row in cursor.fetchall()]
        return found


def say(shell: Shell, *command: str) -> str:
    """What a command prints that must succeed, and that has no data to print."""
    done = shell.run(*command)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr.strip()


def refuse(shell: Shell, *command: str, status: int, message: str) -> None:
    """Run a command that must fail with one line that holds ``message``, and change nothing."""
    before = dump(shell.url)
    done = shell.run(*command)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert dump(shell.url) == before


@contextmanager
def two_runs(shell: Shell, storage: PostgresStorage) -> Iterator[list[subprocess.Popen[str]]]:
    """Two commands that run one study, each with a worker whose trial waits before step 1 for :func:`go_on`."""
    for step in range(1, 5):
        (shell.folder / f"before step {step}").touch()
    runs = [shell.start(*RUN) for _ in range(2)]
    try:
        eventually(lambda: any(row["running"] == 2 for row in storage.list_studies()))
        eventually(lambda: len(in_state(storage, TrialState.RUNNING)) == 2 and all(steps(storage).values()))
        yield runs
    finally:
        for process in runs:
            process.kill()
            process.communicate()


def go_on(shell: Shell, *, steps: int = 5) -> None:
    """Let the trials of :func:`two_runs` do so many steps in all."""
    for step in range(1, steps):
        (shell.folder / f"before step {step}").unlink(missing_ok=True)


# What workers do


def test_a_paused_study_rests_within_a_step_and_goes_on_with_the_same_trials(shell: Shell, look: Look) -> None:
    storage = look()
    with two_runs(shell, storage) as runs:
        said = say(shell, "pause", "s")
        reported = steps(storage)
        assert said.startswith("study 's' is paused")
        assert said.endswith("go on with: studyhall resume s")
        go_on(shell, steps=2)
        eventually(lambda: "RUNNING" not in states(storage))
        rested = steps(storage)
        assert all(count <= reported[number] + 1 for number, count in rested.items())
        assert storage.status(storage.find_study("s")).paused
        line = shell.data("status", "s").splitlines()[0]
        assert line.endswith("; paused; go on with: studyhall resume s")
        assert json.loads(shell.data("status", "s", "--format", "json"))["paused"] is True

        before = {trial.number: (trial.params, trial.intermediate_values) for trial in trials(storage)}
        time.sleep(3)  # longer than a worker waits between two looks
        assert "RUNNING" not in states(storage)
        assert [process.poll() for process in runs] == [None, None]
        assert say(shell, "pause", "s") == "study 's' is paused already; go on with: studyhall resume s"

        assert say(shell, "resume", "s") == "study 's' goes on; 2 workers seen"
        assert say(shell, "resume", "s") == "study 's' is neither paused nor stopped; 2 workers seen"
        go_on(shell)
        ends = [process.communicate(timeout=300) for process in runs]
        assert [process.returncode for process in runs] == [0, 0], ends
    after = trials(storage)
    assert [trial.number for trial in after] == list(range(8))
    assert {trial.state.name for trial in after} == {"COMPLETE"}
    for number, (params, values) in before.items():
        assert after[number].params == params
        assert values.items() <= after[number].intermediate_values.items()


def test_a_stopped_study_ends_its_workers_within_a_step_and_goes_on_when_resumed(shell: Shell, look: Look) -> None:
    storage = look()
    with two_runs(shell, storage) as runs:
        assert say(shell, "stop", "s").startswith("study 's' is stopped")
        reported = steps(storage)
        go_on(shell, steps=2)
        ends = [process.communicate(timeout=300) for process in runs]
        assert [process.returncode for process in runs] == [0, 0], ends
    assert all("; stopped by hand; go on with: studyhall resume s" in err for _, err in ends)
    assert all(count <= reported[number] + 1 for number, count in steps(storage).items())
    assert "RUNNING" not in states(storage)
    assert len(in_state(storage, TrialState.WAITING)) == 2
    assert storage.status(storage.find_study("s")).ended == "by hand"
    assert say(shell, "stop", "s") == "study 's' is stopped already; go on with: studyhall resume s"

    resume = "go on with: studyhall resume s, then the same command"
    refuse(shell, *RUN, status=1, message=f"study 's' was stopped by hand, and no trial is run; {resume}")
    work = "studyhall work s --objective script.py:objective"
    assert say(shell, "resume", "s") == f"study 's' goes on; run it with: {work}"
    go_on(shell)
    done = shell.run(*RUN)
    assert done.returncode == 0, done.stderr
    assert states(storage) == ["COMPLETE"] * 8


def test_a_stopped_study_goes_on_when_extended(shell: Shell, look: Look) -> None:
    assert shell.run("create", *RUN[1:4], "--name", "s").returncode == 0
    storage = look()
    record = storage.find_study("s")
    assert last_line(storage, record).endswith("(0 complete); go on with the same command")
    say(shell, "pause", "s")
    assert last_line(storage, record).endswith("; paused; go on with: studyhall resume s, then the same command")
    say(shell, "stop", "s")
    assert last_line(storage, record).endswith("by hand; go on with: studyhall resume s, then the same command")
    assert "paused" not in shell.data("status", "s")
    said = say(shell, "extend", "s", "--trials", "9", "--timeout", "2h", "--target", "0.5", "--max-failures", "+5")
    budget = "budget: 9 trials, or 15 failures, or 2:00:00 from the first trial, or a value of 0.5"
    assert said.splitlines()[1:] == [budget]
    assert "9 trials done (0 complete); paused; go on with" in said
    say(shell, "resume", "s")
    assert budget in shell.data("status", "s").splitlines()
    say(shell, "enqueue", "s", "x=1")
    say(shell, "enqueue", "s", "x=2")
    smaller, on = say(shell, "extend", "s", "--trials", "1").splitlines()[2:]
    assert smaller == (
        "the budget is smaller: 1 trial instead of 9; 1 trial that ran or waited will wait until the budget grows again"
    )
    assert on == "study 's' goes on; run it with: studyhall work s --objective script.py:objective"
    now = look().status(look().find_study("s"))
    assert (now.paused, now.ended) == (False, None)


def test_a_cancelled_trial_ends_within_a_step_and_counts_for_nothing(shell: Shell, look: Look) -> None:
    storage = look()
    with two_runs(shell, storage) as runs:
        say(shell, "extend", "s", "--max-failures", "1")
        number = max(steps(storage))
        said = say(shell, "cancel", "s", str(number))
        reported = len(trials(storage)[number].intermediate_values)
        if not trials(storage)[number].state.is_finished():
            assert said.startswith(f"trial {number} of study 's' is cancelled: it ends at its next step, on ")
        go_on(shell, steps=2)
        eventually(lambda: trials(storage)[number].state.is_finished())
        cancelled = trials(storage)[number]
        assert (cancelled.state.name, cancelled.user_attrs["error"]) == ("FAIL", "cancelled")
        assert len(cancelled.intermediate_values) <= reported + 1
        go_on(shell)
        ends = [process.communicate(timeout=300) for process in runs]
        assert [process.returncode for process in runs] == [0, 0], ends
    ended = states(storage)
    assert (ended.count("COMPLETE"), ended.count("FAIL"), len(ended)) == (8, 1, 9)


def test_failures_end_a_study_also_while_an_older_trial_runs(shell: Shell, look: Look) -> None:
    storage = look()
    record = storage.create_study(StudySpec.from_dict(SPEC))[0]
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    assert isinstance(storage.leases.claim(record, "w", 3600), Claim)
    for _ in range(3):
        finish(storage, record, TrialState.FAIL)
    assert storage.leases.claim(record, "v", 3600) == "failures"
    refuse(shell, "pause", "s", status=1, message="stopped after too many failed trials")


def test_a_cancelled_trial_whose_worker_is_gone_ends_at_once(shell: Shell, look: Look) -> None:
    storage = look()
    record = storage.create_study(StudySpec.from_dict(SPEC))[0]
    storage.workers.register([record], worker_id="gone", host="host", pid=1, device="cpu")
    assert isinstance(storage.leases.claim(record, "gone", 0.1), Claim)
    time.sleep(0.2)
    assert say(shell, "cancel", "s", "0") == "trial 0 of study 's' is cancelled"
    assert states(storage) == ["FAIL"]


def test_a_cancelled_trial_of_a_living_worker_is_still_its_own(shell: Shell, look: Look) -> None:
    storage = look()
    record = storage.create_study(StudySpec.from_dict(SPEC))[0]
    storage.workers.register([record], worker_id="alive", host="node7", pid=1, device="cuda:1")
    claim = storage.leases.claim(record, "alive", 60)
    assert isinstance(claim, Claim)
    for _ in range(2):
        said = say(shell, "cancel", "s", "0")
        assert said == "trial 0 of study 's' is cancelled: it ends at its next step, on node7 (cuda:1)"
    assert storage.leases.write(claim, {}, step=1).cancelled


def test_a_waiting_trial_is_cancelled_at_once_and_can_be_retried(shell: Shell, look: Look) -> None:
    storage = look()
    storage.create_study(StudySpec.from_dict(SPEC))
    say(shell, "enqueue", "s", "lr=1e-3")
    assert say(shell, "cancel", "s", "0") == "trial 0 of study 's' is cancelled"
    refuse(shell, "cancel", "s", "0", status=1, message="trial 0 of study 's' was cancelled; only waiting and running")
    assert say(shell, "retry", "s", "0") == "trial 1 of study 's' waits for a worker, with the parameters of trial 0"
    assert [trial.state.name for trial in trials(storage)] == ["FAIL", "WAITING"]
    assert trials(storage)[1].system_attrs["fixed_params"] == {"lr": 1e-3}


def test_enqueued_trials_run_first_with_their_values(shell: Shell, look: Look) -> None:
    (shell.folder / "script.py").write_text(SCRIPT + SPACED)
    storage = look()
    storage.create_study(StudySpec.from_dict(SPEC))
    said = say(
        shell, "enqueue", "s", "lr=1e-3", "width=1e2", "decay=0.5", "depth=3", "optimizer=sgd", "momentum=0", "kind=1"
    )
    assert said == (
        "trial 0 of study 's' waits for a worker: lr=0.001 width=100 decay=0.5 depth=3 optimizer=sgd momentum=0 kind=1"
    )
    said = say(shell, "enqueue", "s", "optimizer=adamw", "kind=true")
    assert said == "trial 1 of study 's' waits for a worker: optimizer=adamw kind=true"
    done = shell.run("work", "s", "--workers", "2", "--allow", "script")
    assert done.returncode == 0, done.stderr
    first, second, *others = trials(storage)
    assert len(others) == 4
    assert first.params == {
        "lr": 1e-3, "width": 100, "decay": 0.5, "depth": 3, "optimizer": "sgd", "momentum": 0.0, "kind": "1"
    }  # fmt: skip
    assert type(first.params["width"]) is int
    assert type(first.params["momentum"]) is float
    assert second.params["optimizer"] == "adamw"
    assert second.params["kind"] == "true"
    assert "momentum" not in second.params
    assert {"lr", "width", "decay", "depth"} <= set(second.params)


def test_a_value_that_hangs_on_the_sampler_is_remarked_on(shell: Shell, look: Look) -> None:
    look().create_study(StudySpec.from_dict(SPEC))
    said = say(shell, "enqueue", "s", "momentum=0.9").splitlines()
    assert said == [
        "trial 0 of study 's' waits for a worker: momentum=0.9",
        "momentum is used only if optimizer is sgd; set that too, or the sampler decides",
    ]


def test_a_trial_for_which_the_budget_has_no_room_is_remarked_on(shell: Shell, look: Look) -> None:
    look().create_study(StudySpec.from_dict({**SPEC, "budget": {"trials": 1}}))
    assert "no room" not in say(shell, "enqueue", "s", "lr=1e-3")
    said = say(shell, "enqueue", "s", "lr=2e-3").splitlines()
    assert said[1].startswith("the budget has no room for another trial")
    assert said[1].endswith("studyhall extend s --trials +1")


def test_without_a_space_the_first_trials_say_what_can_be_enqueued(shell: Shell, look: Look) -> None:
    assert shell.run("create", *RUN[1:4], "--name", "s").returncode == 0
    said = say(shell, "enqueue", "s", "x=-3", "note=what a person typed", "on=true", "layers=[1, 2]").splitlines()
    assert said[1].startswith("names and values are not checked: the study has no [space]")
    assert said[1].endswith("undo it with: studyhall cancel s 0")
    assert "x=-3 note='what a person typed' on=true layers=[1, 2]" in shell.data("trials", "s")
    assert "what a person typed" in shell.data("show", "s", "0")
    assert "params_note" in shell.data("trials", "s", "--format", "csv")
    refuse(shell, "enqueue", "s", "x=nan", status=2, message="x = nan: should be text, a finite number")
    refuse(shell, "enqueue", "s", "x=2026-01-01", status=2, message="x = 2026-01-01: should be text, a finite number")
    done = shell.run("work", "s", "--workers", "1", "--objective", "script.py:objective")
    assert done.returncode == 0, done.stderr
    first = trials(look())[0]
    assert first.system_attrs["fixed_params"] == {
        "x": -3, "note": "what a person typed", "on": True, "layers": [1, 2]
    }  # fmt: skip
    assert first.params == {"x": -3.0}
    say(shell, "extend", "s", "--trials", "+1")
    refuse(shell, "enqueue", "s", "y=1", status=2, message="no parameter 'y' is known; known: x")
    refuse(shell, "enqueue", "s", "x=10.5", status=2, message="x = 10.5: should be a number from -10.0 to 10.0")
    assert "checked" not in say(shell, "enqueue", "s", "x=3")


def test_a_failed_trial_is_retried_by_optunas_conventions(shell: Shell, look: Look) -> None:
    (shell.folder / "script.py").write_text(SCRIPT + SPACED)
    command = ("run", "script.py:flaky", "--name", "s", "--trials", "2", "--workers", "1")
    assert shell.run(*command, "--set", "budget.max_failures=1").returncode == 1
    storage = look()
    refuse(
        shell, "retry", "s", "0", status=1,
        message="has ended: stopped after too many failed trials; go on with: studyhall extend s --max-failures +10",
    )  # fmt: skip
    say(shell, "extend", "s", "--max-failures", "2")
    assert say(shell, "retry", "s", "0") == "trial 1 of study 's' waits for a worker, with the parameters of trial 0"
    refuse(
        shell, "retry", "s", "0", status=1, message="is retried already: trial 1 is waiting; see: studyhall show s 1"
    )
    assert shell.run(*command, "--set", "budget.max_failures=2").returncode == 1
    say(shell, "extend", "s", "--max-failures", "5")
    say(shell, "retry", "s", "1")
    refuse(shell, "retry", "s", "1", status=1, message="is retried already: trial 2 is waiting")
    refuse(shell, "retry", "s", "0", status=1, message="is retried already: trial 2 is waiting")
    (shell.folder / "mended").touch()
    done = shell.run(*command, "--set", "budget.max_failures=5")
    assert done.returncode == 0, done.stderr
    found = trials(storage)
    assert [trial.state.name for trial in found] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert found[0].params == found[1].params == found[2].params != found[3].params
    assert [trial.system_attrs.get("retry_history", []) for trial in found] == [
        [], [0], [0, 1], []
    ]  # fmt: skip
    assert [trial.system_attrs.get("failed_trial") for trial in found] == [None, 0, 0, None]
    assert "error" not in found[2].user_attrs
    assert "traceback" not in found[2].user_attrs
    refuse(shell, "retry", "s", "0", status=1, message="is retried already: trial 2 is complete")


def test_deleting_a_study_deletes_its_checkpoints_wherever_they_lie(shell: Shell, look: Look) -> None:
    folder = shell.folder / "checkpoints"
    records = [
        look().create_study(StudySpec.from_dict({**SPEC, "name": name, "checkpoints": {"store": str(folder)}}))[0]
        for name in ("doomed", "kept")
    ]
    stores = [open_store(str(folder), str(record.uid)) for record in records]
    for store in stores:
        store.write("0/1-1", b"weights")
    assert say(shell, "delete", "doomed", "--yes") == "deleted study 'doomed' with no trials"
    assert [store.names() for store in stores] == [[], ["0/1-1"]]
    assert [entry.name for entry in folder.iterdir()] == [records[1].uid]
    look().workers.register(records[1:], worker_id="w", host="host", pid=1, device="cpu")
    refuse(
        shell, "delete", "kept", "--yes", status=1, message="study 'kept' has 1 worker, seen in the last two minutes"
    )
    told = say(shell, "delete", "kept", "--yes", "--force")
    assert told == "deleted study 'kept' with no trials; its worker drops its trial at the next step"


def test_checkpoints_that_cannot_be_deleted_are_named_and_the_study_is_gone(shell: Shell, look: Look) -> None:
    nowhere = shell.folder / "not" / "mounted"
    spec = StudySpec.from_dict({**SPEC, "checkpoints": {"store": str(nowhere)}})
    record, _ = look().create_study(spec)
    deleted, warning = say(shell, "delete", "s", "--yes").splitlines()
    assert deleted == "deleted study 's' with no trials"
    assert warning.startswith(f"warning: its checkpoints are left in {nowhere}, under {record.uid}: ")
    assert look().list_studies() == []


# What is refused


def finish(storage: PostgresStorage, record: StudyRecord, state: TrialState, value: float | None = None) -> None:
    template = create_trial(state=state, value=value, user_attrs={"error": "no luck"} if value is None else {})
    storage.create_new_trial(record.study_id, template)


@pytest.fixture(scope="module")
def steered(separate_server: Server, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Shell]:
    """A shell on studies in every condition: ``s`` with a trial in each state (0 complete, 1 pruned, 2 failed,
    3 running, 4 waiting), those that have ended, and ``stock``, which Optuna made."""
    with separate_server.database() as url, closing(PostgresStorage(url)) as storage:
        record, _ = storage.create_study(StudySpec.from_dict(SPEC))
        finish(storage, record, TrialState.COMPLETE, 1.0)
        finish(storage, record, TrialState.PRUNED)
        finish(storage, record, TrialState.FAIL)
        storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
        assert isinstance(storage.leases.claim(record, "w", 3600), Claim)
        finish(storage, record, TrialState.WAITING)
        budgets = {
            "spent": {"trials": 1},
            "failed": {"max_failures": 1},
            "reached": {"target": 2.0},
            "late": {"timeout": 60},
        }
        for name, budget in budgets.items():
            record, _ = storage.create_study(StudySpec.from_dict({**SPEC, "name": name, "budget": budget}))
            if name == "failed":
                finish(storage, record, TrialState.FAIL)
            else:
                finish(storage, record, TrialState.COMPLETE, 1.0)
        storage.database.execute(
            "update trials set datetime_start = datetime_start - interval '1 h' "
            f"where study_id = {storage.find_study('late').study_id}"
        )
        optuna.create_study(storage=storage, study_name="stock").ask()
        yield Shell(url, tmp_path_factory.mktemp("steered"), home)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lrr=1e-3"], "no parameter 'lrr' is known; did you mean 'lr'?"),
        (["lr"], "'lr' is not NAME=VALUE; for example lr=1e-3"),
        (["=1"], "'=1' is not NAME=VALUE"),
        (["lr=1e-3", "lr=1e-2"], "lr is given twice; give it once"),
        (["lr=fast"], "lr = fast: should be a number from 0.0001 to 0.1"),
        (["lr=1"], "lr = 1: should be a number from 0.0001 to 0.1"),
        (["lr=nan"], "lr = nan: should be a number from 0.0001 to 0.1"),
        (["lr=true"], "lr = true: should be a number from 0.0001 to 0.1"),
        (["lr="], "lr = : should be a number from 0.0001 to 0.1"),
        (["decay=0.3"], "decay = 0.3: should be a number from 0.0 to 1.0 in steps of 0.25"),
        (["width=64.5"], "width = 64.5: should be a whole number from 8 to 1024"),
        (["width=7"], "width = 7: should be a whole number from 8 to 1024"),
        (["width=1" + "0" * 400], "should be a whole number from 8 to 1024"),
        (["depth=2"], "depth = 2: should be a whole number from 1 to 9 in steps of 2"),
        (["optimizer=adm"], "optimizer = adm: should be one of adamw, sgd"),
        (["nesterov=1"], "nesterov = 1: should be one of true, false"),
        (["momentum=0.9", "optimizer=adamw"], "= 0.9: sampled only where optimizer is sgd, and optimizer = adamw"),
        (
            ["nesterov=true", "optimizer=adamw"],
            "nesterov = true: sampled only where momentum is 0.9, which is sampled only where optimizer is sgd, "
            "and optimizer = adamw; leave one of the two out",
        ),
        (["lr=1e-3", "width=7"], "width = 7: should be"),
    ],
)  # fmt: skip
def test_a_parameter_that_is_not_legal(steered: Shell, given: list[str], message: str) -> None:
    refuse(steered, "enqueue", "s", *given, status=2, message=message)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("cancel s 0", "trial 0 of study 's' is complete; only waiting and running trials can be cancelled"),
        ("cancel s 1", "trial 1 of study 's' is pruned; only"),
        ("cancel s 2", "trial 2 of study 's' has failed; only"),
        ("cancel s 5", "study 's' has no trial 5; its trials are 0 to 4"),
        ("retry s 5", "study 's' has no trial 5; its trials are 0 to 4"),
        ("retry s 0", "trial 0 of study 's' is complete; only failed trials can be retried"),
        ("retry s 3", "trial 3 of study 's' is running; only"),
        ("retry s 4", "trial 4 of study 's' is waiting; only"),
        ("pause spent", "study 'spent' has ended: the budget is spent; go on with: studyhall extend spent --trials +1"),
        ("stop spent", "study 'spent' has ended: the budget is spent"),
        ("resume spent", "study 'spent' has ended: the budget is spent"),
        ("enqueue spent lr=1e-3", "study 'spent' has ended: the budget is spent"),
        ("cancel spent 0", "trial 0 of study 'spent' is complete"),
        (
            "pause failed",
            "stopped after too many failed trials; go on with: studyhall extend failed --max-failures +10",
        ),
        (
            "retry failed 0",
            "stopped after too many failed trials; go on with: studyhall extend failed --max-failures +10",
        ),
        ("resume reached", "the target is reached; go on with: studyhall extend reached --target VALUE"),
        ("stop late", "stopped: time limit reached; go on with: studyhall extend late --timeout TIME"),
        ("pause stock", "study 'stock' was made by Optuna, not by studyhall: its workers would not obey"),
        ("resume stock", "study 'stock' was made by Optuna, not by studyhall"),
        ("stop stock", "study 'stock' was made by Optuna, not by studyhall"),
        ("pause stok", "no study 'stok' in "),
        ("resume stok", "did you mean 'stock'?"),
        ("stop stok", "did you mean 'stock'?"),
        ("cancel stok 0", "did you mean 'stock'?"),
        ("enqueue stok x=1", "did you mean 'stock'?"),
        ("retry stok 0", "did you mean 'stock'?"),
    ],
)
def test_what_cannot_be_done(steered: Shell, command: str, message: str) -> None:
    refuse(steered, *command.split(), status=1, message=message)


@pytest.mark.parametrize("command", ["cancel s x", "cancel s", "retry s 1.5", "enqueue s", "pause", "cancel s -1"])
def test_usage_errors_exit_with_2(steered: Shell, command: str) -> None:
    done = steered.run(*command.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("--help\n")


def test_a_trial_of_stock_optuna_is_cancelled_at_once(shell: Shell, look: Look) -> None:
    optuna.create_study(storage=look(), study_name="stock").ask()
    assert say(shell, "cancel", "stock", "0") == "trial 0 of study 'stock' is cancelled"
    assert states(look(), "stock") == ["FAIL"]


def test_a_study_of_stock_optuna_takes_enqueued_trials(shell: Shell, look: Look) -> None:
    study = optuna.create_study(storage=look(), study_name="stock")
    say(shell, "enqueue", "stock", "x=0.25")
    assert study.ask().suggest_float("x", 0, 1) == 0.25


def test_a_study_whose_spec_no_command_accepts_can_be_deleted(shell: Shell, look: Look) -> None:
    shell.data("create", "script.py:objective", "--name", "odd", "--trials", "3")
    look().database.execute("update study_user_attributes set value_json = replace(value_json, '\"tpe\"', '\"tep\"')")
    shown = shell.run("show", "odd")
    assert shown.returncode == 2
    assert "study 'odd': the stored spec: sampler.name: 'tep' is unknown" in shown.stderr
    assert shown.stderr.strip().endswith("or delete it: studyhall delete odd")
    assert shell.run("delete", "odd", "--yes").stderr == "deleted study 'odd' with no trials\n"
    assert look().study_names() == []
