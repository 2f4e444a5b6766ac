"""A worker whose objective trains several trials at once: what holds for one trial holds for each of them."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec, lifecycle
from studies.storage.database import Database
from studies.storage.records import StudyRecord
from tests.support.pool import Pool, Steps
from tests.support.worker import worker_on

STEPS = 3
STUDY = {
    "name": "study",
    "objective": {"path": "tests:objective"},
    "budget": {"trials": 10},
    "pruner": {"name": "none"},
}
Run = Callable[..., str]


def steps(trial: Any) -> Steps:
    x = trial.suggest_float("x", 0, 1)
    kept = trial.restore()
    for step in range(0 if kept is None else kept.step + 1, STEPS):
        if trial.stop_requested:
            trial.checkpoint(step - 1, b"state")
            raise trial.Interrupted
        yield x + step, step, b"state"
    return float(x)


@pytest.fixture
def record(storage: PostgresStorage) -> StudyRecord:
    return storage.create_study(StudySpec.from_dict(STUDY))[0]


@pytest.fixture
def run(storage: PostgresStorage, record: StudyRecord, tmp_path: Path) -> Run:
    """Be a worker until the study is over."""

    def run(objective: Any, *, stop: threading.Event | None = None, slots: int | None = None) -> str:
        storage.workers.forget("w")
        storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
        return worker_on(
            storage, record, objective, tmp_path / "results", slots=slots, stop=stop or threading.Event()
        ).run()

    return run


def states(storage: PostgresStorage, record: StudyRecord) -> list[TrialState]:
    return [trial.state for trial in storage.trials(record)]


@pytest.mark.parametrize("slots", [1, 4, 32])
def test_slots_are_refilled_until_the_budget_is_spent_exactly(
    storage: PostgresStorage, record: StudyRecord, run: Run, slots: int
) -> None:
    assert run(Pool(steps), slots=slots) == "complete"
    trials = storage.trials(record)
    assert [trial.number for trial in trials] == list(range(10))
    assert states(storage, record) == [TrialState.COMPLETE] * 10
    assert all(sorted(trial.intermediate_values) == list(range(STEPS)) for trial in trials)
    assert all(trial.value == trial.params["x"] for trial in trials)
    assert len({trial.params["x"] for trial in trials}) == 10


@pytest.mark.parametrize("slots", [1, 8, 32])
def test_a_tick_costs_as_many_statements_whatever_the_number_of_slots(
    run: Run, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: Counter[str] = Counter()
    rows = Database.rows

    def counted(self: Database, name: str, /, **parameters: Any) -> Any:
        sent[name] += 1
        return rows(self, name, **parameters)

    monkeypatch.setattr(Database, "rows", counted)
    run(Pool(steps), slots=slots)
    rounds = math.ceil(10 / slots)
    assert sent["claim"] <= rounds + 2  # none left; and that the study is over
    assert sent["write"] <= rounds * STEPS + 2
    assert sent["finish"] <= rounds + 1


def test_what_goes_wrong_with_one_trial_ends_that_one(storage: PostgresStorage, record: StudyRecord, run: Run) -> None:
    def uneven(trial: Any) -> Steps:
        for value in steps(trial):
            if trial.number == 1:
                raise ValueError("broken")
            if trial.number == 2 and value[1] == 1:
                value = ("no number", *value[1:])  # type: ignore[assignment]
            if trial.number == 3 and value[1] == 1:
                lifecycle.cancel(storage, record, 3)
            yield value
        if trial.number == 4:
            return float("nan")
        return 0.5

    assert run(Pool(uneven), slots=5) == "complete"
    trials = storage.trials(record)
    failed = {trial.number: trial.user_attrs["error"] for trial in trials if trial.state == TrialState.FAIL}
    assert failed.keys() == {1, 2, 3, 4}
    assert failed[1] == "ValueError: broken"
    assert "should be a number" in failed[2]
    assert failed[3] == "cancelled"
    assert failed[4] == "the objective returned nan"
    assert Counter(states(storage, record))[TrialState.COMPLETE] == 10


def test_a_paused_study_leaves_all_slots_which_go_on_from_their_checkpoints(
    storage: PostgresStorage, record: StudyRecord, run: Run
) -> None:
    trained: Counter[tuple[int, int]] = Counter()
    stop = threading.Event()

    def noted(trial: Any) -> Steps:
        for value in steps(trial):
            trained[trial.number, value[1]] += 1
            if trial.number == 0 and value[1] == 1:
                stop.set()
            yield value
        return 0.5

    assert run(Pool(noted), stop=stop, slots=4) == "interrupted"
    assert states(storage, record) == [TrialState.WAITING] * 4
    assert run(Pool(noted), slots=4) == "complete"
    assert len(trained) == 10 * STEPS
    assert set(trained.values()) == {1}, "a step was trained twice"


def test_what_the_objective_itself_raises_ends_the_trials_that_it_had(
    storage: PostgresStorage, record: StudyRecord, run: Run
) -> None:
    class Breaks(Pool):
        broken = False

        def train(self, trials: Any, slots: int, *, device: str) -> None:
            if self.broken:
                super().train(trials, slots, device=device)
            else:
                trials.take(3)
                self.broken = True
                raise RuntimeError("the pool broke")

    assert run(Breaks(steps)) == "complete"
    failed = [trial for trial in storage.trials(record) if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["error"] for trial in failed] == ["RuntimeError: the pool broke"] * 3


def test_an_objective_that_cannot_train_at_all_ends_its_worker(run: Run) -> None:
    class Useless(Pool):
        def train(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no pool here")

    with pytest.raises(RuntimeError, match="no pool here"):
        run(Useless(steps))


def test_a_result_that_the_database_refuses_keeps_no_other_out(
    storage: PostgresStorage, record: StudyRecord, run: Run
) -> None:
    storage.database.execute("alter table trial_user_attributes add constraint poison check (key <> 'poison')")

    def poisoned(trial: Any) -> Steps:
        if trial.number % 4 == 1:
            trial.set_user_attr("poison", 1)
        yield from steps(trial)
        return 0.5

    assert run(Pool(poisoned), slots=4) == "complete"
    trials = storage.trials(record)
    assert all((trial.state == TrialState.FAIL) == (trial.number % 4 == 1) for trial in trials)
    assert Counter(states(storage, record))[TrialState.COMPLETE] == 10
    assert all("refuses the attribute 'poison'" in t.user_attrs["error"] for t in trials if t.state == TrialState.FAIL)


def test_a_dead_worker_counts_on_each_of_its_trials_by_its_part(storage: PostgresStorage, record: StudyRecord) -> None:
    def die(count: int) -> None:
        """Whoever has the trials that wait, dies."""
        claims = storage.leases.claim_many(record, "w", 30, count=count)
        assert len(claims) == count
        storage.workers.reap(["w"], died_of="signal 9")

    for _ in range(11):
        die(4)
    assert states(storage, record) == [TrialState.WAITING] * 4
    die(4)
    assert states(storage, record) == [TrialState.FAIL] * 4
    error = storage.trials(record)[0].user_attrs["error"]
    assert error.startswith(
        "workers died on this trial, and on others beside it, as often as if 3 had died on it alone"
    )
    for _ in range(3):
        die(1)
    assert storage.trials(record)[4].user_attrs["error"] == "3 workers died on this trial, the last: signal 9"


def test_a_subclass_with_a_call_of_its_own_is_called(storage: PostgresStorage, record: StudyRecord, run: Run) -> None:
    class Own(Pool):
        def __call__(self, trial: Any) -> float:
            trial.set_user_attr("own", True)
            return super().__call__(trial)

    assert run(Own(steps), slots=4) == "complete"
    assert all(trial.user_attrs == {"own": True} for trial in storage.trials(record))


def test_a_trial_draws_the_same_alone_and_beside_others(storage: PostgresStorage, tmp_path: Path) -> None:
    drawn = []
    for name, slots in (("alone", 1), ("beside", 5)):
        space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
        made, _ = storage.create_study(
            StudySpec.from_dict({**STUDY, "name": name, "sampler": {"name": "random"}, "space": space})
        )
        storage.workers.register([made], worker_id="w", host="host", pid=1, device="cpu")
        assert worker_on(storage, made, Pool(steps), tmp_path / "results", slots=slots).run() == "complete"
        drawn.append([trial.params for trial in storage.trials(made)])
    assert drawn[0] == drawn[1]
