"""The memory of trainings: what is predicted is taken, and what does not fit is refused or does without company."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from objectives import memory
from objectives.hyperparameters import Hyperparameters
from objectives.mlp import MLP
from tests.unit.objectives.conftest import RecordingTrial
from tests.unit.objectives.test_pool import Source

SHAPES = [
    {"slots": 8, "depth": 2, "width": 256, "batch_size": 128, "dropout": 0.3},
    {"slots": 2, "depth": 4, "width": 512, "batch_size": 2048, "dropout": 0.3, "normalization": "batch"},
    {"slots": 1, "depth": 2, "width": 2048, "batch_size": 64, "optimizer": "sgd"},
    {"slots": 16, "depth": 1, "width": 64, "batch_size": 1024},
    {"slots": 2, "depth": 3, "width": 128, "optimizer": "gd"},
]

TRAIN = """
import gc, json, sys
from pathlib import Path
import torch
from objectives import memory
from objectives.mlp import MLP
from tests.unit.objectives.conftest import RecordingTrial
from tests.unit.objectives.test_pool import Source

class Saves(RecordingTrial):
    def checkpoint(self, step, state):
        state()

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

torch.set_num_threads(1)
folder, params = Path(sys.argv[1]), json.loads(sys.argv[2])
slots = params.pop("slots")
mlp = MLP("own.npz", epochs=2, data_dir=folder)
mlp.train(Source([Saves(params={"width": 8, "batch_size": 64})]), 1)  # what the first training alone takes
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = status("VmRSS:")
mlp.train(Source([Saves(params=params, seed=seed) for seed in range(slots)]), slots)
print(memory.needed(mlp.hyperparameters(params), mlp._shape, slots) / (status("VmHWM:") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by /proc")
def test_a_pool_takes_the_memory_that_is_predicted_within_a_fifth(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6000, 784), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", X=x, y=np.arange(6000) % 10, X_test=x[:20], y_test=np.arange(20) % 10)
    MLP("own.npz", data_dir=tmp_path)  # prepared by another process than those measured
    ratios = {}
    for params in map(json.dumps, SHAPES):
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, str(tmp_path), params],
            capture_output=True, text=True, timeout=300, check=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        ratios[params] = float(done.stdout)
    assert all(0.8 <= ratio <= 1.2 for ratio in ratios.values()), ratios


@pytest.fixture(scope="module")
def mlp() -> MLP:
    return MLP("digits", epochs=2, data_dir="unused")


def small(mlp: MLP) -> int:
    """Bytes of a narrow trial."""
    return memory.needed(Hyperparameters(width=8, depth=1), mlp._shape)


def test_a_trial_that_does_not_fit_fails_and_says_what_would(mlp: MLP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2 * small(mlp))
    wide, large = {"width": 4096, "depth": 2}, {"width": 64, "depth": 1, "batch_size": 1024}
    source = Source([RecordingTrial(params=p, seed=i) for i, p in enumerate([wide, large, {"width": 8, "depth": 1}])])
    mlp.train(source, 1)
    assert [source.results[i].state for i in range(3)] == ["fail", "fail", "complete"]
    assert "widths [4096, 4096] and batches of 128 need 712 MB" in str(source.results[0].error)
    assert "narrower layers need less" in str(source.results[0].error)
    assert "; batch_size = " in str(source.results[1].error)
    monkeypatch.setattr(memory, "total", lambda: 10 * small(mlp))
    with pytest.raises(ValueError, match=r"widths \[512\] and batches of 1293 need .* gd takes all examples at once"):
        mlp.check_params({"optimizer": "gd", "width": 512, "depth": 1})
    mlp.check_params({"width": 8, "depth": 1})


def test_seeds_and_folds_that_do_not_fit_are_named(mlp: MLP, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of two folds: half of all rows each.
    monkeypatch.setattr(memory, "total", lambda: 3 * memory.needed(Hyperparameters(), mlp._shape))
    with pytest.raises(
        ValueError,
        match=r"of memory for 1000000 trainings, one for each seed and fold, and there are .*; no more "
        r"than [2-4] would fit: give fewer seeds or folds",
    ):
        MLP("digits", seeds=500_000, folds=2, data_dir="unused")


def test_trials_that_do_not_fit_side_by_side_are_left_and_the_slots_reduced(
    mlp: MLP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 5 * small(mlp) // 2)
    source = Source([RecordingTrial(params={"width": 8, "depth": 1}, seed=seed) for seed in range(6)])
    mlp.train(source, 4)
    assert [source.results[seed].state for seed in range(6)] == ["complete"] * 2 + ["left"] * 2 + ["complete"] * 2
    (record,) = caplog.records
    assert record.getMessage().startswith("slots reduced from 4 to 2: widths [8] and batches of 128 need ")


def test_more_slots_than_fit_are_reduced_with_one_line(
    mlp: MLP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ordinary = memory.needed(Hyperparameters(), mlp._shape)
    monkeypatch.setattr(memory, "available", lambda: 7 * ordinary)
    assert [mlp.slots("cpu", wanted) for wanted in (3, 1000, 1000)] == [3, 7, 7]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("slots reduced from 1000 to 7: a trial of widths [256, 256] needs ")


def test_a_limit_of_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text
    own = "0::/job/worker\n"
    monkeypatch.setattr(
        Path, "read_text", lambda self, **options: own if str(self) == "/proc/self/cgroup" else real(self, **options)
    )
    for group, limit in (("", "max"), ("job", "1000"), ("job/worker", "max")):
        folder = tmp_path / group
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert list(memory._limits(tmp_path)) == [(1000, 500)]
    assert 0 < memory.available() <= memory.total()
