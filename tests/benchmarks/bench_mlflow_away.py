"""What a study pays for its mirror: its wall time with none, with MLflow at work, stopped, and hanging.

Each arm is a whole ``studyhall run`` of the digits preset with all random draws alike, so that they train the same;
"hanging" is a server that accepts connections and never answers.
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

from studies.storage.url import StorageURL
from studies.tracking.server import configure, database_of, prepare_database
from tests.benchmarks.arms import postgres
from tests.mlflow_server import mlflow_server
from tests.postgres import free_port


def main() -> None:
    """Measure, and end in one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30, help="of each study (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of all arms in turn (default: %(default)s)")
    options = parser.parse_args()
    configure()
    seconds: dict[str, list[float]] = {"none": [], "at work": [], "stopped": [], "hanging": []}
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
    command = [Path(sys.executable).with_name("studyhall"), "run", "digits", "--name", name, "--trials", str(trials)]
    # Without pruning: what is pruned depends on which of two workers is ahead.
    command += ["--set", "pruner.name=none", "--set", "pruner.options={}", "--set", "sampler.name=random", *arguments]
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
