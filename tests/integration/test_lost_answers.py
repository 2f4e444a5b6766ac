"""The connection breaks before a statement reaches the server, or after its COMMIT: at every method of the storage.

The client can't know which of the two it was. Whatever it does then, the database must hold what it would hold
had nothing happened, and the caller must get the same answer.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.errors import StorageError, StorageUnreachable
from studies.storage.budgets import Budgets
from studies.storage.evidence import Evidence
from studies.storage.finals import Finals
from studies.storage.leases import Leases
from studies.storage.metrics import Metrics
from studies.storage.notices import Notices
from studies.storage.spaces import Spaces
from studies.storage.workers import Workers
from studies.trial import Trial
from tests.conftest import Server
from tests.support.pool import Pool, Steps
from tests.support.proxy import Proxy, When
from tests.support.stage import CASES, SILENT, Contents, Stages, contents, lose_reports, shown, spec
from tests.support.worker import worker_on

PARTS = {
    **{"budgets": Budgets, "leases": Leases, "metrics": Metrics, "notices": Notices, "workers": Workers},
    **{"evidence": Evidence, "spaces": Spaces, "finals": Finals},
}


def test_every_method_of_the_storage_is_tried_here() -> None:
    public = {name for name in dir(PostgresStorage) if not name.startswith("_")}
    public |= {f"{part}.{name}" for part, of in PARTS.items() for name in vars(of) if not name.startswith("_")}
    assert public == CASES.keys() | SILENT


@pytest.mark.parametrize("method", CASES)
def test_a_broken_connection_changes_nothing_of_what(method: str, proxy: Proxy, stages: Stages) -> None:
    case = CASES[method]
    with closing(PostgresStorage(proxy.url)) as storage:
        stage = stages.set(storage)
        proxy.reset()
        result, statements = shown(case(stage)), list(proxy.statements)
    expected = stages.contents()
    for n, statement in enumerate(statements, 1):
        for break_connection in (proxy.break_before, proxy.break_after):
            with closing(PostgresStorage(proxy.url)) as storage:
                stage = stages.set(storage)
                break_connection(n)
                where = f"{break_connection.__name__}: {statement}"
                assert shown(case(stage)) == result, where
                assert proxy.fired
                assert stages.contents() == expected, where


@pytest.mark.parametrize("slots", [1, 3])
def test_a_worker_whose_every_third_answer_is_lost_does_what_it_does_undisturbed(
    separate_server: Server, tmp_path: Path, slots: int
) -> None:
    def steps(trial: Trial) -> Steps:
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            yield x + step, step, b"state", {"loss": x}
        trial.set_user_attr("x", x)
        return x

    pool = Pool(steps, slots)
    objective = pool if slots > 1 else pool.__call__
    lost: list[int] = []

    def run(*, disturbed: bool) -> Contents:
        def lose(n: int, _text: str, when: When) -> None:
            if when == "after" and n % 3 == 0:
                lost.append(n + 1)
                proxy.break_after()

        with (
            separate_server.database(tables=True) as url,
            Proxy(url) as proxy,
            closing(PostgresStorage(proxy.url, patience=0.5)) as storage,
        ):
            if disturbed:
                proxy.on_query(lose)
            proxy.reset()
            record, _ = storage.create_study(spec("study"))
            storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
            worker = worker_on(storage, record, objective, tmp_path)
            assert worker.run() == "complete"
            return contents(url)

    assert run(disturbed=True) == run(disturbed=False)
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


def test_optunas_own_loop_loses_no_trial_to_a_lost_answer(separate_server: Server) -> None:
    with (
        separate_server.database(tables=True) as url,
        Proxy(url) as proxy,
        closing(PostgresStorage(proxy.url)) as storage,
    ):
        study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(0))
        proxy.on_query(lambda n, _text, when: proxy.break_after() if when == "after" and n % 3 == 0 else None)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=10)
        proxy.on_query(None)
        assert [(trial.number, trial.state) for trial in study.trials] == [(n, TrialState.COMPLETE) for n in range(10)]
        assert len(contents(url)["public.trials"]) == 10


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("told", [1, 2])
def test_what_a_crashed_server_has_lost_of_running_trials_is_told_again(
    storage: PostgresStorage, tmp_path: Path, told: int, slots: int
) -> None:
    """Reports are committed asynchronously: of a server that crashes, the last ones may be gone."""

    def steps(trial: Trial) -> Steps:
        x = trial.suggest_float("x", 0, 1)
        yield 1.0, 0, b"state", {"loss": 3.0}
        lose_reports(storage.location)
        for step in range(1, told):  # the next thing told is a report, or the result
            yield 2.0, step, b"state"
        return x

    pool = Pool(steps, slots)
    data = {"name": "study", "objective": {"path": "tests:objective"}, "budget": {"trials": slots}}
    record, _ = storage.create_study(StudySpec.from_dict(data))
    worker_on(storage, record, pool if slots > 1 else pool.__call__, tmp_path).run()
    trials = storage.trials(record)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * slots
    for trial in trials:
        assert trial.params == {"x": trial.value}
        assert trial.intermediate_values == dict(zip(range(told), [1.0, 2.0], strict=False))
        assert storage.metrics.of(trial)[0] == {"loss": 3.0}
