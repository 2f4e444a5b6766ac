"""The command show: everything about a study or a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, common_options, complete_trials, say, study_argument
from studies.cli.formats import (
    aligned,
    attribute_lines,
    constraint_lines,
    echo,
    echo_data,
    print_columns,
    readable,
    to_toml,
)
from studies.cli.status import status_line
from studies.text import counted, duration, number

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import Attempt, StudyRecord


@click.command()
@study_argument
@click.argument("trial_number", metavar="[NUMBER]", type=int, required=False, shell_complete=complete_trials())
@common_options
def show(common: Common, name: str, trial_number: int | None) -> None:
    """Show a study's spec, or one of its trials.

    The spec is printed as a study file; a trial with its parameters, its curve and its error.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        if trial_number is None:
            _show_study(storage, record)
        else:
            _show_trial(storage, record, trial_number)


def _show_study(storage: PostgresStorage, record: StudyRecord) -> None:
    say(status_line(storage.status(record), record))
    if record.spec is None:
        say("it was made by Optuna, not by studyhall, so there is no spec")
        return
    for change in storage.spaces.changes(record):
        say(f"its space changed at {change}")
    echo_data(to_toml(record.spec.model_copy(update={"budget": record.budget}).to_file()))


def _attempt(attempt: Attempt | None) -> str:
    if attempt is None:
        return "–"
    return f"{attempt.worker} ({counted(attempt.times, 'attempt')})" if attempt.times > 1 else attempt.worker


def _took(trial: FrozenTrial, attempt: Attempt | None) -> str:
    if trial.duration is None:
        return "–"
    # The database has no times of single attempts.
    pauses = ", with the pauses between its attempts" if attempt and attempt.times > 1 else ""
    return f"{duration(trial.duration.total_seconds())}{pauses}"


def _show_trial(storage: PostgresStorage, record: StudyRecord, trial_number: int) -> None:
    from studies.storage.trials import known_params, paused_at

    trial = storage.trial(record, trial_number)
    params = known_params(trial.state, trial.params, trial.system_attrs)
    metrics = storage.metrics.of(trial)
    attempt = storage.leases.attempts(record).get(trial_number)
    paused = paused_at(trial.state, trial.system_attrs)
    state = trial.state.name.lower() if paused is None else f"paused at step {paused} by the study's scheduler"
    echo(f"trial {trial.number} of {record.name}: {state}")
    facts = {
        "value": " ".join(number(value) for value in trial.values or []) or "–",
        "began": str(trial.datetime_start or "–").partition(".")[0],
        "took": _took(trial, attempt),
        "worker": _attempt(attempt),
        **{name: readable(value) for name, value in params.items()},
    }
    echo(*aligned([*facts.items()]), *attribute_lines(trial), *constraint_lines(record.spec, trial))
    if trial.intermediate_values:
        names = sorted({name for values in metrics.values() for name in values})
        echo("")
        # The reported value, unless it is one of the named metrics and would stand there twice.
        reported = dict(sorted(trial.intermediate_values.items()))
        known = any(all(metrics.get(step, {}).get(name) == reported[step] for step in reported) for name in names)
        header = ["step", *([] if known else ["value"]), *names]
        rows = [
            [
                str(step),
                *([] if known else [number(value)]),
                *(number(metrics.get(step, {}).get(name)) for name in names),
            ]
            for step, value in reported.items()
        ]
        print_columns(header, rows, numeric=header)
    if "error" in trial.user_attrs:
        # The whole traceback: in a table or a log there is only its last line.
        error = str(trial.user_attrs.get("traceback") or trial.user_attrs["error"])
        echo("", *(f"  {line}" for line in error.expandtabs().rstrip().split("\n")))
