"""Pruning a study of several objectives by one of them: as Optuna prunes a study of that one alone."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from studies.search.pruning import HyperbandPruner
from studies.search.study import Study

PRUNERS = {
    "hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3),
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=2),
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=2),
}


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_decides_as_in_a_study_of_the_one_objective(name: str) -> None:
    """A random sampler draws the same trials in both. Afterwards TPE draws, which ranks the pruned ones."""

    def fates(directions: list[str]) -> list[tuple[TrialState, int]]:
        storage = optuna.storages.InMemoryStorage()
        optuna.create_study(study_name="s", storage=storage, directions=directions)
        study = Study("s", storage, sampler=optuna.samplers.RandomSampler(0), pruner=PRUNERS[name]())
        if len(directions) > 1:
            study.pruned_direction = optuna.study.StudyDirection.MAXIMIZE
        for _ in range(30):
            run(study)
        found = [(trial.state, len(trial.intermediate_values)) for trial in study.trials]
        study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
        for _ in range(3):
            run(study)
        return found

    found = fates(["maximize", "minimize"])
    assert found == fates(["maximize"])
    assert {state for state, _ in found} == {TrialState.COMPLETE, TrialState.PRUNED}


def run(study: Study) -> None:
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    value: Any = x if len(study.directions) == 1 else [x, x]
    for step in range(1, 10):
        study._storage.set_trial_intermediate_value(trial._trial_id, step, x * (1 - 1 / (step + 1)))
        if study.pruner.prune(study, study._storage.get_trial(trial._trial_id)):
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, value)
