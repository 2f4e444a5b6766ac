"""The connection breaks before a statement reaches the server, or after its COMMIT: at every method of the storage.

The client can't know which of the two it was. Whatever it does then, the database must hold what it would hold
had nothing happened, and the caller must get the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from studies import PostgresStorage, StudySpec
from studies.errors import StorageError, StorageUnreachable
from studies.storage.budgets import Budgets
from studies.storage.leases import Leases
from studies.storage.metrics import Metrics
from studies.storage.notices import Notices
from studies.storage.records import Claim, StudyRecord, Update
from studies.storage.url import StorageURL
from studies.storage.workers import Workers
from studies.trial import Trial
from tests.conftest import Server
from tests.support.proxy import Proxy, When
from tests.support.worker import worker_on

UNIT = FloatDistribution(0, 1)
EMPTY = (
    "truncate studies, studyhall.workers, studyhall.requests, studyhall.transitions, trials restart identity cascade"
)
REPORT = {"reports": [{"step": 7, "value": 0.75}], "metrics": [{"step": 7, "name": "loss", "value": 2.0}]}


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
    "get_study_name_from_id": lambda s: _fresh(s).get_study_name_from_id(s.study_id),
    "get_study_directions": lambda s: _fresh(s).get_study_directions(s.study_id),
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
    "best": lambda s: s.storage.best(s.record),
    "trials": lambda s: s.storage.trials(s.record),
    "trial": lambda s: s.storage.trial(s.record, 0),
    "metrics.of": lambda s: s.storage.metrics.of(s.trial(0)),
    "metrics.last": lambda s: s.storage.metrics.last([s.trial(0)]),
    "metrics.curves": lambda s: [
        (p.step, p.name, p.value) for p in s.storage.metrics.curves([s.trial(0), s.trial(1)])[1]
    ],
    "leases.attempts": lambda s: s.storage.leases.attempts(s.record),
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
    "workers.lost": lambda s: [(w.worker, w.died_of) for w in s.storage.workers.lost(s.record)],
}
#: What sends nothing.
SILENT = {
    "check_trial_is_updatable",
    "close",
    "known_trials",
    "leases.attach",
    "leases.release",
    "remove_session",
    "require_same",
    "stop",
    "where",
}
PARTS = {"budgets": Budgets, "leases": Leases, "metrics": Metrics, "notices": Notices, "workers": Workers}


def _fresh(stage: Stage) -> PostgresStorage:
    """The storage, without what it remembers of its studies."""
    stage.storage._studies.clear()
    return stage.storage


def spec(name: str) -> StudySpec:
    return StudySpec.from_dict({"name": name, "objective": {"path": "tests:objective"}, "budget": {"trials": 8}})


def set_up(storage: PostgresStorage) -> Stage:
    """Bring the database to the same stage, with the same ids."""
    storage.database.execute(EMPTY)
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
    storage.workers.register([record], worker_id="lost", host="host", pid=2, device="cpu")
    storage.workers.forget("lost", died_of="a signal")
    storage.get_all_trials(record.study_id)
    return Stage(storage=storage, record=record, claim=held, done=done, plain=plain, waiting=waiting)


def contents(url: StorageURL) -> dict[str, list[str]]:
    """All rows of all tables, but for times, random ids, revisions, and the keys that nothing refers to (what is
    written over uses up one); and the trials of each study as they are counted, whether they already were or not."""
    with closing(psycopg2.connect(**url.libpq)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select table_schema || '.' || table_name,"
            " string_agg(quote_ident(column_name), ', ' order by ordinal_position) from information_schema.columns"
            " join information_schema.tables using (table_schema, table_name)"
            " where table_schema in ('public', 'studyhall') and table_type = 'BASE TABLE'"
            " and data_type not like 'time%' and data_type not in ('uuid', 'xid8') and column_name <> 'revision'"
            " and table_name not in ('transitions', 'tallies')"
            " and column_name !~ '(param|value|attribute|direction|heartbeat)_id$' group by 1"
        )
        found = {}
        for table, columns in cursor.fetchall():
            cursor.execute(f"select row({columns})::text from {table} order by 1")
            found[table] = [row for (row,) in cursor.fetchall()]
        cursor.execute(
            "select (t.study_id, waiting, running, complete, pruned, failed, cancelled, best)::text"
            " from studies s, studyhall.tally(s.study_id) t order by 1"
        )
        found["tally"] = [row for (row,) in cursor.fetchall()]
        return found


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


def test_every_method_of_the_storage_is_tried_here() -> None:
    public = {name for name in dir(PostgresStorage) if not name.startswith("_")}
    public |= {f"{part}.{name}" for part, of in PARTS.items() for name in vars(of) if not name.startswith("_")}
    assert public == CASES.keys() | SILENT


@pytest.mark.parametrize("method", CASES)
def test_a_broken_connection_changes_nothing_of_what(method: str, proxy: Proxy, database: StorageURL) -> None:
    case = CASES[method]
    with closing(PostgresStorage(proxy.url)) as storage:
        stage = set_up(storage)
        proxy.reset()
        result, statements = shown(case(stage)), list(proxy.statements)
        expected = contents(database)
    for n, statement in enumerate(statements, 1):
        for break_connection in (proxy.break_before, proxy.break_after):
            with closing(PostgresStorage(proxy.url)) as storage:
                stage = set_up(storage)
                break_connection(n)
                where = f"{break_connection.__name__}: {statement}"
                assert shown(case(stage)) == result, where
                assert proxy.fired
                assert contents(database) == expected, where


def test_a_worker_whose_every_third_answer_is_lost_does_what_it_does_undisturbed(
    proxy: Proxy, database: StorageURL, tmp_path: Path
) -> None:
    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            trial.report(x + step, step, loss=x)
            trial.checkpoint(step, b"state")
            if trial.should_prune():
                raise trial.Pruned
        trial.set_user_attr("x", x)
        return x

    lost: list[int] = []

    def lose(n: int, _text: str, when: When) -> None:
        if when == "after" and n % 3 == 0:
            lost.append(n + 1)
            proxy.break_after()

    def run() -> dict[str, list[str]]:
        with closing(PostgresStorage(proxy.url, patience=0.5)) as storage:
            storage.database.execute(EMPTY)
            record, _ = storage.create_study(spec("study"))
            storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
            worker = worker_on(storage, record, objective, tmp_path)
            assert worker.run() == "complete"
            return contents(database)

    undisturbed = run()
    proxy.on_query(lose)
    proxy.reset()
    assert run() == undisturbed
    assert len(lost) > 10


@pytest.mark.slow
def test_a_process_that_was_cut_off_while_it_made_the_tables_makes_them_the_next_time(separate_server: Server) -> None:
    with separate_server.database() as url, Proxy(url) as proxy:
        PostgresStorage(proxy.url).close()
        expected, statements = contents(url), len(proxy.statements)
    assert statements > 20
    for n in range(1, statements + 1, 7):
        with separate_server.database() as url, Proxy(url) as proxy:
            (proxy.break_after if n % 2 else proxy.break_before)(n)
            try:
                PostgresStorage(proxy.url).close()
            except StorageUnreachable:
                PostgresStorage(proxy.url).close()
            except StorageError as error:
                pytest.fail(f"statement {n}, {proxy.statements[n - 1]}: {error}")
            assert proxy.fired
            assert contents(url) == expected, proxy.statements[n - 1]


def test_optunas_own_loop_loses_no_trial_to_a_lost_answer(proxy: Proxy, database: StorageURL) -> None:
    with closing(PostgresStorage(proxy.url)) as storage:
        storage.database.execute(EMPTY)
        study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(0))
        proxy.on_query(lambda n, _text, when: proxy.break_after() if when == "after" and n % 3 == 0 else None)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=10)
        proxy.on_query(None)
        assert [(trial.number, trial.state) for trial in study.trials] == [(n, TrialState.COMPLETE) for n in range(10)]
        assert len(contents(database)["public.trials"]) == 10


@pytest.mark.parametrize("steps", [1, 2])
def test_what_a_crashed_server_has_lost_of_a_running_trial_is_told_again(
    database: StorageURL, tmp_path: Path, steps: int
) -> None:
    """Reports are committed asynchronously: of a server that crashes, the last ones may be gone."""

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(1.0, 0, loss=3.0)
        lose_reports(database)
        for step in range(1, steps):  # the next thing told is a report, or the result
            trial.report(2.0, step)
        return x

    with closing(PostgresStorage(database)) as storage:
        storage.database.execute(EMPTY)
        data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": 1}}
        record, _ = storage.create_study(StudySpec.from_dict(data))
        worker_on(storage, record, objective, tmp_path).run()
        [trial] = storage.trials(record)
        assert trial.state == TrialState.COMPLETE
        assert trial.params == {"x": trial.value}
        assert trial.intermediate_values == dict(zip(range(steps), [1.0, 2.0], strict=False))
        assert storage.metrics.of(trial)[0] == {"loss": 3.0}
