"""The winner's curse: how much worse a tuned model is than its tuned value, and what finalize makes of it.

- Many small studies (TPE, no pruner, the space of the preset ``digits``) of different study seeds and splits.
- Of each the ten best trials are trained again with five fresh seeds, as `studyhall finalize` does; the choice is the
  package's own, by both rules.
- Each choice is judged by further seeds, which have chosen nothing. The gap is the tuned value, or the mean by which it
  was chosen, less the mean of those. Means ± standard errors over the studies, in points of accuracy.

The validation split is the study's in all of them: the gap is that of seeds alone. The test data tell what is left.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import torch

from objectives.mlp import MLP
from studies.finalize.choice import Candidate, Rule, choose
from studies.finalize.comparison import fresh_seeds
from studies.spec.source import read_target
from studies.spec.study import StudySpec

TOP, SEEDS, FURTHER = 10, 5, 5
RULES: tuple[Rule, ...] = ("best", "one-se")


def score(mlp: MLP, params: Mapping[str, Any], seed: int) -> float:
    *_, last = mlp.curves(params, seed=seed)
    return last["val_accuracy"]


def candidates_of(spec: StudySpec, mlp: MLP, trials: int) -> list[Candidate]:
    """Tune, and train the best trials again."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=spec.seed))

    def objective(trial: optuna.Trial) -> float:
        spec.suggest(trial)
        return score(mlp, trial.params, spec.seed_of(trial.number))

    study.optimize(objective, n_trials=trials)
    best = sorted(study.trials, key=lambda trial: (-trial.values[0], trial.number))[:TOP]
    return [
        Candidate(
            trial=trial.number,
            params=trial.params,
            tuned=trial.values[0],
            values=[score(mlp, trial.params, seed) for seed in fresh_seeds(spec, SEEDS)],
            n_parameters=mlp.n_parameters(trial.params),
        )
        for trial in best
    ]


def judged(spec: StudySpec, mlp: MLP, chosen: Candidate, folder: str) -> dict[str, float]:
    """What further seeds and the test data say of a choice."""
    further = fresh_seeds(spec, SEEDS + FURTHER)[SEEDS:]
    mean = statistics.fmean(score(mlp, chosen.params, seed) for seed in further)
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        tested = mlp.finalize(
            chosen.params, seed=further[0], device="cpu", directory=Path(directory), progress=lambda *_: None
        )
    return {
        "tuned": chosen.tuned,
        "gap_of_tuned": 100 * (chosen.tuned - mean),
        "gap_of_mean": 100 * (chosen.mean - mean),
        "mean": 100 * mean,
        "test": 100 * tested["test_accuracy"],
        "parameters": float(chosen.n_parameters or 0),
    }


def study_of(number: int, dataset: str, epochs: int) -> StudySpec:
    data = read_target("digits")
    args = {"dataset": dataset, "epochs": epochs, "split_seed": number}
    return StudySpec.from_dict({**data, "seed": number, "objective": {**data["objective"], "args": args}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--trials", type=int, default=30, help="of each (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of each trial (default: %(default)s)")
    parser.add_argument("--dataset", default="digits", help="of classes (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    began = time.monotonic()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("tuned", *RULES)}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.studies):
            spec = study_of(number, given.dataset, given.epochs)
            mlp = MLP(**spec.objective.args, data_dir=folder)
            candidates = candidates_of(spec, mlp, given.trials)
            choices = {"tuned": candidates[0]}
            choices |= {rule: choose(candidates, spec.name, rule, is_minimized=False) for rule in RULES}
            for name, chosen in choices.items():
                found[name].append(judged(spec, mlp, chosen, folder))
            print(f"study {number + 1} of {given.studies}: " + ", ".join(
                f"{name} {each[-1]['gap_of_tuned']:+.2f}" for name, each in found.items()
            ), flush=True)  # fmt: skip
    print("\n| choice | tuned − further seeds | mean − further seeds | further seeds | test | parameters |")
    print("|---|---|---|---|---|---|")
    result: dict[str, Any] = {"bench": "winners_curse", **vars(given), "seconds": round(time.monotonic() - began)}
    for name, each in found.items():
        columns = {key: _mean_and_error([of[key] for of in each]) for key in each[0]}
        shown = [f"{mean:.2f} ± {error:.2f}" for mean, error in list(columns.values())[1:5]]
        print(f"| {name} | {' | '.join(shown)} | {columns['parameters'][0]:,.0f} |")
        result[name] = {key: [round(number, 4) for number in pair] for key, pair in columns.items()}
    print(json.dumps(result))


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


if __name__ == "__main__":
    main()
