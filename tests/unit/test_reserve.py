"""What is kept back of a budget of epochs, by fleets whose slots train an epoch each in turns."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution

from studies.search.freeze_thaw import FreezeThaw
from studies.search.halving import Halving
from studies.search.reserve import Reserve
from studies.search.scheduler import TO_THE_END, Choice, Progress, Scheduler

STEPS = 27
SPACE = {"x": FloatDistribution(0, 1)}


def value(number: int, step: int) -> float:
    """Rises with the steps to the end of a trial, which is any number below 1."""
    return random.Random(number).random() - 0.5 / step


class Fleet:
    """So many slots, whose trials report an epoch each in turns; one without a trial asks again in each turn."""

    def __init__(self, scheduler: type[Halving | FreezeThaw], *, slots: int, epochs: int) -> None:
        self.inner: Scheduler = scheduler(direction="maximize", steps=STEPS)
        self.scheduler: Scheduler = self.inner
        self.slots, self.epochs, self.spent = slots, epochs, 0
        self.trials: list[Progress] = []
        self.untils: dict[int, int] = {}

    def with_reserve(self) -> Fleet:
        self.scheduler = Reserve(
            self.inner,
            direction="maximize",
            steps=STEPS,
            left=lambda: (self.epochs - self.spent, range(len(self.trials))),
        )
        return self

    def run(self) -> Fleet:
        while self.spent < self.epochs:
            if free := self.slots - len(self.untils):
                for choice in self.scheduler.choose(list(self.trials), free)[:free]:
                    self._begin(choice)
            assert self.untils, "nothing runs, and nothing was chosen"
            for number in list(self.untils):
                if self.spent < self.epochs:
                    self._train(number)
        return self

    @property
    def complete(self) -> list[Progress]:
        return [trial for trial in self.trials if trial.state == "complete"]

    def _begin(self, choice: Choice) -> None:
        number = len(self.trials) if choice.number is None else choice.number
        if choice.number is None:
            params = {"x": random.Random(-number).random()}
            self.trials.append(Progress(number, params, SPACE, {}, "running"))
        assert number not in self.untils
        self.untils[number] = choice.until
        self.trials[number] = replace(self.trials[number], state="running")

    def _train(self, number: int) -> None:
        self.spent += 1
        trial = self.trials[number]
        step = len(trial.values) + 1
        is_over, is_paused = step == STEPS, step >= self.untils[number]
        state = "complete" if is_over else "paused" if is_paused else "running"
        self.trials[number] = replace(trial, values={**trial.values, step: value(number, step)}, state=state)
        if is_over or is_paused:
            del self.untils[number]


@pytest.mark.parametrize("scheduler", [Halving, FreezeThaw])
@pytest.mark.parametrize(("slots", "trainings"), [(1, 2), (4, 3), (16, 6), (64, 20)])
def test_a_small_budget_brings_a_trial_to_its_end_however_many_slots_share_it(
    scheduler: type[Halving | FreezeThaw], slots: int, trainings: int
) -> None:
    fleet = Fleet(scheduler, slots=slots, epochs=trainings * STEPS).with_reserve().run()
    assert fleet.complete
    assert fleet.spent == fleet.epochs


@pytest.mark.parametrize("scheduler", [Halving, FreezeThaw])
def test_without_a_reserve_many_slots_spend_twenty_trainings_on_beginnings(
    scheduler: type[Halving | FreezeThaw],
) -> None:
    assert not Fleet(scheduler, slots=32, epochs=20 * STEPS).run().complete


def test_the_best_trial_that_has_come_far_is_the_one_that_ends() -> None:
    fleet = Fleet(FreezeThaw, slots=8, epochs=15 * STEPS).with_reserve().run()
    ends = [value(trial.number, STEPS) for trial in fleet.trials if trial.values]
    best = max(value(trial.number, STEPS) for trial in fleet.complete)
    assert sum(end > best for end in ends) < len(ends) / 4


def progress(number: int, steps: int, state: str = "paused") -> Progress:
    values = {step: value(number, step) for step in range(1, steps + 1)}
    return Progress(number, {"x": 0.5}, SPACE, values, state)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [None, 10_000, 20])
def test_without_a_limit_far_from_it_and_where_no_trial_can_end_any_more_all_is_as_the_scheduler_says(
    left: int | None,
) -> None:
    trials = [progress(0, 2), progress(1, 2), progress(2, 2, "running")]
    reserve = Reserve(
        Halving(direction="maximize", steps=STEPS, min_steps=2),
        direction="maximize",
        steps=STEPS,
        left=lambda: None if left is None else (left, range(99)),
    )
    expected = Halving(direction="maximize", steps=STEPS, min_steps=2).choose(trials, 2)
    assert reserve.choose(trials, 2) == expected


def test_what_the_best_trial_needs_is_kept_back_from_others_and_given_to_it() -> None:
    left = 19
    reserve = Reserve(
        Halving(direction="maximize", steps=STEPS),
        direction="maximize",
        steps=STEPS,
        left=lambda: None if left is None else (left, range(99)),
    )
    best, running = progress(0, 9), replace(progress(1, 9), state="running")
    # Trial 0 needs 18 epochs, and one must be left in the end: it goes on alone, to its next rung, which is its end.
    assert reserve.choose([best], 4) == [Choice(0, TO_THE_END)]
    # While it runs, the other slots wait.
    assert reserve.choose([replace(best, state="running")], 4) == []
    # More epochs were given: there is room for others again.
    left = 1000
    assert len(reserve.choose([replace(best, state="running")], 4)) == 4
    # One that is worse than a complete trial is owed nothing.
    left, complete = 20, replace(progress(2, STEPS), state="complete", values={STEPS: 2.0})
    assert len(reserve.choose([best, running, complete], 1)) == 1


def test_the_best_trial_is_offered_behind_the_others_as_long_as_its_end_is_not_due() -> None:
    halving = Halving(direction="maximize", steps=STEPS)
    reserve = Reserve(halving, direction="maximize", steps=STEPS, left=lambda: (40, [0]))
    # Where a limit of trials leaves no room for the new one, it takes that slot.
    assert reserve.choose([progress(0, 9)], 1) == [Choice(None, 1), Choice(0, TO_THE_END)]


def test_a_running_trial_that_no_worker_of_ours_holds_is_owed_nothing() -> None:
    running = replace(progress(0, 9), state="running")
    reserve = Reserve(
        Halving(direction="maximize", steps=STEPS), direction="maximize", steps=STEPS, left=lambda: (19, [])
    )
    assert reserve.choose([running, progress(1, 1)], 2)


def test_steps_that_are_counted_from_0_and_reports_of_every_third_step_are_counted_as_epochs() -> None:
    reserve = Reserve(Halving(direction="minimize", steps=9), direction="minimize", steps=9, left=lambda: None)
    from_0 = Progress(0, {}, {}, {0: 1.0, 1: 0.9, 2: 0.8}, "paused")
    every_third = Progress(1, {}, {}, {3: 1.0}, "paused")
    assert [reserve._epochs(trial, TO_THE_END) for trial in (from_0, every_third, None)] == [6, 2, 9]
    assert reserve._epochs(from_0, 3) == 1
