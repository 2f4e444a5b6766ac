"""What it costs a worker to ask for trials, and to prune one, in a study with many finished ones; and its memory.

    python tests/benchmarks/bench_ask.py --sizes 1000 10000 100000 --steps 20 --arms tpe hyperband halving

An ask is what a worker does between two trials: the claim, the scheduler's choice, and sampling the parameters. Each
arm is a worker process of its own, which has asked once before: the first one reads the whole study.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import optuna
import psycopg2

from studies import PostgresStorage, StudySpec
from studies.storage.url import StorageURL
from studies.worker.backoff import Backoff
from studies.worker.lease_keeper import LeaseKeeper
from studies.worker.served_study import ServedStudy, Service
from studies.worker.trials import Result, Trials
from tests.benchmarks.arms import options, postgres, report, suggest
from tests.benchmarks.filled import fill

ASKS = 10
MANY, ASKS_OF_MANY = 64, 5
ARMS: dict[str, dict[str, Any]] = {
    "random": {"sampler": {"name": "random"}, "pruner": {"name": "none"}},
    "tpe": {"sampler": {"name": "tpe"}, "pruner": {"name": "none"}},
    "median": {"sampler": {"name": "tpe"}, "pruner": {"name": "median"}},
    "hyperband": {"sampler": {"name": "tpe"}, "pruner": {"name": "hyperband"}},
    "halving": {"sampler": {"name": "random"}, "scheduler": {"name": "halving"}},
    "freezethaw": {"sampler": {"name": "curves"}, "scheduler": {"name": "freezethaw"}},
}
SPACE = {
    "x": {"type": "float", "low": -5.0, "high": 5.0},
    "rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "width": {"type": "int", "low": 16, "high": 512},
    "kind": {"type": "categorical", "choices": ["relu", "tanh", "gelu"]},
}


def main() -> None:
    parser = options("Milliseconds of an ask, by the number of finished trials.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=20, help="that each finished trial has reported")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--child", nargs=2, metavar=("URL", "NAME"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.child:
        print(json.dumps(measure(*settings.child)))
        return
    figures = {}
    with postgres(settings.postgres) as url:
        for size in settings.sizes:
            study = f"of {size}"
            make_study(url, study, ARMS[settings.arms[0]], size, settings.steps)
            for arm in settings.arms:
                turn_into(url, study, ARMS[arm])
                child = [sys.executable, __file__, "--child", url.sqlalchemy, study]
                done = subprocess.run(child, stdout=subprocess.PIPE, check=True, text=True)
                figures[f"{arm} {size}"] = json.loads(done.stdout)
                print(f"{arm} {size}: {figures[f'{arm} {size}']}", file=sys.stderr, flush=True)
            with closing(PostgresStorage(url)) as storage:
                storage.delete(storage.find_study(study))
    del settings.child
    report("ask", settings, figures)


def spec_of(name: str, how: dict[str, Any]) -> StudySpec:
    return StudySpec.from_dict(
        {
            "name": name,
            "objective": {"path": "objectives.x:f"},
            "budget": {"trials": 10**6, "max_failures": 10**6, "epochs": 10**9},
            "space": SPACE,
            **how,
        }
    )


def make_study(url: StorageURL, name: str, how: dict[str, Any], size: int, steps: int) -> None:
    with closing(PostgresStorage(url)) as storage:
        storage.create_study(spec_of(name, how))
    fill(url, size, steps, name)


def turn_into(url: StorageURL, name: str, how: dict[str, Any]) -> None:
    """Change the sampler and the scheduler, which no command does: filling a large study takes minutes."""
    with closing(psycopg2.connect(**url.libpq)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            """
            update study_user_attributes set value_json = %s from studies
            where studies.study_id = study_user_attributes.study_id and study_name = %s and key = 'spec'
            """,
            [spec_of(name, how).to_json(), name],
        )


def measure(url: str, name: str) -> dict[str, float]:
    """Ask as a worker does; milliseconds, and MB of this process at most."""
    stop = threading.Event()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with closing(PostgresStorage(url, create=False)) as storage, tempfile.TemporaryDirectory() as results:
        record = storage.find_study(name)
        storage.workers.register([record], worker_id="w", host="host", pid=1, device="cpu")
        service = Service(record=record, objective=suggest)
        keeper = LeaseKeeper(storage, worker_id="w", lease_seconds=60, stop=stop)
        with keeper:
            trials = Trials(
                storage,
                ServedStudy(storage, service, Path(results)),
                keeper,
                worker_id="w",
                device="cpu",
                most=None,
                backoff=Backoff(),
                stop=stop,
            )
            first, *_ = ask(trials, 1)
            one, cpu, prunes = zip(*(ask(trials, 1) for _ in range(ASKS)), strict=True)
            many, many_cpu, _ = zip(*(ask(trials, MANY) for _ in range(ASKS_OF_MANY)), strict=True)
    return {
        "first_ms": first,
        "ask_ms": statistics.median(one),
        "ask_cpu_ms": statistics.median(cpu),
        "ask_64_ms": statistics.median(many),
        "ask_64_cpu_ms": statistics.median(many_cpu),
        "prune_ms": statistics.median(prunes),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def ask(trials: Trials, count: int) -> tuple[float, float, float]:
    """Milliseconds that it took to get ``count`` trials, by the clock and of the CPU, and to judge the first one after
    its first step."""
    begin, begin_cpu = time.perf_counter(), time.thread_time()
    taken = trials.take(count)
    asked, cpu = time.perf_counter(), time.thread_time() - begin_cpu
    assert len(taken) == count
    taken[0].report(1.5, 1)
    reported = time.perf_counter()
    taken[0].should_prune()
    judged = time.perf_counter()
    trials.end([Result(trial=trial, state="complete", value=1.5) for trial in taken])
    return (asked - begin) * 1000, cpu * 1000, (judged - reported) * 1000


if __name__ == "__main__":
    main()
