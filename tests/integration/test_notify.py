"""What happens to a study is told once to each address, however many processes look at it, and whatever fails."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import optuna
import pytest

from studies import PostgresStorage, StudySpec
from studies.notify import events, webhook
from studies.notify import notifier as notify
from studies.notify.notifier import Notifier
from studies.storage.records import Claim, StudyRecord
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.postgres import free_port, start_postgres
from tests.support.waiting import eventually
from tests.support.webhook import SECRET, Webhook


@pytest.fixture
def there() -> Iterator[Webhook]:
    with Webhook() as there:
        yield there


@pytest.fixture
def storage(separate_server: Server) -> Iterator[PostgresStorage]:
    with separate_server.database() as url, closing(PostgresStorage(url)) as storage:
        yield storage


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        *((notify, "POLL", 0.05), (notify, "FIRST_PAUSE", 0.2), (notify, "LAST_PAUSE", 0.1), (events, "QUIET", 0.0)),
        *((events, "GATHER", 0.2), (events, "CONNECTED_SECONDS", 0.0), (webhook, "ANSWER_SECONDS", 0.5)),
    ):
        monkeypatch.setattr(module, name, seconds)


def create(storage: PostgresStorage, url: str | None = None, trials: int = 9, **more: Any) -> StudyRecord:
    data = {
        "name": "study",
        "direction": "maximize",
        "metric": "accuracy",
        "objective": {"path": "tests:objective"},
        "budget": {"trials": trials, "max_failures": 2},
        "notify": {"url": url} if url else {},
        **more,
    }
    record, _ = storage.create_study(StudySpec.from_dict(data))
    storage.workers.register([record], worker_id="w", host="alpha", pid=7, device="cuda:1")
    return record


def finish(storage: PostgresStorage, record: StudyRecord, value: float) -> int:
    """Run a trial to ``value``; returns its number."""
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    distribution = optuna.distributions.FloatDistribution(0, 9)
    storage.set_trial_param(claim.trial_id, "x", value, distribution)
    metric = {"step": 0, "name": "loss", "value": 1 - value}
    storage.leases.finish(claim, "COMPLETE", [value], {"metrics": [metric]})
    return claim.number


def fail(storage: PostgresStorage, record: StudyRecord, error: str) -> None:
    claim = storage.leases.claim(record, "w", 30)
    assert isinstance(claim, Claim)
    attribute = {"key": "error", "value": json.dumps(error)}
    storage.leases.finish(claim, "FAIL", None, {"user_attrs": [attribute]})


@contextmanager
def notifying(
    storage: PostgresStorage, record: StudyRecord, url: str | None = None, stop: float = 3.0
) -> Iterator[list[str]]:
    """A notifier as another process would have it; gives what it warned of."""
    warnings: list[str] = []
    with closing(PostgresStorage(storage.location, patience=0.0)) as own:
        notifier = Notifier(own, [own.find_study(record.name)], url=url, warn=warnings.append)
        notifier.start()
        yield warnings
        notifier.stop(stop)
        for address in notifier._addresses:
            address.join(10)


def test_the_bests_and_the_end_are_told(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url, trials=3)
    with notifying(storage, record) as warnings:
        for value in (0.25, 0.125, 0.5):
            number = finish(storage, record, value)
            eventually(lambda n=number: n == 1 or [m for m in there.events("best") if m["trial"] == n])
        eventually(lambda: there.events("finished"))
    assert [(m["event"], m.get("trial")) for m in there.messages] == [("best", 0), ("best", 2), ("finished", None)]
    best = there.events("best")[1]
    assert best.keys() == {"event", "study", "text", "time", "trial", "value", "params", "metrics"}
    assert best["study"] == "study"
    assert best["text"] == "study: new best accuracy 0.5 in trial 2 (x=0.5)"
    assert (best["value"], best["params"], best["metrics"]) == (0.5, {"x": 0.5}, {"loss": 0.5})
    at = datetime.fromisoformat(best["time"])
    assert at.tzinfo == UTC
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    [end] = there.events("finished")
    assert end["ended"] == "complete"
    assert end["trials"] == {"complete": 3, "pruned": 0, "running": 0, "waiting": 0, "paused": 0, "fail": 0}
    assert end["budget"] == 3
    assert end["best"] == {"trial": 2, "value": 0.5, "params": {"x": 0.5}, "metrics": {"loss": 0.5}}
    assert end["text"] == (
        "study: the budget is spent: 3 of 3 trials done, 0 failed, best accuracy 0.5 in trial 2"
    )  # fmt: skip
    assert warnings == []


def test_a_study_that_failed_out_is_told_with_its_last_error_alone(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url)
    with notifying(storage, record):
        fail(storage, record, "ValueError: first")
        fail(storage, record, "ValueError:\n last")
        eventually(lambda: there.messages)
    [message] = there.messages
    assert (message["event"], message["ended"], message["trial"]) == ("failures", "failures", 1)
    assert message["error"] == "ValueError:\n last"
    assert message["text"].endswith("0 of 9 trials done, 2 failed; the last error, of trial 1: ValueError: last")
    assert message["trials"]["fail"] == 2


def test_only_what_was_asked_for_is_told(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, trials=1, notify={"url": there.url, "events": ["finished"]})
    with notifying(storage, record):
        finish(storage, record, 0.5)
    assert [m["event"] for m in there.messages] == ["finished"]


def test_several_processes_tell_each_address_once(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url, trials=6)
    with (
        Webhook() as other,
        notifying(storage, record),
        notifying(storage, record, other.url),
        notifying(storage, record, other.url),
        notifying(storage, record, there.url),
    ):
        for n in range(6):
            finish(storage, record, n / 8)
            time.sleep(0.1)
        eventually(lambda: there.events("finished") and other.events("finished"))
        time.sleep(0.3)
    for address in (there, other):
        told = [m["trial"] for m in address.events("best")]
        assert len(told) == len(set(told))
        assert max(told) == 5
        assert len(address.events("finished")) == 1


def test_what_is_there_when_a_process_begins_is_no_news(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url, trials=2)
    finish(storage, record, 0.5)
    storage.workers.register([record], worker_id="dead", host="beta", pid=8, device="cpu")
    storage.workers.forget("dead", died_of="a signal")
    with notifying(storage, record):
        finish(storage, record, 0.25)
        eventually(lambda: there.events("finished"))
    with notifying(storage, record):
        time.sleep(0.2)
    assert [m["event"] for m in there.messages] == ["finished"]
    storage.budgets.extend(record, more_trials=1)
    with notifying(storage, record):
        finish(storage, record, 0.75)
    assert [m["event"] for m in there.messages] == ["finished", "best", "finished"]


def test_what_a_process_took_and_did_not_tell_the_next_one_tells(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url)
    with notifying(storage, record):  # only to learn what the address is called
        finish(storage, record, 0.125)
        eventually(lambda: there.messages)
    [(address,)] = [tuple(r.values()) for r in storage.database.execute("select address from studyhall.notices")]
    finish(storage, record, 0.25)
    finish(storage, record, 0.5)
    assert storage.notices.take(record, address, ["best 1", "best 2"], "dead") == ["best 1", "best 2"]
    assert storage.notices.take(record, address, ["best 0", "best 2"], "other") == []
    with notifying(storage, record):
        time.sleep(0.3)
        assert len(there.messages) == 1  # the minute is not over
        storage.database.execute("update studyhall.notices set taken_till = now() - interval '1 second'")
        eventually(lambda: len(there.messages) == 2)
        time.sleep(0.2)
    assert [m["trial"] for m in there.messages] == [0, 2]  # trial 1 is the best no more
    rows = storage.database.execute("select count(*) from studyhall.notices where told_at is null")
    assert rows == [{"count": 0}]


def test_new_bests_are_told_now_and_then_and_the_last_one_wins(
    storage: PostgresStorage, there: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET", 1.0)
    record = create(storage, there.url, trials=30)
    began = time.monotonic()
    with notifying(storage, record):
        for n in range(15):
            finish(storage, record, n / 16)
            time.sleep(0.02)
        eventually(lambda: there.messages and there.messages[-1]["trial"] == 14)
    assert len(there.messages) <= 2 + (time.monotonic() - began) / events.QUIET


@pytest.mark.parametrize("status", [503, 429, 0])
def test_an_address_that_fails_is_tried_again_until_it_answers(
    storage: PostgresStorage, there: Webhook, status: int
) -> None:
    record = create(storage, there.url)
    there.status = status
    with notifying(storage, record) as warnings:
        finish(storage, record, 0.25)
        eventually(lambda: len(there.tries) == 3)
        finish(storage, record, 0.5)
        there.status = 200
        eventually(lambda: there.messages)
    assert [m["trial"] for m in there.messages] == [1]
    pauses = [b - a for a, b in zip(there.tries, there.tries[1:], strict=False)]
    assert pauses[0] >= 0.15  # of 0.2, and doubled then: a busy machine notes a request late
    assert pauses[1] >= 0.3
    [warning] = warnings
    assert warning.startswith(f"notifications: http://{there.host}/***: ")
    assert warning.endswith("; it is sent again later")
    assert "c4n4ry" not in warning


def test_an_address_that_refuses_is_given_up(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url, trials=2)
    there.status = 404
    with notifying(storage, record) as warnings:
        finish(storage, record, 0.25)
        eventually(lambda: there.tries)
        finish(storage, record, 0.5)
        time.sleep(0.2)
    assert len(there.tries) == 1
    assert warnings == [
        f"notifications: http://{there.host}/***: it answers 404 Not Found; nothing more is sent there"
    ]  # fmt: skip


def test_one_address_that_hangs_does_not_hold_up_another(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, f"http://127.0.0.1:{free_port()}{SECRET}", trials=1)
    with Webhook() as hanging:
        hanging.status = 0
        with notifying(storage, record, hanging.url), notifying(storage, record, there.url, stop=0.5):
            finish(storage, record, 0.25)
            eventually(lambda: there.events("finished"))
            eventually(lambda: hanging.tries)


def test_at_the_end_it_is_waited_for_no_longer_than_asked(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url, trials=1)
    there.status = 0
    notifier = Notifier(storage, [record], warn=lambda _: None)
    notifier.start()
    finish(storage, record, 0.5)
    eventually(lambda: there.tries)
    notifier.stop(0.3)
    assert all(address.is_alive() for address in notifier._addresses)  # it still waits for the answer
    for address in notifier._addresses:
        address.join(120)
        assert not address.is_alive()


def test_workers_that_die_together_are_one_message(
    storage: PostgresStorage, there: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "GATHER", 3.0)
    record = create(storage, there.url)
    with notifying(storage, record):
        for n in range(3):
            storage.workers.register([record], worker_id=f"w{n}", host="beta", pid=n, device="cpu")
            storage.workers.forget(f"w{n}", died_of="signal 9 (SIGKILL)" if n < 2 else None)
            time.sleep(0.05)
        eventually(lambda: there.messages)
        time.sleep(0.3)
    [message] = there.messages
    assert message["event"] == "worker_lost"
    assert [w["worker"] for w in message["workers"]] == ["w0", "w1"]
    assert {k: message[k] for k in ("worker", "host", "pid", "device", "reason")} == {
        "worker": "w0",
        "host": "beta",
        "pid": 0,
        "device": "cpu",
        "reason": "signal 9 (SIGKILL)",
    }
    assert message["seen_seconds_ago"] < 120
    assert message["text"] == (
        "study: 2 workers were lost: beta (pid 0, cpu): signal 9 (SIGKILL); beta (pid 1, cpu): signal 9 (SIGKILL)"
    )


def let_the_server_be_up(storage: PostgresStorage, since: str) -> None:
    """As if the server had started so long ago, however lately the tests' own did."""
    storage.database.execute(
        "create function studyhall.pg_postmaster_start_time() returns timestamptz language sql as"
        f" $$ select now() - interval '{since}' $$"
    )
    name = storage.location.database
    storage.database.execute(f"alter database {name} set search_path = studyhall, public, pg_catalog")
    storage.close()  # the next connection sees it


def silence(storage: PostgresStorage, seconds: int) -> None:
    """Let all workers have been silent for so long."""
    storage.database.execute(f"update studyhall.workers set seen_at = now() - interval '{seconds} seconds'")


def test_a_worker_that_is_silent_for_two_leases_is_lost(storage: PostgresStorage, there: Webhook) -> None:
    let_the_server_be_up(storage, "1 day")
    record = create(storage, there.url)
    assert isinstance(storage.leases.claim(record, "w", 300), Claim)
    with notifying(storage, record):
        for seconds, count in ((50, 0), (500, 0), (700, 1)):
            silence(storage, seconds)
            time.sleep(0.5)
            eventually(lambda count=count: len(there.messages) >= count, f"{count} messages after {seconds} s")
            assert len(there.messages) == count, seconds
    [message] = there.messages
    assert (message["worker"], message["host"], message["pid"], message["device"]) == ("w", "alpha", 7, "cuda:1")
    assert 700 <= message["seen_seconds_ago"] < 820
    assert re.match(r"no heartbeat for [78]\d\d", message["reason"])


def test_a_worker_is_not_called_lost_by_a_process_that_has_just_come(
    storage: PostgresStorage, there: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CONNECTED_SECONDS", 60.0)
    let_the_server_be_up(storage, "1 day")
    record = create(storage, there.url)
    with notifying(storage, record):
        silence(storage, 700)
        time.sleep(0.5)
    assert there.messages == []


@pytest.mark.parametrize(("since", "count"), [("30 seconds", 0), ("2 minutes", 1)])
def test_nor_right_after_the_server_came_back(storage: PostgresStorage, since: str, count: int) -> None:
    let_the_server_be_up(storage, since)
    record = create(storage)
    silence(storage, 700)
    assert len(storage.workers.lost(record)) == count


def test_an_outage_of_the_database_delays_a_message(there: Webhook) -> None:
    with start_postgres() as postgres:
        storage = PostgresStorage(StorageURL.parse(postgres.url))
        record = create(storage, there.url)
        with notifying(storage, record) as warnings:
            finish(storage, record, 0.25)
            eventually(lambda: there.messages)
            postgres.restart()
            time.sleep(0.3)
            finish(storage, record, 0.5)
            eventually(lambda: len(there.messages) == 2)
        assert [m["trial"] for m in there.messages] == [0, 1]
        assert warnings == []
        storage.close()


def test_a_study_that_is_deleted_is_told_of_no_more(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url)
    with notifying(storage, record) as warnings:
        finish(storage, record, 0.25)
        eventually(lambda: there.messages)
        storage.delete(record)
        time.sleep(0.3)
        create(storage, there.url)
        time.sleep(0.3)
    assert len(there.messages) == 1
    assert warnings == []


def test_a_study_of_stock_optuna_s_is_told_of_to_the_address_of_the_command(
    storage: PostgresStorage, there: Webhook
) -> None:
    study = optuna.create_study(storage=storage, study_name="stock")
    with notifying(storage, storage.find_study("stock"), there.url):
        study.optimize(lambda trial: trial.suggest_categorical("x", [None, True, 1.5]) or 2.0, n_trials=1)
        eventually(lambda: there.messages)
    assert there.messages[0]["text"].startswith("stock: new best value ")


def test_the_secret_is_in_one_table_alone(storage: PostgresStorage, there: Webhook) -> None:
    record = create(storage, there.url)
    with notifying(storage, record):
        finish(storage, record, 0.25)
    tables = storage.database.execute(
        "select format('%I.%I', table_schema, table_name) as name from information_schema.tables"
        " where table_schema in ('public', 'studyhall')"
    )
    holding = [
        table["name"]
        for table in tables
        if storage.database.execute(f"select 1 from {table['name']} t where t::text like '%c4n4ry%'")
    ]
    assert holding == ["studyhall.addresses"]
    found = storage.find_study("study").spec
    assert found is not None
    assert found.notify.url == there.url
