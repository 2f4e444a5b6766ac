"""Constraints on what a trial reports: ``latency_ms = "<= 5"``.

Stored as Optuna has them (``Trial.set_constraint``): a number for each, at most 0 where the trial keeps it. Stock
Optuna's samplers and dashboard therefore see the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple, Self


class Constraint(NamedTuple):
    """A bound on a metric."""

    operator: str
    """``<=`` or ``>=``."""
    bound: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """``"<= 5"``.

        Raises:
            ValueError: another operator, or no finite number.
        """
        # Takes any operator, for a message that names the one that was given.
        found = re.fullmatch(r"\s*([<>=!~]*)\s*(.*?)\s*", text)
        operator, number = found.groups() if found else ("", text)
        if operator not in ("<=", ">="):
            # Optuna's constraints are closed: a value of exactly 0 keeps one.
            given = f"the operator {operator!r}" if operator else "no operator"
            raise ValueError(f"{text!r} has {given}; legal are <= and >=, such as '<= 5'")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            raise ValueError(f"{text!r}: {number!r} is not a finite number; write '{operator} 5'")
        return cls(operator, bound)

    def violation(self, value: float) -> float:
        """By how much ``value`` is beyond the bound, at most 0 where it is not; infinite for nan."""
        distance = value - self.bound if self.operator == "<=" else self.bound - value
        return math.inf if math.isnan(distance) else distance

    def value_of(self, violation: float) -> float:
        """The value of a :meth:`violation`."""
        return self.bound + (violation if self.operator == "<=" else -violation)

    def __str__(self) -> str:
        return f"{self.operator} {self.bound:g}"


def check(text: str) -> str:
    """Check one constraint of a study file; raises :exc:`ValueError`."""
    Constraint.parse(text)
    return text


def in_words(constraints: Mapping[str, str]) -> str:
    """All constraints of a spec: ``latency_ms <= 5 and val_accuracy >= 0.9``."""
    return " and ".join(f"{name} {Constraint.parse(text)}" for name, text in constraints.items())
