"""Studies with a scheduler on a real database: paused, promoted, and ended trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec, lifecycle
from studies.errors import NothingFinished, SpecError
from studies.search.scheduler import Choice
from studies.storage.records import Claim, Plan, StudyRecord
from studies.storage.trials import paused_at
from tests.support.pool import Pool, Steps
from tests.support.worker import worker_on

EPOCHS = 9
STUDY = {
    "name": "study",
    "direction": "maximize",
    "objective": {"path": "tests:objective"},
    "budget": {"trials": 9},
    "sampler": {"name": "random"},
    "scheduler": {"name": "halving"},
}
Run = Callable[..., str]


def steps(trial: Any) -> Steps:
    """Nine epochs from 1; the state is what has been trained so far."""
    x = trial.suggest_float("x", 0, 1)
    kept = trial.restore()
    state = kept.state if kept else b""
    for epoch in range(len(state) + 1, EPOCHS + 1):
        state += b"."
        yield x * epoch, epoch, state
    return float(x) * EPOCHS


class Trained(Pool):
    """Counts the epochs of each trial."""

    epochs = EPOCHS

    def __init__(self, steps: Callable[[Any], Steps] = steps) -> None:
        self.trained: Counter[tuple[int, int]] = Counter()

        def noted(trial: Any) -> Steps:
            made = steps(trial)
            while True:
                try:
                    step = next(made)
                except StopIteration as end:
                    return float(end.value)
                self.trained[trial.number, step[1]] += 1
                yield step

        super().__init__(noted)


@pytest.fixture
def record(storage: PostgresStorage) -> StudyRecord:
    return storage.create_study(StudySpec.from_dict(STUDY))[0]


@pytest.fixture
def run(storage: PostgresStorage, record: StudyRecord, tmp_path: Path) -> Run:
    """Be a worker until the study is over."""

    def run(objective: Any, *, slots: int = 1, device: str = "cpu", **options: Any) -> str:
        storage.workers.forget("w")
        storage.workers.register([record], worker_id="w", host="host", pid=1, device=device)
        chosen = objective if slots > 1 or not isinstance(objective, Pool) else _Alone(objective)
        return worker_on(storage, record, chosen, tmp_path / "results", slots=slots, **options).run()

    return run


class _Alone:
    """A pool that is called with one trial."""

    epochs = EPOCHS

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __call__(self, trial: Any) -> float:
        return self._pool(trial)


@pytest.mark.parametrize("slots", [1, 4])
def test_the_best_trials_of_each_rung_go_on_where_they_stood_and_the_others_end_there(
    storage: PostgresStorage, record: StudyRecord, run: Run, slots: int
) -> None:
    pool = Trained()
    assert run(pool, slots=slots) == "complete"
    trials = storage.trials(record)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(trials) == 9
    best = max(trials, key=lambda trial: trial.params["x"])
    assert best.state == TrialState.COMPLETE
    assert set(pool.trained.values()) == {1}, "an epoch was trained twice"
    for trial in trials:
        last = EPOCHS if trial.state == TrialState.COMPLETE else max(trial.intermediate_values)
        assert last in (1, 3, 9)
        x = trial.params["x"]
        assert trial.intermediate_values == {epoch: x * epoch for epoch in range(1, last + 1)}
        assert trial.values == [x * last]
        assert trial.datetime_complete
    assert Counter(max(trial.intermediate_values) for trial in trials)[1] >= 5
    assert {attempt.times for attempt in storage.leases.attempts(record).values()} == {1}
    assert storage.database.execute("select * from studyhall.checkpoints") == []


def test_an_objective_that_saves_nothing_is_stopped_at_its_rung_instead(
    storage: PostgresStorage, record: StudyRecord, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(trial: Any) -> float:
        x = float(trial.suggest_float("x", 0, 1))
        for epoch in range(1, EPOCHS + 1):
            trained[trial.number] += 1
            trial.report(x * epoch, epoch)
            if trial.should_prune():
                raise trial.Pruned
        return x

    trained: Counter[int] = Counter()
    assert run(plain) == "complete"
    trials = storage.trials(record)
    # The first one shows how many steps there are.
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] + [TrialState.PRUNED] * 8
    assert trained == Counter({0: EPOCHS, **dict.fromkeys(range(1, 9), 1)})
    (warning,) = [line for line in caplog.messages if "saves no checkpoint" in line]
    assert warning.startswith("trial 1 is pruned at step 1, where its scheduler would pause it")


def test_an_objective_that_never_reports_is_told_after_its_first_trial(
    storage: PostgresStorage, record: StudyRecord, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(lambda trial: trial.suggest_float("x", 0, 1)) == "complete"
    assert [trial.state for trial in storage.trials(record)] == [TrialState.COMPLETE] * 9
    (warning,) = [line for line in caplog.messages if "has reported no step" in line]
    assert warning.startswith("trial 0 has reported no step: the scheduler has nothing to choose by")


def test_a_paused_trial_waits_for_its_scheduler_and_is_what_it_is_for_stock_optuna(
    storage: PostgresStorage, record: StudyRecord, run: Run
) -> None:
    def last(trial: Any) -> Steps:
        if trial.number == 3:
            lifecycle.pause(storage, record)
        return steps(trial)

    run(Trained(last), until_idle=0)
    now = storage.status(record)
    assert now.trials == {"complete": 0, "pruned": 0, "running": 0, "waiting": 0, "paused": 4, "fail": 0}
    (listed,) = storage.list_studies()
    assert {state: listed[state] for state in now.trials} == now.trials
    stock = optuna.load_study(study_name="study", storage=storage.location.sqlalchemy)
    assert [trial.state for trial in stock.trials] == [TrialState.WAITING] * 4
    assert sorted(paused_at(trial.state, trial.system_attrs) or 0 for trial in stock.trials) == [1, 1, 1, 3]
    # A worker without the scheduler's choice does not take it; one of stock Optuna does.
    lifecycle.resume(storage, record)
    taken = stock.ask()
    assert taken.number == 0
    assert storage.status(record).trials["paused"] == 3
    stock.tell(taken, 0.5)
    assert run(Trained()) == "complete"
    assert storage.trials(record)[0].value == 0.5
    assert len(storage.trials(record)) == 9


def test_no_two_workers_promote_the_same_trial(storage: PostgresStorage, record: StudyRecord) -> None:
    def claim(worker: str, *numbers: int | None) -> list[Claim] | str:
        plan = Plan(choices=[Choice(number, 9) for number in numbers], fresh=1)
        storage.trials(record)
        return storage.leases.claim_many(record, worker, 30, count=len(numbers), plan=plan)

    def numbers(claims: list[Claim] | str) -> list[int]:
        assert not isinstance(claims, str)
        return [claim.number for claim in claims]

    for begun in claim("a", None, None, None):
        assert isinstance(begun, Claim)
        storage.leases.requeue(begun, {"reports": [{"step": 9, "value": 0.5}]}, paused=True)
    assert numbers(claim("a", 1)) == [1]
    assert claim("b", 1) == "changed"
    assert numbers(claim("b", 1, 2)) == [2]
    # An enqueued trial comes before the choices, with the scheduler's first step.
    lifecycle.enqueue(storage, record, [])
    (enqueued,) = claim("c", 0)  # type: ignore[misc]
    assert (enqueued.number, enqueued.until) == (3, 1)
    # So does one whose worker died, as far as it was to train.
    storage.workers.reap(["a"], died_of="signal 9")
    (again,) = claim("c", None)  # type: ignore[misc]
    assert (again.number, again.until) == (1, 9)
    assert storage.leases.attempts(record)[1].times == 2


def test_the_budget_has_room_for_every_trial_that_is_paused(storage: PostgresStorage, record: StudyRecord) -> None:
    plan = Plan(choices=[Choice(None, 1)] * 12, fresh=1)
    claims = storage.leases.claim_many(record, "w", 30, count=12, plan=plan)
    assert len(claims) == 9
    for claim in claims:
        assert not isinstance(claim, str)
        storage.leases.requeue(claim, {"reports": [{"step": 1, "value": "Infinity"}]}, paused=True)
    with pytest.raises(SpecError, match="9 trials done already; legal are 9 and more"):
        storage.budgets.extend(record, trials=8)
    storage.trials(record)
    assert storage.leases.claim_many(record, "w", 30, count=1, plan=plan) == "complete"
    assert {(trial.state, trial.value) for trial in storage.trials(record)} == {(TrialState.PRUNED, float("inf"))}


@pytest.mark.parametrize("slots", [1, 4])
def test_a_budget_of_epochs_ends_within_one_epoch_of_each_slot(
    storage: PostgresStorage, tmp_path: Path, slots: int
) -> None:
    record, _ = storage.create_study(StudySpec.from_dict({**STUDY, "name": "epochs", "budget": {"epochs": 40}}))
    assert record.budget
    assert record.budget.trial_limit is None
    with pytest.raises(SpecError, match=r"budget.trials \+ 50: it has no such limit; .* --trials 50"):
        storage.budgets.extend(record, more_trials=50)
    pool = Trained()
    (listed,) = [row for row in storage.list_studies() if row["name"] == "epochs"]
    assert listed["budget"] is None

    def work() -> str:
        storage.workers.forget("w")
        storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
        objective: Any = pool if slots > 1 else _Alone(pool)
        return worker_on(storage, record, objective, tmp_path / "results", slots=slots).run()

    assert work() == "epochs"
    now = storage.status(record)
    assert 40 <= now.epochs < 40 + slots
    assert now.epochs == sum(pool.trained.values()) == sum(len(t.intermediate_values) for t in storage.trials(record))
    assert now.share_done == 1.0
    assert {trial.state for trial in storage.trials(record)} <= {TrialState.COMPLETE, TrialState.PRUNED}
    storage.budgets.extend(storage.find_study("epochs"), more_epochs=10)
    assert storage.status(record).ended is None
    assert work() == "epochs"
    assert 50 <= storage.status(record).epochs < 50 + 2 * slots


@pytest.mark.parametrize("scheduler", ["halving", "freezethaw"])
def test_a_small_budget_of_epochs_brings_a_trial_to_its_end_although_many_slots_share_it(
    storage: PostgresStorage, tmp_path: Path, scheduler: str
) -> None:
    spec = {**STUDY, "name": "small", "budget": {"epochs": 4 * EPOCHS}, "scheduler": {"name": scheduler}}
    record, _ = storage.create_study(StudySpec.from_dict(spec))
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    assert worker_on(storage, record, Trained(), tmp_path / "results", slots=12).run() == "epochs"
    assert len(storage.best(record).intermediate_values) == EPOCHS
    assert 4 * EPOCHS <= storage.status(record).epochs < 4 * EPOCHS + 12


def test_a_study_whose_epochs_brought_no_trial_to_its_end_says_how_to_go_on(storage: PostgresStorage) -> None:
    record, _ = storage.create_study(StudySpec.from_dict({**STUDY, "name": "short", "budget": {"epochs": 2}}))
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    with pytest.raises(NothingFinished, match=r"yet \(0 pruned, 1 running.*\); see: studyhall status short"):
        storage.best(record)
    reports = [{"step": step, "value": 0.5} for step in (1, 2)]
    storage.leases.requeue(claim, {"reports": reports})
    assert storage.leases.claim_many(record, "w", 30, count=1, plan=Plan(choices=[], fresh=9)) == "epochs"
    with pytest.raises(NothingFinished, match=r"; give it more epochs: studyhall extend short --epochs \+2, then run"):
        storage.best(record)


def test_epochs_are_counted_once_from_the_first_report_on(storage: PostgresStorage, record: StudyRecord) -> None:
    def report(claim: Claim, *steps: int) -> bool:
        changes = {"reports": [{"step": step, "value": 0.5} for step in steps]}
        return storage.leases.write(claim, changes, step=steps[-1]).interrupted

    first = storage.leases.claim(record, "w", 30)
    assert isinstance(first, Claim)
    report(first, 1, 2)
    assert storage.status(record).epochs == 0
    with pytest.raises(SpecError, match=r"budget.epochs = 1: 2 are spent already; legal are 2 and more, and studyhall"):
        storage.budgets.extend(record, epochs=1)
    with pytest.raises(SpecError, match=r"budget.epochs \+ 5: it has no such limit; .* --epochs 7$"):
        storage.budgets.extend(record, more_epochs=5)
    storage.budgets.extend(record, epochs=4)
    assert not report(first, 2, 3)  # as after an outage, when a report is sent again
    assert storage.status(record).epochs == 3
    with pytest.raises(SpecError, match=r"study: budget.epochs = 2: 3 are spent already; legal are 3 and more"):
        storage.budgets.extend(record, epochs=2)
    assert storage.status(record).budget == storage.find_study("study").budget
    storage.leases.requeue(first, {"reports": [{"step": 3, "value": 0.5}]})
    again = storage.leases.claim(record, "w", 30)
    assert isinstance(again, Claim)
    assert not report(again, 3)
    assert report(again, 4)
    storage.leases.requeue(again, {})
    assert storage.leases.claim(record, "w", 30) == "epochs"
    (trial,) = storage.trials(record)
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.5)


def test_gpu_hours_are_those_in_which_a_worker_has_trials_on_a_gpu(
    storage: PostgresStorage, record: StudyRecord
) -> None:
    storage.budgets.extend(record, gpu_hours=0.001)
    for worker, device in (("gpu", "cuda:0"), ("cpu", "cpu")):
        storage.workers.register([record], worker_id=worker, host="host", pid=1, device=device)
    on_cpu = storage.leases.claim(record, "cpu", 30)
    on_gpu = storage.leases.claim_many(record, "gpu", 30, count=2)
    assert isinstance(on_cpu, Claim)
    assert not isinstance(on_gpu, str)

    def later(seconds: float) -> None:
        storage.database.execute(
            "update studyhall.clocks set charged_at = charged_at - make_interval(secs => %(s)s)", {"s": seconds}
        )

    later(1.0)
    storage.leases.write(on_cpu, {}, step=None)
    assert storage.status(record).gpu_hours == 0
    for claim in on_gpu:  # two trials at once are one GPU
        storage.leases.write(claim, {}, step=None)
    assert 1 <= storage.status(record).gpu_hours * 3600 < 2
    with pytest.raises(SpecError, match=r"budget.gpu_hours = 0.0001: 0.001 are spent already; legal are 0.001 and"):
        storage.budgets.extend(record, gpu_hours=0.0001)
    for claim in on_gpu:
        storage.leases.requeue(claim, {})
    later(2.0)
    (last,) = storage.leases.claim_many(record, "gpu", 30, count=1)
    assert isinstance(last, Claim)
    later(1.0)
    storage.leases.finish(last, "COMPLETE", [1.0], {})
    assert 2 <= storage.status(record).gpu_hours * 3600 < 3
    later(1.0)
    (last,) = storage.leases.claim_many(record, "gpu", 30, count=1)
    assert isinstance(last, Claim)
    later(2.0)
    assert storage.leases.write(last, {}, step=None).interrupted
    assert storage.status(record).ended == "gpu_hours"
