"""Pruning in studies of several objectives, by one of them.

Optuna refuses to report or prune there (optuna#3450), because its pruners and samplers ask a study for one direction.
:class:`studies.search.study.Study` answers with that of the objective that is pruned on.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from studies.search.study import Study


class HyperbandPruner(optuna.pruners.HyperbandPruner):
    """Optuna's, whose brackets see what a :class:`studies.search.study.Study` sees."""

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        bracket = super()._create_bracket_study(study, bracket_id)
        if not isinstance(study, Study):
            return bracket
        # The bracket's class is local to Optuna's method, and makes its study anew from the storage.
        base: Any = type(bracket)

        def _get_trials(
            self: Any,
            deepcopy: bool = True,
            states: Container[TrialState] | None = None,
            use_cache: bool = False,
        ) -> list[FrozenTrial]:
            return study.seen(base._get_trials(self, deepcopy, states, use_cache), states)

        members: dict[str, Any] = {"_get_trials": _get_trials}
        if len(study.directions) > 1:
            members["direction"] = study.direction
        bracket.__class__ = type("BracketStudy", (base,), members)
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
