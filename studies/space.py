"""The parameters of a study's space, and the conditions under which they are sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from studies.errors import nearest

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import CategoricalDistribution

Choice = None | bool | int | float | str


def categorical(choices: Sequence[Any]) -> CategoricalDistribution:
    """Optuna's distribution without its warning about lists and dicts as choices, which are stored as they are."""
    from optuna.distributions import CategoricalDistribution

    distribution = CategoricalDistribution([None] * len(choices))
    distribution.choices = tuple(choices)
    return distribution


class _Parameter(BaseModel):
    # NaN and infinity are let through to the checks below, whose messages name the bound.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    when: dict[str, list[Choice]] = Field(
        default={}, description="sample only where each parent has one of these values"
    )

    def applies(self, params: Mapping[str, Any]) -> bool:
        """Whether the parents sampled so far call for this parameter."""
        return all(parent in params and params[parent] in values for parent, values in self.when.items())


class _Range(_Parameter):
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("low", "high", "step"):
            bound = getattr(self, key)
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"{key} = {bound} is not a finite number")
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}; low must not exceed high")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low} with log = true; a logarithmic range begins above 0")
        if self.step is not None:
            self._check_step(self.step)
        return self

    def _check_step(self, step: float) -> None:
        if step <= 0:
            raise ValueError(f"step = {step}; a step is above 0")
        if self.log and (step != 1 or isinstance(step, float)):
            raise ValueError(f"step = {step} with log = true; give one of the two")
        steps = (self.high - self.low) / step
        if not math.isclose(steps, round(steps), abs_tol=1e-9):
            reachable = self.low + math.floor(steps) * step
            raise ValueError(f"high = {self.high} is no whole number of steps of {step}; {reachable:g} is")


class FloatParameter(_Range):
    """A real number in ``[low, high]``, by ``step`` or on a logarithmic scale if asked."""

    type: Literal["float"]

    def suggest(self, trial: optuna.trial.Trial, name: str) -> None:
        """Sample it into ``trial``."""
        trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def grid(self) -> list[Choice] | None:
        """Every value, or ``None`` where there are infinitely many."""
        if self.step is None:
            return [self.low] if self.low == self.high else None
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def contains(self, value: Choice) -> bool:
        """Whether it can take ``value``."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


class IntParameter(_Range):
    """An integer in ``[low, high]``, by ``step`` or on a logarithmic scale if asked."""

    type: Literal["int"]
    low: int
    high: int
    step: int = 1

    def suggest(self, trial: optuna.trial.Trial, name: str) -> None:
        """Sample it into ``trial``."""
        trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def grid(self) -> list[Choice] | None:
        """Every value."""
        return list(range(self.low, self.high + 1, self.step))

    def contains(self, value: Choice) -> bool:
        """Whether it can take ``value``."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


class CategoricalParameter(_Parameter):
    """One of ``choices``."""

    type: Literal["categorical"]
    choices: list[Choice]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.choices:
            raise ValueError("choices is empty; give at least one")
        for i, choice in enumerate(self.choices):
            if isinstance(choice, float) and not math.isfinite(choice):
                raise ValueError(f"choices holds {choice}, which is not a finite number")
            # Optuna finds a choice by ==, for which 1, 1.0 and true are one.
            if choice in self.choices[:i]:
                raise ValueError(f"choices holds {choice!r} twice; each must differ (1, 1.0 and true are equal)")
        return self

    def suggest(self, trial: optuna.trial.Trial, name: str) -> None:
        """Sample it into ``trial``."""
        trial.suggest_categorical(name, self.choices)

    def grid(self) -> list[Choice] | None:
        """Every value."""
        return self.choices

    def contains(self, value: Choice) -> bool:
        """Whether it can take ``value``."""
        return value in self.choices


Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]


def check_conditions(space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter]) -> None:
    """Raise :exc:`ValueError` where a ``when`` names an unknown parent, an impossible value, or a cycle."""
    for name, parameter in space.items():
        if not name.strip() or not name.isprintable():
            raise ValueError(f"space holds the name {name!r}; a parameter's name is printable and not empty")
        for parent, values in parameter.when.items():
            if parent not in space:
                raise ValueError(f"space.{name}.when names the unknown parameter {parent!r}; {nearest(parent, space)}")
            if not values:
                raise ValueError(f"space.{name}.when.{parent} is empty; list the values of {parent!r} to sample for")
            for value in values:
                if not space[parent].contains(value):
                    raise ValueError(f"space.{name}.when.{parent} lists {value!r}, which {parent!r} never takes")
    try:
        suggestion_order(space)
    except CycleError as error:
        raise ValueError(f"space: the conditions go round: {' → '.join(error.args[1])}") from None


def suggestion_order(space: Mapping[str, _Parameter]) -> list[str]:
    """The names of ``space`` in the file's order, but each after the parents in its ``when``."""
    return list(TopologicalSorter({name: parameter.when for name, parameter in space.items()}).static_order())
