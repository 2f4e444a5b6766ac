"""Results that wait on the disk: written whole or not at all, and what is no result harms none."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from studies.storage.records import Claim
from studies.worker.pending_results import PendingResult, PendingResults
from studies.worker.refusals import Refusal


def claim(trial_id: int, epoch: int = 1) -> Claim:
    return Claim(study_id=1, trial_id=trial_id, number=trial_id - 1, epoch=epoch, token="token")


def result(of: Claim) -> PendingResult:
    return PendingResult(claim=of, state="COMPLETE", values=[0.5], changes={"user_attrs": [{"key": "a", "value": "1"}]})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_each_attempt_of_a_trial_has_one_file_that_only_its_user_reads(tmp_path: Path) -> None:
    results = PendingResults(tmp_path / "results", "uid")
    files = [results.save(result(of)) for of in (claim(7), claim(7, epoch=2), claim(7, epoch=2), claim(8))]
    assert names(tmp_path) == ["results/uid/7-1.json", "results/uid/7-2.json", "results/uid/8-1.json"]
    assert files[1] == files[2]
    assert stat.S_IMODE((tmp_path / "results/uid").stat().st_mode) == 0o700
    assert json.loads((tmp_path / "results/uid/7-2.json").read_text())["claim"]["epoch"] == 2


def test_what_the_disk_refuses_stays_in_memory_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "uid").touch()  # where the directory should be
    assert PendingResults(tmp_path, "uid").save(result(claim(7))) is None
    assert "can't be written, its content is in memory only" in caplog.text
    (tmp_path / "other" / "7-1.json").mkdir(parents=True)  # where the file should be
    assert PendingResults(tmp_path, "other").save(result(claim(7))) is None
    assert names(tmp_path) == ["uid"]


DAMAGED = {
    "1-1.json": "",
    "2-1.json": '{"claim": {"study_id": 1, "trial_id": 2',
    "3-1.json": "[]",
    "4-1.json": '{"claim": {}, "state": "COMPLETE", "values": [1.0], "changes": {}}',
    "5-1.json": '{"state": "COMPLETE", "values": [1.0], "changes": {}}',
    "6-1.json": '{"claim": null, "state": "COMPLETE", "values": [1.0], "changes": {}}',
}


def test_damaged_files_are_set_aside_and_those_of_others_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results, foreign = PendingResults(tmp_path, "uid"), PendingResults(tmp_path, "another study")
    foreign.save(result(claim(9)))
    results.save_refusals(claim(8), [Refusal(kind="reports", change={"step": 3, "value": 1.0}, reason="no")])
    (tmp_path / "uid" / ".0b5c9e").write_text("{")  # of a worker that was killed while it wrote
    for name, text in DAMAGED.items():
        (tmp_path / "uid" / name).write_text(text)
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in DAMAGED]

    results.send(storage=None)  # type: ignore[arg-type]  # none of this reaches it

    assert all(path.exists() for path in others)
    assert list((tmp_path / "uid").glob("*.json")) == []
    assert caplog.text.count("not a legal result") == len(DAMAGED)
    assert [(tmp_path / "uid" / name).with_suffix(".refused").read_text() for name in DAMAGED] == [*DAMAGED.values()]


def test_without_a_directory_there_is_nothing_to_send(tmp_path: Path) -> None:
    PendingResults(tmp_path, "uid").send(storage=None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
