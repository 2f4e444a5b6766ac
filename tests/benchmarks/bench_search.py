"""How few epochs a search needs: stock Optuna, a simple rule and Studyhall's own search, in simulated time.

Normalised regret of the best value reported so far, at any step: 0 is the best value known of the task, 1 the value of
the median configuration. A budget of 260 / 520 / 1,040 / 2,600 epochs is 5 / 10 / 20 / 50 full trainings, which is what
counts where a task has other than 52 steps. The simulated clock counts in full trainings of the median time.

Tuned on half of the tasks; this reports the other half, ``held_back()`` of ``tests/benchmarks/search/tasks.py``.
Needs the extra ``bench`` and the data of ``STUDYHALL_TEST_DATA``. The last line is JSON. All held-back tasks with 20
seeds take a core two hours, and an hour for each seed with 64 workers: ``--results`` goes on where a run stopped, and
``tests/benchmarks/search/results/`` has what is done so far.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import optuna

from tests.benchmarks.search import tasks
from tests.benchmarks.search.methods import METHODS, OURS, WITH_PRIORS
from tests.benchmarks.search.replay import History, Method, replay

BUDGETS: Final = (260, 520, 1040, 2600)
#: Full trainings' times at which the regret against time is read, by the number of workers: the more work, the sooner.
TIMES: Final = {1: (5, 10, 20, 50), 8: (1, 2, 4, 8), 64: (0.25, 0.5, 1, 2)}
#: With several workers, a method ends after so many times the median configuration's epochs in that time: TPE
#: with a pruner may try tens of thousands of configurations whose epochs are short, for half an hour of ours.
MOST: Final = 4
#: Critical values of the studentised range at 5 % over √2, by the number of methods (Demšar, JMLR 2006).
NEMENYI: Final = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}

Histories = Mapping[str, Mapping[str, Sequence[History]]]
"""By method and task, one for each seed."""


class Results:
    """The replays that are done, one a line of JSON in a file: what was cut off goes on where it stopped.

    Args:
        path: of the file, compressed by gzip; ``None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = gzip.decompress(path.read_bytes()).splitlines() if path and path.exists() else []
        self._done = {tuple(record.pop("of")): History(**record) for record in map(json.loads, lines)}

    def of(self, task: tasks.Task, method: Method, *, workers: int, seed: int) -> History:
        """That replay, from the file or made now."""
        key = (task.name, method.name, workers, seed)
        if key not in self._done:
            last = TIMES[workers][-1]
            history = replay(
                task,
                method,
                workers=workers,
                seed=seed,
                epochs=task.steps * (method.reach * BUDGETS[-1] / 52 if workers == 1 else MOST * workers * last),
                seconds=math.inf if workers == 1 else last * task.full_seconds,
            )
            self._done[key] = history.rounded()
            if self._path:
                with gzip.open(self._path, "at") as file:
                    file.write(json.dumps({"of": key, **asdict(self._done[key])}, separators=(",", ":")) + "\n")
        return self._done[key]


def measured(
    names: Sequence[str], methods: Sequence[Method], results: Results, *, workers: int, seeds: int
) -> Histories:
    """Replay every method on every task, a seed of all before the next; progress on stderr."""
    found: dict[str, dict[str, list[History]]] = {method.name: {name: [] for name in names} for method in methods}
    for seed in range(seeds):
        for name in names:
            start = time.process_time()
            for method in methods:
                found[method.name][name].append(results.of(tasks.task(name), method, workers=workers, seed=seed))
            spent = time.process_time() - start
            last = " ".join(f"{of[name][-1].regrets[-1]:.3f}" for of in found.values())
            print(f"seed {seed}, {name}: {last} ({spent:.0f} s of a core)", file=sys.stderr, flush=True)
    return found


def by_epochs(found: Histories, method: str, names: Sequence[str]) -> dict[str, float]:
    """Mean regret of a method at each budget of epochs."""
    return {
        str(budget): statistics.fmean(
            history.at_epochs(budget / 52 * tasks.task(name).steps) for name in names for history in found[method][name]
        )
        for budget in BUDGETS
    }


def by_time(found: Histories, method: str, names: Sequence[str], times: Sequence[float]) -> dict[str, float]:
    """Mean regret of a method after so many full trainings' times."""
    return {
        str(at): statistics.fmean(
            history.at_seconds(at * tasks.task(name).full_seconds) for name in names for history in found[method][name]
        )
        for at in times
    }


def epochs_to(found: Histories, method: Method, names: Sequence[str], regret: float) -> float:
    """Mean over tasks of the median epochs until that regret; a run that did not reach it counts what it trained."""
    end = method.reach * BUDGETS[-1]
    return statistics.fmean(
        statistics.median(
            min(end, history.epochs_to(regret) * 52 / tasks.task(name).steps) for history in found[method.name][name]
        )
        for name in names
    )


def ranks(found: Histories, names: Sequence[str], budget: int) -> tuple[dict[str, float], float]:
    """Mean rank of each method over the tasks by its mean regret, and the critical difference of Nemenyi at 5 %."""
    table = np.array(
        [
            [
                statistics.fmean(h.at_epochs(budget / 52 * tasks.task(name).steps) for h in found[method][name])
                for method in found
            ]
            for name in names
        ]
    )
    places = np.array([[(row < x).sum() + ((row == x).sum() + 1) / 2 for x in row] for row in table])
    k = len(found)
    critical = NEMENYI[k] * math.sqrt(k * (k + 1) / (6 * len(names))) if k in NEMENYI else math.nan
    return dict(zip(found, places.mean(0).tolist(), strict=True)), critical


def summary(found: Histories, names: Sequence[str], *, workers: int, seeds: int) -> dict[str, Any]:
    """The figures as the last line has them."""
    ranked, critical = ranks(found, names, BUDGETS[-1])
    times = TIMES[workers]
    return {
        "benchmark": "search",
        "ours": OURS,
        "workers": workers,
        "seeds": seeds,
        "tasks": list(names),
        "regret": {method: _rounded(by_epochs(found, method, names)) for method in found},
        "regret_in_time": {method: _rounded(by_time(found, method, names, times)) for method in found},
        "median_regret": {
            method: _rounded(
                {
                    str(budget): statistics.median(
                        history.at_epochs(budget / 52 * tasks.task(name).steps)
                        for name in names
                        for history in found[method][name]
                    )
                    for budget in BUDGETS
                }
            )
            for method in found
        },
        "epochs_to_5_percent": {
            method.name: round(epochs_to(found, method, names, 0.05))
            for method in (*METHODS, *WITH_PRIORS)
            if method.name in found
        },
        "rank": _rounded(ranked),
        "critical_difference": round(critical, 3),
        "ask_ms": {
            method: round(statistics.median(h.ask_ms for name in names for h in found[method][name]), 2)
            for method in found
        },
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.3g}") for key, value in figures.items()}


def draw(found: Histories, names: Sequence[str], folder: Path, *, workers: int) -> None:
    """A picture per family of tasks: mean regret against epochs and against time."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    shares = np.geomspace(0.2, 50, 80)  # of full trainings
    for family in dict.fromkeys(name.partition("-")[0] for name in names):
        of = [name for name in names if name.startswith(f"{family}-")]
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
        for method in found:
            style: dict[str, Any] = {"linewidth": 2.5, "color": "black"} if method == OURS else {"linewidth": 1.2}
            pairs = [(tasks.task(name), history) for name in of for history in found[method][name]]
            means = [statistics.fmean(h.at_epochs(share * t.steps) for t, h in pairs) for share in shares]
            left.plot(shares * 52, means, label=method, **style)
            means = [statistics.fmean(h.at_seconds(share * t.full_seconds) for t, h in pairs) for share in shares]
            right.plot(shares, means, **style)
        left.set(xscale="log", yscale="log", ylabel="normalised regret", xlabel="epochs (52 are a full training)")
        right.set(xscale="log", xlabel=f"time in full trainings, {workers} worker{'s' * (workers > 1)}")
        left.legend(fontsize=8)
        left.set_title(f"{family}: {len(of)} task{'s' * (len(of) > 1)}", fontsize=10)
        figure.tight_layout()
        figure.savefig(folder / f"search-{family}-{workers}.png", dpi=90)
        plt.close(figure)


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", help="comma-separated (default: the held-back half)")
    parser.add_argument("--tuning", action="store_true", help="the other half")
    parser.add_argument("--family", help="only tasks of this family: lcbench, taskset, mlp, hpobench, hpolib")
    parser.add_argument("--methods", help="comma-separated, those with priors as well (default: those without)")
    parser.add_argument("--seeds", type=int, default=20, help="of each method and task (default: %(default)s)")
    parser.add_argument("--workers", type=int, choices=TIMES, default=1, help="that train at a time (default: 1)")
    parser.add_argument("--results", type=Path, help="a .jsonl.gz of replays that are done; new ones are appended")
    parser.add_argument("--plots", type=Path, help="a folder for a picture per family")
    parser.add_argument("--references", action="store_true", help="find the best values of LCBench anew, and end")
    settings = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings.references:
        found = {name: tasks.lcbench_reference(name) for name in tasks.lcbench_names()}
        tasks.REFERENCES.write_text(json.dumps(found, indent=1) + "\n")
        return
    names = settings.tasks.split(",") if settings.tasks else tasks.held_back()
    if settings.tuning:
        names = [name for name in tasks.names() if name not in tasks.held_back()]
    if settings.family:
        names = [name for name in names if name.startswith(f"{settings.family}-")]
    wanted = settings.methods.split(",") if settings.methods else [method.name for method in METHODS]
    methods = [method for method in (*METHODS, *WITH_PRIORS) if method.name in wanted]
    results = Results(settings.results)
    histories = measured(names, methods, results, workers=settings.workers, seeds=settings.seeds)
    if settings.plots:
        draw(histories, names, settings.plots, workers=settings.workers)
    print(json.dumps(summary(histories, names, workers=settings.workers, seeds=settings.seeds)))


if __name__ == "__main__":
    main()
