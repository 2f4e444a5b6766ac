"""Learning curves as data: a panel for each metric, with a line for each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from optuna.study import StudyDirection
from optuna.trial import TrialState

from studies.report.subset import of_kind

if TYPE_CHECKING:
    from studies.report.data import StudyData

#: The name of the value passed to ``trial.report``, beside the named metrics.
REPORTED: Final = "reported value"
#: The most panels, and the most points in each: more would make the page slow.
MOST_PANELS: Final = 8
MOST_POINTS: Final = 60_000
_LEAST_POINTS_OF_A_LINE: Final = 20
_FIRST: Final = ("accuracy", "loss")

_GROUPS: Final = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A metric of a trial."""

    number: int
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A metric of all trials."""

    name: str
    lines: Mapping[str, Sequence[Line]]
    """Under complete, pruned, failed and unfinished; the complete ones from the worst to the best."""
    best: Line | None
    """The best trial's."""
    best_train: Line | None
    """In a panel of a validation metric: the same trial's on the training data."""


@dataclass(frozen=True, kw_only=True)
class Panels:
    """The panels to draw, row by row."""

    rows: Sequence[Sequence[Panel]]
    """One or two in each: a metric of training beside that of validation."""
    left_out: Sequence[str]
    """Metrics for which there was no room."""


def panels(data: StudyData) -> Panels:
    """The metrics that the trials reported, and first of all the value itself, unless it is one of them."""
    found = _lines(data)
    rows = in_rows(list(found))
    # The last rows hold the metrics without a pair of training and validation.
    while sum(map(len, rows)) > MOST_PANELS:
        rows.pop()
    shown = {name for row in rows for name in row}
    best = data.best.number if data.best else None
    order = _from_worst_to_best(data)
    return Panels(
        rows=[[_panel(name, found, data, best, order) for name in row] for row in rows],
        left_out=sorted(set(found) - shown),
    )


def points_of_line(lines: int) -> int:
    """The most points to draw of each line in a panel of ``lines`` lines."""
    return max(_LEAST_POINTS_OF_A_LINE, MOST_POINTS // max(1, lines))


def is_pair(row: Sequence[Panel]) -> bool:
    """Whether a row is a metric of training beside the same one of validation."""
    return len(row) == 2 and row[1].name == f"val_{row[0].name.removeprefix('train_')}"


def _lines(data: StudyData) -> dict[str, dict[int, Line]]:
    """``{metric: {trial: line}}``."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    reported: dict[int, dict[int, float]] = {}
    for trial in of_kind(data, "curves"):
        points = data.curves.get(trial.number, ())
        for point in points:
            found.setdefault(point.name, {}).setdefault(trial.number, {})[point.step] = point.value
        if trial.intermediate_values:
            reported[trial.number] = trial.intermediate_values
    # What each trial reports once, such as a cost, is no curve.
    curved = {name: by_trial for name, by_trial in found.items() if max(map(len, by_trial.values())) > 1}
    found = curved or found
    if reported and not any(_is_same(by_trial, reported) for by_trial in found.values()):
        found[REPORTED] = reported
    return {
        name: {number: _thinned(number, values, points_of_line(len(by_trial))) for number, values in by_trial.items()}
        for name, by_trial in found.items()
    }


def _is_same(metric: Mapping[int, Mapping[int, float]], reported: Mapping[int, Mapping[int, float]]) -> bool:
    """Whether a metric equals the reported value, which would then be drawn twice.

    A long line has only some of its steps; that of a running trial was read later and may have more.
    """
    return all(
        number in metric
        and max(metric[number]) >= max(values)
        and all(
            value == values[step] or (math.isnan(value) and math.isnan(values[step]))
            for step, value in metric[number].items()
            if step in values
        )
        for number, values in reported.items()
    )


def _thinned(number: int, values: Mapping[int, float], most: int) -> Line:
    """A line of at most ``most`` points, including the last one. Values that are not finite become gaps."""
    steps = sorted(values)
    if len(steps) > most:
        # The last step is the one that people compare: the steps are counted from the end.
        steps = [steps[(i + 1) * len(steps) // most - 1] for i in range(most)]
    finite = [values[step] if math.isfinite(values[step]) else math.nan for step in steps]
    return Line(number=number, steps=steps, values=finite)


def in_rows(names: Sequence[str]) -> list[list[str]]:
    """The reported value, then training beside validation, accuracy and loss first, then the others, two in a row."""
    pairs = [name.removeprefix("train_") for name in names if name.startswith("train_")]
    pairs = [name for name in pairs if f"val_{name}" in names]
    pairs.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    rows = [[f"train_{name}", f"val_{name}"] for name in pairs]
    single = sorted(set(names) - {name for row in rows for name in row}, key=lambda name: (name != REPORTED, name))
    singles = [single[i : i + 2] for i in range(0, len(single), 2)]
    first = 1 if REPORTED in names else 0
    return singles[:first] + rows + singles[first:]


def _from_worst_to_best(data: StudyData) -> dict[int, float]:
    sign = 1 if data.directions[0] == StudyDirection.MAXIMIZE else -1
    return {trial.number: sign * trial.values[0] for trial in data.valued}


def _panel(
    name: str, found: Mapping[str, Mapping[int, Line]], data: StudyData, best: int | None, order: Mapping[int, float]
) -> Panel:
    groups: dict[str, list[Line]] = {}
    for trial in data.trials:
        if trial.number in found[name] and trial.number != best:
            groups.setdefault(_GROUPS[trial.state], []).append(found[name][trial.number])
    # The better lines are drawn later, over the worse ones.
    groups.get("complete", []).sort(key=lambda line: order.get(line.number, -math.inf))
    train = found.get(f"train_{name.removeprefix('val_')}", {}) if name.startswith("val_") else {}
    return Panel(
        name=name,
        lines=groups,
        best=None if best is None else found[name].get(best),
        best_train=None if best is None else train.get(best),
    )
