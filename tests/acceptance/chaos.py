"""A study under faults: workers are killed and stopped, PostgreSQL is killed twice.

    python tests/acceptance/chaos.py --seeds 0 1 2 --budget 200 [--pgbouncer] [--poison 10] [--slots 8]

A line for each seed; the last line is JSON with all figures. Exits with 1 if a seed failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.acceptance.faults import chaos


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--budget", type=int, default=200, help="trials")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--pgbouncer", action="store_true", help="behind a PgBouncer in transaction mode")
    parser.add_argument("--slots", type=int, default=0, metavar="N", help="trials that a worker trains at once")
    parser.add_argument("--poison", type=int, default=0, metavar="N", help="one trial in N writes what is refused")
    options = parser.parse_args()
    runs, failed = [], []
    for seed in options.seeds:
        try:
            figures = chaos(
                seed,
                budget=options.budget,
                workers=options.workers,
                pgbouncer=options.pgbouncer,
                poison=options.poison,
                slots=options.slots,
            )
        except Exception:
            traceback.print_exc()
            failed.append(seed)
            print(f"seed {seed}: FAILED", flush=True)
            continue
        runs.append(asdict(figures))
        print(
            f"seed {seed}: {figures.budget} trials ({figures.pruned} pruned), {figures.failed} poisoned, "
            f"{figures.lost} lost to three kills in a row, in {figures.seconds:.0f} s; "
            f"{figures.kills} kills, {figures.stops} stops, {figures.restarts} restarts of PostgreSQL; "
            f"{figures.redone} of {figures.epochs} epochs redone, {figures.torn} torn; "
            f"{figures.refused} writes refused",
            flush=True,
        )
    print(json.dumps({"benchmark": "chaos", "runs": runs, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
