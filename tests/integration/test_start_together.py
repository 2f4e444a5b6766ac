"""Many processes on an empty database at the same moment; threads and forked children on one storage."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Final

import pytest
from optuna.trial import TrialState

from studies import PostgresStorage, StudySpec
from studies.storage.database import MAX_CONNECTIONS
from studies.storage.url import StorageURL
from studies.trial import Trial
from tests.conftest import Server
from tests.support.worker import worker_on

pytestmark = [pytest.mark.both_servers, pytest.mark.slow]

# Read here: a test sees no such variables.
ROUNDS: Final = int(os.environ.get("STUDYHALL_ROUNDS", "2"))
PROCESSES: Final = 16
TRIALS: Final = 40

_start: Any = None  # the barrier, in each process


def set_start(barrier: Any) -> None:
    global _start
    _start = barrier


def begin_and_work(url: str, results: Path) -> tuple[int, bool, str]:
    """Open the storage with all others, create or join the study, and work on it.

    Returns:
        The study's id, whether this process created it, and why its worker ended.
    """
    _start.wait(timeout=300)
    storage = PostgresStorage(url)
    with closing(storage):
        record, is_new = storage.create_study(spec())
        worker_id = f"worker-{uuid.uuid4()}"
        storage.workers.register([record], worker_id=worker_id, host="host", pid=os.getpid(), device="cpu")
        worker = worker_on(storage, record, objective, results, worker_id=worker_id)
        reason = worker.run()
        storage.workers.forget(worker_id)
    return record.study_id, is_new, reason


def objective(trial: Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 0)
    trial.should_prune()
    return x


def spec() -> StudySpec:
    return StudySpec.from_dict(
        {
            "name": "study",
            "objective": {"path": "tests:objective"},
            "budget": {"trials": TRIALS},
            "sampler": {"name": "random"},
            "pruner": {"name": "none"},
        }
    )


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    """Of processes that are forked from one that has imported everything: they start within milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "studies.worker.loop"])
    yield context
    forkserver._forkserver._stop()


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_sixteen_processes_that_start_together_on_an_empty_database_share_one_study(
    round_: int, context: Any, embedded_server: Server, separate_server: Server, tmp_path: Path
) -> None:
    server = (separate_server, embedded_server)[round_ % 2]
    with server.database() as url:
        barrier = context.Barrier(PROCESSES)
        with ProcessPoolExecutor(PROCESSES, context, initializer=set_start, initargs=(barrier,)) as pool:
            asked = [pool.submit(begin_and_work, url.sqlalchemy, tmp_path) for _ in range(PROCESSES)]
            answers = [future.result(timeout=300) for future in asked]
        with closing(PostgresStorage(url)) as storage:
            (study,) = storage.list_studies()
            assert {study_id for study_id, _, _ in answers} == {storage.find_study("study").study_id}
            trials = storage.trials(storage.find_study("study"))
        assert study["name"] == "study"
        assert sum(is_new for _, is_new, _ in answers) == 1
        assert {reason for _, _, reason in answers} == {"complete"}
        assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(TRIALS)]
        assert all(trial.value == trial.params["x"] == trial.intermediate_values[0] for trial in trials)


#: Two threads and then, while they are at work, two threads of a forked child use the same storage object.
SHARING = """
import json, os, sys, threading, warnings
from studies import PostgresStorage
from optuna.study import StudyDirection

storage = PostgresStorage(sys.stdin.readline().strip())
study_id = storage.create_new_study([StudyDirection.MINIMIZE], "study")


def use(who, backends, errors):
    try:
        for n in range(40):
            (row,) = storage.database.execute("select pg_backend_pid() as pid from pg_sleep(0.005)")
            backends.add(row["pid"])
            trial_id = storage.create_new_trial(study_id)
            storage.set_trial_user_attr(trial_id, "who", [who, n])
            assert storage.get_trial(trial_id).user_attrs == {"who": [who, n]}
            storage.set_trial_state_values(trial_id, storage.get_trial(trial_id).state.COMPLETE, [float(n)])
    except BaseException as error:
        errors.append(repr(error))


def threads(name):
    backends, errors = set(), []
    running = [threading.Thread(target=use, args=(f"{name}{i}", backends, errors)) for i in range(2)]
    for thread in running:
        thread.start()
    return backends, errors, running


def told(name, backends, errors, running):
    for thread in running:
        thread.join()
    alive = storage.database.execute("select pid from pg_stat_activity where datname = current_database()")
    print(json.dumps({"who": name, "backends": sorted(backends), "errors": errors, "alive": [r["pid"] for r in alive]}))
    sys.stdout.flush()


first = threads("before")
while not first[0]:
    pass
child = os.fork()  # in the middle of both threads' statements
if child == 0:
    told("child", *threads("child"))
    os._exit(0)
told("before", *first)
assert os.waitpid(child, 0)[1] == 0
told("parent", *threads("parent"))
"""


def test_threads_and_a_forked_child_share_a_storage_each_process_with_connections_of_its_own(
    empty_database: StorageURL,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARING],
        input=empty_database.sqlalchemy,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = {line["who"]: line for line in map(json.loads, done.stdout.splitlines())}
    backends = {who: set(line["backends"]) for who, line in said.items()}
    assert [line["errors"] for line in said.values()] == [[], [], []]
    assert all(len(used) <= MAX_CONNECTIONS for used in backends.values())
    assert not backends["child"] & (backends["before"] | backends["parent"])
    assert backends["parent"] == backends["before"], "the child's end took the parent's connections with it"
    assert set(said["before"]["alive"]) <= backends["before"] | backends["child"]
    assert len(said["parent"]["alive"]) <= MAX_CONNECTIONS + len(backends["child"])  # its last may be just ending
    with closing(PostgresStorage(empty_database)) as storage:
        trials = storage.get_all_trials(storage.get_study_id_from_name("study"))
    assert [trial.number for trial in trials] == list(range(240))
    written = sorted((*trial.user_attrs["who"], trial.value) for trial in trials)
    assert written == sorted((f"{who}{i}", n, float(n)) for who in said for i in range(2) for n in range(40))
