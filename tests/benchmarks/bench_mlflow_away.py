"""What a study pays for its mirror: its wall time with none, with MLflow at work, stopped, and hanging.

Each arm is a whole ``studyhall run`` of trials that are all alike, and as much work for the processor in each step:
with trials of different lengths the wall time depends on which of them comes last. "Hanging" is a server that accepts
connections and never answers.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from studies.mirror.server import configure, database_of, prepare_database
from studies.storage.url import StorageURL
from tests.benchmarks.arms import postgres
from tests.support.mlflow_server import mlflow_server
from tests.support.postgres import free_port

ARMS = ("at work", "stopped", "hanging")
SCRIPT = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    for step in range(4):
        sum(i * i for i in range(1_000_000))
        trial.report(x, step, loss=x, accuracy=1 - x, rate=0.1)
        trial.should_prune()
    return x
"""


def main() -> None:
    """Measure, and end in one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=240, help="of each study (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all arms in turn (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="beside none (default: all)")
    options = parser.parse_args()
    configure()
    seconds: dict[str, list[float]] = {"none": [], **{arm: [] for arm in options.arms}}
    with ExitStack() as stack:
        url = stack.enter_context(postgres("18"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(mlflow_server(_tables(url)))
        uris = {
            "at work": server.uri,
            "stopped": f"http://127.0.0.1:{free_port()}",
            "hanging": stack.enter_context(_hanging()),
        }
        for round_ in range(options.rounds):
            for arm, taken in seconds.items():
                name = f"{arm.replace(' ', '-')}-{round_}"
                arguments = ["--mlflow", "--tracking-uri", uris[arm]] if arm in uris else []
                taken.append(_run(url, folder, name, options.trials, arguments))
                print(f"{arm}: {taken[-1]:.2f} s", flush=True)
    none = seconds["none"]
    ratios = {
        arm: round(statistics.median(a / b for a, b in zip(taken, none, strict=True)), 4)
        for arm, taken in seconds.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "mlflow_away",
                **vars(options),
                "seconds": {arm: round(statistics.median(taken), 2) for arm, taken in seconds.items()},
                "ratios_to_none": ratios,
                "cpus": os.cpu_count(),
            }
        )
    )


def _tables(url: StorageURL) -> str:
    prepare_database(url)
    return database_of(url).sqlalchemy


def _run(url: StorageURL, folder: Path, name: str, trials: int, arguments: list[str]) -> float:
    (folder / "script.py").write_text(SCRIPT)
    command = [Path(sys.executable).with_name("studyhall"), "run", "script.py:objective", "--name", name]
    command += ["--trials", str(trials), "--workers", "2"]
    command += ["--set", "pruner.name=none", "--set", "sampler.name=random", *arguments]
    began = time.perf_counter()
    subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "STUDYHALL_STORAGE": url.sqlalchemy, "STUDYHALL_HOME": str(folder)},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - began


@contextmanager
def _hanging() -> Iterator[str]:
    """The address of a server whose connections the kernel accepts, and nobody serves."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


if __name__ == "__main__":
    main()
