"""Freeze-thaw and its sampler, on curves that are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from studies import StudySpec
from studies.errors import SpecError
from studies.search.curve_sampler import CurveSampler, inform, progress_of
from studies.search.freeze_thaw import STARTERS, FreezeThaw
from studies.search.scheduler import Progress
from studies.search.study import evidence_of
from studies.search.unit_cube import UnitCube

SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "size": IntDistribution(8, 512, log=True),
    "kind": CategoricalDistribution(["a", "b"]),
}
STEPS = 27


def value(params: Mapping[str, Any], step: int) -> float:
    """Best, 1, at x = 0.8, rate = 0.01, any size, kind b; a curve rises to its end by a power of the step."""
    end = 1 - (params["x"] - 0.8) ** 2 - 0.1 * (math.log10(params["rate"]) + 2) ** 2 - 0.2 * (params["kind"] == "a")
    return end - 0.5 * step**-0.7


def tune(epochs: int, *, direction: str = "maximize", priors: Mapping[str, Any] | None = None) -> optuna.Study:
    """A study of one worker that trains so many epochs, as freeze-thaw chooses."""
    sampler = CurveSampler(seed=1)
    sampler.space, sampler.priors = SPACE, priors or {}
    scheduler = FreezeThaw(direction=direction, steps=STEPS)
    inform(sampler, steps=STEPS, scheduler=scheduler)
    study = optuna.create_study(direction=direction, sampler=sampler)
    trials: list[optuna.Trial] = []
    sign = 1 if direction == "maximize" else -1
    while epochs > 0:
        choice, *_ = scheduler.choose([progress_of(trial) for trial in study.get_trials(deepcopy=False)], 1)
        if choice.number is None:
            trials.append(optuna.Trial(study, study._storage.create_new_trial(study._study_id)))
            for name, distribution in SPACE.items():
                trials[-1]._suggest(name, distribution)
        trial = trials[-1] if choice.number is None else trials[choice.number]
        study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        done = study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for step in range(max(done, default=0) + 1, min(choice.until, STEPS) + 1):
            trial.report(sign * value(trial.params, step), step)
            epochs -= 1
        if choice.until >= STEPS:
            study.tell(trial, sign * value(trial.params, STEPS))
        else:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_few_full_trainings_of_epochs_find_nearly_the_best_configuration(direction: str) -> None:
    study = tune(8 * STEPS, direction=direction)

    best = max(value(trial.params, STEPS) for trial in study.trials if len(trial.intermediate_values) == STEPS)

    # Of 1,000 random configurations the best one falls short of the optimum by as much.
    assert best > value({"x": 0.8, "rate": 0.01, "kind": "b"}, STEPS) - 0.02
    assert sum(len(trial.intermediate_values) < STEPS for trial in study.trials) > len(study.trials) / 2


def test_the_first_trial_has_the_middle_of_the_space_or_the_prior() -> None:
    assert tune(1).trials[0].params == {"x": 0.5, "rate": pytest.approx(10**-2.5), "size": 64, "kind": "b"}
    assert tune(1, priors={"x": 0.8, "kind": "a"}).trials[0].params == {
        "x": pytest.approx(0.8),
        "rate": pytest.approx(10**-2.5),
        "size": 64,
        "kind": "a",
    }


def test_new_trials_are_near_good_priors_and_far_from_wrong_ones() -> None:
    good, wrong = {"x": 0.8, "rate": 0.01, "kind": "b"}, {"x": 0.05, "rate": 1e-4, "kind": "a"}

    def distances(priors: Mapping[str, Any]) -> list[float]:
        drawn = tune(8 * STEPS, priors=priors).trials[STARTERS:]
        return sorted(abs(trial.params["x"] - priors["x"]) for trial in drawn)

    near, far = distances(good), distances(wrong)
    assert near[len(near) // 2] < 0.2
    assert far[len(far) // 10] > 0.4


def test_the_same_study_is_searched_in_the_same_way() -> None:
    first, second = tune(3 * STEPS), tune(3 * STEPS)

    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]


def test_many_slots_get_different_trials_and_new_ones_that_differ() -> None:
    study = tune(4 * STEPS)
    trials = [progress_of(trial) for trial in study.get_trials(deepcopy=False)]
    scheduler = FreezeThaw(direction="maximize", steps=STEPS)

    choices = scheduler.choose(trials, 64)
    choices, spare = choices[:64], choices[64:]

    continued = [choice.number for choice in choices if choice.number is not None]
    assert len(choices) == 64
    assert len(continued) == len(set(continued))
    assert {trials[number].state for number in continued} <= {"paused"}
    # Where the budget has no room for new trials, others that are paused continue.
    instead = {choice.number for choice in spare}
    assert len(instead) == len(spare) <= 64 - len(continued)
    assert {trials[number].state for number in instead} <= {"paused"}
    assert not instead & set(continued)
    proposals = scheduler.forecast.proposals
    assert len(proposals) == len(choices) - len(continued)
    assert len({tuple(params.values()) for params in proposals.values()}) == len(proposals)


def test_where_most_running_trials_have_just_begun_those_that_wait_go_on() -> None:
    rng = np.random.default_rng(7)
    print("seed 7")

    def trial(number: int, steps: int, state: Any) -> Progress:
        cube = UnitCube(SPACE)
        params = cube.params(cube.snapped(rng.random((1, len(SPACE))))[0])
        return Progress(number, params, SPACE, {step: value(params, step) for step in range(1, steps + 1)}, state)

    def continued(n_beginning: int, n_further: int) -> int:
        """Of ten choices beside so many running trials."""
        trials = [trial(number, 2, "paused") for number in range(9)]
        trials += [trial(9 + number, 0, "running") for number in range(n_beginning)]
        trials += [trial(9 + n_beginning + number, 3, "running") for number in range(n_further)]
        choices = FreezeThaw(direction="maximize", steps=STEPS).choose(trials, 10)[:10]
        return sum(choice.number is not None for choice in choices)

    assert continued(10, 0) >= 6  # so that at most 14 of 20 have just begun
    assert continued(0, 10) <= 3


def test_no_configuration_is_tried_again_before_all_have_been() -> None:
    sampler = CurveSampler(seed=1)
    sampler.space = {"size": IntDistribution(1, 8), "kind": CategoricalDistribution(["a", "b", "c"])}
    study = optuna.create_study(sampler=sampler)

    for _ in range(30):
        trial = study.ask(sampler.space)
        study.tell(trial, trial.params["size"] + 10 * (trial.params["kind"] == "b"))

    tried = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(tried[:24])) == 24
    assert len(set(tried[24:])) > 1  # then again any, and not always the same one


def test_more_slots_than_a_small_space_has_configurations_all_get_a_choice() -> None:
    space = {"size": IntDistribution(1, 4)}
    trials = [
        Progress(number, {"size": size}, space, {1: float(size)}, "paused") for number, size in enumerate((1, 3, 3))
    ]
    scheduler = FreezeThaw(direction="maximize", steps=STEPS)
    inform(CurveSampler(), steps=STEPS, scheduler=scheduler, evidence=[
        evidence_of(-2 - i, {"size": 1}, space, [0.0], {}) for i in range(STARTERS)
    ])  # fmt: skip

    choices = scheduler.choose(trials, 16)[:16]

    continued = [choice.number for choice in choices if choice.number is not None]
    assert len(choices) == 16
    assert sorted(continued) == [0, 1, 2]
    assert {number: params["size"] for number, params in scheduler.forecast.proposals.items()} in (
        {3: 2, 4: 4},
        {3: 4, 4: 2},
    )


def test_without_known_steps_trials_train_to_their_end_until_one_is_complete() -> None:
    scheduler = FreezeThaw(direction="maximize", steps=None)
    trial = optuna.trial.create_trial(
        params={"x": 0.5},
        distributions={"x": SPACE["x"]},
        value=0.0,
        intermediate_values=dict.fromkeys(range(1, 28), 0.0),
    )

    assert scheduler.choose([], 1)[0].until > 10**9
    assert scheduler.choose([progress_of(trial)], 1)[0].until == 2


@pytest.mark.parametrize("space", [{}, {"lr": FloatDistribution(0.1, 0.1)}])
def test_a_study_without_free_parameters_goes_on_with_the_trials_that_are_paused(
    space: dict[str, FloatDistribution],
) -> None:
    params = dict.fromkeys(space, 0.1)
    trials = [Progress(number, params, space, {1: 0.1 * number, 2: 0.2}, "paused") for number in range(STARTERS)]
    sampler = CurveSampler()
    scheduler = FreezeThaw(direction="maximize", steps=STEPS)
    inform(sampler, steps=STEPS, scheduler=scheduler)
    study = optuna.create_study(sampler=sampler)
    study.add_trials([optuna.trial.create_trial(params=params, distributions=space, value=0.1)] * STARTERS)  # type: ignore[arg-type]

    choices = scheduler.choose(trials, STARTERS + 1)[: STARTERS + 1]

    assert sorted(choice.number for choice in choices if choice.number is not None) == list(range(STARTERS))
    assert choices[-1].number is None
    assert study.ask(dict(space)).params == params


def test_a_trial_with_another_number_than_was_expected_draws_anew() -> None:
    """As of two workers that begin one each at once: they have made the same proposal."""
    study = tune(2 * STEPS)
    trials = [progress_of(trial) for trial in study.get_trials(deepcopy=False)]
    sampler = study.sampler
    assert isinstance(sampler, CurveSampler)

    def params_of(offset: int) -> dict[str, Any]:
        scheduler = FreezeThaw(direction="maximize", steps=STEPS)
        inform(sampler, steps=STEPS, scheduler=scheduler)
        scheduler.choose(trials, 64)
        frozen = study.trials[0]
        frozen.number = len(trials) + offset
        return sampler.sample_relative(study, frozen, dict(SPACE))

    expected, other = params_of(0), params_of(64)
    assert expected.keys() == other.keys() == SPACE.keys()
    assert expected != other
    assert params_of(0) == expected


def test_parameters_that_not_all_trials_have_are_drawn_with_the_others() -> None:
    sampler = CurveSampler(seed=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        return float(-abs(trial.suggest_float(kind, 0, 1) - 0.3) - (kind == "b"))

    study.optimize(objective, n_trials=40)

    assert np.median([trial.value or 0.0 for trial in study.trials[25:]]) > -0.05  # random ones: -0.75


def test_the_seed_tells_studies_with_the_same_evidence_apart() -> None:
    def proposals(seed: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng(0)
        cube = UnitCube(SPACE)
        known = [cube.params(point) for point in cube.snapped(rng.random((40, 4)))]
        evidence = [evidence_of(n, params, SPACE, [value(params, STEPS)], {}) for n, params in enumerate(known, -41)]
        sampler, scheduler = CurveSampler(seed), FreezeThaw(direction="maximize", steps=STEPS)
        sampler.space = SPACE
        inform(sampler, steps=STEPS, scheduler=scheduler, evidence=evidence)
        scheduler.choose([], 4)
        return list(scheduler.forecast.proposals.values())

    assert proposals(1) == proposals(1) != proposals(2)


def test_a_failed_trial_and_one_whose_values_are_nan_keep_nothing_from_going_on() -> None:
    rng = np.random.default_rng(0)
    trials = []
    for number in range(STARTERS + 4):
        params = UnitCube(SPACE).params(UnitCube(SPACE).snapped(rng.random((1, 4)))[0])
        values = [{}, {1: math.nan}, {1: math.inf}, {1: 0.5, 2: 0.6}][number % 4]
        state = TrialState.FAIL if number % 4 == 0 else TrialState.WAITING
        trial = optuna.trial.FrozenTrial(
            number=number, state=state, value=None, datetime_start=None, datetime_complete=None, params=params,
            distributions=SPACE, user_attrs={}, system_attrs={}, intermediate_values=values, trial_id=number,
        )  # fmt: skip
        trials.append(progress_of(trial))

    assert len(FreezeThaw(direction="minimize", steps=STEPS).choose(trials, 5)) >= 5


@pytest.mark.parametrize("steps", [STEPS, None])
def test_evidence_takes_the_place_of_the_first_random_trials(steps: int | None) -> None:
    rng = np.random.default_rng(0)
    print("seed 0")
    cube = UnitCube(SPACE)
    known = [cube.params(point) for point in cube.snapped(rng.random((40, 4)))]
    ends = [value(params, STEPS) for params in known]
    evidence = [
        evidence_of(n, params, SPACE, [end], {}) for n, (params, end) in enumerate(zip(known, ends, strict=True), -41)
    ]
    sampler = CurveSampler(seed=1)
    sampler.space = SPACE
    scheduler = FreezeThaw(direction="maximize", steps=steps)
    inform(sampler, steps=steps, scheduler=scheduler, evidence=evidence)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    assert {choice.number for choice in scheduler.choose([], 4)} == {None}
    trial = study.ask(dict(SPACE))
    if steps is None:  # the first trial shows what the evidence stands for
        for step in range(1, STEPS + 1):
            trial.report(value(trial.params, step), step)
        study.tell(trial, value(trial.params, STEPS))
        scheduler.choose([progress_of(trial) for trial in study.trials], 1)
        trial = study.ask(dict(SPACE))
    assert value(trial.params, STEPS) > np.quantile(ends, 0.9)


def test_values_may_be_as_far_apart_as_numbers_are() -> None:
    trials = [
        Progress(number, {"x": number / 9}, {"x": SPACE["x"]}, {1: sign * 1.7e308, 2: sign * 1.7e308}, "paused")
        for number, sign in enumerate([1, -1, 1, -1, 1, -1, -1, 1, -1, 1])
    ]
    with np.errstate(all="raise", under="ignore"):
        assert len(FreezeThaw(direction="maximize", steps=STEPS).choose(trials, 4)) >= 4


def test_steps_may_be_counted_from_zero() -> None:
    study = tune(2 * STEPS)
    trials = [
        replace(trial, values={step - 1: value for step, value in trial.values.items()})
        for trial in map(progress_of, study.get_trials(deepcopy=False))
    ]

    with np.errstate(all="raise", under="ignore"):
        chosen = FreezeThaw(direction="maximize", steps=STEPS).choose(trials, 4)

    assert len(chosen) >= 4


def test_without_a_scheduler_the_sampler_learns_from_complete_trials() -> None:
    sampler = CurveSampler(seed=1)
    sampler.space = SPACE
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(30):
        trial = study.ask(dict(SPACE))
        study.tell(trial, value(trial.params, STEPS))

    later = [trial.value or 0.0 for trial in study.trials[20:]]

    assert np.median(later) > 0.95 * value({"x": 0.8, "rate": 0.01, "kind": "b"}, STEPS)  # random ones: 0.74 of it


def test_a_change_is_seen_whether_the_list_is_new_or_the_same() -> None:
    def with_a_step_more(trial: Progress) -> Progress:
        return replace(trial, values={**trial.values, STEPS + 1: 1.0})

    study = tune(2 * STEPS)
    trials = [progress_of(trial) for trial in study.get_trials(deepcopy=False)]
    forecast = FreezeThaw(direction="maximize", steps=STEPS).forecast
    forecast.read(trials[:1])
    forecast.read(trials, changed=range(1, len(trials)))
    n_steps = forecast.n_steps

    trials[0] = with_a_step_more(trials[0])
    forecast.read(trials)
    assert forecast.n_steps == n_steps + 1

    trials[1] = with_a_step_more(trials[1])
    forecast.read(trials)
    assert forecast.n_steps == n_steps + 2

    forecast.read([*trials[:2], with_a_step_more(trials[2]), *trials[3:]])
    assert forecast.n_steps == n_steps + 3


def test_a_trial_that_has_not_begun_any_more_is_forgotten() -> None:
    study = tune(2 * STEPS)
    trials = [progress_of(trial) for trial in study.get_trials(deepcopy=False)]
    scheduler = FreezeThaw(direction="maximize", steps=STEPS)
    scheduler.choose(trials, 1)

    assert all(choice.number is None or choice.number < len(trials) - 1 for choice in scheduler.choose(trials[:-1], 9))


def test_a_point_of_the_cube_is_what_its_parameters_are() -> None:
    cube = UnitCube({**SPACE, "even": IntDistribution(2, 10, step=2), "half": FloatDistribution(0, 1, step=0.25)})
    print("seed 0")
    points = cube.snapped(np.random.default_rng(0).random((50, 6)))

    assert np.allclose(cube.points([cube.params(point) for point in points]), points)


def test_what_the_sampler_cannot_use_is_refused() -> None:
    def refusal(sampler: str = "curves", keys: Mapping[str, Any] | None = None, **parameter: Any) -> str:
        spec = {"name": "s", "objective": {"path": "tests:objective"}, "sampler": {"name": sampler}, **(keys or {})}
        with pytest.raises(SpecError) as caught:
            StudySpec.from_dict({**spec, "space": {"p": parameter}})
        return str(caught.value)

    number: dict[str, Any] = {"type": "float", "low": 0.0, "high": 1.0}
    assert "prior = 2.0 is outside of the range; give one from 0.0 to 1.0" in refusal(**number, prior=2.0)
    stepped = {"type": "int", "low": 1, "high": 9, "step": 2}
    assert "prior = 4 is no whole number of steps of 2 from low = 1; the nearest are 3 and 5" in refusal(
        **stepped, prior=4
    )
    assert "the nearest are 0.2 and 0.3" in refusal(**number, step=0.1, prior=0.25)
    # Off by 1 of a step so large that rounding would forgive it.
    assert "the nearest are 0 and 10000000000" in refusal(type="int", low=0, high=2 * 10**10, step=10**10, prior=1)
    assert "prior = 'c' is no choice" in refusal(type="categorical", choices=["a", "b"], prior="c")
    assert "prior = True is no choice; known: 1, 2" in refusal(type="categorical", choices=[1, 2], prior=True)
    assert "'curves' takes one objective" in refusal(keys={"directions": ["minimize", "maximize"]}, **number)
    assert "'curves' knows no constraints" in refusal(keys={"constraints": {"latency_ms": "<= 5"}}, **number)
    learns: dict[str, Any] = {"scheduler": {"name": "freezethaw"}, "budget": {"epochs": 100}}
    constrained = {**learns, "constraints": {"latency_ms": "<= 5"}}
    assert "'freezethaw' knows no constraints" in refusal("random", keys=constrained, **number)
    unlimited = {**learns, "budget": {"trials": 40}}
    assert "the scheduler 'freezethaw' would train every trial to its end; set budget.epochs" in refusal(
        keys=unlimited, **number
    )
    assert "space.p.prior is for the sampler 'curves' alone" in refusal("tpe", **number, prior=0.5)
