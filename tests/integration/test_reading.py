"""Reading a study a part at a time says the same as reading it whole."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from studies import PostgresStorage
from studies.overview import overview, pace_trials, seconds_left
from studies.report.data import read
from studies.report.page import report
from studies.report.subset import MOST_TRIALS, SAMPLE
from studies.spec.sections import BudgetSpec
from studies.storage import pages
from studies.storage.reader import StudyReader
from studies.storage.records import StudyRecord
from tests.benchmarks.filled import fill, mix

pytestmark = pytest.mark.both_servers


@pytest.fixture
def record(storage: PostgresStorage) -> StudyRecord:
    """A study of 250 trials of all states, with values, reports and parameters of all kinds."""
    fill(storage.location, trials=230, steps=4)
    mix(storage.location)
    study = optuna.load_study(study_name="filled", storage=storage)

    def odd(trial: optuna.Trial) -> float:
        trial.suggest_categorical("Choice\x1f, \"of'", [None, True, "a,\nb", 1.5])
        trial.suggest_int("late", -3, 3, step=2)
        for step in (3, 1, 2**31 - 1):
            trial.report((math.nan, math.inf, 0.1)[step % 3], step)
        if trial.number % 5 == 0:
            raise ValueError("no\nline")
        return (math.inf, 0.25, -math.inf)[trial.number % 3]

    study.optimize(odd, n_trials=15, catch=ValueError)
    for _ in range(3):
        study.enqueue_trial({"x": 1.0})
    study.ask()
    return storage.find_study("filled")


def test_run_reads_the_last_trials_and_estimates_the_time_left_that_watch_does(
    storage: PostgresStorage, record: StudyRecord
) -> None:
    trials, attempts = storage.trials(record), storage.leases.attempts(record)
    now = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    status = replace(storage.status(record), budget=BudgetSpec(trials=400), paused=False, ended=None)
    for running in (1, 20, 200):  # the last 50 trials, 80 of them, and all
        at = replace(status, trials={**status.trials, "running": running, "paused": 0})
        timings = storage.leases.timings(record, pace_trials(at))
        assert (len(timings) < len(trials) / 2) == (running < 200)
        left = seconds_left(at, timings, now)
        assert left == overview(at, trials, attempts, now=now).seconds_left
        assert left


@pytest.mark.parametrize("page", [1, 7, 1000])
def test_pages_hold_each_trial_as_it_is_read_whole(
    storage: PostgresStorage, record: StudyRecord, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE", page)
    reader = StudyReader(storage, record)
    rows = [row for part in reader.pages(reports=True) for row in part]
    trials = storage.trials(record)
    metrics, attempts = storage.metrics.last(trials), storage.leases.attempts(record)
    assert {row.state for row in rows} == {state.name for state in TrialState}
    for row, trial in zip(rows, trials, strict=True):
        attempt = attempts.get(trial.number)
        assert (row.number, row.state, list(row.values)) == (trial.number, trial.state.name, trial.values or [])
        enqueued = trial.system_attrs.get("fixed_params", {}) if trial.state == TrialState.WAITING else {}
        params = trial.params | enqueued
        assert (list(row.params.items()), row.metrics) == (list(params.items()), metrics[trial.number])
        assert repr(row.reports) == repr(trial.intermediate_values)  # NaN is not equal to itself
        assert row.steps == len(trial.intermediate_values)
        for at, known in ((row.start, trial.datetime_start), (row.complete, trial.datetime_complete)):
            assert at == (known and known.astimezone())
        assert (row.worker, row.attempts) == (attempt and attempt.worker, attempt and attempt.times)
        assert row.error == trial.user_attrs.get("error")
    assert reader.param_names() == list(dict.fromkeys(name for trial in trials for name in trial.params))
    assert reader.last_metric_names() == sorted({name for last in metrics.values() for name in last})


def test_a_page_is_there_before_the_others_are_read(
    storage: PostgresStorage, record: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE", 10)
    count = storage.get_n_trials(record.study_id)
    sent: list[int] = []
    send = storage.database.rows

    def rows(name: str, /, **parameters: Any) -> list[dict[str, Any]]:
        if name == "page":
            sent.append(parameters["firsts"][0])
        return send(name, **parameters)

    monkeypatch.setattr(storage.database, "rows", rows)
    parts = StudyReader(storage, record).pages()
    first = next(parts)
    assert [row.number for row in first] == list(range(10))
    assert len(sent) <= 1 + pages.AHEAD
    assert sum(len(page) for page in parts) == count - 10
    assert len(sent) == len(set(sent)) == math.ceil(count / 10)


def test_an_outline_is_a_trial_in_short(storage: PostgresStorage, record: StudyRecord) -> None:
    reader, trials = StudyReader(storage, record), storage.trials(record)
    outlines = reader.outlines()
    for outline, trial in zip(outlines, trials, strict=True):
        for field in ("number", "_trial_id", "state", "values", "datetime_start", "datetime_complete"):
            assert getattr(outline, field) == getattr(trial, field)
        assert len(outline.intermediate_values) == len(trial.intermediate_values)
        assert max(outline.intermediate_values, default=None) == max(trial.intermediate_values, default=None)
        failed = trial.state == TrialState.FAIL and "error" in trial.user_attrs
        assert outline.user_attrs == ({"error": trial.user_attrs["error"]} if failed else {})
        assert outline.params == {}
    assert repr(reader.whole(outlines[5:9])) == repr(trials[5:9])


@pytest.mark.parametrize("most", [1, 3, 4, 1000])
def test_a_thinned_curve_keeps_its_last_point(storage: PostgresStorage, record: StudyRecord, most: int) -> None:
    trials = storage.trials(record)
    thinned, whole = StudyReader(storage, record).curves(trials, most), storage.metrics.curves(trials)
    assert thinned.keys() == whole.keys()
    for number, points in whole.items():
        for name in {point.name for point in points}:
            all_of_it = [point for point in points if point.name == name]
            kept = [point for point in thinned[number] if point.name == name]
            assert len(kept) == min(most, len(all_of_it))
            assert kept[-1] == all_of_it[-1]
            assert [point for point in all_of_it if point in kept] == kept


@pytest.mark.slow
def test_a_report_of_a_large_study_reads_a_part_of_it_and_says_so(storage: PostgresStorage) -> None:
    total = MOST_TRIALS + 1000
    fill(storage.location, trials=total, steps=2)
    mix(storage.location)
    record = storage.find_study("filled")
    data = read(storage, record)
    assert len(data.outlines) == total
    assert len(data.trials) < MOST_TRIALS
    assert all(trial.params for trial in data.trials)
    assert len(data.curves) < len(data.trials)
    assert {trial.state for trial in data.trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    whole = storage.trials(record)
    assert data.overview.failures[0].count == sum(trial.state == TrialState.FAIL for trial in whole) // 3
    best = min((trial for trial in whole if trial.values), key=lambda trial: trial.values[0])
    assert data.best is not None
    assert data.best.number == best.number
    assert best.number in {trial.number for trial in data.trials}

    page = report(data).decode()
    complete = total // 2
    assert f"Estimated on {SAMPLE[TrialState.COMPLETE]:,} of {complete:,} complete trials, an even sample." in page
    assert f"{len(data.trials):,} of {total:,} trials are listed" in page
    reporting = sum(bool(trial.intermediate_values) for trial in whole)
    assert f"{len(data.curves):,} of {reporting:,} reporting trials are shown" in page
    assert f"Of {total:,} trials, in time slices" in page
    assert f"{total:,} trials" in page
    assert page.count("<tr>") < len(data.trials) + 30
