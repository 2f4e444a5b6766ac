"""What the trials of a study are expected to come to: for the sampler and the scheduler that learn from curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from optuna.distributions import BaseDistribution

from studies.search.curve_model import CurveModel, Points
from studies.search.scheduler import Progress
from studies.search.unit_cube import UnitCube, distinct

#: The most points that a model learns from: the time of an ask does not grow with the study.
MOST_POINTS: Final = 160
#: Of them, how many are of the best trials; the others are of the newest.
_OF_THE_BEST: Final = 100
#: The most running trials that count as if they had come to what is expected of them.
_MOST_PENDING: Final = 64
#: New configurations that are compared: all over the space, and near the best ones.
_ANYWHERE, _NEARBY, _BEST = 150, 150, 5
#: How many hyperparameters the first fit tries, and each later one.
_FIRST_FIT, _LATER_FIT = 60, 4
#: From one point of a curve that the model sees to the one before.
_THINNING: Final = 3.0
#: A prior's standard deviation as a share of the range, what is left of it far away, and how many trials it weighs.
_PRIOR_WIDTH, _PRIOR_FLOOR, _PRIOR_TRIALS = 0.2, 0.05, 5.0
#: The worst value that the model sees, where 1 is the best and 0 the median trial's: how bad is bad does not matter.
_WORST: Final = -0.5


class Forecast:
    """A model of the learning curves of one study.

    Args:
        direction: minimize or maximize.
        steps: how many the objective trains; ``None`` if that is unknown: then the longest trial tells it.

    Attributes:
        space: the parameters to learn of; without it, those of the trials.
        priors: values of parameters that a person expects to be good.
        proposals: the parameters of trials that a scheduler wants to begin, by the number that each is to have.
        evidence: trials of other studies to learn from, with negative numbers.
        n_evidence: how many of the trials that were read have negative numbers.
        seed: of the study.
        is_fit: whether it has learned what was read last.
    """

    def __init__(self, *, direction: str, steps: int | None) -> None:
        self._sign = -1.0 if direction == "minimize" else 1.0
        self.steps = steps
        self.space: Mapping[str, BaseDistribution] = {}
        self.priors: Mapping[str, Any] = {}
        self.proposals: dict[int, dict[str, Any]] = {}
        self.evidence: Sequence[Progress] = ()
        self.n_evidence = 0
        self.seed = 0
        self.is_fit = False
        self._seen: Sequence[Progress] = []
        self._compared: list[Progress] = []  # what was read last, where the caller does not know what has changed
        self._longest = 1
        self._counts_from_0 = False
        # Of each trial: its best and its last value, nan before the first; how many; whether it is paused or runs.
        self._tops = np.empty(0)
        self._lasts = np.empty(0)
        self._counts = np.empty(0, dtype=int)
        self._is_paused = np.empty(0, dtype=bool)
        self._is_running = np.empty(0, dtype=bool)
        self._model: CurveModel | None = None

    @property
    def last_step(self) -> int | None:
        """Of the objective: one less than its steps where they are counted from 0; ``None`` if that is unknown."""
        return self.steps and self.steps - self._counts_from_0

    @property
    def horizon(self) -> int:
        """The last step, as far as is known."""
        return self.last_step or self._longest

    @property
    def n_reported(self) -> int:
        """How many trials have reported a finite value."""
        return int(np.isfinite(self._tops).sum())

    @property
    def n_steps(self) -> int:
        """How many steps all trials have reported."""
        return int(self._counts.sum())

    @property
    def running(self) -> list[Progress]:
        """The trials that run, by number."""
        return [self._seen[place] for place in np.flatnonzero(self._is_running).tolist()]

    def read(self, trials: Sequence[Progress], changed: Sequence[int] | None = None) -> None:
        """Take note of what has changed in ``trials``, all those of the study, and in the evidence.

        Args:
            trials: by number.
            changed: the places in ``trials`` that may differ from the last call; ``None`` if unknown.
        """
        if self.evidence:
            trials, changed = [*self.evidence, *trials], None
        self.n_evidence = next((place for place, trial in enumerate(trials) if trial.number >= 0), len(trials))
        if changed is None:  # those that have changed are other objects, perhaps in the same list
            before, self._compared = self._compared, list(trials)
            changed = [i for i, (a, b) in enumerate(zip(before, trials, strict=False)) if a is not b]
            changed += range(len(before), len(trials))
        else:
            self._compared = []
        # Rarely there are fewer than before: an interrupted trial that had reported nothing has not begun any more.
        self._tops, self._lasts, self._counts, self._is_paused, self._is_running = (
            _resized(of, len(trials))
            for of in (self._tops, self._lasts, self._counts, self._is_paused, self._is_running)
        )
        for i in changed:
            self._tops[i], self._lasts[i] = self._summary(trials[i])
            self._counts[i] = len(trials[i].values)
            self._is_paused[i], self._is_running[i] = trials[i].state == "paused", trials[i].state == "running"
        self._seen = trials
        self.is_fit = False

    def _summary(self, trial: Progress) -> tuple[float, float]:
        values = [self._sign * value for value in trial.values.values() if math.isfinite(value)]
        if not values:
            return (-math.inf, -math.inf) if trial.state == "fail" else (math.nan, math.nan)
        self._longest = max(self._longest, *trial.values)
        self._counts_from_0 |= 0 in trial.values
        return max(values), values[-1]

    def fit(self, rng: np.random.Generator) -> None:
        """Learn from what was read; at least two trials have reported."""
        finite = self._lasts[np.isfinite(self._lasts)]
        # Halves: the difference of two values may be too large for a number.
        best, middle = float(np.nanmax(self._tops) / 2), float(np.median(finite / 2))
        self._half_middle, self._half_span = middle, max(best - middle, 5e-13)
        chosen = self._chosen()
        self._space = UnitCube(self.space or self._observed_space(chosen))
        (self._prior,) = self._space.points([self.priors])
        places = self._space.points([self._seen[place].params for place in chosen])
        self._known = places[[self._seen[place].number >= 0 for place in chosen]]
        if (refuting := self._refuting(places, self._tops[chosen])) is not None:
            # Its trial as well: from far off the search, it would distort the forecast for long.
            self._prior = np.full_like(self._prior, math.nan)
            del chosen[refuting]
            places = np.delete(places, refuting, axis=0)
        points, values = self._points([self._seen[i] for i in chosen])
        n_features = points.features.shape[1]
        if self._model is None or self._model.n_features != n_features:
            self._model = CurveModel(n_features)
            self._model.fit(points, values, rng, trials=_FIRST_FIT)
        else:
            self._model.fit(points, values, rng, trials=_LATER_FIT)
        self._points_of_trials = places
        pending = [trial for trial in self.running if trial.params]
        if pending:
            self._known = np.concatenate([self._known, self._space.points([trial.params for trial in pending])])
            self._expect(points, values, pending[-_MOST_PENDING:])
        self.is_fit = True

    def _refuting(self, places: np.ndarray, tops: np.ndarray) -> int | None:
        """The trial nearest to the priors, if it is among the worse half: wrong priors are forgotten at once."""
        if np.isnan(self._prior).all() or len(places) < 3:
            return None
        distance = np.nan_to_num(places - self._prior)
        nearest = int(np.argmin((distance**2).sum(1)))
        return nearest if tops[nearest] < np.median(tops) else None

    def _observed_space(self, chosen: Sequence[int]) -> dict[str, BaseDistribution]:
        found = {name: of for place in chosen for name, of in self._seen[place].distributions.items()}
        return {name: found[name] for name in sorted(found) if not found[name].single()}

    def _chosen(self) -> list[int]:
        """The trials that the model learns from, best first, then the newest."""
        has_reported = ~np.isnan(self._tops)
        best = self._best(has_reported, MOST_POINTS)
        newest = np.flatnonzero(has_reported)[::-1][:MOST_POINTS].tolist()
        chosen: dict[int, None] = {}
        count = 0
        for limit, places in ((_OF_THE_BEST, best), (MOST_POINTS, newest)):
            for place in places:
                if count >= limit:
                    break
                if place not in chosen:
                    chosen[place] = None
                    count += len(_thinned(self._seen[place].values))
        return list(chosen)

    def _points(self, trials: Sequence[Progress]) -> tuple[Points, np.ndarray]:
        features = self._space.features(self._space.points([trial.params for trial in trials]))
        rows: list[int] = []
        steps: list[int] = []
        values: list[float] = []
        for row, trial in enumerate(trials):
            thinned = _thinned(trial.values) or {self.horizon: -self._sign * math.inf}
            rows += [row] * len(thinned)
            steps += thinned
            values += [self._sign * value for value in thinned.values()]
        halves = np.where(np.isfinite(values), values, -math.inf) / 2
        scaled = (halves - self._half_middle) / self._half_span
        numbers = np.array([trial.number for trial in trials])
        points = Points(features=features[rows], time=self._time(np.array(steps)), trial=numbers[rows])
        return points, np.clip(scaled, _WORST, 1.0)

    def _time(self, steps: np.ndarray) -> np.ndarray:
        # Where they are counted from 0, the first two are one; evidence may be of longer training.
        steps = np.clip(steps, 1, self.horizon)
        return np.log(steps) / math.log(self.horizon) if self.horizon > 1 else np.ones(len(steps))

    def _expect(self, points: Points, values: np.ndarray, pending: Sequence[Progress]) -> None:
        """Let running trials count as if they had come to what is expected of them (the kriging believer)."""
        assert self._model
        ends = Points(
            features=self._space.features(self._space.points([trial.params for trial in pending])),
            time=np.ones(len(pending)),
            trial=np.array([trial.number for trial in pending]),
        )
        expected, _ = self._model.predict(ends)
        self._model.condition(points.joined(ends), np.concatenate([values, expected]))

    def best_paused(self, most: int) -> list[Progress]:
        """The paused trials with the best values, at most ``most`` of them."""
        return [self._seen[place] for place in self._best(self._is_paused & ~np.isnan(self._tops), most)]

    def _best(self, among: np.ndarray, most: int) -> list[int]:
        """The places of the trials ``among`` all with the best values, the best first."""
        places = np.flatnonzero(among)
        if len(places) > most:  # sorting them all takes longer than the rest of an ask
            places = places[np.argpartition(-self._tops[places], most)[:most]]
        found: list[int] = places[np.argsort(-self._tops[places], kind="stable")].tolist()
        return found

    def newcomers(self, rng: np.random.Generator) -> np.ndarray:
        """New configurations, anywhere and near the best ones: shape (N, D), in the unit cube.

        No two are equal, and none is that of a trial of this study that the model knows: in a small space there may be
        none left.
        """
        n_parameters = self._points_of_trials.shape[1]
        if not n_parameters:
            return np.empty((0, 0))
        like = self._points_of_trials[rng.integers(len(self._points_of_trials), size=_ANYWHERE)]
        best = self._points_of_trials[rng.integers(min(_BEST, len(self._points_of_trials)), size=_NEARBY)]
        anywhere, elsewhere = rng.random(like.shape), rng.random(best.shape)
        by_prior = (rng.random(like.shape) < 0.5) & ~np.isnan(self._prior)
        anywhere = np.where(by_prior, self._prior + _PRIOR_WIDTH / 2 * rng.normal(size=like.shape), anywhere)
        moved = rng.random(best.shape) < max(0.4, 1.5 / n_parameters)
        moved[np.arange(_NEARBY), rng.integers(n_parameters, size=_NEARBY)] = True
        # Steps of all sizes, a hundredth to a third of a range; every other choice is drawn anew.
        stepped = best + 10 ** rng.uniform(-2, -0.5, size=(_NEARBY, 1)) * rng.normal(size=best.shape)
        near = np.where(self._space.is_choice & (rng.random(best.shape) < 0.5), elsewhere, stepped)
        if np.isnan(self._points_of_trials).any():
            # Which parameters apply depends on choices: as those of a trial, they go together.
            anywhere = np.where(self._space.is_choice, like, anywhere)
            moved &= ~self._space.is_choice
        near = np.where(moved, near, best)
        anywhere[np.isnan(like)] = math.nan
        near[np.isnan(best)] = math.nan
        return distinct(self._space.snapped(np.concatenate([anywhere, near])), self._known)

    def log_improvement(self, points: np.ndarray, trial: np.ndarray) -> np.ndarray:
        """log of the expected improvement on the best value at the last step, weighted by the priors: shape (N).

        Args:
            points: configurations in the unit cube: shape (N, D).
            trial: their numbers, negative for new ones: shape (N).
        """
        assert self._model
        asked = Points(features=self._space.features(points), time=np.ones(len(points)), trial=trial)
        mean, deviation = self._model.predict(asked)
        # A prior counts for as many trials as it says, and less and less (πBO, arXiv 2204.11051).
        distance = np.nan_to_num(points - self._prior) / _PRIOR_WIDTH
        prior = np.log(_PRIOR_FLOOR + (1 - _PRIOR_FLOOR) * np.exp(-0.5 * distance**2)).sum(1)
        improvement: np.ndarray = np.log(deviation) + _log_h((mean - 1.0) / deviation)
        return np.asarray(improvement + _PRIOR_TRIALS / self.n_reported * prior)

    def correlation(self, points: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Of the last values of configurations and of one: shape (N) of shapes (N, D) and (D)."""
        assert self._model
        features = self._space.features(np.concatenate([points, point[None]]))
        return self._model.correlation(features[:-1], features[-1:])[:, 0]

    def points(self, params: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The places of configurations in the unit cube: shape (N, D)."""
        return self._space.points(params)

    def params(self, point: np.ndarray) -> dict[str, Any]:
        """The configuration at a place: shape (D)."""
        return self._space.params(point)


def _resized(of: np.ndarray, size: int) -> np.ndarray:
    """``of``, cut off or with zeros at the end. :func:`numpy.resize` copies all of it several times."""
    resized = np.zeros(size, of.dtype)
    resized[: len(of)] = of[:size]
    return resized


def _thinned(values: Mapping[int, float]) -> dict[int, float]:
    """The last value of a curve, and those at a third of its step, a ninth, … ."""
    if not values:
        return {}
    last = max(values)
    thinned, step = {last: values[last]}, last / _THINNING
    while step >= 1:
        if round(step) in values:
            thinned[round(step)] = values[round(step)]
        step /= _THINNING
    return thinned


def _log_h(z: np.ndarray) -> np.ndarray:
    """log(φ(z) + z Φ(z)), also where z is far below 0 (Ament et al., arXiv 2310.20708)."""
    log_density = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    below = 0.5 * np.array([math.erfc(-x / math.sqrt(2)) for x in z])
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.log(np.exp(log_density) + z * below)
        # Far below, the two terms cancel but for φ(z) / z².
        far = log_density - 2 * np.log(np.abs(z))
    return np.asarray(np.where(z > -6, plain, far))
