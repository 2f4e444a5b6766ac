"""The commands that look: ls, status, best, trials, show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import (
    Common,
    choose_trial,
    common_options,
    complete_trials,
    counted,
    duration,
    number,
    say,
    study_argument,
    trial_option,
)
from studies.cli.formats import (
    BEST_FORMATS,
    aligned,
    attribute_lines,
    best_data,
    best_lines,
    data_as,
    detail_lines,
    echo,
    echo_data,
    print_columns,
    readable,
    to_json,
    to_toml,
    user_attrs,
)
from studies.cli.parameters import booleans_option, prefix_option, quoted_arguments, quoted_variables
from studies.control import BY_HAND, END_WORDS
from studies.errors import NoTables, NothingFinished, command
from studies.values import finite

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from studies.spec import BudgetSpec
    from studies.storage.postgres import Attempt, PostgresStorage, Status, StudyRecord


@click.command("ls")
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", show_default=True)
@common_options
def list_studies(common: Common, kind: str) -> None:
    """List the studies.

    A study's state is paused, running (trials do), idle (none does), or why it has ended: complete
    (its budget is spent), failures, timeout, target, stopped.
    """
    nothing = "no studies yet; begin one with: studyhall run digits"
    try:
        with common.open() as storage:
            rows = storage.list_studies()
    except NoTables as error:
        rows, nothing = [], str(error)
    if kind == "json":
        keys = ("name", "budget", "complete", "pruned", "running", "waiting", "fail", "workers")
        listed = [
            {**{key: row[key] for key in keys}, "state": _state(row), "best": finite(row["best"])} for row in rows
        ]
        echo_data(to_json(listed))
    elif not rows:
        say(nothing)
    else:
        print_columns(
            ["study", "state", "best", "done", "pruned", "running", "failed", "began"],
            [
                [
                    row["name"],
                    _state(row),
                    number(row["best"]),
                    str(row["complete"] + row["pruned"]) + (f"/{row['budget']}" if row["budget"] is not None else ""),
                    *(str(row[key]) for key in ("pruned", "running", "fail")),
                    "–" if row["seconds_ago"] is None else f"{duration(row['seconds_ago'])} ago",
                ]
                for row in rows
            ],
            numeric=["best", "done", "pruned", "running", "failed"],
        )


def _state(row: Mapping[str, Any]) -> str:
    if row["ended"]:
        return "stopped" if row["ended"] == BY_HAND else str(row["ended"])
    return "paused" if row["paused"] else "running" if row["running"] else "idle"


@click.command()
@study_argument
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", show_default=True)
@common_options
def status(common: Common, name: str, kind: str) -> None:
    """Show how far a study is, and who works on it."""
    with common.open() as storage:
        record = storage.find_study(name)
        now = storage.status(record)
        metrics = storage.last_metrics([now.best]) if now.best else {}
    if kind == "json":
        best = now.best and {"study": name, **best_data(now.best, metrics[now.best.number])}
        data = {
            "study": name,
            "budget": now.budget and now.budget.trials,
            "trials": dict(now.trials),
            "paused": now.paused,
            "ended": now.ended,
            "best": best,
            "workers": [asdict(worker) for worker in now.workers],
        }
        echo_data(to_json(data))
        return
    echo(status_line(now, record))
    if now.budget:
        echo(budget_line(now.budget))
    if now.best:
        echo(f"best: {number(now.best.value)} in trial {now.best.number} ({command('best', name)})")
    if now.workers:
        echo("")
        print_columns(
            ["worker", "pid", "device", "trial", "step", "seen"],
            [
                [w.host, str(w.pid), w.device, "–" if w.trial is None else str(w.trial),
                 "–" if w.step is None else str(w.step), f"{duration(w.seen_seconds_ago)} ago"]
                for w in now.workers
            ],
            numeric=["pid", "trial", "step"],
        )  # fmt: skip


def status_line(now: Status, record: StudyRecord, seconds: float | None = None) -> str:
    """The state of a study in one line; with the seconds that a command took to bring it there."""
    of = f" of {now.budget.trials:,}" if now.budget else ""
    counts = ", ".join(
        f"{now.trials[key]:,} {'failed' if key == 'fail' else key}"
        for key in ("complete", "pruned", "running", "waiting", "fail")
        if now.trials[key] or key == "complete"
    )
    # That the budget is spent is what "40 of 40" says.
    halted = f"; {END_WORDS.get(now.ended, now.ended)}" if now.ended not in (None, "complete") else ""
    if now.paused and not now.ended:
        halted = "; paused"
    took = f" in {duration(seconds)}" if seconds else ""
    if took and now.ended == "timeout":
        halted, took = f"{halted} after {duration(seconds or 0)}", ""
    if halted and now.ended in (None, BY_HAND):
        halted += f"; go on with: {command('resume', record.name)}"
    return f"{record.name}: {now.finished:,}{of} trials done ({counts}){took}{halted}"


def budget_line(budget: BudgetSpec) -> str:
    """What ends a study, in one line."""
    limits = [counted(budget.trials, "trial"), counted(budget.max_failures, "failure")]
    if budget.timeout is not None:
        limits.append(f"{duration(budget.timeout)} from the first trial")
    if budget.target is not None:
        limits.append(f"a value of {number(budget.target)}")
    return f"budget: {', or '.join(limits)}"


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
        metrics = storage.last_metrics([trial])[trial.number]
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
    metrics = storage.last_metrics(trials)
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
    echo_data(to_toml(record.spec.model_copy(update={"budget": record.budget}).to_file()))


def _attempt(attempt: Attempt | None) -> str:
    if attempt is None:
        return "–"
    return f"{attempt.worker} ({counted(attempt.times, 'attempt')})" if attempt.times > 1 else attempt.worker


def _took(trial: FrozenTrial, attempt: Attempt | None) -> str:
    if trial.duration is None:
        return "–"
    # How long each attempt took is not stored.
    pauses = ", with the pauses between its attempts" if attempt and attempt.times > 1 else ""
    return f"{duration(trial.duration.total_seconds())}{pauses}"


def _show_trial(storage: PostgresStorage, record: StudyRecord, trial_number: int) -> None:
    from studies.storage.trials import known_params

    trial = storage.trial(record, trial_number)
    params = known_params(trial.state, trial.params, trial.system_attrs)
    metrics = storage.metrics(trial)
    attempt = storage.attempts(record).get(trial_number)
    echo(f"trial {trial.number} of {record.name}: {trial.state.name.lower()}")
    facts = {
        "value": " ".join(number(value) for value in trial.values or []) or "–",
        "began": str(trial.datetime_start or "–").partition(".")[0],
        "took": _took(trial, attempt),
        "worker": _attempt(attempt),
        **{name: readable(value) for name, value in params.items()},
    }
    echo(*aligned([*facts.items()]), *attribute_lines(trial))
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
        error = str(trial.user_attrs.get("traceback") or trial.user_attrs["error"])
        echo("", *(f"  {line}" for line in error.expandtabs().rstrip().split("\n")))
