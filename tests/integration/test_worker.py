"""A worker's loop on a real database: what becomes of a trial, however its objective ends."""

from __future__ import annotations

import gc
import math
import os
import shutil
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.errors import StorageUnreachable, StudyhallError
from studies.session import require_success
from studies.stop_reasons import UNREPORTED
from studies.storage.records import Attempt, Claim
from studies.trial import Interrupted, Trial
from studies.worker.lease_keeper import LeaseKeeper
from studies.worker.loop import Worker
from studies.worker.pending_results import PendingResults
from studies.worker.served_study import Service
from tests.support.waiting import eventually
from tests.support.worker import worker_on

Run = Callable[..., str]


@pytest.fixture
def run(storage: PostgresStorage, tmp_path: Path) -> Run:
    """Run a worker with an objective until the study is over; returns why it is."""

    def run(
        objective: Callable[[Any], Any],
        *,
        stop: threading.Event | None = None,
        lease: float = 30,
        until_idle: float | None = None,
        script_sha256: str | None = None,
        objective_spec: dict[str, Any] | None = None,
        **spec: Any,
    ) -> str:
        made = objective_spec or {"path": "tests:objective"}
        data = {"name": "study", "objective": made, "budget": {"trials": 3}, **spec}
        record, _ = storage.create_study(StudySpec.from_dict(data))
        storage.workers.forget("w")
        storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
        return worker_on(
            storage,
            record,
            objective,
            tmp_path / "results",
            script_sha256=script_sha256,
            lease_seconds=lease,
            stop=stop or threading.Event(),
            until_idle=until_idle,
        ).run()

    return run


def trials(storage: PostgresStorage) -> list[optuna.trial.FrozenTrial]:
    return storage.trials(storage.find_study("study"))


def test_a_worker_spends_the_budget_and_says_why_it_ended(storage: PostgresStorage, run: Run) -> None:
    assert run(lambda trial: trial.suggest_float("x", 0, 1)) == "complete"
    assert [trial.state for trial in trials(storage)] == [TrialState.COMPLETE] * 3
    assert len({trial.params["x"] for trial in trials(storage)}) == 3


def test_a_worker_that_waits_until_it_is_idle_goes_on_with_an_extended_study(
    storage: PostgresStorage, run: Run
) -> None:
    def extend() -> None:
        while not storage.study_names() or storage.status(storage.find_study("study")).ended != "complete":
            time.sleep(0.1)
        storage.budgets.extend(storage.find_study("study"), more_trials=1)

    stop = threading.Event()

    def objective(trial: Trial) -> float:
        if trial.number == 3:
            stop.set()
        return 1.0

    person = threading.Thread(target=extend)
    person.start()
    assert run(objective, stop=stop, until_idle=600) == "interrupted"
    person.join()
    assert run(objective, until_idle=0) == "idle"
    assert len(trials(storage)) == 4


def test_a_trial_tells_that_its_script_is_not_the_one_of_its_study(storage: PostgresStorage, run: Run) -> None:
    made_with = {"path": "train.py:f", "sha256": "a" * 64}
    for trials_in_all, sha256 in ((1, "a" * 64), (2, "b" * 64)):
        if trials_in_all > 1:
            storage.budgets.extend(storage.find_study("study"), trials=trials_in_all)
        run(lambda _: 1.0, objective_spec=made_with, script_sha256=sha256, budget={"trials": 1})
    assert [trial.user_attrs for trial in trials(storage)] == [{}, {"script_sha256": "b" * 64}]


def test_the_space_is_sampled_before_the_objective_is_called(storage: PostgresStorage, run: Run) -> None:
    space = {"x": {"type": "int", "low": 1, "high": 9}}
    run(lambda trial: trial.params["x"], space=space)
    assert all(trial.value == trial.params["x"] for trial in trials(storage))


def test_reports_and_metrics_of_every_step_are_stored(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        for step in (1, 2):
            trial.report(step / 2, step, loss=1 / step)
        return 1.0

    run(objective, budget={"trials": 1})
    (trial,) = trials(storage)
    assert trial.intermediate_values == {1: 0.5, 2: 1.0}
    assert storage.metrics.of(trial) == {1: {"loss": 1.0}, 2: {"loss": 0.5}}


def test_a_pruned_trial_counts_toward_the_budget(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        trial.report(trial.number, 0)
        raise trial.Pruned

    assert run(objective) == "complete"
    assert [(trial.state, trial.value) for trial in trials(storage)] == [(TrialState.PRUNED, n) for n in (0, 1, 2)]


def test_an_objective_that_raises_fails_its_trial_with_the_traceback_and_the_worker_goes_on(
    storage: PostgresStorage, run: Run
) -> None:
    def objective(trial: Trial) -> float:
        if trial.number == 0:
            raise RuntimeError("no\nluck")
        return 1.0

    assert run(objective) == "complete"
    first, *others = trials(storage)
    assert first.state == TrialState.FAIL
    assert first.user_attrs["error"] == "RuntimeError: no luck"
    assert 'raise RuntimeError("no\\nluck")' in first.user_attrs["traceback"]
    assert [trial.state for trial in others] == [TrialState.COMPLETE] * 3


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (float("nan"), "the objective returned nan"),
        (None, "the objective returned None, which is not a number; return one, such as loss.item()"),
        ("text", "the objective returned 'text', which is not a number; return one, such as loss.item()"),
        (
            [1.0, 2.0],
            "the objective returned 2 values, and the study has 1 direction; return one value for each, "
            "or run it anew with another --name and a --direction for each value",
        ),
    ],
)
def test_what_is_no_number_fails_the_trial_with_that_reason(
    storage: PostgresStorage, run: Run, returned: Any, reason: str
) -> None:
    assert run(lambda _: returned, budget={"trials": 1, "max_failures": 1}) == "failures"
    assert [(trial.state, trial.user_attrs["error"]) for trial in trials(storage)] == [(TrialState.FAIL, reason)]


def test_a_stopping_worker_gives_its_trial_back(storage: PostgresStorage, run: Run) -> None:
    stop = threading.Event()

    def objective(trial: Trial) -> float:
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 0)
        stop.set()
        trial.should_prune()
        pytest.fail("a stopping worker goes on with its trial")

    assert run(objective, stop=stop) == "interrupted"
    (trial,) = trials(storage)
    assert trial.state == TrialState.WAITING
    assert trial.intermediate_values == {0: 0.5}
    x = trial.params["x"]
    assert run(lambda trial: trial.suggest_float("x", 0, 1)) == "complete"
    assert trials(storage)[0].value == x
    assert len(trials(storage)) == 3


def test_an_error_while_stopping_says_nothing_about_the_trial(storage: PostgresStorage, run: Run) -> None:
    stop = threading.Event()

    def objective(_: Trial) -> float:
        stop.set()
        raise BrokenPipeError

    assert run(objective, stop=stop) == "interrupted"
    assert [trial.state for trial in trials(storage)] == [TrialState.WAITING]


def test_an_objective_cannot_swallow_its_interruption(storage: PostgresStorage, run: Run) -> None:
    stop = threading.Event()

    def objective(trial: Trial) -> float:
        stop.set()
        try:
            trial.should_prune()
        except Exception:
            return 1.0
        return 2.0

    assert issubclass(Interrupted, BaseException)
    assert run(objective, stop=stop) == "interrupted"
    assert [trial.state for trial in trials(storage)] == [TrialState.WAITING]


def take_away(storage: PostgresStorage, trial: Trial) -> Claim:
    """Let another worker have the trial, as if this one had been silent for too long."""
    storage.database.execute(
        f"update studyhall.leases set expires_at = 'epoch', seconds = 0 where trial_id = {trial._trial_id}"
    )
    claim = storage.leases.claim(storage.find_study("study"), "other", 30)
    assert isinstance(claim, Claim)
    assert claim.trial_id == trial._trial_id
    return claim


def test_a_trial_that_was_taken_over_is_dropped_and_the_worker_goes_on(storage: PostgresStorage, run: Run) -> None:
    others = PostgresStorage(storage.location)
    taken = threading.Event()

    def objective(trial: Trial) -> float:
        if trial.number == 0 and not taken.is_set():
            taken.set()
            claim = take_away(others, trial)
            trial.report(0.1, 0)
            assert trial.stop_requested
            assert trial.should_prune()
            others.leases.finish(claim, "COMPLETE", [42.0], {})
            return -1.0
        return 1.0

    assert run(objective) == "complete"
    assert [trial.value for trial in trials(storage)] == [42.0, 1.0, 1.0]
    assert trials(storage)[0].intermediate_values == {}
    others.close()


def test_a_step_longer_than_the_lease_keeps_its_trial(storage: PostgresStorage, run: Run) -> None:
    def objective(_: Trial) -> float:
        time.sleep(1.5)
        others = PostgresStorage(storage.location)
        assert others.leases.claim(record, "other", 30) == "wait"
        others.close()
        return 1.0

    record, _ = storage.create_study(
        StudySpec.from_dict({"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": 1}})
    )
    assert run(objective, lease=0.6, budget={"trials": 1}) == "complete"
    assert storage.leases.attempts(record) == {0: Attempt(worker="w", host="host", device="cpu", times=1)}


@pytest.mark.parametrize(
    ("raised", "error"), [(SystemExit("bye"), "SystemExit: bye"), (KeyboardInterrupt(), "KeyboardInterrupt: ")]
)
def test_an_objective_that_exits_fails_its_trial_alone(
    storage: PostgresStorage, run: Run, raised: BaseException, error: str
) -> None:
    def objective(trial: Trial) -> float:
        if trial.number == 0:
            raise raised
        return 1.0

    assert run(objective) == "complete"
    first, *others = trials(storage)
    assert first.state == TrialState.FAIL
    assert first.user_attrs["error"].startswith(error)
    assert len(others) == 3


def test_a_child_that_the_objective_forked_tells_nothing(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        child = os.fork()
        if child == 0:
            if trial.number == 0:
                sys.exit(7)
            return -1.0
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (7 if trial.number == 0 else 0)
        return 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is the point
        assert run(objective) == "complete"
    assert [trial.value for trial in trials(storage)] == [1.0] * 3


def test_steps_and_values_may_be_numpys(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        trial.report(np.float32(0.5), np.int64(3), loss=np.float64(0.25))
        return np.float32(1.5)

    assert run(objective) == "complete"
    assert trials(storage)[0].intermediate_values == {3: 0.5}


def test_a_storage_that_fails_is_no_failure_of_the_trial_which_is_run_again(storage: PostgresStorage, run: Run) -> None:
    failed = threading.Event()

    def objective(_: Trial) -> float:
        if not failed.is_set():
            failed.set()
            raise StorageUnreachable("no answer")
        return 1.0

    assert run(objective) == "complete"
    assert [trial.value for trial in trials(storage)] == [1.0] * 3


def test_a_study_deleted_under_a_worker_ends_it(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        others = PostgresStorage(storage.location)
        others.delete(others.find_study("study"))
        others.close()
        return trial.suggest_float("x", 0, 1)

    assert run(objective) == "deleted"


def test_cmaes_samples(run: Run) -> None:
    space = {name: {"type": "float", "low": -5, "high": 5} for name in ("x", "y")}
    sampler = {"name": "cmaes", "options": {"n_startup_trials": 2}}
    reason = run(
        lambda trial: trial.params["x"] ** 2 + trial.params["y"] ** 2,
        space=space,
        sampler=sampler,
        budget={"trials": 6, "max_failures": 1},
    )
    assert reason == "complete"


def test_an_objective_may_stop_its_study(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        trial.study.stop()
        return 1.0

    assert run(objective) == "stopped"
    assert len(trials(storage)) == 1


def test_a_grid_whose_last_worker_died_before_it_could_stop_the_study_is_stopped_by_the_next(
    storage: PostgresStorage, run: Run
) -> None:
    spec = {"space": {"k": {"type": "int", "low": 1, "high": 3}}, "sampler": {"name": "grid"}, "budget": {"trials": 9}}
    data = {"name": "study", "objective": {"path": "tests:objective"}, **spec}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    for _ in range(3):
        claim = storage.leases.claim(record, "dead", 30)
        assert isinstance(claim, Claim)
        storage.leases.finish(claim, "FAIL", None, {})
    assert run(lambda _: pytest.fail("a combination is run again"), **spec) == "stopped"
    assert len(trials(storage)) == 3


@pytest.mark.parametrize(("failing", "reason"), [(None, "complete"), (2, "stopped")])
def test_a_grid_ends_the_study_when_it_is_exhausted(
    storage: PostgresStorage, run: Run, failing: int | None, reason: str
) -> None:
    def objective(trial: Trial) -> float:
        assert trial.params["x"] != failing
        return float(trial.params["x"])

    space = {"x": {"type": "int", "low": 1, "high": 2}, "y": {"type": "categorical", "choices": ["a", "b"]}}
    assert run(objective, space=space, sampler={"name": "grid"}, budget={"trials": 100}) == reason
    assert len({tuple(trial.params.items()) for trial in trials(storage)}) == len(trials(storage)) == 4


def test_trials_know_their_seed_and_device(storage: PostgresStorage, run: Run) -> None:
    seen: list[tuple[int, str]] = []

    def objective(trial: Trial) -> float:
        seen.append((trial.seed, trial.device))
        return 1.0

    run(objective)
    spec = storage.find_study("study").spec
    assert spec is not None
    assert seen == [(spec.seed_of(number), "cpu") for number in range(3)]


def test_the_pruner_of_the_spec_prunes(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        trial.report(trial.number, 0)
        if trial.should_prune():
            raise trial.Pruned
        return float(trial.number)

    run(objective, pruner={"name": "threshold", "options": {"upper": 0.5}})
    assert [trial.state.name for trial in trials(storage)] == ["COMPLETE", "PRUNED", "PRUNED"]


def test_two_objectives_are_stored(storage: PostgresStorage, run: Run) -> None:
    run(lambda trial: (1.0, trial.suggest_float("x", 0, 1)), directions=["minimize", "maximize"])
    assert all(len(trial.values) == 2 for trial in trials(storage))


# What a trial can do


@pytest.mark.parametrize(
    ("misuse", "error"),
    [
        (lambda trial: trial.report("x", 1), "TypeError: trial.report: value = 'x': should be a number"),
        (lambda trial: trial.set_constraint("size", "x"), "trial.set_constraint: 'size' = 'x': should be a number"),
        (lambda trial: trial.set_constraint("size", 10**400), "trial.set_constraint: 'size' = 1000"),
        (lambda trial: trial.report(0.5, None), "TypeError: trial.report: step = None: should be a whole number"),
        (lambda trial: trial.report(0.5, -1), "step = -1: should be a whole number from 0 to 2147483647"),
        (lambda trial: trial.report(0.5, 2**31), "step = 2147483648: should be a whole number from 0 to 2147483647"),
        (lambda trial: trial.report(0.5, math.inf), "step = inf: should be a whole number from 0 to 2147483647"),
        (lambda trial: trial.report(10**400, 1), "should be a number that fits into double precision"),
        (lambda trial: trial.report(0.5, 1, loss=10**400), "should be a number that fits into double precision"),
        (lambda trial: trial.set_user_attr("net", object()), "TypeError: attribute 'net' is not JSON: Object of type"),
        (lambda trial: trial.set_user_attr("net", {1, 2}), "legal are text, numbers, booleans, None, lists and dicts"),
        (
            lambda trial: trial.checkpoint(1, {"weights": 1}),
            "got an object of type dict: legal are bytes, or a function that returns",
        ),
    ],
)
def test_a_misuse_fails_the_trial_with_a_clear_error_and_writes_nothing_of_it(
    storage: PostgresStorage, run: Run, misuse: Callable[[Trial], None], error: str
) -> None:
    def objective(trial: Trial) -> float:
        trial.report(0.25, 0)
        misuse(trial)
        return 1.0

    checkpoints = {"every": 0}
    assert run(objective, budget={"trials": 1, "max_failures": 1}, checkpoints=checkpoints) == "failures"
    (trial,) = trials(storage)
    assert error in trial.user_attrs["error"]
    assert trial.intermediate_values == {0: 0.25}
    assert set(trial.user_attrs) == {"error", "traceback"}


def test_a_checkpoint_is_there_for_the_next_worker_and_gone_with_the_trial(storage: PostgresStorage, run: Run) -> None:
    stop = threading.Event()
    seen: list[tuple[int, bytes] | None] = []

    def objective(trial: Trial) -> float:
        saved = trial.restore()
        seen.append(saved and (saved.step, saved.state))
        for step in range(saved.step + 1 if saved else 0, 6):
            trial.report(step, step)
            trial.checkpoint(step, f"state {step}".encode())
            if step == 2 and not saved:
                stop.set()
            trial.should_prune()
        return 1.0

    spec = {"budget": {"trials": 1}, "checkpoints": {"every": 0}}
    assert run(objective, stop=stop, **spec) == "interrupted"
    kept = [saved.step for saved in storage.leases.checkpoints(trials(storage)[0]._trial_id)]
    assert kept == [2, 1]
    assert run(objective, **spec) == "complete"
    assert seen == [None, (2, b"state 2")]
    assert trials(storage)[0].intermediate_values == {step: float(step) for step in range(6)}
    assert storage.leases.checkpoints(trials(storage)[0]._trial_id) == []


def test_a_tampered_checkpoint_is_noticed_and_the_one_before_is_used(
    storage: PostgresStorage, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()
    seen: list[bytes | None] = []

    def objective(trial: Trial) -> float:
        saved = trial.restore()
        seen.append(saved and saved.state)
        for step in (1, 2):
            trial.checkpoint(step, f"state {step}".encode())
        if not saved:
            stop.set()
        trial.should_prune()
        return 1.0

    spec = {"budget": {"trials": 1}, "checkpoints": {"every": 0}}
    run(objective, stop=stop, **spec)
    storage.database.execute("update studyhall.checkpoints set data = 'evil' where step = 2")
    run(objective, **spec)
    assert seen == [None, b"state 1"]
    assert "checkpoint 0/1-2 is not what was saved (its SHA-256 differs); trying the one before" in caplog.text


def test_no_checkpoint_is_written_before_it_is_due(run: Run) -> None:
    def objective(trial: Trial) -> float:
        trial.checkpoint(1, lambda: pytest.fail("the state was made although no checkpoint is due"))
        return 1.0

    assert run(objective, budget={"trials": 1}) == "complete"


def test_checkpoints_in_a_directory_are_used_and_deleted(storage: PostgresStorage, run: Run, tmp_path: Path) -> None:
    stop = threading.Event()

    def objective(trial: Trial) -> float:
        saved = trial.restore()
        if saved is None:
            trial.checkpoint(1, b"outside")
            stop.set()
            trial.should_prune()
        assert saved is not None
        return len(saved.state)

    spec = {"budget": {"trials": 1}, "checkpoints": {"every": 0, "store": str(tmp_path / "checkpoints")}}
    assert run(objective, stop=stop, **spec) == "interrupted"
    uid = storage.find_study("study").uid
    assert [file.name for file in (tmp_path / "checkpoints" / str(uid) / "0").iterdir()] == ["1-1"]
    assert run(objective, **spec) == "complete"
    assert trials(storage)[0].value == len(b"outside")
    assert list((tmp_path / "checkpoints").rglob("*-*")) in ([], [tmp_path / "checkpoints" / str(uid)])


def test_a_checkpoint_that_cannot_be_written_stops_no_training(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def objective(trial: Trial) -> float:
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "checkpoints").touch()
        trial.checkpoint(1, b"state")
        return 1.0

    spec = {"budget": {"trials": 1}, "checkpoints": {"every": 0, "store": str(tmp_path / "checkpoints")}}
    assert run(objective, **spec) == "complete"
    assert "trial 0: no checkpoint at step 1: " in caplog.text


def test_running_out_of_memory_fails_that_trial_alone(storage: PostgresStorage, run: Run) -> None:
    class Model:
        error: MemoryError

    models: list[weakref.ref[Model]] = []

    def objective(trial: Trial) -> float:
        assert [model() for model in models] == [None] * trial.number, "the memory of earlier trials is not free"
        model = Model()
        models.append(weakref.ref(model))
        try:
            return float(len(bytearray(2**62))) if trial.number == 1 else 1.0
        except MemoryError as error:
            model.error = error  # a cycle: its traceback refers to this frame
            raise

    gc.disable()  # The collector comes when it likes.
    try:
        assert run(objective) == "complete"
    finally:
        gc.enable()
    assert [trial.state.name for trial in trials(storage)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials(storage)[1].user_attrs["error"] == "MemoryError: MemoryError"


def test_an_objective_that_never_looks_is_interrupted_at_its_next_report(storage: PostgresStorage, run: Run) -> None:
    stop = threading.Event()

    def objective(trial: Trial) -> float:
        for step in range(1000):
            trial.report(step, step)
            stop.set()
        return 1.0

    assert run(objective, stop=stop) == "interrupted"
    (trial,) = trials(storage)
    assert (trial.state, trial.last_step) == (TrialState.WAITING, 1)


def test_an_attribute_may_be_set_over_and_over(storage: PostgresStorage, run: Run) -> None:
    def objective(trial: Trial) -> float:
        for count in range(5):
            trial.set_user_attr("count", count)
            trial.report(count, count, loss=count)
            trial.set_user_attr("count", -count)
            trial.set_user_attr("last", count)
        return 1.0

    assert run(objective, budget={"trials": 1}) == "complete"
    assert trials(storage)[0].user_attrs == {"count": -4, "last": 4}


# Constraints and several objectives


def test_constraints_are_judged_by_the_last_report_and_read_by_stock_optuna(storage: PostgresStorage, run: Run) -> None:
    stop = threading.Event()

    def objective(trial: Trial) -> float:
        if (saved := trial.restore()) is None:
            trial.report(0.0, 1, ms=9.0 if trial.number == 2 else 1.0, size=1.0)
            trial.report(0.0, 2, ms=float(trial.number))
        if trial.number == 0 and saved is None:  # another attempt ends it, which reports nothing
            stop.set()
            trial.checkpoint(2, b"state")
            raise trial.Interrupted
        return float(trial.number) if trial.number != 3 else math.nan

    spec = {"constraints": {"ms": "<= 1", "size": ">= 1", "loss": ">= 0"}, "metric": "loss", "direction": "maximize"}
    run(objective, stop=stop, **spec)
    assert run(objective, **spec) == "complete"
    assert [trial.constraints for trial in trials(storage)[:3]] == [
        {"ms": -1.0, "size": 0.0, "loss": -0.0},
        {"ms": 0.0, "size": 0.0, "loss": -1.0},
        {"ms": 1.0, "size": 0.0, "loss": -2.0},
    ]
    record = storage.find_study("study")
    stock = optuna.load_study(study_name="study", storage=storage.location.sqlalchemy)
    assert storage.best(record).number == stock.best_trial.number == 1
    assert [trial.number for trial in storage.front(record)] == [1]


def test_a_constraint_on_a_metric_that_no_trial_reports_ends_the_study_at_once(
    storage: PostgresStorage, run: Run
) -> None:
    def objective(trial: Trial) -> float:
        trial.report(1.0, 1, latency=1.0)
        return 1.0

    assert run(objective, constraints={"latency_ms": "<= 1"}) == UNREPORTED
    (failed,) = trials(storage)
    assert failed.user_attrs["error"] == (
        "constraints.latency_ms: the trial never reported the metric 'latency_ms', only value, latency; report it by "
        "trial.report(value, step, latency_ms=…), or make a study without this constraint"
    )
    with pytest.raises(
        StudyhallError, match=r"1 trial failed, the last \(0\) with: constraints\.latency_ms: the trial"
    ):
        require_success(storage, record := storage.find_study("study"), storage.status(record))
    storage.delete(record)

    def forgetful(trial: Trial) -> float:
        trial.report(1.0, 1, **({} if trial.number == 1 else {"latency_ms": 1.0}))
        return 1.0

    assert run(forgetful, constraints={"latency_ms": "<= 1"}, budget={"trials": 3}) == "complete"
    assert [trial.state.name for trial in trials(storage)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_study_of_several_objectives_is_pruned_on_one_of_them(
    storage: PostgresStorage, run: Run, pruner: str
) -> None:
    def objective(trial: Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        for step in range(1, 10):
            trial.report(-1.0, step, accuracy=x * step)  # the named value takes the place of the first
            if trial.should_prune():
                raise trial.Pruned
        return 9 * x, x

    options = {"median": {"n_startup_trials": 1}, "hyperband": {"max_resource": 9}}[pruner]
    run(
        objective,
        directions=["maximize", "minimize"],
        metric=["accuracy", "cost"],
        pruner={"name": pruner, "metric": "accuracy", "options": options},
        budget={"trials": 30},
        constraints={"cost": "<= 0.9"},
    )
    found = trials(storage)
    assert {trial.state for trial in found} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(trial.intermediate_values[1] == trial.params["x"] for trial in found)
    stock = optuna.load_study(study_name="study", storage=storage.location.sqlalchemy)
    front = [trial.number for trial in storage.front(storage.find_study("study"))]
    assert front == [trial.number for trial in stock.best_trials]
    assert all(found[number].params["x"] <= 0.9 for number in front)


# Several studies


def test_a_worker_takes_from_each_study_by_its_share(storage: PostgresStorage, tmp_path: Path) -> None:
    order: list[str] = []

    def objective(trial: Trial) -> float:
        order.append(trial.study.study_name)
        return 1.0

    services = []
    for name, share in (("a", 2.0), ("b", 1.0)):
        data = {"name": name, "objective": {"path": "tests:objective"}, "budget": {"trials": 12}}
        record, _ = storage.create_study(StudySpec.from_dict(data))
        services.append(Service(record=record, objective=objective, share=share))
    storage.workers.register([s.record for s in services], worker_id="w", host="host", pid=1, device="cpu")
    Worker(
        storage,
        services,
        worker_id="w",
        device="cpu",
        lease_seconds=30,
        results=tmp_path,
        stop=threading.Event(),
    ).run()
    assert (order[:18].count("a"), order[:18].count("b")) == (12, 6)
    assert order[18:] == ["b"] * 6


def test_a_heartbeat_beside_the_result_does_not_lose_the_trial(storage: PostgresStorage, tmp_path: Path) -> None:
    def seen() -> object:
        return storage.database.execute("select seen_at from studyhall.workers")[0]["seen_at"]

    data = {"name": "study", "objective": {"path": "tests:objective"}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    with LeaseKeeper(storage, worker_id="w", lease_seconds=0.3, stop=threading.Event()) as keeper:
        lease = keeper.add(claim, PendingResults(tmp_path, "uid"))
        lease.finish(TrialState.COMPLETE, [1.0])
        keeper.flush([lease])
        for _ in range(2):  # the second heartbeat begins after the result
            before = seen()
            eventually(lambda before=before: seen() != before, "a heartbeat")
        assert not lease.lost
    assert trials(storage)[0].state == TrialState.COMPLETE
