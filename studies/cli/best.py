"""The command best: the best parameters, for people and in the formats of scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, choose_trial, common_options, study_argument, trial_option
from studies.cli.formats import (
    BEST_FORMATS,
    best_data,
    best_lines,
    data_as,
    detail_lines,
    echo,
    echo_data,
    print_columns,
    readable,
    user_attrs,
)
from studies.cli.parameters import booleans_option, prefix_option, quoted_arguments, quoted_variables
from studies.errors import NothingFinished, command
from studies.text import counted, number

if TYPE_CHECKING:
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord


@click.command()
@study_argument
@click.option("--format", "kind", type=click.Choice(BEST_FORMATS), default="table", show_default=True)
@trial_option
@prefix_option
@booleans_option
@common_options
def best(common: Common, name: str, kind: str, trial_number: int | None, prefix: str, booleans: str | None) -> None:
    """Print the best trial.

    json, yaml and toml hold study, number, value, params, metrics and user_attrs; env and args hold
    the parameters alone, for a shell's eval: LR=0.01 and --lr 0.01. Of equal trials the one with
    the lowest number is best. Of several objectives it prints the trials of the Pareto front, as
    best_trials.
    """
    if prefix and kind != "env":
        raise click.UsageError("--prefix is for variables; add --format env")
    if booleans and kind != "args":
        raise click.UsageError("--booleans is for arguments; add --format args")
    with common.open() as storage:
        record = storage.find_study(name)
        several = len(storage.get_study_directions(record.study_id)) > 1
        if several and trial_number is None and kind not in ("env", "args"):
            _print_front(storage, record, kind)
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
        echo(f"trial {trial.number} of {name}: {trial.state.name.lower()}, {values}", *detail_lines(trial, metrics))


def _print_front(storage: PostgresStorage, record: StudyRecord, kind: str) -> None:
    """The trials that no other one beats in all objectives."""
    trials = storage.load_study(record).best_trials
    metrics = storage.metrics.last(trials)
    if kind != "table":
        found = [best_data(trial, metrics[trial.number]) for trial in trials]
        echo_data(data_as(kind, {"study": record.name, "best_trials": found}))
        return
    if not trials:
        raise NothingFinished(f"study {record.name!r} has no complete trial yet; see: {command('status', record.name)}")
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
