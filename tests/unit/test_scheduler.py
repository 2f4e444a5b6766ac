"""What is asked of every scheduler."""

from __future__ import annotations

import random

import pytest
from optuna.distributions import FloatDistribution

from studies.search.freeze_thaw import FreezeThaw
from studies.search.halving import Halving
from studies.search.scheduler import Progress, Scheduler


@pytest.mark.parametrize("kind", [Halving, FreezeThaw])
def test_a_scheduler_that_is_told_what_has_changed_chooses_as_one_that_looks(kind: type[Halving | FreezeThaw]) -> None:
    told: Scheduler = kind(direction="minimize", steps=27)
    looks: Scheduler = kind(direction="minimize", steps=27)
    space, draw = {"x": FloatDistribution(0, 1)}, random.Random(5)
    trials: list[Progress] = []
    changed: list[int] = []
    for _ in range(25):
        choices = told.choose(list(trials), 3, changed)
        assert choices == looks.choose(list(trials), 3)
        changed = []
        for number, until in [(choice.number, choice.until) for choice in choices[:3]]:
            place = len(trials) if number is None else number
            values = {} if number is None else dict(trials[place].values)
            values |= {step: draw.random() for step in range(len(values) + 1, min(27, until) + 1)}
            params = {"x": draw.random()} if number is None else trials[place].params
            state = "complete" if len(values) == 27 else "paused"
            trials[place : place + 1] = [Progress(place, params, space, values, state)]
            changed.append(place)
        changed.sort()
