"""The parameters of a study's space, and the conditions under which they are sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from graphlib import CycleError, TopologicalSorter
from itertools import combinations as subsets
from itertools import islice, product
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from studies.errors import nearest
from studies.values import to_text

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution

Choice = None | bool | int | float | str


def categorical(choices: Sequence[Any]) -> CategoricalDistribution:
    """Optuna's distribution without its warning about lists and dicts as choices: our storage supports them."""
    from optuna.distributions import CategoricalDistribution

    # Optuna warns in the constructor alone.
    distribution = CategoricalDistribution([None] * len(choices))
    distribution.choices = tuple(choices)
    return distribution


class _Parameter(BaseModel):
    # NaN and infinity pass here, and are refused below with a message that names the bound.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    when: dict[str, list[Choice]] = Field(
        default={}, description="sample only where each parent has one of these values"
    )

    prior: Any = None

    def applies(self, params: Mapping[str, Any]) -> bool:
        """Whether the sampled parents satisfy the conditions of this parameter."""
        return all(parent in params and params[parent] in values for parent, values in self.when.items())


class _Range(_Parameter):
    low: float = Field(description="the smallest value")
    high: float = Field(description="the largest value")
    log: bool = Field(default=False, description="sample on a logarithmic scale; low is above 0, and there is no step")
    step: float | None = Field(
        default=None, description="between two values, from low on; high is a whole number of them"
    )
    prior: float | None = Field(default=None, description="a value that you expect to be good; it may be wrong")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("low", "high", "step"):
            bound = getattr(self, key)
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"{key} = {bound} is not a finite number")
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}; low must not exceed high")
        if not math.isfinite(self.high - self.low):
            raise ValueError(
                f"low = {self.low} and high = {self.high} are too far apart for a computer's numbers; narrow the range"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low} with log = true; a logarithmic range begins above 0")
        if self.step is not None:
            self._check_step(self.step)
        if self.prior is not None:
            self._check_prior(self.prior)
        return self

    def extremes(self) -> Sequence[Choice]:
        """Its smallest and its largest value."""
        return (self.low,) if self.low == self.high else (self.low, self.high)

    def _check_step(self, step: float) -> None:
        if step <= 0:
            raise ValueError(f"step = {step}; a step is above 0")
        # Optuna has no step on a logarithmic scale; the 1 of an integer is its default.
        if self.log and (step != 1 or isinstance(step, float)):
            raise ValueError(f"step = {step} with log = true; give one of the two")
        # Rounding makes 2.9999999999999996 steps of 0.1 in 0.3.
        steps = (self.high - self.low) / step
        if not math.isfinite(steps):
            raise ValueError(f"step = {step} makes too many steps from {self.low} to {self.high}; give a larger step")
        if not math.isclose(steps, round(steps), abs_tol=1e-9):
            reachable = self.low + math.floor(steps) * step
            raise ValueError(f"high = {self.high} is no whole number of steps of {step}; {reachable:g} is")

    def _check_prior(self, prior: float) -> None:
        if not self.low <= prior <= self.high:
            raise ValueError(f"prior = {prior} is outside of the range; give one from {self.low} to {self.high}")
        if self.step is not None and not self._is_on_step(prior):
            low, step = Decimal(str(self.low)), Decimal(str(self.step))
            steps = math.floor((Decimal(str(prior)) - low) / step)
            below, above = (type(self.low)(low + (steps + i) * step) for i in (0, 1))
            raise ValueError(
                f"prior = {prior} is no whole number of steps of {self.step} from low = {self.low}; "
                f"the nearest are {below} and {above}"
            )

    def _is_on_step(self, value: float) -> bool:
        if self.step is None:
            return True
        steps = (Decimal(str(value)) - Decimal(str(self.low))) / Decimal(str(self.step))
        # Of real numbers not exactly: 0.30000000000000004 is 3 steps of 0.1.
        return abs(steps - round(steps)) <= (Decimal("1e-8") if isinstance(self.step, float) else 0)


class FloatParameter(_Range):
    """A real number in ``[low, high]``, with an optional ``step`` or logarithmic scale."""

    type: Literal["float"]

    def suggest(self, trial: optuna.trial.Trial, name: str) -> Choice:
        """Suggest a value for ``trial``."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The distribution of :meth:`suggest`."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, step=self.step, log=self.log)

    def size(self) -> int | None:
        """The number of values; ``None`` for infinitely many."""
        if self.low == self.high:
            return 1
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def grid(self) -> Iterator[Choice]:
        """All values, if finitely many: rounded to decimals like Optuna's, and never above ``high``."""
        # By decimals: 0.1 + 2 · 0.1 as floats is 0.30000000000000004, another value than 0.3.
        low, step = Decimal(str(self.low)), Decimal(str(self.step or 0))
        return (min(self.high, float(low + i * step)) for i in range(self.size() or 0))

    def contains(self, value: Choice) -> bool:
        """Whether ``value`` is legal."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and self._is_on_step(value)


class IntParameter(_Range):
    """An integer in ``[low, high]``, with an optional ``step`` or logarithmic scale."""

    type: Literal["int"]
    low: int = Field(description="the smallest value")
    high: int = Field(description="the largest value")
    step: int = Field(default=1, description="between two values, from low on; high is a whole number of them")
    prior: int | None = Field(default=None, description="a value that you expect to be good; it may be wrong")

    def suggest(self, trial: optuna.trial.Trial, name: str) -> Choice:
        """Suggest a value for ``trial``."""
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The distribution of :meth:`suggest`."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, step=self.step, log=self.log)

    def size(self) -> int:
        """The number of values."""
        return (self.high - self.low) // self.step + 1

    def grid(self) -> Iterator[Choice]:
        """All values."""
        return iter(range(self.low, self.high + 1, self.step))

    def contains(self, value: Choice) -> bool:
        """Whether ``value`` is legal."""
        if isinstance(value, bool) or not isinstance(value, int):
            return False
        return self.low <= value <= self.high and self._is_on_step(value)


class CategoricalParameter(_Parameter):
    """One of ``choices``."""

    type: Literal["categorical"]
    choices: list[Choice] = Field(description="the values, each different (1, 1.0 and true are equal)")
    prior: Choice = Field(default=None, description="the choice that you expect to be good; it may be wrong")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.choices:
            raise ValueError("choices is empty; give at least one")
        for i, choice in enumerate(self.choices):
            if isinstance(choice, float) and not math.isfinite(choice):
                raise ValueError(f"choices holds {choice}, which is not a finite number")
            # Optuna compares choices by ==, which equates 1, 1.0 and true.
            if choice in self.choices[:i]:
                raise ValueError(f"choices holds {choice!r} twice; each must differ (1, 1.0 and true are equal)")
        # With its kind: 1 == True in Python, and a choice of 1 is not true.
        kind = isinstance(self.prior, bool)
        if self.prior is not None and not any(
            self.prior == choice and kind == isinstance(choice, bool) for choice in self.choices
        ):
            known = nearest(to_text(self.prior), map(to_text, self.choices))
            raise ValueError(f"prior = {self.prior!r} is no choice; {known}")
        return self

    def suggest(self, trial: optuna.trial.Trial, name: str) -> Choice:
        """Suggest a value for ``trial``."""
        return trial.suggest_categorical(name, self.choices)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The distribution of :meth:`suggest`."""
        return categorical(self.choices)

    def size(self) -> int:
        """The number of values."""
        return len(self.choices)

    def grid(self) -> Iterator[Choice]:
        """All values."""
        return iter(self.choices)

    def extremes(self) -> Sequence[Choice]:
        """Each of its choices."""
        return self.choices

    def contains(self, value: Choice) -> bool:
        """Whether ``value`` is legal."""
        return value in self.choices


Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]


def read_space(data: Mapping[str, Any]) -> dict[str, Parameter]:
    """A space as JSON has it, which was validated before."""
    return TypeAdapter(dict[str, Parameter]).validate_python(data)


def corners(space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter]) -> Iterator[dict[str, Any]]:
    """The extremes of each parameter alone, then those of every two together, as far as the conditions allow.

    With what the conditions of these need: where a parent may have several values, the first of them.
    """
    # Not every corner: their number doubles with each parameter.
    for count in (1, 2):
        for names in subsets(space, count):
            for values in product(*(space[name].extremes() for name in names)):
                params = _with_parents(dict(zip(names, values, strict=True)), space)
                if all(space[name].applies(params) for name in params):
                    yield params


def _with_parents(params: dict[str, Any], space: Mapping[str, _Parameter]) -> dict[str, Any]:
    missing = {
        parent: values[0] for name in params for parent, values in space[name].when.items() if parent not in params
    }
    return _with_parents(params | missing, space) if missing else params


def observed_space(distributions: Iterable[tuple[str, BaseDistribution]]) -> dict[str, Parameter]:
    """The space of earlier trials, for a study whose objective suggests for itself.

    A number's range may differ between trials: it is as wide as all of them, and has a step or a
    logarithmic scale only where all have that.

    Args:
        distributions: by the name of the parameter, each different one of any trial.
    """
    from optuna.distributions import CategoricalDistribution, IntDistribution

    by_name: dict[str, list[Any]] = {}
    for name, distribution in distributions:
        by_name.setdefault(name, []).append(distribution)
    space: dict[str, Parameter] = {}
    for name, seen in by_name.items():
        if isinstance(seen[0], CategoricalDistribution):
            # Not validated: an objective may have types of choices that a study file can't.
            space[name] = CategoricalParameter.model_construct(type="categorical", choices=list(seen[0].choices))
            continue
        low, high = min(each.low for each in seen), max(each.high for each in seen)
        steps = {each.step for each in seen}
        is_int = isinstance(seen[0], IntDistribution)
        # With different steps any value may have occurred: no step for real numbers, 1 for integers.
        step = steps.pop() if len(steps) == 1 else (1 if is_int else None)
        kind = IntParameter if is_int else FloatParameter
        log = all(each.log for each in seen)
        space[name] = kind.model_construct(type="int" if is_int else "float", low=low, high=high, step=step, log=log)
    return space


def check_conditions(space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter]) -> None:
    """Check the conditions of a space.

    Raises:
        ValueError: a ``when`` names an unknown parent, an impossible value, or a cycle.
    """
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


def combinations(space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter]) -> Iterator[dict[str, Any]]:
    """Every combination of values that the conditions of ``space`` allow; all its parameters are finite."""
    # Parents first: a condition is known before the parameter is reached.
    names = suggestion_order(space)

    def extended(params: dict[str, Any], position: int) -> Iterator[dict[str, Any]]:
        if position == len(names):
            yield params
        elif space[names[position]].applies(params):
            for value in space[names[position]].grid():
                yield from extended({**params, names[position]: value}, position + 1)
        else:
            yield from extended(params, position + 1)

    return extended({}, 0)


def count_combinations(space: Mapping[str, FloatParameter | IntParameter | CategoricalParameter], most: int) -> int:
    """How many combinations the conditions of ``space`` allow.

    Raises:
        ValueError: a parameter has infinitely many values, or there are more than ``most`` combinations; the message
            goes on from the sampler's name.
    """
    for name, parameter in space.items():
        if parameter.size() is None:
            raise ValueError(f"needs a step for the real number space.{name}; add step = …")
    # Only parents are enumerated; the others multiply the count.
    tied = {name for name, parameter in space.items() if parameter.when}
    tied |= {parent for name in tied for parent in space[name].when}
    free = math.prod(parameter.size() or 0 for name, parameter in space.items() if name not in tied)
    part = {name: parameter for name, parameter in space.items() if name in tied}
    # One more than is legal is enough to know.
    count = free * len(list(islice(combinations(part), most + 1)))
    if count > most:
        bound = math.prod(parameter.size() or 0 for parameter in space.values())
        shown = f"up to {bound:,}" if tied else f"{bound:,}"
        raise ValueError(
            f"has {shown} combinations, and at most {most:,} are legal; "
            "narrow a range, give it a larger step, or choose another sampler"
        )
    return count
