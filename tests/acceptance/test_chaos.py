"""Whatever is killed, stopped or started again: the study ends with exactly its trials, and nothing is lost.

A small one here; ten seeds of a large one by ``tests/acceptance/chaos.py``, or here by
``STUDYHALL_CHAOS_SEEDS="0 1 2"``.
"""

from __future__ import annotations

import os

import pytest

from tests.acceptance.faults import chaos

pytestmark = pytest.mark.slow

SEEDS = [int(seed) for seed in os.environ.get("STUDYHALL_CHAOS_SEEDS", "").split()]


@pytest.mark.parametrize(
    ("pgbouncer", "poison", "slots", "epoch_seconds"),
    # Slots share an epoch's seconds: longer ones, lest the study end before there are faults enough.
    [(True, 0, 0, 0.3), (False, 10, 0, 0.3), (False, 10, 4, 0.8)],
    ids=["pgbouncer", "poison", "slots"],
)
def test_a_small_study_survives_kills_stops_and_a_restart_of_postgresql(
    pgbouncer: bool, poison: int, slots: int, epoch_seconds: float
) -> None:
    figures = chaos(
        4711,
        budget=40,
        workers=4,
        epochs=10,
        epoch_seconds=epoch_seconds,
        restarts=[6],
        pgbouncer=pgbouncer,
        poison=poison,
        slots=slots,
    )
    print(figures)
    assert figures.kills > 2
    assert figures.restarts == 1


@pytest.mark.parametrize("pgbouncer", [False, True], ids=["direct", "pgbouncer"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_large_study_survives_kills_stops_and_two_restarts_of_postgresql(seed: int, pgbouncer: bool) -> None:
    figures = chaos(seed, pgbouncer=pgbouncer)
    print(figures)
    assert figures.restarts == 2
