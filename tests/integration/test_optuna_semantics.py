"""One script, run by Optuna alone and by our workers: what comes out is the same, or refused with the reason."""

from __future__ import annotations

import json
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from studies import PostgresStorage, StudySpec
from studies.errors import SpecError
from studies.spec.samplers import SAMPLERS
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.worker import worker_on

Objective = Callable[[Any], Any]
INF = math.inf


@pytest.fixture(scope="module")
def database(embedded_server: Server) -> Iterator[StorageURL]:
    with embedded_server.database() as url:
        yield url


def by_us(url: StorageURL, folder: Path, objectives: list[Objective], **spec: Any) -> list[FrozenTrial]:
    """The trials of a study that one worker for each of ``objectives`` ran, all at the same time."""
    data = {"name": f"study-{folder.name}", "objective": {"path": "tests:objective"}, "budget": {"trials": 6}, **spec}
    with closing(PostgresStorage(url)) as storage:
        record, _ = storage.create_study(StudySpec.from_dict(data))

        def work(i: int) -> str:
            with closing(PostgresStorage(url)) as own:
                own.workers.register([record], worker_id=f"{folder.name}-{i}", host="host", pid=i, device="cpu")
                return worker_on(
                    own, record, objectives[i], folder / str(i), worker_id=f"{folder.name}-{i}", lease_seconds=120
                ).run()

        with ThreadPoolExecutor() as pool:
            list(pool.map(work, range(len(objectives))))
        return storage.trials(record)


def by_optuna(objective: Objective, count: int = 6, **study: Any) -> list[FrozenTrial]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = optuna.create_study(**study)
        made.optimize(objective, n_trials=count, catch=(Exception,))
    return list(made.trials)


# Reports and values


def reports_twice(trial: Any) -> float:
    for value in (0.1, 0.2):
        trial.report(value, 1)
        trial.should_prune()
    return 1.0


def reports_real_steps(trial: Any) -> float:
    for batch in range(0, 300, 100):
        trial.report(0.5, batch / 100)
    return 1.0


def reports_odd_numbers(trial: Any) -> float:
    for step, value in enumerate([math.nan, INF, -INF, np.float32(0.5), np.array(2), "0.25", True, 10**30]):
        trial.report(value, np.int64(step))
        trial.should_prune()
    return 1.0


def prunes_after_nan(trial: Any) -> float:
    trial.report(math.nan, 0)
    raise optuna.TrialPruned


def prunes_after_a_value(trial: Any) -> float:
    trial.report(0.5, 3)
    raise optuna.TrialPruned


@pytest.mark.filterwarnings("ignore:The reported value is ignored", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "objective", [reports_twice, reports_real_steps, reports_odd_numbers, prunes_after_nan, prunes_after_a_value]
)
def test_reports_are_stored_as_by_optuna(database: StorageURL, tmp_path: Path, objective: Objective) -> None:
    ours, theirs = by_us(database, tmp_path, [objective]), by_optuna(objective)
    assert [trial.state for trial in ours] == [trial.state for trial in theirs]
    assert [trial.values for trial in ours] == [trial.values for trial in theirs]
    assert repr(ours[0].intermediate_values) == repr(theirs[0].intermediate_values)


@pytest.mark.filterwarnings("ignore:The reported value is ignored")
def test_a_repeated_report_keeps_the_first_metric_of_each_name(database: StorageURL, tmp_path: Path) -> None:
    def objective(trial: Any) -> float:
        trial.report(0.1, 1, loss=0.5)
        trial.report(0.2, 1, loss=0.7, accuracy=0.9)
        return 1.0

    by_us(database, tmp_path, [objective], budget={"trials": 1})
    with closing(PostgresStorage(database)) as storage:
        trial = storage.trial(storage.find_study(f"study-{tmp_path.name}"), 0)
        assert storage.metrics.of(trial) == {1: {"loss": 0.5, "accuracy": 0.9}}


@pytest.mark.parametrize(
    "returned",
    [1, True, np.float32(0.5), np.array(0.5), [0.5], (0.5,), INF, -INF, None, math.nan, [], [0.5, 0.5], "x", [None]],
    ids=repr,
)
def test_what_an_objective_returns_is_judged_as_by_optuna(database: StorageURL, tmp_path: Path, returned: Any) -> None:
    def objective(_: Any) -> Any:
        return returned

    budget = {"trials": 1, "max_failures": 1}
    (ours,), (theirs,) = by_us(database, tmp_path, [objective], budget=budget), by_optuna(objective, 1)
    assert (ours.state, ours.values) == (theirs.state, theirs.values)
    assert ("error" in ours.user_attrs) == (ours.state == TrialState.FAIL)


# What a trial and its study offer


def looks_at_everything(trial: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = trial.suggest_float("x", 0, 1)
        values = [
            trial.suggest_float("x", 0, 1) == x,  # again
            trial.suggest_float("stepped", 0.0, 1.0, step=0.25) in (0.0, 0.25, 0.5, 0.75, 1.0),
            trial.suggest_float("log", 1e-5, 1.0, log=True) > 0,
            trial.suggest_int("n", 1, 9, step=2) % 2,
            trial.suggest_int("one", 3, 3),
            trial.suggest_uniform("u", 0, 1) <= 1,
            trial.suggest_loguniform("lu", 1, 2) >= 1,
            trial.suggest_discrete_uniform("du", 0, 1, 0.5) in (0.0, 0.5, 1.0),
            trial.suggest_categorical("c", ["a"]),
        ]
    trial.set_user_attr("note", {"a": [1, None, "x"]})
    trial.set_constraint("size", trial.number - 2)
    study = trial.study
    study.set_user_attr("count", trial.number)
    study.set_system_attr("mine", trial.number) if hasattr(study, "set_system_attr") else None
    done = study.get_trials(states=(TrialState.COMPLETE,))
    values += [
        list(trial.params) == list(trial.distributions),
        trial.user_attrs,
        trial.constraints,
        trial.datetime_start is not None,
        isinstance(trial.relative_params, dict),
        trial.number == len(study.trials) - 1,
        study.user_attrs["count"],
        study.best_value if done else None,
        study.best_trial.number if done else None,
        [each.number for each in study.best_trials],
        [direction.name for direction in study.directions],
        study.best_params.keys() == trial.params.keys() if done else None,
    ]
    trial.set_user_attr("seen", json.loads(json.dumps(values)))
    return float(trial.number)


def test_a_trial_and_its_study_offer_the_same(database: StorageURL, tmp_path: Path) -> None:
    ours, theirs = by_us(database, tmp_path, [looks_at_everything]), by_optuna(looks_at_everything)
    assert [trial.user_attrs.get("error") for trial in ours] == [None] * 6
    assert [trial.user_attrs for trial in ours] == [trial.user_attrs for trial in theirs]
    assert [trial.constraints for trial in ours] == [trial.constraints for trial in theirs]
    assert [trial.distributions for trial in ours] == [trial.distributions for trial in theirs]


def test_an_objective_may_enqueue_and_stop(database: StorageURL, tmp_path: Path) -> None:
    def objective(trial: Any) -> float:
        x = float(trial.suggest_float("x", 0, 1))
        if trial.number == 0:
            for _ in range(2):
                trial.study.enqueue_trial({"x": 0.125}, skip_if_exists=True)
        if trial.number == 3:
            trial.study.stop()
        return x

    ours, theirs = by_us(database, tmp_path, [objective]), by_optuna(objective)
    assert len(ours) == len(theirs) == 4
    assert ours[1].params == theirs[1].params == {"x": 0.125}


def test_an_infeasible_trial_is_never_the_best(database: StorageURL, tmp_path: Path) -> None:
    def objective(trial: Any) -> float:
        trial.set_constraint("memory", [1.0, INF, 0.0, -1.0, 1e-9, 5.0][trial.number])
        return float(trial.number)

    by_us(database, tmp_path, [objective])
    with closing(PostgresStorage(database)) as storage:
        record = storage.find_study(f"study-{tmp_path.name}")
        assert storage.best(record).number == storage.load_study(record).best_trial.number == 2
        best = storage.status(record).best
        assert best is not None
        assert best.number == 2


# Choices

CHOICES: dict[str, list[Any]] = {
    "tuples": [(50,), (100,), (50, 50)],
    "lists": [[50], [100], [50, 50]],
    "dicts": [{"depth": 1}, {"depth": 2, "width": [3]}],
    "infinities": [1, 2, INF, -INF],
    "nan": [0.5, math.nan],
    "mixed": [None, True, 2, 2.5, "x", (1, None)],
    "numpy": list(np.array([16, 32, 64])),
    "repeated": ["a", "a", "b"],
}


@pytest.mark.parametrize("kind", CHOICES)
def test_an_objective_gets_back_the_choice_that_it_gave(database: StorageURL, tmp_path: Path, kind: str) -> None:
    choices = CHOICES[kind]

    def objective(trial: Any) -> float:
        chosen = trial.suggest_categorical("choice", choices)
        assert any(chosen is choice for choice in choices)
        assert repr(trial.suggest_categorical("choice", choices)) == repr(chosen) == repr(trial.params["choice"])
        return 1.0

    trials = by_us(
        database, tmp_path, [objective, objective], sampler={"name": "tpe", "options": {"n_startup_trials": 2}}
    )
    assert [trial.user_attrs.get("error") for trial in trials] == [None] * 6
    assert len({repr(trial.distributions) for trial in trials}) == 1


def test_a_choice_that_cannot_be_stored_fails_the_trial_with_the_reason(database: StorageURL, tmp_path: Path) -> None:
    def objective(trial: Any) -> float:
        trial.suggest_categorical("layer", [object(), {1}])
        return 1.0

    (trial,) = by_us(database, tmp_path, [objective], budget={"trials": 1, "max_failures": 1})
    assert "a choice of 'layer' cannot be stored" in trial.user_attrs["error"]
    assert "legal are None, booleans, numbers, text" in trial.user_attrs["error"]


def test_a_study_has_one_order_of_choices_whatever_each_worker_has(database: StorageURL, tmp_path: Path) -> None:
    barrier = threading.Barrier(3, timeout=300)

    def objective(order: list[str]) -> Objective:
        def run(trial: Any) -> float:
            if trial.number < 3:
                barrier.wait()  # nobody has stored a choice before all ask
            name = trial.suggest_categorical("optimizer", order)
            assert name in order
            trial.set_user_attr("name", name)
            return 1.0

        return run

    orders = [["adam", "sgd", "rmsprop"], ["sgd", "rmsprop", "adam"], ["rmsprop", "adam", "sgd"]]
    trials = by_us(database, tmp_path, [objective(order) for order in orders], budget={"trials": 12})
    assert [trial.user_attrs.get("error") for trial in trials] == [None] * 12
    assert len({trial.distributions["optimizer"].choices for trial in trials}) == 1  # type: ignore[attr-defined]
    assert all(trial.params["optimizer"] == trial.user_attrs["name"] for trial in trials)


def test_other_choices_than_the_studys_fail_the_trial_as_in_optuna(database: StorageURL, tmp_path: Path) -> None:
    def objective(trial: Any) -> float:
        trial.suggest_categorical("c", ["a", "b"] if trial.number == 0 else ["a", "c"])
        return 1.0

    ours = by_us(database, tmp_path, [objective], budget={"trials": 3, "max_failures": 1})
    assert [trial.state for trial in ours] == [trial.state for trial in by_optuna(objective, 2)]
    assert "does not support dynamic value space" in ours[1].user_attrs["error"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_that_breaks_after_a_trial_loses_no_result_and_no_worker(
    database: StorageURL, tmp_path: Path
) -> None:
    def objective(trial: Any) -> float:
        return float(trial.suggest_int("x", 0, 2 + trial.number))  # bruteforce wants one range

    trials = by_us(
        database, tmp_path, [objective], sampler={"name": "bruteforce"}, budget={"trials": 3, "max_failures": 2}
    )
    assert trials[0].state == TrialState.COMPLETE
    assert len(trials) > 1
    assert all("search_space mismatch" in trial.user_attrs["error"] for trial in trials[1:])


# Every sampler, on every kind of study

OPTIONS: dict[str, dict[str, Any]] = {
    "cmaes": {"n_startup_trials": 1, "warn_independent_sampling": False},
    "gp": {"n_startup_trials": 2},
    "nsgaii": {"population_size": 2},
    "nsgaiii": {"population_size": 2},
    "partialfixed": {"fixed_params": {"fixed": 1}, "base_sampler": {"name": "random"}},
    "qmc": {"warn_independent_sampling": False},
    "tpe": {"n_startup_trials": 2},
}
SPACE: dict[str, Any] = {
    "kind": {"type": "categorical", "choices": ["a", "b"]},
    "fixed": {"type": "int", "low": 1, "high": 2},
    "depth": {"type": "int", "low": 1, "high": 3, "when": {"kind": ["b"]}},
}


def conditional(trial: Any) -> float:
    kind = trial.suggest_categorical("kind", ["a", "b"])
    fixed = trial.suggest_int("fixed", 1, 2)
    return float(fixed + (trial.suggest_int("depth", 1, 3) if kind == "b" else 0))


def several(trial: Any) -> tuple[float, float]:
    value = conditional(trial)
    return value, -value


def constrained(trial: Any) -> float:
    trial.set_constraint("fixed", trial.suggest_int("fixed", 1, 2) - 1.5)
    return conditional(trial)


def ranges(trial: Any) -> float:
    trial.suggest_int("fixed", 1, 2)
    return float(
        trial.suggest_int("single", 3, 3)
        + trial.suggest_float("stepped", 0.1, 0.7, step=0.1)
        + trial.suggest_int("log", 1, 1000, log=True)
        + trial.suggest_int("negative", -5, 5, step=5)
    )


def odd_choices(trial: Any) -> float:
    trial.suggest_int("fixed", 1, 2)
    trial.suggest_categorical("norm", [1, 2, INF])
    return float(len(trial.suggest_categorical("layers", [(50,), (100,), (50, 50)])))


OBJECTIVES = [conditional, several, constrained, ranges, odd_choices]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore:The balance properties")
@pytest.mark.filterwarnings("ignore:Constraints have been set, but CmaEsSampler")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "enqueued"])  # which draws nothing
def test_every_sampler_runs_every_kind_of_study_or_refuses_it(
    database: StorageURL, tmp_path: Path, name: str, objective: Objective
) -> None:
    spec: dict[str, Any] = {"sampler": {"name": name, "options": OPTIONS.get(name, {})}}
    if objective is several:
        spec["directions"] = ["minimize", "maximize"]
    if name == "grid":
        if objective in (ranges, odd_choices):
            pytest.skip("a grid is of a [space], which has no choices of such types; ranges: see test_samplers.py")
        spec["space"] = SPACE
    if name in ("cmaes", "curves") and objective is several:
        with pytest.raises(SpecError, match=f"'{name}' takes one objective, and this study has several"):
            by_us(database, tmp_path, [objective, objective], **spec)
        return
    ours = by_us(database, tmp_path, [objective, objective], **spec)
    assert [trial.user_attrs.get("error") for trial in ours] == [None] * 6
    assert {trial.state for trial in ours} == {TrialState.COMPLETE}
    directions = {"directions": spec["directions"]} if objective is several else {}
    known = by_optuna(objective, 40, sampler=optuna.samplers.RandomSampler(seed=0), **directions)
    legal = {repr((param, of)).replace("(50,)", "[50]").replace("(100,)", "[100]").replace("(50, 50)", "[50, 50]")
             for trial in known for param, of in trial.distributions.items()}  # fmt: skip
    assert {repr(item) for trial in ours for item in trial.distributions.items()} <= legal
    if name == "partialfixed":
        assert {trial.params["fixed"] for trial in ours} == {1}


@pytest.mark.parametrize("budget", [6, 20])
def test_a_grid_gives_each_combination_once_also_where_trials_fail(
    database: StorageURL, tmp_path: Path, budget: int
) -> None:
    def objective(trial: Any) -> float:
        if trial.number == 5:
            time.sleep(1)  # the others look for a trial meanwhile, and the budget has room for two
        if trial.params["k"] in (2, 4):
            raise RuntimeError("no luck")
        return 1.0

    ran = by_us(
        database,
        tmp_path,
        [objective] * 3,
        space={"k": {"type": "int", "low": 1, "high": 6}},
        sampler={"name": "grid"},
        budget={"trials": budget},
    )
    assert sorted((trial.params["k"], trial.state.name) for trial in ran) == [
        (k, "FAIL" if k in (2, 4) else "COMPLETE") for k in range(1, 7)
    ]
