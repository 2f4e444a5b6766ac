"""A study of 1,000 trials × 20 steps × 4 metrics into an MLflow server on PostgreSQL.

Rounds alternate: the mirror takes the whole study under a new name; and of the same study some trials are logged as
MLflow's own guides do it, one call for each parameter, metric and tag. That takes minutes, so it is done for fewer
trials, and stated for as many.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import mlflow
from mlflow import MlflowClient

from studies import PostgresStorage
from studies.mirror.launcher import MirrorProcess
from studies.mirror.server import configure, database_of, prepare_database
from studies.storage.records import StudyRecord
from studies.storage.url import StorageURL
from tests.support.mirrored import assert_same, begin, claim, finish, report
from tests.support.mlflow_server import mlflow_server
from tests.support.postgres import DEBIAN_15, start_postgres


def main() -> None:
    """Measure, and end in one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=40, help="trials logged one call at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of the MLflow server")
    options = parser.parse_args()
    configure()
    mirrored, singly = [], []
    with start_postgres(DEBIAN_15 if DEBIAN_15.is_dir() else None) as postgres:
        storage = PostgresStorage(StorageURL.parse(postgres.url))
        prepare_database(storage.location)
        with mlflow_server(database_of(storage.location).sqlalchemy, workers=options.workers) as server:
            client = MlflowClient(server.uri)
            for round_ in range(options.rounds):
                record = fill(storage, f"study {round_}", options.trials)
                mirrored.append(mirror(storage, record, server.uri))
                singly.append(log_singly(storage, record, client, options.sample))
                print(
                    f"{mirrored[-1]:.1f} s mirrored, {singly[-1] * options.trials:.0f} s one call at a time", flush=True
                )
            # Beside the server, which would take minutes for what is one look at its tables.
            assert_same(storage, record, MlflowClient(database_of(storage.location).sqlalchemy))
        storage.close()
    print(
        json.dumps(
            {
                "benchmark": "mirror",
                "trials": options.trials,
                "seconds_mirrored": round(statistics.median(mirrored), 1),
                "seconds_one_call_at_a_time": round(statistics.median(singly) * options.trials, 1),
                "sample": options.sample,
                "ratio": round(
                    statistics.median(s * options.trials / m for s, m in zip(singly, mirrored, strict=True)), 1
                ),
                "rounds": options.rounds,
                "mlflow": mlflow.__version__,
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
            }
        )
    )


def fill(storage: PostgresStorage, name: str, trials: int) -> StudyRecord:
    """A study of complete trials with 20 steps of four metrics."""
    draw = random.Random(0)
    record = begin(storage, name, trials)
    for _ in range(trials):
        claimed = claim(storage, record)
        report(storage, claimed, range(20), draw)
        finish(storage, claimed, "COMPLETE", draw)
    return record


def mirror(storage: PostgresStorage, record: StudyRecord, uri: str) -> float:
    """Seconds from the start of the mirror's process to its end."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        process = MirrorProcess(
            storage,
            tracking=uri,
            home=Path(home),
            studies=(record.name,),
            once=True,
            environment=os.environ,
            output=print,
        )
        assert process.wait() == 0, process.last_events
    return time.perf_counter() - began


def log_singly(storage: PostgresStorage, record: StudyRecord, client: MlflowClient, sample: int) -> float:
    """Seconds for a trial, when each value is a call."""
    trials = storage.trials(record)[:sample]
    metrics = {trial.number: storage.metrics.of(trial) for trial in trials}
    experiment = client.create_experiment(f"{record.name} singly")
    began = time.perf_counter()
    for trial in trials:
        tags: dict[str, Any] = {"state": trial.state.name, "worker": "w", "host": "box", "device": "cuda:0 A100"}
        run_id = client.create_run(experiment, run_name=f"trial {trial.number}").info.run_id
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        for name, value in trial.params.items():
            client.log_param(run_id, name, value)
        for step, values in metrics[trial.number].items():
            for name, value in values.items():
                client.log_metric(run_id, name, value, step=step)
        client.set_terminated(run_id)
    return (time.perf_counter() - began) / len(trials)


if __name__ == "__main__":
    main()
