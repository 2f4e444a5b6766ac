"""Asynchronous successive halving on histories made by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from studies.search.halving import Halving
from studies.search.scheduler import TO_THE_END, Choice, Progress, State

NEW = Choice(None, 1)


def trial(number: int, state: State, *values: float) -> Progress:
    """A trial that has reported ``values`` from step 1 on."""
    return Progress(number, {}, {}, dict(enumerate(values, 1)), state)


def halving(**options: Any) -> Halving:
    return Halving(**{"direction": "maximize", "steps": 27} | options)


def test_the_best_third_of_a_rung_goes_on_as_soon_as_it_is_known() -> None:
    paused = [trial(0, "paused", 0.1), trial(1, "paused", 0.3), trial(2, "paused", 0.2)]
    assert halving().choose(paused[:2], 1) == [NEW]
    assert halving().choose(paused, 2) == [Choice(1, 3), NEW]
    assert halving(direction="minimize").choose(paused, 1) == [Choice(0, 3)]
    # Whoever went on still counts at the rung that it has left.
    promoted = [paused[0], trial(1, "running", 0.3), paused[2]]
    assert halving().choose(promoted, 1) == [NEW]
    more = [*promoted, *(trial(i, "paused", 0.01 * i) for i in range(3, 6))]
    assert halving().choose(more, 2) == [Choice(2, 3), NEW]


def test_the_highest_rung_comes_first_and_the_last_one_leads_to_the_end() -> None:
    low = [trial(i, "paused", 0.1 * i) for i in range(3)]
    high = [trial(i, "paused", *[0.1 * i] * 9) for i in range(3, 6)]
    # At step 3 the three of step 9 are three of three, and no longer there.
    assert halving().choose([*low, *high], 3) == [Choice(5, TO_THE_END), NEW, NEW]
    assert halving(rungs=[1, 9]).choose([*low, *high], 3)[0] == Choice(5, TO_THE_END)
    assert halving(steps=81).choose([*low, *high], 1) == [Choice(5, 27)]


@pytest.mark.parametrize("values", [[math.nan] * 3, [-math.inf, math.nan, math.nan]])
def test_what_diverged_is_never_promoted(values: list[float]) -> None:
    assert halving().choose([trial(i, "paused", value) for i, value in enumerate(values)], 1) == [NEW]


def test_of_unknown_steps_the_longest_complete_trial_tells_the_last_rung() -> None:
    paused = [trial(i, "paused", *[float(i)] * 9) for i in range(3)]
    assert halving(steps=None).choose(paused, 1) == [Choice(2, 27)]
    assert halving(steps=None).choose([*paused, trial(3, "complete", *[0.0] * 20)], 1) == [Choice(2, TO_THE_END)]


def test_of_unknown_steps_a_lonely_trial_trains_to_its_end_to_show_them() -> None:
    assert halving(steps=None).choose([], 3) == [Choice(None, TO_THE_END), NEW, NEW]
    assert halving(steps=None).choose([trial(0, "running")], 1) == [NEW]
    assert halving(steps=None).choose([trial(0, "complete", 0.1, 0.2, 0.3)], 1) == [NEW]
    assert halving(steps=None).choose([trial(0, "complete", 0.1)], 1) == [Choice(None, TO_THE_END)]


def test_no_trial_is_paused_at_its_last_step_where_steps_are_counted_from_0() -> None:
    paused = [Progress(i, {}, {}, dict.fromkeys(range(4), 0.1 * i), "paused") for i in range(3)]
    assert halving(steps=11).choose(paused, 1) == [Choice(2, 9)]
    assert halving(steps=10).choose(paused, 1) == [Choice(2, TO_THE_END)]


def test_a_step_between_two_rungs_counts_at_the_lower_one() -> None:
    every_other = [Progress(i, {}, {}, {2: 0.1 * i, 4: 0.2 * i}, "paused") for i in range(3)]
    assert halving().choose(every_other, 1) == [Choice(2, 9)]


def test_what_is_chosen_depends_on_the_trials_alone() -> None:
    """A scheduler that has followed a study chooses as one that sees it for the first time."""
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    follower = halving()
    trials: list[Progress] = []
    for _ in range(300):
        choices = follower.choose(trials, 3)
        assert choices == halving().choose(trials, 3), f"seed {seed}"
        assert len({choice.number for choice in choices if choice.number is not None}) == sum(
            choice.number is not None for choice in choices
        )
        choice = draw.choice(choices)
        number = len(trials) if choice.number is None else choice.number
        before = {} if choice.number is None else trials[number].values
        state: State = "complete" if choice.until == TO_THE_END else draw.choice([*["paused"] * 8, "running", "fail"])
        last = min(choice.until, 27)
        now = Progress(number, {}, {}, {step: before.get(step, draw.random()) for step in range(1, last + 1)}, state)
        trials[number : number + 1] = [now]
    assert {"complete", "paused"} <= {each.state for each in trials}


@pytest.mark.parametrize("rungs", [[], [0, 1], [3, 1], [1, 1], ["1"], [True], "13", [1.5]])
def test_rungs_that_are_none_are_refused(rungs: Any) -> None:
    with pytest.raises(ValueError, match="should be whole numbers of steps that ascend from 1"):
        halving(rungs=rungs)


def test_a_rung_that_no_trial_reaches_is_refused() -> None:
    for options in ({"rungs": [1, 27]}, {"min_steps": 27}):
        with pytest.raises(ValueError, match="the rung at step 27 pauses no trial, as the objective trains 27; legal"):
            halving(**options)
