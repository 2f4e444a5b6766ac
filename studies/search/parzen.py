"""The densities of TPE, drawn from and evaluated by SciPy's special functions: Optuna's own take most of an ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions, _unique_inverse_2d

_LOG_SQRT_2PI: Final = 0.5 * np.log(2 * np.pi)


class ParzenEstimator(_ParzenEstimator):
    """Optuna's mixture of kernels. Its samples and densities are Optuna's but for rounding.

    Shapes: S samples, K kernels. Each parameter has K kernels: Gaussian ones, cut off at the ends of its range, or
    probabilities of its choices.
    """

    def sample(self, rng: np.random.RandomState, size: int) -> dict[str, np.ndarray]:
        """``size`` samples of each parameter, by the random numbers that Optuna takes, in its order."""
        mixture = self._mixture_distribution
        places = rng.choice(len(mixture.weights), p=mixture.weights, size=size)
        kernels = dict(zip(self._search_space, mixture.distributions, strict=True))
        samples: dict[str, np.ndarray] = {}
        for name, of in kernels.items():
            if isinstance(of, _BatchedCategoricalDistributions):
                sums = np.cumsum(of.weights[places], axis=1)
                sums[:, -1] = 1.0
                samples[name] = (sums < rng.rand(size)[:, None]).sum(axis=1).astype(float)
        for name, of in kernels.items():
            if name not in samples:
                samples[name] = _drawn(of, places, rng.uniform(size=size))
        return {name: samples[name] for name in kernels}

    def log_pdf(self, samples_dict: dict[str, np.ndarray]) -> np.ndarray:
        """The log of the density at each sample: shape (S)."""
        mixture = self._mixture_distribution
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(mixture.weights) + sum(
                _log_kernels(of, samples_dict[name])
                for name, of in zip(self._search_space, mixture.distributions, strict=True)
            )
            most = logs.max(axis=1)
            found = np.log(np.exp(logs - most[:, None]).sum(axis=1)) + most
            # Far outside of all kernels, where the probabilities are 0, Optuna has their logarithms.
            return np.asarray(found) if np.isfinite(found).all() else super().log_pdf(samples_dict)


def _drawn(of: Any, places: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The quantiles of S kernels: shape (S)."""
    from scipy.special import log_ndtr, ndtri_exp

    mean, deviation = of.mu[places], of.sigma[places]
    low, high = (of.adapted_low - mean) / deviation, (of.adapted_high - mean) / deviation
    # In the left tail, where probabilities are exact.
    is_right = low >= 0
    low, high = np.where(is_right, -high, low), np.where(is_right, -low, high)
    quantiles = np.where(is_right, 1 - quantiles, quantiles)
    mass = _log_mass(low, high)
    found = ndtri_exp(np.logaddexp(log_ndtr(low), np.log(quantiles) + mass))
    drawn = np.where(is_right, -found, found) * deviation + mean
    drawn = np.exp(drawn) if of.is_log else drawn
    if of.step:
        drawn = np.clip(of.low + np.round((drawn - of.low) / of.step) * of.step, of.low, of.high)
    return np.asarray(drawn)


def _log_kernels(of: Any, samples: np.ndarray) -> np.ndarray:
    """The log of each kernel's density at each sample, of a stepped parameter its probability: shape (S, K)."""
    if isinstance(of, _BatchedCategoricalDistributions):
        return np.asarray(np.log(of.weights).T[samples.astype(int)])
    to_scale: Callable[[np.ndarray], np.ndarray] = np.log if of.is_log else np.asarray
    whole = _log_mass((of.adapted_low - of.mu) / of.sigma, (of.adapted_high - of.mu) / of.sigma)
    if not of.step:
        z = (to_scale(samples)[:, None] - of.mu) / of.sigma
        return np.asarray(-0.5 * z * z - (np.log(of.sigma) + whole + _LOG_SQRT_2PI))
    # Samples of few values, and kernels around them, are often equal.
    points, point = np.unique(samples, return_inverse=True)
    mean, deviation, kernel = _unique_inverse_2d(of.mu, of.sigma)
    low = (to_scale(points - of.step / 2)[:, None] - mean) / deviation
    high = (to_scale(points + of.step / 2)[:, None] - mean) / deviation
    return np.asarray(_log_mass(low, high)[point].take(kernel, axis=1) - whole)


def _log_mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The log of the standard normal distribution's probability between two points."""
    from scipy.special import ndtr

    middle, half = -0.5 * np.abs(low + high), 0.5 * (high - low)  # in the left tail, where probabilities are exact
    return np.asarray(np.log(ndtr(middle + half) - ndtr(middle - half)))
