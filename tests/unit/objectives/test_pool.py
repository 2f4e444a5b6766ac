"""Many trials in one program: each ends as it does alone, whatever becomes of its neighbours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from objectives.hyperparameters import METRICS, MINIMIZED
from objectives.mlp import MLP, load_model
from objectives.pool import Report, Result
from objectives.stack import Stack
from studies.errors import ObjectiveError
from studies.objective import check_space
from tests.unit.objectives.conftest import Interrupted, RecordingTrial

EPOCHS = 3


@dataclass
class Source:
    """Trials to be trained; remembers what it was told."""

    waiting: list[Any]
    results: dict[int, Result] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return not self.waiting

    def take(self, count: int) -> Sequence[Any]:
        self.calls.append(f"take {count}")
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def report(self, reports: Sequence[Report]) -> None:
        self.calls.append(f"report {len(reports)}")
        for report in reports:
            report.trial.report(report.value, report.step, **report.metrics)

    def end(self, results: Sequence[Result]) -> None:
        self.calls.append(f"end {len(results)}")
        for result in results:
            assert result.trial.seed not in self.results
            self.results[result.trial.seed] = result

    def wait(self) -> None:
        raise AssertionError("there is always a trial")


class Breaks(RecordingTrial):
    """Whatever the pool asks of it is an error."""

    def should_prune(self) -> bool:
        raise ValueError("broken")


class Leaves(RecordingTrial):
    """Its worker is being stopped when it is asked whether to prune."""

    def should_prune(self) -> bool:
        raise Interrupted


@pytest.fixture(scope="module")
def mlp() -> MLP:
    return MLP("digits", epochs=EPOCHS, data_dir="unused")


def trials() -> list[Any]:
    """Of several shapes; seeds are numbers."""
    widths = itertools.cycle([24, 30, 32, 40])
    params = {"lr": 5e-3, "dropout": 0.2, "depth": 1}
    made: list[Any] = [RecordingTrial(params={**params, "width": next(widths)}, seed=i) for i in range(12)]
    made[1].params["lr"] = 1e30  # diverges
    made[1].params["optimizer"] = "sgd"
    made[2].prune_at = 1
    made[3].params["activation"] = "none"  # is refused
    made[4] = Breaks(params=made[4].params, seed=4)
    made[5].stop_after = 20  # in its second epoch
    made[6] = Leaves(params=made[6].params, seed=6)
    made[7].params["batch_size"] = 64
    return made


@pytest.fixture(scope="module")
def alone(mlp: MLP) -> list[Any]:
    """The trials, one after the other."""
    source = Source(trials())
    every = list(source.waiting)
    mlp.train(source, 1)
    return every


def test_a_trial_ends_in_a_pool_as_it_does_alone(mlp: MLP, alone: list[Any]) -> None:
    source = Source(trials())
    every = list(source.waiting)
    mlp.train(source, 4)
    states = {seed: result.state for seed, result in source.results.items()}
    ends = {1: "fail", 2: "pruned", 3: "fail", 4: "fail", 5: "left", 6: "left"}
    assert states == {seed: ends.get(seed, "complete") for seed in range(12)}
    for trial, expected in zip(every, alone, strict=True):
        assert trial.reports == expected.reports  # to the bit, on a CPU
    for seed, result in source.results.items():
        assert result.value == (every[seed].reports[-1][1] if result.state == "complete" else None)
    assert "the training loss is" in str(source.results[1].error)
    assert "activation = 'none'" in str(source.results[3].error)
    assert str(source.results[4].error) == "broken"
    # Slots are refilled as they come free, and each tick is reported at once.
    assert source.calls[:5] == ["take 4", "report 2", "end 3", "take 3", "report 4"]
    assert max(int(call.split()[1]) for call in source.calls if call.startswith("report")) > 2


def test_a_stacked_pool_gives_what_slots_of_their_own_give(alone: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: padded, and refilled beside slots that are further on."""
    monkeypatch.setattr("objectives.mlp._is_stacked", lambda _: True)
    sizes: list[int] = []
    real_init = Stack.__init__

    def counting(self: Stack, members: Any) -> None:
        sizes.append(len(members))
        real_init(self, members)

    monkeypatch.setattr(Stack, "__init__", counting)
    source = Source(trials())
    every = list(source.waiting)
    MLP("digits", epochs=EPOCHS, data_dir="unused").train(source, 5)
    assert max(sizes) > 1
    for trial, expected in zip(every, alone, strict=True):
        if trial.seed not in (1, 5):  # one diverges, and one is left at the end of its epoch
            assert [step for step, _, _ in trial.reports] == [step for step, _, _ in expected.reports]
            for (_, value, metrics), (_, expected_value, expected_metrics) in zip(
                trial.reports, expected.reports, strict=True
            ):
                assert abs(value - expected_value) <= 2 / 144
                assert metrics["train_loss"] == pytest.approx(expected_metrics["train_loss"], rel=1e-3)


def test_a_pool_that_runs_out_of_memory_halves_its_slots(mlp: MLP, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [torch.OutOfMemoryError("no memory")] * 2
    real = Stack.run_epoch

    def fails(self: Stack, *args: Any) -> bool:
        if failures:
            raise failures.pop()
        return real(self, *args)

    monkeypatch.setattr(Stack, "run_epoch", fails)
    source = Source([RecordingTrial(params={"width": 8, "depth": 1}, seed=seed) for seed in range(8)])
    mlp.train(source, 4)
    states = [source.results[seed].state for seed in range(8)]
    assert states == ["left", "left", *["complete"] * 6]
    assert source.calls[0] == "take 4"
    assert all(call.split()[1] in "12" for call in source.calls[1:])


def test_folds_and_seeds_make_one_value_with_a_spread() -> None:
    params = {"width": 16, "depth": 1, "lr": 1e-2}
    several = MLP("digits", epochs=EPOCHS, folds=2, seeds=2, data_dir="unused")
    trial, stopped = (RecordingTrial(params=params, seed=3, stop_after=stop) for stop in (None, 30))
    value = several(trial)
    values = [metrics["val_accuracy"] for _, _, metrics in trial.reports]
    assert value == values[-1]
    assert all(metrics["val_accuracy_std"] > 0 for _, _, metrics in trial.reports)
    with pytest.raises(Interrupted):
        several(stopped)
    assert len(stopped.reports) < EPOCHS
    assert stopped.reports == trial.reports[: len(stopped.reports)]
    members = several.training(several.hyperparameters(params), 3, "cpu").members
    assert len({member.seed for member in members}) == 2
    first, second = (set(member.validation.rows_N.tolist()) for member in members[:2])
    assert first | second == set(range(1293 + 144))
    assert not first & second


def test_a_trial_that_stops_early_is_complete_with_its_best_epoch() -> None:
    mlp = MLP("digits", epochs=40, fixed={"patience": 2, "monitor": "accuracy"}, data_dir="unused")
    trial = RecordingTrial(params={"width": 32, "depth": 1, "lr": 5e-2})
    value = mlp(trial)
    accuracies = [reported for _, reported, _ in trial.reports]
    assert len(accuracies) < 40
    best = int(np.argmax(accuracies))
    assert value == accuracies[best]
    assert len(accuracies) == best + 1 + 2
    assert trial.attributes == {
        "best_epochs": [best + 1],
        "stopped_early": f"after epoch {len(accuracies)} of 40: val_accuracy was no better for 2 epochs",
    }


def test_a_regression_learns_reports_and_keeps_a_model_in_the_target_s_unit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3))
    np.savez(tmp_path / "own.npz", X=x, y=1e4 + 500 * np.tanh(x @ [1, 2, 0]) + rng.normal(size=600))
    mlp = MLP("own.npz", epochs=60, task="regression", data_dir=tmp_path)
    for params in ({"lr": 1e-2, "width": 64}, {"lr": 1e-2, "loss": "huber", "patience": 50}):
        trial = RecordingTrial(params={**params, "batch_size": 32})
        rmse = mlp(trial)
        assert set(trial.reports[0][2]) == {
            *("train_loss", "train_rmse", "val_loss", "val_rmse", "val_mae", "val_r2", "scheduled_lr")
        }
        assert rmse < 40
        metrics = mlp.finalize(trial.params, seed=0, device="cpu", directory=tmp_path, progress=lambda *_: None)
        assert metrics["test_rmse"] < 60
    assert abs(load_model(tmp_path).predict(np.zeros((1, 3)))["prediction"][0] - 1e4) < 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"fixed": {"depht": 2}}, "fixed names the hyperparameter 'depht'; known: activation, "),
        ({"fixed": {"normalization": "batch", "batch_size": 1}}, 'normalization = "batch" needs more than one example'),
        (
            {"fixed": {"class_weights": {"x": 2.0}}},
            "class_weights names the class 'x', which is not there; known: 0, 1",
        ),
        ({"fixed": {"loss": "mse"}}, "loss = 'mse' is not for classification; it must be one of cross_entropy"),
        (
            {"fixed": {"monitor": "r2", "patience": 3}},
            "monitor = 'r2' is not for classification; it must be one of acc",
        ),
        ({"metric": "rmse"}, "metric = 'rmse'; for classification it must be one of accuracy, balanced_accuracy"),
        ({"folds": 200}, "folds = 200; at most 139 are possible: the rarest class has so many examples"),
        (
            {"fixed": {"class_weights": "balanced"}, "task": "regression"},
            "class_weights = 'balanced' is for classes, and",
        ),
        (
            {"task": "regression", "metric": "accuracy"},
            "metric = 'accuracy'; for regression it must be one of rmse, mae",
        ),
        ({"task": "ranking"}, "task = 'ranking'; it must be one of classification, regression"),
        ({"task": "regression", "fixed": {"label_smoothing": 0.1}}, "label_smoothing = 0.1 is for classes, and the"),
    ],
)
def test_what_cannot_be_is_refused_when_the_objective_is_built(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MLP("digits", data_dir="unused", **args)


def test_a_space_that_allows_what_cannot_be_is_refused_when_the_objective_is_built() -> None:
    classes, numbers = (MLP("digits", task=task, data_dir="unused") for task in ("classification", "regression"))
    sizes = {"type": "int", "low": 1, "high": 9}

    def one_of(*choices: Any, **conditions: Any) -> dict[str, Any]:
        return {"type": "categorical", "choices": list(choices), "when": conditions}

    normalized = {"normalization": one_of("none", "batch"), "batch_size": sizes}
    for mlp, space, message in (
        (classes, {"activation": one_of("relu", "relo")}, "refuses activation=relo of the space: activation = 'relo'"),
        (
            classes,
            {"dropout": {"type": "float", "low": 0, "high": 1}},
            "dropout = 1.0; it must be a number of at least 0 and below",
        ),
        (classes, normalized, 'refuses normalization=batch batch_size=1 of the space: normalization = "batch" needs'),
        (
            numbers,
            {"label_smoothing": {"type": "float", "low": 0, "high": 0.2}},
            "label_smoothing = 0.2 is for classes",
        ),
        (numbers, {"class_weights": one_of("none", "balanced")}, "class_weights = 'balanced' is for classes"),
        (numbers, {"loss": one_of("huber", "cross_entropy")}, "loss = 'cross_entropy' is not for regression"),
    ):
        with pytest.raises(ObjectiveError, match=re.escape(message)):
            check_space("objectives.mlp:MLP", mlp, space)
    legal = {
        "normalization": one_of("none", "batch", "layer"),
        "batch_size": {**sizes, "when": {"normalization": ["none", "layer"]}},
        "loss": one_of("mse", "huber"),
        "huber_delta": {"type": "float", "low": 0.1, "high": 1, "when": {"loss": ["huber"]}},
    }
    check_space("objectives.mlp:MLP", numbers, legal)


def test_the_direction_is_that_in_which_the_metric_is_better() -> None:
    for task, metrics in METRICS.items():
        found = {metric: MLP("digits", task=task, metric=metric, data_dir="unused").direction for metric in metrics}
        assert {metric for metric, direction in found.items() if direction == "minimize"} == MINIMIZED & {*metrics}
        assert MLP("digits", task=task, data_dir="unused").direction == found[metrics[0]]
