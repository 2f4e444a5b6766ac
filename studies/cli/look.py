"""The commands that look: ls, status, best, trials, show."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import Common, common_options, counted, duration, number, say, study_argument, way_to_work
from studies.cli.formats import (
    BEST_FORMATS,
    best_as,
    best_lines,
    code_lines,
    echo,
    echo_data,
    echo_json,
    print_columns,
    readable,
    to_csv,
    to_json,
    to_toml,
)
from studies.control import BY_HAND, END_WORDS
from studies.errors import NoTables, command
from studies.values import finite, strict, to_text

if TYPE_CHECKING:
    from studies.storage.postgres import Attempt, PostgresStorage, Status, StudyRecord
    from studies.storage.reading import StudyReader, TrialRow


@click.command("ls")
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", show_default=True)
@common_options
def list_studies(common: Common, kind: str) -> None:
    """List the studies."""
    try:
        with common.open() as storage:
            rows = storage.list_studies()
    except NoTables:
        rows = []
    if kind == "json":
        keys = ("name", "budget", "complete", "pruned", "running", "waiting", "fail", "workers")
        echo_data(to_json([{key: row[key] for key in keys} for row in rows]))
    elif not rows:
        say("no studies yet; begin one with: studyhall run digits")
    else:
        print_columns(
            ["study", "done", "budget", "pruned", "running", "failed", "workers", "began"],
            [
                [
                    row["name"],
                    str(row["complete"] + row["pruned"]),
                    "–" if row["budget"] is None else str(row["budget"]),
                    *(str(row[key]) for key in ("pruned", "running", "fail", "workers")),
                    "–" if row["seconds_ago"] is None else f"{duration(row['seconds_ago'])} ago",
                ]
                for row in rows
            ],
            numeric=["done", "budget", "pruned", "running", "failed", "workers"],
        )


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
        best = now.best and best_as("json", name, now.best, metrics[now.best.number])
        data = {
            "study": name,
            "budget": now.budget and now.budget.trials,
            "trials": dict(now.trials),
            "paused": now.paused,
            "ended": now.ended,
            "best": None,
            "workers": [asdict(worker) for worker in now.workers],
        }
        echo_data(to_json(data).replace('"best": null', f'"best": {best or "null"}', 1))
        return
    echo(status_line(now, record))
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
    of = f" of {now.budget.trials}" if now.budget else ""
    counts = ", ".join(
        f"{now.trials[key]} {'failed' if key == 'fail' else key}"
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
    return f"{record.name}: {now.finished}{of} trials done ({counts}){took}{halted}"


@click.command()
@study_argument
@click.option("--format", "kind", type=click.Choice(BEST_FORMATS), default="table", show_default=True)
@common_options
def best(common: Common, name: str, kind: str) -> None:
    """Print the best trial.

    json, yaml and toml hold study, number, value, params and metrics; env and args hold the
    parameters alone: LR=0.01 and --lr 0.01. Of equal trials the one with the lowest number is best.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        trial = storage.best(record)
        if kind == "table":
            echo(*best_lines(storage, record, trial))
        else:
            echo_data(best_as(kind, name, trial, storage.last_metrics([trial])[trial.number]))


@click.command()
@study_argument
@click.option("--format", "kind", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@common_options
def trials(common: Common, name: str, kind: str) -> None:
    """List a study's trials."""
    from studies.storage.reading import StudyReader

    with common.open() as storage:
        record = storage.find_study(name)
        reader = StudyReader(storage, record)
        if kind == "json":
            echo_json([_trial_data(row) for row in page] for page in reader.pages(reports=True))
        elif kind == "csv":
            _echo_csv(reader)
        else:
            _print_trials(record, [_trial_cells(row) for page in reader.pages() for row in page])


def _print_trials(record: StudyRecord, rows: list[list[str]]) -> None:
    if rows:
        header = ["#", "state", "value", "steps", "time", "parameters"]
        print_columns(header, rows, numeric=["#", "value", "steps", "time"])
    else:
        say(f"study {record.name!r} has no trials yet{way_to_work(record)}")


def _trial_cells(row: TrialRow) -> list[str]:
    return [
        str(row.number),
        row.state.lower(),
        " ".join(number(value) for value in row.values) or "–",
        str(row.steps),
        duration((row.complete - row.start).total_seconds()) if row.start and row.complete else "–",
        " ".join(f"{key}={readable(value)}" for key, value in row.params.items()),
    ]


def _trial_data(row: TrialRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "state": row.state,
        "value": finite(row.values[0]) if len(row.values) == 1 else None,
        "values": [finite(value) for value in row.values],
        "params": row.params,
        "metrics": {name: finite(value) for name, value in row.metrics.items()},
        "steps": {str(step): finite(value) for step, value in row.reports.items()},
        "start": row.start and row.start.isoformat(),
        "complete": row.complete and row.complete.isoformat(),
        "worker": row.worker,
        "attempts": row.attempts,
        "error": row.error,
    }


def _echo_csv(reader: StudyReader) -> None:
    """Print the trials as CSV, a page at a time. A name that a running trial writes first after the header was
    printed has no column in it."""
    params, metrics = reader.param_names(), reader.last_metric_names()
    header = ["number", "state", "value", "steps", "start", "complete", "worker", "attempts", "error"]
    echo_data(to_csv([header + [f"params_{name}" for name in params] + [f"metrics_{name}" for name in metrics]]))
    for page in reader.pages():
        echo_data(to_csv(_csv_cells(row, params, metrics) for row in page))


def _csv_cells(row: TrialRow, params: list[str], metrics: list[str]) -> list[Any]:
    return [
        row.number,
        row.state,
        finite(row.values[0]) if len(row.values) == 1 else None,
        row.steps,
        row.start and row.start.isoformat(),
        row.complete and row.complete.isoformat(),
        row.worker,
        row.attempts,
        row.error,
        *(_csv(row.params.get(name)) for name in params),
        *map(row.metrics.get, metrics),
    ]


def _csv(value: Any) -> Any:
    """A parameter's value in a cell: a scalar as it is, a list or a table as JSON."""
    if type(value) in (int, str):
        return value
    return to_text(value) if isinstance(value, list | dict) else strict(value)


@click.command()
@study_argument
@click.argument("trial_number", metavar="[NUMBER]", type=int, required=False)
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


def _show_trial(storage: PostgresStorage, record: StudyRecord, trial_number: int) -> None:
    trial = storage.trial(record, trial_number)
    metrics = storage.metrics(trial)
    attempt = storage.attempts(record).get(trial_number)
    echo(f"trial {trial.number} of {record.name}: {trial.state.name.lower()}")
    facts = {
        "value": " ".join(number(value) for value in trial.values or []) or "–",
        "began": str(trial.datetime_start or "–").partition(".")[0],
        "took": duration(trial.duration.total_seconds()) if trial.duration else "–",
        "worker": _attempt(attempt),
        **{name: readable(value) for name, value in trial.params.items()},
    }
    width = max(map(len, facts))
    echo(*(f"  {key:<{width}}  {value}" for key, value in facts.items()), *code_lines(trial))
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
