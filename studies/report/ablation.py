"""Ablation: which parameters make the difference between a configuration and the best trial, one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from optuna.study import StudyDirection

from studies.spec.space import CategoricalParameter, observed_space, suggestion_order
from studies.trial import is_feasible
from studies.values import key_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial

    from studies.report.data import StudyData

#: What stands in the place of a parameter that a configuration does not have; all values are from 0 to 1.
_ABSENT: Final = -1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A configuration on the way to the best trial."""

    changed: Mapping[str, Any]
    """The parameters that differ from the step before, with their new values; of the first step: all."""
    dropped: Sequence[str] = ()
    """The parameters that no longer apply."""
    predicted: float
    """The objective's value by the model."""


def ablation(data: StudyData, start: Mapping[str, Any] | None = None) -> list[Step]:
    """The path from a configuration to the best trial (Fawcett and Hoos 2016, https://doi.org/10.1007/s10732-014-9275-9).

    At each step the parameter takes its best value that improves the prediction most, together with those whose
    conditions it fulfils. The model is a random forest (Breiman 2001) of the complete trials of the study, in which a
    parameter that a trial does not have is a value of its own.

    Args:
        data: a study with at least two complete trials; of several objectives, for ``data.target``.
        start: some or all parameters of the configuration; the others are in the middle of their range, on their scale,
            or the first choice.

    Returns:
        The configuration first; the best trial's last.
    """
    best = best_trial(data)
    space = space_of(data)
    model = _Model(data, space)
    middle = {name: _middle(parameter) for name, parameter in space.items()}
    now = _completed(start or {}, middle, space)
    # Predictions alone, the best trial's as well: its measured value beside them would look like a step of its own.
    steps = [Step(changed=now, predicted=model.predict([now])[0])]
    sign = sign_of(data)
    # A parameter that the best trial does not have goes with the one that it depends on.
    while names := [name for name in _different(now, best.params) if name in best.params and space[name].applies(now)]:
        ways = [_completed({**now, name: best.params[name]}, best.params, space) for name in names]
        values = model.predict(ways)
        choice = min(range(len(ways)), key=lambda place: sign * values[place])
        way = ways[choice]
        different = _different(now, way)
        changed = {name: way[name] for name in different if name in way}
        dropped = [name for name in different if name not in way]
        steps.append(Step(changed=changed, dropped=dropped, predicted=values[choice]))
        now = way
    return steps


def space_of(data: StudyData) -> Mapping[str, Any]:
    """The parameters of the study file; without these, those of the best trial as the trials had them."""
    if data.space:
        return data.space
    seen = observed_space(item for trial in data.valued for item in trial.distributions.items())
    # Only a study file says under which conditions a trial has a parameter.
    return {name: parameter for name, parameter in seen.items() if name in best_trial(data).params}


def best_trial(data: StudyData) -> FrozenTrial:
    """The best complete trial of ``data.target`` that keeps its constraints, or of all if none does."""
    sign = sign_of(data)
    candidates = list(filter(is_feasible, data.valued)) or data.valued
    return min(candidates, key=lambda trial: (sign * trial.values[data.target], trial.number))


def sign_of(data: StudyData) -> int:
    """1 where less of ``data.target`` is better, else -1."""
    return 1 if data.directions[data.target] == StudyDirection.MINIMIZE else -1


class _Model:
    """A random forest of the complete trials."""

    def __init__(self, data: StudyData, space: Mapping[str, Any]) -> None:
        from sklearn.ensemble import RandomForestRegressor

        self._space = space
        # A fixed seed: the same trials must give the same table, in the terminal and in the report.
        self._forest = RandomForestRegressor(n_estimators=100, random_state=0)
        self._forest.fit(
            self._encoded([trial.params for trial in data.valued]), [t.values[data.target] for t in data.valued]
        )

    def predict(self, configurations: Sequence[Mapping[str, Any]]) -> list[float]:
        """The value of each configuration."""
        found: list[float] = self._forest.predict(self._encoded(configurations)).tolist()
        return found

    def _encoded(self, configurations: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
        """Configurations × columns: one for each number, from 0 to 1 on its scale, and one for each choice."""
        columns = []
        for name, parameter in self._space.items():
            values = [params.get(name) for params in configurations]
            has = np.array([name in params for params in configurations])
            if isinstance(parameter, CategoricalParameter):
                # A column for each choice: numbered choices would have an order, by which a tree would split.
                keys = list(map(key_of, values))
                columns += [has & [key == key_of(choice) for key in keys] for choice in parameter.choices]
            else:
                # Below all values, so that one split tells the trials that lack the parameter from the others.
                columns.append(np.where(has, [_scaled(parameter, value) for value in values], _ABSENT))
        return np.stack(columns, axis=1)


def _completed(params: Mapping[str, Any], rest: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` as far as they apply, and of those that are missing what ``rest`` has."""
    found: dict[str, Any] = {}
    for name in suggestion_order(space):
        if space[name].applies(found) and (name in params or name in rest):
            found[name] = params[name] if name in params else rest[name]
    return found


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The parameters that two configurations do not share."""
    return [
        name
        for name in {**other, **one}
        if (name in one) != (name in other) or key_of(one[name]) != key_of(other[name])
    ]


def _middle(parameter: Any) -> Any:
    """The middle of a range, on its scale; the first choice."""
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices[0]
    low, high = parameter.low, parameter.high
    middle = math.sqrt(low * high) if parameter.log else low + (high - low) / 2
    # On the grid of its steps: half-way between two of them no value is legal.
    return middle if parameter.step is None else low + parameter.step * round((middle - low) / parameter.step)


def _scaled(parameter: Any, value: float | None) -> float:
    """A number on its scale, from 0 to 1."""
    if value is None or parameter.low == parameter.high:
        return 0.0
    low, high = parameter.low, parameter.high
    if parameter.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))
