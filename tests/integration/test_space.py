"""The space of a study changes while it runs: old trials stay, and workers follow at their next trial."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.errors import SpecError, StorageError, StudyBusy
from studies.space import change_space
from studies.storage.records import Claim, StudyRecord
from studies.trial import Trial
from tests.support.worker import worker_on

SPACE = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "width": {"type": "int", "low": 8, "high": 64, "step": 8},
    "o": {"type": "categorical", "choices": ["adamw", "sgd"]},
    "momentum": {"type": "float", "low": 0.0, "high": 0.9, "when": {"o": ["sgd"]}},
}


def study(storage: PostgresStorage, **keys: Any) -> StudyRecord:
    data = {"name": "s", "objective": {"path": "tests:objective"}, "space": SPACE, "budget": {"trials": 30}, **keys}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    return record


@pytest.mark.parametrize("sampler", [{}, {"options": {"multivariate": True}}, {"name": "nsgaii"}, {"name": "gp"}])
def test_a_running_worker_follows_at_its_next_trial_and_the_sampler_sees_what_is_still_legal(
    storage: PostgresStorage, tmp_path: Path, sampler: dict[str, Any]
) -> None:
    record = study(storage, sampler=sampler)

    def objective(trial: Trial) -> float:
        if trial.number == 14:
            width = trial.params["width"]
            illegal = "width.high=56" if width == 64 else f"width.low={width + 8}"
            with pytest.raises(StudyBusy, match=r"trial 14 of study 's' is running with width = .*cancel s 14"):
                change_space(storage, record, [illegal])
            assert change_space(storage, record, ["o.choices+=lion", "lr.high=0.5", "width.high=128"]) == [
                "lr.high: 0.1 → 0.5",
                "width.high: 64 → 128",
                'o.choices: ["adamw", "sgd"] → ["adamw", "sgd", "lion"]',
            ]
        if trial.number > 17 and trial.params["lr"] >= 2e-4 and len(storage.spaces.changes(record)) == 1:
            change_space(storage, record, ["lr.low=2e-4"])  # of earlier trials some are beyond it now
        return trial.params["lr"] + trial.params["width"]

    assert worker_on(storage, record, objective, tmp_path).run() == "complete"
    trials = storage.trials(record)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    before, after = trials[:15], trials[15:]
    assert all(trial.distributions["lr"].high == 0.1 for trial in before)
    assert all(trial.distributions["lr"].high == 0.5 for trial in after)
    assert all("lion" in trial.distributions["o"].choices for trial in after)
    stock = optuna.load_study(study_name="s", storage=storage.location.sqlalchemy)
    assert [trial.params for trial in stock.trials] == [trial.params for trial in trials]
    assert stock.best_trial.number == storage.best(record).number
    changes = storage.spaces.changes(record)
    assert [(each.version, each.change) for each in changes] == [
        (1, 'lr.high: 0.1 → 0.5, width.high: 64 → 128, o.choices: ["adamw", "sgd"] → ["adamw", "sgd", "lion"]'),
        (2, "lr.low: 0.0001 → 0.0002"),
    ]
    assert trials[-1].distributions["lr"].low == 2e-4
    assert "@" in changes[0].who


def test_a_requeued_trial_keeps_the_parameters_of_its_first_claim(storage: PostgresStorage, tmp_path: Path) -> None:
    record, stop, params = study(storage, budget={"trials": 2}), threading.Event(), []

    def objective(trial: Trial) -> float:
        params.append((trial.number, trial.params["o"]))
        if len(params) == 1:
            stop.set()
            raise trial.Interrupted
        return 1.0

    worker_on(storage, record, objective, tmp_path, stop=stop).run()
    change_space(storage, record, ["o.choices+=lion"])
    assert worker_on(storage, storage.find_study("s"), objective, tmp_path).run() == "complete"
    assert params[0] == params[1]
    assert [len(trial.distributions["o"].choices) for trial in storage.trials(record)] == [2, 3]


def test_what_is_illegal_is_refused_by_name_and_changes_nothing(storage: PostgresStorage) -> None:
    record = study(storage)
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    waiting = optuna.create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"lr": 1e-3}})
    storage.create_new_trial(record.study_id, waiting)
    text = storage.spaces.text(record)
    for changes, error, words in (
        (["lr"], SpecError, "'lr' is not NAME.FIELD=VALUE; for example lr.high=0.3"),
        (["widht.high=1"], SpecError, "no parameter 'widht' in its space; did you mean 'width'"),
        (["lr.hihg=1"], SpecError, "lr.hihg cannot change: of 'lr' these can: low, high, step"),
        (["lr.log=false"], SpecError, "lr.log cannot change.*a study keeps the rest"),
        (["lr.high+=1"], SpecError, r"\+= is for choices; write lr.high=VALUE"),
        (["lr.high=1e-5"], SpecError, "the new space: space.lr: low = 0.0001 is above high = 1e-05"),
        (["lr.high=wide"], SpecError, "the new space: space.lr.high = 'wide'"),
        (["width.high=65"], SpecError, "high = 65 is no whole number of steps of 8"),
        (["o.choices+=sgd"], SpecError, "choices holds 'sgd' twice"),
        (["o.choices-=lion"], SpecError, "'o' has no choice 'lion'; it has"),
        (["o.choices-=sgd"], SpecError, "space.momentum.when.o lists 'sgd', which 'o' never takes"),
        (["lr.low=0.01"], StudyBusy, "trial 1 of study 's' is waiting with lr = 0.001, which the new space lacks"),
    ):
        with pytest.raises(error, match=words):
            change_space(storage, record, changes)
    assert not change_space(storage, record, ["lr.high=0.1", "o.choices+=lion", "o.choices-=lion"])  # nothing is new
    assert storage.spaces.text(record) == text
    assert storage.spaces.changes(record) == []
    wider = record.require_spec("").model_copy(update={"seed": 1})
    assert not storage.spaces.change(record, "changed by somebody else", wider, who="w", change="c")

    grid = {"name": "g", "sampler": {"name": "grid"}, "space": {"o": SPACE["o"]}}
    fixed, _ = storage.create_study(StudySpec.from_dict({"objective": {"path": "tests:f"}, **grid}))
    with pytest.raises(SpecError, match=r"'grid', which keeps the space that it began with.*enqueue NEW --from g"):
        change_space(storage, fixed, ["o.choices+=lion"])
    free, _ = storage.create_study(StudySpec.from_dict({"objective": {"path": "tests:f"}, "name": "free"}))
    with pytest.raises(SpecError, match=r"study 'free' has no \[space\]: its objective suggests the parameters"):
        change_space(storage, free, ["o.choices+=lion"])
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "stock")
    with pytest.raises(StorageError, match="was made by Optuna"):
        change_space(storage, storage.find_study("stock"), ["o.choices+=lion"])


def test_of_two_changes_at_one_moment_none_is_lost(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    record, read = study(storage), storage.spaces.text

    def changed_before(record: StudyRecord) -> str:
        monkeypatch.undo()
        change_space(storage, record, ["lr.high=0.2"])
        return read(record)

    def changed_after(record: StudyRecord) -> str:
        monkeypatch.undo()
        text = read(record)
        change_space(storage, record, ["lr.high=0.3"])
        return text

    monkeypatch.setattr(storage.spaces, "text", changed_before)
    change_space(storage, record, ["width.high=72"])
    monkeypatch.setattr(storage.spaces, "text", changed_after)
    with pytest.raises(StudyBusy, match="somebody changed the space of study 's' at this moment; look, and try again"):
        change_space(storage, record, ["width.high=80"])
    assert [each.change for each in storage.spaces.changes(record)] == [
        "lr.high: 0.1 → 0.2", "width.high: 64 → 72", "lr.high: 0.2 → 0.3",
    ]  # fmt: skip
    space = storage.find_study("s").require_spec("").to_file()["space"]
    assert (space["lr"]["high"], space["width"]["high"]) == (0.3, 72)
