"""Mean and standard deviation of features, in double precision where they need it.

Axes: N examples, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: A column whose values differ by no more than this many roundings of the largest is constant: the mean of
#: 0.1 is not 0.1, and a column that was computed is seldom constant to its last bit.
ROUNDINGS = 8
#: So is one whose values differ by less: their squares, and with them the standard deviation, would be 0.
SMALLEST_RANGE = float(np.sqrt(np.finfo(np.float64).tiny))


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """(x − mean) / std, computed in the type of ``mean_F`` and rounded to float32 at the end."""

    mean_F: np.ndarray
    """Shape F, or 1 for images: one for all. float64, or float32 where the data are bytes."""
    std_F: np.ndarray
    """Likewise; infinite for a constant feature, which thereby counts as 0 whatever comes later."""

    def apply(self, x_NF: np.ndarray) -> np.ndarray:
        """Standardised, float32."""
        shifted: np.ndarray = x_NF.astype(self.mean_F.dtype) - self.mean_F
        shifted /= self.std_F
        # A later row may be as many standard deviations away as float32 cannot hold: it is then infinitely far.
        with np.errstate(over="ignore"):
            return shifted.astype(np.float32, copy=False)


def fit(
    training_rows: Callable[[], Iterable[np.ndarray]], *, is_image: bool, precision: type[np.floating[Any]]
) -> Scaling:
    """Mean and standard deviation of the training rows.

    Args:
        training_rows: gives them in consecutive blocks of rows × F, float64, which may be changed; called twice.
        is_image: whether all features share one mean and standard deviation.
        precision: the type to apply them in.
    """
    axis = None if is_image else 0
    count, total, low, high = 0, np.zeros(1), np.array([np.inf]), np.array([-np.inf])
    for rows in training_rows():
        count += rows.size if is_image else len(rows)
        total = total + rows.sum(axis=axis)
        low, high = np.minimum(low, rows.min(axis=axis)), np.maximum(high, rows.max(axis=axis))
    mean_F = total / count
    # A second time: sum(x²) − mean² would lose all digits of a column with a large offset.
    squares = np.zeros(1)
    for rows in training_rows():
        rows -= mean_F
        squares = squares + np.square(rows, out=rows).sum(axis=axis)
    std_F = np.sqrt(squares / count)
    largest = np.maximum(np.abs(low), np.abs(high))
    std_F[high - low <= np.maximum(ROUNDINGS * np.finfo(np.float64).eps * largest, SMALLEST_RANGE)] = np.inf
    return Scaling(mean_F=mean_F.astype(precision), std_F=std_F.astype(precision))
