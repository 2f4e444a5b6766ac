"""What a worker waits for when it joins a long study: loading its trials, and its first ask.

    python tests/benchmarks/bench_cold_load.py --trials 10000

An arm is a function that opens a storage; add one to ARMS.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from studies import PostgresStorage
from studies.storage.url import StorageURL
from tests.benchmarks.arms import in_turns, options, postgres, report, suggest
from tests.benchmarks.filled import fill

STUDY = "filled"

Arm = Callable[[StorageURL], AbstractContextManager[BaseStorage]]
"""Opens a storage that knows nothing yet: that's not timed."""


@contextmanager
def stock(url: StorageURL) -> Iterator[BaseStorage]:
    storage = RDBStorage(url.sqlalchemy)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def ours(url: StorageURL) -> Iterator[BaseStorage]:
    storage = PostgresStorage(url)
    yield storage
    storage.close()


ARMS: dict[str, Arm] = {"stock": stock, "ours": ours}


def main() -> None:
    parser = options("Seconds to load a study and to ask for its next trial, with a storage opened anew.")
    parser.add_argument("--trials", type=int, default=10_000, help="of the study (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="reported by each trial (default: %(default)s)")
    settings = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with postgres(settings.postgres) as url:
        fill(url, settings.trials, settings.steps, STUDY)
        arms = {name: partial(measure, arm, url, settings) for name, arm in ARMS.items()}
        medians = in_turns(settings.rounds, arms)
    report("cold_load", settings, medians)


def measure(arm: Arm, url: StorageURL, settings: argparse.Namespace, seed: int) -> dict[str, float]:
    with arm(url) as storage:
        load = seconds(partial(load_all, storage, settings.trials))
    with arm(url) as storage:
        study = optuna.load_study(study_name=STUDY, storage=storage, sampler=optuna.samplers.TPESampler(seed=seed))
        trials: list[optuna.Trial] = []
        first = seconds(partial(ask, study, trials))
        second = seconds(partial(ask, study, trials))
        for trial in trials:
            study.tell(trial, state=TrialState.FAIL)
    return {"load_s": load, "first_ask_s": first, "second_ask_s": second}


def load_all(storage: BaseStorage, trials: int) -> None:
    loaded = storage.get_all_trials(storage.get_study_id_from_name(STUDY), deepcopy=False)
    assert sum(trial.state == TrialState.COMPLETE for trial in loaded) == trials


def ask(study: optuna.Study, trials: list[optuna.Trial]) -> None:
    trials.append(study.ask())
    suggest(trials[-1])


def seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
