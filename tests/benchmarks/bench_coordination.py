"""What a worker does beside training: claims, the sampler, the pruner, reports and results, as a share of its time.

One worker on the preset mnist (its space, TPE and Hyperband), with fewer trials and epochs, on a PostgreSQL of its own
that writes to the disk. Training is what happens within a tick: an epoch and its evaluation. All else counts as
coordination, in CPU seconds of the worker's process (without PostgreSQL's) and in seconds.

On one core of an idle machine with two, 2026-11-27, medians of five rounds of 20 trials of 3 epochs: 0.26 % of the CPU
seconds, 0.33 % of the time, 16 ms a trial.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from objectives.mlp import MLP
from objectives.pool import Tick
from studies import PostgresStorage, StudySpec
from studies.spec.source import read_target
from studies.storage.url import StorageURL
from tests.benchmarks.arms import in_turns, options, postgres, report
from tests.support.worker import worker_on

ROOT = Path(__file__).parents[2]


class Stopwatch:
    """Seconds, and CPU seconds of this process, within :meth:`Tick.run`."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._run = Tick.run

    def __enter__(self) -> Stopwatch:
        def timed(tick: Tick, *args: Any, **kwargs: Any) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            self._run(tick, *args, **kwargs)
            self.wall += time.perf_counter() - wall
            self.cpu += time.thread_time() - cpu

        Tick.run = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Tick.run = self._run  # type: ignore[method-assign]


def measure(url: StorageURL, mlp: MLP, data: dict[str, Any], number: int) -> dict[str, float]:
    """Of one study: the shares of coordination, and its milliseconds for each trial."""
    with tempfile.TemporaryDirectory() as folder:
        storage = PostgresStorage(url)
        record, _ = storage.create_study(StudySpec.from_dict({**data, "name": f"mnist-{number}"}))
        storage.workers.register([record], worker_id="w", host="host", pid=os.getpid(), device="cpu")
        worker = worker_on(storage, record, mlp, Path(folder), slots=mlp.slots("cpu"))
        with Stopwatch() as training:
            wall, cpu = time.perf_counter(), time.process_time()
            worker.run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        storage.close()
    trials = data["budget"]["trials"]
    return {
        "share_of_cpu": 1 - training.cpu / cpu,
        "share_of_time": 1 - training.wall / wall,
        "cpu_ms_per_trial": (cpu - training.cpu) * 1000 / trials,
        "training_cpu_ms_per_trial": training.cpu * 1000 / trials,
    }


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of each round's study (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="of each trial (default: %(default)s)")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ.get("STUDYHALL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        sys.exit(f"no MNIST in {folder}; set STUDYHALL_TEST_DATA")
    data = read_target("mnist")
    data["budget"]["trials"] = settings.trials
    with tempfile.TemporaryDirectory() as own, postgres(settings.postgres) as url:
        (Path(own) / "MNIST").symlink_to((folder / "MNIST").resolve())
        mlp = MLP("mnist", epochs=settings.epochs, data_dir=own)
        arms = {"one worker": lambda number: measure(url, mlp, data, number)}
        report("coordination", settings, in_turns(settings.rounds, arms))


if __name__ == "__main__":
    main()
