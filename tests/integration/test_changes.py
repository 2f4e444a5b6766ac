"""Whoever has read a study sees every change of it at the next read, whoever made it; and the counts are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import optuna
import psycopg2
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from studies import PostgresStorage, StudySpec
from studies.errors import LeaseLost, SpecError
from studies.storage.records import Claim, StudyRecord

pytestmark = pytest.mark.both_servers

UNIT = FloatDistribution(0, 1)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A study with a trial of each kind, as four clients see it."""

    storage: PostgresStorage
    """Which changes something."""
    stock: RDBStorage
    """Likewise, as stock Optuna does."""
    reader: PostgresStorage
    """Which has read everything before."""
    record: StudyRecord
    held: Claim
    """Of trial 0."""
    plain: int
    """The id of trial 1, which runs and is held by nobody."""
    waiting: int
    """The id of trial 2."""

    @property
    def study_id(self) -> int:
        return self.record.study_id


@pytest.fixture
def scene(storage: PostgresStorage) -> Iterator[Scene]:
    data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": 50}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    held = storage.leases.claim(record, "w", 30)
    assert isinstance(held, Claim)
    stock = RDBStorage(storage.location.sqlalchemy)
    plain = stock.create_new_trial(record.study_id)
    waiting = stock.create_new_trial(record.study_id, create_trial(state=TrialState.WAITING))
    with closing(PostgresStorage(storage.location)) as reader:
        reader.get_all_trials(record.study_id)
        yield Scene(storage=storage, stock=stock, reader=reader, record=record, held=held, plain=plain, waiting=waiting)
    stock.remove_session()
    stock.engine.dispose()


CHANGES: dict[str, Callable[[Scene], object]] = {
    "a report": lambda s: s.storage.leases.write(s.held, {"reports": [{"step": 1, "value": 0.5}]}, step=1),
    "a result": lambda s: s.storage.leases.finish(s.held, "COMPLETE", [0.5], {}),
    "a trial given back": lambda s: s.storage.leases.requeue(s.held, {"user_attrs": [{"key": "k", "value": "1"}]}),
    "a dead worker": lambda s: s.storage.workers.reap(["w"], died_of="a signal"),
    "a claim of what waits": lambda s: s.storage.leases.claim(s.record, "w", 30),
    "a lease that ran out": lambda s: (s.storage.leases.claim(s.record, "silent", 0), s.storage.workers.heartbeat("w")),
    "a parameter": lambda s: s.storage.set_trial_param(s.plain, "x", 0.5, UNIT),
    "an attribute": lambda s: s.storage.set_trial_user_attr(s.waiting, "k", 1),
    "a system attribute": lambda s: s.storage.set_trial_system_attr(s.plain, "k", 1),
    "an intermediate value": lambda s: s.storage.set_trial_intermediate_value(s.plain, 1, 0.5),
    "a state": lambda s: s.storage.set_trial_state_values(s.plain, TrialState.FAIL),
    "a trial cancelled": lambda s: s.storage.cancel(s.storage.trial(s.record, 2)),
    "a new trial": lambda s: s.storage.create_new_trial(s.study_id),
    "an enqueued trial": lambda s: s.storage.load_study(s.record).enqueue_trial({"x": 0.5}, user_attrs={"k": 1}),
    "stock's parameter": lambda s: s.stock.set_trial_param(s.plain, "x", 0.5, UNIT),
    "stock's attribute": lambda s: s.stock.set_trial_user_attr(s.waiting, "k", 1),
    "stock's system attribute": lambda s: s.stock.set_trial_system_attr(s.plain, "k", 1),
    "stock's intermediate value": lambda s: s.stock.set_trial_intermediate_value(s.plain, 1, 0.5),
    "stock's changed intermediate value": lambda s: [
        s.stock.set_trial_intermediate_value(s.plain, 1, value) for value in (0.5, float("nan"), float("inf"))
    ],
    "stock's result": lambda s: s.stock.set_trial_state_values(s.plain, TrialState.COMPLETE, [float("-inf")]),
    "stock's start of what waits": lambda s: s.stock.set_trial_state_values(s.waiting, TrialState.RUNNING),
    "stock's new trial": lambda s: s.stock.create_new_trial(s.study_id),
    "stock's added trial": lambda s: s.stock.create_new_trial(
        s.study_id, create_trial(value=1.0, params={"x": 0.5}, distributions={"x": UNIT}, intermediate_values={3: 0.5})
    ),
    "an administrator's hand": lambda s: s.storage.database.execute(
        "update trials set state = 'PRUNED' where trial_id = %(id)s", {"id": s.plain}
    ),
    "stock's end of a trial that a worker holds": lambda s: s.stock.set_trial_state_values(
        s.held.trial_id, TrialState.FAIL
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_client_that_has_read_the_study_sees(change: str, scene: Scene) -> None:
    before = scene.reader.get_all_trials(scene.study_id)
    CHANGES[change](scene)
    after = scene.reader.get_all_trials(scene.study_id)
    assert [repr(trial) for trial in after] != [repr(trial) for trial in before]
    expected = scene.stock.get_all_trials(scene.study_id)
    assert [vars(trial) for trial in after] == [vars(trial) for trial in expected] or (
        "nan" in repr(expected) and repr(after) == repr(expected)
    )
    counted = scene.storage.database.rows("status", study_id=scene.study_id)[0]
    assert {state: counted[state.lower()] for state in TrialState.__members__} == {
        state.name: sum(trial.state == state for trial in expected) for state in TrialState
    }
    numbers = [trial.number for trial in expected]
    assert numbers == list(range(len(numbers)))
    # And what it has seen is not read again.
    question = scene.reader._known._caches[scene.study_id].question(())
    assert scene.reader.database.rows("changed_trials", study_id=scene.study_id, **question) == []


def test_a_change_that_is_committed_late_is_seen_though_later_ones_were_read_before(scene: Scene) -> None:
    with closing(psycopg2.connect(**scene.storage.location.libpq)) as slow:
        with slow.cursor() as cursor:
            cursor.execute("update trials set state = 'FAIL' where trial_id = %s", (scene.plain,))
        scene.storage.set_trial_user_attr(scene.waiting, "k", 1)
        assert scene.reader.get_all_trials(scene.study_id)[2].user_attrs == {"k": 1}
        slow.commit()
    assert scene.reader.get_all_trials(scene.study_id)[1].state == TrialState.FAIL


def test_a_study_longer_than_a_batch_is_read_whole(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.storage.pages.PAGE", 7)
    study = optuna.create_study(storage=storage)
    other = optuna.create_study(storage=storage)
    for n in range(20):
        study.add_trial(create_trial(value=n, params={"x": n / 100}, distributions={"x": UNIT}))
        other.add_trial(create_trial(value=-n))
    with closing(PostgresStorage(storage.location)) as reader:
        read = reader.get_all_trials(study._study_id)
        assert [(trial.number, trial.value, trial.params["x"]) for trial in read] == [
            (n, n, n / 100) for n in range(20)
        ]
        study.add_trial(create_trial(value=20))
        assert [trial.value for trial in reader.get_all_trials(study._study_id)] == list(range(21))


def test_trials_that_an_administrator_deletes_are_no_longer_counted(scene: Scene) -> None:
    scene.storage.leases.finish(scene.held, "COMPLETE", [1.0], {})
    scene.storage.database.execute("delete from trial_values; delete from trials where number < 2")
    counted = scene.storage.database.rows("status", study_id=scene.study_id)[0]
    assert {name: count for name, count in counted.items() if count} == {"waiting": 1}


@pytest.mark.parametrize("year", ["0001-01-01", "9999-12-31 23:59:59", "1969-12-31"])
def test_a_trial_of_any_year_can_be_read(storage: PostgresStorage, year: str) -> None:
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(value=1.0))
    storage.database.execute(
        "update trials set datetime_start = %(year)s, datetime_complete = %(year)s", {"year": year}
    )
    assert [trial.value for trial in study.trials] == [1.0]


def test_trials_are_selected_by_state_as_they_change(storage: PostgresStorage) -> None:
    study = optuna.create_study(storage=storage)
    trials = [study.ask() for _ in range(4)]
    study.tell(trials[2], 1.0)

    def numbers(*states: TrialState) -> list[int]:
        return [trial.number for trial in study.get_trials(deepcopy=False, states=states)]

    assert (numbers(TrialState.COMPLETE), numbers(TrialState.RUNNING)) == ([2], [0, 1, 3])
    study.tell(trials[0], state=TrialState.PRUNED)
    assert numbers(TrialState.COMPLETE, TrialState.PRUNED) == [0, 2]
    study.tell(trials[1], 1.0)
    assert numbers(TrialState.COMPLETE, TrialState.PRUNED) == [0, 1, 2]
    assert numbers() == []


# Budgets


def claims(storage: PostgresStorage, record: StudyRecord, count: int) -> list[Claim]:
    found = [storage.leases.claim(record, f"w{n}", 30) for n in range(count)]
    assert all(isinstance(claim, Claim) for claim in found)
    return [claim for claim in found if isinstance(claim, Claim)]


@pytest.mark.parametrize(("budget", "kept"), [(3, 0), (4, 1), (6, 3), (7, 4), (9, 4)])
def test_extending_downwards_requeues_the_newest_of_the_running_trials(
    storage: PostgresStorage, budget: int, kept: int
) -> None:
    data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": 30}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    for claim in claims(storage, record, 3):
        storage.leases.finish(claim, "COMPLETE", [1.0], {})
    running = claims(storage, record, 4)
    storage.budgets.extend(record, trials=budget)
    assert [trial.state.name for trial in storage.trials(record)[3:]] == ["RUNNING"] * kept + ["WAITING"] * (4 - kept)
    for claim in running:
        if claim.number < 3 + kept:
            storage.leases.finish(claim, "COMPLETE", [1.0], {})
        else:
            with pytest.raises(LeaseLost):
                storage.leases.write(claim, {}, step=1)
            with pytest.raises(LeaseLost):  # nor does a result that comes late break the budget
                storage.leases.finish(claim, "COMPLETE", [1.0], {})
    status = storage.status(record)
    assert status.finished == 3 + kept
    assert status.ended == ("complete" if budget == 3 + kept else None)
    assert storage.leases.claim(record, "w", 30) == "complete" or budget > 3 + kept


def test_a_budget_below_what_is_done_is_refused_and_changes_nothing(storage: PostgresStorage) -> None:
    data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": 30}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    for claim in claims(storage, record, 3):
        storage.leases.finish(claim, "COMPLETE", [1.0], {})
    [running] = claims(storage, record, 1)
    with pytest.raises(SpecError, match=r"study: budget.trials = 2: 3 trials done already; legal are 3 and more"):
        storage.budgets.extend(record, trials=2, max_failures=99)
    assert storage.find_study("study").budget == record.budget
    storage.leases.write(running, {}, step=1)


def test_a_grid_is_not_extended_beyond_its_end(storage: PostgresStorage) -> None:
    data = {
        "name": "study",
        "objective": {"path": "tests:objective"},
        "budget": {"trials": 4},
        "sampler": {"name": "grid"},
        "space": {"n": {"type": "int", "low": 1, "high": 6}},
    }
    record, _ = storage.create_study(StudySpec.from_dict(data))
    with pytest.raises(SpecError, match=r"study: budget.trials = 7: its grid has 6 combinations"):
        storage.budgets.extend(record, more_trials=3)
    storage.budgets.extend(record, more_trials=2)
    assert storage.status(record).budget == record.budget.model_copy(update={"trials": 6})  # type: ignore[union-attr]


@pytest.mark.parametrize("direction", list(StudyDirection)[1:])
def test_a_target_is_reached_by_a_feasible_trial_alone(storage: PostgresStorage, direction: StudyDirection) -> None:
    name = direction.name.lower()
    data = {
        "name": "study",
        "direction": name,
        "objective": {"path": "tests:objective"},
        "budget": {"trials": 30, "target": 0.0},
    }
    record, _ = storage.create_study(StudySpec.from_dict(data))
    for key, value in (("constraints", "[0.0, 0.5]"), ("constraints:weight", "1e-9"), ("constraints:w", "NaN")):
        [claim] = claims(storage, record, 1)
        storage.leases.finish(claim, "COMPLETE", [0.0], {"system_attrs": [{"key": key, "value": value}]})
        assert storage.status(record).ended is None
    [claim] = claims(storage, record, 1)
    attrs = [{"key": "constraints", "value": "[-1.0, 0]"}, {"key": "constraints:weight", "value": "-Infinity"}]
    storage.leases.finish(claim, "COMPLETE", [0.0], {"system_attrs": attrs})
    assert storage.status(record).ended == "target"
