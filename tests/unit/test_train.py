"""Training one configuration without a study: what is drawn, kept and refused."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from studies.cli import studyhall
from studies.cli.train_picture import picture
from tests.support.command import COMMAND

SCRIPT = """
import math
import time


class Net:
    parameters = frozenset({"lr", "width"})

    def __init__(self, steps=3):
        self.steps = steps

    def __call__(self, trial):
        return 1.0

    def curves(self, params, *, seed, device, profile=None):
        if params.get("lr") == 0:
            raise ValueError("lr = 0; it must be above 0")
        for step in range(self.steps):
            yield {"train_loss": params.get("lr", 0.1) / (step + 1), "val_loss": math.nan if step == 1 else seed + step}
            if params.get("lr") == 9:
                raise ArithmeticError("the loss is inf")
        # For Ctrl-C. In short waits: Python never sees a signal that arrives just before an endless one.
        while self.steps == 2:
            time.sleep(0.05)
        if profile:
            (profile / "table.txt").write_text("bmm 9 ms\\nadd 1 ms\\n")
            (profile / "trace.json").write_text("{}")


class NoProfile(Net):
    def curves(self, params, *, seed, device):
        yield {"loss": 1.0}


class Wordy(Net):
    def curves(self, params, *, seed, device):
        yield "loss 1.0"


def function(trial):
    return 1.0
"""
SPEC = """
name = "own"
[objective]
path = "script.py:Net"
[space]
lr = { type = "float", low = 1e-4, high = 1e-1, log = true }
width = { type = "int", low = 1, high = 9 }
"""
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "scheduled_lr")


@pytest.fixture(autouse=True)
def _script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a script and a study file; what is imported from it is forgotten."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # as the command sets them
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(SCRIPT)
    Path("own.toml").write_text(SPEC)
    yield
    sys.modules.pop("script", None)


def train(*words: str) -> Result:
    return CliRunner().invoke(studyhall, ["train", *words])


def test_each_step_is_a_line_and_the_file_is_what_its_ending_says() -> None:
    for ending in ("csv", "json", "png", "svg", "html"):
        done = train("own.toml", "--param", "lr=0.5", "--seed", "7", "-o", f"curves.{ending}")
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines() == [
            "step 1: train_loss 0.5, val_loss 7",
            "step 2: train_loss 0.25, val_loss nan",
            "step 3: train_loss 0.166667, val_loss 9",
        ]
        assert "training own (cpu, seed 7): lr=0.5; the objective's defaults for width\n" in done.stderr
    rows = list(csv.reader(io.StringIO(Path("curves.csv").read_text())))
    assert rows[0] == ["step", "train_loss", "val_loss"]
    assert rows[2] == ["2", "0.25", ""]
    kept = json.loads(Path("curves.json").read_text())
    assert (kept["params"], kept["seed"]) == ({"lr": 0.5}, 7)
    assert kept["steps"][1] == {"step": 2, "train_loss": 0.25, "val_loss": None}
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("curves.svg").read_text()
    assert "own: learning curves" in Path("curves.html").read_text()


def test_a_number_is_shown_as_it_was_given() -> None:
    done = train("script.py:Net", "--param", "lr=0.9999999")
    assert "lr=0.9999999;" in done.stderr


def test_a_profile_is_a_table_and_a_folder_of_its_own() -> None:
    done = train("script.py:Net", "--profile", "there")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == ["bmm 9 ms", "add 1 ms"]
    assert train("script.py:Net", "--profile").exit_code == 0
    for folder in ("there", "script-Net-profile"):
        assert sorted(file.name for file in Path(folder).iterdir()) == ["table.txt", "trace.json"]
    refused = train("script.py:Net", "--profile")
    assert "script-Net-profile' exists; name another folder with --profile" in refused.stderr


def test_what_cannot_be_trained_says_why_and_leaves_nothing() -> None:
    before = set(Path().iterdir())
    for words, status, message in (
        (["script.py:Net", "--param", "lrr=1"], 2, "has no parameter 'lrr'; did you mean 'lr'?"),
        (["script.py:Net", "--param", "lr"], 2, "'lr' is not NAME=VALUE; for example lr=1e-3"),
        (["script.py:Net", "--param", "lr=0"], 1, "script.py:Net': lr = 0; it must be above 0"),
        (["script.py:function"], 1, "trains within a study alone: give its class a method curves()"),
        (["script.py:NoProfile", "--profile", "p"], 1, "cannot be profiled: give its method curves() a parameter"),
        (["script.py:Wordy"], 1, "curves() yields 'loss 1.0'; it must be numbers by name, for each step"),
        (["script.py:Net", "--device", "cuda:1"], 1, "there is no device 'cuda:1' here; known: cpu"),
        (["script.py:Net", "--seed", "-1"], 2, "-1 is not in the range"),
        (["script.py:Net", "--set", "objective.args.step=3"], 1, "did you mean 'steps'?"),
        (["script.py:Net", "-o", "nowhere/c.csv"], 1, "there is no folder"),
        (["script.py:Net", "-o", "c.txt"], 2, "'c.txt' must end in .csv or .json or .png or .svg or .html"),
    ):
        if "-o" not in words:
            words = [*words, "-o", "c.csv"]
        done = train(*words)
        assert (done.exit_code, done.stdout) == (status, ""), words
        assert message in done.stderr, (message, done.stderr)
        assert set(Path().iterdir()) == before
    done = train("script.py:Net", "--param", "lr=9", "-o", "c.csv", "--profile", "p")
    assert done.exit_code == 1
    assert "error: objective 'script.py:Net': ArithmeticError: the loss is inf\n" in done.stderr
    assert len(Path("c.csv").read_text().splitlines()) == 2  # what there was
    assert set(Path().iterdir()) == before | {Path("c.csv")}


def test_in_a_terminal_it_is_a_picture_and_ctrl_c_keeps_the_steps_so_far(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = pexpect.spawn(
        COMMAND,
        ["train", "script.py:Net", "--set", "objective.args.steps=2", "-o", "c.csv"],
        env={**environment, "TERM": "xterm-256color", "STUDYHALL_HOME": str(tmp_path)},
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=300,
    )
    process.expect("step 2.*train loss.*█.*val loss")
    process.sendintr()
    process.expect(r"wrote c\.csv .*interrupted\s+$")
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus == 130
    assert len(Path("c.csv").read_text().splitlines()) == 3


def drawn(curves: Sequence[Mapping[str, float]], width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(picture(curves, console))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_picture_fits_and_has_training_beside_validation() -> None:
    curves = [{name: (-1) ** n * step * 1.5**n for n, name in enumerate(METRICS)} for step in range(1, 200)]
    for width, height in ((80, 24), (60, 24), (200, 60), (80, 12)):
        lines = drawn(curves, width, height)
        assert len(lines) < height, (width, height)
        assert max(map(len, lines)) <= width
    lines = drawn(curves, 80, 24)
    assert lines[0] == "step 199"
    assert [line.split()[:2] for line in lines if line.startswith("train")] == [
        ["train", "accuracy"],
        ["train", "loss"],
    ]
    assert "val accuracy" in lines[1]
    assert drawn([{"loss": math.nan}, {"loss": math.inf}], 80, 24)[0] == "step 2"
