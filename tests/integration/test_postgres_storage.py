"""PostgresStorage on a real PostgreSQL, embedded and separate: budgets, leases, workers, what is read."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from studies import PostgresStorage, StudySpec
from studies.errors import (
    LeaseLost,
    NothingFinished,
    SpecError,
    SpecMismatch,
    StorageError,
    StudyBusy,
    StudyNotFound,
    TrialNotFound,
)
from studies.storage import schema
from studies.storage.records import Attempt, Claim, HeldTrial, StudyRecord
from studies.storage.url import StorageURL

pytestmark = pytest.mark.both_servers

LEASE = 30.0


def spec(name: str = "study", **budget: Any) -> StudySpec:
    return StudySpec.from_dict(
        {
            "name": name,
            "direction": "maximize",
            "metric": "accuracy",
            "objective": {"path": "package.module:callable"},
            "budget": {"trials": 3, **budget},
        }
    )


def created(storage: PostgresStorage, name: str = "study", **budget: Any) -> StudyRecord:
    return storage.create_study(spec(name, **budget))[0]


def begin(storage: PostgresStorage, record: StudyRecord, worker: str, lease: float = LEASE) -> int:
    """Register ``worker`` and let it claim a trial."""
    return hold(storage, record, worker, lease).trial_id


def hold(storage: PostgresStorage, record: StudyRecord, worker: str, lease: float = LEASE) -> Claim:
    """Register ``worker`` and let it claim a trial."""
    storage.workers.register([record], worker_id=worker, host="host", pid=1, device="cpu")
    claim = storage.leases.claim(record, worker, lease)
    assert isinstance(claim, Claim)
    return claim


def number(claim: Claim | str) -> int:
    assert isinstance(claim, Claim)
    return claim.number


def states(storage: PostgresStorage, record: StudyRecord) -> list[str]:
    return [trial.state.name for trial in storage.trials(record)]


def test_a_study_is_created_once_with_its_spec(storage: PostgresStorage) -> None:
    record, is_new = storage.create_study(spec())
    again, is_new_again = storage.create_study(spec())
    assert (is_new, is_new_again) == (True, False)
    assert record == again
    assert record.spec == spec()
    study = optuna.load_study(study_name="study", storage=storage)
    assert study.user_attrs["spec_sha256"] == spec().sha256
    assert study.user_attrs["spec"]["budget"] == {"trials": 3, "max_failures": 10}
    assert study.metric_names == ["accuracy"]
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_a_study_of_another_spec_is_refused_and_stays(storage: PostgresStorage) -> None:
    created(storage)
    with pytest.raises(SpecMismatch, match=r"budget\.trials is 3, not 4"):
        storage.create_study(spec(trials=4))
    assert storage.find_study("study").spec == spec()


def test_a_study_made_by_optuna_is_no_study_of_ours_but_can_be_read(storage: PostgresStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="study")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    record = storage.find_study("study")
    assert (record.spec, record.budget) == (None, None)
    assert storage.status(record).trials["complete"] == 2
    assert storage.best(record).number == study.best_trial.number
    with pytest.raises(SpecMismatch, match="was not made by studyhall"):
        storage.create_study(spec())


def test_a_missing_study_names_the_nearest(storage: PostgresStorage) -> None:
    created(storage, "mnist")
    with pytest.raises(StudyNotFound, match=r"no study 'mnits' in .*; did you mean 'mnist'"):
        storage.find_study("mnits")


def test_a_missing_trial_names_those_that_are_there(storage: PostgresStorage) -> None:
    record = created(storage)
    with pytest.raises(TrialNotFound, match="no trial 5; it has none yet"):
        storage.trial(record, 5)
    begin(storage, record, "a")
    with pytest.raises(TrialNotFound, match="no trial 5; its trials are 0 to 0"):
        storage.trial(record, 5)


def test_no_table_is_made_where_only_to_look(empty_database: StorageURL) -> None:
    with pytest.raises(StorageError, match="holds no studies yet"):
        PostgresStorage(empty_database, create=False)
    with pytest.raises(StorageError, match="holds no studies yet"):
        PostgresStorage(empty_database, create=False)


def test_tables_of_a_newer_version_are_refused(storage: PostgresStorage) -> None:
    storage.database.execute("insert into studyhall.version values (999, now())")
    with pytest.raises(
        StorageError, match=f"version 999, this studyhall knows {schema.newest()}; upgrade it: pip install"
    ):
        PostgresStorage(storage.location)


def test_eight_processes_meet_on_an_empty_database(empty_database: StorageURL) -> None:
    code = (
        "import sys; from studies import PostgresStorage, StudySpec; "
        "s = PostgresStorage(sys.stdin.readline().strip()); "
        "s.create_study(StudySpec.from_dict({'name': 'study', 'objective': {'path': 'a:b'}})); s.close()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    # All of them have started before the first learns where to.
    for process in processes:
        assert process.stdin
        process.stdin.write(empty_database.sqlalchemy + "\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    assert [status for _, status in ends] == [0] * 8, ends
    storage = PostgresStorage(empty_database)
    assert [row["name"] for row in storage.list_studies()] == ["study"]
    storage.close()


# The budget


def test_no_more_trials_run_than_the_budget_holds(storage: PostgresStorage) -> None:
    record = created(storage, trials=2)
    first, second = begin(storage, record, "a"), begin(storage, record, "b")
    assert first != second
    assert storage.leases.claim(record, "c", LEASE) == "wait"
    storage.set_trial_state_values(first, TrialState.COMPLETE, [1.0])
    assert storage.leases.claim(record, "c", LEASE) == "wait"
    storage.set_trial_state_values(second, TrialState.PRUNED)
    assert storage.leases.claim(record, "c", LEASE) == "complete"
    assert [trial.number for trial in storage.trials(record)] == [0, 1]


def test_a_failed_trial_leaves_its_place_to_another(storage: PostgresStorage) -> None:
    record = created(storage, trials=1)
    storage.set_trial_state_values(begin(storage, record, "a"), TrialState.FAIL)
    assert number(storage.leases.claim(record, "a", LEASE)) == 1


def test_too_many_failures_end_the_study(storage: PostgresStorage) -> None:
    record = created(storage, max_failures=2)
    for worker in "ab":
        storage.set_trial_state_values(begin(storage, record, worker), TrialState.FAIL)
    assert storage.leases.claim(record, "a", LEASE) == "failures"
    storage.budgets.extend(record, max_failures=3)
    assert isinstance(storage.leases.claim(record, "a", LEASE), Claim)


def test_the_target_ends_the_study(storage: PostgresStorage) -> None:
    record = created(storage, target=0.9)
    storage.set_trial_state_values(begin(storage, record, "a"), TrialState.COMPLETE, [0.89])
    storage.set_trial_state_values(begin(storage, record, "b"), TrialState.COMPLETE, [0.9])
    assert storage.leases.claim(record, "a", LEASE) == "target"


def test_the_time_ends_the_study(storage: PostgresStorage) -> None:
    record = created(storage, timeout=3600)
    trial_id = begin(storage, record, "a")
    assert storage.status(record).ended is None
    storage.database.execute(
        f"update trials set datetime_start = datetime_start - interval '1 h' where trial_id = {trial_id}"
    )
    assert storage.leases.claim(record, "b", LEASE) == "timeout"


def test_a_stopped_study_goes_on_when_extended(storage: PostgresStorage) -> None:
    record = created(storage)
    storage.budgets.stop(record, "stopped")
    assert storage.leases.claim(record, "a", LEASE) == "stopped"
    storage.budgets.extend(record, more_trials=2)
    assert storage.find_study("study").budget == spec(trials=5).budget
    assert isinstance(storage.leases.claim(record, "a", LEASE), Claim)


def test_of_two_who_extend_a_study_at_once_both_count(storage: PostgresStorage) -> None:
    record = created(storage, max_failures=2)
    for _ in "ab":  # each goes by the study as it was before
        storage.budgets.extend(record, more_trials=4, more_failures=3)
    assert storage.find_study("study").budget == spec(trials=11, max_failures=8).budget


def test_a_direction_changes_while_no_trial_has_finished_and_no_worker_is_there(storage: PostgresStorage) -> None:
    record = created(storage)
    assert storage.load_study(record).direction.name == "MAXIMIZE"
    claim = hold(storage, record, "w")
    with pytest.raises(
        StudyBusy, match=r"study 'study' has 1 worker \(seen in the last two minutes\) and 1 running trial"
    ):
        storage.change_directions(record, ["minimize"])
    storage.leases.requeue(claim, {})
    with pytest.raises(StudyBusy, match=r"has 1 worker .* and 0 running trials"):
        storage.change_directions(record, ["minimize"])
    storage.workers.forget("w")
    storage.change_directions(record, ["minimize"])
    storage.change_directions(record, ["minimize"])
    changed = storage.find_study("study").spec
    assert changed
    assert changed.all_directions == ["minimize"]
    study = storage.load_study(record)
    assert study.direction.name == "MINIMIZE"
    assert study.user_attrs["spec_sha256"] == changed.sha256
    with pytest.raises(SpecError, match="has 1 objective, not 2: give --direction once, or run it anew"):
        storage.change_directions(record, ["minimize", "maximize"])
    study.tell(study.ask(), 1.0)
    with pytest.raises(SpecError, match="minimizes accuracy, and by that 1 trial finished already"):
        storage.change_directions(storage.find_study("study"), ["maximize"])
    optuna.create_study(storage=storage, study_name="stock")
    with pytest.raises(StorageError, match="was made by Optuna, not by studyhall"):
        storage.change_directions(storage.find_study("stock"), ["maximize"])


def test_twelve_threads_spend_the_budget_exactly(storage: PostgresStorage) -> None:
    record = created(storage, trials=40)

    def work(worker: int) -> int:
        own = PostgresStorage(storage.location)
        done = 0
        try:
            while True:
                claim = own.leases.claim(record, f"w{worker}", LEASE)
                if isinstance(claim, Claim):
                    own.leases.finish(claim, "COMPLETE", [float(worker)], {})
                    done += 1
                elif claim != "wait":
                    return done
        finally:
            own.close()

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(work, range(12))) == 40
    assert [trial.number for trial in storage.trials(record)] == list(range(40))


def test_trials_of_stock_optuna_count_toward_the_budget(storage: PostgresStorage) -> None:
    record = created(storage, trials=2)
    study = optuna.load_study(study_name="study", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    study.ask()
    assert storage.leases.claim(record, "a", LEASE) == "wait"


# Leases


def test_an_expired_lease_gives_the_trial_to_another_worker(storage: PostgresStorage) -> None:
    record = created(storage)
    dead = hold(storage, record, "dead", lease=0)
    alive = storage.leases.claim(record, "b", LEASE)
    assert isinstance(alive, Claim)
    assert (alive.trial_id, alive.number, alive.epoch) == (dead.trial_id, 0, 2)
    assert storage.leases.attempts(record) == {0: Attempt(worker="b", host=None, device=None, times=2)}
    storage.leases.write(alive, {}, step=1)


def test_nothing_is_written_without_the_lease(storage: PostgresStorage) -> None:
    record = created(storage)
    zombie = hold(storage, record, "zombie", lease=0)
    alive = storage.leases.claim(record, "b", LEASE)
    assert isinstance(alive, Claim)
    change = {"reports": [{"step": 0, "value": 666.0}], "user_attrs": [{"key": "zombie", "value": "true"}]}
    with pytest.raises(LeaseLost):
        storage.leases.write(zombie, change, step=0)
    with pytest.raises(LeaseLost):
        storage.leases.finish(zombie, "COMPLETE", [666.0], change)
    with pytest.raises(LeaseLost):
        storage.leases.save_checkpoint(zombie, sequence=1, name="0/1-1", step=0, sha256=b"", data=b"")
    storage.leases.requeue(zombie, change)
    trial = storage.trial(record, 0)
    assert (trial.state, trial.intermediate_values, trial.user_attrs) == (TrialState.RUNNING, {}, {})
    storage.leases.finish(alive, "COMPLETE", [1.0], {})
    assert storage.trial(record, 0).value == 1.0


def test_a_renewed_lease_does_not_expire(storage: PostgresStorage) -> None:
    record = created(storage)
    held = hold(storage, record, "a")
    storage.database.execute("update studyhall.leases set expires_at = now() - interval '1 second'")
    storage.leases.write(held, {}, step=None)
    assert number(storage.leases.claim(record, "b", LEASE)) == 1


def test_every_worker_gives_back_the_trials_of_silent_ones(storage: PostgresStorage) -> None:
    record = created(storage)
    hold(storage, record, "dead", lease=0)
    storage.workers.register([record], worker_id="busy", host="host", pid=1, device="cpu")
    storage.workers.heartbeat("busy")
    assert states(storage, record) == ["WAITING"]


def test_a_result_that_comes_after_its_lease_counts_if_nobody_has_the_trial(storage: PostgresStorage) -> None:
    record = created(storage)
    late = hold(storage, record, "late", lease=0)
    storage.workers.register([record], worker_id="busy", host="host", pid=1, device="cpu")
    storage.workers.heartbeat("busy")
    storage.leases.finish(late, "COMPLETE", [1.0], {})
    storage.leases.finish(late, "COMPLETE", [1.0], {})
    assert states(storage, record) == ["COMPLETE"]


def test_a_late_result_does_not_overshoot_the_budget(storage: PostgresStorage) -> None:
    record = created(storage, trials=1)
    late = hold(storage, record, "late", lease=0)
    storage.workers.register([record], worker_id="busy", host="host", pid=1, device="cpu")
    storage.workers.heartbeat("busy")
    optuna.load_study(study_name="study", storage=storage).add_trial(create_trial(value=0.5))
    with pytest.raises(LeaseLost):
        storage.leases.finish(late, "COMPLETE", [1.0], {})
    assert storage.status(record).finished == 1


def test_a_trial_of_stock_optuna_is_never_taken_away(storage: PostgresStorage) -> None:
    record = created(storage)
    optuna.load_study(study_name="study", storage=storage).ask()
    assert number(storage.leases.claim(record, "a", LEASE)) == 1


def test_a_trial_given_back_keeps_its_number_parameters_and_reports(storage: PostgresStorage) -> None:
    record = created(storage)
    held = hold(storage, record, "a")
    trial_id = held.trial_id
    distribution = optuna.distributions.FloatDistribution(0, 1)
    storage.set_trial_param(trial_id, "x", 0.25, distribution)
    storage.set_trial_intermediate_value(trial_id, 0, 0.5)
    storage.leases.requeue(held, {"reports": [{"step": 1, "value": 0.75}]})
    assert states(storage, record) == ["WAITING"]
    claim = storage.leases.claim(record, "b", LEASE)
    trial = storage.get_trial(trial_id)
    assert isinstance(claim, Claim)
    assert (claim.trial_id, trial.params, trial.intermediate_values) == (trial_id, {"x": 0.25}, {0: 0.5, 1: 0.75})


def test_a_trial_on_which_three_workers_died_fails_with_that_reason(storage: PostgresStorage) -> None:
    record = created(storage)
    for worker in "abc":
        begin(storage, record, worker)
        storage.workers.reap([worker], died_of="a signal")
    trial = storage.trial(record, 0)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"] == "3 workers died on this trial, the last: a signal"
    assert trial.datetime_complete is not None


def test_a_trial_that_gets_further_each_time_never_fails_of_its_workers_deaths(storage: PostgresStorage) -> None:
    record = created(storage)
    for step, worker in enumerate("abcde"):
        storage.leases.write(hold(storage, record, worker), {"reports": [{"step": step, "value": 1.0}]}, step=step)
        storage.workers.reap([worker], died_of="a signal")
    assert states(storage, record) == ["WAITING"]
    for worker in "fg":
        begin(storage, record, worker)
        storage.workers.reap([worker], died_of="a signal")
    assert states(storage, record) == ["FAIL"]


def test_a_trial_given_back_on_purpose_never_fails_of_that(storage: PostgresStorage) -> None:
    record = created(storage)
    for worker in "abcde":
        begin(storage, record, worker)
        storage.workers.reap([worker], died_of=None)
    assert states(storage, record) == ["WAITING"]


def test_waiting_trials_come_first_and_lowest_number_first(storage: PostgresStorage) -> None:
    record = created(storage)
    study = optuna.load_study(study_name="study", storage=storage)
    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({"x": 0.75})
    assert [number(storage.leases.claim(record, worker, LEASE)) for worker in "abc"] == [0, 1, 2]


# What is read


def test_the_best_of_equals_has_the_lowest_number(storage: PostgresStorage) -> None:
    record = created(storage, trials=10)
    study = optuna.load_study(study_name="study", storage=storage)
    for value in (0.5, 0.9, 0.7, 0.9, -math.inf):
        study.add_trial(create_trial(value=value))
    assert storage.best(record).number == 1
    study.add_trial(create_trial(value=math.inf))
    assert storage.best(record).number == 5


def test_the_best_keeps_its_constraints(storage: PostgresStorage) -> None:
    record = created(storage)
    study = optuna.load_study(study_name="study", storage=storage)
    for value, constraint in ((0.9, 1.0), (0.5, 0.0), (0.7, -1.0)):
        study.add_trial(create_trial(value=value, system_attrs={"constraints": [constraint]}))
    assert storage.best(record).number == study.best_trial.number == 2


def test_without_a_complete_trial_there_is_no_best(storage: PostgresStorage) -> None:
    record = created(storage)
    begin(storage, record, "a")
    with pytest.raises(NothingFinished, match=r"no complete trial yet \(0 pruned, 1 running, 0 waiting, 0 fail\)"):
        storage.best(record)


def test_complete_trials_that_break_a_constraint_are_counted_where_there_is_no_best(storage: PostgresStorage) -> None:
    record = created(storage)
    study = optuna.load_study(study_name="study", storage=storage)
    for _ in range(2):
        study.add_trial(create_trial(value=0.9, system_attrs={"constraints": [1.0]}))
    with pytest.raises(NothingFinished, match=r"keeps its constraints yet \(2 complete, 0 pruned, 0 running"):
        storage.best(record)


def test_a_study_of_two_objectives_made_by_optuna_has_no_best_either(storage: PostgresStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
    study.add_trial(create_trial(values=[1.0, 2.0]))
    record = storage.find_study("two")
    assert storage.status(record).best is None
    with pytest.raises(StorageError, match="has 2 objectives, so no best trial"):
        storage.best(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": math.nan}, "budget.target = nan: should be a finite number"),
        ({"target": math.inf}, "budget.target = inf: should be a finite number"),
        ({"more_trials": 2**31}, "budget.trials = 2147483651: should be less than or equal to 2147483647"),
        ({"timeout": 1e300}, "budget.timeout = 1e+300: should be less than or equal to 315360000"),
        ({"trials": 1}, "budget.trials = 1: 2 trials done already; legal are 2 and more"),
    ],
)
def test_a_budget_that_is_not_legal_changes_nothing(
    storage: PostgresStorage, change: dict[str, Any], message: str
) -> None:
    record = created(storage)
    for worker in "ab":
        storage.set_trial_state_values(begin(storage, record, worker), TrialState.COMPLETE, [0.5])
    with pytest.raises(SpecError) as caught:
        storage.budgets.extend(record, **change)
    assert message in str(caught.value)
    assert storage.find_study("study") == record


def test_a_study_made_by_optuna_has_no_budget_to_extend(storage: PostgresStorage) -> None:
    optuna.create_study(storage=storage, study_name="stock")
    with pytest.raises(StorageError, match="was made by Optuna, not by studyhall: it has no budget"):
        storage.budgets.extend(storage.find_study("stock"), trials=5)


def test_a_name_that_is_no_text_is_no_study(storage: PostgresStorage) -> None:
    with pytest.raises(StudyNotFound):
        storage.find_study("\udcff")


def test_a_study_of_two_objectives_has_no_best(storage: PostgresStorage) -> None:
    record, _ = storage.create_study(
        StudySpec.from_dict({"name": "two", "directions": ["minimize", "maximize"], "objective": {"path": "a:b"}})
    )
    with pytest.raises(StorageError, match=r"has 2 objectives, so no best trial; .*studyhall best two"):
        storage.best(record)


def test_metrics_keep_the_first_value_of_a_step(storage: PostgresStorage) -> None:
    record = created(storage)
    held = hold(storage, record, "a")
    for step, name, value in ((1, "loss", 0.5), (1, "accuracy", 0.25), (2, "loss", "Infinity"), (1, "loss", 99.0)):
        storage.leases.write(held, {"metrics": [{"step": step, "name": name, "value": value}]}, step=step)
    trial = storage.get_trial(held.trial_id)
    assert storage.metrics.of(trial) == {1: {"loss": 0.5, "accuracy": 0.25}, 2: {"loss": math.inf}}
    assert storage.metrics.last([trial]) == {0: {"loss": math.inf}}


def test_the_status_shows_trials_best_and_workers(storage: PostgresStorage) -> None:
    record = created(storage)
    storage.set_trial_state_values(begin(storage, record, "a"), TrialState.COMPLETE, [0.5])
    storage.workers.register([record], worker_id="b", host="host", pid=1, device="cpu", slots=4)
    storage.leases.write(hold(storage, record, "b"), {}, step=7)
    hold(storage, record, "b")
    now = storage.status(record)
    assert now.trials == {"complete": 1, "pruned": 0, "running": 2, "waiting": 0, "paused": 0, "fail": 0}
    assert now.best is not None
    assert now.best.value == 0.5
    idle, pool = sorted(now.workers, key=lambda worker: worker.id)
    assert (idle.host, idle.device, idle.slots, idle.trials) == ("host", "cpu", 1, ())
    assert (pool.slots, pool.trials) == (4, (HeldTrial(number=1, step=7), HeldTrial(number=2, step=None)))
    assert 0 <= pool.seen_seconds_ago < 60


def test_a_deleted_study_leaves_nothing_and_the_others_alone(storage: PostgresStorage) -> None:
    record, other = created(storage, "doomed"), created(storage, "kept")
    for each, worker in ((record, "a"), (other, "b")):
        held = hold(storage, each, worker)
        trial_id = held.trial_id
        storage.leases.write(held, {"metrics": [{"step": 0, "name": "loss", "value": 1.0}]}, step=0)
        storage.leases.save_checkpoint(held, sequence=1, name="0/1-1", step=0, sha256=b"", data=b"state")
        storage.set_trial_param(trial_id, "x", 0.5, optuna.distributions.FloatDistribution(0, 1))
        storage.set_trial_intermediate_value(trial_id, 0, 1.0)
        storage.set_trial_user_attr(trial_id, "key", "value")
        storage.set_trial_system_attr(trial_id, "key", "value")
        storage.database.execute(f"insert into trial_heartbeats (trial_id, heartbeat) values ({trial_id}, now())")
        optuna.load_study(study_name=each.name, storage=storage).add_trial(create_trial(value=1.0))
    counts = "select (select count(*) from {}) as n"
    tables = [
        *("studies", "study_directions", "study_user_attributes", "trials", "trial_params", "trial_values"),
        *(
            "trial_user_attributes",
            "trial_system_attributes",
            "trial_intermediate_values",
            "trial_heartbeats",
        ),
        *("studyhall.budgets", "studyhall.workers", "studyhall.leases", "studyhall.metrics", "studyhall.checkpoints"),
    ]
    before = {table: storage.database.execute(counts.format(table))[0]["n"] for table in tables}
    storage.delete(record)
    after = {table: storage.database.execute(counts.format(table))[0]["n"] for table in tables}
    assert after == {table: n // 2 for table, n in before.items()}
    assert all(n > 0 for n in after.values())
    assert [row["name"] for row in storage.list_studies()] == ["kept"]
    assert storage.leases.claim(record, "a", LEASE) == "deleted"


def test_a_storage_works_wherever_optuna_takes_one(storage: PostgresStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="plain")
    study.optimize(lambda trial: (trial.suggest_float("x", -1, 1) - 0.5) ** 2, n_trials=5)
    assert len(optuna.load_study(study_name="plain", storage=storage).trials) == 5
