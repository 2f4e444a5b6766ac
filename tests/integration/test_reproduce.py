"""A stored trial runs again, and every number that it reported or returned is compared."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.environment import ATTRIBUTE, collect
from studies.errors import ObjectiveError, StorageError, StudyhallError
from studies.reproduce import REPORTED, reproduce
from studies.storage.records import StudyRecord
from studies.trial import Trial
from tests.support.worker import worker_on

SPACE = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "depth": {"type": "int", "low": 1, "high": 3, "when": {"kind": ["deep"]}},
    "kind": {"type": "categorical", "choices": ["deep", "flat"]},
}


def objective(trial: Trial, shift: float = 0.0) -> float:
    """Reports what follows from seed, number and parameters alone; every third trial is pruned at step 2."""
    rng, layers = random.Random(trial.seed), trial.suggest_categorical("layers", [(50,), (50, 50)])
    for step in range(4):
        value = rng.random() * len(layers) + trial.params["x"]
        trial.report(value, step, number=trial.number, loss=value + (shift if step == 2 else 0), odd=math.nan)
        if trial.should_prune() or (trial.number % 3 == 2 and step == 2 and shift == 0):
            raise trial.Pruned
    return value


@pytest.fixture
def study(storage: PostgresStorage, tmp_path: Path) -> StudyRecord:
    """Trials 0 and 1 are COMPLETE, 2 is PRUNED, 3 FAILed."""

    def failing(trial: Trial) -> float:
        return objective(trial) if trial.number < 3 else 1 / 0

    budget = {"trials": 9, "max_failures": 1}
    data = {"name": "s", "objective": {"path": "tests:objective"}, "space": SPACE, "budget": budget, "seed": 7}
    record, _ = storage.create_study(StudySpec.from_dict({**data, "pruner": {"name": "none"}}))
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    assert worker_on(storage, record, failing, tmp_path / "results").run() == "failures"
    return record


def test_a_deterministic_trial_matches_bit_by_bit_and_nothing_is_written(
    storage: PostgresStorage, study: StudyRecord
) -> None:
    def everything() -> Any:
        return storage.database.rows("trial_ids", study_id=study.study_id), storage.trials(study)

    before = everything()
    for number, steps in ((0, 4), (1, 4), (2, 3)):
        reported: list[int] = []
        found = reproduce(
            storage, study, storage.trial(study, number), objective, device="cpu", progress=reported.append
        )
        assert (found.is_exact, found.steps, found.differences) == (True, steps, [])
        assert reported == list(range(steps))
        assert found.then is None
    assert everything()[1] == before[1]


def test_each_number_that_differs_is_named_with_its_largest_difference(
    storage: PostgresStorage, study: StudyRecord
) -> None:
    found = reproduce(
        storage, study, storage.trial(study, 0), lambda trial: objective(trial, shift=1e-6) + 0.25, device="cpu"
    )
    value, loss = found.differences
    assert (value.name, value.step, round(value.size, 9), value.numbers) == ("value", None, 0.25, 1)
    assert (loss.name, loss.step, round(loss.size, 9), loss.numbers) == ("loss", 2, 1e-6, 1)

    def short(trial: Trial) -> float:
        trial.report(0.0, 9)
        return objective(trial)

    found = reproduce(storage, study, storage.trial(study, 0), short, device="cpu")
    (missing,) = found.differences
    assert (missing.name, missing.step, missing.then, missing.now, missing.size) == (REPORTED, 9, None, 0.0, math.inf)


def test_what_has_no_result_or_no_spec_or_fails_now_is_refused(storage: PostgresStorage, study: StudyRecord) -> None:
    with pytest.raises(StudyhallError, match="trial 3 of study 's' is FAIL; only COMPLETE and PRUNED trials have"):
        reproduce(storage, study, storage.trial(study, 3), objective, device="cpu")
    with pytest.raises(ObjectiveError, match="trial 0 of study 's' fails now: ZeroDivisionError"):
        reproduce(storage, study, storage.trial(study, 0), lambda _: 1 / 0, device="cpu")
    storage.create_new_study([storage.get_study_directions(study.study_id)[0]], "stock")
    with pytest.raises(StorageError, match="study 'stock' was made by Optuna, not by studyhall: it stores no spec"):
        reproduce(storage, storage.find_study("stock"), storage.trial(study, 0), objective, device="cpu")


def test_a_trial_stores_what_differs_from_the_environment_of_its_study(
    storage: PostgresStorage, tmp_path: Path
) -> None:
    data = {"name": "e", "objective": {"path": "tests:objective"}, "budget": {"trials": 1}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    assert storage.environment(record) is None
    here = collect("tests:objective", objective, "cpu")
    assert storage.settle_environment(record, {**here, "torch": "0.1"}) == {**here, "torch": "0.1"}
    assert storage.settle_environment(record, here) == {**here, "torch": "0.1"}  # the first worker's stays
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    worker_on(storage, record, lambda _: 1.0, tmp_path / "results", environment=here).run()
    (trial,) = storage.trials(record)
    assert (trial.state, trial.system_attrs[ATTRIBUTE]) == (TrialState.COMPLETE, {"torch": here["torch"]})
    found = reproduce(storage, record, trial, lambda _: 1.0, device="cpu")
    assert (found.is_exact, found.then, found.changes) == (True, here, [])
