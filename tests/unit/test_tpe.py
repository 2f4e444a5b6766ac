"""TPE in large studies: from which trials it learns, and that sharing densities changes nothing."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies.search.tpe import BEST, NEWEST, Subset, TPESampler

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
    subset.of(trials[:500])
    chosen = [each.number for each in subset.of(trials)]
    assert chosen == sorted(chosen)
    assert {*range(BEST // 2), *range(1000, 1000 + BEST // 2)} <= set(chosen)
    assert {*range(3000 - NEWEST, 3001)} <= set(chosen)
    farthest = [number for number in range(2000, 3000 - NEWEST) if number in chosen]
    assert {(number - 2000) % 7 for number in farthest} == {6}
    assert len(chosen) <= 2 * BEST + NEWEST + 1
    # As a worker that sees all of it at once.
    assert [each.number for each in Subset(minimize=minimize).of(trials)] == chosen
    ended = [*trials[:3000], trial(3000, TrialState.FAIL, 0.0), trials[3001]]
    assert 3000 not in [each.number for each in subset.of(ended)]


def test_a_small_study_is_seen_whole() -> None:
    trials = [trial(i, TrialState.COMPLETE, float(i)) for i in range(NEWEST)]
    assert Subset(minimize=True).of(trials) == trials


def test_an_older_list_of_trials_is_seen_as_it_was_and_forgotten() -> None:
    """Optuna keeps the trials of an ask while it draws; the trials of a pool are drawn in turns."""
    began = [trial(n, TrialState.RUNNING, n) for n in range(4)]
    ended = [trial(n, TrialState.COMPLETE, n) for n in range(3)]
    newest = [*ended, began[3], trial(4, TrialState.RUNNING, 4)]
    subset = Subset(minimize=True)
    assert subset.of(began[:3]) == began[:3]
    for _ in range(2):
        assert subset.of(newest) == newest
        assert subset.of(began) == began
    assert subset.of(newest) == Subset(minimize=True).of(newest)


def test_trials_that_share_densities_are_drawn_as_by_optuna() -> None:
    drawn = []
    for kind in (TPESampler, optuna.samplers.TPESampler):
        study = optuna.create_study(sampler=kind(seed=3))
        for _ in range(2):
            for _ in range(15):
                asked = [study.ask() for _ in range(3)]
                points = [(each.suggest_float("x", 0, 1), each.suggest_int("n", 1, 9)) for each in asked]
                for each, (x, n) in zip(asked, points, strict=True):
                    study.tell(each, (x - 0.3) ** 2 + n)
                drawn.append(points)
    assert drawn[:30] == drawn[30:]
