"""A Gaussian process over configurations and steps: what a learning curve comes to, from a few of its first steps.

Freeze-thaw Bayesian optimization (Swersky et al., arXiv 1406.3896) has the idea; the kernel is a product, as that of
DyHPO (arXiv 2202.09774), without its network. It has a term more, which ties the steps of one trial together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

_JITTER: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class Points:
    """N observed or asked-for points of learning curves."""

    features: np.ndarray
    """Of the configurations: shape (N, P)."""
    time: np.ndarray
    """log(step) / log(last step), from 0 to 1: shape (N)."""
    trial: np.ndarray
    """Which trial's curve each is on, a negative number for one of its own: shape (N)."""

    def joined(self, other: Points) -> Points:
        """These points and then the others."""
        return Points(
            features=np.concatenate([self.features, other.features]),
            time=np.concatenate([self.time, other.time]),
            trial=np.concatenate([self.trial, other.trial]),
        )


class CurveModel:
    """The Gaussian process, of values around 0 whose best are about 1.

    Its kernel is Matérn 5/2 over the features, one length for each, times a constant and a Matérn 3/2 over the time;
    a trial's own deviation from that; and noise. Each fit improves the hyperparameters of the one before, by random
    local search on their posterior: a fit costs a fixed number of factorizations, and no fit begins anew.

    Args:
        n_features: P.
    """

    def __init__(self, n_features: int) -> None:
        # Logarithms: a length for each feature, which grows with their number (Hvarfner et al., arXiv 2402.02229), the
        # length of time; the odds of the constant; the deviation of a trial and the noise relative to the scale; the
        # scale.
        lengths = np.full(n_features, np.log(0.5 * np.sqrt(n_features)))
        self._prior = np.concatenate([lengths, np.log([0.5, 1.0, 0.2, 0.02, 1.0])])
        self._width = np.concatenate([np.full(n_features, 0.8), [0.5, 1.0, 0.7, 0.7, 0.7]])
        self._theta = self._prior.copy()
        self.n_features = n_features

    def fit(self, points: Points, values: np.ndarray, rng: np.random.Generator, *, trials: int) -> None:
        """Learn from ``values`` (N) at ``points``; ``trials`` is how many hyperparameters are tried."""
        best = self._loss(self._theta, points, values) if trials else 0.0
        for _ in range(trials):
            moved = rng.random(len(self._theta)) < 0.3
            theta = self._theta + 0.5 * self._width * moved * rng.normal(size=len(self._theta))
            loss = self._loss(theta, points, values)
            if loss < best:
                best, self._theta = loss, theta
        self.condition(points, values)

    def condition(self, points: Points, values: np.ndarray) -> None:
        """Take ``values`` for those at ``points``, with the hyperparameters as they are."""
        self._points = points
        self._whitening = np.linalg.inv(np.linalg.cholesky(self._covariance(self._theta, points)))
        self._weights = self._whitening.T @ (self._whitening @ values)

    def predict(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation at ``points``, without noise: shape (N) each."""
        k = self._kernel(self._theta, points, self._points)
        half = self._whitening @ k.T
        deviation, _, scale = np.exp(self._theta[-3:])
        variance = scale**2 * (1 + deviation**2) - (half * half).sum(0)
        return k @ self._weights, np.sqrt(np.maximum(variance, 1e-10))

    def correlation(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Of configurations at the same step: shape (N, M) of features (N, P) and (M, P)."""
        length = np.exp(self._theta[: self.n_features])
        return _matern(a / length, b / length)

    def _kernel(self, theta: np.ndarray, a: Points, b: Points) -> np.ndarray:
        length, time = np.exp(theta[: self.n_features]), np.exp(theta[self.n_features])
        constant = 1 / (1 + np.exp(-theta[-4]))
        deviation, _, scale = np.exp(theta[-3:])
        over_features = _matern(a.features / length, b.features / length)
        s = np.abs(a.time[:, None] - b.time) / time
        over_time = (1 + s) * np.exp(-s)
        same = a.trial[:, None] == b.trial
        k: np.ndarray = scale**2 * (
            over_features * (constant + (1 - constant) * over_time) + deviation**2 * same * (0.5 + 0.5 * over_time)
        )
        return k

    def _covariance(self, theta: np.ndarray, points: Points) -> np.ndarray:
        k = self._kernel(theta, points, points)
        k[np.diag_indices_from(k)] += np.exp(2 * (theta[-1] + theta[-2])) + _JITTER
        return k

    def _loss(self, theta: np.ndarray, points: Points, values: np.ndarray) -> float:
        """The negative logarithm of the hyperparameters' posterior, up to a constant."""
        try:
            factor = np.linalg.cholesky(self._covariance(theta, points))
        except np.linalg.LinAlgError:
            return np.inf
        whitened = np.linalg.solve(factor, values)
        likelihood = 0.5 * whitened @ whitened + np.log(np.diag(factor)).sum()
        return float(likelihood + 0.5 * (((theta - self._prior) / self._width) ** 2).sum())


def _matern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Matérn 5/2 of the distances between points: shape (N, M) of shapes (N, P) and (M, P)."""
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    r = np.sqrt(5 * np.maximum(squared, 0))
    k: np.ndarray = (1 + r + r * r / 3) * np.exp(-r)
    return k
