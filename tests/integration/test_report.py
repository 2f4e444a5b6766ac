"""What a report reads from PostgreSQL."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.report.data import StudyData, read
from studies.report.page import report
from studies.report.plot_kinds import PLOTS
from studies.space import change_space
from studies.storage.evidence import ForeignTrial
from studies.storage.records import Claim, StudyRecord
from tests.support.postgres import PASSWORD

SPACE = {"lr": FloatDistribution(0, 1), "depth": IntDistribution(1, 4)}
METRICS = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


def begin(storage: PostgresStorage) -> StudyRecord:
    spec = StudySpec.from_dict(
        {
            "name": "seen",
            "direction": "maximize",
            "metric": "val_accuracy",
            "objective": {"path": "objectives.mlp:MLP", "args": {"dataset": "digits"}},
            "budget": {"trials": 20},
            "space": {"lr": {"type": "float", "low": 0.0, "high": 1.0}, "depth": {"type": "int", "low": 1, "high": 4}},
        }
    )
    record, _ = storage.create_study(spec)
    storage.workers.register([record], worker_id="w1", host="box", pid=1, device="cuda:0 H100")
    return record


def run(storage: PostgresStorage, record: StudyRecord, states: Sequence[str], draw: random.Random) -> None:
    """Run a trial for each state as a worker does; RUNNING is left as it is."""
    for state in states:
        claim = storage.leases.claim(record, "w1", 60)
        assert isinstance(claim, Claim)
        params = [("lr", draw.random()), ("depth", draw.randint(1, 4))]
        changes = {
            "params": [
                {"name": name, "value": value, "distribution": distribution_to_json(SPACE[name])}
                for name, value in params
            ],
            "reports": [{"step": step, "value": step / 10} for step in (1, 2)],
            "metrics": [{"step": step, "name": name, "value": step / 10} for step in (1, 2) for name in METRICS],
        }
        storage.leases.write(claim, changes, step=2)
        error = [{"key": "error", "value": json.dumps("ValueError: too wide")}] if state == "FAIL" else []
        if state != "RUNNING":
            values = [draw.random()] if state == "COMPLETE" else None
            storage.leases.finish(claim, state, values, {"user_attrs": error})


def impossible(data: StudyData) -> set[str]:
    return {name for name, kind in PLOTS.items() if kind.obstacle(data)}


def test_a_report_holds_what_the_database_does_while_the_study_runs(storage: PostgresStorage) -> None:
    record = begin(storage)
    run(storage, record, ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "COMPLETE", "RUNNING"], random.Random(0))
    known = ForeignTrial(source="old", number=0, params={"lr": 0.5}, values=[0.5], constraints={})
    storage.evidence.add(record, [known, replace(known, number=1)])
    change_space(storage, record, ["lr.high=2"])
    data = read(storage, record)
    assert [t.state.name for t in data.trials] == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "COMPLETE", "RUNNING"]
    assert data.metric_names == ["val_accuracy"]
    assert data.state == "running"
    assert {point.name for point in data.curves[1]} == set(METRICS)
    assert [point.value for point in data.curves[5] if point.name == "val_loss"] == [0.1, 0.2]
    assert data.attempts[5].device == "cuda:0 H100"
    assert data.best is not None
    assert data.best.value == max(t.value for t in data.trials if t.state == TrialState.COMPLETE)
    assert data.spec is not None
    assert 'dataset = "digits"' in data.spec
    assert "notify" not in data.spec
    assert impossible(data) == {"pareto", "hypervolume"}

    page = report(data).decode()
    assert "ValueError: too wide" in page
    assert "Warm start: the sampler learns from 2 trials of old, which count toward no budget." in page
    assert f"<li>{data.space_changes[0]}</li>" in page
    assert str(data.space_changes[0]).endswith(": lr.high: 1.0 → 2.0")
    assert "box cuda:0 H100" in page
    assert f"studyhall best {record.name} --format json" in page
    for secret in (PASSWORD, quote(PASSWORD, safe=""), storage.location.sqlalchemy):
        assert secret not in page


@pytest.mark.parametrize("objectives", [1, 2])
def test_a_study_of_stock_optuna_has_a_report(storage: PostgresStorage, objectives: int) -> None:
    sampler = optuna.samplers.RandomSampler(seed=0)  # both values of kind are drawn
    study = optuna.create_study(
        storage=storage, study_name="stock", directions=["minimize"] * objectives, sampler=sampler
    )
    if objectives == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["loss", "size"])

    def objective(trial: optuna.Trial) -> Sequence[float]:
        x, kind = trial.suggest_float("x", 0, 1), trial.suggest_categorical("kind", ["a", "b"])
        if objectives == 1:
            trial.report(x, 0)
        return [x + (kind == "a"), 1 - x][:objectives]

    study.optimize(objective, n_trials=5)
    data = read(storage, storage.find_study("stock"))
    assert data.spec is None
    assert data.metric_names == (["value"] if objectives == 1 else ["loss", "size"])
    no = {"workers"} | ({"pareto", "hypervolume"} if objectives == 1 else {"curves", "intermediate"})
    assert impossible(data) == no
    page = report(data).decode()
    assert "made by Optuna" in page
    assert "Timeline of the trials" in page
