"""The command extend: another budget or direction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from studies.cli.common import (
    Common,
    common_options,
    direction_option,
    goal,
    say,
    study_argument,
    time_value,
    who_goes_on,
)
from studies.cli.status import budget_line, status_line
from studies.text import counted

if TYPE_CHECKING:
    from studies.spec.sections import Direction
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord


def _count(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int | None, int]:
    """How many in all, and how many more: ``50`` → (50, 0), ``+50`` → (None, 50)."""
    if text is None:
        return None, 0
    if not text.removeprefix("+").isdecimal() or int(text) == 0:
        raise click.BadParameter(f"{text!r} is neither a whole number above 0, nor + and one: 150, +50")
    return (None, int(text)) if text.startswith("+") else (int(text), 0)


def _hours(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[float | None, float]:
    """The same for hours: ``1.5`` → (1.5, 0), ``+1.5`` → (None, 1.5)."""
    if text is None:
        return None, 0.0
    try:
        hours = float(text.removeprefix("+"))
    except ValueError:
        hours = 0.0
    if not 0 < hours < math.inf:
        raise click.BadParameter(f"{text!r} is neither a number of hours above 0, nor + and one: 24, +1.5")
    return (None, hours) if text.startswith("+") else (hours, 0.0)


@click.command()
@study_argument
@click.option("--trials", metavar="N|+N", callback=_count, help="N trials in all, or N more.")
@click.option("--epochs", metavar="N|+N", callback=_count, help="N steps over all trials, or N more.")
@click.option("--gpu-hours", metavar="H|+H", callback=_hours, help="H hours of trials on GPUs in all, or H more.")
@click.option("--timeout", metavar="TIME", callback=time_value, help="Time in which trials may begin: 90s, 30m, 2h.")
@click.option("--target", type=float, help="Stop when a trial reaches this value.")
@click.option("--max-failures", metavar="N|+N", callback=_count, help="FAILed trials before the study stops.")
@direction_option("Alone, before a trial has finished and while no worker runs; once for each objective.")
@common_options
def extend(
    common: Common,
    name: str,
    trials: tuple[int | None, int],
    epochs: tuple[int | None, int],
    gpu_hours: tuple[float | None, float],
    timeout: float | None,
    target: float | None,
    max_failures: tuple[int | None, int],
    directions: tuple[Direction, ...],
) -> None:
    """Change a study's budget or direction.

    Workers follow at their next trial.
    """
    has_budget = any(given is not None for given in (timeout, target)) or any(
        (*trials, *epochs, *gpu_hours, *max_failures)
    )
    # Two statements with conditions of their own: the second one might be refused after the first was done.
    if has_budget == bool(directions):
        raise click.UsageError(
            "--direction and a budget cannot change in one command; give --direction alone"
            if directions
            else "nothing to change; give --trials +50, --epochs, --gpu-hours, --timeout, --target, --max-failures or "
            "--direction"
        )
    with common.open() as storage:
        record = storage.find_study(name)
        if directions:
            storage.change_directions(record, directions)
            spec = storage.find_study(name).require_spec("it has no spec")
            say(f"study {name!r}: {goal(spec, is_new=False)}")
            say(status_line(storage.status(record), record))
            return
        storage.budgets.extend(
            record,
            trials=trials[0],
            more_trials=trials[1],
            epochs=epochs[0],
            more_epochs=epochs[1],
            gpu_hours=gpu_hours[0],
            more_gpu_hours=gpu_hours[1],
            max_failures=max_failures[0],
            more_failures=max_failures[1],
            timeout=timeout,
            target=target,
        )
        _say_extended(storage, record)


def _say_extended(storage: PostgresStorage, before: StudyRecord) -> None:
    """Print the new budget, the trials that have no room in it, and whether workers continue."""
    record = storage.find_study(before.name)
    now = storage.status(record)
    assert before.budget is not None  # else it could not be extended
    assert now.budget is not None
    say(status_line(now, record))
    say(budget_line(now.budget))
    if now.budget.trials < before.budget.trials:
        surplus = (
            now.finished + now.trials["running"] + now.trials["waiting"] + now.trials["paused"] - now.budget.trials
        )
        none = (
            f"; {counted(surplus, 'trial')} that ran or waited will wait until the budget grows again"
            if surplus > 0
            else ""
        )
        instead = f"{before.budget.trial_limit:,}" if before.budget.trial_limit else "any number"
        say(f"the budget is smaller: {counted(now.budget.trials, 'trial')} instead of {instead}{none}")
    if now.ended is None and not now.paused:
        say(f"study {record.name!r} goes on{who_goes_on(now, record)}")
