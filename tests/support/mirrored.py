"""A study with trials of every kind, and whether MLflow holds it as it is."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from studies import PostgresStorage, StudySpec
from studies.storage.records import Claim, StudyRecord

UNIT = distribution_to_json(FloatDistribution(0, 1))
STATES = ("COMPLETE", "PRUNED", "COMPLETE", "FAIL")
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
TERMINAL = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


def begin(storage: PostgresStorage, name: str, trials: int) -> StudyRecord:
    """A study, and a worker for it."""
    spec = StudySpec.from_dict(
        {
            "name": name,
            "direction": "maximize",
            "metric": "val_accuracy",
            "objective": {"path": "objectives.mlp:MLP"},
            "budget": {"trials": trials, "max_failures": trials},
        }
    )
    record, _ = storage.create_study(spec)
    storage.workers.register([record], worker_id="w", host="box", pid=1, device="cuda:0 A100")
    return record


def claim(storage: PostgresStorage, record: StudyRecord) -> Claim:
    """The next trial."""
    claimed = storage.leases.claim(record, "w", 60)
    assert isinstance(claimed, Claim)
    return claimed


def report(storage: PostgresStorage, claimed: Claim, steps: range, draw: random.Random) -> None:
    """Report some steps, with four metrics each; the parameters come with the first."""
    changes = {"reports": [], "metrics": []}
    if steps.start == 0:
        changes["params"] = [{"name": name, "value": draw.random(), "distribution": UNIT} for name in ("lr", "dropout")]
    for step in steps:
        values = {name: draw.random() for name in METRICS}
        changes["reports"].append({"step": step, "value": values["val_accuracy"]})
        changes["metrics"] += [{"step": step, "name": name, "value": value} for name, value in values.items()]
    storage.leases.write(claimed, changes, step=steps[-1])


def finish(storage: PostgresStorage, claimed: Claim, state: str, draw: random.Random) -> None:
    """Finish a trial."""
    changes = {"user_attrs": [{"key": "error", "value": json.dumps("ValueError: too wide")}]} if state == "FAIL" else {}
    storage.leases.finish(claimed, state, [draw.random()] if state == "COMPLETE" else None, changes)


def run(storage: PostgresStorage, record: StudyRecord, trials: int, steps: int, draw: random.Random) -> None:
    """Run so many trials to their ends, of every kind in turn."""
    for _ in range(trials):
        claimed = claim(storage, record)
        state = STATES[claimed.number % len(STATES)]
        report(storage, claimed, range(steps if state == "COMPLETE" else 2), draw)
        finish(storage, claimed, state, draw)


def runs_of(client: MlflowClient, name: str) -> tuple[Run, dict[int, Run]]:
    """The run of a study, and those of its trials; that there is one each is asserted."""
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    by_trial = defaultdict(list)
    for run in found:
        by_trial[run.data.tags["studyhall.trial"]].append(run)
    assert {trial: len(runs) for trial, runs in by_trial.items() if len(runs) != 1} == {}
    (parent,) = by_trial.pop("study")
    return parent, {int(trial): run for trial, (run,) in by_trial.items()}


def assert_same(storage: PostgresStorage, record: StudyRecord, client: MlflowClient) -> None:
    """That MLflow holds exactly what the database does."""
    parent, runs = runs_of(client, record.name)
    trials = [trial for trial in storage.trials(record) if trial.datetime_start]
    assert sorted(runs) == [trial.number for trial in trials]
    attempts = storage.leases.attempts(record)
    for trial in trials:
        run = runs[trial.number]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.run_name == f"trial {trial.number}"
        assert run.info.start_time == round(trial.datetime_start.timestamp() * 1000)
        assert run.data.tags["state"] == trial.state.name
        assert run.data.params == {name: str(value) for name, value in trial.params.items()}
        if trial.number in attempts:
            attempt = attempts[trial.number]
            tags = {"worker": attempt.worker, "host": attempt.host, "device": attempt.device}
            assert {key: run.data.tags[key] for key in tags} == tags
            assert run.data.tags["attempts"] == str(attempt.times)
        assert _curves(client, run) == _expected(storage, trial)
        if trial.state.is_finished():
            assert run.info.status == TERMINAL[trial.state]
            assert run.info.end_time == round(trial.datetime_complete.timestamp() * 1000)


def _curves(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    return {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


def _expected(storage: PostgresStorage, trial: FrozenTrial) -> dict[str, list[tuple[int, float]]]:
    curves = defaultdict(list)
    for step, values in storage.metrics.of(trial).items():
        for name, value in values.items():
            curves[name].append((step, value))
    assert curves["val_accuracy"] == sorted(trial.intermediate_values.items())
    if trial.values:
        curves["final_val_accuracy"] = [(max(trial.intermediate_values), trial.value)]
    assert not any(math.isnan(value) for points in curves.values() for _, value in points)
    return {name: points for name, points in curves.items() if points}


def stock_study(storage: PostgresStorage, name: str) -> StudyRecord:
    """A study of Optuna's own making with two objectives, and names that MLflow does not take."""
    study = optuna.create_study(storage=storage, study_name=name, directions=["minimize", "maximize"])
    for _ in range(3):
        trial = study.ask()
        trial.suggest_float("learning rate (log)", 0, 1)
        trial.suggest_categorical("kind", ["a=b", "c"])
        trial.set_user_attr("note", {"by": "hand"})
        study.tell(trial, [0.5, float("inf")])
    return storage.find_study(name)
