"""What a trial costs in a study that has many: 4 parameters, 5 reports, Hyperband, one worker.

    python tests/benchmarks/bench_long_study.py --lengths 100 10000

Parameters are drawn evenly, since what TPE takes grows with the study by itself. What Hyperband takes does so,
too: the same trials in memory, in a study as long, are subtracted.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import optuna
from optuna.storages import BaseStorage, InMemoryStorage

from studies import PostgresStorage, StudySpec
from studies.storage.url import StorageURL
from studies.worker.loop import Worker
from studies.worker.served_study import Service
from tests.benchmarks.arms import in_turns, options, postgres, report
from tests.benchmarks.bench_cost_per_trial import STEPS, objective
from tests.benchmarks.filled import fill

PRUNER = {"min_resource": 1, "max_resource": STEPS, "reduction_factor": 3}


def main() -> None:
    parser = options("Milliseconds per trial beyond what in-memory Optuna takes, in studies of several lengths.")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[100, 10_000], help="trials before (default: 100 10000)"
    )
    parser.add_argument("--trials", type=int, default=100, help="of each round (default: %(default)s)")
    settings = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with postgres(settings.postgres) as url:
        arms = {}
        for length in settings.lengths:
            in_memory = memory_study(length)
            arms[f"memory {length}"] = partial(run_in_memory, in_memory, settings.trials)
            spec = database_study(url, length)
            arms[f"worker {length}"] = partial(run_worker, url, spec, settings.trials)
        medians = in_turns(settings.rounds, arms)
    for length in settings.lengths:
        beyond = medians[f"worker {length}"]["ms_per_trial"] - medians[f"memory {length}"]["ms_per_trial"]
        medians[f"worker {length}"]["beyond_memory_ms"] = beyond
    report("long_study", settings, medians)


def memory_study(length: int) -> optuna.Study:
    """A study in memory whose trials are those that a database study of that length has."""
    with postgres("18") as url:
        fill(url, length, STEPS)
        trials = optuna.load_study(study_name="filled", storage=url.sqlalchemy).trials
    study = new_study(InMemoryStorage(), "filled")
    study.add_trials(trials)
    return study


def new_study(storage: BaseStorage, name: str) -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.HyperbandPruner(**PRUNER),
    )


def run_in_memory(study: optuna.Study, trials: int, _round: int) -> dict[str, float]:
    begin = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return {"ms_per_trial": (time.perf_counter() - begin) / trials * 1000}


def database_study(url: StorageURL, length: int) -> StudySpec:
    spec = StudySpec.from_dict(
        {
            "name": f"filled-{length}",
            "objective": {"path": "tests.benchmarks.bench_cost_per_trial:objective"},
            "budget": {"trials": length + 1_000_000},
            "sampler": {"name": "random"},
            "pruner": {"name": "hyperband", "options": PRUNER},
        }
    )
    storage = PostgresStorage(url)
    storage.create_study(spec)
    storage.close()
    fill(url, length, STEPS, spec.name)
    return spec


def run_worker(url: StorageURL, spec: StudySpec, trials: int, _round: int) -> dict[str, float]:
    """So many trials by a worker that has loaded the study before."""
    storage = PostgresStorage(url)
    record = storage.find_study(spec.name)
    storage.workers.register([record], worker_id="worker", host="host", pid=1, device="cpu")
    stop = threading.Event()
    done = 0
    begin = 0.0

    def counted(trial: optuna.Trial) -> float:
        nonlocal done, begin
        begin = begin or time.perf_counter()  # the first one loads the study
        done += 1
        if done > trials:
            stop.set()
            raise optuna.TrialPruned
        return objective(trial)

    with tempfile.TemporaryDirectory() as folder:
        Worker(
            storage,
            [Service(record=record, objective=counted)],
            worker_id="worker",
            device="cpu",
            lease_seconds=30,
            results=Path(folder),
            stop=stop,
        ).run()
    taken = time.perf_counter() - begin
    storage.close()
    return {"ms_per_trial": taken / trials * 1000}


if __name__ == "__main__":
    main()
