"""The command retry: run the parameters of a failed trial again."""

from __future__ import annotations

import click

from studies import lifecycle
from studies.cli.cancel import number_argument
from studies.cli.common import Common, common_options, say, study_argument


@click.command()
@study_argument
@number_argument("FAIL")
@common_options
def retry(common: Common, name: str, number: int) -> None:
    """Run the parameters of a failed trial again.

    That is a new trial; the failed one stays, and counts toward budget.max_failures.
    """
    with common.open() as storage:
        new = lifecycle.retry(storage, storage.find_study(name), number)
    say(f"trial {new} of study {name!r} waits for a worker, with the parameters of trial {number}")
