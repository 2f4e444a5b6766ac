"""The command status; and the status line with which other commands end."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from studies.cli.common import Common, common_options, study_argument
from studies.cli.formats import (
    best_data,
    echo,
    echo_data,
    print_columns,
    to_json,
)
from studies.errors import command
from studies.spec.constraints import in_words
from studies.stop_reasons import BY_HAND, STOP_REASONS
from studies.text import counted, duration, number, ranges

if TYPE_CHECKING:
    from studies.spec.sections import BudgetSpec
    from studies.storage.records import Status, StudyRecord, Worker


@click.command()
@study_argument
@click.option("--format", "kind", type=click.Choice(["table", "json"]), default="table", show_default=True)
@common_options
def status(common: Common, name: str, kind: str) -> None:
    """Show a study's progress and its workers."""
    with common.open() as storage:
        record = storage.find_study(name)
        now = storage.status(record)
        metrics = storage.metrics.last([now.best]) if now.best else {}
        front = storage.front(record) if now.best is None else []
        warm_start = storage.evidence.counts(record)
        evidence = storage.evidence.in_words(record)
    if kind == "json":
        best = now.best and {"study": name, **best_data(now.best, metrics[now.best.number])}
        has_scheduler = record.spec is not None and record.spec.scheduler is not None
        data = {
            "study": name,
            "budget": now.budget and now.budget.trial_limit,
            # "paused" only where trials can be: a scheduler's study.
            "trials": {state: n for state, n in now.trials.items() if state != "paused" or n or has_scheduler},
            "epochs": _spent(now.epochs, now.budget.epochs if now.budget else None),
            "gpu_hours": _spent(now.gpu_hours, now.budget.gpu_hours if now.budget else None),
            "paused": now.paused,
            "ended": now.ended,
            "best": best,
            **({"warm_start": warm_start} if warm_start else {}),
            "workers": [_worker_data(worker) for worker in now.workers],
        }
        echo_data(to_json(data))
        return
    echo(status_line(now, record))
    if now.budget:
        echo(budget_line(now.budget))
    if best_so_far := best_line(now, record, len(front)):
        echo(best_so_far)
    if evidence:
        echo(evidence)
    if now.workers:
        echo("")
        print_columns(
            ["worker", "pid", "device", *WORK, "seen"],
            [
                [w.host, str(w.pid), w.device, *work_cells(w), f"{duration(w.seen_seconds_ago)} ago"]
                for w in now.workers
            ],
            numeric=["pid", *WORK],
        )


#: The columns of :func:`work_cells`.
WORK: Final = ("slots", "trial", "step")


def work_cells(worker: Worker) -> tuple[str, str, str]:
    """What a worker trains, for people: its slots, the numbers of its trials, and the steps that those have reached."""
    steps = {trial.step for trial in worker.trials if trial.step is not None}
    reached = "–".join(map(str, sorted({min(steps), max(steps)}))) if steps else "–"
    return str(worker.slots), ranges(trial.number for trial in worker.trials), reached


def _worker_data(worker: Worker) -> dict[str, Any]:
    data = asdict(worker)
    # Scripts from before there were slots read the one trial of a worker.
    first = data["trials"][0] if data["trials"] else {"number": None, "step": None}
    return {**data, "trial": first["number"], "step": first["step"]}


def status_line(now: Status, record: StudyRecord, seconds: float | None = None) -> str:
    """The status of a study in one line. ``seconds``: how long the command ran."""
    counts = ", ".join(
        f"{now.trials[key]:,} {'failed' if key == 'fail' else key}"
        for key in ("complete", "pruned", "running", "waiting", "paused", "fail")
        if now.trials[key] or key == "complete"
    )
    # "40 of 40" already says that the budget is spent.
    halted = f"; {STOP_REASONS.get(now.ended, now.ended)}" if now.ended not in (None, "complete") else ""
    if now.paused and not now.ended:
        halted = "; paused"
    took = f" in {duration(seconds)}" if seconds else ""
    # "time limit reached after 2:00:00" reads as one fact.
    if took and now.ended == "timeout":
        halted, took = f"{halted} after {duration(seconds or 0)}", ""
    # A study that its budget stopped goes on by another command, with a larger budget.
    if halted and now.ended in (None, BY_HAND):
        halted += f"; go on with: {command('resume', record.name)}"
    return f"{record.name}: {now.done} done ({counts}){took}{halted}"


def _spent(spent: float, budget: float | None) -> dict[str, float] | None:
    return None if budget is None else {"spent": spent, "budget": budget}


def best_line(now: Status, record: StudyRecord, front: int) -> str | None:
    """The best trial, or the size of the Pareto front, in one line; ``None`` while no trial is complete.

    Args:
        now: the study's status.
        record: the study.
        front: how many trials are on the Pareto front of several objectives.
    """
    kept = in_words(record.spec.constraints) if record.spec else ""
    best = f"best with {kept}" if kept else "best"
    if now.best:
        return f"{best}: {number(now.best.value)} in trial {now.best.number} ({command('best', record.name)})"
    if front:
        look = command("best", record.name, "--pareto")
        return f"{best}: {counted(front, 'trial')} on the Pareto front ({look})"
    return f"{best}: none; no complete trial keeps this" if now.trials["complete"] and kept else None


def spendable(budget: BudgetSpec) -> list[str]:
    """What a study may spend, in words: trials, epochs, GPU hours; empty where nothing limits these."""
    limits = [counted(budget.trial_limit, "trial")] if budget.trial_limit else []
    if budget.epochs is not None:
        limits.append(counted(budget.epochs, "epoch"))
    if budget.gpu_hours is not None:
        limits.append(f"{number(budget.gpu_hours)} GPU hours")
    return limits


def budget_line(budget: BudgetSpec) -> str:
    """The limits of a study, in one line."""
    limits = spendable(budget)
    limits.append(counted(budget.max_failures, "failure"))
    if budget.timeout is not None:
        limits.append(f"{duration(budget.timeout)} from the first trial")
    if budget.target is not None:
        limits.append(f"a value of {number(budget.target)}")
    return f"budget: {', or '.join(limits)}"
