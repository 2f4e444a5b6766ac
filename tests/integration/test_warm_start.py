"""The next study: another one's best trials are enqueued, or all of them are evidence for the sampler."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from studies import PostgresStorage, StudySpec
from studies.errors import NothingFinished, SpecError, StorageError, StudyNotFound
from studies.storage.records import StudyRecord
from studies.trial import Trial
from studies.warm_start import collect, doubts, enqueue_top
from tests.support.worker import worker_on

X = {"type": "float", "low": 0.0, "high": 1.0}
OPTIMIZER = {"type": "categorical", "choices": ["adamw", "sgd"]}


def objective(trial: Trial) -> float:
    trial.report(0.0, 0, cost=trial.params["x"])
    return float((trial.params["x"] - 0.3) ** 2)


def study(storage: PostgresStorage, name: str, **keys: Any) -> StudyRecord:
    data = {"name": name, "objective": {"path": "tests:objective"}, "space": {"x": X}, "seed": 1, **keys}
    return storage.create_study(StudySpec.from_dict(data))[0]


def run(storage: PostgresStorage, record: StudyRecord, results: Path) -> list[optuna.trial.FrozenTrial]:
    storage.workers.register([record], worker_id=record.name, host="host", pid=1, device="cpu")
    worker_on(storage, record, objective, results, worker_id=record.name).run()
    return storage.trials(record)


@pytest.fixture
def first(storage: PostgresStorage, tmp_path: Path) -> StudyRecord:
    """20 COMPLETE trials over x and an optimizer."""
    record = study(storage, "first", space={"x": X, "o": OPTIMIZER}, budget={"trials": 20})
    run(storage, record, tmp_path / "first")
    return record


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        ({}, "hyperband"),
        ({"options": {"multivariate": True}}, "median"),
        ({"name": "gp"}, "none"),
        ({"name": "curves"}, "none"),
    ],
)
def test_a_sampler_learns_from_evidence_that_nothing_counts(
    storage: PostgresStorage, first: StudyRecord, tmp_path: Path, sampler: dict[str, Any], pruner: str
) -> None:
    keys: dict[str, Any] = {"budget": {"trials": 4}, "sampler": sampler, "pruner": {"name": pruner}, "seed": 2}
    keys["space"] = {"x": {**X, "high": 0.5}}
    cold = run(storage, study(storage, "cold", **keys), tmp_path / "cold")
    constraints = {} if sampler.get("name") == "curves" else {"cost": "<= 0.4"}
    warm = study(storage, "warm", **keys, constraints=constraints)
    evidence = collect(storage, warm.require_spec("it has one"), ["first"])
    known = {trial.number: trial for trial in storage.trials(first) if trial.params["x"] <= 0.5}
    assert {trial.number: trial.params for trial in evidence} == {n: {"x": t.params["x"]} for n, t in known.items()}
    assert all(trial.constraints == dict.fromkeys(constraints, trial.params["x"] - 0.4) for trial in evidence)
    for _ in range(2):  # once more changes nothing
        storage.evidence.add(warm, evidence)
    assert storage.evidence.of(warm) == evidence
    assert storage.evidence.counts(warm) == {"first": len(evidence)}

    trials = run(storage, warm, tmp_path / "warm")
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert storage.status(warm).trials["complete"] == 4
    assert storage.best(warm).number == min(trials, key=lambda trial: trial.value).number
    assert [trial.params for trial in trials] != [trial.params for trial in cold]
    stock = optuna.load_study(study_name="warm", storage=storage.location.sqlalchemy)
    assert len(stock.trials) == 4


def half_pruned(trial: Trial) -> float:
    for step in (1, 2):
        trial.report(math.nan if trial.number == 3 else trial.params["x"], step)
    if trial.number % 2:
        raise optuna.TrialPruned
    return float(trial.params["x"])


def test_curves_learns_from_pruned_trials_of_another_study_as_well(storage: PostgresStorage, tmp_path: Path) -> None:
    old = study(storage, "old", budget={"trials": 6})
    worker_on(storage, old, half_pruned, tmp_path / "old").run()

    def spec(sampler: str) -> StudySpec:
        return study(storage, sampler, sampler={"name": sampler}, budget={"trials": 2}).require_spec("it has one")

    assert {trial.number: trial.step for trial in collect(storage, spec("tpe"), ["old"])} == dict.fromkeys((0, 2, 4))
    evidence = collect(storage, spec("curves"), ["old"])
    # The one that reported nan says nothing.
    assert {trial.number: trial.step for trial in evidence} == {0: None, 1: 2, 2: None, 4: None, 5: 2}
    assert all(list(trial.values) == [trial.params["x"]] for trial in evidence)
    new = storage.find_study("curves")
    storage.evidence.add(new, evidence)
    assert storage.evidence.of(new) == evidence
    assert len(run(storage, new, tmp_path / "new")) == 2


@pytest.mark.usefixtures("first")
def test_what_may_keep_values_from_comparing_is_named(storage: PostgresStorage) -> None:
    same, other = study(storage, "same"), study(storage, "other", objective={"path": "tests:of", "args": {"epochs": 9}})
    assert doubts(storage, same, ["first", "first"]) == []
    (line,) = doubts(storage, other, ["first", "first"])
    assert line.startswith(
        "the values of study 'first' are taken as they are, though objective.path is tests:objective there and "
        "tests:of here; objective.args.epochs is not given there and 9 here; where they do not compare, run a study "
    )
    storage.settle_environment(storage.find_study("first"), {"torch": "1", "data x.csv": "1" * 64})
    assert doubts(storage, same, ["first"]) == []  # no worker of it has begun
    storage.settle_environment(same, {"torch": "2", "data x.csv": "2" * 64})
    (line,) = doubts(storage, same, ["first"])
    assert "though data x.csv is 111111111111 there and 222222222222 here; where" in line
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "stock")
    assert "objective.path is unknown there and tests:objective here" in doubts(storage, same, ["stock"])[0]


def test_the_best_trials_are_enqueued_as_far_as_the_space_has_them(
    storage: PostgresStorage, first: StudyRecord, tmp_path: Path
) -> None:
    record = study(storage, "next", space={"x": X, "depth": {"type": "int", "low": 1, "high": 2}}, budget={"trials": 3})
    copied = enqueue_top(storage, record, "first", 3)
    best = sorted(storage.trials(first), key=lambda trial: trial.value)[:3]
    assert [each.number for each in copied] == [trial.number for trial in best]
    assert [each.enqueued.params for each in copied] == [{"x": trial.params["x"]} for trial in best]
    assert {tuple(each.left_out) for each in copied} == {("o",)}
    assert [trial.params["x"] for trial in run(storage, record, tmp_path / "next")] == [t.params["x"] for t in best]
    with pytest.raises(StorageError, match="study 'next' has ended"):
        enqueue_top(storage, record, "first", 1)


@pytest.mark.usefixtures("first")
def test_what_cannot_help_is_refused_with_the_reason(storage: PostgresStorage) -> None:
    def spec(**keys: Any) -> StudySpec:
        return StudySpec.from_dict({"name": "n", "objective": {"path": "tests:f"}, "space": {"x": X}, **keys})

    study(storage, "fresh")
    for made, sources, error, words in (
        (spec(), ["frist"], StudyNotFound, "no study 'frist'.*did you mean 'first'"),
        (spec(name="first"), ["first"], SpecError, "study 'first' cannot be its own evidence"),
        (spec(space={}), ["first"], SpecError, "study 'n' has no .space.*studyhall enqueue n --from first"),
        (
            spec(sampler={"name": "random"}),
            ["first"],
            SpecError,
            "'random' does not learn from trials of other studies",
        ),
        (spec(direction="maximize"), ["first"], SpecError, "'first' minimizes value, and 'n' maximizes value"),
        (spec(space={"y": X}), ["first"], SpecError, "no complete trial within the space of 'n': its parameters are"),
        (spec(space={"x": {**X, "low": 0.999999}}), ["first"], SpecError, "no complete trial within the space"),
        (spec(), ["first", "fresh"], SpecError, "study 'fresh' has no complete trial to learn from; leave it out"),
    ):
        with pytest.raises(error, match=words):
            collect(storage, made, sources)
    record = study(storage, "other", space={"y": X})
    with pytest.raises(SpecError, match="no parameter of the best 2 trials of 'first' is in the space of 'other'"):
        enqueue_top(storage, record, "first", 2)
    with pytest.raises(NothingFinished, match="study 'fresh' has no complete trial yet"):
        enqueue_top(storage, record, "fresh", 1)
    assert storage.trials(record) == []
