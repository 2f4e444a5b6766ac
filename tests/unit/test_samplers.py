"""Grids and quasi-random sequences: each point once, whichever worker a trial falls to."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from studies import StudySpec
from studies.errors import SpecError
from studies.search.samplers import MOST_COMBINATIONS

WHEN = {
    "o": {"type": "categorical", "choices": ["a", "b"]},
    "m": {"type": "int", "low": 1, "high": 3, "when": {"o": ["b"]}},
    "k": {"type": "int", "low": 1, "high": 2},
}
DEEP = {
    "p": {"type": "categorical", "choices": [1, True, "x"][1:]},
    "q": {"type": "categorical", "choices": [0, 1], "when": {"p": ["x"]}},
    "r": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.5, "when": {"q": [1], "p": ["x"]}},
}


def spec(space: dict[str, Any], name: str = "grid", **options: Any) -> StudySpec:
    return StudySpec.from_dict(
        {
            "name": "s",
            "objective": {"path": "tests:objective"},
            "space": space,
            "sampler": {"name": name, "options": options},
        }
    )


class Fleet:
    """Several workers on one study, each with a sampler of its own."""

    def __init__(self, spec: StudySpec, workers: int = 2) -> None:
        self.spec = spec
        first = optuna.create_study(sampler=spec.to_sampler(0))
        self.studies = [first]
        for _ in range(workers - 1):
            self.studies.append(
                optuna.load_study(study_name=first.study_name, storage=first._storage, sampler=spec.to_sampler(0))
            )
        for study in self.studies:
            study._thread_local.in_optimize_loop = True

    @property
    def is_stopped(self) -> bool:
        return any(study._stop_flag for study in self.studies)

    def begin(self, worker: int) -> optuna.Trial:
        trial = self.studies[worker].ask()
        self.spec.suggest(trial)
        return trial

    def end(self, worker: int, trial: optuna.Trial, state: TrialState = TrialState.COMPLETE) -> None:
        values = 1.0 if state == TrialState.COMPLETE else None
        self.studies[worker].tell(trial, values, state=state)

    def points(self) -> list[tuple[tuple[str, Any], ...]]:
        return [tuple(sorted(trial.params.items())) for trial in self.studies[0].trials]


def run_at_random(fleet: Fleet, seed: int, count: int, states: list[TrialState]) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    running: list[tuple[int, optuna.Trial]] = []
    begun = 0
    while (begun < count or running) and not fleet.is_stopped:
        if begun < count and (not running or rng.random() < 0.6):
            worker = rng.randrange(len(fleet.studies))
            running.append((worker, fleet.begin(worker)))
            begun += 1
        else:
            worker, trial = running.pop(rng.randrange(len(running)))
            fleet.end(worker, trial, rng.choice(states))


@pytest.mark.parametrize("name", ["grid", "bruteforce"])
@pytest.mark.parametrize(("space", "size"), [(WHEN, 8), (DEEP, 5)], ids=["when", "deep"])
@pytest.mark.parametrize("states", [["COMPLETE"], ["COMPLETE", "PRUNED", "FAIL"]], ids=["complete", "failures"])
def test_each_legal_combination_is_run_once_and_then_the_study_stops(
    name: str, space: dict[str, Any], size: int, states: list[str]
) -> None:
    fleet = Fleet(spec(space, name), workers=3)
    assert fleet.spec.combinations == size
    run_at_random(fleet, random.randrange(10**6), size, [TrialState[state] for state in states])
    assert sorted(Counter(fleet.points()).values()) == [1] * size
    assert fleet.is_stopped


def test_a_combination_that_was_enqueued_is_not_run_again() -> None:
    fleet = Fleet(spec(WHEN))
    fleet.studies[0].enqueue_trial({"o": "b", "m": 3, "k": 1.0})
    fleet.studies[0].enqueue_trial({"o": "a", "k": 2, "unknown": 1})  # no combination
    run_at_random(fleet, 0, 9, [TrialState.COMPLETE])
    found = Counter(fleet.points())
    assert len(fleet.points()) == 9
    assert found[(("k", 2), ("o", "a"))] == 2
    assert sorted(found.values()) == [1] * 7 + [2]
    assert fleet.is_stopped


def test_an_enqueued_trial_of_a_grid_needs_all_its_parameters() -> None:
    fleet = Fleet(spec(WHEN))
    fleet.studies[0].enqueue_trial({"o": "a"})
    with pytest.raises(ValueError, match="an enqueued trial of a grid needs all its parameters, and 'k' is missing"):
        fleet.begin(0)


def test_beyond_the_grid_no_combination_is_run_again() -> None:
    fleet = Fleet(spec({"k": {"type": "int", "low": 1, "high": 2}}))
    failing, _ = [fleet.begin(0) for _ in range(2)]
    fleet.end(0, failing, TrialState.FAIL)
    with pytest.raises(ValueError, match="the grid is exhausted: all its 2 combinations have been run"):
        fleet.begin(1)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("low", "high", "step"), [(0.1, 0.7, 0.1), (0.3, 0.9, 0.3), (-0.3, 0.3, 0.1), (1e-7, 5e-7, 1e-7), (0.0, 1.0, 0.05)]
)
def test_a_grid_of_real_numbers_has_the_values_that_optuna_has(low: float, high: float, step: float) -> None:
    built = spec({"x": {"type": "float", "low": low, "high": high, "step": step}})
    fleet = Fleet(built)
    run_at_random(fleet, 0, built.combinations or 0, [TrialState.COMPLETE])
    found = sorted(trial.params["x"] for trial in fleet.studies[0].trials)
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", low, high, step=step))
    assert found == sorted(trial.params["x"] for trial in study.trials)
    assert low == found[0]
    assert found[-1] == high


WIDE: list[tuple[dict[str, Any], str]] = [
    ({"n": {"type": "int", "low": 1, "high": 300_000_000}}, "has 300,000,000 combinations"),
    ({"n": {"type": "int", "low": 0, "high": 2**62}}, "has 4,611,686,018,427,387,905 combinations"),
    ({"x": {"type": "float", "low": 0.0, "high": 1.0, "step": 1e-9}}, "has 1,000,000,001 combinations"),
    ({f"n{i}": {"type": "int", "low": 1, "high": 10} for i in range(6)}, "has 1,000,000 combinations"),
    ({"n": {"type": "int", "low": 1, "high": 10**9}, **WHEN}, "has up to 12,000,000,000 combinations"),
    ({"x": {"type": "float", "low": 0.0, "high": 1.0}}, "needs a step for the real number space.x"),
]


@pytest.mark.parametrize("name", ["grid", "bruteforce"])
@pytest.mark.parametrize(("space", "message"), WIDE)
def test_a_grid_that_no_memory_holds_is_refused_before_it_is_made(name: str, space: Any, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SpecError, match=message) as caught:
            spec(space, name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert repr(name) in str(caught.value)
    assert peak < 200 * 2**20


def test_brute_force_over_what_an_objective_suggests_refuses_a_range_that_no_memory_holds() -> None:
    trial = Fleet(spec({}, "bruteforce")).studies[0].ask()
    with pytest.raises(
        ValueError, match=rf"'n' has 300,000,000 values, and 'bruteforce' takes at most {MOST_COMBINATIONS:,}"
    ):
        trial.suggest_int("n", 1, 300_000_000)


def test_a_partly_fixed_grid_has_the_combinations_of_the_rest() -> None:
    fixed = spec(WHEN, "partialfixed", fixed_params={"k": 2}, base_sampler={"name": "grid"})
    fleet = Fleet(fixed)
    assert fixed.combinations == 4
    run_at_random(fleet, 0, 4, [TrialState.COMPLETE])
    assert sorted(Counter(fleet.points()).values()) == [1] * 4
    assert {trial.params["k"] for trial in fleet.studies[0].trials} == {2}


@pytest.mark.parametrize(
    ("fixed", "message"),
    [({"j": 1}, "fixed_params.j: there is no such parameter"), ({"k": 3}, "fixed_params.k = 3: the parameter never")],
)
def test_a_fixed_parameter_must_be_one_of_the_space(fixed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(WHEN, "partialfixed", fixed_params=fixed, base_sampler={"name": "random"})


LINE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "y": {"type": "float", "low": 1.0, "high": 10.0, "log": True}}


@pytest.mark.filterwarnings("ignore:The balance properties")
@pytest.mark.parametrize("options", [{}, {"scramble": True}, {"qmc_type": "halton"}], ids=str)
@pytest.mark.parametrize("space", [LINE, {**LINE, **WHEN}], ids=["plain", "conditional"])
def test_a_trial_has_its_point_of_the_sequence_whoever_runs_it(space: dict[str, Any], options: Any) -> None:
    built = spec(space, "qmc", **options)
    alone, fleet = Fleet(built, workers=1), Fleet(built, workers=3)
    run_at_random(alone, 0, 24, [TrialState.COMPLETE])
    run_at_random(fleet, random.randrange(10**6), 24, [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED])
    assert fleet.points() == alone.points()
    assert len({trial.params["x"] for trial in fleet.studies[0].trials}) == 24


@pytest.mark.filterwarnings("ignore:The balance properties")
def test_the_points_are_optunas_from_the_first_one_on() -> None:
    from scipy.stats import qmc

    fleet = Fleet(spec({"x": LINE["x"], "z": {"type": "float", "low": 0.0, "high": 1.0}}, "qmc"))
    run_at_random(fleet, 0, 16, [TrialState.COMPLETE])
    found = [[trial.params["x"], trial.params["z"]] for trial in fleet.studies[0].trials]
    assert found == qmc.Sobol(2, scramble=False).random(16).tolist()


def test_cmaes_is_refused_for_several_objectives_wherever_it_stands() -> None:
    for sampler in (
        {"name": "cmaes"},
        {"name": "partialfixed", "options": {"fixed_params": {}, "base_sampler": {"name": "cmaes"}}},
    ):
        with pytest.raises(SpecError, match="'cmaes' takes one objective"):
            StudySpec.from_dict(
                {
                    "name": "s",
                    "objective": {"path": "tests:f"},
                    "directions": ["minimize", "maximize"],
                    "sampler": sampler,
                }
            )
