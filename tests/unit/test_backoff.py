"""The waits of a worker between claims."""

from __future__ import annotations

from studies.worker.backoff import LONGEST, SHORTEST, Backoff


def test_waits_grow_up_to_a_limit_and_begin_anew_with_a_trial() -> None:
    backoff = Backoff()
    waits = [backoff.next() for _ in range(20)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (SHORTEST, LONGEST)
    backoff.reset()
    assert backoff.next() == SHORTEST
