"""What a view of a study says of its pace, its workers, and what was pruned and failed; and how it is drawn."""

from __future__ import annotations

import io
import math
import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from studies.cli.watch_picture import picture
from studies.overview import EpochPace, Overview, Throughput, overview, share_rows, sparkline
from studies.spec.sections import BudgetSpec
from studies.storage.records import Attempt, HeldTrial, Status, Worker

BEGAN = datetime(2030, 1, 1, 12)


def trial(
    number: int,
    state: TrialState = TrialState.COMPLETE,
    *,
    begin: float = 0,
    end: float | None = None,
    steps: Sequence[float] = (),
    params: Mapping[str, Any] | None = None,
    **user_attrs: object,
) -> FrozenTrial:
    """A trial from ``begin`` to ``end``, seconds after the study began."""
    made = FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        datetime_start=BEGAN + timedelta(seconds=begin),
        datetime_complete=None if end is None else BEGAN + timedelta(seconds=end),
        params={},
        distributions={},
        user_attrs=user_attrs,
        system_attrs={},
        intermediate_values=dict(enumerate(steps)),
    )
    made.params = dict(params or {})
    made.values = [0.5] if state == TrialState.COMPLETE else None
    return made


def worker(number: int, **facts: Any) -> Worker:
    known = {"host": "host", "pid": 1, "device": "cpu", "slots": 1, "trials": (), "seen_seconds_ago": 0.1}
    return Worker(id=f"w{number}", **{**known, **facts})


def status(trials: Sequence[FrozenTrial], *, budget: int | None = 100, workers: int = 2, **facts: Any) -> Status:
    states = {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}
    known: dict[str, Any] = {"paused": False, "ended": None, "best": None}
    return Status(
        study="study",
        budget=facts.pop("budget_spec", None) or (BudgetSpec(trials=budget) if budget else None),
        trials=states,
        workers=[worker(n) for n in range(workers)],
        **{**known, **facts},
    )


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def pace(trials: Sequence[FrozenTrial], now: float, attempts: Mapping[int, Attempt] | None = None, **facts: Any) -> Any:
    return overview(status(trials, **facts), trials, attempts or {}, now=at(now)).seconds_left


def attempt(worker: str, times: int = 1) -> Attempt:
    return Attempt(worker=worker, host=None, device=None, times=times)


def two_by_two(rounds: int, running: bool = True) -> list[FrozenTrial]:
    """Two workers, whose trials take 100 s each."""
    trials = [trial(2 * n + k, begin=100 * n, end=100 * (n + 1)) for n in range(rounds) for k in (0, 1)]
    if running:
        trials += [trial(2 * rounds + k, TrialState.RUNNING, begin=100 * rounds) for k in (0, 1)]
    return trials


def test_there_is_no_time_left_before_each_worker_has_been_through_a_trial() -> None:
    first = [trial(0, end=3), trial(1, TrialState.RUNNING), trial(2, TrialState.RUNNING)]
    assert pace(first, 10) is None
    assert pace([], 10) is None
    assert pace(two_by_two(1), 100) is not None


@pytest.mark.parametrize("rounds", [1, 3, 40])
@pytest.mark.parametrize("into", [0, 99])
def test_the_time_left_is_right_where_all_trials_take_the_same(rounds: int, into: int) -> None:
    left = pace(two_by_two(rounds), 100 * rounds + into)
    assert left == pytest.approx((50 - rounds) * 100 - into, abs=1)


def test_a_night_in_which_nothing_ran_does_not_count() -> None:
    evening = two_by_two(5, running=False)
    morning = [trial(10 + k, begin=50_000, end=50_100) for k in (0, 1)]
    assert pace([*evening, *morning], 50_100, budget=14) == pytest.approx(100)
    assert pace(evening, 50_000, budget=12) == pytest.approx(100)


def test_nor_does_the_time_for_which_a_trial_was_given_back() -> None:
    evening = two_by_two(5, running=False)
    morning = [trial(10 + k, begin=400, end=50_100) for k in (0, 1)]
    attempts = {trial.number: attempt("w", times=2) for trial in morning}
    assert pace([*evening, *morning], 50_100, attempts, budget=14) == pytest.approx(2 * 500 / 12)


def test_a_clock_that_is_wrong_takes_away_no_more_than_the_running_trials() -> None:
    assert pace(two_by_two(5), 1e6) == pytest.approx((100 - 12) * 50)
    assert pace(two_by_two(5), -1e6) == pytest.approx((100 - 10) * 50)


def test_the_timeout_bounds_the_time_left() -> None:
    assert pace(two_by_two(5), 500, budget_spec=BudgetSpec(trials=100, timeout=600)) == pytest.approx(100)


def test_a_budget_of_epochs_ends_by_the_pace_of_their_reports() -> None:
    trials = [trial(0, TrialState.RUNNING)]
    now = status(trials, budget_spec=BudgetSpec(epochs=540), epochs=240)

    assert overview(now, trials, {}, now=at(10), epochs_per_second=30.0).seconds_left == pytest.approx(10)
    assert overview(now, trials, {}, now=at(10)).seconds_left is None


def test_the_pace_of_epochs_begins_with_the_first_look_at_a_running_trial() -> None:
    clock = [0.0]
    pace = EpochPace(lambda: clock[0])

    def seen(seconds: float, epochs: int, *, running: bool = True) -> float | None:
        clock[0] = seconds
        return pace.per_second(status([trial(0, TrialState.RUNNING)] if running else [], epochs=epochs))

    assert seen(0, 1_000) is None
    assert seen(2, 1_001) is None  # too few to tell
    assert seen(10, 1_020) == 2
    assert seen(50_000, 1_020, running=False) is None
    assert seen(50_005, 1_030) == 2


def test_a_last_trial_that_takes_longer_than_the_others_is_not_guessed_at() -> None:
    trials = [*two_by_two(49, running=False), trial(98, TrialState.RUNNING, begin=4900), trial(99, begin=0, end=1)]
    assert pace(trials, 4920) == pytest.approx(30, abs=5)
    assert pace(trials, 5500) is None


@pytest.mark.parametrize("facts", [{"paused": True}, {"ended": "by hand"}, {"budget": None}])
def test_nothing_is_left_where_nothing_goes_on(facts: dict[str, Any]) -> None:
    assert pace(two_by_two(5), 500, **facts) is None
    assert pace(two_by_two(5, running=False), 500, workers=0) is None


def test_a_worker_s_trials_and_pace_are_its_own() -> None:
    trials = [trial(n, begin=10 * n, end=10 * n + 10) for n in range(6)]
    trials.append(trial(6, TrialState.FAIL, begin=60, end=61))
    attempts = {n: attempt("w0" if n < 4 or n == 6 else "other") for n in range(7)}
    seen = overview(status(trials), trials, attempts, now=at(60))
    assert seen.throughput == {"w0": Throughput(done=4, per_hour=360), "w1": Throughput(done=0, per_hour=None)}


def test_failures_are_counted_by_their_kind_and_cancelled_ones_apart() -> None:
    errors = ["ValueError: 1", "cancelled", "KeyError: 'x'", "ValueError:\n 2", None, "ValueError: 3"]
    trials = [trial(n, TrialState.FAIL, **({"error": text} if text else {})) for n, text in enumerate(errors)]
    seen = overview(status(trials), trials, {}, now=at(0))
    assert seen.cancelled == 1
    assert [(f.count, f.reason) for f in seen.failures] == [
        (3, "ValueError: 3"),
        (1, "KeyError: 'x'"),
        (1, "no reason was given"),
    ]


def test_what_pruning_saved_is_measured_by_the_complete_trials() -> None:
    trials = [trial(n, steps=[0.0] * 10) for n in range(3)]
    trials += [trial(3, TrialState.PRUNED, steps=[0.0] * 2), trial(4, TrialState.PRUNED, steps=[0.0] * 4)]
    trials += [trial(5, TrialState.PRUNED), trial(6, TrialState.FAIL, steps=[0.0])]
    pruning = overview(status(trials), trials, {}, now=at(0)).pruning
    assert list(pruning.at_step.items()) == [(None, 1), (1, 1), (3, 1)]
    assert pruning.saved == 8 + 6 + 10
    assert pruning.share == pytest.approx(24 / 60)
    nothing = overview(status(trials[3:]), trials[3:], {}, now=at(0)).pruning
    assert nothing.saved is nothing.share is None


def test_a_study_is_over_when_its_last_trials_are() -> None:
    trials = two_by_two(1)

    def is_over(**facts: Any) -> bool:
        return overview(status(trials, **facts), trials, {}, now=at(0)).is_over

    assert not is_over()
    assert not is_over(ended="timeout")
    assert is_over(ended="timeout", workers=0)
    trials = two_by_two(1, running=False)
    assert is_over(ended="timeout")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], "▅"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([2.0, 2.0], "▅▅"),
        ([0.0, math.nan, 1.0, math.inf], "▁ █ "),
        ([math.nan], " "),
        ([-1.7e308, 1.7e308], "▁█"),
        ([0.0, 5e-324], "▅▅"),
        (range(100), "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: Sequence[float], line: str) -> None:
    assert sparkline(values, 8) == line


def test_tables_share_the_rows_and_give_up_what_they_do_not_need() -> None:
    assert share_rows(10, [3, 4]) == [3, 4]
    assert share_rows(10, [3, 40]) == [3, 7]
    assert share_rows(9, [30, 40]) == [5, 4]
    assert share_rows(1, [3, 4]) == [1, 0]
    assert share_rows(-5, [3, 0]) == [0, 0]
    for _ in range(200):
        rows, wanted = random.randint(-3, 30), [random.randint(0, 20) for _ in range(3)]
        given = share_rows(rows, wanted)
        assert sum(given) == max(0, min(rows, sum(wanted)))
        assert all(got <= want for got, want in zip(given, wanted, strict=True))


def drawn(seen: Overview, width: int = 80, height: int = 24, **how: Any) -> list[str]:
    """The lines of the picture."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, highlight=False
    )
    console.print(picture(seen, "val_accuracy", console, height=height, **how))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def crowded() -> Overview:
    """A study with too much of everything."""
    best = trial(0, steps=[0.0] * 30, params={f"parameter_{n}": n / 7 for n in range(40)})
    trials = [best, *(trial(n, begin=n, end=n + 1, steps=[0.0] * 30) for n in range(1, 40))]
    trials += [trial(40 + n, TrialState.PRUNED, steps=[0.0] * (n % 9)) for n in range(30)]
    trials += [trial(70 + n, TrialState.FAIL, error=f"Error{n}: {'it went wrong ' * 9}\x1b[2J") for n in range(6)]
    trials += [
        trial(
            76 + n,
            TrialState.RUNNING,
            steps=[m / 7 for m in range(n)],
            params={f"parameter_{n}": n / 7 for n in range(40)},
        )
        for n in range(64)
    ]
    now = status(trials, best=best, workers=0)
    host = "a-host-with-a-very-long-name.example.org" * 2
    workers = [worker(n, host=host, trials=[HeldTrial(number=76 + n, step=None)]) for n in range(64)]
    now = Status(**{**vars(now), "workers": workers, "study": "s" * 128})
    return overview(now, trials, {n: attempt(f"w{n}") for n in range(70)}, now=at(100))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 40), (100, 30), (60, 24), (200, 60)])
def test_the_picture_of_a_crowded_study_fits_the_terminal(width: int, height: int) -> None:
    lines = drawn(crowded(), width, height, trouble="waiting for the database: " + "no answer " * 30)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("… and") == 3  # running trials, workers, reasons
    assert "waiting for the database" in text
    assert "saved" in text
    assert "64 workers at work" in text
    assert width < 80 or re.search(r"a-host-\S+…  +1  cpu +1 +76 +– +1 +– +0 s ago", text)
    assert "\x1b[2J" not in text


def test_the_picture_shows_all_of_a_small_study() -> None:
    best = trial(0, begin=0, end=10, steps=[0.0] * 9, params={"lr": 0.0123456, "optimizer": "adamw"})
    trials = [
        best,
        trial(1, TrialState.PRUNED, begin=0, end=10, steps=[0.0] * 3),
        trial(2, TrialState.RUNNING, begin=10, steps=[0.0, 0.5, 1.0], params={"lr": 0.1, "optimizer": "sgd"}),
        trial(3, TrialState.RUNNING, begin=10),
        trial(4, TrialState.FAIL, begin=10, end=11, error="ValueError: no"),
        trial(5, TrialState.FAIL, begin=10, end=11, error="cancelled"),
    ]
    now = status(trials, best=best, budget=10)
    trained = [HeldTrial(number=2, step=2), HeldTrial(number=3, step=None)]
    pool = worker(0, host="alpha", pid=77, device="cuda:1", slots=4, trials=trained)
    now = Status(**{**vars(now), "workers": [pool]})
    lines = drawn(overview(now, trials, {0: attempt("w0")}, now=at(11)))
    words = [line.split() for line in lines]
    assert lines[0].startswith("study  1 worker at work")
    assert "2 of 10 trials, 39 s left" in lines[1]
    assert lines[2] == "1 complete · 1 pruned · 2 running · 2 failed"
    assert ["best", "0.5", "val_accuracy,", "trial", "0"] in words
    assert ["lr=0.01235", "optimizer=adamw"] in words
    assert ["2", "2", "1", "▁▅█", "lr=0.1", "optimizer=sgd"] in words
    assert ["3", "–", "–"] in words
    assert ["alpha", "77", "cuda:1", "4", "2–3", "2", "1", "360", "0", "s", "ago"] in words
    assert ["pruned", "1", "at", "step", "2"] in words
    assert ["saved", "6", "steps", "by", "pruning:", "33%", "of", "all"] in words
    assert ["failed", "1", "×", "ValueError:", "no"] in words
    assert ["failed", "1", "×", "cancelled"] in words


def test_the_picture_shows_the_newest_trials_of_a_front() -> None:
    front = [trial(n, params={"lr": n / 100}) for n in range(7)]
    for made in front:
        made.values = [float(made.number), 0.5]
    lines = drawn(overview(status(front), front, {}, now=at(10), front=front))
    place = next(i for i, line in enumerate(lines) if "on the Pareto front" in line)
    assert lines[place].rstrip() == "best  7 trials on the Pareto front of val_accuracy, the newest 5:"
    assert [line.split() for line in lines[place + 1 : place + 6]] == [
        ["trial", str(n), f"{n},", "0.5", f"lr={n / 100}"] for n in range(2, 7)
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "0 of 100 trials, – left"),
        ({"workers": 0}, "no worker is running"),
        ({"workers": 0, "objective": "lab.nets:fit"}, "join with: studyhall work study --allow lab.nets:fit"),
        ({"paused": True}, "paused; go on with: studyhall resume study"),
        ({"ended": "failures"}, "stopped after too many failed trials"),
        ({"ended": "enough of it"}, "enough of it"),
        ({"budget": None}, "best  – (no trial is complete)"),
        ({}, "no trial has begun"),
    ],
)
def test_the_picture_says_how_the_study_stands(facts: dict[str, Any], words: str) -> None:
    assert words in "\n".join(drawn(overview(status([], **facts), [], {}, now=at(0))))
