"""Many workers on one study, each of whose trials sleeps between its reports: does the server bear them?

    python tests/benchmarks/bench_many_workers.py --workers 128

The server is as it comes, with 100 connections; the workers are the processes that ``studyhall run`` starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import psycopg2

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.benchmarks.arms import SERVERS, postgres
from tests.support.pgbouncer import start_pgbouncer

SCRIPT = """
import time

def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    for step in range({steps}):
        time.sleep({sleep})
        trial.report(x, step)
        trial.should_prune()
    return x
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Reports per second of many workers, and what went wrong.")
    parser.add_argument("--postgres", choices=SERVERS, default="18", help="major version (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--trials", type=int, default=384, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of each trial (default: %(default)s)")
    parser.add_argument("--sleep", type=float, default=1.0, metavar="S", help="before each step (default: %(default)s)")
    parser.add_argument("--pgbouncer", action="store_true", help="workers go by PgBouncer, as the runbook sets it")
    settings = parser.parse_args()
    with ExitStack() as stack:
        url = stack.enter_context(postgres(settings.postgres))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        by = url
        if settings.pgbouncer:
            bouncer = start_pgbouncer(url.sqlalchemy, default_pool_size=40, max_client_conn=5000)
            by = StorageURL.parse(stack.enter_context(bouncer).url)
        figures = run(url, by, folder, settings)
    print(json.dumps({"benchmark": "many_workers", **vars(settings), **figures}))


def run(url: StorageURL, by: StorageURL, folder: Path, settings: argparse.Namespace) -> dict[str, float]:
    """Figures of workers that reach the server at ``url`` by way of ``by``."""
    (folder / "script.py").write_text(SCRIPT.format(steps=settings.steps, sleep=settings.sleep))
    command = [Path(sys.executable).with_name("studyhall"), "run", "script.py:objective", "--name", "many"]
    command += ["--trials", str(settings.trials), "--workers", str(settings.workers), "--set", "sampler.name=random"]
    environment = {**os.environ, "STUDYHALL_STORAGE": by.sqlalchemy, "STUDYHALL_HOME": str(folder)}
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        # Over a connection of its own, which an overcrowded server has no place for later.
        watch = psycopg2.connect(**url.libpq)
        watch.autocommit = True
        rates, most = [], 0
        seen: tuple[float, int] | None = None
        while process.poll() is None:
            time.sleep(5)
            with watch.cursor() as cursor:
                cursor.execute("select count(*) from pg_stat_activity where backend_type = 'client backend'")
                most = max(most, cursor.fetchall()[0][0])
                cursor.execute("select to_regclass('trial_intermediate_values') is not null")
                if not cursor.fetchall()[0][0]:
                    continue
                cursor.execute("select count(*), count(distinct trial_id) from trial_intermediate_values")
                (reports, _), now = cursor.fetchall()[0], time.monotonic()
            if seen and reports > seen[1]:
                rates.append((reports - seen[1]) / (now - seen[0]))
            seen = now, reports
        watch.close()
        log.seek(0)
        told = log.read().splitlines()
    troubles = [line for line in told if "error" in line.lower() or "died" in line or "Traceback" in line]
    print("\n".join(told[-5:] + troubles[:10]), file=sys.stderr)
    storage = PostgresStorage(url)
    trials = storage.status(storage.find_study("many")).trials
    storage.close()
    assert process.returncode == 0, told[-1]
    assert (trials["complete"], sum(trials.values())) == (settings.trials, settings.trials)
    assert not troubles
    return {
        "reports_per_s": round(max(rates), 1),
        "most_connections": most,
        "waits": sum("database" in line for line in told),
    }


if __name__ == "__main__":
    main()
