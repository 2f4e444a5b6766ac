"""The study that benchmarks fill by SQL is one as Optuna writes it."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from studies.storage.url import StorageURL
from tests.benchmarks.filled import fill


def test_a_filled_study_reads_like_any_other(empty_database: StorageURL) -> None:
    fill(empty_database, trials=30, steps=4)
    study = optuna.load_study(study_name="filled", storage=empty_database.sqlalchemy)
    assert [trial.number for trial in study.trials] == list(range(30))
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        assert list(trial.intermediate_values) == [0, 1, 2, 3]
        assert trial.value == trial.intermediate_values[3]
        assert set(trial.params) == {"x", "rate", "width", "kind"}
        assert all(
            trial.distributions[name]._contains(trial.distributions[name].to_internal_repr(value))
            for name, value in trial.params.items()
        )
    assert {trial.params["kind"] for trial in study.trials} == {"relu", "tanh", "gelu"}


def test_it_is_filled_the_same_each_time(empty_database: StorageURL) -> None:
    fill(empty_database, trials=3, name="one")
    fill(empty_database, trials=3, name="two")
    one, two = (optuna.load_study(study_name=name, storage=empty_database.sqlalchemy) for name in ("one", "two"))
    assert [trial.params for trial in one.trials] == [trial.params for trial in two.trials]
