"""What a trial costs beside its training: 4 parameters, 5 reports, TPE and Hyperband, one worker.

    python tests/benchmarks/bench_cost_per_trial.py --postgres 15 --delay 1

An arm is a function that opens a storage and yields what runs so many trials in a new study; add one to ARMS.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from studies import PostgresStorage, StudySpec
from studies.storage.url import StorageURL
from studies.worker.loop import Worker
from studies.worker.served_study import Service
from tests.benchmarks.arms import in_turns, options, postgres, report, suggest
from tests.support.proxy import Proxy

STEPS = 5

Run = Callable[[int], None]
"""Runs so many trials."""
Arm = Callable[[StorageURL, int], AbstractContextManager[Run]]
"""Opens a storage, and a new study whose sampler has that seed: neither is timed."""


def objective(trial: optuna.Trial) -> float:
    loss = suggest(trial)
    for step in range(1, STEPS + 1):
        trial.report(loss + 1 / step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def new_study(storage: BaseStorage, seed: int) -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        study_name=f"seed-{seed}",  # Hyperband draws the brackets from it: the same for each arm
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=STEPS, reduction_factor=3),
    )


@contextmanager
def memory(_url: StorageURL, seed: int) -> Iterator[Run]:
    study = new_study(InMemoryStorage(), seed)
    yield lambda trials: study.optimize(objective, n_trials=trials)


@contextmanager
def stock(url: StorageURL, seed: int) -> Iterator[Run]:
    storage = RDBStorage(url.sqlalchemy)
    study = new_study(storage, seed)
    yield lambda trials: study.optimize(objective, n_trials=trials)
    optuna.delete_study(study_name=study.study_name, storage=storage)
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def storage(url: StorageURL, seed: int) -> Iterator[Run]:
    """Our storage under Optuna's own loop: what a script that only changes its storage gets."""
    ours = PostgresStorage(url)
    study = new_study(ours, seed)
    yield lambda trials: study.optimize(objective, n_trials=trials)
    optuna.delete_study(study_name=study.study_name, storage=ours)
    ours.close()


@contextmanager
def worker(url: StorageURL, seed: int) -> Iterator[Run]:
    """Our worker: leases, heartbeats and all."""
    ours = PostgresStorage(url)
    spec = StudySpec.from_dict(
        {
            "name": f"seed-{seed}",
            "seed": seed,
            "objective": {"path": "tests.benchmarks.bench_cost_per_trial:objective"},
            "sampler": {"name": "tpe"},
            "pruner": {
                "name": "hyperband",
                "options": {"min_resource": 1, "max_resource": STEPS, "reduction_factor": 3},
            },
        }
    )
    record, _ = ours.create_study(spec)

    def run(trials: int) -> None:
        ours.budgets.extend(record, trials=trials)
        ours.workers.register([record], worker_id="worker", host="host", pid=1, device="cpu")
        with tempfile.TemporaryDirectory() as folder:
            Worker(
                ours,
                [Service(record=record, objective=objective)],
                worker_id="worker",
                device="cpu",
                lease_seconds=30,
                results=Path(folder),
                stop=threading.Event(),
            ).run()
        ours.workers.forget("worker")

    yield run
    done = ours.status(record)
    assert (done.ended, done.trials["fail"]) == ("complete", 0)
    ours.delete(record)
    ours.close()


ARMS: dict[str, Arm] = {"memory": memory, "stock": stock, "storage": storage, "worker": worker}


def main() -> None:
    parser = options("Milliseconds and SQL statements per trial.")
    parser.add_argument("--trials", type=int, default=100, help="of each round (default: %(default)s)")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="MS", dest="delay_ms", help="added to each round trip"
    )
    settings = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with postgres(settings.postgres) as direct, Proxy(direct) as proxy, ExitStack() as stack:
        counted = {name: count(arm, proxy, settings.trials) for name, arm in ARMS.items()}  # warms up, too
        url = direct
        if settings.delay_ms:
            slow = stack.enter_context(Proxy(direct, delay=settings.delay_ms / 2000))
            url = slow.url
        timed = in_turns(settings.rounds, {name: partial(measure, arm, url, settings) for name, arm in ARMS.items()})
    report("cost_per_trial", settings, {name: timed[name] | counted[name] for name in ARMS})


def measure(arm: Arm, url: StorageURL, settings: argparse.Namespace, seed: int) -> dict[str, float]:
    with arm(url, seed) as run:
        begin = time.perf_counter()
        run(settings.trials)
        taken = time.perf_counter() - begin
    return {"ms_per_trial": taken / settings.trials * 1000}


def count(arm: Arm, proxy: Proxy, trials: int) -> dict[str, float]:
    with arm(proxy.url, 0) as run:
        proxy.reset()
        run(trials)
        return {"statements_per_trial": len(proxy.statements) / trials}


if __name__ == "__main__":
    main()
