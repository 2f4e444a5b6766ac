"""Lists of trials that callers may do with as they like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.trial import FrozenTrial, create_trial

from studies.storage.trial_cache import LentList

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
