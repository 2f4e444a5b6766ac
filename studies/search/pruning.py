"""Pruning in studies of several objectives, by one of them.

Optuna refuses to report or prune there (optuna#3450), because its pruners and samplers ask a study for one direction.
These classes answer with that of the objective that is pruned on.
"""

from __future__ import annotations

import optuna
from optuna.study import StudyDirection


class Study(optuna.Study):
    """Optuna's study, which has a direction to prune by, however many objectives it has."""

    pruned_direction: StudyDirection | None = None
    """Of the objective that is pruned on; ``None`` without one."""

    @property
    def direction(self) -> StudyDirection:
        return self.pruned_direction or super().direction


class HyperbandPruner(optuna.pruners.HyperbandPruner):
    """Optuna's, whose brackets keep the direction of a :class:`Study`."""

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        bracket = super()._create_bracket_study(study, bracket_id)
        if len(study.directions) > 1:
            # The bracket's class is local to Optuna's method, and makes its study anew from the storage.
            bracket.__class__ = type("BracketStudy", (type(bracket),), {"direction": study.direction})
        return bracket


def require_several_objectives(pruner: optuna.pruners.BasePruner) -> None:
    """Raise :exc:`ValueError` where ``pruner`` cannot prune a study of several objectives by one of them."""
    if isinstance(pruner, optuna.pruners.PatientPruner) and pruner._wrapped_pruner:
        require_several_objectives(pruner._wrapped_pruner)
    if isinstance(pruner, optuna.pruners.WilcoxonPruner):
        raise ValueError(
            "pruner.name: 'wilcoxon' compares with the best trial, and a study of several objectives has none; "
            "use median, percentile or hyperband"
        )
