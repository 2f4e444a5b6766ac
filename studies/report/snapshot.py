"""The study that Optuna's plots draw: a copy in memory, with only the trials and values that a plot may show."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.report.plot_kinds import PLOTS, varied
from studies.report.subset import is_placed, of_kind
from studies.spec.space import categorical
from studies.values import strict, to_text

if TYPE_CHECKING:
    from studies.report.data import StudyData

#: The most parameters that are compared with each other.
MOST_COMPARED: Final = 4
#: The most different values of a parameter in a contour; others are rounded. Optuna draws a column for each value: a
#: thousand trials would make a million cells.
CONTOUR_CELLS: Final = 24
#: Plots that also show trials without a finite value.
_OF_ALL: Final = ("timeline", "intermediate")

Escape = Callable[[str], str]
Rounding = Callable[[float], float]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's warnings about experimental functions and skipped trials, which are for programmers."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def snapshot(data: StudyData, kind: str, escape: Escape) -> optuna.Study:
    """The study to draw the plot ``kind`` of.

    Its trials have no attributes, which Optuna would print in full, tracebacks included. Where values are drawn,
    COMPLETE trials without a finite value count as failed. To be called within :func:`quiet`.

    Args:
        data: the study.
        kind: one of ``PLOTS``.
        escape: applied to whatever a person has named, since the drawing libraries read markup in text.
    """
    rounding = _rounding(data) if kind == "contour" else {}
    shown = of_kind(data, kind)
    numbers = {trial.number for trial in shown if _is_shown(trial, kind)}
    # Optuna's history for matplotlib indexes values by trial number: no number may be missing.
    trials = data.outlines if kind == "history" else shown
    # If one trial's choices are shown as text, those of all trials are: a plot compares them.
    odd = {name for trial in shown for name, of in trial.distributions.items() if _is_odd(of)}
    storage = _Copies([_copy(trial, escape, rounding, odd, is_shown=trial.number in numbers) for trial in trials])
    name = escape(data.name) or " "
    study_id = storage.create_new_study(list(data.directions), name)
    storage.set_study_system_attr(study_id, "study:metric_names", list(map(escape, data.metric_names)))
    return optuna.load_study(study_name=name, storage=storage)


class _Copies(optuna.storages.InMemoryStorage):
    """A storage of one study, whose trials keep their numbers and parameters.

    Optuna's storage would renumber them, and ``Study.add_trial`` refuses enqueued values outside of the distribution.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._copies = trials

    def get_all_trials(  # no deep copies: plots don't change trials
        self,
        study_id: int,  # noqa: ARG002
        deepcopy: bool = True,  # noqa: ARG002
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        return [trial for trial in self._copies if states is None or trial.state in states]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return optuna.storages.BaseStorage.get_best_trial(self, study_id)


def _is_shown(trial: FrozenTrial, kind: str) -> bool:
    return kind in _OF_ALL or trial.state != TrialState.COMPLETE or is_placed(trial)


def importances(data: StudyData) -> Mapping[str, float]:
    """The importance of each parameter, the highest first; of several objectives, for ``data.target``.

    By Optuna's default, PED-ANOVA. Empty where the study has too little to compare.
    """
    if PLOTS["importances"].obstacle(data):
        return {}
    with quiet():
        study = snapshot(data, "importances", str)
        return optuna.importance.get_param_importances(study, target=lower_is_better(data))


def compared(data: StudyData) -> list[str]:
    """The parameters to compare: the most important ones with more than one value."""
    order = [*importances(data), *data.params]
    return sorted(varied(data), key=order.index)[:MOST_COMPARED]


def target_of(data: StudyData, escape: Escape) -> dict[str, Any]:
    """Keyword arguments that select the objective of a plot."""
    name = {"target_name": escape(data.metric_names[data.target])}
    return name if len(data.directions) == 1 else {"target": _value(data.target), **name}


def lower_is_better(data: StudyData) -> Callable[[FrozenTrial], float] | None:
    """The target function of one of several objectives, for PED-ANOVA; ``None`` for a single one."""
    if len(data.directions) == 1:
        return None
    sign = 1 if data.directions[data.target] == StudyDirection.MINIMIZE else -1
    return _value(data.target, sign)


def worst_values(data: StudyData) -> list[float]:
    """The worst value of each objective: the reference point of a hypervolume."""
    columns = zip(*(trial.values for trial in data.valued), strict=True)
    return [
        max(column) if direction == StudyDirection.MINIMIZE else min(column)
        for column, direction in zip(columns, data.directions, strict=True)
    ]


def _value(objective: int, sign: int = 1) -> Callable[[FrozenTrial], float]:
    return lambda trial: sign * float(trial.values[objective])


def _copy(
    trial: FrozenTrial, escape: Escape, rounding: Mapping[str, Rounding], odd: Container[str], *, is_shown: bool
) -> FrozenTrial:
    def shown(name: str, value: Any) -> Any:
        if name in odd:
            return escape(to_text(value))
        if isinstance(value, str):
            return escape(value)
        return rounding[name](value) if name in rounding else value

    return FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=trial.state if is_shown else TrialState.FAIL,
        value=None,
        values=trial.values if is_shown else None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params={escape(name): shown(name, value) for name, value in trial.params.items()},
        distributions={escape(name): _shown(of, partial(shown, name)) for name, of in trial.distributions.items()},
        user_attrs={},
        system_attrs={key: value for key, value in trial.system_attrs.items() if key.startswith("constraints")},
        intermediate_values=trial.intermediate_values,
    )


def _shown(distribution: BaseDistribution, shown: Callable[[Any], Any]) -> BaseDistribution:
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    return categorical(list(map(shown, distribution.choices)))


def _is_odd(distribution: BaseDistribution) -> bool:
    """Whether the choices are shown as text: lists, dicts and infinities have no place on an axis."""
    return isinstance(distribution, CategoricalDistribution) and any(
        isinstance(choice, list | tuple | dict) or strict(choice) != choice for choice in distribution.choices
    )


def _rounding(data: StudyData) -> dict[str, Rounding]:
    """The rounding of each parameter with too many values for a contour."""
    return {
        name: _grid(min(values), max(values), log=name in data.log_params)
        for name, values in data.numbers.items()
        if len(values) > CONTOUR_CELLS
    }


def _grid(low: float, high: float, *, log: bool) -> Rounding:
    """Rounds to ``CONTOUR_CELLS`` values from ``low`` to ``high``."""
    to, back = (math.log, math.exp) if log else (float, float)
    start, width = to(low), (to(high) - to(low)) / (CONTOUR_CELLS - 1)

    def rounded(value: float) -> float:
        return min(high, max(low, back(start + round((to(value) - start) / width) * width)))

    return rounded
