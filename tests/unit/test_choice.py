"""The choice among candidates: by the best mean, or the simplest that is hardly worse."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from studies.errors import StudyhallError
from studies.finalize.choice import Candidate, applicable, choose, paired


def candidate(trial: int, *values: float | None, size: int | None = 100) -> Candidate:
    return Candidate(trial=trial, params={}, tuned=1.0, values=values, n_parameters=size)


BEST = candidate(0, 0.90, 0.92, 0.91, size=5_000)
CLOSE = candidate(1, 0.89, 0.93, 0.905, size=300)
WORSE = candidate(2, 0.86, 0.87, 0.88, size=10)


def winner(rule: str, *candidates: Candidate, is_minimized: bool = False) -> int:
    return choose(candidates, "s.finalize", applicable(rule, candidates), is_minimized=is_minimized).trial


def test_one_se_takes_the_simplest_model_within_a_standard_error_and_best_the_best_mean() -> None:
    assert winner("best", BEST, CLOSE, WORSE) == 0
    assert winner("one-se", BEST, CLOSE, WORSE) == 1
    losses = [candidate(c.trial, *(1 - v for v in c.scores), size=c.n_parameters) for c in (BEST, CLOSE, WORSE)]
    assert winner("one-se", *losses, is_minimized=True) == 1


def test_of_equal_models_the_better_wins_and_of_equal_scores_the_first() -> None:
    assert winner("one-se", BEST, CLOSE, candidate(3, 0.90, 0.92, 0.907, size=300)) == 3
    assert winner("best", candidate(4, 0.9, 0.9), candidate(5, 0.9, 0.9)) == 4
    assert winner("one-se", candidate(4, 0.9, 0.9), candidate(5, 0.9, 0.9, size=1)) == 5


@pytest.mark.parametrize("size", [None, 10])
def test_without_sizes_or_with_one_seed_the_best_mean_wins(size: int | None) -> None:
    values = (0.9,) if size else (0.9, 0.9)
    assert winner("one-se", candidate(0, *values, size=size), candidate(1, *(v - 1e-9 for v in values), size=size)) == 0


def test_a_candidate_of_which_a_seed_failed_never_wins() -> None:
    assert winner("one-se", candidate(3, 0.99, None, 0.99, size=1), CLOSE, BEST) == 1
    with pytest.raises(StudyhallError, match=r"\Aeach of the 1 candidates of study 's.finalize' failed") as caught:
        winner("best", candidate(3, None))
    assert "studyhall trials s.finalize --state fail" in str(caught.value)


def test_the_pairs_are_tested_as_scipy_tests_them() -> None:
    found = paired(BEST, WORSE, is_minimized=False)
    assert found.behind == pytest.approx(0.04)
    assert found.p == pytest.approx(stats.ttest_rel(BEST.scores, WORSE.scores, alternative="greater").pvalue)
    assert paired(BEST, BEST, is_minimized=False).p == 1.0
    assert paired(candidate(0, 0.5, 0.5), candidate(1, 0.25, 0.25), is_minimized=False).p == 0.0
    assert math.isnan(paired(candidate(0, 1.0), candidate(1, 0.5), is_minimized=False).p)
