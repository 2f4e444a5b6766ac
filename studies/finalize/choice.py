"""The choice among candidates by fresh seeds: the best mean, or the simplest model that is hardly worse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from studies.errors import StudyhallError, command

Rule = Literal["one-se", "best"]
#: By name: what wins.
RULES: Mapping[Rule, str] = {
    "one-se": "the simplest model whose mean is within one standard error of the best",
    "best": "the best mean",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial of the study, and how it did with fresh seeds."""

    trial: int
    params: Mapping[str, Any]
    tuned: float
    """Its value in the study, by which it is among the best: an optimistic one (the winner's curse)."""
    values: Sequence[float | None]
    """One for each seed, in the order of the seeds; ``None`` where the trial failed."""
    n_parameters: int | None = None
    """Of the model; ``None`` where the objective does not say."""

    @property
    def is_complete(self) -> bool:
        """Whether no seed failed."""
        return None not in self.values

    @property
    def scores(self) -> list[float]:
        """The values of the seeds that did not fail."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How far a candidate is behind the best one, seed by seed."""

    behind: float
    """The mean difference; above 0 where the candidate is worse."""
    standard_error: float
    """Of the mean difference; nan for a single seed."""
    p: float
    """Of the one-sided paired t-test that the candidate is no worse (Student, Biometrika 1908); nan for a single
    seed. The best candidate was chosen among several: a small p overstates the evidence."""


def paired(best: Candidate, other: Candidate, *, is_minimized: bool) -> Paired:
    """Compare two candidates that had the same seeds."""
    sign = 1 if is_minimized else -1
    # The scores pair up because both candidates are complete: a failed seed would shift those behind it.
    behind = [sign * (b - a) for a, b in zip(best.scores, other.scores, strict=True)]
    mean = statistics.fmean(behind)
    if len(behind) < 2:
        return Paired(behind=mean, standard_error=math.nan, p=math.nan)
    error = statistics.stdev(behind) / math.sqrt(len(behind))
    # All differences are equal, and t would be a division by zero.
    if error == 0:
        return Paired(behind=mean, standard_error=0.0, p=0.0 if mean > 0 else 1.0)
    # Imported here: it takes longer to import than Optuna, and only the t-test needs it.
    from scipy import stats

    return Paired(behind=mean, standard_error=error, p=float(stats.t.sf(mean / error, len(behind) - 1)))


def best_of(candidates: Sequence[Candidate], study: str, *, is_minimized: bool) -> Candidate:
    """The candidate with the best mean, among those of which no seed failed; of equal ones the first.

    Raises:
        StudyhallError: of each a seed failed.
    """
    # A mean over fewer seeds, perhaps the easier ones, compares with no other.
    complete = [candidate for candidate in candidates if candidate.is_complete]
    if not complete:
        raise StudyhallError(
            f"each of the {len(candidates)} candidates of study {study!r} failed with a fresh seed; see why with: "
            f"{command('trials', study, '--state', 'fail')}; try those again with `studyhall retry`, or choose "
            "another trial with --trial N"
        )
    return (min if is_minimized else max)(complete, key=lambda candidate: candidate.mean)


def applicable(rule: Rule, candidates: Sequence[Candidate]) -> Rule:
    """``rule``; but ``best`` where the sizes of the models are not known, or one seed leaves no standard error."""
    return rule if all(c.n_parameters is not None and len(c.values) > 1 for c in candidates) else "best"


def choose(candidates: Sequence[Candidate], study: str, rule: Rule, *, is_minimized: bool) -> Candidate:
    """The winner by a rule that is :func:`applicable`.

    ``one-se`` is the rule of Breiman et al. (Classification and Regression Trees, 1984, section 3.4.3) with the
    standard error of the paired differences: the fewest parameters among those that are behind the best by no more
    than one of them.

    Raises:
        StudyhallError: as :func:`best_of`.
    """
    best = best_of(candidates, study, is_minimized=is_minimized)
    if rule == "best":
        return best
    close = []
    for candidate in candidates:
        if candidate.is_complete:
            compared = paired(best, candidate, is_minimized=is_minimized)
            # The best itself passes, 0 behind with an error of 0, and there is always a winner.
            if compared.behind <= compared.standard_error:
                close.append((candidate.n_parameters or 0, compared.behind, candidate))
    return min(close, key=lambda found: found[:2])[2]  # of equal sizes the better one; candidates have no order
