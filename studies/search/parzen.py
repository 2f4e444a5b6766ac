"""The densities of TPE, drawn from and evaluated by SciPy's special functions: Optuna's own take most of an ask."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions, _unique_inverse_2d

_SQRT_2PI: Final = math.sqrt(2 * math.pi)
#: A float below has fewer digits: the smallest multiple of the even density that is computed here.
_SMALLEST: Final = 1e-250


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
        # As a multiple of the even density, which the prior's kernel keeps from becoming too small for a float.
        product: Any = 1.0
        log_even = 0.0
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for name, of in zip(self._search_space, mixture.distributions, strict=True):
                size = _size(of)
                product = product * (size * _kernels(of, samples_dict[name]))
                log_even -= math.log(size)
            density = product @ mixture.weights
            if not ((density > _SMALLEST) & (density < math.inf)).all():  # far outside of all kernels
                return super().log_pdf(samples_dict)
            return np.asarray(np.log(density) + log_even)


def _drawn(of: Any, places: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The quantiles of S kernels: shape (S)."""
    from scipy.special import log_ndtr, ndtri_exp

    mean, deviation = of.mu[places], of.sigma[places]
    low, high = (of.adapted_low - mean) / deviation, (of.adapted_high - mean) / deviation
    # In the left tail, where probabilities are exact.
    is_right = low >= 0
    low, high = np.where(is_right, -high, low), np.where(is_right, -low, high)
    quantiles = np.where(is_right, 1 - quantiles, quantiles)
    found = ndtri_exp(np.logaddexp(log_ndtr(low), np.log(quantiles * _mass(low, high))))
    drawn = np.where(is_right, -found, found) * deviation + mean
    drawn = np.exp(drawn) if of.is_log else drawn
    if of.step:
        drawn = np.clip(of.low + np.round((drawn - of.low) / of.step) * of.step, of.low, of.high)
    return np.asarray(drawn)


def _size(of: Any) -> float:
    """How many values a parameter has, or how long its range is: the even density is one by it."""
    if isinstance(of, _BatchedCategoricalDistributions):
        return float(of.weights.shape[1])
    return float((of.high - of.low) / of.step + 1 if of.step else of.adapted_high - of.adapted_low)


def _kernels(of: Any, samples: np.ndarray) -> np.ndarray:
    """The density of each kernel at each sample, of a stepped parameter its probability: shape (S, K)."""
    if isinstance(of, _BatchedCategoricalDistributions):
        return np.asarray(of.weights.T[samples.astype(int)])
    to_scale: Callable[[np.ndarray], np.ndarray] = np.log if of.is_log else np.asarray
    whole = _mass((of.adapted_low - of.mu) / of.sigma, (of.adapted_high - of.mu) / of.sigma)
    if not of.step:
        z = (to_scale(samples)[:, None] - of.mu) / of.sigma
        # Below, floats have fewer digits, and take ten times as long.
        return np.asarray(np.exp(np.maximum(-0.5 * z * z, -700)) * (1 / (_SQRT_2PI * of.sigma * whole)))
    # Samples of few values, and kernels around them, are often equal.
    points, point = np.unique(samples, return_inverse=True)
    mean, deviation, kernel = _unique_inverse_2d(of.mu, of.sigma)
    low = (to_scale(points - of.step / 2)[:, None] - mean) / deviation
    high = (to_scale(points + of.step / 2)[:, None] - mean) / deviation
    return np.asarray(_mass(low, high)[point].take(kernel, axis=1) / whole)


def _mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The standard normal distribution's probability between two points."""
    from scipy.special import ndtr

    middle, half = -0.5 * np.abs(low + high), 0.5 * (high - low)  # in the left tail, where probabilities are exact
    return np.asarray(ndtr(middle + half) - ndtr(middle - half))
