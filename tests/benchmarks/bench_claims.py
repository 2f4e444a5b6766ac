"""What a claim, and a read of all trials as a pruner asks for, cost where many trials wait or are finished.

    python tests/benchmarks/bench_claims.py --lengths 0 1000 10000 50000

Waiting trials were enqueued. Finished ones come after a trial that a stock worker began and nobody ends, so that no
count of finished trials from the first one on can be closed.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import psycopg2

from studies import PostgresStorage, StudySpec
from studies.storage.records import Claim, StudyRecord
from studies.storage.url import StorageURL
from tests.benchmarks.arms import in_turns, options, postgres, report

CLAIMS = 20
"""Of each round; the first one, which reads the whole study, is not counted."""

_WAITING = """
    with made as (
        insert into trials (study_id, number, state)
            select %(study)s, i, 'WAITING' from generate_series(0, %(trials)s - 1) i returning trial_id
    )
    insert into trial_system_attributes (trial_id, key, value_json)
        select trial_id, 'fixed_params', '{"x": 0.5}' from made
"""
_FINISHED = """
    with pin as (
        insert into trials (study_id, number, state, datetime_start)
            values (%(study)s, 0, 'RUNNING', now() at time zone 'UTC')
    ), made as (
        insert into trials (study_id, number, state, datetime_start, datetime_complete)
            select %(study)s, i, 'COMPLETE', now() at time zone 'UTC', now() at time zone 'UTC'
            from generate_series(1, %(trials)s) i returning trial_id
    )
    insert into trial_values (trial_id, objective, value, value_type)
        select trial_id, 0, random(), 'FINITE' from made
"""


def main() -> None:
    parser = options("Milliseconds of a claim and of a read, by how many trials wait or are finished.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[0, 1_000, 10_000, 50_000])
    settings = parser.parse_args()
    with postgres(settings.postgres) as url:
        arms = {}
        for kind, sql in {"waiting": _WAITING, "finished": _FINISHED}.items():
            for length in settings.lengths:
                make_study(url, f"{kind} {length}", sql, length)
                arms[f"{kind} {length}"] = partial(measure, url, f"{kind} {length}")
        medians = in_turns(settings.rounds, arms)
    for kind in ("waiting", "finished"):
        base = medians[f"{kind} {settings.lengths[0]}"]
        for length in settings.lengths[1:]:
            figures = medians[f"{kind} {length}"]
            figures |= {f"{what}_ratio": figures[f"{what}_ms"] / base[f"{what}_ms"] for what in ("claim", "read")}
    report("claims", settings, medians)


def make_study(url: StorageURL, name: str, sql: str, trials: int) -> None:
    spec = StudySpec.from_dict(
        {
            "name": name,
            "objective": {"path": "objectives.x:f"},
            "budget": {"trials": 10**6, "max_failures": 10**6},
            "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        }
    )
    with closing(PostgresStorage(url)) as storage:
        record, _ = storage.create_study(spec)
    with closing(psycopg2.connect(**url.libpq)) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql, {"study": record.study_id, "trials": trials})
        connection.cursor().execute("vacuum analyze")  # as autovacuum would have done long ago


def measure(url: StorageURL, name: str, round_number: int) -> dict[str, float]:
    """Claims, reads and results by a worker that has read the study before."""
    worker = f"worker {name} {round_number}"
    with closing(PostgresStorage(url)) as storage:
        record = storage.find_study(name)
        storage.workers.register([record], worker_id=worker, host="host", pid=1, device="cpu")
        taken = [claim_and_read(storage, record, worker) for _ in range(CLAIMS)][1:]
    claims, reads = zip(*taken, strict=True)
    return {"claim_ms": statistics.median(claims) * 1000, "read_ms": statistics.median(reads) * 1000}


def claim_and_read(storage: PostgresStorage, record: StudyRecord, worker: str) -> tuple[float, float]:
    """Seconds that a claim took, and a read after it."""
    begin = time.perf_counter()
    claim = storage.leases.claim(record, worker, 30.0)
    claimed = time.perf_counter()
    assert isinstance(claim, Claim)
    storage.get_all_trials(record.study_id, deepcopy=False)
    read = time.perf_counter()
    storage.leases.finish(claim, "COMPLETE", [1.0], {})
    return claimed - begin, read - claimed


if __name__ == "__main__":
    main()
