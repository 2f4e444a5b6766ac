"""TPE in large studies: from which trials it learns, and that it draws what Optuna's own draws."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import default_weights
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies.search.parzen import ParzenEstimator
from studies.search.tpe import BEST, NEWEST, Subset, TPESampler
from studies.spec.space import categorical

DRAW = random.Random(1)


def trial(number: int, state: TrialState, value: float, steps: int = 0) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params={"x": DRAW.random()},
        distributions={"x": FloatDistribution(0, 1)},
        intermediate_values=dict.fromkeys(range(1, steps + 1), value),
    )
    made.number = number
    return made


@pytest.mark.parametrize("minimize", [True, False])
def test_a_large_study_is_its_best_its_newest_and_its_running_trials(minimize: bool) -> None:
    sign = 1 if minimize else -1
    trials = [trial(i, TrialState.COMPLETE, sign * float(i % 1000)) for i in range(2000)]
    trials += [trial(2000 + i, TrialState.PRUNED, sign * 1.0, steps=i % 7) for i in range(1000)]
    trials += [trial(3000, TrialState.RUNNING, 0.0), trial(3001, TrialState.WAITING, 0.0)]
    subset = Subset(minimize=minimize)
    subset.of(trials[:500], range(500))
    chosen = [each.number for each in subset.of(trials, [*range(490, len(trials))])]
    assert chosen == sorted(chosen)
    assert {*range(BEST // 2), *range(1000, 1000 + BEST // 2)} <= set(chosen)
    assert {*range(3000 - NEWEST, 3001)} <= set(chosen)
    farthest = [number for number in range(2000, 3000 - NEWEST) if number in chosen]
    assert {(number - 2000) % 7 for number in farthest} == {6}
    assert len(chosen) <= 2 * BEST + NEWEST + 1
    # As a worker that sees all of it at once.
    assert [each.number for each in Subset(minimize=minimize).of(trials, range(len(trials)))] == chosen
    ended = [*trials[:3000], trial(3000, TrialState.FAIL, 0.0), trials[3001]]
    assert 3000 not in [each.number for each in subset.of(ended, [3000])]


def test_a_small_study_is_seen_whole() -> None:
    trials = [trial(i, TrialState.COMPLETE, float(i)) for i in range(NEWEST)]
    assert Subset(minimize=True).of(trials, range(NEWEST)) == trials


def test_trials_that_a_crash_lost_are_forgotten() -> None:
    trials = [trial(n, TrialState.COMPLETE, n) for n in range(9)]
    subset = Subset(minimize=True)
    assert subset.of(trials, range(9)) == trials
    left = [*trials[:4], trial(4, TrialState.RUNNING, 0.0)]
    assert subset.of(left, range(5)) == left
    assert subset.of(trials, range(4, 9)) == trials


SPACES: dict[str, dict[str, BaseDistribution]] = {
    "numbers": {
        "float": FloatDistribution(-3, 1),
        "log": FloatDistribution(1e-5, 0.1, log=True),
        "step": FloatDistribution(0, 1, step=0.125),
        "int": IntDistribution(16, 512),
        "log int": IntDistribution(1, 1000, log=True),
    },
    "mixed": {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 9, step=2), "kind": categorical(["a", [1], None])},
    "choices": {"kind": categorical(["a", "b"])},
}
OPTIONS: list[dict[str, Any]] = [{}, {"multivariate": False}, {"constant_liar": False}, {"group": True}]


@pytest.mark.parametrize("space", SPACES)
def test_draws_are_those_of_optuna(space: str) -> None:
    """Also a guard: this fails where a new version of Optuna draws in another way."""
    for options, minimize in zip(OPTIONS, itertools.cycle([False, True]), strict=False):
        draws = [_draws(kind, SPACES[space], options, minimize) for kind in (TPESampler, optuna.samplers.TPESampler)]
        for own, optunas in zip(*draws, strict=True):
            assert own == pytest.approx(optunas, rel=1e-9), (options, minimize)


def _draws(
    kind: Any, space: dict[str, BaseDistribution], options: dict[str, Any], minimize: bool
) -> list[dict[str, float]]:
    """What the trials of a study draw, three at a time; some are pruned, some violate a constraint, some fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = kind(seed=3, n_startup_trials=6, **options)
    study = optuna.create_study(sampler=sampler, direction="minimize" if minimize else "maximize")
    drawn = []
    for _ in range(10):
        asked = [study.ask() for _ in range(3)]
        for each in asked:
            for name, of in space.items():
                each._suggest(name, of)
            drawn.append({name: of.to_internal_repr(each.params[name]) for name, of in space.items()})
        for each in asked:
            value = sum(map(math.atan, drawn[each.number].values()))
            each.set_constraint("c", 1.0 if each.number % 7 == 5 else -1.0)
            if each.number % 5 == 4:
                each.report(value, each.number)
                study.tell(each, state=TrialState.PRUNED)
            else:
                study.tell(each, value if each.number % 11 else None, state=TrialState(1 if each.number % 11 else 3))
    return drawn


def test_densities_are_those_of_optuna() -> None:
    """Of many kernels, of a few, and of none but the prior; and far away from all of them, as by Optuna's own means."""
    draw = np.random.default_rng(4)
    parameters = _ParzenEstimatorParameters(1.0, True, False, default_weights, True)
    for space, count, prior in itertools.product(SPACES.values(), (0, 1, 30, 300), (1.0, 0.0)):
        if not (count or prior):
            continue
        points = {name: _points(of, count, draw) for name, of in space.items()}
        given = (points, space, parameters._replace(prior_weight=prior))
        own, optunas = ParzenEstimator(*given), _ParzenEstimator(*given)
        samples = {name: _points(of, 24, draw) for name, of in space.items()}
        with np.errstate(divide="ignore"):  # Optuna warns of the weight 0
            expected = optunas.log_pdf(samples)
        assert own.log_pdf(samples) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        for seed in range(5):
            mine, theirs = (each.sample(np.random.RandomState(seed), 24) for each in (own, optunas))
            for name in space:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-9)


def _points(of: BaseDistribution, count: int, draw: np.random.Generator) -> np.ndarray:
    """Legal values of a parameter, as numbers."""
    if isinstance(of, CategoricalDistribution):
        return draw.integers(len(of.choices), size=count).astype(float)
    assert isinstance(of, FloatDistribution | IntDistribution)
    low, high = (math.log(end) if of.log else end for end in (of.low, of.high))
    found = low + draw.random(count) ** 4 * (high - low)
    found = np.exp(found) if of.log else found
    return found if of.step is None else np.clip(of.low + np.round((found - of.low) / of.step) * of.step, None, of.high)
