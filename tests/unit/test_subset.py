"""Which trials of a large study are shown: never too many, and always those that matter."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.report.data import StudyData
from studies.report.matplotlib_images import image
from studies.report.plotly_figures import figure
from studies.report.subset import BEST, MOST_TRIALS, NEWEST, RECORDS, SAMPLE, Subset, choose, evenly, of_kind, remark
from studies.report.timeline import rows
from studies.storage.records import Attempt, Status

BEGAN = datetime(2030, 1, 1, 12)
MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
COUNT = MOST_TRIALS + 2000


def trial(number: int, *values: float, state: TrialState = TrialState.COMPLETE, **constraints: object) -> FrozenTrial:
    begin = BEGAN + timedelta(seconds=10 * number)
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        values=list(values) or None,
        datetime_start=begin,
        datetime_complete=begin + timedelta(seconds=1 + number % 9),
        params={"x": number / COUNT, "y": math.sin(number)},
        distributions={"x": FloatDistribution(0, 1), "y": FloatDistribution(-1, 1)},
        user_attrs={},
        system_attrs=constraints,
        intermediate_values={0: 1.0},
    )


def study(trials: Sequence[FrozenTrial], *directions: StudyDirection) -> StudyData:
    subset = choose(trials, directions)
    counts = {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}
    status = Status(study="s", budget=None, trials=counts, paused=False, ended=None, best=None, workers=[])
    return StudyData(
        name="s",
        directions=directions,
        trials=trials if subset is None else [t for t in trials if t.number in subset.shown],
        status=status,
        metric_names=[f"m{i}" for i in range(len(directions))],
        attempts={
            t.number: Attempt(worker=f"w{t.number % 3}", host="h", device=f"{t.number % 3}", times=1) for t in trials
        },
        subset=subset,
        in_short=() if subset is None else trials,
        now=BEGAN + timedelta(days=30),
    )


def drawn(values: Sequence[float]) -> list[FrozenTrial]:
    return [trial(number, value) for number, value in enumerate(values)]


def chosen(trials: Sequence[FrozenTrial], *directions: StudyDirection) -> Subset:
    subset = choose(trials, directions)
    assert subset is not None
    return subset


DRAW = random.Random(0)
CASES = {
    "random": [DRAW.gauss(0, 1) for _ in range(COUNT)],
    "rising": [float(n) for n in range(COUNT)],
    "falling": [-float(n) for n in range(COUNT)],
    "equal": [1.0] * COUNT,
    "one spike": [float(n == 4321) for n in range(COUNT)],
}


@pytest.mark.parametrize("direction", [MINIMIZE, MAXIMIZE])
@pytest.mark.parametrize("case", CASES)
def test_few_are_shown_and_the_best_the_worst_and_the_newest_are_among_them(
    case: str, direction: StudyDirection
) -> None:
    values = CASES[case]
    subset = chosen(drawn(values), direction)
    assert len(subset.shown) <= MOST_TRIALS
    order = sorted(range(COUNT), key=lambda n: (values[n] * (1 if direction == MINIMIZE else -1), n))
    assert subset.shown >= set(order[:BEST])
    assert subset.shown >= set(range(COUNT - NEWEST, COUNT))
    assert {values[n] for n in subset.always} >= {min(values), max(values)}
    assert len(subset.sample) == SAMPLE[TrialState.COMPLETE]
    assert len(subset.always) <= RECORDS + 3


def test_a_study_that_is_not_large_is_shown_whole() -> None:
    trials = drawn(CASES["random"][:MOST_TRIALS])
    data = study(trials, MINIMIZE)
    assert data.subset is None
    assert of_kind(data, "parallel") is trials
    assert remark(data, "parallel") == "Of 5,000 complete trials."


def test_the_line_of_the_best_value_is_that_of_all_trials() -> None:
    values = CASES["random"]
    feasible = [DRAW.random() < 0.5 for _ in values]
    trials = [trial(n, value, constraints=[0 if feasible[n] else 1]) for n, value in enumerate(values)]
    best = np.minimum.accumulate([value if ok else math.inf for value, ok in zip(values, feasible, strict=True)])
    line = next(t for t in figure(study(trials, MINIMIZE), "history").data if "Best" in t.name)
    assert list(line.x) == list(range(COUNT))
    assert np.array_equal(np.asarray(line.y, dtype=float), best)


def test_trials_keep_their_numbers_in_a_plot() -> None:
    data = study(drawn(CASES["random"]), MINIMIZE)
    points = next(t for t in figure(data, "history").data if t.mode == "markers")
    assert max(points.x) == COUNT - 1
    by_number = dict(enumerate(CASES["random"]))
    assert all(by_number[x] == y for x, y in zip(points.x, points.y, strict=True) if y is not None)


@pytest.mark.parametrize("directions", [(MINIMIZE, MINIMIZE), (MAXIMIZE, MINIMIZE), (MINIMIZE, MAXIMIZE, MINIMIZE)])
def test_the_whole_front_is_shown(directions: tuple[StudyDirection, ...]) -> None:
    draw = random.Random(len(directions))
    front = set(draw.sample(range(COUNT), 50))
    signs = np.array([1 if direction == MINIMIZE else -1 for direction in directions])
    # Of values with one sum none dominates another; each of them dominates whatever is larger.
    best = [np.array(row) / sum(row) for row in ([draw.random() for _ in directions] for _ in front)]
    values = [row + [draw.random() for _ in directions] for row in draw.choices(best, k=COUNT)]
    for number, row in zip(front, best, strict=True):
        values[number] = row
    trials = [trial(number, *(row * signs)) for number, row in enumerate(values)]
    assert chosen(trials, *directions).always >= front


def test_the_distribution_of_the_values_is_that_of_all_trials() -> None:
    values = CASES["random"]
    data = study(drawn(values), MAXIMIZE)
    (line,) = figure(data, "edf").data
    exact = [np.mean(np.array(values) <= x) for x in line.x]
    assert np.abs(np.asarray(line.y, dtype=float) - exact).max() < 2 / SAMPLE[TrialState.COMPLETE]


def test_each_state_has_a_sample_of_its_own() -> None:
    states = [TrialState.PRUNED] * 99 + [TrialState.COMPLETE]
    trials = [trial(n, *([1.0 + n] if n % 100 == 99 else []), state=states[n % 100]) for n in range(2 * MOST_TRIALS)]
    subset = chosen(trials, MINIMIZE)
    assert subset.sample >= {t.number for t in trials if t.state == TrialState.COMPLETE}
    assert len(subset.shown) < MOST_TRIALS


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING])
def test_a_study_without_a_value_has_a_subset_too(state: TrialState) -> None:
    subset = chosen([trial(n, state=state) for n in range(COUNT)], MINIMIZE)
    assert not subset.always
    assert 0 < len(subset.shown) < MOST_TRIALS


def test_every_plot_of_a_subset_says_how_many_it_shows() -> None:
    data = study(drawn(CASES["random"]), MINIMIZE)
    for kind in ("history", "slice", "parallel", "contour", "rank", "importances", "edf"):
        assert f"{COUNT:,} complete trials" in remark(data, kind)
    for kind, noun in (("intermediate", "reporting trials"), ("timeline", "started trials"), ("workers", "trials")):
        assert f"{COUNT:,} {noun}" in remark(data, kind)
    assert f"of {COUNT:,} complete trials" in image(data, "slice", "svg").decode().replace("\n", " ")


def test_slices_of_time_add_up_to_what_the_trials_took() -> None:
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.PRUNED]
    trials = [trial(n, *([1.0] if n % 4 == 0 else []), state=states[n % 4]) for n in range(COUNT)]
    # One that runs for a tenth of the study, over many slices.
    trials[100] = replace_end(trials[100], timedelta(seconds=COUNT))
    found = rows(study(trials, MINIMIZE))
    assert sum(len(row.bars) for row in found) < 2000
    for state in set(states):
        took = sum((bar.end - bar.begin for row in found for bar in row.bars if bar.state == state), timedelta())
        exact = sum((t.datetime_complete - t.datetime_start for t in trials if t.state == state), timedelta())
        assert took.total_seconds() == pytest.approx(exact.total_seconds(), abs=0.1)
    assert figure(study(trials, MINIMIZE), "workers").data


def replace_end(of: FrozenTrial, length: timedelta) -> FrozenTrial:
    assert of.datetime_start is not None
    of.datetime_complete = of.datetime_start + length
    return of


@pytest.mark.parametrize(("count", "most"), [(0, 5), (5, 5), (6, 5), (1000, 7), (7001, 7000)])
def test_an_even_choice_has_both_ends(count: int, most: int) -> None:
    items = evenly(range(count), most)
    assert len(items) == len(set(items)) == min(count, most)
    if count:
        assert (items[0], items[-1]) == (0, count - 1)
        assert max(np.diff(items)) - min(np.diff(items)) <= 1
