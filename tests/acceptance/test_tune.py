"""The main job on real data: tuning the MLP, and the last word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from objectives.data import load
from objectives.mlp import load_model
from tests.acceptance.conftest import Shell

NET = """
class Net:
    def __call__(self, trial):
        return 1.0

    def finalize(self, params, **_):
        raise AssertionError("it was trained")
"""


@pytest.mark.slow
def test_the_digits_preset_spends_its_budget_prunes_and_reaches_097(shell: Shell) -> None:
    done = shell.run("run", "digits", "--workers", "2")
    assert done.returncode == 0, done.stderr
    status = json.loads(shell.data("status", "digits", "--format", "json"))
    trials = status["trials"]
    assert 0 <= status["epochs"]["spent"] - status["epochs"]["budget"] < 2  # two workers
    assert trials["running"] == trials["waiting"] == trials["paused"] == 0
    assert trials["pruned"] >= 10
    assert status["best"]["value"] >= 0.97
    assert set(status["best"]["metrics"]) == {
        *("train_loss", "train_accuracy", "val_loss", "val_accuracy", "scheduled_lr", "flops", "parameters")
    }


@pytest.mark.slow
def test_the_best_digits_are_finalized_once(shell: Shell) -> None:
    settings = ("--trials", "3", "--set", "objective.args.epochs=8", "--workers", "2")
    assert shell.run("run", "digits", *settings).returncode == 0
    done = shell.run("finalize", "digits", "--out", "final", "--seeds", "2", "--workers", "2")
    assert done.returncode == 0, done.stderr
    final = shell.folder / "final"
    assert sorted(path.name for path in final.iterdir()) == [
        *("README.md", "config.json", "curves.csv", "environment.json", "metrics.json", "model.json", "test.json"),
        "weights.safetensors",
    ]
    metrics = json.loads((final / "metrics.json").read_text())
    assert metrics["looks"] == 1
    assert f"test_accuracy {metrics['metrics']['test_accuracy']:.6g}" in done.stdout
    config = json.loads((final / "config.json").read_text())
    trials = json.loads(shell.data("trials", "digits", "--format", "json"))
    assert config["params"] == trials[metrics["trial"]]["params"]
    compared = json.loads(shell.data("status", "digits.finalize", "--format", "json"))["trials"]
    assert (compared["complete"], compared["waiting"]) == (2 * metrics["candidates"], 0)
    data = load("digits", data_dir=shell.folder)
    raw = (data.test.x_NF * data.std_F + data.mean_F).numpy()
    predicted = load_model(final).predict(raw)["prediction"].astype(int)
    assert (predicted == data.test.y_N.numpy()).mean() == pytest.approx(metrics["metrics"]["test_accuracy"], abs=1e-6)

    refused = shell.run("finalize", "digits", "--out", "second")
    assert refused.returncode == 1
    assert "was finalized with trial" in refused.stderr
    assert not (shell.folder / "second").exists()
    again = shell.run("finalize", "digits", "--out", "second", "--again", "--trial", str(metrics["trial"]))
    assert again.returncode == 0
    assert "this was test 2 on the same test data" in again.stderr
    assert json.loads((shell.folder / "second" / "metrics.json").read_text())["metrics"] == metrics["metrics"]


def test_a_folder_that_exists_is_not_written_to(shell: Shell) -> None:
    (shell.folder / "net.py").write_text(NET)
    shell.run("run", "net.py:Net", "--name", "own", "--trials", "1", "--workers", "1")
    (shell.folder / "final").mkdir()
    refused = shell.run("finalize", "own", "--objective", "net.py:Net", "--out", "final")
    assert refused.returncode == 1
    assert "exists; name another folder with --out" in refused.stderr
    assert list((shell.folder / "final").iterdir()) == []
    assert [study["name"] for study in json.loads(shell.data("ls", "--format", "json"))] == ["own"]  # none compares


def test_an_objective_without_finalize_says_so(shell: Shell) -> None:
    shell.run("run", "script.py:objective", "--trials", "1", "--workers", "1")
    refused = shell.run("finalize", "script-objective")
    assert refused.returncode == 1
    assert "say where it lies on this machine: --objective script.py:objective" in refused.stderr
    allowed = shell.run("finalize", "script-objective", "--objective", "script.py:objective")
    assert allowed.returncode == 1
    assert "cannot be finalized: give its class a method finalize()" in allowed.stderr


@pytest.mark.slow
def test_real_mnist_is_tuned(shell: Shell, real_data: Path) -> None:
    settings = ("--trials", "2", "--workers", "2", "--set", "objective.args.epochs=1", "--set", "space.width.low=128")
    settings = (*settings, "--set", "space.lr={type='float',low=1e-3,high=3e-3}")
    done = shell.run("run", "mnist", "--data-dir", real_data, *settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(shell.data("best", "mnist", "--format", "json"))["value"] > 0.93


@pytest.mark.slow
def test_ones_own_table_is_tuned(shell: Shell) -> None:
    rows = [f"{i % 7},{(i * 3) % 11},{'high' if (i % 7) > 3 else 'low'}" for i in range(300)]
    (shell.folder / "own.csv").write_text("a,b,level\n" + "\n".join(rows) + "\n")
    settings = ("--set", "objective.args={dataset='own.csv',target='level',epochs=10}", "--name", "own")
    done = shell.run("run", "digits", *settings, "--trials", "3", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(shell.data("best", "own", "--format", "json"))["value"] > 0.9
