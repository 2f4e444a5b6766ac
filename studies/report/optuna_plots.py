"""Optuna's plots, by whichever of its two libraries, and the colours of those by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from studies.report.snapshot import Escape, compared, lower_is_better, snapshot, target_of, worst_values

if TYPE_CHECKING:
    from studies.report.data import StudyData

#: Each is legible on white and on black.
COLORS: Final = {
    "complete": "#4a8ccb",
    "pruned": "#e08e3c",
    "failed": "#d0453f",
    "running": "#37a377",
    "waiting": "#8d939c",
    "unfinished": "#37a377",
    "best": "#9a5bd6",
}
STATES: Final = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


def optuna_plot(
    library: ModuleType, data: StudyData, kind: str, escape: Escape, params: Sequence[str] | None = None
) -> Any:
    """Draw one of Optuna's plots with one of its two ``library`` modules, which wants ``escape`` done to text.

    To be called within :func:`quiet`, and when the study can have it. Of the parameters it shows ``params``; by
    default all, or those that matter most where each is compared with each.
    """
    study = snapshot(data, kind, escape)
    several = len(data.directions) > 1
    target = target_of(data, escape)
    if params is None and kind in ("contour", "rank"):
        params = compared(data)
    chosen = None if params is None else list(map(escape, params))
    match kind:
        case "history":
            return library.plot_optimization_history(study, **target)
        case "importances":
            return library.plot_param_importances(
                study, params=chosen, target=lower_is_better(data), target_name=target["target_name"]
            )
        case "parallel":
            # Of several objectives Optuna shows all, coloured by their ranks, unless one is chosen.
            is_of_all = several and data.objective is None
            return library.plot_parallel_coordinate(study, chosen, **({} if is_of_all else target))
        case "slice":
            return library.plot_slice(study, chosen, **target)
        case "contour":
            return library.plot_contour(study, chosen, **target)
        case "rank":
            return library.plot_rank(study, chosen, **target)
        case "edf":
            return library.plot_edf(study, **target)
        case "intermediate":
            return library.plot_intermediate_values(study)
        case "timeline":
            return library.plot_timeline(study)
        case "pareto":
            return library.plot_pareto_front(study)
        case "hypervolume":
            return library.plot_hypervolume_history(study, worst_values(data))
    raise ValueError(f"{kind!r} is none of Optuna's plots")
