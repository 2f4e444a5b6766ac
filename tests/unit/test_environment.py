"""The environment of a training: what is stored of it, and what differs between two."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studies.environment import collect, differing, in_words, of_trial, require_same_data
from studies.errors import ObjectiveError


def loaded(file: Path) -> Any:
    made = importlib.util.spec_from_file_location(file.stem, file)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module.objective


def test_the_commit_is_that_of_the_repository_which_tracks_the_objective(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.check_output(["git", "-C", str(tmp_path), *who, *words], text=True).strip()

    tracked, other = tmp_path / "train.py", tmp_path / "other.py"
    for file in (tracked, other):
        file.write_text("def objective(trial):\n    return 1.0\n")
    assert collect("train.py:objective", loaded(tracked), "cpu")["commit"] is None
    git("init", "-q")
    git("add", "train.py")
    git("commit", "-qm", "First")
    # What a repository's settings name is not run: only its files are looked at.
    git("config", "core.fsmonitor", f"touch {tmp_path}/ran; false")
    clean = collect("train.py:objective", loaded(tracked), "cpu")
    assert (clean["commit"], clean["dirty"]) == (git("rev-parse", "HEAD"), False)
    assert not (tmp_path / "ran").exists()
    assert collect("other.py:objective", loaded(other), "cpu")["commit"] is None
    tracked.write_text("def objective(trial):\n    return 2.0\n")
    assert collect("train.py:objective", loaded(tracked), "cpu")["dirty"] is True
    assert {"python", "optuna", "numpy", "cpu", "device", "system"} <= clean.keys()


def test_what_differs_is_said_then_and_now() -> None:
    then = {"torch": "2.8.0", "device": "cpu", "commit": "a" * 40, "dirty": False}
    now = {"torch": "2.9.1", "device": "cpu", "commit": "b" * 40, "numpy": "2.4.0"}
    assert differing(then, now) == {"torch": "2.9.1", "commit": "b" * 40, "dirty": None, "numpy": "2.4.0"}
    assert of_trial(then, {"studyhall:environment": {"torch": "2.7.0"}})["torch"] == "2.7.0"
    assert in_words(then, now) == [
        "torch: 2.8.0 then, 2.9.1 now",
        "commit: aaaaaaaaaaaa then, bbbbbbbbbbbb now",
        "dirty: false then, unknown now",
        "numpy: unknown then, 2.4.0 now",
    ]


def test_a_data_set_of_another_content_is_refused_with_its_name_and_both_fingerprints() -> None:
    here = collect("net.py:Net", SimpleNamespace(fingerprint=lambda: {"train.csv": "f" * 64}), "cpu")
    assert here["data train.csv"] == "f" * 64
    require_same_data("s", {}, here)
    require_same_data("s", {"data train.csv": "f" * 64, "torch": "1.0"}, here)
    with pytest.raises(ObjectiveError) as caught:
        require_same_data("s", {"data train.csv": "e" * 64}, here)
    assert str(caught.value) == (
        "the data set 'train.csv' of study 's' has the fingerprint eeeeeeeeeeee…, and this machine's has "
        "ffffffffffff…; bring the study's data set here (--data-dir), or give a study of this one another --name"
    )


def test_a_fingerprint_that_is_no_table_of_texts_is_refused() -> None:
    for found in ("abc", {"train.csv": 1}):
        with pytest.raises(ObjectiveError, match="it must be the fingerprint of each data set by its name, as texts"):
            collect("net.py:Net", SimpleNamespace(fingerprint=found), "cpu")
