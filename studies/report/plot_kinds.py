"""The plots by name, and the reason why a study can't have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from studies.errors import StudyhallError, nearest

if TYPE_CHECKING:
    from studies.report.data import StudyData


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot of a study."""

    title: str
    obstacle: Callable[[StudyData], str | None]
    """Returns the reason why a study can't have the plot; ``None`` if it can."""
    of_objective: bool = False
    """Whether the plot shows one objective, which `--objective` chooses."""
    least_params: int | None = None
    """The least number of parameters for `--params`; ``None`` if the plot has no such choice."""


def _no_value(data: StudyData) -> str | None:
    if data.valued:
        return None
    complete = data.status.trials["complete"]
    return "no complete trial has a finite value" if complete else "no trial is complete yet"


def _no_param(data: StudyData) -> str | None:
    return _no_value(data) or (None if data.params else "its trials have no parameters")


def _no_two_params(data: StudyData) -> str | None:
    few = {0: "its trials have no parameters", 1: "it has one parameter, and this plot compares two"}
    return _no_value(data) or few.get(len(data.params))


def _no_importances(data: StudyData) -> str | None:
    return _no_two_params(data) or (None if len(data.valued) > 1 else "one trial is complete, and two must be compared")


def _no_pairs(data: StudyData) -> str | None:
    if reason := _no_two_params(data):
        return reason
    return "fewer than two of its parameters have more than one value" if len(varied(data)) < 2 else None


def _no_steps(data: StudyData) -> str | None:
    return None if any(t.intermediate_values for t in data.trials) else "its trials have reported no steps"


def _no_curves(data: StudyData) -> str | None:
    return None if any(data.curves.values()) else _no_steps(data)


def _not_begun(data: StudyData) -> str | None:
    return None if any(data.span(trial) for trial in data.outlines) else "no trial has begun yet"


def _no_workers(data: StudyData) -> str | None:
    known = None if data.attempts else "its trials were run by Optuna, which does not say who ran them"
    return _not_begun(data) or known


def _one_objective(data: StudyData) -> str | None:
    return "it has one objective, and this plot compares several" if len(data.directions) < 2 else _no_value(data)


def _no_front(data: StudyData) -> str | None:
    count = len(data.directions)
    return f"it has {count} objectives, and Optuna draws fronts of two or three" if count > 3 else _one_objective(data)


#: In the order of a report. The names are Optuna's, apart from curves and workers.
PLOTS: Final[Mapping[str, Plot]] = {
    "history": Plot(title="Optimization history", obstacle=_no_value, of_objective=True),
    "pareto": Plot(title="Pareto front", obstacle=_no_front),
    "hypervolume": Plot(title="Hypervolume history", obstacle=_one_objective),
    "curves": Plot(title="Learning curves", obstacle=_no_curves),
    "intermediate": Plot(title="Intermediate values", obstacle=_no_steps),
    "importances": Plot(title="Parameter importances", obstacle=_no_importances, of_objective=True, least_params=1),
    "slice": Plot(title="Slices", obstacle=_no_param, of_objective=True, least_params=1),
    "parallel": Plot(title="Parallel coordinates", obstacle=_no_param, of_objective=True, least_params=1),
    "contour": Plot(title="Contours", obstacle=_no_pairs, of_objective=True, least_params=2),
    "rank": Plot(title="Ranks", obstacle=_no_pairs, of_objective=True, least_params=2),
    "edf": Plot(title="Distribution of the values", obstacle=_no_value, of_objective=True),
    "timeline": Plot(title="Timeline of the trials", obstacle=_not_begun),
    "workers": Plot(title="Timeline of the workers", obstacle=_no_workers),
}


def varied(data: StudyData) -> list[str]:
    """The parameters with more than one value."""
    return [name for name, values in data.params.items() if len(values) > 1]


def require(data: StudyData, kind: str) -> None:
    """Check that a study can have a plot.

    Raises:
        StudyhallError: it can't, with the reason and the possible plots.
    """
    reason = PLOTS[kind].obstacle(data)
    if reason:
        possible = ", ".join(name for name, other in PLOTS.items() if not other.obstacle(data)) or "none yet"
        raise StudyhallError(f"study {data.name!r} can't have the plot {kind!r}: {reason}; possible: {possible}")


def choose_objective(data: StudyData, kind: str, given: str) -> int:
    """The index of the objective ``given`` by name or number.

    Raises:
        StudyhallError: the study has no such objective, or the plot shows none or all of them.
    """
    _require_choice(kind, "objective", [name for name, other in PLOTS.items() if other.of_objective])
    names = list(data.metric_names)
    if given in names:
        return names.index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    raise StudyhallError(f"study {data.name!r} has no objective {given!r}; {nearest(given, names)}")


def choose_params(data: StudyData, kind: str, given: Sequence[str]) -> list[str]:
    """Check the parameters to plot; returns them without repetitions.

    Raises:
        StudyhallError: the study has no such parameter; the plot shows none; it compares several, and one is given;
            or it compares values, and a parameter has only one.
    """
    _require_choice(kind, "params", [name for name, other in PLOTS.items() if other.least_params])
    least = PLOTS[kind].least_params or 1
    for name in given:
        if name not in data.params:
            raise StudyhallError(
                f"no complete trial of study {data.name!r} has a parameter {name!r}; {nearest(name, data.params)}"
            )
        if least > 1 and len(data.params[name]) == 1:
            raise StudyhallError(
                f"parameter {name!r} has one value, and the plot {kind!r} compares several; possible: "
                f"{', '.join(varied(data))}"
            )
    chosen = list(dict.fromkeys(given))
    if len(chosen) < least:
        raise StudyhallError(
            f"the plot {kind!r} compares parameters; name two or more: --params {','.join([*chosen, '…'])}"
        )
    return chosen


def _require_choice(kind: str, option: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise StudyhallError(f"the plot {kind!r} takes no --{option}; these do: {', '.join(kinds)}")
