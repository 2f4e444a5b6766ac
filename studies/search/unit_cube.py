"""A space of parameters as points of the unit cube, and as features of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

#: The feature of a parameter that a trial does not have: outside of every range, but not far.
_ABSENT: Final = -0.5
#: Two different choices without an order are one range apart.
_ONE_HOT: Final = math.sqrt(0.5)


class UnitCube:
    """The space of ``distributions``; D parameters, of which one that a point lacks is nan.

    A number's place is in its range, of a logarithmic one by its logarithm. Choices that are numbers in ascending order
    have places like numbers; others have a feature each.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions = dict(distributions)
        self._axes = [_axis(distribution) for distribution in distributions.values()]
        #: Which parameters are choices: shape (D).
        self.is_choice = np.array([isinstance(axis, _Choice) for axis in self._axes], dtype=bool)

    def points(self, params: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The places of N trials' parameters: shape (N, D)."""
        names = list(self.distributions)
        found = [
            [axis.place(of[name]) if name in of else math.nan for name, axis in zip(names, self._axes, strict=True)]
            for of in params
        ]
        return np.array(found, dtype=float).reshape(len(params), len(names))

    def params(self, point: np.ndarray) -> dict[str, Any]:
        """The parameters of one point: shape (D)."""
        return {
            name: axis.value(float(place))
            for name, axis, place in zip(self.distributions, self._axes, point, strict=True)
            if not math.isnan(place)
        }

    def snapped(self, points: np.ndarray) -> np.ndarray:
        """The nearest points that have parameters: shape (N, D)."""
        columns = [axis.snapped(points[:, i]) for i, axis in enumerate(self._axes)]
        return np.stack(columns, axis=1) if columns else points

    def features(self, points: np.ndarray) -> np.ndarray:
        """What a model is given of points: shape (N, D or more)."""
        columns = [axis.features(points[:, i]) for i, axis in enumerate(self._axes)]
        return np.hstack(columns) if columns else np.zeros((len(points), 1))

    @property
    def centre(self) -> np.ndarray:
        """The middle of each range: shape (D)."""
        (middle,) = self.snapped(np.full((1, len(self._axes)), 0.5))
        return np.asarray(middle)


def distinct(points: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Those of N points, in their order, that are equal to none before them and to none of the ``known`` ones."""
    seen = set() if known is None else set(_keys(known))
    kept = []
    for place, key in enumerate(_keys(points)):
        if key not in seen:
            seen.add(key)
            kept.append(place)
    return points[kept]


def _keys(points: np.ndarray) -> list[bytes]:
    """Equal for points that are equal but for rounding."""
    rounded = np.nan_to_num(points.round(9), nan=-1.0) + 0.0  # -0.0 has other bytes
    return [point.tobytes() for point in rounded]


class _Number:
    def __init__(self, distribution: FloatDistribution | IntDistribution) -> None:
        self._distribution = distribution
        self._low, self._high = self._scaled(distribution.low), self._scaled(distribution.high)
        self._span = max(self._high - self._low, 1e-300)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._distribution.log else float(value)

    def place(self, value: Any) -> float:
        return (self._scaled(value) - self._low) / self._span

    def value(self, place: float) -> Any:
        scaled = self._low + min(1.0, max(0.0, place)) * self._span
        value = math.exp(scaled) if self._distribution.log else scaled
        low, step = self._distribution.low, self._distribution.step
        if step is not None:
            value = low + round((value - low) / step) * step
        value = min(self._distribution.high, max(low, value))
        return int(value) if isinstance(self._distribution, IntDistribution) else float(value)

    def snapped(self, places: np.ndarray) -> np.ndarray:
        step = self._distribution.step
        if step is None:
            return np.asarray(np.clip(places, 0, 1))
        scaled = self._low + np.clip(places, 0, 1) * self._span
        values = np.exp(scaled) if self._distribution.log else scaled
        low = self._distribution.low
        values = np.clip(low + np.round((values - low) / step) * step, low, self._distribution.high)
        return np.asarray(((np.log(values) if self._distribution.log else values) - self._low) / self._span)

    def features(self, places: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(places), _ABSENT, places)[:, None]


class _Choice:
    def __init__(self, distribution: CategoricalDistribution) -> None:
        self._choices = distribution.choices
        numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in self._choices)
        self._is_ordered = numbers and list(self._choices) == sorted(self._choices)  # type: ignore[type-var]

    def place(self, value: Any) -> float:
        return (self._choices.index(value) + 0.5) / len(self._choices) if value in self._choices else math.nan

    def _index(self, places: np.ndarray) -> np.ndarray:
        index: np.ndarray = np.clip(np.floor(places * len(self._choices)), 0, len(self._choices) - 1)
        return index

    def value(self, place: float) -> Any:
        return self._choices[int(self._index(np.array(place)))]

    def snapped(self, places: np.ndarray) -> np.ndarray:
        return (self._index(places) + 0.5) / len(self._choices)

    def features(self, places: np.ndarray) -> np.ndarray:
        index = self._index(places)
        if self._is_ordered:
            return np.where(np.isnan(places), _ABSENT, index / max(1, len(self._choices) - 1))[:, None]
        return np.asarray(_ONE_HOT * (index[:, None] == np.arange(len(self._choices))))


def _axis(distribution: BaseDistribution) -> _Number | _Choice:
    if isinstance(distribution, CategoricalDistribution):
        return _Choice(distribution)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return _Number(distribution)
