"""What MLflow refuses is said once, and tried again ever more rarely."""

from __future__ import annotations

import pytest

from studies.mirror import refusals
from studies.mirror.refusals import MAX_PAUSE, MIN_PAUSE, Refusals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(refusals.time, "monotonic", lambda: now[0])
    return now


def test_a_reason_is_said_once_until_it_changes_or_the_study_was_there(clock: list[float]) -> None:
    said: list[str] = []
    found = Refusals(said.append)
    for message in ("one", "one", "two", "two"):
        found.add("a", message)
        found.add("b", "other")
        clock[0] += MAX_PAUSE + 1
    assert said == ["one", "other", "two"]
    found.remove("a")
    found.add("a", "two")
    assert said[3:] == ["two"]


def test_each_pause_is_twice_the_one_before_and_none_is_cut_short(clock: list[float]) -> None:
    found = Refusals(lambda _: None)
    assert found.retry_at("a") is None
    pauses = []
    for _ in range(7):
        found.add("a", "why")
        due = found.retry_at("a")
        assert due is not None
        clock[0] += 1.0
        found.add("a", "another trial, too")
        assert found.retry_at("a") == due
        pauses.append(due - clock[0] + 1.0)
        clock[0] = due
    assert pauses == [min(MAX_PAUSE, MIN_PAUSE * 2**i) for i in range(7)]
    found.remove("a")
    assert found.retry_at("a") is None


@pytest.mark.parametrize(
    ("refused", "studies", "summary"),
    [
        (0, 3, None),
        (1, 1, "why 0"),
        (1, 3, "1 of 3 studies not in MLflow as they are: 's0'; the reasons are above"),
        (
            7,
            9,
            "7 of 9 studies not in MLflow as they are: 's0', 's1', 's2', 's3', 's4' and 2 more; the reasons are above",
        ),
    ],
)
def test_the_end_is_one_line(refused: int, studies: int, summary: str | None) -> None:
    found = Refusals(lambda _: None)
    for i in range(refused):
        found.add(f"s{i}", f"why {i}")
    assert found.summary(studies) == summary
