"""Every method of the storage, called on a study in the middle of its work: the same one for each call."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import psycopg2
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from psycopg2.extensions import cursor

from studies import PostgresStorage, StudySpec
from studies.errors import NothingFinished
from studies.storage.evidence import ForeignTrial
from studies.storage.records import Claim, StudyRecord, Update
from studies.storage.url import StorageURL

UNIT = FloatDistribution(0, 1)
REPORT = {"reports": [{"step": 7, "value": 0.75}], "metrics": [{"step": 7, "name": "loss", "value": 2.0}]}

TOKEN = "00000000-0000-4000-8000-000000000000"
EVIDENCE = ForeignTrial(source="old", number=3, params={"x": 0.5}, values=[1.0], constraints={})


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A study in the middle of its work, the same each time."""

    storage: PostgresStorage
    record: StudyRecord
    claim: Claim
    """Of trial 1, which worker ``w`` runs; it has a report, a parameter and two checkpoints."""
    done: Claim
    """Of trial 0, which is complete."""
    plain: int
    """The id of trial 2, which this process runs without a lease."""
    waiting: int
    """The id of trial 4, which waits."""

    @property
    def study_id(self) -> int:
        return self.record.study_id

    @property
    def claims(self) -> list[Claim]:
        """One that is held, and one that is over."""
        return [self.claim, self.done]

    def trial(self, number: int) -> FrozenTrial:
        return self.storage.trial(self.record, number)


CASES: dict[str, Callable[[Stage], Any]] = {
    # Optuna's contract
    "create_new_study": lambda s: s.storage.create_new_study([StudyDirection.MAXIMIZE], "new"),
    "delete_study": lambda s: s.storage.delete_study(s.study_id),
    "set_study_user_attr": lambda s: s.storage.set_study_user_attr(s.study_id, "key", 1),
    "set_study_system_attr": lambda s: s.storage.set_study_system_attr(s.study_id, "key", 1),
    "get_study_id_from_name": lambda s: s.storage.get_study_id_from_name("other"),
    "get_study_name_from_id": lambda s: s.storage.get_study_name_from_id(s.study_id),
    "get_study_directions": lambda s: s.storage.get_study_directions(s.study_id),
    "get_study_user_attrs": lambda s: s.storage.get_study_user_attrs(s.study_id),
    "get_study_system_attrs": lambda s: s.storage.get_study_system_attrs(s.study_id),
    "get_all_studies": lambda s: [vars(study) for study in s.storage.get_all_studies()],
    "create_new_trial": lambda s: s.storage.create_new_trial(s.study_id),
    "set_trial_param": lambda s: s.storage.set_trial_param(s.plain, "x", 0.5, UNIT),
    "set_trial_intermediate_value": lambda s: s.storage.set_trial_intermediate_value(s.plain, 1, 0.5),
    "set_trial_user_attr": lambda s: s.storage.set_trial_user_attr(s.plain, "key", 1),
    "set_trial_system_attr": lambda s: s.storage.set_trial_system_attr(s.plain, "key", 1),
    "set_trial_state_values": lambda s: (
        s.storage.set_trial_state_values(s.waiting, TrialState.RUNNING),
        s.storage.set_trial_state_values(s.plain, TrialState.COMPLETE, [1.0]),
    ),
    "get_trial": lambda s: s.storage.get_trial(s.claim.trial_id),
    "get_trial_id_from_study_id_trial_number": lambda s: s.storage.get_trial_id_from_study_id_trial_number(
        s.study_id, 1
    ),
    "get_trial_number_from_id": lambda s: s.storage.get_trial_number_from_id(s.waiting),
    "get_trial_param": lambda s: s.storage.get_trial_param(s.claim.trial_id, "x"),
    "get_trial_params": lambda s: s.storage.get_trial_params(s.claim.trial_id),
    "get_trial_user_attrs": lambda s: s.storage.get_trial_user_attrs(s.claim.trial_id),
    "get_trial_system_attrs": lambda s: s.storage.get_trial_system_attrs(s.claim.trial_id),
    "get_all_trials": lambda s: s.storage.get_all_trials(s.study_id),
    "changes": lambda s: [list(part) for part in s.storage.changes(s.study_id, 0)[:2]],
    "get_n_trials": lambda s: s.storage.get_n_trials(s.study_id),
    "get_best_trial": lambda s: s.storage.get_best_trial(s.study_id),
    "agree": lambda s: s.storage.agree(s.study_id, "new", UNIT),
    # Studies
    "create_study": lambda s: s.storage.create_study(spec("new")),
    "find_study": lambda s: s.storage.find_study("study"),
    "study_names": lambda s: s.storage.study_names(),
    "list_studies": lambda s: s.storage.list_studies(),
    "load_study": lambda s: s.storage.load_study(s.record).study_name,
    "status": lambda s: s.storage.status(s.record),
    "find_best": lambda s: s.storage.find_best(s.record),
    "front": lambda s: s.storage.front(s.record),
    "refuse_best": lambda s: _refusal(lambda: s.storage.refuse_best(s.record)),
    "environment": lambda s: s.storage.environment(s.record),
    "settle_environment": lambda s: s.storage.settle_environment(s.record, {"python": "3.99"}),
    "best": lambda s: s.storage.best(s.record),
    "trials": lambda s: s.storage.trials(s.record),
    "trial": lambda s: s.storage.trial(s.record, 0),
    "metrics.of": lambda s: s.storage.metrics.of(s.trial(0)),
    "metrics.last": lambda s: s.storage.metrics.last([s.trial(0)]),
    "metrics.curves": lambda s: [
        (p.step, p.name, p.value) for p in s.storage.metrics.curves([s.trial(0), s.trial(1)])[1]
    ],
    "leases.timings": lambda s: s.storage.leases.timings(s.record, 1),
    "leases.attempts": lambda s: s.storage.leases.attempts(s.record),
    "budgets.epochs_left": lambda s: s.storage.budgets.epochs_left(s.record),
    "budgets.extend": lambda s: s.storage.budgets.extend(s.record, more_trials=5),
    "change_directions": lambda s: s.storage.change_directions(s.storage.create_study(spec("new"))[0], ["maximize"]),
    "objective_names": lambda s: s.storage.objective_names(replace(s.record, spec=None)),
    "connections": lambda s: s.storage.connections[1],
    "require": lambda s: s.storage.require("owner"),
    "study_uids": lambda s: len(s.storage.study_uids()),
    "identity": lambda s: s.storage.identity,
    "budgets.stop": lambda s: s.storage.budgets.stop(s.record, "enough"),
    "budgets.pause": lambda s: s.storage.budgets.pause(s.record),
    "budgets.resume": lambda s: s.storage.budgets.resume(s.record),
    "cancel": lambda s: [s.storage.cancel(s.trial(number)) for number in range(5)],
    "delete": lambda s: s.storage.delete(s.record),
    # Workers
    "workers.register": lambda s: s.storage.workers.register([s.record], worker_id="n", host="h", pid=1, device="cpu"),
    "workers.forget": lambda s: s.storage.workers.forget("w"),
    "leases.claim": lambda s: (s.storage.leases.claim(s.record, "w", 30), s.storage.leases.claim(s.record, "w", 30)),
    "leases.write": lambda s: s.storage.leases.write(s.claim, REPORT, step=7),
    "leases.finish": lambda s: s.storage.leases.finish(s.claim, "COMPLETE", [0.5], REPORT),
    "leases.claim_many": lambda s: [s.storage.leases.claim_many(s.record, "w", 30, count=2) for _ in range(2)],
    "leases.write_many": lambda s: s.storage.leases.write_many([Update(claim=c, changes=REPORT) for c in s.claims]),
    "leases.finish_many": lambda s: s.storage.leases.finish_many(
        [Update(claim=c, changes=REPORT, state="COMPLETE", values=[0.5]) for c in s.claims]
    ),
    "leases.requeue": lambda s: s.storage.leases.requeue(s.claim, REPORT),
    "workers.of": lambda s: [w.id for w in s.storage.workers.of(s.record)],
    "workers.heartbeat": lambda s: s.storage.workers.heartbeat("w"),
    "workers.reap": lambda s: s.storage.workers.reap(["w"], died_of="a signal"),
    "workers.bury_all": lambda s: s.storage.workers.bury_all(before=time.time() + 60),
    # The names it returns are files that nothing needs: after a lost answer they lie there until the trial ends.
    "leases.save_checkpoint": lambda s: bool(
        s.storage.leases.save_checkpoint(s.claim, sequence=3, name="1/1-3", step=3, sha256=b"3", data=b"3") and False
    ),
    "leases.requeue_expired": lambda s: s.storage.leases.requeue_expired(s.record),
    "leases.checkpoints": lambda s: s.storage.leases.checkpoints(s.claim.trial_id),
    # Notices
    "notices.of": lambda s: s.storage.notices.of(s.record, "address"),
    "notices.take": lambda s: s.storage.notices.take(s.record, "address", ["best 0", "finished"], "taker"),
    "notices.mark_sent": lambda s: s.storage.notices.mark_sent(s.record, "address", ["old"]),
    # Evidence and spaces
    "evidence.add": lambda s: s.storage.evidence.add(s.record, [EVIDENCE, replace(EVIDENCE, number=4)]),
    "evidence.of": lambda s: s.storage.evidence.of(s.record),
    "evidence.counts": lambda s: s.storage.evidence.counts(s.record),
    "evidence.in_words": lambda s: s.storage.evidence.in_words(s.record),
    "spaces.text": lambda s: s.storage.spaces.text(s.record),
    "spaces.change": lambda s: s.storage.spaces.change(
        s.record, s.storage.spaces.text(s.record), spec("study").model_copy(update={"seed": 1}), who="w", change="c"
    ),
    "spaces.changes": lambda s: s.storage.spaces.changes(s.record),
    # The final model
    "finals.lease": lambda s: s.storage.finals.lease(s.record, TOKEN, holder="h", seconds=30),
    "finals.holder": lambda s: s.storage.finals.holder(s.record),
    "finals.release": lambda s: s.storage.finals.release(s.record, TOKEN),
    "workers.lost": lambda s: [(w.worker, w.died_of) for w in s.storage.workers.lost(s.record)],
}
#: What sends nothing.
SILENT = {
    "check_trial_is_updatable",
    "close",
    "leases.attach",
    "leases.release",
    "remove_session",
    "require_same",
    "set_space",
    "stop",
    "where",
}
Contents = dict[str, list[str]]
_OLD_SECONDS: Final = 10.0
"""Age at which the stage is set up again: leases expire after 30 s."""


def _refusal(call: Callable[[], NoReturn]) -> str:
    with pytest.raises(NothingFinished) as caught:
        call()
    return str(caught.value)


def spec(name: str) -> StudySpec:
    return StudySpec.from_dict({"name": name, "objective": {"path": "tests:objective"}, "budget": {"trials": 8}})


class Stages:
    """A database that is brought to the same stage for each call, with the same ids.

    The first stage is made by the storage's own methods and copied to a schema ``stage``. The others are copied back,
    at a tenth of the cost. Nothing is copied or read while no transaction has written.
    """

    def __init__(self, url: StorageURL) -> None:
        with closing(PostgresStorage(url)) as storage:
            self._first = _set_up(storage)
        self._connection = psycopg2.connect(**url.libpq)
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._restore = _save(self._cursor)
        self._select = _select_contents(self._cursor)
        self._contents: Contents = {}
        self._read_at = self._restored_at = ""  # of _writes
        self._restored = 0.0

    def close(self) -> None:
        self._connection.close()

    def set(self, storage: PostgresStorage) -> Stage:
        """Bring the database to the stage, for a storage that has read nothing yet."""
        if self._writes() != self._restored_at or time.monotonic() - self._restored > _OLD_SECONDS:
            self._cursor.execute(self._restore)
            self._restored_at, self._restored = self._writes(), time.monotonic()
        first = self._first
        (plain,) = (trial for trial in storage.get_all_trials(first.study_id) if trial._trial_id == first.plain)
        storage._known.put(first.study_id, plain)  # as if it had created it
        return replace(first, storage=storage)

    def contents(self) -> Contents:
        """Those of the database, by :func:`contents`."""
        if self._writes() != self._read_at:
            self._contents = _read(self._cursor, self._select)
            self._read_at = self._writes()
        return self._contents

    def _writes(self) -> str:
        """Changes with each transaction that wrote something."""
        self._cursor.execute("select pg_snapshot_xmax(pg_current_snapshot())::text")
        return str(self._cursor.fetchone())


def _save(cursor: cursor) -> str:
    """Copy all tables to a schema ``stage``; the statements that copy them back, with all times moved to now."""
    cursor.execute("create schema stage; select now()::text")
    ((now,),) = cursor.fetchall()
    cursor.execute(
        "select format('%%I.%%I', table_schema, table_name),"
        " string_agg(quote_ident(column_name), ', ' order by ordinal_position),"
        # Not that of the tables' creation, which is the identity of the database.
        " string_agg(quote_ident(column_name) || case"
        " when data_type like 'timestamp%%' and table_name <> 'version' then"
        "  format(' + (now() - timestamptz %%L)', %(now)s) else '' end, ', ' order by ordinal_position)"
        " from information_schema.columns join information_schema.tables using (table_schema, table_name)"
        " where table_schema in ('public', 'studyhall') and table_type = 'BASE TABLE' group by 1",
        {"now": now},
    )
    # Neither triggers nor foreign keys: each table is copied as it is.
    restore = ["set local session_replication_role = replica"]
    for table, columns, values in cursor.fetchall():
        copy = f'stage."{table}"'
        cursor.execute(f"create table {copy} as table {table}")
        restore.append(f"delete from {table}")
        restore.append(f"insert into {table} ({columns}) overriding system value select {values} from {copy}")
    cursor.execute(
        "select format('select setval(%L, %s, %L)', format('%I.%I', schemaname, sequencename),"
        " coalesce(last_value, 1), last_value is not null)"
        " from pg_sequences where schemaname in ('public', 'studyhall')"
    )
    return "; ".join(restore + [statement for (statement,) in cursor])


def contents(url: StorageURL) -> Contents:
    """All rows of all tables, but for times, random ids, revisions, and the keys that nothing refers to (what is
    written over uses up one); and the trials of each study as they are counted, whether they already were or not.
    """
    with closing(psycopg2.connect(**url.libpq)) as connection, connection.cursor() as cursor:
        return _read(cursor, _select_contents(cursor))


def _read(cursor: cursor, select: str) -> Contents:
    cursor.execute(select)
    return dict(cursor.fetchall())


def _select_contents(cursor: cursor) -> str:
    cursor.execute(
        "select format('%I.%I', table_schema, table_name),"
        " string_agg(quote_ident(column_name), ', ' order by ordinal_position) from information_schema.columns"
        " join information_schema.tables using (table_schema, table_name)"
        " where table_schema in ('public', 'studyhall') and table_type = 'BASE TABLE'"
        " and data_type not like 'time%' and data_type not in ('uuid', 'xid8') and column_name <> 'revision'"
        " and table_name not in ('transitions', 'tallies')"
        " and column_name !~ '(param|value|attribute|direction|heartbeat)_id$' group by 1"
    )
    parts = [f"select '{table}' as name, row({columns})::text as row from {table}" for table, columns in cursor]
    parts.append(
        "select 'tally', (t.study_id, waiting, running, complete, pruned, failed, cancelled, best)::text"
        " from studies s, studyhall.tally(s.study_id) t"
    )
    return f"select name, array_agg(row order by row) from ({' union all '.join(parts)}) all_rows group by name"


def _set_up(storage: PostgresStorage) -> Stage:
    record, _ = storage.create_study(spec("study"))
    storage.create_study(spec("other"))
    storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
    done, held = (storage.leases.claim(record, worker, 30) for worker in ("done", "w"))
    assert isinstance(done, Claim)
    assert isinstance(held, Claim)
    storage.leases.finish(done, "COMPLETE", [0.25], REPORT)
    storage.set_trial_param(held.trial_id, "x", 0.5, UNIT)
    storage.leases.write(held, {"reports": [{"step": 1, "value": 0.5}]}, step=1)
    for n in (1, 2):
        storage.leases.save_checkpoint(held, sequence=n, name=f"1/1-{n}", step=n, sha256=b"%d" % n, data=b"%d" % n)
    plain = storage.create_new_trial(record.study_id)
    assert isinstance(storage.leases.claim(record, "silent", 0), Claim)  # trial 3, for whoever sweeps
    waiting = storage.create_new_trial(record.study_id, create_trial(state=TrialState.WAITING))
    storage.notices.take(record, "address", ["old"], "taker")
    storage.evidence.add(record, [EVIDENCE])
    storage.finals.lease(record, TOKEN, holder="h", seconds=30)
    storage.workers.register([record], worker_id="lost", host="host", pid=2, device="cpu")
    storage.workers.forget("lost", died_of="a signal")
    return Stage(storage=storage, record=record, claim=held, done=done, plain=plain, waiting=waiting)


def lose_reports(url: StorageURL) -> None:
    """What a crash of the server may do to a trial that runs: its newest statement is gone."""
    with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
        for table in ("trial_params", "trial_intermediate_values", "studyhall.metrics"):
            cursor.execute(f"delete from {table}")
        cursor.execute("update studyhall.leases set revision = revision - 1, step = null")


def shown(result: object) -> str:
    """A result without what differs from one time to the next."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", repr(result))
    text = re.sub(r"revision=\d+", "revision=N", text)
    text = re.sub(r"datetime\.datetime\([^)]*\)", "TIME", text)
    return re.sub(r"(seconds_ago\W+)[\d.e-]+", r"\1SECONDS", text)
