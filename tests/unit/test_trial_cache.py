"""Lists of trials that callers may do with as they like, and which trials have changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.trial import FrozenTrial, create_trial

from studies.storage.trial_cache import LentList, TrialCache

TRIALS = [create_trial(value=float(value)) for value in range(5)]


def test_a_list_that_nobody_holds_is_used_again() -> None:
    lists = LentList()
    first = id(lists.of(TRIALS))
    assert id(lists.of(TRIALS)) == first


def test_a_list_that_somebody_holds_stays_theirs() -> None:
    lists = LentList()
    held = lists.of(TRIALS)
    other = lists.of(TRIALS)
    assert other is not held
    lists.replace(0, TRIALS[4])
    assert held == other == TRIALS


@pytest.mark.parametrize(
    "change",
    [list.clear, list.reverse, list.pop, lambda trials: trials.append(TRIALS[0]), lambda trials: trials.sort(key=id)],
)
def test_what_a_caller_did_to_its_list_is_not_seen_by_the_next(change: Callable[[list[FrozenTrial]], object]) -> None:
    lists = LentList()
    change(lists.of(TRIALS))
    lists.replace(4, TRIALS[4])
    assert lists.of(TRIALS) == TRIALS


def test_a_changed_trial_takes_the_place_of_the_old_one() -> None:
    lists, new = LentList(), create_trial(value=9.0)
    first = id(lists.of(TRIALS))
    lists.replace(2, new)
    changed = lists.of([*TRIALS[:2], new, *TRIALS[3:]])
    assert id(changed) == first
    assert changed[2] is new


def test_changes_are_those_since_an_earlier_call() -> None:
    cache = TrialCache()
    cache.load(map(numbered, range(5)), {})
    places, then = cache.changes(0)
    assert list(places) == [0, 1, 2, 3, 4]
    assert cache.changes(then)[0] == []
    for number in (3, 5, 1, 3):
        cache.put(numbered(number))
    places, now = cache.changes(then)
    assert places == [1, 3, 5]
    cache.put(numbered(0))
    assert cache.changes(now)[0] == [0]
    assert cache.changes(then)[0] == [0, 1, 3, 5]
    # After a lost connection, all is read anew.
    again = TrialCache()
    again.load(map(numbered, range(4)), {})
    assert list(again.changes(now)[0]) == [0, 1, 2, 3]


def numbered(number: int) -> FrozenTrial:
    trial = create_trial(value=0.0)
    trial.number = trial._trial_id = number
    return trial
