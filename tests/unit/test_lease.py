"""A lease's buffer: what is pending, in flight, acknowledged or refused, without a database."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from studies.errors import LeaseLost, Refused
from studies.storage.records import Acknowledgement, Claim
from studies.worker.lease import Lease, LeaseUpdate
from studies.worker.lease_keeper import LeaseKeeper
from studies.worker.pending_results import PendingResults
from studies.worker.refusals import Refusal

CLAIM = Claim(study_id=1, trial_id=7, number=6, epoch=1, token="token")
REFUSAL = Refusal(kind="reports", change={"step": 3, "value": 1.0}, reason="no")


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def lease(tmp_path: Path, stop: threading.Event) -> Lease:
    """Of a keeper whose thread does not run: the test sends."""
    keeper = LeaseKeeper(None, worker_id="w", lease_seconds=3600, stop=stop)  # type: ignore[arg-type]
    return keeper.add(CLAIM, PendingResults(tmp_path, "uid"))


def report(lease: Lease, step: int, value: float) -> None:
    lease.put("reports", {"step": step, "value": value})


def sent(lease: Lease) -> LeaseUpdate:
    update = lease.take_pending()
    assert update is not None
    return update


def acknowledge(lease: Lease, update: LeaseUpdate, revision: int = 1, **asked: Any) -> None:
    lease.acknowledge(
        update, Acknowledgement(**{"cancelled": False, "interrupted": False, "revision": revision, **asked})
    )


def steps(update: LeaseUpdate) -> list[tuple[int, float]]:
    return [(change["step"], change["value"]) for change in update.update.changes.get("reports", [])]


def test_a_lease_without_anything_pending_sends_a_heartbeat(lease: Lease) -> None:
    assert (lease.is_flushed(), lease.is_over, lease.due) == (True, False, None)
    assert sent(lease).update.changes == {}


def test_what_was_put_is_due_until_it_is_acknowledged(lease: Lease) -> None:
    report(lease, 1, 0.5)
    assert lease.due is not None
    assert not lease.is_flushed()
    update = sent(lease)
    assert (lease.due, lease.is_flushed()) == (None, False)
    acknowledge(lease, update, interrupted=True)
    assert (lease.is_flushed(), lease.interrupted, lease.cancelled) == (True, True, False)


def test_of_a_step_that_was_put_twice_the_later_value_is_sent(lease: Lease) -> None:
    for step, value in ((1, 0.5), (2, 0.6), (1, 0.7)):
        report(lease, step, value)
    assert steps(sent(lease)) == [(1, 0.7), (2, 0.6)]


def test_what_had_no_answer_is_sent_again_before_what_came_later(lease: Lease) -> None:
    report(lease, 1, 0.5)
    sent(lease)
    report(lease, 2, 0.6)
    lease.send_failed()
    assert steps(sent(lease)) == [(1, 0.5), (2, 0.6)]


def test_after_a_crash_of_the_server_what_it_acknowledged_lately_is_sent_again(lease: Lease) -> None:
    report(lease, 1, 0.5)
    acknowledge(lease, sent(lease), revision=4)
    report(lease, 2, 0.6)
    update = sent(lease)
    assert (steps(update), update.update.revision) == ([(2, 0.6)], 4)
    again = lease.repack(update)
    assert (steps(again), again.update.revision) == ([(1, 0.5), (2, 0.6)], 0)


def test_a_result_is_sent_with_all_that_is_pending_and_ends_the_lease(lease: Lease) -> None:
    report(lease, 1, 0.5)
    lease.finish(TrialState.COMPLETE, [1])
    update = sent(lease)
    assert (update.update.state, update.update.values, steps(update)) == ("COMPLETE", [1.0], [(1, 0.5)])
    lease.acknowledge(update, None)
    assert (lease.is_over, lease.lost, lease.is_flushed()) == (True, False, True)
    assert lease.take_pending() is None


@pytest.mark.parametrize("is_result", [False, True])
def test_a_lost_lease_sends_nothing_more(lease: Lease, is_result: bool) -> None:
    report(lease, 1, 0.5)
    if is_result:
        lease.finish(TrialState.PRUNED, None)
    lease.acknowledge(sent(lease), LeaseLost("gone"))
    report(lease, 2, 0.6)
    assert (lease.lost, lease.is_over, lease.is_flushed(), lease.due) == (True, True, True, None)
    assert lease.take_pending() is None


def test_a_refused_change_fails_the_trial_whatever_the_objective_returns(lease: Lease, tmp_path: Path) -> None:
    report(lease, 3, 1.0)
    lease.acknowledge(sent(lease), Acknowledgement(cancelled=False, interrupted=False, revision=1), [REFUSAL])
    with pytest.raises(Refused, match="the database refuses the report of step 3: no"):
        lease.confirm()
    lease.finish(TrialState.COMPLETE, [1.0])
    update = sent(lease).update
    assert (update.state, update.values) == ("FAIL", None)
    [error] = update.changes["user_attrs"]
    assert json.loads(error["value"]) == str(REFUSAL)
    assert len(list(tmp_path.rglob("*.refused"))) == 1


def test_a_result_without_an_answer_waits_on_the_disk_until_there_is_one(
    lease: Lease, tmp_path: Path, stop: threading.Event
) -> None:
    report(lease, 1, 0.5)
    acknowledge(lease, sent(lease))
    report(lease, 2, 0.6)
    lease.finish(TrialState.COMPLETE, [1.0])
    sent(lease)
    lease.send_failed()
    lease.save_result()
    [file] = tmp_path.rglob("*.json")
    saved = json.loads(file.read_text())
    assert [change["step"] for change in saved["changes"]["reports"]] == [1, 2], "a crash may have lost the first"
    stop.set()
    lease.wait_until_flushed()  # not for ever: the worker stops
    assert file.exists()
    lease.acknowledge(sent(lease), None)
    lease.close()
    assert not file.exists()


def test_a_flushed_result_is_not_written_to_the_disk(lease: Lease, tmp_path: Path) -> None:
    lease.finish(TrialState.COMPLETE, [1.0])
    lease.acknowledge(sent(lease), None)
    lease.save_result()
    assert list(tmp_path.iterdir()) == []


def test_a_closed_lease_gives_back_what_the_database_may_not_have(lease: Lease) -> None:
    report(lease, 1, 0.5)
    acknowledge(lease, sent(lease))
    report(lease, 2, 0.6)
    assert [change["step"] for change in lease.close()["reports"]] == [1, 2]
    assert lease.due is None
