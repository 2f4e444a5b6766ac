"""The MLP: what it learns, reports and keeps, and how it is left."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.data import load
from objectives.member import Member
from objectives.mlp import MLP, Hyperparameters, load_model
from objectives.model import Model
from objectives.pool import Diverged
from tests.conftest import ROOT
from tests.unit.objectives.conftest import Interrupted, Pruned, RecordingTrial

GOOD = {"width": 128, "dropout": 0.1, "weight_decay": 1e-4, "lr": 5e-3}


@pytest.fixture(scope="module")
def mlp() -> MLP:
    return MLP("digits", epochs=3, data_dir="unused")


def test_it_learns_digits() -> None:
    assert MLP("digits", epochs=12, data_dir="unused")(RecordingTrial(params=GOOD)) >= 0.95


def test_it_reports_every_epoch_with_its_metrics(mlp: MLP) -> None:
    trial = RecordingTrial(params=GOOD)
    last = mlp(trial)
    assert [step for step, _, _ in trial.reports] == [1, 2, 3]
    assert trial.reports[-1][1] == last
    for step, value, metrics in trial.reports:
        costs = {"parameters", "flops"} if step == 3 else set()
        assert set(metrics) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "scheduled_lr", *costs}
        assert value == metrics["val_accuracy"]
    assert trial.reports[-1][2]["train_loss"] < trial.reports[0][2]["train_loss"]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(mlp: MLP) -> None:
    first, again, other = (RecordingTrial(params=GOOD, seed=seed) for seed in (7, 7, 8))
    for trial in (first, other, again):
        mlp(trial)
    assert first.reports == again.reports
    assert first.reports != other.reports


def test_the_test_data_change_nothing_in_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 4)), np.arange(80) % 2
    reports = []
    for value in (0.0, 1e6):
        np.savez(tmp_path / "own.npz", X=x, y=y, X_test=np.full((6, 4), value), y_test=np.arange(6) % 2)
        trial = RecordingTrial(params=GOOD)
        MLP("own.npz", epochs=2, data_dir=tmp_path)(trial)
        reports.append(trial.reports)
    assert reports[0] == reports[1]


def test_a_pruned_trial_is_left_after_its_report(mlp: MLP) -> None:
    trial = RecordingTrial(params=GOOD, prune_at=2)
    with pytest.raises(Pruned):
        mlp(trial)
    assert [step for step, _, _ in trial.reports] == [1, 2]


def test_an_interrupted_trial_is_left_at_the_next_batch(mlp: MLP) -> None:
    trial = RecordingTrial(params=GOOD, stop_after=4)
    with pytest.raises(Interrupted):
        mlp(trial)
    assert trial.asked == 5  # once before the epoch
    assert trial.reports == []


def test_without_a_space_it_suggests_its_own(mlp: MLP) -> None:
    trial = RecordingTrial()
    mlp(trial)
    assert set(trial.params) == {"width", "dropout", "weight_decay", "lr"} <= MLP.parameters


def test_a_diverging_training_says_so(mlp: MLP) -> None:
    with pytest.raises(Diverged, match=r"the training loss is (nan|inf) after 11 steps \(lr = 1e\+30\)"):
        mlp(RecordingTrial(params={"lr": 1e30, "optimizer": "sgd"}))


def test_validation_data_that_no_prediction_exists_for_end_a_trial(tmp_path: Path) -> None:
    # The last times are infinitely many standard deviations away, in float32.
    lines = [f"{i},{1e30 if i > 75 else i % 3 * 1e-100!r},{i % 2}" for i in range(100)]
    (tmp_path / "own.csv").write_text("t,a,y\n" + "\n".join(lines) + "\n")
    mlp = MLP("own.csv", epochs=2, target="y", split={"on": "t"}, data_dir=tmp_path)
    with pytest.raises(Diverged, match=r"the validation loss is nan after \d+ steps \(lr = 0.01\)"):
        mlp(RecordingTrial(params={"lr": 0.01}))


def test_the_learning_rate_falls_along_half_a_cosine(mlp: MLP) -> None:
    trial = RecordingTrial(params=GOOD)
    mlp(trial)
    assert [metrics["scheduled_lr"] / GOOD["lr"] for _, _, metrics in trial.reports] == pytest.approx([0.75, 0.25, 0.0])


def test_a_profile_of_the_second_epoch_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("objectives.mlp.STEPS", 3)
    monkeypatch.setenv("KINETO_LOG_LEVEL", "5")
    for options in ({"epochs": 3}, {"epochs": 1, "seeds": 2}):
        mlp = MLP("digits", data_dir="unused", **options)
        assert list(mlp.curves(GOOD, profile=tmp_path)) == list(mlp.curves(GOOD))
        updates = re.search(r"aten::_fused_adamw_ .* (\d+) *$", (tmp_path / "table.txt").read_text(), re.MULTILINE)
        assert updates
        assert int(updates[1]) == 3
        assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert "ERROR" not in capfd.readouterr().err


def test_a_last_batch_of_one_example_is_trained_and_evaluated(mlp: MLP) -> None:
    for normalization in ("none", "batch"):
        params = {"batch_size": len(load("digits", data_dir=Path("unused")).train) - 1, "normalization": normalization}
        curve = list(mlp.curves(params))
        assert len(curve) == 3
        assert np.isfinite([list(epoch.values()) for epoch in curve]).all()


def test_an_evaluation_does_not_depend_on_its_batches(mlp: MLP, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(mlp.curves({"dropout": 0.5}))
    monkeypatch.setattr("objectives.stack.EVALUATION_BATCH", 7)
    assert [epoch["val_loss"] for epoch in mlp.curves({"dropout": 0.5})] == pytest.approx(
        [epoch["val_loss"] for epoch in whole], rel=1e-5
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": 0}, "width = 0; it must be a whole number above 0"),
        ({"width": 1.5}, "width = 1.5; it must be a whole number above 0"),
        ({"width_2": 0}, "width_2 = 0; it must be a whole number above 0"),
        ({"depth": 7}, "depth = 7; it must be a whole number from 0 to 6"),
        ({"dropout": 1.0}, "dropout = 1.0; it must be a number of at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout = -0.1; it must be a number of at least 0 and below 1"),
        ({"lr": 0}, "lr = 0; it must be a number above 0"),
        ({"lr": float("nan")}, "lr = nan; it must be a number above 0"),
        ({"lr": "abc"}, "lr = 'abc'; it must be a number above 0"),
        ({"weight_decay": -1}, "weight_decay = -1; it must be a number of at least 0"),
        ({"batch_size": 0}, "batch_size = 0; it must be a whole number above 0"),
        ({"optimizer": "adma"}, "optimizer = 'adma'; it must be one of adamw, adam, sgd, gd, rmsprop"),
        ({"activation": "relo"}, "activation = 'relo'; it must be one of relu, leaky_relu, sigmoid, tanh, gelu, silu"),
        ({"momentum": 1}, "momentum = 1; it must be a number of at least 0 and below 1"),
        ({"skip": 1}, "skip = 1; it must be true or false"),
        ({"patience": 0}, "patience = 0; it must be a whole number above 0"),
        ({"max_norm": 0.0}, "max_norm = 0.0; it must be a number above 0"),
        ({"class_weights": {"0": 0}}, 'class_weights = {\'0\': 0}; it must be "none", "balanced", or'),
    ],
)
def test_a_hyperparameter_that_is_not_legal_is_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="it must be") as caught:
        Hyperparameters(**params)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"epochs": 0}, "epochs = 0; it must be a whole number above 0"),
        ({"epochs": 2.5}, "epochs = 2.5; it must be a whole number above 0"),
        ({"dataset": 3}, "dataset = 3; it must be a name or a path"),
        ({"split_seed": -1}, "split_seed = -1; it must be a whole number from 0"),
    ],
)
def test_an_argument_that_is_not_legal_is_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="it must be") as caught:
        MLP(**{"dataset": "digits", "data_dir": "unused", **args})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ([], r"metric = \[\]; name one or more of accuracy, .*, or leave it out for accuracy"),
        ("", "metric = ''; for classification it must be one of accuracy"),
    ],
)
def test_an_empty_metric_is_not_the_default(metric: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP("digits", metric=metric, data_dir="unused")


def test_finalize_keeps_a_model_that_predicts_from_the_data_as_they_are(tmp_path: Path) -> None:
    mlp = MLP("digits", epochs=10, data_dir="unused")
    seen: list[tuple[int, int]] = []
    metrics = mlp.finalize(GOOD, seed=1, device="cpu", directory=tmp_path, progress=lambda *done: seen.append(done))
    tested = {f"test_{name}" for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss", "ece")}
    tested |= {"test_accuracy_low", "test_accuracy_high"}
    assert set(metrics) == {*tested, "train_accuracy", "train_loss"}
    assert metrics["test_accuracy"] > 0.9
    assert seen == [(epoch, 10) for epoch in range(1, 11)]
    data = load("digits", data_dir=Path("unused"))
    raw = data.test.x_NF * data.std_F + data.mean_F
    predicted = load_model(tmp_path).predict(raw.numpy())["prediction"].astype(int)
    assert (predicted == data.test.y_N.numpy()).mean() == pytest.approx(metrics["test_accuracy"], abs=1e-6)


def test_finalize_trains_on_the_validation_data_too_and_tests_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp = MLP("digits", epochs=1, data_dir="unused")
    tested: list[int] = []
    trained: list[int] = []
    real_outputs, real_init = Model.outputs, Member.__init__

    def counting_outputs(self: Model, part: Any) -> Any:
        tested.append(len(part))
        return real_outputs(self, part)

    def counting_init(self: Member, hyperparameters: Any, task: Any, train: Any, *more: Any, **options: Any) -> None:
        trained.append(len(train))
        real_init(self, hyperparameters, task, train, *more, **options)

    monkeypatch.setattr(Model, "outputs", counting_outputs)
    monkeypatch.setattr(Member, "__init__", counting_init)
    mlp.finalize(GOOD, seed=1, device="cpu", directory=tmp_path, progress=lambda *_: None)
    assert tested == [360]
    assert trained == [1293 + 144]


def test_nothing_but_finalize_reads_the_test_data(tmp_path: Path) -> None:
    class Sealed:
        def __getattribute__(self, name: str) -> Any:
            if name != "to":
                raise AssertionError(f"the test data were read: {name}")
            return lambda _device: self

        def __len__(self) -> int:
            raise AssertionError("the test data were counted")

    mlp = MLP("digits", epochs=2, folds=2, data_dir="unused")
    mlp._data = replace(mlp._data, test=Sealed())
    mlp(RecordingTrial(GOOD))
    list(mlp.curves(GOOD))
    mlp.n_parameters(GOOD)
    with pytest.raises(AssertionError, match="the test data were"):
        mlp.finalize(GOOD, seed=1, device="cpu", directory=tmp_path, progress=lambda *_: None)


def test_the_documented_techniques_are_those_there_are_and_each_trains(mlp: MLP) -> None:
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in page.splitlines()
        if line.startswith("| ") and line.count("`") >= 4 and "{ " in line
    ]
    documented = {name for _, keys, *_ in rows for name in re.findall(r"`(\w+)`", keys)}
    documented |= {f"width_{i}" for i in range(1, 7)}
    assert documented == MLP.parameters
    defaults = Hyperparameters()
    for _, keys, legal, default, _, line in rows:
        key = keys.split("`")[1]
        fixed = tomllib.loads(f"it = {line.strip('`')}")["it"]
        assert key in fixed, line
        if key == "huber_delta":
            continue  # of a regression
        assert np.isfinite(next(mlp.curves({"width": 16, **fixed}))["train_loss"]), line
        given = getattr(defaults, key)
        if key != "width_1":
            assert default.startswith(f"{given:g}" if isinstance(given, float) else str(given).lower()), key
        if isinstance(given, str):
            with pytest.raises(ValueError, match="it must be") as caught:
                Hyperparameters(**{key: "?"})
            for name in legal.split(", "):
                assert name.split(" ")[-1].strip("{}") in str(caught.value) or "=" in name, (key, name)


def test_a_final_training_goes_on_from_its_checkpoint_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("objectives.retraining.EVERY", 0.0)
    mlp, epochs = MLP("digits", epochs=4, data_dir=tmp_path), []

    def finalize(name: str, params: dict[str, Any] = GOOD, stop: int = 0) -> bytes:
        folder, file = tmp_path / name, tmp_path / "states" / "state"
        folder.mkdir(exist_ok=True)
        epochs.clear()

        def progress(done: int, _of: int) -> None:
            epochs.append(done)
            if done == stop:
                raise KeyboardInterrupt

        given = {"seed": 1, "device": "cpu", "directory": folder, "progress": progress, "ensemble": 2}
        mlp.finalize(params, **given, checkpoint=None if name == "whole" else file)
        assert len((folder / "curves.csv").read_text().splitlines()) == 5
        return (folder / "weights.safetensors").read_bytes()

    whole = finalize("whole")
    with pytest.raises(KeyboardInterrupt):
        finalize("killed", stop=3)
    assert finalize("killed") == whole
    assert epochs == [3, 4]
    assert not caplog.records
    finalize("other", {**GOOD, "lr": 2e-3})
    assert epochs == [1, 2, 3, 4]
    assert caplog.messages[0].startswith("the training begins anew: the checkpoint has lr = ")
