"""The costs of a perceptron, and the trials that have them as values or metrics."""

from __future__ import annotations

import pytest
import torch

from objectives.costs import COSTS, costs
from objectives.hyperparameters import Hyperparameters
from objectives.mlp import MLP
from tests.unit.objectives.conftest import RecordingTrial


def test_parameters_and_operations_are_those_of_the_layers() -> None:
    state = torch.get_rng_state()
    found = costs(Hyperparameters(depth=2, width=8, normalization="layer"), 5, 3, "cpu", timed=True)
    assert found["parameters"] == (5 * 8 + 8) + (8 * 8 + 8) + 2 * (8 + 8) + (8 * 3 + 3)
    assert found["flops"] == 2 * (5 * 8 + 8 * 8 + 8 * 3)
    assert found["latency_ms"] > 0
    assert torch.equal(torch.get_rng_state(), state)  # no trial draws other numbers for being measured


def test_a_trial_of_several_metrics_has_a_value_for_each_and_reports_its_costs_at_the_end() -> None:
    mlp = MLP("digits", epochs=2, metric=["accuracy", "loss", "latency_ms", "flops"], data_dir="unused")
    assert mlp.direction == ["maximize", "minimize", "minimize", "minimize"]
    trial = RecordingTrial(params={"width": 8, "depth": 1})
    value = mlp(trial)
    (_, _, first), (_, pruned_on, last) = trial.reports
    assert value == [last["val_accuracy"], last["val_loss"], last["latency_ms"], 2.0 * (64 * 8 + 8 * 10)]
    assert pruned_on == last["val_accuracy"]
    assert not first.keys() & set(COSTS)
    assert last.keys() <= mlp.metrics


def test_the_latency_is_measured_where_the_study_goes_by_it() -> None:
    mlp = MLP("digits", epochs=1, data_dir="unused")
    for constrained, costs_found in (((), {"parameters", "flops"}), (("latency_ms",), set(COSTS))):
        trial = RecordingTrial(params={"width": 8}, constrained=constrained)
        mlp(trial)
        assert trial.reports[-1][2].keys() & set(COSTS) == costs_found


def test_a_metric_that_is_none_or_comes_twice_is_refused() -> None:
    for metric, words in (
        (["latency_ms", "accuracy"], "metric = 'latency_ms'; for classification it must be one of accuracy, "),
        (["accuracy", "accuracy"], "metric lists 'accuracy' twice; name each once"),
        (["accuracy", "rmse"], "metric = 'rmse'; for classification it must be one of .*, latency_ms"),
    ):
        with pytest.raises(ValueError, match=words):
            MLP("digits", metric=metric, data_dir="unused")
