"""The command best: the best parameters, for people and in the formats of scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, choose_trial, common_options, study_argument, trial_option
from studies.cli.formats import (
    BEST_FORMATS,
    best_data,
    best_lines,
    constraint_lines,
    data_as,
    detail_lines,
    echo,
    echo_data,
    print_columns,
    readable,
    user_attrs,
)
from studies.cli.parameters import booleans_option, prefix_option, quoted_arguments, quoted_variables
from studies.text import counted, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord


@click.command()
@study_argument
@click.option("--format", "kind", type=click.Choice(BEST_FORMATS), default="table", show_default=True)
@trial_option
@click.option("--pareto", is_flag=True, help="The Pareto front: each trial that no other one beats in all objectives.")
@prefix_option
@booleans_option
@common_options
def best(
    common: Common,
    name: str,
    kind: str,
    trial_number: int | None,
    pareto: bool,
    prefix: str,
    booleans: str | None,
) -> None:
    """Print the best trial.

    json, yaml and toml hold study, number, value, params, metrics and user_attrs; env and args hold
    the parameters alone, for a shell's eval: LR=0.01 and --lr 0.01. Of equal trials the one with
    the lowest number is best; a trial that breaks a constraint never is. With several objectives it
    prints the Pareto front, as best_trials; with --pareto, env and args have a line for each trial
    of the front.
    """
    if prefix and kind != "env":
        raise click.UsageError("--prefix is for variables; add --format env")
    if booleans and kind != "args":
        raise click.UsageError("--booleans is for arguments; add --format args")
    with common.open() as storage:
        record = storage.find_study(name)
        several = len(storage.get_study_directions(record.study_id)) > 1
        if pareto and trial_number is not None:
            raise click.UsageError("--pareto and --trial exclude each other; give one of them")
        # A shell's eval takes one assignment of each name: env and args have a front only where it is asked for.
        if pareto or (several and trial_number is None and kind not in ("env", "args")):
            front = storage.front(record) or storage.refuse_best(record)
            if kind in ("env", "args"):
                echo_data("\n".join(_in_a_line(trial, kind, prefix, booleans) for trial in front))
            else:
                _print_front(storage, record, front, kind)
            return
        trial = choose_trial(storage, record, trial_number)
        metrics = storage.metrics.last([trial])[trial.number]
        if kind == "table" and trial_number is None:
            echo(*best_lines(storage, record, trial))
            return
    if kind == "env":
        echo_data(quoted_variables(trial.params, prefix))
    elif kind == "args":
        echo_data(quoted_arguments(trial.params, booleans))
    elif kind != "table":
        echo_data(data_as(kind, {"study": name, **best_data(trial, metrics)}))
    else:
        values = " ".join(map(number, trial.values or [])) or "–"
        echo(
            f"trial {trial.number} of {name}: {trial.state.name.lower()}, {values}",
            *detail_lines(trial, metrics),
            *constraint_lines(record.spec, trial),
        )


def _in_a_line(trial: FrozenTrial, kind: str, prefix: str, booleans: str | None) -> str:
    """A trial's parameters for a shell's eval."""
    if kind == "args":
        return quoted_arguments(trial.params, booleans)
    return quoted_variables(trial.params, prefix, separator=" ")


def _print_front(storage: PostgresStorage, record: StudyRecord, trials: Sequence[FrozenTrial], kind: str) -> None:
    """The trials that no other one beats in all objectives."""
    metrics = storage.metrics.last(trials)
    if kind != "table":
        found = [best_data(trial, metrics[trial.number]) for trial in trials]
        echo_data(data_as(kind, {"study": record.name, "best_trials": found}))
        return
    names = storage.objective_names(record)
    echo(
        f"best of {record.name}: {counted(len(trials), 'trial')} that no other one beats in all of {', '.join(names)}",
        "",
    )
    params = dict.fromkeys(name for trial in trials for name in trial.params)
    noted = dict.fromkeys(name for trial in trials for name in user_attrs(trial))
    print_columns(
        ["trial", *names, *params, *noted],
        [
            [
                str(trial.number),
                *map(number, trial.values),
                *(readable(trial.params[name]) if name in trial.params else "–" for name in params),
                *(readable(user_attrs(trial)[name]) if name in trial.user_attrs else "–" for name in noted),
            ]
            for trial in trials
        ],
        numeric=["trial", *names, *params],
    )
