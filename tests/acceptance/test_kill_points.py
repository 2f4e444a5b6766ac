"""A worker is killed by -9 before and after each statement that it sends; another one finishes the study.

Which statements there are is learnt from a run that nobody disturbs, so that new ones are swept, too: of each kind
the first one and a later one, or all with ``STUDYHALL_ALL_KILL_POINTS=1``.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Final

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from studies import PostgresStorage, StudySpec, lifecycle
from studies.storage.database import statements
from studies.storage.known_trials import FRESH_SECONDS
from studies.storage.records import Claim, StudyRecord
from studies.storage.url import StorageURL
from studies.trial import Trial
from studies.worker.lease import LINGER
from studies.worker.loop import Worker
from studies.worker.served_study import Service
from tests.conftest import Server
from tests.support.pool import Pool, Steps
from tests.support.proxy import Proxy, When
from tests.support.waiting import GUARD

pytestmark = pytest.mark.slow

# Read here: a test sees no such variables.
ALL: Final = bool(os.environ.get("STUDYHALL_ALL_KILL_POINTS"))
SEED: Final = int(os.environ.get("STUDYHALL_SEED", random.SystemRandom().randrange(10**6)))

TRIALS: Final = 5
STEPS: Final = 3
RUNG: Final = 1
"""The step at which a scheduler pauses, where there is one."""
LEASE: Final = 1.0
"""Seconds."""
RECOVERY: Final = LEASE + 30
"""Seconds from a death to the end of the study: less than anything else could wait for, on however busy a machine."""
SIDE_BY_SIDE: Final = 6
"""Studies: each mostly waits for a lease to run out."""
ENQUEUED: Final = 0.5
SPACE: Final = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "optimizer": {"type": "categorical", "choices": ["adamw", "sgd"]},
}
FIRST: Final = (
    ("x", 0.25, FloatDistribution(0.0, 1.0)),
    ("z", 7, IntDistribution(1, 9)),
    ("optimizer", 0, CategoricalDistribution(("adamw", "sgd"))),
)
"""The parameters of trial 0: name, internal value, distribution."""
#: What must be among the statements for this sweep to be one of asking, reporting, telling, saving, giving back …
KINDS: Final = {
    *("create_trial", "register_worker", "reap", "claim", "checkpoints", "changed_trials", "write", "heartbeat"),
    *("save_checkpoint", "requeue", "finish", "forget_worker"),
}
_NAMES: Final = {text.strip().partition("\n")[0]: name for name, text in statements().items()}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where the process is killed."""

    kind: str
    """Of the statement."""
    occurrence: int
    """From 1, of its kind."""
    when: When


# What runs in the process that is killed.


def victim(url: str, name: str, dead: str, results: Path, slots: int) -> None:
    """All that a machine does to a study: a trial is enqueued, those of dead workers are given back, one is left and
    taken up again, the others run to their end."""
    storage = PostgresStorage(url, create=False, patience=0.5)
    record = storage.find_study(name)
    lifecycle.enqueue(storage, record, [f"x={ENQUEUED}"])
    storage.workers.reap([dead], died_of="a signal")
    work(storage, record, results, slots, is_interrupted=True)
    work(storage, record, results, slots, is_slow=True)
    storage.close()


def work(
    storage: PostgresStorage,
    record: StudyRecord,
    results: Path,
    slots: int,
    *,
    is_interrupted: bool = False,
    is_slow: bool = False,
) -> str:
    """Be a worker, which is interrupted in its third trial, or slow enough for signs of life; returns why it ended."""
    stop = threading.Event()
    worker_id = f"worker-{uuid.uuid4()}"
    interrupt = partial(_interrupt_third, stop, []) if is_interrupted else _go_on
    pool = Pool(partial(steps, interrupt, is_slow), slots)
    storage.workers.register(
        [record], worker_id=worker_id, host=socket.gethostname(), pid=os.getpid(), device=f"cpu-{os.getpid()}"
    )
    reason = Worker(
        storage,
        [Service(record=record, objective=pool if slots > 1 else pool.__call__)],
        worker_id=worker_id,
        device="cpu",
        lease_seconds=LEASE,
        results=results,
        stop=stop,
    ).run()
    storage.workers.forget(worker_id)
    return reason


def steps(interrupt: Any, is_slow: bool, trial: Trial) -> Steps:
    z = trial.suggest_int("z", 1, 9)
    checkpoint = trial.restore()
    is_slow &= trial.number == TRIALS - 1
    begin = 0
    if checkpoint:
        assert checkpoint.state == f"z={z} at {checkpoint.step}".encode(), "the checkpoint of another trial"
        begin = checkpoint.step + 1
    for step in range(begin, STEPS):
        interrupt(trial, step)
        value = expected(trial.params, step)
        yield value, step, f"z={z} at {step}".encode(), {"loss": -value}
        if is_slow:
            time.sleep(2 * FRESH_SECONDS)  # for the pruner to look at the other trials again
    trial.set_user_attr("z", z)
    if is_slow:
        time.sleep(LINGER + 0.2)  # for the lease keeper to send what lingers, and its heartbeat
    return expected(trial.params, STEPS - 1)


def _interrupt_third(stop: threading.Event, seen: list[int], trial: Trial, step: int) -> None:
    if trial.number not in seen:
        seen.append(trial.number)
    if len(seen) == 3 and step == 1:
        stop.set()


def _go_on(_trial: Trial, _step: int) -> None:
    pass


def expected(params: dict[str, Any], step: int) -> float:
    """What a trial reports: it could be no other trial's."""
    return float(params["x"] + params["z"] + 100 * (params["optimizer"] == "sgd") + 1000 * step)


# What looks on.


@pytest.fixture(scope="module")
def fork() -> Iterator[Any]:
    """Makes processes in a few milliseconds: they are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "studies.worker.loop"])
    yield context.Process
    forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def database(separate_server: Server) -> Iterator[StorageURL]:
    with separate_server.database() as url:
        PostgresStorage(url).close()
        yield url


class Run:
    """A study of its own, and a process that is to be killed over it."""

    def __init__(
        self, database: StorageURL, fork: Any, results: Path, slots: int, *, is_scheduled: bool = False
    ) -> None:
        self.name = f"study-{uuid.uuid4()}"
        self.seen: list[str] = []
        """The kinds of the statements that reached the proxy."""
        self.done: Counter[str] = Counter()
        """The kinds of those that the server has finished."""
        self.died_at: float | None = None
        self._database = database
        self._fork = fork
        self._results = results / self.name
        self._slots = slots
        self._is_scheduled = is_scheduled
        self._started = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def play(self, point: Point | None) -> None:
        """Run the victim, kill it at ``point``, and let another worker finish the study."""
        with closing(PostgresStorage(self._database)) as storage:
            record, _ = storage.create_study(spec(self.name, is_scheduled=self._is_scheduled))
            dead = self._leave_trials_of_the_dead(storage, record)
            self._run_victim(point, dead)
            begin = self.died_at or time.monotonic()
            assert work(storage, record, self._results, self._slots) == "complete"
            taken = time.monotonic() - begin
            self._check(storage, record, was_killed=self.died_at is not None)
            assert taken < RECOVERY, f"recovered after {taken:.1f} s"

    def _leave_trials_of_the_dead(self, storage: PostgresStorage, record: StudyRecord) -> str:
        """Trial 0, with parameters and a report, of a worker to be buried; trial 1, whose lease has run out."""
        dead = f"dead-{uuid.uuid4()}"
        first, second = storage.leases.claim(record, dead, LEASE), storage.leases.claim(record, "silent", 0.0)
        assert isinstance(first, Claim)
        assert isinstance(second, Claim)
        params = [{"name": name, "value": v, "distribution": distribution_to_json(d)} for name, v, d in FIRST]
        report = {"step": 0, "value": expected({"x": 0.25, "z": 7, "optimizer": "adamw"}, 0)}
        storage.leases.write(first, {"params": params, "reports": [report]}, step=0)
        return dead

    def _run_victim(self, point: Point | None, dead: str) -> None:
        with Proxy(self._database) as proxy:
            process = self._fork(
                target=victim, args=(proxy.url.sqlalchemy, self.name, dead, self._results, self._slots), daemon=True
            )
            proxy.on_query(partial(self._watch, process, point))
            process.start()
            self._started.set()
            process.join(timeout=300)
            self._ended.set()  # for the hook: one thread alone may wait for a process
            # 255: the start of a process in another thread, which polls all children, has read the status before us.
            assert process.exitcode in (0 if self.died_at is None else -9, 255)
            process.close()

    def _watch(self, process: Any, point: Point | None, _n: int, text: str, when: When) -> None:
        kind = kind_of(text)
        with self._lock:
            if self.died_at:
                return  # what the proxy had read before
            if when == "before":
                self.seen.append(kind)
                occurrence = self.seen.count(kind)
            else:
                self.done[kind] += 1
                occurrence = self.done[kind]
            if Point(kind=kind, occurrence=occurrence, when=when) != point:
                return
            assert self._started.wait(GUARD)
            self.died_at = time.monotonic()
            process.kill()
            assert self._ended.wait(GUARD)

    def _check(self, storage: PostgresStorage, record: StudyRecord, *, was_killed: bool) -> None:
        trials = storage.trials(record)
        assert [trial.number for trial in trials] == list(range(TRIALS))
        for trial in trials:
            self._check_trial(storage, trial)
        assert trials[0].params == {"x": 0.25, "z": 7, "optimizer": "adamw"}
        enqueued = [trial.params["x"] for trial in trials if "fixed_params" in trial.system_attrs]
        assert enqueued == [ENQUEUED] * self.done["create_trial"]
        # Each was begun once, but for those of the dead, those that were given back, and the victim's last ones.
        begun = sum(attempt.times for attempt in storage.leases.attempts(record).values())
        assert begun <= TRIALS + 2 + self._slots * (1 + was_killed)
        left = storage.database.execute(
            "select (select count(*) from studyhall.checkpoints join trials using (trial_id) where study_id = %(id)s),"
            " (select count(*) from studyhall.leases where study_id = %(id)s and held)"
            " as held",
            {"id": record.study_id},
        )
        assert left == [{"count": 0, "held": 0}]

    def _check_trial(self, storage: PostgresStorage, trial: FrozenTrial) -> None:
        is_pruned = self._is_scheduled and trial.state == TrialState.PRUNED
        assert is_pruned or trial.state == TrialState.COMPLETE, trial
        steps = RUNG + 1 if is_pruned else STEPS
        curve = {step: expected(trial.params, step) for step in range(steps)}
        assert trial.params.keys() == {"x", "z", "optimizer"}
        assert trial.intermediate_values == curve, trial
        assert trial.values == [curve[steps - 1]], trial
        assert trial.user_attrs == ({} if is_pruned else {"z": trial.params["z"]}), trial
        metrics = storage.metrics.of(trial)
        if trial.number == 0:
            metrics[0] = {"loss": -curve[0]}  # the dead worker wrote none
        assert metrics == {step: {"loss": -value} for step, value in curve.items()}, trial
        assert trial.datetime_start
        assert trial.datetime_complete
        assert trial.datetime_start <= trial.datetime_complete


def spec(name: str, *, is_scheduled: bool = False) -> StudySpec:
    halving = {"name": "halving", "options": {"rungs": [RUNG], "reduction_factor": 2}}
    # Looks at all trials, and prunes none.
    median = {"name": "median", "options": {"n_startup_trials": 1000}}
    return StudySpec.from_dict(
        {
            "name": name,
            "seed": SEED,
            "objective": {"path": "tests:objective"},
            "budget": {"trials": TRIALS, "max_failures": 1},
            **({"scheduler": halving} if is_scheduled else {"pruner": median}),
            "checkpoints": {"every": 0},
            "space": SPACE,
        }
    )


def kind_of(text: str) -> str:
    """The name of a statement: its first line tells it."""
    line = text.strip().partition("\n")[0]
    return _NAMES.get(line, re.sub(r"\d+", "N", line))


def points(counts: Counter[str], when: When) -> list[Point]:
    """The first statement of each kind and one of the others; or all."""
    chosen = random.Random(f"{SEED} {when}")
    return [
        Point(kind=kind, occurrence=occurrence, when=when)
        for kind, count in sorted(counts.items())
        for occurrence in range(1, count + 1)
        if ALL or occurrence in {1, chosen.randint(min(2, count), count)}
    ]


@pytest.mark.parametrize(("slots", "is_scheduled"), [(1, False), (3, False), (3, True)], ids=["1", "3", "scheduler"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_killed_at_any_statement_costs_the_study_nothing(
    when: When, slots: int, is_scheduled: bool, database: StorageURL, fork: Any, tmp_path: Path
) -> None:
    clean = Run(database, fork, tmp_path, slots, is_scheduled=is_scheduled)
    clean.play(None)
    counts = Counter(clean.seen)
    # Trials that end at their rung last for no heartbeat.
    assert counts.keys() >= KINDS - ({"heartbeat"} if is_scheduled else set())

    def sweep(point: Point) -> str | None:
        run = Run(database, fork, tmp_path, slots, is_scheduled=is_scheduled)
        try:
            run.play(point)
        except Exception as error:
            return f"{point}: {type(error).__name__}: {error}"
        # How many of the later ones there are depends on the clock.
        return f"{point}: was never reached" if point.occurrence == 1 and not run.died_at else None

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        failures = [failure for failure in pool.map(sweep, points(counts, when)) if failure]
    assert not failures, f"STUDYHALL_SEED={SEED}\n" + "\n".join(failures)
