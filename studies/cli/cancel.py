"""The command cancel: end one trial."""

from __future__ import annotations

from collections.abc import Callable

import click

from studies import lifecycle
from studies.cli.common import Common, F, common_options, complete_trials, say, study_argument


def number_argument(*states: str) -> Callable[[F], F]:
    """The argument NUMBER of a trial. Tab completes it among the trials in ``states``."""
    return click.argument("number", metavar="NUMBER", type=int, shell_complete=complete_trials(*states))


@click.command()
@study_argument
@number_argument("RUNNING", "WAITING")
@common_options
def cancel(common: Common, name: str, number: int) -> None:
    """End one waiting or running trial.

    It is FAILed with the error "cancelled", and counts toward neither the budget nor
    budget.max_failures.
    """
    with common.open() as storage:
        record = storage.find_study(name)
        has_ended = lifecycle.cancel(storage, record, number)
        workers = storage.status(record).workers
        holders = [worker for worker in workers if number in (trial.number for trial in worker.trials)]
    if has_ended:
        say(f"trial {number} of study {name!r} is cancelled")
    else:
        where = f", on {holders[0].host} ({holders[0].device})" if holders else ""
        say(f"trial {number} of study {name!r} is cancelled: it ends at its next step{where}")
